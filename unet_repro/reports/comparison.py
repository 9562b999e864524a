"""A prediction's file and the labels' compared: what both mean, and the figures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.choices import Task
from unet_repro.errors import InputError
from unet_repro.images.arrays import is_folder_of_images
from unet_repro.images.calibration import read_info
from unet_repro.images.image_files import image_files
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import UNKNOWN_CELL, read_meaning, recorded_unknown
from unet_repro.images.slices import Slices, joined, mapped
from unet_repro.images.stacks import check_order, paired_files, read_labels, read_stack
from unet_repro.prediction.recorded import recorded_full_scale, recorded_kind
from unet_repro.reports import class_evaluation, evaluation

_WHITE = 255


@dataclass(frozen=True)
class Comparison:
    """Figures, what they are of, and lines that say how both files were read."""

    result: dict[str, Any]
    cells: Slices  # of the labels, int (z, y, x); unknown pixels are background
    values: Slices  # of the prediction: P(interior), instance ids, or classes
    told: list[str]


def compare(
    labels_path: Path,
    prediction_path: Path,
    *,
    task: Task,
    read_as: LabelSettings,
    axes: str | None,
    mask_suffix: str,
    max_value: float | None,
    progress: bool = False,
) -> Comparison:
    """Read both and compute the figures of a task; parameters as the flags of `evaluate`."""
    predicted, truth = paired_files(prediction_path, labels_path, mask_suffix=mask_suffix)
    ignore = read_as.ignore_label
    if ignore is None:
        ignore = recorded_unknown(_recorded(labels_path, truth))
    read_as = _read_as(replace(read_as, ignore_label=ignore), task)
    labels = read_labels(labels_path, ignore_label=ignore, axes=axes, files=truth)
    reading = read_meaning(labels, read_as, where=str(labels_path))
    ids = joined([reading.cells(slice_) for slice_ in labels])
    known = mapped(lambda ids: ids != UNKNOWN_CELL, ids) if reading.unknown else None
    cells = mapped(lambda ids: np.maximum(ids, 0), ids)

    values = read_stack(prediction_path, as_labels=task != "em", axes=axes, files=predicted)
    check_order(
        (labels_path, {"as_labels": True, "axes": axes}),
        (prediction_path, {"as_labels": task != "em", "axes": axes}),
    )
    recorded = _recorded(prediction_path, predicted)
    full_scale = _full_scale(recorded_full_scale(recorded), max_value, prediction_path)
    told = [f"labels: {reading.line()}"]
    if task == "classes":
        if recorded_kind(recorded) == "instances":
            raise InputError(
                f"{prediction_path}: holds instances: classes are needed, as predict --kind labels "
                "writes them"
            )
        values = class_evaluation.predicted_classes(values, full_scale)
        classes = joined([reading.classes(slice_) for slice_ in labels])
        _check_classes(classes, labels_path)
        n_classes = max(reading.n_classes, *(int(one.max()) + 1 for one in values))
        result = class_evaluation.evaluate_classes(
            classes, values, n_classes=n_classes, known=known
        )
    elif task == "cells":
        are_ids = recorded_kind(recorded) == "instances"
        values, line = evaluation.predicted_cells(values, full_scale, are_ids=are_ids)
        told.append(f"prediction: {line}")
        result = evaluation.evaluate_cells(cells, values, known=known)
    else:
        if full_scale not in (None, 1):
            told.append(f"prediction: P(interior) is value / {full_scale:g}")
        values = evaluation.as_probability(values, full_scale)
        result = evaluation.evaluate_em(cells, values, known=known, progress=progress)
    return Comparison(result, cells, values, told)


def _check_classes(classes: Slices, path: Path) -> None:
    """Refuse a mask as it is displayed: its 255 is class 1, or unknown, but no class 255."""
    found = set().union(*(np.unique(one).tolist() for one in classes))
    if found == {0, _WHITE}:
        raise InputError(
            f"{path}: holds 0 and {_WHITE} alone: of classes 0, 1, ... a mask holds 0 and 1; "
            f"--ignore-label {_WHITE} leaves unknown pixels out"
        )


def _recorded(path: Path, files: list[Path] | None) -> str | None:
    """Return what a file, or the first of a folder, records of its making."""
    if files is None and is_folder_of_images(path):
        files = image_files(path)
    return read_info(files[0] if files else path)


def _full_scale(recorded: float | None, given: float | None, path: Path) -> float | None:
    """Return what stands for P = 1 in the prediction, as its file or the user says."""
    if given is not None and recorded not in (None, given):
        raise InputError(
            f"--max-value is {given:g}, but {path} records that {recorded:g} stands for 1: leave "
            "--max-value out"
        )
    return recorded or given


def _read_as(read_as: LabelSettings, task: Task) -> LabelSettings:
    """Return how labels are to be read: of the task classes as such."""
    if task != "classes":
        return read_as
    if read_as.label_kind in ("mask", "ids"):
        raise InputError(
            f"--task classes reads labels as classes, not as {read_as.label_kind}: leave "
            "--label-kind out"
        )
    return replace(read_as, label_kind="classes")
