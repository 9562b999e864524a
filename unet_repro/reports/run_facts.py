"""Say in words how a run was made: its settings, data, machine, length, and commands."""

from __future__ import annotations

import re
import shlex
from typing import Any

from unet_repro import config
from unet_repro.quantities import duration_text, size_text
from unet_repro.reports.evaluation import is_number
from unet_repro.reports.run_folder import RunFolder

Rows = list[tuple[str, str]]

_FLAGS = (
    *("preset", "init", "val", "iterations", "time_budget", "patience"),
    *("seed", "device", "precision"),
)
_OFF_AT_ZERO = ("iterations", "patience")
_MEASURED = ("model.in_channels", "model.input_mean", "model.input_std")  # from the images
_STOPPED = {
    "finished": "finished",
    "time budget": "stopped at its time budget",
    "patience": "stopped early by its patience: validations no longer improved",
    "interrupted": "interrupted before its end",
    "running": "still running when this page was written",
}


def how_it_ended(stopped: Any) -> str:
    """Return the state of a run in words."""
    return _STOPPED.get(str(stopped), "unknown")


def summary(run: RunFolder) -> list[str]:
    """Return the run in a few words each: data, network, length."""
    data, state, settings = run.section("data"), run.section("state"), run.section("settings")
    words = []
    if data.get("train_slices"):
        words.append(f"trained on slices {slices(data['train_slices'])}")
    if data.get("heldout_slices"):
        words.append(f"held out {slices(data['heldout_slices'])}")
    if settings.get("preset"):
        words.append(f"preset {settings['preset']}")
    if is_number(state.get("iterations")):
        words.append(f"{state['iterations']:,} iterations")
    if is_number(state.get("seconds")):
        words.append(duration_text(state["seconds"]))
    return words


def slices(text: Any) -> str:
    """Return "0:25, 29:30" as "0–24, 29"; anything else as it is."""
    return ", ".join(map(_block, str(text).split(", ")))


def _block(text: str) -> str:
    match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", text)
    if not match or not int(match[1]) < int(match[2]):
        return text
    begin, last = match[1], int(match[2]) - 1
    return f"{begin}–{last}" if last > int(begin) else begin


def best_validation(run: RunFolder) -> str:
    """Return the validation with the lowest pixel error in words, empty where there is none."""
    best = run.section("state").get("best")
    if not isinstance(best, dict):
        return ""
    error, iteration = best.get("pixel_error"), best.get("iteration")
    if not (is_number(error) and is_number(iteration)):
        return ""
    return f"{error:.4f} at iteration {iteration:,}"


def facts(run: RunFolder) -> list[tuple[str, Rows]]:
    """Return titled groups of (name, value)."""
    data, state, settings = run.section("data"), run.section("state"), run.section("settings")
    length = [
        ("ended", how_it_ended(state.get("stopped"))),
        ("iterations", f"{state['iterations']:,}" if is_number(state.get("iterations")) else "–"),
        ("time", duration_text(state["seconds"]) if is_number(state.get("seconds")) else "–"),
        ("seed", _plain(settings.get("seed", "–"))),
    ]
    for name, meaning in (("model", "model"), ("best", "best by validation")):
        model = run.folder / f"{name}.safetensors"
        if model.is_file():
            length.append((meaning, f"{model.name}, {size_text(model.stat().st_size)}"))
    names = {
        "name": "name",
        "images": "images",
        "labels": "labels",
        "train_slices": "trained on slices",
        "heldout_slices": "held-out slices",
        "images_sha256": "SHA-256 of the image pixels",
        "labels_sha256": "SHA-256 of the label pixels",
    }
    of_data = [
        (name, slices(data[key]) if key.endswith("_slices") else _plain(data[key]))
        for key, name in names.items()
        if data.get(key)
    ]
    read_as = run.section("labels").get("read_as")
    if read_as:
        of_data.append(("labels read as", _plain(read_as)))
    other = (*names, "synthetic", "beside_training")  # told elsewhere
    of_init = [(key, _plain(v)) for key, v in run.section("init").items()]
    of_data += [(key, _plain(v)) for key, v in data.items() if key not in other]
    groups = [("Run", length), ("Data", of_data), ("Initial weights", of_init)]
    for title in ("hardware", "versions"):
        groups.append((title.capitalize(), [(k, _plain(v)) for k, v in run.section(title).items()]))
    return [(title, rows) for title, rows in groups if rows]


