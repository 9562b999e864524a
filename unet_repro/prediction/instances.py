"""From the network's scores to cells: connected components, small and outlying ones dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from unet_repro.errors import InputError
from unet_repro.prediction.components import components


@dataclass(frozen=True)
class InstanceRule:
    """How cells are made of scores (Sec. 4 leaves all of it open).

    Parameters
    ----------
    threshold
        P(cell interior) above which a pixel belongs to the core of a cell. A cell is what grows
        from a 4-connected component of such pixels.
    grow_to
        P(cell interior) down to which cores grow; none grows where it is `threshold` or more.
    least_px
        Cores and cells of so many pixels or fewer are dropped. Not in the paper: 500 px, the
        authors' release for PhC-U373.
    border_px
        Cells that lie wholly within so many pixels of the image's border are dropped. Not in the
        paper: 50 px, the release, and the field of interest of the challenge.
    fill_holes
        Background that a cell encloses becomes part of it. Not in the paper.
    valley, smoothing_px
        With a valley above 0, cores are the peaks of the scores, smoothed by a Gaussian of this
        standard deviation, wherever they are above `grow_to`; `threshold` is not used. Two peaks
        are two cells if every path between them descends by `valley` or more below the lower one,
        in log-odds. Not in the paper: unlike a threshold, it holds for networks of any confidence.
    """

    threshold: float = 0.5
    grow_to: float = 0.5
    least_px: int = 500
    border_px: int = 50
    fill_holes: bool = True
    valley: float = 0.0
    smoothing_px: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threshold", "grow_to"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must lie in (0, 1)")
        for name in ("least_px", "border_px"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 px or more")
        for name in ("valley", "smoothing_px"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more, finite")


def instances_of_scores(scores: np.ndarray, rule: InstanceRule) -> np.ndarray:
    """Find the cells of one frame.

    Parameters
    ----------
    scores : ndarray of float, shape (y, x)
        Log-odds of the cell interior: the logit of class 1 less that of class 0.
    rule
        Thresholds and sizes.

    Returns
    -------
    ndarray of int32, shape (y, x)
        0 is background; cells are 1, 2, ... in raster order of the first pixels of their cores.

    Notes
    -----
    Cores grow by a watershed of the scores: a pixel goes to the core that the highest path leads
    to, so that cells that touch are parted along the lowest scores between their cores.

    Examples
    --------
    >>> scores = np.array([[9.0, 9, 1, -1, -9, 9, -9]])
    >>> instances_of_scores(scores, InstanceRule(0.9, 0.5, least_px=1, border_px=0))
    array([[1, 1, 1, 0, 0, 0, 0]], dtype=int32)
    >>> instances_of_scores(scores, InstanceRule(0.9, 0.2, least_px=0, border_px=0))
    array([[1, 1, 1, 1, 0, 2, 0]], dtype=int32)
    """
    if scores.ndim != 2 or not np.isfinite(scores).all():
        raise InputError(f"scores of shape {scores.shape}: (y, x), all finite, is needed")
    if rule.valley:
        cells = _cells_of_peaks(scores, rule)
        return _finished(cells, rule)
    cores = components(scores > _log_odds(rule.threshold), min_size=rule.least_px + 1)
    if rule.grow_to < rule.threshold:
        cells = watershed(-scores, cores, mask=scores > _log_odds(rule.grow_to))
    else:
        cells = cores
    return _finished(cells, rule)


def _cells_of_peaks(scores: np.ndarray, rule: InstanceRule) -> np.ndarray:
    """Grow cells from peaks that no path of less than `valley` below them connects."""
    smooth = scores.astype(np.float64)
    if rule.smoothing_px:
        smooth = ndimage.gaussian_filter(smooth, rule.smoothing_px)
    inside = scores > _log_odds(rule.grow_to)
    levelled = reconstruction(smooth - rule.valley, smooth)  # peaks cut down by `valley`
    cores, _ = ndimage.label(local_maxima(levelled) & inside)
    cells = watershed(-smooth, cores, mask=inside)
    return _keep(cells, np.bincount(cells.ravel()) > rule.least_px)


def _finished(cells: np.ndarray, rule: InstanceRule) -> np.ndarray:
    """Return cells without holes, and without those that do not reach the field."""
    if rule.fill_holes:
        cells = _without_holes(cells)
    return _keep(cells, _reaches_field(cells, rule.border_px))


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _keep(labels: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """Return labels with only those numbers kept, renumbered from 1; `is_kept[0]` is ignored."""
    is_kept[0] = False
    return np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)[labels]


def _without_holes(cells: np.ndarray) -> np.ndarray:
    filled = cells.copy()
    for number, box in enumerate(ndimage.find_objects(cells), start=1):
        is_cell = ndimage.binary_fill_holes(cells[box] == number)
        filled[box][is_cell & (filled[box] == 0)] = number
    return filled


def _reaches_field(labels: np.ndarray, border_px: int) -> np.ndarray:
    """Tell for each number whether it occurs farther than `border_px` from the image's border."""
    height, width = labels.shape
    field = labels[border_px : height - border_px, border_px : width - border_px]
    return np.bincount(field.ravel(), minlength=labels.max() + 1) > 0
