"""What OME-Zarr images say of their arrays (0.4 and 0.5), read and written.

Within the specification: axes in the order t, c, z, y, x; for each level scale and translation.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from unet_repro._version import __version__
from unet_repro.choices import Ngff
from unet_repro.errors import InputError, note
from unet_repro.files.file_access import parse_json
from unet_repro.files.places import (
    ZARR_DOCUMENTS,
    Bucket,
    Folder,
    PathLike,
    name_of,
    place_at,
    url_of,
)
from unet_repro.images.scale import Calibration
from unet_repro.images.units import escaped_unit, full_name, length_ratio, seconds, symbol

Document = dict[str, Any]

MARK = "unet_repro"  # attribute of an image of ours that is complete
JOB = "job.json"  # beside the arrays of one that is not
_SPACE, _LETTERS = "ZYX", "TCZYX"
_NUMBERED = re.compile(r"(dim|phony_dim|axis)_?\d+")


def is_zarr(path: PathLike) -> bool:
    """Tell whether a folder is a zarr array or group, or what a killed run left of one."""
    folder = Path(path)
    is_described = any((folder / name).is_file() for name in ZARR_DOCUMENTS)
    return is_described or begun_job(Folder(folder)) is not None


def begun_job(place: Folder | Bucket) -> Document | None:
    """Return what an unfinished output of ours is of; others may have files of that name too."""
    if isinstance(place, Folder) and not place.has(JOB):  # a folder may be called so
        return None
    content = place.read(JOB)
    try:
        return None if content is None else _ours(parse_json(content))
    except ValueError:
        return None


def _ours(job: object) -> Document | None:
    return job if isinstance(job, dict) and "unet_repro" in job else None


@dataclass(frozen=True)
class ZarrSource:
    """An array of zarr, and what is known of its axes."""

    place: Folder | Bucket  # of the array
    format: Literal[2, 3]
    sha256: str  # of the documents that describe it
    axes: str | None = None  # letters of TCZYX, None if nothing is said
    scale: tuple[Fraction, ...] = ()  # of each axis
    origin: tuple[float, ...] = ()  # of the first pixel's centre, as the scale
    units: tuple[str, ...] = ()  # empty where none is said
    info: str | None = None  # that this package recorded
    notes: tuple[str, ...] = field(default=())

    def calibration(self) -> Calibration:
        """Return the scale in the unit of x."""
        if not self.scale or not self.axes:
            return Calibration()
        size, unit = dict(zip(self.axes, self.scale)), dict(zip(self.axes, self.units))
        origin = dict(zip(self.axes, self.origin))
        ratio = {axis: length_ratio(unit[axis], unit["X"]) for axis in _SPACE if axis in size}
        for axis, factor in ratio.items():
            if factor is None:
                raise InputError(
                    f"{self.place}: axis {axis.lower()} is in {unit[axis] or 'no unit'} and x in "
                    f"{unit['X'] or 'no unit'}: one unit is needed"
                )
        length = {axis: size[axis] * (ratio[axis] or 1) for axis in ratio}
        factor = seconds(unit.get("T", "") or "s") if "T" in size else None
        is_plain = not unit["X"] and all(size == 1 for size in length.values())
        shift = tuple(float(origin[a] * (ratio[a] or 1)) if a in ratio else 0.0 for a in _SPACE)
        return Calibration(
            resolution=None if is_plain else (float(1 / length["X"]), float(1 / length["Y"])),
            unit=escaped_unit(symbol(unit["X"])) if unit["X"] else None,
            spacing=float(length["Z"]) if "Z" in length and not is_plain else None,
            interval=float(size["T"] * factor) if factor and unit.get("T") else None,
            origin=(shift[0], shift[1], shift[2]) if any(shift) else None,
        )


def find_zarr(path: PathLike, level: int = 0) -> ZarrSource:
    """Look at a zarr array, or a level of an OME-Zarr image.

    Raises
    ------
    InputError
        There is none, or no such level; what is there is unfinished, a plate, or otherwise no one
        image.
    """
    path = url_of(path) or path
    place = place_at(path)
    document, form, raw = _document(place)
    if document is None:
        job = begun_job(place)
        if job:
            raise _unfinished(path, job)
        if isinstance(place, Folder):
            raise InputError(f"{path}: no such file or folder" + _zarr_hint(place))
        raise InputError(f"{path}: neither a zarr array nor a group is there")
    if _is_array(document):
        if level:
            raise InputError(f"{path}: is one array, without levels: --level {level} is none")
        parent, name = place.parent, name_of(str(place))
        attributes, texts = _attributes(parent)
        job = None if attributes.get(MARK) else begun_job(parent)
        if job:
            raise _unfinished(parent, job)
        own = document.get("attributes")
        job = _ours(own.get("record")) if isinstance(own, dict) else None
        if job:  # blocks of a file (`files.block_store`)
            raise _unfinished(path, job)
        found = _datasets(attributes, parent) if _multiscales(attributes) else []
        number = next((n for n, data in enumerate(found) if data.get("path") == name), None)
        if number is None:
            return ZarrSource(place, form, _sha256(raw), _names_of(document, place))
        return _level(parent, attributes, texts, number)
    attributes, texts = _attributes(place)
    if _multiscales(attributes) is None:
        raise _no_image(path, place, attributes)
    return _level(place, attributes, texts, level)


def recorded_info(path: PathLike) -> str | None:
    """Return the text that this package recorded in an image, None if there is none."""
    mark = _attributes(place_at(path))[0].get(MARK)
    return mark.get("info") if isinstance(mark, dict) else None


def _zarr_hint(place: Folder) -> str:
    return ": a folder without images or zarr arrays" if place.path.is_dir() else ""


def _unfinished(path: object, job: Document) -> InputError:
    what, command = "prediction", "predict"
    if "weight_map" in job:
        what, command = "weight map", "weight-map"
    return InputError(
        f"{path}: is an unfinished {what}, parts of it are missing: {command} --resume, or its "
        "missing --part, completes it"
    )


def _no_image(path: PathLike, place: Folder | Bucket, attributes: Document) -> InputError:
    job = begun_job(place)
    if job:
        return _unfinished(path, job)
    ome = attributes.get("ome")
    known = {**attributes, **(ome if isinstance(ome, dict) else {})}
    if "plate" in known or "well" in known:
        return InputError(f"{path}: is a plate or a well of several images; give one of them")
    if "bioformats2raw.layout" in known:
        return InputError(f"{path}: holds images 0, 1, ...: give {path}/0")
    return InputError(f"{path}: is a zarr group, but no OME-Zarr image; give one of its arrays")


def _document(place: Folder | Bucket) -> tuple[Document | None, Literal[2, 3], bytes]:
    """Return the description of an array or a group, its format, and its bytes."""
    for name in ZARR_DOCUMENTS:
        raw = place.read(name)
        if raw is None:
            continue
        try:
            document = parse_json(raw)
        except ValueError as error:
            raise InputError(f"{place}/{name}: is damaged: {error}") from error
        if not isinstance(document, dict):
            raise InputError(f"{place}/{name}: is damaged: it is no JSON object")
        if name == ".zgroup":
            document = {"node_type": "group"}
        elif name == ".zarray":
            document = {**document, "node_type": "array"}
        return document, 3 if name == "zarr.json" else 2, raw
    return None, 3, b""


def _is_array(document: Document) -> bool:
    return document.get("node_type") == "array"


def _attributes(place: Folder | Bucket) -> tuple[Document, bytes]:
    """Return the attributes of a group, empty if there are none, and the bytes they come from."""
    document, form, raw = _document(place)
    if document is None:
        return {}, raw
    if form == 3:
        attributes = document.get("attributes")
    else:
        raw = place.read(".zattrs") or b"{}"
        try:
            attributes = parse_json(raw)
        except ValueError as error:
            raise InputError(f"{place}/.zattrs: is damaged: {error}") from error
    return attributes if isinstance(attributes, dict) else {}, raw


def _multiscales(attributes: Document) -> Document | None:
    ome = attributes.get("ome")
    listed = (ome if isinstance(ome, dict) else attributes).get("multiscales")
    if isinstance(listed, list) and listed and isinstance(listed[0], dict):
        return listed[0]
    return None


def _note_others(attributes: Document, place: Folder | Bucket) -> None:
    ome = attributes.get("ome")
    listed = (ome if isinstance(ome, dict) else attributes)["multiscales"]
    if len(listed) > 1:
        name = listed[0].get("name")
        called = f", {name!r:.60}," if name else ""
        note(f"{place}: describes {len(listed)} images; the first{called} is read")


def _datasets(attributes: Document, place: Folder | Bucket) -> list[Document]:
    multiscale = _multiscales(attributes) or {}
    datasets = multiscale.get("datasets")
    if not isinstance(datasets, list) or not all(isinstance(each, dict) for each in datasets):
        raise InputError(f"{place}: its multiscales list no datasets")
    return datasets


def _level(place: Folder | Bucket, attributes: Document, texts: bytes, number: int) -> ZarrSource:
    datasets = _datasets(attributes, place)
    if not 0 <= number < len(datasets):
        raise InputError(
            f"{place}: --level {number} is none of its levels, 0 to {len(datasets) - 1}"
        )
    path = datasets[number].get("path")
    if not isinstance(path, str) or ".." in path.split("/") or path.startswith("/"):
        raise InputError(f"{place}: its level {number} has the path {path!r:.60}")
    array = place / path
    document, form, raw = _document(array)
    if document is None or not _is_array(document):
        raise InputError(f"{place}: its level {number}, {path}, is no array")
    multiscale = _multiscales(attributes) or {}
    _note_others(attributes, place)
    axes, units = _axes(multiscale, place)
    scale, origin = _transformed(
        [
            *(datasets[number].get("coordinateTransformations") or []),
            *(multiscale.get("coordinateTransformations") or []),
        ],
        len(axes),
        place,
    )
    mark = attributes.get(MARK)
    info = mark.get("info") if isinstance(mark, dict) else None
    return ZarrSource(array, form, _sha256(texts + raw), axes, scale, origin, units, info)


def _axes(multiscale: Document, place: Folder | Bucket) -> tuple[str, tuple[str, ...]]:
    """Return letters and units of the axes; those of 0.3 and before are names."""
    listed = multiscale.get("axes", list("tczyx"))
    axes = [{"name": axis} if isinstance(axis, str) else axis for axis in listed]
    names = [str(axis.get("name", "")) if isinstance(axis, dict) else "" for axis in axes]
    letters = "".join(name.upper() if len(name) == 1 else "?" for name in names)
    if set(letters) - set("TCZYX") or len(set(letters)) < len(letters) or "YX" not in letters:
        raise InputError(
            f"{place}: its axes are {', '.join(names)}: of t, c, z, y, x those with y and x behind "
            "each other are needed"
        )
    return letters, tuple(str(axis.get("unit") or "") for axis in axes)


def _transformed(
    steps: Sequence[Any], n: int, place: Folder | Bucket
) -> tuple[tuple[Fraction, ...], tuple[float, ...]]:
    """Return scale and translation after all steps."""
    scale, origin = [Fraction(1)] * n, [0.0] * n
    for step in steps:
        kind = step.get("type") if isinstance(step, dict) else None
        if kind == "identity":
            continue
        values = step.get(kind) if kind in ("scale", "translation") else None
        try:
            numbers = [Fraction(str(float(value))) for value in values or []]
        except (TypeError, ValueError, OverflowError):
            numbers = []
        is_bad = kind == "scale" and any(number <= 0 for number in numbers)
        if len(numbers) != n or is_bad:
            raise InputError(f"{place}: its transformation {step!r:.80} is no scale of {n} axes")
        if kind == "scale":
            scale = [a * b for a, b in zip(scale, numbers)]
            origin = [float(a * b) for a, b in zip(origin, numbers)]
        else:
            origin = [a + float(b) for a, b in zip(origin, numbers)]
    return tuple(scale), tuple(origin)


def _names_of(document: Document, place: Folder | Bucket) -> str | None:
    """Return a plain array's axes: zarr 3 names them, in zarr 2 xarray does."""
    names = document.get("dimension_names")
    if names is None:
        names = _attributes(place)[0].get("_ARRAY_DIMENSIONS")
    return named_axes(names) if isinstance(names, list) else None


