"""What the functions of `em_challenge` return: figures over the thresholds, and the best ones."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import numpy as np

from unet_repro.metrics import _warping


class WarpingClass(IntEnum):
    """Kinds of topological error, with the numbers that `warping_map` draws them by."""

    MERGER = _warping.MERGER
    SPLIT = _warping.SPLIT
    HOLE_ADDITION = _warping.HOLE_ADDITION
    OBJECT_DELETION = _warping.OBJECT_DELETION
    OBJECT_ADDITION = _warping.OBJECT_ADDITION
    HOLE_DELETION = _warping.HOLE_DELETION


@dataclass(frozen=True, eq=False)
class Curve:
    """A figure at every threshold: of the stack (thresholds,), of each slice (slices, thresholds).

    Both are float64; `per_slice` is NaN where a slice has no figure (no cell in the truth).
    """

    thresholds: tuple[float, ...]
    per_threshold: np.ndarray
    per_slice: np.ndarray

    is_lower_better: ClassVar[bool] = True

    @property
    def best_index(self) -> int:
        """Index of the best threshold, the lowest of equally good ones; a NaN never wins."""
        values = self.per_threshold if self.is_lower_better else -self.per_threshold
        return int(np.argmin(np.where(np.isnan(values), np.inf, values)))

    @property
    def best(self) -> float:
        """The best value over the thresholds of the whole stack's value."""
        return float(self.per_threshold[self.best_index])

    @property
    def best_threshold(self) -> float:
        """The threshold of the best value."""
        return self.thresholds[self.best_index]

    @property
    def per_slice_at_best(self) -> np.ndarray:
        """The figure of each slice at the stack's best threshold, shape (slices,)."""
        return self.per_slice[:, self.best_index]


@dataclass(frozen=True, eq=False)
class PixelError(Curve):
    """1 − F of the interior pixels, and the plain accuracy beside it.

    The counts of pixels (positive: cell interior) are int64, shape (slices, thresholds);
    `n_pixels` is the number of known pixels of each slice, shape (slices,).
    """

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    n_pixels: np.ndarray

    @property
    def accuracy_per_slice(self) -> np.ndarray:
        """Share of rightly classified pixels of each slice, shape (slices, thresholds)."""
        wrong = self.false_positives + self.false_negatives
        return 1 - wrong / self.n_pixels[:, np.newaxis]

    @property
    def accuracy_per_threshold(self) -> np.ndarray:
        """Share of rightly classified pixels of the stack, shape (thresholds,)."""
        wrong = (self.false_positives + self.false_negatives).sum(axis=0)
        return 1 - wrong / self.n_pixels.sum()

    @property
    def accuracy(self) -> float:
        """The highest accuracy of the stack over the thresholds."""
        return float(self.accuracy_per_threshold.max())

    @property
    def accuracy_threshold(self) -> float:
        """The lowest threshold of the highest accuracy."""
        return self.thresholds[int(self.accuracy_per_threshold.argmax())]

    @property
    def accuracy_at_half(self) -> float:
        """The accuracy of the stack at threshold 0.5."""
        return float(self.accuracy_per_threshold[self.thresholds.index(0.5)])


@dataclass(frozen=True, eq=False)
class RandError(Curve):
    """1 − F of the foreground-restricted Rand index.

    Of the pairs of pixels that the proposal joins, precision is the share the truth joins (it falls
    with mergers); of those the truth joins, recall is the share the proposal joins (with splits).
    Float64, shape (thresholds,).
    """

    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, eq=False)
class WarpingError(Curve):
    """(splits + mergers) per pixel, and all six classes of topological errors.

    Pixels of each class, int64, of the stack (thresholds,), of a slice (slices, thresholds).
    """

    splits: np.ndarray
    mergers: np.ndarray
    hole_additions: np.ndarray
    hole_deletions: np.ndarray
    object_additions: np.ndarray
    object_deletions: np.ndarray
    splits_per_slice: np.ndarray
    mergers_per_slice: np.ndarray


@dataclass(frozen=True, eq=False)
class VScore(Curve):
    """V_rand or V_info with its split and merge parts.

    Attributes
    ----------
    split : ndarray of float64, shape (thresholds,)
        Mean over the slices of the part that falls when cells are split, 1 without any split.
        V_rand: Σ c_ij² / Σ a_i², the recall of pixel pairs. V_info: I / H(proposal).
    merge : ndarray of float64, shape (thresholds,)
        Mean over the slices of the part that falls when cells are merged, 1 without any merger.
        V_rand: Σ c_ij² / Σ b_j², the precision of pixel pairs. V_info: I / H(truth).
    split_per_slice, merge_per_slice : ndarray of float64, shape (slices, thresholds)

    Notes
    -----
    A slice's score is the harmonic mean of its two parts. The score of the stack is the mean of
    the slices' scores, and so not exactly the harmonic mean of the parts of the stack.
    """

    split: np.ndarray
    merge: np.ndarray
    split_per_slice: np.ndarray
    merge_per_slice: np.ndarray

    is_lower_better: ClassVar[bool] = False


@dataclass(frozen=True, eq=False)
class WarpingMap:
    """One slice at one threshold after warping."""

    warped: np.ndarray  # bool (height, width): the truth, as far as it could be warped
    classes: np.ndarray  # uint8: the `WarpingClass` where the two still differ, 0 elsewhere


@dataclass(frozen=True, eq=False)
class EMChallengeMetrics:
    """The five figures of the EM challenge, each with its curve over the thresholds."""

    pixel_error: PixelError
    rand_error: RandError
    warping_error: WarpingError
    v_rand: VScore
    v_info: VScore

    def as_dict(self) -> dict[str, float]:
        """Return every best value and its threshold, ready for JSON.

        The keys are `pixel_error`, `rand_error`, `warping_error`, `v_rand`, `v_info` and
        `pixel_accuracy`, each also with `_threshold` appended, and `pixel_accuracy_at_half`.
        """
        figures: dict[str, float] = {}
        for name, curve in vars(self).items():
            figures[name] = curve.best
            figures[f"{name}_threshold"] = curve.best_threshold
        figures["pixel_accuracy"] = self.pixel_error.accuracy
        figures["pixel_accuracy_threshold"] = self.pixel_error.accuracy_threshold
        figures["pixel_accuracy_at_half"] = self.pixel_error.accuracy_at_half
        return figures

    def curves_as_dict(self) -> dict[str, list[float]]:
        """Return every figure per threshold as lists, ready for JSON and for plotting.

        The keys of `as_dict` without thresholds, the errors of each class (`splits`, …), the parts
        (`v_rand_split`, …). `thresholds` has one value more than the lists of the warping error.
        """
        curves = {name: curve.per_threshold for name, curve in vars(self).items()}
        curves["pixel_accuracy"] = self.pixel_error.accuracy_per_threshold
        for kind in WarpingClass:
            name = f"{kind.name.lower()}s"
            curves[name] = getattr(self.warping_error, name)
        for name, score in (("v_rand", self.v_rand), ("v_info", self.v_info)):
            curves[f"{name}_split"] = score.split
            curves[f"{name}_merge"] = score.merge
        lists = {name: values.tolist() for name, values in curves.items()}
        return {"thresholds": list(self.pixel_error.thresholds), **lists}
