"""The weight map of a run: taken again for the same labels and settings, and for no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unet_repro.config import WeightMapConfig
from unet_repro.run import LabelledStack, start_run
from unet_repro.weight_maps import weight_cache
from unet_repro.weight_maps.weight_cache import cached_weight_map
from unet_repro.weight_maps.weight_map import weight_map

SETTINGS = {"w0": 10.0, "sigma": 5.0, "class_balance": (0.5, 2.0)}


@pytest.fixture
def labels() -> np.ndarray:
    stack = np.zeros((3, 24, 20), np.uint8)
    stack[:, 2:10, 2:9], stack[:, 2:20, 11:18] = 1, 2
    return stack


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    calls = []

    def counting(*arguments, **settings):
        calls.append(1)
        return weight_map(*arguments, **settings)

    monkeypatch.setattr(weight_cache, "weight_map", counting)
    return calls


def cache_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_second_call_computes_nothing(labels, computed, tmp_path):
    first = cached_weight_map(labels, tmp_path, **SETTINGS)
    second = cached_weight_map(labels.copy(), tmp_path, workers=2, **{**SETTINGS, "w0": 10})
    assert len(computed) == 1
    assert second.dtype == np.float32
    np.testing.assert_array_equal(first, weight_map(labels, **SETTINGS))
    np.testing.assert_array_equal(second, first)


@pytest.mark.parametrize(
    "change",
    [
        {"w0": 10.000001},
        {"sigma": 5.5},
        {"class_balance": None},
        {"class_balance": "frequency"},
        {"class_balance": (0.5, 2.0000000000000004)},
        {"class_balance": (2.0, 0.5)},
    ],
)
def test_other_settings_are_computed(labels, computed, tmp_path, change):
    cached_weight_map(labels, tmp_path, **SETTINGS)
    changed = {**SETTINGS, **change}
    found = cached_weight_map(labels, tmp_path, **changed)
    assert len(computed) == 2
    np.testing.assert_array_equal(found, weight_map(labels, **changed))
    cache_file(tmp_path)  # the old one is gone


def test_other_labels_are_computed(labels, computed, tmp_path):
    pixel = labels.copy()
    pixel[2, 23, 19] = 2
    others = [labels, pixel, labels.reshape(2, 36, 20), labels.astype(np.uint16)]
    for other in others:
        found = cached_weight_map(other, tmp_path, **SETTINGS)
        np.testing.assert_array_equal(found, weight_map(other, **SETTINGS))
    assert len(computed) == len(others)


@pytest.mark.parametrize("name", ["VERSION", "__version__"])
def test_other_versions_are_computed(labels, computed, tmp_path, monkeypatch, name):
    cached_weight_map(labels, tmp_path, **SETTINGS)
    monkeypatch.setattr(weight_cache, name, "another")
    cached_weight_map(labels, tmp_path, **SETTINGS)
    assert len(computed) == 2


def test_damaged_file_is_computed_again(labels, computed, tmp_path):
    expected = cached_weight_map(labels, tmp_path, **SETTINGS)
    file = cache_file(tmp_path)
    content = file.read_bytes()
    flips = [*range(0, 300, 7), *range(300, len(content), 211), len(content) - 30]
    for at in flips:
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
        found = cached_weight_map(labels, tmp_path, **SETTINGS)
        np.testing.assert_array_equal(found, expected)
    for size in (0, 20, 200, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        before = len(computed)
        found = cached_weight_map(labels, tmp_path, **SETTINGS)
        np.testing.assert_array_equal(found, expected)
        assert len(computed) == before + 1
        cached_weight_map(labels, tmp_path, **SETTINGS)  # written anew
        assert len(computed) == before + 1


@pytest.mark.parametrize(
    "content",
    [
        {"weights": np.ones((3, 24, 21), np.float32)},
        {"weights": np.ones((3, 24, 20))},
        {"others": np.ones((3, 24, 20), np.float32)},
        {"weights": np.array([None])},
    ],
)
def test_file_of_other_content_is_computed_again(labels, computed, tmp_path, content):
    expected = cached_weight_map(labels, tmp_path, **SETTINGS)
    np.savez(cache_file(tmp_path), **content)
    np.testing.assert_array_equal(cached_weight_map(labels, tmp_path, **SETTINGS), expected)
    assert len(computed) == 2


def test_training_takes_its_weight_map_again(two_cells, tiny, computed, tmp_path):
    data = LabelledStack(*two_cells, "two cells", "images.tif", "labels.tif", True)
    settings = replace(tiny, val="1:2", iterations=2)
    for other, expected in (
        (settings, 1),
        (replace(settings, seed=3, learning_rate=1e-4), 1),
        (replace(settings, val="2:3"), 1),  # as many pixels of cells to train on
        (replace(settings, weight_map=WeightMapConfig(sigma=3.0)), 2),
        (replace(settings, weight_map=WeightMapConfig(class_balance="none")), 3),
    ):
        start_run(data, other, tmp_path, overwrite=True, is_quiet=True)
        assert len(computed) == expected
        assert len(list(tmp_path.glob("weight_map_*.npz"))) == 1
