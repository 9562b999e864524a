"""The EM challenge's figures: against the official program, a slow reference, and by hand."""

import json
import os
from collections import Counter, deque
from math import log
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unet_repro.errors import InputError
from unet_repro.metrics import (
    THRESHOLDS,
    WARPING_THRESHOLDS,
    EMChallengeMetrics,
    WarpingClass,
    _checks,
    em_challenge_metrics,
    pixel_error,
    rand_error,
    thinned_labels,
    v_info,
    v_rand,
    warping_error,
    warping_map,
)
from unet_repro.metrics._jit import jit

HERE = Path(__file__).parents[1]
SYNTHETIC = HERE / "golden"
EXTERNAL = Path(os.environ.get("UNET_REPRO_GOLDEN", HERE.parents[1] / "shared" / "golden"))
HAS_EXTERNAL = (EXTERNAL / "golden.json").is_file()

FIGURES = {
    "pixel_error": pixel_error,
    "rand_error": rand_error,
    "warping_error": warping_error,
    "v_rand": v_rand,
    "v_info": v_info,
}
CLASS_NAMES = [f"{kind.name.lower()}s" for kind in WarpingClass]
MAPS_AT = 0.5


def golden_cases(folder, names):
    sets = json.loads((folder / "golden.json").read_text())["sets"]
    return [
        pytest.param(folder, sets[name]["labels"], golden, id=f"{name}-{proposal}")
        for name in names
        for proposal, golden in sets[name]["proposals"].items()
    ]


GOLDEN = golden_cases(SYNTHETIC, ["edge", "phantom"])
if HAS_EXTERNAL:
    GOLDEN += golden_cases(EXTERNAL, ["isbi", "isbi_full"])


def official_values(values):
    return np.array([float(value) for value in values])  # "NaN" stands for NaN


@pytest.fixture
def without_range_check(monkeypatch):
    # One golden proposal is 8-bit, 0 … 255: the official program takes it as it is. We refuse it,
    # but what the kernels make of it must agree all the same.
    monkeypatch.setattr(_checks, "checked_probability", lambda array: np.float32(array))


@pytest.mark.parametrize("folder, labels_file, golden", GOLDEN)
def test_agrees_with_official_program_at_every_threshold(
    folder, labels_file, golden, without_range_check
):
    labels = tifffile.imread(folder / labels_file)
    probability = tifffile.imread(folder / golden["file"])
    metrics = em_challenge_metrics(labels, probability, degenerate="official")

    values = {
        "pixel_fscore_per_threshold": 1 - metrics.pixel_error.per_threshold,
        "pixel_hamming_per_threshold": 1 - metrics.pixel_error.accuracy_per_threshold,
        "rand_fscore_per_threshold": 1 - metrics.rand_error.per_threshold,
        "rand_precision_per_threshold": metrics.rand_error.precision,
        "rand_recall_per_threshold": metrics.rand_error.recall,
        "v_rand_thin_per_threshold": metrics.v_rand.per_threshold,
        "v_info_thin_per_threshold": metrics.v_info.per_threshold,
    }
    for name, ours in values.items():
        np.testing.assert_allclose(
            ours, official_values(golden[name]), rtol=0, atol=1e-12, err_msg=name
        )
    for name in CLASS_NAMES:
        official = golden[f"warping_{name}_per_threshold"]
        np.testing.assert_array_equal(getattr(metrics.warping_error, name), official, name)
    best = metrics.as_dict()
    for ours, official in [
        ("pixel_error", "pixel_error"),
        ("rand_error", "rand_error"),
        ("warping_error", "warping_error"),
        ("v_rand", "v_rand_thin"),
        ("v_info", "v_info_thin"),
    ]:
        assert best[ours] == pytest.approx(golden[official], rel=0, abs=1e-12), ours


@pytest.mark.skipif(not HAS_EXTERNAL, reason=f"no official results on ISBI data in {EXTERNAL}")
def test_official_results_on_isbi_data_are_among_the_golden_cases():
    assert sum(case.values[0] == EXTERNAL for case in GOLDEN) == 17


