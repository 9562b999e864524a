"""Augmentation against scipy, against slow references, and on images that hold coordinates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from unet_repro import elastic_deformation
from unet_repro.augmentation import augment, elastic
from unet_repro.augmentation.augment import Augmentation, coordinates, draw
from unet_repro.augmentation.warp import warp_together
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError

STILL = torch.zeros(2, 3, 3, dtype=torch.float64)
SIZES = [(1, 1), (1, 6), (7, 1), (2, 2), (2, 9), (5, 7), (16, 11)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dense_displacement(control: Tensor, window: tuple[int, int]) -> Tensor:
    places = coordinates(augmentation(window, displacement=control), window)
    return places - coordinate_image(*window)


def warp(image: Tensor, places: Tensor, **options: str) -> Tensor:
    return warp_together(image, places=places, **options).image


def augmentation(
    size: tuple[int, int],
    *,
    angle_deg: float = 0.0,
    is_flipped: bool = False,
    displacement: Tensor = STILL,
    shift: tuple[float, float] = (0.0, 0.0),
    contrast: float = 1.0,
    brightness: float = 0.0,
    **more: float,
) -> Augmentation:
    """Everything about the middle of an image of this size."""
    centre = ((size[0] - 1) / 2 + shift[0], (size[1] - 1) / 2 + shift[1])
    return Augmentation(centre, angle_deg, is_flipped, displacement, contrast, brightness, **more)


def coordinate_image(height: int, width: int) -> Tensor:
    """float64 (2, H, W): every pixel holds its own (y, x)."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([y, x]).double()


def mirrored_index(index: int, side: int) -> int:
    """Walk from border to border until inside."""
    if side == 1:
        return 0
    while not 0 <= index < side:
        index = -index if index < 0 else 2 * (side - 1) - index
    return index


def keys_kernel(distance: float) -> float:
    """Keys 1981, a = -1/2, as printed."""
    s, a = abs(distance), -0.5
    if s <= 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0.0


def bicubic_by_hand(image: np.ndarray, y: float, x: float) -> float:
    total = 0.0
    for v in range(math.floor(y) - 1, math.floor(y) + 3):
        for u in range(math.floor(x) - 1, math.floor(x) + 3):
            pixel = image[mirrored_index(v, image.shape[0]), mirrored_index(u, image.shape[1])]
            total += pixel * keys_kernel(y - v) * keys_kernel(x - u)
    return total


def far_places(seed: int, shape: tuple[int, int] = (9, 8)) -> Tensor:
    """Places up to 60 px away: many reflections for the sizes above."""
    return 120 * torch.rand(2, *shape, generator=seeded(seed), dtype=torch.float64) - 60


class TestDisplacement:
    @pytest.mark.parametrize("grid", [(3, 3), (4, 4), (2, 5)])
    @pytest.mark.parametrize("window", [(31, 45), (12, 7)])
    def test_is_scipys_mirrored_cubic_interpolation(self, grid, window):
        control = 10 * torch.randn(2, *grid, generator=seeded(0), dtype=torch.float64)
        places = np.meshgrid(
            *(np.linspace(0, points - 1, side) for points, side in zip(grid, window)),
            indexing="ij",
        )
        expected = [
            ndimage.map_coordinates(axis, places, order=3, mode="mirror") for axis in control
        ]
        found = dense_displacement(control, window)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)

    def test_is_the_cubic_spline_with_level_ends(self):
        # Knots (1, 0, 0) a px apart, slope 0 at both ends: the second derivatives there are
        # (-4.5, 3, -1.5), so half way between knots stand (1 + 0)/2 + 1.5/16 and -(3 - 1.5)/16.
        control = torch.tensor([1.0, 0, 0], dtype=torch.float64).expand(2, 3, 3).mT
        found = dense_displacement(control, (5, 5))
        expected = torch.tensor([1, 0.59375, 0, -0.09375, 0], dtype=torch.float64)
        torch.testing.assert_close(found, expected.expand(2, 5, 5).mT, rtol=0, atol=1e-12)

    def test_standard_deviation_at_the_control_points_is_sigma(self):
        generator = seeded(3)
        fields = torch.stack(
            [
                dense_displacement(augment.draw_displacement(generator=generator), (5, 5))
                for _ in range(4000)
            ]
        )[..., ::2, ::2]
        # 72,000 values: the standard error of the deviation is 0.26 %, that of the mean 0.037 px
        assert fields.std().item() == pytest.approx(10, rel=0.011)
        assert abs(fields.mean().item()) < 0.15
        # each of the 18 separately, from 4000: 1.1 %
        torch.testing.assert_close(
            fields.std(dim=0), torch.full((2, 3, 3), 10.0).double(), rtol=0.05, atol=0
        )
        correlation = torch.corrcoef(fields.flatten(1).T) - torch.eye(18)
        assert correlation.abs().max() < 0.08

    def test_sigma_scales_the_draw(self):
        one = augment.draw_displacement(sigma_px=1, generator=seeded(4))
        four = augment.draw_displacement(sigma_px=4, generator=seeded(4))
        torch.testing.assert_close(four, 4 * one)
        assert not augment.draw_displacement(sigma_px=0, generator=seeded(4)).any()

    def test_field_moves_by_the_displacement_itself(self):
        # y displacement 2 px, x displacement -1 px everywhere: pixel (y, x) shows (y + 2, x - 1)
        control = torch.tensor([2.0, -1.0], dtype=torch.float64)[:, None, None].expand(2, 3, 3)
        found = dense_displacement(control, (6, 8))
        torch.testing.assert_close(found, control[:, :1, :1].expand(2, 6, 8), rtol=0, atol=1e-12)


