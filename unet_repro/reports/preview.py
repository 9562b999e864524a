"""Pictures to check by eye what goes into training: augmented samples, weights (Sec. 3, 3.1)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from unet_repro.augmentation import augment
from unet_repro.augmentation.augment import Augmentation
from unet_repro.augmentation.warp import Interpolation
from unet_repro.choices import LabelKind, Variant
from unet_repro.config import TILE_INPUT_PX, AugmentationConfig, check_seed
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path, check_output
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import UNKNOWN_CELL, Reading, as_stack, read_meaning
from unet_repro.images.slices import Slices, described
from unet_repro.reports.drawing import GOLDEN_ANGLE, INK, MUTED
from unet_repro.weight_maps.weight_map import ClassBalance, class_sizes, frequency_weights, weigh

_PAPER = AugmentationConfig()
_DPI = 160
_LEFT, _RIGHT, _BELOW, _ABOVE, _HEAD = 0.4, 0.5, 0.35, 0.45, 0.5  # inches around a panel; title
_PAIRS_A_ROW = 3
_GRID_COLOUR, _FRAME_COLOUR, _BOUNDARY_COLOUR = "#35b6ff", "#ffe11a", "#ff6a2b"
_WEIGHT_COLOURS = "magma"


def augmentation_preview(
    images: Slices,
    labels: Slices,
    path: str | os.PathLike[str],
    *,
    settings: AugmentationConfig = _PAPER,
    window: int = TILE_INPUT_PX,
    samples: int = 8,
    seed: int = 0,
    label_kind: LabelKind = "auto",
    ignore_label: int | None = None,
    overwrite: bool = False,
) -> Reading:
    """Draw what augmentation makes of a slice: the original and samples, each with its weights.

    It is the middle slice of the stack, in windows of one size and on one grey scale. On each lie
    the lines of a grid that is regular on the original (blue), the slice's own border (yellow,
    dashed; beyond it the slice is mirrored) and the boundaries of the labels (orange).

    Parameters
    ----------
    images : ndarray, shape (z, y, x), (z, c, y, x) or (y, x), or list of (y, x) or (c, y, x)
        Any real dtype. Three channels are drawn as colours, of others the first.
    labels : ndarray of int or bool, the same (z, y, x) or (y, x)
    label_kind, ignore_label
        What the labels mean, as in `weight_map`.
    path
        The PNG to write.
    samples
        How many besides the original, drawn from `settings` with `seed`.
    window
        Side of a sample in px.

    Returns
    -------
    Reading
        How the labels were read.

    Raises
    ------
    InputError
        Shapes that differ, a size below 1, a seed outside [0, 2^62), a grey value that is not
        finite, labels that `weight_map` refuses, or a path that cannot be written.
    """
    check_output(path, overwrite=overwrite)
    if window < 1 or samples < 1:
        raise InputError(f"window is {window} px, samples {samples}: both must be 1 or more")
    check_seed(seed)
    middle = _MiddleSlice.of(images, labels, LabelSettings(label_kind, ignore_label))
    size, windows = middle.ids.shape, (window, window)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        augment.draw(settings, image_size=size, window=windows, generator=generator)
        for _ in range(samples)
    ]
    grid_px = _round_number(min(size) / 12)
    figure, panels = _sheet(
        f"Augmentation in windows of {window} px. Blue: a grid of {grid_px} px on the slice, "
        "deformed with it. Yellow: the slice's border, mirrored beyond. "
        "Orange: boundaries of the labels.",
        count=2 * (1 + samples),
        columns=2 * min(1 + samples, _PAIRS_A_ROW),
        panel_inches=3.6,
    )
    titles = ["original", *(_description(one) for one in drawn)]
    still = _still(size, window)
    for one, title, left, right in zip([still, *drawn], titles, panels[::2], panels[1::2]):
        _draw_sample(left, right, middle, one, windows, grid_px, settings.interpolation)
        _name(left, title)
        _name(right, "weights")
    _save(figure, path, overwrite=overwrite)
    return middle.reading


def _still(size: tuple[int, int], window: int) -> Augmentation:
    """Return what leaves the slice as it is, the window about its middle and on whole pixels."""
    y, x = ((side - 1) // 2 + (0.0 if window % 2 else 0.5) for side in size)
    return Augmentation(
        centre=(y, x),
        angle_deg=0.0,
        is_flipped=False,
        displacement=torch.zeros(2, 2, 2),
        contrast=1.0,
        brightness=0.0,
    )


@dataclass(frozen=True)
class _MiddleSlice:
    """The slice to show, and what the whole stack decides."""

    reading: Reading
    image: np.ndarray  # float32 (c, height, width)
    ids: np.ndarray  # int32
    weights: np.ndarray  # float32
    mean: np.ndarray  # float32 (c, 1, 1), of all slices; std likewise
    std: np.ndarray
    grey_range: tuple[float, float]

    @classmethod
    def of(cls, images: Slices, labels: Slices, how: LabelSettings) -> _MiddleSlice:
        if isinstance(images, np.ndarray) and images.ndim == 2:
            images, labels = images[None], np.asarray(labels)[None]
        shapes = [one.shape[-2:] for one in images], [one.shape for one in labels]
        if not shapes[0] or shapes[0] != shapes[1] or not all(map(_is_picture, images)):
            raise InputError(
                f"images are {described(images)}, labels {described(labels)}: "
                "both (y, x) or both (z, y, x) are needed"
            )
        reading = read_meaning(labels, how)
        z, channels = len(labels) // 2, [one.reshape(-1, *one.shape[-2:]) for one in images]
        if len({len(one) for one in channels}) > 1:
            raise InputError("the images differ in their number of channels")
        values = np.concatenate([one.reshape(len(one), -1) for one in channels], axis=1)
        mean, std = values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64)
        grey_range = float(values.min()), float(values.max())
        if not np.isfinite(grey_range).all():
            raise InputError("the images hold a value that is not finite")
        balance = frequency_weights(*class_sizes(labels, reading))
        return cls(
            reading=reading,
            image=channels[z].astype(np.float32, order="C"),
            ids=_numbered(np.maximum(reading.cells(labels[z]), 0)),
            weights=weigh(labels[z][None], reading, class_balance=balance)[0],
            mean=mean.astype(np.float32)[:, None, None],
            std=std.astype(np.float32)[:, None, None],
            grey_range=grey_range,
        )


def _is_picture(image: np.ndarray) -> bool:
    return image.ndim in (2, 3) and image.size > 0


def _draw_sample(
    left: Axes,
    right: Axes,
    middle: _MiddleSlice,
    drawn: Augmentation,
    windows: tuple[int, int],
    grid_px: int,
    interpolation: Interpolation,
) -> None:
    """Draw the image with grid and boundaries on the left, its weights on the right."""
    image, labels, weights = augment.apply(
        drawn,
        torch.from_numpy(middle.image),
        torch.from_numpy(middle.ids),
        torch.from_numpy(middle.weights),
        window=windows,
        mean=torch.from_numpy(middle.mean),
        std=torch.from_numpy(middle.std),
        interpolation=interpolation,
    )
    assert labels is not None and weights is not None  # both were given
    low, high = middle.grey_range
    pixels = image.numpy()
    if len(pixels) == 3:
        colours = (np.moveaxis(pixels, 0, -1) - low) / max(high - low, 1e-12)
        left.imshow(colours.clip(0, 1))
    else:
        left.imshow(pixels[0], cmap="gray", vmin=low, vmax=high)
    _draw_boundaries(left, labels.numpy())
    places = augment.coordinates(drawn, windows).numpy()
    _draw_grid(left, places, middle.ids.shape, grid_px)
    _draw_weights(right, weights.numpy(), highest=float(middle.weights.max()))


def _numbered(ids: np.ndarray) -> np.ndarray:
    """Return int32: 0 stays, the other values become 1, 2, ... in ascending order."""
    values, numbers = np.unique(ids, return_inverse=True)
    return (numbers.reshape(ids.shape) + (0 if 0 in values else 1)).astype(np.int32)


def _round_number(least: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50, ..."""
    decade = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return next(step * decade for step in (1, 2, 5, 10) if step * decade >= least)


