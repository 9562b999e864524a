"""Whether images have grey values like those that a network was trained on.

Not in the paper, whose networks are used on images of one microscope.
"""

from __future__ import annotations

from collections.abc import Sequence

_FAR_DEVIATIONS = 3.0  # of the mean
# Of the deviation: 8 bits as [0, 1], or as 16 bits, are a factor of 255; the dullest frames of
# PhC-C2DH-U373 have 1/31 of the 255 by which the authors' release divides.
_FAR_FACTOR = 40.0
_NOT_MEASURED = (0.0, 1.0)  # mean and deviation of a network that takes values as they are


def unlike(
    mean: Sequence[float],
    std: Sequence[float],
    *,
    input_mean: Sequence[float],
    input_std: Sequence[float],
) -> str:
    """Say how images differ from what a network expects, in words; "" where they may do.

    Parameters
    ----------
    mean, std : sequence of float
        Of the images' grey values, for each channel. A deviation of 0 says nothing: an empty place.
    input_mean, input_std : sequence of float
        What the network subtracts and divides by, for each channel; one value is all channels'.

    Returns
    -------
    str
        Names the first channel whose mean is more than three of the network's deviations away, or
        whose deviation is another by a factor of more than 40. Inverted grey values, other stains
        and magnifications are not seen by this.

    Examples
    --------
    >>> unlike([0.5], [0.2], input_mean=[126.0], input_std=[44.0])
    'grey values (mean 0.5, deviation 0.2) are far from what the network expects (126, 44)'
    >>> unlike([90.0], [20.0], input_mean=[126.0], input_std=[44.0])
    ''
    """
    given = (mean, std, *(_of_each(values, len(mean)) for values in (input_mean, input_std)))
    for channel, (m, s, m0, s0) in enumerate(zip(*given, strict=True)):
        if (m0, s0) == _NOT_MEASURED:
            continue
        is_far = abs(m - m0) > _FAR_DEVIATIONS * s0 or s > _FAR_FACTOR * s0
        if is_far or 0 < s < s0 / _FAR_FACTOR:
            where = f" of channel {channel}" if len(mean) > 1 else ""
            return (
                f"grey values{where} (mean {m:.4g}, deviation {s:.4g}) are far from what the "
                f"network expects ({m0:.4g}, {s0:.4g})"
            )
    return ""


def _of_each(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) != 1 else [values[0]] * channels
