"""Image files one level below stacks: the images of a folder, each a TIFF of one slice or a PNG."""

import os
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from unet_repro.errors import InputError
from unet_repro.images.png_files import png_header, read_png
from unet_repro.images.tiff_pages import TiffPages
from unet_repro.images.tiff_segments import CACHE_BYTES

PathLike = str | os.PathLike[str]

_TIFF_SUFFIXES = (".tif", ".tiff")
_IMAGE_SUFFIXES = (*_TIFF_SUFFIXES, ".png")


def image_files(folder: PathLike) -> list[Path]:
    """List a folder's TIFF and PNG files, but for hidden ones: ``2.png`` before ``10.png``.

    `InputError`: there is no image, or two differ in nothing but the suffix.
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


class DecodedImage:
    """Give a PNG file as a stack of one slice, as `TiffPages` gives a TIFF; it is decoded once."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, *, channels: int | None, axes: str | None) -> None:
        _check_axes(path, axes)
        self.channels = channels or 1
        self._pixels = read_png(path, channels=self.channels)
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
    """Open a TIFF stack, or a PNG file as a stack of one slice; options as in `TiffPages`."""
    if path.suffix.lower() == ".png":
        return DecodedImage(path, channels=channels, axes=axes)
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
) -> tuple[tuple[int, int], np.dtype, tuple[str, ...]]:
    """Give (y, x), the dtype and how it is read, in words, of one image of a folder undecoded."""
    if path.suffix.lower() == ".png":
        _check_axes(path, axes)
        return (*png_header(path, channels=channels or 1), ())
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
