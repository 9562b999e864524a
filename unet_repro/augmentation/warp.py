"""Sampling images, labels and weights at arbitrary places, mirrored beyond their border."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from unet_repro.errors import InputError

Interpolation = Literal["nearest", "bilinear", "bicubic"]
# index_select lacks these; the signed type of the same width carries their bits
_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


class Sample(NamedTuple):
    """What a deformation makes of an image, its labels and its weights; None where not given."""

    image: Tensor
    labels: Tensor | None
    weights: Tensor | None


def warp_together(
    image: Tensor,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    places: Tensor,
    margin: tuple[int, int] = (0, 0),
    interpolation: Interpolation = "bilinear",
) -> Sample:
    """Sample an image, its labels and its weights at the same places, mirrored beyond the border.

    Parameters
    ----------
    image
        (..., H, W), floating point unless it is sampled "nearest". "bicubic" is Keys, a = -1/2.
    labels
        (..., H, W), any dtype: sampled nearest, so that no label is invented.
    weights
        float (..., H, W): sampled bilinearly. Where the nearest weight is 0 (unknown pixels) it
        stays 0: such a pixel's label means nothing.
    places
        float64 (2, height, width): (y, x) in px; whole numbers are pixel centres.
    margin
        (y, x) in px: labels and weights are sampled only at places so far from the window's sides.

    Raises
    ------
    InputError
        Sizes that differ or are 0; integers where values are interpolated; places of another
        shape; an unknown interpolation.

    Notes
    -----
    Mirrored about the centre of the border pixel, which is not repeated, as often as needed:
    ``mode="mirror"`` of ``scipy.ndimage``.
    """
    size = _image_size(image, places, interpolation, "image")
    for name, other in (("labels", labels), ("weights", weights)):
        if other is not None and other.shape[-2:] != size:
            raise InputError(f"{name} are {tuple(other.shape[-2:])} px, the image is {size}")
    if weights is not None:
        _image_size(weights, places, "bilinear", "weights")
    inside = _fold(places, size)
    sampled = _interpolate(image, inside, interpolation)
    if labels is None and weights is None:
        return Sample(sampled, None, None)
    height, width = places.shape[1:]
    inner = _Inside(
        *(part[margin[0] : height - margin[0], margin[1] : width - margin[1]] for part in inside)
    )
    nearest = _nearest(inner, size)
    if labels is not None:
        labels = _take(labels, nearest)
    if weights is not None:
        is_unknown = _take(weights, nearest) == 0
        weights = _interpolate(weights, inner, "bilinear").masked_fill_(is_unknown, 0)
    return Sample(sampled, labels, weights)


def _image_size(
    image: Tensor, places: Tensor, interpolation: Interpolation, name: str
) -> tuple[int, int]:
    """Return the image's (height, width) in px, or raise."""
    if interpolation not in get_args(Interpolation):
        known = ", ".join(get_args(Interpolation))
        raise InputError(f"interpolation is {interpolation!r}: one of {known} is needed")
    if image.ndim < 2 or not image.numel():
        raise InputError(f"{name} of shape {tuple(image.shape)}: (..., H, W) with pixels needed")
    if interpolation != "nearest" and not image.is_floating_point():
        raise InputError(f"{name} is {image.dtype}: {interpolation} needs floating point")
    if places.ndim != 3 or len(places) != 2:
        raise InputError(f"places have shape {tuple(places.shape)}: (2, height, width) needed")
    return image.shape[-2], image.shape[-1]


class _Inside(NamedTuple):
    """Places in an image: the pixel above and left of each, and how far beyond it, in [0, 1]."""

    y: Tensor  # integer, at most height - 2 (0 where the height is 1); as all: (height, width)
    x: Tensor
    y_fraction: Tensor  # float64
    x_fraction: Tensor


def _fold(places: Tensor, size: tuple[int, int]) -> _Inside:
    """Fold places into the image, mirrored about the border pixels' centres."""
    index_type = torch.int32 if size[0] * size[1] < 2**31 else torch.int64
    indices, fractions = [], []
    for place, side in zip(places.double(), size):
        if side == 1:
            folded = torch.zeros_like(place)
        else:  # the mirrored image is even and periodic; whole places stay whole
            period = 2 * (side - 1)
            folded = torch.round(place / period).mul_(-period).add_(place).abs_()
        below = folded.floor().clamp_(max=max(side - 2, 0))
        indices.append(below.to(index_type).clamp_(min=0))  # NaN has no index
        fractions.append(folded.sub_(below))
    return _Inside(*indices, *fractions)


def _nearest(inside: _Inside, size: tuple[int, int]) -> Tensor:
    """Return the index, in the flattened image, of the pixel nearest to each place."""
    y = inside.y + (inside.y_fraction >= 0.5)
    return y * size[1] + (inside.x + (inside.x_fraction >= 0.5))


def _interpolate(image: Tensor, inside: _Inside, interpolation: Interpolation) -> Tensor:
    if interpolation == "nearest":
        return _take(image, _nearest(inside, (image.shape[-2], image.shape[-1])))
    fractions = [
        fraction.to(image.dtype).expand(image.shape[:-2] + fraction.shape)
        for fraction in (inside.y_fraction, inside.x_fraction)
    ]
    kernel = _bilinear if interpolation == "bilinear" else _bicubic
    return kernel(image, inside.y, inside.x, *fractions)


def _bilinear(
    image: Tensor, y: Tensor, x: Tensor, y_fraction: Tensor, x_fraction: Tensor
) -> Tensor:
    height, width = image.shape[-2:]
    upper = y * width + x
    lower = upper + (width if height > 1 else 0)
    right = 1 if width > 1 else 0
    top, bottom = (
        torch.lerp(_take(image, left), _take(image, left + right), x_fraction)
        for left in (upper, lower)
    )
    return torch.lerp(top, bottom, y_fraction)


def _bicubic(image: Tensor, y: Tensor, x: Tensor, y_fraction: Tensor, x_fraction: Tensor) -> Tensor:
    (height, width), result = image.shape[-2:], torch.zeros_like(y_fraction)
    columns = list(zip(_mirrored_taps(x, width), _keys_weights(x_fraction)))
    for row, row_weight in zip(_mirrored_taps(y, height), _keys_weights(y_fraction)):
        start = row * width
        line = torch.zeros_like(result)
        for column, column_weight in columns:
            line.addcmul_(_take(image, start + column), column_weight)
        result.addcmul_(line, row_weight)
    return result


def _mirrored_taps(below: Tensor, side: int) -> list[Tensor]:
    """Return the four indices below - 1 ... below + 2, mirrored at the image's borders."""
    last = side - 1
    if last == 0:
        return [below] * 4
    return [last - (last - (below + k).abs()).abs() for k in range(-1, 3)]


def _keys_weights(t: Tensor) -> tuple[Tensor, ...]:
    """Return the weights of the four taps at distances 1 + t, t, 1 - t, 2 - t (Keys, a = -1/2)."""
    return (
        ((1 - 0.5 * t) * t - 0.5) * t,
        (1.5 * t - 2.5) * t * t + 1,
        ((2 - 1.5 * t) * t + 0.5) * t,
        (0.5 * t - 0.5) * t * t,
    )


def _take(image: Tensor, index: Tensor) -> Tensor:
    """Return the pixels (..., height, width) at indices of the flattened image."""
    if image.dtype in _SIGNED:
        return _take(image.view(_SIGNED[image.dtype]), index).view(image.dtype)
    return image.flatten(-2).index_select(-1, index.flatten()).unflatten(-1, index.shape)
