"""A stack whose prediction is planned: what it will take, and the run; one size for all slices."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unet_repro.cluster import Machines, connected
from unet_repro.errors import InputError
from unet_repro.files.block_store import BlockStore
from unet_repro.images.finished import is_finished
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.zarr_output import ZarrOutput
from unet_repro.prediction.blocks import Job
from unet_repro.prediction.local import BlockRun
from unet_repro.prediction.outputs import Destination, ZarrDestination
from unet_repro.prediction.plan import (
    Buffers,
    Outlook,
    Plan,
    estimated_seconds,
    make_plan,
)
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.progress import ProgressBar
from unet_repro.quantities import size_text


@dataclass(frozen=True)
class StackPrediction:
    """A stack, a network and what to make of them, checked and planned before anything runs."""

    source: StackReader
    predictor: OverlapTilePredictor
    destination: Destination | ZarrDestination
    buffers: Buffers
    plan: Plan
    job: Job
    machines: Machines = field(default_factory=Machines)
    model: str = ""  # the network's file, where other processes must load it

    def outlook(self) -> Outlook:
        """Return what the run will take, with the time, from a measurement of the speed."""
        slices = len(self.job.slices)
        return Outlook(
            plan=self.plan,
            slices=slices,
            views=len(self.predictor.views),
            output_bytes=self.destination.n_bytes,
            layout=self.layout,
            seconds=estimated_seconds(self.predictor, self.plan.tiles, slices),
            network=self.predictor.way,
        )

    @property
    def layout(self) -> str:
        """What the output is stored as, in words."""
        widest = self.destination.layout
        if self.job.values.kind != "instances":
            return widest
        narrow = self.destination.holding("uint16").layout
        choice = widest if narrow == widest else f"{narrow} up to 65535 instances, else {widest}"
        return f"with {self.destination.dtype} ids (of few cells less), {choice}"

    def run(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        verify: bool = False,
        progress: bool = False,
        runner: TileRunner | None = None,
        bar: ProgressBar | None = None,
    ) -> bool:
        """Predict and write; arguments and errors are those of `predict_stack`.

        A `runner` and a `bar` that are there already serve several stacks. Returns whether the
        output is complete: of an array job, other parts may be missing.
        """
        self.destination.check()
        if verify:
            check_verifiable(self.predictor)
        options = {"resume": resume, "overwrite": overwrite}
        needs = {"verify": verify, "progress": progress, "runner": runner, "bar": bar}
        if isinstance(self.destination, ZarrDestination):
            return self._run_into_zarr(self.destination, options, needs)
        return self._run_into_files(self.destination, options, needs)

    def _run_into_files(
        self, destination: Destination, options: dict[str, bool], needs: dict[str, Any]
    ) -> bool:
        if self.machines.part:
            raise InputError(
                f"{destination.path}: parts of an array job write one OME-Zarr: --out with a name "
                "that ends in .zarr is needed"
            )
        store = BlockStore(destination.path, **options, is_folder=bool(destination.names))
        with self._connected() as client, store:
            if self._is_finished(destination, store):
                return True
            job = self.job if store.record is None else self.continued(store.record)
            store.begin(
                job.record(), shape=job.shape, dtype=job.values.kept_dtype, chunks=job.chunks
            )
            return store.is_complete or self._go(job, store, client, **needs)

    def _run_into_zarr(
        self, destination: ZarrDestination, options: dict[str, bool], needs: dict[str, Any]
    ) -> bool:
        arrays = destination.arrays()
        store = ZarrOutput(destination.path, arrays, **options, joins=bool(self.machines.part))
        info = self.job.info(self.source.path.name)
        if store.is_complete_with(info):
            return True
        version = {"ngff": destination.ngff}
        record = self.job.record() | version
        with self._connected() as client:
            stored = store.claimed(record)
            job = self.job if stored == json.loads(json.dumps(record)) else self.continued(stored)
            is_scratch = job.values.kind == "instances"
            scratch = destination.arrays(job.values.kept_dtype) if is_scratch else None
            store.begin(job.record() | version, scratch)
            try:
                return self._go(job, store, client, **needs)
            except InputError:  # such as units that are missing, as they went when it was complete
                if store.is_done_by_another(info):
                    return True
                raise

    def _connected(self) -> AbstractContextManager[Any]:
        """Give a client of other processes, if such compute: before anything is begun."""
        gpus = torch.cuda.device_count() if self.job.device == "cuda" else 0
        return connected(self.machines, gpus)

    def _go(
        self,
        job: Job,
        store: BlockStore | ZarrOutput,
        client: Any,
        *,
        verify: bool,
        progress: bool,
        runner: TileRunner | None,
        bar: ProgressBar | None,
    ) -> bool:
        run = BlockRun(
            job,
            self.source,
            self.predictor,
            store,
            self.destination,
            self.machines,
            self.model,
            self.buffers.cache_bytes,
        )
        is_needed = runner is None and (verify or not self.machines.are_others)
        options: dict[str, Any] = {
            "client": client,
            "verify": verify,
            "progress": progress,
            "bar": bar,
        }
        with self.predictor.running() if is_needed else nullcontext(runner) as ready:
            return run.go(runner=ready, **options)

    def _is_finished(self, destination: Destination, store: BlockStore) -> bool:
        files = [store.target / name for name in destination.names] or [store.target]
        info = self.job.info(self.source.path.name)
        return is_finished(store, dict.fromkeys(files, info), channels=destination.planes)

    def continued(self, record: dict[str, Any]) -> Job:
        """Return the job with the tiles of an unfinished run: another memory may have made them."""
        if self.predictor.tile:
            return self.job
        found = _plan_of(record)
        if found is None:
            raise InputError(
                f"{self.destination.path}: its unfinished run is damaged; --overwrite without "
                "--resume begins anew"
            )
        strides, batch = found
        rows, columns = self.job.rows, self.job.columns
        plan = make_plan(
            self.predictor,
            self.buffers,
            rows=rows,
            columns=columns,
            memory=2**62,
            strides=strides,
            batch=batch,
        )
        given = self.job.settings.memory_bytes
        if given is not None and plan.peak_bytes > given:
            raise InputError(
                f"{self.destination.path}: was begun with tiles that take "
                f"{size_text(plan.peak_bytes)}, more than {size_text(given)}; give that much "
                "memory, or --overwrite without --resume to begin anew"
            )
        return replace(self.job, block=plan.block, strides=plan.tiles.strides, batch=plan.batch)


def check_verifiable(predictor: OverlapTilePredictor) -> None:
    """Raise `InputError` where other windows give other results."""
    if predictor.bilinear:
        raise InputError(
            "bilinear upsampling depends on the window's size: its tiles cannot be verified"
        )


def _plan_of(record: dict[str, Any]) -> tuple[tuple[int, int], int] | None:
    """Return the strides and the batch of a record, None where they are no whole numbers."""
    plan = record.get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("strides"), list):
        return None
    numbers = [*plan["strides"], plan.get("batch")]
    if len(numbers) != 3 or any(type(number) is not int or number < 1 for number in numbers):
        return None
    return (numbers[0], numbers[1]), numbers[2]
