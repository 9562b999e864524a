"""Evaluate a segmentation into several classes: figures of each, confusion matrix; JSON, text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from unet_repro import metrics
from unet_repro.errors import InputError
from unet_repro.images.labels import as_integers
from unet_repro.images.slices import Slices, joined, pieces
from unet_repro.reports.evaluation import aligned, is_number, table

OF_CLASS = {"iou": "IoU", "dice": "Dice", "accuracy": "accuracy"}  # figures of each class
MEANING = (
    "IoU: pixels of the class in labels and prediction, as a share of those in either.",
    "Dice: twice those, as a share of the sum of both. Accuracy: the share of a class's pixels",
    "that are found. Means are over the classes that occur in the labels.",
)
_MOST_CLASSES = 256


def evaluate_classes(
    labels: Slices,
    prediction: Slices,
    *,
    n_classes: int,
    known: Slices | None = None,
    numbers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Compute the figures of several classes, ready for JSON.

    Parameters
    ----------
    labels, prediction, n_classes, known
        As for `metrics.confusion_matrix`.
    numbers : sequence of int, optional
        Those of the slices in the stack that they were cut from; by default 0, 1, 2, ...

    Returns
    -------
    dict
        ``figures``: those of `metrics.class_figures`; ``confusion``: rows of counts, one for each
        class of the labels; ``slices``: the figures over all classes of each slice. What is not
        defined is None.

    Raises
    ------
    InputError
        As `metrics.confusion_matrix`; no pixel is known.
    """
    if len(labels) != len(prediction):
        raise InputError(
            f"there are {len(labels)} slices of labels and {len(prediction)} of the prediction"
        )
    each = []
    for z in range(len(labels)):
        one = slice(z, z + 1)
        is_known = None if known is None else known[one]
        each.append(
            metrics.confusion_matrix(
                labels[one], prediction[one], n_classes=n_classes, known=is_known
            )
        )
    confusion = np.sum(each, axis=0)
    if not confusion.any():
        raise InputError("every pixel of the labels is unknown: there is nothing to compare")
    names = (*(f"mean_{name}" for name in OF_CLASS), "pixel_accuracy")
    slices = []
    for number, of_slice in zip(numbers or range(len(each)), each):
        figures = metrics.class_figures(of_slice)
        slices.append({"slice": number, **{name: figures[name] for name in names}})
    return {
        "figures": metrics.class_figures(confusion),
        "confusion": confusion.tolist(),
        "slices": slices,
    }


def predicted_classes(prediction: Slices, full_scale: float | None) -> Slices:
    """Return a prediction as classes; `InputError` where it holds something else.

    `full_scale` is the value that stands for P = 1 in it, where that is known.
    """
    if full_scale not in (None, 1.0):
        raise InputError(
            f"the prediction holds probabilities, of which {full_scale:g} is 1: classes are "
            "needed, as predict --kind labels writes them"
        )
    classes = joined([as_integers(one, "the prediction's values") for one in prediction])
    low = min(int(piece.min()) for piece in pieces(classes))
    high = max(int(piece.max()) for piece in pieces(classes))
    if low < 0 or high >= _MOST_CLASSES:
        raise InputError(
            f"the prediction holds {low} ... {high}: classes 0 ... {_MOST_CLASSES - 1} are needed, "
            "as predict --kind labels writes them"
        )
    return classes


def is_class_evaluation(value: Any) -> bool:
    """Tell whether what JSON holds is a result of `evaluate_classes`, safe to show."""
    if not isinstance(value, dict) or not isinstance(value.get("figures"), dict):
        return False
    confusion, slices = value.get("confusion"), value.get("slices")
    return (
        isinstance(confusion, list)
        and 2 <= len(confusion) <= _MOST_CLASSES
        and all(isinstance(row, list) and len(row) == len(confusion) for row in confusion)
        and all(is_number(count) and count >= 0 for row in confusion for count in row)
        and isinstance(slices, list)
        and len(slices) > 0
        and all(isinstance(row, dict) and "slice" in row for row in slices)
    )


def figure_rows(evaluation: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each class, and that of the means: name, figures, pixels in the labels."""
    figures, confusion = evaluation["figures"], evaluation["confusion"]
    rows = []
    for k, counts in enumerate(confusion):
        values = (_text(figures.get(f"{name}_{k}")) for name in OF_CLASS)
        rows.append((f"class {k}", *values, f"{sum(counts):,}"))
    means = (_text(figures.get(f"mean_{name}")) for name in OF_CLASS)
    rows.append(("mean", *means, f"{sum(map(sum, confusion)):,}"))
    return rows


def accuracy(evaluation: dict[str, Any]) -> str:
    """Return the share of pixels that are called rightly, as text."""
    return _text(evaluation["figures"].get("pixel_accuracy"))


def confusion_rows(evaluation: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the confusion matrix as text, classes of the labels downwards."""
    return [
        (f"class {k}", *(f"{count:,}" for count in counts))
        for k, counts in enumerate(evaluation["confusion"])
    ]


def table_of(evaluation: dict[str, Any]) -> str:
    """Return the figures of any evaluation as text tables."""
    return class_table(evaluation) if "confusion" in evaluation else table(evaluation)


def class_table(evaluation: dict[str, Any]) -> str:
    """Return the figures and the confusion matrix as text tables."""
    head = ("", *OF_CLASS.values(), "pixels")
    classes = range(len(evaluation["confusion"]))
    return "\n".join(
        [
            *aligned([head, *figure_rows(evaluation)]),
            "",
            f"pixel accuracy {accuracy(evaluation)}",
            "",
            *aligned([("predicted as", *map(str, classes)), *confusion_rows(evaluation)]),
            "",
            *MEANING,
        ]
    )


def _text(value: Any) -> str:
    return f"{value:.4f}" if is_number(value) else "–"
