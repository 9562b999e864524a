"""Write a run's `report.html` from the files in its folder: one page that opens from disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from scipy import ndimage

from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.slices import pieces
from unet_repro.reports import drawing, evaluation, run_facts
from unet_repro.reports.cell_report import cell_section
from unet_repro.reports.class_report import class_section
from unet_repro.reports.evaluation import EM_FIGURES, is_number
from unet_repro.reports.page import best_median_worst, render
from unet_repro.reports.run_folder import RunFolder, read_run

CHALLENGE_DATA = "ISBI 2012"  # the name under which config.json has the challenge's own stacks
_CHART_INCHES = (3.7, 2.5)


def write_report(run: Path) -> Path:
    """Write `report.html` into a training run's folder, from nothing but the files there.

    `config.json` must be there; `log.csv`, `metrics.json`, the `heldout_*.tif` stacks and
    `model.safetensors` are shown where they exist. Returns the page's path; it refers to no other
    file, and replaces an older page only when it is complete.

    Raises
    ------
    InputError
        If there is no such folder, it is not a run's, one of its files cannot be understood, or
        the page cannot be written.
    """
    try:
        found = read_run(Path(run))
        page = render("report.html", **_content(found))
    except jinja2.TemplateError as error:
        raise InputError(f"{run}: one of its files cannot be understood: {error}") from error
    path = found.folder / "report.html"
    with atomic_path(path, overwrite=True) as temporary:
        # JSON may hold halves of characters, which no encoding has.
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def _content(run: RunFolder) -> dict[str, Any]:
    """Return the template's variables."""
    data, stopped = run.section("data"), run.section("state").get("stopped")
    return {
        "name": str(data.get("name") or "unnamed data"),
        "is_synthetic": bool(data.get("synthetic")),
        "is_partial": stopped in ("running", "interrupted"),
        "stopped": run_facts.how_it_ended(stopped),
        "summary": run_facts.summary(run),
        "cells": cell_section(run.folder, run.metrics) + class_section(run),
        "headline": _headline(run),
        "comparison": _comparison(run),
        "remarks": _remarks(run),
        "breakdown": _breakdown(run),
        "figures": EM_FIGURES,
        "threshold_charts": _threshold_charts(run),
        "training_charts": _training_charts(run.log),
        "slice_tables": _slice_tables(run),
        "shown": _shown_slices(run),
        "error_colours": drawing.ERROR_COLOURS,
        "facts": run_facts.facts(run),
        "settings": run_facts.settings(run.section("settings")),
        "commands": run_facts.commands(run),
        "unlike_preset": run_facts.unlike_preset(run.section("settings")),
    }


def _headline(run: RunFolder) -> dict[str, Any] | None:
    """Return the tiles at the top: the test set's figures if there are any, else the held-out."""
    evaluations = run.evaluations()
    if not evaluations:
        return None
    name = "test set" if "test set" in evaluations else "held-out slices"
    figures = evaluations[name]["figures"]
    tiles = [
        {
            "name": merit.name,
            "value": merit.format(figures.get(merit.key)),
            "arrow": "↓" if merit.is_lower_better else "↑",
            "better": merit.better,
            "published": evaluation.format_published(merit, "u-net"),
        }
        for merit in EM_FIGURES
    ]
    return {"of": name, "tiles": tiles}


def _comparison(run: RunFolder) -> dict[str, Any] | None:
    evaluations = run.evaluations()
    rows = []
    for merit in EM_FIGURES:
        ours = []
        for value in evaluations.values():
            best_at = value["figures"].get(f"{merit.key}_threshold")
            ours.append(
                (
                    merit.format(value["figures"].get(merit.key)),
                    f"{best_at:.1f}" if is_number(best_at) else "–",
                )
            )
        published = [
            evaluation.format_published(merit, group)
            for group in ("u-net", "IDSIA", "human values")
        ]
        rows.append({"merit": merit, "ours": ours, "published": published})
    at_half = [
        EM_FIGURES[-1].format(value["figures"].get("pixel_accuracy_at_half"))
        for value in evaluations.values()
    ]
    return {"names": list(evaluations), "rows": rows, "at_half": at_half} if rows else None


