"""A stack whose prediction is planned: what it will take, and the run; one size for all slices."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unet_repro.errors import InputError
from unet_repro.files.block_store import BlockStore
from unet_repro.images.calibration import read_info
from unet_repro.images.stack_reader import StackReader
from unet_repro.prediction.blocks import Job
from unet_repro.prediction.local import LocalRun
from unet_repro.prediction.outputs import Destination
from unet_repro.prediction.plan import (
    Buffers,
    Outlook,
    Plan,
    estimated_seconds,
    make_plan,
    size_text,
)
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.progress import ProgressBar


@dataclass(frozen=True)
class StackPrediction:
    """A stack, a network and what to make of them, checked and planned before anything runs."""

    source: StackReader
    predictor: OverlapTilePredictor
    destination: Destination
    buffers: Buffers
    plan: Plan
    job: Job

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
    ) -> None:
        """Predict and write; arguments and errors are those of `predict_stack`.

        A `runner` and a `bar` that are there already serve several stacks.
        """
        self.destination.check()
        if verify:
            check_verifiable(self.predictor)
        out, is_folder = self.destination.path, bool(self.destination.names)
        with BlockStore(out, resume=resume, overwrite=overwrite, is_folder=is_folder) as store:
            if resume and self._is_complete(store.target):
                store.is_complete = True
                return
            job = self.job if store.record is None else self.continued(store.record)
            store.begin(
                job.record(), shape=job.shape, dtype=job.values.kept_dtype, chunks=job.chunks
            )
            if store.is_complete:
                return
            run = LocalRun(job, self.source, self.predictor, store, self.destination)
            with nullcontext(runner) if runner else self.predictor.running() as ready:
                run.go(runner=ready, verify=verify, progress=progress, bar=bar)

    def _is_complete(self, target: Path) -> bool:
        """Tell whether the output is there and made of the same."""
        files = [target / name for name in self.destination.names] or [target]
        info = self.job.info(self.source.path.name)
        return all(file.is_file() and read_info(file) == info for file in files)

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
        rows, columns = self.job.settings.region(*self.source.shape[1:])
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
        return replace(self.job, tiles=plan.tiles, batch=plan.batch)


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
