"""Options that several commands take, and what they say in the same way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from unet_repro.cluster import Machines
from unet_repro.errors import one_line
from unet_repro.files.places import as_path
from unet_repro.images.label_settings import LabelSettings

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
ResumeOutput = Annotated[
    Flag,
    arg(
        help="Go on with what an interrupted or killed call has left. What is complete stays: its "
        "files are looked at, their lengths and indices, and not read. Shards of OME-Zarr that "
        "are lost or damaged so are made again; a TIFF is refused."
    ),
]
Overwrite = Annotated[Flag, arg(help="Replace what is there.")]


def read_both(options: Any, channels: int) -> tuple[Any, Any]:
    """Return the images and labels that a command's options name (`images.stacks.read_pair`)."""
    from unet_repro.images.stacks import read_pair

    return read_pair(
        options.images,
        options.labels,
        channels=channels,
        ignore_label=options.read_as.ignore_label,
        axes=options.axes or None,
        mask_suffix=options.mask_suffix,
    )


def told(is_complete: bool, machines: Machines, out: Path) -> int:
    """Say where an output is, or that other parts of it are missing; return the exit code."""
    if is_complete:
        print(as_path(out))
    else:
        told = f"part {machines.part} of {as_path(out)} is done; other parts are missing yet"
        print(one_line(told), file=sys.stderr)
    return 0


def tell(what: str, reading: Any) -> None:
    print(one_line(f"{what}: {reading.line()}"), file=sys.stderr)
