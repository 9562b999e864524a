"""What a labelled stack gives to train on and to validate with: slices, classes, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from unet_repro.config import TrainConfig, WeightMapConfig
from unet_repro.errors import InputError, note
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import UNKNOWN_CELL, Reading, read_meaning
from unet_repro.images.slices import Slices, joined, mapped, part, pieces
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.holding_out import held_out_numbers
from unet_repro.training.validation import HeldOut
from unet_repro.weight_maps.weight_map import frequency_weights, separate_touching, weight_map

_AS_CELLS: Any = {"label_kind": "ids", "ignore_label": UNKNOWN_CELL}  # what `Reading.cells` gives


@dataclass(frozen=True)
class LabelledStack:
    """Images and labels in memory (`images.stacks.read_pair`), what these mean, where from."""

    images: Slices  # (z, y, x) or (z, c, y, x), or a list where sizes differ
    labels: Slices  # (z, y, x), or a list
    name: str
    images_path: str
    labels_path: str
    is_synthetic: bool = False  # every output says so
    command: str = ""
    how: LabelSettings = field(default_factory=LabelSettings)
    known: Slices | None = None  # bool (z, y, x); False where labels are unknown: weight 0
    names: tuple[str, ...] = ()  # the file of each slice; none of slices of one stack

    @cached_property
    def reading(self) -> Reading:
        """What the values of the labels mean; `InputError` where it cannot be told."""
        return read_meaning(self.labels, self.how, where=self.labels_path)

    @cached_property
    def cells(self) -> Slices:
        """Each slice's cells, int (z, y, x): 0 is background, -1 unknown, others cells' numbers."""
        cells = joined([self.reading.cells(slice_) for slice_ in self.labels])
        if self.known is None:
            return cells
        return mapped(lambda known, ids: np.where(known, ids, UNKNOWN_CELL), self.known, cells)

    @property
    def is_known(self) -> Slices:
        """Where a pixel is cell or background for sure: bool (z, y, x)."""
        return mapped(lambda cells: cells != UNKNOWN_CELL, self.cells)

    @property
    def truth(self) -> Slices:
        """The cells with unknown pixels as background: int (z, y, x)."""
        return mapped(lambda cells: np.maximum(cells, 0), self.cells)


@dataclass(frozen=True)
class Split:
    """The numbers of the slices that are trained on and held out, and the classes of all."""

    kept: list[int]
    held_out: list[int]
    classes: Slices  # uint8 (z, y, x): 0 for background, ridges and unknown pixels
    n_classes: int  # of the network


def held_out_slices(data: LabelledStack, settings: TrainConfig) -> list[int]:
    """Return the numbers of the held-out slices, none where `settings.val` is empty."""
    if not settings.val:
        return []
    return held_out_numbers(settings.val, length=len(data.images), names=data.names)


def split(data: LabelledStack, settings: TrainConfig) -> Split:
    """Decide which slices are for what; raise `InputError` where one class or all slices lack."""
    held_out = held_out_slices(data, settings)
    kept = sorted(set(range(len(data.images))) - set(held_out))
    if not kept:
        raise InputError(f"--val {settings.val} holds out every slice: none is left to train on")
    if settings.patience and not held_out:
        raise InputError(
            f"patience is {settings.patience}: it counts validations, so it needs held-out slices "
            "(--val)"
        )
    reading, n_classes, how = data.reading, settings.model.classes, settings.weight_map
    _check_classes(reading, n_classes)
    cells = data.cells
    if how.separate_touching:
        separated = partial(separate_touching, radius=how.separation_px, **_AS_CELLS, workers=2)
        cells = mapped(separated, cells)
    classes = mapped(lambda stack: (stack > 0).astype(np.uint8), cells)
    if reading.kind == "classes":
        of_labels = joined([reading.classes(slice_) for slice_ in data.labels])
        classes = mapped(np.multiply, classes, of_labels)
    for numbers, name in ((kept, "training"), (held_out, "held-out")):
        if numbers:
            _check_cells(part(data.cells, numbers), part(classes, numbers), name, n_classes)
    parts = Split(kept, held_out, classes, n_classes)
    if n_classes > 2:
        _check_occurring(class_sizes(data, parts))
    return parts


def _check_classes(reading: Reading, n_classes: int) -> None:
    """Refuse labels that are not of the network's classes."""
    if reading.kind != "classes" and n_classes > 2:
        raise InputError(
            f"--classes {n_classes}: the labels were read as {reading.kind}, which tell two apart, "
            f"cells and the rest; --label-kind classes reads them as classes 0 ... {n_classes - 1}"
        )
    if reading.n_classes > n_classes:
        raise InputError(
            f"the labels hold class {reading.n_classes - 1}, but --classes {n_classes} means "
            f"0 ... {n_classes - 1}; --classes {reading.n_classes} takes all, --ignore-label "
            "leaves one value out"
        )


