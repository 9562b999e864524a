"""A run: a folder that a labelled stack is turned into, from weight maps to report.

======================  ==========================================================================
file                    what
======================  ==========================================================================
model.safetensors       the network, its whole configuration in the metadata: it alone predicts
best.safetensors        the same at the validation with the lowest pixel error (of more than two
                        classes: the smallest share of wrong pixels)
checkpoint.pt           what training needs to go on
config.json             settings, versions, hardware, data, how far the run came
log.csv                 loss, learning rate and validation over the iterations
events.out.tfevents.*   the same for TensorBoard, and pictures, where it is installed
heldout_*.tif           image, labels and P(interior) of the held-out slices (of more than two
                        classes their numbers: labels and prediction); where these have several
                        sizes, a folder heldout_* with a file for each slice
submission.tif          P(interior) of the EM challenge's test set, where the job predicts it
metrics.json            figures of the held-out slices, and of the test set where its labels exist
report.html             all of it, to look at; rewritten at every validation
======================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unet_repro import config
from unet_repro._version import __version__
from unet_repro.choices import Average
from unet_repro.config import TrainConfig
from unet_repro.errors import InputError, note, one_line
from unet_repro.files.atomic import atomic_path, check_apart, check_output, remove_leftovers
from unet_repro.files.lock import run_lock
from unet_repro.images.slices import Slices, flat, joined, mapped, part, pieces
from unet_repro.images.stacks import write_stack
from unet_repro.network.device import check_type, choose_device, choose_precision, describe
from unet_repro.network.model_file import load_model
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_classes, predict_volume
from unet_repro.quantities import ranges
from unet_repro.reports.class_evaluation import evaluate_classes
from unet_repro.reports.evaluation import evaluate_em
from unet_repro.reports.report import write_report
from unet_repro.reports.run_facts import slices
from unet_repro.training.holding_out import beside
from unet_repro.training.initial import initial_model
from unet_repro.training.parallel import ALONE, Processes, check_alone
from unet_repro.training.samples import LabelledStack, Split, held_out_slices, samples, split
from unet_repro.training.state import output_side
from unet_repro.training.train import Progress, Start, Trained, train

TRAINED = (
    *("checkpoint.pt", "model.safetensors", "best.safetensors"),
    *("config.json", "log.csv", "events.out.tfevents.*"),
)
HELD_OUT = tuple(  # .tif, or a folder
    f"heldout_{name}" for name in ("image", "labels", "probability", "prediction")
)
RESULTS = ("metrics.json", "heldout_*.tif", "submission.tif", "report.html")
# what a run has that was stopped before its first checkpoint
_BEFORE_A_CHECKPOINT = ("config.json", "log.csv", "events.out.tfevents.", "report.html")
_SHOWN = 4  # names of held-out images on standard error
LIBRARIES = ("torch", "numpy", "scipy", "scikit-image", "tifffile", "numba")


def start_run(
    data: LabelledStack,
    settings: TrainConfig,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    is_quiet: bool = False,
    processes: Processes = ALONE,
) -> Trained:
    """Train on a labelled stack, into a run folder.

    Parameters
    ----------
    data
        The slices `settings.val` are held out, the others trained on.
    folder
        Made if it does not exist.
    resume
        Go on with the run that is in the folder, if there is one.
    overwrite
        Replace the run that is in the folder.
    processes
        Those that train together (`parallel.started`); the first one writes the folder.

    Raises
    ------
    InputError
        The folder holds a run and neither `resume` nor `overwrite` is given, or cannot be written;
        a setting that does not fit the data; another process is writing the folder.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite replaces it: give one")
    if settings.init and not resume and Path(settings.init).is_file():
        check_apart(folder, settings.init)
    initial = initial_model(settings, folder if resume else None)
    if initial:
        settings = replace(settings, model=initial.model)
    settings, parts, device = _checked(data, settings, processes)
    with run_lock(folder) if processes.is_first else nullcontext():
        if processes.is_first:
            _check_folder(folder, resume=resume, overwrite=overwrite)
        training, held_out = samples(data, parts, settings.weight_map, device=device)
        hardware = describe(device) | {"processes": processes.count}
        record = _Record(folder / "config.json", data, settings, parts, hardware)
        if initial:
            begun_as = {"line": initial.line(training, settings), "sha256": initial.sha256}
            record.content["init"] = {"name": initial.name, **begun_as}
            doubt = initial.doubt(training, settings)
            if doubt:
                note(doubt)

        def on_start(start: Start) -> None:  # nothing can be refused any more
            if not is_quiet:
                for line in record.lines():
                    print(one_line(line), file=sys.stderr)
            if overwrite or not start.is_over:
                _remove(folder, RESULTS if resume else RESULTS + TRAINED)
                _remove_slices(folder)
            remove_leftovers(folder, RESULTS + TRAINED)
            record.begin(start)

        def on_validation(progress: Progress) -> None:
            record.write(progress)
            write_report(folder)

        trained = train(
            training,
            settings,
            folder,
            held_out=held_out,
            resume=resume,
            is_quiet=is_quiet,
            processes=processes,
            origin=record.origin(),
            initial=initial,
            on_start=on_start,
            on_validation=on_validation,
        )
        if processes.is_first:
            record.write(trained)
        return trained


