"""The log of a training run: ``log.csv``, and TensorBoard's events where it is installed."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = (
    "iteration",
    "seconds",
    "learning_rate",
    "loss",
    "validation_loss",
    "validation_pixel_error",
)
_SHOWN_PX = 512  # a larger slice is thinned out for TensorBoard


class TrainLog:
    """Writes rows as they come: ``log.csv`` flushed at once, and the same values as events.

    Parameters
    ----------
    folder
        Where the files go.
    iteration
        Iterations before: a resumed run keeps the rows up to here, and hides later events.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / "log.csv"
        kept = _rows_until(self.path, iteration) if iteration and self.path.exists() else []
        self.file = self.path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS, restval="")
        self.writer.writeheader()
        self.writer.writerows(kept)
        self.events = _events(folder, iteration)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row; columns that it lacks stay empty."""
        self.writer.writerow(row)
        self.file.flush()
        if self.events:
            for name in COLUMNS[1:]:
                if name in row:
                    self.events.add_scalar(name, row[name], row["iteration"])

    def show(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show slices (y, x), each scaled from its own minimum and maximum, in TensorBoard."""
        if not self.events:
            return
        for name, picture in pictures.items():
            step = -(-max(picture.shape) // _SHOWN_PX)
            grey = picture[::step, ::step].astype(np.float32)
            grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-12)
            self.events.add_image(f"held_out/{name}", grey, iteration, dataformats="HW")
        self.events.flush()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.events:
            self.events.close()


def _rows_until(path: Path, iteration: int) -> list[dict[str, str]]:
    """Return the rows up to an iteration, without those that a killed run left in pieces."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, COLUMNS))[1:]
    return [
        row
        for row in rows
        if None not in row  # more columns than ours
        and str(row["iteration"]).isdecimal()
        and int(row["iteration"]) <= iteration
    ]


def _events(folder: Path, iteration: int) -> Any:
    """Return a writer of TensorBoard's events; None where tensorboard is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensorboard's own imports
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        purge = iteration + 1 if iteration else None
        return SummaryWriter(str(folder), purge_step=purge, flush_secs=30)
