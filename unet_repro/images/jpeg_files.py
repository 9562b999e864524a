"""JPEG files of 8 bits a sample: what their segments say, and the pixels."""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import imagecodecs
import numpy as np

from unet_repro.errors import ChannelsError, InputError
from unet_repro.files.file_access import as_input_errors, open_binary, read_bytes
from unet_repro.images.colour import as_grey
from unet_repro.images.exif import orientation_note

_START, _END, _SCAN, _APP0, _APP1 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1  # markers, each after 0xFF
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive; of Huffman codes
_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_RESTARTS = range(0xD0, 0xD8)
_MARKER = re.compile(rb"\xff+[^\x00\xff]")  # 0xFF 0x00 is a byte of the pixels
_MOST_PIXELS_PER_BYTE = 512  # each 8 × 8 of them takes a bit
_PROBE = b"\xa5" * 64
_GREY_NOTE = "stored as RGB; read as grey, every pixel's R, G and B are checked to be equal"
_LABELS_NOTE = "JPEG is lossy: labels saved so hold false values"


@dataclass(frozen=True)
class _Jpeg:
    """What the segments before the pixels say."""

    shape: tuple[int, int]  # y, x
    channels: int
    density: bytes  # of APP0: unit, x, y
    exif: bytes


def jpeg_header(
    path: Path, *, as_labels: bool = False, channels: int | None = None
) -> tuple[tuple[int, int], np.dtype, tuple[str, ...]]:
    """Give (y, x), uint8 and how the pixels are read, in words, without decoding them.

    Arguments and errors are those of `read_jpeg`.
    """
    jpeg = _parse(path)
    return jpeg.shape, np.dtype(np.uint8), _notes(path, jpeg, as_labels, channels or 1)


def read_jpeg(
    path: Path, *, as_labels: bool = False, channels: int | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a JPEG file, shape (channels, y, x), and tell how, in words.

    Parameters
    ----------
    path : Path
    as_labels : bool
        Say that labels do not survive JPEG.
    channels : int, optional
        What it must have: 1 or None for grey, 3 for RGB. Grey may be stored as RGB (`as_grey`).

    Returns
    -------
    ndarray of uint8
    tuple of str

    Raises
    ------
    InputError
        It is no such JPEG or is truncated. There are no check sums: damage inside that can be
        decoded cannot be seen.
    """
    jpeg = _parse(path)
    notes = _notes(path, jpeg, as_labels, channels or 1)
    content = read_bytes(path)
    height, width = jpeg.shape
    if height * width > len(content) * _MOST_PIXELS_PER_BYTE:
        raise InputError(
            f"{path}: is damaged, it says that it is {height} × {width} px, which {len(content)} "
            "bytes cannot hold"
        )
    with as_input_errors(path):
        decoded = _decode(path, content).reshape(height, width, jpeg.channels)
        pixels = decoded.transpose(2, 0, 1)
    return (as_grey(pixels, f"{path}:") if (channels or 1) == 1 else pixels), notes


def pixel_density(path: Path) -> tuple[tuple[int, int], int] | None:
    """Return the pixels along x and y, and of what: 2 an inch, 3 a centimetre, 1 of neither."""
    density = _parse(path).density
    if len(density) != 5:
        return None
    unit, x, y = struct.unpack(">BHH", density)
    return ((x, y), unit + 1) if min(x, y) > 0 and unit in (0, 1, 2) else None


def _parse(path: Path) -> _Jpeg:
    frame = density = exif = b""
    with open_binary(path) as file:
        for marker, body in _segments(path, file):
            if marker in _FRAMES:
                frame = body
            elif marker in _OTHER_FRAMES:
                raise InputError(
                    f"{path}: is a JPEG of a rare kind, lossless or arithmetic-coded; convert it "
                    "to PNG or TIFF"
                )
            elif marker == _APP0 and body.startswith(b"JFIF\0"):
                density = body[7:12]
            elif marker == _APP1 and body.startswith(b"Exif\0\0"):
                exif = body[6:]
    if len(frame) < 6:
        raise InputError(f"{path}: is damaged, it does not say how large it is")
    depth, height, width, channels = struct.unpack(">BHHB", frame[:6])
    if depth != 8 or min(height, width) == 0:
        raise InputError(
            f"{path}: has {height} × {width} px of {depth} bits a sample; 8 bits and 1 px a side "
            "are needed"
        )
    return _Jpeg((height, width), channels, density, exif)


def _segments(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield marker and body of each segment in front of the pixels."""
    if file.read(2) != bytes((0xFF, _START)):
        raise InputError(f"{path}: is not a JPEG file")
    marker = _START
    while marker != _SCAN:
        head = file.read(2)
        while head == b"\xff\xff":  # fill bytes
            head = head[1:] + file.read(1)
        (length,) = struct.unpack(">H", file.read(2).rjust(2, b"\0"))
        body = file.read(max(0, length - 2))
        if len(head) < 2 or length < 2 or len(body) < length - 2:
            raise InputError(f"{path}: truncated or damaged, it ends in front of its pixels")
        if head[0] != 0xFF:
            raise InputError(f"{path}: is damaged, {head.hex()} is no marker of a JPEG")
        marker = head[1]
        yield marker, body


def _notes(path: Path, jpeg: _Jpeg, as_labels: bool, channels: int) -> tuple[str, ...]:
    """Return how the pixels are read where that is not plain; refuse what is not asked for."""
    if jpeg.channels not in {1: (1, 3), 3: (3,)}.get(channels, ()):
        size = " × ".join(map(str, jpeg.shape))
        found = f"{jpeg.channels} channel{'s' * (jpeg.channels > 1)} (y × x = {size})"
        cure = "a grey image is needed, convert it to grey values"
        raise ChannelsError(
            f"{path}: has {found}; {cure if channels == 1 else f'{channels} are needed'}"
        )
    notes = [_GREY_NOTE] * (channels < jpeg.channels) + [_LABELS_NOTE] * as_labels
    notes += filter(None, [orientation_note(jpeg.exif)])
    return tuple(notes)


def _decode(path: Path, content: bytes) -> np.ndarray:
    """Decode all pixels, or refuse a file that lacks some.

    Where the coded pixels end too early, libjpeg goes on with zeros and only warns. So it decodes
    twice, once with other bytes at each end: where the pixels are all there, those are not used.
    """
    ends, last = _scan_ends(path, content), 0
    probed = []
    for end in ends:
        probed += [content[last:end], _PROBE]
        last = end
    probe = zlib.crc32(imagecodecs.jpeg8_decode(b"".join((*probed, content[last:]))).data)
    pixels = np.asarray(imagecodecs.jpeg8_decode(content))
    if zlib.crc32(pixels.data) != probe:
        raise InputError(f"{path}: truncated or damaged, pixels are missing")
    return pixels


def _scan_ends(path: Path, content: bytes) -> list[int]:
    """Return where coded pixels end: at each marker inside or behind them."""
    ends, is_scan, position = [], False, 2
    while found := _MARKER.search(content, position):
        marker, position = content[found.end() - 1], found.end()
        if is_scan:
            ends.append(found.start())
        if marker == _END:
            return ends
        if marker not in _RESTARTS:
            position += int.from_bytes(content[position : position + 2])
            is_scan = marker == _SCAN
    raise InputError(f"{path}: truncated, its end is missing")
