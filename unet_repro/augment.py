"""Data augmentation (Sec. 3.1): shift, rotation, elastic deformation, grey-value variation.

Drawing and applying are separate: `draw` takes random numbers, everything else is a pure function
of them, so that image, labels and weights share one deformation. All of it is torch code and runs
on the device of the tensors it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from unet_repro import config
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError

Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Augmentation:
    """One draw: everything that is random about a training sample but the slice it is cut from.

    Parameters
    ----------
    centre
        (y, x) in px of the image: where the window's centre comes to lie.
    angle_deg
        Rotation of the window about its centre, counter-clockwise as displayed.
    is_flipped
        The window is mirrored left to right before it is rotated.
    displacement
        float64 (2, grid, grid): (y, x) displacement in px of the window's control points, which
        lie on its corners, on the middle of its sides, ... (Sec. 3.1).
    contrast, brightness
        Grey values g become mean + contrast (g - mean) + brightness std.
    """

    centre: tuple[float, float]
    angle_deg: float
    is_flipped: bool
    displacement: Tensor
    contrast: float
    brightness: float


def draw(
    ranges: AugmentationConfig,
    *,
    image_size: tuple[int, int],
    window: tuple[int, int],
    generator: torch.Generator,
) -> Augmentation:
    """Draw one augmentation.

    Parameters
    ----------
    ranges
        Uniform over +-rotation_deg, 1 +- contrast and +-brightness; Gaussian displacements; a flip
        with probability 1/2 where flips are on.
    image_size, window
        (height, width) in px. The window's centre lies anywhere in the image; what it covers beyond
        the border is mirrored.
    generator
        A CPU generator: few numbers are drawn, and the same ones whatever the device.
    """
    spread = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    displacement = draw_displacement(
        sigma_px=ranges.elastic_sigma_px, grid=ranges.elastic_grid, generator=generator
    )
    # On whole pixels of the image (half ones for an even window), so that an unrotated window
    # without displacement needs no interpolation.
    y, x = (
        int(share * size) + (0.0 if side % 2 else 0.5)
        for share, size, side in zip(spread[:2], image_size, window)
    )
    return Augmentation(
        centre=(y, x),
        angle_deg=ranges.rotation_deg * (2 * spread[2] - 1),
        is_flipped=ranges.flips and spread[3] < 0.5,
        displacement=displacement,
        contrast=1 + ranges.contrast * (2 * spread[4] - 1),
        brightness=ranges.brightness * (2 * spread[5] - 1),
    )


def draw_displacement(
    *,
    sigma_px: float = config.ELASTIC_SIGMA_PX,
    grid: int = config.ELASTIC_GRID,
    generator: torch.Generator,
) -> Tensor:
    """Draw a float64 (2, grid, grid) displacement in px, Gaussian, `sigma_px` each (Sec. 3.1)."""
    return sigma_px * torch.randn(2, grid, grid, generator=generator, dtype=torch.float64)


def dense_displacement(displacement: Tensor, window: tuple[int, int]) -> Tensor:
    """Interpolate control points (2, grid, grid) to every pixel of a window (Sec. 3.1).

    Returns
    -------
    Tensor
        float64 (2, height, width) in px, exactly `displacement` at the control points.

    Notes
    -----
    Not in the paper: which bicubic kernel, and where the control points lie. Here it is the
    interpolating cubic spline of ``scipy.ndimage`` with mirrored ends: smooth (two continuous
    derivatives), and equal to the drawn values at the control points, where an approximating
    B-spline would halve them. The control points span the window: its corners are four of them.
    """
    rows, columns = (
        _spline_matrix(displacement.shape[1], side).to(displacement.device) for side in window
    )
    return rows @ displacement @ columns.T  # (2, height, width)


@lru_cache(maxsize=16)
def _spline_matrix(points: int, length: int) -> Tensor:
    """Return the (length, points) matrix that interpolates `points` values at `length` places."""
    places = np.linspace(0, points - 1, length)[None]
    matrix = [
        ndimage.map_coordinates(unit, places, order=3, mode="mirror") for unit in np.eye(points)
    ]
    return torch.from_numpy(np.stack(matrix, axis=1))


def coordinates(
    augmentation: Augmentation, window: tuple[int, int], *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return where each pixel of the window is taken from: float64 (2, height, width), (y, x) px.

    Pixels are displaced first, then flipped and rotated about the window's centre, then shifted.
    Rotations by multiples of 90 degrees, flips and shifts are exact.
    """
    y, x = (
        torch.arange(side, dtype=torch.float64, device=device) - (side - 1) / 2 for side in window
    )
    cos, sin = _exact_cos_sin(augmentation.angle_deg)
    mirror = -1.0 if augmentation.is_flipped else 1.0
    to_image = torch.tensor(
        [[cos, sin * mirror], [-sin, cos * mirror]], dtype=torch.float64, device=device
    )
    places = to_image[:, :1, None] * y[:, None] + to_image[:, 1:, None] * x  # (2, height, width)
    if augmentation.displacement.any():
        displacement = augmentation.displacement.to(device)
        # the window's frame turned into the image's: on the few control points, not on every pixel
        places += dense_displacement(torch.tensordot(to_image, displacement, 1), window)
    return (
        places
        + torch.tensor(augmentation.centre, dtype=torch.float64, device=device)[:, None, None]
    )


