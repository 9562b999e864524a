"""The command line: ``unet-repro train | predict | weight-map | evaluate | report | ...``.

Every option is a field of a dataclass: tyro makes flags, types, defaults and help from it. What
draws is imported by the commands that draw: its libraries take most of a second to load.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import numpy as np
import tyro

from unet_repro.config import TILE_INPUT_PX, AugmentationConfig, TrainConfig
from unet_repro.errors import InputError, one_line
from unet_repro.files.atomic import atomic_path, check_apart, check_output
from unet_repro.files.lock import run_lock
from unet_repro.images.slices import mapped
from unet_repro.images.stacks import read_labels, read_pair, read_stack
from unet_repro.network.device import choose_device
from unet_repro.network.model_file import load_model
from unet_repro.prediction.predict_stack import prepared
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.views import Average
from unet_repro.program import INTERRUPTED, Settings, guarded, parse, preset_settings
from unet_repro.training import parallel
from unet_repro.training.samples import LabelledStack
from unet_repro.weight_maps.stack import WeightMapSettings, write_weight_map
from unet_repro.weight_maps.weight_map import instances, kind_of

arg = tyro.conf.arg
Images = Annotated[
    tyro.conf.Positional[Path],
    arg(
        metavar="IMAGES", help="TIFF stack, or folder of grey TIFF or PNG images in natural order."
    ),
]
Labels = Annotated[
    tyro.conf.Positional[Path],
    arg(
        metavar="LABELS",
        help="TIFF stack or folder: instance ids, or a 0/255 (0/1) mask whose 4-connected "
        "components are cells.",
    ),
]
Flag = tyro.conf.FlagCreatePairsOff[bool]
Resume = Annotated[Flag, arg(help="Go on with what an interrupted or killed call has left.")]
Overwrite = Annotated[Flag, arg(help="Replace what is there.")]


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
    resume: Resume = False
    overwrite: Overwrite = False
    average: Average = "dihedral"
    command: tyro.conf.Suppress[str] = ""

    def run(self) -> int:
        with contextlib.ExitStack() as held:
            return self._run(held)

    def _run(self, held: contextlib.ExitStack) -> int:
        from unet_repro.reports import evaluation
        from unet_repro.reports.report import write_report
        from unet_repro.training_run import evaluate_run, start_run

        with parallel.started() as processes:
            images, labels = read_pair(self.images, self.labels)
            data = LabelledStack(
                images,
                labels,
                self.images.stem,
                str(self.images),
                str(self.labels),
                command=self.command,
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
            print(evaluation.table(result["heldout"]))
        print(f"model:  {self.out / 'model.safetensors'}\nreport: {self.out / 'report.html'}")
        return 0


@dataclass(frozen=True)
class Predict:
    """Segment a stack of any size, slice by slice and tile by tile, with a trained network.

    Parameters
    ----------
    stack
        TIFF stack, or folder of TIFF or PNG images in natural order.
    model
        A model.safetensors that train has written.
    out
        TIFF file to write; or, where STACK is a folder, a folder for files of the same names
        (needed where its images have several sizes).
    plan
        Show tiles, memory, output and time, and stop.
    verify
        Compute random places again with other windows before the output gets its name.
    """

    stack: Annotated[tyro.conf.Positional[Path], arg(metavar="STACK")]
    model: Path
    out: Path
    settings: tyro.conf.OmitArgPrefixes[PredictionSettings] = field(
        default_factory=PredictionSettings
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    plan: Flag = False
    verify: Flag = False
    resume: Resume = False
    overwrite: Overwrite = False

    def run(self) -> int:
        network = load_model(self.model, device=choose_device(self.device))
        with prepared(self.stack, network, self.out, self.settings) as prediction:
            if self.plan:
                print(prediction.outlook())
                return 0
            try:
                prediction.run(
                    resume=self.resume, overwrite=self.overwrite, verify=self.verify, progress=True
                )
            except KeyboardInterrupt:
                print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
                return INTERRUPTED
        print(self.out)
        return 0


@dataclass(frozen=True)
class WeightMap:
    """Precompute the weight map of a labelled stack (Eq. 2), float32, page by page.

    Parameters
    ----------
    out
        TIFF stack to write; axes and scale are the labels', the settings are recorded in it. For a
        folder of images of several sizes, a folder.
    preview
        PNG to draw the middle slice in: labels, class weight, border term, sum.
    workers
        Threads; by default one per core.
    """

    labels: Labels
    out: Path
    settings: tyro.conf.OmitArgPrefixes[WeightMapSettings] = field(
        default_factory=WeightMapSettings
    )
    preview: Path | None = None
    workers: int | None = None
    resume: Resume = False
    overwrite: Overwrite = False

    def run(self) -> int:
        replaces = self.overwrite or self.resume
        if self.preview:
            check_apart(self.preview, self.labels)
            check_output(self.preview, overwrite=replaces)

        def draw(slice_: np.ndarray, options: dict[str, Any]) -> None:
            if self.preview:
                from unet_repro.reports.preview import weight_map_preview

                weight_map_preview(slice_, self.preview, **options, overwrite=replaces)

        try:
            write_weight_map(
                self.labels,
                self.out,
                settings=self.settings,
                resume=self.resume,
                overwrite=self.overwrite,
                workers=self.workers,
                on_survey=draw,
            )
        except KeyboardInterrupt:
            print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
            return INTERRUPTED
        print(self.out)
        return 0


@dataclass(frozen=True)
class PreviewAugmentation:
    """Draw the middle slice, and augmented samples of it with their deformed weight maps.

    Parameters
    ----------
    out
        PNG to write.
    tile
        Side of a sample in px.
    samples
        How many to draw beside the original.
    seed
        Of the samples.
    """

    images: Images
    labels: Labels
    out: Path
    settings: tyro.conf.OmitArgPrefixes[AugmentationConfig] = field(
        default_factory=AugmentationConfig
    )
    tile: int = TILE_INPUT_PX
    samples: int = 8
    seed: int = 0
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.reports.preview import augmentation_preview

        check_output(self.out, overwrite=self.overwrite)
        images, labels = read_pair(self.images, self.labels)
        augmentation_preview(
            images,
            labels,
            self.out,
            settings=self.settings,
            window=self.tile,
            samples=self.samples,
            seed=self.seed,
            overwrite=self.overwrite,
        )
        print(self.out)
        return 0


@dataclass(frozen=True)
class Evaluate:
    """Compare a prediction with labels: the EM challenge's figures, or the cell figures.

    Parameters
    ----------
    labels
        TIFF stack or folder; for the EM challenge above 0 is cell interior.
    prediction
        The same shape; em: P(interior), float in [0, 1]; cells: instance ids, or a 0/255 (0/1)
        mask whose 4-connected components are the cells.
    task
        em: pixel, Rand and warping error, V_rand, V_info; cells: IOU and SEG.
    json
        Write the figures and their curves here.
    plot
        Write a PNG of the figures over the thresholds and of splits and mergers (em).
    """

    labels: Annotated[tyro.conf.Positional[Path], arg(metavar="LABELS")]
    prediction: Annotated[tyro.conf.Positional[Path], arg(metavar="PREDICTION")]
    task: Literal["em", "cells"] = "em"
    json: Path | None = None
    plot: Path | None = None
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.reports import evaluation

        if self.plot and self.task == "cells":
            raise InputError("--plot draws figures over thresholds: it goes with --task em")
        for path in (self.json, self.plot):
            if path:
                check_output(path, overwrite=self.overwrite)
        labels = read_labels(self.labels)
        if self.task == "cells":
            prediction = read_labels(self.prediction)
            result = evaluation.evaluate_cells(
                *(
                    mapped(partial(instances, kind=kind_of(stack)), stack)
                    for stack in (labels, prediction)
                )
            )
        else:
            probability = read_stack(self.prediction)
            result = evaluation.evaluate_em(labels, probability, progress=True)
        if self.json:
            with atomic_path(self.json, overwrite=self.overwrite) as part:
                part.write_text(json.dumps(result, indent=1))
        if self.plot:
            evaluation.plot_evaluation(
                labels, probability, result, self.plot, overwrite=self.overwrite
            )
        print(evaluation.table(result))
        return 0


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew, from the files in its folder.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    folder: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]

    def run(self) -> int:
        from unet_repro.reports.report import write_report

        print(write_report(self.folder))
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 bad input or usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    missing = tyro.MISSING
    train = Train(
        missing,
        missing,
        missing,
        settings=preset_settings(arguments, "paper"),
        command=shlex.join(["unet-repro", *arguments]),
    )
    command: Any = Union[  # noqa: UP007
        Annotated[Train, tyro.conf.subcommand(name="train", default=train)],
        Annotated[Predict, tyro.conf.subcommand(name="predict")],
        Annotated[WeightMap, tyro.conf.subcommand(name="weight-map")],
        Annotated[PreviewAugmentation, tyro.conf.subcommand(name="preview-augmentation")],
        Annotated[Evaluate, tyro.conf.subcommand(name="evaluate")],
        Annotated[Report, tyro.conf.subcommand(name="report")],
    ]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text: it is its bytes
        sys.stdout.reconfigure(errors="surrogateescape")
    return guarded(lambda: parse(command, arguments, prog="unet-repro").run())