def finish_run(
    data: LabelledStack, settings: TrainConfig, folder: Path, *, overwrite: bool
) -> bool:
    """Go on with a folder's run, or begin it; tell whether it came to its end.

    Where it was interrupted, the report is written, and how to go on is said.
    """
    trained = start_run(data, settings, folder, resume=not overwrite, overwrite=overwrite)
    if trained.stopped != "interrupted":
        return True
    write_report(folder)
    again = " without --overwrite" if overwrite else ""
    print(f"interrupted; the same command{again} goes on from here", file=sys.stderr)
    return False


def _checked(
    data: LabelledStack, settings: TrainConfig, processes: Processes
) -> tuple[TrainConfig, Split, torch.device]:
    """Return settings, slices and device as this process will train with them, if it can."""
    if processes.count == 1:
        check_alone()
    parts = split(data, settings)
    output_side(settings)
    device = processes.place(choose_device(settings.device))
    check_type(device, torch.float64, "augmentation needs it: train with --device cpu")
    precision = choose_precision(settings.precision, device)
    return replace(settings, precision=precision), parts, device


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it may be changed, or that cannot be written."""
    check_output(folder / "config.json", overwrite=True)
    found = [path.name for name in TRAINED + RESULTS for path in folder.glob(name)]
    if found and not (resume or overwrite):
        raise InputError(
            f"{folder}: holds a run already; --resume goes on with it, --overwrite replaces it"
        )
    lost = [name for name in found if not name.startswith(_BEFORE_A_CHECKPOINT)]
    if "config.json" not in found:
        lost = found
    if lost and resume and "checkpoint.pt" not in found:
        raise InputError(
            f"{folder}: holds {lost[0]} but no checkpoint.pt, so there is nothing to resume; "
            "train into another folder (with --init to begin from a model), or --overwrite "
            "replaces it"
        )


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for path in folder.glob(name):
            path.unlink()


def _remove_slices(folder: Path) -> None:
    """Remove the folders of held-out slices; what is not of this package stays in them."""
    for inner in (folder / name for name in HELD_OUT if (folder / name).is_dir()):
        _remove(inner, ("*.tif",))
        with suppress(OSError):
            inner.rmdir()


class _Record:
    """``config.json``: how a run was begun, and how far it came."""

    def __init__(
        self,
        path: Path,
        data: LabelledStack,
        settings: TrainConfig,
        parts: Split,
        hardware: dict[str, Any],
    ) -> None:
        self.path = path
        self.held_out_files = [data.names[z] for z in parts.held_out] if data.names else []
        leak = "" if data.names else beside(parts.held_out, parts.kept)
        versions = {"unet_repro": __version__, "python": platform.python_version()}
        self.content: dict[str, Any] = {
            **({"command": data.command} if data.command else {}),
            "settings": config.to_dict(settings),
            "versions": versions | {name: metadata.version(name) for name in LIBRARIES},
            "hardware": hardware,
            "data": {
                "name": data.name,
                "synthetic": data.is_synthetic,
                "images": data.images_path,
                "labels": data.labels_path,
                "images_sha256": _sha256(data.images),
                "labels_sha256": _sha256(data.labels),
                "slices": len(data.images),
                "train_slices": ranges(parts.kept),
                "heldout_slices": ranges(parts.held_out),
                **({"beside_training": leak} if leak else {}),
            },
            "labels": {"read_as": data.reading.line(), **data.reading.record()},
        }

    def lines(self) -> list[str]:
        """Return what a run says as it starts: labels, what is held out, what it begins from."""
        about = self.content["data"]
        lines = [f"labels: {self.content['labels']['read_as']}"]
        if about["heldout_slices"]:
            which, files = slices(about["heldout_slices"]), self.held_out_files
            if files:
                which += f" ({', '.join(files[:_SHOWN])}{', ...' if files[_SHOWN:] else ''})"
            lines.append(f"val: {self.content['settings']['val']} holds out slices {which}")
        if about.get("beside_training"):
            lines.append(f"val: {about['beside_training']}")
        if "init" in self.content:
            lines.append(f"init: {self.content['init']['line']}")
        return lines

    def origin(self) -> dict[str, Any]:
        """Return what a model file holds of its making: versions and data, not where they lie."""
        data = {k: v for k, v in self.content["data"].items() if k not in ("images", "labels")}
        kept = {"versions", "hardware", "labels", "init"} & self.content.keys()
        return {name: self.content[name] for name in sorted(kept)} | {"data": data}

    def begin(self, start: Start) -> None:
        """Write the record of a run that starts, with its completed network."""
        self.content["settings"]["model"] = config.to_dict(start.model)
        self.write(Progress(start.iterations, 0.0, "running", False, None))

    def write(self, progress: Progress) -> None:
        """Write the record with how far the run is."""
        self.content["state"] = {
            "iterations": progress.iterations,
            "seconds": round(progress.seconds, 1),
            "stopped": progress.stopped,
            "collapsed": progress.has_collapsed,
            "best": vars(progress.best) if progress.best else None,
        }
        _write_json(self.path, self.content)


def _sha256(stack: Slices) -> str:
    """Return the SHA-256 of all pixels, slice by slice."""
    digest = hashlib.sha256()
    for piece in pieces(stack):
        digest.update(np.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path, overwrite=True) as part:
        part.write_text(json.dumps(content, indent=1))


def evaluate_run(
    data: LabelledStack,
    settings: TrainConfig,
    folder: Path,
    *,
    average: Average = "dihedral",
    test: tuple[Slices, Slices] | None = None,
    is_quiet: bool = False,
) -> dict[str, Any]:
    """Predict and evaluate the held-out slices of a run; write them, ``metrics.json``, the report.

    Parameters
    ----------
    data, settings, folder
        As given to `start_run`.
    average
        Views whose predictions are averaged.
    test : (labels, probability), optional
        The challenge's test set where its labels are at hand, and what the run predicts for it.

    Returns
    -------
    dict
        Content of ``metrics.json``: ``heldout`` and ``test``, each an `evaluate_em` result or None;
        of more than two classes an `evaluate_classes` result.

    Raises
    ------
    InputError
        Another process is writing the folder, or it cannot be written.
    """
    held_out = held_out_slices(data, settings)
    result: dict[str, Any] = {"heldout": None, "test": None, "average": average}
    with run_lock(folder):
        if held_out:
            has_classes = settings.model.classes > 2
            predict = predict_classes if has_classes else predict_volume
            images = part(data.images, held_out)
            prediction = predict(
                run_predictor(settings, folder, average), images, progress=not is_quiet
            )
            is_stack = isinstance(data.images, np.ndarray)
            _remove_slices(folder)
            held_out_labels = _held_out_classes if has_classes else _held_out_labels
            labels, result["unknown_label"] = held_out_labels(data, held_out)
            stacks = {
                "image": _storable(images),
                "labels": labels,
                "prediction" if has_classes else "probability": prediction,
            }
            told = {"unknown_label": result["unknown_label"]}  # so that the labels alone say it
            infos = {"labels": "" if result["unknown_label"] is None else json.dumps(told)}
            for name, stack in stacks.items():
                _write_slices(
                    folder / f"heldout_{name}",
                    stack,
                    held_out,
                    is_stack=is_stack,
                    info=infos.get(name, ""),
                )
            result["heldout"] = _evaluation(data, settings, held_out, prediction)
        if test is not None:
            result["test"] = evaluate_em(*test)
        _write_json(folder / "metrics.json", result)
        write_report(folder)
        return result


def _evaluation(
    data: LabelledStack, settings: TrainConfig, held_out: list[int], prediction: Slices
) -> dict[str, Any]:
    """Return the figures of the held-out slices: the EM challenge's, or those of each class."""
    common: Any = {"known": part(data.is_known, held_out), "numbers": held_out}
    n_classes = settings.model.classes
    if n_classes == 2:
        return evaluate_em(part(data.truth, held_out), prediction, **common)
    classes = joined([data.reading.classes(data.labels[z]) for z in held_out])
    return evaluate_classes(classes, prediction, n_classes=n_classes, **common)


