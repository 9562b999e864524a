"""A prediction on this machine: blocks are read ahead, computed, kept, and put together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.files.block_store import BlockStore, Index
from unet_repro.images.stack_reader import StackReader
from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.blocks import Block, Job, averaged_block, predict_block, read_block
from unet_repro.prediction.instance_pages import InstancePages
from unet_repro.prediction.outputs import Destination
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.values import check_values
from unet_repro.progress import ProgressBar
from unet_repro.threads import in_order

_CHECKS, _CHECKED_PX = 3, 64  # places that are verified, and their side


@dataclass(frozen=True)
class LocalRun:
    """Everything that a run needs.

    One thread reads ahead, the caller's computes, one keeps the finished blocks, and one writes
    the output as its bands become complete, from the kept blocks alone: after a kill it begins
    anew.
    """

    job: Job
    source: StackReader
    predictor: OverlapTilePredictor
    store: BlockStore
    destination: Destination

    def go(
        self, *, runner: TileRunner, verify: bool, progress: bool, bar: ProgressBar | None = None
    ) -> None:
        """Compute the blocks that are not there yet, and put the output in place.

        They are counted on `bar`, which goes on afterwards, or else on one of their own.
        """
        blocks = self.job.blocks()
        by_place: dict[Index, Block] = {block.place: block for block in blocks}
        missing = [by_place[place] for place in self.store.missing(by_place)]
        arrivals = _Arrivals(set(by_place) - {block.place for block in missing})
        with ThreadPoolExecutor(1) as pool:
            try:
                written = pool.submit(self._assemble, arrivals)
                done = len(blocks) - len(missing)
                own = ProgressBar(len(blocks), initial=done, unit="tile", is_shown=progress)
                if bar:
                    bar.update(done)
                with nullcontext(bar) if bar else own as counter:
                    computed = self._computed(runner, missing, written)
                    for block in in_order(self._keep, computed, 1):
                        arrivals.add(block.place)
                        counter.update()
                self.source.check_unchanged()
                if verify:
                    self._verify(runner, blocks)
                self.store.finish(lambda path: written.result())
            except BaseException:
                arrivals.give_up()
                raise

    def _computed(
        self, runner: TileRunner, blocks: list[Block], written: Future[None]
    ) -> Iterator[tuple[Block, NDArray[Any]]]:
        """Yield the values of blocks, while the next ones are read."""

        def read(block: Block) -> Any:
            if block.index[1:] == (0, 0):
                self.source.check_unchanged(block.z)
            return read_block(self.source, runner, block)

        for block, region in zip(blocks, in_order(read, blocks, 1)):
            if written.done():
                written.result()  # it cannot be complete: it has failed
            yield block, predict_block(self.source, runner, self.job, block, region)

    def _keep(self, computed: tuple[Block, NDArray[Any]]) -> Block:
        block, values = computed
        self.store.write(block.place, values[None])
        return block

    def _assemble(self, arrivals: _Arrivals) -> None:
        """Write the output to its private place, band by band as the blocks arrive."""

        def bands(k: int, plane: int) -> Iterator[NDArray[Any]]:
            for i in range(len(self.job.tiles.rows)):
                places: list[Index] = [(k, 0, i, j) for j in range(len(self.job.tiles.columns))]
                arrivals.wait_for(places)
                yield np.concatenate([self.store.read(place)[0, plane] for place in places], axis=1)

        destination, pages, settings = self.destination, bands, self.job.settings
        try:
            if self.job.values.kind == "instances":
                assert settings.grow != "auto"
                instances = InstancePages(
                    lambda k: bands(k, 0), len(self.job.slices), settings.min_size, settings.grow
                )
                destination, pages = destination.holding(instances.dtype), instances.bands
            destination.write(self.store.whole, pages, info=self.job.info(self.source.path.name))
        except OSError as error:
            raise self.store.unwritable(error) from error

    def _verify(self, runner: TileRunner, blocks: list[Block]) -> None:
        """Compute random places again in windows of their own; raise where the result differs."""
        random = np.random.default_rng()
        for number in random.choice(len(blocks), size=min(_CHECKS, len(blocks)), replace=False):
            block = blocks[number]
            rows, columns = (_part_of(tile, random) for tile in (block.rows, block.columns))
            place = Block(block.index, block.z, *self._window_around(rows, columns))
            again = averaged_block(self.source, runner, self.job, place)
            kept = self.store.read(block.place)[
                0,
                :,
                rows.start - block.rows.start : rows.stop - block.rows.start,
                columns.start - block.columns.start : columns.stop - block.columns.start,
            ]
            check_values(kept, again, self.job.values, self.predictor.precision, str(place))

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


def _part_of(tile: Tile, random: np.random.Generator) -> range:
    """Return a random part of a tile along an axis."""
    length = min(_CHECKED_PX, tile.stop - tile.start)
    start = int(random.integers(tile.start, tile.stop - length, endpoint=True))
    return range(start, start + length)


class _Arrivals:
    """Which blocks are there; another thread can wait for some."""

    def __init__(self, there: set[Index]) -> None:
        self._there = there
        self._is_given_up = False
        self._change = threading.Condition()

    def add(self, place: Index) -> None:
        with self._change:
            self._there.add(place)
            self._change.notify_all()

    def give_up(self) -> None:
        """Let whoever waits, or asks again, fail."""
        with self._change:
            self._is_given_up = True
            self._change.notify_all()

    def wait_for(self, places: list[Index]) -> None:
        with self._change:
            self._change.wait_for(lambda: self._is_given_up or self._there.issuperset(places))
            if self._is_given_up:
                raise RuntimeError("the prediction has ended")
