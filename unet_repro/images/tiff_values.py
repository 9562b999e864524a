"""What the stored numbers of a TIFF file stand for: grey values as they are, or none that we use.

Colours of pages are checked here, and ImageJ's calibration of grey values is applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_repro.errors import InputError
from unet_repro.images.tiff_axes import describe_size

_JPEG = (6, 7, 34892, 33007)  # compressions whose YCbCr pixels tifffile gives as RGB
_STRAIGHT_LINE, _NONE = 0, 20  # ImageJ's codes of calibration functions
_INT16, _INT32 = np.iinfo(np.int16), np.iinfo(np.int32)


def colour_of(page: Any) -> str | None:
    """Return what grey may have been saved as: "RGB", "RGBA" or "grey and opacity"; else None."""
    photometric = tifffile.PHOTOMETRIC(page.photometric).name
    samples = page.samplesperpixel
    if photometric == "RGB" or (photometric == "YCBCR" and page.compression in _JPEG):
        return {3: "RGB", 4: "RGBA"}.get(samples)
    if photometric == "MINISBLACK" and samples == 2 and set(page.extrasamples) & {1, 2}:
        return "grey and opacity"
    return None


def check_pixels(path: Path, page: Any, channels: int, *, as_labels: bool) -> None:
    """Refuse pages whose numbers are no grey values or colours."""
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    if colour == "MINISWHITE":
        raise InputError(f"{path}: {white_is_zero(as_labels=as_labels)}")
    is_plain = colour == "MINISBLACK" or (colour == "PALETTE" and as_labels and channels == 1)
    is_colour = colour == "RGB" or (colour == "YCBCR" and page.compression in _JPEG)
    if not is_plain and not (is_colour and page.samplesperpixel > 1):
        kind = "grey" if channels == 1 else "grey or RGB"
        raise InputError(f"{path}: is {colour}, not {kind}; convert it to {kind} values")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(f"{path}: has pixels of type {page.dtype}, not numbers")
    if 0 in page.shaped:
        raise InputError(f"{path}: holds no pixels ({describe_size(page.shape)})")


def white_is_zero(*, as_labels: bool) -> str:
    """Return what is wrong with 0 for white, and its cure."""
    shown = "" if as_labels else ", Edit > Invert after it keeps the greys as shown"
    return (
        "stores white as 0 (min-is-white), which turns values round or not, depending on who wrote "
        "it; in ImageJ, Image > Lookup Tables > Invert LUT keeps the stored values"
        f"{shown}; then save it"
    )


@dataclass(frozen=True)
class GreyScale:
    """ImageJ's calibration of grey values by a straight line: ``offset + factor * stored``."""

    offset: int
    factor: int
    dtype: np.dtype  # that holds all values there can be

    @classmethod
    def of(cls, path: Path, imagej: dict[str, Any], dtype: np.dtype) -> GreyScale | None:
        """Return what a file declares, None if the stored numbers are the values.

        `InputError`: a function that integers cannot hold exactly.
        """
        function = imagej.get("cf", _NONE)
        if function == _NONE:
            return None
        offset: Any = imagej.get("c0")
        factor: Any = imagej.get("c1")
        stored = "i" if dtype == np.int16 else "u"
        if (
            type(function) is int
            and function == _STRAIGHT_LINE
            and _is_whole(offset)
            and _is_whole(factor)
            and factor
            and dtype.kind == stored
            and dtype.itemsize <= 2
            and "zeroclip" not in imagej
        ):
            offset, factor = int(offset), int(factor)
            if stored == "i":  # ImageJ keeps signed numbers as unsigned ones, 32768 above them
                offset += 2**15 * factor
            ends = [
                offset + factor * int(end) for end in (np.iinfo(dtype).min, np.iinfo(dtype).max)
            ]
            if (offset, factor) == (0, 1):
                return None
            for kind in (_INT16, _INT32):
                if kind.min <= min(ends) and max(ends) <= kind.max:
                    return cls(offset, factor, np.dtype(kind.dtype))
        raise InputError(
            f"{path}: has a calibration of grey values in ImageJ (function {function!s:.9}, "
            f"c0 = {offset!s:.20}, c1 = {factor!s:.20}) that whole numbers do not hold; set "
            "Analyze > Calibrate > Function to None, and save it"
        )

    def __str__(self) -> str:
        return f"ImageJ's calibration {self.offset} + {self.factor} v is applied"

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """Return the values of stored numbers."""
        values = stored.astype(np.int32)
        values *= self.factor
        values += self.offset
        return values.astype(self.dtype, copy=False)


def _is_whole(number: Any) -> bool:
    return type(number) is int or (isinstance(number, float) and number.is_integer())
