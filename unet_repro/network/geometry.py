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

import itertools
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


def skip_margin(level: int, depth: int) -> int:
    """Return the px cropped from each side of a level's skip (depth 4: 88, 40, 16, 4; Fig. 1).

    The levels below are a U-Net of their own, on half the px; its last two convolutions are its
    margin's, those of `level` itself come before and after the skip and make up 2 px each.
    """
    return margin(depth - level) - 4


def is_valid_input(size: int, depth: int) -> bool:
    """Tell whether a side of `size` px passes the unpadded network (572 does)."""
    return size >= smallest_input(depth) and (size + 4) % alignment(depth) == 0


def smallest_input(depth: int) -> int:
    """Return the smallest valid side in px (depth 4: 188, whose output is 4)."""
    return input_size(1, depth)


def output_size(size: int, depth: int) -> int:
    """Return the output side of an input side; an `InputError` names the nearest valid ones."""
    check_input(size, depth, "side")
    return size - 2 * margin(depth)


def input_size(output: int, depth: int) -> int:
    """Return the smallest valid input side whose output covers at least `output` px."""
    grid = alignment(depth)
    # a valid output is 4 mod grid (grid 2: 0): -(4 (2^depth - 1)) mod grid
    excess = (4 - output) % grid
    return output + excess + 2 * margin(depth)


