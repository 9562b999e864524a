"""The blocks of a prediction, computed here or in another process, with no more than that needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from unet_repro.cluster import Run
from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.images.stack_reader import StackReader
from unet_repro.network.device import choose_device
from unet_repro.network.model_file import load_model, network_sha256
from unet_repro.prediction.blocks import (
    Block,
    Job,
    Pixels,
    predict_block,
    read_block,
)
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.threads import in_order


@dataclass(frozen=True)
class Blocks:
    """Computes blocks: one thread reads ahead, the caller's computes, one keeps what is done."""

    job: Job
    source: StackReader
    runner: TileRunner
    kept: BlockArray

    def run(self, numbers: Iterable[int]) -> Iterator[int]:
        """Compute blocks and keep them; yield their numbers. Those that are there are left."""
        missing = (number for number in numbers if not self.kept.has(number))
        for block in in_order(self._keep, self._computed(missing), 1):
            yield block.number

    def _computed(self, numbers: Iterable[int]) -> Iterator[tuple[Block, NDArray[Any]]]:
        """Yield the values of blocks, while the next ones are read."""

        def read(block: Block) -> tuple[Block, Pixels]:
            if block.index[1:] == (0, 0):
                self.source.check_unchanged(block.z)
            return block, read_block(self.source, self.runner, self.job, block)

        for block, pixels in in_order(read, map(self.job.block_of, numbers), 1):
            yield block, predict_block(self.source, self.runner, self.job, block, pixels)

    def _keep(self, computed: tuple[Block, NDArray[Any]]) -> Block:
        block, values = computed
        self.kept.write(block.number, values)
        return block


@dataclass(frozen=True)
class PredictionWork:
    """What another process needs to compute blocks (`cluster.Work`)."""

    source: str
    model: str
    job: Job
    kept: BlockArray
    cache_bytes: int
    channels: int

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        """Load the network and open the source, which must be those of the job."""
        if threads:
            torch.set_num_threads(threads)
        settings = self.job.settings
        precision, backend = settings.precision, settings.backend
        assert precision != "auto" and backend != "auto"  # a job has chosen
        network = load_model(self.model, device=choose_device(self.job.device))
        if network_sha256(network) != self.job.model_sha256:
            raise InputError(f"{self.model}: holds another network than when the job was begun")
        predictor = OverlapTilePredictor(
            network, average=settings.average, precision=precision, backend=backend
        )
        with (
            StackReader(
                self.source,
                channels=self.channels,
                axes=settings.axes or None,
                level=settings.level,
                cache_bytes=self.cache_bytes,
            ) as source,
            predictor.running() as runner,
        ):
            if source.fingerprint() != self.job.source:
                raise InputError(f"{self.source}: is not what it was when the job was begun")
            yield Blocks(self.job, source, runner, self.kept).run
