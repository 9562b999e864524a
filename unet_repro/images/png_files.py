"""PNG files: the header's claims, and the pixels as channels."""

import struct
from pathlib import Path

import imagecodecs
import numpy as np

from unet_repro.errors import InputError
from unet_repro.files.file_access import as_input_errors, read_bytes

_HEADER_BYTES = 26
_LARGEST_SIDE_PX = 1_000_000  # libpng decodes no more
_GREY, _RGB, _TABLE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # the colour types
_CHANNELS = {_GREY: 1, _RGB: 3, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_NAMES = {_RGB: "colour", _TABLE: "a colour table", _GREY_ALPHA: "transparency"}


def png_header(path: Path, *, channels: int = 1) -> tuple[tuple[int, int], np.dtype]:
    """Give (y, x) and the dtype, uint8 or uint16, of a PNG file without decoding it.

    `channels` is what it must have: 1 grey, 2 grey and opacity, 3 colour, 4 with opacity.
    `InputError`: no PNG, other channels, a colour table, 2 or 4 bits a pixel, no pixels, or more
    than 1 000 000 a side.
    """
    return _parse_header(path, read_bytes(path, _HEADER_BYTES), channels)


def read_png(path: Path, *, channels: int = 1) -> np.ndarray:
    """Read a PNG file as stored, shape (channels, y, x); one bit a pixel gives 0 and 255."""
    content = read_bytes(path)
    shape, dtype = _parse_header(path, content, channels)
    if b"IEND" not in content[-64:]:
        raise InputError(f"{path}: truncated, its last chunk is missing")
    with as_input_errors(path):
        pixels = np.asarray(imagecodecs.png_decode(content), dtype=dtype)
        return pixels.reshape(*shape, channels).transpose(2, 0, 1)


def _parse_header(path: Path, content: bytes, channels: int) -> tuple[tuple[int, int], np.dtype]:
    # The signature (8 bytes), then the chunk IHDR: its length, its name, width, height, bit depth
    # and colour type; multi-byte numbers have the high byte first.
    is_png = content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR"
    if len(content) < _HEADER_BYTES or not is_png:
        raise InputError(f"{path}: is not a PNG file")
    width, height, depth, colour = struct.unpack(">IIBB", content[16:_HEADER_BYTES])
    if _CHANNELS.get(colour) != channels:
        what = _NAMES.get(colour, f"colour type {colour}")
        if channels == 1:
            what = "colour" if colour == _RGB_ALPHA else what
            raise InputError(f"{path}: has {what}, not plain grey; convert it to grey values")
        if colour in _CHANNELS:
            what = f"{_CHANNELS[colour]} channel{'s' if colour else ''}"
        raise InputError(f"{path}: has {what} (y × x = {height} × {width}); {channels} are needed")
    if depth not in (1, 8, 16):
        raise InputError(f"{path}: has {depth} bits a pixel; save it with 8 or 16")
    if not 0 < min(height, width) <= max(height, width) <= _LARGEST_SIDE_PX:
        raise InputError(
            f"{path}: is damaged, it says that it is {height} × {width} px; 1 to "
            f"{_LARGEST_SIDE_PX} a side can be read"
        )
    return (height, width), np.dtype(np.uint16 if depth == 16 else np.uint8)
