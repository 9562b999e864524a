"""Image files one level below stacks: a file of any format that is read, and those of a folder."""

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from unet_repro.errors import InputError
from unet_repro.images.image_formats import OTHER_SUFFIXES, READ_SUFFIXES, format_of
from unet_repro.images.jpeg_files import jpeg_header, read_jpeg
from unet_repro.images.png_files import png_header, read_png
from unet_repro.images.tiff_pages import TiffPages
from unet_repro.images.tiff_segments import CACHE_BYTES

PathLike = str | os.PathLike[str]
Header = tuple[tuple[int, int], np.dtype, tuple[str, ...]]  # (y, x), dtype, notes

_HEADERS = {"PNG": png_header, "JPEG": jpeg_header}
_READERS = {"PNG": read_png, "JPEG": read_jpeg}


def image_files(folder: PathLike) -> list[Path]:
    """List a folder's TIFF, PNG and JPEG files, but for hidden ones: ``2.png`` before ``10.png``.

    What is no image is passed over, such as texts and folders. `InputError`: there is no image, an
    image of a format that is not read, or two differ in nothing but the suffix.
    """
    try:
        entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    others = [entry.name for entry in entries if entry.name.lower().endswith(OTHER_SUFFIXES)]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise InputError(
            f"{folder}: holds {min(others)}{more} beside what is read, TIFF, PNG and JPEG; "
            "convert such images, or move them elsewhere"
        )
    files = [entry for entry in entries if entry.suffix.lower() in READ_SUFFIXES]
    if not files:
        is_array = Path(folder).suffix.lower() == ".zarr"
        no_array = ", and is no zarr: neither zarr.json nor .zgroup or .zarray is there"
        raise InputError(
            f"{folder}: holds no images ({', '.join(READ_SUFFIXES)}){no_array if is_array else ''}"
        )
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


class DecodedImage:
    """Give a PNG or JPEG file as a stack of one slice, as `TiffPages` gives a TIFF; decoded once.

    `axes` other than "YX", or "ZYX" with one slice, are an `InputError`.
    """

    def __init__(
        self, path: Path, form: str, *, as_labels: bool, channels: int | None, axes: str | None
    ) -> None:
        _check_axes(path, axes)
        self._pixels, self.notes = _READERS[form](path, as_labels=as_labels, channels=channels)
        self.channels = len(self._pixels)
        self.shape = (1, *self._pixels.shape[1:])
        self.dtype = self._pixels.dtype

    def read_region(self, z: int, rows: slice, columns: slice, *, keep: bool = True) -> np.ndarray:
        """Copy a rectangle, as `TiffPages.read_region`; the image is kept in any case."""
        return np.array(self._pixels[:, rows, columns], order="C")

    def close(self) -> None:
        """Do nothing: the file is closed already."""


OpenedImage = TiffPages | DecodedImage


def open_file(
    path: Path,
    *,
    as_labels: bool = False,
    channels: int | None = None,
    axes: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> OpenedImage:
    """Open a TIFF stack, or a PNG or JPEG file as a stack of one slice.

    Options are those of `TiffPages`. `InputError`: another format, or what the readers refuse.
    """
    form = format_of(path)
    if form != "TIFF":
        return DecodedImage(path, form, as_labels=as_labels, channels=channels, axes=axes)
    return TiffPages(
        path, as_labels=as_labels, channels=channels, axes=axes, cache_bytes=cache_bytes
    )


def open_image(
    path: Path,
    *,
    as_labels: bool = False,
    channels: int | None = None,
    axes: str | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> OpenedImage:
    """Open one image of a folder: as `open_file`, but a TIFF must be of one slice."""
    image = open_file(
        path, as_labels=as_labels, channels=channels, axes=axes, cache_bytes=cache_bytes
    )
    if image.shape[0] != 1:
        image.close()
        raise InputError(
            f"{path}: is a stack of {image.shape[0]} slices inside a folder of images; give the "
            "file itself, or a folder with one slice a file"
        )
    return image


def image_header(
    path: Path, *, as_labels: bool = False, channels: int | None = None, axes: str | None = None
) -> Header:
    """Give (y, x), the dtype and how it is read, in words, of one image of a folder undecoded."""
    form = format_of(path)
    if form != "TIFF":
        _check_axes(path, axes)
        return _HEADERS[form](path, as_labels=as_labels, channels=channels)
    pages = open_image(path, as_labels=as_labels, channels=channels, axes=axes)
    pages.close()
    return (pages.shape[1], pages.shape[2]), pages.dtype, pages.notes


def read_image(path: Path, *, as_labels: bool = False) -> np.ndarray:
    """Read one grey image (y, x) of a folder as stored; a 1-bit PNG gives uint8 of 0 and 255."""
    image = open_image(path, as_labels=as_labels)
    try:
        _, height, width = image.shape
        return image.read_region(0, slice(0, height), slice(0, width), keep=False)[0]
    finally:
        image.close()


def _check_axes(path: Path, axes: str | None) -> None:
    if axes not in (None, "YX", "ZYX"):
        raise InputError(f"{path}: is one image, of axes YX or ZYX; {axes} are asked for")
