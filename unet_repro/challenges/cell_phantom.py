"""Synthetic cells in the layout of the Cell Tracking Challenge, for trials; not in the paper."""

import os
from pathlib import Path

import numpy as np
from scipy import ndimage

from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack

_RADIUS_PX = (9.0, 15.0)
_GAP_PX = 2.0  # cells of a pair come so close that their masks touch here and there
_ROOM_PX = (44, 70)  # (y, x) for each pair
_MARKER_RADIUS_PX = 3.0


def write_cell_phantom(
    folder: str | os.PathLike[str],
    *,
    frames: int = 8,
    height: int = 160,
    width: int = 192,
    cells: int = 8,
    seed: int = 0,
) -> None:
    """Write two sequences of drifting cells: images, masks of some frames, markers of all.

    Not in the paper. `folder` gets ``01``, ``01_GT/SEG``, ``01_GT/TRA``, ``01_ST/SEG`` from `seed`
    and the same of ``02`` from `seed` + 1; files that are there are replaced. One seed gives one
    data set, bit for bit on one machine. Every other frame has masks in ``GT``; those of the last
    one lack a cell, as in partly annotated real frames. In ``ST`` every frame has all its masks.

    Parameters
    ----------
    frames, height, width, cells : int
        Of each sequence; at least 3 frames and 2 cells, sides of at least 80 px. There are fewer
        cells where there is no room for them: each pair takes 44 × 70 px.

    Raises
    ------
    InputError
        A size below those, or a negative seed; a file that cannot be written.
    """
    if frames < 3 or min(height, width) < 80 or cells < 2 or seed < 0:
        raise InputError(
            f"a phantom of {frames} frames of {height} × {width} px with {cells} cells and seed "
            f"{seed}: at least 3, 80 × 80, 2 and 0 are needed"
        )
    for name, sequence_seed in (("01", seed), ("02", seed + 1)):
        rng = np.random.default_rng(sequence_seed)
        dish = _Dish(rng, (height, width), cells)
        annotated = range(1, frames, 2)
        for t in range(frames):
            image, labels, markers = dish.frame(rng, t)
            files = {f"{name}/t{t:03d}.tif": image}
            files[f"{name}_GT/TRA/man_track{t:03d}.tif"] = markers
            files[f"{name}_ST/SEG/man_seg{t:03d}.tif"] = labels
            if t in annotated:
                if t == annotated[-1]:
                    labels = np.where(labels == labels.max(), 0, labels)
                files[f"{name}_GT/SEG/man_seg{t:03d}.tif"] = labels
            for file, pixels in files.items():
                write_stack(Path(folder) / file, pixels, overwrite=True, compression="zlib")


class _Dish:
    """Cells as wavy discs that lie in pairs and drift together: position, size, outline."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], cells: int) -> None:
        self.shape = shape
        spots = [
            (y, x)
            for y in range(_ROOM_PX[0] // 2, shape[0] - 20, _ROOM_PX[0])
            for x in range(_ROOM_PX[1] // 3, shape[1] - 40, _ROOM_PX[1])
        ]
        pairs = rng.permutation(len(spots))[: (cells + 1) // 2]
        centre = np.repeat(np.array(spots, float)[pairs], 2, axis=0)
        radius = rng.uniform(*_RADIUS_PX, len(centre))
        centre[1::2, 1] += radius[::2] + radius[1::2] + _GAP_PX  # beside the first of its pair
        drift = np.repeat(rng.normal(0, 0.6, (len(pairs), 2)), 2, axis=0)
        self.centre, self.radius, self.drift = centre[:cells], radius[:cells], drift[:cells]
        self.phase = rng.uniform(0, 2 * np.pi, len(self.centre))

    def frame(self, rng: np.random.Generator, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return image (uint8), masks and markers (uint16) of frame t."""
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        labels, markers = np.zeros(self.shape, np.uint16), np.zeros(self.shape, np.uint16)
        depth = np.full(self.shape, -np.inf)
        for k, (centre, drift) in enumerate(zip(self.centre, self.drift), start=1):
            dy, dx = y - centre[0] - t * drift[0], x - centre[1] - t * drift[1]
            wave = 1.3 * np.sin(3 * np.arctan2(dy, dx) + self.phase[k - 1] + 0.3 * t)
            inside = self.radius[k - 1] + wave - np.hypot(dy, dx)  # px from the outline
            labels[(inside > 0) & (inside > depth)] = k
            markers[np.hypot(dy, dx) <= _MARKER_RADIUS_PX] = k
            depth = np.maximum(depth, inside)
        mottle = ndimage.gaussian_filter(rng.normal(0, 30, self.shape), 1.5)
        rim = np.exp(-0.5 * ((depth - 0.5) / 1.2) ** 2)
        grey = 110 - 25 * (labels > 0) + 70 * rim + mottle + rng.normal(0, 4, self.shape)
        return np.clip(grey, 0, 255).astype(np.uint8), labels, markers
