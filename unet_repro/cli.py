"""The command line: ``unet-repro train | predict | weight-map | evaluate | report | ...``.

Every option is a field of a dataclass: tyro makes flags, types, defaults and help from it. What a
command does is loaded when it runs: PyTorch alone takes seconds, which no help waits for.
"""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from unet_repro._version import __version__
from unet_repro.commands.evaluate import Evaluate
from unet_repro.commands.export import Export
from unet_repro.commands.import_caffe import ImportCaffe
from unet_repro.commands.models import Models
from unet_repro.commands.predict import Predict
from unet_repro.commands.preview_augmentation import PreviewAugmentation
from unet_repro.commands.report import Report
from unet_repro.commands.train import Train
from unet_repro.commands.weight_map import WeightMap
from unet_repro.program import guarded, parse, preset_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0 done, 2 bad input or usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"unet-repro {__version__}")
        return 0
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
