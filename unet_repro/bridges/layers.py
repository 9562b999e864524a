"""Prediction of what a viewer shows: an image layer, or a file; watched, and cancelled at will.

Nothing here knows a viewer: layers come as arrays with their axes, results go as (data, options,
type), the tuples that napari makes layers of. The work is that of `predict_stack`, on a TIFF that
the layer's pixels are written to.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.challenges.phantom import VOXEL_SIZE_UM, em_phantom
from unet_repro.choices import Kind
from unet_repro.errors import InputError, InputNote
from unet_repro.files.atomic import check_apart
from unet_repro.files.file_access import read_bytes
from unet_repro.images.calibration import read_calibration
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import Axes, as_written, check_axes, describe_size
from unet_repro.images.tiff_writer import write_pages
from unet_repro.images.units import length_ratio, plain_unit
from unet_repro.network.bundled import model_path
from unet_repro.network.device import choose_device
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model
from unet_repro.prediction.folder_prediction import FolderPrediction
from unet_repro.prediction.predict_stack import prepared
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.progress import ProgressBar

LayerData = tuple[Any, dict[str, Any], str]  # pixels, options, "image" or "labels"

IN_MEMORY_BYTES = 2**30  # larger results stay in their file and are read slice by slice
_ORDER = ("YX", "ZYX", "TZYX")  # the likely axes of a grey layer of 2, 3, 4 dimensions
_KEPT_DTYPES = ("uint8", "uint16", "float32")  # others become float32, as the network takes them
LABEL_KINDS: tuple[Kind, ...] = ("labels", "mask", "instances")
_BRIGHTEST: dict[Kind, float] = {"probability": 1.0, "uint8": 255.0}
_FOLDER = ".unet_repro-layer-"  # of the pixels of a layer, while they are predicted
_DATE_NS = 10**18  # of every file of pixels: its name says what it holds


class Cancelled(Exception):
    """The job was cancelled; what was done stays, and the same job goes on from there."""


class Watch(ProgressBar):
    """How far a job is, for another thread to look at, which may also cancel it."""

    def __init__(self) -> None:
        super().__init__(None, unit="tile", is_shown=False)
        self.done, self.total = 0, 0
        self.is_cancelled = False

    def cancel(self) -> None:
        """End the job when the tile that it is at is done."""
        self.is_cancelled = True

    def update(self, n: int = 1) -> None:
        """Count tiles; `Cancelled` as in `check`."""
        self.done += n
        self.check()

    def check(self) -> None:
        """Raise `Cancelled` if that is wished."""
        if self.is_cancelled:
            raise Cancelled


@dataclass(frozen=True)
class ImageLayer:
    """An image layer of a viewer.

    Parameters
    ----------
    name
        Of the layer.
    data : array-like
        Its pixels; anything with ``shape`` and ``dtype`` of which a plane can be taken.
    axes
        A letter for each axis of `data`: the plane Y, X is last, or Y, X, S where colours are;
        before it T and Z, whose planes are segmented one by one, and C for channels.
    placement
        Scale, translate, units and axis labels: a value for each axis but S. Rotate, shear and
        affine as they are; None for none.
    """

    name: str
    data: Any
    axes: str
    placement: Mapping[str, Any] = field(default_factory=dict)

    def check(self, channels: int) -> None:
        """Raise `InputError` unless a network of so many input channels takes the layer."""
        shape, dtype = tuple(self.data.shape), np.dtype(self.data.dtype)
        try:
            check_axes(self.axes)
        except InputError as error:
            raise InputError(f"layer {self.name}: {error}") from None
        if len(self.axes) != len(shape):
            raise InputError(
                f"layer {self.name}: has {len(shape)} dimensions ({describe_size(shape)}); axes "
                f"{self.axes} are {len(self.axes)}"
            )
        if not self.axes.removesuffix("S").endswith("YX"):
            raise InputError(
                f"layer {self.name}: axes {self.axes}: the planes that are segmented must be the "
                "last two dimensions, Y and X; transpose the layer"
            )
        if dtype.kind not in "biuf" or 0 in shape:
            raise InputError(
                f"layer {self.name}: is {describe_size(shape)} {dtype}; pixels that are integers "
                "or floats are needed"
            )
        if {"C", "S"} <= set(self.axes):
            raise InputError(f"layer {self.name}: axes {self.axes}: either C or S is possible")
        if self.channels != channels:
            colour = "is in colour (RGB)" if "S" in self.axes else f"has axes {self.axes}"
            needed = f"a grey layer, or an axis C of {channels}, is needed"
            if channels == 1:
                needed = "a grey layer is needed (Convert to grey, or split its channels)"
            raise InputError(
                f"layer {self.name}: {colour}, {self.channels} channels; the model takes "
                f"{channels}: {needed}"
            )
        if len(self.kept) < len(self.axes.removesuffix("S")):
            for name in ("rotate", "shear", "affine"):
                if self.placement.get(name) is not None:
                    raise InputError(
                        f"layer {self.name}: {name} is of {len(self.axes)} dimensions and the "
                        "result has one less; split the channels into layers, or reset it"
                    )

    @property
    def channels(self) -> int:
        """How many it has along C or S."""
        return prod(n for axis, n in zip(self.axes, self.data.shape) if axis in "CS")

    @property
    def kept(self) -> list[int]:
        """The numbers of the axes that the result has as well: all but channels."""
        return [i for i, axis in enumerate(self.axes) if axis not in "CS"]

    @property
    def depth(self) -> Axes:
        """The axes whose planes are segmented one by one, and their lengths."""
        return tuple((a, n) for a, n in zip(self.axes, self.data.shape) if a in "TZ")

    @property
    def kept_placement(self) -> dict[str, Any]:
        """The placement of the result."""
        placed: dict[str, Any] = {}
        for name, values in self.placement.items():
            if name in ("rotate", "shear", "affine"):
                placed |= {} if values is None else {name: values}
            else:
                placed[name] = tuple(values[i] for i in self.kept)
        return placed

    def planes(self) -> Iterator[NDArray[Any]]:
        """Yield the planes (y, x), those of a slice's channels one after the other."""
        leading = [(axis, n) for axis, n in zip(self.axes, self.data.shape) if axis in "TZC"]
        for index in np.ndindex(*(n for axis, n in leading if axis != "C")):
            numbers = iter(index)
            place = [next(numbers) if axis != "C" else slice(None) for axis, _ in leading]
            values = np.asarray(self.data[tuple(place)])  # (y, x), (c, y, x) or (y, x, s)
            if "S" in self.axes:
                values = np.moveaxis(values, -1, 0)
            yield from values.reshape(self.channels, *values.shape[-2:])

    def named(self, text: str) -> str:
        """Return a message with the layer in place of the file that its pixels are written to."""
        file = rf"\S*{re.escape(_FOLDER)}\w*[\\/]\w+\.tif"
        return re.sub(file, lambda _: f"layer {self.name}", text)

    def write(self, folder: Path, watch: Watch) -> Path:
        """Write the pixels to a TIFF in a folder, one plane in memory; the name is their hash.

        The same pixels make the same file, time included, so that a job goes on with them.
        """
        dtype = np.dtype(self.data.dtype)
        stored = dtype if dtype.name in _KEPT_DTYPES else np.dtype(np.float32)
        height, width = (self.data.shape[self.axes.index(axis)] for axis in "YX")
        letters = "".join(axis for axis, _ in self.depth) or "Z"
        shape = tuple(n for _, n in self.depth) or (1,)
        if self.channels > 1:
            letters, shape = f"{letters}C", (*shape, self.channels)
        shape = (*shape, height, width)
        digest = hashlib.sha256(f"{letters} {shape} {stored.str}".encode())

        def bands() -> Iterator[NDArray[Any]]:
            for plane in self.planes():
                watch.check()
                with np.errstate(over="ignore"):  # an infinite pixel is refused as such
                    pixels = np.ascontiguousarray(plane, stored)
                digest.update(pixels.data)
                yield pixels

        written = folder / "pixels.tif"
        try:
            write_pages(
                written, bands(), shape=shape, dtype=stored, axes=f"{letters}YX", compression="none"
            )
            os.utime(written, ns=(_DATE_NS, _DATE_NS))
            return written.rename(folder / f"{digest.hexdigest()[:16]}.tif")
        except OSError as error:
            raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def suggested_axes(dimensions: int, *, is_rgb: bool = False) -> str:
    """Return the likely axes of a layer, empty where they cannot be told.

    Examples
    --------
    >>> suggested_axes(3), suggested_axes(2, is_rgb=True), suggested_axes(5)
    ('ZYX', 'YXS', '')
    """
    if not 2 <= dimensions <= len(_ORDER) + 1:
        return ""
    return _ORDER[dimensions - 2] + "S" * is_rgb


