"""Grey images that were saved as colour: equal channels and full opacity are grey, nothing else."""

import numpy as np

from unet_repro.errors import ChannelsError, InputError


def as_grey(region: np.ndarray, what: str, *, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return the one grey channel, (1, y, x), of a region (channels, y, x) stored as colour.

    Two channels are grey and opacity, three are R, G and B, four those and opacity. `InputError`,
    beginning with `what`: R, G and B differ somewhere, or a pixel is not fully opaque. `origin` is
    where the region lies in its image.

    Examples
    --------
    >>> as_grey(np.array([[[5, 9]], [[5, 9]], [[5, 9]]], np.uint8), "a.png").tolist()
    [[[5, 9]]]
    """
    channels = len(region)
    n_colours = 1 if channels == 2 else min(channels, 3)
    for other in region[1:n_colours]:
        if not np.array_equal(other, region[0]):
            y, x = np.argwhere(other != region[0])[0]
            values = ", ".join(str(value) for value in region[:n_colours, y, x])
            raise ChannelsError(
                f"{what} has colours, such as ({values}) at y = {origin[0] + y}, "
                f"x = {origin[1] + x}; a grey image is needed, convert it to grey values"
            )
    if channels in (2, 4):
        opaque = np.iinfo(region.dtype).max if region.dtype.kind in "iu" else 1
        if (region[-1] != opaque).any():
            y, x = np.argwhere(region[-1] != opaque)[0]
            raise InputError(
                f"{what} is transparent, such as {region[-1, y, x]} of {opaque} at "
                f"y = {origin[0] + y}, x = {origin[1] + x}; save it without transparency"
            )
    return region[:1]
