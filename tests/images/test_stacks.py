"""Reading and writing of stacks: what is read is exact, and what is damaged is refused."""

import logging
import os
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_repro.errors import InputError, InputNote
from unet_repro.images import stacks as stack_io
from unet_repro.images.calibration import Calibration, read_calibration
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import (
    check_pair,
    read_images,
    read_labels,
    read_pair,
    read_stack,
    write_stack,
)


def noise(shape=(4, 24, 30), dtype="uint8", seed=0):
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


def write_png(path, image):
    Path(path).write_bytes(imagecodecs.png_encode(image))


LAYOUTS = {
    "contiguous": {},
    "imagej": {"imagej": True},  # without axes tifffile declares the pages as channels
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "one-directory-for-all": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "undescribed": {"metadata": None},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "tiles": {"tile": (16, 16), "compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_stack_is_read_as_stored_whatever_the_layout(tmp_path, layout, dtype):
    stack = noise(dtype=dtype)
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", **LAYOUTS[layout])
    read = read_stack(tmp_path / "s.tif")
    assert read.dtype == stack.dtype and read.dtype.isnative
    np.testing.assert_array_equal(read, stack)


def test_pages_written_one_by_one_are_one_stack(tmp_path):
    stack = noise()
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for image in stack:
            writer.write(image, photometric="minisblack", contiguous=False)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)


@pytest.mark.parametrize("kind", ["imagej", "imagej without slices", "tifffile"])
def test_slices_behind_a_single_directory_are_read(tmp_path, kind):
    # So are ImageJ's files above 4 GiB: one directory, then the pixels of all slices.
    stack, path = noise(dtype="uint16"), tmp_path / "s.tif"
    if kind == "tifffile":
        options = {"metadata": {"axes": "ZYX", "truncate": True}}
    else:
        options = {"imagej": True, "metadata": {"axes": "ZYX"}}
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        end = first.dataoffsets[0] + stack.nbytes
    content = bytearray(path.read_bytes()[:end])
    struct.pack_into("<I", content, first.offset + 2 + 12 * len(first.tags), 0)  # no next page
    if kind == "imagej without slices":
        content = content.replace(b"slices=4\n", b"xlices=4\n")
        path.write_bytes(content)
        with pytest.raises(InputError, match="declares 4 slices but holds 1 page"):
            read_stack(path)
        return
    path.write_bytes(content)
    np.testing.assert_array_equal(read_stack(path), stack)
    for missing in (1, stack[0].nbytes, stack.nbytes):
        path.write_bytes(content[:-missing])
        with pytest.raises(InputError, match=r"truncated|damaged"):
            read_stack(path)


@pytest.mark.parametrize("shape", [(24, 30), (1, 1), (7, 1), (1, 7), (5, 3), (5, 4)])
def test_single_image_is_a_stack_of_one_slice(tmp_path, shape):
    image = noise(shape)
    tifffile.imwrite(tmp_path / "s.tif", image, photometric="minisblack")
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), image[np.newaxis])


def test_folder_is_read_in_natural_order(tmp_path):
    stack = noise((12, 5, 6), "uint16")
    for z, image in enumerate(stack):
        if z % 2:
            write_png(tmp_path / f"s{z}.png", image)
        else:
            tifffile.imwrite(tmp_path / f"s{z}.TIF", image)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._s0.png").write_bytes(b"left by another system")
    with StackReader(tmp_path) as reader:
        assert reader.names[:3] == ["s0.TIF", "s1.png", "s2.TIF"]
        assert reader.shape == (12, 5, 6) and reader.dtype == np.uint16
        np.testing.assert_array_equal(reader.read_slice(10), stack[10])
        np.testing.assert_array_equal(reader.read(), stack)


