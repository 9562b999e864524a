"""What the values of labels mean: a mask, instance ids or classes. It is decided here alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from unet_repro.choices import LabelKind
from unet_repro.errors import InputError, note
from unet_repro.files.file_access import parse_json
from unet_repro.images.label_facts import SliceFacts, holds, merged, slice_facts
from unet_repro.images.label_settings import AUTO, LabelSettings
from unet_repro.images.slices import Slices

UNKNOWN_CELL = -1  # in what `Reading.cells` returns
# What programs write for "cell" in a mask; a stack whose slices hold one of them each is a mask.
_FULL_SCALES = {1, 127, 128, 255, 32767, 32768, 65535}
_PIECES_OF_CLASSES = 3  # so many of an id, and more, are told
# of what speaks for a spoiled mask or a grey image
_FEWEST_STRAYS, _FEWEST_PAIRS, _FEWEST_GREYS = 32, 64, 16
_PIECES_OF_SPOILED, _MOST_PIECES = 3, 8  # of each value in a slice


@dataclass(frozen=True)
class Reading:
    """How the labels of a stack were read, and what that makes of a slice.

    Attributes
    ----------
    kind : "mask", "ids" or "classes"
    threshold : int
        Of a mask: cells are the values above it; 0, unless the mask has several values above 0.
    ignore_label : int or None
    n_classes : int
        2, or for classes the highest and one.
    slices, pixels, unknown, foreground : int
        Numbers of slices, of all pixels, of unknown ones, and of known ones that are cell.
    n_cells : int
        Cells in all slices; one that several slices show counts in each.
    n_pieces : int
        Of ids: the components of equal values, less their holes.
    """

    kind: Literal["mask", "ids", "classes"]
    ignore_label: int | None
    threshold: int = 0
    n_classes: int = 2
    slices: int = 0
    pixels: int = 0
    unknown: int = 0
    foreground: int = 0
    n_cells: int = 0
    n_pieces: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether the values say themselves what they mean: 0 is background, the others cells."""
        return self.kind != "classes" and not self.threshold and self.ignore_label is None

    def cells(self, slice_: np.ndarray) -> np.ndarray:
        """Return a slice's cells: int32, or int64 for larger ids, (y, x).

        0 is background, `UNKNOWN_CELL` (-1) unknown, every other value a cell of its own: ids as
        they are, maybe in the slice's own memory, of masks and classes the 4-connected components,
        1, 2, ....
        """
        is_unknown = self.is_unknown(slice_)
        if self.kind == "ids":
            cells = _signed(slice_, copy=None if is_unknown is None else True)
        else:
            cells = self._components(slice_, is_unknown)
        if is_unknown is not None:
            cells[is_unknown] = UNKNOWN_CELL
        return cells

    def classes(self, slice_: np.ndarray) -> np.ndarray:
        """Return the class of each pixel of a slice, uint8; of unknown ones 0."""
        if self.kind == "classes":
            classes = slice_.astype(np.uint8)
        else:
            classes = (slice_ > self.threshold).view(np.uint8)
        is_unknown = self.is_unknown(slice_)
        if is_unknown is not None:
            classes[is_unknown] = 0
        return classes

    def is_unknown(self, slice_: np.ndarray) -> np.ndarray | None:
        """Return where nothing is known, bool, or None where that is nowhere."""
        if self.ignore_label is None or not holds(slice_.dtype, self.ignore_label):
            return None
        is_unknown: np.ndarray = slice_ == self.ignore_label
        return is_unknown

    def _components(self, slice_: np.ndarray, is_unknown: np.ndarray | None) -> np.ndarray:
        components = np.zeros(slice_.shape, np.int32)
        found = 0
        values = range(1, self.n_classes) if self.kind == "classes" else (None,)
        for value in values:
            is_cell = slice_ > self.threshold if value is None else slice_ == value
            if is_unknown is not None:
                is_cell &= ~is_unknown
            if value is None:
                ndimage.label(is_cell, output=components)  # 4-connected unless told otherwise
            else:
                numbers, count = ndimage.label(is_cell)
                components[is_cell] = numbers[is_cell] + found
                found += count
        return components

    def line(self) -> str:
        """Say it in a line: kind, cells a slice, share of foreground, unknown pixels.

        Examples
        --------
        >>> read_meaning(np.array([[[255, 0, 255, 0]]], np.uint8)).line()
        'mask, 2 cells a slice, 50 % foreground, no unknown pixels'
        """
        kind: str = self.kind
        if self.threshold:
            kind = f"mask (values above {self.threshold} are cell)"
        elif self.kind == "classes":
            kind = f"{self.n_classes} classes"
        elif self.n_pieces > _PIECES_OF_CLASSES * self.n_cells > 0:
            kind = f"ids (each in {self.n_pieces / self.n_cells:.0f} pieces; are they classes?)"
        a_slice = self.n_cells / max(self.slices, 1)
        count = f"{a_slice:.1f}" if 0 < a_slice < 10 and a_slice % 1 else f"{a_slice:.0f}"
        known = self.pixels - self.unknown
        unknown = f"{_percent(self.unknown, self.pixels)} unknown" if self.unknown else "no unknown"
        return (
            f"{kind}, {count} cell{'s' * (count != '1')} a slice, "
            f"{_percent(self.foreground, known)} foreground, {unknown} pixels"
        )

    def record(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        return dict(vars(self))


def meaning(facts: Sequence[SliceFacts], settings: LabelSettings) -> Reading:
    """Decide how a stack is read, from the facts of its slices.

    The number of cells is that of ids; of a mask `with_cells` counts them, where it is -1.
    `InputError`: what cannot be told, or does not fit the kind that is asked for.
    """
    kind, ignore = settings.label_kind, settings.ignore_label
    if ignore is not None and any(fact.is_bool for fact in facts):
        raise InputError(f"ignore_label is {ignore}: a bool mask has no value to spare")
    parts = [(fact.values, fact.counts, fact.rims, fact.strays) for fact in facts]
    values, counts, rims, strays = merged(parts or [(np.zeros(0, np.int64),) * 4])
    is_single = all(len(fact.values) <= 1 for fact in facts)
    if kind == "auto":
        kind = _kind(facts, values, counts, rims, strays, is_single)
    threshold, n_classes = 0, 2
    if kind == "mask" and not is_single:
        threshold = int(values[-1]) // 2
        _check_one_range(facts, threshold, int(values[-1]))
    if kind == "classes" and len(values):
        if values[-1] > 255:
            raise InputError(f"labels hold {values[-1]}: classes are 0 ... 255")
        n_classes = max(2, int(values[-1]) + 1)
    if kind == "ids":
        n_cells = sum(len(fact.values) for fact in facts)
    elif kind == "mask" and not threshold:
        n_cells = sum(fact.pieces for fact in facts)
    else:
        n_cells = -1
    return Reading(
        kind=kind,
        ignore_label=None if ignore is None else int(ignore),
        threshold=threshold,
        n_classes=n_classes,
        slices=len(facts),
        pixels=sum(fact.pixels for fact in facts),
        unknown=sum(fact.unknown for fact in facts),
        foreground=int(counts[values > threshold].sum()),
        n_cells=n_cells,
        n_pieces=sum(fact.pieces for fact in facts) if kind == "ids" else 0,
    )


def with_cells(reading: Reading, slices: Iterable[np.ndarray]) -> Reading:
    """Return the reading with its number of cells, counted if it must be."""
    if reading.n_cells >= 0:
        return reading
    counts = (int(reading.cells(slice_).max(initial=0)) for slice_ in slices)
    return replace(reading, n_cells=sum(counts))


def read_meaning(
    labels: Slices,
    settings: LabelSettings = AUTO,
    *,
    where: str = "",
    counts_cells: bool = True,
    workers: int = 1,
) -> Reading:
    """Decide how the labels of a stack in memory are read.

    Parameters
    ----------
    labels : ndarray of int or bool, shape (z, y, x), or a sequence of slices (y, x)
    settings
        What is known of them.
    where
        Their file, for messages.
    counts_cells
        Without it the number of cells is not to be used; that is faster.
    workers
        Number of threads, over slices.

    Raises
    ------
    InputError
        Values that mean nothing sure: a grey image, a mask that was blurred or compressed, ids
        below 0; the message says what would help.

    Examples
    --------
    >>> read_meaning(np.array([[[0, 128, 128]]])).kind, read_meaning(np.array([[[0, 1, 2]]])).kind
    ('mask', 'ids')
    """

    def all_facts(is_counted: bool) -> list[SliceFacts]:
        facts = partial(slice_facts, ignore_label=settings.ignore_label, is_counted=is_counted)
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(facts, labels))

    try:
        if counts_cells:
            return with_cells(meaning(all_facts(True), settings), labels)
        found = all_facts(False)
        return meaning(all_facts(True) if _is_doubtful(found) else found, settings)
    except InputError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from error


