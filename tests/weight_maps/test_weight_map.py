"""The weight map against the definition, worked cases, and one distance transform per cell."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from unet_repro.errors import InputError
from unet_repro.images.labels import instances
from unet_repro.weight_maps.weight_map import (
    frequency_weights,
    separate_touching,
    two_nearest_distances,
    weight_map,
)


def distances_cell_by_cell(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transform each cell of a slice apart, sort: the slow and obvious way."""
    transforms = [np.full(ids.shape, np.inf)] * 2
    for cell in np.unique(ids[ids > 0]):
        transforms.append(ndimage.distance_transform_edt(ids != cell))
    d1, d2 = np.sort(transforms, axis=0)[:2]
    return d1, d2


def border_term(ids: np.ndarray, w0: float = 10.0, sigma: float = 5.0) -> np.ndarray:
    d1, d2 = distances_cell_by_cell(ids)
    return np.where(ids == 0, w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2)), 0.0)


@st.composite
def slices_of_ids(draw: st.DrawFn) -> np.ndarray:
    """Scattered pixels (sparse to full) or rectangles, of few to many cells; long rows too."""
    height, width = draw(
        st.one_of(
            st.tuples(st.integers(1, 24), st.integers(1, 24)),
            st.tuples(st.integers(1, 4), st.integers(60, 300)),
            st.tuples(st.integers(60, 300), st.integers(1, 4)),
        )
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = draw(st.integers(1, 9))
    if draw(st.booleans()):
        density = draw(st.sampled_from([0.003, 0.02, 0.1, 0.4, 0.9, 1.0]))
        ids = rng.integers(1, cells + 1, (height, width)) * (rng.random((height, width)) < density)
    else:
        ids = np.zeros((height, width), int)
        for cell in range(1, cells + 1):
            y, x = rng.integers(height), rng.integers(width)
            ids[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = cell
    return ids


@settings(max_examples=150, deadline=None)
@given(slices_of_ids(), st.integers(1, 3))
def test_distances_equal_one_transform_per_cell(ids: np.ndarray, workers: int) -> None:
    d1, d2 = two_nearest_distances(ids, label_kind="ids", workers=workers)
    expected_1, expected_2 = distances_cell_by_cell(ids)
    assert d1.dtype == d2.dtype == np.float32
    assert np.array_equal(d1, expected_1.astype(np.float32))
    assert np.array_equal(d2, expected_2.astype(np.float32))


@settings(max_examples=100, deadline=None)
@given(slices_of_ids(), st.sampled_from([0.5, 5.0, 40.0]), st.integers(1, 3))
def test_border_term_equals_one_transform_per_cell(
    ids: np.ndarray, sigma: float, workers: int
) -> None:
    weights = weight_map(ids, sigma=sigma, class_balance=None, label_kind="ids", workers=workers)
    assert weights.dtype == np.float32
    assert weights.shape == ids.shape
    assert np.abs(weights - 1 - border_term(ids, sigma=sigma)).max() <= 1e-5


def test_interleaved_cells_along_far_edges_are_exact() -> None:
    ids = np.zeros((90, 260), int)
    ids[0] = np.arange(260) // 7 % 5 + 1
    ids[-1] = np.arange(260) // 11 % 3 + 4
    ids[40, 13::50] = 9
    for found, expected in zip(two_nearest_distances(ids), distances_cell_by_cell(ids)):
        assert np.array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("gap", [1, 2, 3, 8, 21])
@pytest.mark.parametrize("axis", [0, 1])
def test_gap_weight_is_constant_across_gap(gap: int, axis: int) -> None:
    ids = np.repeat([4, 0, 9], [5, gap, 7])
    ids = np.stack([ids] * 6, axis=1 - axis)
    d1, d2 = two_nearest_distances(ids)
    assert (d1 + d2)[ids == 0] == pytest.approx(gap + 1, abs=0)
    expected = 1 + 10 * math.exp(-((gap + 1) ** 2) / 50)
    weights = weight_map(ids, class_balance=None)
    assert weights[ids == 0] == pytest.approx(expected, abs=1e-6)
    assert (weights[ids > 0] == 1).all()
    if gap == 1:
        assert weights[ids == 0] - 1 == pytest.approx(9.2312, abs=5e-5)


def test_no_cell_and_all_cell_weigh_one() -> None:
    for ids in (np.zeros((3, 4), int), np.full((3, 4), 7)):
        assert (weight_map(ids) == 1).all()
    assert np.isinf(two_nearest_distances(np.zeros((3, 4), int))).all()


def test_slice_higher_than_a_short_integer_counts() -> None:
    ids = np.zeros((40_000, 2), np.uint8)
    ids[0, 0], ids[-1, 1] = 3, 4
    d1, d2 = two_nearest_distances(ids)
    assert d1[39_990, 1] == 9
    assert d2[39_990, 0] == 39_990


@settings(max_examples=30, deadline=None)
@given(slices_of_ids(), st.integers(0, 2**32 - 1))
def test_renumbering_flips_and_transposition_change_nothing(ids: np.ndarray, seed: int) -> None:
    weights = weight_map(ids, label_kind="ids")
    new_ids = np.random.default_rng(seed).choice(2**62, ids.max() + 1, replace=False)
    new_ids[0] = 0
    assert np.array_equal(weight_map(new_ids[ids], label_kind="ids"), weights)
    assert np.array_equal(weight_map(ids[::-1], label_kind="ids"), weights[::-1])
    assert np.array_equal(weight_map(ids[:, ::-1], label_kind="ids"), weights[:, ::-1])
    assert np.array_equal(weight_map(ids.T, label_kind="ids"), weights.T)


GAPPED = np.array([[1, 1, 0, 2], [0, 0, 0, 2], [3, 0, 0, 0]])


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "<u2", ">u2", ">i4", "<u4", "<i8", ">i8", "<u8", ">u8"]
)
def test_every_integer_type_gives_the_same(dtype: str) -> None:
    ids = GAPPED.astype(dtype)
    assert np.array_equal(weight_map(ids), weight_map(GAPPED))
    highest = np.where(GAPPED == 2, np.iinfo(dtype).max, GAPPED.astype(object)).astype(dtype)
    assert np.array_equal(weight_map(highest), weight_map(GAPPED))


