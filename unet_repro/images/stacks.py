"""Whole stacks of images: read, checked and written; TIFF files and folders of images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unet_repro.errors import ChannelsError, InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.images.arrays import is_folder_of_images
from unet_repro.images.image_files import image_files
from unet_repro.images.labels import as_integers
from unet_repro.images.readers import readers
from unet_repro.images.slices import Slices
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_axes import describe_size

PathLike = str | os.PathLike[str]

_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # classic offsets are 32 bits; 32 MiB are left for the tags
_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


def read_stack(
    path: PathLike,
    *,
    as_labels: bool = False,
    axes: str | None = None,
    files: Sequence[Path] | None = None,
) -> Slices:
    """Read a grey TIFF stack, one image, or a folder's images (2 before 10), into memory.

    Returns (z, y, x) in the stored dtype and native byte order; a single image is a stack of one
    slice. `as_labels`, `axes` and `files`: as of `StackReader`. Where a folder's images have
    several sizes, the result is a list of images (y, x); labels of several unsigned types come in
    the widest. `InputError`: as `StackReader`; images of several dtypes.
    """
    return _read(path, axes, files, lambda reader, stack: stack, is_labels=as_labels)


def read_images(
    path: PathLike,
    *,
    channels: int | None = None,
    axes: str | None = None,
    files: Sequence[Path] | None = None,
) -> Slices:
    """Read a stack to be segmented, as `read_stack`; `InputError` also for a pixel not finite.

    Of several `channels` it is (z, c, y, x), or a list of images (c, y, x). Where a number is
    given, 1 included, an error for other channels names the option.
    """

    def checked(reader: StackReader, stack: np.ndarray) -> np.ndarray:
        if stack.dtype.kind == "f":
            for z, image in enumerate(stack):
                _check_finite(image, where=f"{reader.path}: {reader.names[z]}")
        return stack

    try:
        return _read(path, axes, files, checked, channels=channels)
    except ChannelsError as error:
        if channels is None:
            raise
        raise InputError(
            f"{error}; --in-channels, here {channels}, must be their number"
        ) from error


def read_labels(
    path: PathLike,
    *,
    ignore_label: int | None = None,
    axes: str | None = None,
    files: Sequence[Path] | None = None,
) -> Slices:
    """Read labels (z, y, x) as stored; what their values mean is for `images.labels` to say.

    Colour tables give the indices; 1-bit masks become uint8 of 0 and 1, whole
    floating-point numbers int64, other integers stay. Sizes and `files` as in `read_stack`.
    `InputError`: as there; no whole numbers; a value below 0 that is not `ignore_label`.
    """

    def checked(reader: StackReader, stack: np.ndarray) -> np.ndarray:
        stack = as_integers(stack, f"{reader.path}: the labels")
        is_wrong = stack < 0
        if ignore_label is not None:
            is_wrong &= stack != ignore_label
        if is_wrong.any():
            z, y, x = np.unravel_index(int(np.argmax(is_wrong)), stack.shape)
            raise InputError(
                f"{reader.path}: {reader.names[z]} holds the label {stack[z, y, x]} at "
                f"y = {y}, x = {x}; labels are 0 for background and positive for cells; "
                "--ignore-label names the value of unknown pixels"
            )
        return stack.astype(np.uint8) if stack.dtype.kind == "b" else stack

    return _read(path, axes, files, checked, is_labels=True)


def _read(
    path: PathLike,
    axes: str | None,
    files: Sequence[Path] | None,
    checked: Callable[[StackReader, np.ndarray], np.ndarray],
    *,
    is_labels: bool = False,
    channels: int | None = None,
) -> Slices:
    """Read what is of one size as an array, several sizes as a list of images."""
    opened = readers(path, as_labels=is_labels, channels=channels, axes=axes, files=files)
    parts = [checked(reader, reader.read()) for reader in opened]
    if len(parts) == 1:
        return parts[0]
    widest = np.result_type(*{part.dtype for part in parts})
    return [image.astype(widest, copy=False) for part in parts for image in part]


def check_pair(images: Slices, labels: Slices, *, names: Sequence[str] | None = None) -> None:
    """Raise `InputError` if images and labels differ in shape, or there is one class only.

    Of several sizes, the first image that does not fit its labels is named as in `names`.
    """
    if isinstance(images, np.ndarray) and isinstance(labels, np.ndarray):
        shape = (len(images), *images.shape[-2:])
        if shape != labels.shape:
            raise InputError(
                f"the images are {describe_size(shape)} but the labels "
                f"{describe_size(labels.shape)} (z × y × x)"
            )
    elif len(images) != len(labels):
        raise InputError(f"there are {len(images)} images but {len(labels)} labels")
    for z, (image, label) in enumerate(zip(images, labels)):
        if image.shape[-2:] != label.shape:
            name = names[z] if names else f"image {z}"
            raise InputError(
                f"{name} is {describe_size(image.shape[-2:])} but its labels are "
                f"{describe_size(label.shape)}"
            )
    first = labels[0].flat[0]
    if all((label == first).all() for label in labels):
        raise InputError(f"all labels are {first}: with one class only there is nothing to learn")


def check_order(*stacks: tuple[PathLike, dict[str, Any]]) -> None:
    """Raise `InputError` if stacks are read whose times and slices differ in number or order.

    Each with its options of `StackReader`. Slices of one axis fit any.
    """
    found: list[tuple[PathLike, str]] = []
    for path, options in stacks:
        if is_folder_of_images(path):
            continue
        with StackReader(path, **options) as reader:
            if len(reader.depth_axes) > 1:
                names, lengths = zip(*reader.depth_axes)
                found.append((path, f"{' x '.join(names)} = {' x '.join(map(str, lengths))}"))
    for path, order in found[1:]:
        if order != found[0][1]:
            raise InputError(
                f"the slices of {found[0][0]} are {found[0][1]}, those of {path} {order}: both "
                "must be in one order"
            )


def read_pair(
    images: PathLike,
    labels: PathLike,
    *,
    channels: int | None = None,
    ignore_label: int | None = None,
    axes: str | None = None,
    mask_suffix: str = "",
) -> tuple[Slices, Slices]:
    """Read images and labels (`read_images`, `read_labels`) that fit each other (`check_pair`).

    Two folders are paired by name (`paired_files`). `channels` are the images'; of `axes` those of
    channels are theirs alone.
    """
    image_files_, label_files = paired_files(images, labels, mask_suffix=mask_suffix)
    of_labels = axes
    if axes and (channels or 1) > 1:
        of_labels = axes.replace("C", "").replace("S", "")
    read = read_labels(labels, ignore_label=ignore_label, axes=of_labels, files=label_files)
    pair = read_images(images, channels=channels, axes=axes, files=image_files_), read
    check_order(
        (images, {"channels": channels, "axes": axes}),
        (labels, {"as_labels": True, "axes": of_labels}),
    )
    names = [file.name for file in image_files_] if image_files_ else None
    check_pair(*pair, names=names)
    return pair


def paired_files(
    images: PathLike, labels: PathLike, *, mask_suffix: str = ""
) -> tuple[list[Path] | None, list[Path] | None]:
    """Pair the files of two folders by their stems: ``image/7.png`` and ``label/7.tif``.

    Parameters
    ----------
    images, labels
        Folders, or one folder of both, told apart by the suffix; anything else has no names to
        pair, and the result is (None, None).
    mask_suffix : str
        What the stem of a label file has in addition: ``"_mask"`` pairs ``7.png`` with
        ``7_mask.png``.

    Returns
    -------
    list of Path, list of Path
        Images in natural order, and their labels.

    Raises
    ------
    InputError
        A file without a partner; a suffix, but not two folders.
    """
    if not (is_folder_of_images(images) and is_folder_of_images(labels)):
        if mask_suffix:
            raise InputError(
                f"--mask-suffix {mask_suffix} pairs the files of two folders; {images} and "
                f"{labels} are not both folders"
            )
        return None, None
    of_images, of_labels = image_files(images), image_files(labels)
    if mask_suffix and os.path.samefile(images, labels):
        of_images = [file for file in of_images if not file.stem.endswith(mask_suffix)]
        of_labels = [file for file in of_labels if file.stem.endswith(mask_suffix)]
    plain = [file for file in of_labels if not file.stem.endswith(mask_suffix)]
    if plain:
        raise InputError(f"{plain[0]}: its name does not end in {mask_suffix} (--mask-suffix)")
    partners = {file.stem.removesuffix(mask_suffix): file for file in of_labels}
    stems = {file.stem for file in of_images}
    for names, others, folder in (
        (list(stems), partners, labels),
        (list(partners), stems, images),
    ):
        alone = [name for name in names if name not in others]
        if alone or not names:
            raise InputError(
                f"{folder}: has no partner for {min(alone, default='any file')} ({len(alone)} of "
                f"{len(names)} lack one); pairs need the same file names, or --mask-suffix"
            )
    return of_images, [partners[file.stem] for file in of_images]


def slice_names(images: PathLike, labels: PathLike, *, mask_suffix: str = "") -> tuple[str, ...]:
    """Return the files of a folder's images as `read_pair` takes them; of a stack nothing."""
    files, _ = paired_files(images, labels, mask_suffix=mask_suffix)
    if files is None:
        files = image_files(images) if is_folder_of_images(images) else []
    return tuple(file.name for file in files)


