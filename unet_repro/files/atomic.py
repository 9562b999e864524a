"""Outputs that are either complete or absent: write to a private file, then rename it."""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from unet_repro.errors import InputError
from unet_repro.files.places import ZARR_DOCUMENTS, as_path, hdf5_of, url_of


def check_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Make sure that a file can be written at `path`, before hours of work go into it.

    Missing parent folders are created. Returns `path` with symbolic links followed, so that a link
    to a file survives its replacement.

    Raises
    ------
    InputError
        If `path` exists and `overwrite` is false, if it is a URL or anything but a regular file, or
        if its folder cannot be created or written.
    """
    if url_of(path):
        raise InputError(f"{as_path(path)}: no file is written behind a URL, only OME-Zarr")
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: is not a regular file, so it cannot be written as one")
    if target.exists() and not overwrite:
        raise InputError(f"{path}: exists already; give --overwrite to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe = _create_beside(target)
        probe.unlink()
    except OSError as error:
        raise InputError(f"{target.parent}: cannot be written: {error.strerror}") from error
    return target


def check_png(path: Path) -> None:
    """Refuse another name for a PNG that is written: programs go by it."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: a PNG is written: a name that ends in .png is needed")


def check_apart(out: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
    """Refuse an output that would replace its source or come to lie among the source's files.

    Either may be a URL. Of a dataset of HDF5 the file counts; of zarr all that is below, but for
    images among its ``labels``, and what describes the groups above.
    """
    hdf5 = None if url_of(source) else hdf5_of(source)
    target, origin = (
        PurePath(url_of(path) or os.path.realpath(path))
        for path in (out, hdf5[0] if hdf5 else source)
    )
    folder = Path(origin)
    is_zarr = any((folder / name).is_file() for name in ZARR_DOCUMENTS)
    if url_of(source) or is_zarr:
        describes = target.name in (*ZARR_DOCUMENTS, ".zattrs", ".zmetadata")
        is_above = describes and target.parent in origin.parents
        is_among = is_above or _is_below(target, origin, but="" if describes else "labels")
    else:
        is_among = origin == target.parent and folder.is_dir()
    if is_among or origin == target or target in origin.parents or _is_same(target, origin):
        raise InputError(f"{out}: would be among the files of {source}; give another place")


def _is_below(path: PurePath, folder: PurePath, *, but: str) -> bool:
    parts = path.relative_to(folder).parts if folder in path.parents else ()
    return len(parts) == 1 or (len(parts) > 1 and parts[0] != but)


def _is_same(a: PurePath, b: PurePath) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(a, b)  # by names that differ in case, say
    return False


def check_folder(path: Path, names: Iterable[str]) -> None:
    """Refuse to replace a folder that holds anything else than files of these names."""
    others = {entry.name for entry in path.iterdir()} - set(names) if path.is_dir() else set()
    if others:
        raise InputError(
            f"{path}: holds {min(others)}, which is none of the files to write; give a folder of "
            "its own"
        )


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file to write, and put it in place of `path` if all went well.

    It is empty, in the same folder and of the same suffix. It is removed if the body raises (an
    interrupt included), and then an existing file at `path` is as it was.

    Raises
    ------
    InputError
        As `check_output`; also if the disc fills up or the folder vanishes while writing.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_path(f"{folder}/metrics.json") as temporary:
    ...         _ = temporary.write_text("{}")
    ...     os.listdir(folder)
    ['metrics.json']
    """
    target = check_output(path, overwrite=overwrite)
    temporary: Path | None = None
    try:
        temporary = _create_beside(target)
        yield temporary
        if target.exists() and not overwrite:
            raise InputError(f"{path}: was made by another program meanwhile; it is left as it is")
        os.replace(temporary, target)
    except OSError as error:
        if temporary is None or _concerns(error, temporary, target):
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed writers left of files with these names, which may hold ``*`` and ``?``."""
    for name in names:
        for path in folder.glob(_temporary_name(Path(name), "[0-9a-f]" * 8)):
            path.unlink(missing_ok=True)


def _temporary_name(target: Path, token: str) -> str:
    return f".{target.stem[:100]}.{token}{target.suffix}"


def _create_beside(target: Path) -> Path:
    # Not tempfile.mkstemp: its files are readable by their owner only, whatever the umask says.
    temporary = target.with_name(_temporary_name(target, secrets.token_hex(4)))
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _concerns(error: OSError, *paths: Path) -> bool:
    # A full disc is reported by write(), which knows no file name.
    names = {str(path) for path in paths}
    return error.filename is None or str(error.filename) in names
