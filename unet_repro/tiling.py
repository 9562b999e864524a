"""Plans of tiles: the least computation that fits into memory, from shapes alone.

Part of the paper: the overlap-tile strategy (Sec. 2, Fig. 2). Not in the paper: how large a tile.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from unet_repro.errors import InputError
from unet_repro.geometry import Tile, aligned_stride, alignment, plan_axis, window_of_stride


@dataclass(frozen=True)
class TilePlan:
    """The tiles of an image: every row tile with every column tile, all windows of one size.

    Iterating yields (row, column) pairs of `Tile`, row by row; ``len`` is their number.

    Parameters
    ----------
    height, width
        The image, and the output, in px.
    rows, columns
        The tiles along each axis.
    flops
        Floating-point operations of all windows, two for each multiply-add.
    redundancy
        `flops` relative to one window over the whole image: 1 for a single tile.
    peak_bytes
        Predicted memory that a window takes in the network, beyond what the process already holds.
    output_bytes
        Size of the float32 probabilities of all classes.
    """

    height: int
    width: int
    rows: tuple[Tile, ...]
    columns: tuple[Tile, ...]
    flops: int
    redundancy: float
    peak_bytes: int
    output_bytes: int

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[Tile, Tile]]:
        return itertools.product(self.rows, self.columns)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of every window in px."""
        row, column = self.rows[0], self.columns[0]
        return row.window_stop - row.window_start, column.window_stop - column.window_start


def plan_tiles(
    height: int,
    width: int,
    *,
    depth: int,
    base_channels: int,
    in_channels: int = 1,
    classes: int = 2,
    padding: bool = False,
    wide_last_up: bool = False,
    bytes_per_value: int = 4,
    memory: int | None = None,
    stride: int | None = None,
) -> TilePlan:
    """Cut an image into the tiles that take the least computation within the memory given.

    Few and large tiles, that is; but the cost is not monotonic in their size: for n tiles along an
    axis, a stride of ceil(size / n) px, rounded up to the pooling grid, wastes least. Of the plans
    within 1 % of the least computation the one with the fewest columns is taken (full-width strips
    are the cheapest to read and to write), then the one with the fewest tiles.

    Parameters
    ----------
    height, width
        The image in px, 1 or more.
    depth, base_channels, in_channels, classes, padding, wide_last_up
        The network, as in `UNetConfig`.
    bytes_per_value
        4 for float32, 2 for bfloat16, 8 for float64.
    memory
        Upper bound in bytes for `TilePlan.peak_bytes`; None for no bound.
    stride
        Do not plan: take square tiles of this many px, a multiple of 2^depth.

    Raises
    ------
    InputError
        An empty image; a stride off the pooling grid; the smallest tile needs more than `memory`.

    Examples
    --------
    >>> plan = plan_tiles(2048, 2048, depth=4, base_channels=64, memory=2 * 2**30)
    >>> len(plan.rows), len(plan.columns), plan.window, round(plan.redundancy, 2)
    (2, 2, (1212, 1212), 1.06)
    >>> paper = plan_tiles(2048, 2048, depth=4, base_channels=64, stride=384)
    >>> len(paper), paper.window, round(paper.redundancy, 2)
    (36, (572, 572), 1.65)
    """
    network = _Network(
        depth, base_channels, in_channels, classes, padding, wide_last_up, bytes_per_value
    )
    whole = tuple(_strides(size, depth)[0] for size in (height, width))
    strides = (stride, stride) if stride else _best_strides(height, width, network, memory)
    rows, columns = (
        plan_axis(size, side, depth, padding=padding)
        for size, side in zip((height, width), strides)
    )
    flops = len(rows) * len(columns) * network.flops(*strides)
    return TilePlan(
        height,
        width,
        rows,
        columns,
        flops=flops,
        redundancy=flops / network.flops(*whole),
        peak_bytes=network.peak_bytes(*strides),
        output_bytes=4 * classes * height * width,
    )


