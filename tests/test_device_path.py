"""All that runs on a GPU: it gives what the CPU gives, and a step of training waits for nothing.

By default on a GPU that is pretended (`pretended_gpu`), to the bit; with ``-m gpu`` on CUDA, but
for rounding.
"""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretended_gpu
import pytest
import tifffile
import torch
from pretended_gpu import Crossing, lacking, watched

from unet_repro.cli import main
from unet_repro.config import AugmentationConfig, TrainConfig, UNetConfig
from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack
from unet_repro.network.backends import make_network
from unet_repro.network.device import choose_device, choose_precision, describe, free_memory
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predict_stack import predict_stack
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_classes, predict_volume
from unet_repro.prediction.views import VIEWS
from unet_repro.training import state as training_state
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.reproducible import kept_random_states, random_states
from unet_repro.training.state import TrainingState
from unet_repro.training.train import Trained, train
from unet_repro.training.validation import HeldOut

CPU = torch.device("cpu")
PRETENDED = pretended_gpu.NAME
ALL_OF_IT = AugmentationConfig(  # whatever augmentation can do
    elastic_sigma_px=2.0, scale=0.3, blur_px=1.0, noise=0.2, interpolation="bicubic", flips=True
)


@pytest.fixture(params=[PRETENDED, pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch) -> torch.device:
    """The device to compare with the CPU."""
    if request.param == PRETENDED:
        return pretended_gpu.register()
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # rounds to 10 bits
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _one_format(monkeypatch):
    """Lay maps out on all devices as on a GPU: in another order a CPU rounds otherwise."""
    monkeypatch.setattr(training_state, "training_format", lambda device: torch.channels_last)


def assert_agrees(device: torch.device, found: Any, expected: Any, *, tolerance: float) -> None:
    """Compare with the CPU's: to the bit, on a real GPU but for rounding."""
    found, expected = (torch.as_tensor(x).cpu().double() for x in (found, expected))
    tolerance = 0.0 if device.type == PRETENDED else tolerance
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@contextmanager
def nothing_waits(device: torch.device, allowed: set[str]) -> Iterator[None]:
    """Fail where the host waits for the device; `allowed` functions may send it something."""
    if device.type != "cuda":
        with watched() as crossings:
            yield
        assert not [crossing for crossing in crossings if crossing.is_waited_for]
        assert {crossing.way for crossing in crossings} <= {"up"}
        assert {crossing.where for crossing in crossings} == allowed
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's: it may not notice every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class TestThePretendedGpu:
    """What the other tests rely on."""

    @pytest.fixture(autouse=True)
    def tensor(self) -> torch.Tensor:
        return torch.arange(6.0).reshape(2, 3).to(pretended_gpu.register())

    def test_refuses_to_mix_devices(self, tensor):
        other = torch.ones(2, 3)
        for mixed in (
            lambda: tensor + other,
            lambda: tensor.add_(other),
            lambda: torch.cat([other, tensor]),
            lambda: torch.stack([tensor[0, 0], other[0, 0]]),
            lambda: torch.nn.functional.linear(other, tensor),
            lambda: tensor[torch.tensor([1])],
        ):
            with pytest.raises(RuntimeError, match="to be on the same device"):
                mixed()
        assert torch.equal((tensor * torch.tensor(2.0)).cpu(), 2 * torch.arange(6.0).reshape(2, 3))

    def test_refuses_numpy(self, tensor):
        for reach in (lambda: tensor.numpy(), lambda: np.asarray(tensor)):
            with pytest.raises((RuntimeError, TypeError), match="numpy"):
                reach()

    def test_writes_down_what_crosses(self, tensor):
        with watched() as crossings:
            for cross in (
                lambda: tensor.cpu(),
                lambda: tensor[0, 0].item(),
                lambda: float(tensor.sum()),
                lambda: bool((tensor > 0).all()),
                lambda: tensor.tolist(),
                lambda: tensor[tensor > 3],
                lambda: tensor.nonzero(),
                lambda: tensor.unique(),
                lambda: torch.ones(6).to(PRETENDED),
                lambda: tensor.copy_(torch.ones(2, 3)),
                lambda: torch.tensor([1.0], device=PRETENDED),
            ):
                before = len(crossings)
                cross()
                assert len(crossings) == before + 1 and crossings[-1].is_waited_for
            staged = torch.ones(6).to(PRETENDED, non_blocking=True)
            assert crossings[-1] == Crossing("up", 6, False, "")
            before = len(crossings)
            staged[1:3].mul_(2)
            staged.clone().sum()
            assert len(crossings) == before
        assert staged.tolist() == [1, 2, 2, 1, 1, 1]

    def test_lacks_types_where_it_is_told_to(self, tensor):
        with lacking(torch.float64):
            for make in (lambda: tensor.double(), lambda: torch.ones(2).double().to(PRETENDED)):
                with pytest.raises(TypeError, match="float64"):
                    make()
        assert tensor.double().dtype == torch.float64


def sets(two_cells, device: torch.device, *, several_sizes: bool = False) -> TrainingSet:
    images, labels = two_cells
    classes, weights = (labels > 0).astype(np.uint8), 1 + (labels == 0).astype(np.float32)
    stacks: Any = images, classes, weights
    if several_sizes:
        stacks = [[one[z][: 64 - 4 * z] for z in range(len(one))] for one in stacks]
    return TrainingSet(*stacks, device=device)


WAYS: dict[str, dict[str, Any]] = {  # to train; how fast the optimiser is, Adam amplifies rounding
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.99},
    "adam": {"optimizer": "adam", "weight_average": 0.9, "batch_size": 2},
    "bfloat16": {"precision": "bfloat16", "weight_decay": 1e-4, "optimizer": "sgd"},
    "batch norm": {
        "model": UNetConfig(depth=2, base_channels=4, padding=True, batch_norm=True),
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_those_on_the_cpu_and_wait_for_nothing(two_cells, tiny, tmp_path, device, way):
    settings = replace(tiny, augmentation=ALL_OF_IT, **WAYS[way])
    if device.type != PRETENDED:  # draws other masks
        settings = replace(settings, model=replace(settings.model, dropout=0.0))
    on_cpu, on_device = (
        TrainingState(sets(two_cells, place, several_sizes=way == "adam"), settings, tmp_path)
        for place in (CPU, device)
    )
    with kept_random_states(device):
        for run in (on_cpu, on_device):
            run.network.train()
            run.seed_dropout()
            run.step()  # tables are made, kernels chosen
            sent = {"augment.coordinates", "augment._add_noise"} if run is on_device else set()
            with nothing_waits(run.device, sent):
                for _ in range(3):
                    run.step()
    for found, expected in zip(on_device.losses, on_cpu.losses, strict=True):
        assert_agrees(device, found, expected, tolerance=0.02 if way == "bfloat16" else 1e-3)
    weights = on_cpu.result().state_dict()
    for name, found in on_device.result().state_dict().items():
        assert found.device == device
        assert_agrees(device, found, weights[name], tolerance=0.05)
    assert on_device.mean_loss() == pytest.approx(on_cpu.mean_loss(), rel=0.02)


FIGURES = ("iteration", "learning_rate", "loss", "validation_loss", "validation_pixel_error")


def figures(folder: Path) -> np.ndarray:
    """Return the rows of a run's log that hold a validation."""
    with (folder / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["validation_loss"]]
    return np.array([[float(row[name]) for name in FIGURES] for row in rows])


def trained(two_cells, settings: TrainConfig, folder: Path, place: torch.device) -> Trained:
    """Train on the last two slices, validate on the first two; go on where a run is there."""
    images, labels = two_cells
    held_out = HeldOut(images[:2], (labels[:2] > 0).astype(np.uint8), np.ones((2, 64, 64), "f4"))
    data = sets((images[2:], labels[2:]), place)
    folder.mkdir(exist_ok=True)
    return train(data, settings, folder, held_out=held_out, resume=True, is_quiet=True)


def assert_runs_agree(device: torch.device, found: Path, expected: Path) -> None:
    rows = figures(expected)
    assert_agrees(device, figures(found)[:, 2:], rows[:, 2:], tolerance=0.01)
    assert list(rows[:, 0]) == [3, 6, 9]
    for name in ("model.safetensors", "best.safetensors"):
        weights = load_model(expected / name).state_dict()
        for key, value in load_model(found / name).state_dict().items():
            assert_agrees(device, value, weights[key], tolerance=0.02)


def test_a_run_that_is_interrupted_and_resumed_is_that_on_the_cpu(
    two_cells, tiny, tmp_path, device, monkeypatch
):
    step, stops = TrainingState.step, [5]

    def step_and_interrupt(state: TrainingState) -> None:
        if state.device == device and state.iteration + 1 in stops:
            stops.clear()
            os.kill(os.getpid(), signal.SIGINT)
        step(state)

    monkeypatch.setattr(TrainingState, "step", step_and_interrupt)
    dropout = 0.5 if device.type == PRETENDED else 0.0  # a real one draws other masks
    settings = replace(
        tiny,
        model=replace(tiny.model, dropout=dropout),
        **{"iterations": 9, "validate_every": 3, "weight_average": 0.9, "optimizer": "sgd"},
    )
    before = random_states(device)
    trained(two_cells, settings, tmp_path / "cpu", CPU)
    first = trained(two_cells, settings, tmp_path / "device", device)
    assert (first.stopped, first.iterations) == ("interrupted", 5)
    second = trained(two_cells, settings, tmp_path / "device", device)
    assert (second.stopped, second.iterations) == ("finished", 9)
    for state, kept in zip(random_states(device), before, strict=True):
        assert torch.equal(state, kept)
    assert_runs_agree(device, tmp_path / "device", tmp_path / "cpu")


def test_a_run_may_change_its_device_on_the_way(two_cells, tiny, tmp_path, device):
    settings = replace(
        tiny,
        model=replace(tiny.model, dropout=0.0),
        **{"validate_every": 3, "weight_average": 0.9, "schedule": "constant"},
        **{"optimizer": "sgd", "learning_rate": 1e-3},
    )
    for folder, iterations, place in (
        ("whole", 9, CPU),
        *(("parts", 3, CPU), ("parts", 6, device), ("parts", 9, CPU)),
    ):
        now = replace(settings, iterations=iterations)
        trained(two_cells, now, tmp_path / folder, place)
    assert_runs_agree(device, tmp_path / "parts", tmp_path / "whole")


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def files(two_cells, tmp_path) -> tuple[Path, Path]:
    for name, stack in zip(("images", "labels"), two_cells):
        write_stack(tmp_path / f"{name}.tif", stack)
    return tmp_path / "images.tif", tmp_path / "labels.tif"


def test_the_commands_train_and_predict_on_a_device(files, tmp_path, device, capsys):
    settings = (
        *("--preset", "quick", "--depth", "2", "--base-channels", "4", "--tile", "76"),
        *("--iterations", "2", "--precision", "float32", "--optimizer", "sgd"),
    )
    for place in (CPU, device):
        folder, on_it = tmp_path / place.type, ("--device", place)
        assert run("train", *files, "--out", folder, *settings, *on_it) == 0
        options = ("--model", folder / "model.safetensors", "--tile", "76", *on_it)
        assert run("predict", files[0], "--out", folder / "p.tif", *options, "--verify") == 0
    found, expected = (tifffile.imread(tmp_path / one.type / "p.tif") for one in (device, CPU))
    assert_agrees(device, found, expected, tolerance=1e-3)
    record = json.loads((tmp_path / device.type / "config.json").read_text())
    assert record["hardware"]["device"] == str(device) and record["hardware"]["gpu"]
    assert run("predict", files[0], "--out", tmp_path / "o.tif", *options, "--plan") == 0
    assert "peak memory" in capsys.readouterr().out


def networks(device: torch.device, **shape: Any) -> tuple[UNet, UNet]:
    """Return the same network on the CPU and on the device."""
    shape = {"depth": 2, "base_channels": 4, "input_mean": (100.0,), "input_std": (50.0,)} | shape
    network = UNet(UNetConfig(**shape), generator=torch.Generator().manual_seed(0)).eval()
    return network, copy.deepcopy(network).to(device)


GREY = np.random.default_rng(1).integers(0, 256, (2, 44, 60)).astype(np.uint8)


@pytest.mark.parametrize(
    ("average", "precision"), [*((average, "float32") for average in VIEWS), ("flips", "bfloat16")]
)
def test_prediction_is_that_on_the_cpu(device, average, precision):
    options: Any = {"tile": 76, "average": average, "precision": precision}
    on_cpu, on_device = (OverlapTilePredictor(one, **options) for one in networks(device))
    tolerance = 0.1 if precision == "bfloat16" else 1e-3
    found, expected = (predict_volume(one, GREY) for one in (on_device, on_cpu))
    assert np.ptp(expected) > 0.2
    assert_agrees(device, found, expected, tolerance=tolerance)
    moved = OverlapTilePredictor(networks(device)[0], device=device, **options)
    with watched() as crossings:
        logits = moved.logits(GREY[0])
    assert_agrees(device, logits, on_cpu.logits(GREY[0]), tolerance=10 * tolerance)
    if device.type == PRETENDED:  # a tile's mean over all views comes back in one piece
        down = [crossing for crossing in crossings if crossing.way != "up"]
        assert len(down) == len(moved.plan(*GREY.shape[1:])) > 1
        sent = [crossing for crossing in crossings if crossing.where == "tile_runner._run"]
        assert len(sent) + len(down) == len(crossings)
        assert not any(crossing.is_waited_for for crossing in sent)


@pytest.mark.parametrize("kind", ["probability", "logits"])
def test_streamed_prediction_is_that_on_the_cpu(device, tmp_path, kind):
    write_stack(tmp_path / "stack.tif", GREY)
    options: Any = {"kind": kind, "tile": 76, "average": "rotations", "verify": True}
    on_cpu, on_device = (
        tifffile.imread(predict_stack(tmp_path / "stack.tif", one, tmp_path / name, **options))
        for name, one in zip(("c.tif", "d.tif"), networks(device))
    )
    assert_agrees(device, on_device, on_cpu, tolerance=1e-2)


def test_classes_are_those_on_the_cpu(device):
    on_cpu, on_device = (
        predict_classes(OverlapTilePredictor(one, 76), GREY) for one in networks(device, classes=3)
    )
    assert set(np.unique(on_cpu)) == {0, 1, 2}
    assert (on_device != on_cpu).mean() <= (0.0 if device.type == PRETENDED else 0.01)


def test_a_network_without_a_copy_follows_its_model(device):
    _, network = networks(device)
    window = torch.zeros(1, 1, 76, 76).to(device)
    ways = [make_network(network, device=place) for place in (device, device.type)]
    before = [way(window).cpu() for way in ways]
    with torch.no_grad():
        network.classifier.bias.add_(1)
    for way, value in zip(ways, before):
        torch.testing.assert_close(way(window).cpu(), value + 1)


def test_facts_of_a_device(device):
    assert choose_device(str(device)) == device
    assert choose_device(device.type).type == device.type
    assert describe(device)["gpu"] and free_memory(device) > 2**20
    with pytest.raises(InputError, match=f"{device.type}:\\d+ is the last"):
        choose_device(f"{device.type}:99")


class TestADeviceThatLacksTypes:
    """What mps lacks, and older hardware; on the pretended GPU alone."""

    @pytest.fixture(autouse=True)
    def device(self) -> torch.device:
        return pretended_gpu.register()

    @pytest.mark.parametrize(
        ("missing", "precision", "message"),
        [
            (torch.float64, "float32", "no float64 here; augmentation needs it: train with --devi"),
            (torch.bfloat16, "bfloat16", "no bfloat16 here; use --precision float32"),
        ],
    )
    def test_training_is_refused_in_a_line(
        self, files, tmp_path, capsys, missing, precision, message
    ):
        options = ("--device", PRETENDED, "--precision", precision, "--iterations", "1")
        with lacking(missing):
            assert run("train", *files, "--out", tmp_path / "run", *options) == 2
        told = capsys.readouterr().err
        assert (
            told.startswith(f"error: device {PRETENDED}: has {message}") and told.count("\n") == 1
        )
        assert not (tmp_path / "run").exists()

    def test_prediction_needs_float32_alone(self, device, tmp_path, capsys):
        write_stack(tmp_path / "stack.tif", GREY)
        save_model(networks(device)[0], tmp_path / "m.safetensors")
        command = ("predict", tmp_path / "stack.tif", "--model", tmp_path / "m.safetensors")
        options = ("--tile", "76", "--device", PRETENDED, "--out", tmp_path / "o.tif")
        on_cpu = ("--tile", "76", "--device", "cpu", "--out", tmp_path / "cpu.tif")
        assert run(*command, *on_cpu) == 0
        with lacking(torch.float64, torch.bfloat16):
            assert run(*command, *options, "--precision", "bfloat16") == 2
            assert "no bfloat16 here; use --precision float32" in capsys.readouterr().err
            assert run(*command, *options, "--precision", "auto") == 0
            assert choose_precision("auto", device) == "float32"
        found, expected = (tifffile.imread(tmp_path / name) for name in ("o.tif", "cpu.tif"))
        np.testing.assert_array_equal(found, expected)
        assert choose_precision("auto", device) == "bfloat16"
