"""Weight maps (Sec. 3, Eq. 2) of stacks larger than memory, slice by slice, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from unet_repro._version import __version__
from unet_repro.cluster import HERE, Machines, Run, compute, connected, cores, threads_each
from unet_repro.config import SHARD_PX, keywords_from
from unet_repro.errors import InputError, note
from unet_repro.files.atomic import check_apart, check_folder
from unet_repro.files.block_array import BlockArray
from unet_repro.files.block_store import BlockStore
from unet_repro.files.places import as_path, name_of, url_of
from unet_repro.images.calibration import read_calibration
from unet_repro.images.finished import is_finished
from unet_repro.images.label_facts import SliceFacts, slice_facts
from unet_repro.images.labels import Reading, as_integers, meaning
from unet_repro.images.ome_zarr import ImageFacts, local_or_url
from unet_repro.images.readers import ImagesReader, range_of, sizes_in_folder
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import Axes, slice_in_source
from unet_repro.images.tiff_writer import write_pages
from unet_repro.images.zarr_output import Layout, ZarrOutput, is_zarr_name
from unet_repro.progress import ProgressBar
from unet_repro.threads import in_order
from unet_repro.weight_maps.settings import WeightMapSettings
from unet_repro.weight_maps.weight_map import (
    VERSION,
    class_sizes,
    frequency_weights,
    weigh,
)

PathLike = str | os.PathLike[str]
Result = TypeVar("Result")

_TIFF_SUFFIXES = (".tif", ".tiff")


@keywords_from(WeightMapSettings)
def write_weight_map(
    labels_path: PathLike,
    out: PathLike,
    *,
    settings: WeightMapSettings,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    machines: Machines = HERE,
    progress: bool = True,
    on_survey: Callable[[Survey], None] | None = None,
) -> bool:
    """Write the weight map of a labelled stack, slice by slice, as float32 TIFF or OME-Zarr.

    The same numbers as `weight_map` of the whole stack: what is decided by all slices (class
    balance, mask or ids) is found in a first pass over them.

    Parameters
    ----------
    labels_path : path-like
        TIFF stack, folder of grey TIFF or PNG images in natural order, OME-Zarr image or zarr array
        (a folder or URL), or ``file.h5:/dataset``.
    out : path-like
        TIFF, or OME-Zarr (``.zarr``, also by URL), to write; until it is complete, no file or image
        is there. Axes and scale (resolution, unit, spacing) are those of the labels. The settings,
        and the SHA-256 of the labels, are recorded in it as JSON, which
        `images.calibration.read_info` gives. Of a folder whose images have several sizes: a folder
        to write, with a TIFF of the same name for each image.
    settings : WeightMapSettings
        Or its fields as keywords.
    resume : bool
        Go on with what a killed or interrupted call has left, if anything: the output is, byte for
        byte, that of an undisturbed call. One that is complete is kept, as `predict_stack` does.
    overwrite : bool
        Replace an existing output.
    threads : int, optional
        Number of threads; by default one per available core.
    machines
        Which processes compute; of several, each takes whole slices.
    progress : bool
        Show progress bars on standard error.
    on_survey : callable, optional
        Called with what all slices together decide, before the first is weighed.

    Returns
    -------
    bool
        Whether the output is complete: of an array job, other parts may be missing.

    Raises
    ------
    InputError
        Labels that `weight_map` or `StackReader` refuses, or without any cell; a setting out of its
        range; an output that exists, or is being written by another process; labels that change
        while they are read; to resume, other labels or settings.

    Notes
    -----
    A unit of work is a slice, whatever its size: a pixel's weight depends on the cells nearest to
    it, which may lie anywhere in the slice, and what a cell is on all of it.

    Memory: at most ``threads + 1`` slices of labels are held, and about 20 bytes per pixel of
    each slice at work (28 and a copy of its labels with `separate_touching`), however many slices
    there are. Disc: besides the output, the finished slices wait in ``.<name>.parts`` beside it
    (`BlockStore`), in less than the output's size uncompressed.
    """
    threads = cores() if threads is None else threads
    if threads < 1:
        raise InputError(f"threads is {threads}: at least 1 is needed")
    out = as_path(out)
    with _opened(labels_path, settings) as labels:
        check_apart(out, labels.path)
        if labels.dtype.kind == "f":
            note(f"{labels.path}: whole numbers stored as {labels.dtype}: read as integers")
        files = _files(labels, out)
        is_zarr = is_zarr_name(out)
        if machines != HERE and not (is_zarr and isinstance(labels, StackReader)):
            raise InputError(
                f"{out}: several processes write one OME-Zarr: a stack, and --out with a name that "
                "ends in .zarr are needed"
            )
        run = _Run(labels, out, settings, threads, machines, progress)
        on_survey = on_survey or (lambda survey: None)
        if is_zarr:
            return run.into_zarr(on_survey, resume=resume, overwrite=overwrite)
        with BlockStore(out, resume=resume, overwrite=overwrite, is_folder=bool(files)) as store:
            run.into_files(store, files, on_survey)
        return True


@dataclass(frozen=True)
class _Run:
    """What is weighed, where it goes, and who does it."""

    labels: StackReader | ImagesReader
    out: Path
    settings: WeightMapSettings
    threads: int
    machines: Machines
    progress: bool

    def into_files(
        self, store: BlockStore, files: list[str], on_survey: Callable[[Survey], None]
    ) -> None:
        """Write a TIFF, or one for each image."""
        labels, threads, progress = self.labels, self.threads, self.progress
        survey, record, options = self._surveyed()
        outputs = [store.target / file for file in files] or [store.target]
        if is_finished(store, dict.fromkeys(outputs, _info(record))):
            on_survey(survey)
            return
        if isinstance(labels, ImagesReader):
            store.begin(record, shape=(len(files),), dtype=np.uint8, chunks=(1,))
        else:
            _, height, width = labels.shape
            store.begin(record, shape=labels.shape, dtype=np.float32, chunks=(1, height, width))
        on_survey(survey)  # nothing can be refused any more
        if store.is_complete:
            return
        if isinstance(labels, ImagesReader):
            _weigh_folder(store, labels, files, survey.reading, options, threads, progress)
            return
        self._weigh(store.blocks, survey.reading, options, None, ())
        labels.check_unchanged()  # since the survey
        store.finish(lambda path: _assemble(path, store, labels, record, threads, progress))

    def into_zarr(
        self, on_survey: Callable[[Survey], None], *, resume: bool, overwrite: bool
    ) -> bool:
        """Write an OME-Zarr image, or a part of one."""
        labels, settings, machines = self.labels, self.settings, self.machines
        assert isinstance(labels, StackReader)
        lengths = dict(labels.depth_axes) | {"Y": labels.shape[1], "X": labels.shape[2]}
        axes = "".join(axis for axis in "TCZYX" if axis in lengths)
        layout = Layout(
            axes,
            tuple(lengths[axis] for axis in axes),
            "float32",
            settings.ngff,
            SHARD_PX,
            "zstd",
            is_unit_slice=True,
        )
        store = ZarrOutput(
            self.out, layout, resume=resume, overwrite=overwrite, joins=bool(machines.part)
        )
        with connected(
            machines
        ) as client:  # before hours of survey, and before anything is claimed
            survey, record, options = self._surveyed()
            record |= {"ngff": settings.ngff}
            if store.is_complete_with(_info(record)):
                on_survey(survey)
                return True
            store.claimed(record)
            store.begin(record)
            on_survey(survey)  # nothing can be refused any more
            try:
                self._weigh(store.blocks, survey.reading, options, client, labels.depth_axes)
            except InputError:  # as of units that another process, done first, has made
                if store.is_done_by_another(_info(record)):
                    return True
                raise
            labels.check_unchanged()  # since the survey
            if machines.part and len(store.blocks.missing()):
                return False
            calibration = read_calibration(labels.path, level=settings.level)
            facts = ImageFacts("weight map", axes, calibration, False, ("weight",), None)
            store.finish(facts, _info(record), client)
        return True

    def _surveyed(self) -> tuple[Survey, dict[str, Any], dict[str, Any]]:
        """Return what all slices decide, the record of the job, and the options of `weigh`."""
        survey = _survey(self.labels, self.settings, self.threads, self.progress)
        record = {
            "unet_repro": __version__,
            "weight_map": VERSION,
            "labels": {
                "name": name_of(self.labels.path),
                "sha256": survey.sha256,
                "read": survey.reading.record(),
            },
            "settings": self.settings.record(),
        }
        options = self.settings.map_options() | {"class_balance": survey.class_balance}
        return survey, record, options

    def _weigh(
        self,
        blocks: BlockArray,
        reading: Reading,
        options: dict[str, Any],
        client: Any,
        depth_axes: Axes,
    ) -> None:
        """Compute the slices that are not there yet, of this process's part (`WeightWork`)."""
        missing = blocks.missing(heals=True)
        share = self.machines.share(len(blocks))
        mine = missing[(missing >= share.start) & (missing < share.stop)]
        work = WeightWork(
            local_or_url(self.labels.path), self.settings, reading, options, blocks, depth_axes
        )
        threads = threads_each(self.machines) if client else self.threads
        units = compute(
            client,
            work,
            mine,
            what=str(self.out),
            name=lambda z: f"slice {slice_in_source(depth_axes, z)}",
            threads=threads,
        )
        done = len(share) - len(mine)
        for _ in _bar(units, "weight maps", len(share), progress=self.progress, initial=done):
            pass


