"""The figures of the EM and of the cell tracking challenge, and those of several classes."""

from unet_repro.metrics._tally import THRESHOLDS, WARPING_THRESHOLDS
from unet_repro.metrics.cells import iou, object_ious, seg
from unet_repro.metrics.classes import class_figures, confusion_matrix
from unet_repro.metrics.em_challenge import (
    em_challenge_metrics,
    pixel_error,
    rand_error,
    v_info,
    v_rand,
    warping_error,
)
from unet_repro.metrics.maps import thinned_labels, warping_map
from unet_repro.metrics.results import (
    EMChallengeMetrics,
    PixelError,
    RandError,
    VScore,
    WarpingClass,
    WarpingError,
    WarpingMap,
)

__all__ = [
    "THRESHOLDS",
    "WARPING_THRESHOLDS",
    "EMChallengeMetrics",
    "PixelError",
    "RandError",
    "VScore",
    "WarpingClass",
    "WarpingError",
    "WarpingMap",
    "class_figures",
    "confusion_matrix",
    "em_challenge_metrics",
    "iou",
    "object_ious",
    "pixel_error",
    "rand_error",
    "seg",
    "thinned_labels",
    "v_info",
    "v_rand",
    "warping_error",
    "warping_map",
]
