"""PNG files of every kind give the pixels that a plain TIFF of the same pixels gives."""

from __future__ import annotations

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_repro.errors import InputError, InputNote
from unet_repro.images.image_files import image_header
from unet_repro.images.png_files import encode_png, pixels_per_metre, read_png
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_labels, read_stack

GREY, RGB, TABLE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6


def noise(depth=8, shape=(7, 13), seed=0, least=0):
    dtype = np.uint16 if depth == 16 else np.uint8
    return np.random.default_rng(seed).integers(least, 2**depth, shape).astype(dtype)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(samples, depth=8, colour=GREY, before=(), after=()):
    """A PNG file (specification, 7.2): rows of samples, packed high bits first, filter 0."""
    height, width = samples.shape[:2]
    if depth == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        bits = samples.reshape(height, -1)[..., None] >> np.arange(depth - 1, -1, -1) & 1
        rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    stream = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", head), *before, (b"IDAT", stream), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def rgb(grey, opacity=None):
    planes = [grey] * 3 if opacity is None else [grey] * 3 + [opacity]
    return np.stack(planes, -1)


def same_as_tiff(path, stack, *, read=read_stack, note=None):
    """Read a PNG, alone and in a folder, and the plain TIFF of the pixels it should give."""
    tifffile.imwrite(path.parent.parent / "plain.tif", stack, photometric="minisblack")
    expected = read(path.parent.parent / "plain.tif")
    for place in (path, path.parent):
        if note is None:
            found = read(place)
        else:
            with pytest.warns(InputNote, match=note) as caught:
                found = read(place)
            assert len(caught) == 1
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder" / "a.png"


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_is_read_as_stored(file, depth):
    image = noise(depth)
    file.write_bytes(png(image, depth))
    same_as_tiff(file, image * 255 if depth == 1 else image)
    assert image_header(file) == ((7, 13), image.dtype, ())


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_labels_are_the_indices_of_a_colour_table(file, depth, transparent):
    indices, table = noise(depth), noise(shape=2**depth * 3, seed=1).tobytes()
    chunks = [(b"PLTE", table)] + [(b"tRNS", b"\0\x80")] * transparent
    file.write_bytes(png(indices, depth, TABLE, chunks))
    same_as_tiff(file, indices, read=read_labels)
    assert image_header(file, as_labels=True) == ((7, 13), np.uint8, ())


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_colour_table_of_greys_is_read_as_them(file, depth):
    indices, greys = noise(depth), noise(shape=2**depth, seed=2)
    file.write_bytes(png(indices, depth, TABLE, [(b"PLTE", rgb(greys).tobytes())]))
    same_as_tiff(file, greys[indices], note="stored with a colour table; read as the grey values")
    table = rgb(greys)
    table[indices[0, 0]] = 1, 2, 3
    file.write_bytes(png(indices, depth, TABLE, [(b"PLTE", table.tobytes())]))
    with pytest.raises(InputError, match=r"colours, such as \(1, 2, 3\)"):
        read_stack(file)


def test_unused_colours_are_not_looked_at(file):
    file.write_bytes(png(noise(1), 4, TABLE, [(b"PLTE", bytes([9, 9, 9, 7, 7, 7, 1, 2, 3]))]))
    same_as_tiff(file, 9 - 2 * noise(1), note="colour table")


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_that_is_stored_as_colour(file, depth):
    image = noise(depth, least=1)
    opaque = np.full_like(image, 2**depth - 1)
    for samples, colour, words in (
        (rgb(image), RGB, "stored as RGB; read as grey"),
        (rgb(image, opaque), RGB_ALPHA, "stored as RGB with opacity; read as grey"),
        (np.stack([image, opaque], -1), GREY_ALPHA, "stored with opacity; read as grey"),
    ):
        file.write_bytes(png(samples, depth, colour))
        same_as_tiff(file, image, note=words)
        with pytest.warns(InputNote), StackReader(file, channels=1) as reader:
            np.testing.assert_array_equal(reader.read()[0], image)
        samples[2, 3, -1] -= 1
        file.write_bytes(png(samples, depth, colour))
        with pytest.raises(InputError, match="at y = 2, x = 3"):
            read_stack(file)
        samples[2, 3, -1] += 1
        n = samples.shape[-1]
        file.write_bytes(png(samples, depth, colour))
        with StackReader(file, channels=n) as reader:
            found = reader.read_region(0, slice(None), slice(None))
        np.testing.assert_array_equal(found, samples.transpose(2, 0, 1))


