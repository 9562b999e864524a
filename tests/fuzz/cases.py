"""The hostile inputs: each family turns a seed into files in a folder and a command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import tifffile
import torch

from unet_repro import cli
from unet_repro.challenges.ctc import read_ctc_sequence
from unet_repro.config import UNetConfig
from unet_repro.files.block_store import BlockStore
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.program import INTERRUPTED, guarded

from . import file_bytes
from .tiff_bytes import OTHERS, damaged, hostile_tiff

SIDE = 24
HEADER = "blocks/zarr.json"  # in the folder of an unfinished output
TRAIN = [
    *("--preset", "quick", "--depth", "1", "--base-channels", "2", "--tile", "36"),
    *("--iterations", "1", "--device", "cpu", "--precision", "float32", "--average", "none"),
]


class Templates:
    """Files that are all right, made once: a model, images, labels, a run, an unfinished output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[:SIDE, :SIDE]
        cells = ((y // 8 + x // 8) % 2).astype(np.uint8)
        labels = np.stack([cells * 255] * 4)
        images = labels // 2 + np.arange(4, dtype=np.uint8)[:, None, None] + x.astype(np.uint8)
        probability = (labels / 255).astype(np.float32)
        stacks = {"images": images, "labels": labels, "probability": probability}
        for name, stack in stacks.items():
            tifffile.imwrite(folder / f"{name}.tif", stack, photometric="minisblack")
        shape = UNetConfig(depth=1, base_channels=2, input_mean=(60.0,), input_std=(60.0,))
        network = UNet(shape, generator=torch.Generator().manual_seed(0))
        save_model(network, folder / "m.safetensors")
        self.model = (folder / "m.safetensors").read_bytes()
        self.unfinished: dict[str, Path] = {}

    def warm_up(self) -> None:
        """Run every command once, so that a fork finds all imported and compiled."""
        at = self.folder
        images, labels, model, run = self.paths("images.tif", "labels.tif", "m.safetensors", "run")
        common = [images, "--model", model, "--out"]
        weights = ["weight-map", labels, "--threads", "1", "--out"]
        for arguments in (
            ["train", images, labels, "--out", run, "--val", "2:4", *TRAIN],
            ["predict", *common, str(at / "p.tif"), "--average", "dihedral"],
            ["predict", *common, str(at / "p.tif"), "--plan"],
            [*weights, str(at / "w.tif"), "--separate-touching"],
            ["evaluate", labels, str(at / "probability.tif")],
            ["evaluate", labels, labels, "--task", "cells"],
            ["report", run],
        ):
            assert cli.main(arguments) == 0, arguments
        for name, arguments in (("p2.tif", ["predict", *common]), ("w2.tif", weights)):
            with mock.patch.object(BlockStore, "finish", side_effect=KeyboardInterrupt):
                assert cli.main([*arguments, str(at / name)]) == INTERRUPTED
            self.unfinished[name] = at / f".{name}.parts"  # as a kill leaves them
            assert (self.unfinished[name] / HEADER).exists()

    def paths(self, *names: str) -> list[str]:
        return [str(self.folder / name) for name in names]


Family = Callable[[Random, Path, Templates], list[str]]


def tiff_images(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A hostile TIFF as images to predict or to train on."""
    (folder / "images.tif").write_bytes(hostile_tiff(random))
    return _use_images(random, folder, templates, "images.tif")


def _use_images(random: Random, folder: Path, templates: Templates, name: str) -> list[str]:
    common = [name, "--model", str(templates.folder / "m.safetensors"), "--out", "p.tif"]
    kind = random.random()
    if kind < 0.3:
        return ["predict", *common, "--plan"]
    if kind < 0.75:
        options = random.choice(([], ["--verify"], ["--kind", "logits"], ["--memory", "64MB"]))
        return ["predict", *common, *options]
    if kind < 0.87:
        return ["evaluate", str(templates.folder / "labels.tif"), name]
    return ["train", name, str(templates.folder / "labels.tif"), "--out", "run", *TRAIN]


def tiff_labels(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A hostile TIFF as labels."""
    (folder / "labels.tif").write_bytes(hostile_tiff(random, is_labels=True))
    kind = random.random()
    if kind < 0.6:
        options = random.choice(([], ["--separate-touching"], ["--preview", "w.png"]))
        return ["weight-map", "labels.tif", "--out", "w.tif", "--threads", "1", *options]
    if kind < 0.8:
        other = str(templates.folder / random.choice(("probability.tif", "labels.tif")))
        task = random.choice(("em", "cells"))
        return ["evaluate", "labels.tif", other, "--task", task]
    return ["train", str(templates.folder / "images.tif"), "labels.tif", "--out", "run", *TRAIN]


def image_folder(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A folder of PNG and TIFF files, one or all of them hostile."""
    inside = folder / "images"
    inside.mkdir()
    for i in range(random.choice((1, 2, 3))):
        if random.random() < 0.75:
            is_good = random.random() < 0.2
            content = file_bytes.grey_png(SIDE) if is_good else file_bytes.hostile_png(random)
            (inside / f"{i}.png").write_bytes(content)
        else:
            (inside / f"{i}.tif").write_bytes(hostile_tiff(random))
    if random.random() < 0.1:
        os.mkfifo(folder / "pipe")
        target = random.choice(("9.png", "/dev/zero", "nowhere", "../pipe"))
        (inside / random.choice(("9.png", "9.tif"))).symlink_to(target)
    arguments = _use_images(random, folder, templates, "images")
    if arguments[0] == "predict":
        arguments[arguments.index("p.tif")] = random.choice(("p.tif", "out"))
    return arguments


def one_image(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A PNG or JPEG file, given as a stack, or two or three in a folder, as images or labels."""
    is_folder = random.random() < 0.4
    name = "images"
    (folder / name).mkdir()
    for i in range(random.choice((2, 3)) if is_folder else 1):
        content, suffix = file_bytes.image_file(random, SIDE)
        name = "images" if is_folder else f"images/{i}{suffix}"
        (folder / "images" / f"{i}{suffix}").write_bytes(content)
        if random.random() < 0.05:
            (folder / "images" / random.choice(("9.bmp", "9.txt", f"{i}.tiff"))).write_bytes(b"II")
    if random.random() < 0.35:
        return ["weight-map", name, "--out", "w.tif", "--threads", "1"]
    arguments = _use_images(random, folder, templates, name)
    if arguments[0] == "predict" and is_folder and random.random() < 0.6:
        arguments[arguments.index("p.tif")] = "out"
        arguments += random.choice(([], ["--kind", "labels"]))
    return arguments


def model_file(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A hostile model file."""
    (folder / "m.safetensors").write_bytes(file_bytes.hostile_model(random, templates.model))
    plan = random.choice(([], ["--plan"]))
    images = str(templates.folder / "images.tif")
    return ["predict", images, "--model", "m.safetensors", "--out", "p.tif", *plan]


def run_folder(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A run's folder with a hostile file, to report on."""
    shutil.copytree(templates.folder / "run", folder / "run")
    for _ in range(random.choice((1, 1, 2))):
        kind = random.randrange(6)
        if kind < 5:
            _spoil_text(
                random, folder / "run", ("config.json", "metrics.json", "log.csv")[kind // 2]
            )
        else:
            name = random.choice(("image", "labels", "probability"))
            content = hostile_tiff(random, is_labels=name == "labels")
            (folder / "run" / f"heldout_{name}.tif").write_bytes(content)
    return ["report", "run"]


def _spoil_text(random: Random, folder: Path, name: str) -> None:
    path = folder / name
    if name.endswith(".csv"):
        path.write_bytes(file_bytes.hostile_log(random, path.read_text("utf-8", "replace")))
    else:
        path.write_text(file_bytes.hostile_json(random, path.read_text()), "utf-8", "surrogatepass")


def resumed_training(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A run's folder with a hostile checkpoint, log or record, to go on with."""
    shutil.copytree(templates.folder / "run", folder / "run")
    kind, path = random.randrange(4), folder / "run/checkpoint.pt"
    if kind < 2:
        path.write_bytes(file_bytes.pickled(random) if kind else damaged(random, path.read_bytes()))
    else:
        _spoil_text(random, folder / "run", ("log.csv", "config.json")[kind - 2])
    pair = templates.paths("images.tif", "labels.tif")
    more = [*TRAIN, "--iterations", "2", "--resume"]
    return ["train", *pair, "--out", "run", "--val", "2:4", *more]


def resumed_output(random: Random, folder: Path, templates: Templates) -> list[str]:
    """The parts of an unfinished output with a hostile record or part, to go on with."""
    name = random.choice(sorted(templates.unfinished))
    parts = folder / f".{name}.parts"
    shutil.copytree(templates.unfinished[name], parts)
    kind = random.randrange(4)
    if kind < 3:
        _spoil_text(random, parts, HEADER)
    else:
        blocks = [file for file in (parts / "blocks/c").rglob("*") if file.is_file()]
        path = random.choice(sorted(blocks))
        path.write_bytes(random.choice((damaged(random, path.read_bytes()), b"", bytes(9))))
    resume = random.choice((["--resume"], ["--resume"], ["--overwrite"], []))
    images, labels, model = templates.paths("images.tif", "labels.tif", "m.safetensors")
    if name.startswith("p"):
        return ["predict", images, "--model", model, "--out", name, *resume]
    return ["weight-map", labels, "--threads", "1", "--out", name, *resume]


_OPTIONS = {
    "predict": "z roi memory tile threshold kind dtype average precision backend compression device"
    " min-size grow model out",
    "weight-map": "w0 sigma ignore-label workers kind variant compression class-balance preview"
    " out",
    "train": "val iterations time-budget tile batch-size momentum learning-rate seed depth dropout"
    " base-channels w0 sigma input-mean input-std elastic-grid elastic-sigma-px rotation-deg out"
    " warmup-iterations weight-decay preset weight-average validate-every separation-px in-channels"
    " contrast init input-statistics patience",
    "evaluate": "task json plot",
    "preview-augmentation": "tile samples seed rotation-deg elastic-grid",
}
# Options by which more work is asked for: a large number is what one may wait for.
_WORK = ("--iterations", "--samples", "--batch-size", "--workers")


def command_line(random: Random, folder: Path, templates: Templates) -> list[str]:
    """Options with absurd values."""
    command = random.choice((*_OPTIONS, "report"))
    names = ("images.tif", "labels.tif", "m.safetensors", "probability.tif")
    images, labels, model, probability = templates.paths(*names)
    preview = [images, labels, "--out", "a.png", "--tile", "36", "--samples", "1"]
    arguments = {
        "predict": [images, "--model", model, "--out", "p.tif"],
        "weight-map": [labels, "--out", "w.tif", "--threads", "1"],
        "train": [images, labels, "--out", "run", *TRAIN],
        "evaluate": [labels, probability],
        "preview-augmentation": preview,
        "report": [random.choice(file_bytes.ODD_TEXTS)],
    }[command]
    for _ in range(random.choice((1, 1, 2))):
        if command in _OPTIONS:
            value = random.choice(file_bytes.ODD_TEXTS)
            if random.random() < 0.3:
                value = str(random.choice((-1, 1)) * 10.0 ** random.randrange(-300, 300))
            arguments += ["--" + random.choice(_OPTIONS[command].split()), value]
    if random.random() < 0.1:
        arguments[random.randrange(len(arguments))] = random.choice(file_bytes.ODD_TEXTS)
    for i, option in enumerate(arguments[:-1]):
        value = arguments[i + 1].strip()
        if option in _WORK and re.fullmatch(r"\d[\d_]{1,4000}", value):
            arguments[i + 1] = value[0]
    return [command, *(argument.replace("\0", "") for argument in arguments)]


def cell_tracking(random: Random, folder: Path, templates: Templates) -> list[str]:
    """A sequence of the Cell Tracking Challenge with hostile files, to be read."""
    for place, prefix in (("01", "t"), ("01_GT/SEG", "man_seg"), ("01_GT/TRA", "man_track")):
        inside = folder / place
        inside.mkdir(parents=True)
        for i in range(2):
            good = (np.arange(SIDE * SIDE).reshape(SIDE, SIDE) // 100).astype(np.uint16)
            tifffile.imwrite(inside / f"{prefix}{i:03}.tif", good)
        if random.random() < 0.4:
            name = random.choice((f"{prefix}000.tif", f"{prefix}1.tif", f"{prefix}٣.tif", "x.tif"))
            (inside / name).write_bytes(hostile_tiff(random, is_labels=place != "01"))
        if random.random() < 0.2:
            value = random.choice((-1, 2**31 - 1, 2**31, 2**40, 2**63 - 1))
            wide = np.where(np.eye(SIDE, dtype=bool), np.int64(value), 1)
            tifffile.imwrite(inside / f"{prefix}001.tif", wide)
    (folder / "01_GT" / "TRA" / "man_track.txt").write_bytes(random.randbytes(50))
    sequence = random.choice(("01", "01", "01", "02", "../01", ""))
    return ["ctc", sequence, random.choice(("", "measured", "5"))]


_SHARES: dict[Family, int] = {
    **{tiff_images: 6, tiff_labels: 4, image_folder: 3, one_image: 4, model_file: 4},
    **{run_folder: 4},
    **{resumed_training: 1, resumed_output: 2, command_line: 4, cell_tracking: 2},
}
FAMILIES = {family.__name__: family for family in _SHARES}
SHARES = {family.__name__: share for family, share in _SHARES.items()}


OPENED_ANOTHER = 71  # exit code


def run(arguments: list[str]) -> int:
    """Run a case's command line: the program's own, or the reader of a cell tracking sequence.

    In a process of its own, that is: it ends where a file is opened that only another file names.
    """
    sys.addaudithook(_end_at_others)
    if arguments[0] != "ctc":
        return cli.main(arguments)
    _, sequence, radius = arguments

    def read() -> int:
        reach = "measured" if radius == "measured" else float(radius) if radius else None
        read_ctc_sequence(Path("."), sequence, unknown_radius_px=reach)  # type: ignore[arg-type]
        return 0

    return guarded(read)


def _end_at_others(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(OTHERS):
        os._exit(OPENED_ANOTHER)


def make(family: str, seed: int, folder: Path, templates: Templates) -> list[str]:
    """Write the files of a case into an empty folder and return its command line."""
    return FAMILIES[family](Random(f"{family} {seed}"), folder, templates)


def describe(arguments: list[str]) -> str:
    """Return a command line on one line, long values shortened."""
    return " ".join(json.dumps(a if len(a) < 80 else a[:60] + f"...({len(a)})") for a in arguments)
