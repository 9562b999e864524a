"""OME-Zarr images that are computed in units, by one process or many, and survive any kill.

In the output's own folder: ``job.json``, which says what is computed, and level 0, whose shards are
the only record of what is done. The levels above follow when it is whole, and at last the group's
description, without which the folder is no image; ``job.json`` goes.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unet_repro.choices import Ngff
from unet_repro.cluster import Run, compute
from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray, Coding, stored_array
from unet_repro.files.block_store import check_record
from unet_repro.files.file_access import parse_json
from unet_repro.files.places import Bucket, Folder, PathLike, name_of, place_at, url_of
from unet_repro.images.ome_zarr import (
    JOB,
    ImageFacts,
    image_attributes,
    is_zarr,
    mark_of,
    paths_of,
    remove_group,
    write_group,
)
from unet_repro.threads import in_order

_CHUNKS_A_SIDE = 4  # of a shard
_LOOK_AHEAD = 2
_PART_OF_IMAGE = re.compile(  # at most these are removed to make room
    r"\d+(\.\d+)*|c|scratch|zarr\.json|\.z(array|attrs|group|metadata)|job\.json|\..+\.partial"
)
_TOKEN = "claim"  # in the job: one that is begun anew is another, whatever it is of
# without hard links another process's claim is empty for a moment (`Folder.write`)
_JOB_LOOKS, _JOB_WAIT_S = 5, 0.1
_MOST_LOOKED_AT = 64  # units of the last level, for what viewers show as black and white


@dataclass(frozen=True)
class LevelWork:
    """A level of a pyramid, made of the one below it."""

    fine: BlockArray
    coarse: BlockArray
    are_labels: bool

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        """Give what computes units (`cluster.Work`)."""

        def one(number: int) -> int:
            if not self.coarse.has(number):
                self.coarse.write(number, self._values(number))
            return number

        yield lambda numbers: in_order(one, numbers, _LOOK_AHEAD)

    def _values(self, number: int) -> NDArray[Any]:
        where = list(self.coarse.slices(number))
        for axis in (-2, -1):
            side = self.fine.shape[axis]
            where[axis] = slice(2 * where[axis].start, min(2 * where[axis].stop, side))
        return halved(self.fine.read_part(tuple(where), discards=True), are_labels=self.are_labels)


def halved(pixels: NDArray[Any], *, are_labels: bool) -> NDArray[Any]:
    """Return pixels (..., y, x) at half the size: the mean of 2 x 2, of labels the first of them.

    An odd side is rounded up: its last mean is of half as many. Means of integers are rounded, a
    half up.

    Examples
    --------
    >>> halved(np.array([[1, 2, 5], [3, 4, 7]], np.uint8), are_labels=False)
    array([[3, 6]], dtype=uint8)
    """
    if are_labels:
        return pixels[..., ::2, ::2]
    odd = [(0, side % 2) for side in pixels.shape[-2:]]
    even = np.pad(pixels, [(0, 0)] * (pixels.ndim - 2) + odd, mode="edge")
    is_whole = pixels.dtype.kind in "ui"
    wide = np.int64 if is_whole and pixels.dtype.itemsize > 2 else np.int32
    wider: NDArray[Any] = even.astype(wide if is_whole else np.float32)
    total: Any = wider[..., ::2, ::2] + wider[..., ::2, 1::2]
    total = total + wider[..., 1::2, ::2] + wider[..., 1::2, 1::2]
    return ((total + 2) // 4 if is_whole else total / 4).astype(pixels.dtype)


@dataclass(frozen=True)
class Layout:
    """How an image lies in arrays.

    Parameters
    ----------
    axes
        Letters of TCZYX, in this order.
    shape, dtype
        Of level 0.
    ngff, shard_px
        As the settings say.
    coding
        As of `BlockArray`.
    is_unit_slice
        A unit is a slice of the image, not a shard.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: str
    ngff: Ngff
    shard_px: int
    coding: Coding
    is_unit_slice: bool = False

    def array(self, place: Folder | Bucket) -> BlockArray:
        """Return the array of level 0."""
        chunk_px = self.chunk_px
        shard = self._planes(self._sides(self.shape, self.shard_px))
        whole = self._planes(tuple(-(-n // s) * s for n, s in zip(self.shape[-2:], shard[-2:])))
        chunk = self._planes(self._sides(self.shape, chunk_px), channels=1)
        is_sharded = self.ngff == "0.5"
        return BlockArray(
            place,
            self.shape,
            self.dtype,
            unit=whole if self.is_unit_slice else shard,
            shard=shard if is_sharded else chunk,
            chunk=chunk,
            format=3 if is_sharded else 2,
            coding=self.coding,
            names=tuple(self.axes.lower()) if is_sharded else None,
        )

    @property
    def chunk_px(self) -> int:
        """Side of what a viewer reads at a time."""
        is_divisible = self.shard_px % (16 * _CHUNKS_A_SIDE) == 0
        return self.shard_px // _CHUNKS_A_SIDE if is_divisible else self.shard_px

    def _sides(self, shape: tuple[int, ...], most: int) -> tuple[int, ...]:
        """Return sides of a shard or a chunk of at most so many px: no larger than need be."""
        chunk = self.chunk_px
        return tuple(min(most, -(-side // chunk) * chunk) for side in shape[-2:])

    def _planes(self, sides: tuple[int, ...], channels: int = 0) -> tuple[int, ...]:
        """Return the shape of a part of one slice: of all channels, or of so many."""
        lengths = dict(zip(self.axes, self.shape))
        depth = [channels or lengths["C"] if axis == "C" else 1 for axis in self.axes[:-2]]
        return (*depth, *sides)

    def levels(self) -> list[Layout]:
        """Return this and the levels above, each half as high and wide, down to one chunk."""
        found = [self]
        while max(found[-1].shape[-2:]) > self.chunk_px:
            shape = found[-1].shape
            half = (*shape[:-2], *(-(-side // 2) for side in shape[-2:]))
            found.append(replace(self, shape=half, is_unit_slice=False))
        return found


class ZarrOutput:
    """Write an OME-Zarr image, alone or beside other processes of the same job.

    Parameters
    ----------
    out : path-like
        A folder, or a URL.
    layout
        Of the image.
    resume
        Go on with what is there, if there is anything.
    overwrite
        Replace what is there.
    joins
        Go on with what other processes of the same job have begun or will begin.

    Attributes
    ----------
    blocks : BlockArray
        Level 0, from `begin` on.

    Raises
    ------
    InputError
        There is something already and no option allows it, or something else than zarr.

    Notes
    -----
    Who writes the same job twice, writes the same values again, or finds them there; a process of
    another job that was overwritten finds its claim gone, and ends.
    """

    def __init__(
        self,
        out: PathLike,
        layout: Layout,
        *,
        resume: bool = False,
        overwrite: bool = False,
        joins: bool = False,
    ) -> None:
        self.out, self.layout = url_of(out) or out, layout
        self.place = place_at(out)
        if joins and overwrite:
            raise InputError(
                f"{out}: --overwrite with --part would delete what other parts have done: remove "
                "it first"
            )
        self._overwrite = overwrite
        self._goes_on = resume or joins
        self._clears = False
        self.blocks: BlockArray
        self._check()

    def _check(self) -> None:
        url = url_of(self.out) or ""
        if url.startswith("http"):
            raise InputError(f"{url}: is read only; an output is a folder or s3://, gs://, az://")
        is_begun = self.place.has(JOB)
        try:
            self.mark = mark_of(self.place)
        except InputError as error:
            if self._goes_on or not self._overwrite:
                raise InputError(f"{error}; --overwrite without --resume begins anew") from error
            self.mark = None
        if isinstance(self.place, Folder) and self.place.path.is_file():
            raise InputError(f"{self.out}: is a file, and no folder can be made there")
        if self._goes_on and (is_begun or self.mark):
            return
        if is_begun and not self._overwrite:
            raise self._unfinished()
        if not self.place.is_empty():
            if not self._overwrite:
                raise InputError(f"{self.out}: exists already; give --overwrite to replace it")
            if not (is_begun or self.mark or self._is_zarr()):
                raise InputError(f"{self.out}: is there, and no zarr: it is not replaced")
            self._will_clear()

    def _unfinished(self) -> InputError:
        return InputError(
            f"{self.out}: an unfinished run of it is there; --resume goes on with it, "
            "--overwrite begins anew"
        )

    def _will_clear(self) -> None:
        names = self.place.entries()
        other = next((name for name in names if not _PART_OF_IMAGE.fullmatch(name)), None)
        if other is not None:
            raise InputError(
                f"{self.out}: holds {other}, which is no part of an image: it is not replaced; "
                "give another place"
            )
        self._clears = True

    def _is_zarr(self) -> bool:
        if url_of(self.out):
            return any(self.place.has(name) for name in ("zarr.json", ".zgroup", ".zarray"))
        return is_zarr(self.out)

    def is_complete_with(self, info: str) -> bool:
        """Tell whether the image is complete and made of the same; another one is an error.

        One that has lost shards since, or of which some are damaged as far as a look tells
        (`BlockArray.missing`), is not complete: they are made again.
        """
        if not self.mark or not self._goes_on:
            return False
        if self.mark.get("info") == info:
            found = "0.5" if self.place.has("zarr.json") else "0.4"
            if found != self.layout.ngff:
                raise InputError(
                    f"{self.out}: is complete, as OME-Zarr {found}, not {self.layout.ngff}"
                )
            if self._has_lost_shards():
                return False
            self.place.remove(JOB)  # a kill may have come before that
            self.place.clear("scratch")
            return True
        if self._overwrite:
            self._will_clear()
            return False
        try:
            check_record(parse_json(str(self.mark.get("info"))), parse_json(info), str(self.out))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
        raise InputError(f"{self.out}: exists already; give --overwrite to replace it")

    def _has_lost_shards(self) -> bool:
        expected = self.layout.array(self.place / "0")
        stored = [stored_array(self.place / path, expected.format) for path in paths_of(self.place)]
        if not any(array is None or len(array.missing(looks=True)) for array in stored):
            return False
        if stored[0] is not None and stored[0].shard != expected.shard:
            raise InputError(
                f"{self.out}: shards are lost or damaged, and they are of {stored[0].shard}: the "
                "--shard that it was made with is needed to make them again"
            )
        return True

    def claimed(self, record: dict[str, Any]) -> dict[str, Any]:
        """Begin a job, or find it begun: return the record that is there, ours or another's."""
        if self._clears:
            remove_group(self.place)  # first what makes it an image
            self.place.remove(JOB)
            self.place.clear()
        content = json.dumps({**record, _TOKEN: secrets.token_hex(8)}, indent=1).encode()
        is_ours = self.place.write(JOB, content, replace=False)
        if self._clears:  # what a process that was at its end has written meanwhile
            remove_group(self.place)
        if not (is_ours or self._goes_on or self._overwrite):  # begun since we looked
            raise self._unfinished()
        for _ in range(_JOB_LOOKS):
            self._job = self.place.read(JOB) or b""
            with suppress(ValueError):
                stored = parse_json(self._job)
                if isinstance(stored, dict):
                    self._stored = {k: v for k, v in stored.items() if k != _TOKEN}
                    return self._stored
            time.sleep(_JOB_WAIT_S)
        raise InputError(
            f"{self.place}/{JOB}: is damaged; --overwrite without --resume begins anew"
        )

    def begin(self, record: dict[str, Any], scratch: Layout | None = None) -> None:
        """Make the arrays; what was claimed by another record is an `InputError` that says so.

        `scratch`: what is computed in units are not the values of level 0, but others first.
        """
        check_record(self._stored, record, str(self.out))
        claim = JOB, hashlib.sha256(self._job).hexdigest()
        self._claim = claim
        at, layout = ("scratch", scratch) if scratch else ("0", self.layout)
        self.blocks = replace(layout.array(self.place / at), claim=claim)
        self.blocks.create()

    def level0(self, dtype: str) -> BlockArray:
        """Return level 0 of another dtype, where it is made of what the units hold."""
        self.layout = replace(self.layout, dtype=dtype)
        array = replace(self.layout.array(self.place / "0"), claim=self._claim)
        array.create()
        return array

    def finish(self, facts: ImageFacts, info: str, client: Any = None) -> None:
        """Make the levels above 0, with the workers of a client or here, and an image of it all.

        Raises
        ------
        InputError
            A unit is missing or damaged; damaged ones are removed, and computed by a resume.
        """
        try:
            self._finish(facts, info, client)
        except InputError:  # as of what another process, which was done first, has removed
            if not self.is_done_by_another(info):
                raise

    def _finish(self, facts: ImageFacts, info: str, client: Any) -> None:
        layouts = self.layout.levels()
        arrays = [
            replace(layout.array(self.place / str(level)), claim=self._claim)
            for level, layout in enumerate(layouts)
        ]
        if self.is_done_by_another(info):
            return
        left = arrays[0].missing()
        if len(left):
            raise InputError(
                f"{self.out}: {len(left)} of {len(arrays[0])} units are missing; --resume computes "
                "them"
            )
        for fine, coarse in pairwise(arrays):
            coarse.create()
            work = LevelWork(fine, coarse, facts.are_labels)
            left, what = coarse.missing(heals=True), str(coarse.place)
            for _ in compute(client, work, left, what=what, name=lambda n: f"unit {n}"):
                pass
        window = (0.0, 1.0)
        if facts.white is None and not facts.are_labels:
            window = _range_of(arrays[-1])
        mark = {"complete": True, "info": info}
        attributes = image_attributes(facts, len(arrays), self.layout.ngff, mark, window=window)
        if self.is_done_by_another(info):
            return
        write_group(self.place, attributes, self.layout.ngff)
        if self.place.has(JOB):  # else another process of the job is done with all
            self._check_described()
            self.place.remove(JOB)
            self.place.clear("scratch")  # before that a kill would cost all that it took

    def _check_described(self) -> None:
        """Take the description away again if another run has begun meanwhile."""
        try:
            self.blocks.check_claim()
        except InputError:
            remove_group(self.place)
            raise

    def is_done_by_another(self, info: str) -> bool:
        """Tell whether another process of the same job has completed it; one of another may not."""
        try:
            self.blocks.check_claim()
        except InputError:
            mark = mark_of(self.place)
            if mark is None or mark.get("info") != info:
                raise
            return True
        return False


def _range_of(array: BlockArray) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for number in range(0, len(array), -(-len(array) // _MOST_LOOKED_AT)):
        values = array.read(number)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (low, high) if low < high else (low, low + 1)


def is_zarr_name(path: Path) -> bool:
    """Tell whether an output is to be OME-Zarr."""
    return name_of(path).lower().endswith(".zarr")