def named_axes(names: Sequence[object]) -> str | None:
    """Return a letter for each axis of an array, "?" for a name that is none of TCZYX, each once.

    None where nothing is said: no name, or numbers, as libraries give them.

    Examples
    --------
    >>> named_axes(["z", "y", "x"]), named_axes(["y", "x", "band"]), named_axes(["dim_0", "dim_1"])
    ('ZYX', 'YX?', None)
    """
    words = [name if isinstance(name, str) else "" for name in names]
    if all(not word or _NUMBERED.fullmatch(word) for word in words):
        return None
    letters = [word.upper() if len(word) == 1 else "?" for word in words]
    is_known = [letter in _LETTERS and letters.count(letter) == 1 for letter in letters]
    return "".join(letter if known else "?" for letter, known in zip(letters, is_known))


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True)
class ImageFacts:
    """What an image that is written says of itself.

    Parameters
    ----------
    name
        For people.
    axes
        Letters of its arrays, of TCZYX in this order.
    calibration
        Of level 0.
    are_labels
        Its values are labels: a level shows the nearest of the one before, not their mean.
    channels
        A name for each, and the value that viewers show as white.
    white
        That value, above a black of 0; None where the values decide.
    """

    name: str
    axes: str
    calibration: Calibration
    are_labels: bool
    channels: tuple[str, ...]
    white: float | None


