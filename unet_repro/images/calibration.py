"""What image files say besides their pixels: scale, and the text that this package records."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from unet_repro.errors import InputError, note, one_line
from unet_repro.files.file_access import as_input_errors, open_binary
from unet_repro.files.places import as_path
from unet_repro.images.arrays import array_calibration, is_array
from unet_repro.images.image_files import image_files
from unet_repro.images.image_formats import format_of
from unet_repro.images.jpeg_files import pixel_density
from unet_repro.images.ome_zarr import recorded_info
from unet_repro.images.png_files import pixels_per_metre, png_text
from unet_repro.images.scale import INCH, NO_UNIT, TAG_UNITS, Calibration
from unet_repro.images.tiff_pages import tag_ratio
from unet_repro.images.units import escaped_unit, length_ratio, plain_unit, seconds

PathLike = str | os.PathLike[str]

_MOST = 2.0**31  # pixels per unit, or units per pixel: a TIFF tag holds no more
_LONGEST_UNIT = 60
_DROPPED = "is not carried over"


def read_calibration(path: PathLike, *, level: int = 0) -> Calibration:
    """Read the scale of a readable stack, or a level of it; of a folder that of its first file.

    An `InputNote` says what is not carried over: units that cannot be told in that of x, sizes
    that are none, another scale of other files in a folder.
    """
    if is_array(path):
        return array_calibration(as_path(path), level)
    path = Path(path)
    files = image_files(path) if path.is_dir() else [path]
    calibration, notes = _read(files[0])
    for text in dict.fromkeys(notes):
        note(f"{files[0]}: {text}")
    for other in files[1:]:
        if _scale(_read(other)[0]) != _scale(calibration):
            note(f"{path}: {other.name} has another scale than {files[0].name}, whose is used")
            break
    return calibration


def _scale(calibration: Calibration) -> tuple[Any, ...]:
    pixels = calibration.resolution or (1.0, 1.0)  # TIFF has no way to state none
    return pixels, calibration.plane_unit, calibration.spacing


def _read(path: Path) -> tuple[Calibration, list[str]]:
    """Return the calibration of one file and what of it is not carried over."""
    form, notes = format_of(path), list[str]()
    if form == "PNG":
        return _png_calibration(path), notes
    if form == "JPEG":
        pixels, unit = pixel_density(path) or (None, NO_UNIT)
        return Calibration(resolution=_resolution(pixels, unit), resolution_unit=unit), notes
    with as_input_errors(path), _open_tiff(path) as file:
        stated = _tag_scale(file, notes)
        if file.ome_metadata:
            stated |= _ome_scale(file.ome_metadata, notes)
        elif file.fei_metadata and not stated["unit"]:
            stated |= _fei_scale(file.fei_metadata, notes)
    return Calibration(**stated), notes


@contextmanager
def _open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    with open_binary(path) as handle, tifffile.TiffFile(handle, name=path.name) as file:
        yield file


def _png_calibration(path: Path) -> Calibration:
    pixels, is_metre = pixels_per_metre(path) or (None, False)
    if pixels is None or not is_metre:
        return Calibration(resolution=_resolution(pixels, NO_UNIT))
    x, y = pixels
    return Calibration(resolution=(x / 1e6, y / 1e6), unit=escaped_unit("µm"))


def _resolution(pixels: tuple[int, int] | None, unit: int) -> tuple[float, float] | None:
    """Return pixels along x and y as floats; equal numbers without a unit say nothing."""
    if pixels is None or (unit == NO_UNIT and pixels[0] == pixels[1]):
        return None
    return float(pixels[0]), float(pixels[1])


def _tag_scale(file: tifffile.TiffFile, notes: list[str]) -> dict[str, Any]:
    """Return what tags state, and the descriptions of ImageJ and tifffile."""
    described = {**(file.shaped_metadata or [{}])[0], **(file.imagej_metadata or {})}
    tags = file.pages.first.tags
    resolution_unit = int(tags.valueof("ResolutionUnit", default=INCH))
    if resolution_unit not in (NO_UNIT, *TAG_UNITS):
        resolution_unit = NO_UNIT
    stated = _unit(described, "unit", notes)
    unit = stated or TAG_UNITS.get(resolution_unit, "")
    x, y = (tag_ratio(tags.valueof(f"{axis}Resolution")) for axis in "XY")
    y_unit = _unit(described, "yunit", notes) or unit
    ratio = length_ratio(y_unit, unit)
    if ratio is None:
        notes.append(_unlike("the scale along y", y_unit, unit))
    has_scale = min(x, y) > 1 / _MOST and ratio is not None
    spacing = _number(described, "spacing", notes)
    interval = _number(described, "finterval", notes)
    return {
        "resolution": (x, float(Fraction(y) / (ratio or 1))) if has_scale else None,
        "resolution_unit": resolution_unit,
        "unit": escaped_unit(stated) if stated and ratio is not None else None,
        "spacing": _length(spacing, _unit(described, "zunit", notes) or unit, unit, notes),
        "interval": _interval(interval, _unit(described, "tunit", notes) or "s", notes),
    }


def _ome_scale(xml: str, notes: list[str]) -> dict[str, Any]:
    """Return what an OME-TIFF states of its scale, empty if its description cannot be read."""
    image = _ome_image(xml)
    pixels = None if image is None else image.find("{*}Pixels")
    if pixels is None:
        notes.append(f"its OME description cannot be read: its scale {_DROPPED}")
        return {}
    texts = dict(pixels.attrib)
    x, y, z = (_number(texts, f"PhysicalSize{axis}", notes) for axis in "XYZ")
    unit, y_unit, z_unit = (
        _unit(texts, f"PhysicalSize{axis}Unit", notes) or "µm" for axis in "XYZ"
    )
    interval = _number(texts, "TimeIncrement", notes)
    t_unit = _unit(texts, "TimeIncrementUnit", notes) or "s"
    scale: dict[str, Any] = {"interval": _interval(interval, t_unit, notes)}
    ratio = length_ratio(y_unit, unit)
    if x is None or y is None or ratio is None:
        if ratio is None:
            notes.append(_unlike("the scale along y", y_unit, unit))
        elif (x or y or z) and not notes:
            notes.append(f"states no size of pixels along x and y: its scale {_DROPPED}")
        return scale | {"resolution": None, "unit": None, "spacing": None}
    return scale | {
        "resolution": (float(1 / x), float(1 / (y * ratio))),
        "resolution_unit": NO_UNIT,
        "unit": None if unit == "reference frame" else escaped_unit(unit),
        "spacing": _length(z, z_unit, unit, notes),
    }


def _ome_image(xml: str) -> ElementTree.Element | None:
    """Return the first image of an OME description; one that declares entities is not parsed."""
    try:
        declares = "<!DOCTYPE" in xml or "<!ENTITY" in xml
        root = None if declares else ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    return None if root is None else root.find("{*}Image")


def _fei_scale(metadata: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return the size of pixels that microscopes of FEI record, in metres."""
    scan = metadata.get("Scan")
    sizes = [
        _number(scan if isinstance(scan, dict) else {}, f"Pixel{side}", notes)
        for side in ("Width", "Height")
    ]
    if None in sizes:
        return {}
    x, y = (float(1 / (size * 10**9)) for size in sizes if size is not None)
    return {"resolution": (x, y), "resolution_unit": NO_UNIT, "unit": "nm"}


