"""Where a predicted stack goes: pages of one TIFF file, a file for each image, or an OME-Zarr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.choices import Compression, Ngff
from unet_repro.errors import InputError
from unet_repro.files.atomic import check_folder
from unet_repro.files.block_array import Coding
from unet_repro.files.places import place_at
from unet_repro.images.ome_zarr import ImageFacts
from unet_repro.images.png_files import encode_png
from unet_repro.images.scale import Calibration
from unet_repro.images.tiff_axes import Axes, as_written
from unet_repro.images.tiff_writer import layout_of, write_pages
from unet_repro.images.zarr_output import Layout
from unet_repro.prediction.recorded import FULL_SCALE
from unet_repro.prediction.values import Values, id_dtype

Bands = Callable[[int, int], Iterator[NDArray[Any]]]  # slice, plane -> bands from top to bottom

_TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Destination:
    """Where the predicted slices go: one TIFF file, or a folder with one file for each image."""

    path: Path  # as given by the user
    names: tuple[str, ...]  # of the slices' files in a folder; empty for one file
    shape: tuple[int, int, int]  # slices, height, width
    depth_axes: Axes  # of all slices of the source
    planes: int  # values per pixel
    dtype: str  # of instances the widest that may be needed; see `holding`
    calibrations: tuple[Calibration, ...]  # carried over, one for each file
    compression: Compression  # of TIFF files

    @property
    def page_shape(self) -> tuple[int, ...]:
        """Shape of the TIFF: (z, y, x), or (z, class, y, x); z may be t and z."""
        return self._shape(self.shape[0])

    def _shape(self, slices: int) -> tuple[int, ...]:
        depths = tuple(length for _, length in as_written(self.depth_axes, slices))
        return (*depths, *((self.planes,) if self.planes > 1 else ()), *self.shape[1:])

    def _axes(self, slices: int) -> str:
        letters = "".join(axis for axis, _ in as_written(self.depth_axes, slices))
        return f"{letters}{'C' if self.planes > 1 else ''}YX"

    @property
    def n_bytes(self) -> int:
        """Size of all values, uncompressed."""
        return int(np.prod(self.page_shape)) * np.dtype(self.dtype).itemsize

    @property
    def layout(self) -> str:
        """What the pages are stored as, in words."""
        slices = 1 if self.names else self.shape[0]
        shape, axes = self._shape(slices), self._axes(slices)
        is_strips = layout_of(shape, self.dtype, self.compression, axes) == "strips"
        kind = "ImageJ TIFF in strips" if is_strips else "BigTIFF in tiles, OME metadata"
        if not self.names:
            return "PNG" if _is_png(self.path.name) else kind
        pngs = sum(map(_is_png, self.names))
        tiffs = len(self.names) - pngs
        files = [f"{pngs} PNG files"] * (pngs > 0) + [f"{tiffs} files: {kind}"] * (tiffs > 0)
        return ", ".join(files)

    def for_ids(self) -> Destination:
        """Return the same for instances, with the widest dtype that they may need."""
        height, width = self.shape[1:]
        most = (height * width + 1) // 2  # pixels that do not touch each other
        return replace(self, dtype=id_dtype(min(most, 65535) if self._holds_png else most))

    @property
    def _holds_png(self) -> bool:
        return any(map(_is_png, self.names or (self.path.name,)))

    def holding(self, dtype: str) -> Destination:
        """Return the same for values of another dtype, or say that a format cannot hold it."""
        if dtype == "uint32" and self._holds_png:
            raise InputError(
                f"{self.path.name}: a slice has more than 65535 instances, too many for PNG: "
                "--out with a name that ends in .tif, or a larger --min-size, is needed"
            )
        return replace(self, dtype=dtype)

    def check(self) -> None:
        """Refuse to replace a folder that holds anything else than what is written."""
        if self.names:
            check_folder(self.path, self.names)

    def write(self, path: Path, bands: Bands, *, info: str) -> None:
        """Write everything to `path`, from bands that come when they are ready."""
        if not self.names:
            self._write_file(path, range(self.shape[0]), bands, self.calibrations[0], info)
            return
        path.mkdir(exist_ok=True)
        for z, (name, calibration) in enumerate(zip(self.names, self.calibrations)):
            self._write_file(path / name, range(z, z + 1), bands, calibration, info)

    def _write_file(
        self, path: Path, slices: range, bands: Bands, calibration: Calibration, info: str
    ) -> None:
        if _is_png(path.name):
            image = np.concatenate(list(bands(slices.start, 0)))
            path.write_bytes(encode_png(image, calibration.pixels_per_metre, text=info))
            return
        write_pages(
            path,
            (band for z in slices for plane in range(self.planes) for band in bands(z, plane)),
            shape=self._shape(len(slices)),
            dtype=self.dtype,
            axes=self._axes(len(slices)),
            calibration=calibration,
            compression=self.compression,
            info=info,
        )


@dataclass(frozen=True)
class ZarrDestination:
    """Where the predicted slices go: an OME-Zarr image."""

    path: Path  # as given by the user, or a URL
    shape: tuple[int, int, int]  # slices, height, width
    depth_axes: Axes  # of all slices of the source
    planes: int  # values per pixel
    dtype: str  # as of `Destination`
    calibration: Calibration
    ngff: Ngff
    shard_px: int
    coding: Coding

    @property
    def n_bytes(self) -> int:
        """Size of all values of level 0, uncompressed."""
        return int(np.prod(self.shape)) * self.planes * np.dtype(self.dtype).itemsize

    @property
    def layout(self) -> str:
        """What the image is stored as, in words."""
        array = self.arrays().array(place_at(self.path))
        unit = " x ".join(map(str, array.unit))
        kind = "shards" if self.ngff == "0.5" else "units"
        return f"OME-Zarr {self.ngff}, {kind} of {unit}, {len(self.arrays().levels())} levels"

    def arrays(self, dtype: str | None = None, planes: int | None = None) -> Layout:
        """Return how the image lies in arrays; axes are in OME-Zarr's order: t, c, z, y, x."""
        planes = planes or self.planes
        lengths = dict(as_written(self.depth_axes, self.shape[0]))
        lengths |= {"C": planes} if planes > 1 else {}
        lengths |= {"Y": self.shape[1], "X": self.shape[2]}
        axes = "".join(axis for axis in "TCZYX" if axis in lengths)
        return Layout(
            axes,
            tuple(lengths[axis] for axis in axes),
            dtype or self.dtype,
            self.ngff,
            self.shard_px,
            self.coding,
        )

    def for_ids(self) -> ZarrDestination:
        """As `Destination.for_ids`."""
        height, width = self.shape[1:]
        return replace(self, dtype=id_dtype((height * width + 1) // 2))

    def holding(self, dtype: str) -> ZarrDestination:
        """As `Destination.holding`."""
        return replace(self, dtype=dtype)

    def check(self) -> None:
        """Do nothing: the store looks at what is there."""

    def facts(self, values: Values, origin_px: tuple[int, int, int]) -> ImageFacts:
        """Return what the image says of itself; `origin_px` is where it lies in the source."""
        are_labels = values.kind in ("labels", "mask", "instances")
        classes = range(values.classes)[values.of_classes]
        what = "logit" if values.kind == "logits" else "P"
        calibration = self.calibration
        z, y, x = origin_px
        if any(origin_px):
            along_x, along_y = calibration.resolution or (1.0, 1.0)
            shift = (z * (calibration.spacing or 1.0), y / along_y, x / along_x)
            before = calibration.origin or (0.0, 0.0, 0.0)
            origin = tuple(a + b for a, b in zip(before, shift))
            calibration = replace(calibration, origin=(origin[0], origin[1], origin[2]))
        return ImageFacts(
            name=values.kind,
            axes=self.arrays().axes,
            calibration=calibration,
            are_labels=are_labels,
            channels=tuple(f"{what}(class {k})" for k in classes),
            white=None if values.kind == "logits" else FULL_SCALE.get(values.kind),
        )


def _is_png(name: str) -> bool:
    return name.lower().endswith(".png")


def names_in_folder(out: Path, source_names: list[str], values: Values) -> tuple[str, ...]:
    """Return the files to make of a folder's images, or nothing if `out` is one TIFF file.

    The names stay but for their endings. TIFF files stay TIFF; PNG stays PNG where it can hold the
    values, and JPEG, which cannot, becomes PNG there; else they become TIFF. Two of one folder
    differ in more than the suffix, and so do the outputs.
    """
    if out.suffix.lower() in _TIFF_SUFFIXES:
        return ()
    fits_png = values.planes == 1 and values.dtype in ("uint8", "uint16", "auto")
    kept = (*_TIFF_SUFFIXES, ".png") if fits_png else _TIFF_SUFFIXES
    other = ".png" if fits_png else ".tif"
    return tuple(
        name if name.lower().endswith(kept) else f"{name.rpartition('.')[0]}{other}"
        for name in source_names
    )
