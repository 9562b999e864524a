"""The log of a training run: ``log.csv``, and TensorBoard's events where it is installed."""

from __future__ import annotations

import csv
import errno
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path

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

    A run that is resumed at an `iteration` keeps the rows up to there, and hides later events.
    `InputError`, here and from `write`: a file cannot be written; the rows that were there stay.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / "log.csv"
        kept = _rows_until(self.path, iteration) if iteration and self.path.is_file() else []
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)
        with atomic_path(self.path, overwrite=True) as part:  # no kill may cost the rows
            part.write_bytes(text.getvalue().encode())
        with self._failures_named():
            self.file = self.path.open("ab", buffering=0)
            self.events = _events(folder, iteration)

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row; columns that it lacks stay empty."""
        text = io.StringIO(newline="")
        csv.DictWriter(text, COLUMNS, restval="").writerow(row)
        line = text.getvalue().encode()
        with self._failures_named():
            if self.file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self.events:
                for name in COLUMNS[1:]:
                    if name in row:
                        self.events.add_scalar(name, row[name], row["iteration"])

    def show(self, iteration: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Show slices, each scaled from its own minimum and maximum, in TensorBoard.

        Slices are (y, x) or (c, y, x), of which three channels are shown as colour, else the first.
        """
        if not self.events:
            return
        for name, picture in pictures.items():
            if picture.ndim == 3 and len(picture) != 3:
                picture = picture[0]
            step = -(-max(picture.shape[-2:]) // _SHOWN_PX)
            grey = picture[..., ::step, ::step].astype(np.float32)
            grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-12)
            form = "HW" if grey.ndim == 2 else "CHW"
            with self._failures_named():
                self.events.add_image(f"held_out/{name}", grey, iteration, dataformats=form)
        with self._failures_named():
            self.events.flush()

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.events:
            with suppress(OSError):
                self.events.close()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Turn what a full disk raises into an `InputError`."""
        try:
            yield
        except OSError as error:
            what = error.strerror or error
            raise InputError(f"{self.path.parent}: the log cannot be written: {what}") from error


def _rows_until(path: Path, iteration: int) -> list[dict[str, str]]:
    """Return the rows up to an iteration, without those that a killed run left in pieces."""
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = file.readlines()
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        rows = list(csv.DictReader(lines[1:], COLUMNS))
    except csv.Error as error:
        raise InputError(f"{path}: is no log of a run: {error}; remove it") from error
    return [
        row
        for row in rows
        if None not in row  # more columns than ours
        and None not in row.values()  # fewer
        and str(row["iteration"]).isdecimal()
        and len(row["iteration"]) < 19  # int() refuses thousands of digits
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
