"""Axes: those of length 1 count for nothing, others are as declared, or as the user says."""

import warnings

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_repro.errors import InputError, InputNote
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_images, read_labels, read_pair, read_stack
from unet_repro.images.tiff_axes import check_axes


def noise(shape, dtype="uint8", seed=0):
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize(
    "at",
    [
        *((..., None), (None,), (None, slice(None), None), (None, None, ..., None)),
        *((slice(None), None), (None,) * 2),
    ],
)
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"imagej": True}])
def test_axes_of_length_1_are_dropped(tmp_path, depth, at, options):
    stack = noise((depth, 20, 30))
    tifffile.imwrite(tmp_path / "s.tif", stack[at], photometric="minisblack", **options)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)


# What tifffile makes of three or four slices by default.
PLANAR = {"photometric": "rgb", "planarconfig": "separate"}
PLANES = {
    "plain": {},
    "zlib": {"compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "lzw"},
    "tiles": {"tile": (16, 16)},
    "tiles, zlib": {"tile": (16, 16), "compression": "zlib", "predictor": True},
    "big": {"bigtiff": True},
    "big-endian": {"byteorder": ">"},
    "undescribed": {"metadata": None},
}


@pytest.mark.parametrize("case", PLANES)
@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_three_or_four_slices_stored_as_colours(tmp_path, case, depth, dtype):
    stack = noise((depth, 40, 30), dtype)
    tifffile.imwrite(tmp_path / "s.tif", stack, **PLANAR, **PLANES[case])
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert file.series[0].axes == "SYX" and len(file.pages) == 1
    with pytest.raises(InputError, match=r"stores 3 or 4 slices as planes .* --axes ZYX") as caught:
        read_stack(tmp_path / "s.tif")
    assert "\n" not in str(caught.value)
    for axes in ("ZYX", "TYX"):
        with StackReader(tmp_path / "s.tif", axes=axes) as reader:
            assert reader.depth_axes == ((axes[0], depth),)
            np.testing.assert_array_equal(reader.read(), stack)
            for z in range(depth):
                region = reader.read_region(z, slice(11, 37), slice(3, 20))
                np.testing.assert_array_equal(region[0], stack[z, 11:37, 3:20])
    with StackReader(tmp_path / "s.tif", channels=depth) as reader:  # colours they may be
        np.testing.assert_array_equal(reader.read_region(0, slice(0, 40), slice(0, 30)), stack)


def test_only_the_plane_of_a_slice_is_read(tmp_path, monkeypatch):
    stack = noise((3, 64, 64))
    tifffile.imwrite(tmp_path / "s.tif", stack, **PLANAR, tile=(16, 16), compression="zlib")
    with StackReader(tmp_path / "s.tif", axes="ZYX") as reader:
        sizes, read = [], reader._image._reader._bytes
        monkeypatch.setattr(reader._image._reader, "_bytes", lambda *a: sizes.append(1) or read(*a))
        reader.read_region(1, slice(0, 16), slice(0, 32))
    assert len(sizes) == 2


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16), "compression": "zlib"}])
def test_slices_that_lie_pixel_by_pixel(tmp_path, options):
    stack = noise((3, 40, 30))
    tifffile.imwrite(tmp_path / "s.tif", np.moveaxis(stack, 0, -1), photometric="rgb", **options)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif", axes="YXZ"), stack)
    with pytest.raises(InputError, match=r"has axes YXS \(40 × 30 × 3\), which ZYX does not fit"):
        read_stack(tmp_path / "s.tif", axes="ZYX")


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"metadata": {"axes": "ZYX"}, **PLANAR},
        {"metadata": {"axes": "ZYX"}, **PLANAR, "compression": "zlib"},
        {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"},
        {"metadata": {"axes": "ZYX"}, "photometric": "minisblack", "ome": True},
        {"metadata": {"axes": "ZYX"}, "photometric": "minisblack", "imagej": True},
        {"photometric": "minisblack", "imagej": True},
    ],
)
def test_what_the_file_says_of_three_or_four_slices_is_believed(tmp_path, depth, options):
    stack = noise((depth, 20, 30))
    tifffile.imwrite(tmp_path / "s.tif", stack, **options)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), stack)


@st.composite
def arrays(draw):
    """Draw an array of some axes, and letters with those of length 1 left out or not."""
    letters = draw(st.permutations("TZC"))[: draw(st.integers(1, 3))]
    lengths = [draw(st.integers(1, 3)) for _ in letters]
    height, width = draw(st.integers(2, 40)), draw(st.integers(2, 40))
    options = draw(
        st.sampled_from(
            [{}, {"compression": "zlib"}, {"tile": (16, 16)}, {"bigtiff": True}, {"byteorder": ">"}]
        )
    )
    keep_ones = draw(st.booleans())
    return "".join(letters), noise((*lengths, height, width)), options, keep_ones


