"""Which pages of a TIFF series make which slice; what is no such stack is refused."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_repro.errors import InputError

_JPEG = (6, 7, 34892, 33007)  # compressions whose YCbCr pixels tifffile gives as RGB


@dataclass(frozen=True)
class PageOrder:
    """How the pages of a series are ordered: one page a slice, or one page a channel."""

    pages: np.ndarray  # int (z, pages of a slice): their numbers in the series
    slice_shape: tuple[int, ...]  # what the series would be of one slice


def page_order(
    path: Path, series: Any, channels: int, *, as_labels: bool, imagej: dict[str, Any]
) -> PageOrder:
    """Find slices and channels of a series from the axes that the file declares.

    More than one channel are the samples of a page or the axis C. `as_labels` accepts pages of one
    channel with a colour table; `imagej` is what ImageJ's description says, if there is one.
    `InputError`: other channels, further axes besides slices, Y and X, no plain pixels.
    """
    if channels == 1:
        _check_grey(path, series, imagej)
    else:
        _check_channels(path, series, channels)
    _check_pixels(path, series, channels, as_labels)
    page = series.keyframe
    if channels == 1:
        n_slices = prod(series.shape[:-2])
        return PageOrder(np.arange(n_slices).reshape(n_slices, 1), series.shape[-2:])
    leading = _leading(series)
    lengths = [length for _, length in leading]
    pages: np.ndarray = np.arange(prod(lengths)).reshape(lengths)
    names = [axis for axis, _ in leading]
    if "C" in names:
        pages = np.moveaxis(pages, names.index("C"), -1).reshape(-1, channels)
        return PageOrder(pages, (channels, *page.shape))
    return PageOrder(pages.reshape(-1, 1), page.shape)


def _leading(series: Any) -> list[tuple[str, int]]:
    """Return the axes longer than 1 that run over the pages, with their lengths."""
    n_leading = series.ndim - series.keyframe.ndim
    axes = zip(series.axes, series.shape[:n_leading])
    return [(axis, length) for axis, length in axes if length > 1]


def _check_grey(path: Path, series: Any, imagej: dict[str, Any]) -> None:
    page = series.keyframe
    # tifffile itself declares the pages of an array of three axes as grey ImageJ channels.
    channel_axes = "S" if imagej.get("mode") == "grayscale" else "SC"
    if page.samplesperpixel != 1 or set(channel_axes) & set(series.axes):
        raise InputError(
            f"{path}: has several channels (axes {series.axes}, {describe_size(series.shape)}); "
            "a grey stack (z, y, x) is needed"
        )


def _check_channels(path: Path, series: Any, channels: int) -> None:
    page = series.keyframe
    leading = _leading(series)
    found = [length for axis, length in leading if axis == "C"]
    if page.samplesperpixel > 1:
        found.append(page.samplesperpixel)
    slice_axes = [axis for axis, _ in leading if axis != "C"]
    n_leading = series.ndim - page.ndim
    if (
        found != [channels]
        or len(slice_axes) > 1
        or "S" in slice_axes
        or series.shape[n_leading:] != page.shape
        or page.shaped[1] != 1  # an axis of depth inside the page
    ):
        raise InputError(
            f"{path}: has axes {series.axes} ({describe_size(series.shape)}); {channels} channels "
            f"are needed, as an axis C or S of {channels}, and at most one axis besides them, Y "
            "and X"
        )


def _check_pixels(path: Path, series: Any, channels: int, as_labels: bool) -> None:
    page = series.keyframe
    colour = tifffile.PHOTOMETRIC(page.photometric).name
    allowed = {"MINISBLACK"}
    if channels > 1:
        allowed |= {"RGB", "YCBCR"} if page.compression in _JPEG else {"RGB"}
    elif as_labels:
        allowed |= {"PALETTE"}
    if colour == "MINISWHITE":
        raise InputError(f"{path}: stores white as 0; invert it and save black as 0")
    if colour not in allowed:
        kind = "grey" if channels == 1 else "grey or RGB"
        raise InputError(f"{path}: is {colour}, not {kind}; convert it to {kind} values")
    if series.dtype is None or series.dtype.kind not in "buif":
        raise InputError(f"{path}: has pixels of type {series.dtype}, not numbers")
    if channels == 1 and (not 2 <= series.ndim <= 3 or page.ndim != 2):
        raise InputError(
            f"{path}: has axes {series.axes} ({describe_size(series.shape)}); a grey stack of "
            "one page per slice (z, y, x) is needed"
        )
    if 0 in series.shape:
        raise InputError(f"{path}: holds no pixels ({describe_size(series.shape)})")


def describe_size(shape: tuple[int, ...]) -> str:
    """Write a shape as people do: ``"3 × 512 × 512"``."""
    return " × ".join(map(str, shape))
