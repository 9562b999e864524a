"""Workers, scheduler and driver of a prediction are killed; the image is what one process makes."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
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

pytest.importorskip("distributed")
pytestmark = pytest.mark.faults

SHARD, SLICES = 64, 50
DEATHS = {"worker": 12, "scheduler": 3, "driver": 3, "all": 1}
STRUCK = {"worker": 1, "scheduler": 2, "driver": 2, "all": 2}  # workers whose batch is lost
BATCH = 2  # units; of 60 s, the whole image would be one
OPTIONS = ["--shard", str(SHARD), "--tile", "76"]
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
END_S = 900.0
DRIVER = f"""
import functools
from unet_repro import cluster
from unet_repro.cli import main
cluster.run_units = functools.partial(cluster.run_units, largest_batch={BATCH})
raise SystemExit(main())
"""
COUNTING = """
import os
from unet_repro.prediction import block_work
if not hasattr(block_work, "uncounted"):  # a preload may be loaded twice
    block_work.uncounted = block_work.predict_block
    file = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def counted(source, runner, job, block, pixels=None):
    os.write(file, b"%d\\n" % block.number)
    return block_work.uncounted(source, runner, job, block, pixels)
block_work.predict_block = counted
"""  # every computation of a unit is a line, also one that a kill has ended


class Cluster:
    """A scheduler and two workers without nannies, each a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rounds = folder, 0
        self.counted = folder / "counted.txt"
        (folder / "count.py").write_text(COUNTING.format(path=str(self.counted)))
        self.scheduler: subprocess.Popen[bytes]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.start()

    def start(self) -> None:
        self.rounds += 1
        self.file = self.folder / f"scheduler{self.rounds}.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
        command += ["--no-dashboard", "--scheduler-file", str(self.file)]
        self.scheduler = subprocess.Popen(command, **QUIET)
        wait_for(self.file.exists)
        self.workers = [self.worker() for _ in range(2)]
        self.address = self.file.read_text().split('"address": "')[1].split('"')[0]

    def worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny"]
        command += ["--no-dashboard", "--nthreads", "1", "--scheduler-file", str(self.file)]
        command += ["--preload", str(self.folder / "count.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, cwd=self.folder, **QUIET)

    def kill_worker(self, n: int) -> None:
        kill(self.workers[n])
        self.workers[n] = self.worker()

    def kill_all(self) -> None:
        for process in (*self.workers, self.scheduler):
            kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()
    if process.stderr:
        process.stderr.close()


def wait_for(condition: Any, seconds: float = END_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def shards(out: Path) -> dict[Path, int]:
    folder = out / "0" / "c"
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".partial"]
    found = {}
    for file in files:
        with contextlib.suppress(FileNotFoundError):  # a resume has just removed what was cut
            found[file] = file.stat().st_mtime_ns
    return found


def wait_for_shards(out: Path, goal: int, running: subprocess.Popen[Any]) -> None:
    wait_for(lambda: len(shards(out)) >= goal or running.poll() is not None)


def driver(folder: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", DRIVER, "predict", str(folder / "s.tif")]
    command += ["--model", str(folder / "m.safetensors"), "--out", str(folder / "o.zarr")]
    command += ["--resume", "--scheduler", address, *OPTIONS]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def test_whatever_is_killed_the_image_is_the_same(tmp_path: Path) -> None:
    choose = random.Random(5)
    pixels = np.random.default_rng(0).integers(0, 256, (SLICES, 150, 170)).astype(np.uint8)
    write_stack(tmp_path / "s.tif", pixels)
    generator = torch.Generator().manual_seed(0)
    model = UNet(UNetConfig(depth=2, base_channels=8), generator=generator).eval()
    save_model(model, tmp_path / "m.safetensors")
    whole = predict_stack(tmp_path / "s.tif", model, tmp_path / "whole.zarr", shard=SHARD, tile=76)
    out, total = tmp_path / "o.zarr", SLICES * 9
    # what dies, when so many more shards are there
    deaths = [death for death, many in DEATHS.items() for _ in range(many)]
    choose.shuffle(deaths)
    cluster = Cluster(tmp_path)
    running = driver(tmp_path, cluster.address)
    lost = 0  # shards that were there and were written again
    try:
        for n, death in enumerate(deaths, 1):
            goal = max(total * n // (len(deaths) + 5), len(shards(out)) + 1)
            wait_for_shards(out, goal, running)
            assert running.poll() is None, running.communicate()[1]
            before = shards(out)
            if death == "worker":
                cluster.kill_worker(choose.randrange(2))
                continue
            if death == "scheduler":
                kill(cluster.scheduler)
                _, said = running.communicate(timeout=END_S)
                assert running.returncode == 2, said
                (line,) = said.strip().splitlines()[-1:]
                assert "--resume goes on" in line
                cluster.kill_all()
                cluster.start()
            elif death == "all":
                cluster.kill_all()
                kill(running)
                files = sorted(before)
                files[0].unlink()
                files[-1].write_bytes(files[-1].read_bytes()[:-9])
                cluster.start()
            else:
                kill(running)
            running = driver(tmp_path, cluster.address)
            after = shards(out)
            lost += sum(after.get(file, when) != when for file, when in before.items())
        _, said = running.communicate(timeout=END_S)
        assert running.returncode == 0, said
    finally:
        cluster.kill_all()
        kill(running)
    assert contents(out) == contents(whole)
    assert lost <= 1  # the one that was cut
    counted = [int(line) for line in cluster.counted.read_text().split()]
    assert set(counted) == set(range(total))
    removed = 2 * DEATHS["all"]  # one deleted, one cut
    struck = sum(STRUCK[death] for death in deaths)
    assert len(counted) - total <= struck * BATCH + removed
