import hashlib
import json
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
import tifffile

from unet_repro import training_run
from unet_repro.challenges import em_job as job
from unet_repro.errors import InputError
from unet_repro.files.lock import take_lock
from unet_repro.metrics import em_challenge_metrics
from unet_repro.network.model_file import load_model
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.program import INTERRUPTED
from unet_repro.reports import drawing
from unet_repro.training.train import Progress

FLAGS = [
    *("--preset", "quick", "--depth", "2", "--base-channels", "4", "--tile", "76"),
    *("--iterations", "4", "--validate-every", "2", "--device", "cpu", "--val", "2:4"),
    *("--average", "none", "--precision", "float32"),
]


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    # most of a job's time; the report's own tests look at them
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")


def run(folder, tmp_path, *flags):
    return job.main(["--data", str(folder), "--out", str(tmp_path / "out"), *FLAGS, *flags])


@pytest.fixture
def folder(two_cells, tmp_path):
    images, labels = two_cells
    folder = tmp_path / "data"
    folder.mkdir()
    contents = {"train-volume": images, "train-labels": labels, "test-volume": images[::-1]}
    for name, stack in contents.items():
        tifffile.imwrite(folder / f"{name}.tif", stack, photometric="minisblack")
    return folder


@pytest.fixture
def held(tmp_path, monkeypatch):
    """The runs evaluated into tmp_path / "out" while no other process could slip in."""
    seen, evaluate = [], job.evaluate_run

    def try_and_evaluate(data, settings, run, **options):
        for place in (tmp_path / "out", run):
            with pytest.raises(InputError, match="busy"):
                take_lock(place / ".lock", "busy")
        seen.append(run.name)
        return evaluate(data, settings, run, **options)

    monkeypatch.setattr(job, "evaluate_run", try_and_evaluate)
    return seen


def test_the_job_leaves_everything_it_names(folder, tmp_path, capsys, held):
    out = tmp_path / "out"
    assert run(folder, tmp_path) == 0
    assert held == ["out"] and not (out / ".lock").exists()
    printed = capsys.readouterr().out
    for name in ("report.html", "metrics.json", "submission.tif", "model.safetensors"):
        assert (out / name).exists() and str(out / name) in printed
    assert "not at hand" in printed and "SYNTHETIC" not in printed
    assert "data/: slices 2–3 held out" in printed and "ISBI 2012" not in printed
    submission = tifffile.imread(out / "submission.tif")
    assert submission.dtype == np.float32 and submission.shape == (4, 64, 64)
    image = tifffile.imread(folder / "test-volume.tif")[1]
    predictor = OverlapTilePredictor(load_model(out / "model.safetensors"))
    np.testing.assert_array_equal(submission[1], predictor(image)[1])
    assert json.loads((out / "metrics.json").read_text())["test"] is None
    # the job again changes nothing
    before = {name: (out / name).read_bytes() for name in ("submission.tif", "metrics.json")}
    assert run(folder, tmp_path) == 0
    assert before == {name: (out / name).read_bytes() for name in before}


@pytest.fixture
def truth(folder):
    path = folder / "test-labels.tif"
    labels = tifffile.imread(folder / "train-labels.tif")[::-1]
    tifffile.imwrite(path, labels, photometric="minisblack")
    return path


def test_hidden_labels_are_scored_where_they_are_present(folder, truth, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(folder, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "not at hand" not in printed and "compare directly" not in printed
    assert "ISBI 2012" not in printed
    assert json.loads((out / "metrics.json").read_text())["test"]["figures"]["v_rand"] is not None
    assert "not the challenge's" in (out / "report.html").read_text().replace("&#39;", "'")


def test_only_the_published_pixels_are_the_challenge(folder, truth, tmp_path, capsys, monkeypatch):
    hashes = {
        path.name: hashlib.sha256(tifffile.imread(path).tobytes()).hexdigest()
        for path in folder.glob("*.tif")
        if path != truth
    }
    published = replace(job.DATASETS["isbi2012"], pixels_sha256=hashes)
    monkeypatch.setitem(job.DATASETS, "isbi2012", published)
    assert run(folder, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "ISBI 2012: slices 2–3 held out" in printed and "compare directly" in printed
    record = json.loads((tmp_path / "out/config.json").read_text())
    assert record["data"]["name"] == "ISBI 2012"

    changed = tifffile.imread(folder / "test-volume.tif")
    changed[0, 0, 0] ^= 1
    tifffile.imwrite(folder / "test-volume.tif", changed, photometric="minisblack")
    assert job.load(str(folder))[0].name == "data/"


def test_the_real_data_are_the_challenge(real_data):
    assert job.load(str(real_data / "isbi2012"))[0].name == "ISBI 2012"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda labels: labels[:3], "is 3 × 64 × 64, but test-volume.tif is 4 × 64 × 64"),
        (np.ones_like, "one class only"),
    ],
)
def test_unusable_hidden_labels_are_refused_before_training(
    folder, truth, tmp_path, capsys, spoil, message
):
    tifffile.imwrite(truth, spoil(tifffile.imread(truth)), photometric="minisblack")
    assert run(folder, tmp_path) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {truth}: ") and message in line and line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "share"),
    [([], 0.5), (["--unwarped", "0.25"], 0.25), (["--preset", "release"], 0.0)],
)
def test_quick_leaves_some_samples_unwarped(folder, tmp_path, monkeypatch, flags, share):
    finish_run = Mock(side_effect=InputError("seen enough"))
    monkeypatch.setattr(job, "finish_run", finish_run)
    assert run(folder, tmp_path, *flags) == 2
    assert finish_run.call_args.args[1].augmentation.unwarped == share


