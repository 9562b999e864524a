"""Validation: loss and share of errors on slices that training never sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unet_repro.images.slices import Slices, joined, mapped, pieces
from unet_repro.metrics import pixel_error
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.training.loss import weighted_cross_entropy


@dataclass(frozen=True)
class HeldOut:
    """Slices that training never sees: images, classes and weights as in `TrainingSet`."""

    images: Slices
    classes: Slices
    weights: Slices
    known: Slices | None = None  # bool (z, y, x); by default where weights are above 0


@dataclass(frozen=True)
class Validation:
    """What a network makes of the held-out slices."""

    loss: float  # of Eq. 1, over all slices
    # two classes: the lowest over the thresholds; more: the share of known pixels of which another
    # class than their own is the most probable
    pixel_error: float
    is_one_class: bool  # every pixel gets the same class
    # (z, y, x): P(class 1), float32; of more than two classes the most probable one, uint8
    prediction: Slices


def validate(predictor: OverlapTilePredictor, held_out: HeldOut) -> Validation:
    """Predict the held-out slices and compare them with their labels."""
    loss = total = 0.0
    found: list[np.ndarray] = []  # P(class 1), or classes
    for z, image in enumerate(held_out.images):
        logits = torch.from_numpy(predictor.logits(image))  # (classes, y, x)
        weights = torch.from_numpy(held_out.weights[z])
        classes = torch.from_numpy(held_out.classes[z].astype(np.int64))
        share = float(weights.sum())
        loss += share * float(weighted_cross_entropy(logits[None], classes[None], weights[None]))
        total += share
        if len(logits) == 2:
            found.append(torch.softmax(logits, dim=0)[1].numpy())
        else:
            found.append(logits.argmax(dim=0).numpy().astype(np.uint8))
    prediction = joined(found) if isinstance(held_out.classes, np.ndarray) else found
    known = held_out.known
    if known is None:
        known = mapped(lambda weights: weights > 0, held_out.weights)
    if found[0].dtype == np.uint8:
        error, values = _share_of_errors(held_out.classes, prediction, known), prediction
    else:
        error = pixel_error(held_out.classes, mapped(np.multiply, prediction, known)).best
        values = mapped(lambda interior: interior > 0.5, prediction)
    return Validation(
        loss=loss / max(total, 1e-12),
        pixel_error=error,
        is_one_class=len({k for piece in pieces(values) for k in np.unique(piece)}) == 1,
        prediction=prediction,
    )


def _share_of_errors(classes: Slices, prediction: Slices, known: Slices) -> float:
    """Return 1 - accuracy, over the known pixels of all slices."""
    counts = [
        (np.count_nonzero((k != found) & is_known), np.count_nonzero(is_known))
        for k, found, is_known in zip(*map(pieces, (classes, prediction, known)), strict=True)
    ]
    wrong, total = map(sum, zip(*counts))
    return float(wrong / total)
