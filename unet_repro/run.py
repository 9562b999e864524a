"""A run: a folder that a labelled stack is turned into, from weight maps to report.

======================  ==========================================================================
file                    what
======================  ==========================================================================
model.safetensors       the network, its whole configuration in the metadata: it alone predicts
best.safetensors        the same at the validation with the lowest pixel error
checkpoint.pt           what training needs to go on
weight_map_*.npz        the weight map of all slices, kept for the same labels and settings
config.json             settings, versions, hardware, data, how far the run came
log.csv                 loss, learning rate and validation over the iterations
events.out.tfevents.*   the same for TensorBoard, and pictures, where it is installed
heldout_*.tif           image, labels and P(interior) of the held-out slices
metrics.json            figures of the held-out slices, and of the test set where its labels exist
report.html             all of it, to look at; rewritten at every validation
======================  ==========================================================================
"""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro import config
from unet_repro._version import __version__
from unet_repro.config import TrainConfig, WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path, check_output
from unet_repro.files.lock import run_lock
from unet_repro.images.stacks import write_stack
from unet_repro.network.device import choose_device, choose_precision, describe
from unet_repro.network.model_file import load_model
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume
from unet_repro.prediction.views import Average
from unet_repro.quantities import index_range
from unet_repro.reports.evaluation import evaluate_em
from unet_repro.reports.report import write_report
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.parallel import ALONE, Processes, check_alone
from unet_repro.training.state import output_side
from unet_repro.training.train import Progress, Start, Trained, train
from unet_repro.training.validation import HeldOut
from unet_repro.weight_maps.weight_cache import cached_weight_map
from unet_repro.weight_maps.weight_map import frequency_weights, separate_touching

TRAINED = (
    *("checkpoint.pt", "model.safetensors", "best.safetensors"),
    *("config.json", "log.csv", "events.out.tfevents.*"),
)
LEFTOVERS = (  # what a killed run was just writing
    *(".checkpoint.????????.pt", ".model.????????.safetensors", ".best.????????.safetensors"),
    *(".config.????????.json", ".report.????????.html", ".log.????????.csv"),
    *(".weight_map_*.????????.npz", ".metrics.????????.json", ".heldout_*.????????.tif"),
)
RESULTS = ("metrics.json", "heldout_*.tif", "submission.tif", "report.html")
LIBRARIES = ("torch", "numpy", "scipy", "scikit-image", "tifffile", "numba")


@dataclass(frozen=True)
class LabelledStack:
    """Images and labels in memory, and what the record says of where they are from.

    Parameters
    ----------
    images, labels : ndarray, shape (z, y, x)
        As `stack_io.read_pair` gives them.
    name, images_path, labels_path, command
        For the record.
    is_synthetic
        Not real data: every output says so.
    known : ndarray of bool, shape (z, y, x), optional
        False where the labels are unknown, as in partly annotated frames: weight 0.
    """

    images: np.ndarray
    labels: np.ndarray
    name: str
    images_path: str
    labels_path: str
    is_synthetic: bool = False
    command: str = ""
    known: np.ndarray | None = None


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
        Those that train together (`parallel.started`). The first one writes the folder; the
        others may keep a copy of the weight maps in theirs, on another machine.

    Raises
    ------
    InputError
        The folder holds a run and neither `resume` nor `overwrite` is given, or cannot be written;
        a setting that does not fit the data; another process is writing the folder.
    """
    if processes.count == 1:
        check_alone()
    if resume and overwrite:
        raise InputError("--resume goes on with a run and --overwrite replaces it: give one")
    held_out = held_out_slices(data, settings)
    kept = [z for z in range(len(data.images)) if z not in held_out]
    if not kept:
        raise InputError(f"--val {settings.val} holds out every slice: none is left to train on")
    classes = _classes(data.labels, settings.weight_map)
    for part, name in ((kept, "training"), (list(held_out), "held-out")):
        _check_both_classes(data.labels[part], classes[part], name)
    output_side(settings)
    device = processes.place(choose_device(settings.device))
    settings = replace(settings, precision=choose_precision(settings.precision, device))
    with run_lock(folder) if processes.is_first else nullcontext():
        if processes.is_first:
            _check_folder(folder, resume=resume, overwrite=overwrite)
        with processes.first_alone():
            weights, held_out_weights = _weight_maps(
                data, classes, settings, folder, kept, held_out
            )
        training = TrainingSet(data.images[kept], classes[kept], weights, device=device)
        record = _record(data, settings, kept, held_out, describe(device))
        record["hardware"]["processes"] = processes.count
        validation = None
        if held_out:
            block = slice(held_out.start, held_out.stop)
            validation = HeldOut(data.images[block], classes[block], held_out_weights)

        def on_start(start: Start) -> None:
            """Begin to write, now that nothing can be refused any more."""
            if overwrite or not start.is_over:
                _remove(folder, RESULTS if resume else RESULTS + TRAINED)
            _remove(folder, LEFTOVERS)
            record["settings"]["model"] = config.to_dict(start.model)
            write_state(Progress(start.iterations, 0.0, "running", False, None))

        def write_state(progress: Progress) -> None:
            record["state"] = {
                "iterations": progress.iterations,
                "seconds": round(progress.seconds, 1),
                "stopped": progress.stopped,
                "collapsed": progress.has_collapsed,
                "best": vars(progress.best) if progress.best else None,
            }
            _write_json(folder / "config.json", record)

        def on_validation(progress: Progress) -> None:
            write_state(progress)
            write_report(folder)

        trained = train(
            training,
            settings,
            folder,
            held_out=validation,
            resume=resume,
            is_quiet=is_quiet,
            processes=processes,
            origin=_origin(record),
            on_start=on_start,
            on_validation=on_validation,
        )
        if processes.is_first:
            write_state(trained)
        return trained


def _classes(labels: np.ndarray, how: WeightMapConfig) -> np.ndarray:
    """Return what is learned: uint8, 1 in the cells' interiors and 0 elsewhere."""
    if how.separate_touching:
        labels = separate_touching(labels, radius=how.separation_px, workers=2)
    return (labels > 0).astype(np.uint8)


