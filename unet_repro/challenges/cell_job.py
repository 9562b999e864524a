"""The jobs behind Table 2, one for each data set of the Cell Tracking Challenge (Sec. 4)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from unet_repro import config
from unet_repro.challenges.cell_phantom import write_cell_phantom
from unet_repro.challenges.cell_tracking import (
    annotated_part,
    cell_table,
    segment_sequence,
    write_cell_results,
)
from unet_repro.challenges.ctc import CTCSequence, Truth, masks_folder, read_ctc_sequence
from unet_repro.challenges.download import find_or_download
from unet_repro.choices import Average
from unet_repro.config import TrainConfig
from unet_repro.errors import InputError
from unet_repro.files.lock import run_lock
from unet_repro.images.label_settings import LabelSettings
from unet_repro.network.device import choose_device
from unet_repro.prediction.instances import InstanceRule
from unet_repro.program import INTERRUPTED, Settings, guarded, parse, preset_settings
from unet_repro.reports.report import write_report
from unet_repro.training.samples import LabelledStack, held_out_slices
from unet_repro.training_run import finish_run, run_predictor

BUDGET = "20m"
_PHANTOM = "synthetic cells"


@dataclass(frozen=True)
class Experiment:
    """A data set of Table 2 and what its job sets differently from the presets."""

    dataset: str  # as `find_or_download` knows it; with underscores the script's name
    title: str  # as Table 2 has it
    rule: InstanceRule
    separation_px: float  # as in `config.WeightMapConfig`
    dropout: float | None = None  # None, here and below: the preset's
    interpolation: config.ImageInterpolation | None = None

    @property
    def script(self) -> str:
        """Name of the script, without suffix."""
        return self.dataset.replace("-", "_")

    def settings(self, settings: TrainConfig) -> TrainConfig:
        """Return a preset's settings as this job begins with them, before the flags."""
        weight_map = replace(
            settings.weight_map,
            w0=config.W0,  # Eq. 2: cells that touch need it, whatever the preset has
            separate_touching=True,
            separation_px=self.separation_px,
        )
        model, augmentation = settings.model, settings.augmentation
        if self.dropout is not None:
            model = replace(model, dropout=self.dropout)
        if self.interpolation is not None:
            augmentation = replace(augmentation, interpolation=self.interpolation)
        return replace(settings, model=model, augmentation=augmentation, weight_map=weight_map)


