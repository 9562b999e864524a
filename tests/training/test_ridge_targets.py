"""Ridges of background between cells: the classes trained on and their weights agree."""

from dataclasses import replace

import numpy as np
import pytest

from unet_repro import run
from unet_repro.config import WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.run import LabelledStack, start_run
from unet_repro.weight_maps.weight_cache import cached_weight_map
from unet_repro.weight_maps.weight_map import frequency_weights, separate_touching, weight_map


@pytest.fixture
def ids():
    """Two cells that touch along a line, a third 4 px away, in each of two slices."""
    labels = np.zeros((2, 40, 60), np.int32)
    labels[:, 5:35, 4:20], labels[:, 5:35, 20:36], labels[:, 5:35, 40:56] = 5, 9, 2
    return labels


def captured(ids, settings, tmp_path, monkeypatch, known=None):
    """Return classes and weights of the training set of a run."""
    seen = {}

    def training_set(images, classes, weights, **options):
        seen["classes"], seen["weights"] = classes, weights
        raise InputError("seen enough")

    monkeypatch.setattr(run, "TrainingSet", training_set)
    images = np.random.default_rng(0).integers(0, 255, ids.shape).astype(np.uint8)
    data = LabelledStack(images, ids, "two slices", "", "", known=known)
    with pytest.raises(InputError, match="seen enough"):
        start_run(data, settings, tmp_path / "run", is_quiet=True)
    return seen["classes"], seen["weights"]


@pytest.mark.parametrize("separation_px", [1.0, 3.0])
def test_a_ridge_is_background_and_weighs_as_such(ids, tiny, tmp_path, monkeypatch, separation_px):
    how = WeightMapConfig(separate_touching=True, separation_px=separation_px)
    settings = replace(tiny, weight_map=how)
    classes, weights = captured(ids, settings, tmp_path, monkeypatch)
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


def test_without_the_ridge_all_of_a_cell_is_cell(ids, tiny, tmp_path, monkeypatch):
    classes, _ = captured(ids, tiny, tmp_path, monkeypatch)
    np.testing.assert_array_equal(classes, ids > 0)


def test_unknown_pixels_weigh_nothing_and_do_not_count(ids, tiny, tmp_path, monkeypatch):
    known = np.ones(ids.shape, bool)
    known[1] = ids[1] > 0
    settings = replace(tiny, weight_map=WeightMapConfig(separate_touching=True))
    classes, weights = captured(ids, settings, tmp_path, monkeypatch, known)
    assert not weights[~known].any() and (weights[known] > 0).all()
    cells, ridges = int((classes == 1).sum()), int(((classes == 0) & known).sum())
    _, cell = frequency_weights(ridges, cells)
    np.testing.assert_allclose(weights[classes == 1], cell, rtol=1e-6)


def test_width_of_the_ridge_is_that_of_the_separation(ids):
    for radius in (0, 1, 2.5):
        weights = weight_map(
            ids, class_balance=(3.0, 1.0), w0=0, separate_touching=True, separation_px=radius
        )
        is_cell = separate_touching(ids, radius=radius) > 0
        np.testing.assert_array_equal(weights, np.where(is_cell, 1, 3))
    with pytest.raises(InputError, match="separation_px is -1: it must be 0 px or more"):
        weight_map(ids, separate_touching=True, separation_px=-1)


def test_the_cache_tells_separations_apart(ids, tmp_path):
    def cached(**options):
        return cached_weight_map(ids, tmp_path, w0=10, sigma=5, class_balance=None, **options)

    plain, one = cached(), cached(separate_touching=True)
    two = cached(separate_touching=True, separation_px=2)
    np.testing.assert_array_equal(plain, weight_map(ids, class_balance=None))
    np.testing.assert_array_equal(one, weight_map(ids, class_balance=None, separate_touching=True))
    assert (plain != one).any() and (one != two).any()
    np.testing.assert_array_equal(cached(separate_touching=True, separation_px=2), two)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_separations_out_of_range_are_refused(value):
    with pytest.raises(InputError, match="separation_px is"):
        WeightMapConfig(separation_px=value)
