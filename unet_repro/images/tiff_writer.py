"""TIFF files larger than memory, written band by band: ImageJ stacks, or tiled OME BigTIFF."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from math import ceil, prod
from typing import Any, Literal, get_args

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile

from unet_repro.choices import Compression
from unet_repro.errors import InputError, note
from unet_repro.images.scale import UNCALIBRATED, Calibration
from unet_repro.images.units import is_ome_length, plain_unit, symbol
from unet_repro.threads import in_order

Layout = Literal["strips", "tiles"]
PathLike = str | os.PathLike[str]

_AXES = ("ZYX", "TYX", "ZCYX", "TCYX", "TZYX", "TZCYX", "ZTYX", "ZTCYX")
_DTYPES = ("uint8", "uint16", "uint32", "float16", "float32")
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_OME_DTYPES = (*_IMAGEJ_DTYPES, "uint32")
_IMAGEJ_PAGE_PX = 2**31 - 1  # an array of Java
_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # classic offsets are 32 bits; 32 MiB are left for the text
_PAGE_TAGS_BYTES, _STRIP_TAGS_BYTES = 512, 64  # more than what tags and an encoder add to the data
_STRIP_BYTES = 2**18
_TILE_PX = 512
# On a network's probabilities libdeflate's level 1 is at most 4 % larger than its level 6 and at
# least 1.3 times as fast; the other zlib encoders of imagecodecs are slower, or no smaller.
_ENCODERS: dict[str, Callable[[bytes], Any]] = {
    "zlib": lambda pixels: imagecodecs.deflate_encode(pixels, level=1),
    "zstd": lambda pixels: imagecodecs.zstd_encode(pixels, level=1),
    "lzw": imagecodecs.lzw_encode,
    "none": lambda pixels: pixels,
}
_WORST_CASE = {
    "zlib": 1.001,
    "lzw": 1.5,
    "none": 1.0,
}  # bytes out per byte in, of what ImageJ reads


def layout_of(
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    compression: Compression = "zlib",
    axes: str = "ZYX",
) -> Layout:
    """Return the layout that `write_pages` gives a file: "strips" where ImageJ can read it.

    Strips need a dtype and a compression that ImageJ knows (not float16, uint32 or zstd), its order
    of axes (TZCYX), pages of less than 2**31 pixels, and a file below 4 GiB even if its pixels do
    not compress at all.

    Examples
    --------
    >>> layout_of((30, 512, 512), "float32"), layout_of((1, 60000, 60000), "float32")
    ('strips', 'tiles')
    """
    imagej_reads = np.dtype(dtype).name in _IMAGEJ_DTYPES and compression in _WORST_CASE
    fits = "ZT" not in axes and _fits_imagej(shape, dtype, compression)
    return "strips" if imagej_reads and fits else "tiles"


def _fits_imagej(shape: tuple[int, ...], dtype: npt.DTypeLike, compression: Compression) -> bool:
    *depths, height, width = shape
    rows, _ = _segment_shape(shape, np.dtype(dtype), "strips")
    pixels = height * width * np.dtype(dtype).itemsize * _WORST_CASE.get(compression, 1.001)
    page = pixels + _PAGE_TAGS_BYTES + ceil(height / rows) * _STRIP_TAGS_BYTES
    return height * width <= _IMAGEJ_PAGE_PX and prod(depths) * page < _CLASSIC_TIFF_BYTES


def write_pages(
    path: PathLike,
    bands: Iterable[np.ndarray],
    *,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    axes: str = "ZYX",
    calibration: Calibration = UNCALIBRATED,
    layout: Layout | None = None,
    compression: Compression = "zlib",
    info: str = "",
    workers: int = 1,
) -> None:
    """Write a TIFF from horizontal bands of its pages, as they come.

    The file grows at `path` and replaces one that is there: the caller renames it (`atomic`,
    `block_store`). The same pixels and texts give the same bytes, whatever the bands and `workers`.
    Not in the paper: its outputs are small enough to be written at once.

    Parameters
    ----------
    bands : iterable of ndarray, shape (rows, x)
        Of `dtype`. Together they cover page 0 from top to bottom, then page 1, and so on; a band
        ends where its page ends, or before. Consumed in the caller's thread, one at a time; a
        band may be overwritten when the next is asked for.
    shape : tuple of int
        (z, y, x) or (z, c, y, x), no side 0; c channels, such as classes, are pages of their own.
        With times and slices (t, z, y, x) or (t, z, c, y, x), or z before t.
    dtype : uint8, uint16, uint32, float16 or float32
    axes : str
        "ZYX" or "ZCYX"; "TYX" or "TCYX" for a time series; "TZYX", "TZCYX", "ZTYX", "ZTCYX".
    calibration : Calibration
        Scale to record. OME has a closed list of units: another one becomes "reference frame".
    layout : "strips" or "tiles", optional
        By default that of `layout_of`. Strips: a classic TIFF as ImageJ writes them, strips of
        the full width and about 256 KiB. Tiles: a BigTIFF of tiles of at most 512 x 512 px with
        OME-XML; float16, which OME does not know, with tifffile's own description instead.
    compression : "zlib", "zstd", "lzw" or "none"
        Lossless; without predictor.
    info : str
        A text to record, such as JSON: ImageJ's image information, or OME's Description.
    workers : int
        Threads that compress.

    Raises
    ------
    InputError
        Another dtype, compression or layout; strips that ImageJ's format cannot hold.
    ValueError
        If `axes` and `shape` do not fit, or the bands do not tile the pages (an error of the
        program, not of its input).
    OSError
        If the disc is full, say; this and any error of `bands` is raised as it is.

    Notes
    -----
    Memory: besides the band, one row of tiles or one strip, and at most ``2 * workers + 1`` tiles
    or strips that are being compressed; never a page.

    Read by tifffile, Pillow, scikit-image and libtiff (float16 and zstd where their builds have
    them). ImageJ without plug-ins (1.53) reads strips with zlib, lzw or no compression, but
    neither tiles nor BigTIFF nor zstd: these need Bio-Formats, which Fiji has.
    """
    dtype = np.dtype(dtype)
    _check_options(path, shape, dtype, axes, layout, compression)
    layout = layout or layout_of(shape, dtype, compression, axes)
    segment_shape = _segment_shape(shape, dtype, layout)
    is_tiled = layout == "tiles"
    is_ome = is_tiled and dtype.name in _OME_DTYPES
    options: dict[str, Any] = {
        "tile": segment_shape if is_tiled else None,
        "rowsperstrip": None if is_tiled else segment_shape[0],
        "compression": None if compression == "none" else compression,
        "photometric": "minisblack",
        "resolution": calibration.resolution,
        "resolutionunit": calibration.resolution_unit,
        "metadata": _ome_texts(shape, dtype, axes, calibration, info) if is_ome else None,
        **({} if is_ome else _description(shape, axes, calibration, info, is_tiled)),
    }
    groups = _regroup(bands, shape, dtype, segment_shape[0])
    segments = _cut(groups, segment_shape, is_tiled)
    # The file is opened here because TiffWriter ignores errors when it closes one: a full disc.
    with (
        open(path, "wb") as file,
        closing(in_order(_ENCODERS[compression], segments, workers)) as encoded,
        tifffile.TiffWriter(file, bigtiff=is_tiled, byteorder="<", ome=is_ome) as writer,
    ):
        writer.write(encoded, shape=shape, dtype=dtype, **options)
        next(encoded, None)  # makes sure that no band is left over


def _check_options(
    path: PathLike,
    shape: tuple[int, ...],
    dtype: np.dtype,
    axes: str,
    layout: Layout | None,
    compression: Compression,
) -> None:
    if axes not in _AXES or len(axes) != len(shape) or min(shape) < 1:
        raise ValueError(f"axes {axes!r} and shape {shape} do not fit")
    for name, value, choices in (
        ("dtype", dtype.name, _DTYPES),
        ("compression", compression, get_args(Compression)),
        ("layout", layout or "tiles", get_args(Layout)),
    ):
        if value not in choices:
            raise InputError(f"{path}: {name} {value!r}: one of {', '.join(choices)} is needed")
    if layout == "strips" and dtype.name not in _IMAGEJ_DTYPES:
        raise InputError(f"{path}: ImageJ's strips cannot hold {dtype}; tiles can")
    if layout == "strips" and "ZT" in axes:
        raise InputError(f"{path}: ImageJ's strips cannot hold axes {axes}; tiles can")
    if layout == "strips" and not _fits_imagej(shape, dtype, compression):
        size = " × ".join(map(str, shape))
        raise InputError(f"{path}: {size} {dtype} is too large for ImageJ's strips; tiles hold it")


def _segment_shape(shape: tuple[int, ...], dtype: np.dtype, layout: Layout) -> tuple[int, int]:
    """Return the rows and columns of a tile (sides are multiples of 16) or strip."""
    height, width = shape[-2:]
    if layout == "tiles":
        return min(_TILE_PX, ceil(height / 16) * 16), min(_TILE_PX, ceil(width / 16) * 16)
    return max(1, min(height, _STRIP_BYTES // (width * dtype.itemsize))), width


def _description(
    shape: tuple[int, ...], axes: str, calibration: Calibration, info: str, is_tiled: bool
) -> dict[str, Any]:
    """Return what makes tifffile write an ImageJ file, or, tiled, one that describes itself.

    Asked for by its own options, it mistakes the rows of pages 1 px wide for their columns.
    """
    scale: dict[str, Any] = {
        "spacing": calibration.spacing,
        "unit": calibration.unit,
        "finterval": calibration.interval,
    }
    scale = {key: value for key, value in scale.items() if value is not None}
    if is_tiled:
        texts = {"shape": shape, "axes": axes, **scale, **({"Info": info} if info else {})}
        return {"description": json.dumps(texts)}
    return {
        "description": tifffile.imagej_description(shape, axes=axes, rgb=False, **scale),
        "extratags": tifffile.imagej_metadata_tag({"Info": info} if info else {}, "<"),
    }


def _ome_texts(
    shape: tuple[int, ...], dtype: np.dtype, axes: str, calibration: Calibration, info: str
) -> dict[str, Any]:
    texts: dict[str, Any] = {
        "axes": axes,
        "Creator": "unet_repro",
        # By default tifffile takes a random one.
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{shape} {dtype} {axes} {calibration} {info}")),
        "Description": info or None,
    }
    if calibration.resolution is not None:
        in_plane = _ome_unit(calibration.plane_unit)
        for axis, resolution in zip("XY", calibration.resolution, strict=True):
            texts |= {f"PhysicalSize{axis}": 1 / resolution, f"PhysicalSize{axis}Unit": in_plane}
    if calibration.spacing is not None:
        unit = _ome_unit(calibration.unit or calibration.plane_unit)
        texts |= {"PhysicalSizeZ": calibration.spacing, "PhysicalSizeZUnit": unit}
    if calibration.interval is not None:
        texts |= {"TimeIncrement": calibration.interval, "TimeIncrementUnit": "s"}
    return {key: value for key, value in texts.items() if value is not None}


def _ome_unit(unit: str | None) -> str:
    """Return the symbol of a unit; OME's own word for one that it has not, which is noted."""
    if unit and is_ome_length(unit):
        return symbol(unit)
    if unit:
        name = plain_unit(unit)
        note(f"OME-TIFF has no unit {name!r}: the sizes are recorded in units of their own")
    return "reference frame"


