"""The figures of the EM challenge 2012: Table 1 of the paper, and V_rand and V_info of 2015.

They follow the evaluation program that the challenge's organisers published. Arguments and errors
of all are those of `em_challenge_metrics`.
"""

from typing import Any, Literal

from unet_repro.errors import InputError
from unet_repro.metrics._checks import checked_stacks
from unet_repro.metrics._figures import (
    pixel_figures,
    rand_figures,
    v_info_figures,
    v_rand_figures,
    warping_figures,
)
from unet_repro.metrics._tally import Tally, tally
from unet_repro.metrics.results import (
    EMChallengeMetrics,
    PixelError,
    RandError,
    VScore,
    WarpingError,
)

Degenerate = Literal["sensible", "official"]


def em_challenge_metrics(
    labels: Any,
    probability: Any,
    *,
    known: Any = None,
    degenerate: Degenerate = "sensible",
    progress: bool = False,
    workers: int | None = None,
) -> EMChallengeMetrics:
    """Compute the five figures of the EM challenge at every threshold, in one pass.

    Parameters
    ----------
    labels : array_like of int or bool, shape (z, y, x) or (y, x), or sequence of arrays (y, x)
        The truth: above 0 is cell interior, 0 is membrane. Instance ids and 0/255 masks give the
        same figures: the objects are the 4-connected components of the interior in each slice.
        Slices in a sequence may differ in size: counts and pixels are summed over them, and each
        is one term in the means of V_rand and V_info.
    probability : same shape, of float
        The proposal: P(cell interior) in [0, 1], taken as float32 as in a submission.
    known : same shape, of bool, optional
        False where the truth is unknown: such pixels are background in both, and are not counted.
        Not in the paper, nor in the challenge, where every pixel is known.
    degenerate : {"sensible", "official"}
        What to do where the official program's answer is an accident of its making; see Notes.
    progress : bool
        Whether to show a progress bar on standard error.
    workers : int, optional
        Threads; by default one for each core this process may use.

    Raises
    ------
    InputError
        For shapes that differ, an empty stack, other than 2 or 3 dimensions, labels that are not
        integers, are negative or of a single class, a proposal that is not floating-point, has
        NaN or leaves [0, 1].

    Notes
    -----
    A pixel is interior where its probability is strictly above the threshold, compared in
    float64. `THRESHOLDS` are added up in steps of 0.1 as the official program does, so that the
    fourth is 0.30000000000000004. The warping error leaves the last one out. Each figure is the
    best over the thresholds of the value of the whole stack.

    With `degenerate="official"` every value is the official program's. Two are not sensible, and
    differ by default:

    - A slice without any cell in the truth has no V_rand or V_info. The official program counts
      0 for it, and its Rand error is 1 for the whole stack, precision and recall NaN. By default
      such a slice is left out of the means and sums.
    - In a slice whose truth is all cell, the official program loses every object before it
      classifies the warping errors, and calls all of them object additions. By default they are
      classified like those of any other slice.

    Figures of held-out training slices are not those of the challenge's hidden test set.

    Memory beyond the inputs is that of some slices, not of the stack (a float64 proposal is first
    copied to float32).

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.ones((1, 20, 20), np.uint8)
    >>> labels[:, :, 10] = 0
    >>> figures = em_challenge_metrics(labels, labels.astype(np.float32)).as_dict()
    >>> figures["rand_error"], figures["v_rand"], figures["v_rand_threshold"]
    (0.0, 1.0, 0.0)
    """
    parts = frozenset({"pixels", "objects", "thinned", "warping"})
    counts = _count(labels, probability, parts, degenerate, progress, workers, known=known)
    is_official = degenerate == "official"
    return EMChallengeMetrics(
        pixel_error=pixel_figures(counts),
        rand_error=rand_figures(counts, is_official=is_official),
        warping_error=warping_figures(counts),
        v_rand=v_rand_figures(counts, is_official=is_official),
        v_info=v_info_figures(counts, is_official=is_official),
    )


def pixel_error(
    labels: Any, probability: Any, *, progress: bool = False, workers: int | None = None
) -> PixelError:
    """Compute 1 − max F of the interior pixels over the thresholds (lower is better).

    TP, FP and FN are pooled over the slices, F = 2PR/(P + R), P = 1 if FP = 0, R = 1 if FN = 0.
    This is not the share of wrong pixels: that is 1 − `accuracy`, and reported beside it. The
    figure depends on the width of the membranes; flipping or transposing both inputs leaves it.

    Examples
    --------
    One of three interior pixels is missed at every threshold, so P = 1, R = 2/3 and F = 0.8:

    >>> result = pixel_error([[1, 1, 1, 0]], [[1.0, 1.0, 0.0, 0.0]])
    >>> round(result.best, 12), result.best_threshold, result.accuracy
    (0.2, 0.0, 0.75)
    """
    counts = _count(labels, probability, frozenset({"pixels"}), "sensible", progress, workers)
    return pixel_figures(counts)


