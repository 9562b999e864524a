"""The synthetic stack: deterministic, plausible, and labelled as it is drawn."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from unet_repro.challenges.phantom import em_phantom, write_em_phantom
from unet_repro.challenges.tissue import Cells, SmoothNoise, draw_cells
from unet_repro.errors import InputError
from unet_repro.images.stacks import check_pair, read_pair

SIZE = {"slices": 3, "height": 256, "width": 320}


@pytest.fixture(scope="module")
def phantom():
    return em_phantom(**SIZE, seed=7)


def test_size_dtype_and_classes(phantom):
    images, labels = phantom
    assert images.shape == labels.shape == (3, 256, 320)
    assert images.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 255}
    check_pair(images, labels)


def test_one_seed_gives_one_stack_and_the_global_random_state_is_left_alone(phantom):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    again = em_phantom(**SIZE, seed=7)
    other = em_phantom(**SIZE, seed=8)
    np.testing.assert_array_equal(again[0], phantom[0])
    np.testing.assert_array_equal(again[1], phantom[1])
    assert (other[1] != phantom[1]).mean() > 0.1
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_membranes_are_dark_and_fill_about_a_fifth(phantom):
    images, labels = phantom
    assert 0.17 < (labels == 0).mean() < 0.28
    for image, label in zip(images, labels):
        core = ndimage.distance_transform_edt(label == 0) > 2
        assert image[core].mean() < image[label > 0].mean() - 35


def test_interiors_hold_dark_structures_that_are_no_membrane(phantom):
    images, labels = phantom
    smooth = ndimage.gaussian_filter(images.astype(float), (0, 1.5, 1.5))
    deep = np.stack([ndimage.distance_transform_edt(label) > 6 for label in labels])
    as_dark_as_membrane = smooth < np.median(smooth[labels == 0])
    dark_share = (as_dark_as_membrane & deep).sum() / deep.sum()
    assert 0.01 < dark_share < 0.15


def test_every_component_is_one_cell_of_some_size(phantom):
    for label in phantom[1]:
        sizes = np.bincount(ndimage.label(label)[0].ravel())[1:]
        assert sizes.min() >= 60
        assert 15 < len(sizes) < 90
        assert np.percentile(sizes, 90) > 8 * np.percentile(sizes, 10)  # small and large ones


def test_no_membrane_has_a_gap():
    cells = draw_cells(np.random.default_rng(3), (2, 256, 256))
    distance, owner = cells.membrane_distance(0, *cells.bent_grid(0))
    components, n = ndimage.label(distance > 1.5)
    index = np.arange(1, n + 1)
    np.testing.assert_array_equal(
        ndimage.minimum(owner, components, index), ndimage.maximum(owner, components, index)
    )


def test_neighbouring_slices_resemble_each_other_but_are_shifted(phantom):
    membrane = phantom[1] == 0

    def overlap(a, b):
        return (a & b).sum() / (a | b).sum()

    unrelated = overlap(membrane[0], membrane[2][:, ::-1])
    for upper, lower in pairwise(membrane):
        assert unrelated + 0.08 < overlap(upper, lower) < 0.6


def test_contrast_drifts_between_slices():
    images, _ = em_phantom(slices=8, height=64, width=64)
    assert np.ptp(images.mean((1, 2))) > 8
    assert np.ptp(images.std((1, 2))) > 3


def test_any_size_works_and_no_other():
    for slices, height, width in ((1, 1, 1), (2, 1, 50), (1, 37, 16)):
        images, labels = em_phantom(slices=slices, height=height, width=width)
        assert images.shape == labels.shape == (slices, height, width)
    for change in ({"slices": 0}, {"height": 0}, {"width": -1}, {"seed": -1}):
        with pytest.raises(InputError, match="sizes must be at least 1"):
            em_phantom(**{"slices": 1, "height": 8, "width": 8} | change)


def test_straight_membrane_lies_half_way_between_two_cells():
    # Two discs of radius 10 and 20 whose midpoints are 60 px apart: D1 = D2 at x = 25 between
    # them, and on the line through both the distance grows by one a pixel.
    still = np.zeros((2, 2, 2))
    centre = still + np.array([[5, 0], [5, 60]])
    cells = Cells((1, 11, 61), centre, still, still[..., 0] + np.array([10, 20]), [])
    distance, owner = cells.membrane_distance(0, *cells.bent_grid(0))
    np.testing.assert_array_equal(owner[5] == 1, np.arange(61) > 25)
    np.testing.assert_allclose(distance[5, 15:36], np.abs(np.arange(15, 36) - 25), atol=1e-4)
    assert distance.max() == 12


def test_elongated_cell_is_measured_from_its_segment():
    still = np.zeros((2, 2, 2))
    centre = still + np.array([[0, 30], [20, 30]])
    along = still + np.array([[0, 25], [0, 25]])
    cells = Cells((1, 21, 61), centre, along, still[..., 0] + 5.0, [])
    distance, _ = cells.membrane_distance(0, *cells.bent_grid(0))
    np.testing.assert_allclose(distance[7, 6:55], 3, atol=1e-4)  # parallel to both segments


def test_noise_has_unit_variance_and_is_smooth():
    rng = np.random.default_rng(0)
    fields = np.stack([SmoothNoise(rng, (1, 40, 60), (1, 8, 8))(0) for _ in range(400)])
    np.testing.assert_allclose(fields.std(0).mean(), 1, atol=0.02)
    assert np.abs(np.diff(fields, axis=2)).mean() < 0.15  # a tenth of the change at 8 px and more


def test_files_have_the_names_of_the_challenge(tmp_path):
    write_em_phantom(tmp_path / "new", slices=2, height=64, width=64, seed=5)
    names = {"train-volume.tif", "train-labels.tif", "test-volume.tif", "test-labels.tif"}
    assert {file.name for file in (tmp_path / "new").iterdir()} == names
    for part, seed in (("train", 5), ("test", 6)):
        paths = (tmp_path / f"new/{part}-{what}.tif" for what in ("volume", "labels"))
        images, labels = read_pair(*paths)
        expected = em_phantom(slices=2, height=64, width=64, seed=seed)
        np.testing.assert_array_equal(images, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
    with pytest.raises(InputError, match="exists already"):
        write_em_phantom(tmp_path / "new", slices=2, height=64, width=64)


def test_grey_values_are_spread_like_those_of_the_challenge(real_data):
    folder = real_data / "isbi2012"
    real = read_pair(folder / "train-volume.tif", folder / "train-labels.tif")
    drawn = em_phantom(slices=5)
    bins = {"bins": 32, "range": (0, 256)}
    shares = [np.histogram(images, **bins)[0] / images.size for images in (real[0], drawn[0])]
    assert np.minimum(*shares).sum() > 0.85
    membranes = [(labels == 0).mean() for labels in (real[1], drawn[1])]
    assert abs(membranes[0] - membranes[1]) < 0.03