def test_reader_reads_one_slice_without_the_others(tmp_path):
    stack = noise((40, 64, 64))
    write_stack(tmp_path / "s.tif", stack)
    with StackReader(tmp_path / "s.tif") as reader:
        os.truncate(tmp_path / "s.tif", (tmp_path / "s.tif").stat().st_size // 2)
        np.testing.assert_array_equal(reader.read_slice(3), stack[3])
        with pytest.raises(InputError, match="slice 39 cannot be read"):
            reader.read_slice(39)
        with pytest.raises(IndexError, match="slice 40 of a stack of 40"):
            reader.read_slice(40)
        with pytest.raises(IndexError):
            reader.read_slice(-1)


def test_slices_can_be_changed(tmp_path):
    write_stack(tmp_path / "s.tif", noise())
    with StackReader(tmp_path / "s.tif") as reader:
        reader.read_slice(0)[0, 0] = 0


def test_bits_are_a_mask(tmp_path):
    mask = noise() > 100
    tifffile.imwrite(tmp_path / "m.tif", mask, photometric="minisblack")
    labels = read_labels(tmp_path / "m.tif")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("layout", ["plain", "imagej", "bigtiff", "pages", "no-description"])
def test_truncated_tiff_is_refused_wherever_it_is_cut(tmp_path, caplog, compression, layout):
    # Some defects tifffile only logs, and a program may well have silenced its log.
    if compression == "zlib":
        caplog.set_level(logging.CRITICAL + 1, "tifffile")
    stack = noise((3, 12, 17))
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(
        path, imagej=layout == "imagej", bigtiff=layout == "bigtiff"
    ) as writer:
        for block in stack if layout == "pages" else [stack]:
            writer.write(
                block,
                photometric="minisblack",
                compression=compression,
                contiguous=layout != "pages",
                metadata=None if layout == "no-description" else {"axes": "ZYX"[-block.ndim :]},
            )
    content = path.read_bytes()
    for size in [*range(0, len(content), 41), *range(len(content) - 8, len(content))]:
        path.write_bytes(content[:size])
        try:
            read = read_stack(path)
        except InputError as error:
            assert "\n" not in str(error) and str(path) in str(error)
        else:  # tifffile pads some files with up to 15 bytes that belong to nothing
            assert len(content) - size <= 15
            np.testing.assert_array_equal(read, stack)
    assert not caplog.records  # nothing but the error is told


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_truncation_is_told_on_opening_not_when_the_last_slice_is_due(tmp_path, compression):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for image in noise():
            writer.write(image, contiguous=False, compression=compression, metadata=None)
    os.truncate(tmp_path / "s.tif", (tmp_path / "s.tif").stat().st_size - 100)
    with pytest.raises(InputError, match="truncated, needs"):
        StackReader(tmp_path / "s.tif")


@pytest.mark.parametrize("size", [0, 7, 8, 20, 30, 200, -40, -14, -1])
def test_truncated_png_is_refused(tmp_path, size):
    write_png(tmp_path / "0.png", noise((40, 50)))
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[:size])
    if size == -1:  # one byte of the last check sum; all pixels are there
        assert read_stack(tmp_path).shape == (1, 40, 50)
        return
    with pytest.raises(InputError, match=r"0\.png"):
        read_stack(tmp_path)


@pytest.mark.parametrize("side", [0, 1_000_001, 2**31 - 1, 2**32 - 1])
def test_png_of_absurd_size_is_refused_from_its_header(tmp_path, side):
    write_png(tmp_path / "0.png", noise((40, 50)))
    content = bytearray((tmp_path / "0.png").read_bytes())
    struct.pack_into(">I", content, 20, side)  # the height
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(InputError, match=f"it says that it is {side} × 50 px"):
        StackReader(tmp_path)


