"""A prediction of a stack under way: tiles are read ahead, computed, kept, and put together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unet_repro.errors import InputError
from unet_repro.files.resumable import Parts
from unet_repro.images.stack_reader import StackReader
from unet_repro.network import geometry
from unet_repro.network.geometry import Tile
from unet_repro.prediction.outputs import Destination, Values
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.regions import Region
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.tiling import TilePlan
from unet_repro.prediction.verify import check_values
from unet_repro.threads import in_order

TILES_AT_WORK = 5  # at once in memory: two read ahead, one computed, two to be written
_CHECKS, _CHECKED_PX = 3, 64  # places that `verify` looks at, and their side


@dataclass(frozen=True)
class StackRun:
    """Everything that a run needs; every part is a tile of a slice, numbered slice by slice.

    One thread reads ahead, the caller's computes, one keeps the finished tiles, and one writes the
    output as its bands become complete, from the kept tiles alone: after a kill it begins anew.
    """

    source: StackReader
    slices: range
    predictor: OverlapTilePredictor
    plan: TilePlan
    batch: int
    values: Values
    destination: Destination
    parts: Parts
    info: str

    def go(self, *, verify: bool, progress: bool) -> None:
        """Compute the tiles that are not there yet, and put the output in place."""
        total = len(self.slices) * len(self.plan)
        missing = [number for number in range(total) if not self.parts.has(number)]
        arrivals = _Arrivals(set(range(total)) - set(missing))
        with ThreadPoolExecutor(1) as pool, self.predictor.running() as runner:
            try:
                written = pool.submit(self._assemble, arrivals)
                bar = tqdm(
                    total=total, initial=total - len(missing), unit="tile", disable=not progress
                )
                with bar:
                    tiles = self._computed(runner, missing, written)
                    for number in in_order(self._keep, tiles, 1):
                        arrivals.add(number)
                        bar.update()
                self.source.check_unchanged()
                if verify:
                    self._verify(runner)
                self.parts.finish(lambda path: written.result())
            except BaseException:
                arrivals.give_up()
                raise

    def _computed(
        self, runner: TileRunner, numbers: list[int], written: Future[None]
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield the values of tiles, while the next ones are read."""
        regions = in_order(lambda number: self._fetch(runner, number), numbers, 1)
        for number, region in zip(numbers, regions):
            if written.done():
                written.result()  # it cannot be complete: it has failed
            z = self._place(number)[0]

            def fetch(row: Tile, column: Tile, z: int = z) -> Region:
                return self._fetch_tile(runner, z, row, column)

            values = runner.compute(region, self.values.finish, fetch, batch=self.batch)
            yield number, self.values.of(values)

    def _keep(self, tile: tuple[int, NDArray[Any]]) -> int:
        number, values = tile
        self.parts.put(number, values)
        return number

    def _place(self, number: int) -> tuple[int, Tile, Tile]:
        """Return the slice, in the source, and the tile of a part."""
        index, tile = divmod(number, len(self.plan))
        row, column = divmod(tile, len(self.plan.columns))
        return self.slices[index], self.plan.rows[row], self.plan.columns[column]

    def _fetch(self, runner: TileRunner, number: int) -> Region:
        z, row, column = self._place(number)
        if number % len(self.plan) == 0:
            self.source.check_unchanged(z)
        return self._fetch_tile(runner, z, row, column)

    def _fetch_tile(self, runner: TileRunner, z: int, row: Tile, column: Tile) -> Region:
        def read(rows: slice, columns: slice) -> NDArray[Any]:
            return self.source.read_region(z, rows, columns)

        size = self.plan.height, self.plan.width
        name = f"{self.source.path}: {self.source.names[z]}"
        return runner.fetch(read, size, row, column, name=name)

    def _assemble(self, arrivals: _Arrivals) -> None:
        """Write the output to its private place, band by band as the tiles arrive."""

        def bands(index: int, plane: int) -> Iterator[NDArray[Any]]:
            first = index * len(self.plan)
            for row in self.plan.rows:
                numbers = range(first, first + len(self.plan.columns))
                first = numbers.stop
                arrivals.wait_for(numbers)
                tiles = zip(numbers, self.plan.columns)
                yield np.concatenate([self._kept(n, row, c)[plane] for n, c in tiles], axis=1)

        try:
            self.destination.write(self.parts.whole, bands, info=self.info, workers=1)
        except OSError as error:
            raise InputError(
                f"{self.parts.target}: cannot be written: {error.strerror or error}; what is done "
                "stays, --resume goes on"
            ) from error

    def _kept(self, number: int, row: Tile, column: Tile) -> NDArray[Any]:
        shape = (self.values.planes, row.stop - row.start, column.stop - column.start)
        return self.parts.get(number, shape)

    def _verify(self, runner: TileRunner) -> None:
        """Compute random places again in windows of their own; raise where the result differs."""
        random = np.random.default_rng()
        total = len(self.slices) * len(self.plan)
        for number in random.choice(total, size=min(_CHECKS, total), replace=False):
            z, row, column = self._place(int(number))
            place = [_part_of(tile, random) for tile in (row, column)]
            region = self._fetch_tile(runner, z, *self._window_around(place))

            def fetch(row: Tile, column: Tile, z: int = z) -> Region:
                return self._fetch_tile(runner, z, row, column)

            again = runner.compute(region, self.values.finish, fetch)
            kept = self._kept(int(number), row, column)
            rows, columns = (
                slice(part.start - tile.start, part.stop - tile.start)
                for part, tile in zip(place, (row, column))
            )
            where = (
                f"slice {z}, y = {place[0].start}:{place[0].stop}, "
                f"x = {place[1].start}:{place[1].stop}"
            )
            precision = self.predictor.precision
            check_values(kept[:, rows, columns], again, self.values, precision, where)

    def _window_around(self, place: list[range]) -> tuple[Tile, Tile]:
        """Return a tile that is this place alone, in the smallest window that has room for it."""
        depth, padding = self.predictor.depth, self.predictor.padding
        grid = geometry.alignment(depth)
        tiles = [
            geometry.plan_axis(
                size,
                (-(-len(part) // grid) + 2) * grid,  # room for any position on the grid
                depth,
                padding=padding,
                start=part.start,
                stop=part.stop,
                is_reversed=len(self.predictor.views) > 1,
            )[0]
            for size, part in zip((self.plan.height, self.plan.width), place)
        ]
        return tiles[0], tiles[1]


def _part_of(tile: Tile, random: np.random.Generator) -> range:
    """Return a random part of a tile along an axis."""
    length = min(_CHECKED_PX, tile.stop - tile.start)
    start = int(random.integers(tile.start, tile.stop - length, endpoint=True))
    return range(start, start + length)


class _Arrivals:
    """Which parts are there; another thread can wait for some."""

    def __init__(self, numbers: set[int]) -> None:
        self._there = numbers
        self._is_given_up = False
        self._change = threading.Condition()

    def add(self, number: int) -> None:
        with self._change:
            self._there.add(number)
            self._change.notify_all()

    def give_up(self) -> None:
        """Let whoever waits, or asks again, fail."""
        with self._change:
            self._is_given_up = True
            self._change.notify_all()

    def wait_for(self, numbers: range) -> None:
        with self._change:
            self._change.wait_for(lambda: self._is_given_up or self._there.issuperset(numbers))
            if self._is_given_up:
                raise RuntimeError("the prediction has ended")
