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
    """A figure at every threshold.

    Attributes
    ----------
    thresholds : tuple of float
    per_threshold : ndarray of float64, shape (thresholds,)
        The figure of the whole stack.
    per_slice : ndarray of float64, shape (slices, thresholds)
        The same figure of each slice alone; NaN where a slice has none (no cell in the truth).
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

    Attributes
    ----------
    true_positives, false_positives, false_negatives : ndarray of int64, (slices, thresholds)
        Pixels; positive = cell interior.
    n_pixels : int
        Pixels of one slice.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    n_pixels: int

    @property
    def accuracy_per_slice(self) -> np.ndarray:
        """Share of rightly classified pixels of each slice, shape (slices, thresholds)."""
        return 1 - (self.false_positives + self.false_negatives) / self.n_pixels

    @property
    def accuracy_per_threshold(self) -> np.ndarray:
        """Share of rightly classified pixels of the stack, shape (thresholds,)."""
        wrong = (self.false_positives + self.false_negatives).sum(axis=0)
        return 1 - wrong / (self.n_pixels * len(self.false_positives))

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

    Attributes
    ----------
    precision, recall : ndarray of float64, shape (thresholds,)
        Of the pairs of pixels that the proposal joins, the share the truth joins, which falls
        with mergers; of the pairs the truth joins, the share the proposal joins, which falls
        with splits.
    """

    precision: np.ndarray
    recall: np.ndarray


@dataclass(frozen=True, eq=False)
class WarpingError(Curve):
    """(splits + mergers) per pixel, and all six classes of topological errors.

    Attributes
    ----------
    splits, mergers, hole_additions, hole_deletions, object_additions, object_deletions : ndarray
        Pixels of the class in the whole stack, int64, shape (thresholds,).
    splits_per_slice, mergers_per_slice : ndarray of int64, shape (slices, thresholds)
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
    """One slice at one threshold after warping.

    Attributes
    ----------
    warped : ndarray of bool, shape (height, width)
        The truth as far as it could be warped towards the proposal.
    classes : ndarray of uint8, shape (height, width)
        The `WarpingClass` of each pixel where the two still differ, 0 elsewhere.
    """

    warped: np.ndarray
    classes: np.ndarray


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
        for name, curve in self._curves().items():
            figures[name] = curve.best
            figures[f"{name}_threshold"] = curve.best_threshold
        figures["pixel_accuracy"] = self.pixel_error.accuracy
        figures["pixel_accuracy_threshold"] = self.pixel_error.accuracy_threshold
        figures["pixel_accuracy_at_half"] = self.pixel_error.accuracy_at_half
        return figures

    def curves_as_dict(self) -> dict[str, list[float]]:
        """Return every figure per threshold as lists, ready for JSON and for plotting.

        The keys of `as_dict` without thresholds, and beside them the errors of each class
        (`splits`, `mergers`, …) and the parts (`v_rand_split`, `v_rand_merge`, `v_info_split`,
        `v_info_merge`). `thresholds` has one value more than the lists of the warping error.
        """
        curves = {name: curve.per_threshold for name, curve in self._curves().items()}
        curves["pixel_accuracy"] = self.pixel_error.accuracy_per_threshold
        for kind in WarpingClass:
            name = f"{kind.name.lower()}s"
            curves[name] = getattr(self.warping_error, name)
        for name, score in (("v_rand", self.v_rand), ("v_info", self.v_info)):
            curves[f"{name}_split"] = score.split
            curves[f"{name}_merge"] = score.merge
        lists = {name: values.tolist() for name, values in curves.items()}
        return {"thresholds": list(self.pixel_error.thresholds), **lists}

    def _curves(self) -> dict[str, Curve]:
        return {
            "pixel_error": self.pixel_error,
            "rand_error": self.rand_error,
            "warping_error": self.warping_error,
            "v_rand": self.v_rand,
            "v_info": self.v_info,
        }
