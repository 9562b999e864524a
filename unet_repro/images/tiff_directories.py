"""The chain of directories of a TIFF file, one a page, as their bytes say and no library reads it.

tifffile takes a link that leads out of the file for the end of the chain, and the first directory
for all others where a description calls them equal.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from unet_repro.errors import InputError

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_SIZES |= {16: 8, 17: 8, 18: 8}  # bytes of each type of tag
_WHOLE = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}

SUBFILE = 254  # what a page is: bit 0 a reduced one, bit 2 a mask of another
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
ORIENTATION, SAMPLES, ROWS, PLANES, PREDICTOR = 274, 277, 278, 284, 317
TILE_WIDTH, TILE_HEIGHT, EXTRA, FORMAT, SUBSAMPLING, DEPTH = 322, 323, 338, 339, 530, 32997
_DEFAULTS = {
    SUBFILE: 0,
    BITS: 1,
    COMPRESSION: 1,
    FILL_ORDER: 1,
    ORIENTATION: 1,
    SAMPLES: 1,
    PLANES: 1,
}
_DEFAULTS |= {PREDICTOR: 1, FORMAT: 1, DEPTH: 1}
_SHAPES = (WIDTH, HEIGHT, BITS, SAMPLES, PLANES, FORMAT, DEPTH)  # and types of pixels
_CODES = (COMPRESSION, FILL_ORDER, ROWS, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, SUBSAMPLING, EXTRA)
_READ = {*_SHAPES, *_CODES, SUBFILE, PHOTOMETRIC, ORIENTATION}


@dataclass(frozen=True)
class Directories:
    """What all directories say of their pages, and how many bytes they take besides the pixels."""

    tags: tuple[dict[int, Any], ...]  # of each page: the first value of each tag in `_READ`
    n_bytes: int  # of directories and the values of their tags
    first: int  # where the first one begins

    def __len__(self) -> int:
        """Return the number of pages."""
        return len(self.tags)

    def values(self, tag: int) -> list[Any]:
        """Return the values of a tag, one a page; None where the tag is missing."""
        return [tags.get(tag, _DEFAULTS.get(tag)) for tags in self.tags]

    def first_other(self, *tags: int) -> int | None:
        """Return the first page in which one of these tags is not as in page 0."""
        columns = [self.values(tag) for tag in tags]
        others = [
            next((page for page, value in enumerate(column) if value != column[0]), None)
            for column in columns
        ]
        return min((page for page in others if page is not None), default=None)

    def first_of_other_shape(self) -> int | None:
        """Return the first page whose pixels differ in number or type from those of page 0."""
        return self.first_other(*_SHAPES)

    def first_of_other_kind(self) -> int | None:
        """Return the first page that is, unlike page 0, a reduced image or a mask of another."""
        kinds = [value & 0b101 for value in self.values(SUBFILE)]
        return next((page for page, kind in enumerate(kinds) if kind != kinds[0]), None)

    @property
    def are_coded_alike(self) -> bool:
        """Tell whether all pages are cut and compressed in the same way."""
        return self.first_other(*_CODES) is None


def read_directories(path: Path, handle: BinaryIO, file: Any) -> Directories:
    """Walk along the chain of directories of an open `tifffile.TiffFile`, and read no pixels.

    `InputError`: it is broken, a circle or empty.
    """
    walk = _Walk(path, handle, file.tiff, file.filehandle.size)
    directories = walk.read()
    if not directories.tags:
        raise InputError(f"{path}: holds no slices")
    return directories


class _Walk:
    def __init__(self, path: Path, handle: BinaryIO, layout: Any, size: int) -> None:
        self._path, self._handle, self._layout, self._size = path, handle, layout, size

    def read(self) -> Directories:
        layout = self._layout
        link = 8 if layout.is_bigtiff else 4
        visited: dict[int, dict[int, Any]] = {}
        n_bytes = 2 * link  # the file's header
        while True:
            (offset,) = self._unpack(layout.offsetformat, link)
            if offset == 0:
                return Directories(tuple(visited.values()), n_bytes, next(iter(visited), 0))
            if offset in visited:
                raise InputError(f"{self._path}: damaged, its pages are linked in a circle")
            (n_tags,) = self._unpack(layout.tagnoformat, offset)
            link = offset + layout.tagnosize + n_tags * layout.tagsize
            if link + layout.offsetsize > self._size:
                raise InputError(f"{self._path}: truncated, page {len(visited)} is cut off")
            visited[offset], besides = self._tags(offset + layout.tagnosize, n_tags)
            n_bytes += link + layout.offsetsize - offset + besides

    def _tags(self, start: int, n_tags: int) -> tuple[dict[int, Any], int]:
        """Return the tags of a directory that are wanted, and the bytes of values outside it."""
        layout = self._layout
        order, entry = layout.byteorder, "HHQ" if layout.is_bigtiff else "HHI"
        head = struct.calcsize("<" + entry)
        content = self._bytes(start, n_tags * layout.tagsize)
        found: dict[int, Any] = {}
        besides = 0
        for at in range(0, len(content), layout.tagsize):
            code, kind, count = struct.unpack_from(order + entry, content, at)
            size = count * _SIZES.get(kind, 0)
            is_inside = size <= layout.tagsize - head
            besides += 0 if is_inside else size
            if code not in _READ or kind not in _WHOLE or not count:
                continue
            if is_inside:
                (found[code],) = struct.unpack_from(order + _WHOLE[kind], content, at + head)
            else:
                (place,) = struct.unpack_from(layout.offsetformat, content, at + head)
                (found[code],) = self._unpack(order + _WHOLE[kind], place)
        return found, besides

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack(form, self._bytes(offset, struct.calcsize(form)))

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            raise InputError(
                f"{self._path}: truncated, needs {offset + size} bytes but has {self._size}"
            )
        self._handle.seek(offset)
        return self._handle.read(size)
