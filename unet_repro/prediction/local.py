"""A prediction from its missing blocks, by whoever computes them, to the output in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.cluster import Machines, compute, threads_each
from unet_repro.files.block_store import BlockStore
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.zarr_output import ZarrOutput
from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.assembly import FileAssembly, ZarrAssembly
from unet_repro.prediction.block_work import Blocks, PredictionWork
from unet_repro.prediction.blocks import (
    Block,
    Job,
    averaged_tile,
)
from unet_repro.prediction.outputs import Destination, ZarrDestination
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.values import check_values
from unet_repro.progress import ProgressBar

_CHECKS, _CHECKED_PX = 3, 64  # places that are verified, and their side


@dataclass(frozen=True)
class BlockRun:
    """Everything that a run needs; `model` is the network's file, where others must load it."""

    job: Job
    source: StackReader
    predictor: OverlapTilePredictor
    store: BlockStore | ZarrOutput
    destination: Destination | ZarrDestination
    machines: Machines = field(default_factory=Machines)
    model: str = ""
    cache_bytes: int = 0

    def go(
        self,
        *,
        runner: TileRunner | None,
        client: Any,
        verify: bool,
        progress: bool,
        bar: ProgressBar | None = None,
    ) -> bool:
        """Compute the blocks that are not there yet, and put the output in place.

        The workers of a client do it, or this process. They are counted on `bar`, which goes on
        afterwards, or else on one of their own. Returns whether the output is complete: parts of it
        may be other processes'.
        """
        missing = self.store.blocks.missing(heals=True)
        share = self.machines.share(len(self.job))
        mine = missing[(missing >= share.start) & (missing < share.stop)]
        done = len(share) - len(mine)
        own = ProgressBar(len(share), initial=done, unit="tile", is_shown=progress)
        if bar:
            bar.update(done)
        with self._assembly(missing) as assembly:
            with nullcontext(bar) if bar else own as counter:
                for number in self._done(runner, client, mine):
                    assembly.add(number)
                    counter.update()
            self.source.check_unchanged()
            if self.machines.part and len(self.store.blocks.missing()):
                return False
            if verify:
                assert runner is not None
                self._verify(runner)
            assembly.finish(client)
        return True

    def _assembly(self, missing: NDArray[Any]) -> FileAssembly | ZarrAssembly:
        if isinstance(self.store, ZarrOutput):
            assert isinstance(self.destination, ZarrDestination)
            return ZarrAssembly(self.job, self.store, self.destination, self.source.path)
        assert isinstance(self.destination, Destination)
        return FileAssembly(self.job, self.store, self.destination, self.source.path, missing)

    def _done(self, runner: TileRunner | None, client: Any, numbers: NDArray[Any]) -> Iterator[int]:
        if client is None:
            assert runner is not None
            yield from Blocks(self.job, self.source, runner, self.store.blocks).run(numbers)
            return
        work = PredictionWork(
            str(self.source.path),
            self.model,
            self.job,
            self.store.blocks,
            self.cache_bytes,
            self.source.channels,
        )
        yield from compute(
            client,
            work,
            numbers,
            what=str(self.destination.path),
            name=lambda number: f"{self.job.block_of(number)} (unit {number})",
            threads=threads_each(self.machines),
        )

    def _verify(self, runner: TileRunner) -> None:
        """Compute random places again in windows of their own; raise where the result differs."""
        random, job = np.random.default_rng(), self.job
        for number in random.choice(len(job), size=min(_CHECKS, len(job)), replace=False):
            block = job.block_of(number)
            rows, columns = (_part_of(side, random) for side in (block.rows, block.columns))
            window = self._window_around(rows, columns)
            again = averaged_tile(self.source, runner, job, block.z, *window)
            height, width = len(block.rows), len(block.columns)
            kept = self.store.blocks.read(block.number).reshape(-1, height, width)[
                :,
                rows.start - block.rows.start : rows.stop - block.rows.start,
                columns.start - block.columns.start : columns.stop - block.columns.start,
            ]
            place = Block(block.number, block.index, block.z, rows, columns)
            check_values(kept, again, job.values, self.predictor.precision, str(place))

    def _window_around(self, rows: range, columns: range) -> tuple[Tile, Tile]:
        """Return a tile that is this place alone, in the smallest window that has room for it."""
        predictor, grid = self.predictor, geometry.alignment(self.predictor.depth)
        down, across = (
            geometry.plan_axis(
                size,
                (-(-len(part) // grid) + 2) * grid,  # room for any position on the grid
                predictor.depth,
                padding=predictor.padding,
                start=part.start,
                stop=part.stop,
                is_reversed=len(predictor.views) > 1,
            )[0]
            for size, part in zip(self.source.shape[1:], (rows, columns))
        )
        return down, across


def _part_of(side: range, random: np.random.Generator) -> range:
    """Return a random part of a block along an axis."""
    length = min(_CHECKED_PX, len(side))
    start = int(random.integers(side.start, side.stop - length, endpoint=True))
    return range(start, start + length)
