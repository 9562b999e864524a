"""The pixels that a tile depends on, mirrored at the image's border (Fig. 2), in every view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.views import View

Read = Callable[[slice, slice], NDArray[Any]]  # rows, columns -> pixels (C, rows, columns)


@dataclass(frozen=True)
class Side:
    """One axis of a tile, in each direction that a view needs; False is the image's own."""

    tile: Tile
    size: int  # of the image, px
    index: dict[bool, NDArray[np.int64]]  # the image px that each px of the window shows
    kept: dict[bool, slice]  # the px of the network's output that are the tile's

    @property
    def extent(self) -> slice:
        """The px of the image that are needed."""
        indices = self.index.values()
        return slice(min(int(i.min()) for i in indices), max(int(i.max()) for i in indices) + 1)

    def __len__(self) -> int:
        return len(next(iter(self.index.values())))


def side(tile: Tile, size: int, depth: int, *, padding: bool, is_reversed: bool) -> Side:
    """Lay out an axis of a tile of an image of `size` px, the reversed axis too if that is seen."""
    margin = 0 if padding else geometry.margin(depth)
    index, kept = {}, {}
    for reverses in (False, True) if is_reversed else (False,):
        seen = geometry.reversed_tile(tile, size, depth, padding=padding) if reverses else tile
        position = mirror_index(seen.window_start, seen.window_stop, size)
        index[reverses] = size - 1 - position if reverses else position
        start = seen.start - seen.window_start - margin
        kept[reverses] = slice(start, start + seen.stop - seen.start)
    return Side(tile, size, index, kept)


@dataclass(frozen=True)
class Region:
    """What a tile's prediction needs: pixels (h, w, C), and how its windows lie in them."""

    pixels: NDArray[Any]
    rows: Side
    columns: Side
    name: str = "the image"  # for messages

    @property
    def window_px(self) -> int:
        return len(self.rows) * len(self.columns)

    def window(self, view: View) -> NDArray[Any]:
        """Return what the network sees of the tile in a view, (h, w, C)."""
        y = self.rows.index[view.reverses_rows] - self.rows.extent.start
        x = self.columns.index[view.reverses_columns] - self.columns.extent.start
        window = self.pixels.take(y, axis=0).take(x, axis=1)  # a third of the time of [y, x]
        return window.swapaxes(0, 1) if view.is_transposed else window

    def kept(self, view: View) -> tuple[slice, slice]:
        """Return which rows and columns of the network's output are the tile's, in a view."""
        rows = self.rows.kept[view.reverses_rows]
        columns = self.columns.kept[view.reverses_columns]
        return (columns, rows) if view.is_transposed else (rows, columns)


def mirror_index(start: int, stop: int, size: int) -> NDArray[np.int64]:
    """Return the pixels that positions start ... stop - 1 show in an endlessly mirrored line.

    The mirrors stand on the centres of the first and the last of its `size` pixels.

    Examples
    --------
    >>> mirror_index(-2, 7, 3)
    array([2, 1, 0, 1, 2, 1, 0, 1, 2])
    """
    period = max(2 * (size - 1), 1)
    position = np.arange(start, stop) % period
    return np.minimum(position, period - position)
