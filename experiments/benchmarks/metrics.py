"""Time the EM challenge's figures on the 30 slices of 512 × 512 of the ISBI 2012 training set.

Claim: all five figures at all thresholds take at most 20 s on two cores for a network-like
proposal and 90 s for raw edges, within 1 GiB of memory.

    python experiments/benchmarks/metrics.py --out results/benchmarks/metrics.json

Measured on a virtual machine with two cores: 3.0 s and 6.7 s of CPU time for the two proposals;
1.5 s of wall time at best for the first, 13 s and 41 s at worst while other work took most of the
machine; 0.5 GiB. The proposals are made from the labels and the images in UNET_REPRO_DATA (or
--data).
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from skimage.metrics import variation_of_information
from skimage.segmentation import watershed

from unet_repro import metrics

SEED = 0
FIGURES = ("pixel_error", "rand_error", "warping_error", "v_rand", "v_info")
N_PLAIN_SLICES = 3
LIMITS_S = {"network-like": 20, "raw edges": 90}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", type=Path, default=os.environ.get("UNET_REPRO_DATA"))
    arguments = parser.parse_args()
    folder = Path(arguments.data or ".") / "isbi2012"
    if not (folder / "train-labels.tif").is_file():
        print(f"skipped: no train-labels.tif in {folder}; set UNET_REPRO_DATA or --data")
        return 0
    labels = tifffile.imread(folder / "train-labels.tif")
    volume = tifffile.imread(folder / "train-volume.tif")
    proposals = {
        "network-like": network_like_proposal(labels),
        "raw edges": raw_edge_proposal(volume),
    }
    metrics.em_challenge_metrics(labels[:1, :64, :64], proposals["raw edges"][:1, :64, :64])
    before_mib = peak_memory_mib()
    timings = {name: measure(labels, proposals[name], name) for name in proposals}
    result = {
        "stack": labels.shape,
        "seed": SEED,
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "peak_memory_mib": peak_memory_mib(),
        "peak_memory_before_mib": before_mib,
        "proposals": timings,
    }
    print(f"peak memory {result['peak_memory_mib']:.0f} MiB, before the figures {before_mib:.0f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def network_like_proposal(labels: np.ndarray) -> np.ndarray:
    """Blur the labels and add smooth noise: gaps, bridges and islands as a network leaves them."""
    rng = np.random.default_rng(SEED)
    proposal = np.empty(labels.shape, np.float32)
    for z, mask in enumerate(labels > 0):
        noise = ndimage.gaussian_filter(rng.standard_normal(mask.shape), sigma=3)
        blurred = ndimage.gaussian_filter(mask.astype(float), sigma=2)
        proposal[z] = np.clip(blurred + 0.15 * noise / noise.std(), 0, 1)
    return proposal


def raw_edge_proposal(volume: np.ndarray) -> np.ndarray:
    """Take the slightly smoothed grey values: membranes are dark, and so is much else."""
    proposal = np.empty(volume.shape, np.float32)
    for z, image in enumerate(volume):
        proposal[z] = ndimage.gaussian_filter(image / 255, sigma=1)
    return proposal


def measure(labels: np.ndarray, probability: np.ndarray, name: str) -> dict:
    """Time all figures with two threads and one, each apart, and plain libraries beside them."""
    figures, two = timed(metrics.em_challenge_metrics, labels, probability, workers=2)
    _, one = timed(metrics.em_challenge_metrics, labels, probability, workers=1)
    best = figures.as_dict()
    print(f"{name}: all figures, two threads {told(two)}, limit {LIMITS_S[name]} s")
    print(f"  one thread {told(one)}; one / two threads {one['wall_s'] / two['wall_s']:.2f}")
    apart = {}
    for figure in FIGURES:
        _, apart[figure] = timed(getattr(metrics, figure), labels, probability, workers=2)
        found = f"{best[figure]:.6f} at {best[f'{figure}_threshold']:.1f}"
        print(f"  {figure} alone {told(apart[figure])}: {found}")
    few = labels[:N_PLAIN_SLICES], probability[:N_PLAIN_SLICES]
    _, plain = timed(plain_scores, *few)
    _, ours = timed(metrics.v_info, *few, workers=1)
    print(f"  v_info of {N_PLAIN_SLICES} slices, one thread {told(ours)}")
    print(f"  plain libraries {told(plain)}; plain / ours {plain['cpu_s'] / ours['cpu_s']:.1f}")
    return {
        "limit_s": LIMITS_S[name],
        "all_two_threads": two,
        "all_one_thread": one,
        "alone_two_threads": apart,
        "v_info_few_slices_one_thread": ours,
        "plain_libraries_few_slices": plain,
        "figures": best,
    }


def plain_scores(labels: np.ndarray, probability: np.ndarray) -> list:
    """Do the work of V_info with library calls: the nearest thing, not the same figure."""
    scores = []
    for truth_mask, slice_probability in zip(labels > 0, probability):
        truth, _ = ndimage.label(truth_mask)
        for threshold in metrics.THRESHOLDS:
            objects, _ = ndimage.label(slice_probability.astype(float) > threshold)
            regions = watershed(-slice_probability, objects, watershed_line=True)
            scores.append(variation_of_information(truth, regions, ignore_labels=(0,)))
    return scores


def timed(function: Callable, *arguments: object, **options: object) -> tuple:
    """Return the result with wall and CPU seconds; only the latter mean much on a busy machine."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function(*arguments, **options)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    return result, seconds


def told(seconds: dict) -> str:
    return f"{seconds['wall_s']:.2f} s ({seconds['cpu_s']:.2f} s of CPU)"


def peak_memory_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
