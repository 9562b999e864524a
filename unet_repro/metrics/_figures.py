"""From the counts of a stack to its figures: the formulas, without a loop over pixels."""

import numpy as np

from unet_repro.metrics._tally import CLASSES, THRESHOLDS, WARPING_THRESHOLDS, Tally
from unet_repro.metrics.results import (
    PixelError,
    RandError,
    VScore,
    WarpingClass,
    WarpingError,
)

_NO_ENTROPY = 1e-12  # rounding leaves less in place of 0; two regions of n pixels have ≥ ln(n)/n


def pixel_figures(counts: Tally) -> PixelError:
    return PixelError(
        thresholds=THRESHOLDS,
        per_threshold=1 - _pixel_f_score(counts.confusion.sum(axis=0)),
        per_slice=1 - _pixel_f_score(counts.confusion),
        true_positives=counts.confusion[..., 0],
        false_positives=counts.confusion[..., 1],
        false_negatives=counts.confusion[..., 2],
        n_pixels=counts.n_pixels,
    )


def _pixel_f_score(confusion: np.ndarray) -> np.ndarray:
    """F = 2PR/(P + R) with P = 1 if FP = 0 and R = 1 if FN = 0, and 0 if P = R = 0."""
    tp, fp, fn = np.moveaxis(confusion, -1, 0)
    precision = np.where(fp == 0, 1.0, tp / np.maximum(tp + fp, 1))
    recall = np.where(fn == 0, 1.0, tp / np.maximum(tp + fn, 1))
    total = precision + recall
    return 2 * precision * recall / np.where(total == 0, 1, total)


def rand_figures(counts: Tally, *, is_official: bool) -> RandError:
    sums = _pair_sums(counts, counts.overlap)
    joint, proposed, true = (pairs.sum(axis=0) for pairs in sums)
    precision, recall = joint / proposed, joint / true
    f_score = joint / (0.5 * proposed + 0.5 * true)
    if is_official and (counts.n_foreground == 0).any():
        precision = recall = np.full_like(f_score, np.nan)
        f_score = np.zeros_like(f_score)
    joint, proposed, true = (_nan_where_empty(counts, pairs) for pairs in sums)
    return RandError(
        thresholds=THRESHOLDS,
        per_threshold=1 - f_score,
        per_slice=1 - joint / (0.5 * proposed + 0.5 * true),
        precision=precision,
        recall=recall,
    )


def _pair_sums(counts: Tally, overlap: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """TP, TP + FP and TP + FN of pixel pairs as float64, each of shape (slices, thresholds).

    A pixel of a cell that the proposal calls background is a cluster of its own, hence + z.
    """
    z, joint_squares, region_squares = np.moveaxis(overlap.astype(np.float64), -1, 0)
    truth_squares = counts.truth_squares[:, np.newaxis].astype(np.float64)
    return joint_squares + z, region_squares + z, np.broadcast_to(truth_squares, z.shape)


def _nan_where_empty(counts: Tally, values: np.ndarray) -> np.ndarray:
    """Set the slices whose truth has no foreground to NaN."""
    return np.where(counts.n_foreground[:, np.newaxis] == 0, np.nan, values)


def warping_figures(counts: Tally) -> WarpingError:
    names = [f"{WarpingClass(code).name.lower()}s" for code in CLASSES]
    per_slice = {name: counts.classes[..., k] for k, name in enumerate(names)}
    n_errors = per_slice["splits"] + per_slice["mergers"]  # (slices, thresholds)
    return WarpingError(
        thresholds=WARPING_THRESHOLDS,
        per_threshold=n_errors.sum(axis=0) / counts.n_pixels.sum(),
        per_slice=n_errors / counts.n_pixels[:, np.newaxis],
        splits_per_slice=per_slice["splits"],
        mergers_per_slice=per_slice["mergers"],
        **{name: n_of_class.sum(axis=0) for name, n_of_class in per_slice.items()},
    )


def v_rand_figures(counts: Tally, *, is_official: bool) -> VScore:
    joint, proposed, true = (
        _nan_where_empty(counts, pairs) for pairs in _pair_sums(counts, counts.thinned_overlap)
    )
    f_score = joint / (0.5 * proposed + 0.5 * true)
    return _v_score(f_score, joint / true, joint / proposed, is_official=is_official)


def v_info_figures(counts: Tally, *, is_official: bool) -> VScore:
    n = np.maximum(counts.n_foreground, 1)[:, np.newaxis]
    singletons = counts.thinned_overlap[..., 0] / n * np.log(n)  # −z·(1/n)·ln(1/n)
    joint_entropy = singletons - counts.thinned_entropy[..., 0]
    proposal_entropy = singletons - counts.thinned_entropy[..., 1]
    truth_entropy = np.broadcast_to(-counts.truth_entropy[:, np.newaxis], joint_entropy.shape)
    information = truth_entropy + proposal_entropy - joint_entropy
    split = _share(information, proposal_entropy)
    merge = _share(information, truth_entropy)
    is_zero = np.minimum(truth_entropy, proposal_entropy) < _NO_ENTROPY
    f_score = np.where(is_zero, 0.0, _share(2 * information, truth_entropy + proposal_entropy))
    parts = (_nan_where_empty(counts, values) for values in (f_score, split, merge))
    return _v_score(*parts, is_official=is_official)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and 1 where the whole is nothing."""
    is_zero = whole < _NO_ENTROPY
    return np.where(is_zero, 1.0, part / np.where(is_zero, 1, whole))


def _v_score(
    f_score: np.ndarray, split: np.ndarray, merge: np.ndarray, *, is_official: bool
) -> VScore:
    """Average the slices: those without truth count 0 officially, and not at all otherwise."""
    if is_official:
        f_score, split, merge = (np.nan_to_num(values) for values in (f_score, split, merge))
    return VScore(
        thresholds=THRESHOLDS,
        per_threshold=np.nanmean(f_score, axis=0),
        per_slice=f_score,
        split=np.nanmean(split, axis=0),
        merge=np.nanmean(merge, axis=0),
        split_per_slice=split,
        merge_per_slice=merge,
    )
