"""Whole stacks of grey images: read, checked and written; TIFF files and folders of images."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.image_files import image_files
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import describe_size

PathLike = str | os.PathLike[str]

_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # classic offsets are 32 bits; 32 MiB are left for the tags
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


def read_stack(path: PathLike, *, axes: str | None = None) -> np.ndarray:
    """Read a grey TIFF stack, or a folder's TIFF and PNG images (2 before 10), into memory.

    Returns (z, y, x) in the stored dtype and native byte order; a single image is a stack of one
    slice. `axes`: as of `StackReader`. `InputError`: as there.
    """
    with StackReader(path, axes=axes) as reader:
        return reader.read()


def read_images(path: PathLike, *, axes: str | None = None) -> np.ndarray:
    """Read a stack to be segmented, as `read_stack`; `InputError` also for a pixel not finite."""
    with StackReader(path, axes=axes) as reader:
        stack = reader.read()
        if stack.dtype.kind == "f":
            for z, image in enumerate(stack):
                _check_finite(image, where=f"{reader.path}: {reader.names[z]}")
    return stack


def read_labels(path: PathLike, *, axes: str | None = None) -> np.ndarray:
    """Read labels (z, y, x): instance numbers, or a mask of 0 and 255 (or 0 and 1); 0: background.

    TIFF pages with a colour table give their indices; 1-bit masks become uint8 of 0 and 1, other
    integers stay as stored. `InputError`: as `StackReader`; floating-point or negative labels.
    """
    with StackReader(path, as_labels=True, axes=axes) as reader:
        if reader.dtype.kind == "f":
            raise InputError(f"{reader.path}: labels must be integers, not {reader.dtype}")
        stack = reader.read()
        if stack.dtype.kind == "i" and stack.min() < 0:
            z, y, x = np.unravel_index(int(np.argmax(stack < 0)), stack.shape)
            raise InputError(
                f"{reader.path}: {reader.names[z]} holds the label {stack[z, y, x]} at "
                f"y = {y}, x = {x}; labels are 0 for background and positive for cells"
            )
    return stack.astype(np.uint8) if stack.dtype.kind == "b" else stack


def check_pair(images: np.ndarray, labels: np.ndarray) -> None:
    """Raise `InputError` if images and labels differ in shape, or there is one class only."""
    if images.shape != labels.shape:
        raise InputError(
            f"the images are {describe_size(images.shape)} but the labels "
            f"{describe_size(labels.shape)} (z × y × x)"
        )
    first = labels.flat[0]
    if (labels == first).all():
        raise InputError(f"all labels are {first}: with one class only there is nothing to learn")


def read_pair(
    images: PathLike, labels: PathLike, *, axes: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels (`read_images`, `read_labels`) that fit each other (`check_pair`).

    Where both are folders, each image needs the label file of the same stem (``image/7.png``,
    ``label/7.tif``), and the other way round; a file without a partner is an `InputError`.
    """
    if Path(images).is_dir() and Path(labels).is_dir():
        image_stems = [file.stem for file in image_files(images)]
        label_stems = [file.stem for file in image_files(labels)]
        for stems, others, folder in (
            (image_stems, set(label_stems), labels),
            (label_stems, set(image_stems), images),
        ):
            alone = [stem for stem in stems if stem not in others]
            if alone:
                raise InputError(
                    f"{folder}: has no partner for {alone[0]} ({len(alone)} of {len(stems)} lack "
                    "one); images and labels need the same file names"
                )
    pair = read_images(images, axes=axes), read_labels(labels, axes=axes)
    check_pair(*pair)
    return pair


def write_stack(
    path: PathLike,
    array: np.ndarray,
    *,
    overwrite: bool = False,
    compression: str | None = None,
    voxel_size_um: tuple[float, float, float] | None = None,
) -> None:
    """Write a grey stack as a TIFF that is either complete or absent, in folders made for it.

    uint8, uint16 and float32 below 4 GiB are written as ImageJ stacks; everything else as plain
    TIFF, BigTIFF from 4 GiB on. The axes are recorded as ZYX in either case.

    Parameters
    ----------
    array : ndarray of uint8, uint16, float32, uint32 or int32, shape (z, y, x) or (y, x)
        The pixels, stored as they are.
    compression : str, optional
        A lossless scheme of tifffile: ``"zlib"``, ``"lzw"``, ``"zstd"``.
    voxel_size_um : tuple of float, optional
        (z, y, x) in micrometres.

    Raises
    ------
    InputError
        If the array has another dtype, another number of axes or no pixels; if the file exists
        and `overwrite` is false; if it cannot be written.
    """
    if array.dtype.name not in (*_IMAGEJ_DTYPES, "uint32", "int32"):
        raise InputError(f"{path}: cannot store {array.dtype} in a TIFF stack; convert it first")
    if array.ndim not in (2, 3) or array.size == 0:
        raise InputError(f"{path}: an array of shape {array.shape} is not a stack (z, y, x)")
    stack = array[np.newaxis] if array.ndim == 2 else array
    if array.shape[-1] == 1 and array.shape[-2] > 1:  # tifffile would write the rows as columns
        raise InputError(f"{path}: pages 1 px wide cannot be stored here; transpose them")
    is_classic = stack.nbytes < _CLASSIC_TIFF_BYTES
    metadata: dict[str, Any] = {"axes": "ZYX"}
    resolution = None
    if voxel_size_um is not None:
        z, y, x = voxel_size_um
        metadata |= {"spacing": z, "unit": "um"}
        resolution = 1 / x, 1 / y
    with atomic_path(path, overwrite=overwrite) as temporary:
        tifffile.imwrite(
            temporary,
            stack,
            imagej=is_classic and stack.dtype.name in _IMAGEJ_DTYPES,
            bigtiff=not is_classic,
            photometric="minisblack",
            compression=compression,
            resolution=resolution,
            resolutionunit=1,  # none: the unit is in the metadata
            metadata=metadata,
        )


def _check_finite(image: np.ndarray, *, where: str) -> None:
    is_finite = np.isfinite(image)
    if not is_finite.all():
        y, x = np.unravel_index(int(np.argmin(is_finite)), image.shape)
        raise InputError(f"{where} has the value {image[y, x]} at y = {y}, x = {x}")
