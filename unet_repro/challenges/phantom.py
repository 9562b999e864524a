"""A synthetic electron-microscopy stack, for trials and tests; nothing in it is from the paper."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_repro.challenges.tissue import Cells, SmoothNoise, draw_cells
from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack

_SMALLEST_CELL_PX = 60  # smaller remainders become membrane, as an annotator would draw them
VOXEL_SIZE_UM = (0.05, 0.004, 0.004)  # as in the EM challenge: serial sections of 50 nm


def em_phantom(
    *, slices: int = 30, height: int = 512, width: int = 512, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a stack that looks like serial-section EM of neural tissue, with its labels.

    Not in the paper. Cells of many sizes wander and breathe from slice to slice; their membranes
    are bent by smooth noise. Inside are mitochondria and vesicles, dark-rimmed like cells but
    labelled as interior, and granular cytoplasm. Membranes cut obliquely are smeared. Blur, noise,
    brightness and contrast differ between slices. Membranes of neighbouring slices overlap by a
    third (intersection over union 0.31 to 0.35; 0.22 in the EM challenge's training stack). One
    seed gives one stack, bit for bit on one machine.

    Returns
    -------
    images : ndarray of uint8, shape (z, y, x)
        Grey values; membranes are dark.
    labels : ndarray of uint8, shape (z, y, x)
        255 inside a cell, 0 on a membrane (about 22 % of the pixels). Each 4-connected component
        of a slice is one cell and has at least 60 px.

    Raises
    ------
    InputError
        If a size is below 1 or the seed is negative.

    Examples
    --------
    >>> images, labels = em_phantom(slices=2, height=96, width=128)
    >>> images.shape, images.dtype, [int(value) for value in np.unique(labels)]
    ((2, 96, 128), dtype('uint8'), [0, 255])
    """
    if min(slices, height, width) < 1 or seed < 0:
        raise InputError(
            f"a phantom of {slices} × {height} × {width} px with seed {seed}: sizes must be at "
            "least 1 and the seed at least 0"
        )
    rng = np.random.default_rng(seed)
    tissue = _draw_tissue(rng, (slices, height, width))
    images = np.empty((slices, height, width), np.uint8)
    labels = np.empty_like(images)
    for z in range(slices):
        images[z], labels[z] = _render_slice(rng, tissue, z)
    return images, labels


