"""The eight symmetries of the square: views of an image whose predictions are averaged (Sec. 4)."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import NDArray
from torch import Tensor

from unet_repro.choices import Average


@dataclass(frozen=True)
class View:
    """An image with its rows, its columns or both in reverse order; then transposed, or not."""

    reverses_rows: bool = False
    reverses_columns: bool = False
    is_transposed: bool = False

    def of(self, image: NDArray) -> NDArray:
        """Return the view of an image (..., height, width)."""
        rows = slice(None, None, -1 if self.reverses_rows else 1)
        columns = slice(None, None, -1 if self.reverses_columns else 1)
        view = image[..., rows, columns]
        return view.swapaxes(-2, -1) if self.is_transposed else view

    def undone(self, view: Tensor) -> Tensor:
        """Return the image (..., height, width) that this is the view of."""
        image = view.transpose(-2, -1) if self.is_transposed else view
        reversed_ = (self.reverses_rows, self.reverses_columns)
        axes = [axis for axis, is_reversed in zip((-2, -1), reversed_) if is_reversed]
        return image.flip(axes) if axes else image


_IDENTITY = View()
_ROTATIONS = (  # by 0, 90, 180 and 270 degrees, as numpy.rot90 turns
    _IDENTITY,
    View(reverses_columns=True, is_transposed=True),
    View(reverses_rows=True, reverses_columns=True),
    View(reverses_rows=True, is_transposed=True),
)
_MIRRORED = (  # the same, then mirrored left to right
    View(reverses_columns=True),
    View(reverses_rows=True, reverses_columns=True, is_transposed=True),
    View(reverses_rows=True),
    View(is_transposed=True),
)
VIEWS: dict[Average, tuple[View, ...]] = {
    "none": (_IDENTITY,),
    "rotations": _ROTATIONS,
    "dihedral": _ROTATIONS + _MIRRORED,
    "seven": (_ROTATIONS + _MIRRORED)[1:],
    # Not in the paper: the authors' release averages these four for the cells of Table 2.
    "flips": tuple(View(rows, columns) for rows in (False, True) for columns in (False, True)),
}


def largest_batch(views: tuple[View, ...]) -> int:
    """Return how many of the views can go through a network at once: their shapes agree."""
    transposed = sum(view.is_transposed for view in views)
    return max(transposed, len(views) - transposed)
