"""What a predicted stack consists of: the values of its pixels, its pages, its file or folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unet_repro.errors import InputError
from unet_repro.images.calibration import Calibration
from unet_repro.images.tiff_writer import Compression, write_pages
from unet_repro.prediction.tile_runner import softmax, unfinished

Kind = Literal["probability", "uint8", "labels", "logits"]
Band = Callable[[int, int], Iterator[NDArray[Any]]]  # slice, plane -> bands from top to bottom

_DTYPES: dict[Kind, tuple[str, ...]] = {  # the default first
    "probability": ("float32",),
    "uint8": ("uint8",),
    "labels": ("uint8", "uint16"),
    "logits": ("float32", "float16"),
}
_TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Values:
    """What is kept of the network's output at each pixel.

    Parameters
    ----------
    kind
        probability: P(class 1); uint8: 255 P(class 1), rounded; labels: the most probable class
        (of equals the lowest), or with a threshold 1 where P(class 1) is above it, else 0; logits:
        the scores of every class.
    dtype
        Empty for the kind's own: float32, uint8, uint8 (uint16 beyond 256 classes), float32.
    threshold
        For labels, in [0, 1).
    classes
        Of the network.
    """

    kind: Kind = "probability"
    dtype: str = ""
    threshold: float | None = None
    classes: int = 2

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind is {self.kind!r}: one of {', '.join(get_args(Kind))} is needed")
        if self.threshold is not None and self.kind != "labels":
            raise InputError(f"a threshold makes labels; the kind is {self.kind}")
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InputError(f"threshold {self.threshold} is not in [0, 1)")
        allowed = _DTYPES[self.kind]
        is_wide = self.kind == "labels" and self.threshold is None and self.classes > 256
        if not self.dtype:
            object.__setattr__(self, "dtype", "uint16" if is_wide else allowed[0])
        if self.dtype not in allowed:
            raise InputError(
                f"dtype is {self.dtype}: {self.kind} is stored as {' or '.join(allowed)}"
            )
        if is_wide and self.dtype == "uint8":
            raise InputError(f"dtype is uint8: {self.classes} classes need uint16")

    @property
    def finish(self) -> Callable[[Tensor], Tensor]:
        """What is averaged over the views: probabilities, or for logits the scores."""
        return unfinished if self.kind == "logits" else softmax

    @property
    def planes(self) -> int:
        """Values per pixel."""
        return self.classes if self.kind == "logits" else 1

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn averaged values (classes, h, w) into those to keep, (planes, h, w).

        Raises
        ------
        InputError
            A value is beyond the dtype.
        """
        if self.kind == "logits":
            with np.errstate(over="ignore"):
                kept = values.astype(self.dtype)
            if not np.isfinite(kept).all():
                raise InputError(f"a logit of {np.abs(values).max():.6g} is beyond {self.dtype}")
            return kept
        if self.kind == "labels" and self.threshold is None:
            return values.argmax(axis=0)[None].astype(self.dtype)
        interior = values[1:2]
        if self.kind == "labels":
            return (interior > self.threshold).astype(self.dtype)
        return np.rint(interior * 255).astype(np.uint8) if self.kind == "uint8" else interior


@dataclass(frozen=True)
class Destination:
    """Where the predicted slices go: one TIFF file, or a folder with one file for each image.

    Parameters
    ----------
    path
        As given by the user.
    names
        Of the slices' files in a folder; empty for one file.
    shape
        Slices, height, width.
    planes, dtype
        Values per pixel.
    calibration
        Axes and scale, carried over.
    compression
        ``zlib``, ``zstd``, ``lzw`` or ``none``; of PNG files its own.
    """

    path: Path
    names: tuple[str, ...]
    shape: tuple[int, int, int]
    planes: int
    dtype: str
    calibration: Calibration
    compression: Compression

    @property
    def page_shape(self) -> tuple[int, ...]:
        """Shape of the TIFF: (z, y, x), or (z, class, y, x)."""
        slices, height, width = self.shape
        return (slices, height, width) if self.planes == 1 else (slices, self.planes, height, width)

    @property
    def n_bytes(self) -> int:
        """Size of all values, uncompressed."""
        return int(np.prod(self.page_shape)) * np.dtype(self.dtype).itemsize

    def write(self, path: Path, bands: Band, *, info: str, workers: int) -> None:
        """Write everything to `path`, from bands that come when they are ready."""
        if not self.names:
            self._write_tiff(path, range(self.shape[0]), bands, info, workers)
            return
        path.mkdir(exist_ok=True)
        for z, name in enumerate(self.names):
            if name.lower().endswith(".png"):
                image = np.concatenate(list(bands(z, 0)))
                (path / name).write_bytes(imagecodecs.png_encode(image))
            else:
                self._write_tiff(path / name, range(z, z + 1), bands, info, workers)

    def _write_tiff(self, path: Path, slices: range, bands: Band, info: str, workers: int) -> None:
        axes = self.calibration.axes
        write_pages(
            path,
            (band for z in slices for plane in range(self.planes) for band in bands(z, plane)),
            shape=(len(slices), *self.page_shape[1:]),
            dtype=self.dtype,
            axes=axes if self.planes == 1 else f"{axes[0]}C{axes[1:]}",
            calibration=self.calibration,
            compression=self.compression,
            info=info,
            workers=workers,
        )


def names_in_folder(out: Path, source_names: list[str], values: Values) -> tuple[str, ...]:
    """Return the files to make of a folder's images, or nothing if `out` is one TIFF file.

    The names stay. PNG files stay PNG where they can hold the values, else they become TIFF.
    """
    if out.suffix.lower() in _TIFF_SUFFIXES:
        return ()
    is_png = values.planes == 1 and values.dtype in ("uint8", "uint16")
    names = []
    for name in source_names:
        stem, _, suffix = name.rpartition(".")
        keeps = f".{suffix.lower()}" in _TIFF_SUFFIXES or is_png
        names.append(name if keeps else f"{stem}.tif")
    return tuple(names)
