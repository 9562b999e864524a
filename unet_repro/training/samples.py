"""What a labelled stack gives to train on and to validate with: slices, classes, weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from unet_repro.config import TrainConfig, WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, mapped, part, pieces
from unet_repro.quantities import index_range
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.validation import HeldOut
from unet_repro.weight_maps.weight_map import (
    frequency_weights,
    kind_of,
    separate_touching,
    weight_map,
)


@dataclass(frozen=True)
class LabelledStack:
    """Images and labels in memory (`images.stacks.read_pair`), and for the record where from."""

    images: Slices  # (z, y, x), or a list where sizes differ; the others likewise
    labels: Slices
    name: str
    images_path: str
    labels_path: str
    is_synthetic: bool = False  # every output says so
    command: str = ""
    known: Slices | None = None  # bool (z, y, x); False where labels are unknown: weight 0


@dataclass(frozen=True)
class Split:
    """The numbers of the slices that are trained on and held out, and the classes of all."""

    kept: list[int]
    held_out: range
    classes: Slices  # uint8 (z, y, x): 1 in the cells' interiors, 0 elsewhere


def held_out_slices(data: LabelledStack, settings: TrainConfig) -> range:
    """Return the numbers of the held-out slices, none where `settings.val` is empty."""
    if not settings.val:
        return range(0)
    return index_range(settings.val, length=len(data.images), name="--val")


def split(data: LabelledStack, settings: TrainConfig) -> Split:
    """Decide which slices are for what; raise `InputError` where one class or all slices lack."""
    held_out = held_out_slices(data, settings)
    kept = [z for z in range(len(data.images)) if z not in held_out]
    if not kept:
        raise InputError(f"--val {settings.val} holds out every slice: none is left to train on")
    how, labels = settings.weight_map, data.labels
    if how.separate_touching:
        separated = partial(
            separate_touching, radius=how.separation_px, kind=kind_of(labels), workers=2
        )
        labels = mapped(separated, labels)
    classes = mapped(lambda stack: (stack > 0).astype(np.uint8), labels)
    for numbers, name in ((kept, "training"), (list(held_out), "held-out")):
        if numbers:
            _check_both_classes(part(data.labels, numbers), part(classes, numbers), name)
    return Split(kept, held_out, classes)


def _check_both_classes(labels: Slices, classes: Slices, name: str) -> None:
    cells = [image > 0 for image in pieces(labels)]
    has_cell, has_background = any(map(np.any, cells)), not all(map(np.all, cells))
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
        is_cell = parts.classes[z] != 0
        if data.known is not None:
            is_cell = is_cell[data.known[z]]
        interior += int(np.count_nonzero(is_cell))
        total += is_cell.size
    balance = None
    if how.class_balance == "frequency":
        balance = frequency_weights(total - interior, interior)
    weigh = partial(
        weight_map,
        w0=how.w0,
        sigma=how.sigma,
        class_balance=balance,
        separate_touching=how.separate_touching,
        separation_px=how.separation_px,
        kind=kind_of(data.labels),
        workers=2,
    )
    weights = mapped(weigh, data.labels)
    if data.known is None:
        return weights
    return mapped(lambda known, given: np.where(known, given, np.float32(0)), data.known, weights)
