import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from unet_repro import cli, program
from unet_repro.config import PRESETS, AugmentationConfig, TrainConfig, UNetConfig
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.weight_maps.stack import WeightMapSettings
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


def test_train_predict_evaluate_report(files, capsys):
    out = files / "run"
    assert run("train", files / "images.tif", files / "labels.tif", "--out", out,
               "--val", "2:4", *TINY_FLAGS) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "V_rand" in printed and str(out / "model.safetensors") in printed
    model = out / "model.safetensors"
    assert run("predict", files / "images.tif", "--model", model, "--out", files / "p.tif") == 0
    expected = OverlapTilePredictor(load_model(model))(tifffile.imread(files / "images.tif")[3])[1]
    np.testing.assert_array_equal(tifffile.imread(files / "p.tif")[3], expected)
    assert run("evaluate", files / "labels.tif", files / "p.tif",
               "--json", files / "e.json", "--plot", files / "e.png") == 0  # fmt: skip
    assert (files / "e.json").exists() and (files / "e.png").exists()
    (out / "report.html").unlink()
    assert run("report", out) == 0
    assert (out / "report.html").exists()


def test_train_refuses_then_resumes_an_existing_run(files, capsys):
    common = ("train", files / "images.tif", files / "labels.tif", "--out", files / "run")
    assert run(*common, *TINY_FLAGS) == 0
    capsys.readouterr()
    assert run(*common, *TINY_FLAGS) == 2
    assert "--resume" in error_line(capsys)
    assert run(*common, *TINY_FLAGS, "--resume") == 0


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [
        ("probability", np.float32, (4, 64, 64)),
        ("uint8", np.uint8, (4, 64, 64)),
        ("labels", np.uint8, (4, 64, 64)),
        ("logits", np.float32, (4, 2, 64, 64)),  # z, class, y, x
    ],
)
def test_kinds_of_prediction(files, model, kind, dtype, shape):
    out = files / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out, "--kind", kind) == 0
    found = tifffile.imread(out)
    assert found.dtype == dtype and found.shape == shape
    image = tifffile.imread(files / "images.tif")[1]
    predictor = OverlapTilePredictor(load_model(model))
    interior = predictor(image)[1]
    expected = {
        "probability": interior,
        "uint8": np.rint(255 * interior),
        "labels": interior > 0.5,
        "logits": predictor.logits(image),
    }[kind]
    np.testing.assert_array_equal(found[1], expected)


def test_predict_threshold_and_z(files, model):
    out = files / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out,
               "--kind", "labels", "--threshold", "0.2", "--z", "1:3") == 0  # fmt: skip
    images = tifffile.imread(files / "images.tif")
    predictor = OverlapTilePredictor(load_model(model))
    expected = np.stack([predictor(image)[1] > 0.2 for image in images[1:3]])
    np.testing.assert_array_equal(tifffile.imread(out), expected)


def test_weight_map_command(files):
    assert run("weight-map", files / "labels.tif", "--out", files / "w.tif", "--sigma", "3") == 0
    expected = weight_map(tifffile.imread(files / "labels.tif"), sigma=3)
    np.testing.assert_array_equal(tifffile.imread(files / "w.tif"), expected)


BAD_STACKS = {
    "missing": (None, "no such file"),
    "not_a_tiff": (b"hello, world, this is not a TIFF", "not"),
    "rgb": (np.zeros((4, 64, 64, 3), np.uint8), "RGB|grey|samples"),
    "nan": (np.full((4, 64, 64), np.nan, np.float32), "NaN|nan|finite"),
    "other_shape": (np.ones((4, 64, 60), np.uint8), "64 . 60|64 × 60|shape"),
}


@pytest.mark.parametrize("name", BAD_STACKS)
def test_bad_images_are_one_line_and_leave_nothing(files, capsys, name):
    content, message = BAD_STACKS[name]
    path = files / "bad.tif"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        photometric = "rgb" if content.ndim == 4 else "minisblack"
        tifffile.imwrite(path, content, photometric=photometric)
    assert run("train", path, files / "labels.tif", "--out", files / "run", *TINY_FLAGS) == 2
    line = error_line(capsys)
    assert any(part in line for part in message.split("|")), line
    assert not (files / "run").exists()


