"""Components and their growth in bands, against those of the whole page."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from scipy.spatial import cKDTree

from unet_repro.metrics import iou
from unet_repro.prediction import components as module
from unet_repro.prediction.components import components, number_components, numbered
from unet_repro.prediction.growing import grown
from unet_repro.weight_maps.weight_map import separate_touching


def bands_of(page: np.ndarray, rows: int) -> list[np.ndarray]:
    return [page[top : top + rows] for top in range(0, len(page), rows)]


def in_bands(page: np.ndarray, rows: int, *, min_size: int = 0, radius: float = 0) -> np.ndarray:
    """The instances of a page that comes in bands of so many rows."""
    numbering = number_components(bands_of(page, rows), min_size=min_size)
    ids = numbered(bands_of(page, rows), numbering, np.uint32)
    return np.concatenate(list(grown(ids, radius) if radius else ids))


def whole(page: np.ndarray, min_size: int = 0) -> np.ndarray:
    """The same by SciPy, at once."""
    labels, count = ndimage.label(page)
    kept = [k for k in range(1, count + 1) if np.count_nonzero(labels == k) >= min_size]
    return np.searchsorted(kept, labels, side="right") * np.isin(labels, kept)


PAGES = arrays.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))


@settings(max_examples=80, deadline=None)
@given(page=PAGES, rows=st.integers(1, 25), min_size=st.integers(0, 6))
@example(page=np.array([[0, 1, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], bool), rows=1,
         min_size=0)  # fmt: skip
def test_bands_give_the_components_of_the_whole_page(
    page: np.ndarray, rows: int, min_size: int
) -> None:
    np.testing.assert_array_equal(in_bands(page, rows, min_size=min_size), whole(page, min_size))
    np.testing.assert_array_equal(components(page, min_size=min_size), whole(page, min_size))


@pytest.mark.parametrize("density", [0.3, 0.55, 0.6, 0.8])  # 0.59: clusters of all sizes
@pytest.mark.parametrize("labelled_px", [1, 100, 700])
def test_random_pages_in_random_bands(
    density: float, labelled_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BAND_PX", labelled_px)
    random = np.random.default_rng(int(100 * density) + labelled_px)
    for _ in range(3):
        page = random.random((60, 50)) < density
        bands = np.split(page, np.sort(random.integers(1, 60, 5)))  # some are empty
        ids = numbered(bands, number_components(bands))
        np.testing.assert_array_equal(np.concatenate(list(ids)), ndimage.label(page)[0])


def spiral(side: int) -> np.ndarray:
    """One path of 1 px, turns 2 px apart, from the corner to the centre."""
    page = np.zeros((side, side), bool)
    page[0] = True
    y, x, length, step = 0, side - 1, side - 1, np.array([1, 0])
    while length > 0:
        for _ in range(2):
            for _ in range(length):
                y, x = y + step[0], x + step[1]
                page[y, x] = True
            step = np.array([step[1], -step[0]])
        length -= 2
    return page


def comb(side: int) -> np.ndarray:
    """Teeth that meet in the last row only, with another comb from above between them."""
    page = np.zeros((side, 2 * side + 1), bool)
    page[1:, ::4] = page[-1] = True
    page[:-2, 2::4] = page[0] = True
    page[1, ::4] = False
    return page


def snake(side: int) -> np.ndarray:
    """One path up and down the page, for each second column."""
    page = np.zeros((side, 4 * side + 1), bool)
    page[:, ::2] = True
    page[-1, 1::4] = page[0, 3::4] = True
    return page


@pytest.mark.parametrize(("shape", "count"), [(spiral, 1), (comb, 2), (snake, 1)])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 64])
def test_what_crosses_bands_many_times_is_one(shape, count: int, rows: int) -> None:  # type: ignore[no-untyped-def]
    for turned in (np.asarray, np.flipud, np.fliplr, np.transpose):
        page = turned(shape(41))
        found = in_bands(page, rows)
        assert found.max() == count
        np.testing.assert_array_equal(found, ndimage.label(page)[0])


def test_small_ones_are_dropped_and_the_others_renumbered() -> None:
    page = np.zeros((6, 9), bool)
    page[0, 0] = True  # 1 px
    page[0:4, 3] = True  # 4 px, two in each of two bands
    page[1:6, 7] = True  # 5 px
    assert in_bands(page, 2, min_size=2).max() == 2
    found = in_bands(page, 2, min_size=4)
    assert found[0, 0] == 0 and set(found[:4, 3]) == {1} and set(found[1:, 7]) == {2}
    assert in_bands(page, 2, min_size=5).max() == 1
    assert not in_bands(page, 2, min_size=6).any()


def test_ids_beyond_16_bits() -> None:
    page = np.indices((600, 600)).sum(axis=0) % 2 == 0
    found = in_bands(page, 130)
    assert found.dtype == np.uint32 and found.max() == 600 * 300
    np.testing.assert_array_equal(found[page], 1 + np.arange(600 * 300))


def grown_slowly(ids: np.ndarray, radius: float) -> np.ndarray:
    """The rule as it is said, from the distance to each instance."""
    numbers = np.unique(ids[ids > 0])
    places = np.argwhere(ids == 0)
    if len(numbers) < 2 or not len(places):
        return ids.copy()
    distances = np.stack([cKDTree(np.argwhere(ids == k)).query(places)[0] for k in numbers])
    d1, d2 = np.sort(distances, axis=0)[:2]
    is_ridge = (d2 > radius) & (d1 + d2 <= 2.2 * radius + 1 + 1e-6)
    out = ids.copy()
    out[tuple(places[is_ridge].T)] = numbers[distances.argmin(axis=0)[is_ridge]]  # ties: the lowest
    return out


@settings(max_examples=40, deadline=None)
@given(
    page=arrays.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))),
    rows=st.integers(1, 21),
    radius=st.sampled_from([0.5, 1, 1.5, 2, 3]),
)
def test_growth_in_bands_is_that_of_the_rule(page: np.ndarray, rows: int, radius: float) -> None:
    ids = ndimage.label(page)[0].astype(np.uint16)
    found = np.concatenate(list(grown(bands_of(ids, rows), radius)))
    assert found.dtype == ids.dtype
    np.testing.assert_array_equal(found, grown_slowly(ids, radius))


def touching_cells(seed: int, side: int = 200, spacing: int = 40) -> np.ndarray:
    """Cells around points of a shaken grid: each is where its point is the nearest."""
    random = np.random.default_rng(seed)
    points = np.mgrid[spacing // 2 : side : spacing, spacing // 2 : side : spacing].reshape(2, -1).T
    points = points + random.uniform(-0.25, 0.25, points.shape) * spacing
    pixels = np.indices((side, side)).reshape(2, -1).T
    distance, nearest = cKDTree(points).query(pixels)
    cells = np.where(distance < 0.8 * spacing, nearest + 1, 0)
    return cells.reshape(side, side)


@pytest.mark.parametrize(
    ("radius", "least"), [(1, 0.99), (1.5, 0.99), (2, 0.99), (3, 0.99), (5, 0.98)], ids=str
)
def test_touching_cells_come_back(radius: float, least: float) -> None:
    """Of a prediction without an error: the mask alone makes one cell of all."""
    for seed in range(3):
        cells = touching_cells(seed)
        mask = separate_touching(cells, radius=radius, label_kind="ids") > 0
        found = in_bands(mask, 30, radius=radius)
        assert iou(cells, found) >= least
        assert iou(cells, in_bands(mask, 30)) < iou(cells, found) - 0.03
        assert (found[mask] == in_bands(mask, 30)[mask]).all()


def test_cells_that_never_touched_stay_as_they_are() -> None:
    page = np.zeros((40, 40), bool)
    page[5:15, 5:15] = page[5:15, 18:30] = True  # 3 px apart: the ridge of radius 1 has 2
    page[20:30] = page[31:] = True  # 1 px apart: training would have parted them further
    np.testing.assert_array_equal(in_bands(page, 7, radius=1), ndimage.label(page)[0])


def test_memory_is_that_of_a_band() -> None:
    """A page that is never there as a whole."""
    band = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((64, 512)), 3) > 0
    height = 512 * 16

    def bands() -> Iterator[np.ndarray]:
        return (band for _ in range(height // 64))

    list(grown([np.ones((2, 2), np.uint32)], 1))  # what is loaded and compiled once
    tracemalloc.start()
    numbering = number_components(bands(), min_size=3)
    rows = sum(len(ids) for ids in grown(numbered(bands(), numbering), 2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == height
    assert peak < 100 * 72 * 512 + 50 * len(numbering.numbers) < height * 512
