"""The cell tracking part of a run's report: Table 2 beside this run, and the scored frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from unet_repro.config import TABLE_2
from unet_repro.errors import InputError
from unet_repro.images.slices import of_one_size
from unet_repro.images.stacks import read_images, read_labels
from unet_repro.reports import drawing
from unet_repro.reports.evaluation import is_number
from unet_repro.reports.page import best_median_worst, render

STACKS = ("cells_image.tif", "cells_labels.tif", "cells_instances.tif")  # of the scored frames
SECOND_BEST = {"PhC-U373": 0.83, "DIC-HeLa": 0.46}  # Table 2
COLOURS = {"annotated": "#ffc64d", "found": "#0072b2", "both": "#ffffff"}


def cell_section(folder: Path, metrics: dict[str, Any]) -> Markup:
    """Render the section of a cell tracking run; nothing where `metrics` has no cells.

    `InputError`: ``metrics.json`` or ``cells_*.tif`` are not as `write_cell_results` writes them.
    """
    cells = metrics.get("cells")
    if not cells:
        return Markup("")
    if not _is_evaluation(cells):
        raise InputError(
            f"{folder / 'metrics.json'}: 'cells' is not what a cell tracking job writes"
        )
    return render(
        "cells.html",
        cells=cells,
        published=TABLE_2,
        second_best=SECOND_BEST,
        colours=COLOURS,
        shown=_shown_frames(folder, cells),
    )


def _is_evaluation(cells: Any) -> bool:
    try:
        rows = cells["frames"]
        return (
            isinstance(cells["rule"], dict)
            and is_number(cells["figures"]["iou"])
            and is_number(cells["figures"]["seg"])
            and all(isinstance(cells[key], str) for key in ("title", "views"))
            and all(isinstance(cells[f"{key}_sequence"], str) for key in ("train", "test"))
            and all(isinstance(cells[key], bool) for key in ("is_heldout", "is_synthetic"))
            and len(rows) > 0
            and all(
                {"frame", "cells", "iou", "missed", "found", "complete"} <= set(r) for r in rows
            )
        )
    except (KeyError, TypeError):
        return False


def _shown_frames(folder: Path, cells: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the panels of the best, the median and the worst frame, or of fewer."""
    if not all((folder / name).is_file() for name in STACKS):
        return []
    image = of_one_size(read_images(folder / STACKS[0]), folder / STACKS[0])
    labels, found = (of_one_size(read_labels(folder / name), folder / name) for name in STACKS[1:])
    if not image.shape == labels.shape == found.shape or len(image) != len(cells["frames"]):
        raise InputError(f"{folder}: {', '.join(STACKS)} and metrics.json are of different frames")
    scored = [i for i, row in enumerate(cells["frames"]) if is_number(row["iou"])]
    order = sorted(scored, key=lambda i: cells["frames"][i]["iou"])
    return [
        {
            "title": f"{word} frame: {cells['frames'][i]['frame']}",
            "row": cells["frames"][i],
            "panels": [
                ("image", drawing.png_uri(drawing.as_grey(image[i]))),
                ("outlines", drawing.png_uri(outlines(image[i], labels[i], found[i]))),
            ],
        }
        for i, word in best_median_worst(order).items()
    ]


def outlines(image: np.ndarray, labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Draw annotated and found cells' outermost pixels on an image, in `COLOURS`: uint8 RGB."""
    canvas = np.repeat(drawing.as_grey(image)[..., np.newaxis], 3, axis=2)
    is_labels, is_found = _is_outline(labels), _is_outline(found)
    for where, name in (
        (is_labels, "annotated"),
        (is_found, "found"),
        (is_labels & is_found, "both"),
    ):
        canvas[where] = tuple(bytes.fromhex(COLOURS[name][1:]))
    return canvas


def _is_outline(labels: np.ndarray) -> np.ndarray:
    is_outline = np.zeros(labels.shape, bool)
    down, right = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    is_outline[1:] |= down
    is_outline[:-1] |= down
    is_outline[:, 1:] |= right
    is_outline[:, :-1] |= right
    return is_outline & (labels > 0)