def test_truncated_tiff_is_refused(files, capsys):
    whole = (files / "images.tif").read_bytes()
    (files / "cut.tif").write_bytes(whole[: len(whole) // 2])
    assert run("train", files / "cut.tif", files / "labels.tif", "--out", files / "run") == 2
    assert "cut.tif" in error_line(capsys)


def test_labels_of_one_class_are_refused(files, capsys):
    tifffile.imwrite(
        files / "one.tif", np.full((4, 64, 64), 255, np.uint8), photometric="minisblack"
    )
    assert run("train", files / "images.tif", files / "one.tif", "--out", files / "run") == 2
    assert "one class" in error_line(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--val", "2:9"), "--val"),
        (("--val", "0:4"), "every slice"),
        (("--tile", "75"), "nearest: 72, 76"),
        (("--learning-rate", "-1"), "learning_rate is -1"),
        (("--time-budget", "soon"), "soon"),
        (("--base-channels", "0"), "base_channels"),
        (("--optimizer", "adagrad"), "adagrad"),
        (("--no-such-flag", "1"), "no-such-flag"),
        (("--seed", "99999999999999999999"), "seed is"),
        (("--sigma", "0"), "sigma is 0"),
        (("--classes", "3"), "classes is 3"),
        (("--batch-norm", "--weight-average", "0.9"), "running statistics"),
        (("--learning-rate", "inf"), "learning_rate is inf"),
    ],
)
def test_bad_settings_are_one_line(files, capsys, flags, message):
    arguments = ["train", files / "images.tif", files / "labels.tif", "--out", files / "run"]
    assert run(*arguments, *TINY_FLAGS, *flags) == 2
    assert message in error_line(capsys)
    assert not (files / "run").exists()


def test_missing_arguments_and_commands_are_one_line(capsys):
    assert run("train") == 2
    line = error_line(capsys)
    assert "IMAGES" in line and "LABELS" in line and "--out" in line
    assert run() == 2
    assert "weight-map" in error_line(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tile", "75"), "nearest"),
        (("--tile", "many"), "--tile"),
        (("--memory", "lots"), "lots"),
        (("--z", "3:9"), "--z"),
        (("--threshold", "0.5"), "a threshold makes labels"),
        (("--kind", "labels", "--threshold", "1.5"), "[0, 1)"),
    ],
)
def test_bad_prediction_options_are_one_line(files, model, capsys, flags, message):
    out = files / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out, *flags) == 2
    assert message in error_line(capsys)
    assert not out.exists()


def test_existing_output_is_kept_without_overwrite(files, model, capsys):
    out = files / "out.tif"
    out.write_bytes(b"precious")
    assert run("predict", files / "images.tif", "--model", model, "--out", out) == 2
    assert "--overwrite" in error_line(capsys)
    assert out.read_bytes() == b"precious"
    assert run("predict", files / "images.tif", "--model", model, "--out", out, "--overwrite") == 0


def test_output_folder_that_cannot_be_written(files, model, capsys):
    (files / "file").write_text("")
    out = files / "file" / "out.tif"
    assert run("predict", files / "images.tif", "--model", model, "--out", out) == 2
    error_line(capsys)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_as_model_is_refused_and_never_executed(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    torch.save({"weights": Bomb()}, "bomb.pt")
    assert zipfile.is_zipfile("bomb.pt")
    assert run("predict", "images.tif", "--model", "bomb.pt", "--out", "out.tif") == 2
    assert "not a model of unet_repro" in error_line(capsys)
    assert not Path("exploded").exists()


def test_evaluate_refuses_8_bit_values_and_unequal_shapes(files, capsys):
    tifffile.imwrite(
        files / "p8.tif", np.full((4, 64, 64), 200, np.uint8), photometric="minisblack"
    )
    assert run("evaluate", files / "labels.tif", files / "p8.tif") == 2
    error_line(capsys)
    tifffile.imwrite(
        files / "p255.tif", np.full((4, 64, 64), 200, np.float32), photometric="minisblack"
    )
    assert run("evaluate", files / "labels.tif", files / "p255.tif") == 2
    assert "255" in error_line(capsys)
    tifffile.imwrite(
        files / "small.tif", np.full((4, 64, 60), 0.5, np.float32), photometric="minisblack"
    )
    assert run("evaluate", files / "labels.tif", files / "small.tif") == 2
    error_line(capsys)


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


def test_a_wish_to_end_is_a_ctrl_c(capsys):
    before = signal.getsignal(signal.SIGTERM)

    def ended():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert program.guarded(ended) == 130
    assert error_line(capsys) == "error: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


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
    assert {name.replace("_", "-") for name in leaves(SETTINGS[command]())} <= shown
