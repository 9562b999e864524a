"""Training samples: augmented tiles of a labelled stack (Sec. 3 and 3.1)."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unet_repro.augmentation import augment
from unet_repro.augmentation.warp import Interpolation
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, described, joined, mapped, pieces

Tensors = Tensor | list[Tensor]  # slices: one tensor, or, where they have several sizes, a list


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
    images : ndarray, shape (z, y, x) or (z, c, y, x), or sequence of (y, x) or (c, y, x)
        Grey values as in the file; any real dtype, finite. In a sequence sizes may differ.
    classes : ndarray of int or bool, shape (z, y, x), or sequence of (y, x)
        Class of each pixel, 0 ... 255: 1 is the cell interior, 0 the membrane or background.
    weights : ndarray of float, shape (z, y, x), or sequence of (y, x)
        The weight map, finite, 0 or more; 0 leaves a pixel out.
    device
        Where the stack lies and the augmentation runs.

    Attributes
    ----------
    images, classes, weights : Tensor or list of Tensor
        One tensor, (z, c, y, x) and (z, y, x), if all slices have one size, else one of each.
    mean, std : Tensor, shape (c, 1, 1)
        Of the grey values, per channel, over all pixels.

    Raises
    ------
    InputError
        Shapes that do not fit, classes that are no integers in 0 ... 255, values that are not
        finite, negative weights or none above 0, a channel of one grey value only.
    """

    def __init__(
        self,
        images: Slices,
        classes: Slices,
        weights: Slices,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        images, classes, weights = joined(images), joined(classes), joined(weights)
        if len(images) and all(image.ndim == 2 for image in images):
            images = mapped(lambda image: image[..., None, :, :], images)
        _check_shapes(images, classes, weights)
        _check_values(images, classes, weights)
        self.images = _tensors(images, np.float32, device)
        self.classes = _tensors(classes, np.uint8, device)
        self.weights = _tensors(weights, np.float32, device)
        self.mean, self.std = _mean_and_std(self.images)
        self._ends = list(accumulate(one.numel() for one in self.classes))  # in pixels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the slices lie."""
        return self.mean.device

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return len(self.mean)

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

        Of slices of several sizes, each is drawn from with a chance in proportion to its pixels;
        what a window covers beyond a slice's border is mirrored, several times where need be.
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
        if isinstance(self.images, Tensor):
            z = int(torch.randint(len(self), (), generator=generator, device="cpu"))
        else:
            pixel = torch.randint(self._ends[-1], (), generator=generator, device="cpu")
            z = bisect_right(self._ends, int(pixel))
        height, width = self.classes[z].shape
        return z, augment.draw(
            ranges, image_size=(height, width), window=(window, window), generator=generator
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
        for stack in (self.images, self.classes, self.weights):
            for tensor in [stack] if isinstance(stack, Tensor) else stack:
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()

    def prior_entropy(self) -> float:
        """Return the loss of a network that knows only the weighted class frequencies, in nats."""
        classes, weights = _all_pixels(self.classes), _all_pixels(self.weights)
        total = weights.sum(dtype=torch.float64)
        entropy = 0.0
        for k in classes.unique():
            share = float(weights[classes == k].sum(dtype=torch.float64) / total)
            entropy -= share * math.log(share) if share else 0.0  # 0 log 0 = 0
        return entropy


def _tensors(stack: Slices, dtype: Any, device: torch.device | str) -> Tensors:
    if isinstance(stack, np.ndarray):
        return torch.from_numpy(stack.astype(dtype, order="C")).to(device)
    return [torch.from_numpy(image.astype(dtype, order="C")).to(device) for image in stack]


def _all_pixels(stack: Tensors) -> Tensor:
    """Return the values of all pixels in one dimension, slice by slice."""
    if isinstance(stack, Tensor):
        return stack.flatten()
    return torch.cat([image.flatten() for image in stack])


def _mean_and_std(images: Tensors) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel over all pixels, (c, 1, 1)."""
    if isinstance(images, Tensor):
        deviation, mean = torch.std_mean(images, dim=(0, 2, 3), correction=0)
    else:
        pixels = torch.cat([image.flatten(1) for image in images], dim=1)  # (c, pixels)
        deviation, mean = torch.std_mean(pixels, dim=1, correction=0)
    return mean[:, None, None], deviation[:, None, None]


def _check_shapes(images: Slices, classes: Slices, weights: Slices) -> None:
    """Raise unless there is an image (c, y, x) and weights (y, x) for all classes (y, x)."""
    shapes = [one.shape for one in classes]
    for name, stack, axes in (("images", images, 3), ("weights", weights, 2)):
        others = [one.shape for one in stack]
        is_fitting = all(len(shape) == axes for shape in others)
        if not is_fitting or [shape[-2:] for shape in others] != shapes:
            raise InputError(
                f"{name} {described(stack)} do not fit the labels {described(classes)}"
            )
    channels = sorted({len(image) for image in images})
    if len(channels) > 1:
        raise InputError(f"the images have {channels} channels: all must have as many")


def _check_values(images: Slices, classes: Slices, weights: Slices) -> None:
    """Raise unless every value can be learnt from."""
    if not len(classes) or not all(one.size for one in classes):
        raise InputError(
            f"the labels have shape {described(classes)}: there is nothing to learn from"
        )
    low, high = _extent(classes)
    if any(one.dtype.kind not in "biu" for one in classes) or low < 0 or high > 255:
        raise InputError(
            f"classes are {classes[0].dtype} in {low} ... {high}: "
            "integers in 0 ... 255 are needed (of instance ids, labels > 0)"
        )
    highest = np.finfo(np.float32).max
    for name, values in (("images", images), ("weights", weights)):
        low, high = _extent(values)
        if not (low >= -highest and high <= highest):  # NaN is neither
            raise InputError(f"the {name} hold a value that is not finite, or none of float32")
    for channel in range(images[0].shape[0]):
        grey, highest_grey = _extent([image[channel] for image in images])
        if grey == highest_grey:
            raise InputError(
                f"channel {channel} of the images is {grey} everywhere: "
                "there is nothing to learn from"
            )
    lowest, largest = _extent(weights)
    if lowest < 0:
        raise InputError(f"a weight is {lowest}: weights must be 0 or more")
    if not largest:
        raise InputError("every weight is 0: there is nothing to learn from")


def _extent(stack: Slices) -> tuple[Any, Any]:
    """Return the lowest and the highest value, NaN where there is a NaN."""
    lows, highs = zip(*((piece.min(), piece.max()) for piece in pieces(stack)))
    return np.min(lows), np.max(highs)