class TestExactness:
    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
    @pytest.mark.parametrize("size", SIZES)
    def test_identity(self, size, interpolation):
        image = torch.rand(3, *size, generator=seeded(0))
        places = coordinates(augmentation(size), size)
        assert torch.equal(warp(image, places, interpolation=interpolation), image)

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
    @pytest.mark.parametrize("shift", [(2, -3), (-1, 5), (23, 0)])
    def test_whole_shift(self, shift, interpolation):
        image = torch.rand(7, 9, generator=seeded(1))
        places = coordinates(augmentation((7, 9), shift=shift), (7, 9))
        rows = [mirrored_index(y + shift[0], 7) for y in range(7)]
        columns = [mirrored_index(x + shift[1], 9) for x in range(9)]
        expected = image[rows][:, columns]
        assert torch.equal(warp(image, places, interpolation=interpolation), expected)

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
    @pytest.mark.parametrize(
        ("size", "turns"),
        [(size, turns) for size in ((6, 6), (6, 8), (1, 5)) for turns in (-3, 1, 2, 3, 4, 5)]
        + [((4, 7), 2)],  # a quarter turn of 4 x 7 px lies between the pixels
    )
    def test_rotation_by_90_degrees_is_counter_clockwise(self, size, turns, interpolation):
        image = torch.rand(2, *size, generator=seeded(2))
        window = size[::-1] if turns % 2 else size
        places = coordinates(augmentation(size, angle_deg=90 * turns), window)
        expected = torch.rot90(image, turns, dims=(1, 2))
        assert torch.equal(warp(image, places, interpolation=interpolation), expected)

    @pytest.mark.parametrize("turns", [1, 2, 3, 1001])
    def test_rotation_by_90_degrees_is_exact_in_a_large_image(self, turns):
        image = torch.rand(1100, 1100, generator=seeded(2))  # 1e-16 rad would show far out
        places = coordinates(augmentation((1100, 1100), angle_deg=90 * turns), (1100, 1100))
        assert torch.equal(places, torch.round(places))
        assert torch.equal(warp(image, places), torch.rot90(image, turns))

    @pytest.mark.parametrize("turns", [0, 1, 2, 3])
    def test_picture_is_rotated_first_then_flipped(self, turns):
        image = torch.rand(6, 6, generator=seeded(4))
        places = coordinates(augmentation((6, 6), angle_deg=90 * turns, is_flipped=True), (6, 6))
        assert torch.equal(warp(image, places), torch.rot90(image, turns).fliplr())

    def test_displacement_is_in_the_turned_and_flipped_window(self):
        # Turned by 90 degrees and flipped, the window shows the transposed image; a displacement
        # of one px to the right, in the window, is one px down in the image.
        image = torch.rand(9, 9, generator=seeded(5), dtype=torch.float64)
        right = torch.tensor([0.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, 3, 3)
        drawn = augmentation((9, 9), angle_deg=-90, is_flipped=True, displacement=right)
        found = warp(image, coordinates(drawn, (9, 9)))
        torch.testing.assert_close(found[:, :-1], image.T[:, 1:], rtol=0, atol=1e-12)


class TestSampling:
    @pytest.mark.parametrize("angle_deg", [10.0, -33.3, 137.0, 261.0])
    def test_rotation_is_scipys(self, angle_deg):
        image = torch.rand(21, 21, generator=seeded(6), dtype=torch.float64)
        places = coordinates(augmentation((21, 21), angle_deg=angle_deg), (21, 21))
        expected = ndimage.rotate(image, angle_deg, reshape=False, order=1, mode="mirror")
        np.testing.assert_allclose(warp(image, places), expected, rtol=0, atol=1e-12)

    def test_everything_at_once_is_scipys_affine_and_map_coordinates(self):
        size, window = (40, 50), (33, 27)
        image = torch.rand(size, generator=seeded(7), dtype=torch.float64)
        control = augment.draw_displacement(generator=seeded(7))
        drawn = Augmentation((12.0, 43.0), 71.0, True, control, 1.0, 0.0)
        y, x = np.mgrid[: window[0], : window[1]].astype(float)
        where = np.stack([y * 2 / 32, x * 2 / 26])
        y += ndimage.map_coordinates(control[0], where, order=3, mode="mirror")
        x += ndimage.map_coordinates(control[1], where, order=3, mode="mirror")
        x = 26 - x  # flipped
        cos, sin = np.cos(np.deg2rad(71.0)), np.sin(np.deg2rad(71.0))
        v, u = y - 16, x - 13
        places = np.stack([12 + cos * v + sin * u, 43 - sin * v + cos * u])
        np.testing.assert_allclose(coordinates(drawn, window), places, rtol=0, atol=1e-9)
        expected = ndimage.map_coordinates(image, places, order=1, mode="mirror")
        np.testing.assert_allclose(
            warp(image, coordinates(drawn, window)), expected, rtol=0, atol=1e-9
        )

    @pytest.mark.parametrize("size", SIZES)
    def test_bilinear_is_scipys_order_1_however_far_outside(self, size):
        image = torch.rand(size, generator=seeded(8), dtype=torch.float64)
        places = far_places(9)
        expected = ndimage.map_coordinates(image, places, order=1, mode="mirror")
        np.testing.assert_allclose(warp(image, places), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("size", SIZES)
    def test_nearest_is_scipys_order_0_however_far_outside(self, size):
        image = torch.rand(size, generator=seeded(10))
        places = far_places(11)
        expected = ndimage.map_coordinates(image, places, order=0, mode="mirror", prefilter=False)
        np.testing.assert_array_equal(warp(image, places, interpolation="nearest"), expected)

    @pytest.mark.parametrize("size", SIZES)
    def test_bicubic_is_keys_kernel_however_far_outside(self, size):
        image = torch.rand(size, generator=seeded(12), dtype=torch.float64)
        places = far_places(13)
        expected = [bicubic_by_hand(image.numpy(), y, x) for y, x in places.flatten(1).T.numpy()]
        found = warp(image, places, interpolation="bicubic").flatten()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)

    def test_a_float32_image_is_as_the_float64_one(self):
        image = 255 * torch.rand(2, 30, 30, generator=seeded(15))
        places = far_places(16)
        for interpolation in ("bilinear", "bicubic"):
            found = warp(image, places, interpolation=interpolation)
            exact = warp(image.double(), places, interpolation=interpolation)
            assert found.dtype == torch.float32
            assert (found - exact).abs().max() < 2e-4  # of 255: a few roundings

    @pytest.mark.parametrize(
        "dtype", [torch.uint8, torch.bool, torch.uint16, torch.int32, torch.uint32, torch.int64]
    )
    def test_nearest_keeps_labels_and_type(self, dtype):
        labels = torch.randint(0, 2, (9, 9), generator=seeded(19)).to(dtype)
        if dtype not in (torch.uint8, torch.bool):
            labels = (labels.long() * (torch.iinfo(dtype).max - 1)).to(dtype)
        found = warp(labels, far_places(20), interpolation="nearest")
        assert found.dtype == dtype
        assert set(found.flatten().tolist()) <= set(labels.flatten().tolist())

    def test_half_a_pixel_does_not_drop_every_second_label(self):
        along, across = torch.arange(7) + 0.5, torch.zeros(7)
        for places, labels in (
            (torch.stack([across, along])[:, None], torch.arange(8)[None]),
            (torch.stack([along, across])[..., None], torch.arange(8)[:, None]),
        ):
            found = warp(labels, places.double(), interpolation="nearest")
            assert found.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7]

    def test_a_place_that_is_no_number_gives_none(self):
        image, places = torch.rand(5, 5), far_places(22)
        expected = warp(image, places)
        places[0, 2, 3] = math.nan
        expected[2, 3] = math.nan
        torch.testing.assert_close(warp(image, places), expected, equal_nan=True, rtol=0, atol=0)