def check_input(size: int, depth: int, name: str, *, least: int | None = None) -> None:
    """Raise an `InputError` that names the nearest valid sizes unless `size` is one.

    `least` is the smallest to be named, by default the smallest valid one.
    """
    if is_valid_input(size, depth):
        return
    grid, least = alignment(depth), least or smallest_input(depth)
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
    output begins on the pooling grid, at or less than one step below `start`; the tile keeps
    [start, stop) of it.
    """

    start: int
    stop: int
    window_start: int
    window_stop: int


def reversed_tile(tile: Tile, size: int, depth: int, *, padding: bool = False) -> Tile:
    """Return the tile that keeps the same pixels when its axis of `size` px is reversed.

    Its window is as large and lies on the grid of the reversed axis. It is sure to cover the pixels
    if the tile was planned with ``is_reversed``; an `InputError` says where it does not.
    """
    window = tile.window_stop - tile.window_start
    return _placed(size - tile.stop, size - tile.start, window, depth, padding)


def plan_axis(
    size: int,
    stride: int,
    depth: int,
    *,
    padding: bool = False,
    start: int = 0,
    stop: int | None = None,
    is_reversed: bool = False,
) -> tuple[Tile, ...]:
    """Cut the px [start, stop) of an axis, by default all, into tiles of `stride` px (`Axis`)."""
    axis = Axis(size, depth, padding, start, size if stop is None else stop, is_reversed)
    return axis.tiles(stride)


@dataclass(frozen=True)
class Axis:
    """An axis to be cut into tiles that are aligned to the pooling grid.

    The cuts lie at ``start + n * stride``, the last tile may be shorter; where one window of that
    stride covers all (572: 388 px, not 384), there is one tile. All windows have one valid size,
    the last one too: a kept pixel may depend on more than `margin` px around it, so the image is
    mirrored over all of the window.

    Parameters
    ----------
    size
        Side of the image in px, 1 or more.
    padding
        The network pads its convolutions: a window keeps its size, and its outermost px (the halo,
        rounded up to the pooling grid) are computed and thrown away.
    start, stop
        The region of interest, ``0 <= start < stop <= size``.
    is_reversed
        The axis is seen from its other end too: every window is large enough for `reversed_tile`,
        up to one grid step larger than it need be otherwise.
    """

    size: int
    depth: int
    padding: bool
    start: int
    stop: int
    is_reversed: bool

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(
                f"an image side of {self.size} px cannot be tiled: at least 1 is needed"
            )
        if not 0 <= self.start < self.stop <= self.size:
            raise InputError(
                f"the px {self.start} to {self.stop} are no region of a side of {self.size} px: "
                "0 <= start < stop <= side is needed"
            )

    def tiles(self, stride: int) -> tuple[Tile, ...]:
        """Return the tiles of a stride, which must be a multiple of 2^depth."""
        grid = alignment(self.depth)
        if stride < grid or stride % grid:
            raise InputError(f"stride {stride} is not a positive multiple of 2^depth = {grid}")
        number, window = self.count_and_window(stride)
        cuts = [*(self.start + n * stride for n in range(number)), self.stop]
        return tuple(
            _placed(start, stop, window, self.depth, self.padding)
            for start, stop in itertools.pairwise(cuts)
        )

    def count_and_window(self, stride: int) -> tuple[int, int]:
        """Return how many tiles a stride makes, and the size of their windows in px."""
        single = self._window(len(self) + self._phase(self.stop))
        inner = self._window(stride + self._phase(self.start + stride))
        number = -(-len(self) // stride)
        if number == 1 or single <= inner:
            return 1, max(single, inner)
        last = len(self) - (number - 1) * stride
        return number, max(inner, self._window(last + self._phase(self.stop)))

    def longest(self, stride: int) -> int:
        """Return the px of the longest tile of a stride."""
        return len(self) if self.count_and_window(stride)[0] == 1 else stride

    def least_stride(self, count: int) -> int:
        """Return the smallest stride that makes at most `count` tiles."""
        grid = alignment(self.depth)
        single = max(grid, len(self) // grid * grid - 2 * grid)  # its window may cover more
        while self.count_and_window(single)[0] > 1:
            single += grid
        return min(single, -(-len(self) // (count * grid)) * grid)

    def __len__(self) -> int:
        return self.stop - self.start

    def _phase(self, stop: int) -> int:
        """Return the most px between a grid point and a tile that ends at `stop`, in either view.

        All tiles begin at the same phase; seen from the axis's other end, where they end decides.
        """
        grid = alignment(self.depth)
        reversed_phase = (self.size - stop) % grid if self.is_reversed else 0
        return max(self.start % grid, reversed_phase)

    def _window(self, output: int) -> int:
        return window_of(output, self.depth, padding=self.padding)


def window_of(output: int, depth: int, *, padding: bool) -> int:
    """Return the smallest window in px that computes `output` px from a grid point on."""
    if not padding:
        return input_size(output, depth)
    grid = alignment(depth)
    return -(-output // grid) * grid + 2 * _before(depth, padding=True)


def _before(depth: int, *, padding: bool) -> int:
    """Return the px of a window before its output: the margin, or the halo in whole grid steps."""
    if not padding:
        return margin(depth)
    return -(-halo(depth) // alignment(depth)) * alignment(depth)


def aligned_stride(size: int, count: int, depth: int) -> int:
    """Return the smallest aligned stride that covers `size` px with at most `count` tiles."""
    return Axis(size, depth, False, 0, size, False).least_stride(count)


def _placed(start: int, stop: int, window: int, depth: int, padding: bool) -> Tile:
    """Return the tile [start, stop) in a window of `window` px whose output begins on the grid."""
    least = window_of(stop - start + start % alignment(depth), depth, padding=padding)
    if window < least:
        raise InputError(
            f"a window of {window} px does not cover the px {start} to {stop}: "
            f"at least {least} is needed"
        )
    first = start - start % alignment(depth) - _before(depth, padding=padding)
    return Tile(start, stop, first, first + window)


def stride_of_window(window: int, depth: int, *, padding: bool = False) -> int:
    """Return the largest aligned stride that a window of `window` px allows (572: 384).

    An `InputError` says what is wrong with a window that is not valid, or keeps no aligned tile.
    """
    grid = alignment(depth)
    if not padding:
        check_input(window, depth, "tile", least=window_of(grid, depth, padding=False))
    elif window % grid:
        raise InputError(f"tile {window} is not a multiple of 2^depth = {grid}")
    stride = (window - 2 * _before(depth, padding=padding)) // grid * grid
    if stride < grid:
        least = window_of(grid, depth, padding=padding)
        raise InputError(f"tile {window} keeps no {grid} aligned px: at least {least} is needed")
    return stride


@dataclass(frozen=True)
class BlockGeometry:
    """A network as a filter whose output has the size of its input, for blocks of other programs.

    Such a program continues the image by `halo` px on each side, cuts it into blocks that begin
    ``side - 2 * halo`` px apart, and of each block's output drops `halo` px on each side.

    Parameters
    ----------
    halo
        At least what a pixel depends on around it.
    least, step
        Sides of a block in px are ``least + n * step``.
    crop
        Px that the filter takes off before a block's first row and column, for a size that the
        network takes, on its grid.
    lost
        Px before the first and behind the last row and column that the network does not compute;
        the filter fills them with zeros. Both are within the halo.

    Notes
    -----
    Blocks agree with one pass over the image, and with `Axis.tiles`, if all begin on the same grid
    of g = 2^depth px. Some programs pass a whole image of a block's size through the filter, others
    one that they have continued by the halo: all these are valid sizes only if 2 halo is a multiple
    of g. Windows of an unpadded network begin `margin` px before the image here, and its sizes are
    -4 mod g. Hence

        halo = 0 mod g, margin + g - 1 or more             (depth 4: 112)
        side = 2 halo + g (1 + n)                          (depth 4: 240 + 16 n)
        crop = halo - margin = 4 mod g                     (depth 4: 4; side - crop = -4 mod g)
        lost = crop + margin, margin                       (depth 4: 96, 92)

    and the px that are kept lie halo - crop, at least margin + g - 1, behind the window's start. A
    padded network takes any multiple of g; nothing is cropped or lost.
    """

    halo: int
    least: int
    step: int
    crop: int
    lost: tuple[int, int]


def block_geometry(depth: int, *, padding: bool) -> BlockGeometry:
    """Return the numbers of a network as a filter.

    Examples
    --------
    >>> block_geometry(4, padding=False)
    BlockGeometry(halo=112, least=240, step=16, crop=4, lost=(96, 92))
    """
    grid, around = alignment(depth), _before(depth, padding=True)
    crop = 0 if padding else 4 % grid
    lost = (0, 0) if padding else (crop + margin(depth), margin(depth))
    return BlockGeometry(around, 2 * around + grid, grid, crop, lost)
