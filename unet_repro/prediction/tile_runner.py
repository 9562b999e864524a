"""The network applied to tiles: windows in, in every view; the tiles' mean predictions out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from math import inf
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unet_repro.errors import InputError, is_out_of_memory
from unet_repro.network import geometry
from unet_repro.network.backends import Network
from unet_repro.network.device import to_device
from unet_repro.network.geometry import Tile
from unet_repro.prediction.mirror import Read, Region, Side, side
from unet_repro.prediction.views import View

Finish = Callable[[Tensor], Tensor]  # logits (N, classes, h, w) -> what is averaged over the views

_log = logging.getLogger(__name__)


class TileRunner:
    """A network that is ready to run, and how tiles of images go through it.

    Parameters
    ----------
    network : callable
        Maps windows (N, C, h, w) on `device` to logits; see `network.backends.make_network`.
    views
        Of each tile; their predictions are averaged.
    depth, padding, classes
        Of the network, as in `UNetConfig`; classes None for as many as come.
    device, dtype
        Where the windows go, and as what.
    """

    def __init__(
        self,
        network: Network,
        views: tuple[View, ...],
        *,
        depth: int,
        padding: bool,
        classes: int | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.network, self.views = network, views
        self.depth, self.padding, self.classes = depth, padding, classes
        self.device, self.dtype = device, dtype
        self._too_many_px: float = inf  # in a batch of windows, as failures have shown

    def fetch(
        self, read: Read, size: tuple[int, int], row: Tile, column: Tile, *, name: str = "the image"
    ) -> Region:
        """Read the pixels that a tile of an image of `size` (height, width) px depends on."""
        rows, columns = self._sides(size, row, column)
        pixels = read(rows.extent, columns.extent)
        floats = as_floats(pixels, self.dtype, rows.extent.start, columns.extent.start, name)
        return Region(np.moveaxis(floats, 0, 2), rows, columns, name)

    def extent(self, size: tuple[int, int], row: Tile, column: Tile) -> tuple[slice, slice]:
        """Return the rows and columns that `fetch` reads."""
        rows, columns = self._sides(size, row, column)
        return rows.extent, columns.extent

    def _sides(self, size: tuple[int, int], row: Tile, column: Tile) -> tuple[Side, Side]:
        rows, columns = (
            side(tile, px, self.depth, padding=self.padding, is_reversed=len(self.views) > 1)
            for tile, px in zip((row, column), size)
        )
        return rows, columns

    def compute(
        self,
        region: Region,
        finish: Finish,
        fetch: Callable[[Tile, Tile], Region],
        *,
        batch: int = 1,
    ) -> NDArray[Any]:
        """Return what `finish` makes of the logits of a tile, averaged over the views.

        Up to `batch` views go through the network at once. What does not fit into memory is
        computed in halves, in halves of these, and so on: `fetch` reads their regions.

        Returns
        -------
        ndarray, shape (classes, height of the tile, width of the tile)

        Raises
        ------
        InputError
            Not even the smallest tile fits into memory; or the model's output has not the
            expected shape, or is not finite.
        """
        try:
            return self._at_once(region, finish, batch)
        except MemoryError as error:
            message = str(error)
        tiles, axis = self._halves(region.rows, region.columns)
        _log.warning("out of memory with %s: going on with smaller tiles", message)
        parts = (self.compute(fetch(*tile), finish, fetch, batch=batch) for tile in tiles)
        return np.concatenate(list(parts), axis)

    def _at_once(self, region: Region, finish: Finish, batch: int) -> NDArray[Any]:
        """Compute a tile in one piece, with fewer views at once if need be, or say MemoryError."""
        batch = min(batch, len(self.views))
        while True:
            px = batch * region.window_px
            if px < self._too_many_px:
                try:
                    return self._mean_of_views(region, finish, batch)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    self._too_many_px = px
            if batch == 1:  # outside the handler: what the failed attempt held is free again
                raise MemoryError(f"a window of {len(region.rows)} x {len(region.columns)} px")
            batch //= 2

    def _mean_of_views(self, region: Region, finish: Finish, batch: int) -> NDArray[Any]:
        total: Tensor | None = None
        for views in _batches(self.views, batch):
            windows = np.stack([region.window(view) for view in views])  # (N, h, w, C)
            # with channels last, convolutions on a CPU take half the time
            logits = self._run(torch.from_numpy(windows).permute(0, 3, 1, 2))
            for view, scores in zip(views, logits):
                rows, columns = region.kept(view)
                values = finish(scores[None, :, rows, columns])
                back = view.undone(values)[0]  # (classes, height, width)
                total = back if total is None else total + back
        assert total is not None
        mean = total / len(self.views) if len(self.views) > 1 else total
        result = mean.cpu().numpy()
        if not np.isfinite(result).all():
            raise InputError(
                f"{region.name}: of the grey values {region.pixels.min():g} ... "
                f"{region.pixels.max():g} about y = {region.rows.tile.start}, x = "
                f"{region.columns.tile.start} the network makes values that are not finite: "
                "they are too large for it, or its weights are"
            )
        return result

    def _run(self, windows: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.network(to_device(windows, self.device))
        margin = 0 if self.padding else geometry.margin(self.depth)
        height, width = (size - 2 * margin for size in windows.shape[2:])
        classes = logits.shape[1] if self.classes is None else self.classes
        if tuple(logits.shape) != (len(windows), classes, height, width):
            raise InputError(
                f"the model made {tuple(logits.shape)} of {tuple(windows.shape)}; with depth "
                f"{self.depth}, ({len(windows)}, {classes}, {height}, {width}) is needed"
            )
        return logits if logits.dtype == torch.float64 else logits.float()

    def _halves(self, rows: Side, columns: Side) -> tuple[list[tuple[Tile, Tile]], int]:
        """Cut a tile's longer side in two; return the tiles, and the axis of (c, y, x) they cut."""
        tiles = rows.tile, columns.tile
        lengths = [tile.stop - tile.start for tile in tiles]
        along = int(lengths[1] > lengths[0])
        stride = geometry.aligned_stride(lengths[along], 2, self.depth)
        longer = tiles[along]
        cut = geometry.plan_axis(
            (rows, columns)[along].size,
            stride,
            self.depth,
            padding=self.padding,
            start=longer.start,
            stop=longer.stop,
            is_reversed=len(self.views) > 1,
        )
        if len(cut) == 1:
            raise InputError("out of memory even with the smallest tile: free some memory")
        return [(tiles[0], part) if along else (part, tiles[1]) for part in cut], 1 + along


