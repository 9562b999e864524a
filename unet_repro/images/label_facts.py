"""What slices of labels tell of their values: which there are, how often, how they lie together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unet_repro.errors import InputError

_BAND_PX = 2**20  # pixels that are looked at together


@dataclass(frozen=True)
class SliceFacts:
    """What one slice of labels tells of their meaning; `meaning` puts those of a stack together."""

    values: np.ndarray  # those above 0 that are known, ascending
    counts: np.ndarray  # their pixels
    rims: np.ndarray  # those of them between a lower and a higher neighbour
    strays: np.ndarray  # those, and pixels without an equal neighbour
    pairs: int  # of neighbouring pixels above 0
    differing: int  # those of them that differ
    pieces: int  # components of equal values above 0; of several values less their holes
    unknown: int
    pixels: int
    is_bool: bool


def slice_facts(
    slice_: np.ndarray, ignore_label: int | None = None, *, is_counted: bool = True
) -> SliceFacts:
    """Look at one slice (y, x) of integers or bools; count the pieces of a mask if told to.

    `InputError`: values below 0 that are not `ignore_label`.
    """
    is_ignorable = ignore_label is not None and holds(slice_.dtype, ignore_label)
    unknown, found = 0, []
    for band, _ in _bands(slice_):
        values, counts = _value_counts(band)
        if is_ignorable:
            unknown += int(counts[values == ignore_label].sum())
            keep = values != ignore_label
            values, counts = values[keep], counts[keep]
        if values.size and values[0] < 0:
            raise InputError(
                f"labels hold {values[0]}: 0 is background, cells are above 0; --ignore-label "
                "names the value of unknown pixels"
            )
        found.append((values[values > 0], counts[values > 0]))
    values, counts = merged(found)
    rims = strays = np.zeros_like(counts)
    pairs = differing = pieces = 0
    if len(values) == 1 and is_counted:
        pieces = int(ndimage.label(slice_ == values[0])[1])
    elif len(values):
        found_ = _textures(slice_, values, ignore_label if is_ignorable else None)
        rims, strays, pairs, differing, pieces = found_
        pieces += int(counts.sum())  # Euler: pixels - pairs + squares = components - holes
    return SliceFacts(
        values=values,
        counts=counts,
        rims=rims,
        strays=strays,
        pairs=pairs,
        differing=differing,
        pieces=pieces,
        unknown=unknown,
        pixels=slice_.size,
        is_bool=slice_.dtype.kind == "b",
    )


class _Textures(NamedTuple):
    """How the values of a slice lie beside each other, pixels side by side being neighbours."""

    rims: np.ndarray  # pixels of each value that lie between a lower and a higher one
    strays: np.ndarray  # those, and pixels that lie alone
    pairs: int  # of neighbours above 0
    differing: int  # those of them that differ
    pieces: int  # components of equal values above 0, less their holes


def _textures(slice_: np.ndarray, values: np.ndarray, ignore_label: int | None) -> _Textures:
    rims: list[tuple[np.ndarray, ...]] = []
    strays: list[tuple[np.ndarray, ...]] = []
    pairs = differing = squares = 0
    for band, rows in _bands(slice_, margin=1):
        if ignore_label is not None:
            band = np.where(band == ignore_label, 0, band)
        is_cell = band > 0
        lower, higher, equal = (np.zeros(band.shape, bool) for _ in range(3))
        same = []
        for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            falls, rises = band[here] < band[there], band[here] > band[there]
            lower[here] |= rises
            higher[here] |= falls
            lower[there] |= falls
            higher[there] |= rises
            both = is_cell[here] & is_cell[there]
            same.append(both & ~falls & ~rises)
            equal[here] |= same[-1]
            equal[there] |= same[-1]
            # a pair belongs to its upper row, so that each counts in one band
            pairs += int(np.count_nonzero(both[rows]))
            differing += int(np.count_nonzero((both & ~same[-1])[rows]))
        down, right = same
        square = down[:, 1:] & down[:, :-1] & right[1:]
        squares += int(np.count_nonzero(square[rows]))
        is_rim = lower & higher & is_cell
        is_stray = is_rim | (~equal & is_cell)
        for parts, where in ((rims, is_rim), (strays, is_stray)):
            parts.append(_value_counts(band[rows][where[rows]]))
    counts = []
    for parts in (rims, strays):
        found, numbers = merged(parts)
        counts.append(np.zeros(len(values), np.int64))
        counts[-1][np.searchsorted(values, found)] = numbers
    return _Textures(counts[0], counts[1], pairs, differing, squares - (pairs - differing))


def _bands(slice_: np.ndarray, margin: int = 0) -> Iterator[tuple[np.ndarray, slice]]:
    """Yield bands of rows with up to `margin` rows around, and which of their rows they are."""
    height, width = slice_.shape
    step = max(1, _BAND_PX // max(width, 1))
    for top in range(0, max(height, 1), step):
        first = max(top - margin, 0)
        stop = min(top + step, height)
        yield slice_[first : stop + margin], slice(top - first, stop - first)


def _value_counts(band: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur and how often."""
    if band.dtype.kind in "bu" and band.dtype.itemsize <= 2:
        counts = np.bincount(band.ravel())
        values = np.flatnonzero(counts)
        return values, counts[values]
    values, counts = np.unique(band, return_counts=True)
    return values, counts


def merged(found: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """Return all values, ascending, and the sums of what belongs to each; at least one part."""
    values, inverse = np.unique(np.concatenate([part[0] for part in found]), return_inverse=True)
    columns = [np.concatenate(column) for column in list(zip(*found))[1:]]
    sums = [np.bincount(inverse, column, minlength=len(values)) for column in columns]
    return values, *(column.astype(np.int64) for column in sums)


def holds(dtype: np.dtype, number: int) -> bool:
    """Tell whether a dtype has the number."""
    if dtype.kind == "b":
        return False
    limits = np.iinfo(dtype)
    return limits.min <= number <= limits.max