def instances(
    labels: np.ndarray, *, label_kind: LabelKind = "auto", ignore_label: int | None = None
) -> np.ndarray:
    """Return instance ids: a mask's 4-connected components, or what are ids already.

    Parameters
    ----------
    labels : ndarray of int or bool, shape (height, width) or (z, y, x)
    label_kind, ignore_label
        As in `LabelSettings`.

    Returns
    -------
    ndarray of int32, or int64 for larger ids, shape of `labels`
        0 for background and unknown pixels; the components are 1, 2, ... in each slice.

    Examples
    --------
    >>> instances(np.array([[255, 255, 0, 255]], np.uint8))
    array([[1, 1, 0, 2]], dtype=int32)
    """
    stack = as_stack(labels)
    reading = read_meaning(stack, LabelSettings(label_kind, ignore_label))
    cells = [np.maximum(reading.cells(slice_), 0) for slice_ in stack]
    ids = np.stack(cells) if cells else np.zeros(stack.shape, np.int32)
    return ids.reshape(np.shape(labels))


def recorded_unknown(info: str | None) -> int | None:
    """Return the value of unknown pixels that a file of labels records in its text, if any.

    Examples
    --------
    >>> recorded_unknown('{"unknown_label": 65535}')
    65535
    """
    try:
        facts = parse_json(info or "")
    except ValueError:
        return None
    value = facts.get("unknown_label") if isinstance(facts, dict) else None
    return value if type(value) is int else None


