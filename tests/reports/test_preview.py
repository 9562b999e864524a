"""What the pictures show is what augmentation and weight map give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.image import imread

from unet_repro import weight_map
from unet_repro.augmentation import augment
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError
from unet_repro.reports import preview
from unet_repro.reports.preview import augmentation_preview, weight_map_preview
from unet_repro.weight_maps.weight_map import frequency_weights


def two_cells() -> np.ndarray:
    """Two cells with a gap of 2 px, the same in three slices of 60 x 50 px."""
    labels = np.zeros((3, 60, 50), np.uint8)
    labels[:, 5:55, 5:24] = 9
    labels[:, 5:55, 26:45] = 200
    return labels


PLAIN = two_cells()


def shades(labels: np.ndarray) -> np.ndarray:
    """An image that differs from pixel to pixel and from slice to slice."""
    z, y, x = np.indices(labels.shape)
    return (40 * z + 2 * y + 0.5 * x).astype(np.float32)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw without rendering; return the figure."""

    def figure(draw, *arguments, **options) -> Figure:
        kept = []
        monkeypatch.setattr(preview, "_save", lambda figure, *_, **__: kept.append(figure))
        draw(*arguments, tmp_path / "unused.png", **options)
        return kept[0]

    return figure


def panels(figure: Figure) -> list:
    return [axes for axes in figure.axes if axes.images and axes.get_title()]


def contours(axes) -> list[QuadContourSet]:
    return [one for one in axes.get_children() if isinstance(one, QuadContourSet)]