def settings(values: dict[str, Any]) -> list[tuple[str, Rows]]:
    """Return the settings in groups: those of the run itself, then one group per nested object."""
    own = [(k, _plain(v)) for k, v in values.items() if not isinstance(v, dict)]
    groups = [("training", own)]
    for name, value in values.items():
        if isinstance(value, dict):
            groups.append((name.replace("_", " "), [(k, _plain(v)) for k, v in value.items()]))
    return [(title, rows) for title, rows in groups if rows]


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return str(value)


def commands(run: RunFolder) -> list[str]:
    """Return the commands that make this run (config.json's own, if any) and its figures again."""
    if run.config.get("command"):
        return [str(run.config["command"])]
    data, given = run.section("data"), run.section("settings")
    images = str(data.get("images") or "IMAGES")
    train = ["unet-repro", "train", images, str(data.get("labels") or "LABELS"), "--out", "NEW_RUN"]
    read_as = run.section("labels")
    for key, flag in (("asked_for", "--label-kind"), ("ignore_label", "--ignore-label")):
        if read_as.get(key) not in (None, "auto"):
            train += [flag, str(read_as[key])]
    model = given.get("model")
    if isinstance(model, dict):
        if read_as.get("kind") == "classes":
            train += ["--label-kind", "classes", "--classes", str(model.get("classes"))]
        if model.get("in_channels") not in (None, 1):
            train += ["--in-channels", str(model["in_channels"])]
    for key in _FLAGS:
        if given.get(key) not in (None, "") and (given[key] or key not in _OFF_AT_ZERO):
            train += [f"--{key.replace('_', '-')}", str(given[key])]
    lines = [train]
    if run.metrics.get("heldout") and run.labels is not None and given.get("val"):
        suffix = ".tif" if (run.folder / "heldout_labels.tif").is_file() else ""  # a folder
        block = str(data.get("heldout_slices"))
        is_block = re.fullmatch(r"\d+:\d+", block)  # others are all in the run's own copy
        source = images if is_block else str(run.folder / f"heldout_image{suffix}")
        predict = ["unet-repro", "predict", source, "--model", "NEW_RUN/model.safetensors"]
        predict += ["--z", block] if is_block else []
        predict += ["--average", str(run.metrics.get("average") or "none")]
        labels = str(run.folder / f"heldout_labels{suffix}")
        has_classes = run.class_evaluation() is not None
        output = f"NEW_RUN/heldout_{'prediction' if has_classes else 'probability'}{suffix}"
        evaluate = ["unet-repro", "evaluate", labels, output]
        if has_classes:
            predict += ["--kind", "labels"]
            evaluate += ["--task", "classes"]
        if type(run.metrics.get("unknown_label")) is int:
            kind = [] if has_classes else ["--label-kind", "ids"]
            evaluate += [*kind, "--ignore-label", str(run.metrics["unknown_label"])]
        lines += [[*predict, "--out", output], evaluate]
    return [shlex.join(line) for line in lines]


def unlike_preset(values: dict[str, Any]) -> list[str]:
    """Name the settings that differ from their preset's and are not in `commands`."""
    presets = {str(name): preset for name, preset in config.PRESETS.items()}
    if str(values.get("preset")) not in presets:
        return []
    preset = config.flat(config.to_dict(presets[str(values["preset"])]))
    taken = ("model.",) if values.get("init") else _MEASURED
    return [
        f"{key} = {_plain(value)} (preset: {_plain(preset[key])})"
        for key, value in config.flat(values).items()
        if key in preset
        and not (key in _FLAGS or key.startswith(taken))
        and _plain(value) != _plain(preset[key])
    ]
