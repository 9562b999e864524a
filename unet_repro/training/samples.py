"""What a labelled stack gives to train on and to validate with: slices, classes, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch

from unet_repro.config import TrainConfig, WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.images.labels import UNKNOWN_CELL, LabelSettings, Reading, read_meaning
from unet_repro.images.slices import Slices, joined, mapped, part, pieces
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.holding_out import held_out_numbers
from unet_repro.training.validation import HeldOut
from unet_repro.weight_maps.weight_map import frequency_weights, separate_touching, weight_map

_AS_CELLS: Any = {"label_kind": "ids", "ignore_label": UNKNOWN_CELL}  # what `Reading.cells` gives


@dataclass(frozen=True)
class LabelledStack:
    """Images and labels in memory (`images.stacks.read_pair`), what these mean, where from."""

    images: Slices  # (z, y, x), or a list where sizes differ; the others likewise
    labels: Slices
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
    classes: Slices  # uint8 (z, y, x): 1 in the cells' interiors, 0 elsewhere


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
    if data.reading.n_classes > 2:
        raise InputError(
            f"the labels hold {data.reading.n_classes} classes; the network tells two apart: cells "
            "and the rest"
        )
    how, cells = settings.weight_map, data.cells
    if how.separate_touching:
        separated = partial(separate_touching, radius=how.separation_px, **_AS_CELLS, workers=2)
        cells = mapped(separated, cells)
    classes = mapped(lambda stack: (stack > 0).astype(np.uint8), cells)
    for numbers, name in ((kept, "training"), (held_out, "held-out")):
        if numbers:
            _check_both_classes(part(data.cells, numbers), part(classes, numbers), name)
    return Split(kept, held_out, classes)


def _check_both_classes(cells: Slices, classes: Slices, name: str) -> None:
    has_cell = any((piece > 0).any() for piece in pieces(cells))
    has_background = any((piece == 0).any() for piece in pieces(cells))
    if not (has_cell or has_background):
        raise InputError(f"every pixel of the {name} slices' labels is unknown")
    if not (has_cell and has_background):
        found = "cell interior" if has_cell else "background"
        raise InputError(f"the {name} slices' labels are all {found}: both classes are needed")
    if not any(map(np.any, pieces(classes))):
        raise InputError(
            f"separate_touching leaves nothing of the {name} slices' cells: they need a smaller "
            "separation_px"
        )


def samples(
    data: LabelledStack, parts: Split, how: WeightMapConfig, *, device: torch.device | str = "cpu"
) -> tuple[TrainingSet, HeldOut | None]:
    """Return what is trained on, on `device`, and what is held out, if anything."""
    weights = _weights(data, parts, how)
    stacks = data.images, parts.classes, weights
    training = TrainingSet(*(part(stack, parts.kept) for stack in stacks), device=device)
    if not parts.held_out:
        return training, None
    return training, HeldOut(*(part(stack, parts.held_out) for stack in stacks))


def _weights(data: LabelledStack, parts: Split, how: WeightMapConfig) -> Slices:
    """Return the weight map of all slices, balanced by the known pixels of the training slices."""
    interior = total = 0
    for z in parts.kept:
        is_cell = parts.classes[z][data.cells[z] != UNKNOWN_CELL] != 0
        interior += int(np.count_nonzero(is_cell))
        total += is_cell.size
    balance = None
    if how.class_balance == "frequency":
        balance = frequency_weights(total - interior, interior)
    weigh = partial(
        weight_map,
        **_AS_CELLS,
        w0=how.w0,
        sigma=how.sigma,
        class_balance=balance,
        separate_touching=how.separate_touching,
        separation_px=how.separation_px,
        workers=2,
    )
    return mapped(weigh, data.cells)
