"""Kernel of the thinning before V_rand and V_info: a two-level watershed of one slice."""

import numpy as np

from unet_repro.metrics._jit import jit


@jit
def thin_background(labels: np.ndarray, n_objects: int) -> np.ndarray:
    """Grow the labels of one slice over its background until they meet at dams of label 0.

    A first-in-first-out queue starts with the background pixels beside an object in
    column-major order; a pixel popped from it takes the one label among its 4-neighbours, or
    becomes a dam where there are two or more or none. A slice without objects is one region.

    The order in which one pixel queues its neighbours has no effect: pixels reached from the same
    pixel of the starting queue in equally many steps never touch.
    """
    height, width = labels.shape
    thinned = labels.copy()
    if n_objects == 0:
        thinned[:] = 1
        return thinned
    is_queued = np.zeros((height, width), np.bool_)
    queue = np.empty((height * width, 2), np.int32)
    end = 0
    for x in range(width):
        for y in range(height):
            if thinned[y, x] == 0 and _touches_object(labels, y, x):
                is_queued[y, x] = True
                queue[end, 0] = y
                queue[end, 1] = x
                end += 1
    begin = 0
    while begin < end:
        y, x = queue[begin]
        begin += 1
        found = 0
        is_dam = False
        for dy, dx in ((0, -1), (-1, 0), (0, 1), (1, 0)):  # W, N, E, S
            v = y + dy
            u = x + dx
            if v < 0 or v >= height or u < 0 or u >= width:
                continue
            label = thinned[v, u]
            if label > 0:
                is_dam |= found > 0 and found != label
                found = label
            elif not is_queued[v, u]:
                is_queued[v, u] = True
                queue[end, 0] = v
                queue[end, 1] = u
                end += 1
        if not is_dam:
            thinned[y, x] = found  # 0, a dam, where no neighbour has a label
    return thinned


@jit
def _touches_object(labels: np.ndarray, y: int, x: int) -> bool:
    height, width = labels.shape
    return (
        (x > 0 and labels[y, x - 1] > 0)
        or (y > 0 and labels[y - 1, x] > 0)
        or (x < width - 1 and labels[y, x + 1] > 0)
        or (y < height - 1 and labels[y + 1, x] > 0)
    )