class TestTogether:
    def test_image_labels_and_weights_are_taken_from_the_same_places(self):
        size, window, output = (40, 52), (37, 64), (21, 30)
        image = coordinate_image(*size)
        labels = torch.arange(40 * 52).reshape(size)  # every pixel its own
        weights = image[0] + 1000 * image[1] + 1
        drawn = draw(
            AugmentationConfig(flips=True, contrast=0, brightness=0),
            image_size=size,
            window=window,
            generator=seeded(22),
        )
        sample = augment.apply(drawn, image, labels, weights, window=window, output=output)
        y, x = sample.image[:, 8:29, 17:47]  # the centre
        torch.testing.assert_close(sample.weights, y + 1000 * x + 1, rtol=0, atol=1e-9)
        nearest = torch.floor(y + 0.5).long() * 52 + torch.floor(x + 0.5).long()
        assert torch.equal(sample.labels, nearest)
        # and these places are where the picture says: mirrored, not clamped
        places = coordinates(drawn, window)
        expected = warp(image[0], places), warp(image[1], places)
        torch.testing.assert_close(sample.image, torch.stack(expected), rtol=0, atol=1e-9)

    def test_parts_are_those_of_warp(self):
        image, weights = torch.rand(2, 12, 15, generator=seeded(25))
        labels = torch.randint(0, 9, (12, 15), generator=seeded(25))
        places = far_places(26)
        for interpolation in ("nearest", "bilinear", "bicubic"):
            sample = warp_together(
                image, labels, weights, places=places, interpolation=interpolation
            )
            assert torch.equal(sample.image, warp(image, places, interpolation=interpolation))
            assert torch.equal(sample.labels, warp(labels, places, interpolation="nearest"))
            assert torch.equal(sample.weights, warp(weights, places))

    def test_unknown_pixels_stay_without_weight(self):
        labels = torch.arange(12 * 12).reshape(12, 12)
        weights = torch.full((12, 12), 3.0)
        weights[4:8, 3:9] = 0
        sample = warp_together(weights, labels, weights, places=far_places(27, (50, 50)))
        is_unknown = (weights == 0).flatten()[sample.labels]
        assert is_unknown.any() and not is_unknown.all()
        assert torch.equal(sample.weights == 0, is_unknown)

    def test_elastic_deformation_leaves_its_input(self):
        image, weights = torch.rand(2, 32, 32, generator=seeded(29))
        labels = (image > 0.5).long()
        before = [part.clone() for part in (image, labels, weights)]
        elastic_deformation(image, labels, weights, generator=seeded(30))
        assert all(torch.equal(*pair) for pair in zip(before, (image, labels, weights)))

    def test_one_pixel_wide_images_are_deformed_along_their_length(self):
        image = torch.arange(30.0)[None]
        sample = elastic_deformation(image, image.long(), image, sigma_px=2, generator=seeded(32))
        assert sample.image.shape == (1, 30)
        assert not torch.equal(sample.image, image)
        assert torch.equal(sample.weights[sample.labels > 0], sample.image[sample.labels > 0])


