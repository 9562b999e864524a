"""Memory, file handles and threads of one process that predicts and trains for half an hour.

Goal: all three flat. Every cycle trains a small network for a few steps, predicts a stack with all
eight views from file to file, with checksums verified, and writes a weight map of its labels. After
each, what the process holds is written down. Two slopes leave out the first fifth of the cycles, in
which libraries and caches fill: that of a straight line through the others, and the median of the
slopes between cycles a tenth of the time apart. A leak raises both. A single step, such as the
allocator makes when no free piece is large enough, raises the first alone.

    python experiments/benchmarks/long_run.py [--minutes 30] [--out long_run.json]

Needs /proc (Linux).
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from unet_repro import load_model, predict_stack
from unet_repro.challenges.phantom import em_phantom
from unet_repro.config import PRESETS, UNetConfig
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.stacks import write_stack
from unet_repro.network.device import describe
from unet_repro.program import guarded, parse
from unet_repro.training.samples import LabelledStack
from unet_repro.training_run import start_run
from unet_repro.weight_maps.stack import write_weight_map

FLAT_MIB_PER_HOUR = 10.0


@dataclass(frozen=True)
class LongRun:
    """Train and predict again and again; report what the process holds on to.

    Parameters
    ----------
    minutes
        How long.
    out
        JSON to write, with every cycle.
    threads
        Of torch.
    """

    minutes: float = 30.0
    out: Path | None = None
    threads: int = 1

    def run(self) -> int:
        if not Path("/proc/self/statm").exists():
            raise InputError("long_run needs /proc, as Linux has it")
        torch.set_num_threads(self.threads)
        images, labels = em_phantom(slices=4, height=256, width=256)
        rows = []
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_stack(folder / "images.tif", images)
            write_stack(folder / "labels.tif", labels)
            while (hours := (time.monotonic() - begin) / 3600) * 60 < self.minutes or len(rows) < 5:
                cycle(folder, images, labels)
                gc.collect()
                rows.append({"hours": hours, **held()})
        found = summary(rows)
        print(line(found), flush=True)
        result = {**found, "hardware": describe(torch.device("cpu")), "rows": rows}
        if self.out:
            with atomic_path(self.out, overwrite=True) as part:
                part.write_text(json.dumps(result, indent=1))
        return 0


def cycle(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Train ten steps, predict, write a weight map."""
    settings = replace(
        PRESETS["quick"],
        model=UNetConfig(base_channels=4, dropout=0.0),
        tile=188,
        iterations=10,
        validate_every=5,
        val="3:4",
        device="cpu",
    )
    data = LabelledStack(images, labels, "phantom", "images.tif", "labels.tif")
    start_run(data, settings, folder / "run", overwrite=True, is_quiet=True)
    model = load_model(folder / "run" / "model.safetensors")
    out = folder / "out.tif"
    predict_stack(
        folder / "images.tif", model, out, average="dihedral", verify=True, overwrite=True
    )
    write_weight_map(folder / "labels.tif", folder / "weights.tif", overwrite=True)


def held() -> dict[str, float]:
    """Return what this process holds: memory in MiB, open files, threads of Python and of all."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    status = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory_mib": pages * 4096 / 2**20,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "python_threads": threading.active_count(),
        "threads": int(status["Threads"]),
    }


def summary(rows: list[dict[str, float]]) -> dict[str, float]:
    """Return the slopes of the memory, and how much the rest varies, without the first fifth."""
    settled = rows[len(rows) // 5 :]
    hours, memory = (np.array([row[name] for row in settled]) for name in ("hours", "memory_mib"))
    found = {
        "cycles": len(rows),
        "minutes": 60 * rows[-1]["hours"],
        "memory_mib": float(memory[-1]),
        "memory_mib_per_hour": float(np.polyfit(hours, memory, 1)[0]),
        "median_mib_per_hour": median_slope(hours, memory),
    }
    for name in ("files", "python_threads", "threads"):
        found[f"{name}_growth"] = settled[-1][name] - settled[0][name]
    return found


def median_slope(hours: np.ndarray, memory: np.ndarray) -> float:
    """Return the median slope between cycles a tenth of the time apart: one step is in few."""
    apart = max(1, len(hours) // 10)
    rises = memory[apart:] - memory[:-apart]
    return float(np.median(rises / (hours[apart:] - hours[:-apart])))


def line(found: dict[str, float]) -> str:
    """Return the summary as text, with whether all is flat."""
    growth = [found[f"{name}_growth"] for name in ("files", "python_threads", "threads")]
    is_flat = found["memory_mib_per_hour"] <= FLAT_MIB_PER_HOUR and max(growth) <= 0
    return (
        f"{found['cycles']} cycles in {found['minutes']:.1f} minutes: "
        f"{found['memory_mib']:.0f} MiB, slope {found['memory_mib_per_hour']:+.1f} MiB an hour, "
        f"without steps {found['median_mib_per_hour']:+.1f}; "
        f"growth of open files {growth[0]:g}, Python's threads {growth[1]:g}, "
        f"all threads {growth[2]:g}: "
        f"{'flat' if is_flat else 'NOT flat'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: parse(LongRun, arguments, prog="long_run", default=LongRun()).run())


if __name__ == "__main__":
    sys.exit(main())