@dataclass(frozen=True)
class CellTracking:
    """Re-run a column of Table 2: train on one sequence, segment and score the other one.

    Run again, it goes on where training was stopped, or repeats the last steps of a finished run.
    With --val a:b it holds out these annotated frames of the training sequence (counted from 0)
    and scores them instead, so that settings can be chosen without a look at the other sequence.
    With --truth silver it learns from masks that the challenge has computed for all frames, far
    more than people have drawn; scored is always against the masks that people have drawn.
    In partly annotated frames, pixels that a cell without a mask may cover weigh nothing: those as
    near to its marker as any mask of the sequence reaches from its own. Not in the paper.

    Parameters
    ----------
    data
        "auto": the real data, which are downloaded if they are not here; "phantom": synthetic
        cells; or a folder with 01, 01_GT, 02 and 02_GT.
    out
        Folder of the run and of all results.
    train_sequence
        The other one is the test sequence.
    truth
        Whose masks to learn from: gold, drawn by people for some frames; silver, computed from the
        results of the challenge's best methods for nearly all. Not in the paper: silver.
    average
        Views whose raw scores are averaged; flips: the image mirrored along y, x, both, neither.
    overwrite
        Begin anew instead of going on.
    """

    experiment: tyro.conf.Suppress[Experiment]
    data: str = "auto"
    out: Path = Path("results")
    train_sequence: Literal["01", "02"] = "01"
    truth: Truth = "gold"
    settings: Settings = field(default_factory=TrainConfig)
    average: Average = "flips"
    rule: tyro.conf.OmitArgPrefixes[InstanceRule] = field(default_factory=InstanceRule)
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    command: tyro.conf.Suppress[str] = ""

    def run(self) -> int:
        with run_lock(self.out):
            return self._run()

    def _run(self) -> int:
        settings = self.settings
        if not settings.iterations and not settings.time_budget:
            settings = replace(settings, time_budget=BUDGET)
        folder, name = self._find()
        training = annotated_part(self._read(folder, self.truth))
        data = self._training_data(training, folder, name)
        held_out = held_out_slices(data, settings)
        if held_out:
            test = self._held_out_part(folder, {training.digits[t] for t in held_out})
        else:
            test = self._test_sequence(folder)
        if not finish_run(data, settings, self.out, overwrite=self.overwrite):
            return INTERRUPTED
        predictor = run_predictor(settings, self.out, self.average)
        instances = segment_sequence(predictor, test, self.out, rule=self.rule, progress=True)
        about = {
            "title": name,
            "train_sequence": self.train_sequence,
            "test_sequence": test.name,
            "truth": self.truth,
            "is_heldout": bool(held_out),
            "is_synthetic": data.is_synthetic,
            "views": self.average,
            "published": config.TABLE_2.get(name),
        }
        cells = write_cell_results(self.out, test, instances, rule=self.rule, about=about)
        write_report(self.out)
        print(self._summary(cells))
        return 0

    def _find(self) -> tuple[Path, str]:
        """Return the folder of the data and their name: the title only if they are as published."""
        if self.data == "phantom":
            write_cell_phantom(self.out / "phantom")
            print("SYNTHETIC cells take the place of real ones", file=sys.stderr)
            return self.out / "phantom", _PHANTOM
        if self.data == "auto":
            return find_or_download(self.experiment.dataset), self.experiment.title
        return Path(self.data), f"{Path(self.data).resolve().name}/"

    def _read(self, folder: Path, truth: Truth) -> CTCSequence:
        return read_ctc_sequence(
            folder, self.train_sequence, truth=truth, unknown_radius_px="measured"
        )

    def _training_data(self, annotated: CTCSequence, folder: Path, name: str) -> LabelledStack:
        silver = ", silver truth" if self.truth == "silver" else ""
        return LabelledStack(
            images=annotated.images,
            labels=annotated.labels,
            name=f"{name}, sequence {annotated.name}{silver}",
            images_path=str(folder / annotated.name),
            labels_path=str(folder / masks_folder(annotated.name, self.truth)),
            is_synthetic=name == _PHANTOM,
            command=self.command,
            how=LabelSettings("ids"),
            known=annotated.is_known,
            names=tuple(f"t{number}.tif" for number in annotated.digits),
        )

    def _held_out_part(self, folder: Path, numbers: set[str]) -> CTCSequence:
        """Return the held-out frames that people have annotated, by their files' numbers."""
        gold = annotated_part(self._read(folder, "gold"))
        part = [t for t, number in enumerate(gold.digits) if number in numbers]
        if not part:
            raise InputError(
                f"--val {self.settings.val}: none of these frames is in "
                f"{folder / masks_folder(gold.name, 'gold')}; those are {', '.join(gold.digits)}"
            )
        return annotated_part(gold, part)

    def _test_sequence(self, folder: Path) -> CTCSequence:
        other = "02" if self.train_sequence == "01" else "01"
        sequence = read_ctc_sequence(folder, other)
        if not sequence.labels.any():
            raise InputError(f"{folder / other}_GT/SEG: no cell is annotated: nothing to score")
        return sequence

    def _summary(self, cells: dict[str, Any]) -> str:
        """Return what the job says at its end: figures, and where everything lies."""
        which = "held-out frames of sequence" if cells["is_heldout"] else "sequence"
        synthetic = "SYNTHETIC data: " if cells["is_synthetic"] else ""
        heading = (
            f"\n{synthetic}{cells['title']}: trained on sequence {cells['train_sequence']}"
            f"{' (silver truth)' if self.truth == 'silver' else ''}, "
            f"{which} {cells['test_sequence']} scored"
        )
        names = ("report.html", "metrics.json", f"{cells['test_sequence']}_RES")
        files = [str(self.out / name) for name in (*names, "model.safetensors")]
        return "\n".join([heading, cell_table(cells), "", *files])


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Run an experiment's job; return its exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    preset: config.Preset = "paper" if choose_device("auto").type == "cuda" else "quick"
    settings = experiment.settings(preset_settings(arguments, preset))
    default = CellTracking(
        experiment=experiment,
        out=Path("results") / experiment.script,
        settings=settings,
        rule=experiment.rule,
        command=shlex.join(["bash", f"experiments/{experiment.script}.sh", *arguments]),
    )
    return guarded(
        lambda: parse(CellTracking, arguments, prog=experiment.script, default=default).run()
    )
