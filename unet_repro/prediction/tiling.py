"""Plans of tiles: the least computation that fits into memory, from shapes alone.

Part of the paper: the overlap-tile strategy (Sec. 2, Fig. 2). Not in the paper: how large a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.errors import InputError
from unet_repro.network.cost import NetworkCost
from unet_repro.network.geometry import Axis, Tile, alignment, window_of
from unet_repro.quantities import size_text

_MOST_VALUES = 2**31 - 1  # in one tensor: kernels count with 32 bits
_SLACK = 1.01  # a plan may cost 1 % more than the cheapest if it reads and writes better
_MOST_TILES = 2**16  # along an axis: 2^20 px of the paper's smallest tiles

Sizes = NDArray[np.int64]
# Bytes, from (height, width) of windows and of the largest tiles
Buffers = Callable[[tuple[Sizes, Sizes], tuple[Sizes, Sizes]], NDArray[Any]]


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image: every row tile with every column tile, all windows of one size.

    Iterating yields (row, column) pairs of `Tile`, row by row; ``len`` is their number. They cover
    the region of interest, and begin and end with it.
    """

    height: int  # of the whole image, px
    width: int
    rows: tuple[Tile, ...]
    columns: tuple[Tile, ...]
    flops: int  # operations of all windows, two for each multiply-add
    redundancy: float  # `flops` relative to one window over the whole region
    peak_bytes: int  # that a window takes in the network, beyond what the process already holds
    strides: tuple[int, int]  # down and across: with them the tiles can be cut again

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Tile, Tile]]:
        return itertools.product(self.rows, self.columns)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window in px."""
        row, column = self.rows[0], self.columns[0]
        return row.window_stop - row.window_start, column.window_stop - column.window_start

    @property
    def largest(self) -> tuple[int, int]:
        """Height and width of the largest tile in px."""
        height, width = (
            max(tile.stop - tile.start for tile in axis) for axis in (self.rows, self.columns)
        )
        return height, width


def plan_tiles(
    height: int,
    width: int,
    network: NetworkCost,
    *,
    memory: int | None = None,
    strides: tuple[int, int] | None = None,
    rows: range | None = None,
    columns: range | None = None,
    has_reversed: bool = False,
    buffers: Buffers | None = None,
) -> TilePlan:
    """Cut an image into the tiles that take the least computation within the memory given.

    Few and large tiles, that is; but the cost is not monotonic in their size: for n tiles along an
    axis, the smallest stride on the pooling grid that n tiles can have wastes least. All pairs of
    such strides are compared; beyond 100 tiles along an axis, n in steps of 1 %. Of the plans
    within 1 % of the least computation the one with the fewest columns is taken (full-width strips
    are the cheapest to read and to write), then the one with the fewest tiles.

    Parameters
    ----------
    height, width
        The image in px, 1 or more.
    network
        What windows cost in the network.
    memory
        Upper bound in bytes for `TilePlan.peak_bytes` and `buffers` together; None for no bound.
    strides
        Do not plan: take tiles of this height and width in px, multiples of 2^depth.
    rows, columns : range of step 1, optional
        The region of interest in px; by default the whole image.
    has_reversed
        The axes are seen from their other end too (`geometry.plan_axis`).
    buffers
        Bytes that are needed besides, from (height, width) of the windows and (height, width) of
        the largest tiles: arrays that are broadcast, and so is the result.

    Raises
    ------
    InputError
        An empty image or region; a stride off the pooling grid; the smallest tile needs more than
        `memory`; more than 65 536 tiles along an axis.

    Examples
    --------
    >>> network = NetworkCost(depth=4, base_channels=64)
    >>> plan = plan_tiles(2048, 2048, network, memory=2 * 2**30)
    >>> len(plan.rows), len(plan.columns), plan.window, round(plan.redundancy, 2)
    (2, 2, (1212, 1212), 1.06)
    >>> paper = plan_tiles(2048, 2048, network, strides=(384, 384))
    >>> len(paper), paper.window, round(paper.redundancy, 2)
    (36, (572, 572), 1.65)
    """
    depth, padding = network.depth, network.padding
    axes = (
        _axis(height, rows, depth, padding, has_reversed),
        _axis(width, columns, depth, padding, has_reversed),
    )
    down, across = strides or _best_strides(axes, network, memory, buffers)
    tiles = _cut(axes[0], down), _cut(axes[1], across)
    windows = [along[0].window_stop - along[0].window_start for along in tiles]
    flops = len(tiles[0]) * len(tiles[1]) * int(network.flops(*windows))
    spans = [axis.stop - axis.start // alignment(depth) * alignment(depth) for axis in axes]
    whole = network.flops(*(window_of(span, depth, padding=padding) for span in spans))
    return TilePlan(
        height,
        width,
        tiles[0],
        tiles[1],
        flops=flops,
        redundancy=flops / int(whole),
        peak_bytes=int(network.peak_bytes(*windows)),
        strides=(down, across),
    )


def _axis(size: int, region: range | None, depth: int, padding: bool, is_reversed: bool) -> Axis:
    region = range(size) if region is None else region
    if region.step != 1:
        raise InputError(f"{region} is no region: a range of step 1 is needed")
    return Axis(size, depth, padding, region.start, region.stop, is_reversed)


def _cut(axis: Axis, stride: int) -> tuple[Tile, ...]:
    # Sides are what a file claims: it must not take minutes to list the tiles of a false one.
    if stride > 0 and axis.count_and_window(stride)[0] > _MOST_TILES:
        raise InputError(
            f"tiles of {stride} px are too small for a side of {len(axis)} px: at "
            f"most {_MOST_TILES} can lie along it"
        )
    return axis.tiles(stride)


def _best_strides(
    axes: tuple[Axis, Axis],
    network: NetworkCost,
    memory: int | None,
    buffers: Buffers | None,
) -> tuple[int, int]:
    """Return the strides (down, across) of the cheapest plan that fits."""
    rows, columns = map(_choices, axes)  # (stride, tiles, window, longest tile) each
    area = rows[:, None, 2] * columns[:, 2].astype(float)
    area[-1, -1] = 0  # the smallest is asked for in any case
    pairs = np.argwhere(area <= _MOST_VALUES)  # the others are no tensor, and may overflow
    down, across = rows[pairs[:, 0]].T, columns[pairs[:, 1]].T
    windows, kept = (down[2], across[2]), (down[3], across[3])
    is_tensor = network.largest_tensor(*windows) <= _MOST_VALUES
    peaks = network.peak_bytes(*windows)
    if buffers is not None:
        peaks = peaks + buffers(windows, kept)
    is_fitting = is_tensor if memory is None else is_tensor & (peaks <= memory)
    if not is_fitting.any():
        smallest = f"the smallest tile, {down[0, -1]} x {across[0, -1]} px,"
        if not is_tensor[-1]:
            raise InputError(f"{smallest} takes more values than the {_MOST_VALUES} of a tensor")
        with_buffers = " with its buffers" if buffers else ""
        raise InputError(
            f"{size_text(memory or 0)} of memory are too few: {smallest} takes "
            f"{size_text(peaks[-1])}{with_buffers}"
        )
    tiles = down[1] * across[1]
    cost = np.where(is_fitting, tiles * network.flops(*windows).astype(float), np.inf)
    candidates = np.flatnonzero(cost <= _SLACK * cost.min()).tolist()
    best = min(candidates, key=lambda c: (across[1, c], tiles[c], cost[c]))
    return int(down[0, best]), int(across[0, best])


def _choices(axis: Axis) -> Sizes:
    """Return (stride, tiles, window, longest tile) of the least stride for each number of tiles.

    The numbers grow by 1, then by 1 %: they are fewer than a thousand for a side of any size.
    """
    grid = alignment(axis.depth)
    choices: list[tuple[int, ...]] = []
    stride = axis.least_stride(1)
    while True:
        tiles, window = axis.count_and_window(stride)
        if tiles > _MOST_TILES:
            return np.array(choices)
        choices.append((stride, tiles, window, axis.longest(stride)))
        if stride == grid:
            return np.array(choices)
        fewest = axis.count_and_window(stride - grid)[0]  # that need a smaller stride
        fewest = max(fewest, int(_SLACK * tiles))
        stride = min(axis.least_stride(fewest), stride - grid)