@dataclass(frozen=True)
class LayerJob:
    """What is to be predicted, and where to.

    Parameters
    ----------
    source : ImageLayer or Path
        A layer; or a TIFF, PNG or JPEG file, which may be larger than memory.
    model : str
        A model file, or the name of a network that comes with the package.
    settings : PredictionSettings
    out : Path, optional
        TIFF to write. A layer's result needs none: it is then kept for the time of the process.
    device, resume, overwrite
        As of ``unet-repro predict``; without `out` the job always goes on where it was.
    """

    source: ImageLayer | Path
    model: str
    settings: PredictionSettings
    out: Path | None = None
    device: str = "auto"
    resume: bool = True
    overwrite: bool = False

    def run(self, watch: Watch) -> list[LayerData]:
        """Predict; return the layers to show: one, or of several values a pixel one of each.

        Raises
        ------
        InputError
            Whatever cannot be used, as of `predict_stack`; layers are named.
        Cancelled
            `watch` was cancelled; to run the same job again goes on.
        """
        if not self.model:
            raise InputError("no model is chosen: a model.safetensors that train has written")
        network = load_model(self.model, device=choose_device(self.device))
        if isinstance(self.source, ImageLayer):
            return self._run_layer(self.source, network, watch)
        if self.source.is_dir() and self.source.suffix.lower() != ".zarr":
            raise InputError(f"{self.source}: is a folder; predict on the command line takes it")
        if self.out is None:
            raise InputError(f"{self.source}: where the result goes is needed, a file .tif")
        made = self._predict(self.source, network, self.out, watch, self.resume, self.overwrite)
        return _results(made, self.source.stem, self.settings.kind)

    def _run_layer(self, layer: ImageLayer, network: UNet, watch: Watch) -> list[LayerData]:
        layer.check(network.config.in_channels)
        settings = replace(self.settings, axes="")  # the file that is written says them itself
        beside = self.out.parent if self.out else session_folder()
        try:
            beside.mkdir(parents=True, exist_ok=True)
            folder = TemporaryDirectory(prefix=_FOLDER, dir=beside)
        except OSError as error:
            raise InputError(f"{beside}: cannot be written: {error.strerror}") from error
        with folder as name:
            source = layer.write(Path(name), watch)
            out, resume, overwrite = self.out, self.resume, self.overwrite
            if out is None:
                weights = hashlib.sha256(read_bytes(model_path(self.model))).hexdigest()
                what = f"{source.stem} {weights} {settings} {self.device}"
                digest = hashlib.sha256(what.encode("utf-8", "surrogateescape"))
                out, resume = session_folder() / f"{digest.hexdigest()[:16]}.tif", True
            job = replace(self, settings=settings)
            try:
                made = job._predict(source, network, out, watch, resume, overwrite)
            except InputError as error:
                raise InputError(layer.named(str(error))) from error
        made = replace(made, depth=layer.depth, placement=layer.kept_placement)
        return _results(made, layer.name, settings.kind)

    def _predict(
        self, source: Path, network: UNet, out: Path, watch: Watch, resume: bool, overwrite: bool
    ) -> _Made:
        check_apart(out, source)
        with prepared(source, network, out, self.settings, resume=resume) as prediction:
            assert not isinstance(prediction, FolderPrediction)
            watch.total = len(prediction.job)
            prediction.run(resume=resume, overwrite=overwrite, bar=watch)
            destination = prediction.destination
        depth = as_written(destination.depth_axes, destination.shape[0])
        depth = depth if destination.shape[0] > 1 else ()
        return _Made(out, destination.planes, depth, file_placement(out, depth))