def _write_slices(
    path: Path, stack: Slices, numbers: list[int], *, is_stack: bool, info: str
) -> None:
    """Write ``path.tif``; or, where the data have several sizes, ``path/<number>.tif`` for each."""
    single = path.with_suffix(".tif")
    if is_stack:
        write_stack(single, np.asarray(stack), overwrite=True, info=info)
        return
    single.unlink(missing_ok=True)
    for number, image in zip(numbers, stack):
        one = image if image.ndim == 2 else image[np.newaxis]  # channels: (1, c, y, x)
        write_stack(path / f"{number}.tif", one, overwrite=True, info=info)


def _held_out_classes(data: LabelledStack, held_out: list[int]) -> tuple[Slices, int | None]:
    """Return the classes to write, and the value of unknown pixels in them, if there are any."""
    classes = joined([data.reading.classes(data.labels[z]) for z in held_out])
    is_known = part(data.is_known, held_out)
    if all(piece.all() for piece in pieces(is_known)):
        return classes, None
    dtype, value = (np.uint8, 255) if data.reading.n_classes < 256 else (np.uint16, 2**16 - 1)
    return mapped(
        lambda known, k: np.where(known, k, value).astype(dtype), is_known, classes
    ), value


def _held_out_labels(data: LabelledStack, held_out: list[int]) -> tuple[Slices, int | None]:
    """Return the labels to write, and the value of unknown pixels in them, if there are any.

    Labels that mean what they say stay as they are; of others their cells are written.
    """
    if data.reading.is_plain and data.known is None:
        return _storable(part(data.labels, held_out)), None
    truth, is_known = _storable(part(data.truth, held_out)), part(data.is_known, held_out)
    if all(piece.all() for piece in pieces(is_known)):
        return truth, None
    is_small = max(int(piece.max()) for piece in pieces(truth)) < 2**16 - 1
    dtype, value = (np.uint16, 2**16 - 1) if is_small else (np.int32, 2**31 - 1)
    return mapped(
        lambda known, ids: np.where(known, ids, value).astype(dtype), is_known, truth
    ), value