class TestGreyValues:
    def test_contrast_and_brightness_by_hand(self):
        # channel 0: mean 10, deviation 4; channel 1: mean -2, deviation 0.5
        image = torch.tensor([[[15.0, 20.0]], [[-2.0, 0.0]]])
        mean = torch.tensor([10.0, -2.0])[:, None, None]
        std = torch.tensor([4.0, 0.5])[:, None, None]
        drawn = augmentation((1, 2), contrast=1.25, brightness=-0.5)
        found = augment.vary_grey_values(image, drawn, mean=mean, std=std)
        # 10 + 1.25 * 5 - 2, 10 + 1.25 * 10 - 2; -2 + 0 - 0.25, -2 + 1.25 * 2 - 0.25
        assert found.flatten().tolist() == [14.25, 20.5, -2.25, 0.25]

    def test_apply_refers_to_the_images_own_mean_and_deviation(self):
        image = torch.tensor([[[1.0, 5.0]], [[0.0, 10.0]]])  # means 3 and 5, deviations 2 and 5
        drawn = augmentation((1, 2), contrast=0.5, brightness=1.0)
        found = augment.apply(drawn, image, window=(1, 2)).image
        assert found.flatten().tolist() == [4.0, 6.0, 7.5, 12.5]
        nothing = torch.zeros(2, 1, 1)
        found = augment.apply(drawn, image, window=(1, 2), mean=nothing, std=nothing).image
        assert found.flatten().tolist() == [0.5, 2.5, 0.0, 5.0]


