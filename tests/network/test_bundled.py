"""The networks that come with the package: found by name, small, described, and of use."""

from __future__ import annotations

import configparser
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import unet_repro
from unet_repro.challenges.phantom import em_phantom
from unet_repro.config import PRESETS, to_dict
from unet_repro.errors import InputError
from unet_repro.metrics import em_challenge_metrics
from unet_repro.network.bundled import bundled_models, model_path
from unet_repro.network.model_file import load_model, read_metadata
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume

PACKAGE = Path(unet_repro.__file__).parent


def test_em_is_a_small_network_in_half_precision():
    path = bundled_models()["em"].path
    assert path.stat().st_size <= 5_000_000
    with safe_open(path, framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}
    config = load_model("em").config
    assert (config.base_channels, config.in_channels, config.classes) == (16, 1, 2)
    assert not config.padding
    assert not config.batch_norm


def test_its_file_says_what_it_was_trained_on_but_not_where():
    training = read_metadata("em")["training"]
    assert training["data"]["train_slices"] == "0:30"
    assert not training["data"]["synthetic"]
    assert training["settings"]["preset"] == "robust"
    assert training["settings"]["augmentation"] == to_dict(PRESETS["robust"].augmentation)
    assert not {"images", "labels"} & training["data"].keys()


@pytest.mark.parametrize(
    "words",
    ["ISBI 2012", "non-commercial", "Cardona", "slices 25–29", "six folds", "What it is not for"],
)
def test_the_card_states(words: str):
    assert words in bundled_models()["em"].card


def test_every_file_is_package_data():
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    patterns = setup["options.package_data"]["unet_repro"].split()
    files = [path for path in (PACKAGE / "pretrained").iterdir() if path.is_file()]
    assert {path.name for path in files} == {"em.safetensors", "em.md"}
    for path in files:
        name = path.relative_to(PACKAGE).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_a_path_stays_one_and_a_file_of_that_name_is_not_passed_over(tmp_path, monkeypatch):
    assert model_path(tmp_path / "em") == tmp_path / "em"
    monkeypatch.chdir(tmp_path)
    Path("em").mkdir()
    assert model_path("em").name == "em.safetensors"  # a folder is no model
    Path("em").rmdir()
    Path("em").write_bytes(b"")
    with pytest.raises(InputError, match="is a network that comes with the package, and a file"):
        load_model("em")


def test_a_name_that_is_none_is_told_those_that_are():
    with pytest.raises(InputError, match=r"en: no such model file .* with the package \(em\)"):
        load_model("en")


def test_em_segments_tissue_that_it_has_never_seen():
    images, labels = em_phantom(slices=2, height=256, width=256, seed=4)
    probability = predict_volume(OverlapTilePredictor(load_model("em")), images)
    figures = em_challenge_metrics(labels, probability)
    assert figures.v_rand.best > 0.95
    assert np.mean((probability > 0.5) != (labels > 0)) < 0.1  # all interior: 0.22