def write_em_phantom(
    folder: str | os.PathLike[str],
    *,
    slices: int = 30,
    height: int = 512,
    width: int = 512,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write the EM challenge's files: ``train-*`` from `seed`, ``test-*`` from `seed` + 1."""
    for part, part_seed in (("train", seed), ("test", seed + 1)):
        images, labels = em_phantom(slices=slices, height=height, width=width, seed=part_seed)
        for name, stack in (("volume", images), ("labels", labels)):
            write_stack(
                Path(folder) / f"{part}-{name}.tif",
                stack,
                overwrite=overwrite,
                compression="zlib",
                voxel_size_um=VOXEL_SIZE_UM,
            )


@dataclass(frozen=True)
class _Tissue:
    """All that is drawn before the slices are rendered.

    `mitochondria` has the columns cell, first slice, last slice, y, x (offset from the cell's
    midpoint), two radii, angle.
    """

    cells: Cells
    thickness: SmoothNoise
    darkness: SmoothNoise
    mottle: SmoothNoise
    illumination: SmoothNoise
    cell_grey: np.ndarray  # added to the grey value of the whole cell
    cell_grain: np.ndarray  # how much its cytoplasm holds, about 1
    mitochondria: np.ndarray


def _draw_tissue(rng: np.random.Generator, shape: tuple[int, int, int]) -> _Tissue:
    cells = draw_cells(rng, shape)
    n = cells.radius.shape[1]
    return _Tissue(
        cells=cells,
        thickness=SmoothNoise(rng, shape, (1, 25, 25)),
        darkness=SmoothNoise(rng, shape, (1, 30, 30)),
        mottle=SmoothNoise(rng, shape, (1, 20, 20)),
        illumination=SmoothNoise(rng, shape, (0.7, 150, 150)),
        cell_grey=np.array(rng.normal(0, 6, n) - 20 * (rng.random(n) < 0.1)),
        cell_grain=np.array(rng.uniform(0.4, 1.5, n)),
        mitochondria=_draw_mitochondria(rng, cells),
    )


def _draw_mitochondria(rng: np.random.Generator, cells: Cells) -> np.ndarray:
    slices, n_cells = cells.radius.shape
    at_once = np.clip(cells.radius[0] / 50 - 0.2, 0, 0.6)  # mitochondria to be seen in one cell
    owner = np.repeat(np.arange(n_cells), rng.poisson(at_once * (slices + 6) / 6.5))
    n = len(owner)
    first = rng.uniform(-6, slices, n)
    room = cells.radius[0, owner]
    long = rng.uniform(0.5, 0.9, n) * np.minimum(room, 34)
    return np.column_stack(
        [
            owner,
            first,
            first + rng.uniform(4, 9, n),
            rng.normal(0, 0.25, (n, 2)) * room[:, None],
            long,
            long * rng.uniform(0.55, 0.9, n),
            rng.uniform(0, np.pi, n),
        ]
    )


def _render_slice(
    rng: np.random.Generator, tissue: _Tissue, z: int
) -> tuple[np.ndarray, np.ndarray]:
    y, x = tissue.cells.bent_grid(z)
    distance, owner = tissue.cells.membrane_distance(z, y, x)
    below, _ = tissue.cells.membrane_distance(z + 0.5, y, x)  # a section has thickness
    half_width = 3.15 * (1 + 0.14 * tissue.thickness(z))
    label = _drop_small_cells(distance > half_width)

    darkness, mottle = tissue.darkness(z), tissue.mottle(z)
    grey = 152 + tissue.cell_grey[owner] + 10 * tissue.illumination(z)
    grey += 10 * mottle + 20 * np.clip(mottle - 1.7, 0, 1.5)
    grey += _cytoplasm(rng, tissue.cell_grain[owner], distance)
    is_free = ~_draw_mitochondria_into(grey, tissue, z, (y, x), distance, owner)
    width = 0.78 * half_width
    membrane = 0.85 * np.exp(-0.5 * (distance / width) ** 2)
    membrane += 0.2 * np.exp(-0.5 * (below / (1.6 * width)) ** 2) * is_free
    grey -= membrane * (78 + 9 * darkness)
    grey -= 40 * np.clip(darkness - 1.5, 0, 1.5) * np.exp(-distance / 7)  # synapses
    return _expose(rng, grey), label


def _drop_small_cells(is_interior: np.ndarray) -> np.ndarray:
    components, _ = ndimage.label(is_interior)
    area = np.bincount(components.ravel())
    area[0] = 0
    return np.where(area >= _SMALLEST_CELL_PX, np.uint8(255), np.uint8(0))[components]


def _cytoplasm(rng: np.random.Generator, grain: np.ndarray, distance: np.ndarray) -> np.ndarray:
    shape = distance.shape
    texture = 17 * _unit(ndimage.gaussian_filter(_white(rng, shape), 1.5))
    vesicles = (rng.random(shape) < 0.0014 * grain).astype(np.float32)
    ring = ndimage.gaussian_filter(vesicles, 2.5) - 0.42 * ndimage.gaussian_filter(vesicles, 1.6)
    granules = (rng.random(shape) < 0.003 * grain**2).astype(np.float32)
    dots = ndimage.gaussian_filter(granules, 1.2)
    squiggle = SmoothNoise(rng, (1, *shape), (1, 9, 9))(0)
    place = SmoothNoise(rng, (1, *shape), (1, 28, 28))(0)
    tubules = np.exp(-((squiggle / 0.16) ** 2)) * np.clip(place - 1.1, 0, 1)
    content = grain * texture - 6000 * ring - 650 * dots - 55 * tubules
    return content * np.clip((distance - 3) / 4, 0, 1)


def _draw_mitochondria_into(
    grey: np.ndarray,
    tissue: _Tissue,
    z: int,
    bent: tuple[np.ndarray, np.ndarray],
    distance: np.ndarray,
    owner: np.ndarray,
) -> np.ndarray:
    """Draw into `grey`, dark-rimmed and striped, and give the mask of the pixels drawn on."""
    is_drawn = np.zeros(grey.shape, bool)
    for cell, first, last, *offset, long, short, angle in tissue.mitochondria:
        cy, cx = tissue.cells.centre[z, int(cell)] + offset
        window = _window(cy, cx, long + 40, grey.shape)  # membranes bend by less than 40 px
        if not first <= z <= last or window is None:
            continue
        y, x = bent[0][window] - cy, bent[1][window] - cx
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        swell = np.sqrt(np.sin(np.pi * np.clip((z - first) / (last - first), 0.1, 0.9)))
        depth = short * (swell - np.hypot(u / long, v / short))
        depth = np.minimum(depth, distance[window] - 5)
        depth[owner[window] != int(cell)] = -9
        if (depth > 2).sum() < 60:
            continue
        cristae = np.sin(2 * np.pi * (v / 7 + 0.3 * np.sin(u / 7 + 7 * angle)))
        fill = np.clip(depth / 2, 0, 1)
        outline = np.exp(-0.5 * ((depth - 1) / 1.3) ** 2)
        halo = np.exp(-0.5 * ((depth + 3) / 1.5) ** 2)
        grey[window] += fill * (88 + 22 * cristae - grey[window]) - 42 * outline + 10 * halo
        is_drawn[window] |= depth > -2
    return is_drawn


def _window(
    y: float, x: float, radius: float, shape: tuple[int, ...]
) -> tuple[slice, slice] | None:
    (top, bottom), (left, right) = (
        (max(int(c - radius), 0), min(int(c + radius) + 1, n)) for c, n in zip((y, x), shape)
    )
    return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None


def _expose(rng: np.random.Generator, grey: np.ndarray) -> np.ndarray:
    focus, strength = rng.uniform(0.7, 1.2), rng.uniform(12, 25)
    blurred = ndimage.gaussian_filter(grey, focus)
    noise = strength * _unit(ndimage.gaussian_filter(_white(rng, grey.shape), 0.8))
    noise += 6 * _white(rng, grey.shape)
    contrast, brightness = rng.uniform(0.88, 1.12), rng.normal(127, 10)
    return np.clip(contrast * (blurred + noise - 125) + brightness, 0, 255).astype(np.uint8)


def _white(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _unit(noise: np.ndarray) -> np.ndarray:
    deviation = noise.std()
    return noise / deviation if deviation > 0 else noise
