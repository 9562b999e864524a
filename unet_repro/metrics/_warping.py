"""Kernels of the warping error of one slice: warp the truth, then classify what remains."""

import numpy as np

from unet_repro.metrics._jit import jit
from unet_repro.metrics._objects import label_objects

# Bits of a neighbourhood code, around the centre: E, NE, N, NW, W, SW, S, SE.
NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))

MERGER = 1
SPLIT = 2
HOLE_ADDITION = 4
OBJECT_DELETION = 8
OBJECT_ADDITION = 16
HOLE_DELETION = 32

_BLOCK = 64  # ranks per block of the list of pixels to look at again
_RADIX_BITS = 11
_KEY_BITS = 33  # three digits hold the 32 bits of a float32


def _simple_codes() -> np.ndarray:
    """Tell for each of the 256 neighbourhoods whether its centre pixel is simple.

    Yokoi number of a 4-connected foreground and an 8-connected background:
    N = Σ over the 4-neighbours k of x_k − x_k·x_{k+1}·x_{k+2}; simple means N = 1.
    """
    codes = np.arange(256)
    x = [(codes >> (k % 8)) & 1 for k in range(10)]
    number = sum(x[k] - x[k] * x[k + 1] * x[k + 2] for k in (0, 2, 4, 6))
    return number == 1


_IS_SIMPLE = _simple_codes()


