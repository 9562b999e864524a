"""The jobs behind Table 2, on synthetic cells in the layout of the real data."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

from unet_repro import training_run
from unet_repro.challenges import cell_job
from unet_repro.challenges.cell_phantom import write_cell_phantom
from unet_repro.challenges.ctc import read_ctc_sequence
from unet_repro.errors import InputError
from unet_repro.metrics import seg
from unet_repro.network.model_file import load_model
from unet_repro.prediction.instances import instances_of_scores
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.program import INTERRUPTED
from unet_repro.reports import drawing
from unet_repro.training.train import Progress

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SMALL = {"frames": 4, "height": 80, "width": 112, "cells": 2}
FLAGS = [
    *("--preset", "quick", "--depth", "2", "--base-channels", "4", "--tile", "76"),
    *("--iterations", "4", "--validate-every", "2", "--device", "cpu", "--precision", "float32"),
    *("--least-px", "5", "--border-px", "4"),
]


def experiment(script):
    spec = importlib.util.spec_from_file_location(script, EXPERIMENTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_cell_phantom(folder, **SMALL)
    return folder


def run(script, folder, out, *flags):
    return script.main(["--data", str(folder), "--out", str(out), *FLAGS, *flags])


def cells_of(out):
    return json.loads((out / "metrics.json").read_text())["cells"]


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Leave out what takes most of a job's time; the report's own tests look at it."""
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")


@pytest.mark.parametrize("name", ["phc_u373", "dic_hela"])
def test_the_job_leaves_everything_it_names(folder, tmp_path, capsys, monkeypatch, name):
    script = experiment(name)
    monkeypatch.setattr(cell_job, "find_or_download", lambda name: folder)
    assert run(script, "auto", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    for file in ("report.html", "metrics.json", "02_RES", "model.safetensors"):
        assert (tmp_path / "out" / file).exists() and str(tmp_path / "out" / file) in printed
    title = script.EXPERIMENT.title
    assert f"{title}: trained on sequence 01, sequence 02 scored" in printed
    page = (tmp_path / "out/report.html").read_text()
    assert f"U-Net on {title}, sequence 01" in page and "Beside Table 2" in page
    assert "has no figures yet" not in page
    published = {"PhC-U373": 0.9203, "DIC-HeLa": 0.7756}
    assert cells_of(tmp_path / "out")["published"] == published[title]


def test_masks_and_figures_are_those_of_the_model(folder, tmp_path):
    script, out = experiment("dic_hela"), tmp_path / "out"
    assert run(script, folder, out, "--train-sequence", "02", "--threshold", "0.4") == 0
    test = read_ctc_sequence(folder, "01")
    predictor = OverlapTilePredictor(load_model(out / "model.safetensors"), average="flips")
    rule = replace(script.EXPERIMENT.rule, threshold=0.4, least_px=5, border_px=4)
    masks = []
    for t, image in enumerate(test.images):
        background, cell = predictor.logits(image)
        masks.append(tifffile.imread(out / f"01_RES/mask{t:03d}.tif"))
        np.testing.assert_array_equal(masks[t], instances_of_scores(cell - background, rule))
    cells = cells_of(out)
    assert cells["figures"]["seg"] == seg(test.labels, np.stack(masks)[list(test.frames)])
    assert [row["frame"] for row in cells["frames"]] == ["001", "003"]
    assert [row["complete"] for row in cells["frames"]] == [True, False]
    assert cells["train_sequence"] == "02"
    assert cells["title"] == f"{folder.name}/" and cells["published"] is None
    # the job again changes nothing
    files = [*(out / "01_RES").iterdir(), out / "metrics.json"]
    before = {file: file.read_bytes() for file in files}
    assert run(script, folder, out, "--train-sequence", "02", "--threshold", "0.4") == 0
    assert {file: file.read_bytes() for file in files} == before


def test_held_out_frames_are_scored_instead_of_the_other_sequence(folder, tmp_path, capsys):
    script = experiment("phc_u373")
    assert run(script, folder, tmp_path, "--val", "1:2") == 0
    assert "held-out frames of sequence 01 scored" in capsys.readouterr().out
    cells = cells_of(tmp_path)
    assert [row["frame"] for row in cells["frames"]] == ["003"] and cells["is_heldout"]
    assert [file.name for file in (tmp_path / "01_RES").iterdir()] == ["mask003.tif"]
    assert not (tmp_path / "02_RES").exists()
    assert "neighbours in time" in (tmp_path / "report.html").read_text()


def test_silver_truth_is_learnt_from_and_gold_is_scored(folder, tmp_path, monkeypatch, capsys):
    watched = Mock(wraps=cell_job.finish_run)
    monkeypatch.setattr(cell_job, "finish_run", watched)
    script = experiment("phc_u373")
    assert run(script, folder, tmp_path, "--truth", "silver") == 0
    silver = read_ctc_sequence(folder, "01", truth="silver")
    data = watched.call_args.args[0]
    np.testing.assert_array_equal(data.images, silver.images)  # all frames
    np.testing.assert_array_equal(data.labels, silver.labels)
    assert data.labels_path == str(folder / "01_ST/SEG")
    assert "trained on sequence 01 (silver truth), sequence 02 scored" in capsys.readouterr().out
    gold = read_ctc_sequence(folder, "02")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "cells_labels.tif"), gold.labels)
    assert "sequence 01 (silver truth)" in (tmp_path / "report.html").read_text()


