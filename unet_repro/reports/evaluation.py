"""Evaluate a segmentation: the figures beside the paper's (Sec. 4), as JSON, text and plot."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from unet_repro import metrics
from unet_repro.config import TABLE_1, TABLE_2
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import read_meaning
from unet_repro.images.slices import Slices, joined, mapped, pieces
from unet_repro.reports import drawing

_CELL_THRESHOLD = 0.5
LARGEST = 1e30  # beyond any figure, count or duration; axes overflow near 1e308
# V_rand and V_info after thinning, of the leaderboard that followed Table 1; not in the paper
LEADERBOARD = {"u-net": {"v_rand": 0.97276, "v_info": 0.98662}}


@dataclass(frozen=True)
class FigureOfMerit:
    """One of the figures: how it is called, which way is better, and what it says."""

    key: str
    name: str
    is_lower_better: bool
    decimals: int
    meaning: str

    @property
    def better(self) -> str:
        """Return the direction that is better: lower or higher."""
        return "lower" if self.is_lower_better else "higher"

    def format(self, value: float | None) -> str:
        """Return the value with its digits, an en dash if there is none."""
        return f"{value:.{self.decimals}f}" if is_number(value) else "–"

    def published(self, group: str) -> float | None:
        """Return what a group reached on the hidden test set, or None if that is not known."""
        if group in TABLE_1 and self.key in _TABLE_1_COLUMNS:
            return TABLE_1[group][_TABLE_1_COLUMNS.index(self.key)]
        return LEADERBOARD.get(group, {}).get(self.key)


_TABLE_1_COLUMNS = ("warping_error", "rand_error", "pixel_error")

EM_FIGURES = (
    FigureOfMerit(
        "v_rand",
        "V_rand",
        False,
        4,
        "Pairs of pixels: are those of one cell kept together, those of two cells apart? Membranes "
        "are thinned to lines first, so their width hardly matters; mean of the slices.",
    ),
    FigureOfMerit(
        "v_info",
        "V_info",
        False,
        4,
        "The same question in terms of information: how much does a segment tell about the true "
        "cell, and the cell about the segment? Thinned, mean of the slices.",
    ),
    FigureOfMerit(
        "pixel_error",
        "pixel error",
        True,
        4,
        "1 − F-score of telling cell interior from membrane, pixel by pixel. It depends on how "
        "wide the membranes are drawn, which experts do not agree on.",
    ),
    FigureOfMerit(
        "rand_error",
        "Rand error",
        True,
        4,
        "Like V_rand (1 − F-score of pixel pairs, all slices together), but without thinning: it "
        "depends on the width of the membranes too.",
    ),
    FigureOfMerit(
        "warping_error",
        "warping error",
        True,
        6,
        "Share of pixels where cells are split or merged however far the truth is bent towards "
        "the segmentation. Cells that vanish cost nothing: distrust it at an extreme threshold.",
    ),
    FigureOfMerit(
        "pixel_accuracy",
        "pixel accuracy",
        False,
        4,
        "Share of pixels that are called rightly. Calling everything cell interior already gives "
        "the interior's share of the image, about 0.78 on the EM data.",
    ),
)
CELL_FIGURES = (
    FigureOfMerit("iou", "IOU", False, 4, "Mean overlap of cells with their segments (Table 2)."),
    FigureOfMerit("seg", "SEG", False, 4, "The same by the Cell Tracking Challenge's rules."),
)


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value read from JSON is a number that a figure can be, and a plot can show."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) <= LARGEST


def evaluate_em(
    labels: Slices,
    probability: Slices,
    *,
    known: Slices | None = None,
    numbers: Sequence[int] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compute the EM challenge's figures of a stack, ready for JSON.

    Parameters
    ----------
    labels : ndarray of integer, shape (z, y, x), or sequence of (y, x)
        0 = membrane; anything above = cell interior.
    probability : ndarray of float, same shape
        P(cell interior) in [0, 1].
    known : ndarray of bool, same shape, optional
        Where the labels are known; the other pixels count for nothing.
    numbers : sequence of int, optional
        The number of each slice in the stack that it was taken from; by default 0, 1, ...

    Returns
    -------
    dict
        ``figures``: best values and their thresholds; ``curves``: each figure per threshold (the
        warping error has one threshold fewer); ``slices``: the figures of each slice at the best
        thresholds of the stack. What is not defined is None.

    Raises
    ------
    InputError
        As `unet_repro.metrics.em_challenge_metrics`.
    """
    result = metrics.em_challenge_metrics(labels, probability, known=known, progress=progress)
    figures = result.as_dict()
    curves = result.curves_as_dict()
    at_accuracy = curves["thresholds"].index(figures["pixel_accuracy_threshold"])
    columns = {m.key: getattr(result, m.key).per_slice_at_best for m in EM_FIGURES[:-1]}
    columns["pixel_accuracy"] = result.pixel_error.accuracy_per_slice[:, at_accuracy]
    slices = [
        {"slice": number, **{key: jsonable(column[z]) for key, column in columns.items()}}
        for z, number in enumerate(numbers or range(len(result.v_rand.per_slice)))
    ]
    return {
        "figures": {key: jsonable(value) for key, value in figures.items()},
        "curves": {key: [jsonable(v) for v in values] for key, values in curves.items()},
        "slices": slices,
    }