def test_ids_equal_in_their_low_bits_stay_distinct() -> None:
    big = np.array([[5, 0, 5 + 2**32], [0, 0, 0], [2**63, 0, 2**63 + 5]], np.uint64)
    small = np.array([[1, 0, 2], [0, 0, 0], [3, 0, 4]])
    assert np.array_equal(weight_map(big), weight_map(small))


def test_input_is_unchanged_whatever_its_layout() -> None:
    base = np.kron(np.tile(GAPPED, (2, 2)), np.ones((2, 2), int))
    strided = base[::2, ::-2]
    read_only = np.asfortranarray(base)
    read_only.flags.writeable = False
    for labels in (strided, read_only):
        before = labels.copy()
        expected = weight_map(np.array(labels, order="C"), separate_touching=True)
        assert np.array_equal(weight_map(labels, separate_touching=True, workers=2), expected)
        assert instances(labels) is not labels
        assert np.array_equal(labels, before)


def test_stack_is_slices_with_one_class_balance() -> None:
    rng = np.random.default_rng(3)
    stack = rng.integers(0, 4, (5, 9, 11)) * (rng.random((5, 9, 11)) < 0.5)
    stack[2] = 0
    balanced = weight_map(stack)
    background, cell = stack.size / 2 / (stack == 0).sum(), stack.size / 2 / (stack > 0).sum()
    assert (balanced[stack > 0] == np.float32(cell)).all()
    for z in range(5):
        expected = border_term(stack[z]) + np.where(stack[z] == 0, background, cell)
        assert balanced[z] == pytest.approx(expected, abs=1e-5)
    for workers in (2, 7, 12):
        assert np.array_equal(weight_map(stack, workers=workers), balanced)
    alone = zip(*(two_nearest_distances(slice_, label_kind="ids") for slice_ in stack))
    for whole, slices in zip(two_nearest_distances(stack, workers=2), alone):
        assert np.array_equal(whole, slices)


def test_class_balance_by_hand() -> None:
    labels = np.zeros((2, 5), int)
    labels[0, 0] = 1  # 1 pixel of 10: 10 / (2 * 1) and 10 / (2 * 9)
    weights = weight_map(labels)
    assert weights[0, 0] == 5
    assert weights[1, 1] == np.float32(10 / 18)
    assert weights.mean() == pytest.approx(1)
    assert frequency_weights(9, 1) == (10 / 18, 5)
    assert frequency_weights(0, 3) == (0, 1)
    assert np.array_equal(weight_map(labels, class_balance=(10 / 18, 5)), weights)
    assert set(weight_map(labels, class_balance=(0, 2.5)).ravel().tolist()) == {0, 2.5}


def test_unknown_pixels_weigh_nothing_and_count_for_nothing() -> None:
    labels = np.array([[1, 0, -1, 0, 2, 0, 0]])
    weights = weight_map(labels, ignore_label=-1)
    assert weights[0, 2] == 0
    assert weights[0, 0] == np.float32(6 / (2 * 2))  # 2 cell and 4 background pixels are known
    assert weights[0, 1] == pytest.approx(6 / (2 * 4) + 10 * math.exp(-16 / 50))
    d1, d2 = two_nearest_distances(labels, ignore_label=-1)
    assert (d1[0, 2], d2[0, 2]) == (2, 2)