def rand_error(
    labels: Any,
    probability: Any,
    *,
    degenerate: Degenerate = "sensible",
    progress: bool = False,
    workers: int | None = None,
) -> RandError:
    """Compute 1 − max F of the foreground-restricted Rand index (lower is better).

    Over the n interior pixels of a slice's truth, c_ij counts those of object i in component j of
    the proposal, and z those that the proposal calls background, each a cluster of its own:

        TP = Σ c_ij² + z,    TP + FP = Σ b_j² + z,    TP + FN = Σ a_i²

    with b_j = Σ_i c_ij and a_i the sizes of the objects. The three are summed over the slices;
    F = TP / (½(TP + FP) + ½(TP + FN)). Flipping or transposing both inputs leaves the figure.

    Examples
    --------
    Two cells of two pixels merged into one, by a membrane that was missed: TP = 4 + 4,
    TP + FP = 16, so F = 8 / (8 + 4).

    >>> result = rand_error([[1, 1, 0, 1, 1]], [[1.0, 1.0, 1.0, 1.0, 1.0]])
    >>> round(result.best, 12), float(result.precision[0]), float(result.recall[0])
    (0.333333333333, 0.5, 1.0)
    """
    counts = _count(labels, probability, frozenset({"objects"}), degenerate, progress, workers)
    return rand_figures(counts, is_official=degenerate == "official")


def warping_error(
    labels: Any,
    probability: Any,
    *,
    degenerate: Degenerate = "sensible",
    progress: bool = False,
    workers: int | None = None,
) -> WarpingError:
    """Compute the lowest share of split and merger pixels after warping (lower is better).

    The truth is warped towards the proposal, one pixel after the other, as long as no object or
    hole appears, vanishes, splits or merges. Each pixel where the two still differ is one error
    of one of six classes; the figure counts splits and mergers, per pixel of the stack.

    Notes
    -----
    Vanished cells are object deletions and cost nothing here, so a proposal without any cell can
    beat a real one: read the figure together with its threshold and the other classes.

    The definition is not symmetric. Pixels equally far from the threshold are warped in
    column-major order, so flipping or transposing both inputs may change the figure a little;
    where all these distances differ, the walk and the figure stay the same.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.ones((3, 20, 20), np.uint8)
    >>> labels[:, :, 10] = 0
    >>> missed = np.ones((3, 20, 20))
    >>> missed[1:, :, 10] = 0
    >>> result = warping_error(labels, missed)
    >>> int(result.mergers[0]), int(result.splits[0]), result.best == 20 / (3 * 20 * 20)
    (20, 0, True)
    """
    counts = _count(labels, probability, frozenset({"warping"}), degenerate, progress, workers)
    return warping_figures(counts)


def v_rand(
    labels: Any,
    probability: Any,
    *,
    degenerate: Degenerate = "sensible",
    progress: bool = False,
    workers: int | None = None,
) -> VScore:
    """Compute the highest Rand score after thinning over the thresholds (higher is better).

    The proposal's regions are those of `thinned_labels`, so that the width of its membranes
    hardly matters. The formula is that of `rand_error`; F is computed for each slice, and the
    score at a threshold is the mean over the slices. Flipping or transposing both inputs may change
    it a little, because the dams of the thinning depend on the order of its queue.
    """
    counts = _count(labels, probability, frozenset({"thinned"}), degenerate, progress, workers)
    return v_rand_figures(counts, is_official=degenerate == "official")


def v_info(
    labels: Any,
    probability: Any,
    *,
    degenerate: Degenerate = "sensible",
    progress: bool = False,
    workers: int | None = None,
) -> VScore:
    """Compute the highest information score after thinning (higher is better).

    With I the mutual information of the truth's objects and the thinned proposal's regions over
    the interior pixels of the truth, and H their entropies in nats, the score of a slice is
    2·I / (H(truth) + H(proposal)); that of a threshold is the mean over the slices. Flipping or
    transposing both inputs may change it a little, as with `v_rand`.

    By definition the score of a slice is 0 where either entropy is 0: a slice with a single cell
    scores 0 even if the proposal is perfect. A part whose entropy is 0 is 1.
    """
    counts = _count(labels, probability, frozenset({"thinned"}), degenerate, progress, workers)
    return v_info_figures(counts, is_official=degenerate == "official")


def _count(
    labels: Any,
    probability: Any,
    parts: frozenset[str],
    degenerate: Degenerate,
    progress: bool,
    workers: int | None,
    known: Any = None,
) -> Tally:
    if degenerate not in ("sensible", "official"):
        raise InputError(f'degenerate is {degenerate!r}; give "sensible" or "official"')
    labels, probability, known = checked_stacks(labels, probability, known)
    return tally(
        labels,
        probability,
        known,
        parts=parts,
        is_official=degenerate == "official",
        progress=progress,
        workers=workers,
    )
