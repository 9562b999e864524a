"""The part of a run's report on more than two classes: figures, confusion matrix, pictures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from unet_repro.reports import drawing
from unet_repro.reports.class_evaluation import (
    MEANING,
    OF_CLASS,
    accuracy,
    confusion_rows,
    figure_rows,
)
from unet_repro.reports.evaluation import is_number
from unet_repro.reports.page import best_median_worst, render
from unet_repro.reports.run_folder import RunFolder

_LEGEND_CLASSES = 24  # more are not told apart by their colours


def class_section(run: RunFolder) -> Markup:
    """Render the section of a run of more than two classes; nothing where it has no such figures.

    The confusion matrix is shaded by the share of each class of the labels.
    """
    found = run.class_evaluation()
    if not found:
        return Markup("")
    n_classes = len(found["confusion"])
    colours = [f"#{bytes(colour).hex()}" for colour in drawing.class_colours(n_classes)]
    return render(
        "classes.html",
        accuracy=accuracy(found),
        mean=dict(zip(OF_CLASS, figure_rows(found)[-1][1:])),
        names=list(OF_CLASS.values()),
        rows=figure_rows(found),
        matrix=list(zip(confusion_rows(found), _shares(found["confusion"]))),
        legend=list(enumerate(colours[:-1]))[:_LEGEND_CLASSES],
        meaning=" ".join(MEANING),
        shown=_shown(run, found),
    )


def _shares(confusion: list[list[Any]]) -> list[list[float]]:
    """Return each count as a share of its row, 0 where the row is empty."""
    return [[count / (sum(row) or 1) for count in row] for row in confusion]


def _shown(run: RunFolder, found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of the best, the median and the worst held-out slice, or of fewer."""
    image, labels, prediction = run.image, run.labels, run.prediction
    if image is None or labels is None or prediction is None:
        return []
    rows = found["slices"]
    order = sorted(range(len(rows)), key=lambda z: _quality(rows[z]))
    n_classes = len(found["confusion"])
    return [
        {
            "title": f"{word} slice: {rows[z]['slice']}",
            "accuracy": accuracy({"figures": rows[z]}),
            **_panels(image[z], labels[z], prediction[z], n_classes),
        }
        for z, word in best_median_worst(order).items()
    ]


def _quality(row: dict[str, Any]) -> float:
    value = row.get("pixel_accuracy")
    return value if is_number(value) else -math.inf


def _panels(
    image: np.ndarray, labels: np.ndarray, prediction: np.ndarray, n_classes: int
) -> dict[str, Any]:
    is_wrong = (labels != prediction) & (labels < n_classes)
    window = drawing.worst_window(is_wrong)
    height, width = labels[window].shape
    panels = [
        ("image", drawing.as_picture(image)),
        ("labels", drawing.coloured_classes(labels, n_classes)),
        ("prediction", drawing.coloured_classes(prediction, n_classes)),
        ("wrong pixels, white", 255 * is_wrong.astype(np.uint8)),
    ]
    return {
        "panels": [(title, drawing.png_uri(pixels[window])) for title, pixels in panels],
        "width": width,
        "height": height,
        "crop": drawing.crop_note(window, labels.shape),
    }
