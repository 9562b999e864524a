"""Rectangles of stacks: equal to the whole page cut to size, and nothing else is read."""

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_repro.errors import InputError
from unet_repro.images import tiff_segments
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import write_stack

ALL = slice(None)
INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64"]
COMPRESSIONS = [None, "zlib", "lzw", "zstd", "packbits"]


def noise(shape, dtype="uint8", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    if dtype == "bool":
        return values > 100
    return (values / 7).astype(dtype) if "float" in dtype else (values - 90).astype(dtype)


def regions(height, width):
    def part(size):
        ends = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).map(sorted)
        return ends.map(lambda pair: slice(pair[0], pair[1] + 1))

    return st.lists(st.tuples(part(height), part(width)), min_size=1, max_size=4)


@st.composite
def tiffs(draw):
    """Draw pixels, the options of tifffile to store them, and rectangles."""
    dtype = draw(st.sampled_from([*INTEGERS, *FLOATS, "bool"]))
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    depth = draw(st.integers(1, 3))
    samples = 1 if dtype == "bool" else draw(st.sampled_from([1, 1, 3, 4]))
    compression = draw(st.sampled_from(COMPRESSIONS if dtype != "bool" else [None, "zlib"]))
    options = {
        "compression": compression,
        "bigtiff": draw(st.booleans()),
        "byteorder": draw(st.sampled_from("<>")),
        "photometric": "minisblack" if samples == 1 else "rgb",
        # tifffile mistakes the rows of pages 1 px wide for their columns when it describes them
        "metadata": draw(st.sampled_from([None, {}] if width > 1 else [None])),
    }
    if draw(st.booleans()):
        options["tile"] = draw(st.tuples(*[st.sampled_from([16, 32, 80])] * 2))
    elif draw(st.booleans()):
        options["rowsperstrip"] = draw(st.integers(1, height))
    if dtype != "bool" and compression in ("zlib", "lzw", "zstd") and draw(st.booleans()):
        options["predictor"] = 3 if dtype in FLOATS else 2
    shape = (depth, height, width)
    if samples > 1:
        options["planarconfig"] = draw(st.sampled_from(["contig", "separate"]))
        is_planar = options["planarconfig"] == "separate"
        shape = (depth, samples, height, width) if is_planar else (*shape, samples)
    return noise(shape, dtype), options, samples, draw(regions(height, width))


@settings(max_examples=150, deadline=None)
@given(case=tiffs(), cache_bytes=st.sampled_from([0, 3000, 2**27]))
def test_region_is_the_page_cut_to_size(tmp_path_factory, case, cache_bytes):
    stack, options, samples, wanted = case
    path = tmp_path_factory.mktemp("r") / "s.tif"
    tifffile.imwrite(path, stack, **options)
    planar = stack if options.get("planarconfig") != "contig" else np.moveaxis(stack, -1, 1)
    planar = planar.reshape(len(stack), samples, *planar.shape[-2:])
    with tifffile.TiffFile(path) as file:
        pages = [page.asarray() for page in file.pages]
    with StackReader(path, channels=samples, cache_bytes=cache_bytes) as reader:
        assert reader.shape == (len(stack), *planar.shape[-2:]) and reader.channels == samples
        assert reader.dtype == stack.dtype
        for z, page in enumerate(pages):
            page = np.moveaxis(page, -1, 0) if options.get("planarconfig") == "contig" else page
            page = page.reshape(planar[z].shape)
            np.testing.assert_array_equal(page, planar[z])
            for rows, columns in wanted:
                region = reader.read_region(z, rows, columns)
                assert region.dtype == stack.dtype and region.dtype.isnative
                np.testing.assert_array_equal(region, page[:, rows, columns])
                region[:] = 0  # a new array: the next one is not changed
        assert reader.read_region(0, ALL, ALL).shape == planar[0].shape
    path.unlink()


def test_jpeg_is_read_as_tifffile_does(tmp_path):
    image = np.add.outer(np.arange(90), np.arange(100)).astype(np.uint8)
    for name, pixels, options in [
        ("grey", image, {"photometric": "minisblack"}),
        ("rgb", np.stack([image, image[::-1], 255 - image], -1), {"photometric": "rgb"}),
        ("ycbcr", np.stack([image, image[::-1], 255 - image], -1), {"photometric": "ycbcr"}),
    ]:
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, compression="jpeg", tile=(32, 48), **options)
        expected = np.moveaxis(np.atleast_3d(tifffile.imread(path)), -1, 0)
        with StackReader(path, channels=len(expected)) as reader:
            region = reader.read_region(0, slice(20, 77), slice(40, 100))
        np.testing.assert_array_equal(region, expected[:, 20:77, 40:100])


