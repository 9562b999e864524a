"""Pages whose descriptions are out of date, and files put together of others."""

import logging
import struct

import numpy as np
import pytest
import tifffile
from libtiff_copies import copy_pages

from unet_repro.errors import InputError, InputNote, note
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_stack


def noise(shape=(4, 24, 30), dtype="uint8", seed=0):
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


KINDS = {
    "ImageJ": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "OME": {"ome": True, "metadata": {"axes": "ZYX"}},
    "tifffile": {"photometric": "minisblack", "metadata": {"axes": "ZYX"}},
}
CODINGS = {
    "plain": {},
    "strips": {"rowsperstrip": 5},
    "zlib": {"compression": "zlib"},
    "tiles": {"tile": (16, 16), "compression": "lzw"},
}


@pytest.fixture(params=[False, True], ids=["logged", "silent"])
def log(request, caplog):
    """Some defects tifffile only logs, and a program may have silenced its log."""
    if request.param:
        caplog.set_level(logging.CRITICAL + 1, "tifffile")


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_pages_of_a_split_stack_are_its_slices(tmp_path, kind, coding, log):
    stack = noise()
    tifffile.imwrite(tmp_path / "s.tif", stack, **KINDS[kind], **CODINGS[coding])
    (tmp_path / "f").mkdir()
    for z in range(4):
        copy_pages([(tmp_path / "s.tif", z)], tmp_path / f"f/x{z}.tif")
    said = f"f: 1 of 4 images: its {kind} description declares 4 images; the one page that it holds"
    with pytest.warns(InputNote, match=said) as notes:
        read = read_stack(tmp_path / "f")
    assert len(notes) == 1
    np.testing.assert_array_equal(read, stack)
    with pytest.warns(InputNote, match=rf"x0\.tif: its {kind} description declares 4"):
        np.testing.assert_array_equal(read_stack(tmp_path / "f/x0.tif"), stack[:1])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wanted", [(0, 1, 2), (0, 3), (0, 1, 2, 3, 0, 1)])
def test_pages_that_are_there_are_read_whatever_is_declared(tmp_path, kind, coding, wanted, log):
    stack = noise()
    tifffile.imwrite(tmp_path / "s.tif", stack, **KINDS[kind], **CODINGS[coding])
    copy_pages([(tmp_path / "s.tif", z) for z in wanted], tmp_path / "c.tif")
    said = f"its {kind} description .*; the {len(wanted)} pages it"
    with pytest.warns(InputNote, match=said):
        read = read_stack(tmp_path / "c.tif")
        if kind == "tifffile" and len(wanted) > 4:  # its second description is not out of date
            note("its tifffile description is of others; the 6 pages it holds are read")
    np.testing.assert_array_equal(read, stack[list(wanted)])


@pytest.mark.parametrize("kind", ["tifffile", "ImageJ"])
def test_copies_of_several_files_are_in_order_however_each_is_coded(tmp_path, kind):
    stacks = [noise(seed=seed) for seed in range(3)]
    for name, stack, coding in zip("abc", stacks, ("zlib", "plain", "tiles"), strict=True):
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, **KINDS[kind], **CODINGS[coding])
    # Pages that are coded alike are not neighbours.
    order = [("a", 0), ("b", 0), ("a", 1), ("c", 2), ("b", 3), ("a", 3)]
    copy_pages([(tmp_path / f"{name}.tif", z) for name, z in order], tmp_path / "all.tif")
    with pytest.warns(InputNote, match="description"):
        read = read_stack(tmp_path / "all.tif")
    np.testing.assert_array_equal(read, [stacks["abc".index(name)][z] for name, z in order])


def test_pages_coded_in_turns_keep_their_order(tmp_path):
    stack = noise((6, 24, 30))
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for z, image in enumerate(stack):
            compression = "zlib" if z % 2 else None
            writer.write(image, contiguous=False, metadata=None, compression=compression)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
