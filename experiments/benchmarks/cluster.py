"""Predict a stack into OME-Zarr with two local workers, and in one process with two threads.

Claim, for 16 channels on two cores and some minutes of work: two workers take at most 1.15 times
what one process takes. All is counted, from the call to the finished image: starting and ending the
workers too, once a run, whatever its length. That is also told apart, and the ratio without it.

    pip install -e '.[distributed]'
    python experiments/benchmarks/cluster.py --out results/benchmarks/cluster.json

Times are by the clock; on a machine that does other things they say nothing.
"""

import argparse
import json
import os
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from unet_repro.cluster import Machines, connected
from unet_repro.config import UNetConfig
from unet_repro.images.stacks import write_stack
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.prediction.block_work import PredictionWork
from unet_repro.prediction.predict_stack import predict_stack

LIMIT, CORES = 1.15, 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--slices", type=int, default=24)
    parser.add_argument("--size", type=int, default=3072, help="sides of a slice in px")
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(CORES)
    times: dict[str, list[float]] = {"one process": [], "two workers": [], "start and end": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = UNet(
            UNetConfig(base_channels=options.channels), generator=torch.Generator().manual_seed(0)
        )
        save_model(model.eval(), folder / "m.safetensors")
        shape = options.slices, options.size, options.size
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        write_stack(folder / "s.tif", pixels)
        for _ in range(options.repeats):
            for what, machines in (
                ("one process", Machines()),
                ("two workers", Machines(workers=CORES)),
            ):
                begin = time.perf_counter()
                predict_stack(
                    folder / "s.tif",
                    folder / "m.safetensors",
                    folder / "o.zarr",
                    kind="uint8",
                    overwrite=True,
                    machines=machines,
                )
                times[what].append(time.perf_counter() - begin)
            begin = time.perf_counter()
            with connected(Machines(workers=CORES)) as client:
                client.wait_for_workers(CORES)
                client.run(import_module, PredictionWork.__module__)  # torch
            times["start and end"].append(time.perf_counter() - begin)
    best = {what: min(seconds) for what, seconds in times.items()}
    ratio = best["two workers"] / best["one process"]
    without = (best["two workers"] - best["start and end"]) / best["one process"]
    rate = options.slices * options.size**2 / best["one process"]
    for what, seconds in best.items():
        print(f"{what:13s} {seconds:9.1f} s")
    print(f"ratio {ratio:.3f} (limit {LIMIT}), {without:.3f} without start and end of the workers")
    print(f"one process: {rate / 1e6:.2f} million px/s")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {"times_s": times, "ratio": ratio, "ratio_without_start": without}
        result |= {"px_per_s": rate, "cores": os.cpu_count()}
        options.out.write_text(json.dumps({**vars(options), **result}, default=str, indent=1))
    return int(ratio > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
