"""Opening files that may be damaged, missing or in use: whatever goes wrong is one `InputError`."""

import io
import json
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from unet_repro.errors import InputError

_DEEPEST_JSON = 50  # what this package writes has fewer than 10 levels


class LoneFile(io.BufferedReader):
    """A file that is read alone: without a descriptor, tifffile opens none that it names.

    The slices of an OME-TIFF may be said to lie in other files. They can be anything: files that
    nobody named, anywhere, or a pipe that never ends.
    """

    def fileno(self) -> NoReturn:
        """Raise, as a stream does that is no file."""
        raise io.UnsupportedOperation("no descriptor is given away")


def open_binary(path: Path) -> BinaryIO:
    """Open a regular file for reading; an `InputError` says why that is not possible.

    Others are not opened: a pipe would keep the reader waiting for ever, and a device has no end.
    """
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise InputError(f"{path}: is a pipe or a device, not a regular file")
        return LoneFile(io.FileIO(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_bytes(path: Path, size: int = -1) -> bytes:
    """Read the first `size` bytes of a file, or all of them."""
    with open_binary(path) as file:
        return file.read(size)


def parse_json(text: str | bytes) -> Any:
    """Parse JSON; nested so deeply that to compare or show it may fail, it is a ValueError too."""
    too_deep = ValueError(f"it is nested in more than {_DEEPEST_JSON} levels")
    try:
        value = json.loads(text)
    except RecursionError:
        raise too_deep from None
    level = [value]
    for _ in range(_DEEPEST_JSON):
        level = [inner for outer in level for inner in _inside(outer)]
    if any(isinstance(inner, (dict, list)) for inner in level):
        raise too_deep
    return value


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


@contextmanager
def as_input_errors(path: Path, what: str = "") -> Iterator[None]:
    """Turn whatever a damaged file makes tifffile and the codecs raise or log into `InputError`.

    What they raise is not documented and takes many forms (struct.error, KeyError, MemoryError
    from a huge size, ...), and some defects are only logged. Warnings in the log are harmless
    oddities of the tags. `what` names the part of the file, with a space behind: ``"slice 3 "``.
    """
    logged: list[str] = []
    thread = threading.get_ident()

    def collect(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        if record.levelno >= logging.ERROR:
            logged.append(record.getMessage())
        return False

    logger = logging.getLogger("tifffile")
    logger.addFilter(collect)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: {what}cannot be read: {cause}") from error
    finally:
        logger.removeFilter(collect)
    if logged:
        raise InputError(f"{path}: {what}is damaged: {' '.join(logged[0].split())}")


@dataclass(frozen=True)
class FileState:
    """Size in bytes and time of a file, by which a later change is noticed."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Look at a file."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        return cls(path, status.st_size, status.st_mtime_ns)

    def record(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {"name": self.path.name, "size": self.size, "mtime_ns": self.mtime_ns}

    def check_unchanged(self) -> None:
        """Raise `InputError` if the file has another size or time now, or is gone."""
        again = "leave the input as it is while it is read, and start again"
        try:
            now = FileState.of(self.path)
        except InputError as error:
            raise InputError(f"{self.path}: has vanished since reading began; {again}") from error
        if now.size != self.size:
            raise InputError(
                f"{self.path}: has changed since reading began ({self.size} bytes then, "
                f"{now.size} now); {again}"
            )
        if now.mtime_ns != self.mtime_ns:
            raise InputError(f"{self.path}: was written to since reading began; {again}")
