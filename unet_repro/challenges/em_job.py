"""The job behind Table 1 (Sec. 4): data, training, prediction, figures, report."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import tyro

from unet_repro.challenges.download import DATASETS, find_or_download
from unet_repro.challenges.phantom import em_phantom
from unet_repro.choices import Average
from unet_repro.config import Preset, TrainConfig
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.files.lock import run_lock
from unet_repro.images.labels import instances
from unet_repro.images.slices import of_one_size, room_for
from unet_repro.images.stacks import read_images, read_labels, read_pair, read_stack, write_stack
from unet_repro.network.device import choose_device
from unet_repro.prediction.predictor import predict_volume
from unet_repro.program import INTERRUPTED, Settings, guarded, parse, preset_settings
from unet_repro.quantities import ranges
from unet_repro.reports.evaluation import evaluate_em, table
from unet_repro.reports.report import CHALLENGE_DATA
from unet_repro.reports.run_facts import slices
from unet_repro.training.samples import LabelledStack, held_out_slices
from unet_repro.training_run import evaluate_run, finish_run, run_predictor

BUDGET, HELD_OUT = "10m", "25:30"
# with the preset `quick`; not in the paper: chosen on slices 0-24 (TRIALS.md)
UNWARPED = 0.5


@dataclass(frozen=True)
class EMChallenge:
    """Re-run the EM challenge: train, predict, evaluate, write the submission and the report.

    Run again, it goes on where it was stopped, or repeats the last steps of a finished run.

    Parameters
    ----------
    data
        "auto": the real data if they are here or can be downloaded, else the phantom; "phantom";
        or a folder with train-volume.tif, train-labels.tif and test-volume.tif.
    out
        Folder of the run and of all results.
    folds
        Cross-validate: so many contiguous blocks of slices are held out in turn, each from a
        training of its own, as long as the budget says; 0 for the one block of --val.
    average
        Views whose predictions are averaged.
    overwrite
        Begin anew instead of going on.
    """

    data: str = "auto"
    out: Path = Path("results/em_challenge")
    settings: Settings = field(default_factory=TrainConfig)
    folds: int = 0
    average: Average = "dihedral"
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    command: tyro.conf.Suppress[str] = ""

    def run(self) -> int:
        with run_lock(self.out):
            return self._run()

    def _run(self) -> int:
        data, test_volume, test_labels = load(self.data)
        data = replace(data, command=self.command)
        settings = self.settings
        if not settings.iterations and not settings.time_budget:
            settings = replace(settings, time_budget=BUDGET)
        if self.folds:
            return self._cross_validate(data, settings)
        if not settings.val:
            if len(data.images) < int(HELD_OUT.partition(":")[2]):
                raise InputError(
                    f"the default held-out block {HELD_OUT} does not fit the {len(data.images)} "
                    "slices of the training volume: give --val a:b"
                )
            settings = replace(settings, val=HELD_OUT)
        if not finish_run(data, settings, self.out, overwrite=self.overwrite):
            return INTERRUPTED
        predictor = run_predictor(settings, self.out, self.average)
        submission = predict_volume(predictor, test_volume, progress=True)
        write_stack(self.out / "submission.tif", submission, overwrite=True)
        test = None if test_labels is None else (test_labels, submission)
        result = evaluate_run(data, settings, self.out, average=self.average, test=test)
        print(summary(data, settings, result, self.out))
        return 0

    def _cross_validate(self, data: LabelledStack, settings: TrainConfig) -> int:
        """Hold out one block of slices after the other; evaluate all slices together."""
        total = len(data.images)
        if settings.val:
            raise InputError("--folds holds out every block in turn: leave --val out")
        if not 2 <= self.folds <= total:
            raise InputError(f"--folds {self.folds}: 2 to {total}, the number of slices, is needed")
        cuts = [total * fold // self.folds for fold in range(self.folds + 1)]
        probability = room_for(data.images, np.float32)
        folds = []
        for number, (start, stop) in enumerate(pairwise(cuts), start=1):
            folder = self.out / f"fold-{number}"
            fold = replace(settings, val=f"{start}:{stop}")
            print(f"fold {number} of {self.folds}: slices {fold.val} held out", file=sys.stderr)
            with run_lock(folder):
                if not finish_run(data, fold, folder, overwrite=self.overwrite):
                    return INTERRUPTED
                heldout = evaluate_run(data, fold, folder, average=self.average)["heldout"]
                folds.append({"val": fold.val, **heldout})
                probability[start:stop] = read_stack(folder / "heldout_probability.tif")
        write_stack(self.out / "crossvalidation_probability.tif", probability, overwrite=True)
        result = evaluate_em(data.truth, probability)
        with atomic_path(self.out / "crossvalidation.json", overwrite=True) as part:
            part.write_text(json.dumps({"all": result, "folds": folds}, indent=1))
        print(f"\n{origin(data)}: every slice predicted by a network that has not seen its block")
        print(table(result))
        for fold_result in folds:
            best = fold_result["figures"]
            figures = (f"{name} {best[name]:.4f}" for name in ("v_rand", "v_info", "pixel_error"))
            print(f"slices {fold_result['val']}: {', '.join(figures)}")
        for name in ("crossvalidation.json", "crossvalidation_probability.tif"):
            print(self.out / name)
        return 0


def load(where: str) -> tuple[LabelledStack, np.ndarray, np.ndarray | None]:
    """Return the training volume, the test volume, and the test labels where they are at hand."""
    folder = Path(where)
    if where == "auto":
        try:
            folder = find_or_download("isbi2012")
        except InputError as error:
            print(f"{error}\nNO REAL DATA: the SYNTHETIC phantom takes its place", file=sys.stderr)
            where = "phantom"
    if where == "phantom":
        images, labels = em_phantom(seed=0)
        test_volume, _ = em_phantom(seed=1)
        return LabelledStack(images, labels, "synthetic phantom", "", "", True), test_volume, None
    paths = [folder / f"{name}.tif" for name in ("train-volume", "train-labels")]
    images, labels = (of_one_size(stack, path) for stack, path in zip(read_pair(*paths), paths))
    test_path = folder / "test-volume.tif"
    test_volume = of_one_size(read_images(test_path), test_path)
    truth = folder / "test-labels.tif"
    test_labels = _read_truth(truth, test_volume) if truth.exists() else None
    is_challenge = _are_published(
        {"train-volume.tif": images, "train-labels.tif": labels, "test-volume.tif": test_volume}
    )
    name = CHALLENGE_DATA if is_challenge else f"{folder.resolve().name}/"
    data = LabelledStack(images, labels, name, str(paths[0]), str(paths[1]))
    return data, test_volume, test_labels


def _read_truth(path: Path, test_volume: np.ndarray) -> np.ndarray:
    labels = of_one_size(read_labels(path), path)
    if labels.shape != test_volume.shape:
        sizes = [" × ".join(map(str, stack.shape)) for stack in (labels, test_volume)]
        raise InputError(f"{path}: is {sizes[0]}, but test-volume.tif is {sizes[1]} (z × y × x)")
    cells = instances(labels)
    if (cells > 0).all() or not cells.any():
        raise InputError(f"{path}: holds one class only: there is nothing to score")
    return cells


def _are_published(stacks: dict[str, np.ndarray]) -> bool:
    """Tell whether the pixels of all stacks are those that the challenge published."""
    published = DATASETS["isbi2012"].pixels_sha256
    return published == {
        name: hashlib.sha256(stack.tobytes()).hexdigest() for name, stack in stacks.items()
    }


def origin(data: LabelledStack) -> str:
    """Return what figures on these data are figures of."""
    return "SYNTHETIC data (phantom), not EM" if data.is_synthetic else data.name


def summary(data: LabelledStack, settings: TrainConfig, result: dict, out: Path) -> str:
    """Return what the job says at its end: figures, and where everything lies."""
    held_out = slices(ranges(held_out_slices(data, settings)))
    lines = [f"\n{origin(data)}: slices {held_out} held out, trained on the others"]
    lines.append(table(result["heldout"]))
    if result["test"]:
        is_challenge = data.name == CHALLENGE_DATA
        heading = "The challenge's test set:" if is_challenge else "The test set of this folder:"
        lines += [f"\n{heading}", table(result["test"], is_test_set=is_challenge)]
    else:
        lines.append("The test set's labels (test-labels.tif) are not at hand: it is not scored.")
    names = ("report.html", "metrics.json", "submission.tif", "heldout_probability.tif")
    return "\n".join([*lines, "", *(str(out / name) for name in (*names, "model.safetensors"))])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    preset: Preset = "paper" if choose_device("auto").type == "cuda" else "quick"
    command = shlex.join(["bash", "experiments/em_challenge.sh", *arguments])
    settings = preset_settings(arguments, preset)
    if settings.preset == "quick":
        augmentation = replace(settings.augmentation, unwarped=UNWARPED)
        settings = replace(settings, augmentation=augmentation)
    default = EMChallenge(settings=settings, command=command)
    return guarded(
        lambda: parse(EMChallenge, arguments, prog="em_challenge", default=default).run()
    )
