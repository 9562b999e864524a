"""The weight map of Sec. 3, Eq. 2: class balance and a term for the thin borders between cells.

Exact distances to the two nearest distinct cells in O(pixels), however many cells there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, get_args

import numpy as np
from scipy import ndimage

from unet_repro import config
from unet_repro.errors import InputError
from unet_repro.images.slices import Slices
from unet_repro.weight_maps.nearest_cells import BACKGROUND, CELL, FAR, UNKNOWN, Terms, solve_band

Variant = Literal["paper", "short", "falk2019"]
Kind = Literal["auto", "mask", "ids"]

DEFAULT_W0 = {"paper": config.W0, "short": 1.0, "falk2019": 50.0}
DEFAULT_SIGMA_PX = {"paper": config.SIGMA_PX, "short": config.SIGMA_PX, "falk2019": 6.0}
VERSION = 1  # raise it whenever `weight_map` gives other numbers for the same labels and settings
_FALK_BACKGROUND, _FALK_NEAR_SIGMA_PX = 0.1, 10.0


def weight_map(
    labels: np.ndarray,
    *,
    w0: float | None = None,
    sigma: float | None = None,
    class_balance: Literal["frequency"] | tuple[float, float] | None = "frequency",
    variant: Variant = "paper",
    ignore_label: int | None = None,
    separate_touching: bool = False,
    separation_px: float = 1,
    kind: Kind = "auto",
    workers: int = 1,
) -> np.ndarray:
    r"""Compute the loss weight of every pixel (Eq. 2, Sec. 3).

    .. math:: w(x) = w_c(x) + w_0 \exp\left(-\frac{(d_1(x) + d_2(x))^2}{2\sigma^2}\right)

    with d1 and d2 the distances to the nearest and to the second nearest distinct cell.

    Parameters
    ----------
    labels : ndarray of int or bool, shape (height, width) or (z, y, x)
        0 is background, k > 0 is cell k; a stack is treated slice by slice. Or a mask, whose
        4-connected components in each slice are the cells: see `kind`.
    w0 : float, optional
        Height of the border term; ``config.W0`` (10), in ``short`` 1, in ``falk2019`` 50.
    sigma : float, optional
        Its width in px; ``config.SIGMA_PX`` (5), in ``falk2019`` 6.
    class_balance : "frequency", (background, cell) or None
        w_c of the two classes. ``"frequency"``: over all known pixels of the whole stack,
        w_c = N / (K N_c) with N_c the pixels of class c (for `separate_touching`, after it),
        N = N_background + N_cell and K the number of classes that occur, 2 as a rule. So both
        classes weigh the same in total and the mean of w_c is 1. A pair: these two values (for
        a stack that comes page by page, from `frequency_weights`). None: 1 everywhere.
    variant : "paper", "short" or "falk2019"
        ``short`` is w_c + exp(...), w0 = 1. ``falk2019`` has a balance of its own, and
        `class_balance` is not used: cells weigh 1, the background
        0.1 + 0.9 exp(-d1^2 / (2 10^2)) + w0 exp(-(d1 + d2)^2 / (2 sigma^2)).
    ignore_label : int, optional
        Value of unknown pixels: weight 0, neither cell nor background.
    separate_touching : bool
        Weight the pixels that the function `separate_touching` removes as background. The
        distances are still those of the cells as given.
    separation_px : float
        Its radius in px.
    kind : "auto", "mask" or "ids"
        What the values mean. ``auto``: a bool array, or one whose known values are all in
        {0, 1} or all in {0, 255}, is a mask; every other holds instance ids.
    workers : int
        Number of threads, over slices, or over bands of rows where slices are fewer.

    Returns
    -------
    ndarray of float32, shape of `labels`
        Weights, 0 or more. Without a second cell in a slice its border term is 0.

    Raises
    ------
    InputError
        Not 2-D or 3-D, not integer or bool, a negative label that is not `ignore_label`, or a
        setting out of its range.

    Notes
    -----
    Not in the paper: Eq. 2 is printed for all x; the border term is added to background pixels
    only, as in the authors' later code. The paper "balances the class frequencies" without a
    formula. The MATLAB form of ``falk2019`` lacks the factor 2 under -d1^2.

    A summand below 1e-9 of the background's weight, which float32 cannot show, is left out.
    Memory beyond input and output: at most 10 bytes per pixel of the slices at work (one per
    thread) and 1 byte per pixel of the stack; 4 more for slices higher than 32767 px. With
    `separate_touching` 8 more, and a copy of the labels.

    References
    ----------
    Ronneberger, Fischer, Brox: U-Net, MICCAI 2015. ``falk2019``: Falk et al., Nature Methods
    16, 67-70 (2019).

    Examples
    --------
    >>> labels = np.array([[1, 1, 0, 2, 2]])  # a gap of 1 px: d1 + d2 = 2
    >>> weight_map(labels, class_balance=None).round(4)
    array([[ 1.    ,  1.    , 10.2312,  1.    ,  1.    ]], dtype=float32)
    """
    stack, is_mask = _checked(labels, ignore_label, kind, workers)
    _check_radius(separation_px, "separation_px")
    targets = stack
    if separate_touching:
        targets = _separate(stack, separation_px, ignore_label, is_mask, workers)
    classes = np.not_equal(targets, 0, order="C").view(np.uint8)  # BACKGROUND or CELL
    if ignore_label is not None:
        classes[targets == ignore_label] = UNKNOWN
    terms = _terms(classes, w0, sigma, class_balance, variant)
    reach2 = _reach2(terms)
    weights, unused = np.empty(stack.shape, np.float32), np.empty((0, 0), np.float32)

    def weigh(z: int, *band: Any) -> None:
        solve_band(*band, classes[z], terms, reach2, weights[z], unused)

    _for_each_band(stack, ignore_label, is_mask, workers, weigh)
    return weights.reshape(np.shape(labels))


def two_nearest_distances(
    labels: np.ndarray,
    *,
    ignore_label: int | None = None,
    kind: Kind = "auto",
    workers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return d1 and d2 of Eq. 2: the distances to the two nearest distinct cells.

    Exact Euclidean distances between pixel centres, as a distance transform of everything but
    one cell gives them: two half-planes with a gap of g px have d1 + d2 = g + 1 all across it.

    Parameters
    ----------
    labels, ignore_label, kind, workers
        As in `weight_map`; unknown pixels are no cell.

    Returns
    -------
    d1, d2 : ndarray of float32, shape of `labels`
        In px. d1 is 0 inside a cell; infinite where the slice has no first or second cell.

    Examples
    --------
    >>> d1, d2 = two_nearest_distances(np.array([[7, 0, 0, 0, 5]]))
    >>> d1
    array([[0., 1., 2., 1., 0.]], dtype=float32)
    >>> d2
    array([[4., 3., 2., 3., 4.]], dtype=float32)
    """
    stack, is_mask = _checked(labels, ignore_label, kind, workers)
    everywhere = np.zeros(stack.shape[1:], np.uint8)
    d1, d2 = np.empty(stack.shape, np.float32), np.empty(stack.shape, np.float32)
    no_terms = Terms(0.0, 0.0, 0.0, 1.0, 0.0, 1.0)

    def measure(z: int, *band: Any) -> None:
        solve_band(*band, everywhere, no_terms, FAR - 1, d1[z], d2[z])

    _for_each_band(stack, ignore_label, is_mask, workers, measure)
    return d1.reshape(np.shape(labels)), d2.reshape(np.shape(labels))


