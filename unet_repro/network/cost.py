"""What a window costs in the network: operations and memory, from the sizes of its layers alone.

Not in the paper, but Fig. 1 is all it needs. It follows the blocks of `model` step by step.
"""

from __future__ import annotations

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
_REORDERED = 2  # copies of its weights that oneDNN makes for a convolution
_INDEX_BYTES = 8  # max_pool2d notes where each maximum was


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a window in inference. Sizes are integers of any size, or arrays of int64.

    Arrays are broadcast; their windows must be within what a tensor can hold.

    Parameters
    ----------
    depth, base_channels, in_channels, classes, padding, wide_last_up, bilinear
        The network, as in `UNetConfig`.
    bytes_per_value
        4 for float32, 2 for bfloat16, 8 for float64.
    batch
        Windows that are computed at a time.
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
        peak: Any = 0
        for step in self._steps(height, width):
            taken = self.batch * self.bytes_per_value * sum(step.alive)
            taken = taken + _REORDERED * self.bytes_per_value * step.weights
            taken = taken + self.batch * _INDEX_BYTES * step.indices
            peak = np.maximum(peak, _FRAGMENTATION * taken)
        return np.ceil(peak).astype(np.int64)

    def _steps(self, height: ArrayLike, width: ArrayLike) -> Iterator[_Step]:
        """Yield, step by step, what is computed and which tensors are alive."""
        h: Any = height
        w: Any = width
        level_channels = [self.base_channels << level for level in range(self.depth + 1)]
        if self.bilinear:
            level_channels[-1] //= 2
        channels = self.in_channels
        image = channels * h * w
        held = [image]  # by the caller; then the skips too
        yield _Step([*held, image, image])  # normalised
        for level, after in enumerate(level_channels):
            for _ in range(2):
                step, h, w = self._convolution(held, channels, after, h, w)
                yield step
                channels = after
            if level == self.depth:
                break
            x, pooled = channels * h * w, channels * (h // 2) * (w // 2)
            yield _Step([*held, x, pooled], indices=pooled)
            if self.padding:
                held = [*held, x]
            else:  # the centre is copied, then the whole map freed
                lost = 2 * geometry.skip_margin(level, self.depth)
                skip = channels * (h - lost) * (w - lost)
                yield _Step([*held, x, pooled, skip])
                held = [*held, skip]
            h, w = h // 2, w // 2
        for level in reversed(range(self.depth)):
            upsampled = channels if self.wide_last_up and not level else level_channels[level]
            below, h, w = channels * h * w, 2 * h, 2 * w
            up = upsampled * h * w
            if self.bilinear:
                yield _Step([*held, below, up])
            else:
                weights = 4 * channels * upsampled
                yield _Step([*held, below, up], 2 * channels * up, weights)
            channels = upsampled + level_channels[level]
            yield _Step([*held, up, channels * h * w])  # concatenated
            held = held[:-1]
            after = level_channels[level] // 2 if self.bilinear and level else level_channels[level]
            for outputs in (level_channels[level], after):
                step, h, w = self._convolution(held, channels, outputs, h, w)
                yield step
                channels = outputs
        logits = self.classes * h * w
        yield _Step([*held, channels * h * w, logits], 2 * channels * logits)

    def _convolution(
        self, held: list[Sizes], before: int, after: int, h: Sizes, w: Sizes
    ) -> tuple[_Step, Sizes, Sizes]:
        """Return a 3x3 convolution and the size of its output."""
        x = before * h * w
        if not self.padding:
            h, w = h - 2, w - 2
        y = after * h * w
        weights = 9 * before * after
        return _Step([*held, x, y], 18 * before * y, weights), h, w


@dataclass(frozen=True)
class _Step:
    """One operation of a window: sizes of the tensors alive, floating-point operations, weights."""

    alive: list[Sizes]
    operations: Any = 0
    weights: int = 0
    indices: Any = 0