def _remarks(run: RunFolder) -> list[str]:
    """Say how the figures were made and how far they compare."""
    remarks = _remarks_on_data(run)
    if run.evaluations():
        remarks.append(
            "A figure is the best over the thresholds, chosen on the very slices it scores, as "
            "the challenge does."
        )
    best = run_facts.best_validation(run)
    if best:
        last = "The figures are of the last weights (model.safetensors). "
        shown = last if run.evaluations() or run.class_evaluation() else ""
        remarks.append(
            f"{shown}The lowest pixel error of a validation so far is {best} "
            "(best.safetensors). That choice was made on the held-out slices themselves, so the "
            "best weights look better there than they are."
        )
    average = run.metrics.get("average")
    if average and average != "none":
        remarks.append(f"Probabilities are averages over rotated or flipped inputs ({average}).")
    if run.metrics.get("remark"):
        remarks.append(str(run.metrics["remark"]))
    return remarks


def _remarks_on_data(run: RunFolder) -> list[str]:
    remarks: list[str] = []
    data = run.section("data")
    if data.get("beside_training"):
        remarks.append(f"{data['beside_training']}.")
    is_challenge = data.get("name") == CHALLENGE_DATA
    if data.get("synthetic"):
        remarks.append("The data are synthetic: no figure here compares with a published one.")
    elif run.metrics.get("test"):
        remarks.append(
            "The test set was scored with the challenge's own labels (test-labels.tif), as the "
            "challenge did: that column, and only that, compares directly with Table 1."
            if is_challenge
            else "The test set here is not the challenge's: no figure of this run compares "
            "directly with Table 1."
        )
    if "held-out slices" in run.evaluations() and not data.get("synthetic"):
        remarks.append(
            "Held-out slices are slices of the training stack that the network did not see, not "
            "the hidden test set of Table 1: they stand beside it for orientation and are not "
            "directly comparable."
        )
        if is_challenge and not run.metrics.get("test"):
            remarks.append(
                "The challenge's hidden truth (test-labels.tif) was not at hand, so no figure of "
                "this run compares directly with the paper."
            )
    return remarks


def _breakdown(run: RunFolder) -> list[str]:
    evaluations = run.evaluations()
    lines = {name: evaluation.breakdown(value) for name, value in evaluations.items()}
    if len(lines) == 1:
        return [line for line in lines.values() if line]
    return [f"{name.capitalize()}: {line}" for name, line in lines.items() if line]


def _chart() -> tuple[Figure, Any]:
    figure = Figure(figsize=_CHART_INCHES, layout="constrained")
    return figure, figure.subplots()


def _threshold_charts(run: RunFolder) -> list[dict[str, Any]]:
    evaluations = run.evaluations()
    charts = []
    for merit in EM_FIGURES if evaluations else ():
        figure, axes = _chart()
        lines = {
            name: evaluation.threshold_line(value, merit.key) for name, value in evaluations.items()
        }
        drawing.draw_over_thresholds(axes, lines, is_error=merit.is_lower_better)
        best = " · ".join(
            f"{merit.format(line.best[1])} at {line.best[0]:.1f}"
            for line in lines.values()
            if line.best is not None
        )
        charts.append(
            {"title": merit.name, "note": best, "svg": Markup(drawing.svg(figure, merit.name))}
        )
    return charts