@pytest.mark.parametrize("degenerate", ["sensible", "official"])
def test_every_slice_of_edge_set_agrees_but_for_the_documented_ones(degenerate):
    golden = json.loads((SYNTHETIC / "golden.json").read_text())
    names = golden["about"]["edge_names"]
    slices = golden["sets"]["edge"]["proposals"]["edge"]["per_slice"]
    labels = tifffile.imread(SYNTHETIC / "labels_edge.tif")
    probability = tifffile.imread(SYNTHETIC / "proposal_edge.tif")
    metrics = em_challenge_metrics(labels, probability, degenerate=degenerate)
    for z, (name, official) in enumerate(zip(names, slices, strict=True)):
        if name != "gt_all_membrane__prop_all_cell":
            for ours, key in [
                (1 - metrics.pixel_error.per_slice[z], "pixel_fscore"),
                (1 - metrics.rand_error.per_slice[z], "rand_fscore"),
                (metrics.v_rand.per_slice[z], "v_rand_thin"),
                (metrics.v_info.per_slice[z], "v_info_thin"),
            ]:
                expected = official_values(official[f"{key}_per_threshold"])
                np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12, err_msg=name)
        if not name.startswith("gt_all_cell"):
            errors = metrics.warping_error
            np.testing.assert_array_equal(
                errors.splits_per_slice[z], official["warping_splits_per_threshold"]
            )
            np.testing.assert_array_equal(
                errors.mergers_per_slice[z], official["warping_mergers_per_threshold"]
            )


def map_cases():
    cases = [pytest.param(SYNTHETIC, "edge", "labels_edge.tif", id="edge")]
    if HAS_EXTERNAL:
        cases += [pytest.param(EXTERNAL, n, "labels.tif", id=n) for n in ("netlike", "rawedge")]
    return cases


@pytest.mark.parametrize("folder, name, labels_file", map_cases())
def test_maps_agree_pixel_for_pixel(folder, name, labels_file):
    labels = tifffile.imread(folder / labels_file)
    probability = tifffile.imread(folder / f"proposal_{name}.tif")
    thinned, warped, classes = (
        tifffile.imread(folder / "maps" / f"{name}_{kind}.tif")
        for kind in ("thin", "warped", "class")
    )
    for z in range(len(labels)):
        ours = warping_map(labels[z], probability[z], threshold=MAPS_AT)
        np.testing.assert_array_equal(ours.warped, warped[z])
        if labels[z].all():  # where the official program calls every error an object addition
            assert set(np.unique(classes[z])) <= {0, WarpingClass.OBJECT_ADDITION}
            np.testing.assert_array_equal(ours.classes > 0, classes[z] > 0)
        else:
            np.testing.assert_array_equal(ours.classes, classes[z])
        np.testing.assert_array_equal(thinned_labels(probability[z], threshold=MAPS_AT), thinned[z])


# Departures from the official program


@pytest.fixture
def one_empty_slice():
    """A perfect slice with two cells, and one whose truth has no cell at all."""
    labels = np.zeros((2, 5, 5), np.uint8)
    labels[0, :, :2] = 255
    labels[0, :, 3:] = 255
    return labels, np.where(labels > 0, 1.0, 0.0)


def test_slice_without_truth_is_left_out_of_rand_v_rand_and_v_info(one_empty_slice):
    metrics = em_challenge_metrics(*one_empty_slice)
    assert metrics.rand_error.best == 0
    assert metrics.v_rand.best == 1
    assert metrics.v_info.best == pytest.approx(1, abs=1e-12)
    assert np.isnan(metrics.v_rand.per_slice[1]).all()
    assert np.isnan(metrics.rand_error.per_slice[1]).all()


def test_slice_without_truth_spoils_official_rand_and_counts_zero_in_the_means(one_empty_slice):
    metrics = em_challenge_metrics(*one_empty_slice, degenerate="official")
    assert (metrics.rand_error.per_threshold == 1).all()
    assert np.isnan(metrics.rand_error.precision).all()
    assert metrics.v_rand.best == 0.5
    assert metrics.v_info.best == pytest.approx(0.5, abs=1e-12)


def test_slice_of_cell_only_is_classified_like_any_other():
    # A loop of membrane through the middle of a cell cannot grow out of nothing: hole additions.
    labels = np.ones((2, 7, 7), np.uint8)
    labels[1, 0] = 0
    ring = labels.astype(float)
    ring[0, 2:5, 2:5] = 0
    ring[0, 3, 3] = 1
    ours = warping_error(labels, ring)
    assert (ours.hole_additions == 8).all() and not ours.object_additions.any()
    official = warping_error(labels, ring, degenerate="official")
    assert (official.object_additions == 8).all() and not official.hole_additions.any()
    assert ours.best == official.best == 0


