"""SIGKILL at random moments of a streamed prediction: the resumed result is byte for byte alike."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_repro.config import UNetConfig
from unet_repro.images.stacks import write_stack
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.prediction.predict_stack import predict_stack

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Imports once, then forks a process for every line of arguments: a trial costs no imports.
SERVER = """
import json, os, sys, traceback
import torch
from unet_repro.prediction.predict_stack import predict_stack
torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            predict_stack(**json.loads(line))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Server:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *, kill_at: tuple[Path, int, float] | None = None, **arguments: Any) -> int:
        """Run a prediction; return its exit status.

        It gets a SIGKILL some seconds after a folder has come to hold so many tiles.
        """
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill_at is not None:
            folder, tiles, delay = kill_at
            give_up = time.monotonic() + 60
            while len(list(folder.glob("blocks/c/*/0/*/*"))) < tiles and time.monotonic() < give_up:
                time.sleep(0.0005)
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):  # it was faster
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    with server.process as process:
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize(
    ("out_name", "trials"),
    [("o.tif", 20), ("o", 4), pytest.param("s.tif", 200, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments(
    tmp_path: Path, server: Server, out_name: str, trials: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    network = UNet(UNetConfig(depth=2, base_channels=4, input_std=(50.0,)), generator=generator)
    save_model(network, tmp_path / "m.safetensors")
    stack = np.random.default_rng(0).integers(0, 256, (4, 70, 90), dtype=np.uint8)
    source = tmp_path / "in"
    for z, image in enumerate(stack):
        write_stack(source / f"{z}.tif", image)
    arguments: dict[str, Any] = {
        "source": str(source),
        "model": str(tmp_path / "m.safetensors"),
        "tile": 76,
        "average": "rotations",
    }
    undisturbed = tmp_path / f"undisturbed_{out_name}"
    assert server.run(out=str(undisturbed), **arguments) == 0
    expected = contents(undisturbed)
    draw = random.Random(0)
    killed = 0
    for trial in range(trials):
        out = tmp_path / f"{trial}_{out_name}"
        moment = tmp_path / f".{out.name}.parts", draw.randint(0, 24), draw.uniform(0, 0.02)
        killed += server.run(out=str(out), kill_at=moment, **arguments) == signal.SIGKILL
        if out.exists():  # killed after the renaming, or not at all
            assert contents(out) == expected
        else:
            assert server.run(out=str(out), resume=True, **arguments) == 0
            assert contents(out) == expected
            assert not moment[0].exists()
    assert killed > trials / 2


def contents(out: Path) -> dict[str, bytes]:
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {file.name if out.is_dir() else "": file.read_bytes() for file in files}


@pytest.mark.parametrize("out_name", ["o.tif", "o"])
def test_killed_when_the_output_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_name: str
) -> None:
    """Between the renaming and the end: a resumed run finds nothing left to do."""
    network = UNet(UNetConfig(depth=1, base_channels=1))
    source = tmp_path / "in"
    write_stack(source / "a.tif", np.zeros((20, 20), np.uint8))
    replace = os.replace

    def replace_and_die(origin: Path, target: Path) -> None:
        replace(origin, target)
        if Path(target).name == out_name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_die)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(source, network, tmp_path / out_name)
    assert (tmp_path / f".{out_name}.parts").exists()
    before = contents(tmp_path / out_name)
    predict_stack(source, network, tmp_path / out_name, resume=True)
    assert contents(tmp_path / out_name) == before
    assert not (tmp_path / f".{out_name}.parts").exists()
