"""Validation: loss and pixel error on slices that training never sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from unet_repro.images.slices import Slices, pieces, room_for
from unet_repro.metrics import pixel_error
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.training.loss import weighted_cross_entropy


@dataclass(frozen=True)
class HeldOut:
    """Slices that training never sees: images, classes and weights as in `TrainingSet`."""

    images: Slices
    classes: Slices
    weights: Slices


@dataclass(frozen=True)
class Validation:
    """What a network makes of the held-out slices."""

    loss: float  # of Eq. 1, over all slices
    pixel_error: float  # the lowest over the thresholds
    is_one_class: bool  # every pixel gets the same class
    probability: Slices  # float32 (z, y, x): P(class 1)


def validate(predictor: OverlapTilePredictor, held_out: HeldOut) -> Validation:
    """Predict the held-out slices and compare them with their labels."""
    loss = total = 0.0
    interior, known = (room_for(held_out.classes, np.float32) for _ in range(2))
    for z, image in enumerate(held_out.images):
        logits = torch.from_numpy(predictor.logits(image))  # (classes, y, x)
        weights = torch.from_numpy(held_out.weights[z])
        classes = torch.from_numpy(held_out.classes[z].astype(np.int64))
        share = float(weights.sum())
        loss += share * float(weighted_cross_entropy(logits[None], classes[None], weights[None]))
        total += share
        interior[z] = torch.softmax(logits, dim=0)[1].numpy()
        known[z] = interior[z] * (held_out.weights[z] > 0)
    return Validation(
        loss=loss / max(total, 1e-12),
        pixel_error=pixel_error(held_out.classes, known).best,
        is_one_class=len({k for piece in pieces(interior) for k in np.unique(piece > 0.5)}) == 1,
        probability=interior,
    )
