"""Outputs that are computed in parts and survive a kill: finished parts wait on disc."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import imagecodecs
import numpy as np

from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.files.file_access import parse_json
from unet_repro.files.lock import take_lock

_ZSTD_LEVEL = 1  # the fastest
_WRITTEN = "written"
_MOST_TOLD = 3  # differences in a message


class Parts:
    """Keep the finished parts of an output, to go on after a kill without computing them again.

    In a private folder beside the output, ``.<name>.parts``: what is being computed (a record),
    the finished parts (arrays; zstd, with a check sum), a lock against a second process, and,
    while it is put together, the output. The folder goes when the output is complete, or if
    nothing was begun.

    Parameters
    ----------
    out : path-like
        The output.
    resume : bool
        Go on with what is there, if there is anything.
    overwrite : bool
        Replace an existing output, and, without `resume`, what is there of an unfinished one.
    is_folder : bool
        The output is a folder of files, not a file.

    Attributes
    ----------
    target : pathlib.Path
        The output with symbolic links followed.
    resumes : bool
        As given.
    is_complete : bool
        The output is in place and the folder may go.

    Raises
    ------
    InputError
        At once, or on entering: if the output or an unfinished one is there and neither option
        allows it, if another process is writing it, or if the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Parts(f"{folder.name}/sum.txt") as parts:
    ...     parts.begin({"bins": 2}, dtype=np.uint8)
    ...     parts.put(0, np.array([3, 4], np.uint8))  # here a kill may come
    >>> with Parts(f"{folder.name}/sum.txt", resume=True) as parts:
    ...     parts.begin({"bins": 2}, dtype=np.uint8)
    ...     parts.finish(lambda path: path.write_text(str(parts.get(0, (2,)).sum())))
    >>> [file.read_text() for file in Path(folder.name).iterdir()]
    ['7']
    >>> folder.cleanup()
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        is_folder: bool = False,
    ) -> None:
        # Not check_output: its probe, killed, would stay beside the output.
        self.target = Path(os.path.realpath(out))
        if not self.target.name:
            raise InputError(f"{out}: is the root of all folders and cannot be replaced")
        self.is_complete = False
        self._folder = self.target.with_name(f".{self.target.name}.parts")
        self._manifest = self._folder / "manifest.json"
        self.resumes = resume
        self._overwrite = overwrite
        self._is_folder = is_folder
        is_expected = self.target.is_dir() if is_folder else self.target.is_file()
        if self.target.exists() and not is_expected:
            kind = "folder" if is_folder else "regular file"
            raise InputError(f"{out}: is not a {kind}, so it cannot be written as one")
        if not resume:
            self._check_target()

    def __enter__(self) -> Parts:
        message = f"{self.target}: another process is writing it"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self._folder / "lock", message)
        except FileNotFoundError:  # the process that wrote it has just ended, and its folder gone
            raise InputError(message) from None
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written: {error.strerror}") from error
        try:
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        return self

    def _claim(self) -> None:
        if self.resumes or not self._manifest.exists():
            return
        if not self._overwrite:
            raise InputError(
                f"{self.target}: an unfinished run of it is there; --resume goes on with it, "
                "--overwrite begins anew"
            )
        self._clear()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_complete or not self._manifest.exists():
            with suppress(OSError):
                self._clear()
                shutil.rmtree(self._folder)
        self._lock.close()

    def _clear(self) -> None:
        """Remove all but the lock; the manifest last, so that no part is ever without one."""
        for file in sorted(self._folder.iterdir(), key=lambda file: file == self._manifest):
            if file.is_dir():
                shutil.rmtree(file)
            elif file.name != "lock":
                file.unlink()

    @property
    def record(self) -> dict[str, Any] | None:
        """What an unfinished run was begun with, to be resumed; None where there is none."""
        return self._stored()["record"] if self._manifest.exists() else None

    def begin(self, record: dict[str, Any], *, dtype: Any) -> None:
        """State what is computed, before the first part.

        Parameters
        ----------
        record : dict
            All that decides the output's content; JSON-ready.
        dtype
            Of the parts.

        Raises
        ------
        InputError
            If what is there was begun with another record; the message names the differences. If
            an output is there that may not be replaced.

        Notes
        -----
        A kill may have come when the output was already in place: then `is_complete` is True, and
        nothing is left to do.
        """
        self._dtype = np.dtype(dtype)
        if not self._manifest.exists():
            self._check_target()
            self._clear()  # whatever is there is no part of this
            with atomic_path(self._manifest, overwrite=True) as part:
                part.write_text(json.dumps({"overwrite": self._overwrite, "record": record}))
            return
        stored = self._stored()
        if differing := differences(stored["record"], json.loads(json.dumps(record))):
            more = f" and {len(differing) - _MOST_TOLD} more" if len(differing) > _MOST_TOLD else ""
            told = "; ".join(differing[:_MOST_TOLD])
            raise InputError(
                f"{self.target}: cannot be resumed, it was begun with {told}{more}; "
                "--overwrite without --resume begins anew"
            )
        self._overwrite |= stored["overwrite"]
        is_in_place = self.target.exists() and not self.whole.exists()
        self.is_complete = (self._folder / _WRITTEN).exists() and is_in_place
        if not self.is_complete:
            self._check_target()

    def _stored(self) -> dict[str, Any]:
        try:
            manifest = parse_json(self._manifest.read_bytes())
            return {"record": dict(manifest["record"]), "overwrite": bool(manifest["overwrite"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._manifest}: is damaged; --overwrite without --resume begins anew"
            ) from error

    def _check_target(self) -> None:
        if self.target.exists() and not self._overwrite:
            raise InputError(f"{self.target}: exists already; give --overwrite to replace it")

    def put(self, number: int, values: np.ndarray) -> None:
        """Keep a part; from threads as well."""
        content = np.ascontiguousarray(values, self._dtype).tobytes()
        payload = imagecodecs.zstd_encode(content, _ZSTD_LEVEL)
        with atomic_path(self._file(number), overwrite=True) as part, part.open("wb") as file:
            file.write(struct.pack("<I", zlib.crc32(payload)))
            file.write(payload)

    def has(self, number: int) -> bool:
        """Whether a part is there, and undamaged."""
        return self._payload(number) is not None

    def get(self, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return a part; from threads as well.

        Raises
        ------
        InputError
            If it is not there, or damaged.
        """
        payload = self._payload(number)
        if payload is None:
            raise InputError(
                f"{self._file(number)}: is missing or damaged; --resume computes it again"
            )
        return np.frombuffer(imagecodecs.zstd_decode(payload), self._dtype).reshape(shape)

    @property
    def whole(self) -> Path:
        """Where the output is put together."""
        return self._folder / f"whole{self.target.suffix}"

    def finish(self, write: Callable[[Path], Any]) -> None:
        """Put the output together and in place: `write` is called with the path to write to.

        A folder that is replaced is away for a moment between two renamings.
        """
        write(self.whole)
        self._check_target()
        (self._folder / _WRITTEN).touch()  # from now on, no `whole` means that it is in place
        if self._is_folder and self.target.exists():
            os.replace(self.target, self._folder / "replaced")
        os.replace(self.whole, self.target)
        self.is_complete = True

    def _file(self, number: int) -> Path:
        return self._folder / f"{number:06}.zst"

    def _payload(self, number: int) -> bytes | None:
        try:
            content = self._file(number).read_bytes()
        except FileNotFoundError:
            return None
        checksum, payload = content[:4], content[4:]
        return payload if checksum == struct.pack("<I", zlib.crc32(payload)) else None


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """List in words where two JSON values differ.

    Examples
    --------
    >>> differences({"a": 1, "b": {"c": [2, 3]}}, {"a": 1, "b": {"c": [2, 4]}})
    ['b.c [2, 3], not [2, 4]']
    """
    if isinstance(old, dict) and isinstance(new, dict):
        dot = "." if name else ""
        keys = [*old, *(key for key in new if key not in old)]
        found = (differences(old.get(key), new.get(key), f"{name}{dot}{key}") for key in keys)
        return [line for lines in found for line in lines]
    return [] if old == new else [f"{name} {_short(old)}, not {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 72 else f"{text[:69]}..."
