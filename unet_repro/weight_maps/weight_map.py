"""The weight map of Sec. 3, Eq. 2: class balance and a term for the thin borders between cells.

Exact distances to the two nearest distinct cells in O(pixels), however many cells there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import numpy as np

from unet_repro.choices import LabelKind, Variant
from unet_repro.errors import InputError
from unet_repro.images.label_settings import LabelSettings
from unet_repro.images.labels import UNKNOWN_CELL, Reading, as_stack, read_meaning
from unet_repro.images.slices import Slices, pieces
from unet_repro.weight_maps.nearest_cells import (
    BACKGROUND,
    CELL,
    FAR,
    UNKNOWN,
    Terms,
    begun_sweeps,
    solve_band,
)
from unet_repro.weight_maps.settings import border_term, check_radius

ClassBalance = Literal["frequency"] | tuple[float, ...] | None

VERSION = 1  # raise it whenever `weight_map` gives other numbers for the same labels and settings
_BAND_PX, _BAND_ROWS = 2**20, 256  # at most, that a thread solves at once: caches hold them
_FALK_BACKGROUND, _FALK_NEAR_SIGMA_PX = 0.1, 10.0


def weight_map(
    labels: np.ndarray,
    *,
    w0: float | None = None,
    sigma: float | None = None,
    class_balance: ClassBalance = "frequency",
    variant: Variant = "paper",
    ignore_label: int | None = None,
    separate_touching: bool = False,
    separation_px: float = 1,
    label_kind: LabelKind = "auto",
    workers: int = 1,
) -> np.ndarray:
    r"""Compute the loss weight of every pixel (Eq. 2, Sec. 3).

    .. math:: w(x) = w_c(x) + w_0 \exp\left(-\frac{(d_1(x) + d_2(x))^2}{2\sigma^2}\right)

    with d1 and d2 the distances to the nearest and to the second nearest distinct cell.

    Parameters
    ----------
    labels : ndarray of int or bool, shape (height, width) or (z, y, x)
        0 is background, k > 0 is cell k; a stack is treated slice by slice. Or a mask, or classes,
        whose 4-connected components in each slice are the cells: see `label_kind`.
    w0 : float, optional
        Height of the border term; ``config.W0`` (10), in ``short`` 1, in ``falk2019`` 50.
    sigma : float, optional
        Its width in px; ``config.SIGMA_PX`` (5), in ``falk2019`` 6.
    class_balance : "frequency", (background, cell, ...) or None
        w_c of the classes, background and cell as a rule. ``"frequency"``: over all known pixels
        of the whole stack, w_c = N / (K N_c) with N_c the pixels of class c (for
        `separate_touching`, after it), N those of all classes and K the number of classes that
        occur. So all classes weigh the same in total and the mean of w_c is 1. Several numbers:
        the values of class 0, 1, ... (for a stack that comes page by page, from
        `frequency_weights`). None: 1 everywhere.
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
    label_kind : "auto", "mask", "ids" or "classes"
        What the values mean, as in `images.labels.LabelSettings`.
    workers : int
        Number of threads, over slices, or over bands of rows where slices are fewer.

    Returns
    -------
    ndarray of float32, shape of `labels`
        Weights, 0 or more. Without a second cell in a slice its border term is 0.

    Raises
    ------
    InputError
        Not 2-D or 3-D, no whole numbers, a negative label that is not `ignore_label`, labels that
        look like a grey image or a spoiled mask, or a setting out of its range.

    Notes
    -----
    Not in the paper: Eq. 2 is printed for all x; the border term is added to background pixels
    only, as in the authors' later code. The paper "balances the class frequencies" without a
    formula. The MATLAB form of ``falk2019`` lacks the factor 2 under -d1^2.

    A summand below 1e-9 of the background's weight, which float32 cannot show, is left out.
    Memory beyond input and output: at most 10 bytes per pixel of the slices at work (one per
    thread), of large int32 ids 3, and 1 byte per pixel of the stack. With `separate_touching` 8
    more, and a copy of the labels.

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
    stack, reading = _read(labels, label_kind, ignore_label, workers)
    weights = weigh(
        stack,
        reading,
        w0=w0,
        sigma=sigma,
        class_balance=class_balance,
        variant=variant,
        separate_touching=separate_touching,
        separation_px=separation_px,
        workers=workers,
    )
    return weights.reshape(np.shape(labels))


