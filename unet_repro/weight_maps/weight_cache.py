"""Cache of a training run's weight map, in the run's folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np

from unet_repro._version import __version__
from unet_repro.files.atomic import atomic_path
from unet_repro.weight_maps.weight_map import weight_map

VERSION = 1  # raise it whenever `weight_map` gives other numbers for the same labels and settings


def cached_weight_map(
    labels: np.ndarray,
    folder: Path,
    *,
    w0: float,
    sigma: float,
    class_balance: Literal["frequency"] | tuple[float, float] | None,
    separate_touching: bool = False,
    separation_px: float = 1,
    workers: int = 1,
) -> np.ndarray:
    """Return the weight map of labels, from a file in the folder if it was computed before.

    Parameters
    ----------
    labels, w0, sigma, class_balance, separate_touching, separation_px, workers
        As in `weight_map`.
    folder : pathlib.Path
        Where ``weight_map_<key>.npz`` is kept, the last one only. The key is a SHA-256 of the
        labels and of all that decides the map: another setting never finds it.

    Returns
    -------
    ndarray of float32, shape of `labels`

    Notes
    -----
    A file that is damaged, or of another shape, is computed and written again.
    """
    decides = {
        "unet_repro": __version__,
        "weight_map": VERSION,
        "labels": [labels.dtype.str, labels.shape, _sha256(labels)],
        "w0": float(w0),
        "sigma": float(sigma),
        "class_balance": class_balance,
        "separation_px": float(separation_px) if separate_touching else None,
    }
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    path = folder / f"weight_map_{key[:32]}.npz"
    weights = _load(path, labels.shape)
    if weights is None:
        weights = weight_map(
            labels,
            w0=w0,
            sigma=sigma,
            class_balance=class_balance,
            separate_touching=separate_touching,
            separation_px=separation_px,
            workers=workers,
        )
        with atomic_path(path, overwrite=True) as part, part.open("wb") as file:
            np.savez(file, weights=weights)
    for other in folder.glob("weight_map_*.npz"):
        if other != path:
            other.unlink(missing_ok=True)
    return weights


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _load(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the weights of a file; None if it is missing, damaged or of another shape."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            weights: np.ndarray = archive["weights"]  # zip files hold check sums
    except Exception:  # a damaged archive can raise nearly anything, MemoryError included
        return None
    is_whole = weights.shape == shape and weights.dtype == np.float32
    return weights if is_whole else None
