"""TIFF files as stacks: the structure is checked on opening, the pixels are read when asked for.

tifffile logs many defects and then fills with zeros; here each of them is an error.
"""

import os
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from unet_repro.errors import InputError
from unet_repro.files.file_access import as_input_errors, open_binary
from unet_repro.images.colour import as_grey
from unet_repro.images.tiff_axes import Axes, PlaneOrder, plane_order
from unet_repro.images.tiff_directories import ORIENTATION, read_directories
from unet_repro.images.tiff_segments import SegmentReader
from unet_repro.images.tiff_structure import Structure, StructureFinder
from unet_repro.images.tiff_values import GreyScale, check_pixels, colour_of

PathLike = str | os.PathLike[str]

_LARGE_PART_BYTES = 2**30
_TURNED = set(range(2, 9))  # values of the tag Orientation but for 1, the plain one
_LARGEST_RATIO = 100_000  # no scheme reaches it with pixels that differ


class TiffPages:
    """Give the pages of a TIFF file as the slices of one stack; arguments as of `StackReader`.

    `InputError`: the file is not a TIFF, is truncated, or is not one stack of such pages.

    Attributes
    ----------
    shape, dtype, channels
        Of what is read, as those of `StackReader`.
    depth_axes : tuple of (str, int)
        The axes of the slices with their lengths, whose product is their number.
    stored_channels : int
        How many planes are read for a slice; three or four that are equal make one grey channel.
    notes : tuple of str
        How the file is read where that is not plain, without its name.
    elsewhere : str
        Why it is no whole stack, if slices of it are said to lie in other files.
    """

    def __init__(
        self,
        path: PathLike,
        *,
        as_labels: bool,
        channels: int | None,
        axes: str | None,
        cache_bytes: int,
    ) -> None:
        self.path = Path(path)
        self.channels = channels or 1
        self.notes: tuple[str, ...] = ()
        self._handle: BinaryIO = open_binary(self.path)
        try:
            with as_input_errors(self.path):
                self._file = tifffile.TiffFile(self._handle, name=self.path.name)
                directories = read_directories(self.path, self._handle, self._file)
            structure = StructureFinder(
                self.path,
                self._handle,
                self._file,
                directories,
                as_labels=as_labels,
                channels=self.channels,
                axes=axes,
            ).find()
            with as_input_errors(self.path):
                check_pixels(self.path, self._file.pages.first, self.channels, as_labels=as_labels)
                self._open(structure, cache_bytes)
                turned = set(directories.values(ORIENTATION)) & _TURNED
                self.notes += tuple(
                    f"its orientation tag ({value}) is dropped: pixels are used as stored"
                    for value in sorted(turned)
                )
        except BaseException:
            self.close()
            raise

    def _open(self, structure: Structure, cache_bytes: int) -> None:
        self._keyframe = page = self._file.pages.first
        axes, colour = structure.axes, colour_of(page)
        order = plane_order(self.path, axes, self.channels, is_colour=colour is not None)
        self.depth_axes: Axes = order.depth_axes
        self.elsewhere = structure.elsewhere
        self._slices, self._samples = order.planes, axes.samples
        self.stored_channels = order.planes.shape[1]
        self.shape = (len(order.planes), *page.shaped[2:4])
        assert page.dtype is not None
        self._stored_dtype = page.dtype.newbyteorder("=")
        is_grey = axes.samples == 1 or axes.are_planes_slices  # colours have no scale in ImageJ
        imagej = (self._file.imagej_metadata or {}) if is_grey else {}
        self._scale = GreyScale.of(self.path, imagej, self._stored_dtype)
        self.dtype = self._scale.dtype if self._scale else self._stored_dtype
        self._hint = ""
        if self.stored_channels != self.channels and not axes.after:
            self._hint = (
                "; tifffile stores 3 or 4 slices as planes of colours: if these are slices, --axes "
                f"{axes.example} reads them"
            )
        self.notes = structure.notes + self._reading(order, colour)
        self._read_places(structure, axes.n_pages)
        # A strip or tile of each channel is kept in any case.
        samples = max(self.stored_channels, page.shaped[4])
        least = prod(page.chunks[:2]) * samples * self._stored_dtype.itemsize
        self._reader = SegmentReader(
            self.path, self._handle, self._stored_dtype, cache_bytes=max(cache_bytes, least)
        )

    def _reading(self, order: PlaneOrder, colour: str | None) -> tuple[str, ...]:
        """Return in words what is made of what is stored."""
        notes = []
        if self.stored_channels != self.channels:
            what = "opacity is checked to be full" if colour == "grey and opacity" else (
                "R, G and B are checked to be equal"
            )  # fmt: skip
            notes.append(f"stored as {colour}; read as grey, every pixel's {what}")
        if len(order.depth_axes) > 1:
            names, lengths = zip(*order.depth_axes)
            notes.append(
                f"{' x '.join(names)} = {' x '.join(map(str, lengths))}: read as "
                f"{prod(lengths)} slices in this order"
            )
        return (*notes, *([str(self._scale)] if self._scale else []))

    def _read_places(self, structure: Structure, n_pages: int) -> None:
        """Note where the pixels of each page lie, and make sure that they do."""
        page_bytes = prod(self._keyframe.shaped) * self._stored_dtype.itemsize
        self._pages = structure.pages
        self._plain: list[int | None]  # where the pixels of each page begin if they are not coded
        if structure.block is not None:
            self._check_within(structure.block, n_pages * page_bytes)
            self._plain = [structure.block + page * page_bytes for page in range(n_pages)]
            return
        self._plain = []
        for page in self._pages:
            offsets, counts = self._segments(page)
            is_one_piece = bool((offsets[:-1] + counts[:-1] == offsets[1:]).all())
            is_plain = page.keyframe.is_final and is_one_piece
            self._plain.append(int(offsets[0]) if is_plain else None)
            if is_plain:
                self._check_within(int(offsets[0]), page_bytes, f"page {page.index} ")

    def _check_within(self, offset: int, size: int, what: str = "") -> None:
        available = self._file.filehandle.size
        if offset + size > available:
            raise InputError(
                f"{self.path}: {what}truncated, needs {offset + size} bytes but has {available}"
            )

    def _segments(self, page: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets and sizes of the strips or tiles of a page, all of them in the file."""
        if page is None or page.parent.filehandle.name != self._file.filehandle.name:
            raise InputError(
                f"{self.path}: lacks pages that its metadata declare; it is truncated, or they lie "
                "in other files, which are not read: save the stack as one file"
            )
        offsets = np.array(page.dataoffsets, np.uint64)
        counts = np.array(page.databytecounts, np.uint64)
        if len(counts) != prod(page.chunked) or len(offsets) != len(counts):
            raise InputError(f"{self.path}: damaged, page {page.index} lacks a part of its pixels")
        if not (offsets.all() and counts.all()):  # tifffile reads these as zeros
            raise InputError(f"{self.path}: page {page.index} has a part without pixels")
        available = np.uint64(self._file.filehandle.size)
        is_outside = (counts > available) | (offsets > available - np.minimum(counts, available))
        if is_outside.any():
            first = int(np.argmax(is_outside))
            what = f"page {page.index} "
            self._check_within(int(offsets[first]), int(counts[first]), what)
        n_planes, _, height, width, samples = page.shaped
        row = -(-width * samples * page.keyframe.bitspersample // 8)  # rows end at whole bytes
        if page.compression == 1 and int(counts.sum()) < n_planes * height * row:
            raise InputError(f"{self.path}: damaged, page {page.index} has too few bytes")
        part = prod(page.keyframe.chunks) * self._stored_dtype.itemsize
        if part > max(_LARGE_PART_BYTES, int(counts.min()) * _LARGEST_RATIO):
            raise InputError(
                f"{self.path}: damaged, page {page.index} has a part of {int(counts.min())} bytes "
                f"that would hold {part} bytes of pixels"
            )
        return offsets, counts

    def read_region(self, z: int, rows: slice, columns: slice, *, keep: bool = True) -> np.ndarray:
        """Copy a rectangle (channels, h, w) of slice `z`; rows and columns have start and stop.

        `keep` keeps decoded strips and tiles. `InputError`: the pixels cannot be read or decoded.
        """
        what = f"slice {z} "
        stored = self._read_stored(z, rows, columns, what, keep=keep)
        if self.stored_channels != self.channels:
            origin = rows.start, columns.start
            try:
                stored = as_grey(stored, f"{self.path}: {what.strip()}", origin=origin).copy()
            except InputError as error:
                raise InputError(f"{error}{self._hint}") from None
        return stored if self._scale is None else self._scale.apply(stored)

    def _read_stored(
        self, z: int, rows: slice, columns: slice, what: str, *, keep: bool
    ) -> np.ndarray:
        """Copy a rectangle of all planes that are stored for a slice."""
        shape = (self.stored_channels, rows.stop - rows.start, columns.stop - columns.start)
        with as_input_errors(self.path, what):
            region = np.empty(shape, self._stored_dtype)
        places = [divmod(plane, self._samples) for plane in self._slices[z].tolist()]
        self._reader.keep_only([number for number, _ in places])  # memory must not grow with z
        top = 0
        for number, group in groupby(places, key=lambda place: place[0]):
            samples = [sample for _, sample in group]
            wanted = range(samples[0], samples[-1] + 1)
            out = region[top : top + len(samples)]
            top += len(samples)
            offset = self._plain[number]
            if offset is not None:
                self._reader.read_plain(
                    offset, self._keyframe, wanted, rows, columns, out, what=what
                )
            else:
                page = self._pages[number]
                self._reader.read_coded(
                    number, page, wanted, rows, columns, out, what=what, keep=keep
                )
        return region

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def tag_ratio(value: Any) -> float:
    """Return what a TIFF tag of two numbers stands for, 0 if there is no such tag."""
    numerator, denominator = value or (0, 1)
    return numerator / denominator if denominator else 0.0