@pytest.mark.parametrize("form", [{}, {"bigtiff": True}, {"byteorder": ">"}])
def test_blocks_written_one_after_the_other_are_one_stack(tmp_path, options, form):
    blocks = [noise((n, 24, 30), "uint16", seed=n) for n in (3, 1, 5)]
    for block in blocks:
        with tifffile.TiffWriter(tmp_path / "s.tif", append=True, **form) as writer:
            writer.write(block, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), np.concatenate(blocks))


def test_appended_channels_are_channels(tmp_path):
    blocks = [noise((n, 3, 24, 30), seed=n) for n in (2, 4)]
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for block in blocks:
            writer.write(block, photometric="minisblack", metadata={"axes": "ZCYX"})
    with StackReader(tmp_path / "s.tif", channels=3) as reader:
        read = [reader.read_region(z, slice(None), slice(None)) for z in range(6)]
    np.testing.assert_array_equal(read, np.concatenate(blocks))
    with pytest.raises(InputError, match="several channels"):
        StackReader(tmp_path / "s.tif")


def one_directory(path, stack, end=None):
    """Write the pixels of all slices behind a single directory, as ImageJ above 4 GiB."""
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        start = first.dataoffsets[0]
    content = bytearray(path.read_bytes()[: start + (stack.nbytes if end is None else end)])
    struct.pack_into("<I", content, first.offset + 2 + 12 * len(first.tags), 0)  # no next page
    path.write_bytes(content)


@pytest.mark.parametrize("pages", [0.5, 1.05, 1.5, 2, 3, 3.99])
def test_stack_behind_one_directory_that_is_cut_off_is_never_one_page(tmp_path, pages, log):
    stack = noise()
    one_directory(tmp_path / "s.tif", stack, end=int(pages * stack[0].nbytes))
    with pytest.raises(InputError, match=r"truncated|damaged") as caught:
        read_stack(tmp_path / "s.tif")
    assert "\n" not in str(caught.value)