def write_stack(
    path: PathLike,
    array: np.ndarray,
    *,
    overwrite: bool = False,
    compression: str | None = None,
    voxel_size_um: tuple[float, float, float] | None = None,
    info: str = "",
) -> None:
    """Write a stack as a TIFF that is either complete or absent, in folders made for it.

    uint8, uint16 and float32 below 4 GiB are written as ImageJ stacks; everything else as plain
    TIFF, BigTIFF from 4 GiB on. The axes are recorded as ZYX, or ZCYX, in either case.

    Parameters
    ----------
    array : ndarray of uint8, uint16, float32, uint32 or int32
        The pixels, (z, y, x), (z, c, y, x) or (y, x), stored as they are.
    compression : str, optional
        A lossless scheme of tifffile: ``"zlib"``, ``"lzw"``, ``"zstd"``.
    voxel_size_um : tuple of float, optional
        (z, y, x) in micrometres.
    info : str
        A text to record, such as JSON, which `images.calibration.read_info` gives.

    Raises
    ------
    InputError
        If the array has another dtype, another number of axes or no pixels; if the file exists
        and `overwrite` is false; if it cannot be written.
    """
    if array.dtype.name not in (*_IMAGEJ_DTYPES, "uint32", "int32"):
        raise InputError(f"{path}: cannot store {array.dtype} in a TIFF stack; convert it first")
    if array.ndim not in (2, 3, 4) or array.size == 0:
        raise InputError(f"{path}: an array of shape {array.shape} is not a stack (z, y, x)")
    stack = array[np.newaxis] if array.ndim == 2 else array
    if array.shape[-1] == 1 and array.shape[-2] > 1:  # tifffile would write the rows as columns
        raise InputError(f"{path}: pages 1 px wide cannot be stored here; transpose them")
    is_classic = stack.nbytes < _CLASSIC_TIFF_BYTES
    metadata: dict[str, Any] = {"axes": "ZYX" if stack.ndim == 3 else "ZCYX"}
    if info:
        metadata["Info"] = info
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
        *c, y, x = np.unravel_index(int(np.argmin(is_finite)), image.shape)
        raise InputError(f"{where} has the value {image[(*c, y, x)]} at y = {y}, x = {x}")