def softmax(logits: Tensor) -> Tensor:
    """Return probabilities: float32, with sum 1 over the classes (N, classes, h, w)."""
    return logits.softmax(dim=1).float()


def raw_logits(logits: Tensor) -> Tensor:
    """Return the logits as they are."""
    return logits


def as_floats(
    pixels: NDArray[Any], dtype: torch.dtype, top: int = 0, left: int = 0, name: str = "the image"
) -> NDArray[Any]:
    """Return pixels (C, h, w) as floats; one that is not finite in `dtype` is an `InputError`.

    `top`, `left` and `name` say in its message where the pixels are.
    """
    with np.errstate(over="ignore"):  # told below
        floats = pixels.astype(str(dtype).removeprefix("torch."), copy=False)
    if pixels.dtype.kind == "f" and not np.isfinite(floats).all():
        channel, y, x = np.argwhere(~np.isfinite(floats))[0]
        raise InputError(
            f"{name} is {pixels[channel, y, x]} at y = {top + y}, x = {left + x}: every pixel "
            "must be finite, and within float32"
        )
    return floats


def _batches(views: Iterable[View], batch: int) -> Iterator[list[View]]:
    """Yield up to `batch` views at a time whose windows have the same shape."""
    for is_transposed in (False, True):
        alike = iter([view for view in views if view.is_transposed == is_transposed])
        while chunk := list(islice(alike, batch)):
            yield chunk
