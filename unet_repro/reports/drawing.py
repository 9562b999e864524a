"""How figures look: charts in one style, segmentation errors in colour, SVG and PNG for a page."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

import imagecodecs
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from scipy import ndimage

from unet_repro.metrics import WarpingClass, warping_map

INK = "#1b1f24"
MUTED = "#6b7280"
GRID = "#d7dbe0"
BLUE = "#0072b2"
ORANGE = "#d55e00"
# The page's style sheet gives these variables a value for light and one for dark.
_THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", BLUE: "--blue", ORANGE: "--orange"}

# Blue: membrane where there is none, and what comes of it; yellow to red: the other way round
ERROR_COLOURS = {
    "false membrane": "#8ecdf5",
    "missed membrane": "#ffc64d",
    "split": "#0057d9",
    "merger": "#d8001d",
}
_MARK_RADIUS_PX = 3.0
PANEL_PX = 768  # a larger slice is shown as a window of this side, where most pixels are wrong
GOLDEN_ANGLE = 0.381966  # of a turn: hues of successive numbers lie far apart


@dataclass(frozen=True)
class Line:
    """A line of a chart, NaN where there is no value; `best` is the point to mark."""

    x: Sequence[float]
    y: Sequence[float]
    best: tuple[float, float] | None = None


def draw_over_thresholds(axes: Axes, lines: dict[str, Line], *, is_error: bool) -> None:
    """Draw one or two lines over the thresholds, by their names, the best values ringed.

    Where `is_error`, small values matter: a logarithmic axis, unless a value is 0 or none is one.
    """
    values = [value for line in lines.values() for value in line.y if not math.isnan(value)]
    if is_error and values and min(values) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    for colour, (name, line) in zip((BLUE, ORANGE), lines.items()):
        axes.plot(line.x, line.y, color=colour, marker="o", ms=3, lw=1.6, label=name)
        if line.best is not None:
            axes.plot(*line.best, "o", ms=9, mfc="none", mec=colour, mew=1.6)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    axes.set_xlim(-0.04, 1.04)
    axes.set_xticks(np.linspace(0, 1, 6))
    tidy(axes, xlabel="threshold")


def tidy(axes: Axes, *, xlabel: str) -> None:
    """Give axes the look of all our charts: light grid, no box, the colours above."""
    axes.set_facecolor("none")
    axes.set_xlabel(xlabel, color=MUTED, fontsize=9)
    axes.grid(color=GRID, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=9, labelcolor=MUTED)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def error_overlay(
    labels: np.ndarray,
    probability: np.ndarray,
    threshold: float,
    *,
    image: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a slice (y, x) of `probability` > `threshold` with its errors in `ERROR_COLOURS`.

    Drawn on `image`, uint8 grey, or else on the probability. Returns uint8 (y, x, 3): predicted
    membrane dark and cell interior light; pixels of the wrong class tinted; splits and mergers (the
    warping error's, single pixels or thin lines) widened by 3 px, with a white rim, on top.
    """
    truth = labels > 0
    proposal = probability > np.float64(threshold)
    grey = np.round(255 * probability) if image is None else image
    canvas = np.where(proposal, 160 + grey * (90 / 255), 15 + grey * (70 / 255))
    canvas = np.repeat(canvas[..., np.newaxis], 3, axis=2)  # (y, x, 3)
    classes = warping_map(labels, probability, threshold=threshold).classes
    is_split, is_merger = classes == WarpingClass.SPLIT, classes == WarpingClass.MERGER
    canvas[truth & ~proposal] = _rgb("false membrane")
    canvas[~truth & proposal] = _rgb("missed membrane")
    canvas[_widened(is_split | is_merger, _MARK_RADIUS_PX + 1.5)] = 255  # a rim
    canvas[_widened(is_split, _MARK_RADIUS_PX)] = _rgb("split")
    canvas[_widened(is_merger, _MARK_RADIUS_PX)] = _rgb("merger")
    return canvas.astype(np.uint8)


