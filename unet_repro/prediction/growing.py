"""Give touching cells back what training took from them (`separate_touching`).

Not in the paper: it parts touching cells by a ridge of background and leaves the ridge open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.weight_maps.nearest_cells import Terms, begun_sweeps, solve_band

_WIDTH = 2.2  # of a ridge, in radii
_NO_TERMS = Terms(0.0, 0.0, 0.0, 1.0, 0.0, 1.0)


def grown(bands: Iterable[NDArray[Any]], radius: float) -> Iterator[NDArray[Any]]:
    """Close the ridges between instances that were parted by `radius` px, band by band.

    Parameters
    ----------
    bands : iterable of ndarray of unsigned integer, shape (rows, x)
        Instance ids of one page, 0 is background, in bands from top to bottom.
    radius
        Of `separate_touching`, in px.

    Yields
    ------
    ndarray
        The page with its ridges closed, in other bands.

    Notes
    -----
    Let d1 and d2 be the distances of a background pixel to the two nearest instances, as in Eq. 2.
    A pixel that was taken from a cell has d2 > radius, as the pixels that remain have no other cell
    within `radius`. Across a straight border d1 + d2 = 2 radius + 1; where three cells meet it
    grows to 2.3 radius, and so it does in the open notch between two round ones. So the pixels with
    d2 > radius and d1 + d2 <= 2.2 radius + 1 go to the nearest instance, of equally near ones to
    the lowest id; all others stay. An instance that is alone does not change. Cells that lie apart
    by just as wide a gap cannot be told from those that touched: their gap closes too.

    Memory: 48 bytes for each pixel of a band (of 2.2 radius rows at least) and of 2.2 radius rows
    above and below it.

    Examples
    --------
    >>> ids = np.array([[0, 1, 1, 0, 0, 2, 2, 0, 3]], np.uint8)  # 2 and 3 never touched
    >>> np.concatenate(list(grown([ids], 1)))
    array([[0, 1, 1, 1, 2, 2, 2, 0, 3]], dtype=uint8)
    """
    margin = reach_px(radius)
    window, done = None, 0  # rows of the page, and how many of them are out already
    for band in bands:
        window = band if window is None else np.concatenate([window, band])
        ready = len(window) - margin
        if ready > done and ready - done >= margin:  # else most of the work were its surroundings
            yield _closed(window, radius)[done:ready]
            cut = max(0, ready - margin)
            window, done = window[cut:], ready - cut
    if window is not None and len(window) > done:
        yield _closed(window, radius)[done:]


def reach_px(radius: float) -> int:
    """Return how far off an instance is that decides on a pixel: d1 is 1 or more, d2 the rest."""
    return int(_WIDTH * radius)


def _closed(ids: NDArray[Any], radius: float) -> NDArray[Any]:
    d1, d2 = _two_nearest(ids, _WIDTH * radius)
    y, x = np.nonzero((ids == 0) & (d2 > radius) & (d1 + d2 <= _WIDTH * radius + 1))
    squared = np.rint(np.square(d1[y, x])).astype(np.int64)
    reach = int(_WIDTH * radius / 2) + 1  # d1 is no more than half of the sum
    around = np.pad(ids, reach)
    steps = np.argwhere(np.ones((2 * reach + 1,) * 2))  # to a pixel of `around`, from its corner
    lengths = ((steps - reach) ** 2).sum(axis=1)
    out = ids.copy()
    for length in np.unique(squared):
        of_length = squared == length
        v, u = y[of_length], x[of_length]
        owner = np.full(len(v), np.iinfo(ids.dtype).max)
        for down, across in steps[lengths == length]:
            there = around[v + down, u + across]
            owner = np.where((there > 0) & (there < owner), there, owner)
        out[v, u] = owner
    return out


def _two_nearest(ids: NDArray[Any], reach: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return d1 and d2 of the background, infinite beyond `reach`; of instances anything."""
    d1, d2 = np.full((2, *ids.shape), np.inf, np.float32)
    signed = ids.astype(np.int32)  # of ids beyond, other numbers: they stay different and not 0
    rows, ignore = np.array([0, len(ids)]), np.int32(0)
    sweeps = [each[0] for each in begun_sweeps(signed, ignore, rows)]
    is_cell, reach2 = (ids > 0).view(np.uint8), int(reach**2)
    solve_band(signed, ignore, *rows, *sweeps, is_cell, _NO_TERMS, reach2, d1, d2)
    return d1, d2
