"""Kernels on one slice: 4-connected objects, and how those of two slices overlap."""

import numpy as np

from unet_repro.metrics._jit import jit


@jit
def label_objects(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number a mask's 4-connected components in raster order (int32); also give their number."""
    height, width = mask.shape
    labels = np.zeros((height, width), np.int32)
    # No two 4-neighbours open a provisional label, so there are at most half as many as pixels.
    parent = np.zeros((height * width + 1) // 2 + 1, np.int32)
    n_provisional = 0
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:
                continue
            north = labels[y - 1, x] if y > 0 else 0
            west = labels[y, x - 1] if x > 0 else 0
            if north == 0 and west == 0:
                n_provisional += 1
                parent[n_provisional] = n_provisional
                labels[y, x] = n_provisional
            elif north == 0 or west == 0 or north == west:
                labels[y, x] = max(north, west)
            else:
                labels[y, x] = _unite(parent, north, west)
    n_objects = _number_roots(parent, n_provisional)
    for y in range(height):
        for x in range(width):
            labels[y, x] = parent[labels[y, x]]
    return labels, n_objects


@jit
def _unite(parent: np.ndarray, first: int, second: int) -> int:
    while parent[first] != first:
        parent[first] = parent[parent[first]]
        first = parent[first]
    while parent[second] != second:
        parent[second] = parent[parent[second]]
        second = parent[second]
    root = min(first, second)
    parent[first] = root
    parent[second] = root
    return root


@jit
def _number_roots(parent: np.ndarray, n_provisional: int) -> int:
    """Replace each provisional label's parent by the final label; parents precede children."""
    n_objects = 0
    for label in range(1, n_provisional + 1):
        if parent[label] == label:
            n_objects += 1
            parent[label] = n_objects
        else:
            parent[label] = parent[parent[label]]
    return n_objects


@jit
def group_pixels(labels: np.ndarray, n_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """List the labelled pixels' positions (int32); object i's are [bounds[i - 1], bounds[i])."""
    flat = labels.ravel()
    bounds = np.zeros(n_objects + 1, np.int64)
    for position in range(flat.size):
        if flat[position] > 0:
            bounds[flat[position]] += 1
    for i in range(n_objects):
        bounds[i + 1] += bounds[i]
    positions = np.empty(bounds[n_objects], np.int32)
    free = bounds[:-1].copy()
    for position in range(flat.size):
        i = flat[position]
        if i > 0:
            positions[free[i - 1]] = position
            free[i - 1] += 1
    return positions, bounds


@jit
def overlap_sums(
    positions: np.ndarray, bounds: np.ndarray, regions: np.ndarray, n_regions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum over the overlaps of the truth's objects i with the proposal's regions j.

    With c_ij the joint counts over the n pixels of the truth's objects (j = 0: the proposal's
    background), z = Σ_i c_i0, b_j = Σ_i c_ij and p = c_ij / n, returns

    - counts, int64: z, Σ_{j≥1} c_ij², Σ_{j≥1} b_j²;
    - entropies, float64: Σ_{j≥1} p ln p, Σ_{j≥1} (b_j/n) ln(b_j/n).
    """
    flat = regions.ravel()
    joint = np.zeros(n_regions + 1, np.int64)  # c_ij of the present object
    total = np.zeros(n_regions + 1, np.int64)  # b_j
    touched = np.empty(n_regions + 1, np.int32)
    counts = np.zeros(3, np.int64)
    entropies = np.zeros(2, np.float64)
    n = positions.size
    for i in range(bounds.size - 1):
        n_touched = 0
        for k in range(bounds[i], bounds[i + 1]):
            j = flat[positions[k]]
            if joint[j] == 0:
                touched[n_touched] = j
                n_touched += 1
            joint[j] += 1
        for k in range(n_touched):
            j = touched[k]
            if j > 0:
                counts[1] += joint[j] * joint[j]
                entropies[0] += joint[j] / n * np.log(joint[j] / n)
            total[j] += joint[j]
            joint[j] = 0
    counts[0] = total[0]
    for j in range(1, n_regions + 1):
        if total[j] > 0:
            counts[2] += total[j] * total[j]
            entropies[1] += total[j] / n * np.log(total[j] / n)
    return counts, entropies