def test_one_whole_page_with_the_description_of_a_small_stack_is_that_page(tmp_path):
    """ImageJ leaves directories out of files above 4 GiB only."""
    stack = noise()
    for declared, is_read in ((4, True), (2**32 // stack[0].nbytes + 1, False)):
        text = f"ImageJ=1.54f\nimages={declared}\nslices={declared}\n"
        options = {"photometric": "minisblack", "metadata": None, "description": text}
        tifffile.imwrite(tmp_path / "s.tif", stack[0], **options)
        if is_read:
            with pytest.warns(InputNote, match="declares 4 images; the one page"):
                np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack[:1])
        else:
            with pytest.raises(InputError, match="truncated"):
                read_stack(tmp_path / "s.tif")


def test_several_ome_images_are_told(tmp_path):
    stack = noise()
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as writer:
        for part in (stack[:3], stack[3:]):
            writer.write(part, photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.warns(InputNote, match="holds 2 OME images: their slices are read one after"):
        np.testing.assert_array_equal(read_stack(tmp_path / "s.ome.tif"), stack)


def test_pixels_that_no_directory_points_to_are_not_left_out(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for seed in range(2):
            writer.write(noise(seed=seed), photometric="minisblack", truncate=True)
    with pytest.raises(InputError, match="declares 4 slices but holds 2 pages"):
        read_stack(tmp_path / "s.tif")


def ome_set(folder, stack):
    """Write one file a slice; each declares the whole set, as Bio-Formats and µManager do."""
    data = "".join(
        f'<TiffData FirstZ="{z}" FirstC="0" FirstT="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="z{z}.ome.tif">urn:uuid:00000000-0000-0000-0000-00000000000{z}</UUID>'
        "</TiffData>"
        for z in range(len(stack))
    )
    height, width = stack.shape[1:]
    for z, image in enumerate(stack):
        text = (
            '<?xml version="1.0" encoding="UTF-8"?><OME xmlns='
            '"http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:00000000-0000-0000-0000-00000000000{z}"><Image ID="Image:0"><Pixels '
            f'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="{width}" SizeY="{height}" '
            f'SizeZ="{len(stack)}" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" '
            f'SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        options = {"photometric": "minisblack", "metadata": None}
        tifffile.imwrite(folder / f"z{z}.ome.tif", image, description=text, **options)


def test_files_of_an_ome_set_are_one_slice_each(tmp_path):
    stack = noise()
    ome_set(tmp_path, stack)
    with pytest.warns(InputNote, match="4 of 4 images: its OME description declares 4") as notes:
        read = read_stack(tmp_path)
    assert len(notes) == 1
    np.testing.assert_array_equal(read, stack)
    (tmp_path / "z2.ome.tif").unlink()  # no file is read for another
    with pytest.warns(InputNote, match="3 of 3 images"):
        np.testing.assert_array_equal(read_stack(tmp_path), stack[[0, 1, 3]])
    with pytest.raises(
        InputError, match=r"4 slices but holds 1 pages, .* in other files; give the folder"
    ):
        read_stack(tmp_path / "z0.ome.tif")


OTHERS = {
    "white is 0": ({"photometric": "miniswhite"}, "page 4, unlike others, stores white as 0"),
    "other bits": ({"dtype": "uint16"}, "differ in shape or dtype, such as 0 and 4"),
    "signed": ({"dtype": "int8"}, "differ in shape or dtype, such as 0 and 4"),
    "other size": ({"shape": (2, 24, 31)}, "differ in shape or dtype, such as 0 and 4"),
    "turned": ({"shape": (2, 30, 24)}, "differ in shape or dtype, such as 0 and 4"),
    "colour": (
        {"shape": (2, 24, 30, 3), "photometric": "rgb"},
        "differ in shape or dtype, such as 0 and 4",
    ),
    "colour table": (
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        "page 4 has other colours than page 0",
    ),
}


@pytest.mark.parametrize("kind", ["tifffile", "ImageJ"])
@pytest.mark.parametrize("case", OTHERS)
def test_every_page_counts(tmp_path, kind, case):
    options, message = OTHERS[case]
    options = {"photometric": "minisblack", "dtype": "uint8", "shape": (2, 24, 30)} | options
    shape, dtype = options.pop("shape"), options.pop("dtype")
    tifffile.imwrite(tmp_path / "a.tif", noise(), **KINDS[kind])
    if "colormap" in options:
        options["metadata"] = None
    tifffile.imwrite(tmp_path / "b.tif", noise(shape, dtype), **options)
    pages = [(tmp_path / "a.tif", z) for z in range(4)] + [(tmp_path / "b.tif", 0)]
    copy_pages(pages, tmp_path / "ab.tif")
    with pytest.raises(InputError, match=message) as caught:
        read_stack(tmp_path / "ab.tif")
    assert "\n" not in str(caught.value)


def test_colour_tables_of_some_labels_are_for_display(tmp_path):
    table = {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)}
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for z, image in enumerate(noise()):
            options = table if z % 2 else {"photometric": "minisblack"}
            writer.write(image, contiguous=False, metadata=None, **options)
    with StackReader(tmp_path / "s.tif", as_labels=True) as reader:
        np.testing.assert_array_equal(reader.read(), noise())


@pytest.mark.parametrize(("kind", "is_refused"), [(0, False), (1, True), (2, False), (3, True)])
def test_thumbnail_of_the_same_size_is_no_slice(tmp_path, kind, is_refused):
    pages = np.random.default_rng(0).integers(0, 255, (3, 20, 30)).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        for page, of_page in zip(pages, (0, 0, kind)):
            file.write(page, subfiletype=of_page, photometric="minisblack", metadata=None)
    if not is_refused:
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), pages)
        return
    with pytest.raises(InputError, match="page 2, unlike page 0, is said to be a thumbnail"):
        read_stack(tmp_path / "s.tif")