@dataclass(frozen=True)
class _Made:
    """A predicted file, and what its values are in a viewer."""

    path: Path
    planes: int  # values of a pixel
    depth: Axes  # before Y and X
    placement: dict[str, Any]


@functools.cache
def _session() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="unet_repro-")


def session_folder() -> Path:
    """Return the folder of results that were given no place; it goes when the process ends."""
    return Path(_session().name)


def file_placement(path: Path, depth: Axes) -> dict[str, Any]:
    """Return scale and units of a stack with these axes before Y and X, as its file states them."""
    calibration = read_calibration(path)
    if calibration.resolution is None:
        return {}
    x, y = (1 / number for number in calibration.resolution)
    unit = plain_unit(calibration.plane_unit or "")
    length = unit if length_ratio(unit, "m") else "pixel"
    scales = {"T": calibration.interval, "Z": calibration.spacing}
    units = {"T": "s" if calibration.interval else "pixel"}
    letters = [letter for letter, _ in depth]
    return {
        "scale": (*(scales[letter] or 1.0 for letter in letters), y, x),
        "units": (*(units.get(letter, length) for letter in letters), length, length),
    }


def _results(made: _Made, name: str, kind: Kind) -> list[LayerData]:
    """Return a predicted file as layers, one for each of its planes."""
    with warnings.catch_warnings():  # how it is read has been said of the source
        warnings.simplefilter("ignore", InputNote)
        reader = StackReader(made.path, channels=made.planes if made.planes > 1 else None)
    shape = (*(n for _, n in made.depth), *reader.shape[1:])
    if prod(shape) * made.planes * reader.dtype.itemsize <= IN_MEMORY_BYTES:
        with reader:
            stack = reader.read().reshape(reader.shape[0], made.planes, *reader.shape[1:])
        planes = [stack[:, k] for k in range(made.planes)]
    else:
        planes = _read_later(reader, made.planes)
    options = dict(made.placement)
    if kind in _BRIGHTEST:
        options["contrast_limits"] = (0.0, _BRIGHTEST[kind])
    layer_type = "labels" if kind in LABEL_KINDS else "image"
    of_class = [f" of class {k}" if made.planes > 1 else "" for k in range(made.planes)]
    return [
        (plane.reshape(shape), {"name": f"{name} {kind}{which}", **options}, layer_type)
        for plane, which in zip(planes, of_class)
    ]


def _read_later(reader: StackReader, planes: int) -> list[Any]:
    """Return the values of each pixel, (z, y, x) each, read slice by slice when they are shown."""
    import dask.array  # napari's; takes a second

    def read(z: int, plane: int) -> NDArray[Any]:
        return reader.read_region(z, slice(None), slice(None))[plane]

    weakref.finalize(read, reader.close)  # when no layer is left that may read
    page = {"shape": reader.shape[1:], "dtype": reader.dtype}
    return [
        dask.array.stack(
            [
                dask.array.from_delayed(dask.delayed(read)(z, plane), **page)
                for z in range(reader.shape[0])
            ]
        )
        for plane in range(planes)
    ]


def phantom() -> list[LayerData]:
    """Return a synthetic stack of electron microscopy and its cells, in the scale of real ones."""
    images, labels = em_phantom(slices=6, height=320, width=320)
    placement = {"scale": VOXEL_SIZE_UM, "units": ("um",) * 3, "axis_labels": ("z", "y", "x")}
    return [
        (images, {"name": "EM phantom", **placement}, "image"),
        (labels, {"name": "EM phantom cells", "visible": False, **placement}, "labels"),
    ]
