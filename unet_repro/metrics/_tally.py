"""Count one stack at every threshold, slices and thresholds in parallel threads."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, sizes
from unet_repro.metrics._objects import group_pixels, label_objects, overlap_sums
from unet_repro.metrics._thinning import thin_background
from unet_repro.metrics._warping import (
    HOLE_ADDITION,
    HOLE_DELETION,
    MERGER,
    OBJECT_ADDITION,
    OBJECT_DELETION,
    SPLIT,
    classify_mismatches,
    warp_truth,
)

N_THRESHOLDS = 11  # 0 … 1
N_WARPING_THRESHOLDS = 10  # 0 … 0.9
WARPING_RADIUS_PX = 20
CLASSES = (MERGER, SPLIT, HOLE_ADDITION, OBJECT_DELETION, OBJECT_ADDITION, HOLE_DELETION)


def _accumulated_thresholds() -> tuple[float, ...]:
    """Add 0.1 up in float64, as the official program does: 0.30000000000000004 and so on."""
    thresholds = [0.0]
    while len(thresholds) < N_THRESHOLDS:
        thresholds.append(thresholds[-1] + 0.1)
    return tuple(thresholds)


THRESHOLDS = _accumulated_thresholds()
WARPING_THRESHOLDS = THRESHOLDS[:N_WARPING_THRESHOLDS]


@dataclass(frozen=True, eq=False)
class Truth:
    """One slice of the ground truth, with what every threshold needs of it."""

    mask: np.ndarray  # bool (height, width)
    positions: np.ndarray  # flat positions of the foreground, object by object
    bounds: np.ndarray  # where each object begins and ends in positions


@dataclass(frozen=True, eq=False)
class Tally:
    """Everything the figures are computed from; the first axes are (slice, threshold)."""

    n_pixels: np.ndarray  # int64, of each slice: those that are known
    n_foreground: np.ndarray  # n: pixels of the truth's objects in each slice
    truth_squares: np.ndarray  # Σ a_i² of each slice
    truth_entropy: np.ndarray  # Σ (a_i/n) ln(a_i/n) of each slice
    confusion: np.ndarray  # (…, 3) int64: TP, FP, FN, positive = interior
    overlap: np.ndarray  # (…, 3) int64: overlap_sums of the proposal's components
    thinned_overlap: np.ndarray  # (…, 3) int64: the same of the thinned proposal
    thinned_entropy: np.ndarray  # (…, 2) float64: overlap_sums of the thinned proposal
    classes: np.ndarray  # (…, 6) int64: remaining mismatches of each of CLASSES


def tally(
    labels: Slices,
    probability: Slices,
    known: Slices | None = None,
    *,
    parts: frozenset[str],
    is_official: bool,
    progress: bool,
    workers: int | None,
) -> Tally:
    """Count the parts asked for: "pixels", "objects", "thinned", "warping".

    Slices are prepared while threads work on those before: memory is that of a few slices.
    """
    n_slices = len(labels)
    result = _empty_tally(sizes(labels))
    if known is not None:
        result.n_pixels[:] = [max(int(np.count_nonzero(one)), 1) for one in known]

    def jobs() -> Iterator[Callable[[], None]]:
        for z in range(n_slices):
            truth = _prepare_truth(labels[z])
            _tally_truth(result, z, truth)
            for k in range(N_THRESHOLDS):
                yield partial(_count, result, z, k, truth, probability[z], parts, is_official)

    _run(jobs(), n_jobs=n_slices * N_THRESHOLDS, progress=progress, workers=workers)
    return result


def _empty_tally(shapes: list[tuple[int, int]]) -> Tally:
    n_slices = len(shapes)
    grid = (n_slices, N_THRESHOLDS)
    return Tally(
        n_pixels=np.array([height * width for height, width in shapes], np.int64),
        n_foreground=np.zeros(n_slices, np.int64),
        truth_squares=np.zeros(n_slices, np.int64),
        truth_entropy=np.zeros(n_slices),
        confusion=np.zeros((*grid, 3), np.int64),
        overlap=np.zeros((*grid, 3), np.int64),
        thinned_overlap=np.zeros((*grid, 3), np.int64),
        thinned_entropy=np.zeros((*grid, 2)),
        classes=np.zeros((n_slices, N_WARPING_THRESHOLDS, len(CLASSES)), np.int64),
    )


def _prepare_truth(labels: np.ndarray) -> Truth:
    mask = np.ascontiguousarray(labels > 0)
    return Truth(mask, *group_pixels(*label_objects(mask)))


def _tally_truth(result: Tally, z: int, truth: Truth) -> None:
    sizes = np.diff(truth.bounds)
    result.n_foreground[z] = sizes.sum()
    result.truth_squares[z] = (sizes**2).sum()
    fractions = sizes / max(1, sizes.sum())
    result.truth_entropy[z] = (fractions * np.log(fractions)).sum()


def _count(
    result: Tally,
    z: int,
    k: int,
    truth: Truth,
    probability: np.ndarray,
    parts: frozenset[str],
    is_official: bool,
) -> None:
    threshold = THRESHOLDS[k]
    probability = np.ascontiguousarray(probability)
    proposal = probability.astype(np.float64) > threshold  # 0.3f is above 0.3, 0.7f not above 0.7
    if "pixels" in parts:
        n_common = np.count_nonzero(truth.mask & proposal)
        n_proposal = np.count_nonzero(proposal)
        n_truth = truth.positions.size
        result.confusion[z, k] = n_common, n_proposal - n_common, n_truth - n_common
    if "objects" in parts or "thinned" in parts:
        objects, n_objects = label_objects(proposal)
    if "objects" in parts:
        result.overlap[z, k], _ = overlap_sums(truth.positions, truth.bounds, objects, n_objects)
    if "thinned" in parts:
        thinned = thin_background(objects, n_objects)
        sums = overlap_sums(truth.positions, truth.bounds, thinned, max(1, n_objects))
        result.thinned_overlap[z, k], result.thinned_entropy[z, k] = sums
    if "warping" in parts and k < N_WARPING_THRESHOLDS:
        warped = warp_truth(truth.mask, probability, threshold)
        if is_official and truth.mask.all():
            classes = np.where(warped != proposal, np.uint8(OBJECT_ADDITION), np.uint8(0))
        else:
            classes = classify_mismatches(warped, proposal, WARPING_RADIUS_PX)
        counts = np.bincount(classes.ravel(), minlength=max(CLASSES) + 1)
        result.classes[z, k] = counts[list(CLASSES)]


def _run(
    jobs: Iterator[Callable[[], None]], *, n_jobs: int, progress: bool, workers: int | None
) -> None:
    """Run jobs in threads, at most two slices' worth submitted ahead."""
    n_workers = _checked_workers(workers)
    with _progress_bar(n_jobs, progress) as bar, ThreadPoolExecutor(n_workers) as pool:
        pending: set[Future[None]] = set()
        try:
            for job in jobs:
                pending.add(pool.submit(job))
                if len(pending) >= 2 * N_THRESHOLDS + n_workers:
                    pending = _collect(pending, bar)
            while pending:
                pending = _collect(pending, bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _collect(pending: "set[Future[None]]", bar: Any) -> "set[Future[None]]":
    done, pending = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    if bar is not None:
        bar.update(len(done))
    return pending


def _checked_workers(workers: int | None) -> int:
    if workers is None:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if workers < 1:
        raise InputError(f"workers is {workers}; give 1 or more threads, or None for one per core")
    return workers


def _progress_bar(total: int, is_wanted: bool) -> Any:
    if not is_wanted:
        return nullcontext()
    from unet_repro.progress import ProgressBar  # only here: else numpy and numba are enough

    return ProgressBar(total, desc="metrics", unit="slice·threshold")