def image_attributes(
    facts: ImageFacts,
    levels: int,
    ngff: Ngff,
    mark: Document,
    *,
    window: tuple[float, float] = (0, 1),
) -> Document:
    """Return the attributes of the group of an image of so many levels, each half of the last.

    `window` is what viewers show as black and white, where the facts do not say it.
    """
    if ngff not in get_args(Ngff):
        raise InputError(f"ngff is {ngff!r}: one of {', '.join(get_args(Ngff))} is needed")
    method = "nearest" if facts.are_labels else "mean"
    multiscale: Document = {
        "name": facts.name,
        "axes": _written_axes(facts),
        "datasets": [_dataset(facts, level) for level in range(levels)],
        "type": method,
        "metadata": {
            "description": f"each level halves y and x: the {method} of 2 x 2 px",
            "method": "unet_repro",
            "version": __version__,
        },
    }
    ome: Document = {"multiscales": [multiscale]}
    if facts.are_labels:
        ome["image-label"] = {}
    else:
        ome["omero"] = _omero(facts, window if facts.white is None else (0, facts.white))
    if ngff == "0.4":
        multiscale["version"] = "0.4"
        if facts.are_labels:
            ome["image-label"]["version"] = "0.4"
        return {**ome, MARK: mark}
    return {"ome": {"version": "0.5", **ome}, MARK: mark}