def test_single_cell_scores_zero_information_even_if_perfect():
    labels = np.ones((1, 4, 4), int)
    labels[0, 0, 0] = 0
    result = v_info(labels, labels.astype(float))
    assert result.best == 0
    assert (result.split == 1).all() and (result.merge == 1).all()


# A slow and obvious reference: dictionaries and sets of (y, x), one slice, one threshold

FOUR = ((0, -1), (-1, 0), (0, 1), (1, 0))  # W, N, E, S
EIGHT = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx)


def slow_components(mask):
    ids = dict.fromkeys(np.ndindex(mask.shape), 0)
    n_ids = 0
    for start in ids:
        if mask[start] and ids[start] == 0:
            n_ids += 1
            ids[start] = n_ids
            todo = [start]
            while todo:
                y, x = todo.pop()
                for dy, dx in FOUR:
                    q = (y + dy, x + dx)
                    if q in ids and mask[q] and ids[q] == 0:
                        ids[q] = n_ids
                        todo.append(q)
    return ids


def slow_thinning(ids, shape):
    regions = dict(ids)
    if not any(regions.values()):
        return dict.fromkeys(regions, 1)
    height, width = shape

    def neighbours(y, x):
        return [(y + dy, x + dx) for dy, dx in FOUR if (y + dy, x + dx) in regions]

    queue = deque(
        (y, x)
        for x in range(width)
        for y in range(height)
        if ids[y, x] == 0 and any(ids[q] for q in neighbours(y, x))
    )
    queued = set(queue)
    while queue:
        p = queue.popleft()
        around = neighbours(*p)
        for q in around:
            if regions[q] == 0 and q not in queued:
                queued.add(q)
                queue.append(q)
        found = {regions[q] for q in around} - {0}
        if len(found) == 1:
            regions[p] = found.pop()
    return regions


def slow_rand_sums(truth, regions):
    joint = Counter((truth[p], regions[p]) for p in truth if truth[p])
    objects = Counter(truth[p] for p in truth if truth[p])
    others = Counter(regions[p] for p in truth if truth[p])
    z = others.pop(0, 0)
    tp = sum(n * n for (_, j), n in joint.items() if j) + z
    return tp, sum(n * n for n in others.values()) + z, sum(n * n for n in objects.values())


def slow_information(truth, regions):
    pixels = [p for p in truth if truth[p]]
    alone = {p: regions[p] or ("alone", p) for p in pixels}  # each background pixel a cluster

    def entropy(cluster):
        counts = Counter(cluster(p) for p in pixels).values()
        return -sum(n / len(pixels) * log(n / len(pixels)) for n in counts)

    h_truth = entropy(lambda p: truth[p])
    h_regions = entropy(lambda p: alone[p])
    h_joint = entropy(lambda p: (truth[p], alone[p]))
    if min(h_truth, h_regions) < 1e-9:
        return 0.0
    return 2 * (h_truth + h_regions - h_joint) / (h_truth + h_regions)


def slow_is_simple(s, y, x):
    ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1)]
    v = [s.get((y + dy, x + dx), 0) for dy, dx in ring]
    return sum(v[k] - v[k] * v[k + 1] * v[k + 2] for k in (0, 2, 4, 6)) == 1


def slow_warp(labels, probability, t):
    height, width = labels.shape
    s = {p: int(labels[p] > 0) for p in np.ndindex(labels.shape)}
    target = {p: int(float(probability[p]) > t) for p in s}
    column_major = [(y, x) for x in range(width) for y in range(height)]
    todo = [p for p in column_major if s[p] != target[p]]
    todo.sort(key=lambda p: -np.float32(abs(float(probability[p]) - t)))
    has_changed = True
    while has_changed:
        has_changed = False
        for p in list(todo):
            if slow_is_simple(s, *p):
                s[p] = target[p]
                todo.remove(p)
                has_changed = True
    return s, todo


def slow_class(s, y, x, shape):
    mask = np.zeros(shape, bool)
    for p, value in s.items():
        mask[p] = value
    ids = slow_components(mask)
    around = [(y + dy, x + dx) for dy, dx in EIGHT if (y + dy, x + dx) in ids]
    found = {ids[q] for q in around}
    if len(found) >= 3:
        return "splits" if s[y, x] else "mergers"
    if len(found) == 2 and s[y, x]:
        mask[y, x] = False  # the slices of this test are smaller than the window
        ids = slow_components(mask)
        return "splits" if len({ids[q] for q in around} - {0}) >= 2 else "hole_deletions"
    if len(found) == 2:
        return "hole_additions"
    if found == {0}:
        return "object_deletions" if s[y, x] else "object_additions"
    return "hole_additions" if s[y, x] else "hole_deletions"


