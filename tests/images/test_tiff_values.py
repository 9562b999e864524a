"""What stored numbers stand for: masks of bits, grey saved as colour, ImageJ's calibration."""

import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_repro.errors import InputError, InputNote
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_images, read_labels, read_stack

ALL = slice(None)


def noise(shape=(3, 40, 50), dtype="uint8", seed=0):
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("size", [(40, 50), (1, 1), (17, 3), (33, 64)])
def test_masks_of_bits_in_fax_codes(tmp_path, compression, size):
    masks = noise((3, *size)) > 120
    pages = [Image.fromarray(mask) for mask in masks]
    pages[0].save(
        tmp_path / "m.tif", compression=compression, save_all=True, append_images=pages[1:]
    )
    with StackReader(tmp_path / "m.tif", as_labels=True) as reader:
        assert reader.dtype == bool
        np.testing.assert_array_equal(reader.read(), masks)
        rows, columns = slice(size[0] // 2, size[0]), slice(0, (size[1] + 1) // 2)
        region = reader.read_region(1, rows, columns)
        np.testing.assert_array_equal(region[0], masks[1, rows, columns])
    labels = read_labels(tmp_path / "m.tif")
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, masks)


@pytest.mark.parametrize("as_labels", [True, False])
def test_white_as_0_is_refused_with_the_cure(tmp_path, as_labels):
    tifffile.imwrite(tmp_path / "m.tif", noise(), photometric="miniswhite")
    with pytest.raises(InputError, match=r"white as 0 .* Lookup Tables > Invert LUT") as caught:
        StackReader(tmp_path / "m.tif", as_labels=as_labels)
    assert ("Edit > Invert" in str(caught.value)) != as_labels
    assert "\n" not in str(caught.value)


def imagej_file(path, stored, *, cf=0, c0="-32768.0", c1="1.0", more="", **options):
    text = f"ImageJ=1.54f\nimages={len(stored)}\nslices={len(stored)}\ncf={cf}\n"
    text += f"c0={c0}\n" * (c0 is not None) + f"c1={c1}\n" * (c1 is not None)
    text += f"vunit=gray value\n{more}"
    options = {"photometric": "minisblack", "metadata": None, "description": text} | options
    tifffile.imwrite(path, stored, **options)


CALIBRATED = {
    "plain": {},
    "zlib": {"compression": "zlib"},
    "tiles": {"tile": (16, 16), "compression": "lzw"},
    "big-endian": {"byteorder": ">"},
    "planes": {"photometric": "rgb", "planarconfig": "separate"},  # as tifffile does by default
}


@pytest.mark.parametrize("case", CALIBRATED)
def test_signed_numbers_of_imagej(tmp_path, case):
    stack = noise(dtype="int16") - 100
    imagej_file(tmp_path / "s.tif", (stack.astype(int) + 32768).astype("u2"), **CALIBRATED[case])
    with pytest.warns(InputNote, match=r"ImageJ's calibration -32768 \+ 1 v is applied") as notes:
        reader = StackReader(tmp_path / "s.tif")
    assert len(notes) == 1
    with reader:
        assert reader.dtype == np.int16
        np.testing.assert_array_equal(reader.read(), stack)
        region = reader.read_region(1, slice(7, 31), slice(2, 40))
        assert region.dtype == np.int16 and region.flags.owndata
        np.testing.assert_array_equal(region[0], stack[1, 7:31, 2:40])


def test_calibrated_images_of_a_folder(tmp_path):
    stack = noise(dtype="int16") - 100
    for z, image in enumerate(stack):
        imagej_file(tmp_path / f"{z}.tif", (image[None].astype(int) + 32768).astype("u2"))
    with pytest.warns(InputNote, match="3 of 3 images: ImageJ's calibration") as notes:
        read = read_images(tmp_path)
    assert len(notes) == 1 and read.dtype == np.int16
    np.testing.assert_array_equal(read, stack)