@pytest.mark.parametrize("depth", [2, 8, 16])
def test_value_that_is_declared_transparent_is_as_stored(file, depth):
    image = noise(depth)
    file.write_bytes(png(image, depth, before=[(b"tRNS", struct.pack(">H", image[0, 0]))]))
    same_as_tiff(file, image, note="declares a value transparent, which is dropped")


def test_transparent_colour_of_a_table_is_no_grey(file):
    chunks = [(b"PLTE", bytes([9, 9, 9, 7, 7, 7])), (b"tRNS", b"\xff\x80")]
    file.write_bytes(png(noise(1), 1, TABLE, chunks))
    with pytest.raises(InputError, match="transparent, such as 128"):
        read_stack(file)


@pytest.mark.parametrize("place", ["before", "after"])
def test_orientation_is_dropped_with_a_word(file, place):
    exif = b"II*\0\x08\0\0\0" + struct.pack("<HHHIHH", 1, 0x0112, 3, 1, 6, 0)
    file.write_bytes(png(noise(), **{place: [(b"eXIf", exif)]}))
    same_as_tiff(file, noise(), note=r"Exif orientation \(6\) is dropped")
    file.write_bytes(png(noise(), **{place: [(b"eXIf", exif[:-4] + b"\1\0\0\0")]}))
    same_as_tiff(file, noise())


def test_scale(file):
    file.write_bytes(encode_png(noise(), (2e6, 1e6 + 0.3)))
    assert pixels_per_metre(file) == ((2_000_000, 1_000_000), True)
    np.testing.assert_array_equal(read_png(file)[0][0], noise())
    for numbers in ((0.2, 1e6), (1e6, 3e9), None):  # what no PNG can hold
        file.write_bytes(encode_png(noise(), numbers))
        assert pixels_per_metre(file) is None


BROKEN = {
    "no table": (png(noise(2), 2, TABLE), "lacks its colour table"),
    "index": (png(noise(2), 2, TABLE, [(b"PLTE", b"\0\0\0")]), "1 colours but the index 3"),
    "animation": (png(noise(), before=[(b"acTL", struct.pack(">II", 5, 0))]), "of 5 images"),
    "colour type": (png(noise(), 8, 5), "colour type 5 of 8 bits"),
    "depth": (png(noise(4), 3), "colour type 0 of 3 bits"),
    "chunk": (png(noise())[:40] + b"\xff" + png(noise())[41:], r"a\.png"),
    "header": (png(noise()).replace(b"\x08\0\0\0\0", b"\x08\0\0\0\1"), "wrong check sum"),
    "few bytes": (b"\x89PNG\r\n\x1a\n"
                  + chunk(b"IHDR", struct.pack(">IIBBBBB", 10**6, 10**6, 8, 0, 0, 0, 0))
                  + chunk(b"IDAT", b"x" * 999) + chunk(b"IEND", b""), "1011 bytes cannot hold"),
    "no header": (b"\x89PNG\r\n\x1a\n" + chunk(b"IEND", b""), "begins with its header"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_refused_in_one_line(file, case):
    content, message = BROKEN[case]
    file.write_bytes(content)
    for place in (file, file.parent):
        with pytest.raises(InputError, match=message) as caught:
            read_stack(place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("colour", [GREY, RGB, TABLE])
def test_none_cut_short_is_read(file, colour):
    samples = rgb(noise()) if colour == RGB else noise()
    content = png(samples, 8, colour, [(b"PLTE", bytes(768))] * (colour == TABLE))
    for end in range(0, len(content) - 4, 7):
        file.write_bytes(content[:end])
        with pytest.raises(InputError, match=r"a\.png"):
            image_header(file)


def test_other_channels_are_refused(file):
    file.write_bytes(png(noise(), 8, TABLE, [(b"PLTE", bytes(768))]))
    with pytest.raises(InputError, match=r"has a colour table \(y × x = 7 × 13\); 3 are needed"):
        StackReader(file, channels=3)
    file.write_bytes(imagecodecs.png_encode(noise()))
    with pytest.raises(InputError, match=r"has 1 channel .*; 4 are needed"):
        StackReader(file, channels=4)
