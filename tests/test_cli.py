import dataclasses
import json
import re
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch

from unet_repro import cli, program
from unet_repro.config import PRESETS, AugmentationConfig, TrainConfig, UNetConfig
from unet_repro.images.stacks import read_images, read_stack, write_stack
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.components import components
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.reports import drawing
from unet_repro.weight_maps.settings import WeightMapSettings
from unet_repro.weight_maps.weight_map import weight_map

TINY_FLAGS = [
    *("--preset", "quick", "--depth", "2", "--base-channels", "4", "--tile", "76"),
    *("--iterations", "4", "--validate-every", "2", "--device", "cpu", "--precision", "float32"),
]


@pytest.fixture
def files(two_cells, tmp_path):
    images, labels = two_cells
    tifffile.imwrite(tmp_path / "images.tif", images, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    probability = np.where(labels > 0, 0.8, 0.2).astype(np.float32)
    tifffile.imwrite(tmp_path / "p.tif", probability, photometric="minisblack")
    return tmp_path


@pytest.fixture
def model(tmp_path) -> Path:
    shape = UNetConfig(depth=2, base_channels=2, input_mean=(120.0,), input_std=(60.0,))
    save_model(UNet(shape, generator=torch.Generator().manual_seed(0)), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def error_line(capsys) -> str:
    """Return the one line on standard error; more than one line, or a traceback, fails."""
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def size_of_png(path: Path) -> tuple[int, ...]:
    return imagecodecs.png_decode(path.read_bytes()).shape


def test_train_predict_evaluate_report(files, capsys):
    out = files / "run"
    assert run("train", files / "images.tif", files / "labels.tif", "--out", out,
               "--val", "2:4", *TINY_FLAGS) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "V_rand" in printed and str(out / "model.safetensors") in printed
    model = out / "model.safetensors"
    assert run("predict", files / "images.tif", "--model", model, "--out", files / "out.tif") == 0
    expected = OverlapTilePredictor(load_model(model))(tifffile.imread(files / "images.tif")[3])[1]
    np.testing.assert_array_equal(tifffile.imread(files / "out.tif")[3], expected)
    assert run("evaluate", files / "labels.tif", files / "out.tif",
               "--json", files / "e.json", "--plot", files / "e.png") == 0  # fmt: skip
    assert (files / "e.json").exists() and (files / "e.png").exists()
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert (out / "report.html").exists()
    again = ("train", files / "images.tif", files / "labels.tif", "--out", out, "--val", "2:4")
    capsys.readouterr()
    assert run(*again, *TINY_FLAGS) == 2
    assert "--resume" in error_line(capsys)
    assert run(*again, *TINY_FLAGS, "--resume") == 0


def test_images_of_several_sizes_go_all_the_way(two_cells, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")  # most of a report's time
    for folder, stack in zip(("images", "masks"), two_cells):
        (tmp_path / folder).mkdir()
        for z, (height, width) in enumerate([(64, 64), (40, 50), (64, 30), (33, 64)]):
            png = imagecodecs.png_encode(np.ascontiguousarray(stack[z, :height, :width]))
            (tmp_path / folder / f"{z}.png").write_bytes(png)
    data, out = (tmp_path / "images", tmp_path / "masks"), tmp_path / "run"
    preview = ("--out", tmp_path / "grid.png", "--tile", "92", "--samples", "1")
    assert run("preview-augmentation", *data, *preview) == 0
    assert run("train", *data, "--out", out, "--val", "1:3", *TINY_FLAGS) == 0
    held_out = {
        name: [read_stack(out / f"heldout_{name}" / f"{z}.tif")[0] for z in (1, 2)]
        for name in ("image", "labels", "probability")
    }
    assert [image.shape for image in held_out["image"]] == [(40, 50), (64, 30)]
    np.testing.assert_array_equal(held_out["labels"][0], two_cells[1][1, :40, :50])
    np.testing.assert_array_equal(held_out["image"][1], two_cells[0][2, :, :30])
    assert "Best slice: " in (out / "report.html").read_text()
    model, again = ("--model", out / "model.safetensors"), tmp_path / "again"
    options = ("--average", "dihedral", "--device", "cpu")
    assert run("predict", data[0], *model, "--out", again, "--z", "1:3", *options) == 0
    for one, other in zip(read_stack(again), held_out["probability"], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    scores, plot = tmp_path / "scores.json", tmp_path / "scores.png"
    assert run("evaluate", out / "heldout_labels", again, "--json", scores, "--plot", plot) == 0
    trained = json.loads((out / "metrics.json").read_text())["heldout"]
    found = json.loads(scores.read_text())
    assert found["figures"]["v_rand"] == pytest.approx(trained["figures"]["v_rand"], abs=1e-3)
    assert [row["slice"] for row in trained["slices"]] == [1, 2]
    capsys.readouterr()
    assert run("evaluate", data[1], data[1], "--task", "cells") == 0
    assert "1.0000" in capsys.readouterr().out
    assert run("predict", data[0], *model, "--out", tmp_path / "p", "--plan") == 0
    assert "4 of 64 × 30 to 64 × 64 px" in capsys.readouterr().out
    assert run("predict", data[0], *model, "--out", tmp_path / "p.tif") == 2
    assert "which have several sizes" in error_line(capsys)


def test_classes_and_channels_go_all_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")
    labels = np.zeros((3, 40, 48), np.uint8)
    labels[:, 4:20, 4:20], labels[:, 8:30, 26:44], labels[:, 36:] = 1, 2, 7
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 40, 48)).astype(np.uint8)
    write_stack(tmp_path / "images.tif", images)
    write_stack(tmp_path / "labels.tif", labels)
    data, out = (tmp_path / "images.tif", tmp_path / "labels.tif"), tmp_path / "run"
    preview = ("--out", tmp_path / "grid.png", "--tile", "92", "--samples", "1")
    options = ("--in-channels", "3", "--label-kind", "classes", "--ignore-label", "7")
    assert run("preview-augmentation", *data, *preview, *options) == 0
    options = (*options, "--classes", "3", "--val", "1:3", *TINY_FLAGS)
    assert run("train", *data, "--out", out, *options) == 0
    printed = capsys.readouterr()
    assert "labels: 3 classes" in printed.err and "mean" in printed.out
    np.testing.assert_array_equal(read_images(out / "heldout_image.tif", channels=3), images[1:])
    held_out = read_stack(out / "heldout_labels.tif")
    np.testing.assert_array_equal(held_out, np.where(labels[1:] == 7, 255, labels[1:]))
    prediction = read_stack(out / "heldout_prediction.tif")
    model, again = ("--model", out / "model.safetensors"), tmp_path / "again.tif"
    average = ("--z", "1:3", "--average", "dihedral")
    assert run("predict", data[0], *model, "--out", again, "--kind", "labels", *average) == 0
    np.testing.assert_array_equal(read_stack(again), prediction)
    ignore = ("--ignore-label", "255", "--json", tmp_path / "e.json")
    capsys.readouterr()
    evaluate = ("evaluate", out / "heldout_labels.tif", again, "--task", "classes")
    assert run(*evaluate, *ignore) == 0
    assert "predicted as" in capsys.readouterr().out
    found = json.loads((tmp_path / "e.json").read_text())
    heldout = json.loads((out / "metrics.json").read_text())["heldout"]
    assert found["figures"] == heldout["figures"] and found["confusion"] == heldout["confusion"]
    assert sum(map(sum, found["confusion"])) == np.count_nonzero(labels[1:] != 7)
    assert [row["slice"] for row in heldout["slices"]] == [1, 2]
    page = (out / "report.html").read_text()
    assert "Confusion matrix" in page and "slice: 2: prediction" in page and "Table 1" not in page
    one = ("--out", tmp_path / "one.tif", "--class", "2", "--z", "1:3")
    assert run("predict", data[0], *model, *one) == 0
    assert read_stack(tmp_path / "one.tif").shape == (2, 40, 48)
    capsys.readouterr()
    assert run("train", *data, "--out", tmp_path / "other", *options, "--in-channels", "2") == 2
    assert "--in-channels, here 2, must be their number" in error_line(capsys)
    assert run(*evaluate, "--label-kind", "ids") == 2
    assert "--task classes reads labels as classes, not as ids" in error_line(capsys)
    assert run("evaluate", data[1], tmp_path / "one.tif", "--task", "classes") == 2
    assert "integers are needed" in error_line(capsys)


def test_predict_threshold_and_z(files, model):
    out = files / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out,
               "--kind", "labels", "--threshold", "0.2", "--z", "1:3") == 0  # fmt: skip
    images = tifffile.imread(files / "images.tif")
    predictor = OverlapTilePredictor(load_model(model))
    expected = np.stack([predictor(image)[1] > 0.2 for image in images[1:3]])
    np.testing.assert_array_equal(tifffile.imread(out), expected)


def test_predict_instances(files, model):
    out = files / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out, "--kind",
               "instances", "--threshold", "0.2", "--min-size", 4, "--grow", 0) == 0  # fmt: skip
    images = tifffile.imread(files / "images.tif")
    predictor = OverlapTilePredictor(load_model(model))
    expected = [components(predictor(image)[1] > 0.2, min_size=4) for image in images]
    np.testing.assert_array_equal(tifffile.imread(out), expected)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("--w0 4 --sigma 2.5 --class-balance none", {"w0": 4, "sigma": 2.5, "class_balance": None}),
        ("--variant short --ignore-label 9", {"variant": "short", "ignore_label": 9}),
        ("--label-kind ids --separate-touching", {"label_kind": "ids", "separate_touching": True}),
    ],
)
def test_flags_of_the_weight_map_are_its_settings(files, capsys, flags, settings):
    labels = tifffile.imread(files / "labels.tif")
    labels[:, :9] = 9
    tifffile.imwrite(files / "labels.tif", labels, photometric="minisblack")
    out = files / "w.tif"
    assert run("weight-map", files / "labels.tif", "--out", out, "--threads", 1, "--compression",
               "zlib", "--preview", files / "p.png", *flags.split()) == 0  # fmt: skip
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert printed.err.startswith("labels: ") and printed.err.count("\n") == 1
    np.testing.assert_array_equal(tifffile.imread(out), weight_map(labels, **settings))
    with tifffile.TiffFile(out) as file:
        assert file.pages.first.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
    assert min(size_of_png(files / "p.png")[:2]) > 500


