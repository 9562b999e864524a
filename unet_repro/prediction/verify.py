"""Whether a place computed again, in another window, says the same as what was kept of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.errors import InputError
from unet_repro.network.device import Precision
from unet_repro.prediction.outputs import Values

# Largest difference of a probability by rounding. float32: 1e-5 is what tests of tilings hold to;
# bfloat16 has 8 bits, and rounds at every layer; a window off the pooling grid differs by 0.1 and
# more somewhere.
TOLERANCE: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 0.08}


def check_values(
    kept: NDArray[Any], again: NDArray[Any], values: Values, precision: Precision, where: str
) -> None:
    """Raise an `InputError` unless what was kept agrees with what was computed again.

    Parameters
    ----------
    kept : ndarray, shape (planes, h, w)
        Of `values`.
    again : ndarray, shape (classes, h, w)
        Averaged probabilities, or for logits scores.
    values, precision
        How both came about.
    where
        The place, for the message.
    """
    tolerance = TOLERANCE[precision]
    if values.kind == "logits":
        tolerance *= 10 * max(1.0, float(np.abs(again).max()))
        tolerance += float(np.finfo(values.dtype).eps) * float(np.abs(again).max())
        difference = np.abs(kept.astype(np.float64) - again)
    elif values.kind == "labels" and values.threshold is None:
        # how much likelier another class is than the one that was kept
        chosen = np.take_along_axis(again, kept.astype(np.int64), axis=0)
        difference = again.max(axis=0) - chosen[0]
        tolerance *= 2
    elif values.kind == "labels":
        expected = again[1] > values.threshold
        difference = np.where(expected == kept[0], 0, np.abs(again[1] - values.threshold))
    elif values.kind == "uint8":
        difference = np.abs(kept[0] / 255 - again[1])
        tolerance += 0.5 / 255
    else:
        difference = np.abs(kept[0] - again[1])
    worst = float(difference.max())
    if not worst <= tolerance:
        raise InputError(
            f"verification failed at {where}: another window gives a result that differs by "
            f"{worst:.3g}, more than {tolerance:.2g}; the output is not written"
        )
