"""Checks of what the public functions are given; each failure is one line of InputError."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, joined, mapped, pieces


def checked_stacks(
    labels: Any, probability: Any, known: Any = None
) -> tuple[Slices, Slices, Slices | None]:
    """Return labels, float32 probability and `known` as slices (y, x), or raise InputError.

    Where `known` is False, labels and probability are background.
    """
    labels, probability = _arrays(labels), _arrays(probability)
    if isinstance(labels, list) or isinstance(probability, list):
        _check_same_number(labels, probability)
        labels = [checked_labels(one, name=f"slice {z} of labels") for z, one in enumerate(labels)]
        probability = [
            checked_probability(one, name=f"slice {z} of probability")
            for z, one in enumerate(probability)
        ]
        for z, pair in enumerate(zip(labels, probability)):
            check_same_shape(*pair, names=(f"slice {z} of labels", "that of probability"))
            if pair[0].ndim != 2:
                raise InputError(f"slice {z} has shape {pair[0].shape}; give slices (y, x)")
    else:
        labels, probability = checked_labels(labels), checked_probability(probability)
        check_same_shape(labels, probability)
        if labels.ndim == 2:
            labels, probability = labels[np.newaxis], probability[np.newaxis]
    if known is not None:
        known = _checked_known(known, labels)
        labels, probability = (mapped(_masked, known, stack) for stack in (labels, probability))
    n_foreground = sum(int(np.count_nonzero(piece)) for piece in pieces(labels))
    if n_foreground in (0, sum(piece.size for piece in pieces(labels))):
        only = "0 (membrane)" if n_foreground == 0 else "above 0 (cell interior)"
        raise InputError(
            f"every pixel of labels is {only}; the metrics need both classes somewhere in the "
            "stack: check that the labels are the right file and not empty"
        )
    return labels, probability, known


def _checked_known(known: Any, labels: Slices) -> Slices:
    """Return which pixels are known, bool, slice by slice as the labels, or raise InputError."""
    slices = _arrays(known)
    if isinstance(slices, np.ndarray) and slices.ndim == 2:
        slices = slices[np.newaxis]
    if [one.shape for one in slices] != [one.shape for one in labels]:
        raise InputError("known and labels differ in shape; give one bool for each label")
    if any(piece.dtype != bool for piece in pieces(slices)):
        raise InputError("known is no bool array; give True where the truth is known")
    return slices


def _masked(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(known, values, values.dtype.type(0))


def _arrays(stack: Any) -> np.ndarray | list[np.ndarray]:
    """Return what is given as an array, or, of slices of several sizes, as a list of arrays."""
    is_listed = isinstance(stack, Sequence) and len(stack) > 0 and np.ndim(stack[0]) >= 2
    slices = joined(stack) if is_listed else np.asarray(stack)
    return slices if isinstance(slices, np.ndarray) else list(slices)


def _check_same_number(labels: Slices, probability: Slices) -> None:
    """Raise InputError where there is not one slice of probability for each slice of labels."""
    if len(labels) != len(probability):
        raise InputError(
            f"labels have {len(labels)} slices and probability {len(probability)}; give one "
            "of each, of the same size"
        )


def checked_labels(labels: Any, *, name: str = "labels") -> np.ndarray:
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


def checked_probability(probability: Any, *, name: str = "probability") -> np.ndarray:
    """Return a 2-D or 3-D proposal in [0, 1] as float32, or raise InputError."""
    probability = np.asarray(probability)
    _check_extent(probability, name)
    if probability.dtype.kind != "f":
        remedy = "for a 0…255 image pass image / 255"
        if probability.dtype.kind == "b":
            remedy = "for a mask pass mask.astype('float32')"
        raise InputError(
            f"{name} has dtype {probability.dtype}; give floats, P(cell interior) in [0, 1]; "
            f"{remedy}"
        )
    low, high = float(probability.min()), float(probability.max())
    if not np.isfinite(low + high):  # a NaN anywhere makes both NaN
        n_bad = np.count_nonzero(~np.isfinite(probability))
        raise InputError(
            f"{name} holds {n_bad} values that are NaN or infinite; every pixel needs a "
            "number in [0, 1]"
        )
    if low < 0 or high > 1:
        remedy = "give P(cell interior), for instance the softmax or sigmoid of the scores"
        if low >= 0 and high <= 255:
            remedy = "divide a 0…255 image by 255"
        raise InputError(f"{name} ranges from {low:g} to {high:g}; it must lie in [0, 1]: {remedy}")
    return probability.astype(np.float32, copy=False)


def check_same_shape(
    labels: np.ndarray,
    probability: np.ndarray,
    *,
    names: tuple[str, str] = ("labels", "probability"),
) -> None:
    """Raise InputError where the two cannot be compared pixel by pixel."""
    if labels.shape != probability.shape:
        raise InputError(
            f"{names[0]} {labels.shape} and {names[1]} {probability.shape} differ in shape; "
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
