"""How the changes of grey values and sizes are made, and what a network is scored on."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from unet_repro.config import UNetConfig
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.training.samples import LabelledStack

GREY = np.arange(12 * 4 * 4, dtype=np.uint8).reshape(12, 4, 4)
LABELS = np.where(GREY % 4, 255, 0).astype(np.uint8)  # a membrane in every slice
SCRIPT = Path(__file__).parents[1] / "experiments/robustness.py"


@pytest.fixture
def robustness(monkeypatch):
    spec = importlib.util.spec_from_file_location("robustness", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = LabelledStack(GREY, LABELS, "ours", "", "")
    monkeypatch.setattr(module, "load", lambda where: (ours, GREY, None))
    monkeypatch.setattr(module, "em_phantom", lambda slices, seed: (GREY[:slices], LABELS[:slices]))
    return module


@pytest.fixture
def images():
    return np.random.default_rng(3).integers(30, 200, (2, 60, 50), dtype=np.uint8)


def test_changes_are_what_they_are_called(robustness, images):
    def change(way):
        return robustness.changed(images, way).astype(float)

    x = images.astype(float)
    assert np.array_equal(change("as they are"), x)
    assert abs(change("contrast x 0.5 about the mean").std() / x.std() - 0.5) < 0.01
    assert abs(change("contrast x 0.5 about the mean").mean() - x.mean()) < 0.5
    assert np.abs(change("grey values x 0.6") - 0.6 * x).max() <= 0.5
    assert np.array_equal(change("+ 40, clipped at 255"), np.minimum(x + 40, 255))
    noise = change("noise of 0.4 standard deviations") - x
    assert noise.std() == pytest.approx(0.4 * x.std(), rel=0.05) and abs(noise.mean()) < 1
    assert change("blur of 1 px").std() < 0.5 * x.std()
    assert np.array_equal(change("gamma 1.5"), np.rint(255 * (x / 255) ** 1.5))
    assert change("0.8 times as large").shape == (2, 48, 40)
    assert change("1.25 times as large").shape == (2, 75, 62)


def save(path, data):
    network = UNet(UNetConfig(depth=1, base_channels=1))
    save_model(network, path, training={"data": data})
    return path


def test_a_network_is_scored_on_what_it_was_held_from(robustness, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(robustness, "rows_of", lambda *given, **named: seen.append(given) or [])
    data = {"name": "ours", "heldout_slices": "3:5, 8:9"}
    held, whole = save(tmp_path / "a.safetensors", data), save(tmp_path / "b.safetensors", {})
    robustness.compare([held, whole], "auto", 6, robustness.WAYS, "cpu")
    (_, images, labels, _), (_, test_volume, nothing, _), (_, phantom, _, _) = seen
    assert np.array_equal(images, GREY[[3, 4, 8]])
    assert np.array_equal(labels > 0, LABELS[[3, 4, 8]] > 0)
    assert np.array_equal(test_volume, GREY[::2]) and nothing is None
    assert np.array_equal(phantom, GREY[:10])


def test_slices_of_other_data_are_refused(robustness, tmp_path):
    model = save(tmp_path / "a.safetensors", {"name": "ISBI 2012", "heldout_slices": "3:5"})
    with pytest.raises(robustness.InputError, match="trained on ISBI 2012, and ours is"):
        robustness.compare([model], "auto", 6, robustness.WAYS, "cpu")


def test_a_folder_stands_for_its_network_or_those_of_its_folds(robustness, tmp_path):
    for name in ("whole", "folds/fold-2", "folds/fold-1"):
        (tmp_path / name).mkdir(parents=True)
        save(tmp_path / name / "model.safetensors", {})
    given = ["em", str(tmp_path / "whole"), str(tmp_path / "folds")]
    models = [tmp_path / name / "model.safetensors" for name in ("whole", "folds/fold-1")]
    last = tmp_path / "folds/fold-2/model.safetensors"
    assert robustness.networks(given) == ["em", *models, last]
