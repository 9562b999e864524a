"""Training samples: augmented tiles of a labelled stack (Sec. 3 and 3.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unet_repro import augment
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError


@dataclass(frozen=True)
class Batch:
    """Tiles for one step: image (N, C, H, W) float32, labels (N, h, w) int64, weights (N, h, w)."""

    image: Tensor
    labels: Tensor
    weights: Tensor


class TrainingSet:
    """A labelled stack on a device, from which augmented tiles are drawn at random positions.

    Parameters
    ----------
    images : ndarray, shape (z, y, x) or (z, c, y, x)
        Grey values as in the file; any real dtype.
    classes : ndarray of int, shape (z, y, x)
        Class of each pixel: 1 is the cell interior, 0 the membrane or background.
    weights : ndarray of float32, shape (z, y, x)
        The weight map; 0 leaves a pixel out.
    device
        Where the stack lies and the augmentation runs.

    Attributes
    ----------
    mean, std : Tensor, shape (c, 1, 1)
        Of the grey values, per channel, over the whole stack.
    """

    def __init__(
        self,
        images: np.ndarray,
        classes: np.ndarray,
        weights: np.ndarray,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if images.ndim == 3:
            images = images[:, None]
        if images.ndim != 4 or (len(images), *images.shape[2:]) != classes.shape:
            raise InputError(f"images {images.shape} do not fit the labels {classes.shape}")
        if weights.shape != classes.shape:
            raise InputError(f"weights {weights.shape} do not fit the labels {classes.shape}")
        if not weights.any():
            raise InputError("every weight is 0: there is nothing to learn from")
        self.images = torch.from_numpy(images.astype(np.float32)).to(device)
        self.classes = torch.from_numpy(classes.astype(np.uint8)).to(device)
        self.weights = torch.from_numpy(weights.astype(np.float32)).to(device)
        deviation, mean = torch.std_mean(self.images, dim=(0, 2, 3), correction=0)
        self.mean, self.std = mean[:, None, None], deviation[:, None, None]
        if not (self.std > 0).all():
            raise InputError(f"the images are constant ({mean.tolist()}): nothing to learn from")

    def __len__(self) -> int:
        return len(self.images)

    def draw_batch(
        self,
        ranges: AugmentationConfig,
        *,
        batch_size: int,
        window: int,
        output: int,
        generator: torch.Generator,
    ) -> Batch:
        """Draw augmented tiles.

        Parameters
        ----------
        window, output
            Sides in px of the network's input and output; the output is the window's centre.
        generator
            A CPU generator; its state alone decides what is drawn.
        """
        tiles = [self._draw_tile(ranges, window, output, generator) for _ in range(batch_size)]
        image, classes, weights = (torch.stack(part) for part in zip(*tiles))
        return Batch(image, classes.long(), weights)

    def _draw_tile(
        self, ranges: AugmentationConfig, window: int, output: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        z = int(torch.randint(len(self), (), generator=generator))
        image = self.images[z]  # (C, y, x)
        drawn = augment.draw(
            ranges,
            image_size=(image.shape[1], image.shape[2]),
            window=(window, window),
            generator=generator,
        )
        places = augment.coordinates(drawn, (window, window), device=image.device)
        margin = (window - output) // 2
        inner = places[:, margin : margin + output, margin : margin + output]
        tile = augment.vary_grey_values(
            augment.warp(image, places), drawn, mean=self.mean, std=self.std
        )
        return (
            tile,
            augment.warp(self.classes[z], inner, interpolation="nearest"),
            augment.warp(self.weights[z], inner),
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 of images, classes and weights."""
        digest = hashlib.sha256()
        for part in (self.images, self.classes, self.weights):
            digest.update(part.cpu().numpy().tobytes())
        return digest.hexdigest()

    def prior_entropy(self) -> float:
        """Return the loss of a network that knows only the weighted class frequencies, in nats."""
        total = self.weights.sum(dtype=torch.float64)
        shares = torch.stack([self.weights[self.classes == k].sum() for k in self.classes.unique()])
        shares = shares / total
        return float(-(shares * shares.log()).nan_to_num().sum())
