"""PNG files: what their chunks say, and the pixels as they are stored."""

import io
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

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_SIDE_PX = 1_000_000  # libpng decodes no more
_LARGEST_NUMBER = 2**31 - 1
_LARGEST_RATIO = 1032  # of zlib: bytes out per byte in
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"pHYs", b"eXIf", b"acTL", b"tEXt")
_KEYWORD = b"Description"  # of the text that this package records
_LONGEST_KEPT = 2**17  # Exif of a JPEG ends at 2**16
_GREY, _RGB, _TABLE, _GREY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6  # the colour types
_SAMPLES = {_GREY: 1, _RGB: 3, _TABLE: 1, _GREY_ALPHA: 2, _RGB_ALPHA: 4}
_EQUAL = "every pixel's R, G and B are checked to be equal"
_READ_AS_GREY = {
    _RGB: f"stored as RGB; read as grey, {_EQUAL}",
    _TABLE: f"stored with a colour table; read as the grey values in it, {_EQUAL}",
    _GREY_ALPHA: "stored with opacity; read as grey, every pixel is checked to be opaque",
    _RGB_ALPHA: f"stored as RGB with opacity; read as grey, {_EQUAL} and opaque",
}


@dataclass(frozen=True)
class _Png:
    """What the chunks of a file say."""

    shape: tuple[int, int]  # y, x
    depth: int  # bits a sample
    colour: int
    bodies: dict[bytes, bytes]  # of the chunks that matter here
    data: list[slice]  # where the chunks of pixels lie in the file

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.depth == 16 else np.uint8)


def png_header(
    path: Path, *, as_labels: bool = False, channels: int | None = None
) -> tuple[tuple[int, int], np.dtype, tuple[str, ...]]:
    """Give (y, x), the dtype and how the pixels are read, in words, without decoding them.

    Arguments and errors are those of `read_png`.
    """
    with open_binary(path) as file:
        png = _parse(path, file)
    return png.shape, png.dtype, _notes(path, png, as_labels, channels or 1)


