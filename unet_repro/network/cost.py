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
_REORDERED = 2  # copies of its weights that oneDNN makes for a convolution
_INDEX_BYTES = 8  # max_pool2d notes where each maximum was


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
    float32, 2 for bfloat16, 8 for float64.
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
        sizes: list[tuple[Any, Any]] = []  # of each level's skip, before it is cropped
        channels = self.in_channels
        image = channels * h * w
        held = [image]  # by the caller; then the skips too
        yield _Step([*held, image, image])  # normalised
        for level, after in enumerate(level_channels):
            steps, h, w = self._convolutions(held, (channels, after, after), h, w)
            yield from steps
            sizes.append((h, w))
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
            middle = level_channels[level]
            upsampled = channels if self.wide_last_up and not level else middle
            below, h, w = channels * h * w, 2 * h, 2 * w
            up = upsampled * h * w
            if self.bilinear:
                yield _Step([*held, below, up])
            else:
                yield _Step([*held, below, up], 2 * channels * up, 4 * channels * upsampled)
            joined = upsampled + middle
            if self.padding:  # an odd skip is larger
                h, w = sizes[level]
            yield _Step([*held, up, joined * h * w])  # concatenated
            held = held[:-1]
            channels = middle // 2 if self.bilinear and level else middle
            steps, h, w = self._convolutions(held, (joined, middle, channels), h, w)
            yield from steps
        logits = self.classes * h * w
        yield _Step([*held, channels * h * w, logits], 2 * channels * logits)

    def _convolutions(
        self, held: list[Sizes], channels: tuple[int, ...], h: Sizes, w: Sizes
    ) -> tuple[list[_Step], Sizes, Sizes]:
        """Return 3x3 convolutions between so many channels, and the size of their output."""
        steps = []
        for before, after in itertools.pairwise(channels):
            x = before * h * w
            if not self.padding:
                h, w = h - 2, w - 2
            y = after * h * w
            steps.append(_Step([*held, x, y], 18 * before * y, 9 * before * after))
        return steps, h, w