def test_bits_in_reverse_order_are_turned(tmp_path):
    stack, path = noise((1, 20, 30)), tmp_path / "s.tif"
    reverse = imagecodecs.bitorder_encode(stack.tobytes())
    stored = np.frombuffer(reverse, np.uint8).reshape(stack.shape)
    tifffile.imwrite(path, stored, extratags=[(263, 3, 1, 2, True)], metadata=None)
    with tifffile.TiffFile(path) as file:
        place = file.pages.first.tags[263].offset
    content = bytearray(path.read_bytes())
    content[place : place + 2] = struct.pack("<H", 266)  # FillOrder, which tifffile never writes
    path.write_bytes(content)
    np.testing.assert_array_equal(tifffile.imread(path), stack[0])
    with StackReader(path) as reader:
        region = reader.read_region(0, slice(3, 9), slice(5, 30))
    np.testing.assert_array_equal(region, stack[:, 3:9, 5:30])


def test_channels_behind_a_single_directory(tmp_path):
    stack, path = noise((4, 3, 20, 30), "uint16"), tmp_path / "s.tif"
    tifffile.imwrite(path, stack, imagej=True, metadata={"axes": "ZCYX"})
    with tifffile.TiffFile(path) as file:
        first = file.pages.first
        end = first.dataoffsets[0] + stack.nbytes
    content = bytearray(path.read_bytes()[:end])
    struct.pack_into("<I", content, first.offset + 2 + 12 * len(first.tags), 0)  # no next page
    path.write_bytes(content)
    with StackReader(path, channels=3) as reader:
        assert reader.shape == (4, 20, 30)
        for z in range(4):
            region = reader.read_region(z, slice(3, 9), slice(5, 30))
            np.testing.assert_array_equal(region, stack[z, :, 3:9, 5:30])
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"truncated|damaged"):
        StackReader(path, channels=3)


