"""Grey images on disc, one level below stacks: TIFF pages, PNG files, the images of a folder.

tifffile logs many defects and then fills with zeros; here each of them is an error.
"""

import logging
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from math import nan, prod
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile

from unet_repro.errors import InputError

PathLike = str | os.PathLike[str]

_TIFF_SUFFIXES = (".tif", ".tiff")
_IMAGE_SUFFIXES = (*_TIFF_SUFFIXES, ".png")
_MICROMETRES = {"um": 1.0, "µm": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3}
_PNG_COLOUR_TYPES = {2: "colour", 3: "a colour table", 4: "transparency", 6: "colour"}


def image_files(folder: PathLike) -> list[Path]:
    """List the TIFF and PNG files of a folder in natural order.

    Parameters
    ----------
    folder : path-like
        Hidden files and files of other suffixes are passed over.

    Returns
    -------
    list of pathlib.Path
        At least one; numbers in names count as numbers: ``2.png`` before ``10.png``.

    Raises
    ------
    InputError
        If there is no image, or if two differ in nothing but the suffix.
    """
    try:
        entries = list(Path(folder).iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    files = [
        entry
        for entry in entries
        if entry.suffix.lower() in _IMAGE_SUFFIXES and not entry.name.startswith(".")
    ]
    if not files:
        raise InputError(f"{folder}: holds no images ({', '.join(_IMAGE_SUFFIXES)})")
    files.sort(key=_natural_key)
    for file, following in pairwise(files):
        if file.stem == following.stem:
            raise InputError(
                f"{folder}: holds both {file.name} and {following.name}; keep one of them"
            )
    return files


def _natural_key(file: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", file.stem)  # text and digits take turns, text first
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], file.name


class TiffPages:
    """Give the pages of a TIFF file as the slices of one grey stack.

    Parameters
    ----------
    path : path-like
        The file.
    palette : bool
        Accept pages with a colour table and give their indices.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x).
    dtype : numpy.dtype
        In native byte order.
    voxel_size_um : tuple of float or None
        (z, y, x); None where the file does not say, NaN for z where it knows the pixel size only.

    Raises
    ------
    InputError
        If the file is not a TIFF, is truncated, or is not one stack of grey pages.
    """

    def __init__(self, path: PathLike, *, palette: bool = False) -> None:
        self.path = Path(path)
        self._handle: BinaryIO = _open_binary(self.path)
        try:
            with as_input_errors(self.path):
                self._file = tifffile.TiffFile(self._handle, name=self.path.name)
                self._open(palette)
        except BaseException:
            self.close()
            raise

    def _open(self, palette: bool) -> None:
        n_pages = self._count_pages()
        all_series = self._file.series
        if not all_series or n_pages == 0:
            raise InputError(f"{self.path}: holds no slices")
        series = all_series[0]
        self._check_grey(series, palette)
        self.dtype = series.dtype.newbyteorder("=")
        depth, height, width = (1, *series.shape)[-3:]
        # Pages written one by one are each a series of their own.
        if any((s.shape, s.dtype) != ((height, width), series.dtype) for s in all_series[1:]):
            raise InputError(
                f"{self.path}: its pages differ in shape or dtype; all slices of a stack must agree"
            )
        depth += len(all_series) - 1
        self.shape = (depth, height, width)
        # Where one block holds all slices, one directory may stand for all pages, as in ImageJ's
        # files above 4 GiB.
        self._data_offset = series.dataoffset if len(all_series) == 1 else None
        declared = max(depth, int((self._file.imagej_metadata or {}).get("images", 1)))
        is_one_block = self._data_offset is not None and n_pages == 1
        if declared != depth or (n_pages != depth and not is_one_block):
            raise InputError(
                f"{self.path}: declares {declared} slices but holds {n_pages} pages; "
                "it may be truncated"
            )
        if self._data_offset is not None:
            self._check_within(self._data_offset, prod(self.shape) * self.dtype.itemsize)
        else:
            self._pages: list[Any] = [page for s in all_series for page in s.pages]
            for page in self._pages:
                self._check_segments(page)
        self.voxel_size_um = self._voxel_size()

    def _count_pages(self) -> int:
        # Own walk along the chain of directories: tifffile takes a link that leads out of the
        # file for the end of the chain.
        file, layout = self._file.filehandle, self._file.tiff
        link = 8 if layout.is_bigtiff else 4
        visited: set[int] = set()
        while True:
            (offset,) = self._unpack(layout.offsetformat, link)
            if offset == 0:
                return len(visited)
            if offset in visited:
                raise InputError(f"{self.path}: damaged, its pages are linked in a circle")
            visited.add(offset)
            (n_tags,) = self._unpack(layout.tagnoformat, offset)
            link = offset + layout.tagnosize + n_tags * layout.tagsize
            if link + layout.offsetsize > file.size:
                raise InputError(f"{self.path}: truncated, page {len(visited)} is cut off")

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        size = struct.calcsize(form)
        self._check_within(offset, size)
        self._handle.seek(offset)
        return struct.unpack(form, self._handle.read(size))

    def _check_within(self, offset: int, size: int) -> None:
        available = self._file.filehandle.size
        if offset + size > available:
            raise InputError(
                f"{self.path}: truncated, needs {offset + size} bytes but has {available}"
            )

    def _check_grey(self, series: Any, palette: bool) -> None:
        page = series.keyframe
        colour = tifffile.PHOTOMETRIC(page.photometric).name
        allowed = {"MINISBLACK", "PALETTE"} if palette else {"MINISBLACK"}
        # tifffile itself declares the pages of an array of three axes as grey ImageJ channels.
        is_grey_imagej = (self._file.imagej_metadata or {}).get("mode") == "grayscale"
        channel_axes = "S" if is_grey_imagej else "SC"
        if page.samplesperpixel != 1 or set(channel_axes) & set(series.axes):
            raise InputError(
                f"{self.path}: has several channels (axes {series.axes}, {_size(series.shape)}); "
                "a grey stack (z, y, x) is needed"
            )
        if colour == "MINISWHITE":
            raise InputError(f"{self.path}: stores white as 0; invert it and save black as 0")
        if colour not in allowed:
            raise InputError(f"{self.path}: is {colour}, not grey; convert it to grey values")
        if series.dtype is None or series.dtype.kind not in "buif":
            raise InputError(f"{self.path}: has pixels of type {series.dtype}, not numbers")
        if not 2 <= series.ndim <= 3 or page.ndim != 2:
            raise InputError(
                f"{self.path}: has axes {series.axes} ({_size(series.shape)}); a grey stack of "
                "one page per slice (z, y, x) is needed"
            )
        if 0 in series.shape:
            raise InputError(f"{self.path}: holds no pixels ({_size(series.shape)})")

    def _check_segments(self, page: Any) -> None:
        if page is None or page.parent is not self._file:
            raise InputError(f"{self.path}: some of its slices lie in other files")
        counts = page.databytecounts
        if len(counts) != prod(page.chunked) or len(page.dataoffsets) != len(counts):
            raise InputError(f"{self.path}: damaged, page {page.index} lacks a part of its pixels")
        for offset, count in zip(page.dataoffsets, counts, strict=True):
            if offset == 0 or count == 0:  # tifffile reads these as zeros
                raise InputError(f"{self.path}: page {page.index} has a part without pixels")
            self._check_within(offset, count)
        height, width = page.shape
        needed = height * -(-width * page.keyframe.bitspersample // 8)  # rows end at whole bytes
        if page.compression == 1 and sum(counts) < needed:
            raise InputError(f"{self.path}: damaged, page {page.index} has too few bytes")

    def _voxel_size(self) -> tuple[float, float, float] | None:
        shaped = (self._file.shaped_metadata or [{}])[0]
        described = {**shaped, **(self._file.imagej_metadata or {})}
        tags = self._file.pages.first.tags
        unit_um = _MICROMETRES.get(str(described.get("unit")))
        if unit_um is None and tags.valueof("ResolutionUnit") == tifffile.RESUNIT.CENTIMETER:
            unit_um = 1e4
        y_per_unit, x_per_unit = (tag_ratio(tags.valueof(f"{axis}Resolution")) for axis in "YX")
        if unit_um is None or not y_per_unit or not x_per_unit:
            return None
        return (
            float(described.get("spacing", nan)) * unit_um,
            unit_um / y_per_unit,
            unit_um / x_per_unit,
        )

    def read(self, z: int) -> np.ndarray:
        """Read slice `z`.

        Parameters
        ----------
        z : int
            0 … shape[0] − 1.

        Returns
        -------
        ndarray, shape (y, x)
            A new array.

        Raises
        ------
        InputError
            If the pixels cannot be decoded.
        """
        shape = self.shape[1:]
        with as_input_errors(self.path, f"slice {z} "):
            if self._data_offset is None:
                image = self._pages[z].asarray()
            else:
                size = prod(shape) * self.dtype.itemsize
                self._handle.seek(self._data_offset + z * size)
                stored = self.dtype.newbyteorder(self._file.byteorder)
                image = np.frombuffer(self._handle.read(size), stored).reshape(shape)
            return np.array(image, dtype=self.dtype).reshape(shape)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def image_header(path: Path, *, palette: bool = False) -> tuple[tuple[int, int], np.dtype]:
    """Give (y, x) and the dtype of one grey image without decoding it.

    Parameters
    ----------
    path : pathlib.Path
        A TIFF file of one page or a PNG file.
    palette : bool
        Accept a TIFF page with a colour table.

    Returns
    -------
    shape : tuple of int
        (y, x).
    dtype : numpy.dtype
        uint8 or uint16 for PNG.

    Raises
    ------
    InputError
        If the file is not one grey image.
    """
    if path.suffix.lower() in _TIFF_SUFFIXES:
        pages = _open_single(path, palette)
        pages.close()
        return (pages.shape[1], pages.shape[2]), pages.dtype
    return _png_header(path, _read_bytes(path, 26))


def read_image(path: Path, *, palette: bool = False) -> np.ndarray:
    """Read one grey image of a folder.

    Parameters
    ----------
    path : pathlib.Path
        A TIFF file of one page or a PNG file.
    palette : bool
        Accept a TIFF page with a colour table and give its indices.

    Returns
    -------
    ndarray, shape (y, x)
        The pixels as stored; a 1-bit PNG gives uint8 of 0 and 255.

    Raises
    ------
    InputError
        If the file is not one grey image or cannot be decoded.
    """
    if path.suffix.lower() in _TIFF_SUFFIXES:
        pages = _open_single(path, palette)
        try:
            return pages.read(0)
        finally:
            pages.close()
    content = _read_bytes(path)
    shape, dtype = _png_header(path, content)
    if b"IEND" not in content[-64:]:
        raise InputError(f"{path}: truncated, its last chunk is missing")
    with as_input_errors(path):
        return np.asarray(imagecodecs.png_decode(content), dtype=dtype).reshape(shape)


def _open_single(path: Path, palette: bool) -> TiffPages:
    pages = TiffPages(path, palette=palette)
    if pages.shape[0] != 1:
        pages.close()
        raise InputError(
            f"{path}: is a stack of {pages.shape[0]} slices inside a folder of images; give the "
            "file itself, or a folder with one slice a file"
        )
    return pages


def _open_binary(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_bytes(path: Path, size: int = -1) -> bytes:
    with _open_binary(path) as file:
        return file.read(size)


def _png_header(path: Path, content: bytes) -> tuple[tuple[int, int], np.dtype]:
    # The signature (8 bytes), then the chunk IHDR: its length, its name, width, height, bit depth
    # and colour type; multi-byte numbers have the high byte first.
    if len(content) < 26 or content[:8] != b"\x89PNG\r\n\x1a\n" or content[12:16] != b"IHDR":
        raise InputError(f"{path}: is not a PNG file")
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    if colour:
        what = _PNG_COLOUR_TYPES.get(colour, f"colour type {colour}")
        raise InputError(f"{path}: has {what}, not plain grey; convert it to grey values")
    if depth not in (1, 8, 16):
        raise InputError(f"{path}: has {depth} bits a pixel; save it with 8 or 16")
    return (height, width), np.dtype(np.uint16 if depth == 16 else np.uint8)


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def tag_ratio(value: Any) -> float:
    numerator, denominator = value or (0, 1)
    return numerator / denominator if denominator else 0.0


@contextmanager
def as_input_errors(path: Path, what: str = "") -> Iterator[None]:
    # What tifffile and the codecs raise on damaged files is not documented and takes many forms
    # (struct.error, KeyError, MemoryError from a huge size, ...), and some defects are only
    # logged. Warnings in the log are harmless oddities of the tags.
    logged: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            logged.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(collect)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: {what}cannot be read: {cause}") from error
    finally:
        logger.removeFilter(collect)
    if logged:
        raise InputError(f"{path}: {what}is damaged: {' '.join(logged[0].split())}")
