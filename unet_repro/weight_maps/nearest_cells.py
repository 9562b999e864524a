"""Compiled kernels of the weight map: the two nearest distinct cells of every pixel, exactly.

Two sweeps down and up the columns, then an outward scan along each row; a row on which the scan
would take long is solved by lower envelopes instead. Linear in the pixels, whatever the cells.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit

BACKGROUND, CELL, UNKNOWN = 0, 1, 2  # classes of pixels
FAR = 1 << 60  # squared distance to a cell that does not exist
_SCAN_STEPS = 16  # a row whose pixels need more on average is solved by its lower envelope

_compiled: Any = njit(nogil=True, cache=True)


class Terms(NamedTuple):
    """Weight of cells, and the summands of the background's weight."""

    cell: float
    background: float
    border: float  # w0
    border_sigma: float
    near: float  # 0 but in falk2019
    near_sigma: float


class Sweeps(NamedTuple):
    """Where a slice's bands begin: for the row above each, and the one below, what sweeps know.

    That is each column's rows of the two nearest distinct cells so far, int32 (bands, 2, width),
    -1 where there is none, and the nearest one's id (bands, width).
    """

    above: np.ndarray
    above_label: np.ndarray
    below: np.ndarray
    below_label: np.ndarray


def begun_sweeps(ids: np.ndarray, ignore: np.signedinteger, edges: np.ndarray) -> Sweeps:
    """Sweep a slice once each way, so that bands of rows edges[k] ... edges[k + 1] - 1 can begin.

    `ids` is int32 or int64 (y, x), with 0 as background; `ignore`, of the same type, is unknown.
    """
    shape = len(edges) - 1, ids.shape[1]
    kept = [np.empty(s, t) for t, s in ((np.int32, (shape[0], 2, shape[1])), (ids.dtype, shape))]
    sweeps = Sweeps(*kept, *map(np.empty_like, kept))
    _sweep(ids, ignore, edges, *sweeps)
    return sweeps


@_compiled
def _sweep(  # type: ignore[no-untyped-def]
    ids, ignore, edges, above, above_label, below, below_label
):
    width = ids.shape[1]
    last, last_label = np.full((2, width), -1, np.int32), np.zeros(width, ids.dtype)
    for k in range(len(edges) - 1):
        above[k], above_label[k] = last, last_label
        for y in range(edges[k], edges[k + 1]):
            _pass_row(ids[y], ignore, y, last, last_label)
    last[:], last_label[:] = -1, 0
    for k in range(len(edges) - 2, -1, -1):
        below[k], below_label[k] = last, last_label
        for y in range(edges[k + 1] - 1, edges[k] - 1, -1):
            _pass_row(ids[y], ignore, y, last, last_label)


@_compiled
def solve_band(  # type: ignore[no-untyped-def]
    ids,
    ignore,
    y0,
    y1,
    above,
    above_label,
    below,
    below_label,
    classes,
    terms,
    reach2,
    first_out,
    second_out,
):
    """Write rows y0 ... y1 - 1: d1 and d2 into the two outputs, or, without a second, weights.

    Only pixels with class BACKGROUND are solved, and distances only up to the root of reach2.
    `above` and the three after it are a band's of `Sweeps`.
    """
    width = ids.shape[1]
    last, last_label, label = above.copy(), above_label.copy(), np.empty(width, ids.dtype)
    rows = np.empty((y1 - y0, 2, width), np.int32)
    for y in range(y0, y1):  # downwards: rows of the two nearest distinct cells not below y
        _pass_row(ids[y], ignore, y, last, last_label)
        rows[y - y0] = last
    last[:], last_label[:] = below, below_label
    row = np.empty((9, width), np.int64)
    hopeless = 0  # rows to go without trying the scan again
    for y in range(y1 - 1, y0 - 1, -1):  # upwards: of those not above y
        _pass_row(ids[y], ignore, y, last, last_label)
        _merge_columns(ids, y, rows[y - y0], last, last_label, label, row)
        if hopeless or not _scan_row(classes[y], label, row[0], row[1], reach2, row[2], row[3]):
            _envelope_row(label, row, reach2)
            hopeless = (hopeless or 8) - 1
        for x in range(width):
            if second_out.size:
                first_out[y, x] = math.sqrt(row[2, x]) if row[2, x] < FAR else math.inf
                second_out[y, x] = math.sqrt(row[3, x]) if row[3, x] < FAR else math.inf
            elif classes[y, x] == BACKGROUND:
                first_out[y, x] = _background_weight(row[2, x], row[3, x], terms, reach2)
            else:
                first_out[y, x] = terms.cell if classes[y, x] == CELL else 0.0


@_compiled
def _background_weight(d1_squared, d2_squared, terms, reach2):  # type: ignore[no-untyped-def]
    """Return Eq. 2 of one background pixel."""
    weight = terms.background
    if terms.near > 0 and d1_squared <= reach2:
        weight += terms.near * math.exp(-d1_squared / (2 * terms.near_sigma**2))
    if d2_squared <= reach2:
        total = math.sqrt(d1_squared) + math.sqrt(d2_squared)
        weight += terms.border * math.exp(-(total**2) / (2 * terms.border_sigma**2))
    return weight