def weigh(
    stack: np.ndarray,
    reading: Reading,
    *,
    w0: float | None = None,
    sigma: float | None = None,
    class_balance: ClassBalance = "frequency",
    variant: Variant = "paper",
    separate_touching: bool = False,
    separation_px: float = 1,
    workers: int = 1,
) -> np.ndarray:
    """Compute what `weight_map` does, of labels (z, y, x) whose meaning is decided already."""
    check_radius(separation_px, "separation_px")
    roles = _roles(stack, reading)
    if separate_touching:
        for z, ridge in _ridges(stack, reading, separation_px, workers):
            roles[z][ridge] = BACKGROUND
    if isinstance(class_balance, str) and class_balance == "frequency":
        w_c = frequency_weights(*_sizes(stack, roles, reading))
    else:
        w_c = _given_weights(class_balance, reading.n_classes)
    terms = _terms(w_c, w0, sigma, variant)
    reach2 = _reach2(terms)
    weights, unused = np.empty(stack.shape, np.float32), np.empty((0, 0), np.float32)

    def solve(z: int, *band: Any) -> None:
        solve_band(*band, roles[z], terms, reach2, weights[z], unused)

    _for_each_band(stack, reading, workers, solve)
    if variant != "falk2019":
        for k in range(2, reading.n_classes):
            weights[(stack == k) & (roles == CELL)] = w_c[k]
    return weights


def class_sizes(
    labels: Slices, reading: Reading, *, separation_px: float | None = None, workers: int = 1
) -> list[int]:
    """Count the known pixels of class 0, 1, ...; ridges of `separation_px`, if any, are of 0."""
    found = []
    for piece in pieces(labels):
        stack = piece if piece.ndim == 3 else piece[None]
        roles = _roles(stack, reading)
        if separation_px is not None:
            for z, ridge in _ridges(stack, reading, separation_px, workers):
                roles[z][ridge] = BACKGROUND
        found.append(_sizes(stack, roles, reading))
    return [sum(sizes) for sizes in zip(*found)]


