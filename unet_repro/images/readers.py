"""Reading of folders whose images have several sizes: one `StackReader` after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.files.file_access import FileState
from unet_repro.images.arrays import is_folder_of_images
from unet_repro.images.image_files import image_files, image_header
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import describe_size

PathLike = str | os.PathLike[str]
Size = tuple[int, int]  # height, width


def sizes_in_folder(
    path: PathLike,
    *,
    as_labels: bool = False,
    channels: int | None = None,
    axes: str | None = None,
    files: Sequence[Path] | None = None,
) -> dict[Path, Size]:
    """Return the images of a folder and their sizes if these differ; else, and of a file, nothing.

    Options and errors are those of `StackReader`; `InputError` also for images of several dtypes,
    but for labels of unsigned integers.
    """
    if not is_folder_of_images(path):
        return {}
    found: dict[Path, Size] = {}
    dtypes: dict[np.dtype, Path] = {}
    for file in files or image_files(path):
        size, dtype, *_ = image_header(file, as_labels=as_labels, channels=channels, axes=axes)
        found[file] = size
        dtypes.setdefault(dtype, file)
    if len(set(found.values())) == 1:
        return {}  # whatever else is wrong, `StackReader` says so
    is_lossless = as_labels and all(dtype.kind == "u" for dtype in dtypes)  # ids are ids
    if len(dtypes) > 1 and not is_lossless:
        (dtype0, file0), (dtype, file) = list(dtypes.items())[:2]
        raise InputError(
            f"{file}: is {describe_size(found[file])} {dtype}, but {file0.name} is "
            f"{describe_size(found[file0])} {dtype0}; images may differ in size, not in type"
        )
    return found


class ImagesReader:
    """Read the images of a folder that have several sizes, as `StackReader` reads slices.

    An image is held in memory at a time. Errors are those of `StackReader`.
    """

    def __init__(
        self,
        path: PathLike,
        sizes: dict[Path, Size],
        *,
        as_labels: bool = False,
        axes: str | None = None,
    ) -> None:
        self.path, self.sizes = Path(path), list(sizes.values())
        self.names = [file.name for file in sizes]
        self._options: Any = {"as_labels": as_labels, "axes": axes}
        self._states = [FileState.of(file) for file in sizes]
        with self._opened(0) as reader:
            self.dtype = reader.dtype

    def __len__(self) -> int:
        return len(self.names)

    def _opened(self, z: int) -> StackReader:
        return StackReader(self.path, **self._options, files=[self._states[z].path])

    def read_slice(self, z: int) -> np.ndarray:
        """Copy the image of this number, (y, x)."""
        self._states[z].check_unchanged()
        with self._opened(z) as reader:
            return reader.read_slice(0)

    def check_unchanged(self) -> None:
        """Raise `InputError` if a file has changed in size or time since the reader was made."""
        for state in self._states:
            state.check_unchanged()


def readers(
    path: PathLike,
    *,
    as_labels: bool = False,
    channels: int | None = None,
    axes: str | None = None,
    files: Sequence[Path] | None = None,
) -> Iterator[StackReader]:
    """Open a stack; or, where the images of a folder have several sizes, each image in turn.

    A reader is closed when the next one is asked for. Errors are those of `StackReader`.
    """
    options: dict[str, Any] = {"as_labels": as_labels, "channels": channels, "axes": axes}
    sizes = sizes_in_folder(path, **options, files=files)
    parts: list[Sequence[Path] | None] = [[file] for file in sizes]
    for part in parts or [files]:
        with StackReader(path, **options, files=part) as reader:
            yield reader


def range_of(sizes: list[Size]) -> str:
    """Describe sizes by the smallest and the largest: ``"40 × 50 to 80 × 64"``."""
    by_pixels = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return f"{describe_size(by_pixels[0])} to {describe_size(by_pixels[-1])}"