def test_strips_of_a_later_page_may_lie_in_any_order(tmp_path):
    stack, path = noise((12, 20, 30)), tmp_path / "s.tif"
    tifffile.imwrite(path, stack, rowsperstrip=10, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[7].tags["StripOffsets"]
        tag.overwrite(tag.value[::-1])  # the first page's strips are in order
    with StackReader(path) as reader:
        np.testing.assert_array_equal(reader.read_slice(0), stack[0])
        expected = np.roll(stack[7], 10, axis=0)
        np.testing.assert_array_equal(reader.read_slice(7), expected)
        region = reader.read_region(7, slice(5, 15), slice(2, 9))
        np.testing.assert_array_equal(region[0], expected[5:15, 2:9])


CHANNEL_FILES = {
    "ImageJ's ZCYX": ("ZCYX", {"imagej": True, "metadata": {"axes": "ZCYX"}}),
    "OME's ZCYX": ("ZCYX", {"ome": True, "metadata": {"axes": "ZCYX"}}),
    "OME's CZYX": ("CZYX", {"ome": True, "metadata": {"axes": "CZYX"}}),
    "compressed CZYX": ("CZYX", {"compression": "zlib", "metadata": {"axes": "CZYX"}}),
    "tiled ZCYX": ("ZCYX", {"tile": (16, 16), "metadata": {"axes": "ZCYX"}}),
    "time series": ("TCYX", {"imagej": True, "metadata": {"axes": "TCYX"}}),
    "other axes of one": ("TZCYX", {"metadata": {"axes": "TZCYX"}}),
    "RGB pages": ("ZYXS", {"photometric": "rgb"}),
    "ImageJ's RGB": ("ZYXS", {"photometric": "rgb", "imagej": True, "metadata": {"axes": "ZYXS"}}),
    "planes of RGB": ("ZSYX", {"photometric": "rgb", "planarconfig": "separate"}),
    "one slice": ("CYX", {"ome": True, "metadata": {"axes": "CYX"}}),
    "one slice of RGB": ("YXS", {"photometric": "rgb"}),
}


@pytest.mark.parametrize("case", CHANNEL_FILES)
def test_channels_of_each_kind_of_file_are_found(tmp_path, case):
    axes, options = CHANNEL_FILES[case]
    lengths = {"T": 1 if "Z" in axes else 5, "Z": 5, "C": 3, "S": 3, "Y": 24, "X": 30}
    pixels = noise([lengths[axis] for axis in axes])
    tifffile.imwrite(tmp_path / "s.tif", pixels, **{"photometric": "minisblack", **options})
    order = [axes.index(axis) for axis in axes if axis in "TZ"]
    order += [axes.index(axis) for axis in axes if axis in "CS"]
    expected = pixels.transpose([*order, axes.index("Y"), axes.index("X")]).reshape(-1, 3, 24, 30)
    with StackReader(tmp_path / "s.tif", channels=3) as reader:
        assert reader.shape == (len(expected), 24, 30) and reader.channels == 3
        for z, image in enumerate(expected):
            region = reader.read_region(z, slice(5, 20), slice(7, 30))
            np.testing.assert_array_equal(region, image[:, 5:20, 7:30])
        with pytest.raises(ValueError, match="read_region reads them"):
            reader.read_slice(0)
    for channels in (None, 1, 2, 4, 5):
        is_colour = "S" in axes and channels in (None, 1)  # grey could have been stored so
        with pytest.raises(
            InputError, match="colours" if is_colour else "axes .* channels|channels.*axes"
        ) as caught:
            StackReader(tmp_path / "s.tif", channels=channels)
        assert "\n" not in str(caught.value)


def test_colour_pages_written_one_by_one_are_one_stack(tmp_path):
    stack = noise((4, 8, 9, 3))
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for image in stack:
            writer.write(image, photometric="rgb", contiguous=False)
    with StackReader(tmp_path / "s.tif", channels=3) as reader:
        region = [reader.read_region(z, ALL, slice(2, 9)) for z in range(4)]
    np.testing.assert_array_equal(region, np.moveaxis(stack, -1, 1)[..., 2:])


@pytest.mark.parametrize(
    ("shape", "axes", "channels"),
    [
        ((3, 8, 9), "ZYX", 3),  # slices are not channels
        ((2, 3, 4, 8, 9), "RZCYX", 4),
        ((2, 3, 8, 9), "TZYX", 3),
        ((2, 3, 8, 9), "RZYX", 1),
        ((2, 3, 8, 9), "QQYX", 1),
        ((2, 3, 4, 8, 9), "QTZYX", 1),
    ],
)
def test_axes_are_never_guessed(tmp_path, shape, axes, channels):
    pixels = noise(shape)
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="minisblack", metadata={"axes": axes})
    with pytest.raises(InputError, match=f"axes {axes} .*needed") as caught:
        StackReader(tmp_path / "s.tif", channels=channels)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [None, 1])
def test_one_channel_is_grey(tmp_path, channels):
    write_stack(tmp_path / "s.tif", noise((3, 24, 30)))
    with StackReader(tmp_path / "s.tif", channels=channels) as reader:
        assert reader.channels == 1
        np.testing.assert_array_equal(reader.read(), noise((3, 24, 30)))
    with pytest.raises(InputError, match="0 channels are asked for"):
        StackReader(tmp_path / "s.tif", channels=0)


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colour_images_of_a_folder(tmp_path, n, dtype):
    stack = noise((3, 20, 30, n), dtype)
    for z, image in enumerate(stack):
        (tmp_path / f"{z}.png").write_bytes(imagecodecs.png_encode(image))
    if n == 3:
        (tmp_path / "1.png").unlink()
        tifffile.imwrite(tmp_path / "1.tif", stack[1], photometric="rgb", tile=(16, 16))
    with StackReader(tmp_path, channels=n) as reader:
        for z in (1, 0, 2, 2):
            region = reader.read_region(z, slice(3, 20), slice(0, 11))
            np.testing.assert_array_equal(region, np.moveaxis(stack[z], -1, 0)[:, 3:20, :11])
            region[:] = 0
    for other in {2, 3, 4} - {n}:
        with pytest.raises(InputError, match=rf"has {n} channels .*; {other} are needed"):
            StackReader(tmp_path, channels=other)


def test_image_of_a_folder_is_decoded_once_for_its_rectangles(tmp_path, monkeypatch):
    for z in range(2):
        (tmp_path / f"{z}.png").write_bytes(imagecodecs.png_encode(noise((20, 30), seed=z)))
    calls = []
    decode = imagecodecs.png_decode
    monkeypatch.setattr(imagecodecs, "png_decode", lambda data: calls.append(1) or decode(data))
    with StackReader(tmp_path) as reader:
        for z in (0, 0, 0, 1, 1):
            region = reader.read_region(z, slice(1, 5), slice(2, 9))
            np.testing.assert_array_equal(region[0], noise((20, 30), seed=z)[1:5, 2:9])
    assert len(calls) == 2


