"""A look at a few places of a stack before it is predicted: has it grey values like the training's?

Not in the paper. Of 16-bit images, or of values in [0, 1], a network that was trained on 8 bits
makes nonsense without an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_repro.errors import InputError, note
from unet_repro.images.stack_reader import StackReader
from unet_repro.network.grey_values import unlike

_SLICES, _SIDE_PX = 3, 128  # looked at: slices, and in each four squares of this side
_LARGEST = float(np.finfo(np.float32).max)


class Likeness:
    """Gathers the grey values of some places, and gives a note if a network knows no such.

    Parameters
    ----------
    input_mean, input_std : sequence of float
        The network's, for each channel.

    Examples
    --------
    >>> looked = Likeness([126.0], [44.0])
    >>> looked.add(np.full((1, 2, 2), 90.0))
    >>> looked.tell("stack.tif")  # as it should be: nothing is said
    """

    def __init__(self, input_mean: Sequence[float], input_std: Sequence[float]) -> None:
        self._expected = {"input_mean": input_mean, "input_std": input_std}
        self._seen: list[np.ndarray] = []

    def look(self, reader: StackReader, slices: range, rows: range, columns: range) -> None:
        """Read a few squares of a part of a stack; of what cannot be read the prediction tells."""
        try:
            for z in spread(slices, _SLICES):
                for down in _quarters(rows):
                    for across in _quarters(columns):
                        self.add(reader.read_region(z, down, across))
        except InputError:
            return

    def add(self, pixels: np.ndarray) -> None:
        """Take the pixels (channels, h, w) of a place."""
        self._seen.append(pixels.reshape(len(pixels), -1).astype(np.float64))

    def tell(self, what: object) -> None:
        """Give the note about `what`, a stack or a folder, if there is something to say."""
        if not self._seen:
            return
        values = np.concatenate(self._seen, axis=1)
        if not (np.abs(values) <= _LARGEST).all():
            return  # an error, soon
        mean, std = values.mean(axis=1).tolist(), values.std(axis=1).tolist()
        text = unlike(mean, std, **self._expected)
        if text:
            note(f"{what}: its {text}: the result is likely wrong; values go in as they are stored")


def spread(items: range, number: int) -> list[int]:
    """Return some of the items, not the first ones and the last ones, where there are more.

    Examples
    --------
    >>> spread(range(30), 3), spread(range(5, 7), 3)
    ([5, 15, 25], [5, 6])
    """
    if len(items) <= number:
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * number)] for k in range(number)]


def _quarters(side: range) -> list[slice]:
    """Return the middle of each half of a side; the whole of a short one."""
    if len(side) <= 2 * _SIDE_PX:
        return [slice(side.start, side.stop)]
    starts = [side[len(side) * part // 4] - _SIDE_PX // 2 for part in (1, 3)]
    return [slice(start, start + _SIDE_PX) for start in starts]
