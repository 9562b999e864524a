"""A prediction as plain data: the blocks it is computed in, and what decides their values."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray

from unet_repro._version import __version__
from unet_repro.images.stack_reader import StackReader
from unet_repro.network.geometry import Tile
from unet_repro.prediction.mirror import Region
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.tiling import TilePlan
from unet_repro.prediction.values import Values


@dataclass(frozen=True)
class Block:
    """A tile of a slice: computed, kept and, after a kill, computed again as one."""

    index: tuple[int, int, int]  # of slice, rows and columns among those that are predicted
    z: int  # in the source
    rows: Tile
    columns: Tile

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Its index in an array of (slice, plane, y, x) whose chunks are the blocks."""
        k, i, j = self.index
        return k, 0, i, j

    def __str__(self) -> str:
        rows, columns = self.rows, self.columns
        return f"slice {self.z}, y = {rows.start}:{rows.stop}, x = {columns.start}:{columns.stop}"


@dataclass(frozen=True)
class Job:
    """All that decides the values of a prediction; the same job gives the same values."""

    source: dict[str, Any]  # `StackReader.fingerprint`
    model_sha256: str  # of the weights
    settings: PredictionSettings  # with the precision that is computed in
    device: str  # its type
    values: Values
    slices: range  # of the source
    tiles: TilePlan  # of each slice
    batch: int  # views of a tile that go through the network at once

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Slices, planes, height and width of the output."""
        sides = (axis[-1].stop - axis[0].start for axis in (self.tiles.rows, self.tiles.columns))
        height, width = sides
        return len(self.slices), self.values.planes, height, width

    @property
    def chunks(self) -> tuple[int, int, int, int]:
        """Shape of a block: chunks of this size make one of each."""
        height, width = self.tiles.largest
        return 1, self.values.planes, height, width

    def blocks(self) -> list[Block]:
        """Return all blocks, slice by slice and row by row."""
        return [
            Block((k, i, j), z, rows, columns)
            for k, z in enumerate(self.slices)
            for i, rows in enumerate(self.tiles.rows)
            for j, columns in enumerate(self.tiles.columns)
        ]

    def record(self) -> dict[str, Any]:
        """Return the job as JSON takes it."""
        return {
            "settings": self._decisive(),
            "model": self.model_sha256,
            "source": self.source,
            "unet_repro": __version__,
            "torch": torch.__version__,
            "plan": {"strides": list(self.tiles.strides), "batch": self.batch},
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
        decisive = {k: v for k, v in vars(self.settings).items() if k not in ("tile", "memory")}
        if decisive["of_class"] is None:  # it decides nothing
            del decisive["of_class"]
        rows, columns = self.tiles.rows, self.tiles.columns
        return decisive | {
            "dtype": self.values.dtype,
            "device": self.device,
            "z": [self.slices.start, self.slices.stop],
            "roi": [[axis[0].start, axis[-1].stop] for axis in (rows, columns)],
        }


def read_block(source: StackReader, runner: TileRunner, block: Block) -> Region:
    """Return the pixels that a block depends on."""

    def read(rows: slice, columns: slice) -> NDArray[Any]:
        return source.read_region(block.z, rows, columns)

    name = f"{source.path}: {source.names[block.z]}"
    return runner.fetch(read, source.shape[1:], block.rows, block.columns, name=name)


def averaged_block(
    source: StackReader,
    runner: TileRunner,
    job: Job,
    block: Block,
    region: Region | None = None,
) -> NDArray[Any]:
    """Return what the network says of a block, averaged over the views: (classes, h, w)."""

    def read_part(rows: Tile, columns: Tile) -> Region:
        return read_block(source, runner, replace(block, rows=rows, columns=columns))

    if region is None:
        region = read_block(source, runner, block)
    return runner.compute(region, job.values.finish, read_part, batch=job.batch)


def predict_block(
    source: StackReader,
    runner: TileRunner,
    job: Job,
    block: Block,
    region: Region | None = None,
) -> NDArray[Any]:
    """Return the values of a block, (planes, h, w), from `read_block`'s `region` if it is there.

    Damaged pixels, and values that are not finite, are an `InputError`.
    """
    return job.values.kept(averaged_block(source, runner, job, block, region))
