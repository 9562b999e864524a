"""The EM challenge (Sec. 4, Table 1), end to end: data, training, prediction, figures, report.

Claim: on two CPU cores, ten minutes of training on slices 0-24 of the ISBI 2012 training volume
reach the paper's own level on the held-out slices 25-29 (RESULTS.md has the measured figures).

    bash experiments/em_challenge.sh [--time-budget 10m] [--val 25:30] [--data phantom]
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback

import hashlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

from unet_repro.cli import INTERRUPTED, Settings, guarded, parse, preset_settings
from unet_repro.config import TrainConfig
from unet_repro.device import choose_device
from unet_repro.download import DATASETS, find_or_download
from unet_repro.errors import InputError
from unet_repro.evaluation import table
from unet_repro.phantom import em_phantom
from unet_repro.predict import Average, predict_volume
from unet_repro.report import CHALLENGE_DATA, write_report
from unet_repro.run import (
    LabelledStack,
    evaluate_run,
    held_out_slices,
    run_predictor,
    start_run,
)
from unet_repro.run_facts import slices
from unet_repro.stack_io import read_images, read_labels, read_pair, write_stack

BUDGET, HELD_OUT = "10m", "25:30"


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
    average
        Views whose predictions are averaged.
    overwrite
        Begin anew instead of going on.
    """

    data: str = "auto"
    out: Path = Path("results/em_challenge")
    settings: Settings = field(default_factory=TrainConfig)
    average: Average = "dihedral"
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    command: tyro.conf.Suppress[str] = ""

    def run(self) -> int:
        data, test_volume, test_labels = load(self.data)
        data = replace(data, command=self.command)
        settings = self.settings
        if not settings.val:
            if len(data.images) < int(HELD_OUT.partition(":")[2]):
                raise InputError(
                    f"the default held-out block {HELD_OUT} does not fit the {len(data.images)} "
                    "slices of the training volume: give --val a:b"
                )
            settings = replace(settings, val=HELD_OUT)
        if not settings.iterations and not settings.time_budget:
            settings = replace(settings, time_budget=BUDGET)
        trained = start_run(
            data, settings, self.out, resume=not self.overwrite, overwrite=self.overwrite
        )
        if trained.stopped == "interrupted":
            write_report(self.out)
            again = " without --overwrite" if self.overwrite else ""
            print(f"interrupted; the same command{again} goes on from here", file=sys.stderr)
            return INTERRUPTED
        predictor = run_predictor(settings, self.out, self.average)
        submission = predict_volume(predictor, test_volume, progress=True)
        write_stack(self.out / "submission.tif", submission, overwrite=True)
        test = None if test_labels is None else (test_labels, submission)
        result = evaluate_run(data, settings, self.out, average=self.average, test=test)
        print(summary(data, settings, result, self.out))
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
    images, labels = read_pair(*paths)
    test_volume = read_images(folder / "test-volume.tif")
    truth = folder / "test-labels.tif"
    test_labels = _read_truth(truth, test_volume) if truth.exists() else None
    is_challenge = _are_published(
        {"train-volume.tif": images, "train-labels.tif": labels, "test-volume.tif": test_volume}
    )
    name = CHALLENGE_DATA if is_challenge else f"{folder.resolve().name}/"
    return LabelledStack(images, labels, name, *map(str, paths)), test_volume, test_labels


def _read_truth(path: Path, test_volume: np.ndarray) -> np.ndarray:
    labels = read_labels(path)
    if labels.shape != test_volume.shape:
        sizes = [" × ".join(map(str, stack.shape)) for stack in (labels, test_volume)]
        raise InputError(f"{path}: is {sizes[0]}, but test-volume.tif is {sizes[1]} (z × y × x)")
    is_cell = labels > 0
    if is_cell.all() or not is_cell.any():
        raise InputError(f"{path}: holds one class only: there is nothing to score")
    return labels


def _are_published(stacks: dict[str, np.ndarray]) -> bool:
    """Tell whether the pixels of all stacks are those that the challenge published."""
    published = DATASETS["isbi2012"].pixels_sha256
    return published == {
        name: hashlib.sha256(stack.tobytes()).hexdigest() for name, stack in stacks.items()
    }


def summary(data: LabelledStack, settings: TrainConfig, result: dict, out: Path) -> str:
    """Return what the job says at its end: figures, and where everything lies."""
    origin = "SYNTHETIC data (phantom), not EM" if data.is_synthetic else data.name
    block = held_out_slices(data, settings)
    held_out = slices(f"{block.start}:{block.stop}")
    lines = [f"\n{origin}: slices {held_out} held out, trained on the others"]
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
    preset = "paper" if choose_device("auto").type == "cuda" else "quick"
    command = shlex.join(["bash", "experiments/em_challenge.sh", *arguments])
    default = EMChallenge(settings=preset_settings(arguments, preset), command=command)
    return guarded(
        lambda: parse(EMChallenge, arguments, prog="em_challenge", default=default).run()
    )


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