def read_png(
    path: Path, *, as_labels: bool = False, channels: int | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a PNG file, shape (channels, y, x), and tell how, in words.

    Parameters
    ----------
    path : Path
    as_labels : bool
        A colour table is for display only: its indices are read, and not its colours.
    channels : int, optional
        What it must have: 1 or None for grey, 2 with opacity, 3 for colour, 4 with opacity. Grey
        may be stored as colour (`as_grey`).

    Returns
    -------
    ndarray of uint8, or of uint16 with 16 bits a sample
        Samples as stored: 2 bits give 0 … 3. But 1 bit of grey gives 0 and 255.
    tuple of str

    Raises
    ------
    InputError
        It is no PNG, truncated or damaged, has other channels or several images, or more than
        1 000 000 pixels a side.
    """
    content = read_bytes(path)
    png = _parse(path, io.BytesIO(content))
    notes = _notes(path, png, as_labels, channels or 1)
    with as_input_errors(path):
        samples = _decode(content, png)
        if png.colour == _TABLE and not as_labels:
            samples = _look_up(path, samples[..., 0], png.bodies)
        pixels = samples.transpose(2, 0, 1)
    return (as_grey(pixels, f"{path}:") if (channels or 1) == 1 else pixels), notes


def pixels_per_metre(path: Path) -> tuple[tuple[int, int], bool] | None:
    """Return the chunk pHYs: pixels along x and y, and whether they are those of a metre."""
    with open_binary(path) as file:
        physical = _parse(path, file).bodies.get(b"pHYs", b"")
    if len(physical) != 9:
        return None
    x, y, unit = struct.unpack(">IIB", physical)
    return ((x, y), unit == 1) if min(x, y) > 0 else None


def png_text(path: Path) -> str | None:
    """Return the text that `encode_png` recorded, None if there is none."""
    with open_binary(path) as file:
        body = _parse(path, file).bodies.get(b"tEXt", b"")
    keyword, _, text = body.partition(b"\0")
    return text.decode("latin-1") if keyword == _KEYWORD else None


def encode_png(
    image: np.ndarray, per_metre: tuple[float, float] | None = None, *, text: str = ""
) -> bytes:
    """Return a grey image as a PNG file.

    Pixels per metre along x and y are recorded as integers, if at all; a text, such as JSON, must
    be ASCII.
    """
    content = bytes(imagecodecs.png_encode(image))
    numbers = [round(number) for number in per_metre or (0, 0)]
    chunks = b""
    if 0 < min(numbers) <= max(numbers) <= _LARGEST_NUMBER:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *numbers, 1))
    if text:
        chunks += _chunk(b"tEXt", _KEYWORD + b"\0" + text.encode("ascii"))
    head = len(_SIGNATURE) + 25  # the chunk IHDR is the first and has 25 bytes
    return content[:head] + chunks + content[head:]


def _parse(path: Path, file: BinaryIO) -> _Png:
    bodies: dict[bytes, bytes] = {}
    data, is_right = [], True
    for name, start, length in _chunks(path, file):
        if name == b"IDAT":
            data.append(slice(start, start + 12 + length))
        elif name in _KEPT and name not in bodies and length <= _LONGEST_KEPT:
            file.seek(start + 4)
            body = file.read(4 + length)
            agrees = file.read(4) == struct.pack(">I", zlib.crc32(body))
            if agrees or name == b"IHDR":
                bodies[name] = body[4:]
            is_right &= agrees or name not in (b"IHDR", b"PLTE")
    # Width, height, bits a sample, colour type; then compression, filters and interlace.
    width, height, depth, colour = struct.unpack(">IIBB", bodies[b"IHDR"][:10])
    if not 0 < min(height, width) <= max(height, width) <= _LARGEST_SIDE_PX:
        raise InputError(
            f"{path}: is damaged, it says that it is {height} × {width} px; 1 to "
            f"{_LARGEST_SIDE_PX} a side can be read"
        )
    if not is_right:
        raise InputError(f"{path}: is damaged, its header has a wrong check sum")
    if colour not in _SAMPLES or depth not in (1, 2, 4, 8, 16):
        raise InputError(f"{path}: is damaged, it has colour type {colour} of {depth} bits")
    size = height * (1 + -(-width * _SAMPLES[colour] * depth // 8))
    held = sum(part.stop - part.start for part in data)
    if size > held * _LARGEST_RATIO:
        raise InputError(
            f"{path}: is damaged, it says that it is {height} × {width} px, which {held} bytes "
            "cannot hold"
        )
    return _Png((height, width), depth, colour, bodies, data)


def _chunks(path: Path, file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of each chunk: length (4 bytes), name, that many, check sum."""
    position = len(_SIGNATURE)
    if file.read(position) != _SIGNATURE:
        raise InputError(f"{path}: is not a PNG file")
    name = b""
    while name != b"IEND":
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            raise InputError(f"{path}: truncated, its last chunk is missing")
        length, name = struct.unpack(">I4s", head)
        if (position == len(_SIGNATURE)) != (name == b"IHDR" and length == 13):
            raise InputError(f"{path}: is damaged, a PNG file begins with its header")
        yield name, position, length
        position += 12 + length


def _notes(path: Path, png: _Png, as_labels: bool, channels: int) -> tuple[str, ...]:
    """Return how the pixels are read where that is not plain; refuse what is not asked for."""
    if channels > 1 and (png.colour == _TABLE or _SAMPLES[png.colour] != channels):
        what, size = _SAMPLES[png.colour], " × ".join(map(str, png.shape))
        found = "a colour table" if png.colour == _TABLE else f"{what} channel{'s' * (what > 1)}"
        raise ChannelsError(f"{path}: has {found} (y × x = {size}); {channels} are needed")
    if png.colour == _TABLE and not 3 <= len(png.bodies.get(b"PLTE", b"")) <= 768:
        raise InputError(f"{path}: is damaged, it lacks its colour table")
    animation = png.bodies.get(b"acTL", b"")
    if len(animation) == 8 and animation[:4] != struct.pack(">I", 1):
        n_images = int.from_bytes(animation[:4])
        raise InputError(f"{path}: is an animation of {n_images} images; save each of them alone")
    notes = []
    if channels == 1 and png.colour != _GREY and not (png.colour == _TABLE and as_labels):
        notes.append(_READ_AS_GREY[png.colour])
    if b"tRNS" in png.bodies and png.colour in (_GREY, _RGB):
        notes.append("declares a value transparent, which is dropped: the pixels are as stored")
    notes += filter(None, [orientation_note(png.bodies.get(b"eXIf", b""))])
    return tuple(notes)


def _decode(content: bytes, png: _Png) -> np.ndarray:
    """Return the samples as stored, (y, x, samples of a pixel).

    The codec is given no more than header and pixels: it would expand a table into its colours,
    and a transparent value into an opacity. Indices are the samples of the same file called grey.
    """
    head, colour = png.bodies[b"IHDR"], _GREY if png.colour == _TABLE else png.colour
    head = head[:9] + bytes([colour]) + head[10:]
    parts = [_chunk(b"IHDR", head), *(content[part] for part in png.data), _chunk(b"IEND", b"")]
    decoded = np.asarray(imagecodecs.png_decode(_SIGNATURE + b"".join(parts)), png.dtype)
    samples = decoded.reshape(*png.shape, _SAMPLES[png.colour])
    if png.depth in (2, 4) or (png.depth, png.colour) == (1, _TABLE):
        samples = samples // (255 // (2**png.depth - 1))  # the codec stretches them to 0 … 255
    return samples


def _look_up(path: Path, indices: np.ndarray, bodies: dict[bytes, bytes]) -> np.ndarray:
    """Return the colours of indices, with their opacity if the file states any."""
    colours = np.frombuffer(bodies[b"PLTE"][: len(bodies[b"PLTE"]) // 3 * 3], np.uint8)
    table = colours.reshape(-1, 3)
    if indices.max() >= len(table):
        raise InputError(
            f"{path}: is damaged, its colour table has {len(table)} colours but the index "
            f"{indices.max()} is used"
        )
    if b"tRNS" in bodies:
        stated = np.frombuffer(bodies[b"tRNS"], np.uint8)[: len(table)]
        opacity = np.pad(stated, (0, len(table) - len(stated)), constant_values=255)
        table = np.column_stack([table, opacity])
    return table[indices]


def _chunk(name: bytes, body: bytes) -> bytes:
    check = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)
