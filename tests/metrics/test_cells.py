"""SEG of the cell tracking challenge: by hand, and against py-ctcmetrics on the real data."""

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from unet_repro.errors import InputError
from unet_repro.metrics import iou, object_ious, seg

DATA = os.environ.get("UNET_REPRO_DATA")


@pytest.mark.parametrize(
    "labels, prediction, expected",
    [
        ([[1, 1, 1, 0]], [[5, 5, 5, 0]], [1.0]),
        ([[1, 1, 1, 0]], [[5, 5, 5, 5]], [3 / 4]),
        ([[1, 1, 1, 0]], [[5, 5, 0, 5]], [2 / 4]),
        ([[1, 1, 0, 0]], [[5, 0, 0, 0]], [0.0]),  # exactly half is not more than half
        ([[1, 1, 1, 1]], [[5, 5, 6, 6]], [0.0]),  # split into halves
        ([[1, 1, 1, 1]], [[5, 5, 5, 6]], [3 / 4]),
        ([[1, 1, 2, 2]], [[5, 5, 5, 5]], [2 / 4, 2 / 4]),  # one result may match both
        ([[1, 1, 2, 2]], [[0, 0, 0, 0]], [0.0, 0.0]),
        ([[9, 9, 4, 4]], [[4, 4, 0, 4]], [0.0, 2 / 3]),  # by rising id: 4 half covered, then 9
        ([[1, 0, 0, 0]], [[5, 0, 6, 6]], [1.0]),  # objects the reference lacks cost nothing
        ([[1, 0, 1, 0]], [[3, 0, 3, 0]], [1.0]),  # an object is an id, connected or not
    ],
)
def test_object_scores_by_hand(labels, prediction, expected):
    np.testing.assert_allclose(object_ious(labels, prediction), expected, rtol=1e-15)
    assert seg(labels, prediction) == pytest.approx(np.mean(expected), rel=1e-15)


def test_mean_is_over_objects_not_over_frames():
    labels = np.array([[[1, 2, 3, 0]], [[4, 0, 0, 0]]])
    prediction = np.array([[[1, 2, 3, 0]], [[0, 0, 0, 0]]])
    assert seg(labels, prediction) == 3 / 4


def test_iou_of_table_2_is_seg():
    labels = [[1, 1, 1, 0, 2, 2]]
    prediction = [[3, 3, 0, 0, 4, 4]]
    assert iou(labels, prediction) == seg(labels, prediction) == pytest.approx((2 / 3 + 1) / 2)


def test_unannotated_frames_and_objects_are_not_scored():
    prediction = np.array([[[1, 1, 0, 2, 2]], [[1, 1, 0, 2, 2]]])
    full = prediction.copy()
    partly = full.copy()
    partly[1, 0, 3:] = 0  # one of two cells of the second frame is annotated
    without = full.copy()
    without[1] = 0
    assert object_ious(full, prediction).tolist() == [1, 1, 1, 1]
    assert object_ious(partly, prediction).tolist() == [1, 1, 1]
    assert object_ious(without, prediction).tolist() == [1, 1]


def test_frames_may_be_listed_and_differ_in_size():
    labels = [np.array([[1, 1]]), np.array([[2, 2, 0]])]
    prediction = [np.array([[1, 1]]), np.array([[0, 2, 0]])]
    assert object_ious(labels, prediction).tolist() == [1, 0]
    assert object_ious(tuple(labels), tuple(prediction)).tolist() == [1, 0]


def test_listed_volumes_are_one_frame_each():
    volume = np.array([[[1, 1]], [[1, 1]]])
    result = np.array([[[7, 7]], [[7, 0]]])
    assert object_ious([volume], [result]).tolist() == [3 / 4]
    assert object_ious(volume, result).tolist() == [1, 0]  # stacked: two frames


ids = st.integers(0, 4)


@settings(max_examples=100, deadline=None)
@given(st.data(), array_shapes(min_dims=2, max_dims=2, max_side=6))
def test_equals_slow_reference(data, shape):
    labels = data.draw(arrays(np.int32, shape, elements=ids))
    prediction = data.draw(arrays(np.uint16, shape, elements=ids))
    labels[0, 0] = 1
    expected = []
    for i in sorted(set(labels.flat) - {0}):
        score = 0.0
        for j in sorted(set(prediction.flat) - {0}):
            common = np.sum((labels == i) & (prediction == j))
            if common > np.sum(labels == i) / 2:
                score = common / np.sum((labels == i) | (prediction == j))
        expected.append(score)
    assert object_ious(labels, prediction).tolist() == expected
    renumbered = np.where(prediction, 1000 - prediction.astype(int), 0)
    assert object_ious(labels, renumbered).tolist() == expected


