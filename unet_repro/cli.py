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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import numpy as np
import tyro

from unet_repro.cluster import Machines
from unet_repro.config import TILE_INPUT_PX, AugmentationConfig, TrainConfig
from unet_repro.errors import InputError, one_line
from unet_repro.files.atomic import atomic_path, check_apart, check_output
from unet_repro.files.lock import run_lock
from unet_repro.files.places import url_of
from unet_repro.images.calibration import read_info
from unet_repro.images.labels import (
    UNKNOWN_CELL,
    LabelSettings,
    Reading,
    read_meaning,
    recorded_unknown,
)
from unet_repro.images.slices import joined, mapped
from unet_repro.images.stacks import paired_files, read_labels, read_pair, read_stack, slice_names
from unet_repro.network.bundled import bundled_models
from unet_repro.network.device import choose_device
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predict_stack import prepared
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.values import recorded_full_scale, recorded_kind
from unet_repro.prediction.views import Average
from unet_repro.program import INTERRUPTED, Settings, guarded, parse, preset_settings
from unet_repro.training import parallel
from unet_repro.training.samples import LabelledStack
from unet_repro.weight_maps.stack import Survey, WeightMapSettings, write_weight_map

arg = tyro.conf.arg
Images = Annotated[
    tyro.conf.Positional[Path],
    arg(
        metavar="IMAGES",
        help="TIFF stack, PNG or JPEG image, or folder of images in natural order; grey, or of "
        "--in-channels channels.",
    ),
]
Labels = Annotated[
    tyro.conf.Positional[Path],
    arg(
        metavar="LABELS",
        help="TIFF stack or folder: a mask, whose 4-connected components are cells, instance ids "
        "or classes (--label-kind); one line says how they were read.",
    ),
]
MaskSuffix = Annotated[
    str,
    arg(
        help="Of two folders, or one that holds both: what the labels' names have in addition, "
        "_mask for 7.png and 7_mask.png; pairs always go by name."
    ),
]
ImageAxes = Annotated[
    str, arg(help="Of both stacks, in place of those that the files declare, such as ZYX.")
]
LabelOptions = tyro.conf.OmitArgPrefixes[LabelSettings]
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
        from unet_repro.reports.report import write_report
        from unet_repro.training_run import evaluate_run, start_run

        for source in (self.images, self.labels):
            check_apart(self.out, source)
        with parallel.started() as processes:
            images, labels = read_pair(
                self.images,
                self.labels,
                channels=self.settings.model.in_channels,
                ignore_label=self.read_as.ignore_label,
                axes=self.axes or None,
                mask_suffix=self.mask_suffix,
            )
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
            print(_table(result["heldout"]))
        print(f"model:  {self.out / 'model.safetensors'}\nreport: {self.out / 'report.html'}")
        return 0