@pytest.mark.parametrize("unknown", [7, 255, 2**31 - 1])
def test_positive_unknown_value_is_no_cell(unknown: int) -> None:
    labels = np.array([[0, 0, unknown, 0, 3, 0, 0, 4]])
    weights = weight_map(labels, ignore_label=unknown, class_balance=None)
    assert weights[0, 2] == 0
    assert weights[0, 3] == pytest.approx(1 + 10 * math.exp(-25 / 50))
    assert (weights[0, [4, 7]] == 1).all()


def test_far_negative_unknown_value_does_not_wrap() -> None:
    labels = np.array([[3, 0, -(2**40) + 5, 0, 4]])
    small = np.where(labels < 0, -1, labels)
    expected = weight_map(small, ignore_label=-1)
    assert np.array_equal(weight_map(labels, ignore_label=-(2**40) + 5), expected)


def test_unknown_value_may_be_none_of_the_labels_or_the_background() -> None:
    assert np.array_equal(weight_map(GAPPED.astype(np.uint8), ignore_label=-1), weight_map(GAPPED))
    assert weight_map(GAPPED, ignore_label=0).tolist() == (GAPPED > 0).tolist()


MASK = np.array([[1, 1, 0, 1], [0, 0, 1, 0], [1, 0, 1, 1]])  # 5 four-connected components
MASK_IDS = np.array([[1, 1, 0, 2], [0, 0, 3, 0], [4, 0, 3, 3]])


@pytest.mark.parametrize("mask", [MASK, MASK > 0, (MASK * 255).astype(np.uint8)])
def test_mask_stands_for_its_4_connected_components(mask: np.ndarray) -> None:
    assert np.array_equal(instances(mask), MASK_IDS)
    assert np.array_equal(weight_map(mask), weight_map(MASK_IDS))
    stack = np.stack([mask, mask[::-1]])
    assert np.array_equal(instances(stack)[1][::-1] > 0, mask > 0)
    assert np.array_equal(weight_map(stack)[0], weight_map(MASK_IDS))


def test_mask_rule_looks_at_the_whole_stack() -> None:
    stack = np.array([[[0, 1, 0, 1]], [[0, 1, 0, 2]]])
    assert np.array_equal(instances(stack), stack)
    assert instances(stack[:1]).tolist() == [[[0, 1, 0, 2]]]


@pytest.mark.parametrize("value", [128, 65535, 7])
def test_any_one_value_is_a_mask(value: int) -> None:
    labels = np.array([[1, 1, 0, 1, 1]], np.uint16) * value  # a gap of 1 px: d1 + d2 = 2
    expected = [1, 1, 1 + 10 * math.exp(-4 / 50), 1, 1]
    assert weight_map(labels, class_balance=None)[0] == pytest.approx(expected)


def test_kind_overrules_the_mask_rule() -> None:
    one_cell_in_two_parts = np.array([[1, 0, 1]])
    assert weight_map(one_cell_in_two_parts, class_balance=None, label_kind="ids")[0, 1] == 1
    assert weight_map(one_cell_in_two_parts, class_balance=None)[0, 1] > 10
    two_values = np.array([[3, 4, 0, 5]])
    assert instances(two_values, label_kind="mask").tolist() == [[1, 1, 0, 2]]


def test_mask_with_unknown_pixels() -> None:
    mask = np.array([[255, 255, 7, 255, 0, 255]])
    assert instances(mask, ignore_label=7).tolist() == [[1, 1, 0, 2, 0, 3]]
    weights = weight_map(mask, ignore_label=7, class_balance=None)
    assert weights[0] == pytest.approx([1, 1, 0, 1, 1 + 10 * math.exp(-4 / 50), 1])


def test_short_variant_has_w0_one() -> None:
    short = weight_map(GAPPED, variant="short")
    assert np.array_equal(short, weight_map(GAPPED, w0=1))
    assert not np.array_equal(short, weight_map(GAPPED))


def test_falk2019_by_hand() -> None:
    labels = np.array([[3, 0, 0, 4, 0, 0, 0, 0]])
    weights = weight_map(labels, variant="falk2019")[0]
    assert weights[[0, 3]].tolist() == [1, 1]
    near = 0.1 + 0.9 * math.exp(-(1**2) / 200)
    assert weights[1] == pytest.approx(near + 50 * math.exp(-(3**2) / 72))
    near = 0.1 + 0.9 * math.exp(-(4**2) / 200)
    assert weights[7] == pytest.approx(near + 50 * math.exp(-(11**2) / 72))


def test_falk2019_with_one_cell_falls_off_with_distance() -> None:
    labels = np.zeros((1, 400), int)
    labels[0, 0] = 9
    expected = 0.1 + 0.9 * np.exp(-(np.arange(1, 400) ** 2) / 200)
    assert weight_map(labels, variant="falk2019", label_kind="ids")[0, 1:] == pytest.approx(
        expected
    )


