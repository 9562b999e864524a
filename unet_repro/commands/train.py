"""Train a network on a labelled stack."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from unet_repro.choices import Average
from unet_repro.commands.options import (
    ImageAxes,
    Images,
    LabelOptions,
    Labels,
    MaskSuffix,
    Overwrite,
    Resume,
    read_both,
)
from unet_repro.config import TrainConfig
from unet_repro.errors import one_line
from unet_repro.files.atomic import check_apart
from unet_repro.files.lock import run_lock
from unet_repro.images.label_settings import LabelSettings
from unet_repro.program import INTERRUPTED, Settings, loading


@dataclass(frozen=True)
class Train:
    """Train a network on a labelled stack; the held-out slices are predicted and evaluated.

    Several GPUs: torchrun --nproc-per-node N -m unet_repro train ...

    Parameters
    ----------
    out
        Folder of the run.
    average
        Views averaged when the held-out slices are predicted at the end.
    """

    images: Images
    labels: Labels
    out: Path
    settings: Settings = field(default_factory=TrainConfig)
    read_as: LabelOptions = field(default_factory=LabelSettings)
    axes: ImageAxes = ""
    mask_suffix: MaskSuffix = ""
    resume: Resume = False
    overwrite: Overwrite = False
    average: Average = "dihedral"
    command: tyro.conf.Suppress[str] = ""

    def run(self) -> int:
        with contextlib.ExitStack() as held:
            return self._run(held)

    def _run(self, held: contextlib.ExitStack) -> int:
        with loading():
            from unet_repro.images.stacks import slice_names
            from unet_repro.reports.class_evaluation import table_of
            from unet_repro.reports.report import write_report
            from unet_repro.training import parallel
            from unet_repro.training.samples import LabelledStack
            from unet_repro.training_run import evaluate_run, start_run

        for source in (self.images, self.labels):
            check_apart(self.out, source)
        with parallel.started() as processes:
            images, labels = read_both(self, self.settings.model.in_channels)
            data = LabelledStack(
                images,
                labels,
                self.images.stem,
                str(self.images),
                str(self.labels),
                command=self.command,
                how=self.read_as,
                names=slice_names(self.images, self.labels, mask_suffix=self.mask_suffix),
            )
            if processes.is_first:
                held.enter_context(run_lock(self.out))  # until the last figure is written
            trained = start_run(
                data,
                self.settings,
                self.out,
                resume=self.resume,
                overwrite=self.overwrite,
                processes=processes,
            )
        if not processes.is_first:
            return INTERRUPTED if trained.stopped == "interrupted" else 0
        if trained.stopped == "interrupted":
            write_report(self.out)
            print(one_line(f"interrupted; --resume goes on from {self.out}"), file=sys.stderr)
            return INTERRUPTED
        result = evaluate_run(data, self.settings, self.out, average=self.average)
        if result["heldout"]:
            print(table_of(result["heldout"]))
        print(f"model:  {self.out / 'model.safetensors'}\nreport: {self.out / 'report.html'}")
        return 0
