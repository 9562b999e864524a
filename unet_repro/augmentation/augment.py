"""Data augmentation (Sec. 3.1): shift, rotation, elastic deformation, grey-value variation.

Drawing and applying are separate: `draw` takes random numbers, `apply` and all else is a pure
function of them, so that image, labels and weights share one deformation. All of it is torch code
and runs on the device of the tensors it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from unet_repro import config
from unet_repro.augmentation.elastic import basis, check_cpu, check_displacement, draw_displacement
from unet_repro.augmentation.warp import Interpolation, Sample, warp_together
from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError
from unet_repro.network.device import to_device


@dataclass(frozen=True)
class Augmentation:
    """One draw: everything that is random about a training sample but the slice it is cut from.

    Parameters
    ----------
    centre
        (y, x) in px of the image: where the window's centre comes to lie.
    angle_deg
        Rotation of the picture about the window's centre, counter-clockwise as displayed.
    is_flipped
        The picture is mirrored left to right after that rotation.
    displacement
        float64 (2, grid, grid), (y, x) in px of the window: how far from each of its control
        points the pixel shown there is taken. They lie on its corners, on the middle of its sides,
        ... (Sec. 3.1).
    contrast, brightness
        Grey values g become mean + contrast (g - mean) + brightness std.
    magnification
        How many times as large the picture becomes about the window's centre.
    blur_px
        Standard deviation in px of the window of a Gaussian blur of the image; 0 for none.
    noise, noise_seed
        White Gaussian noise of so many standard deviations is added to the image at last, drawn
        from that seed.
    """

    centre: tuple[float, float]
    angle_deg: float
    is_flipped: bool
    displacement: Tensor
    contrast: float
    brightness: float
    magnification: float = 1.0
    blur_px: float = 0.0
    noise: float = 0.0
    noise_seed: int = 0


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
        with probability 1/2 where flips are on. With probability `unwarped` the angle is the
        nearest multiple of 90 degrees (0 if that is beyond rotation_deg), and nothing is displaced,
        magnified, blurred or made noisy.
    image_size, window
        (height, width) in px. The window's centre lies anywhere in the image, on a pixel's centre
        for an odd side of the (turned) window and on its lower right corner for an even one; what
        the window covers beyond the border is mirrored.
    generator
        A CPU generator: few numbers are drawn, and the same ones whatever the device.

    Raises
    ------
    InputError
        A size below 1, or a generator of another device.
    """
    check_cpu(generator)
    for name, size in (("image_size", image_size), ("window", window)):
        if min(size) < 1:
            raise InputError(f"{name} is {tuple(size)}: both sides must be 1 px or more")
    spread = torch.rand(6, generator=generator, dtype=torch.float64, device="cpu").tolist()
    displacement = draw_displacement(
        sigma_px=ranges.elastic_sigma_px, grid=ranges.elastic_grid, generator=generator
    )
    angle_deg = ranges.rotation_deg * (2 * spread[2] - 1)
    foreign = _draw_foreign(ranges, generator)
    if ranges.unwarped and torch.rand((), generator=generator, device="cpu") < ranges.unwarped:
        foreign = {}
        turned = 90.0 * round(angle_deg / 90)
        angle_deg = turned if abs(turned) <= ranges.rotation_deg else 0.0
        displacement = torch.zeros_like(displacement)
    # On whole pixels of the image (half ones for an even window), so that a window without
    # displacement, not turned or turned by 90 degrees, needs no interpolation.
    sides = window[::-1] if angle_deg % 180 == 90 else window
    y, x = (
        int(share * size) + (0.0 if side % 2 else 0.5)
        for share, size, side in zip(spread[:2], image_size, sides)
    )
    return Augmentation(
        centre=(y, x),
        angle_deg=angle_deg,
        is_flipped=ranges.flips and spread[3] < 0.5,
        displacement=displacement,
        contrast=1 + ranges.contrast * (2 * spread[4] - 1),
        brightness=ranges.brightness * (2 * spread[5] - 1),
        **foreign,
    )


