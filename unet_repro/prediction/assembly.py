"""The output, put together from kept blocks: files written as they arrive, or a finished image."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.files.block_store import BlockStore
from unet_repro.images.zarr_output import ZarrOutput
from unet_repro.prediction.blocks import Job
from unet_repro.prediction.outputs import Bands, Destination, ZarrDestination

if TYPE_CHECKING:
    from unet_repro.prediction.instance_pages import InstancePages


class FileAssembly:
    """Writes files band by band as their blocks become complete, from the kept blocks alone.

    A thread of its own does it; after a kill it begins anew. `missing` are the blocks that are not
    there yet.
    """

    def __init__(
        self,
        job: Job,
        store: BlockStore,
        destination: Destination,
        source: Path,
        missing: NDArray[Any],
    ) -> None:
        self._job, self._store, self._destination = job, store, destination
        self._name = source.name
        self._arrivals = _Arrivals(set(range(len(job))) - set(missing.tolist()))

    def __enter__(self) -> FileAssembly:
        self._pool = ThreadPoolExecutor(1)
        self._written = self._pool.submit(self._write)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._arrivals.give_up()
        self._pool.shutdown()

    def add(self, number: int) -> None:
        """Say that a block is there."""
        if self._written.done():
            self._written.result()  # it cannot be complete: it has failed
        self._arrivals.add(number)

    def finish(self, client: Any) -> None:
        """Put the output in place, when all blocks are there."""
        self._store.finish(lambda path: self._written.result())

    def _write(self) -> None:
        _, down, across = self._job.grid

        def bands(k: int, plane: int) -> Iterator[NDArray[Any]]:
            for i in range(down):
                first = (k * down + i) * across
                numbers = range(first, first + across)
                self._arrivals.wait_for(numbers)
                read = (self._store.blocks.read(number) for number in numbers)
                yield np.concatenate([block[0, plane] for block in read], axis=1)

        destination = self._destination
        try:
            written: Bands = bands
            if self._job.values.kind == "instances":
                pages = _instance_pages(self._job, bands)
                destination, written = destination.holding(pages.dtype), pages.bands
            destination.write(self._store.whole, written, info=self._job.info(self._name))
        except OSError as error:
            raise self._store.unwritable(error) from error


def _instance_pages(job: Job, bands: Bands) -> InstancePages:
    """Return pages of instances made of the values of the blocks."""
    # here: what compiles its loops takes most of a second to load
    from unet_repro.prediction.instance_pages import InstancePages

    settings = job.settings
    assert settings.grow != "auto"
    return InstancePages(lambda k: bands(k, 0), len(job.slices), settings.min_size, settings.grow)


class ZarrAssembly:
    """Completes an OME-Zarr image, whose level 0 the blocks are; of instances it makes level 0."""

    def __init__(
        self, job: Job, store: ZarrOutput, destination: ZarrDestination, source: Path
    ) -> None:
        self._job, self._store, self._destination = job, store, destination
        self._name = source.name

    def __enter__(self) -> ZarrAssembly:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def add(self, number: int) -> None:
        """Do nothing: the block is in place."""

    def finish(self, client: Any) -> None:
        """Make the other levels, with the workers of a client or here, and the image."""
        if self._job.values.kind == "instances":
            self._write_ids(_instance_pages(self._job, self._bands))
        facts = self._destination.facts(self._job.values, self._job.origin_px)
        self._store.finish(facts, self._job.info(self._name), client)

    def _bands(self, k: int, plane: int) -> Iterator[NDArray[Any]]:
        _, down, across = self._job.grid
        for i in range(down):
            first = (k * down + i) * across
            numbers = range(first, first + across)
            blocks = [self._block(number) for number in numbers]
            yield np.concatenate([block[plane] for block in blocks], axis=1)

    def _block(self, number: int) -> NDArray[Any]:
        block = self._job.block_of(number)
        shape = -1, len(block.rows), len(block.columns)
        return self._store.blocks.read(number).reshape(shape)

    def _write_ids(self, pages: InstancePages) -> None:
        """Write level 0, as many rows of it at a time as a shard is high."""
        level0 = self._store.level0(pages.dtype)
        level0.missing(heals=True)
        _, down, across = self._job.grid
        height, width = self._job.block
        for k in range(len(self._job.slices)):
            rows = in_rows(pages.bands(k), height)
            for i, band in enumerate(rows):
                for j in range(across):
                    number = (k * down + i) * across + j
                    level0.write(number, band[:, j * width : (j + 1) * width])


def in_rows(bands: Iterator[NDArray[Any]], height: int) -> Iterator[NDArray[Any]]:
    """Yield bands of one height, the last one maybe lower, of bands of any heights.

    Examples
    --------
    >>> [len(band) for band in in_rows(iter([np.zeros((5, 1)), np.zeros((2, 1))]), 3)]
    [3, 3, 1]
    """
    held: list[NDArray[Any]] = []
    rows = 0
    for band in bands:
        held.append(band)
        rows += len(band)
        while rows >= height:
            joined = np.concatenate(held)
            yield joined[:height]
            held, rows = [joined[height:]], rows - height
    if rows:
        yield np.concatenate(held)


class _Arrivals:
    """Which blocks are there; another thread can wait for some."""

    def __init__(self, there: set[int]) -> None:
        self._there = there
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
