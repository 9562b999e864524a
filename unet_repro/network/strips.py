"""The network of `model` in inference, its large levels in strips of rows: half the memory.

Not in the paper. A convolution does not know where it is, so a level gives the same values in one
piece or in strips that overlap by the rows its two convolutions lose. Of the maps inside a level,
its concatenation above all, only a strip is ever there. A level as small as a strip stays whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_repro.network.cost import rows_of_a_strip
from unet_repro.network.model import DoubleConvolution, UNet, crop_and_concatenate

_Rows = Callable[[int, int], Tensor]  # rows [top, bottom) of a map (N, C, H, W)


def forward_in_strips(network: UNet, image: Tensor) -> Tensor:
    """Return what ``network(image)`` returns; it must be in eval mode, and gradients off."""
    network.check(image)
    maps = [(image - network.input_mean) / network.input_std]  # newest last, as in `model`
    *contracting, bottom = network.contracting_path
    for contraction in contracting:
        _contract(contraction, maps)
    bottom(maps)
    *expanding, last = network.expanding_path
    for expansion in expanding:
        _expand(expansion, maps)
    _expand(last, maps, network.classifier)
    return maps.pop()  # (N, classes, H - 184, W - 184)


def _contract(level: Any, maps: list[Tensor]) -> None:
    """Do as a `Contraction` above the bottom: leave the cropped skip and the pooled map."""
    many = _rows(level, maps[-1])
    if many == maps[-1].shape[2] - level.lost:
        level(maps)
        return
    x = maps.pop()
    height, margin = x.shape[2] - level.lost, level.skip_margin
    skip, pooled = _Map(height - 2 * margin), _Map(height // 2)

    def keep(top: int, strip: Tensor) -> None:
        pooled.append(F.max_pool2d(strip, kernel_size=2))
        first, end = max(margin - top, 0), min(height - margin - top, strip.shape[2])
        if first < end:
            skip.append(strip[:, :, first:end, margin : strip.shape[3] - margin])

    _convolve(level, x.shape[2], many, lambda top, bottom: x[:, :, top:bottom], keep)
    maps += [skip.whole, pooled.whole]


def _expand(step: Any, maps: list[Tensor], classifier: nn.Module | None = None) -> None:
    """Do as an `Expansion`, the last of which is followed by the classifier."""
    level = step.convolutions
    many = _rows(level, maps[-2])
    if many == maps[-2].shape[2] - level.lost:
        step(maps)
        if classifier is not None:
            maps.append(classifier(maps.pop()))
        return
    x, skip = maps.pop(), maps.pop()
    is_upsampled = isinstance(step.up_convolution, nn.Upsample)  # all of it sees the map's sides
    if is_upsampled:
        x = step.up_convolution(x)

    def rows(top: int, bottom: int) -> Tensor:
        if is_upsampled:
            up = x[:, :, top:bottom]
        else:
            first = top // 2
            up = step.up_convolution(x[:, :, first : (bottom + 1) // 2])
            up = up[:, :, top - 2 * first : bottom - 2 * first]
        up = F.relu(up) if step.up_relu else up
        return crop_and_concatenate(up, skip[:, :, top:bottom])

    # Used rows of the skip make room for the result, unless padding needs them again.
    is_in_place = level.lost > 0 and classifier is None
    result = _Map(skip.shape[2] - level.lost, in_place_of=skip if is_in_place else None)

    def keep(_: int, strip: Tensor) -> None:
        result.append(strip if classifier is None else classifier(strip))

    _convolve(level, skip.shape[2], many, rows, keep)
    maps.append(result.whole)


def _rows(level: DoubleConvolution, like: Tensor) -> int:
    """Return the rows of a strip of what a level makes of a map as large as `like`, or all."""
    count, _, height, width = like.shape
    return int(rows_of_a_strip(count * level.widest * width, height - level.lost))


def _convolve(
    level: DoubleConvolution,
    height: int,
    many: int,
    rows: _Rows,
    keep: Callable[[int, Tensor], None],
) -> None:
    """Run the two convolutions of a level; `keep` gets each strip of their result, and its top.

    `rows` gives strips of their input, which has `height` rows. In a padded network a strip sees
    zeros where the map goes on: the 2 rows that they reach are thrown away.
    """
    reach = 0 if level.lost else 2
    total = height - level.lost
    for top in range(0, total - 1, many):  # even, so poolings end with a strip; no strip of one row
        bottom = top + many if top + many < total - 1 else total
        first = max(0, top - reach)
        maps = [rows(first, min(height, bottom + level.lost + reach))]
        DoubleConvolution.forward(level, maps)
        keep(top, maps.pop()[:, :, top - first : bottom - first])


class _Map:
    """A map that is put together from strips of it, top to bottom.

    It takes the memory of a larger map, from its begin on, where that is dense.
    """

    whole: Tensor

    def __init__(self, height: int, *, in_place_of: Tensor | None = None) -> None:
        self._height, self._filled, self._in_place_of = height, 0, in_place_of

    def append(self, strip: Tensor) -> None:
        count, channels, rows, width = strip.shape
        if not self._filled:
            self.whole = self._begun((count, channels, self._height, width), strip.dtype)
        self.whole[:, :, self._filled : self._filled + rows] = strip
        self._filled += rows

    def _begun(self, size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        memory = self._in_place_of
        is_dense = memory is not None and memory.is_contiguous(memory_format=torch.channels_last)
        if memory is None or not is_dense or memory.dtype != dtype:
            return torch.empty(size, dtype=dtype, memory_format=torch.channels_last)
        _, channels, _, width = size
        return memory.as_strided(size, (memory.stride(0), 1, width * channels, channels))