def _check_both_classes(labels: np.ndarray, classes: np.ndarray, name: str) -> None:
    is_cell = labels > 0
    if is_cell.size and is_cell.all() == is_cell.any():
        found = "cell interior" if is_cell.any() else "background"
        raise InputError(f"the {name} slices' labels are all {found}: both classes are needed")
    if classes.size and not classes.any():
        raise InputError(
            f"separate_touching leaves nothing of the {name} slices' cells: they need a smaller "
            "separation_px"
        )


def held_out_slices(data: LabelledStack, settings: TrainConfig) -> range:
    """Return the indices of the held-out slices, empty for none."""
    if not settings.val:
        return range(0)
    return index_range(settings.val, length=len(data.images), name="--val")


def _check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run that nobody gave up, or that cannot be written."""
    check_output(folder / "config.json", overwrite=True)
    is_taken = any(any(folder.glob(name)) for name in RESULTS + TRAINED)
    if is_taken and not (resume or overwrite):
        raise InputError(
            f"{folder}: holds a run already; --resume goes on with it, --overwrite replaces it"
        )


def _remove(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        for path in folder.glob(name):
            path.unlink()


def _weight_maps(
    data: LabelledStack,
    classes: np.ndarray,
    settings: TrainConfig,
    folder: Path,
    kept: list[int],
    held_out: range,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight maps of the two parts; both balanced by the training slices alone."""
    is_cell = classes[kept] != 0
    if data.known is not None:
        is_cell = is_cell[data.known[kept]]
    interior = int(np.count_nonzero(is_cell))
    balance = None
    if settings.weight_map.class_balance == "frequency":
        balance = frequency_weights(is_cell.size - interior, interior)
    weights = cached_weight_map(
        data.labels,
        folder,
        w0=settings.weight_map.w0,
        sigma=settings.weight_map.sigma,
        class_balance=balance,
        separate_touching=settings.weight_map.separate_touching,
        separation_px=settings.weight_map.separation_px,
        workers=2,
    )
    if data.known is not None:
        weights = np.where(data.known, weights, np.float32(0))
    return weights[kept], weights[list(held_out)]


def _record(
    data: LabelledStack,
    settings: TrainConfig,
    kept: list[int],
    held_out: range,
    hardware: dict[str, Any],
) -> dict[str, Any]:
    versions = {"unet_repro": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in LIBRARIES}
    return {
        **({"command": data.command} if data.command else {}),
        "settings": config.to_dict(settings),
        "versions": versions,
        "hardware": hardware,
        "data": {
            "name": data.name,
            "synthetic": data.is_synthetic,
            "images": data.images_path,
            "labels": data.labels_path,
            "images_sha256": _sha256(data.images),
            "labels_sha256": _sha256(data.labels),
            "slices": len(data.images),
            "train_slices": _ranges(kept),
            "heldout_slices": f"{held_out.start}:{held_out.stop}" if held_out else "",
        },
    }


def _origin(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a model file tells of its making: versions and data, not where they lie."""
    data = {key: value for key, value in record["data"].items() if key not in ("images", "labels")}
    return {"versions": record["versions"], "hardware": record["hardware"], "data": data}


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _ranges(indices: list[int]) -> str:
    """Return sorted indices as ranges: [0, 1, 2, 5] is "0:3, 5:6"."""
    breaks = [i for i in range(1, len(indices)) if indices[i] != indices[i - 1] + 1]
    starts, stops = [0, *breaks], [*breaks, len(indices)]
    return ", ".join(f"{indices[a]}:{indices[b - 1] + 1}" for a, b in zip(starts, stops))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path, overwrite=True) as part:
        part.write_text(json.dumps(content, indent=1))


def evaluate_run(
    data: LabelledStack,
    settings: TrainConfig,
    folder: Path,
    *,
    average: Average = "dihedral",
    test: tuple[np.ndarray, np.ndarray] | None = None,
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
        Content of ``metrics.json``: ``heldout`` and ``test``, each an `evaluate_em` result or None.

    Raises
    ------
    InputError
        Another process is writing the folder, or it cannot be written.
    """
    held_out = held_out_slices(data, settings)
    result: dict[str, Any] = {"heldout": None, "test": None, "average": average}
    with run_lock(folder):
        if held_out:
            block = slice(held_out.start, held_out.stop)
            probability = predict_volume(
                run_predictor(settings, folder, average), data.images[block], progress=not is_quiet
            )
            labels = data.labels[block]
            image = _storable(data.images[block])
            write_stack(folder / "heldout_image.tif", image, overwrite=True)
            write_stack(folder / "heldout_labels.tif", _storable(labels), overwrite=True)
            write_stack(folder / "heldout_probability.tif", probability, overwrite=True)
            result["heldout"] = evaluate_em(labels, probability, first_slice=held_out.start)
        if test is not None:
            result["test"] = evaluate_em(*test)
        _write_json(folder / "metrics.json", result)
        write_report(folder)
        return result


def _storable(stack: np.ndarray) -> np.ndarray:
    """Return a stack in a type that every TIFF reader takes: float32, uint8 or uint16.

    Integers beyond 16 bits, or below 0, become their ranks: equal stays equal, larger stays
    larger, and background stays 0.
    """
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
