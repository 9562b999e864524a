"""Which planes of a TIFF file make which slice; what is no such stack is refused.

A plane is one sample of one page, an image (y, x). Its number is that of the page times the samples
of a page, plus that of the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.errors import ChannelsError, InputError

Axes = tuple[tuple[str, int], ...]  # letters and lengths

_LETTERS = "TCZYXS"
_ORDER = ("", "Z", "TZ", "TZC")  # the likely letters of so many axes before Y and X


def check_axes(axes: str | None) -> None:
    """Raise `InputError` unless axes are letters of TCZYXS, each once, Y and X among them.

    Examples
    --------
    >>> check_axes("TZYX")
    """
    if axes is None:
        return
    if set(axes) - set(_LETTERS) or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes):
        raise InputError(
            f"axes {axes!r}: letters of {_LETTERS}, each once, with Y and X are needed, such as "
            "ZYX for slices"
        )


@dataclass(frozen=True)
class StoredAxes:
    """The axes of a file that are longer than 1, in the order in which it stores their pixels."""

    stated: str  # axes and lengths as the file states them, for messages
    before: Axes  # those of pages, then that of the planes of a page
    after: Axes  # that of samples that lie side by side
    n_pages: int
    samples: int  # of a page, in `before` or `after`
    full: tuple[Axes, Axes] | None = None  # before and after Y and X, with those of length 1
    page: tuple[int, int] = (0, 0)  # height and width
    lengths: tuple[int, ...] = ()  # of all axes that the file states, those of length 1 too

    @classmethod
    def of_series(cls, path: Path, series: Any) -> StoredAxes:
        """Return the axes that a series declares; pages that are not (y, x) are refused."""
        n_planes, _, height, width, n_beside = series.keyframe.shaped
        stated = f"{series.axes} ({describe_size(series.shape)})"
        axes = [(axis, n) for axis, n in zip(series.axes, series.shape, strict=True) if n != 1]
        lengths = [("S", n_planes), ("Y", height), ("X", width), ("S", n_beside)]
        page = [(axis, n) for axis, n in lengths if n != 1]
        n_leading = len(axes) - len(page)
        of_page = axes[max(n_leading, 0) :]
        is_page = [n for _, n in of_page] == [n for _, n in page] and all(
            axis == wanted for (axis, _), (wanted, _) in zip(of_page, page) if wanted in "YX"
        )
        end = n_leading + int(n_planes > 1)
        stored = cls(
            stated,
            before=tuple(axes[:end]),
            after=tuple(axes[len(axes) - int(n_beside > 1) :]),
            n_pages=prod(n for _, n in axes[: max(n_leading, 0)]),
            samples=n_planes * n_beside,
            full=_full_axes(series),
            page=(height, width),
            lengths=series.get_shape(squeeze=False),
        )
        if not is_page:
            size = describe_size(stored.page)
            raise InputError(
                f"{path}: has axes {stated}, but its pages are images of {size} px: if these are "
                f"the images, --axes {stored.example} says so; else save each image as a page"
            )
        return stored

    @classmethod
    def of_pages(cls, keyframe: Any, leading: Axes, lengths: tuple[int, ...] = ()) -> StoredAxes:
        """Return the axes of pages of which nothing but the order, and `lengths`, is known."""
        n_planes, _, height, width, n_beside = keyframe.shaped
        axes = [*leading, ("S", n_planes), ("Y", height), ("X", width), ("S", n_beside)]
        shown = [(axis, n) for axis, n in axes if n > 1 or axis in "YX"]
        letters = "".join(axis for axis, _ in shown)
        return cls(
            stated=f"{letters} ({describe_size(tuple(n for _, n in shown))})",
            before=tuple((axis, n) for axis, n in axes[:-3] if n > 1),
            after=tuple((axis, n) for axis, n in axes[-1:] if n > 1),
            n_pages=prod(n for _, n in leading),
            samples=n_planes * n_beside,
            page=(height, width),
            lengths=lengths,
        )

    @property
    def example(self) -> str:
        """Return letters that fit."""
        n_before = len(self.before)
        letters = _ORDER[n_before] if n_before < len(_ORDER) else "TZC"
        return f"{letters}YX{'S' * len(self.after)}"

    def named(self, path: Path, axes: str) -> StoredAxes:
        """Return them with the letters of `axes`; those of length 1 may be left out or given."""
        letters = tuple(axes.split("YX")) if self._are_pages(axes) else ()
        for lengths in filter(None, ((self.before, self.after), self.full)):
            pairs = list(zip(letters, lengths, strict=True)) if len(letters) == 2 else []
            # Letters with no length left are axes of length 1.
            if pairs and all(len(names) == len(part) or not part for names, part in pairs):
                before, after = (
                    tuple((axis, n) for axis, (_, n) in zip(names, part) if n > 1)
                    for names, part in pairs
                )
                return replace(self, before=before, after=after)
        raise InputError(
            f"{path}: has axes {self.stated}, which {axes} does not fit; for example "
            f"--axes {self.example} does"
        )

    def _are_pages(self, axes: str) -> bool:
        """Tell whether the pages can be Y and X of these letters.

        Not where a Y or X of length 1 was stored as something else: tifffile makes one page of
        (z, y, 1).
        """
        ones = [i for i, n in enumerate(self.lengths) if n == 1]
        spare = len(axes) - (len(self.lengths) - len(ones))  # letters of axes of length 1
        if not 0 <= spare <= len(ones):
            return True  # what else is wrong is seen elsewhere; more letters are of length 1
        y = axes.find("YX")
        for kept in combinations(ones, spare):
            lengths = [n for i, n in enumerate(self.lengths) if n > 1 or i in kept]
            if tuple(lengths[y : y + 2]) == self.page:
                return True
        return False

    def renamed(self, old: str, new: str) -> StoredAxes:
        """Return them with another letter for one axis."""
        before = tuple((new if axis == old else axis, n) for axis, n in self.before)
        return replace(self, before=before)

    @property
    def are_planes_slices(self) -> bool:
        """Tell whether the samples of a page are slices, not channels."""
        of_samples = self.after or self.before[-1:]
        return self.samples > 1 and of_samples[0][0] not in "CS"


def _full_axes(series: Any) -> tuple[Axes, Axes] | None:
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    pairs = list(zip(axes, shape, strict=True))
    y = axes.find("YX")
    return (tuple(pairs[:y]), tuple(pairs[y + 2 :])) if y >= 0 else None


@dataclass(frozen=True)
class PlaneOrder:
    """How the planes of a file make slices."""

    planes: np.ndarray  # int (z, planes of a slice)
    depth_axes: Axes  # of the slices; their lengths make z


def plane_order(path: Path, stored: StoredAxes, channels: int, *, is_colour: bool) -> PlaneOrder:
    """Return the planes of each slice, in the order of the pages.

    `is_colour` says that the samples of a page are a colour and opacity, which grey may be stored
    as. `InputError`: other channels, or axes that are not known to be slices.
    """
    axes = stored.before + stored.after
    of_channels = [i for i, (axis, _) in enumerate(axes) if axis in "CS"]
    depth = tuple(axis for i, axis in enumerate(axes) if i not in of_channels)
    found = [axes[i][1] for i in of_channels]
    is_stored_as_colour = channels == 1 and is_colour and found == [stored.samples]
    if found != [channels] and not is_stored_as_colour and (found or channels > 1):
        raise ChannelsError(_of_channels(path, stored, channels, is_colour=is_colour))
    if len(depth) > 1 and {axis for axis, _ in depth} != {"T", "Z"}:
        kind = "a grey stack of one page per slice (z, y, x) is needed"
        if channels > 1:
            kind = _needed(channels)
        hint = f"; if they are times and slices, --axes {stored.example} says so"
        is_likely = len(stored.before) == (2 if channels == 1 or stored.after else 3)
        error = ChannelsError if "C" in stored.stated else InputError
        raise error(f"{path}: has axes {stored.stated}; {kind}{hint if is_likely else ''}")
    numbers: np.ndarray = np.arange(prod(n for _, n in axes)).reshape([n for _, n in axes])
    if of_channels:
        numbers = np.moveaxis(numbers, of_channels[0], -1)
    planes = numbers.reshape(-1, prod(found))
    if len(depth) < 2:
        depth = (("T" if depth and depth[0][0] == "T" else "Z", len(planes)),)
    return PlaneOrder(planes, depth)


def as_written(depth_axes: Axes, slices: int) -> Axes:
    """Return the axes of an output of so many slices: those of its source if all are there.

    Examples
    --------
    >>> as_written((("T", 3), ("Z", 5)), 15), as_written((("T", 3), ("Z", 5)), 4)
    ((('T', 3), ('Z', 5)), (('Z', 4),))
    >>> as_written((("T", 30),), 4)
    (('T', 4),)
    """
    if slices == prod(length for _, length in depth_axes):
        return depth_axes
    return ((depth_axes[0][0] if len(depth_axes) == 1 else "Z", slices),)


def slice_in_source(depth_axes: Axes, number: int) -> int:
    """Return which slice of a stack is one of its output, where times come before slices.

    So they do in OME-Zarr; a source may have them the other way round.

    Examples
    --------
    >>> [slice_in_source((("Z", 2), ("T", 3)), k) for k in range(6)]
    [0, 3, 1, 4, 2, 5]
    """
    if [axis for axis, _ in depth_axes] != ["Z", "T"]:
        return number
    (_, depth), (_, times) = depth_axes
    time, z = divmod(number, depth)
    return z * times + time


def _of_channels(path: Path, stored: StoredAxes, channels: int, *, is_colour: bool) -> str:
    if channels > 1:
        return f"{path}: has axes {stored.stated}; {_needed(channels)}"
    may_be_slices = len(stored.before) in (1, 2) and (is_colour or not stored.after)
    slices = f"; if these are slices, --axes {stored.example} says so" if may_be_slices else ""
    return (
        f"{path}: has several channels (axes {stored.stated}); a grey stack (z, y, x) is needed"
        f"{slices}"
    )


def _needed(channels: int) -> str:
    return (
        f"{channels} channels are needed, as an axis C or S of {channels}, and at most the axes T "
        "and Z besides them, Y and X"
    )


def describe_size(shape: tuple[int, ...]) -> str:
    """Write a shape as people do: ``"3 × 512 × 512"``."""
    return " × ".join(map(str, shape))