def _strides(size: int, depth: int) -> list[int]:
    """Return every stride that wastes least for some number of tiles, the largest first."""
    grid = alignment(depth)
    if size < 1:
        raise InputError(f"an image side of {size} px cannot be tiled: at least 1 is needed")
    strides = [aligned_stride(size, 1, depth)]
    while strides[-1] > grid:  # the fewest tiles that need a smaller stride
        strides.append(aligned_stride(size, -(-size // (strides[-1] - grid)), depth))
    return strides


def _best_strides(
    height: int, width: int, network: _Network, memory: int | None
) -> tuple[int, int]:
    """Return the strides (down, across) of the cheapest plan that fits."""
    falling = _strides(height, network.depth)
    plans = []
    for across in _strides(width, network.depth):

        def fits(down: int, across: int = across) -> bool:
            return network.fits(down, across, memory)

        first = bisect.bisect_left(falling, True, key=fits)  # the tallest that fits
        for down in falling[first : first + 1]:
            columns = -(-width // across)
            tiles = columns * -(-height // down)
            plans.append((tiles * network.flops(down, across), columns, tiles, (down, across)))
    if not plans:
        least = alignment(network.depth)
        raise InputError(
            f"{memory} bytes of memory are too few: the smallest tile, {least} x {least} px, "
            f"takes {network.peak_bytes(least, least)}"
        )
    cheapest = min(plans)[0]
    return min((plan for plan in plans if plan[0] <= 1.01 * cheapest), key=lambda p: p[1:3])[3]


# glibc returns freed blocks of this size or more to the system; it keeps smaller ones, fragmented
_KEPT_BLOCK = 32 * 2**20
_FRAGMENTATION = 1.4  # puts peaks at 0.86 to 1.21 of those measured (16, 64 channels; 572, 1036 px)
_MOST_VALUES = 2**31 - 1  # in one tensor: kernels count with 32 bits


@dataclass(frozen=True)
class _Network:
    """The cost of a tile, from the sizes of the layers that its window passes."""

    depth: int
    base_channels: int
    in_channels: int
    classes: int
    padding: bool
    wide_last_up: bool
    bytes_per_value: int

    def flops(self, down: int, across: int) -> int:
        return sum(operations for operations, _ in self._layers(down, across))

    def fits(self, down: int, across: int, memory: int | None) -> bool:
        largest = max(max(alive) for _, alive in self._layers(down, across))
        return largest <= _MOST_VALUES and (
            memory is None or self.peak_bytes(down, across) <= memory
        )

    def peak_bytes(self, down: int, across: int) -> int:
        """Return the most memory taken at any layer, with what the C library keeps of the freed."""
        peak = kept = 0.0
        for _, alive in self._layers(down, across):
            sizes = [self.bytes_per_value * values for values in alive]
            small = sum(size for size in sizes if size < _KEPT_BLOCK)
            kept = max(kept, _FRAGMENTATION * small)
            peak = max(peak, sum(sizes) - small + kept)
        return int(peak)

    def _layers(self, down: int, across: int) -> Iterator[tuple[int, list[int]]]:
        """Yield, layer by layer, its operations and the values of every tensor alive in it."""
        height, width = (
            window_of_stride(side, self.depth, padding=self.padding)[1] for side in (down, across)
        )
        inputs = self.in_channels
        held: list[int] = []  # the skips, then what comes up from below
        for level in range(self.depth + 1):
            if level:
                height, width = height // 2, width // 2
            alive = [*held, inputs * height * width]
            layers, height, width = self._two_convolutions(alive, inputs, level, height, width)
            yield from layers
            inputs = self.base_channels << level
            held.append(inputs * height * width)  # the skip, or at last the bottom
        for level in reversed(range(self.depth)):
            height, width = 2 * height, 2 * width
            channels = self.base_channels << level
            upsampled = 2 * channels if self.wide_last_up and not level else channels
            inputs, up = upsampled + channels, upsampled * height * width
            yield 4 * channels * up, [*held, up, up]  # the up-convolution makes a second copy
            alive = [*held, up, inputs * height * width]
            layers, height, width = self._two_convolutions(alive, inputs, level, height, width)
            yield from layers
            held[-2:] = [channels * height * width]
        pixels = height * width
        yield 2 * self.base_channels * self.classes * pixels, [*held, self.classes * pixels]

    def _two_convolutions(
        self, alive: list[int], inputs: int, level: int, height: int, width: int
    ) -> tuple[list[tuple[int, list[int]]], int, int]:
        """Return the 3x3 convolutions of a level as `_layers` yields them, and their size."""
        layers = []
        channels = self.base_channels << level
        for before in (inputs, channels):
            if not self.padding:
                height, width = height - 2, width - 2
            alive = [*alive, channels * height * width]
            weights = 9 * before * channels  # reordered for the processor, twice
            layers.append((2 * 9 * before * alive[-1], [*alive, weights, weights]))
        return layers, height, width