def _unit(texts: dict[str, Any], key: str, notes: list[str]) -> str:
    """Return the name of a unit, empty if none is stated or it is no name, such as two lines."""
    stated = texts.get(key)
    unit = plain_unit(stated) if isinstance(stated, str) else ""
    if unit and not (unit.isprintable() and len(unit) <= _LONGEST_UNIT):
        notes.append(
            f"{key} {one_line(unit)[:_LONGEST_UNIT]!r} is no name of a unit: it {_DROPPED}"
        )
        return ""
    return unit


def _number(texts: dict[str, Any], key: str, notes: list[str]) -> Fraction | None:
    """Return a size as it is written; none if it is not stated, 0, or not one a tag can hold."""
    stated = texts.get(key)
    try:
        value = float(stated if stated is not None else 0)
        if value == 0 or 1 / _MOST < value < _MOST:
            return Fraction(str(stated).strip()) if value else None
    except (ValueError, TypeError, OverflowError):
        pass
    notes.append(f"{key} {one_line(str(stated))[:_LONGEST_UNIT]!r} is no size: it {_DROPPED}")
    return None


def _length(size: Fraction | None, unit: str, unit_of_x: str, notes: list[str]) -> float | None:
    """Return the spacing of slices in the unit of x."""
    ratio = length_ratio(unit, unit_of_x)
    if size is None or ratio is not None:
        return None if size is None else float(size * (ratio or 1))
    notes.append(_unlike("the spacing of slices", unit, unit_of_x))
    return None


def _unlike(what: str, unit: str, unit_of_x: str) -> str:
    stated = f"{unit_of_x!r}" if unit_of_x else "no unit"
    return f"{what} is in {unit!r} and x in {stated}: it {_DROPPED}"


def _interval(size: Fraction | None, unit: str, notes: list[str]) -> float | None:
    if size is None:
        return None
    factor = seconds(unit)
    if factor is None:
        notes.append(f"the time between slices is in {unit!r}, no known unit: it {_DROPPED}")
        return None
    return float(size * factor)


def read_info(path: PathLike) -> str | None:
    """Return the text that this package recorded in a file, None if there is none."""
    try:
        if is_array(path):
            return recorded_info(path)
        if Path(path).suffix.lower() == ".png":
            return png_text(Path(path))
        with as_input_errors(Path(path)), _open_tiff(Path(path)) as file:
            if file.ome_metadata:
                image = _ome_image(file.ome_metadata)
                return None if image is None else image.findtext("{*}Description")
            described = file.imagej_metadata or (file.shaped_metadata or [{}])[0]
            return described.get("Info")
    except InputError:
        return None
