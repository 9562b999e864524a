"""A stack's masks as instances: two passes over the bands of each page, none of which is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from unet_repro.prediction.components import Numbering, number_components, numbered
from unet_repro.prediction.growing import grown
from unet_repro.prediction.values import id_dtype


@dataclass
class InstancePages:
    """The instances of each slice, numbered 1, 2, ... in raster order of their first pixels.

    They are the 4-connected components of its mask. The first pass finds how many there are, which
    decides the dtype of all slices; the second writes the numbers. A stack's numberings are not
    kept: each is found again for its slice.
    """

    masks: Callable[[int], Iterator[NDArray[Any]]]  # of a slice: bands, to be had more than once
    slices: int
    min_size: int  # px; smaller ones are dropped, before they grow
    grow_px: float  # `growing.grown`
    _last: tuple[int, Numbering] | None = field(default=None, init=False)

    @cached_property
    def dtype(self) -> str:
        """Of the numbers in all slices."""
        return id_dtype(max(self._numbering(k).count for k in range(self.slices)))

    def bands(self, k: int, plane: int = 0) -> Iterator[NDArray[Any]]:
        """Yield the numbers of a slice, from top to bottom."""
        ids = numbered(self.masks(k), self._numbering(k), self.dtype)
        return grown(ids, self.grow_px) if self.grow_px else ids

    def _numbering(self, k: int) -> Numbering:
        if self._last is None or self._last[0] != k:
            self._last = None  # may be large
            self._last = k, number_components(self.masks(k), min_size=self.min_size)
        return self._last[1]
