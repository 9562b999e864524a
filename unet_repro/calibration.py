"""What TIFF files say besides their pixels: axes, scale, and the text that this package records."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from unet_repro.errors import InputError
from unet_repro.image_files import as_input_errors, image_files, tag_ratio

PathLike = str | os.PathLike[str]

_NO_UNIT, _INCH, _CENTIMETRE = 1, 2, 3  # values of the tag ResolutionUnit; 2 where it is missing


@dataclass(frozen=True)
class Calibration:
    """Axes and scale of a TIFF stack, as the file states them.

    Parameters
    ----------
    axes
        ``"ZYX"``, or ``"TYX"`` for a time series.
    resolution
        Pixels per unit along x and y.
    resolution_unit
        The TIFF tag: 1 none (`unit` holds, as ImageJ has it), 2 inch, 3 centimetre.
    unit
        Its name; ASCII.
    spacing
        Distance of the slices in this unit.
    interval
        Time between the slices in s.
    """

    axes: str = "ZYX"
    resolution: tuple[float, float] | None = None
    resolution_unit: int = _NO_UNIT
    unit: str | None = None
    spacing: float | None = None
    interval: float | None = None


UNCALIBRATED = Calibration()


def read_calibration(path: PathLike) -> Calibration:
    """Read what a readable stack states of its axes and scale (ImageJ, OME, TIFF's own tags).

    Parameters
    ----------
    path : path-like
        As in `StackReader`; of a folder, its first file counts, and its slices are along z.
    """
    file_path = image_files(path)[0] if Path(path).is_dir() else Path(path)
    if file_path.suffix.lower() == ".png":
        return UNCALIBRATED
    with as_input_errors(file_path), tifffile.TiffFile(file_path) as file:
        described = {**(file.shaped_metadata or [{}])[0], **(file.imagej_metadata or {})}
        tags = file.pages.first.tags
        x, y = (tag_ratio(tags.valueof(f"{axis}Resolution")) for axis in "XY")
        is_time = file.series[0].axes.startswith("T") and not Path(path).is_dir()
        stated = {
            "resolution": (x, y) if x > 0 and y > 0 else None,
            "resolution_unit": int(tags.valueof("ResolutionUnit", default=_INCH)),
            "unit": described.get("unit"),
            "spacing": _number(described.get("spacing")),
            "interval": _number(described.get("finterval")),
            **(_ome_scale(file.ome_metadata) if file.ome_metadata else {}),
        }
    if stated["unit"] is not None:  # ImageJ's descriptions are ASCII, and this is its own escape
        unit = str(stated["unit"]).replace("µ", "\\u00B5")
        stated["unit"] = unit.encode("ascii", "replace").decode()
    if stated["resolution_unit"] not in (_NO_UNIT, _INCH, _CENTIMETRE):
        stated["resolution_unit"] = _NO_UNIT
    return Calibration(axes="TYX" if is_time else "ZYX", **stated)


def _ome_scale(xml: str) -> dict[str, Any]:
    """Return the scale that an OME-TIFF states, empty if it does not or is not well formed."""
    try:
        image = tifffile.xml2dict(xml)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        x, y = float(pixels["PhysicalSizeX"]), float(pixels["PhysicalSizeY"])
        scale = {"resolution": (1 / x, 1 / y), "resolution_unit": _NO_UNIT}
        spacing = _number(pixels.get("PhysicalSizeZ"))
        return {**scale, "spacing": spacing, "unit": pixels.get("PhysicalSizeXUnit", "µm")}
    except (KeyError, TypeError, ValueError, ZeroDivisionError, SyntaxError):
        return {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_info(path: PathLike) -> str | None:
    """Return the text that `stack_io.write_slices` recorded in a file, None if there is none."""
    try:
        with as_input_errors(Path(path)), tifffile.TiffFile(path) as file:
            described = file.imagej_metadata or (file.shaped_metadata or [{}])[0]
            return described.get("Info")
    except InputError:
        return None