@_compiled
def _pass_row(ids, ignore, y, last, last_label):  # type: ignore[no-untyped-def]
    """Take row y into each column's last rows with a cell and with another cell before that."""
    for x in range(ids.size):
        if ids[x] != 0 and ids[x] != ignore:
            if ids[x] != last_label[x]:
                last[1, x], last_label[x] = last[0, x], ids[x]
            last[0, x] = y


@_compiled
def _merge_columns(ids, y, above, below, below_label, label, row):  # type: ignore[no-untyped-def]
    """Find each column's nearest cell and the squared distances to it and to another (row 0, 1)."""
    for x in range(label.size):
        a1 = np.int64(y - above[0, x]) ** 2 if above[0, x] >= 0 else FAR
        a2 = np.int64(y - above[1, x]) ** 2 if above[1, x] >= 0 else FAR
        b1 = np.int64(y - below[0, x]) ** 2 if below[0, x] >= 0 else FAR
        b2 = np.int64(y - below[1, x]) ** 2 if below[1, x] >= 0 else FAR
        a, b = ids[above[0, x], x] if a1 < FAR else 0, below_label[x]
        if a1 <= b1:
            label[x], row[0, x], row[1, x] = a, a1, min(a2, b2 if a == b else b1)
        else:
            label[x], row[0, x], row[1, x] = b, b1, min(b2, a2 if a == b else a1)


@_compiled
def _scan_row(classes, label, near, second, reach2, d1, d2):  # type: ignore[no-untyped-def]
    """Search outwards from each background pixel; give up, False, if that takes long."""
    width = label.size
    budget = _SCAN_STEPS * width
    for x in range(width):
        if classes[x] != BACKGROUND:
            continue
        mine, first, other = label[x], near[x], second[x]
        step = 1
        while step * step < other and step * step <= reach2 and step < width:
            for u in (x - step, x + step):
                if 0 <= u < width:
                    value = near[u] + step * step
                    if label[u] == mine:
                        first = min(first, value)
                        other = min(other, second[u] + step * step)
                    elif value < first:
                        other = min(first, second[u] + step * step)
                        first, mine = value, label[u]
                    else:
                        other = min(other, value)
            step += 1
        budget -= step
        if budget < 0:
            return False
        d1[x], d2[x] = first, other
    return True


@_compiled
def _envelope_row(label, row, reach2):  # type: ignore[no-untyped-def]
    """Find d1 by a lower envelope of parabolas, then d2 by one for each run of one nearest cell.

    On a run of pixels nearest to cell A, d2 is the envelope of all that is not A. At the pixel
    left of the run its best column is the one that gave d1, at the pixel right of it likewise;
    an envelope's best column grows with x, so only columns between these two count. A column
    lies between them for at most two runs: O(width).
    """
    near, second, d1, d2, best, unused = row[0], row[1], row[2], row[3], row[4], row[5]
    stack = row[6:]
    width = label.size
    count = 0
    for u in range(width):
        if near[u] <= reach2:
            count = _push(stack, count, u, near[u], 0, width)
    _evaluate(stack, count, 0, width, d1, best)
    d2[:] = FAR
    start = 0
    while count > 0 and start < width:
        mine = label[best[start]]
        stop = start + 1
        while stop < width and label[best[stop]] == mine:
            stop += 1
        left = best[start - 1] if start > 0 else 0
        right = best[stop] if stop < width else width - 1
        others = 0
        for u in range(left, right + 1):
            value = second[u] if label[u] == mine else near[u]
            if value <= reach2:
                others = _push(stack, others, u, value, start, stop)
        _evaluate(stack, others, start, stop, d2, unused)
        start = stop


@_compiled
def _push(stack, count, u, value, start, stop):  # type: ignore[no-untyped-def]
    """Add the parabola value + (x - u)^2, u growing from call to call, for start <= x < stop."""
    columns, values, starts = stack[0], stack[1], stack[2]
    while count > 0:
        s, x = columns[count - 1], starts[count - 1]
        ahead = (x - u) ** 2 + value - (x - s) ** 2 - values[count - 1]
        if ahead >= 0:  # the last parabola keeps its first pixel, and ahead // 2 (u - s) more
            start = x + 1 + ahead // (2 * (u - s))
            break
        count -= 1
    if start < stop:
        columns[count], values[count], starts[count] = u, value, start
        count += 1
    return count


@_compiled
def _evaluate(stack, count, start, stop, squared, best):  # type: ignore[no-untyped-def]
    """Write the envelope's values and columns for start <= x < stop."""
    if count == 0:
        squared[start:stop] = FAR
    for k in range(count - 1, -1, -1):
        for x in range(stack[2, k], stop):
            squared[x] = (x - stack[0, k]) ** 2 + stack[1, k]
            best[x] = stack[0, k]
        stop = stack[2, k]