def as_stack(labels: Any) -> np.ndarray:
    """Return labels as integers or bools (z, y, x), a view where they are.

    Whole numbers that are stored as floating-point become integers. `InputError`: other values,
    other dimensions.
    """
    try:
        labels = as_integers(np.asarray(labels), "labels")
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError("labels have slices of several sizes: give one at a time") from error
    if labels.ndim not in (2, 3):
        raise InputError(f"labels have shape {labels.shape}: (height, width) or (z, y, x) needed")
    return labels if labels.ndim == 3 else labels[None]


def as_integers(labels: np.ndarray, what: str, *, is_told: bool = True) -> np.ndarray:
    """Return integers and bools as they are, and whole floating-point numbers as int64."""
    if labels.dtype.kind in "biu":
        return labels
    if labels.dtype.kind != "f":
        raise InputError(f"{what} are {labels.dtype}: integers or a bool mask are needed")
    wide = labels.astype(np.float64)
    is_whole = np.isfinite(wide) & (np.trunc(wide) == wide)
    if is_whole.all():
        exact = 2.0 ** (np.finfo(labels.dtype).nmant + 1)  # from here on integers are left out
        largest = float(np.abs(wide).max(initial=0))
        if largest >= exact:
            raise InputError(
                f"{what} are {labels.dtype} and hold {largest:.17g}: from {exact:.17g} on that "
                "type leaves integers out, so ids may have become one: save them as integers"
            )
    else:
        example = labels[~is_whole].flat[0]
        raise InputError(
            f"{what} are {labels.dtype} and hold {example:g}: integers are needed (of "
            "probabilities, predict --kind labels makes them)"
        )
    if is_told:
        note(f"{what} are whole numbers stored as {labels.dtype}: read as integers")
    return labels.astype(np.int64)


def _is_doubtful(facts: Sequence[SliceFacts]) -> bool:
    """Tell whether it matters how many pieces there are in slices of one value above 0."""
    singles = {int(value) for fact in facts if len(fact.values) == 1 for value in fact.values}
    if all(len(fact.values) <= 1 for fact in facts):
        return len(singles) > 1 and not singles <= _FULL_SCALES
    return bool(singles & _FULL_SCALES)


def _kind(
    facts: Sequence[SliceFacts],
    values: np.ndarray,
    counts: np.ndarray,
    rims: np.ndarray,
    strays: np.ndarray,
    is_single: bool,
) -> Literal["mask", "ids"]:
    """Return what the values are if it can be told, or raise."""
    if len(values) <= 1:
        return "mask"
    if is_single:
        if not _is_doubtful(facts):
            return "mask"
        if all(fact.pieces <= 1 for fact in facts):
            return "ids"  # as a mask they would be the same cells
        raise InputError(
            f"each slice of the labels holds one value above 0, but they differ ({_few(values)}): "
            "--label-kind mask or ids says whether the pieces of a slice are cells or one cell"
        )
    for z, fact in enumerate(facts):
        most = _MOST_PIECES if fact.values[:1].tolist() == [1] else 1  # 1 is an id as well
        is_like_a_mask = len(fact.values) == 1 and int(fact.values[0]) in _FULL_SCALES
        if is_like_a_mask and fact.pieces > most:
            raise InputError(
                f"slice {z} of the labels holds {fact.values[0]} alone, in {fact.pieces} pieces, "
                "like a mask, but others several values, like ids; give all slices one kind, or "
                "--label-kind ids if the pieces are one cell"
            )
    _check_is_no_spoiled_mask(facts, values, counts, rims, strays)
    _check_is_no_grey_image(facts, values)
    return "ids"


