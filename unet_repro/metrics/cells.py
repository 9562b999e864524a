"""The figure of the cell tracking challenge: SEG, which Table 2 of the paper calls IOU."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_repro.errors import InputError


def iou(labels: Any, prediction: Any) -> float:
    """Compute the IOU of the paper's Table 2, in [0, 1]: the mean over all reference objects.

    Notes
    -----
    Not in the paper: what is averaged. The organisers of the challenge computed the column, and
    their measure is SEG, so this is `seg` under the paper's name: one term for each reference
    object of all frames, whatever its size, 0 for each one that is missed. It is neither the mean
    over frames, nor the mean over matched objects, nor the IOU of all foreground pixels.
    """
    return seg(labels, prediction)


def seg(labels: Any, prediction: Any) -> float:
    """Compute the segmentation accuracy SEG of the Cell Tracking Challenge for one sequence.

    A reference object R is matched by the result object S that covers more than half of it,
    |R ∩ S| > |R| / 2; there is at most one. Its score is the Jaccard index |R ∩ S| / |R ∪ S|, or
    0 if no object matches. SEG, in [0, 1], is the mean over all reference objects of all frames;
    the challenge averages it over the sequences of a data set.

    Parameters
    ----------
    labels : array_like of int, or sequence of arrays
        The reference's instance ids, 0 = background or unknown: one frame (y, x), frames stacked
        as (frame, y, x), or a list of frames, each (y, x) or (z, y, x).
    prediction : same shapes
        The result's instance ids, 0 = background. Ids need not correspond to those of `labels`.

    Raises
    ------
    InputError
        For frames or shapes that differ, arrays that are not integers (label a mask's components
        first), negative ids, or no reference object at all.

    Notes
    -----
    As in the challenge, only annotated objects are scored: frames without any add nothing, and in
    a partly annotated frame a result object where the reference has none costs nothing. Only its
    pixels outside the reference object that it matches lower a score.

    Examples
    --------
    >>> seg([[1, 1, 0, 2]], [[7, 7, 7, 0]])  # (2/3 + 0) / 2
    0.3333333333333333
    """
    return float(object_ious(labels, prediction).mean())


def object_ious(labels: Any, prediction: Any) -> np.ndarray:
    """Return the score of every reference object, as `seg` averages them.

    Frame by frame, in each by rising id; float64, 0 for an object that is not matched.

    Examples
    --------
    >>> object_ious([[1, 1, 0, 2]], [[7, 7, 7, 0]]).round(3)
    array([0.667, 0.   ])
    """
    reference_frames = _frames(labels, name="labels")
    result_frames = _frames(prediction, name="prediction")
    if len(reference_frames) != len(result_frames):
        raise InputError(
            f"labels have {len(reference_frames)} frames and prediction {len(result_frames)}; "
            "give one result for each annotated frame"
        )
    scores = []
    for index, (reference, result) in enumerate(zip(reference_frames, result_frames, strict=True)):
        if reference.shape != result.shape:
            raise InputError(
                f"frame {index}: labels {reference.shape} and prediction {result.shape} differ "
                "in shape; both must cover the same pixels"
            )
        scores.append(_frame_ious(reference, result))
    if not any(frame.size for frame in scores):
        raise InputError(
            "labels hold no object in any frame, so there is nothing to score; give at least one "
            "annotated frame"
        )
    return np.concatenate(scores)


def _frames(labels: Any, *, name: str) -> list[np.ndarray]:
    if isinstance(labels, Sequence) and len(labels) and np.ndim(labels[0]) >= 2:
        frames = [np.asarray(frame) for frame in labels]
        rule = "each frame must be (y, x) or (z, y, x)"
    else:
        stack = np.asarray(labels)
        frames = list(stack) if stack.ndim == 3 else [stack]
        rule = "give (y, x), (frame, y, x) or a list of frames"
    for frame in frames:
        _check_frame(frame, name, rule)
    return frames


def _check_frame(frame: np.ndarray, name: str, rule: str) -> None:
    if frame.ndim not in (2, 3) or frame.size == 0:
        raise InputError(f"{name} has a frame of shape {frame.shape}; {rule}, not empty")
    if frame.dtype.kind not in "ui":
        raise InputError(
            f"{name} has dtype {frame.dtype}; give integer instance ids, for a mask the numbers "
            "of its components, scipy.ndimage.label(mask)[0]"
        )
    if frame.dtype.kind == "i" and frame.min() < 0:
        raise InputError(
            f"{name} holds negative ids (down to {frame.min()}); 0 is background or unknown, ids "
            "are positive"
        )


def _frame_ious(reference: np.ndarray, result: np.ndarray) -> np.ndarray:
    is_object = reference > 0
    _, rows, reference_sizes = np.unique(
        reference[is_object], return_inverse=True, return_counts=True
    )
    result_ids, result_sizes = np.unique(result, return_counts=True)
    columns = np.searchsorted(result_ids, result[is_object])
    shape = (reference_sizes.size, result_ids.size)
    common = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    common[:, result_ids == 0] = 0  # background matches nothing
    best = common.argmax(axis=1)
    overlap = common[np.arange(shape[0]), best]
    union = reference_sizes + result_sizes[best] - overlap
    return np.where(2 * overlap > reference_sizes, overlap / union, 0.0)
