"""Which pages a TIFF file holds and what its descriptions say of them; they may be out of date.

Programs that copy pages, such as libtiff's tiffcp and tiffsplit, copy the description as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile

from unet_repro.errors import InputError
from unet_repro.files.file_access import as_input_errors
from unet_repro.images.tiff_axes import Axes, StoredAxes, describe_size
from unet_repro.images.tiff_directories import PHOTOMETRIC, Directories
from unet_repro.images.tiff_values import white_is_zero

_REST_BYTES, _ALIGNMENT = 1024, 16  # what programs leave unused in a file, and before each page
_LARGE_BYTES = 2**32 - 2**25  # from about here on ImageJ's files have one directory
_MINISWHITE, _MINISBLACK, _PALETTE = 0, 1, 3


@dataclass(frozen=True)
class Structure:
    """The pages of a file and their axes."""

    axes: StoredAxes
    pages: list[Any]  # of tifffile, in the order of the axes; none where `block` holds them all
    block: int | None = None  # where the pixels of all pages begin, if they lie together, uncoded
    notes: tuple[str, ...] = ()
    elsewhere: str = ""  # why it is no whole stack, if pages of it are said to lie in other files


class StructureFinder:
    """Find out which pages a file holds; `InputError`: they differ, are not all there, or no stack.

    `axes` are the letters that the user gives.
    """

    def __init__(
        self,
        path: Path,
        handle: BinaryIO,
        file: tifffile.TiffFile,
        directories: Directories,
        *,
        as_labels: bool,
        channels: int,
        axes: str | None,
    ) -> None:
        self._path, self._handle, self._file, self._directories = path, handle, file, directories
        self._as_labels, self._channels, self._axes = as_labels, channels, axes
        self._imagej: dict[str, Any] = file.imagej_metadata or {}

    def find(self) -> Structure:
        """Return the pages and their axes."""
        try:
            with as_input_errors(self._path):  # what tifffile logs comes before our checks
                all_series = self._file.series
        except InputError:
            with as_input_errors(self._path):
                self._check_agreement(1)
                images, samples = self._imagej.get("images"), self._chain[0].samplesperpixel
                if samples > 1 and images == len(self._chain) * samples:
                    # Of 3 or 4 slices tifffile makes planes of one page, ImageJ's text or not.
                    axes = StoredAxes.of_pages(self._chain[0], (("I", len(self._chain)),))
                    return Structure(self._named(axes), self._chain)
                if self._are_pages_whole():
                    return self._of_pages(images)
                if isinstance(images, int) and images > len(self._chain):
                    raise self._wrong_count(images) from None
            raise
        with as_input_errors(self._path):
            if not all_series:
                raise InputError(f"{self._path}: holds no slices")
            self._check_agreement(max(len(series.levels) for series in all_series))
            return self._of_one(all_series[0]) if len(all_series) == 1 else self._of(all_series)

    def _check_agreement(self, n_resolutions: int) -> None:
        """Refuse pages that differ in more than how they are cut and compressed."""
        path, together = self._path, "all slices of a stack must agree"
        if self._file.pages.first.shaped[1] != 1:
            raise InputError(f"{path}: has pages that are volumes; one page per slice is needed")
        if n_resolutions > 1:
            raise InputError(
                f"{path}: holds {n_resolutions} resolutions of one image; save the full one alone"
            )
        other = self._directories.first_of_other_shape()
        if other is not None:
            raise InputError(
                f"{path}: its pages differ in shape or dtype, such as 0 and {other}; {together}"
            )
        other = self._directories.first_of_other_kind()
        if other is not None:
            raise InputError(
                f"{path}: page {other}, unlike page 0, is said to be a thumbnail or a mask of "
                "another page; save the slices alone"
            )
        shown = self._directories.values(PHOTOMETRIC)
        if self._as_labels:  # colour tables are for display
            shown = [_MINISBLACK if value == _PALETTE else value for value in shown]
        other = next((page for page, value in enumerate(shown) if value != shown[0]), None)
        if other is not None and _MINISWHITE in shown:
            page, cause = shown.index(_MINISWHITE), white_is_zero(as_labels=self._as_labels)
            raise InputError(f"{path}: page {page}, unlike others, {cause}")
        if other is not None:
            raise InputError(f"{path}: page {other} has other colours than page 0; {together}")

    def _of_one(self, series: Any) -> Structure:
        """Return the structure of a file whose pages are one series, or are said to be."""
        n_pages = len(self._directories)
        try:
            axes = StoredAxes.of_series(self._path, series)
        except InputError:
            if self._axes is None:
                raise
            lengths = series.get_shape(squeeze=False)
            axes = StoredAxes.of_pages(series.keyframe, (("I", _n_pages(series)),), lengths)
        declared, images = axes.n_pages, self._imagej.get("images")
        if isinstance(images, int) and images != declared * axes.samples:
            declared = max(declared, images)  # tifffile does without what it cannot find
        are_alike = self._directories.are_coded_alike
        block = series.dataoffset if are_alike else None
        if declared == n_pages:
            pages: list[Any] = [] if block is not None else list(series.pages)
            if not are_alike:
                pages = [page and self._chain[page.index] for page in pages]
            return Structure(self._named(axes), pages, block, notes=self._doubts(series))
        if self._are_pages_whole():
            return self._of_pages(declared)
        if n_pages == 1 and block is not None and declared == axes.n_pages:
            # Where one block holds all slices, one directory may stand for all pages, as in
            # ImageJ's files above 4 GiB.
            return Structure(self._named(axes), [], block)
        raise self._wrong_count(declared)

    def _doubts(self, series: Any) -> tuple[str, ...]:
        """Say how an array of three axes without names is read, where it could be slices too."""
        lengths = series.get_shape(squeeze=False)
        is_unnamed = self._axes is None and "Q" in series.axes
        if not is_unnamed or len(lengths) != 3 or lengths[-1] != 1 or lengths[0] == 1:
            return ()
        height, width = series.keyframe.shaped[2:4]
        size, page = describe_size(lengths), describe_size((height, width))
        return (f"stored as {size} without names of axes: read as one image of {page} px",)

    def _of(self, all_series: list[Any]) -> Structure:
        """Return the structure of pages that were written one by one, or block by block."""
        n_pages, first = len(self._directories), all_series[0]
        declared = sum(map(_n_pages, all_series))
        if declared != n_pages:
            if self._are_pages_whole():
                return self._of_pages(declared)
            raise self._wrong_count(declared)
        leading: Axes = (("I", n_pages),)
        innermost = {StoredAxes.of_series(self._path, series).before[-1:] for series in all_series}
        if len(innermost) == 1:
            for axis, length in innermost.pop():
                if axis == "C" and first.keyframe.samplesperpixel == 1:
                    leading = (("I", n_pages // length), (axis, length))
        axes = self._named(StoredAxes.of_pages(first.keyframe, leading))
        notes: tuple[str, ...] = ()
        if self._file.is_ome:
            how = "their slices are read one after the other, at the first one's scale"
            notes = (f"holds {len(all_series)} OME images: {how}",)
        return Structure(axes, self._chain, notes=notes)

    def _of_pages(self, declared: Any) -> Structure:
        """Return the structure of pages that a description does not describe."""
        n_pages, kind = len(self._directories), self._description
        axes = StoredAxes.of_pages(self._chain[0], (("I", n_pages),))
        number = declared if isinstance(declared, int) else "other"
        held = "the one page that it holds is"
        if n_pages > 1:
            held = f"the {n_pages} pages it holds are"
        elsewhere = ""
        if set(re.findall(r'FileName="([^"]*)"', self._file.ome_metadata or "")) - {
            self._path.name
        }:
            elsewhere = (
                f"declares {number} slices but holds {n_pages} pages, and the rest lies in other "
                "files; give the folder that holds them, or save the stack as one file"
            )
        note = f"its {kind} description declares {number} images; {held} read"
        return Structure(self._named(axes), self._chain, notes=(note,), elsewhere=elsewhere)

    def _named(self, axes: StoredAxes) -> StoredAxes:
        """Return axes with the letters that the user gives, or else ImageJ."""
        if self._axes is not None:
            return axes.named(self._path, self._axes)
        imagej = self._imagej
        if axes.samples == 1 or axes.after:
            # tifffile itself declares the pages of an array of three axes as grey ImageJ channels.
            is_grey = self._channels == 1 and imagej.get("mode") == "grayscale"
            return axes.renamed("C", "I") if is_grey else axes
        if imagej.get("channels", 1) == 1:  # tifffile stores 3 or 4 slices as planes of a page
            for name, letter in (("slices", "Z"), ("frames", "T")):
                if imagej.get(name) == axes.samples:
                    return axes.renamed("S", letter)
        return axes

    @property
    def _description(self) -> str:
        """Return whose description says which pages there are."""
        file = self._file
        kinds = {"ImageJ": file.is_imagej, "OME": file.is_ome, "tifffile": file.is_shaped}
        return next((kind for kind, is_it in kinds.items() if is_it), "")

    @cached_property
    def _chain(self) -> list[Any]:
        """All pages in the order of their directories."""
        self._handle.seek(0)
        pages = tifffile.TiffFile(self._handle, name=self._path.name).pages
        if self._directories.are_coded_alike:
            pages.useframes = True  # these need less time and memory
            pages.set_keyframe(0)
        return list(pages)

    def _are_pages_whole(self) -> bool:
        """Tell whether a file that declares other pages holds those of its directories alone.

        A file that is cut off, or holds more pixels than directories point to, does not.
        """
        if not self._description:
            return False
        page = self._chain[0]
        pixels = sum(int(np.sum(page.databytecounts)) for page in self._chain)
        rest = self._file.filehandle.size - self._directories.n_bytes - pixels
        allowed = min(_REST_BYTES, page.nbytes // 2) + _ALIGNMENT * len(self._chain)
        if rest > allowed:
            return False
        # One directory before the pixels could be that of a whole stack, cut off behind a page; but
        # programs leave the other directories out only where their offsets would not fit.
        end = max((a + b for a, b in zip(page.dataoffsets, page.databytecounts)), default=0)
        n_declared = self._imagej.get("images", 1)
        is_large = not isinstance(n_declared, int) or n_declared * page.nbytes >= _LARGE_BYTES
        is_cut_off = page.compression == 1 and self._directories.first < end
        if len(self._chain) > 1 or self._description == "OME" or not is_cut_off:
            return True
        return self._description == "ImageJ" and not is_large and rest <= _ALIGNMENT

    def _wrong_count(self, declared: int) -> InputError:
        n_pages = len(self._directories)
        return InputError(
            f"{self._path}: declares {declared} slices but holds {n_pages} pages; it is truncated, "
            "or they lie in other files, which are not read, or its description is that of another "
            "file: save the stack as one file"
        )


def _n_pages(series: Any) -> int:
    """Return how many pages a series declares."""
    return prod(series.shape) // prod(series.keyframe.shape)
