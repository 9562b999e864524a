"""The pictures behind the figures: what thinning and warping make of one slice."""

from typing import Any

import numpy as np

from unet_repro.errors import InputError
from unet_repro.metrics._checks import check_same_shape, checked_labels, checked_probability
from unet_repro.metrics._objects import label_objects
from unet_repro.metrics._tally import WARPING_RADIUS_PX
from unet_repro.metrics._thinning import thin_background
from unet_repro.metrics._warping import classify_mismatches, warp_truth
from unet_repro.metrics.results import WarpingMap


def thinned_labels(probability: Any, *, threshold: float = 0.5) -> np.ndarray:
    """Return the regions that V_rand and V_info compare with the truth.

    A two-level watershed grows the 4-connected components of `probability > threshold` over the
    remaining pixels until they meet.

    Parameters
    ----------
    probability : array_like of float, shape (height, width)
        P(cell interior) of one slice, in [0, 1]; anything else is an `InputError`.
    threshold : float
        One of `THRESHOLDS` for the official regions.

    Returns
    -------
    ndarray of int32, shape (height, width)
        Regions numbered from 1 in column-major order of their components' first pixel; 0 on the
        dams between them. A slice with no pixel above the threshold is one region, 1. Transposing
        or flipping the slice may move a dam by a pixel.

    Examples
    --------
    >>> thinned_labels([[0.9, 0.2, 0.1, 0.2, 0.8]])
    array([[1, 1, 0, 2, 2]], dtype=int32)
    """
    probability = _one_slice(checked_probability(probability), name="probability")
    is_interior = probability.astype(np.float64) > threshold
    # Components are numbered in raster order, so the transpose gives the column-major one.
    objects, n_objects = label_objects(np.ascontiguousarray(is_interior.T))
    return thin_background(np.ascontiguousarray(objects.T), n_objects)


def warping_map(labels: Any, probability: Any, *, threshold: float = 0.5) -> WarpingMap:
    """Warp the truth towards one slice of a proposal and classify what cannot be warped.

    The numbers of splits and mergers are those of `warping_error`.

    Parameters
    ----------
    labels : array_like of int or bool, shape (height, width)
        The truth; above 0 is cell interior.
    probability : array_like of float, shape (height, width)
        P(cell interior), in [0, 1].
    threshold : float
        Pixels strictly above it are interior; one of `WARPING_THRESHOLDS` for the official map.

    Raises
    ------
    InputError
        For other types or dimensions, differing shapes or values outside [0, 1].

    Examples
    --------
    A cell cut in two by a membrane that the truth does not have. Warping closes in on it from
    above, and the last pixel would split the cell:

    >>> from unet_repro.metrics import WarpingClass
    >>> labels = np.zeros((5, 9), int)
    >>> labels[1:4, 1:8] = 1
    >>> cut = labels.astype(float)
    >>> cut[:, 4] = 0
    >>> warping_map(labels, cut).classes[:, 4], WarpingClass(2).name
    (array([0, 0, 0, 2, 0], dtype=uint8), 'SPLIT')
    """
    labels = _one_slice(checked_labels(labels, name="labels"), name="labels")
    probability = _one_slice(checked_probability(probability), name="probability")
    check_same_shape(labels, probability)
    probability = np.ascontiguousarray(probability)
    warped = warp_truth(np.ascontiguousarray(labels > 0), probability, float(threshold))
    proposal = probability.astype(np.float64) > threshold
    return WarpingMap(warped, classify_mismatches(warped, proposal, WARPING_RADIUS_PX))


def _one_slice(array: np.ndarray, *, name: str) -> np.ndarray:
    if array.ndim != 2:
        raise InputError(f"{name} has shape {array.shape}; give one slice (y, x)")
    return array
