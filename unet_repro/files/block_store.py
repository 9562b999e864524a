"""Outputs that are computed in blocks and survive a kill: finished blocks wait on disc."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.files.file_access import parse_json
from unet_repro.files.lock import take_lock
from unet_repro.files.places import Folder

_WRITTEN = "written"
_MOST_NAMED = 3  # differences in a message


class BlockStore:
    """Keep the finished blocks of an output, to go on after a kill without computing them again.

    In a private folder beside the output, ``.<name>.parts``: the blocks, as an array whose
    attributes are the record of what is computed, a lock against a second process, and, while it
    is put together, the output. The folder goes when the output is complete, or if nothing was
    begun.

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
    is_complete : bool
        The output is in place and the folder may go.
    blocks : BlockArray
        From `begin` on.
    doubt : str
        What is wrong with the output that is there, to be told where it is not replaced.

    Raises
    ------
    InputError
        At once, or on entering: if the output or an unfinished one is there and neither option
        allows it, if another process is writing it, or if the folder cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with BlockStore(f"{folder.name}/sum.txt") as store:
    ...     store.begin({"bins": 2}, shape=(4,), dtype=np.uint8, chunks=(2,))
    ...     store.blocks.write(0, np.array([3, 4], np.uint8))  # here a kill may come
    >>> with BlockStore(f"{folder.name}/sum.txt", resume=True) as store:
    ...     store.begin({"bins": 2}, shape=(4,), dtype=np.uint8, chunks=(2,))
    ...     print(store.blocks.missing(heals=True))
    ...     store.finish(lambda path: path.write_text(str(store.blocks.read(0).sum())))
    [1]
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
        self.doubt = ""
        self._folder = self.target.with_name(f".{self.target.name}.parts")
        self._place = self._folder / "blocks"
        self._header = self._place / "zarr.json"
        self.resumes = resume
        self._overwrite = overwrite
        self._is_folder = is_folder
        self.blocks: BlockArray
        is_expected = self.target.is_dir() if is_folder else self.target.is_file()
        if self.target.exists() and not is_expected:
            kind = "folder" if is_folder else "regular file"
            raise InputError(f"{out}: is not a {kind}, so it cannot be written as one")
        if not resume:
            self._check_target()

    def __enter__(self) -> BlockStore:
        message = f"{self.target}: another process is writing it"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = take_lock(self._folder / "lock", message)
        except FileNotFoundError:  # the process that wrote it has just ended, and its folder gone
            raise InputError(message) from None
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written: {error.strerror}") from error
        try:
            self._put_back()
            if self._header.exists() and not self.resumes:
                if not self._overwrite:
                    raise InputError(
                        f"{self.target}: an unfinished run of it is there; --resume goes on with "
                        "it, --overwrite begins anew"
                    )
                self._clear()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.is_complete or not self._header.exists():
            with suppress(OSError):
                self._clear()
                shutil.rmtree(self._folder)
        self._lock.close()

    def _clear(self) -> None:
        """Remove all but the lock; the record last, so that no block is ever without one."""
        kept = (self._folder / "lock", self._place, self._header)
        for folder in filter(Path.exists, (self._place, self._folder)):
            for entry in folder.iterdir():
                if entry.is_dir() and entry not in kept:
                    shutil.rmtree(entry)
                elif entry not in kept:
                    entry.unlink()
        if self._place.exists():
            shutil.rmtree(self._place)

    @property
    def record(self) -> dict[str, Any] | None:
        """What an unfinished run was begun with, to be resumed; None where there is none."""
        return self._stored()["record"] if self._header.exists() else None

    def _stored(self) -> dict[str, Any]:
        try:
            attributes = parse_json(self._header.read_bytes())["attributes"]
            return {
                "record": dict(attributes["record"]),
                "overwrite": bool(attributes["overwrite"]),
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged() from error

    def _damaged(self) -> InputError:
        return InputError(f"{self._header}: is damaged; --overwrite without --resume begins anew")

    def begin(
        self,
        record: dict[str, Any],
        *,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        chunks: tuple[int, ...],
    ) -> None:
        """State what is computed, before the first block.

        Parameters
        ----------
        record : dict
            All that decides the output's content; JSON-ready.
        shape, dtype, chunks
            Of all values, and of one block; those at the far ends may be smaller.

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
        kept = np.dtype(dtype)
        self.blocks = BlockArray(
            Folder(self._place),
            shape,
            kept.name,
            chunks,
            chunks,
            chunks,
            coding="crc32c" if kept.kind == "f" else "zstd",  # floats hardly get smaller
        )
        if not self._header.exists():
            self._check_target()
            self._clear()  # whatever is there is no block of this
            try:
                self.blocks.create(attributes={"overwrite": self._overwrite, "record": record})
            except OSError as error:
                raise self.unwritable(error) from error
            return
        stored = self._stored()
        check_record(stored["record"], record, str(self.target))
        try:
            self.blocks.array()
        except InputError as error:
            raise self._damaged() from error
        self._overwrite |= stored["overwrite"]
        is_in_place = self.target.exists() and not self.whole.exists()
        self.is_complete = (self._folder / _WRITTEN).exists() and is_in_place
        if not self.is_complete:
            self._check_target()

    def _check_target(self) -> None:
        if self.target.exists() and not self._overwrite:
            raise InputError(
                f"{self.target}: exists already{self.doubt}; give --overwrite to replace it"
            )

    def unwritable(self, error: OSError) -> InputError:
        """Return what is said of an output, or a block, that cannot be written."""
        reason = error.strerror or error
        return InputError(
            f"{self.target}: cannot be written: {reason}; what is done stays, --resume goes on"
        )

    @property
    def whole(self) -> Path:
        """Where the output is put together."""
        return self._folder / f"whole{self.target.suffix}"

    def finish(self, assemble: Callable[[Path], Any]) -> None:
        """Put the output together and in place: `assemble` is called with the path to write to.

        A folder that is replaced is away for a moment between two renamings; after a kill there it
        is back as soon as the output is asked for again.
        """
        assemble(self.whole)
        self._check_target()
        (self._folder / _WRITTEN).touch()  # from now on, no `whole` means that it is in place
        try:
            if self._is_folder and self.target.exists():
                os.replace(self.target, self._replaced)
            os.replace(self.whole, self.target)
        except OSError as error:
            self._put_back()
            raise self.unwritable(error) from error
        self.is_complete = True

    @property
    def _replaced(self) -> Path:
        return self._folder / "replaced"

    def _put_back(self) -> None:
        """Give the folder that was to be replaced its name again, unless its successor has it."""
        if not self._replaced.exists() or self.target.exists():
            return
        try:
            os.replace(self._replaced, self.target)
        except OSError as error:
            raise InputError(
                f"{self.target}: cannot be written: {error.strerror or error}; what was there "
                f"before is {self._replaced}"
            ) from error


def unfinished_record(out: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what an unfinished output was begun with, None where nothing is there to be read."""
    target = Path(os.path.realpath(out))
    header = target.with_name(f".{target.name}.parts") / "blocks/zarr.json"
    try:
        record = parse_json(header.read_bytes())["attributes"]["record"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if isinstance(record, dict) else None


def check_record(stored: dict[str, Any], record: dict[str, Any], name: str) -> None:
    """Raise an `InputError` that names the differences, unless two records are the same."""
    found = differences(stored, json.loads(json.dumps(record)))
    if found:
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise InputError(
            f"{name}: cannot be resumed, it was begun with "
            f"{'; '.join(found[:_MOST_NAMED])}{more}; "
            "--overwrite without --resume begins anew"
        )


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
