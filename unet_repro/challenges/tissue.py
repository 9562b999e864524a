"""The geometry behind the phantom (not in the paper): wandering cells, and smooth noise."""

from dataclasses import dataclass

import numba
import numpy as np
from scipy import sparse

_REACH_PX = 12.0  # distances to the membrane are capped here
_BORDER_PX = 60  # cells also lie this far outside the field, so that its edge looks like the rest
_ROUNDING_PX = 2.0  # how much the corners of the cells are rounded
_BLOCK_PX = 16
_SIZE_CLASSES = (  # radius from and to in px, tries per px² of the field, mean length in radii
    (34, 58, 0.00015, 0.8),
    (20, 34, 0.0008, 1.4),
    (12, 20, 0.004, 2.2),
    (7, 12, 0.01, 1.6),
)


class SmoothNoise:
    """Gaussian noise of unit variance over (z, y, x), evaluated one slice at a time.

    Random control points `scale` apart (slices, px, px), drawn once, are blended with Gaussian
    weights whose squares sum to 1.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        scale: tuple[float, float, float],
    ) -> None:
        in_z, in_y, in_x = (_blend(n, step) for n, step in zip(shape, scale))
        self._in_z = in_z
        # Few weights of a row are not 0; also, dense products would wake all threads of BLAS.
        self._in_y, self._in_x = sparse.csr_array(in_y), sparse.csr_array(in_x)
        size = (in_z.shape[1], in_y.shape[1], in_x.shape[1])
        self._control = rng.standard_normal(size, dtype=np.float32)

    def __call__(self, z: float) -> np.ndarray:
        """Give the slice at `z`, which may lie between two slices: float32, shape (y, x)."""
        lower = min(int(z), len(self._in_z) - 1)
        upper = min(lower + 1, len(self._in_z) - 1)
        row = self._in_z[lower] + (z - lower) * (self._in_z[upper] - self._in_z[lower])
        control = sum(weight * self._control[k] for k, weight in enumerate(row) if weight)
        return (self._in_x @ (self._in_y @ control).T).T


def _blend(n: int, step: float) -> np.ndarray:
    control = np.arange(-2, n / step + 3)
    weights = np.exp(-0.5 * ((np.arange(n)[:, None] / step - control) / 0.7) ** 2)
    weights[weights < 1e-3] = 0
    return (weights / np.sqrt((weights**2).sum(1, keepdims=True))).astype(np.float32)


@dataclass(frozen=True)
class Cells:
    """Cells as capsules: all points within a radius of a segment, before they are bent."""

    shape: tuple[int, int, int]  # (z, y, x) of the field
    centre: np.ndarray  # (z + 1, n, 2): midpoints of the segments as (y, x) in px
    half_axis: np.ndarray  # (z + 1, n, 2): from the midpoint to one end, as (y, x) in px
    radius: np.ndarray  # (z + 1, n), in px
    bend: list[tuple[float, SmoothNoise, SmoothNoise]]  # px, noise along y, noise along x

    def bent_grid(self, z: float) -> tuple[np.ndarray, np.ndarray]:
        """Give where each pixel lies (y, x) among the unbent cells, also between slices."""
        y, x = np.mgrid[: self.shape[1], : self.shape[2]].astype(np.float32)
        for amplitude, bend_y, bend_x in self.bend:
            y += amplitude * bend_y(z)
            x += amplitude * bend_x(z)
        return y, x

    def membrane_distance(
        self, z: float, y: np.ndarray, x: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give about the px to the nearest membrane's middle (float32, at most 12) and the cell."""
        lower, share = int(z), z - int(z)
        upper = min(lower + 1, len(self.radius) - 1)
        centre, half_axis, radius = (
            ((1 - share) * path[lower] + share * path[upper]).astype(np.float32)
            for path in (self.centre, self.half_axis, self.radius)
        )
        return _tessellate(y, x, centre - half_axis, 2 * half_axis, radius)


def draw_cells(rng: np.random.Generator, shape: tuple[int, int, int]) -> Cells:
    """Draw cells of many sizes that fill a field (z, y, x), and their ways through the slices."""
    slices = shape[0] + 1
    centre, half_axis, radius = _pack_capsules(rng, *shape[1:])
    turn = np.cumsum(rng.normal(0, 0.05, (slices, len(radius))), axis=0)
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.stack(
        [
            cos * half_axis[:, 0] + sin * half_axis[:, 1],
            cos * half_axis[:, 1] - sin * half_axis[:, 0],
        ],
        axis=-1,
    )
    pace, phase = rng.uniform(0.2, 0.7, len(radius)), rng.uniform(0, 2 * np.pi, len(radius))
    breath = 1 + 0.12 * np.sin(np.arange(slices)[:, None] * pace + phase)
    bend = [
        (amplitude, SmoothNoise(rng, shape, scale), SmoothNoise(rng, shape, scale))
        for amplitude, scale in ((13, (6, 80, 80)), (6, (2.5, 32, 32)), (1.5, (1, 10, 10)))
    ]
    return Cells(shape, _draw_paths(rng, centre, slices), turned, radius * breath, bend)


