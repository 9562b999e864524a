"""A prediction as plain data: the blocks it is computed in, and what decides their values."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unet_repro._version import __version__
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import Axes, slice_in_source
from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.mirror import Read, Region
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.values import Values

_HOW = ("tile", "memory", "ngff", "shard")  # settings that decide no value


@dataclass(frozen=True)
class Block:
    """A rectangle of a slice: computed, kept and, after a kill, computed again as one."""

    number: int  # in an array whose units are the blocks
    index: tuple[int, int, int]  # of slice, rows and columns among those that are predicted
    z: int  # in the source
    rows: range
    columns: range

    def __str__(self) -> str:
        rows, columns = self.rows, self.columns
        return f"slice {self.z}, y = {rows.start}:{rows.stop}, x = {columns.start}:{columns.stop}"


@dataclass(frozen=True)
class Job:
    """All that decides the values of a prediction; the same job gives the same values."""

    source: dict[str, Any]  # `StackReader.fingerprint`
    model_sha256: str  # of the weights
    settings: PredictionSettings  # with the precision and the backend that are computed in
    device: str  # its type
    values: Values
    slices: range  # of the source
    rows: range  # of each slice
    columns: range
    block: tuple[int, int]  # height and width of the blocks but the last ones
    strides: tuple[int, int]  # of the tiles of a block
    batch: int  # views of a tile that go through the network at once
    depth_axes: Axes = ()  # of the slices in the source, where the output has an order of its own

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Slices, planes, height and width of the output."""
        return len(self.slices), self.values.planes, len(self.rows), len(self.columns)

    @property
    def chunks(self) -> tuple[int, int, int, int]:
        """Shape of a block: chunks of this size make one of each."""
        return 1, self.values.planes, *self.block

    @property
    def grid(self) -> tuple[int, int, int]:
        """How many blocks there are: slices, down and across."""
        down, across = (
            -(-len(region) // side) for region, side in zip((self.rows, self.columns), self.block)
        )
        return len(self.slices), down, across

    @property
    def origin_px(self) -> tuple[int, int, int]:
        """Slice, row and column of the source at which the output begins."""
        return self.slices.start, self.rows.start, self.columns.start

    def __len__(self) -> int:
        return prod(self.grid)

    def block_of(self, number: int) -> Block:
        """Return a block by its number: slice by slice and row by row."""
        k, i, j = (int(index) for index in np.unravel_index(number, self.grid))
        height, width = self.block
        rows, columns = (
            region[n * side : (n + 1) * side]
            for region, n, side in ((self.rows, i, height), (self.columns, j, width))
        )
        z = self.slices[slice_in_source(self.depth_axes, k)]
        return Block(int(number), (k, i, j), z, rows, columns)

    def record(self) -> dict[str, Any]:
        """Return the job as JSON takes it."""
        return {
            "settings": self._decisive(),
            "model": self.model_sha256,
            "source": self.source,
            "unet_repro": __version__,
            "torch": torch.__version__,
            "plan": {
                "block": list(self.block),
                "strides": list(self.strides),
                "batch": self.batch,
            },
        }

    def info(self, source_name: str) -> str:
        """Return what the output records of its making: facts that no machine decides."""
        fingerprint = json.dumps(self.source, sort_keys=True)  # of names, sizes and times
        facts = {
            "unet_repro": __version__,
            "model_sha256": self.model_sha256,
            "source": source_name,
            "source_fingerprint": hashlib.sha256(fingerprint.encode()).hexdigest(),
            "settings": self._decisive(),
        }
        return json.dumps(facts, indent=1)

    def _decisive(self) -> dict[str, Any]:
        """Return the settings that decide values; tiles and memory do not."""
        decisive = {k: v for k, v in vars(self.settings).items() if k not in _HOW}
        for name, plain in (("of_class", None), ("level", 0)):
            if decisive[name] == plain:  # it decides nothing
                del decisive[name]
        return decisive | {
            "dtype": self.values.dtype,
            "device": self.device,
            "z": [self.slices.start, self.slices.stop],
            "roi": [[axis.start, axis.stop] for axis in (self.rows, self.columns)],
        }


Pixels = list[tuple[tuple[slice, slice], Region]]  # of the tiles of a block, and their places in it


def tiles_of(
    side: range, size: int, stride: int, runner: TileRunner | OverlapTilePredictor
) -> tuple[Tile, ...]:
    """Cut an axis of a block into tiles; a last block that is small gets small windows."""
    axis = geometry.Axis(
        size,
        runner.depth,
        runner.padding,
        side.start,
        side.stop,
        is_reversed=len(runner.views) > 1,
    )
    if 2 * len(side) <= stride:
        stride = axis.least_stride(1)
    return axis.tiles(stride)


def read_block(source: StackReader, runner: TileRunner, job: Job, block: Block) -> Pixels:
    """Read the pixels that a block depends on, once, and share them out to its tiles."""
    size = source.shape[1:]
    rows, columns = (
        tiles_of(side, px, stride, runner)
        for side, px, stride in zip((block.rows, block.columns), size, job.strides)
    )
    read = _reader(source, block.z)
    name = f"{source.path}: {source.names[block.z]}"
    tiles = list(itertools.product(rows, columns))
    if len(tiles) == 1:
        return [(_everything(block), runner.fetch(read, size, *tiles[0], name=name))]
    extents = [runner.extent(size, *tile) for tile in tiles]
    top, left = (min(extent[axis].start for extent in extents) for axis in (0, 1))
    bottom, right = (max(extent[axis].stop for extent in extents) for axis in (0, 1))
    pixels = read(slice(top, bottom), slice(left, right))

    def part(y: slice, x: slice) -> NDArray[Any]:
        return pixels[:, y.start - top : y.stop - top, x.start - left : x.stop - left]

    return [
        (
            (
                slice(row.start - block.rows.start, row.stop - block.rows.start),
                slice(column.start - block.columns.start, column.stop - block.columns.start),
            ),
            runner.fetch(part, size, row, column, name=name),
        )
        for row, column in tiles
    ]


def _everything(block: Block) -> tuple[slice, slice]:
    return slice(0, len(block.rows)), slice(0, len(block.columns))


def _reader(source: StackReader, z: int) -> Read:
    def read(rows: slice, columns: slice) -> NDArray[Any]:
        return source.read_region(z, rows, columns)

    return read


def averaged_tile(
    source: StackReader,
    runner: TileRunner,
    job: Job,
    z: int,
    rows: Tile,
    columns: Tile,
    region: Region | None = None,
) -> NDArray[Any]:
    """Return what the network says of a tile, averaged over the views: (classes, h, w)."""
    name = f"{source.path}: {source.names[z]}"

    def fetch(row: Tile, column: Tile) -> Region:
        return runner.fetch(_reader(source, z), source.shape[1:], row, column, name=name)

    region = region or fetch(rows, columns)
    return runner.compute(region, job.values.finish, fetch, batch=job.batch)


def predict_block(
    source: StackReader,
    runner: TileRunner,
    job: Job,
    block: Block,
    pixels: Pixels | None = None,
) -> NDArray[Any]:
    """Return the values of a block, (planes, h, w), from `read_block`'s `pixels` if they are there.

    Damaged pixels, and values that are not finite, are an `InputError`.
    """
    pixels = pixels or read_block(source, runner, job, block)
    kept: NDArray[Any] | None = None
    for (rows, columns), region in pixels:
        tile = region.rows.tile, region.columns.tile
        values = job.values.kept(averaged_tile(source, runner, job, block.z, *tile, region))
        if len(pixels) == 1:
            return values
        if kept is None:
            kept = np.empty((len(values), len(block.rows), len(block.columns)), values.dtype)
        kept[:, rows, columns] = values
    assert kept is not None
    return kept