class TestAugmentation:
    def test_png_is_complete_and_pyplot_untouched(self, tmp_path):
        labels, path = two_cells(), tmp_path / "new" / "grid.png"
        augmentation_preview(shades(labels), labels, path, window=28, samples=1)
        picture = imread(path)
        # four panels of 3.6 in beside each other at 160 dpi, and what is around them
        assert picture.shape[1] == round(4 * (0.4 + 3.6 + 0.5) * 160)
        assert np.unique(picture[..., 0]).size > 100
        assert not _pylab_helpers.Gcf.get_all_fig_managers()
        assert [file.name for file in path.parent.iterdir()] == ["grid.png"]

    def test_original_is_the_middle_slice_mirrored_about_its_border(self, drawn):
        labels = two_cells()
        labels[0] = 0  # the class balance is the whole stack's
        figure = drawn(augmentation_preview, shades(labels), labels, window=70, samples=2)
        left, right = panels(figure)[:2]
        # 70 px about the middle of 60 x 50: 5 more px above and below, 10 at the sides
        around = ((5, 5), (10, 10))
        expected = np.pad(shades(labels)[1], around, mode="reflect")
        assert np.array_equal(left.images[0].get_array(), expected)
        weights = weight_map(labels)[1]
        assert np.array_equal(right.images[0].get_array(), np.pad(weights, around, mode="reflect"))
        assert left.get_title() == "original"

    def test_of_several_sizes_the_middle_one_is_drawn_and_all_are_counted(self, drawn):
        images, labels = list(shades(PLAIN)), list(two_cells())
        images[2], labels[2] = images[2][:30], np.zeros((30, 50), np.uint8)
        figure = drawn(augmentation_preview, images, labels, window=70, samples=1)
        left, right = panels(figure)[:2]
        around = ((5, 5), (10, 10))
        assert np.array_equal(left.images[0].get_array(), np.pad(images[1], around, "reflect"))
        cells = 2 * (PLAIN[0] > 0).sum()
        balance = frequency_weights(2 * 60 * 50 + 30 * 50 - cells, cells)
        weights = weight_map(labels[1], class_balance=balance)
        assert np.array_equal(right.images[0].get_array(), np.pad(weights, around, "reflect"))
        assert left.images[0].get_clim() == (0, 40 + 2 * 59 + 0.5 * 49)  # of all images
        with pytest.raises(InputError, match=r"images are of \(60, 50\), .* labels \(3, 60, 50\)"):
            drawn(augmentation_preview, images, PLAIN)

    def test_grid_is_regular_on_the_original(self, drawn):
        labels = two_cells()
        figure = drawn(augmentation_preview, shades(labels), labels, window=70, samples=1)
        rows, border_rows, columns, border_columns = contours(panels(figure)[0])
        # The window begins at y = -5, x = -10. 50 / 12 is 4.2 px; the next round number is 5.
        for lines, size, first in ((rows, 60, -5), (columns, 50, -10)):
            wanted = [place for place in range(-10, 70, 5) if first < place < size - first - 1]
            assert lines.levels.tolist() == wanted
        assert border_rows.levels.tolist() == [-0.5, 59.5]
        assert border_columns.levels.tolist() == [-0.5, 49.5]
        for lines, axis, first in ((rows, 1, -5), (columns, 0, -10)):
            for level, path in zip(lines.levels, lines.get_paths()):
                np.testing.assert_allclose(path.vertices[:, axis], level - first, atol=1e-6)

    def test_samples_are_what_training_would_see(self, drawn):
        labels, settings = two_cells(), AugmentationConfig(flips=True)
        image = shades(labels)
        options = {"settings": settings, "window": 33, "samples": 4, "seed": 5}
        found = panels(drawn(augmentation_preview, image, labels, **options))
        assert len(found) == 10
        generator = torch.Generator().manual_seed(5)
        for left, right in zip(found[2::2], found[3::2]):
            one = augment.draw(settings, image_size=(60, 50), window=(33, 33), generator=generator)
            arrays = (image[1][None], labels[1], weight_map(labels)[1])
            tensors = [torch.from_numpy(array) for array in arrays]
            scale = {"mean": torch.tensor(image.mean()), "std": torch.tensor(image.std())}
            sample = augment.apply(one, *tensors, window=(33, 33), **scale)
            shown = left.images[0].get_array()
            np.testing.assert_allclose(shown, sample.image[0], rtol=1e-4, atol=1e-3)
            np.testing.assert_allclose(right.images[0].get_array(), sample.weights, rtol=1e-5)
            assert f"{one.angle_deg:+.0f}°" in left.get_title()
            assert ("flipped" in left.get_title()) == one.is_flipped
            tinted = left.images[1].get_array()[..., 3] > 0
            ids = np.pad(sample.labels.numpy().astype(int), 1, mode="edge")
            around = [ids[:-2, 1:-1], ids[2:, 1:-1], ids[1:-1, :-2], ids[1:-1, 2:]]
            inside = ids[1:-1, 1:-1]
            is_boundary = (inside > 0) & np.any([inside != other for other in around], axis=0)
            assert np.array_equal(tinted, is_boundary)

    def test_several_channels_are_varied_each_about_its_own_mean(self, drawn):
        labels, settings = two_cells(), AugmentationConfig(flips=True)
        image = np.stack([shades(labels), 300 - 2 * shades(labels), 0 * shades(labels)], axis=1)
        options = {"settings": settings, "window": 33, "samples": 1, "seed": 5}
        shown = panels(drawn(augmentation_preview, image, labels, **options))
        generator = torch.Generator().manual_seed(5)
        one = augment.draw(settings, image_size=(60, 50), window=(33, 33), generator=generator)
        mean, std = (
            torch.from_numpy(f(image, axis=(0, 2, 3))[:, None, None]) for f in (np.mean, np.std)
        )
        expected = augment.apply(
            one, torch.from_numpy(image[1]), window=(33, 33), mean=mean, std=std
        ).image.numpy()
        low, high = image.min(), image.max()
        colours = ((np.moveaxis(expected, 0, -1) - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(shown[2].images[0].get_array(), colours, atol=1e-4)
        first = panels(drawn(augmentation_preview, image[:, :2], labels, **options))
        np.testing.assert_allclose(
            first[2].images[0].get_array(), expected[0], rtol=1e-4, atol=1e-3
        )

    def test_all_share_one_grey_scale_and_one_colour_scale(self, drawn):
        labels = two_cells()
        found = panels(drawn(augmentation_preview, shades(labels), labels, window=28, samples=3))
        highest = pytest.approx(float(weight_map(labels)[1].max()))
        assert {one.images[0].get_clim() for one in found[::2]} == {(0.0, 80 + 118 + 24.5)}
        assert all(one.images[0].get_clim() == (0, highest) for one in found[1::2])
        assert all(one.images[0].colorbar is not None for one in found[1::2])

    @pytest.mark.parametrize(
        ("images", "labels", "options", "message"),
        [
            (PLAIN, PLAIN[0], {}, r"images are \(3, 60, 50\), labels \(60, 50\): both \(y, x\) or"),
            (PLAIN[None], PLAIN[None], {}, r"both \(y, x\) or both \(z, y, x\) are needed"),
            (PLAIN, PLAIN, {"window": 0}, "window is 0 px, samples 8: both must be 1 or more"),
            (PLAIN * np.nan, PLAIN, {}, "the images hold a value that is not finite"),
        ],
    )
    def test_errors_say_what_is_wrong(self, tmp_path, images, labels, options, message):
        with pytest.raises(InputError, match=message):
            augmentation_preview(images, labels, tmp_path / "grid.png", **options)
        assert not list(tmp_path.iterdir())


class TestWeightMap:
    def test_png_is_complete(self, tmp_path):
        weight_map_preview(two_cells(), tmp_path / "weights.png")
        assert imread(tmp_path / "weights.png").shape[2] == 4
        assert [file.name for file in tmp_path.iterdir()] == ["weights.png"]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"w0": 3.0, "sigma": 2.0, "class_balance": (2.0, 5.0)},
            {"variant": "short", "class_balance": None},
            {"variant": "falk2019"},
            {"separate_touching": True, "ignore_label": 9},
        ],
    )
    def test_class_weight_and_border_term_add_up_to_the_weight_map(self, drawn, options):
        labels = two_cells()
        labels[0] = 0  # the class balance is the whole stack's
        figure = drawn(weight_map_preview, labels, **options)
        _, class_weight, border, total = (one.images[0].get_array() for one in panels(figure))
        expected = weight_map(labels, label_kind="ids", **options)[1]
        np.testing.assert_allclose(total, expected, rtol=1e-5)
        np.testing.assert_allclose(class_weight + border, total, rtol=1e-6)
        assert not border[labels[1] > 0].any()
        if not options:
            # a gap of 2 px: d1 + d2 = 3; 10 exp(-9 / 50)
            np.testing.assert_allclose(border[20:40, 24:26], 10 * np.exp(-9 / 50), rtol=1e-6)
            assert np.unique(class_weight).size == 2

    def test_each_label_has_its_own_fixed_colour(self, drawn):
        labels = two_cells()
        for _ in range(2):
            colours = panels(drawn(weight_map_preview, labels))[0].images[0].get_array()
            found = [np.unique(colours[labels[1] == k], axis=0) for k in (0, 9, 200)]
            assert [len(one) for one in found] == [1, 1, 1]
            assert not found[0].any()
            assert np.abs(found[1] - found[2]).max() > 0.3
        many = preview._label_colours(np.arange(101))
        assert np.unique(many.round(3), axis=0).shape == (101, 3)
        assert (many[1:].max(axis=1) > 0.6).all()  # none is as dark as the background

    def test_mask_is_told_from_ids_by_the_whole_stack(self, drawn):
        def title(**options):
            return panels(drawn(weight_map_preview, mask, **options))[0].get_title()

        mask = (two_cells() > 0).astype(np.uint8)
        mask[2] = 0
        assert title() == "labels: 2 cells" and title(z=2) == "labels: 0 cells"
        mask[0, 0, 0] = 7  # now 1 is an id
        assert title() == "labels: 1 cell"

    def test_unknown_pixels_are_grey_and_no_cell(self, drawn):
        found = panels(drawn(weight_map_preview, two_cells(), ignore_label=9))
        assert found[0].get_title() == "labels: 1 cell, unknown pixels grey"
        assert (found[0].images[0].get_array()[10, 10] == 0.5).all()
        assert found[3].images[0].get_array()[10, 10] == 0

    @pytest.mark.parametrize(
        ("labels", "options", "message"),
        [
            (PLAIN[0, 0], {}, r"labels have shape \(50,\): \(y, x\) or \(z, y, x\) with pixels"),
            (PLAIN, {"z": 3}, r"z is 3: the stack has slices 0 ... 2"),
        ],
    )
    def test_errors_say_what_is_wrong(self, tmp_path, labels, options, message):
        with pytest.raises(InputError, match=message):
            weight_map_preview(labels, tmp_path / "weights.png", **options)
        assert not list(tmp_path.iterdir())
