"""Figures of several classes: worked out by hand, and against counting pixel by pixel."""

import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.metrics import class_figures, confusion_matrix

# Two pixels of class 0, three of class 1, four of class 2; over- and undersegmented unequally.
LABELS = np.array([[[0, 0, 1, 1, 1, 2, 2, 2, 2]]])
FOUND = np.array([[[0, 1, 1, 2, 2, 2, 2, 2, 0]]])


def test_rows_are_the_labels_and_columns_the_prediction():
    expected = [[1, 1, 0], [0, 1, 2], [1, 0, 3]]
    np.testing.assert_array_equal(confusion_matrix(LABELS, FOUND, n_classes=3), expected)


def test_figures_are_those_of_their_definitions():
    figures = class_figures(confusion_matrix(LABELS, FOUND, n_classes=3))
    assert figures == pytest.approx(
        {
            **{"iou_0": 1 / 3, "iou_1": 1 / 4, "iou_2": 3 / 6, "mean_iou": 13 / 36},
            **{"dice_0": 2 / 4, "dice_1": 2 / 5, "dice_2": 6 / 9, "mean_dice": 47 / 90},
            **{"accuracy_0": 1 / 2, "accuracy_1": 1 / 3, "accuracy_2": 3 / 4},
            **{"mean_accuracy": 19 / 36, "pixel_accuracy": 5 / 9},
        }
    )


def test_a_class_that_does_not_occur_has_no_figures_and_no_part_in_the_means():
    labels, found = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 2, 1, 1]]])
    figures = class_figures(confusion_matrix(labels, found, n_classes=4))
    for k in (2, 3):  # one is predicted, one is not
        assert [figures[f"{name}_{k}"] for name in ("iou", "dice", "accuracy")] == [None] * 3
    assert figures["mean_iou"] == pytest.approx((1 / 2 + 1) / 2)
    assert figures["pixel_accuracy"] == 3 / 4
    missed = class_figures(confusion_matrix(labels, np.zeros_like(labels), n_classes=4))
    assert missed["iou_1"] == 0  # it occurs, and nothing of it is found


def test_of_nothing_there_are_no_figures():
    assert set(class_figures(np.zeros((2, 2), int)).values()) == {None}


@pytest.mark.parametrize("is_listed", [False, True])
def test_matrix_equals_a_count_pixel_by_pixel(is_listed):
    rng = np.random.default_rng(0)
    sizes = [(7, 9), (5, 3)] if is_listed else [(7, 9)] * 2
    labels, found = ([rng.integers(0, 5, size) for size in sizes] for _ in range(2))
    known = [rng.random(size) < 0.7 for size in sizes]
    expected = np.zeros((5, 5), int)
    for z, (height, width) in enumerate(sizes):
        for y, x in np.ndindex(height, width):
            expected[labels[z][y, x], found[z][y, x]] += known[z][y, x]
        labels[z][~known[z]] = 77  # whatever an unknown pixel holds
    stacks = [labels, found, known]
    if not is_listed:
        stacks = [np.array(stack) for stack in stacks]
    np.testing.assert_array_equal(
        confusion_matrix(*stacks[:2], n_classes=5, known=stacks[2]), expected
    )


@pytest.mark.parametrize(
    ("labels", "found", "message"),
    [
        (LABELS, FOUND[..., :8], "differ in shape"),
        (LABELS, FOUND + 1, r"the prediction hold 3: classes are 0 \.\.\. 2"),
        (LABELS - 1, FOUND, "the labels hold -1"),
    ],
)
def test_what_is_no_class_is_refused(labels, found, message):
    with pytest.raises(InputError, match=message):
        confusion_matrix(labels, found, n_classes=3)