def separate_touching(
    labels: np.ndarray,
    *,
    radius: float = 1,
    ignore_label: int | None = None,
    kind: Kind = "auto",
    workers: int = 1,
) -> np.ndarray:
    """Open a background ridge between touching cells, two pixels wide for radius 1.

    Removes the cells' pixels at which cells overlap once each is dilated by a disc: those with
    another cell at `radius` or less.

    Parameters
    ----------
    labels, ignore_label, kind, workers
        As in `weight_map`.
    radius : float
        Of the disc, in px.

    Returns
    -------
    ndarray, shape and dtype of `labels`
        A copy with the ridge set to 0. Unknown pixels stay.

    Notes
    -----
    Not in the paper: it says only that the borders come from morphological operations.

    Examples
    --------
    >>> separate_touching(np.array([[3, 3, 3, 8, 8, 0]]))
    array([[3, 3, 0, 0, 8, 0]])
    """
    _check_radius(radius, "radius")
    stack, is_mask = _checked(labels, ignore_label, kind, workers)
    return _separate(stack, radius, ignore_label, is_mask, workers).reshape(np.shape(labels))


def instances(
    labels: np.ndarray, *, ignore_label: int | None = None, kind: Kind = "auto"
) -> np.ndarray:
    """Return instance ids: a mask's 4-connected components, or a copy of what are ids already.

    Parameters
    ----------
    labels, ignore_label, kind
        As in `weight_map`.

    Returns
    -------
    ndarray, shape of `labels`
        For a mask int32, 0 for background and unknown pixels, 1, 2, ... in each slice; ids are
        returned unchanged, unknown pixels included.

    Examples
    --------
    >>> instances(np.array([[255, 255, 0, 255]], np.uint8))
    array([[1, 1, 0, 2]], dtype=int32)
    """
    stack, is_mask = _checked(labels, ignore_label, kind)
    if not is_mask:
        return np.array(labels)
    ids = np.empty(stack.shape, np.int32)
    for z, slice_ in enumerate(stack):
        ids[z] = _components(slice_, ignore_label)
    return ids.reshape(np.shape(labels))