def _storable(stack: Slices) -> Slices:
    """Return a stack in a type that every TIFF reader takes: float32, uint8 or uint16.

    Integers beyond 16 bits, or below 0, become their ranks: equal stays equal, larger stays
    larger, and the background of labels stays 0.
    """
    if not isinstance(stack, np.ndarray):  # of one type, and of the same ranks
        values = _storable(flat(stack))
        ends = np.cumsum([image.size for image in stack])
        parts = np.split(np.asarray(values), ends[:-1])
        return [flat.reshape(image.shape) for flat, image in zip(parts, stack)]
    if stack.dtype.kind == "f":
        return stack.astype(np.float32)
    if stack.dtype.name in ("uint8", "uint16"):
        return stack
    if stack.min() >= 0 and stack.max() < 1 << 16:
        return stack.astype(np.uint16)
    values, ranks = np.unique(stack, return_inverse=True)
    return ranks.reshape(stack.shape).astype(np.uint16 if len(values) < 1 << 16 else np.int32)


def run_predictor(settings: TrainConfig, folder: Path, average: Average) -> OverlapTilePredictor:
    """Return the predictor of a run's model, on the device and in the precision of its training."""
    device = choose_device(settings.device)
    return OverlapTilePredictor(
        load_model(folder / "model.safetensors", device=device),
        average=average,
        precision=choose_precision(settings.precision, device),
    )