def _written_axes(facts: ImageFacts) -> list[Document]:
    stated = facts.calibration.plane_unit
    unit = full_name(stated) if stated else None
    if stated and symbol(stated) != "pixel" and unit is None:
        note(f"{facts.name}: OME-Zarr knows no unit {stated!r}: it is not carried over")
    axes: list[Document] = []
    for letter in facts.axes:
        kind = {"T": "time", "C": "channel"}.get(letter, "space")
        axis: Document = {"name": letter.lower(), "type": kind}
        if kind == "space" and unit:
            axis["unit"] = unit
        if letter == "T" and facts.calibration.interval:
            axis["unit"] = "second"
        axes.append(axis)
    return axes


def _dataset(facts: ImageFacts, level: int) -> Document:
    calibration = facts.calibration
    x, y = (1 / pixels for pixels in calibration.resolution or (1.0, 1.0))
    z, t = calibration.spacing or 1.0, calibration.interval or 1.0
    size = {"T": t, "C": 1.0, "Z": z, "Y": _plain(y), "X": _plain(x)}
    origin = dict(zip(_SPACE, calibration.origin or (0.0, 0.0, 0.0)))
    scale = {**size, "Y": size["Y"] * 2**level, "X": size["X"] * 2**level}
    shift = {
        axis: origin.get(axis, 0.0) + (scale[axis] - size[axis]) / 2  # between the pixels' centres
        for axis in facts.axes
    }
    return {
        "path": str(level),
        "coordinateTransformations": [
            {"type": "scale", "scale": [scale[axis] for axis in facts.axes]},
            {"type": "translation", "translation": [shift[axis] for axis in facts.axes]},
        ],
    }


def _plain(size: float) -> float:
    """Return a size without what two divisions have added to its digits."""
    return float(f"{size:.15g}")


def _omero(facts: ImageFacts, window: tuple[float, float]) -> Document:
    low, high = window
    shown = {"min": low, "max": high, "start": low, "end": high}
    return {
        "channels": [
            {"label": label, "color": "FFFFFF", "active": True, "window": shown}
            for label in facts.channels
        ],
        "rdefs": {"model": "greyscale", "defaultZ": 0, "defaultT": 0},
    }


def write_group(place: Folder | Bucket, attributes: Document, ngff: Ngff) -> None:
    """Write the description of a group of arrays; in 0.5 one file, at once."""

    def put(name: str, document: Document) -> None:
        place.write(name, json.dumps(document, indent=1).encode())

    if ngff == "0.5":
        put("zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})
        return
    put(".zgroup", {"zarr_format": 2})
    put(".zattrs", attributes)


def remove_group(place: Folder | Bucket) -> None:
    """Remove the description of a group of arrays: it is no image any more."""
    for name in ("zarr.json", ".zattrs", ".zgroup"):
        place.remove(name)


def mark_of(place: Folder | Bucket) -> Document | None:
    """Return what an image of ours that is complete records, else None."""
    mark = _attributes(place)[0].get(MARK)
    return mark if isinstance(mark, dict) else None


def paths_of(place: Folder | Bucket) -> list[str]:
    """Return the paths of an image's levels, the finest first."""
    return [str(data.get("path")) for data in _datasets(_attributes(place)[0], place)]


def local_or_url(path: PathLike) -> str:
    """Return a path that means the same in another working directory."""
    return url_of(path) or str(Path(path).absolute())
