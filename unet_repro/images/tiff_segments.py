"""Rectangles of TIFF pages: only the strips and tiles that they touch are read and decoded."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from unet_repro.files.file_access import as_input_errors

CACHE_BYTES = 2**27  # decoded strips and tiles that are kept: 128 MiB
_CCITT = (2, 3, 4)  # compressions of bits, which are decoded to bytes of 0 and 1
_READ_BYTES = 2**24  # how much of a plain page one read asks for


class SegmentReader:
    """Read rectangles of the pages of one open TIFF file, whose position is changed.

    Whatever the file lacks is an `InputError`: nothing is filled in, and nothing is mapped into
    memory, so a file that is cut short while it is read does no harm. Threads may share a reader.
    Decoded strips and tiles are kept up to `cache_bytes`, and always the last one.
    """

    def __init__(self, path: Path, handle: BinaryIO, dtype: np.dtype, *, cache_bytes: int) -> None:
        self._path, self._handle, self._dtype = path, handle, dtype
        self._lock = threading.Lock()
        self._cache = _Cache(cache_bytes)

    def keep_only(self, pages: list[int]) -> None:
        """Forget what was decoded of other pages."""
        self._cache.keep_only(pages)

    def read_plain(
        self,
        offset: int,
        keyframe: Any,
        samples: range,
        rows: slice,
        columns: slice,
        out: np.ndarray,
        *,
        what: str,
    ) -> None:
        """Read a rectangle of a page that lies uncoded, row by row, from `offset` on, into `out`.

        `samples` are the wanted ones of the page, and `out` has shape (samples, h, w); `what` names
        the slice in errors (``"slice 3 "``).
        """
        _, _, height, width, n_beside = keyframe.shaped
        planes, beside = _planes_and_beside(keyframe, samples)
        stored = self._dtype.newbyteorder(keyframe.parent.byteorder)
        pixel = n_beside * stored.itemsize
        n_columns = columns.stop - columns.start
        at_once = max(1, _READ_BYTES // (width * pixel)) if n_columns == width else 1
        with as_input_errors(self._path, what):
            for plane, y in product(planes, range(rows.start, rows.stop, at_once)):
                n_rows = min(at_once, rows.stop - y)
                start = offset + ((plane * height + y) * width + columns.start) * pixel
                values = np.frombuffer(self._bytes(start, n_rows * n_columns * pixel), stored)
                block = values.reshape(n_rows, n_columns, n_beside).transpose(2, 0, 1)[beside]
                first, top = plane - planes.start, y - rows.start
                out[first : first + len(block), top : top + n_rows] = block

    def read_coded(
        self,
        number: int,
        page: Any,
        samples: range,
        rows: slice,
        columns: slice,
        out: np.ndarray,
        *,
        what: str,
        keep: bool,
    ) -> None:
        """Read a rectangle of a page of strips or tiles, all inside the file and none missing.

        `number` tells the page from the others; `keep` keeps what is decoded for the rectangles to
        come; the rest is as in `read_plain`. Errors say where the strip or tile lies.
        """
        planes, beside = _planes_and_beside(page.keyframe, samples)
        for index, plane, y, x in _touched(page.keyframe, planes, rows, columns):
            with as_input_errors(self._path, f"{what}at y = {y}, x = {x} "):
                segment = self._segment(number, page, index, keep=keep)[beside]
                first = plane - planes.start
                top, left = max(rows.start - y, 0), max(columns.start - x, 0)
                part = segment[:, top : rows.stop - y, left : columns.stop - x]
                top, left = y + top - rows.start, x + left - columns.start
                bottom, right = top + part.shape[1], left + part.shape[2]
                out[first : first + len(part), top:bottom, left:right] = part

    def _segment(self, number: int, page: Any, index: int, *, keep: bool) -> np.ndarray:
        known = self._cache.get((number, index))
        if known is not None:
            return known
        keyframe = page.keyframe
        coded = self._bytes(page.dataoffsets[index], page.databytecounts[index])
        with self._lock:
            decode: Callable[..., Any] = keyframe.decode  # made at the first access
        tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        decoded, position, shape = decode(coded, index, **tables)
        if keyframe.compression in _CCITT and self._dtype.kind == "b":
            decoded = decoded != 0
        if decoded.dtype != self._dtype:
            raise ValueError(f"it decodes to {decoded.dtype}, but the tags say {self._dtype}")
        _, _, height, width, _ = keyframe.shaped
        y, x = position[2:4]
        segment = decoded[0, : height - y, : width - x].transpose(2, 0, 1)  # (samples, y, x)
        wanted = (min(shape[1], height - y), min(shape[2], width - x))
        if segment.shape[1:] != wanted:
            raise ValueError(f"it decodes to {segment.shape[1:]}, not {wanted} pixels (y, x)")
        if keep:
            self._cache.put((number, index), segment)
        return segment

    def _bytes(self, offset: int, size: int) -> bytes:
        with self._lock:
            self._handle.seek(offset)
            content = self._handle.read(size)
        if len(content) != size:
            raise EOFError(
                f"the file ends before byte {offset + size}; it has been cut short since it was "
                "opened"
            )
        return content


def _planes_and_beside(keyframe: Any, samples: range) -> tuple[range, slice]:
    """Return the planes that hold the samples, and which ones in each plane."""
    if keyframe.shaped[0] > 1:
        return samples, slice(None)
    return range(1), slice(samples.start, samples.stop)


def _touched(
    keyframe: Any, planes: range, rows: slice, columns: slice
) -> Iterator[tuple[int, int, int, int]]:
    """Give number, plane, top and left of each strip or tile that meets a rectangle."""
    _, _, height, width, _ = keyframe.shaped
    if keyframe.is_tiled:
        segment_height, segment_width = keyframe.tilelength, keyframe.tilewidth
    else:
        segment_height, segment_width = keyframe.rowsperstrip, width
    n_down, n_across = -(-height // segment_height), -(-width // segment_width)
    down = range(rows.start // segment_height, -(-rows.stop // segment_height))
    across = range(columns.start // segment_width, -(-columns.stop // segment_width))
    for plane, i, j in product(planes, down, across):
        index = (plane * n_down + i) * n_across + j
        yield index, plane, i * segment_height, j * segment_width


class _Cache:
    """Keep the arrays used last, up to a number of bytes, and at least one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._arrays: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> np.ndarray | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def keep_only(self, pages: list[int]) -> None:
        with self._lock:
            for key in [key for key in self._arrays if key[0] not in pages]:
                self._size -= self._arrays.pop(key).nbytes

    def put(self, key: tuple[int, int], array: np.ndarray) -> None:
        with self._lock:
            if key in self._arrays:  # another thread was faster
                return
            self._arrays[key] = array
            self._size += array.nbytes
            while self._size > self._capacity and len(self._arrays) > 1:
                _, dropped = self._arrays.popitem(last=False)
                self._size -= dropped.nbytes