def evaluate_cells(
    labels: Slices, prediction: Slices, *, known: Slices | None = None
) -> dict[str, Any]:
    """Compute ``{"figures": {"iou", "seg"}}`` (Table 2) of instances, ready for JSON.

    Instance numbers, (z, y, x) or (y, x) or a list of (y, x), 0 = background; errors as in
    `unet_repro.metrics.seg`. Pixels that are not `known` (bool) count for nothing.
    """
    if known is not None:
        labels, prediction = (mapped(_masked, known, one) for one in (labels, prediction))
    figures = {
        "iou": jsonable(metrics.iou(labels, prediction)),
        "seg": jsonable(metrics.seg(labels, prediction)),
    }
    return {"figures": figures}


def _masked(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.where(known, ids, 0)


def as_probability(prediction: Slices, full_scale: float | None) -> Slices:
    """Return P(interior) as floats in [0, 1], of values in which `full_scale` stands for 1.

    `InputError`: integers without a full scale, values beyond it.
    """
    low = min(float(piece.min()) for piece in pieces(prediction))
    high = max(float(piece.max()) for piece in pieces(prediction))
    if full_scale is None:
        if prediction[0].dtype.kind != "f":
            raise InputError(
                f"the prediction is {prediction[0].dtype}, {low:g} ... {high:g}: P(interior) in "
                "[0, 1] is needed; --max-value says which value stands for 1 (255 of an 8-bit "
                "image, 1 of 0/1 labels)"
            )
        full_scale = 1.0
    if not 0 < full_scale < math.inf:
        raise InputError(f"--max-value is {full_scale:g}: a finite number above 0 is needed")
    if not 0 <= low <= high <= full_scale:  # NaN is neither
        raise InputError(
            f"the prediction holds {low:g} ... {high:g}, which is not in 0 ... {full_scale:g} "
            "(--max-value says which value stands for P = 1)"
        )
    return mapped(lambda values: (values / full_scale).astype(np.float32), prediction)


def predicted_cells(
    prediction: Slices, full_scale: float | None, *, are_ids: bool = False
) -> tuple[Slices, str]:
    """Return a prediction's cells, int (z, y, x), 0 = background, and in words how it was read.

    Floating-point values, and integers of which `full_scale` stands for 1, are P(interior): cells
    are the 4-connected components of what is above 0.5. Other integers are ids, or a mask,
    unless it is known that they `are_ids`.
    """
    if full_scale is None and prediction[0].dtype.kind != "f":
        try:
            reading = read_meaning(prediction, LabelSettings("ids" if are_ids else "auto"))
        except InputError as error:
            raise InputError(
                f"the prediction: {error}; of P(interior), --max-value says which value is 1"
            ) from error
        return joined([reading.cells(slice_) for slice_ in prediction]), reading.line()
    interior = mapped(lambda p: p > _CELL_THRESHOLD, as_probability(prediction, full_scale))
    reading = read_meaning(interior)
    line = f"P(interior), cells where it is above {_CELL_THRESHOLD}: {reading.line()}"
    return joined([reading.cells(slice_) for slice_ in interior]), line


def jsonable(value: Any) -> float | int | None:
    number = value.item() if hasattr(value, "item") else value
    return number if is_number(number) else None


def worst_first(slices: list[dict[str, Any]]) -> list[int]:
    """Return the order of slices from the worst V_rand, or none, to the best; ties by accuracy."""

    def quality(position: int) -> tuple[float, ...]:
        row = slices[position]
        values = (row.get("v_rand"), row.get("pixel_accuracy"))
        return tuple(value if is_number(value) else -math.inf for value in values)

    return sorted(range(len(slices)), key=quality)


def remark(*, is_test_set: bool = False) -> str:
    """Say in one plain sentence or two how far the figures compare with the paper's."""
    if is_test_set:
        return (
            "These are the challenge's own test slices and labels: the figures compare directly "
            "with the published ones."
        )
    return (
        "Published figures are of the challenge's hidden test set; these labels are not that set "
        "(for instance held-out training slices), so the columns stand side by side for "
        "orientation and are not directly comparable."
    )


def table(evaluation: dict[str, Any], *, is_test_set: bool = False) -> str:
    """Return the figures as a text table, the paper's u-net and the human values beside them.

    Where `is_test_set`, the labels are the challenge's own, so that figures compare directly.
    """
    figures = evaluation["figures"]
    if "iou" in figures:
        return _cell_table(figures)
    rows = [("figure", "value", "threshold", "u-net 2015", "human", "better")]
    for merit in EM_FIGURES:
        best_at = figures.get(f"{merit.key}_threshold")
        rows.append(
            (
                merit.name,
                merit.format(figures.get(merit.key)),
                f"{best_at:.1f}" if is_number(best_at) else "–",
                format_published(merit, "u-net"),
                format_published(merit, "human values"),
                merit.better,
            )
        )
    at_half = EM_FIGURES[-1].format(figures.get("pixel_accuracy_at_half"))
    rows.append(("pixel accuracy at 0.5", at_half, "0.5", "–", "–", "higher"))
    parts = breakdown(evaluation)
    notes = [
        *([parts] if parts else []),
        "value: the best over the thresholds, chosen on these very slices, as the challenge does.",
        "u-net 2015: Table 1 of the paper; V_rand and V_info: a later leaderboard.",
        remark(is_test_set=is_test_set),
    ]
    return "\n".join([*aligned(rows), "", *notes])


def breakdown(evaluation: dict[str, Any]) -> str:
    """Say in one line what the errors are, splits or mergers; empty if the curves lack it."""
    curves, figures = evaluation["curves"], evaluation["figures"]

    def at_best(key: str, curve: str) -> Any:
        threshold = figures.get(f"{key}_threshold")
        values = dict(zip(curves["thresholds"], curves.get(curve, [])))
        return values.get(threshold)

    split, merge = at_best("v_rand", "v_rand_split"), at_best("v_rand", "v_rand_merge")
    splits, mergers = at_best("warping_error", "splits"), at_best("warping_error", "mergers")
    if not all(map(is_number, (split, merge, splits, mergers))):
        return ""
    return (
        f"Split part of V_rand {split:.4f} (it falls with split cells), merge part {merge:.4f} "
        f"(with merged cells); the warping error counts {splits:,} split and {mergers:,} merger "
        "pixels. Each at the figure's best threshold."
    )


def format_published(merit: FigureOfMerit, group: str) -> str:
    """Return a published figure with the digits it was published with, an en dash if none."""
    value = merit.published(group)
    if value is None:
        return "–"
    return f"{value:.5f}" if merit.key in LEADERBOARD["u-net"] else merit.format(value)


def _cell_table(figures: dict[str, Any]) -> str:
    rows = [("figure", "value", "better")]
    rows += [(m.name, m.format(figures.get(m.key)), m.better) for m in CELL_FIGURES]
    published = ", ".join(f"{name} {value:.4f}" for name, value in TABLE_2.items())
    notes = [
        f"IOU of the paper's u-net (Table 2): {published}.",
        "Those are of the challenge's hidden test sequences: only a figure of the same frames "
        "compares directly.",
    ]
    return "\n".join([*aligned(rows), "", *notes])


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a text table: a head, a rule and rows; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return lines


def threshold_line(evaluation: dict[str, Any], key: str) -> drawing.Line:
    """Return one figure of an `evaluate_em` result over the thresholds, ready for drawing."""
    values = [v if is_number(v) else math.nan for v in evaluation["curves"].get(key, [])]
    figures = evaluation["figures"]
    best = (figures.get(f"{key}_threshold"), figures.get(key))
    return drawing.Line(
        x=evaluation["curves"]["thresholds"][: len(values)],
        y=values,
        best=best if all(map(is_number, best)) else None,
    )


def plot_evaluation(
    labels: Slices,
    probability: Slices,
    evaluation: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Draw the figures over the thresholds, and the errors on the worst slice, as a PNG.

    `InputError`: the evaluation is of another number of slices, or the file cannot be written.
    """
    slices = evaluation["slices"]
    if len(slices) != len(labels):
        raise InputError(f"the evaluation is of {len(slices)} slices, the labels of {len(labels)}")
    figure = Figure(figsize=(15, 8.4), dpi=120, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)  # inches
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1), squeeze=False)[0]
    for axes, merit in zip(left.subplots(3, 2).flat, EM_FIGURES):
        drawing.draw_over_thresholds(
            axes, {"": threshold_line(evaluation, merit.key)}, is_error=merit.is_lower_better
        )
        best = merit.format(evaluation["figures"][merit.key])
        axes.set_title(f"{merit.name}: {best} ({merit.better} is better)", loc="left", fontsize=10)
    worst = worst_first(slices)[0]
    threshold = evaluation["figures"]["v_rand_threshold"]
    axes = right.subplots()
    overlay = drawing.error_overlay(labels[worst], probability[worst], threshold, image=None)
    axes.imshow(overlay, interpolation="nearest")
    axes.set_axis_off()
    v_rand = EM_FIGURES[0].format(slices[worst]["v_rand"])
    axes.set_title(
        f"worst slice: {slices[worst]['slice']} (V_rand {v_rand}), threshold {threshold:.1f}"
    )
    patches = [Patch(color=colour, label=name) for name, colour in drawing.ERROR_COLOURS.items()]
    right.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False)
    with atomic_path(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format="png")
