"""Cell tracking (Sec. 4, Table 2): predict the frames of a sequence, find its cells, score them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro import metrics
from unet_repro.challenges.ctc import CTCSequence, write_ctc_result
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.stacks import write_stack
from unet_repro.prediction.instances import InstanceRule, instances_of_scores
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.progress import ProgressBar
from unet_repro.reports.cell_report import STACKS


def annotated_part(sequence: CTCSequence, part: Sequence[int] | None = None) -> CTCSequence:
    """Return the annotated frames with a known pixel; of these those in `part`, if given."""
    usable = [i for i in range(len(sequence.frames)) if sequence.is_known[i].any()]
    chosen = usable if part is None else [usable[i] for i in part]
    frames = [sequence.frames[i] for i in chosen]
    return CTCSequence(
        name=sequence.name,
        images=sequence.images[frames],
        frames=tuple(range(len(frames))),
        labels=sequence.labels[chosen],
        is_known=sequence.is_known[chosen],
        is_complete=tuple(sequence.is_complete[i] for i in chosen),
        digits=tuple(sequence.digits[t] for t in frames),
    )


def segment_sequence(
    predictor: OverlapTilePredictor,
    sequence: CTCSequence,
    folder: Path,
    *,
    rule: InstanceRule,
    progress: bool = False,
) -> np.ndarray:
    """Segment all frames of a sequence into ``NN_RES/maskTTT.tif``, the challenge's layout.

    A cell's score is the log-odds of the raw scores of two classes, averaged over the views. Masks
    that are in `folder` are replaced. Returns the instances of the annotated frames in their order:
    int32, shape (n, y, x).
    """
    annotated: dict[int, np.ndarray] = {}
    results = folder / f"{sequence.name}_RES"
    for old in results.glob("mask*.tif"):
        old.unlink()
    frames = len(sequence.images)
    with ProgressBar(frames, unit="frame", desc="segment", is_shown=progress) as bar:
        for t, image in enumerate(sequence.images):
            background, cell = predictor.logits(image)
            instances = instances_of_scores(cell - background, rule)
            write_ctc_result(results, sequence.digits[t], instances)
            if t in sequence.frames:
                annotated[t] = instances
            bar.update()
    return np.stack([annotated[t] for t in sequence.frames])


def score_frames(
    labels: np.ndarray,
    instances: np.ndarray,
    *,
    known: np.ndarray,
    names: Sequence[str],
) -> dict[str, Any]:
    """Score segmented frames against their annotation (Table 2), ready for JSON.

    Parameters
    ----------
    labels, instances : ndarray of int, shape (n, y, x)
        Annotated cells and found cells; 0 is background, or unknown in `labels`.
    known : ndarray of bool, shape (n, y, x)
        False where it is unknown whether a pixel is cell or background.

    Returns
    -------
    dict
        ``figures``: ``iou`` of Table 2 and ``seg`` of the challenge, means over all annotated
        cells, and ``foreground_iou``, that of all known pixels without regard to which cell they
        are; ``ious``: the score of each cell; ``frames``: for each its ``frame`` (from `names`),
        ``cells``, ``iou``, ``missed``, ``found`` (instances) and ``complete``.
    """
    if not len(labels) == len(instances) == len(known) == len(names):
        raise InputError(
            f"{len(labels)} frames of labels, {len(instances)} of instances, {len(known)} of "
            f"known pixels and {len(names)} names: one of each is needed for every frame"
        )
    frames: list[dict[str, Any]] = []
    ious: list[float] = []
    for label, found, is_known, name in zip(labels, instances, known, names):
        scores = metrics.object_ious(label, found) if label.any() else np.empty(0)
        ious += scores.tolist()
        frames.append(
            {
                "frame": name,
                "cells": len(scores),
                "iou": float(scores.mean()) if len(scores) else None,
                "missed": int(np.count_nonzero(scores == 0)),
                "found": len(np.unique(found[found > 0])),
                "complete": bool(is_known.all()),
            }
        )
    is_cell, is_found = labels[known] > 0, instances[known] > 0
    either = np.count_nonzero(is_cell | is_found)
    return {
        "figures": {
            "iou": metrics.iou(labels, instances),
            "seg": metrics.seg(labels, instances),
            "foreground_iou": np.count_nonzero(is_cell & is_found) / either if either else None,
        },
        "ious": ious,
        "frames": frames,
    }


def write_cell_results(
    folder: Path,
    sequence: CTCSequence,
    instances: np.ndarray,
    *,
    rule: InstanceRule,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Score a segmented sequence; write ``metrics.json`` and, for the report, ``cells_*.tif``.

    Returns what ``metrics.json`` holds under ``cells``: `rule`, `about` (sequences, views, the
    published figure) and what `score_frames` says.
    """
    evaluation = score_frames(
        sequence.labels,
        instances,
        known=sequence.is_known,
        names=[sequence.digits[t] for t in sequence.frames],
    )
    stacks = (sequence.annotated_images, sequence.labels, instances)
    for name, stack in zip(STACKS, stacks):
        storable = stack if stack.dtype == np.uint8 else stack.astype(np.uint16)
        write_stack(folder / name, storable, overwrite=True, compression="zlib")
    cells = {**about, "rule": dataclasses.asdict(rule), **evaluation}
    content = {"heldout": None, "test": None, "cells": cells}
    with atomic_path(folder / "metrics.json", overwrite=True) as part:
        part.write_text(json.dumps(content, indent=1))
    return cells


def cell_table(cells: dict[str, Any]) -> str:
    """Return figures and frames, from `write_cell_results`, as text."""
    figures, published = cells["figures"], cells.get("published")
    lines = [
        f"IOU (Table 2)  {figures['iou']:.4f}"
        + (f"   the paper's u-net {published:.4f}" if published else ""),
        f"SEG (CTC)      {figures['seg']:.4f}",
        f"foreground     {figures['foreground_iou']:.4f}",
        "",
        "frame  cells  missed  found  IOU",
    ]
    for row in cells["frames"]:
        iou = f"{row['iou']:.4f}" if row["cells"] else "–"
        counts = f"{row['frame']:>5}  {row['cells']:5}  {row['missed']:6}  {row['found']:5}"
        lines.append(f"{counts}  {iou}{'' if row['complete'] else '  partly annotated'}")
    return "\n".join(lines)