@pytest.mark.parametrize(
    "labels, prediction, message",
    [
        ([[0, 1]], [[0, 1, 1]], r"frame 0: labels \(1, 2\) and prediction \(1, 3\) differ"),
        (np.ones((2, 3, 3), int), np.ones((3, 3), int), "labels have 2 frames and prediction 1"),
        ([[0, 0]], [[0, 1]], "labels hold no object in any frame"),
        ([[0, 1.0]], [[0, 1]], "labels has dtype float64; give integer instance ids"),
        ([[0, 1]], [[False, True]], r"prediction has dtype bool; .*scipy.ndimage.label"),
        ([[0, -1]], [[0, 1]], r"labels holds negative ids \(down to -1\)"),
        ([1, 2], [1, 2], r"labels has a frame of shape \(2,\); give \(y, x\)"),
        ([], [], r"labels has a frame of shape \(0,\)"),
        (np.ones((0, 3, 3), int), np.ones((0, 3, 3), int), "labels hold no object in any frame"),
        (np.ones((1, 1, 3, 3), int), np.ones((1, 1, 3, 3), int), r"shape \(1, 1, 3, 3\); give"),
        ([np.ones((1, 0), int)], [np.ones((1, 0), int)], r"shape \(1, 0\); .*not empty"),
    ],
)
def test_bad_input_is_told_in_one_line(labels, prediction, message):
    with pytest.raises(InputError, match=message) as caught:
        seg(labels, prediction)
    assert "\n" not in str(caught.value)


# Against py-ctcmetrics

SEQUENCES = [
    pytest.param(name, sequence, id=f"{name}-{sequence}")
    for name in ("phc-u373", "dic-hela")
    for sequence in ("01", "02")
]


def shifted_and_merged(labels):
    """A plausible bad result: moved by some pixels, neighbouring ids joined, one in five lost."""
    moved = np.roll(labels, (4, -3), axis=(0, 1)).astype(np.int32)
    result = np.where(moved % 7 < 2, moved, moved + moved % 2)
    result[labels % 5 == 4] = 0
    return result.astype(np.uint16)


def silver_truth(labels_path):
    return tifffile.imread(
        labels_path.parents[2] / f"{labels_path.parts[-3][:2]}_ST" / "SEG" / labels_path.name
    )


@pytest.mark.skipif(DATA is None, reason="UNET_REPRO_DATA, the folder of the data, is not set")
@pytest.mark.parametrize("name, sequence", SEQUENCES)
@pytest.mark.parametrize(
    "result", [pytest.param("silver truth", marks=pytest.mark.slow), "shifted and merged"]
)
def test_agrees_with_py_ctcmetrics_on_real_data(name, sequence, result, tmp_path):
    pytest.importorskip("ctc_metrics", reason="py-ctcmetrics is not installed")
    from ctc_metrics.metrics import seg as ctc_seg
    from ctc_metrics.utils.representations import match

    paths = sorted((Path(DATA) / name / f"{sequence}_GT" / "SEG").glob("man_seg*.tif"))
    if not paths:
        pytest.skip(f"no annotated frames of {name} {sequence} in {DATA}")
    paths = paths[:: max(1, len(paths) // 9)]  # py-ctcmetrics takes a while for each frame
    labels = [tifffile.imread(path) for path in paths]
    if result == "silver truth":
        prediction = [silver_truth(path) for path in paths]
    else:
        prediction = [shifted_and_merged(frame) for frame in labels]

    ids_of_frames, ious = [], []
    for path, frame in zip(paths, prediction, strict=True):
        tifffile.imwrite(tmp_path / path.name, frame)
        ids_of_frame, _, _, _, ious_of_frame = match(str(path), str(tmp_path / path.name))
        ids_of_frames.append(ids_of_frame)
        ious.append(ious_of_frame)
    expected = ctc_seg(ids_of_frames, ious)
    assert 0.1 < expected < 0.99
    assert seg(labels, prediction) == pytest.approx(expected, rel=0, abs=1e-9)
    assert iou(labels, prediction) == pytest.approx(expected, rel=0, abs=1e-9)
