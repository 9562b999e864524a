"""What is trained on: the classes and their weights agree, and nothing held out is among it."""

from dataclasses import replace

import numpy as np
import pytest

from unet_repro.config import TrainConfig, WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.training.samples import LabelledStack, samples, split
from unet_repro.weight_maps.weight_map import frequency_weights, weight_map


@pytest.fixture
def ids():
    """Two cells that touch along a line, a third 4 px away, in each of two slices."""
    labels = np.zeros((2, 40, 60), np.int32)
    labels[:, 5:35, 4:20], labels[:, 5:35, 20:36], labels[:, 5:35, 40:56] = 5, 9, 2
    return labels


PAPER = WeightMapConfig()


def taken(labels, how=PAPER, *, val="", known=None):
    """Return what is trained on and what is held out."""
    images = np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)
    data = LabelledStack(images, labels, "slices", "", "", known=known)
    settings = TrainConfig(val=val, weight_map=how)
    return samples(data, split(data, settings), how)


@pytest.mark.parametrize("separation_px", [1.0, 3.0])
def test_a_ridge_is_background_and_weighs_as_such(ids, separation_px):
    training, _ = taken(ids, WeightMapConfig(separate_touching=True, separation_px=separation_px))
    classes, weights = training.classes.numpy(), training.weights.numpy()
    reach = int(separation_px)  # columns of each of the touching cells that become ridge
    expected = ids[0, 20] > 0
    expected[20 - reach : 20 + reach] = False
    np.testing.assert_array_equal(classes[0, 20], expected)
    background, cell = frequency_weights(int((classes == 0).sum()), int((classes == 1).sum()))
    np.testing.assert_allclose(weights[classes == 1], cell, rtol=1e-6)
    # On the ridge d1 = 0 inside one cell and d2 is how far the other is: 1 px at their line.
    assert weights[0, 20, 20] == pytest.approx(background + 10 * np.exp(-1 / 50), rel=1e-5)
    outermost = weights[0, 20, 20 + reach - 1]
    assert outermost == pytest.approx(background + 10 * np.exp(-(reach**2) / 50), rel=1e-5)


def test_without_the_ridge_all_of_a_cell_is_cell(ids):
    np.testing.assert_array_equal(taken(ids)[0].classes.numpy(), ids > 0)


def test_weights_are_those_of_the_settings_balanced_by_the_training_slices(two_cells):
    labels = two_cells[1].copy()
    labels[2, :20] = 255  # held out: another share of cells
    how = WeightMapConfig(w0=4.0, sigma=3.0)
    training, held_out = taken(labels, how, val="2:4")
    expected = weight_map(labels[:2], w0=4.0, sigma=3.0)
    np.testing.assert_allclose(training.weights, expected, rtol=1e-6)
    np.testing.assert_allclose(held_out.weights[1], expected[0], rtol=1e-6)
    plain, _ = taken(labels, replace(how, class_balance="none"))
    np.testing.assert_allclose(plain.weights, weight_map(labels, w0=4, sigma=3, class_balance=None))


def test_unknown_pixels_weigh_nothing_and_do_not_count(ids):
    known = np.ones(ids.shape, bool)
    known[1] = ids[1] > 0
    training, _ = taken(ids, WeightMapConfig(separate_touching=True), known=known)
    classes, weights = training.classes.numpy(), training.weights.numpy()
    assert not weights[~known].any() and (weights[known] > 0).all()
    cells, ridges = int((classes == 1).sum()), int(((classes == 0) & known).sum())
    _, cell = frequency_weights(ridges, cells)
    np.testing.assert_allclose(weights[classes == 1], cell, rtol=1e-6)


@pytest.mark.parametrize("val", ["4:5", "3:3", "2:9", "x", "0:4"])
def test_val_outside_the_stack_or_all_of_it_is_refused(two_cells, val):
    with pytest.raises(InputError, match="--val"):
        taken(two_cells[1], val=val)


@pytest.mark.parametrize(("part", "name"), [([0, 3], "training"), ([1, 2], "held-out")])
def test_one_class_in_either_part_is_refused(two_cells, part, name):
    labels = two_cells[1].copy()
    labels[part] = 255
    with pytest.raises(InputError, match=f"the {name} slices' labels are all cell interior"):
        taken(labels, val="1:3")


def test_a_ridge_that_leaves_no_cell_is_refused(two_cells):
    how = WeightMapConfig(separate_touching=True, separation_px=99.0)
    with pytest.raises(InputError, match="leaves nothing of the training slices' cells"):
        taken(two_cells[1], how)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_separations_out_of_range_are_refused(value):
    with pytest.raises(InputError, match="separation_px is"):
        WeightMapConfig(separation_px=value)