def _draw_foreign(ranges: AugmentationConfig, generator: torch.Generator) -> dict[str, Any]:
    """Draw what makes a sample look like another microscope's; no number where there is none."""
    if not (ranges.scale or ranges.blur_px or ranges.noise):
        return {}
    size, blur, noise = torch.rand(
        3, generator=generator, dtype=torch.float64, device="cpu"
    ).tolist()
    return {
        "magnification": (1 + ranges.scale) ** (2 * size - 1),
        "blur_px": ranges.blur_px * blur,
        "noise": ranges.noise * noise,
        "noise_seed": int(torch.randint(2**62, (), generator=generator, device="cpu")),
    }


def coordinates(
    augmentation: Augmentation, window: tuple[int, int], *, device: torch.device | str = "cpu"
) -> Tensor:
    """Return where each pixel of the window is taken from: float64 (2, height, width), (y, x) px.

    A pixel's place in the window, seen from the window's centre, is displaced, then flipped,
    rotated and divided by the magnification, then shifted to `augmentation.centre`. The picture is
    so magnified and rotated first, then flipped:
    90 degrees and a flip are ``torch.rot90(image).fliplr()``. Rotations by multiples of 90
    degrees, flips and shifts are exact.

    Notes
    -----
    Not in the paper: which bicubic kernel, and where the control points lie. Here it is the
    interpolating cubic spline of ``scipy.ndimage`` with mirrored ends: smooth (two continuous
    derivatives), and equal to the drawn values at the control points, where an approximating
    B-spline would halve them. The control points span the window: its corners are four of them.
    """
    displacement = augmentation.displacement.cpu().double()
    check_displacement(displacement)
    cos, sin = _exact_cos_sin(augmentation.angle_deg)
    mirror = -1.0 if augmentation.is_flipped else 1.0
    to_image = displacement.new_tensor([[cos, sin * mirror], [-sin, cos * mirror]])
    to_image /= augmentation.magnification
    height, width = displacement.shape[1:]
    # A place is linear in each axis' basis: splines, distance, 1. So all of it, the displacement
    # turned into the image's frame included, is one small matrix between the two.
    factors = displacement.new_zeros(2, height + 2, width + 2)
    factors[:, :height, :width] = torch.tensordot(to_image, displacement, 1)
    factors[:, height, width + 1] = to_image[:, 0]  # y times 1
    factors[:, height + 1, width] = to_image[:, 1]  # 1 times x
    factors[:, height + 1, width + 1] = displacement.new_tensor(augmentation.centre)
    rows, columns = (
        basis(points, side, torch.device(device)) for points, side in zip((height, width), window)
    )
    return rows @ to_device(factors, torch.device(device)) @ columns.T  # (2, height, width)


def _exact_cos_sin(angle_deg: float) -> tuple[float, float]:
    """Return cos and sin, exactly 0 and +-1 at multiples of 90 degrees."""
    angle = np.deg2rad(angle_deg)
    if angle_deg % 90 == 0:
        return float(np.rint(np.cos(angle))), float(np.rint(np.sin(angle)))
    return float(np.cos(angle)), float(np.sin(angle))