@dataclass(frozen=True)
class WeightWork:
    """What a process needs to weigh slices (`cluster.Work`)."""

    labels: str
    settings: WeightMapSettings
    reading: Reading
    options: dict[str, Any]
    kept: BlockArray
    depth_axes: Axes  # of the slices in the labels, where the output has an order of its own

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        """Open the labels; several slices are weighed at once, or one by several threads."""
        threads = threads or cores()
        depth = len(self.kept)
        threads_a_slice = -(-threads // depth)
        with _opened(self.labels, self.settings) as labels:

            def weigh_slice(item: tuple[int, np.ndarray]) -> int:
                z, slice_ = item
                weights = weigh(slice_[None], self.reading, **self.options, workers=threads_a_slice)
                self.kept.write(z, weights)
                return z

            def run(numbers: Iterable[int]) -> Iterator[int]:
                missing = (int(z) for z in numbers if not self.kept.has(z))
                slices = (
                    (z, _label_slice(labels, slice_in_source(self.depth_axes, z))) for z in missing
                )
                return in_order(weigh_slice, slices, min(threads, depth))

            yield run


def _opened(
    path: PathLike, settings: WeightMapSettings
) -> AbstractContextManager[StackReader | ImagesReader]:
    axes = settings.axes or None
    several = sizes_in_folder(path, as_labels=True, axes=axes)
    if several:
        return nullcontext(ImagesReader(path, several, as_labels=True, axes=axes))
    return StackReader(path, as_labels=True, axes=axes, level=settings.level)


def _files(labels: StackReader | ImagesReader, out: Path) -> list[str]:
    """Return the files to write for images of several sizes, else none; or refuse the place."""
    is_one = is_zarr_name(out) or out.suffix.lower() in _TIFF_SUFFIXES
    if url_of(out) and not is_zarr_name(out):
        raise InputError(f"{out}: a name that ends in .zarr is needed behind a URL")
    if not isinstance(labels, ImagesReader):
        if not is_one:
            raise InputError(f"{out}: a name that ends in .tif or .zarr is needed for a stack")
        return []
    if is_one:
        raise InputError(
            f"{out}: one file cannot hold the images of {labels.path}, which have several sizes "
            f"({range_of(labels.sizes)}); give a folder, for one file each"
        )
    files = [
        name if name.lower().endswith(_TIFF_SUFFIXES) else f"{Path(name).stem}.tif"
        for name in labels.names
    ]
    check_folder(out, files)
    return files


def _weigh_folder(
    store: BlockStore,
    labels: ImagesReader,
    files: list[str],
    reading: Reading,
    options: dict[str, Any],
    workers: int,
    progress: bool,
) -> None:
    """Write a file for each image into the store's private folder, and put that in place.

    A block for each image tells that its file is complete.
    """
    total = len(files)
    assert store.record is not None  # it has begun
    record = store.record
    try:
        store.whole.mkdir(exist_ok=True)
    except OSError as error:
        raise store.unwritable(error) from error
    unmarked = set(store.blocks.missing(heals=True).tolist())
    missing = [z for z in range(total) if z in unmarked or not (store.whole / files[z]).is_file()]
    for z in missing:
        store.blocks.discard(z)
    threads_an_image = -(-workers // total)

    def weigh_image(item: tuple[int, np.ndarray]) -> None:
        z, image = item
        weights = weigh(image[None], reading, **options, workers=threads_an_image)
        source = labels.path / labels.names[z]
        one = (("Z", 1),)
        _write(
            store.whole / files[z], weights, weights.shape, one, source, record, threads_an_image
        )
        store.blocks.write(z, np.ones(1, np.uint8))

    images = ((z, _label_slice(labels, z)) for z in missing)
    weighed = in_order(weigh_image, images, min(workers, total))
    for _ in _bar(weighed, "weight maps", total, progress=progress, initial=total - len(missing)):
        pass
    labels.check_unchanged()  # since the survey
    store.finish(lambda whole: None)  # it is there


def _info(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1)


class Survey(NamedTuple):
    """What only all slices together decide, and the slice in the middle."""

    sha256: str
    reading: Reading
    class_balance: tuple[float, ...] | None
    middle: np.ndarray  # (y, x), as stored


def _survey(
    labels: StackReader | ImagesReader, settings: WeightMapSettings, workers: int, progress: bool
) -> Survey:
    depth = len(labels.names)

    def look(item: tuple[int, np.ndarray]) -> tuple[bytes, SliceFacts]:
        z, slice_ = item
        try:
            facts = slice_facts(slice_, settings.ignore_label)
        except InputError as error:
            raise InputError(f"{labels.path}: {labels.names[z]}: {error}") from error
        return hashlib.sha256(np.ascontiguousarray(slice_).data).digest(), facts

    slices = ((z, _label_slice(labels, z)) for z in range(depth))
    found = list(_bar(in_order(look, slices, workers), "labels", depth, progress=progress))
    try:
        reading = meaning([facts for _, facts in found], settings.labels)
    except InputError as error:
        raise InputError(f"{labels.path}: {error}") from error
    if not reading.foreground:
        raise InputError(f"{labels.path}: no label is above 0: there are no cells")
    is_frequency = settings.class_balance == "frequency" and settings.variant != "falk2019"
    sizes = [reading.pixels - reading.unknown - reading.foreground, reading.foreground]
    radius = settings.separation_px if settings.separate_touching and is_frequency else None
    if radius is not None or reading.n_cells < 0:
        reading, sizes = _second_look(labels, reading, radius, workers, progress)
    shape = labels.sizes if isinstance(labels, ImagesReader) else labels.shape
    head = f"{shape} {labels.dtype.name}".encode()
    return Survey(
        sha256=hashlib.sha256(head + b"".join(digest for digest, _ in found)).hexdigest(),
        reading=reading,
        class_balance=frequency_weights(*sizes) if is_frequency else None,
        middle=_label_slice(labels, depth // 2),
    )


def _second_look(
    labels: StackReader | ImagesReader,
    reading: Reading,
    radius: float | None,
    workers: int,
    progress: bool,
) -> tuple[Reading, list[int]]:
    """Count what needs the meaning of the values: cells, and the pixels of each class."""
    depth = len(labels.names)

    def look(slice_: np.ndarray) -> tuple[int, list[int]]:
        cells = int(reading.cells(slice_).max(initial=0)) if reading.n_cells < 0 else 0
        return cells, class_sizes(slice_[None], reading, separation_px=radius)

    slices = (_label_slice(labels, z) for z in range(depth))
    found = list(_bar(in_order(look, slices, workers), "cells", depth, progress=progress))
    if reading.n_cells < 0:
        reading = replace(reading, n_cells=sum(cells for cells, _ in found))
    return reading, [sum(sizes) for sizes in zip(*(sizes for _, sizes in found))]


def _label_slice(labels: StackReader | ImagesReader, z: int) -> np.ndarray:
    where = f"{labels.path}: {labels.names[z]}: the labels"
    return as_integers(labels.read_slice(z), where, is_told=False)


def _assemble(
    path: Path,
    store: BlockStore,
    labels: StackReader,
    record: dict[str, Any],
    workers: int,
    progress: bool,
) -> None:
    slices = (store.blocks.read(z)[0] for z in range(labels.shape[0]))
    pages = _bar(slices, "writing", labels.shape[0], progress=progress)
    _write(path, pages, labels.shape, labels.depth_axes, labels.path, record, workers)


def _write(
    path: Path,
    pages: Iterable[np.ndarray],
    shape: tuple[int, ...],
    depth_axes: Axes,
    source: Path,
    record: dict[str, Any],
    workers: int,
) -> None:
    """Write the weights of a stack or an image, with axes and scale of its labels."""
    write_pages(
        path,
        pages,
        shape=(*(length for _, length in depth_axes), *shape[1:]),
        dtype=np.float32,
        axes="".join(axis for axis, _ in depth_axes) + "YX",
        calibration=read_calibration(source, level=record["settings"].get("level", 0)),
        compression=record["settings"]["compression"],
        info=_info(record),
        workers=workers,
    )


def _bar(
    results: Iterable[Result], what: str, total: int, *, progress: bool, initial: int = 0
) -> Iterator[Result]:
    with ProgressBar(total, unit="slice", desc=what, initial=initial, is_shown=progress) as bar:
        for result in results:
            yield result
            del result
            bar.update()
