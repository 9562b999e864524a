"""The plan of a streamed prediction: tiles, memory with all buffers, and what it will take."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from unet_repro.images.readers import range_of
from unet_repro.images.stack_reader import StackReader
from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.blocks import tiles_of
from unet_repro.prediction.outputs import Destination, ZarrDestination
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tiling import TilePlan
from unet_repro.prediction.values import Values
from unet_repro.quantities import duration_text, size_text

BLOCKS_AT_WORK = 5  # at once in memory: two read ahead, one computed, two to be written
_THREADS = 2**24  # what their stacks, codecs and heaps take
_FOUND, _NUMBERED, _GROWN = 12, 16, 32  # bytes for each pixel of a band of instances
_TRIAL_FLOPS, _TRIAL_PX = 10**11, 400  # of the window that the speed is measured on


@dataclass(frozen=True)
class Buffers:
    """What is read, converted and put together beside the network.

    Called with heights and widths of windows and of the largest tiles, which may be arrays, it
    gives bytes.
    """

    source: tuple[int, int]  # rows and columns of a page
    channels: int
    read_bytes: int  # what reading takes for each pixel of a window
    stored_bytes: int  # what the file keeps for it
    cache_bytes: int
    output: tuple[int, int]  # rows and columns that are predicted
    classes: int
    planes: int
    value_bytes: int  # of the output
    kept_bytes: int  # of the blocks
    makes_instances: bool
    grow_px: float  # of those
    block: tuple[int, int] | None = None  # of several tiles, kept as they are in the output
    reach: int = 0  # px that a block reads beyond itself, on each side

    @classmethod
    def of(
        cls,
        source: StackReader,
        cache_bytes: int,
        destination: Destination | ZarrDestination,
        values: Values,
        settings: PredictionSettings,
        block: tuple[int, int] | None = None,
        reach: int = 0,
    ) -> Buffers:
        return cls(
            source=source.shape[1:],
            channels=source.channels,
            read_bytes=source.read_bytes,
            stored_bytes=source.stored_bytes,
            cache_bytes=cache_bytes,
            output=destination.shape[1:],
            classes=values.classes,
            planes=destination.planes,
            value_bytes=np.dtype(destination.dtype).itemsize,
            kept_bytes=np.dtype(values.kept_dtype).itemsize,
            makes_instances=values.kind == "instances",
            grow_px=0.0 if settings.grow == "auto" else settings.grow,
            block=block,
            reach=reach,
        )

    def __call__(self, windows: tuple[Any, Any], kept: tuple[Any, Any]) -> Any:
        sides = (*windows, *kept)
        height, width, rows, columns = (np.asarray(side, float) for side in sides)  # no overflow
        window = height * width * (4 * self.channels + self.read_bytes)
        values = rows * columns * self.classes * 4
        row_of_tiles = rows * self.output[1] * self.kept_bytes * (self.planes + 1)
        row_of_segments = min(512, self.output[0]) * self.output[1] * self.value_bytes
        if self.block:  # several tiles of it are read and kept as one
            read = [side + 2 * self.reach for side in self.block]
            window = np.prod(read, dtype=float) * (4 * self.channels + self.read_bytes) + window
            values = np.prod(self.block, dtype=float) * self.planes * self.value_bytes + values
            row_of_tiles *= 0
            row_of_segments = self.block[0] * self.output[1] * 8 * self.makes_instances
        touched = np.minimum(self.source[0], height + self.output[0]) * self.source[1]
        cache = np.minimum(self.cache_bytes, touched * self.stored_bytes)
        at_work = BLOCKS_AT_WORK * (window + values)
        if self.makes_instances:  # written when all blocks are there
            first, second = self._labelling()
            at_work = np.maximum(at_work + first, row_of_segments + second)
        else:
            at_work = at_work + row_of_segments
        return at_work + row_of_tiles + cache + _THREADS

    def _labelling(self) -> tuple[int, int]:
        """Return what the two passes over the pages take, beside the numbers of the instances."""
        # here: they load what few plans need
        from unet_repro.prediction.components import BAND_PX
        from unet_repro.prediction.growing import reach_px

        rows = max(1, BAND_PX // self.output[1])
        margin = reach_px(self.grow_px)
        first = min(rows, self.output[0]) * self.output[1] * _FOUND
        per_px = _NUMBERED + (_GROWN if self.grow_px else 0)
        second = min(max(rows, margin) + 2 * margin, self.output[0]) * self.output[1] * per_px
        return first, second


@dataclass(frozen=True)
class Plan:
    """Tiles, how many views go through the network at once, and the memory that takes in all."""

    tiles: TilePlan  # of a slice
    batch: int
    peak_bytes: int
    block: tuple[int, int]  # height and width of what is kept as one


def make_plan(
    predictor: OverlapTilePredictor,
    buffers: Buffers,
    *,
    rows: range,
    columns: range,
    memory: int,
    strides: tuple[int, int] | None = None,
    batch: int | None = None,
) -> Plan:
    """Plan tiles whose memory, with that of all buffers, stays within `memory` bytes.

    A predictor with a `tile` of its own does not ask for it. `strides` and `batch` are those of an
    unfinished run, which another machine's memory may have decided: they are kept to. Where the
    buffers are of a block, the tiles are those of blocks of this size.
    """
    block = buffers.block
    is_on_cpu = predictor.device.type == "cpu"
    predictor.memory = None if predictor.tile else memory
    tiles = predictor.plan(
        *buffers.source,
        rows=rows[: block[0]] if block else rows,
        columns=columns[: block[1]] if block else columns,
        strides=strides,
        buffers=buffers if is_on_cpu else None,
    )
    besides = int(buffers(tiles.window, tiles.largest)) if is_on_cpu else 0
    if batch is None:
        batch = predictor.windows_at_once(tiles, memory - besides)
    peak_bytes = predictor.peak_bytes(tiles, batch) + besides
    if block is None:
        return Plan(tiles, batch, peak_bytes, tiles.largest)
    return Plan(_of_blocks(tiles, predictor, block, rows, columns), batch, peak_bytes, block)


def _of_blocks(
    first: TilePlan,
    predictor: OverlapTilePredictor,
    block: tuple[int, int],
    rows: range,
    columns: range,
) -> TilePlan:
    """Return the tiles of all blocks of a slice, given those of the first one."""
    size = first.height, first.width
    down, across = (
        [tiles_of(region[n : n + side], px, stride, predictor) for n in range(0, len(region), side)]
        for region, side, px, stride in zip((rows, columns), block, size, first.strides)
    )
    kinds = [Counter((len(tiles), _window(tiles)) for tiles in blocks) for blocks in (down, across)]
    flops = sum(
        many * number * n * m * int(predictor.cost.flops(height, width))
        for (n, height), many in kinds[0].items()
        for (m, width), number in kinds[1].items()
    )
    grid, padding = geometry.alignment(predictor.depth), predictor.padding
    spans = [region.stop - region.start // grid * grid for region in (rows, columns)]
    sides = (geometry.window_of(span, predictor.depth, padding=padding) for span in spans)
    whole = predictor.cost.flops(*sides)
    return replace(
        first,
        rows=tuple(tile for tiles in down for tile in tiles),
        columns=tuple(tile for tiles in across for tile in tiles),
        flops=flops,
        redundancy=flops / int(whole),
    )


def _window(tiles: tuple[Tile, ...]) -> int:
    return tiles[0].window_stop - tiles[0].window_start


@dataclass(frozen=True)
class Outlook:
    """What a run will take, to be shown."""

    plan: Plan  # its memory is beyond what the process holds before
    slices: int
    views: int
    output_bytes: int  # before compression
    layout: str  # of the output's pages
    seconds: float  # from the speed on a small window, on the machine as busy as it was then
    network: str  # what runs it

    def __str__(self) -> str:
        tiles = self.plan.tiles
        rows, columns = len(tiles.rows), len(tiles.columns)
        lines = {
            "slices": str(self.slices),
            "tiles per slice": f"{len(tiles)} ({rows} down x {columns} across)",
            "tile": f"{_by(tiles.largest)} px of a window of {_by(tiles.window)} px",
            "views": f"{self.views} ({self.plan.batch} at once)",
            "redundant compute": f"{tiles.redundancy:.3f} x one pass over the whole image",
            "network": self.network,
            "peak memory": size_text(self.plan.peak_bytes),
            "output": f"{size_text(self.output_bytes)} before compression, {self.layout}",
            "time": f"about {duration_text(self.seconds)}",
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


@dataclass(frozen=True)
class FolderOutlook:
    """What a run over images of several sizes will take, to be shown."""

    plans: list[Plan]  # of each image
    largest: Plan  # takes the most memory
    views: int
    output_bytes: int  # as in `Outlook`, of all images
    layout: str
    seconds: float
    network: str

    def __str__(self) -> str:
        tiles = [plan.tiles for plan in self.plans]
        whole = sum(each.flops / each.redundancy for each in tiles)
        redundancy = sum(each.flops for each in tiles) / whole
        largest = self.largest.tiles
        sizes = range_of([(each.height, each.width) for each in tiles])
        lines = {
            "images": f"{len(tiles)} of {sizes} px",
            "tiles": str(sum(map(len, tiles))),
            "largest tile": f"{_by(largest.largest)} px of a window of {_by(largest.window)} px",
            "views": f"{self.views} ({self.largest.batch} at once)",
            "redundant compute": f"{redundancy:.3f} x one pass over each whole image",
            "network": self.network,
            "peak memory": f"{size_text(self.largest.peak_bytes)}, of the image that takes most",
            "output": f"{size_text(self.output_bytes)} before compression, {self.layout}",
            "time": f"about {duration_text(self.seconds)}",
        }
        return "\n".join(f"{name:<18} {value}" for name, value in lines.items())


def estimated_seconds(predictor: OverlapTilePredictor, tiles: TilePlan, slices: int) -> float:
    """Return the seconds that the network will take, from its speed on a window."""
    cost = predictor.cost
    height, width = tiles.window
    while cost.flops(height, width) > _TRIAL_FLOPS and max(height, width) > _TRIAL_PX:
        half = geometry.window_of(
            max(height, width) // 2, predictor.depth, padding=predictor.padding
        )
        height, width = min(height, half), min(width, half)
    pixels = torch.zeros(1, height, width, cost.in_channels, device=predictor.device)
    taken = []
    with predictor.running() as runner, torch.inference_mode():
        for _ in range(3):
            begin = time.perf_counter()
            runner.network(pixels.permute(0, 3, 1, 2)).sum().item()  # waits for a GPU
            taken.append(time.perf_counter() - begin)
    windows = slices * len(predictor.views)
    return min(taken) * windows * tiles.flops / int(cost.flops(height, width))


def _by(sides: tuple[int, int]) -> str:
    return f"{sides[0]} x {sides[1]}"