@dataclass(frozen=True)
class Predict:
    """Segment a stack of any size, slice by slice and tile by tile, with a trained network.

    Parameters
    ----------
    stack
        TIFF stack, PNG or JPEG image, folder of images in natural order; OME-Zarr image or zarr
        array, a folder or URL (s3://, https://); file.h5:/dataset.
    model
        A model.safetensors that train has written, or the name of a network that comes with the
        package: em (see unet-repro models).
    out
        TIFF file to write; OME-Zarr (a name that ends in .zarr, also s3://), which several
        processes can write; or, where STACK is a folder, a folder for files of the same names
        (needed where its images have several sizes).
    device
        auto: CUDA where there is one, else the CPU; or any that PyTorch knows, such as cpu, cuda:1
        (the second), mps or xpu.
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
    machines: tyro.conf.OmitArgPrefixes[Machines] = field(default_factory=Machines)
    device: str = "auto"
    plan: Flag = False
    verify: Flag = False
    resume: Resume = False
    overwrite: Overwrite = False

    def run(self) -> int:
        network = load_model(self.model, device=choose_device(self.device))
        options: dict[str, Any] = {"machines": self.machines, "model_file": self.model}
        with prepared(self.stack, network, self.out, self.settings, **options) as prediction:
            if self.plan:
                print(prediction.outlook())
                return 0
            if "auto" in (self.settings.backend, self.settings.precision):
                print(f"network: {prediction.predictor.way}", file=sys.stderr)
            try:
                is_complete = prediction.run(
                    resume=self.resume, overwrite=self.overwrite, verify=self.verify, progress=True
                )
            except KeyboardInterrupt:
                print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
                return INTERRUPTED
        return _told(is_complete, self.machines, self.out)


@dataclass(frozen=True)
class WeightMap:
    """Precompute the weight map of a labelled stack (Eq. 2), float32, page by page.

    Parameters
    ----------
    out
        TIFF stack or OME-Zarr (a name that ends in .zarr, also s3://) to write; axes and scale are
        the labels', the settings are recorded in it. For a folder of images of several sizes, a
        folder.
    preview
        PNG to draw the middle slice in: labels, class weight, border term, sum.
    threads
        Of this process; by default one per core.
    """

    labels: Labels
    out: Path
    settings: tyro.conf.OmitArgPrefixes[WeightMapSettings] = field(
        default_factory=WeightMapSettings
    )
    machines: tyro.conf.OmitArgPrefixes[Machines] = field(default_factory=Machines)
    preview: Path | None = None
    threads: int | None = None
    resume: Resume = False
    overwrite: Overwrite = False

    def run(self) -> int:
        replaces = self.overwrite or self.resume
        if self.preview:
            check_apart(self.preview, self.labels)
            if not url_of(self.out):
                check_apart(self.preview, self.out)
            check_output(self.preview, overwrite=replaces)

        def surveyed(survey: Survey) -> None:
            _tell("labels", survey.reading)
            if self.preview:
                from unet_repro.reports.preview import weight_map_preview

                options = self.settings.map_options() | {"class_balance": survey.class_balance}
                weight_map_preview(
                    survey.middle,
                    self.preview,
                    **options,
                    reading=survey.reading,
                    overwrite=replaces,
                )

        try:
            is_complete = write_weight_map(
                self.labels,
                self.out,
                settings=self.settings,
                resume=self.resume,
                overwrite=self.overwrite,
                threads=self.threads,
                machines=self.machines,
                on_survey=surveyed,
            )
        except KeyboardInterrupt:
            print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
            return INTERRUPTED
        return _told(is_complete, self.machines, self.out)


@dataclass(frozen=True)
class PreviewAugmentation:
    """Draw the middle slice, and augmented samples of it with their deformed weight maps.

    Parameters
    ----------
    out
        PNG to write.
    in_channels
        Channels of the images; three are drawn as colours, of others the first.
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
    read_as: LabelOptions = field(default_factory=LabelSettings)
    axes: ImageAxes = ""
    mask_suffix: MaskSuffix = ""
    in_channels: int = 1
    tile: int = TILE_INPUT_PX
    samples: int = 8
    seed: int = 0
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.reports.preview import augmentation_preview

        for source in (self.images, self.labels):
            check_apart(self.out, source)
        check_output(self.out, overwrite=self.overwrite)
        images, labels = read_pair(
            self.images,
            self.labels,
            channels=self.in_channels,
            ignore_label=self.read_as.ignore_label,
            axes=self.axes or None,
            mask_suffix=self.mask_suffix,
        )
        reading = augmentation_preview(
            images,
            labels,
            self.out,
            settings=self.settings,
            window=self.tile,
            samples=self.samples,
            seed=self.seed,
            **vars(self.read_as),
            overwrite=self.overwrite,
        )
        _tell("labels", reading)
        print(self.out)
        return 0


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
    task: Literal["em", "cells", "classes"] = "em"
    read_as: LabelOptions = field(default_factory=LabelSettings)
    axes: ImageAxes = ""
    mask_suffix: MaskSuffix = ""
    max_value: float | None = None
    json: Path | None = None
    plot: Path | None = None
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.reports import class_evaluation, evaluation

        if self.plot and self.task != "em":
            raise InputError("--plot draws figures over thresholds: it goes with --task em")
        if self.json and self.plot:
            check_apart(self.json, self.plot)
        for path in (self.json, self.plot):
            if path:
                check_apart(path, self.labels)
                check_apart(path, self.prediction)
                check_output(path, overwrite=self.overwrite)
        predicted, truth = paired_files(self.prediction, self.labels, mask_suffix=self.mask_suffix)
        ignore = self.read_as.ignore_label
        if ignore is None:
            ignore = recorded_unknown(read_info(truth[0] if truth else self.labels))
        axes = self.axes or None
        labels = read_labels(self.labels, ignore_label=ignore, axes=axes, files=truth)
        reading = read_meaning(labels, self._labels_read_as(ignore), where=str(self.labels))
        told = [f"labels: {reading.line()}"]
        cells = joined([reading.cells(slice_) for slice_ in labels])
        known = mapped(lambda ids: ids != UNKNOWN_CELL, cells) if reading.unknown else None
        cells = mapped(lambda ids: np.maximum(ids, 0), cells)
        are_labels = self.task != "em"
        prediction = read_stack(self.prediction, as_labels=are_labels, axes=axes, files=predicted)
        recorded = read_info(predicted[0] if predicted else self.prediction)
        full_scale = self._full_scale(recorded)
        if self.task == "classes":
            found = class_evaluation.predicted_classes(prediction, full_scale)
            result = class_evaluation.evaluate_classes(
                joined([reading.classes(slice_) for slice_ in labels]),
                found,
                n_classes=max(reading.n_classes, *(int(one.max()) + 1 for one in found)),
                known=known,
            )
        elif self.task == "cells":
            are_ids = recorded_kind(recorded) == "instances"
            predicted_ids, line = evaluation.predicted_cells(
                prediction, full_scale, are_ids=are_ids
            )
            told.append(f"prediction: {line}")
            result = evaluation.evaluate_cells(cells, predicted_ids, known=known)
        else:
            if full_scale not in (None, 1):
                told.append(f"prediction: P(interior) is value / {full_scale:g}")
            probability = evaluation.as_probability(prediction, full_scale)
            result = evaluation.evaluate_em(cells, probability, known=known, progress=True)
        if self.json:
            with atomic_path(self.json, overwrite=self.overwrite) as part:
                part.write_text(json.dumps(result, indent=1))
        if self.plot:
            evaluation.plot_evaluation(
                cells, probability, result, self.plot, overwrite=self.overwrite
            )
        for line in told:
            print(one_line(line), file=sys.stderr)
        print(_table(result))
        return 0

    def _full_scale(self, recorded: str | None) -> float | None:
        """Return what stands for P = 1 in the prediction, as its file or the user says."""
        full_scale = recorded_full_scale(recorded)
        if self.max_value is not None and full_scale not in (None, self.max_value):
            raise InputError(
                f"--max-value is {self.max_value:g}, but {self.prediction} records that "
                f"{full_scale:g} stands for 1: leave --max-value out"
            )
        return full_scale or self.max_value

    def _labels_read_as(self, ignore_label: int | None) -> LabelSettings:
        """Return how labels are to be read: of the task classes as such."""
        read_as = replace(self.read_as, ignore_label=ignore_label)
        if self.task != "classes":
            return read_as
        if self.read_as.label_kind in ("mask", "ids"):
            raise InputError(
                f"--task classes reads labels as classes, not as {self.read_as.label_kind}: leave "
                "--label-kind out"
            )
        return replace(read_as, label_kind="classes")


@dataclass(frozen=True)
class ImportCaffe:
    """Make a model of the weights in the authors' release: phseg_v5.caffemodel of 2015-10-02.

    Parameters
    ----------
    file
        The .caffemodel, unpacked from the authors' archive.
    out
        Model file to write, such as release.safetensors.
    input_mean
        (grey value - mean) / std goes into the network; the file does not say how.
    input_std
        255 makes [0, 1] of 8-bit images, as the release's script does; 16-bit images need 65535.
    """

    file: Annotated[tyro.conf.Positional[Path], arg(metavar="FILE")]
    out: Path
    input_mean: float = 0.0
    input_std: float = 255.0
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.bridges import caffe

        check_apart(self.out, self.file)
        check_output(self.out, overwrite=self.overwrite)
        network = caffe.read_caffemodel(
            self.file, input_mean=self.input_mean, input_std=self.input_std
        )
        save_model(network, self.out, training=caffe.origin(self.file))
        scaling = f"(grey value - {self.input_mean:g}) / {self.input_std:g}"
        print(f"input: {scaling}; the release was trained on [0, 1]", file=sys.stderr)
        print(self.out)
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


@dataclass(frozen=True)
class Models:
    """List the trained networks that come with the package, or show the card of one.

    Parameters
    ----------
    name
        Show this network's card: data, terms, figures, what it is not for.
    """

    name: Annotated[tyro.conf.Positional[str], arg(metavar="NAME")] = ""

    def run(self) -> int:
        models = bundled_models()
        if self.name and self.name not in models:
            raise InputError(
                f"{self.name}: no network of the package has that name; there are "
                f"{', '.join(models)}"
            )
        if self.name:
            print(models[self.name].card)
            return 0
        for name, model in models.items():
            print(f"{name}: {model.summary}\n{' ' * len(name)}  {model.path}")
        return 0


@dataclass(frozen=True)
class Export:
    """Write a trained network for other programs; it is compared with this one before.

    Parameters
    ----------
    model
        A model.safetensors that train has written, or the name of a network that comes with the
        package.
    out
        File to write; of a bioimage.io package a .zip.
    """

    model: Annotated[tyro.conf.Positional[Path], arg(metavar="MODEL")]
    settings: tyro.conf.OmitArgPrefixes[ExportSettings]
    out: Path
    overwrite: Overwrite = False

    def run(self) -> int:
        from unet_repro.network.export import export_model

        export_model(self.model, self.out, settings=self.settings, overwrite=self.overwrite)
        print(self.out)
        return 0


def _table(result: dict[str, Any]) -> str:
    """Return the figures of an evaluation as text."""
    from unet_repro.reports import class_evaluation, evaluation

    if "confusion" in result:
        return class_evaluation.class_table(result)
    return evaluation.table(result)


def _told(is_complete: bool, machines: Machines, out: Path) -> int:
    """Say where an output is, or that other parts of it are missing; return the exit code."""
    if is_complete:
        print(url_of(out) or out)
    else:
        told = f"part {machines.part} of {url_of(out) or out} is done; other parts are missing yet"
        print(one_line(told), file=sys.stderr)
    return 0


def _tell(what: str, reading: Reading) -> None:
    print(one_line(f"{what}: {reading.line()}"), file=sys.stderr)


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
        Annotated[Models, tyro.conf.subcommand(name="models")],
        Annotated[ImportCaffe, tyro.conf.subcommand(name="import-caffe")],
        Annotated[Export, tyro.conf.subcommand(name="export")],
    ]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text: it is its bytes
        sys.stdout.reconfigure(errors="surrogateescape")
    return guarded(lambda: parse(command, arguments, prog="unet-repro").run())