@jit
def warp_truth(truth: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """Flip simple pixels of the truth towards probability > threshold until none is left.

    Pixels are visited by falling float32 distance of their probability from the threshold, equal
    ones in column-major order, again and again until a whole pass changes nothing.

    A pixel that could not be flipped is looked at again only after one of its eight neighbours
    was: before that the answer is the same. Going through the pixels still to be looked at by
    rank, pass by pass, is then exactly the walk over all that remain.
    """
    height, width = truth.shape
    stride = width + 2
    warped = np.zeros((height + 2) * stride, np.bool_)  # padded by one pixel of background
    for y in range(height):
        for x in range(width):
            warped[(y + 1) * stride + x + 1] = truth[y, x]
    pixels = _sorted_mismatches(truth, probability, threshold)
    rank = np.full(warped.size, -1, np.int32)
    for k in range(pixels.size):
        rank[pixels[k]] = k

    is_due = np.ones(pixels.size, np.bool_)
    n_due = np.zeros((pixels.size + _BLOCK - 1) // _BLOCK, np.int64)
    for k in range(pixels.size):
        n_due[k // _BLOCK] += 1
    has_changed = True
    while has_changed:
        has_changed = False
        for block in range(n_due.size):
            if n_due[block] == 0:
                continue
            for k in range(block * _BLOCK, min((block + 1) * _BLOCK, pixels.size)):
                if not is_due[k]:
                    continue
                is_due[k] = False
                n_due[block] -= 1
                if _flip_if_simple(warped, pixels[k], stride):
                    has_changed = True
                    rank[pixels[k]] = -1
                    _make_neighbours_due(rank, is_due, n_due, pixels[k], stride)
    return warped.reshape(height + 2, stride)[1:-1, 1:-1].copy()


@jit
def _flip_if_simple(warped: np.ndarray, pixel: int, stride: int) -> bool:
    code = 0
    for k in range(8):
        dy, dx = NEIGHBOURS[k]
        if warped[pixel + dy * stride + dx]:
            code |= 1 << k
    if _IS_SIMPLE[code]:
        warped[pixel] = not warped[pixel]
        return True
    return False


@jit
def _make_neighbours_due(
    rank: np.ndarray, is_due: np.ndarray, n_due: np.ndarray, pixel: int, stride: int
) -> None:
    for dy, dx in NEIGHBOURS:
        k = rank[pixel + dy * stride + dx]
        if k >= 0 and not is_due[k]:
            is_due[k] = True
            n_due[k // _BLOCK] += 1


@jit
def _sorted_mismatches(truth: np.ndarray, probability: np.ndarray, threshold: float) -> np.ndarray:
    """List the padded flat positions where truth and proposal differ, in the order of the walk."""
    height, width = truth.shape
    count = 0
    for y in range(height):
        for x in range(width):
            if truth[y, x] != (probability[y, x] > threshold):
                count += 1
    pixels = np.empty(count, np.int32)
    distances = np.empty(count, np.float32)
    k = 0
    for x in range(width):
        for y in range(height):
            value = np.float64(probability[y, x])
            if truth[y, x] != (value > threshold):
                pixels[k] = (y + 1) * (width + 2) + x + 1
                distances[k] = np.float32(abs(value - threshold))
                k += 1
    return _sort_descending(pixels, distances.view(np.uint32))


@jit
def _sort_descending(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Sort values by falling key: a stable radix sort; floats ≥ 0 sort like their bits."""
    n_digits = 1 << _RADIX_BITS
    for shift in range(0, _KEY_BITS, _RADIX_BITS):
        free = np.zeros(n_digits + 1, np.int64)
        for k in range(keys.size):
            free[n_digits - ((keys[k] >> shift) & (n_digits - 1))] += 1
        for digit in range(n_digits):
            free[digit + 1] += free[digit]
        sorted_values = np.empty_like(values)
        sorted_keys = np.empty_like(keys)
        for k in range(keys.size):
            digit = n_digits - 1 - ((keys[k] >> shift) & (n_digits - 1))
            sorted_values[free[digit]] = values[k]
            sorted_keys[free[digit]] = keys[k]
            free[digit] += 1
        values = sorted_values
        keys = sorted_keys
    return values


@jit
def classify_mismatches(warped: np.ndarray, proposal: np.ndarray, radius: int) -> np.ndarray:
    """Class of each pixel where warped truth and proposal differ, 0 elsewhere (uint8)."""
    height, width = warped.shape
    labels, _ = label_objects(warped)
    classes = np.zeros((height, width), np.uint8)
    last_seen = np.zeros((height, width), np.int32)
    stack = np.empty(((2 * radius + 1) ** 2, 2), np.int32)
    n_searches = 0
    for y in range(height):
        for x in range(width):
            if warped[y, x] == proposal[y, x]:
                continue
            n_ids, has_objects = _neighbouring_ids(labels, y, x)
            if n_ids == 2 and warped[y, x]:
                n_searches += 1
                if _is_split_without(warped, y, x, radius, last_seen, n_searches, stack):
                    classes[y, x] = SPLIT
                else:
                    classes[y, x] = HOLE_DELETION
            else:
                classes[y, x] = _class_by_ids(warped[y, x], n_ids, has_objects)
    return classes


@jit
def _class_by_ids(is_foreground: bool, n_ids: int, has_objects: bool) -> int:
    if n_ids >= 3:
        return SPLIT if is_foreground else MERGER
    if n_ids == 2:
        return HOLE_ADDITION
    if has_objects:
        return HOLE_ADDITION if is_foreground else HOLE_DELETION
    return OBJECT_DELETION if is_foreground else OBJECT_ADDITION


@jit
def _neighbouring_ids(labels: np.ndarray, y: int, x: int) -> tuple[int, bool]:
    """Count the distinct ids, 0 included, among the eight neighbours inside the image."""
    height, width = labels.shape
    ids = np.empty(8, np.int32)
    n_ids = 0
    has_objects = False
    for dy, dx in NEIGHBOURS:
        v = y + dy
        u = x + dx
        if v < 0 or v >= height or u < 0 or u >= width:
            continue
        label = labels[v, u]
        has_objects |= label > 0
        is_new = True
        for k in range(n_ids):
            if ids[k] == label:
                is_new = False
        if is_new:
            ids[n_ids] = label
            n_ids += 1
    return n_ids, has_objects


@jit
def _is_split_without(
    warped: np.ndarray,
    y: int,
    x: int,
    radius: int,
    last_seen: np.ndarray,
    search: int,
    stack: np.ndarray,
) -> bool:
    """Tell whether a pixel's neighbours fall apart in its window when it becomes background.

    Fills one neighbour's 4-connected component, which sets last_seen to `search`.
    """
    height, width = warped.shape
    last_seen[y, x] = search  # the centre is background now
    n_stack = 0
    n_missing = 0
    for dy, dx in NEIGHBOURS:
        v = y + dy
        u = x + dx
        if v < 0 or v >= height or u < 0 or u >= width or not warped[v, u]:
            continue
        n_missing += 1
        if n_stack == 0:
            last_seen[v, u] = search
            stack[0, 0] = v
            stack[0, 1] = u
            n_stack = 1
    while n_stack > 0:
        n_stack -= 1
        v, u = stack[n_stack]
        if abs(v - y) <= 1 and abs(u - x) <= 1:
            n_missing -= 1
            if n_missing == 0:
                return False
        for dv, du in ((0, -1), (-1, 0), (0, 1), (1, 0)):
            w = v + dv
            t = u + du
            if (
                0 <= w < height
                and 0 <= t < width
                and abs(w - y) <= radius
                and abs(t - x) <= radius
                and warped[w, t]
                and last_seen[w, t] != search
            ):
                last_seen[w, t] = search
                stack[n_stack, 0] = w
                stack[n_stack, 1] = t
                n_stack += 1
    return n_missing > 0