def _pack_capsules(
    rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Large ones first, each where it does not overlap the earlier ones; what room is left between
    # them the tessellation shares out.
    size = np.array([height, width]) + 2 * _BORDER_PX
    step = 3
    grid = np.moveaxis(np.mgrid[: size[0] : step, : size[1] : step], 0, -1).astype(np.float32)
    last = np.array(grid.shape[:2]) - 1
    clearance = np.full(grid.shape[:2], np.inf, np.float32)  # to the capsules so far
    fractions = np.linspace(-1, 1, 7)[:, None]
    capsules = []
    for smallest, largest, tries_per_px, elongation in _SIZE_CLASSES:
        n = int(tries_per_px * size.prod())
        radius, angle = rng.uniform(smallest, largest, n), rng.uniform(0, np.pi, n)
        length = radius * rng.exponential(elongation, n)
        half = length[:, None] / 2 * np.column_stack([np.sin(angle), np.cos(angle)])
        middle = rng.uniform(0, size, (n, 2))
        nodes = ((middle[:, None] + fractions * half[:, None]) / step).astype(int)  # (n, 7, 2)
        nodes = np.clip(nodes, 0, last)
        for k, r in enumerate(radius):
            if clearance[nodes[k, :, 0], nodes[k, :, 1]].min() >= 0.9 * r:
                capsules.append((*(middle[k] - _BORDER_PX), *half[k], r))
                rest = grid - middle[k]
                along = np.clip(rest @ half[k] / (half[k] @ half[k] + 1e-6), -1, 1)
                gap = np.linalg.norm(rest - along[..., None] * half[k], axis=-1) - r
                clearance = np.minimum(clearance, gap)
    packed = np.array(capsules)
    return packed[:, :2], packed[:, 2:4], packed[:, 4]


def _draw_paths(rng: np.random.Generator, start: np.ndarray, slices: int) -> np.ndarray:
    # Neighbours travel together (waves over the field), with a tremor of their own; each slice as
    # a whole is a little misaligned.
    n_waves = 8
    direction = rng.normal(0, 1.9, (n_waves, 2))
    wave = rng.normal(0, 1 / 80, (2, n_waves))
    pace, phase = rng.normal(0, 0.4, n_waves), rng.uniform(0, 2 * np.pi, n_waves)
    tremor = np.zeros_like(start)
    position = [start]
    for z in range(1, slices):
        tremor = 0.7 * tremor + rng.normal(0, 1.5, start.shape)
        stream = np.cos(position[-1] @ wave + pace * z + phase) @ direction
        position.append(position[-1] + stream + tremor)
    return np.stack(position) + rng.normal(0, 1.8, (slices, 1, 2))


@numba.njit(nogil=True, error_model="numpy")  # pragma: no cover (compiled)
def _tessellate(
    y: np.ndarray, x: np.ndarray, begin: np.ndarray, along: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # D_i is the distance to segment i less the radius; the smallest D owns the pixel. D_j - D_i
    # grows by |u_j - u_i| a pixel, u the directions away from the segments, so their quotient is
    # the distance to the membrane between i and j. A soft minimum over j rounds the corners.
    height, width = y.shape
    n = len(radius)
    distance = np.full((height, width), np.float32(_REACH_PX))
    owner = np.zeros((height, width), np.int64)
    near = np.empty(n, np.int64)
    d, u_y, u_x = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
    for top in range(0, height, _BLOCK_PX):
        for left in range(0, width, _BLOCK_PX):
            bottom, right = min(top + _BLOCK_PX, height), min(left + _BLOCK_PX, width)
            mid_y, mid_x = y[(top + bottom) // 2, left], x[top, (left + right) // 2]
            reach = 0.0  # from the middle to the farthest pixel of the block
            for row in range(top, bottom):
                for column in range(left, right):
                    reach = max(
                        reach, (y[row, column] - mid_y) ** 2 + (x[row, column] - mid_x) ** 2
                    )
            smallest = np.inf
            for j in range(n):
                d[j] = _away(mid_y, mid_x, begin[j], along[j])[0] - radius[j]
                smallest = min(smallest, d[j])
            n_near = 0
            for j in range(n):  # D changes by at most 1 a pixel
                if d[j] <= smallest + 2 * np.sqrt(reach) + 2 * _REACH_PX:
                    near[n_near] = j
                    n_near += 1
            for row in range(top, bottom):
                for column in range(left, right):
                    best = 0
                    for k in range(n_near):
                        j = near[k]
                        d[k], u_y[k], u_x[k] = _away(
                            y[row, column], x[row, column], begin[j], along[j]
                        )
                        d[k] -= radius[j]
                        if d[k] < d[best]:
                            best = k
                    total = 0.0
                    for k in range(n_near):
                        if k != best and d[k] - d[best] < 2 * _REACH_PX:
                            slope = np.hypot(u_y[k] - u_y[best], u_x[k] - u_x[best])
                            gap = (d[k] - d[best]) / max(slope, 0.3)
                            total += np.exp(-gap / _ROUNDING_PX)
                    owner[row, column] = near[best]
                    if total > 0:
                        soft = -_ROUNDING_PX * np.log(total)
                        distance[row, column] = min(max(soft, 0.0), _REACH_PX)
    return distance, owner


@numba.njit(nogil=True)  # pragma: no cover (compiled)
def _away(y: float, x: float, begin: np.ndarray, along: np.ndarray) -> tuple[float, float, float]:
    """Give the distance to a segment and the unit vector away from it."""
    rel_y, rel_x = y - begin[0], x - begin[1]
    length2 = along[0] ** 2 + along[1] ** 2
    share = (rel_y * along[0] + rel_x * along[1]) / max(length2, 1e-6)
    share = min(max(share, 0.0), 1.0)
    rel_y -= share * along[0]
    rel_x -= share * along[1]
    length = np.sqrt(rel_y * rel_y + rel_x * rel_x)
    inverse = 1.0 / max(length, 1e-6)
    return length, rel_y * inverse, rel_x * inverse
