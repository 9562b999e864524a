"""Lazy reading of stacks: image files and folders of them, by slice or rectangle.

Whatever is read is checked first, so that a damaged file is an error and never a stack of zeros.
"""

import os
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from unet_repro.errors import InputError, note
from unet_repro.files.file_access import FileState
from unet_repro.files.places import as_path
from unet_repro.images.arrays import ArrayImage, ZarrState, is_array, open_array
from unet_repro.images.image_files import (
    OpenedImage,
    image_files,
    image_header,
    open_file,
    open_image,
)
from unet_repro.images.tiff_axes import Axes, check_axes, describe_size
from unet_repro.images.tiff_segments import CACHE_BYTES

PathLike = str | os.PathLike[str]

_TRIAL_PX = 64  # side of what is read on opening where grey was saved as colour


class StackReader:
    """Read a stack by slice or rectangle: an image file, a folder of images, or an array.

    Opening reads the structure only and checks it. Then a slice or rectangle is held in memory at
    a time; besides, strips and tiles of a TIFF that rectangles touched last are kept decoded, up
    to `cache_bytes` and at least one of each channel, and the PNG or JPEG image read last.
    Threads may share a reader.

    Parameters
    ----------
    path : path-like
        A TIFF file of one or more pages of equal shape and dtype, a PNG or JPEG file (one slice),
        or a folder of such images (one slice each, in natural order; what is no image is passed
        over); an OME-Zarr image or a zarr array, on a disc or by URL; a dataset of HDF5,
        ``file.h5:/name``.
    as_labels : bool
        What is read are labels: colour tables give their indices, for their colours are for
        display.
    channels : int, optional
        How many channels the file must declare; None for grey, as 1. More than one are an axis C
        of a TIFF series or the samples of its pages (RGB, RGBA), or those of colour PNG files.
        Besides them there may be one axis of slices, whatever its name, or the axes T and Z.
        Grey may be stored as RGB or RGBA: every pixel that is read must be grey and opaque.
    axes : str, optional
        The axes of a TIFF in the order of its pixels, in place of those that it declares: letters
        of TCZYXS with Y and X. Axes of length 1 may be left out.
    files : sequence of Path, optional
        Of a folder, these files in this order; by default all images.
    level : int
        Of an OME-Zarr image; 0 is the finest.
    cache_bytes : int
        Rectangles that go from left to right through a TIFF of compressed strips decode each
        strip once only if the strips of their rows fit.

    Attributes
    ----------
    shape : tuple of int
        (z, y, x); no side is 0.
    dtype : numpy.dtype
        As stored, in native byte order.
    depth_axes : tuple of (str, int)
        Axes of the slices with their lengths, whose product is z: ``(("T", 3), ("Z", 5))``.
    read_bytes, stored_bytes : int
        Bytes that reading takes for each pixel of a region, and that the file keeps for it.
    names : list of str
        Where each slice comes from: the file's name, or ``"slice k"`` in a TIFF stack.

    Raises
    ------
    InputError
        If there is no such file, or it is no readable stack of such channels: not a TIFF,
        truncated, other channels, pages of different shape, no slice at all.

    Warns
    -----
    InputNote
        Once for each thing that was not plain: grey stored as colour, a stale description.

    Examples
    --------
    >>> import tempfile
    >>> from unet_repro.images.stacks import write_stack
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_stack(f"{folder}/stack.tif", np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    ...     with StackReader(f"{folder}/stack.tif") as stack:
    ...         print(stack.shape, stack.read_region(1, slice(0, 2), slice(1, 3)).tolist())
    (2, 3, 4) [[[13, 14], [17, 18]]]
    """

    def __init__(
        self,
        path: PathLike,
        *,
        as_labels: bool = False,
        channels: int | None = None,
        axes: str | None = None,
        files: Sequence[Path] | None = None,
        cache_bytes: int = CACHE_BYTES,
        level: int = 0,
    ) -> None:
        self.path = as_path(path)
        check_axes(axes)
        if channels is not None and channels < 1:
            raise InputError(f"{self.path}: {channels} channels are asked for; 1 is the least")
        self._is_array = is_array(path)
        if not self._is_array and not self.path.exists():
            raise InputError(f"{self.path}: no such file or folder")
        if level and not self._is_array:
            raise InputError(f"{self.path}: has no levels: --level {level} is none")
        self.channels = channels or 1
        self._options: dict[str, Any] = {
            "as_labels": as_labels,
            "channels": channels,
            "axes": axes,
            "cache_bytes": cache_bytes,
        }
        self._level = level
        self._lock = threading.RLock()
        self._image: OpenedImage | ArrayImage | None = None  # what is open
        self._image_z = 0
        self._is_folder = not self._is_array and self.path.is_dir()
        if files is None:
            files = image_files(self.path) if self._is_folder else [self.path]
        self._states: list[FileState | ZarrState] = []
        if not self._is_array:
            self._states += [FileState.of(file) for file in files]
        self.depth_axes: Axes
        notes = self._open_folder(files) if self._is_folder else self._open_file()
        stored = self.channels * self.dtype.itemsize
        self.read_bytes, self.stored_bytes = stored, stored
        try:
            self._look_closer(notes)
            for text in notes:
                note(f"{self.path}: {text}")
        except BaseException:
            self.close()
            raise

    def _open_file(self) -> list[str]:
        """Open the one file; return how it is read where that is not plain."""
        image: OpenedImage | ArrayImage
        if self._is_array:
            image = open_array(self.path, **self._options, level=self._level)
            self._states = [image.state]
        else:
            image = open_file(self.path, **self._options)
        self._image = image
        elsewhere = getattr(image, "elsewhere", "")  # of a TIFF
        if elsewhere:
            image.close()
            raise InputError(f"{self.path}: {elsewhere}")
        self.shape, self.dtype = image.shape, image.dtype
        self.depth_axes = getattr(image, "depth_axes", (("Z", self.shape[0]),))
        self.names = [f"slice {z}" for z in range(self.shape[0])]
        return list(image.notes)

    def _open_folder(self, files: Sequence[Path]) -> list[str]:
        """Look at each file's structure; return how they are read where that is not plain."""
        options = {name: self._options[name] for name in ("as_labels", "channels", "axes")}
        headers = [image_header(file, **options) for file in files]
        for file, header in zip(files, headers, strict=True):
            if header[:2] != headers[0][:2]:
                (shape, dtype, _), (shape0, dtype0, _) = header, headers[0]
                raise InputError(
                    f"{file}: is {describe_size(shape)} {dtype}, but {files[0].name} is "
                    f"{describe_size(shape0)} {dtype0}; all slices of a stack must agree"
                )
        (height, width), self.dtype, _ = headers[0]
        self.shape = (len(files), height, width)
        self.depth_axes = (("Z", len(files)),)
        self.names = [file.name for file in files]
        counts = Counter(text for *_, notes in headers for text in notes)
        return [f"{n} of {len(files)} images: {text}" for text, n in counts.items()]

    def _look_closer(self, notes: list[str]) -> None:
        """Refuse most colour images at once, and reckon with what is stored of others."""
        if not notes:
            return
        image = self._image_of(0) if self._is_folder else self._image
        assert image is not None
        # Of a folder each image may be stored in another way, RGBA at most.
        channels = 4 if self._is_folder else getattr(image, "stored_channels", self.channels)
        self.stored_bytes = max(channels, self.channels) * self.dtype.itemsize
        self.read_bytes = 2 * self.stored_bytes + 4 * self.channels  # and copies as they change
        if channels != self.channels:
            rows, columns = (
                slice(max(0, (side - _TRIAL_PX) // 2), min(side, (side + _TRIAL_PX) // 2))
                for side in self.shape[1:]
            )
            image.read_region(0, rows, columns, keep=False)

    def read_region(self, z: int, rows: slice, columns: slice) -> np.ndarray:
        """Copy a rectangle (channels, h, w) of slice `z`; of a TIFF, only what it touches is read.

        A page that is neither compressed nor tiled is read row by row, the wanted columns only. A
        page that is one compressed strip must be decoded as a whole, once for all its rectangles
        that follow. `rows` and `columns` have step 1; ``slice(None)`` is all of them.

        Raises
        ------
        InputError
            If the pixels cannot be read or decoded, with slice and position.
        IndexError
            If there is no such slice or rectangle, or it is empty.
        """
        return self._read(z, rows, columns, keep=True)

    def read_slice(self, z: int) -> np.ndarray:
        """Copy slice `z`, shape (y, x), of a stack of one channel; errors as in `read_region`."""
        if self.channels != 1:
            raise ValueError(f"a slice has {self.channels} channels; read_region reads them")
        return self._read(z, slice(None), slice(None), keep=False)[0]

    def _read(self, z: int, rows: slice, columns: slice, *, keep: bool) -> np.ndarray:
        depth, height, width = self.shape
        if not 0 <= z < depth:
            raise IndexError(f"slice {z} of a stack of {depth}")
        rows, columns = _inside(rows, height), _inside(columns, width)
        if not self._is_folder:
            assert self._image is not None
            return self._image.read_region(z, rows, columns, keep=keep)
        with self._lock:
            return self._image_of(z).read_region(0, rows, columns, keep=keep)

    def _image_of(self, z: int) -> OpenedImage | ArrayImage:
        if self._image is not None and self._image_z == z:
            return self._image
        if self._image is not None:
            self._image.close()
            self._image = None
        file = self._states[z].path
        image = open_image(file, **self._options)
        if (image.shape[1:], image.dtype) != (self.shape[1:], self.dtype):
            image.close()
            raise InputError(f"{file}: has another shape or dtype than when reading began")
        self._image, self._image_z = image, z
        return image

    def read(self) -> np.ndarray:
        """Read a stack into an array (z, y, x), or (z, c, y, x) where it has several channels."""
        channels = (self.channels,) if self.channels > 1 else ()
        shape = (self.shape[0], *channels, *self.shape[1:])
        try:
            stack = np.empty(shape, self.dtype)
        except (MemoryError, ValueError) as error:
            raise InputError(
                f"{self.path}: {describe_size(shape)} pixels of {self.dtype} do not fit into memory"
            ) from error
        for z in range(self.shape[0]):
            region = self._read(z, slice(None), slice(None), keep=False)
            stack[z] = region if channels else region[0]
        return stack

    def fingerprint(self) -> dict[str, Any]:
        """Describe for JSON what is read, with each file's name, size and time as on opening."""
        return {
            "files": [state.record() for state in self._states],
            "shape": list(self.shape),
            "channels": self.channels,
            "dtype": self.dtype.name,
            **({"axes": self._options["axes"]} if self._options["axes"] else {}),
        }

    def check_unchanged(self, z: int | None = None) -> None:
        """Raise `InputError` if a file (or that of slice `z`) has changed in size or time."""
        states = self._states
        if z is not None and len(states) > 1:
            states = [states[z]]
        for state in states:
            state.check_unchanged()

    def close(self) -> None:
        """Close the file; reading from it is then an error."""
        if self._image is not None:
            self._image.close()

    def __enter__(self) -> "StackReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _inside(part: slice, size: int) -> slice:
    """Return the slice with its ends; it must not be empty and must lie inside 0 … size."""
    start = 0 if part.start is None else part.start
    stop = size if part.stop is None else part.stop
    if part.step not in (None, 1) or not 0 <= start < stop <= size:
        raise IndexError(f"{part} is no range of 0 … {size}")
    return slice(start, stop)