def _exact_cos_sin(angle_deg: float) -> tuple[float, float]:
    """Return cos and sin, exactly 0 and +-1 at multiples of 90 degrees."""
    angle = np.deg2rad(angle_deg)
    if angle_deg % 90 == 0:
        return float(np.rint(np.cos(angle))), float(np.rint(np.sin(angle)))
    return float(np.cos(angle)), float(np.sin(angle))


def warp(image: Tensor, places: Tensor, *, interpolation: Interpolation = "bilinear") -> Tensor:
    """Sample an image at `places`, mirrored beyond its border.

    Parameters
    ----------
    image
        (..., H, W), any dtype for "nearest", floating point otherwise.
    places
        float64 (2, height, width): (y, x) in px; whole numbers are pixel centres.
    interpolation
        "nearest" (never invents a value), "bilinear", or "bicubic" (Keys, a = -1/2).

    Returns
    -------
    Tensor
        (..., height, width), dtype and device of `image`.

    Notes
    -----
    Mirrored about the centre of the border pixel, which is not repeated, as often as needed.
    """
    if interpolation != "nearest" and not image.is_floating_point():
        raise InputError(f"{interpolation} interpolation needs a floating-point image")
    flat = image.flatten(-2)
    width = image.shape[-1]
    if interpolation == "nearest":
        y, x = (
            _mirror(torch.round(place).long(), size)
            for place, size in zip(places, image.shape[-2:])
        )
        return flat[..., y * width + x]
    below = torch.floor(places)
    fraction = (places - below).to(image.dtype)
    offsets = range(2) if interpolation == "bilinear" else range(-1, 3)
    below = below.long()
    rows, columns = (
        [
            (_mirror(below[axis] + k, size), _kernel(fraction[axis] - k, interpolation))
            for k in offsets
        ]
        for axis, size in enumerate(image.shape[-2:])
    )
    result = torch.zeros((), dtype=image.dtype, device=image.device)
    for row, row_weight in rows:
        start = row * width
        line = sum(flat[..., start + column] * weight for column, weight in columns)
        result = result + line * row_weight
    return result


def _mirror(index: Tensor, size: int) -> Tensor:
    """Fold whole coordinates into [0, size), mirrored about the border pixels' centres."""
    if size == 1:
        return torch.zeros_like(index)
    last = size - 1
    return last - (last - torch.remainder(index, 2 * last)).abs()


def _kernel(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """Return the weight of a sample at a signed distance in px."""
    t = distance.abs()
    if interpolation == "bilinear":
        return 1 - t
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, far)


def vary_grey_values(
    image: Tensor, augmentation: Augmentation, *, mean: Tensor, std: Tensor
) -> Tensor:
    """Change contrast about the mean and brightness (Sec. 3.1: "gray value variations").

    `image` is (C, H, W) in the units of `mean` and `std`, each (C, 1, 1).
    """
    return mean + augmentation.contrast * (image - mean) + augmentation.brightness * std


def elastic_deformation(
    image: Tensor,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    sigma_px: float = config.ELASTIC_SIGMA_PX,
    grid: int = config.ELASTIC_GRID,
    generator: torch.Generator | None = None,
    displacement: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Deform an image, its labels and weights by one random smooth field (Sec. 3.1).

    Parameters
    ----------
    image
        float (..., H, W).
    labels, weights
        (..., H, W) of the same height and width: sampled nearest (no label is invented) and
        bilinearly.
    sigma_px, grid
        Standard deviation of the displacement in px; control points a side.
    generator
        Where the displacement is drawn from; torch's global generator if None.
    displacement
        float64 (2, grid, grid), (y, x) in px, to apply instead of drawing one.
    interpolation
        Of the image.

    Returns
    -------
    tuple of Tensor
        Image, labels, weights as given: shapes, dtypes and device are kept.

    Examples
    --------
    >>> image = torch.rand(64, 64)
    >>> still = torch.zeros(2, 3, 3, dtype=torch.float64)
    >>> torch.equal(elastic_deformation(image, displacement=still)[0], image)
    True
    """
    size = (image.shape[-2], image.shape[-1])
    for name, other in (("labels", labels), ("weights", weights)):
        if other is not None and other.shape[-2:] != size:
            raise InputError(f"{name} are {tuple(other.shape[-2:])} px, the image is {size}")
    if displacement is None:
        generator = generator or torch.default_generator
        displacement = draw_displacement(sigma_px=sigma_px, grid=grid, generator=generator)
    still = Augmentation(
        centre=((size[0] - 1) / 2, (size[1] - 1) / 2),
        angle_deg=0.0,
        is_flipped=False,
        displacement=displacement,
        contrast=1.0,
        brightness=0.0,
    )
    places = coordinates(still, size, device=image.device)
    return (
        warp(image, places, interpolation=interpolation),
        None if labels is None else warp(labels, places, interpolation="nearest"),
        None if weights is None else warp(weights, places),
    )