@pytest.mark.parametrize(
    ("dtype", "c0", "c1", "wanted"),
    [
        ("uint8", "-128", "1", "int16"),
        ("uint8", "0.0", "128.0", "int16"),
        ("uint8", "0", "129", "int32"),
        ("uint8", "255", "-1", "int16"),
        ("uint16", "0", "2", "int32"),
        ("uint16", "-2147483648", "65537", "int32"),
        ("int16", "-32768", "2", "int32"),
        ("uint16", "-1", "1", "int32"),
    ],
)
def test_straight_lines_are_exact(tmp_path, dtype, c0, c1, wanted):
    ends = np.iinfo(dtype)
    stored = np.linspace(ends.min, ends.max, 2 * 16 * 16).astype(dtype).reshape(2, 16, 16)
    imagej_file(tmp_path / "s.tif", stored, c0=c0, c1=c1)
    unsigned = stored.astype(object) + (32768 if dtype == "int16" else 0)
    expected = (int(float(c0)) + int(float(c1)) * unsigned).astype("int64")
    with pytest.warns(InputNote, match="ImageJ's calibration"):
        read = read_stack(tmp_path / "s.tif")
    assert read.dtype == wanted
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("uint16", {"cf": 20}),
        ("uint16", {"c0": "0", "c1": "1"}),
        ("uint8", {"c0": "0.0", "c1": "1.0"}),
        ("int16", {}),  # ImageJ's own way to say that they are signed
    ],
)
def test_calibrations_that_change_nothing(tmp_path, dtype, options):
    stack = noise(dtype=dtype)
    imagej_file(tmp_path / "s.tif", stack, **options)
    read = read_stack(tmp_path / "s.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, stack)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *(("uint16", {"cf": code}) for code in (1, 3, 8, 21, 22, -1, "x", "nan")),
        ("uint16", {"c0": "0.5"}),
        ("uint16", {"c1": "0.001"}),
        ("uint16", {"c1": "0"}),
        ("uint16", {"c1": "65538"}),
        ("uint16", {"c0": None}),
        ("uint16", {"c0": None, "c1": None}),
        ("uint16", {"c1": "inf"}),
        ("uint16", {"c1": "many"}),
        ("uint16", {"c1": "9" * 400}),
        ("uint16", {"more": "zeroclip=true\n"}),
        ("float32", {}),
        ("int8", {}),
        ("uint32", {}),
    ],
)
def test_other_calibrations_are_refused_with_the_cure(tmp_path, dtype, options):
    imagej_file(tmp_path / "s.tif", noise(dtype=dtype), **options)
    with pytest.raises(InputError, match=r"set Analyze > Calibrate > Function to None") as caught:
        read_stack(tmp_path / "s.tif")
    assert "\n" not in str(caught.value)


COLOURS = {
    "RGB": {"photometric": "rgb"},
    "planes": {"photometric": "rgb", "planarconfig": "separate"},
    "zlib": {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 7},
    "tiles": {"photometric": "rgb", "compression": "lzw", "tile": (16, 16), "predictor": 2},
    "planes of tiles": {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)},
    "ImageJ": {"photometric": "rgb", "imagej": True, "metadata": {"axes": "ZYXS"}},
    "OME": {"photometric": "rgb", "ome": True, "metadata": {"axes": "ZYXS"}},
    "OME, time": {"photometric": "rgb", "ome": True, "metadata": {"axes": "TYXS"}},
    "big": {"photometric": "rgb", "bigtiff": True, "byteorder": ">"},
    "undescribed": {"photometric": "rgb", "metadata": None},
}


def as_colour(stack, options, n):
    opaque = np.full_like(stack, np.iinfo(stack.dtype).max)
    planes = [stack] * 3 + [opaque] * (n - 3)
    return np.stack(planes, 1 if "planarconfig" in options else -1)


@pytest.mark.parametrize("case", COLOURS)
@pytest.mark.parametrize(("n", "name"), [(3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [None, 1])
def test_grey_saved_as_colour_is_grey(tmp_path, case, n, name, dtype, channels):
    stack, options = noise(dtype=dtype), COLOURS[case]
    if n == 4 or dtype == "uint16":  # ImageJ has no such colours
        options = {name: value for name, value in options.items() if name != "imagej"}
    tifffile.imwrite(tmp_path / "s.tif", as_colour(stack, options, n), **options)
    said = rf"s\.tif: stored as {name}; read as grey, every pixel's R, G and B are checked"
    with pytest.warns(InputNote, match=said) as notes:
        reader = StackReader(tmp_path / "s.tif", channels=channels)
    assert len(notes) == 1
    with reader:
        assert (reader.shape, reader.dtype, reader.channels) == (stack.shape, dtype, 1)
        assert reader.stored_bytes == n * stack.itemsize and reader.read_bytes > reader.stored_bytes
        np.testing.assert_array_equal(reader.read(), stack)
        region = reader.read_region(1, slice(7, 31), slice(2, 40))
        np.testing.assert_array_equal(region[0], stack[1, 7:31, 2:40])
        assert region.base is None  # the planes it is made of are not kept
    with pytest.warns(InputNote, match="stored as"):
        np.testing.assert_array_equal(read_labels(tmp_path / "s.tif"), stack)


def test_grey_in_a_jpeg_of_colours(tmp_path):
    image = np.add.outer(np.arange(90), np.arange(100)).astype(np.uint8)
    options = {"photometric": "rgb", "compression": "jpeg", "tile": (32, 48)}
    tifffile.imwrite(tmp_path / "s.tif", np.stack([image] * 3, -1), **options)
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.YCBCR
        stored = file.asarray()
    with pytest.warns(InputNote, match="stored as RGB"):
        read = read_stack(tmp_path / "s.tif")
    np.testing.assert_array_equal(read[0], stored[..., 1])


def test_grey_with_opacity_is_grey(tmp_path):
    stack = noise()
    pixels = np.stack([stack, np.full_like(stack, 255)], -1)
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]}
    tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
    with pytest.warns(InputNote, match="stored as grey and opacity; .* opacity is checked"):
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)
    options["extrasamples"] = [0]  # it may be anything
    tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
    with pytest.raises(InputError, match="several channels"):
        read_stack(tmp_path / "s.tif")