def test_preview_of_augmentation(files, capsys):
    command = ("preview-augmentation", files / "images.tif", files / "labels.tif")
    options = ("--tile", "72", "--samples", "2")
    assert run(*command, "--out", files / "grid.png", *options) == 0
    assert capsys.readouterr().out == f"{files / 'grid.png'}\n"
    assert min(size_of_png(files / "grid.png")[:2]) > 500
    assert run(*command, "--out", files / "other.png", *options, "--seed", "1", "--flips") == 0
    assert (files / "grid.png").read_bytes() != (files / "other.png").read_bytes()


COMMANDS = {
    "train": "train images.tif labels.tif --out run",
    "predict": "predict images.tif --model m.safetensors --out out.tif",
    "weight-map": "weight-map labels.tif --out out.tif",
    "preview-augmentation": "preview-augmentation images.tif labels.tif --out out.png --samples 1",
    "evaluate": "evaluate labels.tif p.tif",
}


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("train", "--val 2:9", "--val"),
        ("train", "--val 0:4", "every slice"),
        ("train", "--tile 75", "nearest: 72, 76"),
        ("train", "--learning-rate -1", "learning_rate is -1"),
        ("train", "--base-channels 0", "base_channels is 0"),
        ("train", "--optimizer adagrad", "adagrad"),
        ("train", "--no-such-flag 1", "no-such-flag"),
        ("train", "--out images.tif/run", "cannot be written"),
        ("predict", "--tile many", "--tile"),
        ("predict", "--memory lots", "lots"),
        ("predict", "--z 3:9", "--z"),
        ("predict", "--threshold 0.5", "a threshold goes with kind labels, mask, instances"),
        ("predict", "--out images.tif/out.tif", "cannot be written"),
        ("weight-map", "--sigma -1", "sigma is -1"),
        ("weight-map", "--w0 many", "many"),
        ("weight-map", "--threads 0", "threads is 0"),
        ("weight-map", "--preview labels.tif", "would be among the files"),
        ("weight-map", "--out labels.tif --overwrite", "would be among the files"),
        ("weight-map", "--out images.tif/w.tif", "cannot be written"),
        ("preview-augmentation", "--samples 0", "samples 0"),
        ("preview-augmentation", "--tile 0", "window is 0"),
        ("preview-augmentation", "--contrast 2", "contrast is 2"),
        ("preview-augmentation", "--seed -1", "seed is -1"),
        ("evaluate", "--task cells --plot e.png", "--task em"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(
    files, model, capsys, monkeypatch, command, flags, message
):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    tiny = TINY_FLAGS if command == "train" else []
    assert run(*COMMANDS[command].split(), *tiny, *flags.split()) == 2
    assert message in error_line(capsys)
    assert sorted(files.iterdir()) == before


BAD_STACKS = {
    "other shape": (np.ones((4, 64, 60), np.uint8), "64 × 60"),
    "one class": (np.full((4, 64, 64), 255, np.uint8), "one class"),
    "floats": (np.full((4, 64, 64), 0.5, np.float32), "hold 0.5: integers are needed"),
    "whole floats": (np.zeros((4, 64, 64), np.float32), "there are no cells"),
    "8-bit": (np.full((4, 64, 64), 200, np.uint8), "--max-value says which value stands for 1"),
    "cut off": (None, "truncated"),
}


@pytest.mark.parametrize(
    ("name", "command", "replaced"),
    [
        ("other shape", "train", "images.tif"),
        ("one class", "train", "labels.tif"),
        ("cut off", "predict", "images.tif"),
        ("floats", "weight-map", "labels.tif"),
        ("whole floats", "weight-map", "labels.tif"),
        ("other shape", "preview-augmentation", "labels.tif"),
        ("8-bit", "evaluate", "p.tif"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    files, model, capsys, monkeypatch, name, command, replaced
):
    monkeypatch.chdir(files)
    stack, message = BAD_STACKS[name]
    if stack is None:
        (files / replaced).write_bytes((files / replaced).read_bytes()[:-700])
    else:
        tifffile.imwrite(files / replaced, stack, photometric="minisblack")
    before = sorted(files.iterdir())
    assert run(*COMMANDS[command].split()) == 2
    assert message in error_line(capsys)
    assert sorted(files.iterdir()) == before


def test_missing_arguments_and_commands_are_one_line(capsys):
    assert run("train") == 2
    line = error_line(capsys)
    assert "IMAGES" in line and "LABELS" in line and "--out" in line
    assert run() == 2
    assert "weight-map" in error_line(capsys)


@pytest.mark.parametrize(
    ("command", "flags", "out"),
    [
        ("predict", "", "out.tif"),
        ("weight-map", "", "out.tif"),
        ("weight-map", "--preview w.png", "w.png"),
        ("preview-augmentation", "--tile 72", "out.png"),
        ("evaluate", "--json e.json", "e.json"),
    ],
)
def test_existing_output_is_kept_without_overwrite(
    files, model, capsys, monkeypatch, command, flags, out
):
    monkeypatch.chdir(files)
    (files / out).write_bytes(b"precious")
    before = sorted(files.iterdir())
    assert run(*COMMANDS[command].split(), *flags.split()) == 2
    assert "--overwrite" in error_line(capsys)
    assert (files / out).read_bytes() == b"precious" and sorted(files.iterdir()) == before
    assert run(*COMMANDS[command].split(), *flags.split(), "--overwrite") == 0
    assert (files / out).read_bytes() != b"precious"


def test_cells_of_a_mask_are_its_components(files, capsys):
    # truth: two cells; prediction: the first of them whole, nothing of the second
    found = tifffile.imread(files / "labels.tif")
    found[:, :, 32:] = 0
    tifffile.imwrite(files / "found.tif", found, photometric="minisblack")
    out = files / "cells.json"
    assert run("evaluate", files / "labels.tif", files / "found.tif", "--task", "cells",
               "--json", out) == 0  # fmt: skip
    assert json.loads(out.read_text())["figures"] == {"iou": 0.5, "seg": 0.5}


def test_preset_decides_the_defaults_of_all_flags():
    arguments = ["train", "a", "b", "--out", "c", "--preset", "quick", "--seed", "7"]
    assert program.preset_settings(arguments, "paper") == PRESETS["quick"]
    assert program.preset_settings(["--preset=release"], "paper") == PRESETS["release"]
    assert program.preset_settings([], "paper") == PRESETS["paper"]
    twice = ["my --preset port/a.tif", "--preset", "port", "--preset", "quick"]
    assert program.preset_settings(twice, "paper") == PRESETS["quick"]
    assert program.preset_settings(twice[:1], "paper") == PRESETS["paper"]


def test_a_model_to_begin_from_decides_network_and_rate(model, capsys):
    shape = load_model(model).config
    for preset in ("paper", "quick"):
        begun = program.preset_settings(["--preset", preset, f"--init={model}"], "paper")
        expected = PRESETS[preset].learning_rate / 10
        assert begun.learning_rate == pytest.approx(expected) and len(str(begun.learning_rate)) < 8
        assert begun == dataclasses.replace(
            PRESETS[preset], model=shape, learning_rate=begun.learning_rate
        )
    normalised = UNetConfig(depth=2, base_channels=2, padding=True, batch_norm=True)
    save_model(UNet(normalised), model)
    begun = program.preset_settings(["--init", str(model)], "quick")
    assert (begun.model, begun.weight_average) == (normalised, 0.0)
    for missing in ("nowhere.safetensors", "x" * 5000):  # told when it is read for training
        begun = program.preset_settings(["--init", missing], "quick")
        assert (begun.model, begun.learning_rate) == (PRESETS["quick"].model, 1e-4)
    with pytest.raises(SystemExit):
        cli.main(["train", "--preset", "quick", "--init", str(model), "--help"])
    printed = capsys.readouterr().out
    assert "(default: 0.0001)" in printed and "--input-statistics {model,images}" in printed


def test_train_begins_from_a_model_with_the_last_word_for_flags(files, model, capsys):
    pair = (files / "images.tif", files / "labels.tif")
    flags = ("--preset", "quick", "--tile", "76", "--iterations", "2", "--device", "cpu",
             "--precision", "float32", "--init", model)  # fmt: skip
    assert run("train", *pair, "--out", files / "a", *flags) == 0
    assert "init: 2 channels, 2 classes, from m.safetensors; " in capsys.readouterr().err
    settings = json.loads((files / "a/config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["model"]["input_mean"]) == (1e-4, [120.0])
    more = ("--learning-rate", "0.5", "--dropout", "0.25", "--input-statistics", "images")
    assert run("train", *pair, "--out", files / "b", *flags, *more) == 0
    settings = json.loads((files / "b/config.json").read_text())["settings"]
    assert (settings["learning_rate"], settings["model"]["dropout"]) == (0.5, 0.25)
    assert settings["model"]["input_mean"] != [120.0]
    capsys.readouterr()
    assert run("train", *pair, "--out", files / "c", *flags, "--depth", "3") == 2
    assert "m.safetensors: its network has depth = 2, not 3" in error_line(capsys)
    model.unlink()
    assert run("train", *pair, "--out", files / "c", *flags) == 2
    assert "m.safetensors: no such model file" in error_line(capsys)
    assert run("train", *pair, "--out", files / "a", *flags, "--resume") == 0
    assert not (files / "c").exists()


def test_images_are_held_out_by_name(two_cells, tmp_path, capsys):
    for folder, stack in zip(("images", "masks"), two_cells):
        (tmp_path / folder).mkdir()
        for name, image in zip("abcd", stack):
            file = f"{name}_mask.png" if folder == "masks" else f"{name}.png"
            (tmp_path / folder / file).write_bytes(imagecodecs.png_encode(image))
    arguments = ("train", tmp_path / "images", tmp_path / "masks", "--out", tmp_path / "run")
    arguments += ("--mask-suffix", "_mask", *TINY_FLAGS)
    assert run(*arguments, "--val", "b,d") == 0
    assert "val: b,d holds out slices 1, 3 (b.png, d.png)" in capsys.readouterr().err
    np.testing.assert_array_equal(
        read_stack(tmp_path / "run/heldout_image.tif"), two_cells[0][[1, 3]]
    )
    assert run(*arguments, "--overwrite", "--val", "b,dd") == 2
    assert "no image is called 'dd'; the nearest name is d" in error_line(capsys)


def test_ctrl_c_is_exit_code_130(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert program.guarded(interrupted) == 130
    assert error_line(capsys) == "error: interrupted\n"


def test_ctrl_c_inside_a_compiled_function_too(capsys):
    def interrupted():
        raise SystemError("a compiled function") from KeyboardInterrupt()

    assert program.guarded(interrupted) == 130
    error_line(capsys)

    def broken():
        raise SystemError("something else")

    with pytest.raises(SystemError, match="something else"):
        program.guarded(broken)


def test_a_wish_to_end_is_a_ctrl_c():
    command = """
import os, signal, sys, time
from unet_repro import program

def ended():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)

code = program.guarded(ended)
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(code)
"""  # in a process of its own: that of the tests would end if it went wrong
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_full_disk_is_one_line(capsys):
    def full():
        raise OSError(28, "No space left on device", "out.tif")

    assert program.guarded(full) == 2
    assert error_line(capsys) == "error: out.tif: No space left on device\n"


def test_module_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "unet_repro", "report", "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nowhere") and done.stdout == ""


def test_version_is_that_of_the_package(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"unet-repro {version('unet_repro')}\n"


def test_train_records_its_command(monkeypatch):
    seen = []
    monkeypatch.setattr(cli.Train, "run", lambda self: seen.append(self.command) or 0)
    assert run("train", "my images.tif", "l.tif", "--out", "x", "--seed", 3) == 0
    assert seen == ["unet-repro train 'my images.tif' l.tif --out x --seed 3"]


SETTINGS = {
    "train": TrainConfig,
    "predict": PredictionSettings,
    "weight-map": WeightMapSettings,
    "preview-augmentation": AugmentationConfig,
    "export": partial(ExportSettings, "onnx"),
}


def leaves(settings) -> list[str]:
    """Return the names of a dataclass's fields, and of those of the dataclasses in it."""
    names = []
    for field in dataclasses.fields(settings):
        inner = getattr(settings, field.name)
        names += leaves(inner) if dataclasses.is_dataclass(inner) else [field.name]
    return names


@pytest.mark.parametrize("command", SETTINGS)
def test_every_field_of_the_settings_is_a_flag(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
    flags = {name.replace("_", "-") for name in leaves(SETTINGS[command]())}
    assert {"class" if flag == "of-class" else flag for flag in flags} <= shown