def apply(
    augmentation: Augmentation,
    image: Tensor,
    labels: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    window: tuple[int, int],
    output: tuple[int, int] | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    interpolation: Interpolation = "bilinear",
) -> Sample:
    """Make a training sample: one augmentation of an image, its labels and its weights.

    Parameters
    ----------
    augmentation
        From `draw`, for an image of this size and this window.
    image
        float (C, H, W).
    labels, weights
        (H, W), as in `warp_together`.
    window
        (height, width) in px of the image's sample.
    output
        (height, width) in px of the labels' and weights' samples, the window's centre; as large as
        the window if None.
    mean, std
        (C, 1, 1): what contrast and brightness refer to; the image's own if None.

    Raises
    ------
    InputError
        An output that is not the centre of the window; what `warp_together` raises.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> drawn = draw(
    ...     AugmentationConfig(), image_size=(512, 512), window=(572, 572), generator=generator
    ... )
    >>> image, labels = torch.rand(1, 512, 512), torch.ones(512, 512, dtype=torch.uint8)
    >>> sample = apply(drawn, image, labels, window=(572, 572), output=(388, 388))
    >>> sample.image.shape, sample.labels.shape
    (torch.Size([1, 572, 572]), torch.Size([388, 388]))
    """
    margin = _margin(window, window if output is None else output)
    sample = warp_together(
        image,
        labels,
        weights,
        places=coordinates(augmentation, window, device=image.device),
        margin=margin,
        interpolation=interpolation,
    )
    if mean is None or std is None:
        own_std, own_mean = torch.std_mean(image, dim=(-2, -1), correction=0, keepdim=True)
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
    varied = vary_grey_values(sample.image, augmentation, mean=mean, std=std)
    return sample._replace(image=_add_noise(_blur(varied, augmentation.blur_px), augmentation, std))


def _margin(window: tuple[int, int], output: tuple[int, int]) -> tuple[int, int]:
    """Return how many px lie between the sides of window and output, the same on either side."""
    for outer, inner in zip(window, output):
        if not 1 <= inner <= outer or (outer - inner) % 2:
            raise InputError(
                f"output {tuple(output)} is not the centre of the window {tuple(window)}: "
                "it may be smaller by an even number of px"
            )
    return (window[0] - output[0]) // 2, (window[1] - output[1]) // 2


def vary_grey_values(
    image: Tensor, augmentation: Augmentation, *, mean: Tensor, std: Tensor
) -> Tensor:
    """Change contrast about the mean and brightness (Sec. 3.1: "gray value variations").

    ``mean + contrast (image - mean) + brightness std``, with `image` (C, H, W) in the units of
    `mean` and `std`, each (C, 1, 1). Nothing is clipped.
    """
    offset = (1 - augmentation.contrast) * mean + augmentation.brightness * std
    return augmentation.contrast * image + offset  # unchanged values stay so, exactly


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Blur (C, H, W) by a Gaussian, cut off at four standard deviations, edges repeated."""
    if not sigma_px:
        return image
    radius = math.ceil(4 * sigma_px)
    offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel /= kernel.sum()
    blurred = functional.pad(image[:, None], (radius,) * 4, mode="replicate")  # (C, 1, H, W)
    blurred = functional.conv2d(blurred, kernel[None, None, :, None])
    return functional.conv2d(blurred, kernel[None, None, None, :])[:, 0]


def _add_noise(image: Tensor, augmentation: Augmentation, std: Tensor) -> Tensor:
    """Add the noise that the augmentation draws, the same whatever the device."""
    if not augmentation.noise:
        return image
    generator = torch.Generator().manual_seed(augmentation.noise_seed)
    noise = torch.randn(image.shape, generator=generator).to(image.dtype)
    noise = to_device(noise, image.device)
    return image + augmentation.noise * std * noise


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
) -> Sample:
    """Deform an image, its labels and weights by one random smooth field (Sec. 3.1).

    Parameters
    ----------
    image
        float (..., H, W).
    labels, weights
        (..., H, W) of the same height and width, as in `warp_together`: sampled nearest (no label
        is invented) and bilinearly.
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
    Sample
        Image, labels, weights as given: shapes, dtypes and device are kept.

    Raises
    ------
    InputError
        What `draw_displacement` and `warp_together` raise; a displacement of another shape, or with
        a value that is not finite.

    Examples
    --------
    >>> image = torch.rand(64, 64)
    >>> still = torch.zeros(2, 3, 3, dtype=torch.float64)
    >>> torch.equal(elastic_deformation(image, displacement=still).image, image)
    True
    """
    if image.ndim < 2:
        raise InputError(f"image of shape {tuple(image.shape)}: (..., H, W) needed")
    size = (image.shape[-2], image.shape[-1])
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
    return warp_together(image, labels, weights, places=places, interpolation=interpolation)
