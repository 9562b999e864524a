"""What TIFF files say besides their pixels: axes, scale, and the text that this package records."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from unet_repro.errors import InputError
from unet_repro.files.file_access import as_input_errors, open_binary
from unet_repro.images.image_files import image_files
from unet_repro.images.tiff_pages import tag_ratio

PathLike = str | os.PathLike[str]

_MOST = 2.0**31  # pixels per unit, or units per pixel: a TIFF tag holds no more
_LONGEST_UNIT = 60
_NO_UNIT, _INCH, _CENTIMETRE = 1, 2, 3  # values of the tag ResolutionUnit; 2 where it is missing


@dataclass(frozen=True)
class Calibration:
    """Axes and scale of a TIFF stack, as the file states them."""

    axes: str = "ZYX"  # or TYX: a time series
    resolution: tuple[float, float] | None = None  # pixels per unit along x and y
    resolution_unit: int = _NO_UNIT  # the tag; with 1 `unit` holds, as in ImageJ
    unit: str | None = None  # its name; ASCII
    spacing: float | None = None  # of the slices, in this unit
    interval: float | None = None  # between the slices, in s


UNCALIBRATED = Calibration()


def read_calibration(path: PathLike) -> Calibration:
    """Read the axes and scale of a readable stack; of a folder those of its first file, along z."""
    file_path = image_files(path)[0] if Path(path).is_dir() else Path(path)
    if file_path.suffix.lower() == ".png":
        return UNCALIBRATED
    with as_input_errors(file_path), _open_tiff(file_path) as file:
        described = {**(file.shaped_metadata or [{}])[0], **(file.imagej_metadata or {})}
        tags = file.pages.first.tags
        x, y = (tag_ratio(tags.valueof(f"{axis}Resolution")) for axis in "XY")
        is_time = file.series[0].axes.startswith("T") and not Path(path).is_dir()
        stated = {
            "resolution": (x, y) if min(x, y) > 1 / _MOST else None,
            "resolution_unit": int(tags.valueof("ResolutionUnit", default=_INCH)),
            "unit": described.get("unit"),
            "spacing": _number(described.get("spacing")),
            "interval": _number(described.get("finterval")),
            **(_ome_scale(file.ome_metadata) if file.ome_metadata else {}),
        }
    stated["unit"] = _unit(stated["unit"])
    if stated["resolution_unit"] not in (_NO_UNIT, _INCH, _CENTIMETRE):
        stated["resolution_unit"] = _NO_UNIT
    return Calibration(axes="TYX" if is_time else "ZYX", **stated)


@contextmanager
def _open_tiff(path: Path) -> Iterator[tifffile.TiffFile]:
    with open_binary(path) as handle, tifffile.TiffFile(handle, name=path.name) as file:
        yield file


def _unit(stated: Any) -> str | None:
    """Return a unit's name as ImageJ writes it; none if it is no name, such as several lines."""
    text = str(stated if isinstance(stated, str) else "")
    if not (text.isprintable() and 0 < len(text) <= _LONGEST_UNIT):
        return None
    # ImageJ's descriptions are ASCII, and this is its own escape.
    return text.replace("µ", "\\u00B5").encode("ascii", "replace").decode()


def _ome_scale(xml: str) -> dict[str, Any]:
    """Return what an OME-TIFF states of its scale, empty if it does not or is not well formed."""
    image = _ome_image(xml)
    pixels = None if image is None else image.find("{*}Pixels")
    if pixels is None:
        return {}
    x, y, z, interval = (
        _positive(pixels.get(name))
        for name in ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ", "TimeIncrement")
    )
    if not (x and y):  # one unit holds for all axes: of the slices alone it cannot be told
        return {"interval": interval}
    unit = pixels.get("PhysicalSizeXUnit", "µm")
    return {
        "resolution": (1 / x, 1 / y),
        "resolution_unit": _NO_UNIT,
        "unit": None if unit == "reference frame" else unit,
        "spacing": z,
        "interval": interval,
    }


def _ome_image(xml: str) -> ElementTree.Element | None:
    """Return the first image of an OME description; one that declares entities is not parsed."""
    try:
        root = None if "<!" in xml.replace("<!--", "") else ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    return None if root is None else root.find("{*}Image")


def _positive(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if 1 / _MOST < value < _MOST else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_info(path: PathLike) -> str | None:
    """Return the text that this package recorded in a file, None if there is none."""
    try:
        with as_input_errors(Path(path)), _open_tiff(Path(path)) as file:
            if file.ome_metadata:
                image = _ome_image(file.ome_metadata)
                return None if image is None else image.findtext("{*}Description")
            described = file.imagej_metadata or (file.shaped_metadata or [{}])[0]
            return described.get("Info")
    except InputError:
        return None