class TestDraw:
    def test_magnified_pictures_are_cut_from_a_smaller_part(self):
        image = coordinate_image(40, 50)
        drawn = augmentation((40, 50), magnification=2.0)
        found = augment.apply(drawn, image, window=(20, 30)).image
        y, x = torch.meshgrid(torch.arange(20), torch.arange(30), indexing="ij")
        expected = torch.stack([19.5 + (y - 9.5) / 2, 24.5 + (x - 14.5) / 2]).double()
        torch.testing.assert_close(found, expected)

    def test_displacements_are_magnified_with_the_picture(self):
        image, shift = coordinate_image(60, 60), torch.full((2, 3, 3), 4.0, dtype=torch.float64)
        drawn = augmentation((60, 60), displacement=shift, magnification=2.0)
        still = augmentation((60, 60), magnification=2.0)
        moved, kept = (augment.apply(one, image, window=(9, 9)).image for one in (drawn, still))
        torch.testing.assert_close(moved - kept, torch.full_like(moved, 2.0))

    def test_blur_is_scipys_gaussian_filter_of_the_window(self):
        image = torch.rand(2, 30, 26, generator=seeded(27)).double()
        found = augment.apply(augmentation((30, 26), blur_px=1.7), image, window=(30, 26)).image
        for one, blurred in zip(image, found):
            expected = ndimage.gaussian_filter(one.numpy(), 1.7, mode="nearest", radius=7)
            np.testing.assert_allclose(blurred.numpy(), expected, rtol=0, atol=1e-12)

    def test_noise_is_white_and_in_standard_deviations_of_each_channel(self):
        image = torch.zeros(2, 200, 200)
        mean, std = torch.zeros(2, 1, 1), torch.tensor([1.0, 40.0])[:, None, None]
        drawn = augmentation((200, 200), noise=0.25, noise_seed=5)
        noise = augment.apply(drawn, image, window=(200, 200), mean=mean, std=std).image
        for channel, sigma in zip(noise, (0.25, 10.0)):
            assert abs(float(channel.std()) / sigma - 1) < 5 / math.sqrt(2 * 40_000)
            assert abs(float(channel.mean())) < 5 * sigma / 200
            for shifted in (channel[1:] * channel[:-1], channel[:, 1:] * channel[:, :-1]):
                assert abs(float(shifted.mean())) < 5 * sigma**2 / 199
        again = augment.apply(drawn, image, window=(200, 200), mean=mean, std=std).image
        other = augmentation((200, 200), noise=0.25, noise_seed=6)
        assert torch.equal(noise, again)
        assert not torch.equal(
            noise, augment.apply(other, image, window=(200, 200), mean=mean, std=std).image
        )

    def test_labels_and_weights_are_neither_blurred_nor_noisy(self):
        labels = torch.randint(0, 3, (20, 20), generator=seeded(28))
        weights = torch.rand(20, 20, generator=seeded(29))
        drawn = augmentation((20, 20), blur_px=2.0, noise=0.5)
        found = augment.apply(drawn, torch.rand(1, 20, 20), labels, weights, window=(20, 20))
        assert torch.equal(found.labels, labels)
        assert torch.equal(found.weights, weights)

    def test_one_seed_one_result(self):
        def drawn(seed: int) -> Augmentation:
            return draw(
                AugmentationConfig(), image_size=(99, 99), window=(5, 5), generator=seeded(seed)
            )

        first, again, other = drawn(5), drawn(5), drawn(6)
        assert torch.equal(first.displacement, again.displacement)
        assert not torch.equal(first.displacement, other.displacement)
        for name in ("centre", "angle_deg", "contrast", "brightness"):
            assert getattr(first, name) == getattr(again, name) != getattr(other, name)
        image = torch.rand(40, 40)
        for result in zip(*(elastic_deformation(image, generator=seeded(7)) for _ in range(2))):
            assert result[0] is result[1] is None or torch.equal(*result)

    def test_global_generator_is_neither_used_nor_changed(self):
        images = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            drawn = draw(
                AugmentationConfig(), image_size=(30, 30), window=(9, 9), generator=seeded(8)
            )
            image = torch.linspace(0, 1, 900).reshape(1, 30, 30)
            images.append(augment.apply(drawn, image, window=(9, 9)).image)
            elastic_deformation(image, generator=seeded(8))
            assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(*images)

    def test_elastic_deformation_without_generator_uses_the_global_one(self):
        torch.manual_seed(9)
        first = elastic_deformation(torch.eye(30)).image
        torch.manual_seed(9)
        assert torch.equal(elastic_deformation(torch.eye(30)).image, first)
        assert not torch.equal(elastic_deformation(torch.eye(30)).image, first)

    def test_does_not_depend_on_the_device(self):
        usual = draw(AugmentationConfig(), image_size=(9, 9), window=(5, 5), generator=seeded(10))
        with torch.device("meta"):  # where a tensor lands that names no device
            other = draw(
                AugmentationConfig(), image_size=(9, 9), window=(5, 5), generator=seeded(10)
            )
        assert torch.equal(usual.displacement, other.displacement)
        assert (usual.centre, usual.angle_deg) == (other.centre, other.angle_deg)

    def test_everything_runs_on_the_images_device_without_waiting_for_it(self):
        # A meta tensor has no values: whatever reads one back, or mixes devices, raises.
        image = torch.empty(2, 20, 20, device="meta")
        labels = torch.empty(20, 20, device="meta", dtype=torch.uint8)
        drawn = draw(
            AugmentationConfig(), image_size=(20, 20), window=(28, 28), generator=seeded(11)
        )
        for interpolation in ("nearest", "bilinear", "bicubic"):
            sample = augment.apply(
                drawn, image, labels, image[0], window=(28, 28), interpolation=interpolation
            )
            assert [part.device.type for part in sample] == ["meta"] * 3
            assert sample.image.shape == (2, 28, 28)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda_gives_what_the_cpu_gives(self):
        image = 255 * torch.rand(2, 100, 100, generator=seeded(12))
        labels = torch.arange(100 * 100).reshape(100, 100)
        drawn = draw(
            AugmentationConfig(), image_size=(100, 100), window=(124, 124), generator=seeded(12)
        )
        cpu, cuda = (
            augment.apply(
                drawn, *(part.to(device) for part in (image, labels, image[0])), window=(124, 124)
            )
            for device in ("cpu", "cuda")
        )
        assert cuda.image.is_cuda
        torch.testing.assert_close(cuda.image.cpu(), cpu.image, rtol=1e-5, atol=1e-3)
        assert torch.equal(cuda.labels.cpu(), cpu.labels)

    @pytest.mark.parametrize(("side", "offset"), [(5, 0.0), (6, 0.5)])
    def test_window_centres_cover_the_whole_image_evenly(self, side, offset):
        generator, count = seeded(13), 6000
        found: dict[tuple[float, float], int] = {}
        for _ in range(count):
            drawn = draw(
                AugmentationConfig(), image_size=(3, 4), window=(side, side), generator=generator
            )
            found[drawn.centre] = found.get(drawn.centre, 0) + 1
            assert not drawn.is_flipped  # unless asked
        assert set(found) == {(y + offset, x + offset) for y in range(3) for x in range(4)}
        # 500 each, standard deviation 21
        assert all(abs(times - count / 12) < 5 * 21 for times in found.values())

    def test_ranges_are_used_to_their_ends_and_not_beyond(self):
        ranges = AugmentationConfig(rotation_deg=30, contrast=0.1, brightness=0.4, flips=True)
        generator = seeded(14)
        drawn = [
            draw(ranges, image_size=(9, 9), window=(5, 5), generator=generator) for _ in range(2000)
        ]
        for values, middle, half in (
            ([one.angle_deg for one in drawn], 0, 30),
            ([one.contrast for one in drawn], 1, 0.1),
            ([one.brightness for one in drawn], 0, 0.4),
        ):
            assert middle - half <= min(values) < middle - 0.98 * half
            assert middle + 0.98 * half < max(values) <= middle + half
        assert 900 < sum(one.is_flipped for one in drawn) < 1100

    @pytest.mark.parametrize("window", [(4, 4), (5, 5), (4, 7)])
    def test_unwarped_windows_are_turned_and_flipped_pieces_of_the_image(self, window):
        ranges = AugmentationConfig(contrast=0, brightness=0, flips=True, unwarped=1)
        image, generator = torch.rand(1, 20, 24, generator=seeded(20)), seeded(21)
        wide = torch.nn.functional.pad(image, (12, 12, 12, 12), mode="reflect")
        seen = set()
        for _ in range(200):
            drawn = draw(ranges, image_size=(20, 24), window=window, generator=generator)
            turns = round(drawn.angle_deg / 90) % 4
            sides = window[::-1] if turns % 2 else window
            y, x = (int(c - (side - 1) / 2) + 12 for c, side in zip(drawn.centre, sides))
            piece = torch.rot90(wide[:, y : y + sides[0], x : x + sides[1]], turns, (1, 2))
            expected = piece.flip(2) if drawn.is_flipped else piece
            assert torch.equal(augment.apply(drawn, image, window=window).image, expected)
            seen.add((turns, drawn.is_flipped))
        assert len(seen) == 8

    @pytest.mark.parametrize("rotation_deg", [0, 60, 89.9])
    def test_unwarped_windows_are_not_turned_beyond_the_range(self, rotation_deg):
        ranges, generator = AugmentationConfig(rotation_deg=rotation_deg, unwarped=1), seeded(22)
        for _ in range(50):
            drawn = draw(ranges, image_size=(9, 9), window=(5, 5), generator=generator)
            assert drawn.angle_deg == 0
            assert not drawn.displacement.any()

    def test_magnification_is_even_in_its_logarithm_blur_and_noise_from_none(self):
        ranges = AugmentationConfig(scale=1.0, blur_px=2.0, noise=0.5)
        generator = seeded(24)
        drawn = [
            draw(ranges, image_size=(9, 9), window=(5, 5), generator=generator) for _ in range(2000)
        ]
        for values, low, high in (
            ([math.log2(one.magnification) for one in drawn], -1.0, 1.0),
            ([one.blur_px for one in drawn], 0.0, 2.0),
            ([one.noise for one in drawn], 0.0, 0.5),
        ):
            spread = high - low
            assert low <= min(values) < low + 0.01 * spread
            assert high - 0.01 * spread < max(values) <= high
            # a uniform's mean has a standard deviation of spread / sqrt(12 * 2000)
            assert abs(sum(values) / 2000 - (low + high) / 2) < 5 * spread / math.sqrt(24_000)
        assert len({one.noise_seed for one in drawn}) == 2000

    def test_what_is_off_takes_no_random_number(self):
        ranges, others = AugmentationConfig(), AugmentationConfig(noise=0.1)
        states = []
        for settings in (ranges, others):
            generator = seeded(25)
            first = draw(settings, image_size=(9, 9), window=(5, 5), generator=generator)
            states.append(generator.get_state())
            assert (first.magnification, first.blur_px) == (1.0, 0.0)
        counted = seeded(25)
        torch.rand(6, generator=counted, dtype=torch.float64)
        elastic.draw_displacement(sigma_px=10.0, grid=3, generator=counted)
        assert torch.equal(states[0], counted.get_state())
        assert not torch.equal(states[0], states[1])

    def test_unwarped_windows_are_as_sharp_and_as_noisy_as_the_image(self):
        ranges = AugmentationConfig(unwarped=1, scale=1.0, blur_px=2.0, noise=0.5)
        generator = seeded(26)
        for _ in range(20):
            drawn = draw(ranges, image_size=(9, 9), window=(5, 5), generator=generator)
            assert (drawn.magnification, drawn.blur_px, drawn.noise) == (1.0, 0.0, 0.0)

    def test_share_of_unwarped_windows(self):
        ranges, generator = AugmentationConfig(unwarped=0.25), seeded(23)
        drawn = [
            draw(ranges, image_size=(9, 9), window=(5, 5), generator=generator) for _ in range(2000)
        ]
        still = [one for one in drawn if not one.displacement.any()]
        assert abs(len(still) - 500) < 5 * 19.4  # the binomial's standard deviation
        assert all(one.angle_deg % 90 == 0 for one in still)
        assert {one.angle_deg % 360 for one in still} == {0, 90, 180, 270}