@settings(max_examples=80, deadline=None)
@given(case=arrays())
def test_any_letters_that_fit_are_followed(tmp_path_factory, case):
    letters, array, options, keep_ones = case
    path = tmp_path_factory.mktemp("a") / "s.tif"
    options |= {"photometric": "minisblack", "metadata": None}  # what the file declares is nothing
    tifffile.imwrite(path, array, **options)
    lengths = dict(zip(letters, array.shape, strict=False))
    long = [axis for axis in letters if lengths[axis] > 1]
    if len(long) > 1:
        options["metadata"] = {}  # the lengths at least
        tifffile.imwrite(path, array, **options)
    axes = (letters if keep_ones and len(long) > 1 else "".join(long)) + "YX"
    n_channels = lengths.get("C", 1)
    expected = array
    if n_channels > 1:
        expected = np.moveaxis(array, letters.index("C"), -3)
    expected = expected.reshape(-1, n_channels, *array.shape[-2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        reader = StackReader(path, channels=n_channels, axes=axes)
    with reader:
        assert reader.shape == (len(expected), *array.shape[-2:])
        read = [reader.read_region(z, slice(None), slice(None)) for z in range(len(expected))]
        named = [axis for axis, n in reader.depth_axes if n > 1]
        assert named == [axis for axis in long if axis != "C"]
    np.testing.assert_array_equal(read, expected)
    path.unlink()


HYPERSTACKS = {
    "ImageJ": ("TZYX", {"imagej": True}),
    "OME": ("TZYX", {"ome": True}),
    "OME, slices first": ("ZTYX", {"ome": True}),
    "tifffile": ("TZYX", {"compression": "zlib"}),
    "tiles": ("ZTYX", {"tile": (16, 16)}),
    "big-endian": ("TZYX", {"byteorder": ">", "bigtiff": True}),
    "with a channel of one": ("TZCYX", {"imagej": True}),
}


@pytest.mark.parametrize("case", HYPERSTACKS)
def test_times_and_slices_are_one_axis_in_the_order_of_the_pages(tmp_path, case):
    axes, options = HYPERSTACKS[case]
    shape = (3, 5, 20, 30) if len(axes) == 4 else (3, 5, 1, 20, 30)
    stack = noise(shape)
    metadata = {"axes": axes}
    tifffile.imwrite(
        tmp_path / "s.tif", stack, photometric="minisblack", metadata=metadata, **options
    )
    said = f"{axes[0]} x {axes[1]} = 3 x 5: read as 15 slices in this order"
    with (
        pytest.warns(InputNote, match=said) as notes,
        StackReader(tmp_path / "s.tif") as reader,
    ):
        assert reader.depth_axes == ((axes[0], 3), (axes[1], 5))
        np.testing.assert_array_equal(reader.read(), stack.reshape(15, 20, 30))
    assert len(notes) == 1


def test_times_slices_and_channels(tmp_path):
    stack = noise((3, 2, 4, 20, 30))
    options = {"imagej": True, "metadata": {"axes": "TZCYX"}}
    tifffile.imwrite(tmp_path / "s.tif", stack, **options)
    with (
        pytest.warns(InputNote, match="T x Z = 3 x 2: read as 6 slices"),
        StackReader(tmp_path / "s.tif", channels=4) as reader,
    ):
        read = [reader.read_region(z, slice(0, 20), slice(0, 30)) for z in range(6)]
    np.testing.assert_array_equal(read, stack.reshape(6, 4, 20, 30))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("ZQYX", "letters of TCZYXS, each once"),
        ("ZZYX", "each once"),
        ("ZX", "with Y and X are needed"),
        ("", "with Y and X are needed"),
        ("zyx", "letters of TCZYXS"),
    ],
)
def test_letters_that_are_no_axes_are_refused(tmp_path, axes, message):
    with pytest.raises(InputError, match=message):
        check_axes(axes)
    with pytest.raises(InputError, match=message):
        StackReader(tmp_path, axes=axes)


@pytest.mark.parametrize("axes", ["TZYX", "YX", "ZXY", "YXZ", "TCZYX"])
def test_letters_that_do_not_fit_are_refused_with_an_example_that_does(tmp_path, axes):
    stack = noise((5, 20, 30))
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    message = rf"has axes QYX \(5 × 20 × 30\), which {axes} does not fit; for example --axes ZYX"
    with pytest.raises(InputError, match=message) as caught:
        read_stack(tmp_path / "s.tif", axes=axes)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif", axes="ZYX"), stack)


def test_declared_axes_that_do_not_end_in_y_and_x_are_refused(tmp_path):
    stack = noise((7, 20, 5))
    options = {"photometric": "minisblack", "metadata": {"axes": "YXZ"}}
    tifffile.imwrite(tmp_path / "s.tif", stack, **options)
    with pytest.raises(InputError, match=r"axes YXZ \(7 × 20 × 5\), but its pages are .* ZYX"):
        read_stack(tmp_path / "s.tif")
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif", axes="ZYX"), stack)


def test_axes_of_slices_behind_one_directory(tmp_path):
    stack = noise((7, 20, 5))
    options = {"photometric": "minisblack", "metadata": {"axes": "YXZ"}, "truncate": True}
    tifffile.imwrite(tmp_path / "s.tif", stack, **options)
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        assert len(file.pages) == 1
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif", axes="ZYX"), stack)