def test_ridge_equals_overlap_of_dilated_cells() -> None:
    rng = np.random.default_rng(5)
    ids = np.kron(rng.integers(0, 6, (8, 8)), np.ones((4, 4), int)).astype(np.uint16)
    y, x = np.mgrid[-2:3, -2:3]
    for radius in (1, 2):
        disc = y**2 + x**2 <= radius**2
        dilated = [ndimage.binary_dilation(ids == k, disc) for k in range(1, 6)]
        expected = np.where(np.sum(dilated, axis=0) > 1, 0, ids)
        separated = separate_touching(ids, radius=radius)
        assert separated.dtype == np.uint16 and np.array_equal(separated, expected)
    with pytest.raises(InputError, match="radius is -1: it must be 0 px or more"):
        separate_touching(ids, radius=-1)


def test_ridge_weighs_as_background_with_the_distances_of_the_cells_given() -> None:
    labels = np.array([[1, 1, 1, 2, 2, 0, 5]])
    weights = weight_map(labels, separate_touching=True)[0]
    background, cell = frequency_weights(3, 4)  # 1 1 . . 2 0 5
    term = [0, 0, math.exp(-1 / 50), math.exp(-1 / 50), 0, math.exp(-4 / 50), 0]
    balance = [cell, cell, background, background, cell, background, cell]
    assert weights == pytest.approx(np.array(balance) + 10 * np.array(term))


def test_ridge_leaves_unknown_pixels() -> None:
    labels = np.array([[3, 3, 9, 4, 5]])
    assert separate_touching(labels, ignore_label=9).tolist() == [[3, 3, 9, 0, 0]]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 4, 4), (2, 0, 5)])
def test_empty_arrays_give_empty_maps(shape: tuple[int, ...]) -> None:
    for dtype in (int, bool):
        empty = np.zeros(shape, dtype)
        assert weight_map(empty, workers=2).shape == shape
        assert instances(empty).shape == shape
        assert separate_touching(empty).shape == shape


@pytest.mark.parametrize(
    "labels, options, message",
    [
        (np.full((2, 2), 0.5), {}, r"labels are float64 and hold 0.5: integers are needed"),
        (np.zeros(4, int), {}, r"shape \(4,\): \(height, width\) or \(z, y, x\)"),
        (np.array([[0, -3, -7]]), {}, "labels hold -7: 0 is background"),
        (np.array([[0, -3, -7]]), {"ignore_label": -7}, "labels hold -3: 0 is background"),
        (GAPPED > 0, {"ignore_label": 1}, "ignore_label is 1: a bool mask has no value"),
        (GAPPED, {"ignore_label": 1.5}, "ignore_label is 1.5: an integer or None"),
        (GAPPED, {"w0": -1}, r"w0 is -1.0: a number from 0 to 1e\+30"),
        (GAPPED, {"w0": math.nan}, "w0 is nan"),
        (GAPPED, {"w0": 1e39}, "w0 is 1e"),  # float32 has no such weight
        (GAPPED, {"sigma": 0}, "sigma is 0.0: a finite number of px above 0"),
        (GAPPED, {"sigma": math.inf}, "sigma is inf"),
        (GAPPED, {"separation_px": -1}, "separation_px is -1: it must be 0 px or more"),
        (GAPPED, {"variant": "unet"}, "variant is 'unet': one of paper, short, falk2019"),
        (GAPPED, {"variant": "short", "w0": 10}, "w0 is 10.0: the variant 'short' means 1"),
        (GAPPED, {"class_balance": "none"}, "class_balance is 'none': 'frequency', None, or"),
        (GAPPED, {"class_balance": (1, -1)}, r"class_balance is \(1, -1\)"),
        (GAPPED, {"class_balance": 3}, "class_balance is 3"),
        (GAPPED, {"label_kind": "binary"}, "label_kind is 'binary': one of auto, mask"),
        (GAPPED, {"workers": 0}, "workers is 0: at least 1 thread"),
    ],
)
def test_bad_input_is_named(labels: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weight_map(labels, **options)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "i8"])
def test_peak_memory_is_ten_bytes_per_pixel_beyond_input_and_output(dtype: str) -> None:
    ids = np.kron(np.arange(1, 101).reshape(10, 10), np.ones((60, 60), int)).astype(dtype)
    ids[::60], ids[:, ::60] = 0, 0
    for labels in (ids, (ids > 0).astype(dtype)):  # instance ids, and a mask
        weight_map(labels)  # compile
        tracemalloc.start()
        weights = weight_map(labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak - weights.nbytes <= 10 * labels.size