def test_held_out_frames_of_silver_truth_are_scored_where_people_have_drawn(
    folder, tmp_path, capsys
):
    script = experiment("phc_u373")
    assert run(script, folder, tmp_path / "a", "--truth", "silver", "--val", "2:4") == 0
    cells = cells_of(tmp_path / "a")
    assert [row["frame"] for row in cells["frames"]] == ["003"] and cells["is_heldout"]
    gold = read_ctc_sequence(folder, "01")
    scored = tifffile.imread(tmp_path / "a/cells_labels.tif").squeeze()
    np.testing.assert_array_equal(scored, gold.labels[1])
    capsys.readouterr()
    assert run(script, folder, tmp_path / "b", "--truth", "silver", "--val", "2:3") == 2
    printed = capsys.readouterr().err
    assert "--val 2:3: none of these frames is in" in printed and "001, 003" in printed
    assert not (tmp_path / "b").exists()


def test_unknown_pixels_weigh_nothing_and_ridges_are_background(folder, tmp_path, monkeypatch):
    finish_run = Mock(side_effect=InputError("seen enough"))
    monkeypatch.setattr(cell_job, "finish_run", finish_run)
    script = experiment("dic_hela")
    assert run(script, folder, tmp_path) == 2
    data, settings = finish_run.call_args.args[:2]
    expected = read_ctc_sequence(folder, "01", unknown_radius_px="measured")
    np.testing.assert_array_equal(data.known, expected.is_known)
    assert not data.known.all()
    np.testing.assert_array_equal(data.images, expected.annotated_images)
    assert settings.weight_map.separate_touching
    assert settings.iterations == 4 and not settings.time_budget
    assert settings.model.dropout == 0.5  # the job's, where `quick` has none
    assert settings.augmentation.interpolation == "bilinear"  # likewise
    assert run(script, folder, tmp_path, "--dropout", "0.25", "--interpolation", "bicubic") == 2
    settings = finish_run.call_args.args[1]
    assert settings.model.dropout == 0.25  # flags come last
    assert settings.augmentation.interpolation == "bicubic"


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_an_interrupted_job_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch, flags):
    stopped, reported = Progress(1, 0.0, "interrupted", False, None), []
    monkeypatch.setattr(training_run, "start_run", lambda *args, **options: stopped)
    monkeypatch.setattr(training_run, "write_report", reported.append)
    assert run(experiment("phc_u373"), folder, tmp_path, *flags) == INTERRUPTED
    command = " ".join(["the same command", *(f"without {flag}" for flag in flags)])
    assert f"; {command} goes on from here" in capsys.readouterr().err
    assert reported == [tmp_path]


def test_the_phantom_is_marked(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cell_job, "write_cell_phantom", partial(write_cell_phantom, **SMALL))
    assert run(experiment("phc_u373"), "phantom", tmp_path) == 0
    printed = capsys.readouterr()
    assert "SYNTHETIC" in printed.err and "SYNTHETIC" in printed.out
    assert "SYNTHETIC" in (tmp_path / "report.html").read_text()
    assert cells_of(tmp_path)["published"] is None


def test_without_data_there_is_one_clear_line(tmp_path, capsys, monkeypatch):
    script = experiment("phc_u373")

    nothing = Mock(side_effect=InputError("nothing anywhere"))
    monkeypatch.setattr(cell_job, "find_or_download", nothing)
    assert script.main(["--out", str(tmp_path / "out"), *FLAGS]) == 2
    line = capsys.readouterr().err
    assert line == "error: nothing anywhere\n"
    nothing.assert_called_once_with(script.EXPERIMENT.dataset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train-sequence", "03"], "train-sequence"),
        (["--val", "5:9"], "--val"),
        (["--threshold", "1"], "threshold is 1"),
    ],
)
def test_bad_options_are_one_line(folder, tmp_path, capsys, flags, message):
    assert run(experiment("phc_u373"), folder, tmp_path / "out", *flags) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_test_sequence_without_annotation_is_refused_before_training(tmp_path, capsys):
    write_cell_phantom(tmp_path / "data", **SMALL)
    for file in (tmp_path / "data/02_GT/SEG").iterdir():
        tifffile.imwrite(file, np.zeros((80, 112), np.uint16))
    assert run(experiment("phc_u373"), tmp_path / "data", tmp_path / "out") == 2
    assert "no cell is annotated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