def test_default_heldout_block_needs_its_slices(folder, tmp_path, capsys):
    flags = [flag for flag in FLAGS if flag not in ("--val", "2:4")]
    assert job.main(["--data", str(folder), "--out", str(tmp_path / "out"), *flags]) == 2
    line = capsys.readouterr().err
    assert "25:30 does not fit the 4 slices" in line and "--val" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_an_interrupted_job_says_how_to_go_on(folder, tmp_path, capsys, monkeypatch, flags):
    stopped, reported = Progress(1, 0.0, "interrupted", False, None), []
    monkeypatch.setattr(training_run, "start_run", lambda *args, **options: stopped)
    monkeypatch.setattr(training_run, "write_report", reported.append)
    assert run(folder, tmp_path, *flags) == INTERRUPTED
    command = " ".join(["the same command", *(f"without {flag}" for flag in flags)])
    assert f"; {command} goes on from here" in capsys.readouterr().err
    assert reported == [tmp_path / "out"]


def test_without_data_the_phantom_is_announced_and_marked(two_cells, tmp_path, capsys, monkeypatch):
    nothing = Mock(side_effect=InputError("no data anywhere"))
    monkeypatch.setattr(job, "find_or_download", nothing)
    monkeypatch.setattr(job, "em_phantom", lambda seed: two_cells)
    out = tmp_path / "out"
    assert job.main(["--out", str(out), *FLAGS]) == 0
    printed = capsys.readouterr()
    assert "no data anywhere" in printed.err and "SYNTHETIC" in printed.err
    assert "SYNTHETIC" in printed.out
    assert "synthetic" in (out / "report.html").read_text().lower()
    assert json.loads((out / "config.json").read_text())["data"]["synthetic"] is True


def test_folds_hold_out_every_slice_once(folder, tmp_path, capsys, held):
    out = tmp_path / "out"
    flags = [flag for flag in FLAGS if flag not in ("--val", "2:4")]
    arguments = ["--data", str(folder), "--out", str(out), *flags, "--folds", "2"]
    assert job.main(arguments) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "crossvalidation.json").read_text())
    assert held == ["fold-1", "fold-2"] and not list(out.rglob(".lock"))
    assert [fold["val"] for fold in result["folds"]] == ["0:2", "2:4"]
    probability = tifffile.imread(out / "crossvalidation_probability.tif")
    images = tifffile.imread(folder / "train-volume.tif")
    for number, z in ((1, 1), (2, 3)):
        run = json.loads((out / f"fold-{number}" / "config.json").read_text())
        assert run["data"]["train_slices"] == ("2:4" if number == 1 else "0:2")
        predictor = OverlapTilePredictor(load_model(out / f"fold-{number}/model.safetensors"))
        np.testing.assert_array_equal(probability[z], predictor(images[z])[1])
    labels = tifffile.imread(folder / "train-labels.tif")
    expected = em_challenge_metrics(labels, probability).pixel_error.best
    assert result["all"]["figures"]["pixel_error"] == pytest.approx(expected)
    assert "slices 2:4: v_rand" in printed
    assert job.main([*arguments, "--val", "1:2"]) == 2
    assert job.main([*arguments[:-1], "5"]) == 2
    assert "2 to 4, the number of slices" in capsys.readouterr().err
