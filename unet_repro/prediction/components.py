"""The 4-connected components of pages larger than memory, numbered as those of a whole page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from unet_repro.errors import InputError

BAND_PX = 2**20  # that are labelled together


@dataclass(frozen=True)
class Numbering:
    """The numbers of a page's components.

    A component may lie in several bands, each with one piece of it or more. `numbers` holds, for
    each piece in the order of bands, its component's number, 0 for one that is dropped; its first
    element is the background's. The components, `count` of them, are numbered in raster order of
    their first pixels.
    """

    numbers: NDArray[np.uint32]
    count: int


def number_components(bands: Iterable[NDArray[Any]], *, min_size: int = 0) -> Numbering:
    """Find the components of a page, in one pass.

    Parameters
    ----------
    bands : iterable of ndarray, shape (rows, x)
        Of one page, from top to bottom; what is not 0 is cell.
    min_size
        Smaller components, in px, are dropped.

    Notes
    -----
    A piece's parent is another piece of its component, the lowest that was known when the two met.
    Memory: a band with its labels, and at most 40 bytes for each piece.
    """
    pieces = _Pieces(counts_sizes=min_size > 1)
    for band in _cut(bands):
        pieces.add(band)
    return pieces.numbering(min_size)


def numbered(
    bands: Iterable[NDArray[Any]], numbering: Numbering, dtype: Any = np.uint32
) -> Iterator[NDArray[Any]]:
    """Yield the bands of the page whose `number_components` is given, as numbers."""
    found = 0
    for band in _cut(bands):
        labels, count = ndimage.label(band)
        numbers = numbering.numbers[found : found + count + 1].astype(dtype)
        numbers[0] = 0
        yield numbers[labels]
        found += count


def components(is_cell: NDArray[Any], *, min_size: int = 0) -> NDArray[np.int32]:
    """Return the numbers of the components of an image in memory, those that are large enough.

    Examples
    --------
    >>> components(np.array([[1, 0, 1, 1], [0, 0, 0, 1]]), min_size=2)
    array([[0, 0, 1, 1],
           [0, 0, 0, 1]], dtype=int32)
    """
    numbering = number_components([is_cell], min_size=min_size)
    rows = list(numbered([is_cell], numbering, np.int32))
    return np.concatenate(rows) if rows else np.zeros(is_cell.shape, np.int32)


def _cut(bands: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for band in bands:
        rows = max(1, BAND_PX // max(1, band.shape[1]))
        for top in range(0, len(band), rows):
            yield band[top : top + rows]


class _Pieces:
    """The components of each band, numbered from 1, and which of them are parts of one."""

    def __init__(self, *, counts_sizes: bool) -> None:
        self._parents = [np.zeros(1, np.int64)]  # of the bands' pieces; of the background itself
        self._sizes = [np.zeros(1, np.int64)]
        self._counts_sizes = counts_sizes
        self._count = 1
        self._merged: list[NDArray[np.int64]] = []  # pieces of bands above, and new parents
        self._above: NDArray[np.int64] | None = None  # the last row, as parents

    def add(self, band: NDArray[Any]) -> None:
        labels, count = ndimage.label(band)  # 4-connected, in raster order of the first pixels
        parents = np.arange(self._count - 1, self._count + count)
        parents[0] = 0
        if self._above is not None:
            self._join(self._above, labels[0], parents)
        self._parents.append(parents[1:])
        if self._counts_sizes:
            self._sizes.append(np.bincount(labels.ravel(), minlength=count + 1)[1:])
        self._above = parents[labels[-1]]
        self._count += count

    def _join(
        self, above: NDArray[np.int64], row: NDArray[Any], parents: NDArray[np.int64]
    ) -> None:
        """Give one parent, the lowest, to all pieces that the row above connects."""
        is_joined = (above > 0) & (row > 0)
        ends = np.stack([above[is_joined], parents[row[is_joined]]])
        nodes, places = np.unique(ends, return_inverse=True)  # ascending
        upper, lower = places.reshape(ends.shape)
        joints = coo_array((np.ones(len(upper), bool), (upper, lower)), shape=(len(nodes),) * 2)
        _, group = connected_components(joints, directed=False)
        _, first = np.unique(group, return_index=True)
        lowest = nodes[first][group]
        is_new = nodes >= self._count
        parents[nodes[is_new] - self._count + 1] = lowest[is_new]
        is_merged = ~is_new & (lowest < nodes)
        self._merged.append(np.stack([nodes[is_merged], lowest[is_merged]]))

    def numbering(self, min_size: int) -> Numbering:
        parents = np.concatenate(self._parents)
        self._parents.clear()
        for pieces, lowest in self._merged:
            parents[pieces] = lowest
        is_counted = parents == np.arange(len(parents))
        is_counted[0] = False
        while True:
            grandparents = parents[parents]
            if np.array_equal(grandparents, parents):
                break
            parents = grandparents
        if self._counts_sizes:
            sizes = np.zeros(len(parents), np.int64)
            np.add.at(sizes, parents, np.concatenate(self._sizes))
            is_counted &= sizes >= min_size
        count = int(np.count_nonzero(is_counted))
        if count >= 2**32:
            raise InputError(f"{count} cells on a page: at most {2**32 - 1} have numbers (uint32)")
        numbers = np.cumsum(is_counted, dtype=np.uint32)
        numbers[~is_counted] = 0
        return Numbering(numbers[parents], count)