@pytest.fixture
def bytes_read(monkeypatch):
    """Count the bytes that are read and the segments that are decoded."""
    sizes = []
    read = tiff_segments.SegmentReader._bytes

    def counting(self, offset, size):
        sizes.append(size)
        return read(self, offset, size)

    monkeypatch.setattr(tiff_segments.SegmentReader, "_bytes", counting)
    return sizes


def test_only_the_tiles_that_a_region_touches_are_read(tmp_path, bytes_read):
    tifffile.imwrite(tmp_path / "s.tif", noise((1, 160, 160)), tile=(16, 16), compression="zlib")
    with StackReader(tmp_path / "s.tif") as reader:
        reader.read_region(0, slice(16, 48), slice(32, 48))  # on the edges: no neighbours
        assert len(bytes_read) == 2
        reader.read_region(0, slice(15, 49), slice(31, 49))  # a ring around them is new
        assert len(bytes_read) == 4 * 3
        reader.read_region(0, slice(20, 40), slice(20, 60))
        assert len(bytes_read) == 4 * 3


def test_only_the_wanted_part_of_each_row_is_read(tmp_path, bytes_read):
    write_stack(tmp_path / "s.tif", noise((3, 200, 300), "uint16"))
    with StackReader(tmp_path / "s.tif") as reader:
        region = reader.read_region(1, slice(10, 30), slice(100, 150))
        assert sum(bytes_read) == region.nbytes == 20 * 50 * 2


def test_single_strip_is_decoded_once_even_if_it_exceeds_the_cache(tmp_path, bytes_read):
    stack = noise((2, 3, 60, 70))
    tifffile.imwrite(
        tmp_path / "s.tif",
        stack,
        photometric="minisblack",
        compression="zlib",
        rowsperstrip=60,
        metadata={"axes": "ZCYX"},
    )
    with StackReader(tmp_path / "s.tif", channels=3, cache_bytes=0) as reader:
        for z in range(2):
            for y in range(0, 60, 10):
                region = reader.read_region(z, slice(y, y + 10), slice(5, 20))
                np.testing.assert_array_equal(region, stack[z, :, y : y + 10, 5:20])
    assert len(bytes_read) == 2 * 3


def test_cache_keeps_to_its_size():
    cache = tiff_segments._Cache(100)
    for i in range(10):
        cache.put((0, i), np.zeros(30, np.uint8))
    assert [i for i in range(10) if cache.get((0, i)) is not None] == [7, 8, 9]
    cache.get((0, 7))
    cache.put((0, 10), np.zeros(30, np.uint8))  # drops the one used longest ago, not 7
    assert [i for i in range(11) if cache.get((0, i)) is not None] == [7, 9, 10]
    cache.put((0, 11), np.zeros(1000, np.uint8))
    assert [i for i in range(12) if cache.get((0, i)) is not None] == [11]


def test_region_outside_is_refused(tmp_path):
    write_stack(tmp_path / "s.tif", noise((3, 24, 30)))
    with StackReader(tmp_path / "s.tif") as reader:
        for rows in (slice(0, 25), slice(-1, 5), slice(5, 5), slice(0, 8, 2)):
            with pytest.raises(IndexError, match="is no range of 0"):
                reader.read_region(0, rows, ALL)
        with pytest.raises(IndexError, match="is no range of 0"):
            reader.read_region(0, ALL, slice(20, 31))
        with pytest.raises(IndexError, match="slice 3 of a stack of 3"):
            reader.read_region(3, ALL, ALL)


def test_threads_may_share_a_reader(tmp_path):
    stack = noise((2, 128, 128), "uint16")
    tifffile.imwrite(tmp_path / "s.tif", stack, tile=(16, 16), compression="zlib")

    def is_right(place):
        z, y, x = place
        region = reader.read_region(int(z), slice(y, y + 28), slice(x, x + 28))
        return np.array_equal(region[0], stack[z, y : y + 28, x : x + 28])

    places = np.random.default_rng(0).integers(0, [2, 100, 100], (240, 3))
    with StackReader(tmp_path / "s.tif", cache_bytes=5000) as reader, ThreadPoolExecutor(4) as pool:
        assert all(pool.map(is_right, places))


