"""Compare a prediction with labels."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from unet_repro.choices import Task
from unet_repro.commands.options import (
    ImageAxes,
    LabelOptions,
    MaskSuffix,
    Overwrite,
    arg,
)
from unet_repro.errors import InputError, one_line
from unet_repro.files.atomic import atomic_path, check_apart, check_output, check_png
from unet_repro.images.label_settings import LabelSettings
from unet_repro.program import loading


@dataclass(frozen=True)
class Evaluate:
    """Compare a prediction with labels: figures of the EM challenge, of cells, or of classes.

    Parameters
    ----------
    labels
        TIFF stack or folder; for the EM challenge above 0 is cell interior.
    prediction
        The same shape; em: P(interior), in [0, 1]; cells: instance ids, a mask, or P(interior),
        cells where it is above 0.5; classes: 0, 1, ... as predict --kind labels writes them. What
        predict has written says itself what it holds.
    task
        em: pixel, Rand and warping error, V_rand, V_info; cells: IOU and SEG; classes: IoU,
        Dice and accuracy of each class, and the confusion matrix, with --label-kind classes.
    max_value
        The prediction holds P(interior) as numbers from 0 to this one (255 of an 8-bit image).
    json
        Write the figures and their curves here.
    plot
        Write a PNG of the figures over the thresholds and of splits and mergers (em).
    """

    labels: Annotated[tyro.conf.Positional[Path], arg(metavar="LABELS")]
    prediction: Annotated[tyro.conf.Positional[Path], arg(metavar="PREDICTION")]
    task: Task = "em"
    read_as: LabelOptions = field(default_factory=LabelSettings)
    axes: ImageAxes = ""
    mask_suffix: MaskSuffix = ""
    max_value: float | None = None
    json: Path | None = None
    plot: Path | None = None
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.reports.class_evaluation import table_of
            from unet_repro.reports.comparison import compare
            from unet_repro.reports.evaluation import plot_evaluation

        self._check_outputs()
        found = compare(
            self.labels,
            self.prediction,
            task=self.task,
            read_as=self.read_as,
            axes=self.axes or None,
            mask_suffix=self.mask_suffix,
            max_value=self.max_value,
            progress=True,
        )
        if self.json:
            with atomic_path(self.json, overwrite=self.overwrite) as part:
                part.write_text(json.dumps(found.result, indent=1))
        if self.plot:
            plot_evaluation(
                found.cells, found.values, found.result, self.plot, overwrite=self.overwrite
            )
        for line in found.told:
            print(one_line(line), file=sys.stderr)
        print(table_of(found.result))
        return 0

    def _check_outputs(self) -> None:
        if self.plot and self.task != "em":
            raise InputError("--plot draws figures over thresholds: it goes with --task em")
        if self.json and self.plot:
            check_apart(self.json, self.plot)
        for path in (self.json, self.plot):
            if path:
                check_apart(path, self.labels)
                check_apart(path, self.prediction)
                check_output(path, overwrite=self.overwrite)
        if self.plot:
            check_png(self.plot)