@pytest.mark.parametrize("case", COLOURS)
@pytest.mark.parametrize(("plane", "message"), [(1, "has colours"), (2, "has colours")])
def test_one_pixel_of_colour_is_found_where_it_is_read(tmp_path, case, plane, message):
    stack, options = noise((2, 200, 50)), COLOURS[case]
    pixels = as_colour(stack, options, 3)
    of_plane = pixels[:, plane] if "planarconfig" in options else pixels[..., plane]
    of_plane[1, 190, 7] ^= 1
    tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
    with pytest.warns(InputNote, match="stored as RGB"):
        reader = StackReader(tmp_path / "s.tif")
    with reader:
        np.testing.assert_array_equal(reader.read_slice(0), stack[0])
        np.testing.assert_array_equal(reader.read_region(1, slice(0, 190), ALL)[0], stack[1, :190])
        where = rf"s\.tif: slice 1 {message}, such as .* at y = 190, x = 7"
        with pytest.raises(InputError, match=where) as caught:
            reader.read_region(1, slice(180, 200), slice(5, 50))
    assert ("--axes" in str(caught.value)) == ("planarconfig" in options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, 254])
def test_transparency_is_no_grey(tmp_path, value):
    stack, options = noise(), COLOURS["RGB"]
    pixels = as_colour(stack, options, 4)
    pixels[..., 3] = value
    tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
    with pytest.raises(InputError, match=f"is transparent, such as {value} of 255"):
        StackReader(tmp_path / "s.tif")


def test_colour_is_refused_on_opening_and_read_when_asked_for(tmp_path):
    pixels = noise((2, 20, 30, 3))
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="rgb")
    with pytest.raises(InputError, match="slice 0 has colours"):
        StackReader(tmp_path / "s.tif")
    with StackReader(tmp_path / "s.tif", channels=3) as reader:
        region = reader.read_region(1, ALL, ALL)
    np.testing.assert_array_equal(region, np.moveaxis(pixels[1], -1, 0))


def test_folder_of_grey_in_several_forms(tmp_path):
    stack = noise()
    tifffile.imwrite(tmp_path / "0.tif", stack[0])
    tifffile.imwrite(tmp_path / "1.tif", np.stack([stack[1]] * 3, -1), photometric="rgb")
    tifffile.imwrite(tmp_path / "2.tif", np.stack([stack[2]] * 3, -1), photometric="rgb")
    with pytest.warns(InputNote, match="2 of 3 images: stored as RGB") as notes:
        read = read_stack(tmp_path)
    assert len(notes) == 1
    np.testing.assert_array_equal(read, stack)


@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_is_said_to_be_dropped(tmp_path, value):
    stack = noise()
    tag = [(274, 3, 1, value, True)]
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack", extratags=tag)
    if value == 1:
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)
        return
    with pytest.warns(InputNote, match=rf"its orientation tag \({value}\) is dropped: pixels are"):
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)


def test_orientation_of_a_later_page_counts(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for z, image in enumerate(noise()):
            tag = [(274, 3, 1, 6 if z == 2 else 1, True)]
            writer.write(image, contiguous=False, metadata=None, extratags=tag)
    with pytest.warns(InputNote, match=r"orientation tag \(6\)"):
        read_stack(tmp_path / "s.tif")


@settings(max_examples=40, deadline=None)
@given(place=st.integers(0, 2**16), value=st.integers(0, 255))
def test_a_changed_byte_gives_pixels_or_one_line(tmp_path_factory, place, value):
    path = tmp_path_factory.mktemp("b") / "s.tif"
    stack = noise((3, 16, 16))
    imagej_file(path, stack, c0="-1", c1="2", compression="zlib")
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    path.write_bytes(content)
    try:
        with pytest.warns(InputNote):
            read_stack(path)
    except InputError as error:
        assert "\n" not in str(error)
    except pytest.fail.Exception:
        pass  # the calibration is no longer there
    path.unlink()


def test_bits_that_are_no_fax_code_stay_refused(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", noise((1, 16, 16)) > 100, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        place = file.pages.first.tags["Compression"].valueoffset
    content = bytearray((tmp_path / "s.tif").read_bytes())
    struct.pack_into("<H", content, place, 7)  # JPEG
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(InputError, match="slice 0"):
        read_stack(tmp_path / "s.tif")