# Few distinct values for many ties, some just above or below their threshold as float32.
GREY_VALUES = [0.0, 0.05, 0.1, 0.3, 0.35, 0.5, 0.65, 0.7, 0.8, 0.9, 0.95, 1.0]


@st.composite
def stacks(draw, elements=None, max_side=7):
    """A labels stack with both classes in every slice, and a proposal."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(2, max_side), st.integers(2, max_side)))
    labels = draw(arrays(np.uint8, shape, elements=st.sampled_from([0, 0, 1, 1, 2])))
    labels[:, 0, 0], labels[:, -1, -1] = 0, 3
    values = elements or st.sampled_from(GREY_VALUES)
    probability = draw(arrays(np.float32, shape, elements=values.map(np.float32)))
    return labels, probability


@settings(max_examples=60, deadline=None)
@given(stacks())
def test_equals_slow_reference(stack):
    labels, probability = stack
    metrics = em_challenge_metrics(labels, probability, workers=1)
    shape = labels.shape[1:]
    for k, t in enumerate(THRESHOLDS):
        sums, v_rands, v_infos, classes = [], [], [], Counter()
        for z in range(len(labels)):
            truth = slow_components(labels[z] > 0)
            objects = slow_components(probability[z].astype(float) > t)
            thinned = slow_thinning(objects, shape)
            sums.append(slow_rand_sums(truth, objects))
            tp, proposed, true = slow_rand_sums(truth, thinned)
            v_rands.append(2 * tp / (proposed + true))
            v_infos.append(slow_information(truth, thinned))
            if t < 0.95:
                s, remaining = slow_warp(labels[z], probability[z], t)
                classes.update(slow_class(s, *p, shape) for p in remaining)
        tp, proposed, true = np.sum(sums, axis=0)
        close = {"rel": 0, "abs": 1e-12}
        assert metrics.rand_error.per_threshold[k] == pytest.approx(
            1 - 2 * tp / (proposed + true), **close
        )
        assert metrics.v_rand.per_threshold[k] == pytest.approx(np.mean(v_rands), **close)
        assert metrics.v_info.per_threshold[k] == pytest.approx(np.mean(v_infos), **close)
        if t < 0.95:
            ours = {name: int(getattr(metrics.warping_error, name)[k]) for name in CLASS_NAMES}
            assert ours == {name: classes[name] for name in CLASS_NAMES}


# Properties of the definition


@settings(max_examples=40, deadline=None)
@given(stacks(), st.sampled_from([np.uint8, np.int64, bool]))
def test_perfect_proposal_scores_0_0_0_1_1(stack, dtype):
    labels = stack[0].repeat(2, axis=1)
    labels[:, :2] = 0
    labels[:, 0, 0] = 9  # with the one in the last corner, two objects in every slice
    metrics = em_challenge_metrics(labels.astype(dtype), (labels > 0).astype(np.float32))
    best = metrics.as_dict()
    assert best["pixel_error"] == best["rand_error"] == best["warping_error"] == 0
    assert best["v_rand"] == 1
    assert best["v_info"] == pytest.approx(1, abs=1e-12)
    assert best["pixel_accuracy"] == best["pixel_accuracy_at_half"] == 1


SYMMETRIES = {
    "flipped": lambda stack: stack[:, ::-1],
    "mirrored": lambda stack: stack[:, :, ::-1],
    "transposed": lambda stack: stack.transpose(0, 2, 1),
}


@settings(max_examples=25, deadline=None)
@given(stacks(), st.sampled_from(sorted(SYMMETRIES)))
def test_pixel_and_rand_error_do_not_depend_on_orientation(stack, symmetry):
    turned = [SYMMETRIES[symmetry](array) for array in stack]
    for figure in (pixel_error, rand_error):
        np.testing.assert_array_equal(figure(*turned).per_threshold, figure(*stack).per_threshold)


@settings(max_examples=25, deadline=None)
@given(stacks(), st.randoms(use_true_random=False), st.sampled_from(sorted(SYMMETRIES)))
def test_warping_error_does_not_depend_on_orientation_without_ties(stack, random, symmetry):
    labels = stack[0]
    # Odd multiples of an irrational number lie at different distances from every threshold.
    values = [np.float32((2 * k + 1) / (2 * labels.size + 1) / 2**0.02) for k in range(labels.size)]
    random.shuffle(values)
    probability = np.array(values, np.float32).reshape(labels.shape)
    for t in WARPING_THRESHOLDS:
        assert np.unique(np.float32(abs(probability.astype(float) - t))).size == labels.size
    turned = [SYMMETRIES[symmetry](array) for array in (labels, probability)]
    ours, others = warping_error(labels, probability), warping_error(*turned)
    for name in CLASS_NAMES:
        np.testing.assert_array_equal(getattr(ours, name), getattr(others, name), name)


def test_dams_depend_on_column_major_order():
    # From the left, (0, 1) joins the left region, and (0, 2) then lies between two regions. In
    # the mirror image the first pixel of the queue is (0, 2) and joins the right one.
    probability = np.array([[1.0, 0, 0], [1, 0, 1]])
    assert thinned_labels(probability).tolist() == [[1, 1, 0], [1, 0, 2]]
    assert thinned_labels(probability[:, ::-1])[:, ::-1].tolist() == [[2, 0, 1], [2, 0, 1]]
    labels = np.array([[1, 1, 1], [0, 1, 0]])
    # c = 3 with the left region, 0 with the right, z = 1: (9 + 1) / ½(10 + 16); mirrored, the
    # counts are 1 and 1, z = 2: (1 + 1 + 2) / ½(4 + 16).
    assert v_rand(labels, probability).best != v_rand(labels[:, ::-1], probability[:, ::-1]).best


def test_warping_of_ties_depends_on_column_major_order():
    labels = np.array([[1, 0, 1], [0, 1, 1]])
    proposal = np.array([[1.0, 1, 0], [1, 0, 0]])
    assert warping_error(labels, proposal).best == 0
    assert warping_error(labels[::-1], proposal[::-1]).best == 1 / 6


@settings(max_examples=15, deadline=None)
@given(stacks(), st.integers(1, 200))
def test_labels_may_be_mask_or_instances(stack, offset):
    labels, probability = stack
    expected = em_challenge_metrics(labels, probability).as_dict()
    for same in (labels > 0, (labels > 0) * np.uint8(255), np.where(labels, labels + offset, 0)):
        assert em_challenge_metrics(same, probability).as_dict() == expected


# Over- and under-segmentation apart, by hand

TWO_CELLS = np.array([[1, 1, 0, 1, 1, 1, 1]])
MERGED = np.array([[1.0, 1, 1, 1, 1, 1, 1]])
SPLIT = np.array([[1.0, 1, 0, 1, 0, 1, 1]])


def test_merger_lowers_precision_of_rand_and_recall_of_information():
    # Sizes 2 and 4 in one region of 6: Σ c² = 20, Σ b² = 36, Σ a² = 20.
    rand = rand_error(TWO_CELLS, MERGED)
    assert (rand.precision == 20 / 36).all() and (rand.recall == 1).all()
    assert rand.best == pytest.approx(1 - 20 / 28)
    thinned = v_rand(TWO_CELLS, MERGED)
    assert (thinned.merge == 20 / 36).all() and (thinned.split == 1).all()
    assert thinned.best == pytest.approx(20 / 28)
    information = v_info(TWO_CELLS, MERGED)  # H(proposal) = 0, nothing is split
    assert (information.split == 1).all() and (information.merge == 0).all()
    assert information.best == 0


def test_split_lowers_recall_of_rand_and_precision_of_information():
    # Objects of 2 and 4 in regions of 2, 1 and 2, and one pixel alone (z = 1).
    rand = rand_error(TWO_CELLS, SPLIT)
    assert (rand.precision == 1).all() and (rand.recall == (4 + 1 + 4 + 1) / 20).all()
    thinned = v_rand(TWO_CELLS, SPLIT)  # one row: the gaps lie between two regions, all dams
    assert (thinned.merge == 1).all() and (thinned.split == 10 / 20).all()
    information = v_info(TWO_CELLS, SPLIT)
    h_truth = -(2 / 6 * log(2 / 6) + 4 / 6 * log(4 / 6))
    h_proposal = -2 * (2 / 6 * log(2 / 6) + 1 / 6 * log(1 / 6))
    assert information.merge == pytest.approx(1)
    assert information.split == pytest.approx(h_truth / h_proposal)
    assert information.best == pytest.approx(2 * h_truth / (h_truth + h_proposal))


def test_missed_membrane_is_mergers_and_extra_membrane_is_a_split():
    labels = np.ones((6, 9), int)
    labels[:, 4] = 0
    merged = np.ones((6, 9))
    result = warping_error(labels, merged)
    assert (result.mergers == 6).all() and (result.splits == 0).all()
    assert result.best == 6 / 54 and result.best_threshold == 0
    cut = labels.astype(float)
    cut[2, :4] = 0  # closes from both ends until one pixel holds the cell together
    result = warping_error(labels, cut)
    assert (result.mergers == 0).all() and (result.splits == 1).all()


@pytest.mark.parametrize(
    "height, kind", [(21, WarpingClass.HOLE_DELETION), (22, WarpingClass.SPLIT)]
)
def test_detour_counts_only_within_20_pixels(height, kind):
    # A loop one pixel wide, cut in its upper side: its lower side is 20 or 21 pixels below.
    labels = np.zeros((height + 10, 21), int)
    labels[5 : 5 + height, 5:16] = 1
    labels[6 : 4 + height, 6:15] = 0
    proposal = labels.astype(float)
    proposal[5, 10] = 0
    classes = warping_map(labels, proposal).classes
    assert np.argwhere(classes).tolist() == [[5, 10]]
    assert classes[5, 10] == kind


def test_vanished_cell_costs_nothing_but_is_counted():
    labels = np.zeros((8, 8), int)
    labels[1:3, 1:3] = 1
    labels[5:7, 5:7] = 1
    proposal = (labels > 0).astype(float)
    proposal[5:7, 5:7] = 0
    result = warping_error(labels, proposal)
    assert result.best == 0
    assert (result.object_deletions == 1).all()
    extra = (labels > 0).astype(float)
    extra[1, 6] = 1
    assert (warping_error(labels, extra).object_additions == 1).all()


def test_pixel_error_is_not_the_share_of_wrong_pixels():
    # TP 3, FP 1, FN 1 of 8 pixels: P = R = F = 3/4; right are 6 of 8.
    labels = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    result = pixel_error(labels, np.array([[1.0, 1, 1, 0, 1, 0, 0, 0]]))
    assert result.best == 0.25
    assert result.accuracy == result.accuracy_at_half == 0.75
    assert result.true_positives[0, 0] == 3
    assert result.false_positives[0, 0] == result.false_negatives[0, 0] == 1


def test_accuracy_has_its_own_best_threshold():
    # At 0.5 all four are interior: F = 2/3; at 0.6 and above none: F = 0, but 3 of 4 ... are right.
    labels = np.array([[1, 0, 0, 0]])
    result = pixel_error(labels, np.full((1, 4), 0.55))
    assert (result.best, result.best_threshold) == (1 - 2 * 0.25 / 1.25, 0)
    assert (result.accuracy, result.accuracy_threshold) == (0.75, 0.6)
    assert result.accuracy_at_half == 0.25


# Thresholds, results, running


def test_thresholds_add_up_in_float64():
    expected = [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5]
    expected += [0.6, 0.7, 0.7999999999999999, 0.8999999999999999, 0.9999999999999999]
    assert list(THRESHOLDS) == expected
    assert list(WARPING_THRESHOLDS) == expected[:10]


@pytest.mark.parametrize(
    "value, n_thresholds_below",
    [(0.0, 0), (0.3, 4), (0.7, 7), (0.8, 9), (0.9, 9), (1.0, 11)],
    ids=str,
)
def test_float32_values_are_compared_in_float64(value, n_thresholds_below):
    result = pixel_error(np.array([[1, 0]]), np.array([[value, 0]], np.float32))
    assert result.true_positives.sum() == n_thresholds_below


@pytest.mark.parametrize("name", FIGURES)
def test_separate_functions_equal_the_one_pass(name):
    stack = example_stack()
    alone, together = FIGURES[name](*stack), getattr(em_challenge_metrics(*stack), name)
    assert type(alone) is type(together)
    assert (alone.best, alone.best_threshold) == (together.best, together.best_threshold)
    np.testing.assert_array_equal(alone.per_threshold, together.per_threshold)
    np.testing.assert_array_equal(alone.per_slice, together.per_slice)
    assert alone.per_slice_at_best.shape == (3,)


def example_stack():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (3, 12, 15)).repeat(2, axis=1).repeat(2, axis=2)
    probability = np.clip(0.8 * labels + rng.normal(0.1, 0.3, labels.shape), 0, 1)
    return labels, probability.astype(np.float32)


def test_number_of_threads_does_not_change_the_figures():
    stack = example_stack()
    assert (
        em_challenge_metrics(*stack, workers=1).curves_as_dict()
        == em_challenge_metrics(*stack, workers=3).curves_as_dict()
    )


def test_inputs_are_not_changed_and_may_be_read_only():
    labels, probability = example_stack()
    copies = labels.copy(), probability.copy()
    labels.flags.writeable = probability.flags.writeable = False
    em_challenge_metrics(labels, probability)
    np.testing.assert_array_equal(labels, copies[0])
    np.testing.assert_array_equal(probability, copies[1])


def test_slices_may_differ_in_size():
    rng = np.random.default_rng(5)
    labels = [(rng.random(size) > 0.3).astype(np.uint8) for size in ((7, 30), (21, 8), (7, 30))]
    probability = [rng.random(one.shape, np.float32) for one in labels]
    together = em_challenge_metrics(labels, probability)
    alone = [em_challenge_metrics(*pair) for pair in zip(labels, probability, strict=True)]
    for name in ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info"):
        expected = np.concatenate([getattr(one, name).per_slice for one in alone])
        np.testing.assert_array_equal(getattr(together, name).per_slice, expected)
    warping = together.warping_error  # per pixel of the stack, not the mean of the slices
    n_errors = (warping.splits + warping.mergers).astype(float)
    np.testing.assert_allclose(warping.per_threshold, n_errors / (2 * 210 + 168), rtol=1e-15)
    assert n_errors.any() and together.pixel_error.n_pixels.tolist() == [210, 168, 210]
    is_right = [(p > 0.5) == (t > 0) for t, p in zip(labels, probability)]
    accuracy = np.concatenate([one.ravel() for one in is_right]).mean()
    assert together.pixel_error.accuracy_at_half == pytest.approx(accuracy, rel=1e-12)
    mean = np.mean([one.v_rand.per_threshold for one in alone], axis=0)
    np.testing.assert_allclose(together.v_rand.per_threshold, mean, rtol=1e-12)
    listed = em_challenge_metrics(labels[::2], probability[::2])  # of one size again
    stacked = em_challenge_metrics(np.stack(labels[::2]), np.stack(probability[::2]))
    assert listed.as_dict() == stacked.as_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, p: (t, p[:1]), "labels have 2 slices and probability 1"),
        (lambda t, p: (t, p[::-1]), r"slice 0 of labels \(3, 4\) and that of probability \(2, 5\)"),
        (lambda t, p: (t, [p[0], 2 * p[1]]), "slice 1 of probability ranges from 2 to 2"),
        (lambda t, p: ([t[0], -t[1]], p), "slice 1 of labels holds negative values"),
        (lambda t, p: ([0 * t[0], 0 * t[1]], p), "every pixel of labels is 0"),
        (lambda t, p: (t, np.ones((2, 3, 4), np.float32)), r"slice 1 of labels \(2, 5\)"),
    ],
)
def test_bad_slices_of_several_sizes_are_named(change, message):
    labels = [np.eye(3, 4, dtype=int), np.ones((2, 5), int)]
    probability = [np.ones(one.shape, np.float32) for one in labels]
    with pytest.raises(InputError, match=message):
        em_challenge_metrics(*change(labels, probability))


def test_one_slice_may_be_2d():
    labels, probability = (array[0] for array in example_stack())
    flat = em_challenge_metrics(labels, probability)
    assert flat.as_dict() == em_challenge_metrics(labels[None], probability[None]).as_dict()


def test_as_dict_has_the_documented_keys_as_plain_numbers():
    metrics = em_challenge_metrics(*example_stack())
    assert isinstance(metrics, EMChallengeMetrics)
    best = metrics.as_dict()
    names = [*FIGURES, "pixel_accuracy"]
    assert set(best) == {*names, *(f"{n}_threshold" for n in names), "pixel_accuracy_at_half"}
    assert json.loads(json.dumps(best)) == best
    assert best["v_rand"] == metrics.v_rand.best == max(metrics.v_rand.per_threshold)
    assert best["warping_error"] == min(metrics.warping_error.per_threshold)


def test_curves_are_lists_over_the_thresholds():
    curves = em_challenge_metrics(*example_stack()).curves_as_dict()
    lengths = {name: len(values) for name, values in curves.items()}
    warping = {"warping_error", *CLASS_NAMES}
    assert lengths == {name: 10 if name in warping else 11 for name in curves}
    assert json.loads(json.dumps(curves)) == curves
    assert {"v_rand_split", "v_rand_merge", "v_info_split", "v_info_merge"} < set(curves)


def test_warping_map_counts_are_those_of_warping_error():
    labels, probability = example_stack()
    errors = warping_error(labels, probability)
    k = WARPING_THRESHOLDS.index(0.5)
    for z in range(len(labels)):
        classes = warping_map(labels[z], probability[z]).classes
        assert (classes == WarpingClass.SPLIT).sum() == errors.splits_per_slice[z, k]
        assert (classes == WarpingClass.MERGER).sum() == errors.mergers_per_slice[z, k]


def test_progress_goes_to_standard_error(capsys, monkeypatch):
    monkeypatch.setattr("unet_repro.progress.LINE_EVERY_S", 0)
    em_challenge_metrics(*example_stack(), progress=True)
    captured = capsys.readouterr()
    assert "33/33" in captured.err and captured.out == ""


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    import numba

    njit = numba.njit

    def refuse_cache(*, nogil, cache=False):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(nogil=nogil)

    monkeypatch.setattr(numba, "njit", refuse_cache)
    assert jit(lambda x: x + 1)(2) == 3


# Bad input

LABELS = np.array([[[0, 1], [1, 1]]])
PROBABILITY = np.array([[[0.1, 0.9], [0.8, 1.0]]])


@pytest.mark.parametrize(
    "labels, probability, message",
    [
        (LABELS, PROBABILITY[:, :1], r"\(1, 2, 2\).*\(1, 1, 2\) differ in shape"),
        (LABELS, PROBABILITY * 255, r"ranges from 25.5 to 255.*divide a 0…255 image by 255"),
        (LABELS, PROBABILITY * 4 - 2, r"ranges from -1.6 to 2; .* softmax or sigmoid"),
        (LABELS, np.where(LABELS, np.nan, 0.5), r"3 values that are NaN or infinite"),
        (LABELS, np.where(LABELS, 0.5, np.inf), r"1 values that are NaN or infinite"),
        (LABELS, (PROBABILITY * 255).astype(np.uint8), r"dtype uint8; .*pass image / 255"),
        (LABELS, PROBABILITY > 0.5, r"dtype bool; .*pass mask.astype"),
        (LABELS * 0, PROBABILITY, r"every pixel of labels is 0 \(membrane\)"),
        (LABELS * 0 + 7, PROBABILITY, r"every pixel of labels is above 0 \(cell interior\)"),
        (LABELS * 1.0, PROBABILITY, r"labels has dtype float64; give integers or booleans"),
        (-LABELS, PROBABILITY, r"negative values \(down to -1\)"),
        (LABELS[:0], PROBABILITY[:0], r"labels is empty, shape \(0, 2, 2\)"),
        (LABELS, PROBABILITY[:, :, :0], r"probability is empty, shape \(1, 2, 0\)"),
        (LABELS[None], PROBABILITY[None], r"labels has 4 dimensions, shape \(1, 1, 2, 2\)"),
        (LABELS, PROBABILITY[0, 0], r"probability has 1 dimensions, shape \(2,\)"),
    ],
)
def test_bad_input_is_told_in_one_line(labels, probability, message):
    with pytest.raises(InputError, match=message) as caught:
        em_challenge_metrics(labels, probability)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("figure", FIGURES.values())
def test_each_figure_checks_its_input(figure):
    with pytest.raises(InputError, match="differ in shape"):
        figure(LABELS[0], PROBABILITY)


def test_bad_options_are_told():
    with pytest.raises(InputError, match=r'degenerate is "?\'?mine.*"sensible" or "official"'):
        em_challenge_metrics(LABELS, PROBABILITY, degenerate="mine")
    with pytest.raises(InputError, match="workers is 0; give 1 or more"):
        em_challenge_metrics(LABELS, PROBABILITY, workers=0)


def test_maps_take_one_slice_only():
    with pytest.raises(InputError, match=r"labels has shape \(1, 2, 2\); give one slice"):
        warping_map(LABELS, PROBABILITY)
    with pytest.raises(InputError, match=r"probability has shape \(1, 2, 2\); give one slice"):
        thinned_labels(PROBABILITY)
    with pytest.raises(InputError, match="differ in shape"):
        warping_map(LABELS[0], PROBABILITY[0, :1])
