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
    before, window = window_of_stride(stride, depth, padding=padding)
    return tuple(
        Tile(start, min(start + stride, size), start - before, start - before + window)
        for start in range(0, size, stride)
    )


def window_of_stride(stride: int, depth: int, *, padding: bool) -> tuple[int, int]:
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
