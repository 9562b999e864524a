"""The script that does all that a GPU is for: its calls, on steps that are only pretended."""

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest
import torch

from unet_repro.config import UNetConfig
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model

SCRIPT = Path(__file__).parents[1] / "experiments/gpu.py"
COUNT = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1])
log.write_text(log.read_text() + "x" if log.exists() else "x")
"""
SLOW = COUNT + "time.sleep(60 if len(log.read_text()) == 1 else 0)"  # goes on the second time
FAILS = COUNT + "print('what it said'); sys.exit(3)"


@pytest.fixture
def gpu(monkeypatch):
    """The script as a module, with calls of four seconds."""
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)  # its dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "GRACE_S", 1.0)
    return module


@pytest.fixture
def call(gpu, tmp_path, monkeypatch):
    """Run the script on steps of these names and programs; return exit code and their counts."""

    def run(programs, *arguments, minutes=1.0, is_alone=False, after=()):
        def step(name, program):
            command = ("-c", program, str(tmp_path / f"{name}.log"))
            return gpu.Step(
                *(name, f"what {name} is", minutes, ("-c", "raise SystemExit(9)"), command),
                is_alone=is_alone,
                after=after if name == "last" else (),
                rows=lambda out: [["paper", out.name, "split", "length", "command"]],
            )

        monkeypatch.setattr(gpu, "steps", lambda: [step(*item) for item in programs.items()])
        words = ["gpu", *arguments, "--out", str(tmp_path / "out"), "--dry-run", "--call-s", "5"]
        words += ["--at-once", "2"]
        monkeypatch.setattr(sys, "argv", words)
        code = gpu.main()
        logs = [tmp_path / f"{name}.log" for name in programs]
        return code, [len(log.read_text()) if log.exists() else 0 for log in logs]

    return run


def test_a_call_stops_what_does_not_fit_and_the_next_one_goes_on(call, capfd):
    programs = {"one": COUNT, "two": SLOW, "three": COUNT}
    assert call(programs) == (0, [1, 1, 1])  # three beside two
    told = capfd.readouterr().out
    assert "two is not done yet; the next call goes on" in told
    assert "left for further calls: two\n" in told
    assert "| what one is | paper | one | split | length |" in told and "what two is |" not in told
    assert call(programs) == (0, [1, 2, 1])
    told = capfd.readouterr().out
    assert told.endswith("all is done\n") and told.count("| what ") == 3


def test_no_more_run_at_once_than_are_allowed(call):
    assert call({"one": SLOW, "two": SLOW, "three": COUNT}) == (0, [1, 1, 0])


def test_nothing_runs_beside_what_measures_speed(call):
    assert call({"one": SLOW, "two": COUNT}, is_alone=True, minutes=0.01) == (0, [1, 0])


def test_a_step_waits_for_those_whose_results_it_needs(call):
    programs = {"last": COUNT, "one": COUNT, "two": SLOW}
    assert call(programs, after=("one", "two")) == (0, [0, 1, 1])
    assert call(programs, after=("one", "two")) == (0, [1, 1, 2])


def test_steps_by_name_and_their_list(call, capfd):
    programs = {"one": COUNT, "two": COUNT}
    assert call(programs, "two") == (0, [0, 1])
    capfd.readouterr()
    assert call(programs, "--list") == (0, [0, 1])
    told = capfd.readouterr().out
    assert "to do     1 min  one" in told and "done      1 min  two" in told
    assert call(programs, "three") == (2, [0, 1])
    assert "three: no such step; there are one, two" in capfd.readouterr().err


def test_a_step_that_fails_is_told_and_not_done_and_the_others_are(call, capfd):
    assert call({"one": FAILS, "two": COUNT}) == (2, [1, 1])
    told = capfd.readouterr()
    assert "one failed with exit code 3:\nwhat it said" in told.out
    assert "error: one failed: output.txt in its folder says why" in told.err
    assert call({"one": FAILS, "two": COUNT}) == (2, [2, 1])


def test_what_cannot_be_resumed_is_begun_only_where_it_fits(gpu):
    calls = gpu.Calls(Path(), is_dry=False, device="cpu", at_once=2)
    for minutes, may_start in ((1.0, False), (0.01, True)):
        step = gpu.Step("one", "", minutes, (), (), is_alone=True)
        assert calls._may_start(step, time.monotonic() + 5) == may_start


def test_every_step_has_a_small_form_and_no_gpu_is_refused(gpu, monkeypatch, tmp_path, capsys):
    steps = gpu.steps()
    assert len({step.name for step in steps}) == len(steps) > 8
    for step in steps:
        scripts = [Path(word) for word in (step.command[0], step.small[0]) if ".py" in word]
        assert all((gpu.ROOT / script).is_file() for script in scripts)
        assert step.minutes <= 9 or not step.is_alone
        assert set(step.after) <= {other.name for other in steps}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 2
    assert "no GPU is here; --dry-run" in capsys.readouterr().err


def test_weights_are_kept_in_half_precision_and_in_parts(gpu, tmp_path, monkeypatch):
    network = UNet(UNetConfig(depth=1, base_channels=4))
    (tmp_path / "run").mkdir()
    model = tmp_path / "run" / "model.safetensors"
    save_model(network, model, training={"seed": 0})
    assert gpu.keep_weights(tmp_path) == []  # the step is not done
    (tmp_path / "run" / "done.json").touch()
    [whole] = gpu.keep_weights(tmp_path)
    most = whole.stat().st_size // 2 - 1
    assert whole.stat().st_size < 0.7 * model.stat().st_size
    whole.unlink()
    monkeypatch.setattr(gpu, "PART_BYTES", most)
    parts = gpu.keep_weights(tmp_path)
    assert len(parts) == 3 and parts == sorted(parts) and not whole.exists()
    assert max(part.stat().st_size for part in parts) <= most
    assert gpu.keep_weights(tmp_path) == []  # they are there
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    for name, value in load_model(whole).state_dict().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-3, atol=1e-6)


def test_the_lines_of_the_table_hold_the_figures(gpu, tmp_path):
    cells = {"published": 0.9203, "figures": {"iou": 0.8123, "seg": 0.8001}}
    cells |= {"train_sequence": "01", "truth": "gold", "test_sequence": "02"}
    record = {
        "command": "bash experiments/phc_u373.sh",
        "state": {"iterations": 300, "seconds": 60.0},
        "settings": {"model": {"base_channels": 64}},
    }
    out = tmp_path / "phc_u373-01-gold"
    out.mkdir()
    facts = {"hardware": {"gpu": "a card"}, "commit": "abc1234", "date": "2026-01-02"}
    for name, content in (
        *(("metrics", {"cells": cells}), ("config", record)),
        ("done", facts),
    ):
        (out / f"{name}.json").write_text(json.dumps(content))
    [line] = gpu.table(gpu.steps(), tmp_path)
    assert line == (
        "| PhC-U373, trained on 01 (gold), scored on the other | IOU 0.9203 | "
        "IOU 0.8123, SEG 0.8001 | 01 (gold), 02 | 300 steps in 60 s (5.00/s), 64 channels | "
        "a card | `bash experiments/phc_u373.sh` (abc1234, 2026-01-02) |"
    )
