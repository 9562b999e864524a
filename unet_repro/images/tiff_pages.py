"""TIFF files as stacks: the structure is checked on opening, the pixels are read when asked for.

tifffile logs many defects and then fills with zeros; here each of them is an error.
"""

import os
import struct
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from unet_repro.errors import InputError
from unet_repro.files.file_access import as_input_errors, open_binary
from unet_repro.images.tiff_axes import PageOrder, page_order
from unet_repro.images.tiff_segments import SegmentReader

PathLike = str | os.PathLike[str]

_ELSEWHERE = "they lie in other files, which are not read: save the stack as one file"
_LARGE_PART_BYTES = 2**30
_LARGEST_RATIO = 100_000  # no scheme reaches it with pixels that differ


class TiffPages:
    """Give the pages of a TIFF file as the slices of one stack; arguments as of `StackReader`.

    `InputError`: the file is not a TIFF, is truncated, or is not one stack of such pages.
    """

    def __init__(
        self, path: PathLike, *, as_labels: bool, channels: int | None, cache_bytes: int
    ) -> None:
        self.path = Path(path)
        self.channels = channels or 1
        self.notes: tuple[str, ...] = ()
        self._handle: BinaryIO = open_binary(self.path)
        try:
            with as_input_errors(self.path):
                self._file = tifffile.TiffFile(self._handle, name=self.path.name)
                n_pages = self._count_pages()
                all_series = self._file.series  # what tifffile logs here comes before our checks
            with as_input_errors(self.path):
                self._open(n_pages, all_series, as_labels, cache_bytes)
        except BaseException:
            self.close()
            raise

    def _open(self, n_pages: int, all_series: list[Any], as_labels: bool, cache_bytes: int) -> None:
        if not all_series or n_pages == 0:
            raise InputError(f"{self.path}: holds no slices")
        series = all_series[0]
        imagej = self._file.imagej_metadata or {}
        order = page_order(self.path, series, self.channels, as_labels=as_labels, imagej=imagej)
        self.dtype = series.dtype.newbyteorder("=")
        self._keyframe = series.keyframe
        self._slices = self._all_slices(all_series, order)
        depth, n_together = self._slices.shape
        self.shape = (depth, *self._keyframe.shaped[2:4])
        # Where one block holds all slices, one directory may stand for all pages, as in ImageJ's
        # files above 4 GiB.
        block = series.dataoffset if len(all_series) == 1 else None
        declared = max(depth, int(imagej.get("images", 1)) // n_together)
        is_one_block = block is not None and n_pages == 1
        if declared != depth or (n_pages != self._slices.size and not is_one_block):
            self._refuse_count(declared, n_together, n_pages, n_resolutions=len(series.levels))
        self._read_places(block, all_series)
        # A strip or tile of each channel is kept in any case.
        least = prod(self._keyframe.chunks[:2]) * self.channels * self.dtype.itemsize
        self._reader = SegmentReader(
            self.path, self._handle, self.dtype, cache_bytes=max(cache_bytes, least)
        )

    def _all_slices(self, all_series: list[Any], order: PageOrder) -> np.ndarray:
        """Return the numbers of each slice's pages; after the first series comes one in each."""
        first = all_series[0]
        of_slice = first.keyframe.shape
        # Pages written one by one are each a series of their own.
        for series in all_series[1:]:
            agrees = (series.shape, series.dtype) == (order.slice_shape, first.dtype)
            if not agrees or series.keyframe.shape != of_slice:
                raise InputError(
                    f"{self.path}: its pages differ in shape or dtype; all slices of a stack must "
                    "agree"
                )
        n_more, n_together = len(all_series) - 1, order.pages.shape[1]
        more = order.pages.size + np.arange(n_more * n_together).reshape(n_more, n_together)
        return np.concatenate([order.pages, more])

    def _refuse_count(
        self, declared: int, n_together: int, n_pages: int, *, n_resolutions: int
    ) -> None:
        if n_resolutions > 1:
            raise InputError(
                f"{self.path}: holds {n_resolutions} resolutions of one image; save the full one "
                "alone"
            )
        each = f" of {n_together} pages" if n_together > 1 else ""
        raise InputError(
            f"{self.path}: declares {declared} slices{each} but holds {n_pages} pages; it is "
            f"truncated, or {_ELSEWHERE}"
        )

    def _read_places(self, block: int | None, all_series: list[Any]) -> None:
        """Note where the pixels of each page lie, and make sure that they do."""
        page_bytes = prod(self._keyframe.shaped) * self.dtype.itemsize
        self._pages: list[Any] = []
        self._plain: list[int | None]  # where the pixels of each page begin if they are not coded
        if block is not None:
            self._check_within(block, self._slices.size * page_bytes)
            self._plain = [block + page * page_bytes for page in range(self._slices.size)]
            return
        self._pages = [page for series in all_series for page in series.pages]
        self._plain = []
        for page in self._pages:
            offsets, counts = self._segments(page)
            is_one_piece = bool((offsets[:-1] + counts[:-1] == offsets[1:]).all())
            is_plain = page.keyframe.is_final and is_one_piece
            self._plain.append(int(offsets[0]) if is_plain else None)
            if is_plain:
                self._check_within(int(offsets[0]), page_bytes, f"page {page.index} ")

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

    def _check_within(self, offset: int, size: int, what: str = "") -> None:
        available = self._file.filehandle.size
        if offset + size > available:
            raise InputError(
                f"{self.path}: {what}truncated, needs {offset + size} bytes but has {available}"
            )

    def _segments(self, page: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return offsets and sizes of the strips or tiles of a page, all of them in the file."""
        if page is None or page.parent is not self._file:
            raise InputError(
                f"{self.path}: lacks pages that its metadata declare; it is truncated, or "
                f"{_ELSEWHERE}"
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
        part = prod(page.keyframe.chunks) * self.dtype.itemsize
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
        shape = (self.channels, rows.stop - rows.start, columns.stop - columns.start)
        with as_input_errors(self.path, f"slice {z} "):
            region = np.empty(shape, self.dtype)
        pages = self._slices[z].tolist()
        self._reader.keep_only(pages)  # memory must not grow with the slices
        for number, out in zip(pages, np.split(region, len(pages))):
            offset, what = self._plain[number], f"slice {z} "
            if offset is not None:
                self._reader.read_plain(offset, self._keyframe, rows, columns, out, what=what)
            else:
                page = self._pages[number]
                self._reader.read_coded(number, page, rows, columns, out, what=what, keep=keep)
        return region

    def close(self) -> None:
        """Close the file."""
        self._handle.close()


def tag_ratio(value: Any) -> float:
    """Return what a TIFF tag of two numbers stands for, 0 if there is no such tag."""
    numerator, denominator = value or (0, 1)
    return numerator / denominator if denominator else 0.0
