"""Run short commands from start to end, beside an interpreter that does no more than load PyTorch.

Claims, on two cores: ``--help`` takes at most 0.6 s, and ``predict`` of one slice of 512² px with
the network that comes with the package at most 3 s, of which PyTorch is the larger part.

    python experiments/benchmarks/start_up.py --out results/benchmarks/start_up.json

Each repeat runs all of them by turns; the shortest time of each counts, by the clock and as
processor time of the process. Compiled modules are written first, as an installation has them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

LIMITS_S = {"help": 0.6, "predict": 3.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        stack, out = Path(name) / "slice.tif", Path(name) / "p.tif"
        pixels = np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8)
        tifffile.imwrite(stack, pixels)
        predict = ["predict", stack, "--model", "em", "--out", out, "--overwrite"]
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "help": [sys.executable, "-m", "unet_repro", "--help"],
            "predict": [sys.executable, "-m", "unet_repro", *predict],
        }
        times: dict[str, list[tuple[float, float]]] = {what: [] for what in commands}
        for _ in range(options.repeats + 1):
            for what, command in commands.items():
                times[what].append(seconds(command))
    best = {what: tuple(map(min, zip(*found[1:]))) for what, found in times.items()}
    for what, (wall, processor) in best.items():
        limit = f" (limit {LIMITS_S[what]} s)" if what in LIMITS_S else ""
        print(f"{what:13s} {wall:6.2f} s{limit}, {processor:6.2f} s of processor time")
    ratio = best["predict"][1] / best["import torch"][1]
    print(f"predict takes {ratio:.2f} times the processor time of importing torch")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"s": best, "ratio": ratio}, indent=1) + "\n")
    return 0 if all(best[what][0] <= limit for what, limit in LIMITS_S.items()) else 1


def seconds(command: list[str | Path]) -> tuple[float, float]:
    """Return what a command takes by the clock, and of its processors."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before, begin = processor_s(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return time.perf_counter() - begin, processor_s() - before


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
