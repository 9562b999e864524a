"""Predict stacks larger than memory (Sec. 2, Fig. 2): streamed, resumable, planned beforehand.

Settings, plan, job, blocks, store, output: each step makes the next one's input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from unet_repro.choices import Compression
from unet_repro.cluster import HERE, Machines
from unet_repro.config import keywords_from
from unet_repro.errors import InputError, note
from unet_repro.files.atomic import check_apart
from unet_repro.files.places import as_path, url_of
from unet_repro.images.arrays import is_folder_of_images
from unet_repro.images.calibration import read_calibration
from unet_repro.images.readers import range_of, sizes_in_folder
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import as_written
from unet_repro.images.zarr_output import is_zarr_name
from unet_repro.network import geometry
from unet_repro.network.backends import choose_backend
from unet_repro.network.device import choose_precision
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, network_sha256
from unet_repro.prediction.blocks import Job
from unet_repro.prediction.folder_prediction import FolderPrediction
from unet_repro.prediction.likeness import Likeness, spread
from unet_repro.prediction.outputs import (
    Destination,
    ZarrDestination,
    names_in_folder,
)
from unet_repro.prediction.plan import Buffers, Plan, make_plan
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.recorded import recorded_way
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.stack_prediction import StackPrediction
from unet_repro.prediction.values import Values

PathLike = str | os.PathLike[str]

_CACHE_BYTES = 2**26  # of decoded parts of pages
_LOOKED_AT = 3  # images of a folder whose grey values are compared with the network's


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
    machines: Machines = HERE,
) -> Path:
    """Segment a stack of any size, tile by tile, into a TIFF file, a folder of images or OME-Zarr.

    Reading, computing and writing overlap. Memory is that of the plan, whatever the number of
    slices, and of pages larger than memory only the parts at work are read. Killed at any moment,
    it goes on with `resume`, and the result is the same to the byte (on the same machine, as far as
    the network's own arithmetic is, and unless memory ran out and tiles were halved).

    Instances are numbered in two passes over the kept blocks of each page, the first while the
    network runs; beside the plan they take up to 40 bytes for each, or for each part of one in the
    2^20 pixels that are labelled together.

    An OME-Zarr image is written in place: what is done are the shards of it that are there, and it
    is no image before all are. So several processes can work on one, on one machine or many; each
    shard is read with what its border depends on, so that none shows.

    The images of a folder may have several sizes: they are predicted one after the other, each
    with a plan of its own, into a folder that gets its name when all are complete.

    Parameters
    ----------
    source : path-like
        A TIFF stack, a folder of TIFF or PNG images in natural order, an OME-Zarr image or a zarr
        array, on a disc or by URL, or ``file.h5:/dataset``, with as many channels as the network
        has inputs.
    model : UNet or path-like
        The network, or a ``model.safetensors``; it runs where it is.
    out : path-like
        A TIFF file (``.tif``); OME-Zarr (``.zarr``), on a disc or by URL; or, if `source` is a
        folder, a folder: a file of the same name for each image. Images of several sizes need a
        folder.
    settings
        What to make of it; or its fields as keywords, ``predict_stack(..., kind="uint8")``.
    resume
        Go on with what an interrupted or killed call has left, if it left anything. An output that
        is complete is kept, and not read again: shards of OME-Zarr that are gone, cut, or of a
        damaged index are computed anew (behind a URL those that are gone; in 0.4, which has no
        check sums, chunks of a wrong length), a TIFF or PNG that is cut is refused. Other damage
        shows when it is read.
    overwrite
        Replace an existing output. Of a folder only if it holds nothing but files of these names.
    verify
        Before the output gets its name, compute a few random places again with other windows; a
        difference beyond rounding is an error, and the output does not appear.
    progress
        Show a bar that counts tiles, on standard error.
    machines
        Which processes compute; others than this one load the network from its file.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        An option or a file that cannot be used, damaged pixels, pixels that are not finite, a
        source that changes while it is read, a full disk. What was done stays, to be resumed.

    Warns
    -----
    InputNote
        Besides the reader's: grey values, of a few places, that are far from what the network was
        trained on.
    """
    with prepared(source, model, out, settings, machines=machines, resume=resume) as prediction:
        prediction.run(resume=resume, overwrite=overwrite, verify=verify, progress=progress)
    return as_path(out)


@contextmanager
def prepared(
    source: PathLike,
    model: UNet | PathLike,
    out: PathLike,
    settings: PredictionSettings,
    *,
    machines: Machines = HERE,
    model_file: PathLike | None = None,
    resume: bool = False,
) -> Iterator[StackPrediction | FolderPrediction]:
    """Open a stack and a network and check that they, the settings and the output go together.

    Arguments and errors are those of `predict_stack`; nothing is written yet. `model_file` is that
    of a `model` that is loaded already. What is given tells what the run will take (`outlook`), and
    runs (`run`). With `resume`, and in parts of an array job, a backend or precision of "auto" is
    that of what has been begun: what is installed may be another since.
    """
    if model_file is None and not isinstance(model, UNet):
        model_file = model
    if machines.are_others and model_file is None:
        raise InputError("other processes load the network from its file: give its path as model")
    network = model if isinstance(model, UNet) else load_model(model)
    if resume or machines.part:
        settings = _as_begun(settings, as_path(out))
    if settings.kind == "instances":
        settings = replace(settings, grow=settings.growth_px(network.separation_px))
    values = Values(
        settings.kind,
        settings.dtype,
        settings.threshold,
        network.config.classes,
        settings.of_class,
    )
    device = next(network.parameters()).device
    likeness = Likeness(network.config.input_mean, network.config.input_std)
    precision = choose_precision(settings.precision, device)
    predictor = OverlapTilePredictor(
        network,
        settings.tile_px,
        average=settings.average,
        precision=precision,
        backend=choose_backend(settings.backend, device, precision),
    )
    memory = settings.memory_bytes or predictor.default_memory(machines.workers or 1)
    at = "" if model_file is None else os.fspath(model_file)
    planner = _Planner(
        predictor,
        settings,
        values,
        memory,
        network_sha256(network),
        machines,
        os.path.abspath(at) if os.path.exists(at) else at,
    )
    if machines.are_others and not url_of(source):
        source = os.path.abspath(source)
    source, out, channels = as_path(source), as_path(out), network.config.in_channels
    several = sizes_in_folder(source, channels=channels, axes=settings.axes or None)
    if several:
        yield _of_several_sizes(source, out, planner, several, likeness)
        return
    with planner.opened(source) as reader:
        slices = settings.slices(reader.shape[0])
        names = _names(out, source, [reader.names[z] for z in slices], values)
        if os.path.isfile(at):
            check_apart(out, at)
        prediction = planner.prediction(reader, out, names, slices)
        likeness.look(reader, slices, prediction.job.rows, prediction.job.columns)
        likeness.tell(source)
        yield prediction


def _as_begun(settings: PredictionSettings, out: Path) -> PredictionSettings:
    """Return settings in which what "auto" has meant before takes its place."""
    if "auto" not in (settings.backend, settings.precision):
        return settings
    begun: dict[str, Any] = recorded_way(out)
    return replace(settings, **{k: v for k, v in begun.items() if getattr(settings, k) == "auto"})


@dataclass(frozen=True)
class _Planner:
    """A network and settings, from which a reader's prediction is made."""

    predictor: OverlapTilePredictor
    settings: PredictionSettings
    values: Values
    memory: int
    model_sha256: str
    machines: Machines
    model: str  # its file, if there is one
    plans: dict[tuple[int, int], Plan] = field(default_factory=dict)  # by the sizes of images

    @property
    def cache_bytes(self) -> int:
        return min(_CACHE_BYTES, self.memory // 8)

    def opened(self, source: Path, file: Path | None = None) -> StackReader:
        """Open a stack, or one image of a folder."""
        return StackReader(
            source,
            channels=self.predictor.in_channels,
            axes=self.settings.axes or None,
            cache_bytes=self.cache_bytes,
            files=None if file is None else [file],
            level=self.settings.level,
        )

    def prediction(
        self,
        reader: StackReader,
        out: Path,
        names: tuple[str, ...],
        slices: range,
        file: Path | None = None,
    ) -> StackPrediction:
        """Plan the prediction of some slices of one size; of one image of a folder, say which."""
        predictor, values, size = self.predictor, self.values, reader.shape[1:]
        rows, columns = self.settings.region(*size)
        destination = self._destination(reader, out, names, slices, rows, columns, file)
        if values.kind == "instances":
            destination = destination.for_ids()
        if len(slices) < reader.shape[0] and len(reader.depth_axes) > 1:
            axes = " x ".join(axis for axis, _ in reader.depth_axes)
            note(f"{out}: a part of the slices of {axes} is written as plain slices, axes ZYX")
        block, reach = None, 0
        if isinstance(destination, ZarrDestination):
            block = (self.settings.shard, self.settings.shard)
            reach = geometry.halo(predictor.depth) + geometry.alignment(predictor.depth)
            if block[0] % geometry.alignment(predictor.depth):
                raise InputError(
                    f"shard is {block[0]}: with this network a multiple of "
                    f"{geometry.alignment(predictor.depth)} px is needed"
                )
        buffers = Buffers.of(
            reader, self.cache_bytes, destination, values, self.settings, block, reach
        )
        plan = self.plans.get(size)
        if plan is None:
            plan = make_plan(predictor, buffers, rows=rows, columns=columns, memory=self.memory)
            self.plans[size] = plan
        job = Job(
            source=reader.fingerprint(),
            model_sha256=self.model_sha256,
            settings=replace(
                self.settings, precision=predictor.precision, backend=predictor.backend
            ),
            device=predictor.device.type,
            values=values,
            slices=slices,
            rows=rows,
            columns=columns,
            block=plan.block,
            strides=plan.tiles.strides,
            batch=plan.batch,
            depth_axes=as_written(reader.depth_axes, len(slices)) if block else (),
        )
        return StackPrediction(
            reader, predictor, destination, buffers, plan, job, self.machines, self.model
        )

    def _destination(
        self,
        reader: StackReader,
        out: Path,
        names: tuple[str, ...],
        slices: range,
        rows: range,
        columns: range,
        file: Path | None,
    ) -> Destination | ZarrDestination:
        values, settings = self.values, self.settings
        shape = len(slices), len(rows), len(columns)
        if is_zarr_name(out):
            return ZarrDestination(
                out,
                shape,
                reader.depth_axes,
                values.planes,
                values.kept_dtype,
                read_calibration(reader.path, level=settings.level),
                settings.ngff,
                settings.shard,
                "none" if settings.compression == "none" else "zstd",
            )
        sources = (
            [reader.path / reader.names[z] for z in slices] if names else [file or reader.path]
        )
        calibrations = tuple(read_calibration(each, level=settings.level) for each in sources)
        if any(calibration.origin for calibration in calibrations):
            note(f"{out}: TIFF has no place for the translation of {reader.path}: it is not kept")
        return Destination(
            out,
            names,
            shape,
            reader.depth_axes,
            values.planes,
            values.kept_dtype,
            calibrations,
            _compression(settings, values),
        )


def _compression(settings: PredictionSettings, values: Values) -> Compression:
    """Return how a TIFF output is compressed."""
    if settings.compression != "auto":
        return settings.compression
    return "none" if values.kept_dtype.startswith("float") else "zlib"


def _names(out: Path, source: Path, source_names: list[str], values: Values) -> tuple[str, ...]:
    """Return the files to make in a folder, none for one file, or refuse the place."""
    names: tuple[str, ...] = ()
    if is_zarr_name(out):
        check_apart(out, source)
        return names
    if url_of(out):
        raise InputError(f"{out}: a name that ends in .zarr is needed behind a URL")
    if is_folder_of_images(source):
        names = names_in_folder(out, source_names, values)
    elif out.suffix.lower() not in (".tif", ".tiff"):
        raise InputError(f"{out}: a name that ends in .tif or .zarr is needed for a stack")
    check_apart(out, source)
    return names


def _of_several_sizes(
    source: Path,
    out: Path,
    planner: _Planner,
    sizes: dict[Path, tuple[int, int]],
    likeness: Likeness,
) -> FolderPrediction:
    """Plan the prediction of each image that is asked for, or refuse the place."""
    if planner.machines != HERE:
        raise InputError(
            f"{source}: its images have several sizes: they are predicted one after the other, "
            "without --workers, --scheduler and --part"
        )
    files = [list(sizes)[z] for z in planner.settings.slices(len(sizes))]
    names = _names(out, source, [file.name for file in files], planner.values)
    if not names:
        raise InputError(
            f"{out}: one file cannot hold the images of {source}, which have several sizes "
            f"({range_of(list(sizes.values()))}); give a folder, for one file each"
        )
    images: list[StackPrediction] = []
    looked_at = spread(range(len(files)), _LOOKED_AT)
    for file, name in zip(files, names):
        with planner.opened(source, file) as reader:
            try:
                image = planner.prediction(reader, out / name, (), range(1), file)
            except InputError as error:
                raise InputError(f"{file}: {error}") from error
            if len(images) in looked_at:
                likeness.look(reader, range(1), image.job.rows, image.job.columns)
            images.append(image)
    likeness.tell(source)
    return FolderPrediction(out, tuple(images))