def _sheet(
    title: str, *, count: int, columns: int, panel_inches: float
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` square panels in rows, with room for a colour bar at each."""
    rows = -(-count // columns)
    cell_width = _LEFT + panel_inches + _RIGHT
    cell_height = _BELOW + panel_inches + _ABOVE
    width, height = columns * cell_width, rows * cell_height + _HEAD
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - _HEAD / 2 / height, title, ha="center", va="center", size=13, color=INK)
    panels = []
    for k in range(count):
        x = k % columns * cell_width + _LEFT
        y = height - _HEAD - (k // columns + 1) * cell_height + _BELOW
        rectangle = (x / width, y / height, panel_inches / width, panel_inches / height)
        panels.append(figure.add_axes(rectangle))
    return figure, panels


def _name(axes: Axes, title: str) -> None:
    """Write the title, and px along the sides."""
    axes.set_title(title, fontsize=9, color=INK)
    axes.tick_params(labelsize=7, labelcolor=MUTED, color=MUTED, length=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("px", fontsize=7, color=MUTED, labelpad=1)


def _description(drawn: Augmentation) -> str:
    """Return what was drawn in words."""
    y, x = drawn.centre
    flipped = ", flipped" if drawn.is_flipped else ""
    lines = [
        f"about (y, x) = ({y:g}, {x:g}) px, turned {drawn.angle_deg:+.0f}°{flipped}",
        f"contrast {drawn.contrast:.2f}, brightness {drawn.brightness:+.2f} standard deviations",
    ]
    if (drawn.magnification, drawn.blur_px, drawn.noise) != (1, 0, 0):
        lines.append(
            f"magnified {drawn.magnification:.2f} times, blur {drawn.blur_px:.1f} px, "
            f"noise {drawn.noise:.2f} standard deviations"
        )
    return "\n".join(lines)


def _draw_boundaries(axes: Axes, ids: np.ndarray) -> None:
    """Tint the pixels of cells that have another value to the left or above, or vice versa."""
    differs = np.zeros(ids.shape, bool)
    for here, there in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        is_edge = ids[here] != ids[there]
        differs[here] |= is_edge & (ids[here] > 0)
        differs[there] |= is_edge & (ids[there] > 0)
    tint = np.zeros((*ids.shape, 4))
    tint[differs] = (*to_rgb(_BOUNDARY_COLOUR), 0.85)
    axes.imshow(tint, interpolation="nearest")


def _draw_grid(axes: Axes, places: np.ndarray, size: tuple[int, int], grid_px: int) -> None:
    """Draw where the lines of a regular grid on the slice come to lie, and the slice's border."""
    for place, side in zip(places, size):
        first, last = math.ceil(place.min() / grid_px), math.floor(place.max() / grid_px)
        lines = grid_px * np.arange(first, last + 1)
        _draw_lines(axes, place, lines, _GRID_COLOUR, 0.9, "solid")
        _draw_lines(axes, place, np.array([-0.5, side - 0.5]), _FRAME_COLOUR, 1.6, "dashed")


def _draw_lines(
    axes: Axes, place: np.ndarray, levels: np.ndarray, colour: str, width: float, style: str
) -> None:
    levels = levels[(levels > place.min()) & (levels < place.max())]  # the others lie outside
    if levels.size:
        axes.contour(place, levels=levels, colors=colour, linewidths=width, linestyles=style)


def _draw_weights(axes: Axes, weights: np.ndarray, *, highest: float) -> None:
    """Draw a weight map, from 0 on, with its colour bar."""
    picture = axes.imshow(weights, cmap=_WEIGHT_COLOURS, vmin=0, vmax=highest or 1)
    figure = axes.figure
    assert isinstance(figure, Figure)
    box = axes.get_position()
    inch = 1 / figure.get_figwidth()
    beside = figure.add_axes((box.x1 + 0.06 * inch, box.y0, 0.1 * inch, box.height))
    bar = figure.colorbar(picture, cax=beside)
    bar.ax.tick_params(labelsize=7, labelcolor=MUTED, color=MUTED, length=2)
    bar.outline.set_visible(False)


def _save(figure: Figure, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    FigureCanvasAgg(figure)
    with atomic_path(path, overwrite=overwrite) as part:
        figure.savefig(part, format="png", dpi=_DPI, facecolor="white")


def weight_map_preview(
    labels: np.ndarray,
    path: str | os.PathLike[str],
    *,
    w0: float | None = None,
    sigma: float | None = None,
    class_balance: ClassBalance = "frequency",
    variant: Variant = "paper",
    separate_touching: bool = False,
    separation_px: float = 1,
    label_kind: LabelKind = "auto",
    ignore_label: int | None = None,
    reading: Reading | None = None,
    z: int | None = None,
    overwrite: bool = False,
) -> None:
    """Draw a slice's labels, class weight w_c, border term, and their sum, the weight map (Eq. 2).

    `labels`, (y, x) or (z, y, x), and the options are those of `weight_map`; the class balance is
    the whole stack's. Slice `z` is drawn, by default the middle one, into the PNG `path`. Where
    `reading` says what the labels mean, `label_kind` and `ignore_label` are not used.

    Raises
    ------
    InputError
        No such slice, what `weight_map` raises, or a path that cannot be written.
    """
    check_output(path, overwrite=overwrite)
    if labels.ndim not in (2, 3) or not labels.size:
        raise InputError(
            f"labels have shape {labels.shape}: (y, x) or (z, y, x) with pixels needed"
        )
    stack = as_stack(labels)
    z = len(stack) // 2 if z is None else z
    if not 0 <= z < len(stack):
        raise InputError(f"z is {z}: the stack has slices 0 ... {len(stack) - 1}")
    reading = reading or read_meaning(stack, LabelSettings(label_kind, ignore_label))
    ridge: Any = {"separate_touching": separate_touching, "separation_px": separation_px}
    slice_ = partial(weigh, stack[z : z + 1], reading, **ridge)
    plain: Variant = "paper" if variant == "short" else variant  # short always has a border term
    border = slice_(w0=w0, sigma=sigma, class_balance=None, variant=variant)[0]
    border -= slice_(w0=0.0, class_balance=None, variant=plain)[0]
    if class_balance == "frequency":
        radius = separation_px if separate_touching else None
        class_balance = frequency_weights(*class_sizes(stack, reading, separation_px=radius))
    class_weight = slice_(w0=0.0, class_balance=class_balance, variant=plain)[0]
    given = (
        f"variant {variant}",
        f"slice {z} (of 0 ... {len(stack) - 1})" if labels.ndim == 3 else "",
        f"w0 = {w0:g}" if w0 is not None else "",
        f"sigma = {sigma:g} px" if sigma is not None else "",
    )
    title = f"Weight map (Eq. 2): {', '.join(filter(None, given))}"
    figure, panels = _sheet(title, count=4, columns=2, panel_inches=5.6)
    _draw_labels(panels[0], reading.cells(stack[z]))
    for panel, part, name in (
        (panels[1], class_weight, "class weight w_c"),
        (panels[2], border, "border term"),
        (panels[3], class_weight + border, "sum: the weight map"),
    ):
        _draw_weights(panel, part, highest=float(part.max()))
        _name(panel, f"{name}, {part.min():.3g} to {part.max():.3g}")
    _save(figure, path, overwrite=overwrite)


def _draw_labels(axes: Axes, cells: np.ndarray) -> None:
    """Draw the cells in colours of their own on black, unknown pixels grey."""
    is_unknown = cells == UNKNOWN_CELL
    cells = np.where(is_unknown, 0, cells)
    colours = _label_colours(_numbered(cells))
    colours[is_unknown] = 0.5
    axes.imshow(colours, interpolation="nearest")
    count = np.unique(cells[cells != 0]).size
    unknown = ", unknown pixels grey" if is_unknown.any() else ""
    _name(axes, f"labels: {count} cell{'s' * (count != 1)}{unknown}")


def _label_colours(numbers: np.ndarray) -> np.ndarray:
    """Return float (y, x, 3): black for 0, for the others colours that look random but are not."""
    k = np.arange(numbers.max() + 1)
    hsv = np.stack([k * GOLDEN_ANGLE % 1, 0.45 + 0.1 * (k % 4), 0.95 - 0.12 * (k % 3)], axis=-1)
    palette = hsv_to_rgb(hsv)
    palette[0] = 0
    colours: np.ndarray = palette[numbers]
    return colours