def two_nearest_distances(
    labels: np.ndarray,
    *,
    ignore_label: int | None = None,
    label_kind: LabelKind = "auto",
    workers: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return d1 and d2 of Eq. 2: the distances to the two nearest distinct cells.

    Exact Euclidean distances between pixel centres, as a distance transform of everything but
    one cell gives them: two half-planes with a gap of g px have d1 + d2 = g + 1 all across it.

    Parameters
    ----------
    labels, ignore_label, label_kind, workers
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
    stack, reading = _read(labels, label_kind, ignore_label, workers)
    everywhere = np.zeros(stack.shape[1:], np.uint8)
    d1, d2 = np.empty(stack.shape, np.float32), np.empty(stack.shape, np.float32)
    no_terms = Terms(0.0, 0.0, 0.0, 1.0, 0.0, 1.0)

    def measure(z: int, *band: Any) -> None:
        solve_band(*band, everywhere, no_terms, FAR - 1, d1[z], d2[z])

    _for_each_band(stack, reading, workers, measure)
    return d1.reshape(np.shape(labels)), d2.reshape(np.shape(labels))


def separate_touching(
    labels: np.ndarray,
    *,
    radius: float = 1,
    ignore_label: int | None = None,
    label_kind: LabelKind = "auto",
    workers: int = 1,
) -> np.ndarray:
    """Open a background ridge between touching cells, two pixels wide for radius 1.

    Removes the cells' pixels at which cells overlap once each is dilated by a disc: those with
    another cell at `radius` or less.

    Parameters
    ----------
    labels, ignore_label, label_kind, workers
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
    check_radius(radius, "radius")
    stack, reading = _read(labels, label_kind, ignore_label, workers)
    out = np.array(stack)
    for z, ridge in _ridges(stack, reading, radius, workers):
        out[z][ridge] = 0
    return out.reshape(np.shape(labels))


def frequency_weights(*pixels: int) -> tuple[float, ...]:
    """Return w_c of background, cells, ... from their numbers of pixels; see `weight_map`.

    Examples
    --------
    >>> frequency_weights(1, 3)
    (2.0, 0.6666666666666666)
    """
    present, total = sum(number > 0 for number in pixels), sum(pixels)
    return tuple(total / (present * number) if number else 0.0 for number in pixels)


def _read(
    labels: Any, label_kind: LabelKind, ignore_label: int | None, workers: int
) -> tuple[np.ndarray, Reading]:
    """Return a view of shape (z, y, x) and what its values mean, or raise."""
    settings = LabelSettings(label_kind, ignore_label)
    if workers < 1:
        raise InputError(f"workers is {workers}: at least 1 thread is needed")
    stack = as_stack(labels)
    return stack, read_meaning(stack, settings, counts_cells=False, workers=workers)


def _roles(stack: np.ndarray, reading: Reading) -> np.ndarray:
    """Return uint8: BACKGROUND, CELL or UNKNOWN."""
    roles = np.empty(stack.shape, np.uint8)
    for z, slice_ in enumerate(stack):
        np.minimum(reading.classes(slice_), CELL, out=roles[z])
        is_unknown = reading.is_unknown(slice_)
        if is_unknown is not None:
            roles[z][is_unknown] = UNKNOWN
    return roles


def _sizes(stack: np.ndarray, roles: np.ndarray, reading: Reading) -> list[int]:
    cells = [int(np.count_nonzero(roles == CELL))]
    if reading.kind == "classes":
        values = range(1, reading.n_classes)
        cells = [int(np.count_nonzero((stack == k) & (roles == CELL))) for k in values]
    return [int(np.count_nonzero(roles == BACKGROUND)), *cells]


def _given_weights(class_balance: Any, n_classes: int) -> tuple[float, ...]:
    """Return w_c of class 0, 1, ... as given, 1 for None, or raise."""
    if class_balance is None:
        return (1.0,) * n_classes
    try:
        w_c = tuple(map(float, class_balance))
    except (TypeError, ValueError):
        w_c = ()
    if len(w_c) != n_classes or not all(0 <= weight < math.inf for weight in w_c):
        raise InputError(
            f"class_balance is {class_balance!r}: 'frequency', None, or the weights of the "
            f"{n_classes} classes (background, cell), finite and 0 or more, are needed"
        )
    return w_c


def _terms(w_c: tuple[float, ...], w0: float | None, sigma: float | None, variant: Any) -> Terms:
    """Return the summands' numbers, or raise."""
    w0, sigma = border_term(variant, w0, sigma)
    if variant == "falk2019":
        falk = _FALK_BACKGROUND
        return Terms(1.0, falk, w0, sigma, 1.0 - falk, _FALK_NEAR_SIGMA_PX)
    return Terms(w_c[1], w_c[0], w0, sigma, 0.0, 1.0)


def _reach2(terms: Terms) -> int:
    """Return the square of a distance beyond which float32 cannot show any summand."""
    negligible = 1e-9 * terms.background or 1e-45
    reach = 0.0
    for height, sigma in ((terms.border, terms.border_sigma), (terms.near, terms.near_sigma)):
        if height > negligible:
            reach = max(reach, sigma * math.sqrt(2 * math.log(height / negligible)))
    return math.ceil(min(reach, 1e8) ** 2)  # below FAR, and beyond any slice


def _ridges(
    stack: np.ndarray, reading: Reading, radius: float, workers: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each slice's number, and where its cells have another cell within `radius`."""
    for z, slice_ in enumerate(stack):
        cells = reading.cells(slice_)
        d1, d2 = two_nearest_distances(
            cells, ignore_label=UNKNOWN_CELL, label_kind="ids", workers=workers
        )
        yield z, (d1 == 0) & (d2 <= radius)


def _for_each_band(
    stack: np.ndarray,
    reading: Reading,
    workers: int,
    solve: Callable[..., None],
) -> None:
    """Call ``solve(z, ids, ignore, y0, y1, *sweeps)`` for bands of rows y0 ... y1 - 1."""
    depth, height, width = stack.shape
    if not stack.size:
        return
    rows = min(_BAND_ROWS, -(-_BAND_PX // width))
    edges = np.linspace(0, height, -(-height // rows) + 1).astype(np.int64)

    def solve_slice(z: int, run: Callable[..., Any]) -> None:
        ids = reading.cells(stack[z])
        ignore = ids.dtype.type(UNKNOWN_CELL)
        sweeps = begun_sweeps(ids, ignore, edges)
        list(run(partial(solve, z, ids, ignore), edges[:-1], edges[1:], *sweeps))

    with ThreadPoolExecutor(workers) as pool:
        if depth >= workers:
            list(pool.map(lambda z: solve_slice(z, map), range(depth)))
        else:
            for z in range(depth):
                solve_slice(z, pool.map)
