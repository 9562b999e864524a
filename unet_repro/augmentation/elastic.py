"""The elastic deformation of Sec. 3.1: random displacements on a coarse grid, and their splines."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from unet_repro import config
from unet_repro.errors import InputError


def draw_displacement(
    *,
    sigma_px: float = config.ELASTIC_SIGMA_PX,
    grid: int = config.ELASTIC_GRID,
    generator: torch.Generator,
) -> Tensor:
    """Draw a float64 (2, grid, grid) displacement in px, Gaussian, `sigma_px` each (Sec. 3.1).

    `generator` is a CPU generator, whatever device the displacement is for.
    """
    if not 0 <= sigma_px < math.inf:
        raise InputError(f"sigma_px is {sigma_px}: a finite number of px, 0 or more, is needed")
    if not 2 <= grid <= config.LARGEST_ELASTIC_GRID:
        raise InputError(
            f"grid is {grid}: 2 to {config.LARGEST_ELASTIC_GRID} control points a side are needed"
        )
    check_cpu(generator)
    shape = (2, grid, grid)
    return sigma_px * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def check_cpu(generator: torch.Generator) -> None:
    if generator.device.type != "cpu":
        raise InputError(
            f"the generator is on {generator.device}: a CPU generator is needed, "
            "so that the same numbers are drawn whatever the device"
        )


def check_displacement(displacement: Tensor) -> None:
    shape = tuple(displacement.shape)
    if len(shape) != 3 or shape[0] != 2 or min(shape) < 2:
        raise InputError(f"displacement has shape {shape}: (2, grid, grid), grid >= 2, is needed")
    if not torch.isfinite(displacement).all():
        raise InputError("displacement holds a value that is not finite")


@lru_cache(maxsize=16)
def basis(points: int, length: int, device: torch.device) -> Tensor:
    """Return what the places along an axis are a sum of: float64 (length, points + 2).

    The splines that interpolate `points` values, the distance from the middle, and 1.
    """
    knots = np.linspace(0, points - 1, length)[None]
    splines = [
        ndimage.map_coordinates(unit, knots, order=3, mode="mirror") for unit in np.eye(points)
    ]
    distance = np.arange(length) - (length - 1) / 2
    return torch.from_numpy(np.stack([*splines, distance, np.ones(length)], axis=1)).to(device)
