"""Read what a training run left in its folder, trusting nothing in it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.files.file_access import parse_json
from unet_repro.images.slices import Slices, described, mapped, sizes
from unet_repro.images.stacks import read_images, read_labels
from unet_repro.reports.class_evaluation import is_class_evaluation
from unet_repro.reports.evaluation import LARGEST, is_number
from unet_repro.training.log import COLUMNS as LOG_COLUMNS


@dataclass(frozen=True, eq=False)
class RunFolder:
    """What the files of a run's folder hold; None for a file that is not there."""

    folder: Path
    config: dict[str, Any]
    log: dict[str, np.ndarray] | None
    metrics: dict[str, Any]
    image: Slices | None
    labels: Slices | None
    probability: Slices | None
    prediction: Slices | None  # classes, of a run of more than two

    def section(self, name: str) -> dict[str, Any]:
        """Return an object of config.json, empty if it is missing."""
        return self.config.get(name) or {}

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the evaluations of two classes that there are: "held-out slices", "test set"."""
        found = {
            "held-out slices": self.metrics.get("heldout"),
            "test set": self.metrics.get("test"),
        }
        return {name: value for name, value in found.items() if value and "curves" in value}

    def class_evaluation(self) -> dict[str, Any] | None:
        """Return that of more than two classes on the held-out slices, if there is one."""
        found = self.metrics.get("heldout")
        return found if found and "confusion" in found else None


def read_run(folder: Path) -> RunFolder:
    """Read a run's folder, of which only ``config.json`` must be there, or raise `InputError`."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a training run")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: is not a run's folder: it holds no config.json")
    settings = _read_json(folder / "config.json")
    for name in ("settings", "versions", "hardware", "data", "labels", "init", "state"):
        if not isinstance(settings.get(name) or {}, dict):
            raise InputError(f"{folder / 'config.json'}: {name!r} is not an object")
    readers: dict[str, Callable[[Path], Slices]] = {
        "image": partial(read_images, channels=_channels(settings)),
        "labels": read_labels,
        "probability": read_images,
        "prediction": read_labels,
    }
    paths = {name: _held_out(folder, name) for name in readers}
    stacks = {name: readers[name](path) for name, path in paths.items() if path}
    metrics = _read_metrics(folder / "metrics.json")
    unknown = metrics.get("unknown_label")
    if "labels" in stacks and unknown is not None and "prediction" not in stacks:
        stacks["labels"] = mapped(partial(_without, value=unknown), stacks["labels"])
    run = RunFolder(
        folder=folder,
        config=settings,
        log=_read_log(folder / "log.csv"),
        metrics=metrics,
        image=stacks.get("image"),
        labels=stacks.get("labels"),
        probability=stacks.get("probability"),
        prediction=stacks.get("prediction"),
    )
    _check_stacks(run, stacks)
    return run


def _channels(settings: dict[str, Any]) -> int | None:
    """Return how many channels the network's images have, None for one or where it is not told."""
    model = (settings.get("settings") or {}).get("model")
    channels = model.get("in_channels") if isinstance(model, dict) else None
    return channels if type(channels) is int and 1 < channels <= 2**16 else None


def _without(labels: np.ndarray, value: object) -> np.ndarray:
    """Return labels with unknown pixels as background."""
    return np.where(labels == value, labels.dtype.type(0), labels)


def _held_out(folder: Path, name: str) -> Path | None:
    """Return the file of the held-out slices, or the folder of those of several sizes."""
    file, inner = folder / f"heldout_{name}.tif", folder / f"heldout_{name}"
    if file.is_file():
        return file
    return inner if any(inner.glob("*.tif")) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no JSON object")
    return content


def _read_metrics(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = _read_json(path)
    for name in ("heldout", "test"):
        is_known = _is_evaluation(content.get(name)) or is_class_evaluation(content.get(name))
        if content.get(name) and not is_known:
            raise InputError(
                f"{path}: {name!r} is not what `unet-repro evaluate --json` writes: an object "
                "with figures, slices and curves (with thresholds), or the confusion of classes"
            )
    return content


def _is_evaluation(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("figures"), dict)
        and isinstance(value.get("curves"), dict)
        and isinstance(value.get("slices"), list)
        and len(value["slices"]) > 0
        and all(isinstance(row, dict) and "slice" in row for row in value["slices"])
        and isinstance(value["curves"].get("thresholds"), list)
        and all(map(is_number, value["curves"]["thresholds"]))
        and all(
            isinstance(curve, list) and len(curve) <= len(value["curves"]["thresholds"])
            for curve in value["curves"].values()
        )
    )


def _read_log(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text") from error
    if lines and not lines[-1].endswith(("\n", "\r")):
        lines.pop()  # a row that training is just writing
    rows = csv.DictReader(lines)
    try:
        if lines and tuple(rows.fieldnames or ()) != LOG_COLUMNS:
            raise InputError(f"{path}: the first line must be {','.join(LOG_COLUMNS)}")
        values = [_log_row(row, where=f"{path}: line {rows.line_num}") for row in rows]
    except csv.Error as error:
        raise InputError(f"{path}: is no log of a run: {error}") from error
    return dict(zip(LOG_COLUMNS, np.array(values).reshape(-1, len(LOG_COLUMNS)).T, strict=True))


def _log_row(row: dict[str, Any], *, where: str) -> list[float]:
    """Return the numbers of a row, NaN where nothing was validated."""
    values = []
    for name in LOG_COLUMNS:
        is_optional = name.startswith("validation")
        try:
            values.append(float(row[name] or ("nan" if is_optional else "")))
        except (TypeError, ValueError):
            raise InputError(f"{where}: {name} is {row[name]!r}, not a number") from None
        is_unbounded = is_optional and not np.isfinite(values[-1])  # a loss may be infinite
        if not (is_unbounded or abs(values[-1]) <= LARGEST):
            raise InputError(f"{where}: {name} is {row[name]:.40}, not a number within 1e30")
    return values


def _check_stacks(run: RunFolder, stacks: dict[str, Slices]) -> None:
    shapes = {name: sizes(stack) for name, stack in stacks.items()}
    if len(set(map(tuple, shapes.values()))) > 1:
        listed = ", ".join(f"heldout_{name} {described(stack)}" for name, stack in stacks.items())
        raise InputError(f"{run.folder}: the held-out stacks differ in shape: {listed}")
    evaluated = run.metrics.get("heldout")
    if shapes and evaluated:
        n_slices = len(next(iter(shapes.values())))
        if n_slices != len(evaluated["slices"]):
            raise InputError(
                f"{run.folder}: metrics.json is of {len(evaluated['slices'])} held-out slices, "
                f"but the stacks have {n_slices}; evaluate them again"
            )
