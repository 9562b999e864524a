"""One process at a time: locks that the kernel releases, however their holder ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from unet_repro.errors import InputError

if sys.platform != "win32":
    import fcntl

_runs: ContextVar[frozenset[str]] = ContextVar("_runs", default=frozenset())  # that we hold


def take_lock(path: Path, message: str) -> BinaryIO:
    """Hold a lock file until it is closed, or the process ends; its folder must be there.

    The holder may remove `path`, also with the folder, before it closes the file.

    Raises
    ------
    InputError
        With `message`: another process holds it.
    OSError
        The file cannot be made.

    Notes
    -----
    An advisory ``flock``: it binds those who ask for it. A killed holder leaves an empty file
    behind, which locks nobody out. On Windows, which has no ``flock``, nothing is locked and no
    file is made; on a file system without locks nothing is locked.
    """
    if sys.platform == "win32":
        return io.BytesIO()
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(message) from None
        except OSError:  # a file system without locks
            return file
        if _is_at(file, path):
            return file
        file.close()  # its last holder has removed it meanwhile


def _is_at(file: BinaryIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


@contextmanager
def exclusive(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file while the body runs, and remove it behind; arguments as in `take_lock`.

    A missing folder is made, and removed again if nothing came into it.

    Raises
    ------
    InputError
        Another process holds it, or it cannot be made.
    """
    try:
        made = [folder for folder in path.parents if not folder.exists()]  # innermost first
        path.parent.mkdir(parents=True, exist_ok=True)
        file = take_lock(path, message)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            if sys.platform != "win32":
                path.unlink()  # while it is held: who waits for this one finds it gone
            for folder in made:
                folder.rmdir()  # while it is empty
        file.close()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep others from writing a run's folder while the body runs.

    A job of several steps holds it from the first to the last; the steps, which hold it
    themselves, find it held and go on. Another process, or another thread, that is writing the
    folder is an `InputError`. The folder is made and removed as `exclusive` does.
    """
    place = os.path.realpath(folder)
    if place in _runs.get():
        yield
        return
    with exclusive(folder / ".lock", f"{folder}: another process is writing it"):
        before = _runs.set(_runs.get() | {place})
        try:
            yield
        finally:
            _runs.reset(before)