def _regroup(
    bands: Iterable[np.ndarray], shape: tuple[int, ...], dtype: np.dtype, rows: int
) -> Iterator[np.ndarray]:
    """Yield the pages in groups of at most `rows` rows, each valid until the next is asked for."""
    *depths, height, width = shape
    buffer = np.empty((rows, width), dtype.newbyteorder("<"))
    page, top, filled = 0, 0, 0  # the buffer holds the rows top … top + filled - 1
    for band in bands:
        if page == prod(depths) and len(band):
            raise ValueError(f"more bands than {page} pages of {height} rows")
        if band.ndim != 2 or band.shape[1] != width or band.dtype != dtype:
            raise ValueError(
                f"page {page}: a band of shape {band.shape} {band.dtype}, not (rows, {width}) "
                f"{dtype}"
            )
        if len(band) > height - top - filled:
            raise ValueError(
                f"page {page}: a band of {len(band)} rows at row {top + filled} of {height}"
            )
        while len(band):
            target = buffer[filled : min(rows, height - top)]
            taken = min(len(target), len(band))
            target[:taken] = band[:taken]
            band, filled = band[taken:], filled + taken
            if taken == len(target):
                yield buffer[:filled]
                top, filled = top + filled, 0
        if top == height:
            page, top = page + 1, 0
    if page < prod(depths):
        raise ValueError(f"the bands end at row {top + filled} of page {page} of {prod(depths)}")


def _cut(
    groups: Iterable[np.ndarray], segment_shape: tuple[int, int], is_tiled: bool
) -> Iterator[bytes]:
    """Yield copies of a group's tiles, zeros beyond the page's edges, or of a strip."""
    rows, columns = segment_shape
    for group in groups:
        for left in range(0, group.shape[1], columns):
            part = group[:, left : left + columns]
            if is_tiled and part.shape != segment_shape:
                part = np.pad(part, ((0, rows - part.shape[0]), (0, columns - part.shape[1])))
            yield part.tobytes()