def _check_cells(cells: Slices, classes: Slices, name: str, n_classes: int) -> None:
    """Refuse slices of which nothing is known; of two classes, those that lack one."""
    has_cell = any((piece > 0).any() for piece in pieces(cells))
    has_background = any((piece == 0).any() for piece in pieces(cells))
    if not (has_cell or has_background):
        raise InputError(f"every pixel of the {name} slices' labels is unknown")
    if n_classes > 2:
        return
    if not (has_cell and has_background):
        found = "cell interior" if has_cell else "background"
        raise InputError(f"the {name} slices' labels are all {found}: both classes are needed")
    if not any(map(np.any, pieces(classes))):
        raise InputError(
            f"separate_touching leaves nothing of the {name} slices' cells: they need a smaller "
            "separation_px"
        )


def _check_occurring(sizes: list[int]) -> None:
    """Refuse training slices of one class; say which of several do not occur."""
    present = [k for k, size in enumerate(sizes) if size]
    if len(present) == 1:
        raise InputError(
            f"the training slices' labels are all of class {present[0]}: two classes or more are "
            "needed"
        )
    absent = ", ".join(str(k) for k, size in enumerate(sizes) if not size)
    if absent:
        what = f"classes {absent} occur" if "," in absent else f"class {absent} occurs"
        note(f"{what} nowhere in the training slices: there is nothing to learn of it")


def samples(
    data: LabelledStack, parts: Split, how: WeightMapConfig, *, device: torch.device | str = "cpu"
) -> tuple[TrainingSet, HeldOut | None]:
    """Return what is trained on, on `device`, and what is held out, if anything."""
    weights = _weights(data, parts, how)
    stacks = data.images, parts.classes, weights
    training = TrainingSet(*(part(stack, parts.kept) for stack in stacks), device=device)
    if not parts.held_out:
        return training, None
    held_out = (part(stack, parts.held_out) for stack in (*stacks, data.is_known))
    return training, HeldOut(*held_out)


def class_sizes(data: LabelledStack, parts: Split) -> list[int]:
    """Count the known pixels of class 0, 1, ... in the training slices."""
    found = np.zeros(parts.n_classes, np.int64)
    for z in parts.kept:
        known = parts.classes[z][data.cells[z] != UNKNOWN_CELL]
        found += np.bincount(known, minlength=parts.n_classes)
    return [int(size) for size in found]


def _weights(data: LabelledStack, parts: Split, how: WeightMapConfig) -> Slices:
    """Return the weight map of all slices, balanced by the known pixels of the training slices."""
    balance: tuple[float, ...] = (1.0,) * parts.n_classes
    if how.class_balance == "frequency":
        balance = frequency_weights(*class_sizes(data, parts))
    weigh = partial(
        weight_map,
        **_AS_CELLS,
        w0=how.w0,
        sigma=how.sigma,
        class_balance=balance[:2],
        separate_touching=how.separate_touching,
        separation_px=how.separation_px,
        workers=2,
    )
    weights = mapped(weigh, data.cells)
    for k in range(2, parts.n_classes):  # a cell's weight is w_c, and nothing else
        for piece, classes in zip(pieces(weights), pieces(parts.classes)):
            piece[classes == k] = balance[k]
    return weights