def _widened(mask: np.ndarray, radius_px: float) -> np.ndarray:
    if not mask.any():
        return mask
    is_near: np.ndarray = ndimage.distance_transform_edt(~mask) <= radius_px
    return is_near


def _rgb(error: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(ERROR_COLOURS[error][1:]))


def coloured_objects(labels: np.ndarray) -> np.ndarray:
    """Paint the 4-connected components of labels > 0 in pale hues on black: uint8 (y, x, 3)."""
    objects, n_objects = ndimage.label(labels > 0)
    hue = np.arange(n_objects + 1) * GOLDEN_ANGLE % 1
    value = 0.78 + 0.16 * (np.arange(n_objects + 1) % 3) / 2
    hsv = np.stack([hue, np.full_like(hue, 0.42), value], axis=-1)
    palette = np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)
    palette[0] = 0
    return palette[objects]


def class_colours(n_classes: int) -> np.ndarray:
    """Return uint8 (n_classes + 1, 3): black for class 0, hues for the others, grey for none."""
    k = np.arange(n_classes + 1)
    hsv = np.stack([k * GOLDEN_ANGLE % 1, np.full(len(k), 0.65), np.full(len(k), 0.9)], axis=-1)
    colours = np.round(255 * hsv_to_rgb(hsv)).astype(np.uint8)
    colours[0], colours[-1] = 0, 128
    return colours


def coloured_classes(classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Paint each class (y, x) in its colour, what is no class grey: uint8 (y, x, 3)."""
    painted: np.ndarray = class_colours(n_classes)[np.minimum(classes, n_classes)]
    return painted


def as_grey(image: np.ndarray) -> np.ndarray:
    """Return an image as uint8 for display: as it is, or stretched from its range to 0 … 255."""
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    scale = 255 / (high - low) if high > low else 0.0
    return np.round((image.astype(np.float64) - low) * scale).astype(np.uint8)


def as_picture(image: np.ndarray) -> np.ndarray:
    """Return an image (y, x) or (c, y, x) as uint8 for display, on the scale of `as_grey`.

    Three channels are colours, (y, x, 3); of others the first is shown, (y, x).
    """
    if image.ndim == 3 and len(image) == 3:
        return np.moveaxis(as_grey(image), 0, -1)
    return as_grey(image if image.ndim == 2 else image[0])


def worst_window(is_wrong: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a slice to show: all of it, or the window with the most wrong pixels."""
    sides = [min(side, PANEL_PX) for side in is_wrong.shape]
    total = np.pad(is_wrong, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
    height, width = sides
    sums = (
        total[height:, width:]
        - total[:-height, width:]
        - total[height:, :-width]
        + total[:-height, :-width]
    )
    y, x = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(y, y + height), slice(x, x + width)


def crop_note(window: tuple[slice, slice], shape: tuple[int, ...]) -> str:
    """Say which part of a slice a window is; nothing where it is all of it."""
    rows, columns = window
    if (rows.stop - rows.start, columns.stop - columns.start) == shape:
        return ""
    return (
        f"Shown: rows {rows.start}–{rows.stop - 1}, columns {columns.start}–{columns.stop - 1}, "
        "the window with the most wrong pixels."
    )


def png_uri(image: np.ndarray) -> str:
    """Return a uint8 image (y, x) or (y, x, 3) as a `data:` address holding a PNG."""
    png = imagecodecs.png_encode(np.ascontiguousarray(image), level=9)
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def svg(figure: Figure, title: str) -> str:
    """Return a figure as an SVG element for a page, in the page's own font and theme colours.

    `title` is what is read out in its place.
    """
    text = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # With a fixed salt equal shapes get equal ids, and the same run the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unet_repro"}):
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    element = text.getvalue()
    element = element[element.index("<svg") :]
    for colour, variable in _THEME.items():
        element = element.replace(colour, f"var({variable})")
    tag_end = element.index(">")  # width and height come from the page, proportions from viewBox
    tag = re.sub(r' (?:width|height)="[^"]*"', "", element[:tag_end])
    return f'{tag} role="img" aria-label={quoteattr(title)}{element[tag_end:]}'
