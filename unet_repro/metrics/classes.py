"""Figures of a segmentation into several classes: confusion matrix, overlap, accuracy."""

from __future__ import annotations

import numpy as np

from unet_repro.errors import InputError
from unet_repro.images.slices import Slices, described, mapped, sizes


def confusion_matrix(
    labels: Slices, prediction: Slices, *, n_classes: int, known: Slices | None = None
) -> np.ndarray:
    """Count the pixels of each class by the class that is predicted for them.

    Parameters
    ----------
    labels, prediction : ndarray of int, shape (z, y, x), or sequence of (y, x)
        Classes 0 ... n_classes - 1.
    known : ndarray of bool, same shape, optional
        Where the labels are known; the other pixels count for nothing, whatever they hold.

    Returns
    -------
    ndarray of int64, shape (n_classes, n_classes)
        At [k, l] the known pixels of class k for which class l is predicted.

    Raises
    ------
    InputError
        Shapes that differ, or a class that is none.

    Examples
    --------
    >>> confusion_matrix(np.array([[[0, 1, 1]]]), np.array([[[0, 0, 1]]]), n_classes=2)
    array([[1, 0],
           [1, 1]])
    """
    if sizes(labels) != sizes(prediction):
        raise InputError(
            f"labels {described(labels)} and prediction {described(prediction)} differ in shape"
        )
    if known is None:
        known = mapped(lambda classes: np.ones(classes.shape, bool), labels)
    counts = np.zeros(n_classes**2, np.int64)
    for z in range(len(labels)):
        found = []
        for name, stack in (("labels", labels), ("prediction", prediction)):
            classes = stack[z][known[z]].astype(np.int64)
            if classes.size and not 0 <= classes.min() <= classes.max() < n_classes:
                wrong = classes.min() if classes.min() < 0 else classes.max()
                raise InputError(f"the {name} hold {wrong}: classes are 0 ... {n_classes - 1}")
            found.append(classes)
        truth, predicted = found
        counts += np.bincount(n_classes * truth + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def class_figures(confusion: np.ndarray) -> dict[str, float | None]:
    r"""Compute overlap and accuracy of each class from a `confusion_matrix`.

    With T the pixels of class k and P those for which it is predicted:

    ``iou_k``
        :math:`|T \cap P| / |T \cup P|`, the Jaccard index.
    ``dice_k``
        :math:`2 |T \cap P| / (|T| + |P|)`.
    ``accuracy_k``
        :math:`|T \cap P| / |T|`, the share of the class that is found: its recall.
    ``mean_iou``, ``mean_dice``, ``mean_accuracy``
        Means over the classes that occur in the labels, each counting the same.
    ``pixel_accuracy``
        The share of all pixels that are called rightly.

    A class that occurs nowhere in the labels has no figures (None), and no part in the means;
    pixels for which it is predicted lower the figures of the classes that they belong to. All
    figures lie in [0, 1], and higher is better.

    Examples
    --------
    >>> figures = class_figures(np.array([[1, 0], [1, 1]]))
    >>> figures["iou_0"], figures["dice_0"], figures["accuracy_0"]
    (0.5, 0.6666666666666666, 1.0)
    >>> figures["pixel_accuracy"]
    0.6666666666666666
    """
    hits = np.diag(confusion)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    shares = {
        "iou": (hits, truth + predicted - hits),
        "dice": (2 * hits, truth + predicted),
        "accuracy": (hits, truth),
    }
    occurs = np.flatnonzero(truth)
    figures: dict[str, float | None] = {}
    for name, (part, whole) in shares.items():
        values = {int(k): float(part[k] / whole[k]) for k in occurs}
        figures |= {f"{name}_{k}": values.get(k) for k in range(len(confusion))}
        figures[f"mean_{name}"] = float(np.mean(list(values.values()))) if values else None
    total = int(confusion.sum())
    figures["pixel_accuracy"] = float(hits.sum() / total) if total else None
    return figures
