"""Arrays as stacks: OME-Zarr images, plain zarr arrays, datasets of HDF5; on disc or by URL."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.errors import InputError, note
from unet_repro.files.file_access import FileState, open_binary, parse_json
from unet_repro.files.places import PathLike, hdf5_of, name_of, url_of
from unet_repro.images.ome_zarr import find_zarr, is_zarr, named_axes
from unet_repro.images.scale import Calibration
from unet_repro.images.tiff_axes import Axes, StoredAxes, describe_size, plane_order

_MOST_NAMED = 8
_PLAIN_AXES = {2: "YX", 3: "ZYX"}  # where nothing says what they are


def is_array(path: PathLike) -> bool:
    """Tell whether a path names a zarr array or group, a URL, or an HDF5 file or dataset."""
    return bool(url_of(path)) or is_zarr(path) or hdf5_of(path) is not None


def is_folder_of_images(path: PathLike) -> bool:
    """Tell whether a path names a folder that is no zarr array or group."""
    return not url_of(path) and Path(path).is_dir() and not is_zarr(path)


def open_array(
    path: Path,
    *,
    as_labels: bool = False,
    channels: int | None = None,
    axes: str | None = None,
    cache_bytes: int = 0,
    level: int = 0,
) -> ArrayImage:
    """Open an array as `image_files.open_file` opens a file; of an OME-Zarr image a level.

    `as_labels` and `cache_bytes` make no difference.
    """
    named = None if url_of(path) or is_zarr(path) else hdf5_of(path)
    if named:
        if level:
            raise InputError(f"{path}: has no levels: --level {level} is none")
        return _open_hdf5(*named, channels=channels, axes=axes)
    source = find_zarr(path, level)
    import zarr

    from unet_repro.files.watched_store import WatchedStore

    try:
        store = WatchedStore(source.place.store(read_only=True))
        array = zarr.open_array(store=store, mode="r", zarr_format=source.format)
        store.absent.clear()  # documents that need not be there
    except Exception as error:  # a damaged description can raise nearly anything
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read: {cause}") from error
    state = ZarrState(path, level, source.sha256)
    return ArrayImage(
        path,
        array,
        source.axes,
        axes,
        channels,
        state=state,
        absent=store.absent,
        is_ours=source.info is not None,
    )


def array_calibration(path: Path, level: int = 0) -> Calibration:
    """Return the scale of a zarr array, or of a level of an image; HDF5 states none."""
    is_hdf5 = not (url_of(path) or is_zarr(path)) and hdf5_of(path)
    return Calibration() if is_hdf5 else find_zarr(path, level).calibration()


def _open_hdf5(file: Path, dataset: str, *, channels: int | None, axes: str | None) -> ArrayImage:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{file}: HDF5 needs the package h5py: pip install 'unet-repro[hdf5]'"
        ) from error
    if not file.exists():
        raise InputError(f"{file}: no such file or folder")
    open_binary(file).close()
    try:
        opened = h5py.File(file, "r")
    except Exception as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
    try:
        try:
            found = opened[dataset] if dataset in opened else None
        except (KeyError, OSError) as error:  # a link to another file
            raise InputError(f"{file}:/{dataset}: cannot be read: {error.args[0]}") from error
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{file}: {_datasets_of(opened, dataset, h5py)}")
        name = Path(f"{file}:/{dataset}")
        return ArrayImage(
            name,
            _without_padding(found, name),
            _hdf5_axes(found),
            axes,
            channels,
            state=FileState.of(file),
            file=opened,
        )
    except BaseException:
        opened.close()
        raise


def _hdf5_axes(dataset: Any) -> str | None:
    """Return a letter for each axis of a dataset, as its labels, or ilastik, name them."""
    labels = [dimension.label for dimension in dataset.dims]
    if any(labels):
        return named_axes(labels)
    try:
        tags = parse_json(dataset.attrs.get("axistags", ""))
        return named_axes([tag["key"] for tag in tags["axes"]])
    except (KeyError, OSError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class _Beginning:
    """The beginning of an array along each axis; what is asked for must be in it."""

    array: Any
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, where: Any) -> Any:
        return self.array[where]


def _without_padding(dataset: Any, name: Path) -> Any:
    """Return an image of Imaris without the zeros up to whole chunks; others as they are."""
    attributes = dataset.parent.attrs
    try:
        sides = (np.asarray(attributes[f"ImageSize{axis}"]).tobytes() for axis in "ZYX")
        shape = tuple(int(side) for side in sides)  # digits, each in an array of its own
    except (KeyError, OSError, ValueError):
        return dataset
    fits = len(shape) == dataset.ndim and all(0 < n <= m for n, m in zip(shape, dataset.shape))
    if not fits or shape == dataset.shape:
        return dataset
    note(
        f"{name}: {describe_size(shape)}, as Imaris says, of {describe_size(dataset.shape)} stored"
    )
    return _Beginning(dataset, shape)


def _datasets_of(file: Any, asked: str, h5py: Any) -> str:
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim >= 2:
            found.append(f"{name} ({describe_size(item.shape)} {item.dtype})")

    file.visititems(visit)
    listed = ", ".join(found[:_MOST_NAMED]) + (" ..." if len(found) > _MOST_NAMED else "")
    said = f"holds no dataset {asked!r}" if asked else "a dataset must be named"
    first = found[0].partition(" ")[0] if found else "volumes/raw"
    return f"{said}: it holds {listed or 'none of two axes or more'}; as {file.filename}:/{first}"


@dataclass(frozen=True)
class ZarrState:
    """What describes a zarr array, by which a later change is noticed; not its pixels."""

    path: Path
    level: int
    sha256: str

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"name": name_of(self.path), "level": self.level, "sha256": self.sha256}

    def check_unchanged(self) -> None:
        """Raise `InputError` if the array is described in another way now."""
        if find_zarr(self.path, self.level).sha256 != self.sha256:
            raise InputError(
                f"{self.path}: was written to since reading began; leave the input as it is while "
                "it is read, and start again"
            )


class ArrayImage:
    """Give an array as the slices of one stack, as `TiffPages` gives a TIFF."""

    notes: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        array: Any,
        declared: str | None,
        axes: str | None,
        channels: int | None,
        *,
        state: ZarrState | FileState,
        file: Any = None,
        absent: list[str] | None = None,
        is_ours: bool = False,
    ) -> None:
        self._absent, self._is_ours = absent, is_ours
        self.path, self._array, self._file = path, array, file
        self.state = state
        self.channels = self.stored_channels = channels or 1
        self.dtype = np.dtype(array.dtype).newbyteorder("=")
        if self.dtype.kind not in "buif":
            raise InputError(f"{path}: holds {array.dtype}: integers or floats are needed")
        if not array.shape or not prod(array.shape):  # HDF5 knows a shape None too
            shape = describe_size(array.shape or ())
            raise InputError(f"{path}: is empty: {shape}" if shape else f"{path}: has no axes")
        letters = self._letters(declared, axes)
        y = letters.index("YX")
        stored = StoredAxes(
            stated=f"{letters} ({describe_size(array.shape)})",
            before=_longer(letters[:y], array.shape[:y]),
            after=_longer(letters[y + 2 :], array.shape[y + 2 :]),
            n_pages=prod(array.shape) // prod(array.shape[y : y + 2]),
            samples=1,
        )
        order = plane_order(path, stored, self.channels, is_colour=False)
        self.depth_axes: Axes = order.depth_axes
        self.shape = (len(order.planes), *array.shape[y : y + 2])
        self._planes, self._y = order.planes, y
        self._others = (*array.shape[:y], *array.shape[y + 2 :])
        self._channel_axis = next(
            (i for i, letter in enumerate(letters.replace("YX", "")) if letter in "CS"), None
        )

    def _letters(self, declared: str | None, axes: str | None) -> str:
        """Return a letter for each axis, of which Y and X are neighbours."""
        n, sides = self._array.ndim, self._array.shape
        longer = [i for i, side in enumerate(sides) if side > 1]
        said = "of which nothing says what they are"
        if axes is not None:  # axes of length 1 may be left out
            said = f"which {axes} does not fit"
            given = dict(zip(longer, axes)) if len(axes) == len(longer) < n else {}
            rest = iter(letter for letter in "TCZS" if letter not in axes)
            letters = "".join(given.get(i) or next(rest, "?") for i in range(n)) if given else axes
        elif declared is not None:
            said = "whose names are others than T, C, Z, Y and X, each once"
            if len(declared) != n:
                said = f"and names for {len(declared)}"
            letters = declared if "?" not in declared and len(declared) == n else ""
            if letters and "YX" not in letters:
                raise InputError(
                    f"{self.path}: has axes {letters} ({describe_size(sides)}): Y must be "
                    "right before X; save it so, or, if the names are wrong, --axes says others"
                )
        else:  # (y, x, 1) is likelier than (z, y, 1)
            is_doubtful = n == 3 and sides[0] > 1 and 1 in sides
            letters = "" if is_doubtful else _PLAIN_AXES.get(n, "")
        if len(letters) != n or "YX" not in letters:
            wanted = len(longer) if sides[-1] == 1 and len(longer) > 1 else n
            example = ("TCZYX" if wanted > 4 else "TZYX")[-wanted:] if n > 1 else "ZYX"
            if (n, example) == (3, "YX"):
                example = "YX (an image) or ZYX (slices)"
            raise InputError(
                f"{self.path}: has {n} axes ({describe_size(sides)}), {said}; --axes does, "
                f"as --axes {example}, with Y right before X"
            )
        return letters

    def read_region(self, z: int, rows: slice, columns: slice, *, keep: bool = True) -> np.ndarray:
        """Copy a rectangle (channels, h, w) of a slice; errors as of `StackReader.read_region`."""
        index: list[Any] = [int(i) for i in np.unravel_index(self._planes[z, 0], self._others)]
        if self._channel_axis is not None:
            index[self._channel_axis] = slice(None)
        where = (*index[: self._y], rows, columns, *index[self._y :])
        try:
            pixels = np.asarray(self._array[where])
        except InputError:
            raise
        except Exception as error:  # each codec has its own exceptions
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{self.path}: slice {z} cannot be read: {cause}") from error
        if self._absent:
            self._tell_of_absent(self._absent[0])
        if pixels.ndim == 2:
            pixels = pixels[None]
        elif self._channel_axis is not None and self._channel_axis >= self._y:
            pixels = np.moveaxis(pixels, -1, 0)
        return np.array(pixels, self.dtype, order="C")

    def _tell_of_absent(self, key: str) -> None:
        """Tell of a part that is not stored: zarr reads it as the fill value without a word.

        Others may leave out chunks that hold nothing else. This package stores all.
        """
        if self._is_ours:
            raise InputError(
                f"{self.path}: cannot be read: {key} is missing, which was there when it was "
                "complete; --resume of its making makes it again"
            )
        self._absent = None  # said once
        note(
            f"{self.path}: chunks are missing, which read as {self._array.fill_value}, as zarr "
            "has it: either nothing else is there, or they are lost"
        )

    def close(self) -> None:
        """Close the file, if it is one."""
        if self._file is not None:
            self._file.close()


def _longer(letters: str, lengths: tuple[int, ...]) -> Axes:
    return tuple((axis, int(n)) for axis, n in zip(letters, lengths) if n > 1)
