"""Predict stacks larger than memory (Sec. 2, Fig. 2): streamed, resumable, planned beforehand.

Settings, plan, job, blocks, store, output: each step makes the next one's input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save

from unet_repro.config import keywords_from
from unet_repro.errors import InputError, note
from unet_repro.files.atomic import check_apart
from unet_repro.files.block_store import BlockStore
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.stack_reader import StackReader
from unet_repro.network.device import choose_precision
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model
from unet_repro.prediction.blocks import Job
from unet_repro.prediction.local import LocalRun
from unet_repro.prediction.outputs import Destination, names_in_folder
from unet_repro.prediction.plan import (
    Buffers,
    Outlook,
    Plan,
    estimated_seconds,
    make_plan,
    size_text,
)
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.values import Values

PathLike = str | os.PathLike[str]

_CACHE_BYTES = 2**26  # of decoded parts of pages


@keywords_from(PredictionSettings)
def predict_stack(
    source: PathLike,
    model: UNet | PathLike,
    out: PathLike,
    *,
    settings: PredictionSettings,
    resume: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Path:
    """Segment a stack of any size, tile by tile, into a TIFF file or a folder of images.

    Reading, computing and writing overlap. Memory is that of the plan, whatever the number of
    slices, and of pages larger than memory only the parts at work are read. Killed at any moment,
    it goes on with `resume`, and the result is the same to the byte (on the same machine, as far as
    the network's own arithmetic is, and unless memory ran out and tiles were halved).

    Parameters
    ----------
    source : path-like
        A TIFF stack, or a folder of TIFF or PNG images in natural order, with as many channels as
        the network has inputs.
    model : UNet or path-like
        The network, or a ``model.safetensors``; it runs where it is.
    out : path-like
        A TIFF file (``.tif``); or, if `source` is a folder, a folder: a file of the same name for
        each image.
    settings
        What to make of it; or its fields as keywords, ``predict_stack(..., kind="uint8")``.
    resume
        Go on with what an interrupted or killed call has left, if it left anything.
    overwrite
        Replace an existing output. Of a folder only if it holds nothing but files of these names.
    verify
        Before the output gets its name, compute a few random places again with other windows; a
        difference beyond rounding is an error, and the output does not appear.
    progress
        Show a bar that counts tiles, on standard error.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        An option or a file that cannot be used, damaged pixels, pixels that are not finite, a
        source that changes while it is read, a full disk. What was done stays, to be resumed.
    """
    with prepared(source, model, out, settings) as prediction:
        prediction.run(resume=resume, overwrite=overwrite, verify=verify, progress=progress)
    return Path(out)


@contextmanager
def prepared(
    source: PathLike, model: UNet | PathLike, out: PathLike, settings: PredictionSettings
) -> Iterator[StackPrediction]:
    """Open a stack and a network and check that they, the settings and the output go together.

    Arguments and errors are those of `predict_stack`; nothing is written yet.
    """
    network = model if isinstance(model, UNet) else load_model(model)
    values = Values(settings.kind, settings.dtype, settings.threshold, network.config.classes)
    device = next(network.parameters()).device
    predictor = OverlapTilePredictor(
        network,
        settings.tile_px,
        average=settings.average,
        precision=choose_precision(settings.precision, device),
        backend=settings.backend,
    )
    memory = settings.memory_bytes or predictor.default_memory()
    cache_bytes = min(_CACHE_BYTES, memory // 8)
    with StackReader(
        source, channels=network.config.in_channels, cache_bytes=cache_bytes
    ) as reader:
        slices = settings.slices(reader.shape[0])
        rows, columns = settings.region(*reader.shape[1:])
        destination = Destination(
            Path(out),
            _names(Path(out), reader, slices, values),
            (len(slices), len(rows), len(columns)),
            reader.depth_axes,
            values.planes,
            values.dtype,
            read_calibration(reader.path),
            settings.compression,
        )
        if len(slices) < reader.shape[0] and len(reader.depth_axes) > 1:
            names = " x ".join(axis for axis, _ in reader.depth_axes)
            note(f"{out}: a part of the slices of {names} is written as plain slices, axes ZYX")
        buffers = Buffers.of(reader, cache_bytes, destination, network.config.classes)
        plan = make_plan(predictor, buffers, rows=rows, columns=columns, memory=memory)
        job = Job(
            source=reader.fingerprint(),
            model_sha256=_sha256(network),
            settings=replace(settings, precision=predictor.precision),
            device=predictor.device.type,
            values=values,
            slices=slices,
            tiles=plan.tiles,
            batch=plan.batch,
        )
        yield StackPrediction(reader, predictor, destination, buffers, plan, job)


def _sha256(network: UNet) -> str:
    state = network.state_dict().items()
    weights = {name: value.detach().contiguous().cpu() for name, value in state}
    return hashlib.sha256(save(weights)).hexdigest()


def _names(out: Path, source: StackReader, slices: range, values: Values) -> tuple[str, ...]:
    """Return the files to make in a folder, none for one file, or refuse the place."""
    names: tuple[str, ...] = ()
    if source.path.is_dir():
        names = names_in_folder(out, [source.names[z] for z in slices], values)
    elif out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{out}: a name that ends in .tif is needed for a stack")
    check_apart(out, source.path)
    return names


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
            layout=self.destination.layout,
            seconds=estimated_seconds(self.predictor, self.plan.tiles, slices),
        )

    def run(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        verify: bool = False,
        progress: bool = False,
    ) -> None:
        """Predict and write; arguments and errors are those of `predict_stack`."""
        self.destination.check()
        if verify and self.predictor.bilinear:
            raise InputError(
                "bilinear upsampling depends on the window's size: its tiles cannot be verified"
            )
        out, is_folder = self.destination.path, bool(self.destination.names)
        with BlockStore(out, resume=resume, overwrite=overwrite, is_folder=is_folder) as store:
            if resume and self._is_complete(store.target):
                store.is_complete = True
                return
            job = self.job if store.record is None else self._continued(store.record)
            store.begin(job.record(), shape=job.shape, dtype=job.values.dtype, chunks=job.chunks)
            if store.is_complete:
                return
            run = LocalRun(job, self.source, self.predictor, store, self.destination)
            run.go(verify=verify, progress=progress)

    def _is_complete(self, target: Path) -> bool:
        """Tell whether the output is there and made of the same; PNG files cannot tell."""
        names = [name for name in self.destination.names if not name.lower().endswith(".png")]
        if names:
            target = target / names[0]
        elif target.is_dir():
            return False
        return target.is_file() and read_info(target) == self.job.info(self.source.path.name)

    def _continued(self, record: dict[str, Any]) -> Job:
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


def _plan_of(record: dict[str, Any]) -> tuple[tuple[int, int], int] | None:
    """Return the strides and the batch of a record, None where they are no whole numbers."""
    plan = record.get("plan")
    if not isinstance(plan, dict) or not isinstance(plan.get("strides"), list):
        return None
    numbers = [*plan["strides"], plan.get("batch")]
    if len(numbers) != 3 or any(type(number) is not int or number < 1 for number in numbers):
        return None
    return (numbers[0], numbers[1]), numbers[2]
