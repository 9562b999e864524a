"""Training samples: augmented tiles of a labelled stack (Sec. 3 and 3.1)."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unet_repro.augmentation import augment
from unet_repro.augmentation.warp import Interpolation
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
        Grey values as in the file; any real dtype, finite.
    classes : ndarray of int or bool, shape (z, y, x)
        Class of each pixel, 0 ... 255: 1 is the cell interior, 0 the membrane or background.
    weights : ndarray of float, shape (z, y, x)
        The weight map, finite, 0 or more; 0 leaves a pixel out.
    device
        Where the stack lies and the augmentation runs.

    Attributes
    ----------
    mean, std : Tensor, shape (c, 1, 1)
        Of the grey values, per channel, over the whole stack.

    Raises
    ------
    InputError
        Shapes that do not fit, classes that are no integers in 0 ... 255, values that are not
        finite, negative weights or none above 0, a channel of one grey value only.
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
        _check_values(images, classes, weights)
        self.images = torch.from_numpy(images.astype(np.float32, order="C")).to(device)
        self.classes = torch.from_numpy(classes.astype(np.uint8, order="C")).to(device)
        self.weights = torch.from_numpy(weights.astype(np.float32, order="C")).to(device)
        deviation, mean = torch.std_mean(self.images, dim=(0, 2, 3), correction=0)
        self.mean, self.std = mean[:, None, None], deviation[:, None, None]

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
        part: range | None = None,
    ) -> Batch:
        """Draw augmented tiles, with sides of `window` px; labels and weights are their centres.

        The state of the CPU `generator` alone decides what is drawn. Where `part` holds numbers of
        tiles, only those are made, but all are drawn: processes with equal generators share a
        batch. `InputError`: an `output` that is not the centre of the window.
        """
        drawn = [self._draw(ranges, window, generator) for _ in range(batch_size)]
        made = range(batch_size) if part is None else part
        tiles = [self._tile(*drawn[k], window, output, ranges.interpolation) for k in made]
        image, classes, weights = (torch.stack(parts) for parts in zip(*tiles))
        return Batch(image, classes.long(), weights)

    def _draw(
        self, ranges: AugmentationConfig, window: int, generator: torch.Generator
    ) -> tuple[int, augment.Augmentation]:
        """Draw a slice and an augmentation of it."""
        z = int(torch.randint(len(self), (), generator=generator, device="cpu"))
        size = (self.images.shape[2], self.images.shape[3])
        return z, augment.draw(
            ranges, image_size=size, window=(window, window), generator=generator
        )

    def _tile(
        self,
        z: int,
        drawn: augment.Augmentation,
        window: int,
        output: int,
        interpolation: Interpolation,
    ) -> augment.Sample:
        return augment.apply(
            drawn,
            self.images[z],  # (C, y, x)
            self.classes[z],
            self.weights[z],
            window=(window, window),
            output=(output, output),
            mean=self.mean,
            std=self.std,
            interpolation=interpolation,
        )

    def fingerprint(self) -> str:
        """Return a SHA-256 of images, classes and weights, and of their shapes."""
        digest = hashlib.sha256()
        for part in (self.images, self.classes, self.weights):
            digest.update(str(tuple(part.shape)).encode())
            digest.update(part.cpu().numpy().data)
        return digest.hexdigest()

    def prior_entropy(self) -> float:
        """Return the loss of a network that knows only the weighted class frequencies, in nats."""
        total = self.weights.sum(dtype=torch.float64)
        entropy = 0.0
        for k in self.classes.unique():
            share = float(self.weights[self.classes == k].sum(dtype=torch.float64) / total)
            entropy -= share * math.log(share) if share else 0.0  # 0 log 0 = 0
        return entropy


def _check_values(images: np.ndarray, classes: np.ndarray, weights: np.ndarray) -> None:
    """Raise unless every value can be learnt from."""
    if not classes.size:
        raise InputError(f"the labels have shape {classes.shape}: there is nothing to learn from")
    if classes.dtype.kind not in "biu" or classes.min() < 0 or classes.max() > 255:
        raise InputError(
            f"classes are {classes.dtype} in {classes.min()} ... {classes.max()}: "
            "integers in 0 ... 255 are needed (of instance ids, labels > 0)"
        )
    highest = np.finfo(np.float32).max
    for name, values in (("images", images), ("weights", weights)):
        low, high = values.min(), values.max()
        if not (low >= -highest and high <= highest):  # NaN is neither
            raise InputError(f"the {name} hold a value that is not finite, or none of float32")
    for channel in range(images.shape[1]):
        grey = images[:, channel]
        if grey.min() == grey.max():
            raise InputError(
                f"channel {channel} of the images is {grey.flat[0]} everywhere: "
                "there is nothing to learn from"
            )
    if weights.min() < 0:
        raise InputError(f"a weight is {weights.min()}: weights must be 0 or more")
    if not weights.any():
        raise InputError("every weight is 0: there is nothing to learn from")