def test_tiff_of_absurd_size_in_a_few_bytes_is_refused_when_opened(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", noise((40, 50)), compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = file.pages[0].tags[name]
            tag.overwrite(2**31 - 1 if tag.dtype == 4 else 2**16 - 1, dtype=tag.dtype)
    with pytest.raises(InputError, match=r"has a part of \d+ bytes that would hold"):
        StackReader(tmp_path / "s.tif")


def test_pages_in_a_circle_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", noise((1, 8, 8)), metadata=None)
    content = bytearray((tmp_path / "s.tif").read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (n_tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * n_tags, first)
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(InputError, match="circle"):
        read_stack(tmp_path / "s.tif")


def test_part_without_pixels_is_not_read_as_zeros(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", noise((1, 32, 32)), tile=(16, 16), metadata=None)
    with tifffile.TiffFile(tmp_path / "s.tif", mode="r+") as file:
        counts = file.pages.first.tags["TileByteCounts"]
        counts.overwrite([*counts.value[:3], 0])
    with pytest.raises(InputError, match="part without pixels"):
        read_stack(tmp_path / "s.tif")


def channels(path):
    tifffile.imwrite(path, noise((3, 8, 9)), ome=True, metadata={"axes": "CYX"})


def white_is_zero(path):
    tifffile.imwrite(path, noise((2, 8, 9)), photometric="miniswhite")


def mixed_pages(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(noise((8, 9)))
        writer.write(noise((8, 10)))


def mixed_dtypes(path):
    with tifffile.TiffWriter(path) as writer:
        writer.write(noise((8, 9)))
        writer.write(noise((8, 9), "uint16"))


BAD_TIFFS = {
    "rgb": (lambda p: tifffile.imwrite(p, noise((8, 9, 3)), photometric="rgb"), "has colours"),
    "rgb stack": (
        lambda p: tifffile.imwrite(p, noise((2, 8, 9, 3)), photometric="rgb"),
        "has colours",
    ),
    "channels": (channels, "several channels"),
    "four axes": (
        lambda p: tifffile.imwrite(p, noise((2, 3, 8, 9)), photometric="minisblack"),
        "one page per slice",
    ),
    "white is zero": (white_is_zero, "white as 0"),
    "colour table": (
        lambda p: tifffile.imwrite(
            p, noise((8, 9)), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
        ),
        "PALETTE, not grey",
    ),
    "complex": (lambda p: tifffile.imwrite(p, noise((2, 8, 9), "complex64")), "not numbers"),
    "pages of two shapes": (mixed_pages, "differ in shape"),
    "pages of two dtypes": (mixed_dtypes, "differ in shape or dtype"),
    "no tiff": (lambda p: p.write_text("cells,area\n"), "not a TIFF"),
    "no bytes": (lambda p: p.write_bytes(b""), "not a TIFF"),
    "no page": (lambda p: p.write_bytes(b"II*\0\0\0\0\0"), "s.tif: "),
}


@pytest.mark.parametrize("case", BAD_TIFFS)
def test_what_is_no_grey_tiff_stack_is_refused(tmp_path, case):
    write, message = BAD_TIFFS[case]
    write(tmp_path / "s.tif")
    with pytest.raises(InputError, match=message) as caught:
        read_images(tmp_path / "s.tif")
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.tif: no such file"):
        read_images(tmp_path / "none.tif")


def folder_of(tmp_path, **images):
    for name, image in images.items():
        write_png(tmp_path / f"{name}.png", image)
    return tmp_path


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "holds no images"),
        (
            {"a": noise((5, 6)), "b": noise((5, 7), "uint16")},
            r"b\.png: is 5 × 7 uint16, but a\.png is 5 × 6 uint8; images may differ in size, not",
        ),
        ({"a": noise((5, 6)), "b": noise((5, 6), "uint16")}, r"b\.png: is 5 × 6 uint16"),
    ],
)
def test_bad_folder_is_refused(tmp_path, images, message):
    with pytest.raises(InputError, match=message):
        read_stack(folder_of(tmp_path, **images))


def test_images_of_several_sizes_are_a_list_in_natural_order(tmp_path):
    images = {"10": noise((4, 9)), "2": noise((5, 6)), "x": noise((5, 6), seed=1)}
    read = read_stack(folder_of(tmp_path, **images))
    assert isinstance(read, list)
    for found, name in zip(read, ("2", "10", "x"), strict=True):
        np.testing.assert_array_equal(found, images[name])
    with pytest.raises(InputError, match=r"10\.png: is 4 × 9 uint8, but 2\.png is 5 × 6 uint8"):
        StackReader(tmp_path)  # it is for one size
    (tmp_path / "10.png").unlink()
    np.testing.assert_array_equal(read_stack(tmp_path), [images["2"], images["x"]])


def test_defects_in_images_of_several_sizes_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.full((3, 4), 0.5, np.float32))
    damaged = np.zeros((5, 4), np.float32)
    damaged[2, 1] = np.nan
    tifffile.imwrite(tmp_path / "b.tif", damaged)
    with pytest.raises(InputError, match=r"b\.tif has the value nan at y = 2, x = 1"):
        read_images(tmp_path)
    with pytest.raises(InputError, match=r"the labels are float32 and hold 0\.5: integers"):
        read_labels(tmp_path)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 4), np.int16))
    tifffile.imwrite(tmp_path / "b.tif", np.full((5, 4), -2, np.int16))
    with pytest.raises(InputError, match=r"b\.tif holds the label -2 at y = 0, x = 0"):
        read_labels(tmp_path)


