"""What a window costs in the network: operations and memory, from the sizes of its layers alone.

Not in the paper, but Fig. 1 is all it needs. It follows the blocks of `model` step by step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unet_repro.network import geometry

Sizes = NDArray[np.int64]

# While a predictor runs, freed blocks stay in the heap to be used again (`device.reused_memory`),
# where they do not always fit: the heap, relative to the most that is alive.
_FRAGMENTATION = 1.5
# Besides, at most: from the second window on, what the library keeps lies between the blocks.
_KEPT_BETWEEN_BYTES = 90 * 2**20
_TURNED = 1.5  # a window that is no square has blocks of other sizes when it is turned
_REORDERED = 2  # copies of its weights that oneDNN makes for a convolution
_INDEX_BYTES = 8  # max_pool2d notes where each maximum was
# Of `strips`: values of the widest map of a strip (64 MiB of float32; with half as many two threads
# wait for each other too often), and rows at the least, or else what strips compute twice shows
_STRIP_VALUES, _STRIP_ROWS = 2**24, 32


def rows_of_a_strip(values: Any, rows: Any) -> Any:
    """Return how many of so many rows a strip has: an even number, or all.

    `values` is what the widest of its maps has in a row. Strips are about equally high.
    """
    strips = -(-rows // np.maximum(_STRIP_ROWS, _STRIP_VALUES // values))
    each = -(-rows // strips)
    return np.where(strips > 1, each + each % 2, rows)


@dataclass(frozen=True)
class _Step:
    """One operation of a window: sizes of the tensors alive, floating-point operations, weights."""

    alive: list[Sizes]
    operations: Any = 0
    weights: int = 0
    indices: Any = 0


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a window in inference. Sizes are integers of any size, or arrays of int64.

    Arrays are broadcast; their windows must be within what a tensor can hold. The first fields
    are those of `UNetConfig`; `batch` windows are computed at a time, in 4 bytes a value for
    float32, 2 for bfloat16, 8 for float64. `in_strips`: as `strips` computes them; `is_turned`: so
    that rows and columns change places from one window to the next.
    """

    depth: int
    base_channels: int
    in_channels: int = 1
    classes: int = 2
    padding: bool = False
    wide_last_up: bool = False
    bilinear: bool = False
    bytes_per_value: int = 4
    batch: int = 1
    in_strips: bool = False
    is_turned: bool = False

    def flops(self, height: ArrayLike, width: ArrayLike) -> Any:
        """Return the floating-point operations of one window, two for each multiply-add."""
        return sum(step.operations for step in self._steps(height, width))

    def largest_tensor(self, height: ArrayLike, width: ArrayLike) -> Any:
        """Return the values of the largest tensor."""
        largest: Any = 0
        for step in self._steps(height, width):
            for values in step.alive:
                largest = np.maximum(largest, self.batch * values)
        return largest

    def peak_bytes(self, height: ArrayLike, width: ArrayLike) -> Any:
        """Return the most memory taken on a CPU, input and output included, weights not."""
        alive: Any = 0
        for step in self._steps(height, width):
            taken = self.batch * self.bytes_per_value * sum(step.alive)
            taken = taken + _REORDERED * self.bytes_per_value * step.weights
            taken = taken + self.batch * _INDEX_BYTES * step.indices
            alive = np.maximum(alive, taken)
        peak = _FRAGMENTATION * alive
        if self.in_strips:
            peak = peak + np.minimum(alive, _KEPT_BETWEEN_BYTES)
        if self.is_turned:
            peak = np.where(np.equal(height, width), peak, _TURNED * peak)
        return np.ceil(peak).astype(np.int64)

    def _steps(self, height: ArrayLike, width: ArrayLike) -> Iterator[_Step]:
        """Yield, step by step, what is computed and which tensors are alive."""
        h: Any = height
        w: Any = width
        level_channels = [self.base_channels << level for level in range(self.depth + 1)]
        if self.bilinear:
            level_channels[-1] //= 2
        sizes: list[tuple[Any, Any]] = []  # of each level's skip, before it is cropped
        channels = self.in_channels
        image = channels * h * w
        held = [image]  # by the caller; then the skips too
        yield _Step([*held, image, image])  # normalised
        for level, after in enumerate(level_channels):
            if level == self.depth:
                steps, h, w = self._convolutions(held, (channels, after, after), h, h, w)
                yield from steps
                channels = after
                break
            rows, is_cut = self._strip(after * w, h)
            x, after_h, after_w = channels * h * w, h - 2 * self._lost, w - 2 * self._lost
            lost = 0 if self.padding else 2 * geometry.skip_margin(level, self.depth)
            skip = after * (after_h - lost) * (after_w - lost)
            pooled = after * (after_h // 2) * (after_w // 2)
            beside = is_cut * (x + skip + pooled)
            steps, h, w = self._convolutions([*held, beside], (channels, after, after), rows, h, w)
            yield from steps
            sizes.append((h, w))
            channels = after
            x = channels * (rows - 2 * self._lost) * w
            pooled = pooled - is_cut * pooled
            yield _Step([*held, beside, x, pooled], indices=pooled)
            if not self.padding:  # the centre is copied, then the whole map freed
                yield _Step([*held, beside, x, pooled, skip - is_cut * skip])
            held = [*held, skip]
            h, w = h // 2, w // 2
        for level in reversed(range(self.depth)):
            middle = level_channels[level]
            upsampled = channels if self.wide_last_up and not level else middle
            below, h, w = channels * h * w, 2 * h, 2 * w
            joined, after = upsampled + middle, middle // 2 if self.bilinear and level else middle
            up = upsampled * h * w
            operations, weights = 2 * channels * up, 4 * channels * upsampled
            if self.padding:  # an odd skip is larger
                h, w = sizes[level]
            rows, is_cut = self._strip(joined * w, h)
            last = after if level else self.classes
            takes_skips_place = level > 0 and not self.padding
            size = (h - 2 * self._lost) * (w - 2 * self._lost)
            result: Any = 0 if takes_skips_place else is_cut * last * size
            if self.bilinear:
                yield _Step([*held, below, up])
                beside = is_cut * up + result
                up = up - is_cut * up  # counted
            else:
                up = upsampled * rows * w
                yield _Step([*held, below, result, up], operations, weights)
                beside = is_cut * below + result
            yield _Step([*held, beside, up, joined * rows * w])  # concatenated
            held, skip = held[:-1], held[-1]
            steps, h, w = self._convolutions(
                [*held, is_cut * skip, beside], (joined, middle, after), rows, h, w
            )
            yield from steps
            channels = after
        logits, rows = self.classes * h * w, rows - 2 * self._lost
        yield _Step([*held, channels * rows * w, logits], 2 * channels * logits)

    @property
    def _lost(self) -> int:
        """Rows that a convolution loses."""
        return 0 if self.padding else 2

    def _strip(self, widest: Any, h: Any) -> tuple[Any, Any]:
        """Return the rows of a strip's input, of h in all, and 1 where those are several strips.

        `widest` is what the widest of its maps has in a row.
        """
        if not self.in_strips:
            return h, 0
        rows = rows_of_a_strip(self.batch * widest, h - 2 * self._lost)
        is_cut = rows < h - 2 * self._lost
        return np.where(is_cut, rows + 4, h), is_cut.astype(int)

    def _convolutions(
        self, held: list[Any], channels: tuple[int, ...], rows: Any, h: Any, w: Any
    ) -> tuple[list[_Step], Any, Any]:
        """Return 3x3 convolutions between so many channels, and the size of their output.

        So many `rows` of their input, of h in all, are there at a time.
        """
        steps = []
        for before, after in itertools.pairwise(channels):
            x = before * rows * w
            rows, h, w = rows - self._lost, h - self._lost, w - self._lost
            y = after * rows * w
            operations = 18 * before * after * h * w
            steps.append(_Step([*held, x, y], operations, 9 * before * after))
        return steps, h, w