def _check_is_no_spoiled_mask(
    facts: Sequence[SliceFacts],
    values: np.ndarray,
    counts: np.ndarray,
    rims: np.ndarray,
    strays: np.ndarray,
) -> None:
    """Refuse values most of which lie on rims or single pixels: a mask's, or ids, after a loss.

    Three things tell them from noise and from real ids: all of a mask's other pixels are at the
    ends of the range; its highest values lie together; and each stray value is in many pieces.
    """
    top, foreground, stray_px = int(values[-1]), int(counts.sum()), int(strays[:-1].sum())
    is_stray = (2 * strays > counts) & ((strays > 1) | (rims > 0))  # a single pixel may be a cell
    if 2 * int(is_stray[:-1].sum()) <= len(values) - 1:
        return
    is_high = values >= top * 7 / 8
    high_px, known = int(counts[is_high].sum()), sum(f.pixels - f.unknown for f in facts)
    at_ends = known - foreground + high_px + int(counts[values <= top / 8].sum())
    is_at_ends = 3 * at_ends >= 2 * known
    alone = int(strays[-1]) / int(counts[-1])  # share of the highest value's pixels
    n_ids = sum(len(fact.values) for fact in facts)
    in_pieces = sum(fact.pieces for fact in facts) >= _PIECES_OF_SPOILED * n_ids
    is_many = len(values) > 3  # random ids of a few pixels have few
    is_rimmed = is_at_ends and 2 * high_px >= foreground and stray_px >= _FEWEST_STRAYS
    is_mask = is_rimmed and (is_many or alone < 1 / 20)
    if is_many and in_pieces:
        is_mask |= is_at_ends and alone < 1 / 2 and stray_px >= _FEWEST_STRAYS // 4
        is_mask |= 2 * int(strays.sum()) <= foreground and stray_px >= _FEWEST_STRAYS  # or ids
    if is_mask:
        raise InputError(
            "the labels look like a mask that was blurred, resized or saved as JPEG, or like a "
            f"probability: {len(values)} values above 0 ({_few(values)}), most of those below "
            f"{top} on rims or single pixels; --label-kind mask takes what is above {top // 2} as "
            "cell, --label-kind ids every value as a cell (ids, too, are spoiled by it)"
        )


def _check_is_no_grey_image(facts: Sequence[SliceFacts], values: np.ndarray) -> None:
    """Refuse many values that change from pixel to pixel, or lie in many pieces each."""
    pairs, differing = sum(f.pairs for f in facts), sum(f.differing for f in facts)
    is_noisy = pairs >= _FEWEST_PAIRS and 2 * differing > pairs
    pieces, n_ids = sum(fact.pieces for fact in facts), sum(len(fact.values) for fact in facts)
    if len(values) >= _FEWEST_GREYS and (is_noisy or pieces >= _MOST_PIECES * n_ids):
        raise InputError(
            f"the labels look like a grey image: {len(values)} values above 0 ({_few(values)}), "
            f"each in {pieces / n_ids:.0f} pieces a slice; are images and labels swapped? "
            "(--label-kind mask takes those above half as cell, ids every value as a cell, classes "
            "as a class)"
        )


def _check_one_range(facts: Sequence[SliceFacts], threshold: int, top: int) -> None:
    """Refuse a mask of which a slice holds another range than the others: it would be lost."""
    for z, fact in enumerate(facts):
        is_plain = len(fact.values) == 1 and fact.values[0] <= threshold
        if is_plain and 4 * fact.pieces <= fact.counts[0]:  # no scattered noise
            raise InputError(
                f"slice {z} of the mask holds 0 and {fact.values[0]} alone, others values up to "
                f"{top}: half of that would leave nothing of it; give all slices one range"
            )


def _signed(ids: np.ndarray, *, copy: bool | None) -> np.ndarray:
    """Return ids contiguous as int32, or int64 if it must be; ids beyond that as their ranks.

    `copy` is numpy's: None copies only what has to be.
    """
    if not ids.size or ids.dtype.itemsize < 4 or int(ids.max()) < 1 << 31:
        return np.array(ids, np.int32, order="C", copy=copy)
    if int(ids.max()) < 1 << 63:
        return np.array(ids, np.int64, order="C", copy=copy)
    values, ranks = np.unique(ids, return_inverse=True)
    return (ranks.reshape(ids.shape) + (0 if values[0] == 0 else 1)).astype(np.int64)


def _few(values: np.ndarray) -> str:
    shown = [str(value) for value in values]
    return ", ".join(shown if len(shown) <= 5 else [*shown[:2], "…", *shown[-2:]])


def _percent(part: int, whole: int) -> str:
    share = 100 * part / max(whole, 1)
    return f"{share:.0f} %" if share >= 1 or not part else f"{share:.2g} %"
