"""What the scripts ``data/…/prepare.py`` have in common: get a data set and say what it holds."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_repro.challenges.ctc import read_ctc_sequence
from unet_repro.challenges.download import DATASETS, find_or_download, pixels_sha256
from unet_repro.images.slices import of_one_size
from unet_repro.images.stacks import read_images, read_labels
from unet_repro.program import guarded


def main(dataset: str, argv: Sequence[str] | None = None) -> int:
    """Find or download a data set and print its counts; return the exit code (0, 2 or 130)."""
    parser = argparse.ArgumentParser(
        prog=f"prepare.py ({dataset})",
        description=f"Find or download the data set {dataset} and print what it holds.",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help=f"look for and download to ROOT/{dataset}, not the project's own data folder",
    )
    root = parser.parse_args(argv).root

    def run() -> int:
        folder = find_or_download(dataset, root)
        lines = describe(dataset, folder)
        print("\n".join([f"{dataset}: {folder}", *lines, f"terms: {DATASETS[dataset].terms}"]))
        return 0

    return guarded(run)


def describe(dataset: str, folder: Path) -> list[str]:
    """Count what a data set holds, one line for each stack or sequence."""
    if dataset == "isbi2012":
        return _describe_em(dataset, folder)
    return [_describe_sequence(folder, name) for name in ("01", "02")]


def _describe_em(dataset: str, folder: Path) -> list[str]:
    lines = []
    for name in ("train-volume", "train-labels", "test-volume", "test-labels"):
        path = folder / f"{name}.tif"
        if name == "test-labels" and not path.exists():
            lines.append(f"{name}: not there, so the test volume cannot be scored")
            continue
        reader = read_labels if name.endswith("labels") else read_images
        stack = of_one_size(reader(path), path)
        line = f"{name}: {' × '.join(map(str, stack.shape))} {stack.dtype}"
        if name.endswith("labels"):
            components = sum(ndimage.label(label)[1] for label in stack)
            line += f", {(stack == 0).mean():.1%} membrane, {components} components"
        expected = DATASETS[dataset].pixels_sha256.get(path.name)
        if expected is not None:
            is_original = pixels_sha256(path) == expected
            line += ", pixels as published" if is_original else ", PIXELS NOT AS PUBLISHED"
        lines.append(line)
    return lines


def _describe_sequence(folder: Path, name: str) -> str:
    sequence = read_ctc_sequence(folder, name)
    frames, height, width = sequence.images.shape
    cells = sum(len(np.unique(label[label > 0])) for label in sequence.labels)
    return (
        f"{name}: {frames} frames of {height} × {width} {sequence.images.dtype}, "
        f"{len(sequence.frames)} with instance masks ({sum(sequence.is_complete)} of them "
        f"complete), {cells} cells"
    )
