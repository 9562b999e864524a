"""An array that is computed in units: each written once, and done when it is there.

The array is the ledger: no list beside it says what is done, so that none can be wrong. Not in it:
what is computed, and by whom.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from unet_repro.errors import InputError
from unet_repro.files.places import Bucket, Folder

if TYPE_CHECKING:
    import zarr

Shape = tuple[int, ...]
Coding = Literal["zstd", "crc32c", "none"]

_NO_SHARD = 2**64 - 1  # offset and size of an inner chunk that is not there
_BLOSC_HEADER = 16
_LOOKED_AT_ONCE = 8


@dataclass(frozen=True)
class BlockArray:
    """A zarr array and the units that it is computed in. It can be pickled, and holds no pixel.

    Parameters
    ----------
    place
        Of the array.
    shape, dtype
        Of it.
    unit
        Shape of a unit; those at the far ends may be smaller. Each is some whole `shard`s.
    shard
        Shape of what is stored under a key. One process writes it, at once.
    chunk
        Shape of what is read and decoded at least; another than `shard` needs format 3.
    format
        Of zarr, 2 or 3.
    coding
        zstd (in format 2 within blosc, which older readers know), with a check sum in format 3;
        crc32c, a check sum alone, in format 3; or none.
    names
        Of the dimensions, in format 3.
    claim
        A file beside the array and its SHA-256: nothing is written unless it is there, so that no
        process goes on with what another has begun anew. It goes when all is complete, after the
        group of the array has been described.

    Notes
    -----
    An array's missing chunks read as zeros without a word: units are read through `read` alone,
    which does not let that pass. zarr stores no chunk of zeros by default, which would then look
    undone, and does not keep the switch: it is set at every opening.
    """

    place: Folder | Bucket
    shape: Shape
    dtype: str
    unit: Shape
    shard: Shape
    chunk: Shape
    format: Literal[2, 3] = 3
    coding: Coding = "zstd"
    names: tuple[str, ...] | None = None
    claim: tuple[str, str] | None = None
    _open: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @property
    def grid(self) -> Shape:
        """How many units lie along each axis."""
        return tuple(-(-side // unit) for side, unit in zip(self.shape, self.unit))

    def __len__(self) -> int:
        return math.prod(self.grid)

    def slices(self, number: int) -> tuple[slice, ...]:
        """Return where a unit lies, which are numbered in C order."""
        index = np.unravel_index(number, self.grid)
        return tuple(
            slice(int(i) * unit, min((int(i) + 1) * unit, side))
            for i, unit, side in zip(index, self.unit, self.shape)
        )

    def create(self, *, attributes: dict[str, Any] | None = None) -> None:
        """Make the array, without units; one that is there already stays."""
        if self.place.has("zarr.json" if self.format == 3 else ".zarray"):
            return
        self.check_claim()
        import zarr  # takes a third of a second

        def make() -> None:
            zarr.create_array(
                store=self.place.store(),
                shape=self.shape,
                dtype=self.dtype,
                chunks=self.chunk,
                fill_value=0,
                zarr_format=self.format,
                attributes=attributes,
                config={"write_empty_chunks": True},
                **self._layout(),
            )

        with self._writing(), suppress(zarr.errors.ContainsArrayError):  # another process was first
            try:
                make()
            except FileNotFoundError:  # its half-written file was swept by another process
                make()

    def _layout(self) -> dict[str, Any]:
        if self.format == 2:
            import numcodecs

            coder = numcodecs.Blosc(cname="zstd", clevel=1) if self.coding == "zstd" else None
            return {
                "chunk_key_encoding": {"name": "v2", "separator": "/"},
                "compressors": coder,
                "filters": None,
            }
        from zarr.codecs import Crc32cCodec, ZstdCodec

        coders = {"zstd": ZstdCodec(level=1, checksum=True), "crc32c": Crc32cCodec(), "none": None}
        layout: dict[str, Any] = {
            "compressors": coders[self.coding],
            "dimension_names": self.names,
        }
        return layout if self.shard == self.chunk else {**layout, "shards": self.shard}

    def array(self) -> zarr.Array:
        """Return the array, opened once in a process."""
        if "array" not in self._open:
            import zarr

            try:
                array = zarr.open_array(
                    store=self.place.store(), mode="r+", zarr_format=self.format
                )
            except InputError:
                raise
            except Exception as error:  # a damaged description can raise nearly anything
                raise _no_array(self.place, error) from error
            found = array.shape, array.dtype, array.chunks, array.shards or array.chunks
            if found != (self.shape, np.dtype(self.dtype), self.chunk, self.shard):
                raise InputError(f"{self.place}: has another shape, dtype or chunks than expected")
            self._open["array"] = array.with_config({"write_empty_chunks": True})
        return self._open["array"]

    def write(self, number: int, values: npt.NDArray[Any]) -> None:
        """Keep a unit, of as many values as it has, unless it is there; from threads as well.

        A claim that goes while it is written takes the unit along: it would pass for one of the run
        that begins anew. Where that has written it too, it is missing there, and is computed by a
        resume. The unit stays where the group is described meanwhile: all is complete.
        """
        if self.has(number):
            return
        self.check_claim()
        where = self.slices(number)
        values = values.reshape([part.stop - part.start for part in where])
        with self._writing():
            for part in self._shards_of(where):
                inner = tuple(
                    slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, where)
                )
                try:
                    self.array()[part] = values[inner]
                except FileNotFoundError:  # its half-written file was swept by another process
                    self.array()[part] = values[inner]
        try:
            self.check_claim()
        except InputError:
            if not self.place.parent.has("zarr.json" if self.format == 3 else ".zattrs"):
                self.discard(number)
            raise

    def _shards_of(self, where: tuple[slice, ...]) -> Iterator[tuple[slice, ...]]:
        counts = [-(-(part.stop - part.start) // side) for part, side in zip(where, self.shard)]
        for index in np.ndindex(*counts):
            yield tuple(
                slice(part.start + i * side, min(part.start + (i + 1) * side, part.stop))
                for i, part, side in zip(index, where, self.shard)
            )

    def check_claim(self) -> None:
        """Raise an `InputError` unless the claim is there."""
        if self.claim is None:
            return
        name, sha256 = self.claim
        content = self.place.parent.read(name) or b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise InputError(f"{self.place.parent}: another run has begun it anew meanwhile")

    def read(self, number: int) -> npt.NDArray[Any]:
        """Return a unit; one that is not there or damaged is an `InputError`."""
        if not self.has(number):
            raise self._lost(number)
        return self.read_part(self.slices(number))

    def read_part(self, where: tuple[slice, ...], *, discards: bool = False) -> npt.NDArray[Any]:
        """Return a part that is known to be there; a damaged one is an `InputError`.

        `discards`: damaged units are removed, so that they are missing from now on.
        """
        try:
            return np.asarray(self.array()[where])
        except InputError:
            raise
        except Exception as error:  # each codec has its own exceptions
            if discards:
                self._discard_damaged(where)
            text = ", ".join(f"{part.start}:{part.stop}" for part in where)
            raise InputError(
                f"{self.place}: [{text}] is missing or damaged; --resume computes it again"
            ) from error

    def _lost(self, number: int) -> InputError:
        keys = next(key for key in self._keys(number) if not self.place.has(key))
        return InputError(f"{self.place}: {keys} is missing or damaged; --resume computes it again")

    def has(self, number: int) -> bool:
        """Tell whether a unit is there, as far as can be told without reading it."""
        return all(self.place.has(key) for key in self._keys(number))

    def _discard_damaged(self, where: tuple[slice, ...]) -> None:
        spans = (
            range(part.start // unit, -(-part.stop // unit)) for part, unit in zip(where, self.unit)
        )
        for index in itertools.product(*spans):
            number = int(np.ravel_multi_index(index, self.grid))
            try:
                self.read(number)
            except InputError:
                self.discard(number)

    def discard(self, number: int) -> None:
        """Remove a unit: zarr writes over no damaged one."""
        for key in self._keys(number):
            self.place.remove(key)

    def _keys(self, number: int) -> list[str]:
        corners = (part for part in self._shards_of(self.slices(number)))
        return [self._key(part) for part in corners]

    def _key(self, part: tuple[slice, ...]) -> str:
        numbers = [str(p.start // side) for p, side in zip(part, self.shard)]
        return "/".join(["c", *numbers] if self.format == 3 else numbers)

    def missing(self, *, looks: bool = False, heals: bool = False) -> npt.NDArray[np.int64]:
        """Return the numbers of the units that are not there, from one listing.

        Parameters
        ----------
        looks
            Look at each file too: what is damaged is not there. Of a shard that is its length, and
            its index, which has a check sum; of a chunk its length, or, in format 3, unless it is
            stored as it is, all of it, with its check sum. Bits that flip inside a shard, or in
            format 2, are found by reading alone. Behind a URL nothing is looked at: files are whole
            or absent there.
        heals
            Look, and remove what is damaged, and what a kill has left half written.
        """
        keys: list[str] = []
        found = np.zeros(len(self), np.int64)
        for key in self.place.keys():
            if key.endswith(".partial"):
                if heals:
                    self.place.remove(key)
                continue
            number = self._number(key)
            if number is not None:
                found[number] += 1
                if (looks or heals) and isinstance(self.place, Folder):
                    keys.append(key)
        with ThreadPoolExecutor(_LOOKED_AT_ONCE) as pool:
            for key, is_whole in zip(keys, pool.map(self._is_whole, keys)):
                if not is_whole:
                    if heals:
                        self.place.remove(key)
                    found[self._number(key)] -= 1
        return np.flatnonzero(found < self._expected())

    def _expected(self) -> npt.NDArray[np.int64]:
        """Return the number of shards of each unit."""
        counts: npt.NDArray[np.int64] = np.ones(1, np.int64)
        for side, unit, shard, many in zip(self.shape, self.unit, self.shard, self.grid):
            lengths = np.minimum(unit, side - unit * np.arange(many))
            counts = np.multiply.outer(counts, -(-lengths // shard))
        return counts.ravel()

    def _number(self, key: str) -> int | None:
        """Return the unit of a key, None if it is none."""
        parts = key.split("/")
        if self.format == 3 and parts.pop(0) != "c":
            return None
        if len(parts) != len(self.shape) or not all(map(str.isdigit, parts)):
            return None
        number = 0
        for part, shard, unit, side, many in zip(
            parts, self.shard, self.unit, self.shape, self.grid
        ):
            position = int(part) * shard
            if position >= side:
                return None
            number = number * many + position // unit
        return number

    def _is_whole(self, key: str) -> bool:
        """Tell whether a file is as long as its own beginning or end says (`missing`)."""
        assert isinstance(self.place, Folder)
        path = self.place.path / key
        with suppress(OSError):
            size = path.stat().st_size
            with path.open("rb") as file:
                if self.format == 3 and self.shard != self.chunk:
                    return self._is_shard(file, size)
                n_bytes = math.prod(self.chunk) * np.dtype(self.dtype).itemsize
                if self.coding == "none":
                    return size == n_bytes
                if self.format == 2:
                    header = file.read(_BLOSC_HEADER)
                    stated = [int.from_bytes(header[at : at + 4], "little") for at in (4, 12)]
                    return stated == [n_bytes, size]
            numbers = [int(part) for part in key.split("/")[1:]]
            where = (
                slice(n * shard, min((n + 1) * shard, side))
                for n, shard, side in zip(numbers, self.shard, self.shape)
            )
            with suppress(InputError):
                self.read_part(tuple(where))
                return True
        return False

    def _is_shard(self, file: BinaryIO, size: int) -> bool:
        """Tell whether a shard's index is sound, and its chunks fill what lies before it."""
        import google_crc32c

        inner = math.prod(s // c for s, c in zip(self.shard, self.chunk))
        index_bytes = 16 * inner + 4  # offset and size of each, and a check sum
        if size < index_bytes:
            return False
        file.seek(-index_bytes, 2)
        content = file.read(16 * inner)
        if google_crc32c.value(content) != int.from_bytes(file.read(4), "little"):
            return False
        index = np.frombuffer(content, "<u8").reshape(-1, 2)
        index = index[index[:, 0] != _NO_SHARD]
        index = index[np.argsort(index[:, 0])]
        ends = np.cumsum(index[:, 1], dtype=np.uint64)
        starts = np.concatenate([np.zeros(1, np.uint64), ends])
        return (
            index[:, 0].tolist() == starts[:-1].tolist() and int(starts[-1]) + index_bytes == size
        )

    def _writing(self) -> _Writing:
        return _Writing(self.place)


def stored_array(place: Folder | Bucket, format: Literal[2, 3]) -> BlockArray | None:
    """Return the array that is in a place, one shard a unit of it; None where there is none."""
    import zarr

    if not place.has("zarr.json" if format == 3 else ".zarray"):
        return None
    try:
        array = zarr.open_array(store=place.store(read_only=True), mode="r", zarr_format=format)
    except Exception as error:  # as in `BlockArray.array`
        raise _no_array(place, error) from error
    shard, dtype = array.shards or array.chunks, array.dtype.name
    coding: Coding = "zstd" if array.compressors else "none"
    return BlockArray(place, array.shape, dtype, shard, shard, array.chunks, format, coding)


def _no_array(place: Folder | Bucket, error: Exception) -> InputError:
    cause = " ".join(str(error).split()) or type(error).__name__
    return InputError(
        f"{place}: is no array, or damaged: {cause}; --overwrite without --resume begins anew"
    )


class _Writing:
    """Turns what goes wrong while something is written into an `InputError`."""

    def __init__(self, place: Folder | Bucket) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        is_remote = isinstance(self._place, Bucket) and isinstance(error, Exception)
        if isinstance(error, OSError) or (is_remote and not isinstance(error, InputError)):
            words = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
            raise InputError(
                f"{self._place}: cannot be written: {words}; what is done stays, --resume goes on"
            ) from error
