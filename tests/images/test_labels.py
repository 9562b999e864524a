"""What the values of labels mean: masks, ids, classes, and what is neither."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from unet_repro.errors import InputError, InputNote
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import (
    UNKNOWN_CELL,
    as_integers,
    as_stack,
    instances,
    read_meaning,
)


def blobs(depth: int = 3, side: int = 96, seed: int = 0) -> np.ndarray:
    """Bool (z, y, x): some dozen roundish cells a slice."""
    noise = np.random.default_rng(seed).random((depth, side, side))
    smooth = ndimage.gaussian_filter(noise, (0, 3, 3))
    return smooth > np.quantile(smooth, 0.6)


CELLS = blobs()
N_CELLS = sum(ndimage.label(slice_)[1] for slice_ in CELLS)
IDS = np.stack([ndimage.label(slice_)[0] for slice_ in CELLS])


def through_jpeg(mask: np.ndarray, quality: int) -> np.ndarray:
    coded = [imagecodecs.jpeg8_encode(slice_, level=quality) for slice_ in mask]
    return np.stack([imagecodecs.jpeg8_decode(slice_) for slice_ in coded])


@pytest.mark.parametrize(
    "labels",
    [
        CELLS,
        CELLS.astype(np.uint8),
        CELLS * np.uint8(255),
        CELLS * np.uint8(128),
        CELLS * np.uint16(65535),
        CELLS * np.int64(7),
        CELLS * np.uint64(2**63 + 1),
        np.stack([CELLS[0], CELLS[1] * 255, CELLS[2]]).astype(np.uint8),
        np.stack([CELLS[0] * 255, CELLS[1], CELLS[2] * 65535]).astype(np.uint16),
    ],
    ids=["bool", "1", "255", "128", "65535", "7", "2^63 + 1", "1 and 255", "255, 1, 65535"],
)
def test_one_value_above_0_is_a_mask_whatever_it_is(labels):
    reading = read_meaning(labels)
    assert (reading.kind, reading.threshold, reading.n_cells) == ("mask", 0, N_CELLS)
    assert reading.foreground == CELLS.sum() and reading.pixels == CELLS.size
    for slice_, truth, ids in zip(labels, CELLS, IDS):
        np.testing.assert_array_equal(reading.classes(slice_), truth)
        np.testing.assert_array_equal(reading.cells(slice_), ids)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "int64", "uint64"])
def test_several_values_are_ids(dtype):
    reading = read_meaning(IDS.astype(dtype))
    assert (reading.kind, reading.n_cells) == ("ids", N_CELLS)
    np.testing.assert_array_equal(reading.cells(IDS[1].astype(dtype)), IDS[1])


def test_ids_beyond_every_signed_integer_stay_apart():
    ids = np.array([[0, 2**63 + 1, 5], [2**63 + 2, 2**64 - 1, 5]], np.uint64)
    cells = read_meaning(ids[None]).cells(ids)
    assert cells[0, 0] == 0 and cells[0, 2] == cells[1, 2]
    assert len(np.unique(cells)) == 5 and (cells >= 0).all()


def test_cells_of_one_id_a_slice_are_the_same_either_way():
    """A single cell in each slice, tracked: its ids differ, and as a mask it would be as many."""
    tracked = np.zeros((3, 9, 9), np.uint8)
    for z in range(3):
        tracked[z, 2:5, 2 + z : 5 + z] = z + 1
    assert read_meaning(tracked).n_cells == read_meaning(tracked > 0).n_cells == 3
    assert [list(np.unique(read_meaning(tracked).cells(s))) for s in tracked] == [
        [0, 1], [0, 2], [0, 3]]  # fmt: skip


def test_one_value_a_slice_that_may_be_either_is_refused():
    labels = CELLS * np.arange(2, 5, dtype=np.uint8)[:, None, None]
    with pytest.raises(InputError, match=r"one value above 0, but they differ .*-kind mask"):
        read_meaning(labels)
    assert read_meaning(labels, LabelSettings("mask")).n_cells == N_CELLS
    assert read_meaning(labels, LabelSettings("ids")).n_cells == 3


SPOILED = {
    **{f"JPEG {q}": through_jpeg(CELLS * np.uint8(255), q) for q in (50, 75, 90, 95)},
    "blurred": np.stack([ndimage.gaussian_filter(s * 255.0, 1) for s in CELLS]).astype(np.uint8),
    "16 bit": np.stack([ndimage.uniform_filter(s * 65535.0, 3) for s in CELLS]).astype(np.uint16),
    "enlarged": ndimage.zoom(CELLS * 255.0, (1, 2, 2), order=1).astype(np.uint8),
    "made smaller": CELLS.reshape(3, 48, 2, 48, 2).mean((2, 4)) * 255 // 1,
    "softmax": np.rint(255 / (1 + np.exp(-4 * np.stack(
        [ndimage.gaussian_filter(np.where(s, 3.0, -3.0), 1) for s in CELLS])))),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_mask_is_refused_and_told_the_cure(name):
    labels = SPOILED[name].astype(np.uint16)
    with pytest.raises(InputError, match=r"look like a (mask that was blurred|grey image).*mask t"):
        read_meaning(labels)


def discs(number: int, side: int, radius: float) -> np.ndarray:
    rng, (y, x) = np.random.default_rng(5), np.mgrid[:side, :side]
    stack = np.zeros((2, side, side), bool)
    for slice_ in stack:
        for cy, cx in rng.uniform(0, side, (number, 2)):
            slice_ |= (y - cy) ** 2 + (x - cx) ** 2 <= radius**2
    return stack


def resized(mask: np.ndarray, factor: float, how: Image.Resampling) -> np.ndarray:
    size = int(mask.shape[2] * factor), int(mask.shape[1] * factor)
    images = [Image.fromarray(slice_ * np.uint8(255)).resize(size, how) for slice_ in mask]
    return np.stack([np.asarray(image) for image in images])


@pytest.mark.parametrize(("number", "side", "radius"), [(120, 200, 3), (1, 96, 20), (3, 32, 4)])
def test_small_and_few_cells_are_told_when_spoiled(number, side, radius):
    mask = discs(number, side, radius)
    half_a_pixel = (mask * 127 + np.roll(mask, 1, axis=2) * 128).astype(np.uint8)
    half_a_pixel[half_a_pixel == 128] = 127
    for labels in (
        *(resized(mask, 2, how) for how in (Image.Resampling.BILINEAR, Image.Resampling.LANCZOS)),
        *(resized(mask, 0.7, how) for how in (Image.Resampling.BOX, Image.Resampling.BICUBIC)),
        through_jpeg(mask * np.uint8(255), 95),
        half_a_pixel,
    ):
        with pytest.raises(InputError, match=r"look like a (mask that was blurred|grey image)"):
            read_meaning(labels)
    assert read_meaning(mask * np.uint8(255)).kind == "mask"


def test_real_ids_of_few_pixels_are_ids():
    points = np.zeros((1, 128, 128), int)
    y, x = np.unravel_index(np.random.default_rng(0).permutation(128**2)[:500], (128, 128))
    points[0, y, x] = np.arange(1, 501)
    debris = np.zeros((1, 128, 128), int)
    debris[0, 20:80, 20:80] = 100
    debris[0, 85:125:5, 5:125:5] = np.arange(1, 193).reshape(8, 24)
    tiles = np.kron(np.arange(1, 401).reshape(1, 20, 20), np.ones((1, 5, 5), int))
    assert [read_meaning(labels).kind for labels in (points, debris, tiles)] == ["ids"] * 3


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_among_slices_of_ids_is_refused(value):
    labels = np.stack([ndimage.label(slice_)[0] for slice_ in discs(40, 128, 4)])
    labels[1] = (labels[1] > 0) * value
    with pytest.raises(
        InputError, match=rf"slice 1 of the labels holds {value} alone, in \d+ pieces"
    ):
        read_meaning(labels)
    assert read_meaning(labels, LabelSettings("ids")).kind == "ids"


@pytest.mark.parametrize("quality", [75, 90, 95])
def test_half_of_the_range_restores_a_mask_after_jpeg(quality):
    labels = SPOILED[f"JPEG {quality}"]
    reading = read_meaning(labels, LabelSettings("mask"))
    assert reading.threshold == 127 and reading.n_cells == N_CELLS
    for slice_, truth in zip(labels, CELLS):
        np.testing.assert_array_equal(reading.classes(slice_), truth)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_image_is_refused(bits):
    noise = np.random.default_rng(1).random((2, 60, 70))
    smooth = ndimage.gaussian_filter(noise, (0, 1, 1))
    grey = (smooth - smooth.min()) / np.ptp(smooth) * (2**bits - 1)
    with pytest.raises(InputError, match=r"look like a grey image.* swapped"):
        read_meaning(grey.astype(f"uint{bits}"))


def test_mask_takes_what_is_above_half_and_nothing_else():
    labels = np.array([[[0, 1, 127, 128, 255, 254]]], np.uint8)
    assert read_meaning(labels, LabelSettings("mask")).classes(labels[0]).tolist() == [
        [0, 0, 0, 1, 1, 1]]  # fmt: skip
    even = np.array([[[0, 50, 51, 100]]], np.uint8)  # half is 50
    assert read_meaning(even, LabelSettings("mask")).classes(even[0]).tolist() == [[0, 0, 1, 1]]


def test_a_slice_of_another_range_is_not_lost_to_the_threshold():
    labels = SPOILED["JPEG 90"].copy()
    labels[1] = CELLS[1]
    with pytest.raises(InputError, match="slice 1 of the mask holds 0 and 1 alone"):
        read_meaning(labels, LabelSettings("mask"))
    labels[1] = 0
    labels[1, 5, 7] = 1  # a stray pixel of an empty slice is none
    assert read_meaning(labels, LabelSettings("mask")).classes(labels[1]).sum() == 0


def test_classes_are_counted_by_their_components():
    labels = np.array([[[1, 1, 2, 0, 2, 1]]])
    reading = read_meaning(labels, LabelSettings("classes"))
    assert (reading.kind, reading.n_classes, reading.n_cells) == ("classes", 3, 4)
    assert reading.classes(labels[0]).tolist() == labels[0].tolist()
    cells = reading.cells(labels[0])[0]
    assert cells[0] == cells[1] and len(set(cells.tolist()) - {0}) == 4 and cells[3] == 0
    with pytest.raises(InputError, match=r"labels hold 256: classes are 0 \.\.\. 255"):
        read_meaning(np.array([[[256]]]), LabelSettings("classes"))


@pytest.mark.parametrize("unknown", [255, 2, -1])
@pytest.mark.parametrize("kind", ["auto", "mask", "ids", "classes"])
def test_unknown_pixels_are_neither(unknown, kind):
    labels = np.array([[[0, 1, 1, 0, unknown, 1]]], np.int16)
    reading = read_meaning(labels, LabelSettings(kind, unknown))
    assert (reading.unknown, reading.foreground, reading.pixels) == (1, 3, 6)
    assert reading.cells(labels[0])[0, 4] == UNKNOWN_CELL
    assert reading.classes(labels[0]).tolist() == [[0, 1, 1, 0, 0, 1]]
    assert reading.n_cells == (1 if kind == "ids" else 2)
    assert instances(labels[0], label_kind=kind, ignore_label=unknown)[0, 4] == 0


def test_0_unknown_1_background_needs_no_guess():
    """0 unknown, 1 background, 2 cell: read as asked, and the line tells."""
    labels = np.array([[[0, 1, 2, 2, 1, 2]]])
    assert read_meaning(labels).line().startswith("ids, 2 cells a slice, 83 % foreground")
    many = np.kron(np.array([[1, 0, 2, 0] * 4]), np.ones((3, 3), int))[None]
    line = "ids (each in 4 pieces; are they classes?), 2 cells a slice, 50 % foreground"
    assert read_meaning(many).line().startswith(line)


@pytest.mark.parametrize(
    ("labels", "how", "kind", "unknown"),
    [
        (CELLS * 255, LabelSettings(), "mask, ", "no unknown pixels"),
        (IDS, LabelSettings(), "ids, ", "no unknown pixels"),
        (
            SPOILED["JPEG 90"],
            LabelSettings("mask"),
            "mask (values above 127 are cell), ",
            "no unknown pixels",
        ),
        (
            np.where(np.arange(96) < 24, 9, CELLS),
            LabelSettings(ignore_label=9),
            "mask, ",
            "25 % unknown pixels",
        ),
    ],
)
def test_the_line_says_kind_cells_foreground_and_unknown(labels, how, kind, unknown):
    reading = read_meaning(labels, how)
    known = labels != 9 if how.ignore_label else np.ones(labels.shape, bool)
    share = f"{100 * CELLS[known].mean():.0f} % foreground"
    cells = f"{reading.n_cells / 3:.0f} cells a slice"
    assert reading.line() == f"{kind}{cells}, {share}, {unknown}"


def test_whole_floating_point_numbers_are_integers_and_others_refused():
    with pytest.warns(InputNote, match="whole numbers stored as float64: read as integers"):
        assert as_stack(IDS.astype(float)).dtype == np.int64
    for wrong in (0.5, np.nan, np.inf):
        with pytest.raises(InputError, match="integers are needed"):
            as_stack(np.array([[1.0, wrong]]))


@pytest.mark.parametrize(("dtype", "digits"), [("f2", 11), ("f4", 24), ("f8", 53)])
def test_ids_that_a_type_may_have_merged_are_refused(dtype, digits):
    """2**digits + 1 was stored as 2**digits: two cells with one id."""
    ids = np.array([[0, 2**digits, 2**digits + 1]], dtype)
    assert len(np.unique(ids)) == 2
    with pytest.raises(InputError, match="ids may have become one: save them as integers"):
        as_integers(ids, "labels")
    fine = np.array([[0, 2**digits - 1, 2**digits - 2]], dtype)
    assert as_integers(fine, "labels", is_told=False).tolist() == fine.astype(int).tolist()


def test_bands_of_rows_see_what_the_whole_does(monkeypatch):
    whole = [read_meaning(labels, LabelSettings("mask")) for labels in (IDS, SPOILED["blurred"])]
    monkeypatch.setattr("unet_repro.images.label_facts._BAND_PX", 96 * 5)
    assert whole == [read_meaning(labels, LabelSettings("mask")) for labels in (
        IDS, SPOILED["blurred"])]  # fmt: skip
    with pytest.raises(InputError, match="blurred"):
        read_meaning(SPOILED["JPEG 90"])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    cells=st.integers(2, 12),
)
def test_rectangles_of_ids_are_never_taken_for_anything_else(seed, height, width, cells):
    rng = np.random.default_rng(seed)
    labels = np.zeros((1, height, width), np.int32)
    for cell in rng.permutation(cells) + 1:
        y, x = rng.integers(height), rng.integers(width)
        labels[0, y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = cell
    reading = read_meaning(labels)
    expected = np.unique(labels[labels > 0])
    if len(expected) > 1:
        assert reading.kind == "ids" and reading.n_cells == len(expected)
    else:
        assert reading.kind == "mask"
