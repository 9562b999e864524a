"""Integer geometry of the U-Net: valid sizes, margins and tile grids. Never sees a pixel.

Part of the paper: Fig. 1 (sizes), Fig. 2 and Sec. 2 (overlap-tile strategy).

With unpadded 3x3 convolutions, two a level, and 2x2 poolings, a side of n px shrinks level by level
as n -> (n - 4) / 2, so after `depth` poolings n = 2^depth m + 4 (2^depth - 1); every (n - 4) is
even only for sizes of that form. The bottom and the way up lose 4 px a level again, hence

    output = n - 12 * 2^depth + 8                           (depth 4: 572 -> 388, n - 184).

Pooling fixes a grid of 2^depth px: the network is equivariant under shifts by multiples of 2^depth
only. Tiles whose origins differ by anything else do not agree with a pass over the whole image.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from unet_repro.errors import InputError


def alignment(depth: int) -> int:
    """Return the pooling grid in px: tile origins must differ by multiples of it."""
    return 2**depth


def margin(depth: int) -> int:
    """Return the px lost on each side by the unpadded convolutions (depth 4: 92)."""
    return 6 * 2**depth - 4


def halo(depth: int) -> int:
    """Return how many px beyond an output pixel its value can depend on (depth 4: 107).

    How many input px an output pixel sees depends on its phase on the pooling grid (depth 4: 188 or
    204); the farthest reach is the margin and one grid step less a pixel.
    """
    return margin(depth) + alignment(depth) - 1


def is_valid_input(size: int, depth: int) -> bool:
    """Tell whether a side of `size` px passes the unpadded network (572 does)."""
    return size >= smallest_input(depth) and (size + 4) % alignment(depth) == 0


def smallest_input(depth: int) -> int:
    """Return the smallest valid side in px (depth 4: 188, whose output is 4)."""
    return input_size(1, depth)


def output_size(size: int, depth: int) -> int:
    """Return the output side of a valid input side.

    Raises
    ------
    InputError
        `size` is not valid; the message names the nearest sizes that are.
    """
    check_input(size, depth, "side")
    return size - 2 * margin(depth)


def input_size(output: int, depth: int) -> int:
    """Return the smallest valid input side whose output covers at least `output` px."""
    grid = alignment(depth)
    # a valid output is 4 mod grid (grid 2: 0): -(4 (2^depth - 1)) mod grid
    excess = (4 - output) % grid
    return output + excess + 2 * margin(depth)


def check_input(size: int, depth: int, name: str) -> None:
    """Raise an `InputError` that names the nearest valid sizes unless `size` is one."""
    if is_valid_input(size, depth):
        return
    grid, least = alignment(depth), smallest_input(depth)
    below = size - (size + 4) % grid
    nearest = f"{below}, {below + grid}" if below >= least else f"{least}"
    raise InputError(
        f"{name} {size} is not a U-Net input size "
        f"(n % {grid} == {-4 % grid}, n >= {least}); nearest: {nearest}"
    )


@dataclass(frozen=True)
class Tile:
    """One tile along one axis: output pixels [start, stop) and the window that computes them.

    The window [window_start, window_stop) may reach beyond the image, where it is mirrored. Its
    output begins at `start`; of it, the first ``stop - start`` px are kept.
    """

    start: int
    stop: int
    window_start: int
    window_stop: int


def plan_axis(size: int, stride: int, depth: int, *, padding: bool = False) -> tuple[Tile, ...]:
    """Cut `size` px into tiles of `stride` px (the last one shorter), aligned to the pooling grid.

    Every window has the same valid size, the last one too: it is mirrored over its full extent,
    because a kept pixel may depend on more than `margin` px around it.

    Parameters
    ----------
    size
        Side of the image in px, 1 or more.
    stride
        A multiple of 2^depth.
    padding
        The network pads its convolutions: a window keeps its size, and its outermost px (the halo,
        rounded up to the pooling grid) are computed and thrown away.
    """
    grid = alignment(depth)
    if size < 1:
        raise InputError(f"an image side of {size} px cannot be tiled: at least 1 is needed")
    if stride < grid or stride % grid:
        raise InputError(f"stride {stride} is not a positive multiple of 2^depth = {grid}")
    before, window = _window(stride, depth, padding)
    return tuple(
        Tile(start, min(start + stride, size), start - before, start - before + window)
        for start in range(0, size, stride)
    )


def _window(stride: int, depth: int, padding: bool) -> tuple[int, int]:
    """Return the px before a tile of `stride` px where its window begins, and the window's size."""
    if not padding:
        return margin(depth), input_size(stride, depth)
    before = -(-halo(depth) // alignment(depth)) * alignment(depth)
    return before, stride + 2 * before


def aligned_stride(size: int, tiles: int, depth: int) -> int:
    """Return the smallest aligned stride that covers `size` px with at most `tiles` tiles."""
    grid = alignment(depth)
    return -(-size // (tiles * grid)) * grid


def stride_of_window(window: int, depth: int, *, padding: bool = False) -> int:
    """Return the largest aligned stride that a window of `window` px allows (572: 384).

    Raises
    ------
    InputError
        The window is not a valid input size, or too small to keep one aligned tile.
    """
    grid = alignment(depth)
    if padding:
        stride = (window - 2 * (-(-halo(depth) // grid) * grid)) // grid * grid
        least = 2 * (-(-halo(depth) // grid) * grid) + grid
        if window % grid:
            raise InputError(f"tile {window} is not a multiple of 2^depth = {grid}")
    else:
        check_input(window, depth, "tile")
        stride = (window - 2 * margin(depth)) // grid * grid
        least = input_size(grid, depth)
    if stride < grid:
        raise InputError(f"tile {window} keeps no {grid} aligned px: at least {least} is needed")
    return stride


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
        height, width = (_window(side, self.depth, self.padding)[1] for side in (down, across))
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