IMAGE = torch.zeros(1, 6, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: warp(IMAGE.long(), far_places(0)),
            "image is torch.int64: bilinear needs floating point",
        ),
        (
            lambda: warp(IMAGE, far_places(0), interpolation="cubic"),
            "interpolation is 'cubic': one of nearest, bilinear, bicubic is needed",
        ),
        (
            lambda: warp(IMAGE[0, 0], far_places(0)),
            r"image of shape \(8,\): \(..., H, W\) with pixels needed",
        ),
        (lambda: warp(IMAGE, far_places(0)[0]), r"places have shape \(9, 8\): \(2, height, width"),
        (
            lambda: elastic_deformation(IMAGE, torch.zeros(8, 6), generator=seeded(0)),
            r"labels are \(8, 6\) px, the image is \(6, 8\)",
        ),
        (
            lambda: elastic_deformation(IMAGE, None, IMAGE[..., 1:], generator=seeded(0)),
            r"weights are \(6, 7\) px, the image is \(6, 8\)",
        ),
        (
            lambda: elastic_deformation(IMAGE, None, IMAGE.long(), generator=seeded(0)),
            "weights is torch.int64: bilinear needs floating point",
        ),
        (lambda: elastic_deformation(torch.zeros(8)), r"image of shape \(8,\)"),
        (
            lambda: elastic_deformation(IMAGE, displacement=torch.zeros(3, 3)),
            r"displacement has shape \(3, 3\): \(2, grid, grid\), grid >= 2, is needed",
        ),
        (
            lambda: elastic_deformation(IMAGE, displacement=torch.full((2, 3, 3), math.nan)),
            "displacement holds a value that is not finite",
        ),
        (
            lambda: elastic_deformation(IMAGE, sigma_px=-1.0, generator=seeded(0)),
            "sigma_px is -1.0: a finite number of px, 0 or more, is needed",
        ),
        (
            lambda: elastic_deformation(IMAGE, grid=1, generator=seeded(0)),
            "grid is 1: 2 to 1024 control points a side are needed",
        ),
        (
            lambda: draw(
                AugmentationConfig(), image_size=(6, 8), window=(0, 5), generator=seeded(0)
            ),
            r"window is \(0, 5\): both sides must be 1 px or more",
        ),
        (
            lambda: augment.apply(augmentation((6, 8)), IMAGE, window=(6, 8), output=(3, 8)),
            r"output \(3, 8\) is not the centre of the window \(6, 8\): it may be smaller by an "
            "even number of px",
        ),
        (
            lambda: augment.apply(augmentation((6, 8)), IMAGE, window=(6, 8), output=(8, 8)),
            r"output \(8, 8\) is not the centre of the window",
        ),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_generator_of_another_device_is_refused():
    class CudaGenerator:
        device = torch.device("cuda", 0)

    with pytest.raises(InputError, match="the generator is on cuda:0: a CPU generator is needed"):
        augment.draw_displacement(generator=CudaGenerator())