def mask_values(labels: np.ndarray, *, ignore_label: int | None = None) -> set[int]:
    """Return those of 1 and 255 with which `labels` can be a mask: all known values are it or 0.

    None: the values are instance ids. A stack that comes page by page is a mask if one value is
    common to all pages, and is then to be treated with ``kind="mask"``, else with ``"ids"``.

    Examples
    --------
    >>> mask_values(np.array([[0, 255]])), mask_values(np.array([[0, 1, 255]]))
    ({255}, set())
    """
    return _mask_values(_checked_stack(labels, ignore_label), ignore_label)


def kind_of(labels: Slices) -> Kind:
    """Decide for labels of several sizes together; an array is left to ``"auto"``."""
    if isinstance(labels, np.ndarray):
        return "auto"
    return "mask" if set.intersection(*map(mask_values, labels)) else "ids"


def frequency_weights(background: int, cell: int) -> tuple[float, float]:
    """Return w_c of background and cells from their numbers of pixels; see `weight_map`.

    Examples
    --------
    >>> frequency_weights(background=1, cell=3)
    (2.0, 0.6666666666666666)
    """
    present = int(background > 0) + int(cell > 0)
    total = background + cell
    return (
        total / (present * background) if background else 0.0,
        total / (present * cell) if cell else 0.0,
    )


def _checked(
    labels: Any, ignore_label: int | None, kind: Kind, workers: int = 1
) -> tuple[np.ndarray, bool]:
    """Return a view of shape (z, y, x) and whether its values are a mask's, or raise."""
    if kind not in get_args(Kind):
        raise InputError(f"kind is {kind!r}: one of {', '.join(get_args(Kind))} is needed")
    if workers < 1:
        raise InputError(f"workers is {workers}: at least 1 thread is needed")
    stack = _checked_stack(labels, ignore_label)
    if kind != "auto":
        return stack, kind == "mask"
    return stack, stack.dtype.kind == "b" or bool(_mask_values(stack, ignore_label))


def _checked_stack(labels: Any, ignore_label: Any) -> np.ndarray:
    """Return a view of shape (z, y, x), or raise."""
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu":
        raise InputError(f"labels are {labels.dtype}: integers or a bool mask are needed")
    if labels.ndim not in (2, 3):
        raise InputError(f"labels have shape {labels.shape}: (height, width) or (z, y, x) needed")
    if ignore_label is not None:
        if isinstance(ignore_label, bool) or not isinstance(ignore_label, (int, np.integer)):
            raise InputError(f"ignore_label is {ignore_label!r}: an integer or None is needed")
        if labels.dtype.kind == "b":
            raise InputError(f"ignore_label is {ignore_label}: a bool mask has no value to spare")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        negative = set(np.unique(labels[labels < 0]).tolist()) - {ignore_label}
        if negative:
            raise InputError(
                f"labels hold {min(negative)}: 0 is background, cells are above 0; "
                "ignore_label names the value of unknown pixels"
            )
    return labels if labels.ndim == 3 else labels[None]


def _mask_values(stack: np.ndarray, ignore_label: int | None) -> set[int]:
    ignore = 0 if ignore_label is None else ignore_label

    def fits(slice_: np.ndarray, value: int) -> bool:
        return bool(((slice_ == 0) | (slice_ == value) | (slice_ == ignore)).all())

    return {value for value in (1, 255) if all(fits(slice_, value) for slice_ in stack)}


