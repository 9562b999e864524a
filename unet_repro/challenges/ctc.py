"""Sequences of the Cell Tracking Challenge, the data behind the paper's Table 2, and results."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from unet_repro.errors import InputError
from unet_repro.images.image_files import image_files, read_image
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import write_stack

PathLike = str | os.PathLike[str]
Truth = Literal["gold", "silver"]

_MARKER_SHARE = 0.5  # of a marker's pixels must lie on a mask for its cell to count as annotated


@dataclass(frozen=True)
class CTCSequence:
    """One sequence: all images, and the instance masks of those frames that have them.

    Attributes
    ----------
    name : str
        The folder of the images, ``"01"`` or ``"02"``.
    images : ndarray, shape (t, y, x)
        All frames, grey values as stored.
    frames : tuple of int
        Which of the images have masks, ascending; n of them.
    labels : ndarray of int32, shape (n, y, x)
        Instance numbers of the annotated cells; 0 is everything else.
    is_known : ndarray of bool, shape (n, y, x)
        False where it is unknown whether a pixel is cell or background. Give such pixels weight 0.
    is_complete : tuple of bool
        Whether every cell of the frame is annotated, so that all its pixels are known; n values.
    digits : tuple of str
        The number of each image as its file's name has it, such as ``"007"``; t values.
    """

    name: str
    images: np.ndarray
    frames: tuple[int, ...]
    labels: np.ndarray
    is_known: np.ndarray
    is_complete: tuple[bool, ...]
    digits: tuple[str, ...]

    @property
    def annotated_images(self) -> np.ndarray:
        """The images that belong to `labels`: shape (n, y, x)."""
        return self.images[list(self.frames)]


def read_ctc_sequence(
    folder: PathLike,
    sequence: str,
    *,
    truth: Truth = "gold",
    unknown_radius_px: float | Literal["measured"] | None = None,
) -> CTCSequence:
    """Read ``t*.tif``, ``man_seg*.tif`` and ``man_track*.tif`` of one sequence.

    Parameters
    ----------
    folder : path-like
        A data set, with the images in ``01/``, masks in ``01_GT/SEG/`` or ``01_ST/SEG/``, one
        marker for each cell in ``01_GT/TRA/``; the same for ``02``.
    sequence : str
        ``"01"`` or ``"02"``.
    truth : "gold" or "silver"
        Gold: made by people, for some frames (``01_GT/SEG/``). Silver: for nearly every frame, made
        by the challenge from its best methods' results (``01_ST/SEG/``). Not in the paper: silver.
    unknown_radius_px : float or "measured", optional
        How far a cell without a mask may reach from its marker. By default as far as the image:
        in a frame that is only partly annotated, nothing but the masks is known. ``"measured"``:
        as far as any mask of this very sequence reaches from its marker (`largest_reach_px`).

    Raises
    ------
    InputError
        If a folder, an image or a mask is missing or damaged, or their sizes disagree; if a frame
        is a stack (a 3-D sequence).

    Notes
    -----
    Not in the paper: a frame counts as complete if at least half of each marker lies on some mask,
    and as incomplete without markers. In an incomplete frame all pixels outside the masks, but for
    `unknown_radius_px`, are unknown: markers do not tell how far a cell reaches. The farthest pixel
    of a mask lies 126 px (01) and 143 px (02) from its marker in DIC-HeLa, 99 px and 98 px in
    PhC-U373.
    """
    root = Path(folder)
    with StackReader(root / sequence) as reader:
        names = reader.names
        numbers = _by_number([root / sequence / name for name in names], "t")
        index_of = {number: index for index, number in enumerate(numbers)}
        images = reader.read()
    shape = images.shape[1:]
    markers = _numbered_files(root / f"{sequence}_GT" / "TRA", "man_track", optional=True)
    masks = _numbered_files(root / masks_folder(sequence, truth), "man_seg")
    index, labels, cell_markers, missing = [], [], [], []
    for number, mask_file in sorted(masks.items()):
        if number not in index_of:
            raise InputError(f"{mask_file}: there is no image t{number:03d} in {root / sequence}")
        label, marker = _read_instances(mask_file, shape), None
        if number in markers:
            marker = _read_instances(markers[number], shape)
        index.append(index_of[number])
        labels.append(label)
        cell_markers.append(marker)
        missing.append(None if marker is None else _markers_without_mask(marker, label))
    complete = [numbers is not None and not len(numbers) for numbers in missing]
    if unknown_radius_px == "measured":
        marked = [
            (label, marker) for label, marker in zip(labels, cell_markers) if marker is not None
        ]
        unknown_radius_px = None if all(complete) else largest_reach_px(marked)
    known = [
        _known_pixels(*frame, unknown_radius_px)
        for frame in zip(labels, cell_markers, missing, complete)
    ]
    return CTCSequence(
        name=sequence,
        images=images,
        frames=tuple(index),
        labels=np.stack(labels),
        is_known=np.stack(known),
        is_complete=tuple(complete),
        digits=tuple(re.sub(r"\D", "", Path(name).stem) for name in names),
    )


def masks_folder(sequence: str, truth: Truth) -> str:
    """Return where a data set keeps the masks of a sequence, such as ``01_GT/SEG``."""
    return f"{sequence}_{'GT' if truth == 'gold' else 'ST'}/SEG"


def largest_reach_px(frames: Sequence[tuple[np.ndarray, np.ndarray]]) -> float | None:
    """Return how far any mask reaches from a marker on it: px, rounded up; None without any."""
    reach = []
    for label, marker in frames:
        for number in np.unique(marker[marker > 0]):
            below = label[marker == number]
            masks, sizes = np.unique(below[below > 0], return_counts=True)
            if len(masks) and sizes.sum() >= _MARKER_SHARE * below.size:
                cell = label == masks[sizes.argmax()]
                to_marker = ndimage.distance_transform_edt(marker != number)
                reach.append(float(to_marker[cell].max()))
    return float(np.ceil(max(reach))) if reach else None


def write_ctc_result(folder: PathLike, digits: str, instances: np.ndarray) -> None:
    """Write one frame's instances as ``maskTTT.tif``, uint16, TTT being `digits`; replace a file.

    `InputError`: a number below 0 or above 65535; a file that cannot be written.
    """
    if instances.min() < 0 or instances.max() >= 1 << 16:
        raise InputError(
            f"frame {digits}: instance numbers {instances.min()} to {instances.max()} do not fit "
            "the challenge's uint16 (0 to 65535)"
        )
    write_stack(
        Path(folder) / f"mask{digits}.tif",
        instances.astype(np.uint16),
        compression="zlib",
        overwrite=True,
    )


def _numbered_files(folder: Path, prefix: str, *, optional: bool = False) -> dict[int, Path]:
    if not folder.is_dir():
        if optional:
            return {}
        raise InputError(f"{folder}: no such folder; the instance masks belong there")
    return _by_number(image_files(folder), prefix)


def _by_number(files: Sequence[Path], prefix: str) -> dict[int, Path]:
    """Return the files by the number of their frame, which no two may share."""
    found: dict[int, Path] = {}
    for file in files:
        number = _frame_number(file.name, prefix)
        if number in found:
            raise InputError(f"{file}: is of the same frame as {found[number].name}; keep one")
        found[number] = file
    return found


def _frame_number(name: str, prefix: str) -> int:
    match = re.fullmatch(rf"{prefix}([0-9]+)\.tiff?", name)
    if match is None:
        raise InputError(
            f"{name}: is not named {prefix}NNN.tif, as in a 2-D sequence of the Cell Tracking "
            "Challenge"
        )
    return int(match[1])


def _read_instances(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    instances = read_image(file, as_labels=True)
    if instances.dtype.kind not in "bui":
        raise InputError(f"{file}: instance numbers must be integers, not {instances.dtype}")
    if instances.shape != shape:
        raise InputError(
            f"{file}: is {instances.shape[0]} × {instances.shape[1]} but its image "
            f"{shape[0]} × {shape[1]}"
        )
    least, most = int(instances.min()), int(instances.max())
    if least < 0 or most >= 1 << 31:
        raise InputError(f"{file}: instance numbers {least} to {most} are not in 0 to 2^31 - 1")
    return instances.astype(np.int32)


def _markers_without_mask(marker: np.ndarray, label: np.ndarray) -> np.ndarray:
    numbers = np.unique(marker[marker > 0])
    share = ndimage.mean(label > 0, marker, numbers)
    return numbers[np.atleast_1d(share) < _MARKER_SHARE]


def _known_pixels(
    label: np.ndarray,
    marker: np.ndarray | None,
    missing: np.ndarray | None,
    is_complete: bool,
    radius_px: float | None,
) -> np.ndarray:
    if is_complete:
        return np.ones(label.shape, bool)
    if marker is None or missing is None or radius_px is None:
        return label > 0
    to_missing = ndimage.distance_transform_edt(~np.isin(marker, missing))
    return (label > 0) | (to_missing > radius_px)
