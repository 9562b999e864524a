"""Time the weight map beside the usual code and one distance transform of scipy.

Claim: a 512 × 512 slice as in the EM challenge takes 1/80 or less of the usual one transform per
cell, 2048 × 2048 with 2000 cells 1/500; the whole map takes at most 1.5 times one
`scipy.ndimage.distance_transform_edt` of the image on one thread, less than once on two; cost is
linear in the pixels, 8192 × 8192 no slower a pixel than 2048 × 2048, and flat in the number of
cells, with few far cells too; memory stays within 10 bytes per pixel beyond input and output.

    python experiments/benchmarks/weight_map.py --out results/benchmarks/weight_map.json

Takes four minutes on two cores and 3 GiB; `--quick` half a minute. Every time is the best of
7 runs, of 3 above 1 Mpx, of 1 at 8192 × 8192. Those of one thread, of scipy and of the usual code
are CPU seconds, which other work on the machine disturbs little; those of two threads are by the
clock and want an idle machine. Cells are Voronoi regions of random points, eroded. The usual code
keeps only the two smallest distances; with more than 200 cells it is timed for about 20 of them
and scaled up.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import scipy
from scipy import ndimage

from unet_repro.weight_maps.weight_map import two_nearest_distances, weight_map

SEED = 0
TIMED_CELLS = 20
HEAD = "case                         side  cells  backgr.   ours 1   ours 2    scipy  1/sc.  2/sc."
HEAD += "  ns/px  usual/ours"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="smaller images, fewer runs")
    arguments = parser.parse_args()
    quick = arguments.quick
    weight_map(voronoi_cells(32, 4, 1), workers=2)  # compile
    print(HEAD)
    rows = [measure("EM-like", voronoi_cells(512, 136, 3), usual=True)]
    mask = (voronoi_cells(512, 136, 3) > 0).astype(np.uint8) * 255
    rows.append(measure("EM-like, as a 0/255 mask", mask))
    rows.append(measure("many cells", voronoi_cells(2048, 2000, 3), usual=True))
    for side in (512, 1024, 2048) if quick else (512, 1024, 2048, 4096, 8192):
        rows.append(measure("linear in pixels", tiled_cells(side)))
    small, large = (512, 2048) if quick else (2048, 8192)
    flat = flatness(small, large)
    side, numbers = (1024, (10, 100, 3000)) if quick else (4096, (10, 100, 1000, 10_000, 50_000))
    for cells in numbers:
        rows.append(measure("flat in cells", voronoi_cells(side, cells, 2)))
    for side in (512, 1024) if quick else (1024, 2048, 8192):
        for name, labels in sparse_cells(side).items():
            rows.append(measure(f"sparse: {name}", labels))
            rows.append(measure("  its d1 and d2", labels, two_nearest_distances))
    memory = {
        name: peak_bytes_per_pixel(labels)
        for name, labels in {
            "int32 ids": voronoi_cells(1024, 500, 3),
            "int64 ids": voronoi_cells(1024, 500, 3).astype(np.int64),
            "ids above 2**32": voronoi_cells(1024, 500, 3).astype(np.int64) << 33,
            "uint8 mask": (voronoi_cells(1024, 500, 3) > 0).astype(np.uint8) * 255,
        }.items()
    }
    print("peak memory beyond input and output, bytes per pixel (limit 10):")
    print("  " + ", ".join(f"{name} {value:.1f}" for name, value in memory.items()))
    if arguments.out:
        result = {"rows": rows, "large_to_small": flat, "peak_bytes_per_pixel": memory}
        write_json(arguments.out, result | {"quick": quick})
    return 0


def flatness(small: int, large: int) -> dict[str, float]:
    """Time as many pixels in small maps and in a large one, by turns: how much longer that takes.

    Apart: our own time, and with it what the system takes to hand out memory, which a small map
    finds where the one before it lay.
    """
    labels = {side: tiled_cells(side) for side in (small, large)}
    taken: dict[int, list[tuple[float, float]]] = {small: [], large: []}
    for _ in range(5):
        for side, ids in labels.items():
            before = resource.getrusage(resource.RUSAGE_SELF)
            for _ in range((large // side) ** 2):
                weight_map(ids)
            after = resource.getrusage(resource.RUSAGE_SELF)
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            taken[side].append((user, user + system))
    own, all_ = (
        min(times[k] for times in taken[large]) / min(times[k] for times in taken[small])
        for k in (0, 1)
    )
    print(f"{large}² takes {own:.2f} times as long a pixel as {small}²", end=" ")
    print(f"({all_:.2f} times with the system's time for memory)", flush=True)
    return {"own": own, "with_system": all_}


def voronoi_cells(side: int, cells: int, gap: int) -> np.ndarray:
    """Return int32 ids of `cells` Voronoi regions with about 2 * `gap` - 1 px between them."""
    rng = np.random.default_rng(SEED)
    points = np.zeros((side, side), np.int32)
    points.flat[rng.choice(side**2, cells, replace=False)] = np.arange(1, cells + 1)
    nearest = ndimage.distance_transform_edt(
        points == 0, return_distances=False, return_indices=True
    )
    ids = points[tuple(nearest)]
    edge = np.zeros(ids.shape, bool)
    edge[1:] = ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    ids[ndimage.binary_dilation(edge, iterations=gap - 1) if gap > 1 else edge] = 0
    return ids


def tiled_cells(side: int) -> np.ndarray:
    """Return tiles of 512 px with 125 cells each, all with ids of their own."""
    tile = voronoi_cells(512, 125, 3)
    tile[0], tile[:, 0] = 0, 0
    number = np.arange((side // 512) ** 2, dtype=np.int32).reshape(side // 512, -1)
    ids = np.tile(tile, number.shape)
    offsets = np.kron(number * 125, np.ones((512, 512), np.int32))
    return np.where(ids > 0, ids + offsets, 0)


def sparse_cells(side: int) -> dict[str, np.ndarray]:
    """Return few cells far from most pixels, where an outward search would be quadratic."""
    corners = np.zeros((side, side), np.int32)
    corners[0, 0], corners[-1, -1] = 3, 4
    edges = np.zeros((side, side), np.int32)
    edges[:, 0], edges[0, 1:] = 3, 4
    stripes = np.zeros((side, side), np.int32)
    stripes[0] = np.arange(side) // 5 % 7 + 1
    stripes[-1] = np.arange(side) // 3 % 11 + 8
    return {"two corners": corners, "two edges": edges, "striped edges": stripes}


def measure(
    case: str, labels: np.ndarray, function: Callable = weight_map, usual: bool = False
) -> dict:
    """Time one image, print a line of the table."""
    cells = len(np.unique(labels)) - 1
    runs = 7 if labels.size <= 1 << 20 else 3 if labels.size <= 1 << 24 else 1
    kind = "mask" if labels.dtype == np.uint8 else "ids"  # stripes on an edge are no usual ids
    one_s = best_s(lambda: function(labels, label_kind=kind), runs, time.process_time)
    two_s = best_s(lambda: function(labels, label_kind=kind, workers=2), runs, time.perf_counter)
    scipy_s = best_s(lambda: ndimage.distance_transform_edt(labels == 0), runs, time.process_time)
    row = {
        "case": case.strip(),
        "side_px": len(labels),
        "cells": cells,
        "background": float((labels == 0).mean()),
        "one_thread_s": one_s,
        "two_threads_s": two_s,
        "scipy_s": scipy_s,
        "one_thread_to_scipy": one_s / scipy_s,
        "two_threads_to_scipy": two_s / scipy_s,
        "one_thread_ns_per_px": one_s / labels.size * 1e9,
    }
    print(
        f"{case:26s} {len(labels):6d} {cells:6d} {row['background']:8.2f} {one_s:7.4f}s"
        f" {two_s:7.4f}s {scipy_s:7.4f}s {one_s / scipy_s:6.2f} {two_s / scipy_s:6.2f}"
        f" {row['one_thread_ns_per_px']:6.1f}",
        end="",
        flush=True,
    )
    if usual:
        row["usual_s"] = usual_s(labels)
        row["usual_to_one_thread"] = row["usual_s"] / one_s
        print(f"  {row['usual_s']:.1f} s: {row['usual_to_one_thread']:.0f} times", end="")
    print(flush=True)
    return row


def usual_s(ids: np.ndarray) -> float:
    """Time the usual code: one transform per cell, the two smallest distances kept."""
    cells = np.unique(ids[ids > 0])
    timed = cells[:: -(-len(cells) // TIMED_CELLS)] if len(cells) > 200 else cells
    d1, d2 = np.full((2, *ids.shape), np.inf)
    start = time.process_time()
    for cell in timed:
        distance = ndimage.distance_transform_edt(ids != cell)
        d2 = np.minimum(d2, np.maximum(d1, distance))
        d1 = np.minimum(d1, distance)
    seconds = (time.process_time() - start) * len(cells) / len(timed)
    start = time.process_time()
    np.where(ids == 0, 1 + 10 * np.exp(-((d1 + d2) ** 2) / 50), 1).astype(np.float32)
    return seconds + time.process_time() - start


def peak_bytes_per_pixel(labels: np.ndarray) -> float:
    """Return the most memory that numpy holds during one call, less the output's."""
    tracemalloc.start()
    weights = weight_map(labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - weights.nbytes) / labels.size


def best_s(call: Callable, runs: int, clock: Callable) -> float:
    times = []
    for _ in range(runs):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def write_json(path: Path, result: dict) -> None:
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"scipy": scipy.__version__, "numba": numba.__version__}
    result |= {"seed": SEED, "machine": machine, "versions": versions}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