def _terms(
    classes: np.ndarray, w0: float | None, sigma: float | None, class_balance: Any, variant: Any
) -> Terms:
    """Return the summands' numbers, or raise."""
    if variant not in DEFAULT_W0:
        raise InputError(f"variant is {variant!r}: one of {', '.join(DEFAULT_W0)} is needed")
    w0 = float(DEFAULT_W0[variant] if w0 is None else w0)
    sigma = float(DEFAULT_SIGMA_PX[variant] if sigma is None else sigma)
    if not 0 <= w0 < math.inf:
        raise InputError(f"w0 is {w0}: a finite number, 0 or more, is needed")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma is {sigma}: a finite number of px above 0 is needed")
    if variant == "short" and w0 != 1:
        raise InputError(f"w0 is {w0}: the variant 'short' means 1; 'paper' takes any")
    if class_balance is None:
        background, cell = 1.0, 1.0
    elif isinstance(class_balance, str) and class_balance == "frequency":
        background, cell = frequency_weights(
            int(np.count_nonzero(classes == BACKGROUND)), int(np.count_nonzero(classes == CELL))
        )
    else:
        try:
            background, cell = map(float, class_balance)
        except (TypeError, ValueError):
            background = math.nan
        if not (0 <= background < math.inf and 0 <= cell < math.inf):
            raise InputError(
                f"class_balance is {class_balance!r}: 'frequency', None, or the weights of "
                "(background, cell), both finite and 0 or more, are needed"
            )
    if variant == "falk2019":
        falk = _FALK_BACKGROUND
        return Terms(1.0, falk, w0, sigma, 1.0 - falk, _FALK_NEAR_SIGMA_PX)
    return Terms(cell, background, w0, sigma, 0.0, 1.0)


def _reach2(terms: Terms) -> int:
    """Return the square of a distance beyond which float32 cannot show any summand."""
    negligible = 1e-9 * terms.background or 1e-45
    reach = 0.0
    for height, sigma in ((terms.border, terms.border_sigma), (terms.near, terms.near_sigma)):
        if height > negligible:
            reach = max(reach, sigma * math.sqrt(2 * math.log(height / negligible)))
    return math.ceil(min(reach, 1e8) ** 2)  # below FAR, and beyond any slice


def _check_radius(radius: float, name: str) -> None:
    if not radius >= 0:
        raise InputError(f"{name} is {radius}: it must be 0 px or more")


def _separate(
    stack: np.ndarray, radius: float, ignore_label: int | None, is_mask: bool, workers: int
) -> np.ndarray:
    """Return a copy without the cells' pixels that have another cell within `radius`."""
    out = stack.copy()
    for slice_, target in zip(stack, out):
        kind: Kind = "mask" if is_mask else "ids"
        d1, d2 = two_nearest_distances(
            slice_, ignore_label=ignore_label, kind=kind, workers=workers
        )
        target[(d1 == 0) & (d2 <= radius)] = 0
    return out


def _components(slice_: np.ndarray, ignore_label: int | None) -> np.ndarray:
    """Label the 4-connected components of one slice of a mask."""
    cells = slice_ != 0
    if ignore_label is not None:
        cells &= slice_ != ignore_label
    ids = np.empty(slice_.shape, np.int32)
    ndimage.label(cells, output=ids)  # 4-connected unless told otherwise
    return ids


def _ids(slice_: np.ndarray, ignore_label: int | None, is_mask: bool) -> tuple[np.ndarray, Any]:
    """Return the cells' ids, contiguous int32 or int64, and the id of unknown pixels or 0.

    Only whether two ids are equal, or 0, matters from here on: unsigned ids may turn negative.
    """
    if is_mask:
        return _components(slice_, ignore_label), np.int32(0)
    choices = (np.uint32, np.uint64) if slice_.dtype.kind == "u" else (np.int32, np.int64)
    lowest, highest = int(slice_.min(initial=0)), int(slice_.max(initial=0))
    narrow = np.iinfo(choices[0])
    own = choices[0] if narrow.min <= lowest and highest <= narrow.max else choices[1]
    signed = np.int32 if own is choices[0] else np.int64
    ids = np.ascontiguousarray(slice_, own).view(signed)
    occurs = ignore_label is not None and lowest <= ignore_label <= highest
    return ids, np.array(ignore_label if occurs else 0, own).view(signed)[()]


def _for_each_band(
    stack: np.ndarray,
    ignore_label: int | None,
    is_mask: bool,
    workers: int,
    solve: Callable[..., None],
) -> None:
    """Call ``solve(z, ids, ignore, y0, y1, rows)`` for bands of rows y0 ... y1 - 1."""
    depth, height, width = stack.shape
    if not stack.size:
        return
    bands = min(-(-workers // depth), height)
    edges = [height * band // bands for band in range(bands + 1)]
    row_type = np.int16 if height < 1 << 15 else np.int32

    def solve_slice(z: int, run: Callable[..., Any]) -> None:
        ids, ignore = _ids(stack[z], ignore_label, is_mask)

        def solve_rows(y0: int, y1: int) -> None:
            solve(z, ids, ignore, y0, y1, np.empty((2, y1 - y0, width), row_type))

        list(run(solve_rows, edges[:-1], edges[1:]))

    with ThreadPoolExecutor(workers) as pool:
        if bands == 1:
            list(pool.map(lambda z: solve_slice(z, map), range(depth)))
        else:
            for z in range(depth):
                solve_slice(z, pool.map)
