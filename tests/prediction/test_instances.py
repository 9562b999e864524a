"""Cells from scores: by hand on small images."""

import numpy as np
import pytest
from scipy import ndimage

from unet_repro.errors import InputError
from unet_repro.prediction.instances import InstanceRule, instances_of_scores

PLAIN = InstanceRule(threshold=0.5, grow_to=0.5, least_px=0, border_px=0)


def log_odds(probability):
    probability = np.asarray(probability, float)
    return np.log(probability / (1 - probability))


def test_without_growth_cells_are_the_4_connected_components():
    probability = np.full((9, 12), 0.1)
    probability[1:4, 1:5] = probability[5:8, 2:9] = probability[4, 9] = 0.9  # the last: a corner
    found = instances_of_scores(log_odds(probability), PLAIN)
    np.testing.assert_array_equal(found, ndimage.label(probability > 0.5)[0])
    assert found.max() == 3


@pytest.mark.parametrize(
    ("probability", "threshold", "least_px", "cells"),
    [
        ([0.5, 0.5001, 0.2], 0.5, 0, [0, 1, 0]),  # the threshold itself is outside
        ([0.95, 0.7, 0.2, 0.8, 0.8, 0.8], 0.9, 0, [1, 1, 0, 0, 0, 0]),  # no core, no cell
        ([0.95, 0.7, 0.7, 0.2, 0.95, 0.95], 0.9, 1, [0, 0, 0, 0, 1, 1]),  # the core's size counts
    ],
)
def test_cells_are_what_grows_from_cores_that_are_large_enough(
    probability, threshold, least_px, cells
):
    rule = InstanceRule(threshold, 0.5, least_px, border_px=0)
    assert instances_of_scores(log_odds([probability]), rule).tolist() == [cells]


def test_small_objects_are_dropped_up_to_the_limit_and_the_rest_renumbered():
    scores = np.full((5, 20), -3.0)
    scores[1, 1:4] = scores[1, 6:10] = scores[3, 1:6] = 3.0  # 3, 4 and 5 px
    found = instances_of_scores(scores, InstanceRule(0.5, 0.5, least_px=3, border_px=0))
    assert sorted(np.bincount(found.ravel())[1:]) == [4, 5]
    assert found[1, 7] == 1 and found[3, 2] == 2 and found[1, 2] == 0


def test_objects_wholly_in_the_border_are_dropped():
    scores = np.full((20, 20), -3.0)
    scores[0:5, 0:5] = 3.0  # ends one px before the field
    scores[12:16, 0:6] = 3.0  # reaches one px into it
    found = instances_of_scores(scores, InstanceRule(0.5, 0.5, least_px=0, border_px=5))
    assert found[2, 2] == 0 and (found[12:16, 0:6] == 1).all()
    assert found.max() == 1


def test_a_border_wider_than_the_image_drops_everything():
    scores = np.full((8, 8), 3.0)
    assert not instances_of_scores(scores, InstanceRule(0.5, 0.5, 0, border_px=50)).any()


def test_cores_grow_and_meet_in_the_valley():
    probability = [[0.95, 0.9, 0.75, 0.6, 0.7, 0.8, 0.95, 0.55, 0.3]]
    found = instances_of_scores(log_odds(probability), InstanceRule(0.85, 0.5, 0, 0))
    assert found[0, [0, 1, 2]].tolist() == [1, 1, 1]
    assert found[0, [4, 5, 6, 7, 8]].tolist() == [2, 2, 2, 2, 0]
    assert found[0, 3] in (1, 2)  # the lowest pixel belongs to either


def test_holes_are_filled_but_bays_and_enclosed_cells_stay():
    scores = np.full((11, 14), -3.0)
    scores[1:10, 1:10] = 3.0
    scores[2, 2] = -3.0  # a hole
    scores[5:8, 0:4] = -3.0  # a bay, open to the left
    scores[3:8, 5:9] = -3.0
    scores[5, 6:8] = 3.0  # another cell inside a hole
    found = instances_of_scores(scores, InstanceRule(0.5, 0.5, 0, 0, fill_holes=True))
    assert found[2, 2] == found[3, 5] == found[1, 1] == 1
    assert not found[5:8, 0:4].any() and not found[0].any() and not found[:, 10:].any()
    assert (found[5, 6:8] == 2).all() and found.max() == 2
    open_ = instances_of_scores(scores, InstanceRule(0.5, 0.5, 0, 0, fill_holes=False))
    np.testing.assert_array_equal(open_ > 0, scores > 0)


@pytest.mark.parametrize(("depth", "cells"), [(1.5, 2), (2.5, 1)])
def test_peaks_are_two_cells_if_the_valley_is_deep_enough(depth, cells):
    profile = np.array([-4.0, 1, 5, 5, 4, 3, 4.5, 5, 1, -4])  # the valley lies 2 below the peaks
    scores = np.tile(profile, (4, 1))
    found = instances_of_scores(scores, InstanceRule(0.9, 0.5, 0, 0, valley=depth))
    assert found.max() == cells and (found[:, 0] == 0).all()
    np.testing.assert_array_equal(found > 0, scores > 0)
    if cells == 2:
        assert set(found[:, 1:5].flat) == {1} and set(found[:, 6:9].flat) == {2}


def test_smoothing_removes_peaks_that_are_noise():
    y, x = np.mgrid[:40, :60]
    scores = 6.0 - np.hypot(y - 20, x - 30) / 3
    scores[(y + x) % 7 == 0] -= 3.0
    plain = InstanceRule(0.9, 0.5, 0, 0, valley=1.0)
    smoothed = InstanceRule(0.9, 0.5, 0, 0, valley=1.0, smoothing_px=4.0)
    assert instances_of_scores(scores, smoothed).max() == 1
    assert instances_of_scores(scores, plain).max() > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 1.0}, r"threshold is 1.0: it must lie in \(0, 1\)"),
        ({"grow_to": 0.0}, "grow_to is 0.0"),
        ({"least_px": -1}, "least_px is -1"),
        ({"border_px": -1}, "border_px is -1"),
        ({"valley": -0.5}, "valley is -0.5"),
        ({"smoothing_px": float("inf")}, "smoothing_px is inf"),
    ],
)
def test_rules_out_of_range_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        InstanceRule(**values)


@pytest.mark.parametrize("scores", [np.zeros((2, 3, 4)), np.array([[0.0, np.nan]])])
def test_scores_that_are_no_frame_are_refused(scores):
    with pytest.raises(InputError, match="all finite"):
        instances_of_scores(scores, PLAIN)