def test_stack_inside_a_folder_is_refused(tmp_path):
    write_stack(tmp_path / "a.tif", noise())
    with pytest.raises(InputError, match="a stack of 4 slices inside a folder"):
        read_stack(tmp_path)


def test_one_image_in_two_formats_is_refused(tmp_path):
    write_png(tmp_path / "a.png", noise((5, 6)))
    tifffile.imwrite(tmp_path / "a.tif", noise((5, 6)))
    with pytest.raises(InputError, match=r"both a\.png and a\.tif"):
        read_stack(tmp_path)


def interlaced(image):
    """A grey PNG in the seven passes of Adam7 (PNG specification, 8.2)."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4))
    passes += ((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    lines = [line for y, x, dy, dx in passes for line in image[y::dy, x::dx]]
    content = b"".join(
        b"\0" + line.astype(line.dtype.newbyteorder(">")).tobytes() for line in lines
    )
    height, width = image.shape
    head = struct.pack(">IIBBBBB", width, height, 8 * image.itemsize, 0, 0, 0, 1)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_interlaced_png_is_read_as_it_is(tmp_path, dtype):
    image = noise((13, 11), dtype)
    (tmp_path / "0.png").write_bytes(interlaced(image))
    np.testing.assert_array_equal(read_stack(tmp_path), image[None])


def test_text_named_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("not an image, but long enough for a header")
    with pytest.raises(InputError, match="is not a PNG file"):
        read_stack(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_first_pixel_that_is_not_finite_is_named(tmp_path, value):
    stack = noise(dtype="float32")
    stack[2, 5, 7] = stack[2, 6, 0] = stack[3, 0, 0] = value
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    with pytest.raises(InputError, match=rf"slice 2 has the value {value} at y = 5, x = 7"):
        read_images(tmp_path / "s.tif")


def test_labels_that_are_no_whole_numbers_are_refused(tmp_path):
    write_stack(tmp_path / "l.tif", noise(dtype="float32"))
    with pytest.raises(InputError, match=r"l\.tif: the labels are float32 and hold .*: integers"):
        read_labels(tmp_path / "l.tif")


def test_whole_floating_point_labels_are_integers(tmp_path):
    labels = noise(dtype="uint8")
    write_stack(tmp_path / "l.tif", labels.astype(np.float32))
    with pytest.warns(InputNote, match="whole numbers stored as float32: read as integers"):
        read = read_labels(tmp_path / "l.tif")
    assert read.dtype == np.int64
    np.testing.assert_array_equal(read, labels)


def test_negative_label_is_refused(tmp_path):
    labels = noise(dtype="int32")
    labels[1, 2, 3] = -1
    write_stack(tmp_path / "l.tif", labels)
    with pytest.raises(InputError, match="slice 1 holds the label -1 at y = 2, x = 3"):
        read_labels(tmp_path / "l.tif")
    np.testing.assert_array_equal(read_labels(tmp_path / "l.tif", ignore_label=-1), labels)


def test_colour_table_of_labels_is_for_display_only(tmp_path):
    labels = noise((8, 9))
    table = np.zeros((3, 256), np.uint16)
    tifffile.imwrite(tmp_path / "l.tif", labels, photometric="palette", colormap=table)
    np.testing.assert_array_equal(read_labels(tmp_path / "l.tif")[0], labels)


def test_pair_of_different_shape_is_refused():
    with pytest.raises(InputError, match="2 × 5 × 6 but the labels 2 × 6 × 5"):
        check_pair(np.zeros((2, 5, 6)), np.zeros((2, 6, 5), int))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_labels_of_one_class_are_refused(value):
    with pytest.raises(InputError, match=f"all labels are {value}"):
        check_pair(np.zeros((2, 5, 6)), np.full((2, 5, 6), value, np.uint8))


def test_touching_instances_without_background_are_labels():
    labels = np.ones((2, 5, 6), np.uint8)
    labels[:, 2:] = 2
    check_pair(np.zeros((2, 5, 6)), labels)


def test_the_first_image_of_another_size_than_its_labels_is_named(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "label").mkdir()
    for name, size in (("2", (5, 6)), ("10", (4, 9)), ("11", (7, 7))):
        write_png(tmp_path / f"image/{name}.png", noise(size))
        write_png(tmp_path / f"label/{name}.png", noise(size, seed=1))
    images, labels = read_pair(tmp_path / "image", tmp_path / "label")
    assert [image.shape for image in images] == [(5, 6), (4, 9), (7, 7)]
    check_pair(images, labels)
    for name in ("10", "11"):
        write_png(tmp_path / f"label/{name}.png", noise((9, 4)))
    with pytest.raises(InputError, match=r"^10\.png is 4 × 9 but its labels are 9 × 4$"):
        read_pair(tmp_path / "image", tmp_path / "label")
    with pytest.raises(InputError, match="there are 3 images but 2 labels"):
        check_pair(images, labels[:2])
    with pytest.raises(InputError, match="all labels are 3"):
        check_pair(images, [np.full_like(one, 3) for one in labels])
    check_pair(images, [np.full_like(one, z) for z, one in enumerate(labels)])


def test_folders_are_paired_by_stem(tmp_path):
    images, labels = noise((11, 5, 6)), noise((11, 5, 6), seed=1)
    (tmp_path / "image").mkdir()
    (tmp_path / "label").mkdir()
    for z in range(11):
        write_png(tmp_path / f"image/{z}.png", images[z])
        write_png(tmp_path / f"label/{z}.png", labels[z])
    read = read_pair(tmp_path / "image", tmp_path / "label")
    np.testing.assert_array_equal(read[0], images)
    np.testing.assert_array_equal(read[1], labels)
    (tmp_path / "label/10.png").rename(tmp_path / "label/11.png")  # as many, but not the same
    with pytest.raises(InputError, match=r"label: has no partner for 10 \(1 of 11 lack one\)"):
        read_pair(tmp_path / "image", tmp_path / "label")
    (tmp_path / "image/10.png").unlink()
    with pytest.raises(InputError, match="image: has no partner for 11"):
        read_pair(tmp_path / "image", tmp_path / "label")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "uint32", "int32"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_written_stack_is_read_back(tmp_path, dtype, compression):
    stack = noise((3, 20, 30), dtype)
    size = (0.05, 0.004, 2.0)
    write_stack(tmp_path / "s.tif", stack, compression=compression, voxel_size_um=size)
    assert read_calibration(tmp_path / "s.tif") == Calibration(
        resolution=(0.5, 250.0), unit="um", spacing=0.05
    )
    with StackReader(tmp_path / "s.tif") as reader:
        assert reader.dtype == dtype
        np.testing.assert_array_equal(reader.read(), stack)
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert file.series[0].axes == "ZYX"
        assert file.is_imagej == (dtype in ("uint8", "uint16", "float32"))
        assert not file.is_bigtiff


def test_several_channels_are_read_as_such_with_their_labels(tmp_path):
    pixels, ids = noise((3, 2, 8, 9)), np.arange(3 * 8 * 9).reshape(3, 8, 9) % 4
    write_stack(tmp_path / "images.tif", pixels)
    write_stack(tmp_path / "labels.tif", ids.astype(np.uint8))
    paths = tmp_path / "images.tif", tmp_path / "labels.tif"
    with tifffile.TiffFile(paths[0]) as file:
        assert file.series[0].axes == "ZCYX"
    for axes in (None, "ZCYX"):
        read = read_pair(*paths, channels=2, axes=axes)
        for found, expected in zip(read, (pixels, ids), strict=True):
            np.testing.assert_array_equal(found, expected)
    for channels in (1, 3):
        with pytest.raises(InputError, match=f"ZCYX.*--in-channels, here {channels}, must be"):
            read_images(paths[0], channels=channels)
    write_stack(paths[1], ids[:, :7].astype(np.uint8), overwrite=True)
    with pytest.raises(InputError, match="images are 3 × 8 × 9 but the labels 3 × 7 × 9"):
        read_pair(*paths, channels=2)


def test_colour_files_of_several_sizes_are_a_list_of_channels_first(tmp_path):
    colours = [noise((8, 9, 3)), noise((5, 6, 3))]
    for z, image in enumerate(colours):
        (tmp_path / f"{z}.png").write_bytes(imagecodecs.png_encode(image))
    read = read_images(tmp_path, channels=3)
    assert isinstance(read, list)
    for found, image in zip(read, colours, strict=True):
        np.testing.assert_array_equal(found, np.moveaxis(image, -1, 0))
    with pytest.raises(InputError, match=r"has colours.*; --in-channels, here 1, must be"):
        read_images(tmp_path, channels=1)
    with pytest.raises(InputError, match=r"3 channels .*; 4 are needed; --in-channels, here 4"):
        read_images(tmp_path, channels=4)
    with pytest.raises(InputError, match=r"convert it to grey values$"):
        read_images(tmp_path)


def test_a_channel_that_is_not_finite_is_refused(tmp_path):
    pixels = np.zeros((1, 2, 8, 9), np.float32)
    pixels[0, 1, 3, 4] = np.nan
    write_stack(tmp_path / "i.tif", pixels)
    with pytest.raises(InputError, match="the value nan at y = 3, x = 4"):
        read_images(tmp_path / "i.tif", channels=2)


@pytest.mark.parametrize("shape", [(2, 5, 3), (3, 5, 6), (5, 4), (1, 5, 4)])
def test_three_or_four_columns_are_no_colours(tmp_path, shape):
    write_stack(tmp_path / "s.tif", noise(shape))
    np.testing.assert_array_equal(
        read_stack(tmp_path / "s.tif"), noise(shape).reshape(-1, *shape[-2:])
    )


def test_large_stack_is_bigtiff(tmp_path, monkeypatch):
    monkeypatch.setattr(stack_io, "_CLASSIC_TIFF_BYTES", noise().nbytes)
    write_stack(tmp_path / "s.tif", noise())
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert file.is_bigtiff and file.series[0].axes == "ZYX"
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), noise())


@pytest.mark.parametrize("dtype", ["bool", "int64", "float64", "float16"])
def test_dtype_is_never_changed_in_silence(tmp_path, dtype):
    with pytest.raises(InputError, match=f"cannot store {dtype}"):
        write_stack(tmp_path / "s.tif", noise(dtype=dtype))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(0, 5, 6), (5,), (1, 1, 2, 5, 6), (2, 0, 6)])
def test_what_is_no_stack_is_not_written(tmp_path, shape):
    with pytest.raises(InputError, match="is not a stack"):
        write_stack(tmp_path / "s.tif", np.zeros(shape, np.uint8))


def test_existing_output_is_kept_without_overwrite(tmp_path):
    (tmp_path / "s.tif").write_text("precious")
    with pytest.raises(InputError, match="exists already; give --overwrite"):
        write_stack(tmp_path / "s.tif", noise())
    assert (tmp_path / "s.tif").read_text() == "precious"
    write_stack(tmp_path / "s.tif", noise(), overwrite=True)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), noise())


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int32"])
def test_pages_1_px_wide_are_refused_not_turned(tmp_path, dtype):
    with pytest.raises(InputError, match="1 px wide"):
        write_stack(tmp_path / "a.tif", np.zeros((2, 3, 1), dtype))
    assert not list(tmp_path.iterdir())
    write_stack(tmp_path / "a.tif", np.arange(6).reshape(2, 1, 3).astype(dtype))
    assert read_stack(tmp_path / "a.tif").shape == (2, 1, 3)
