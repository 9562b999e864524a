"""Weight maps (Sec. 3, Eq. 2) of stacks larger than memory, slice by slice, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from tqdm import tqdm

from unet_repro._version import __version__
from unet_repro.errors import InputError
from unet_repro.files.atomic import check_output
from unet_repro.files.resumable import Parts
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import write_slices
from unet_repro.reports.preview import weight_map_preview
from unet_repro.threads import in_order
from unet_repro.weight_maps.weight_cache import VERSION
from unet_repro.weight_maps.weight_map import (
    DEFAULT_SIGMA_PX,
    DEFAULT_W0,
    Kind,
    Variant,
    frequency_weights,
    mask_values,
    separate_touching,
    weight_map,
)

Compression = Literal["zlib", "zstd", "lzw"]
PathLike = str | os.PathLike[str]
Result = TypeVar("Result")

_BAR_DELAY_S = 1.0  # shorter work shows no progress bar


def write_weight_map(
    labels_path: PathLike,
    out: PathLike,
    *,
    w0: float | None = None,
    sigma: float | None = None,
    class_balance: Literal["frequency"] | tuple[float, float] | None = "frequency",
    variant: Variant = "paper",
    ignore_label: int | None = None,
    separate_touching: bool = False,
    kind: Kind = "auto",
    compression: Compression | None = None,
    preview: PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Write the weight map of a labelled stack, slice by slice, as a float32 TIFF stack.

    The same numbers as `weight_map` of the whole stack: what is decided by all slices (class
    balance, mask or ids) is found in a first pass over them.

    Parameters
    ----------
    labels_path : path-like
        TIFF stack, or folder of grey TIFF or PNG images in natural order.
    out : path-like
        TIFF to write, a BigTIFF from 4 GiB on; until it is complete, nothing is there. Axes and
        scale (resolution, unit, spacing) are those of the labels. The settings, and the SHA-256
        of the labels, are recorded in it as JSON: in ImageJ's image information, which
        `stack_io.read_info` gives.
    w0, sigma, class_balance, variant, ignore_label, separate_touching, kind
        As in `weight_map`.
    compression : "zlib", "zstd", "lzw" or None
        Of the output; lossless. ImageJ reads the first and the last.
    preview : path-like, optional
        PNG to draw the middle slice in, before the work begins; with `resume` it is drawn anew.
    resume : bool
        Go on with what a killed or interrupted call has left: finished slices are not computed
        again, and the output is, byte for byte, that of an undisturbed call. Without anything
        left it begins; if the output is complete, it is kept.
    overwrite : bool
        Replace an existing output or preview.
    workers : int, optional
        Number of threads; by default one per available core.
    progress : bool
        Show progress bars on standard error.

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
    there are. Disc: besides the output, the finished slices wait compressed (zstd) in the folder
    ``.<name>.parts`` beside it until the output is put together: less than the output's size
    uncompressed.
    """
    weight_map(  # of one pixel: refuses what is no setting
        np.zeros((1, 1), np.uint8),
        w0=w0,
        sigma=sigma,
        class_balance=class_balance,
        variant=variant,
        ignore_label=ignore_label,
        kind=kind,
    )
    if compression is not None and compression not in get_args(Compression):
        choices = ", ".join(get_args(Compression))
        raise InputError(f"compression is {compression!r}: one of {choices} or None is needed")
    workers = _cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"workers is {workers}: at least 1 thread is needed")
    settings: dict[str, Any] = {
        "w0": float(DEFAULT_W0[variant] if w0 is None else w0),
        "sigma": float(DEFAULT_SIGMA_PX[variant] if sigma is None else sigma),
        "class_balance": None if variant == "falk2019" else class_balance,  # it has its own
        "variant": variant,
        "ignore_label": ignore_label,
        "separate_touching": separate_touching,
        "kind": kind,
    }
    with StackReader(labels_path, palette=True) as labels:
        for path in (out, preview) if preview else (out,):
            _check_place(path, labels)
        if preview:
            check_output(preview, overwrite=overwrite or resume)
        with Parts(out, resume=resume, overwrite=overwrite) as parts:
            survey = _survey(labels, settings, workers, progress)
            record = {
                "unet_repro": __version__,
                "weight_map": VERSION,
                "labels": {"name": labels.path.name, "sha256": survey.sha256},
                "settings": {**settings, "compression": compression},
            }
            settings |= {"kind": survey.kind, "class_balance": survey.class_balance}
            if preview:
                slice_ = _label_slice(labels, labels.shape[0] // 2)
                replaces = overwrite or resume
                weight_map_preview(slice_, preview, **settings, overwrite=replaces)
            _write(parts, labels, settings, record, compression, workers, progress)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_place(path: PathLike, labels: StackReader) -> None:
    target, source = (Path(os.path.realpath(p)) for p in (path, labels.path))
    if source in (target, target.parent):
        raise InputError(f"{path}: would be among the labels {labels.path}; give another place")


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


def _survey(labels: StackReader, settings: dict[str, Any], workers: int, progress: bool) -> _Survey:
    ignore_label, balance = settings["ignore_label"], settings["class_balance"]
    is_frequency = balance == "frequency"
    may_separate = settings["separate_touching"] and is_frequency and settings["kind"] != "mask"

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
            left = separate_touching(slice_, ignore_label=ignore_label, kind="ids")
            separated = cells - int(np.count_nonzero((left != 0) & is_known))
        return _SliceFacts(digest, values, background, cells, separated)

    depth = labels.shape[0]
    slices = ((z, _label_slice(labels, z)) for z in range(depth))
    facts = list(_bar(in_order(look, slices, workers), "labels", depth, progress=progress))
    kind = settings["kind"]
    if kind == "auto":
        kind = "mask" if set.intersection(*(fact.mask_values for fact in facts)) else "ids"
    # Components of a mask are never within 1 px of each other: nothing is separated.
    separated = sum(fact.separated for fact in facts) if kind == "ids" else 0
    background = sum(fact.background for fact in facts) + separated
    cells = sum(fact.cells for fact in facts) - separated
    head = f"{labels.shape} {labels.dtype.name}".encode()
    return _Survey(
        sha256=hashlib.sha256(head + b"".join(fact.digest for fact in facts)).hexdigest(),
        kind=kind,
        class_balance=frequency_weights(background, cells) if is_frequency else balance,
    )


def _label_slice(labels: StackReader, z: int) -> np.ndarray:
    if labels.dtype.kind == "f":
        raise InputError(f"{labels.path}: labels must be integers, not {labels.dtype}")
    slice_ = labels.read_slice(z)
    return slice_.astype(np.uint8) if slice_.dtype.kind == "b" else slice_


def _write(
    parts: Parts,
    labels: StackReader,
    settings: dict[str, Any],
    record: dict[str, Any],
    compression: str | None,
    workers: int,
    progress: bool,
) -> None:
    """Compute the slices that are not there yet, and put the output together."""
    info = json.dumps(record, indent=1)
    if parts.resumes and parts.target.exists() and read_info(parts.target) == info:
        parts.is_complete = True
        return
    depth, height, width = labels.shape
    parts.begin(record, dtype=np.float32)
    if parts.is_complete:
        return
    missing = [z for z in range(depth) if not parts.has(z)]
    threads_a_slice = -(-workers // depth)

    def weigh(item: tuple[int, np.ndarray]) -> None:
        z, slice_ = item
        parts.put(z, weight_map(slice_, **settings, workers=threads_a_slice))

    slices = ((z, _label_slice(labels, z)) for z in missing)
    for _ in _bar(
        in_order(weigh, slices, min(workers, depth)),
        "weight maps",
        depth,
        progress=progress,
        initial=depth - len(missing),
    ):
        pass
    labels.check_unchanged()  # since the survey
    parts.finish(
        lambda path: write_slices(
            path,
            _bar(
                (parts.get(z, (height, width)) for z in range(depth)),
                "writing",
                depth,
                progress=progress,
            ),
            shape=labels.shape,
            dtype=np.float32,
            overwrite=True,
            compression=compression,
            calibration=read_calibration(labels.path),
            info=info,
            workers=workers,
        )
    )


def _bar(
    results: Iterable[Result], what: str, total: int, *, progress: bool, initial: int = 0
) -> Iterator[Result]:
    with tqdm(
        desc=what,
        total=total,
        initial=initial,
        unit="slice",
        delay=_BAR_DELAY_S,
        disable=not progress,
    ) as bar:
        for result in results:
            yield result
            del result
            bar.update()