def _training_charts(log: dict[str, np.ndarray] | None) -> list[dict[str, Any]]:
    if log is None or len(log["iteration"]) < 2:
        return []
    is_validated = np.isfinite(log["validation_loss"]) & np.isfinite(log["validation_pixel_error"])
    validated = {name: values[is_validated] for name, values in log.items()}
    iteration, errors = log["iteration"], validated["validation_pixel_error"]
    held_out = {"color": drawing.ORANGE, "marker": "o", "ms": 3, "lw": 1.6, "clip_on": False}

    def draw_loss(axes: Any) -> None:
        axes.plot(iteration, log["loss"], color=drawing.BLUE, lw=0.7, alpha=0.35)
        smooth = ndimage.uniform_filter1d(log["loss"], max(1, len(iteration) // 30), mode="nearest")
        axes.plot(iteration, smooth, color=drawing.BLUE, lw=1.6, label="training (running mean)")
        if errors.size:
            place, loss = validated["iteration"], validated["validation_loss"]
            axes.plot(place, loss, label="held-out slices", **held_out)
        axes.legend(frameon=False, fontsize=9, labelcolor=drawing.INK)

    charts = [_training_chart("loss", "weighted cross-entropy (Eq. 1); lower is better", draw_loss)]
    if errors.size:
        charts.append(
            _training_chart(
                "validation pixel error",
                f"last {errors[-1]:.4f}, lowest {errors.min():.4f}",
                lambda axes: axes.plot(validated["iteration"], errors, **held_out),
            )
        )
    rate = log["learning_rate"]
    return [
        *charts,
        _training_chart(
            "learning rate",
            "of the optimiser",
            lambda axes: axes.plot(iteration, rate, color=drawing.BLUE, lw=1.6),
        ),
    ]


def _training_chart(title: str, note: str, draw: Callable[[Any], Any]) -> dict[str, Any]:
    figure, axes = _chart()
    draw(axes)
    axes.set_ylim(bottom=0)
    axes.locator_params(nbins=5)
    drawing.tidy(axes, xlabel="iteration")
    return {"title": title, "note": note, "svg": Markup(drawing.svg(figure, title))}


def _slice_tables(run: RunFolder) -> list[dict[str, Any]]:
    tables = []
    for name, value in run.evaluations().items():
        order = evaluation.worst_first(value["slices"])
        notes = {order[0]: "worst", order[-1]: "best"} if len(order) > 1 else {}
        rows = [
            {
                "slice": row["slice"],
                "cells": [merit.format(row.get(merit.key)) for merit in EM_FIGURES],
                "note": notes.get(z, ""),
            }
            for z, row in enumerate(value["slices"])
        ]
        tables.append({"name": name, "rows": rows})
    return tables


def _shown_slices(run: RunFolder) -> list[dict[str, Any]]:
    """Return the panels of the best, the median and the worst held-out slice, or of fewer."""
    value = run.metrics.get("heldout")
    if not value or run.image is None or run.labels is None or run.probability is None:
        return []
    threshold = value["figures"].get("v_rand_threshold")
    if not is_number(threshold):
        return []
    if not all(((0 <= piece) & (piece <= 1)).all() for piece in pieces(run.probability)):
        suffix = ".tif" if isinstance(run.probability, np.ndarray) else ""
        path = run.folder / f"heldout_probability{suffix}"
        raise InputError(f"{path}: holds values outside 0 to 1")
    order = evaluation.worst_first(value["slices"])
    shown: list[dict[str, Any]] = []
    for z, word in best_median_worst(order).items():
        row = value["slices"][z]
        shown.append(
            {
                "position": z,
                "title": f"{word} slice: {row['slice']}",
                "figures": [f"{m.name} {m.format(row.get(m.key))}" for m in EM_FIGURES],
                "threshold": f"{threshold:.1f}",
                **_panels(run.image[z], run.labels[z], run.probability[z], threshold),
            }
        )
    return shown


def _panels(
    image: np.ndarray, labels: np.ndarray, probability: np.ndarray, threshold: float
) -> dict[str, Any]:
    picture = drawing.as_picture(image)
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    overlay = drawing.error_overlay(labels, probability, threshold, image=grey)
    window = drawing.worst_window((labels > 0) != (probability > threshold))
    panels = [
        ("image", picture),
        ("truth, one colour a cell", drawing.coloured_objects(labels)),
        ("probability of cell interior", np.round(255 * probability).astype(np.uint8)),
        (f"segmentation at {threshold:.1f}, errors in colour", overlay),
    ]
    height, width = grey[window].shape
    return {
        "panels": [(title, drawing.png_uri(pixels[window])) for title, pixels in panels],
        "width": width,
        "height": height,
        "crop": drawing.crop_note(window, labels.shape),
    }
