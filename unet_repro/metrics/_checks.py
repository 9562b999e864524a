"""Checks of what the public functions are given; each failure is one line of InputError."""

from typing import Any

import numpy as np

from unet_repro.errors import InputError


def checked_stacks(labels: Any, probability: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and float32 probability as (z, y, x), or raise InputError."""
    labels = checked_labels(labels, name="labels")
    probability = checked_probability(probability)
    check_same_shape(labels, probability)
    if labels.ndim == 2:
        labels, probability = labels[np.newaxis], probability[np.newaxis]
    n_foreground = np.count_nonzero(labels)
    if n_foreground in (0, labels.size):
        only = "0 (membrane)" if n_foreground == 0 else "above 0 (cell interior)"
        raise InputError(
            f"every pixel of labels is {only}; the metrics need both classes somewhere in the "
            "stack: check that the labels are the right file and not empty"
        )
    return labels, probability


def checked_labels(labels: Any, *, name: str) -> np.ndarray:
    """Return a 2-D or 3-D label array with values ≥ 0, or raise InputError."""
    labels = np.asarray(labels)
    _check_extent(labels, name)
    if labels.dtype.kind not in "bui":
        raise InputError(
            f"{name} has dtype {labels.dtype}; give integers or booleans, above 0 inside a cell"
        )
    if labels.dtype.kind == "i" and labels.min() < 0:
        raise InputError(
            f"{name} holds negative values (down to {labels.min()}); 0 is background, ids are "
            "positive: set pixels to leave out to 0"
        )
    return labels


def checked_probability(probability: Any) -> np.ndarray:
    """Return a 2-D or 3-D proposal in [0, 1] as float32, or raise InputError."""
    probability = np.asarray(probability)
    _check_extent(probability, "probability")
    if probability.dtype.kind != "f":
        remedy = "for a 0…255 image pass image / 255"
        if probability.dtype.kind == "b":
            remedy = "for a mask pass mask.astype('float32')"
        raise InputError(
            f"probability has dtype {probability.dtype}; give floats, P(cell interior) in "
            f"[0, 1]; {remedy}"
        )
    low, high = float(probability.min()), float(probability.max())
    if not np.isfinite(low + high):  # a NaN anywhere makes both NaN
        n_bad = np.count_nonzero(~np.isfinite(probability))
        raise InputError(
            f"probability holds {n_bad} values that are NaN or infinite; every pixel needs a "
            "number in [0, 1]"
        )
    if low < 0 or high > 1:
        remedy = "give P(cell interior), for instance the softmax or sigmoid of the scores"
        if low >= 0 and high <= 255:
            remedy = "divide a 0…255 image by 255"
        raise InputError(
            f"probability ranges from {low:g} to {high:g}; it must lie in [0, 1]: {remedy}"
        )
    return probability.astype(np.float32, copy=False)


def check_same_shape(labels: np.ndarray, probability: np.ndarray) -> None:
    """Raise InputError where the two cannot be compared pixel by pixel."""
    if labels.shape != probability.shape:
        raise InputError(
            f"labels {labels.shape} and probability {probability.shape} differ in shape; "
            "give both as (z, y, x) or both as (y, x), of the same size"
        )


def _check_extent(array: np.ndarray, name: str) -> None:
    if array.ndim not in (2, 3):
        raise InputError(
            f"{name} has {array.ndim} dimensions, shape {array.shape}; give a stack (z, y, x) or "
            "one slice (y, x)"
        )
    if array.size == 0:
        raise InputError(f"{name} is empty, shape {array.shape}; give at least one pixel")
