"""Weight maps (Sec. 3, Eq. 2) of stacks larger than memory, slice by slice, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from unet_repro._version import __version__
from unet_repro.config import keywords_from
from unet_repro.errors import InputError
from unet_repro.files.atomic import check_apart, check_folder
from unet_repro.files.block_store import BlockStore
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.readers import ImagesReader, range_of, sizes_in_folder
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_writer import Compression, write_pages
from unet_repro.progress import ProgressBar
from unet_repro.threads import in_order
from unet_repro.weight_maps.weight_map import (
    DEFAULT_SIGMA_PX,
    DEFAULT_W0,
    VERSION,
    Kind,
    Variant,
    frequency_weights,
    mask_values,
    separate_touching,
    weight_map,
)

PathLike = str | os.PathLike[str]
Result = TypeVar("Result")

_TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class WeightMapSettings:
    """Settings of a stack's weight map: the flags of `weight-map`.

    Parameters
    ----------
    w0
        Height of the border term; by default 10, of the variant short 1, of falk2019 50.
    sigma
        Its width in px; by default 5, of the variant falk2019 6.
    class_balance
        frequency: both classes weigh the same in total over the stack; none: 1 everywhere.
    variant
        paper: Eq. 2; short: with w0 = 1; falk2019: that of Falk et al., with its own balance.
    ignore_label
        Value of unknown pixels: they weigh 0.
    separate_touching
        Weight a ridge between touching cells as background.
    separation_px
        The pixels of a cell that lie so near to another cell become ridge.
    kind
        Meaning of the values; auto: a mask if all are 0 and 255, or 0 and 1.
    compression
        Of the output, lossless; ImageJ reads zlib, lzw and none.
    """

    w0: float | None = None
    sigma: float | None = None
    class_balance: Literal["frequency", "none"] = "frequency"
    variant: Variant = "paper"
    ignore_label: int | None = None
    separate_touching: bool = False
    separation_px: float = 1.0
    kind: Kind = "auto"
    compression: Compression = "none"

    def __post_init__(self) -> None:
        if self.class_balance is None:
            object.__setattr__(self, "class_balance", "none")
        allowed = {"class_balance": ("frequency", "none"), "compression": get_args(Compression)}
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}: one of {', '.join(choices)} is needed")
        weight_map(np.zeros((0, 1), np.uint8), **self.map_options())  # refuses what is no setting

    def map_options(self) -> dict[str, Any]:
        """Return them as `weight_map` takes them."""
        options = {name: value for name, value in vars(self).items() if name != "compression"}
        balance = "frequency" if self.class_balance == "frequency" else None
        return options | {"class_balance": balance}

    def record(self) -> dict[str, Any]:
        """Return them as JSON takes them, with the values that the defaults stand for."""
        return {
            **vars(self),
            "w0": float(DEFAULT_W0[self.variant] if self.w0 is None else self.w0),
            "sigma": float(DEFAULT_SIGMA_PX[self.variant] if self.sigma is None else self.sigma),
            # falk2019 has a balance of its own
            "class_balance": "none" if self.variant == "falk2019" else self.class_balance,
        }


@keywords_from(WeightMapSettings)
def write_weight_map(
    labels_path: PathLike,
    out: PathLike,
    *,
    settings: WeightMapSettings,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
    on_survey: Callable[[np.ndarray, dict[str, Any]], None] | None = None,
) -> None:
    """Write the weight map of a labelled stack, slice by slice, as a float32 TIFF stack.

    The same numbers as `weight_map` of the whole stack: what is decided by all slices (class
    balance, mask or ids) is found in a first pass over them.

    Parameters
    ----------
    labels_path : path-like
        TIFF stack, or folder of grey TIFF or PNG images in natural order.
    out : path-like
        TIFF to write; until it is complete, nothing is there. Axes and scale (resolution, unit,
        spacing) are those of the labels. The settings, and the SHA-256 of the labels, are recorded
        in it as JSON, which `images.calibration.read_info` gives. Of a folder whose images have
        several sizes: a folder to write, with a TIFF of the same name for each image.
    settings : WeightMapSettings
        Or its fields as keywords.
    resume : bool
        Go on with what a killed or interrupted call has left, if anything: the output is, byte for
        byte, that of an undisturbed call. One that is complete is kept.
    overwrite : bool
        Replace an existing output.
    workers : int, optional
        Number of threads; by default one per available core.
    progress : bool
        Show progress bars on standard error.
    on_survey : callable, optional
        Called after the first pass, with the middle slice of the labels and with the options of
        `weight_map` that hold for the whole stack.

    Raises
    ------
    InputError
        Labels that `weight_map` or `StackReader` refuses; a setting out of its range; an output
        that exists, or is being written by another process; labels that change while they are
        read; to resume, other labels or settings.

    Notes
    -----
    Memory: at most ``workers + 1`` slices of labels are held, and about 20 bytes per pixel of
    each slice at work (28 and a copy of its labels with `separate_touching`), however many slices
    there are. Disc: besides the output, the finished slices wait in ``.<name>.parts`` beside it
    (`BlockStore`), in less than the output's size uncompressed.
    """
    workers = _cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}: at least 1 thread is needed")
    with _opened(labels_path) as labels:
        check_apart(out, labels.path)
        files = _files(labels, Path(out))
        with BlockStore(out, resume=resume, overwrite=overwrite, is_folder=bool(files)) as store:
            survey = _survey(labels, settings, workers, progress)
            record = {
                "unet_repro": __version__,
                "weight_map": VERSION,
                "labels": {"name": labels.path.name, "sha256": survey.sha256},
                "settings": settings.record(),
            }
            options = settings.map_options()
            options |= {"kind": survey.kind, "class_balance": survey.class_balance}
            if on_survey is not None:
                on_survey(_label_slice(labels, len(labels.names) // 2), options)
            outputs = [store.target / file for file in files] or [store.target]
            if store.resumes and all(read_info(path) == _info(record) for path in outputs):
                store.is_complete = True
                return
            if isinstance(labels, ImagesReader):
                _write_folder(store, labels, files, record, options, workers, progress)
                return
            _, height, width = labels.shape
            store.begin(record, shape=labels.shape, dtype=np.float32, chunks=(1, height, width))
            if not store.is_complete:
                _weigh(store, labels, options, workers, progress)
                labels.check_unchanged()  # since the survey
                store.finish(lambda path: _assemble(path, store, labels, record, workers, progress))


def _opened(path: PathLike) -> AbstractContextManager[StackReader | ImagesReader]:
    several = sizes_in_folder(path, palette=True)
    if several:
        return nullcontext(ImagesReader(path, several, palette=True))
    return StackReader(path, palette=True)


def _files(labels: StackReader | ImagesReader, out: Path) -> list[str]:
    """Return the files to write for images of several sizes, else none; or refuse the place."""
    if not isinstance(labels, ImagesReader):
        return []
    if out.suffix.lower() in _TIFF_SUFFIXES:
        raise InputError(
            f"{out}: one TIFF cannot hold the images of {labels.path}, which have several sizes "
            f"({range_of(labels.sizes)}); give a folder, for one file each"
        )
    files = [
        name if name.lower().endswith(_TIFF_SUFFIXES) else f"{Path(name).stem}.tif"
        for name in labels.names
    ]
    check_folder(out, files)
    return files


def _write_folder(
    store: BlockStore,
    labels: ImagesReader,
    files: list[str],
    record: dict[str, Any],
    options: dict[str, Any],
    workers: int,
    progress: bool,
) -> None:
    """Write a file for each image into the store's private folder, and put that in place.

    A block for each image tells that its file is complete.
    """
    total = len(files)
    store.begin(record, shape=(total,), dtype=np.uint8, chunks=(1,))
    if store.is_complete:
        return
    try:
        store.whole.mkdir(exist_ok=True)
    except OSError as error:
        raise store.unwritable(error) from error
    unmarked = store.missing((z,) for z in range(total))
    missing = [
        z for z in range(total) if (z,) in unmarked or not (store.whole / files[z]).is_file()
    ]
    threads_an_image = -(-workers // total)

    def weigh(item: tuple[int, np.ndarray]) -> None:
        z, image = item
        weights = weight_map(image, **options, workers=threads_an_image)
        source = labels.path / labels.names[z]
        shape = (1, *weights.shape)
        _write(store.whole / files[z], [weights], shape, source, record, threads_an_image)
        store.write((z,), np.ones(1, np.uint8))

    images = ((z, _label_slice(labels, z)) for z in missing)
    weighed = in_order(weigh, images, min(workers, total))
    for _ in _bar(weighed, "weight maps", total, progress=progress, initial=total - len(missing)):
        pass
    labels.check_unchanged()  # since the survey
    store.finish(lambda whole: None)  # it is there


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _info(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1)


class _Survey(NamedTuple):
    """What only all slices together decide."""

    sha256: str
    kind: Kind
    class_balance: tuple[float, float] | None


class _SliceFacts(NamedTuple):
    digest: bytes
    mask_values: set[int]
    background: int
    cells: int
    separated: int  # cells' pixels that become background, if the values are ids


def _survey(
    labels: StackReader | ImagesReader,
    settings: WeightMapSettings,
    workers: int,
    progress: bool,
) -> _Survey:
    ignore_label, kind = settings.ignore_label, settings.kind
    is_frequency = settings.class_balance == "frequency" and settings.variant != "falk2019"
    may_separate = settings.separate_touching and is_frequency

    def look(item: tuple[int, np.ndarray]) -> _SliceFacts:
        z, slice_ = item
        try:
            values = mask_values(slice_, ignore_label=ignore_label)
        except InputError as error:
            raise InputError(f"{labels.path}: {labels.names[z]}: {error}") from error
        digest = hashlib.sha256(np.ascontiguousarray(slice_).data).digest()
        is_known = True if ignore_label is None else slice_ != ignore_label
        cells = int(np.count_nonzero((slice_ != 0) & is_known))
        background = int(np.count_nonzero((slice_ == 0) & is_known))
        separated = 0
        if may_separate:
            left = separate_touching(
                slice_,
                radius=settings.separation_px,
                ignore_label=ignore_label,
                kind="ids" if kind == "auto" else kind,
            )
            separated = cells - int(np.count_nonzero((left != 0) & is_known))
        return _SliceFacts(digest, values, background, cells, separated)

    depth = len(labels.names)
    slices = ((z, _label_slice(labels, z)) for z in range(depth))
    facts = list(_bar(in_order(look, slices, workers), "labels", depth, progress=progress))
    if kind == "auto":
        kind = "mask" if set.intersection(*(fact.mask_values for fact in facts)) else "ids"
    # Components of a mask are never within 1 px of each other: nothing is separated.
    separated = sum(fact.separated for fact in facts) if kind == "ids" else 0
    background = sum(fact.background for fact in facts) + separated
    cells = sum(fact.cells for fact in facts) - separated
    shape = labels.sizes if isinstance(labels, ImagesReader) else labels.shape
    head = f"{shape} {labels.dtype.name}".encode()
    return _Survey(
        sha256=hashlib.sha256(head + b"".join(fact.digest for fact in facts)).hexdigest(),
        kind=kind,
        class_balance=frequency_weights(background, cells) if is_frequency else None,
    )


def _label_slice(labels: StackReader | ImagesReader, z: int) -> np.ndarray:
    if labels.dtype.kind == "f":
        raise InputError(f"{labels.path}: labels must be integers, not {labels.dtype}")
    slice_ = labels.read_slice(z)
    return slice_.astype(np.uint8) if slice_.dtype.kind == "b" else slice_


def _weigh(
    store: BlockStore,
    labels: StackReader,
    options: dict[str, Any],
    workers: int,
    progress: bool,
) -> None:
    """Compute the slices that are not there yet."""
    depth = labels.shape[0]
    missing = [z for z, _, _ in store.missing((z, 0, 0) for z in range(depth))]
    threads_a_slice = -(-workers // depth)

    def weigh(item: tuple[int, np.ndarray]) -> None:
        z, slice_ = item
        weights = weight_map(slice_, **options, workers=threads_a_slice)
        store.write((z, 0, 0), weights[None])

    slices = ((z, _label_slice(labels, z)) for z in missing)
    weighed = in_order(weigh, slices, min(workers, depth))
    done = depth - len(missing)
    for _ in _bar(weighed, "weight maps", depth, progress=progress, initial=done):
        pass


def _assemble(
    path: Path,
    store: BlockStore,
    labels: StackReader,
    record: dict[str, Any],
    workers: int,
    progress: bool,
) -> None:
    slices = (store.read((z, 0, 0))[0] for z in range(labels.shape[0]))
    pages = _bar(slices, "writing", labels.shape[0], progress=progress)
    _write(path, pages, labels.shape, labels.path, record, workers)


def _write(
    path: Path,
    pages: Iterable[np.ndarray],
    shape: tuple[int, ...],
    source: Path,
    record: dict[str, Any],
    workers: int,
) -> None:
    """Write the weights of a stack or an image, with axes and scale of its labels."""
    calibration = read_calibration(source)
    write_pages(
        path,
        pages,
        shape=shape,
        dtype=np.float32,
        axes=calibration.axes,
        calibration=calibration,
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