def test_four_axes_of_no_name_need_names(tmp_path):
    stack = noise((3, 5, 20, 30))
    tifffile.imwrite(tmp_path / "s.tif", stack)
    with pytest.raises(InputError, match=r"has axes QQYX .* --axes TZYX"):
        read_stack(tmp_path / "s.tif")
    with pytest.warns(InputNote, match="T x Z = 3 x 5"):
        np.testing.assert_array_equal(
            read_stack(tmp_path / "s.tif", axes="TZYX"), stack.reshape(15, 20, 30)
        )


def test_axes_hold_for_each_file_of_a_folder_and_for_pairs(tmp_path):
    stack = noise((4, 20, 30))
    for z, image in enumerate(stack):
        tifffile.imwrite(tmp_path / f"{z}.tif", image)
    for axes in ("YX", "ZYX", None):
        np.testing.assert_array_equal(read_images(tmp_path, axes=axes), stack)
        np.testing.assert_array_equal(read_labels(tmp_path, axes=axes), stack)
        np.testing.assert_array_equal(read_pair(tmp_path, tmp_path, axes=axes), [stack, stack])
    tifffile.imwrite(tmp_path / "0.tif", stack[:3], **PLANAR)
    with pytest.raises(InputError, match=r"0\.tif: is a stack of 3 slices inside a folder"):
        read_stack(tmp_path, axes="ZYX")


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 1, 1), (1, 7, 1), (5, 7, 6, 1), (5, 7, 1, 1)])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_slices_1_px_wide_that_are_stored_as_other_pages_are_refused(tmp_path, shape, options):
    """tifffile makes pages (z, y) of (z, y, 1): letters that say otherwise cannot be followed."""
    path, letters = tmp_path / "s.tif", "TZYX"[-len(shape) :]
    for metadata in ({}, {"axes": letters}):
        options |= {"photometric": "minisblack", "metadata": metadata}
        tifffile.imwrite(path, noise(shape), **options)
        with pytest.raises(InputError, match=f"which {letters} does not fit") as caught:
            read_stack(path, axes=letters)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="save each image as a page"):
        read_stack(path)


def test_what_is_read_as_one_image_may_be_slices(tmp_path):
    """Nothing but the shape is known: it is an image, as tifffile says, and that is told."""
    image = noise((20, 30, 1))
    tifffile.imwrite(tmp_path / "s.tif", image)
    with pytest.warns(InputNote, match="stored as 20 × 30 × 1 .* read as one image of 20 × 30 px"):
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), image[None, ..., 0])
    np.testing.assert_array_equal(
        read_stack(tmp_path / "s.tif", axes="YX"), image[None, ..., 0]
    )  # it was said: no note


WAYS = {
    "shape": {"metadata": {}},
    "axes": {},
    "axes, zlib": {"compression": "zlib"},
    "undescribed": {"metadata": None},
    "OME": {"ome": True},
    "ImageJ": {"imagej": True},
}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(1, 3) | st.integers(1, 9), min_size=2, max_size=4),
    way=st.sampled_from(sorted(WAYS)),
    given_letters=st.booleans(),
    as_labels=st.booleans(),
)
def test_axes_of_length_1_anywhere(tmp_path_factory, shape, way, given_letters, as_labels):
    """The pages are those of the array, or of tifffile's page, or it is refused."""
    array, letters = noise(shape), "TZYX"[-len(shape) :]
    path = tmp_path_factory.mktemp("a") / "s.tif"
    options = {"photometric": "minisblack", "metadata": {"axes": letters}} | WAYS[way]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tifffile.imwrite(path, array, **options)
        with tifffile.TiffFile(path) as file:
            page, is_whole = file.pages[0].shape, not file.imagej_metadata
        try:
            read = read_stack(path, as_labels=as_labels, axes=letters if given_letters else None)
        except InputError:
            is_unnamed = way == "shape" and min(shape[:2]) > 1 and len(shape) == 4
            assert page != array.shape[-2:] or given_letters or is_unnamed
            return
    said = given_letters or (way.startswith(("axes", "OME")))
    sides = array.shape[-2:] if said and is_whole else page
    np.testing.assert_array_equal(read, array.reshape(-1, *sides))


@pytest.mark.parametrize("axes", ["TZYX", "TCYX"])
def test_letters_for_more_axes_than_the_pages_have_are_refused(tmp_path, axes):
    """A description of other pages: nothing but their number is known, and all are read."""
    stack = noise((5, 20, 30))
    text = "ImageJ=1.54f\nimages=9\nslices=9\n"
    tifffile.imwrite(
        tmp_path / "s.tif", stack, photometric="minisblack", metadata=None, description=text
    )
    with pytest.raises(InputError, match=f"which {axes} does not fit; for example --axes ZYX does"):
        read_stack(tmp_path / "s.tif", axes=axes)
    with pytest.warns(InputNote, match="the 5 pages it holds are read"):
        np.testing.assert_array_equal(read_stack(tmp_path / "s.tif", axes="ZYX"), stack)