def test_damaged_tile_is_named_and_the_others_are_read(tmp_path):
    stack, path = noise((3, 64, 64)), tmp_path / "s.tif"
    tifffile.imwrite(path, stack, photometric="minisblack", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        page = file.pages[1]
        offset, size = page.dataoffsets[6], page.databytecounts[6]  # y = 16, x = 32
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    with StackReader(path) as reader:
        np.testing.assert_array_equal(reader.read_region(1, slice(0, 16), ALL)[0], stack[1, :16])
        with pytest.raises(InputError, match=r"s\.tif: slice 1 at y = 16, x = 32 ") as caught:
            reader.read_region(1, slice(0, 30), slice(0, 40))
        assert "\n" not in str(caught.value)
        np.testing.assert_array_equal(reader.read_slice(2), stack[2])


@pytest.mark.parametrize("defect", ["beyond", "overflow", "cut off"])
def test_page_in_the_middle_that_is_not_whole_is_named_on_opening(tmp_path, defect):
    path = tmp_path / "s.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        for image in noise((3, 64, 64)):
            writer.write(image, contiguous=False, tile=(16, 16))
    with tifffile.TiffFile(path, mode="r+") as file:
        tags = file.pages[1].tags
        size = path.stat().st_size
        last = {"beyond": size, "overflow": 2**64 - 10, "cut off": size - 20}[defect]
        tags["TileOffsets"].overwrite([*tags["TileOffsets"].value[:15], last])
    with pytest.raises(InputError, match=r"s\.tif: page 1 truncated, needs"):
        StackReader(path)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"tile": (16, 16)}])
def test_file_cut_short_while_open_is_an_error_and_never_zeros(tmp_path, options):
    path, stack = tmp_path / "s.tif", noise((3, 640, 64)) | 1
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    with StackReader(path) as reader:
        os.truncate(path, path.stat().st_size // 2)
        np.testing.assert_array_equal(reader.read_region(0, ALL, ALL)[0], stack[0])
        with pytest.raises(InputError, match=r"s\.tif: slice 2 .*cut short") as caught:
            reader.read_region(2, slice(500, 640), ALL)
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="has changed since reading began"):
            reader.check_unchanged()


def write_folder(folder: Path) -> Path:
    for z in range(3):
        (folder / f"{z}.png").write_bytes(imagecodecs.png_encode(noise((20, 30), seed=z)))
    return folder


def test_fingerprint_is_of_the_files_as_they_were_opened(tmp_path):
    states = [(path, path.stat()) for path in sorted(write_folder(tmp_path).iterdir())]
    with StackReader(tmp_path) as reader:
        (tmp_path / "1.png").write_bytes(b"")
        assert json.loads(json.dumps(reader.fingerprint())) == {
            "files": [
                {"name": path.name, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
                for path, state in states
            ],
            "shape": [3, 20, 30],
            "channels": 1,
            "dtype": "uint8",
        }


def test_fingerprint_tells_axes_that_are_given(tmp_path):
    pixels = noise((3, 3, 20, 30))
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="minisblack")
    found = []
    for axes in ("CZYX", "ZCYX"):
        with StackReader(tmp_path / "s.tif", channels=3, axes=axes) as reader:
            found.append(reader.fingerprint())
    assert found[0] != found[1] and found[0]["axes"] == "CZYX"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes() + b" "), r"has changed since .*bytes then"),
        (lambda p: os.utime(p, ns=(1, p.stat().st_mtime_ns + 1)), "was written to since"),
        (lambda p: p.unlink(), "has vanished since"),
    ],
)
def test_changed_file_is_named(tmp_path, change, message):
    with StackReader(write_folder(tmp_path)) as reader:
        reader.check_unchanged()
        change(tmp_path / "1.png")
        with pytest.raises(InputError, match=rf"1\.png: {message}") as caught:
            reader.check_unchanged()
        assert "\n" not in str(caught.value) and "start again" in str(caught.value)


def test_image_of_a_folder_that_gets_another_size_is_refused(tmp_path):
    with StackReader(write_folder(tmp_path)) as reader:
        (tmp_path / "1.png").write_bytes(imagecodecs.png_encode(noise((20, 31))))
        with pytest.raises(InputError, match=r"1\.png: has another shape"):
            reader.read_region(1, slice(0, 5), slice(0, 5))


def test_resolutions_of_one_image_are_no_stack(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as writer:
        for step in (1, 2, 4):
            image = noise((256, 256))[::step, ::step]
            writer.write(image, tile=(32, 32), subfiletype=int(step > 1), metadata=None)
    with pytest.raises(InputError, match="holds 3 resolutions of one image"):
        StackReader(tmp_path / "s.tif")
