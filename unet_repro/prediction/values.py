"""What is kept of the network's output at a pixel, and whether another window agrees with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unet_repro.choices import Kind, Precision
from unet_repro.errors import InputError
from unet_repro.prediction.recorded import FULL_SCALE
from unet_repro.prediction.tile_runner import raw_logits, softmax

_DTYPES: dict[Kind, tuple[str, ...]] = {  # the default first
    "probability": ("float32",),
    "uint8": ("uint8",),
    "labels": ("uint8", "uint16"),
    "mask": ("uint8",),
    "logits": ("float32", "float16"),
    "instances": ("auto",),  # the smallest of `ID_DTYPES` that holds the largest id
}
ID_DTYPES = ("uint8", "uint16", "uint32")
_THRESHOLDED: tuple[Kind, ...] = ("labels", "mask", "instances")
# Largest difference of a probability by rounding. float32: 1e-5 is what tests of tilings hold to;
# bfloat16 has 8 bits, and rounds at every layer; a window off the pooling grid differs by 0.1 and
# more somewhere.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.08}


@dataclass(frozen=True)
class Values:
    """What is kept of the network's output at each pixel.

    Parameters
    ----------
    kind, threshold, of_class
        As in `PredictionSettings`; of equally probable classes the lowest is the label.
    dtype
        "auto" is the kind's own: float32, uint8, uint8 (uint16 beyond 256 classes), uint8, float32.
        Of instances it stays "auto": their number decides it.
    classes
        Of the network.
    """

    kind: Kind = "probability"
    dtype: str = "auto"
    threshold: float | None = None
    classes: int = 2
    of_class: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is {self.kind!r}: one of {', '.join(get_args(Kind))} is needed")
        if self.threshold is not None and self.kind not in _THRESHOLDED:
            kinds = ", ".join(_THRESHOLDED)
            raise InputError(f"a threshold goes with kind {kinds}; the kind is {self.kind}")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f"threshold {self.threshold} is not in [0, 1)")
        self._check_class()
        allowed = _DTYPES[self.kind]
        is_wide = self.kind == "labels" and self.threshold is None and self.classes > 256
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", "uint16" if is_wide else allowed[0])
        if self.dtype not in allowed:
            choice = " or ".join(allowed)
            if self.kind == "instances":
                choice = f"the smallest of {', '.join(ID_DTYPES)} that holds all ids (auto)"
            raise InputError(f"dtype is {self.dtype}: {self.kind} is stored as {choice}")
        if is_wide and self.dtype == "uint8":
            raise InputError(f"dtype is uint8: {self.classes} classes need uint16")

    def _check_class(self) -> None:
        if self.of_class is None:
            if self.threshold is not None and self.classes > 2:
                raise InputError(
                    f"the threshold is of one class, the model has {self.classes}: --class says "
                    "which, as 2"
                )
            return
        if not 0 <= self.of_class < self.classes:
            raise InputError(
                f"--class is {self.of_class}: the model's classes are 0 ... {self.classes - 1}"
            )
        if self.kind == "labels" and self.threshold is None:
            raise InputError(
                f"--class {self.of_class}: the labels are of all classes; with --threshold they "
                "are 1 where that class is"
            )

    @property
    def of_classes(self) -> slice:
        """The classes whose values are kept, or compared with the threshold."""
        if self.of_class is not None:
            return slice(self.of_class, self.of_class + 1)
        is_of_all = self.kind == "logits" or self.classes > 2
        return slice(None) if is_of_all else slice(1, 2)

    @property
    def kept_dtype(self) -> str:
        """Of the blocks; those of instances are blocks of a mask, from which they are made."""
        return "uint8" if self.kind == "instances" else self.dtype

    @property
    def finish(self) -> Callable[[Tensor], Tensor]:
        """What is averaged over the views: probabilities, or for logits the scores."""
        return raw_logits if self.kind == "logits" else softmax

    @property
    def planes(self) -> int:
        """Values per pixel."""
        is_one = self.kind in _THRESHOLDED
        return 1 if is_one else len(range(self.classes)[self.of_classes])

    def kept(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn averaged values (classes, h, w) into those to keep, (planes, h, w).

        Raises
        ------
        InputError
            A value is beyond the dtype.
        """
        if self.kind == "logits":
            with np.errstate(over="ignore"):
                kept = values[self.of_classes].astype(self.dtype)
            if not np.isfinite(kept).all():
                raise InputError(f"a logit of {np.abs(values).max():.6g} is beyond {self.dtype}")
            return kept
        if self.kind == "labels" and self.threshold is None:
            return values.argmax(axis=0)[None].astype(self.dtype)
        if self.kind in _THRESHOLDED:
            is_cell = self.margin(values)[None] > 0
            kept_as: Kind = "labels" if self.kind == "labels" else "mask"
            return is_cell.astype(self.kept_dtype) * FULL_SCALE[kept_as]
        probs = values[self.of_classes]
        return np.rint(probs * 255).astype(np.uint8) if self.kind == "uint8" else probs

    def margin(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return (h, w), above 0 where averaged probabilities (classes, h, w) make a cell."""
        if self.threshold is not None:
            return values[self.of_classes][0] - self.threshold
        if self.of_class is not None:
            return values[self.of_class] - np.delete(values, self.of_class, axis=0).max(axis=0)
        return values[1:].max(axis=0) - values[0]


def id_dtype(largest: int) -> str:
    """Return the smallest dtype of instance ids that holds this one.

    >>> id_dtype(255), id_dtype(256), id_dtype(65536)
    ('uint8', 'uint16', 'uint32')
    """
    return next(dtype for dtype in ID_DTYPES if largest <= np.iinfo(dtype).max)


def check_values(
    kept: NDArray[Any], again: NDArray[Any], values: Values, precision: Precision, where: str
) -> None:
    """Raise an `InputError` unless what was kept agrees with what was computed again.

    `kept` (planes, h, w) is made of `values`, `again` (classes, h, w) is averaged probabilities, or
    for logits scores; `where` is the place, for the message.
    """
    tolerance = TOLERANCE[precision]
    if values.kind == "logits":
        tolerance *= 10 * max(1.0, float(np.abs(again).max()))
        tolerance += float(np.finfo(values.dtype).eps) * float(np.abs(again).max())
        difference = np.abs(kept.astype(np.float64) - again[values.of_classes])
    elif values.kind == "labels" and values.threshold is None:
        # how much likelier another class is than the one that was kept
        chosen = np.take_along_axis(again, kept.astype(np.int64), axis=0)
        difference = again.max(axis=0) - chosen[0]
        tolerance *= 2
    elif values.kind in _THRESHOLDED:
        margin = values.margin(again)
        difference = np.where((margin > 0) == (kept[0] > 0), 0, np.abs(margin))
        tolerance *= 1 if values.threshold is not None else 2
    elif values.kind == "uint8":
        difference = np.abs(kept / 255 - again[values.of_classes])
        tolerance += 0.5 / 255
    else:
        difference = np.abs(kept - again[values.of_classes])
    worst = float(difference.max())
    if not worst <= tolerance:
        raise InputError(
            f"verification failed at {where}: another window gives a result that differs by "
            f"{worst:.3g}, more than {tolerance:.2g}; the output is not written"
        )
