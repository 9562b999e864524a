"""Run a command in a forked process of its own, within bounds, and tell how it ended."""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TOLD = ("note: ", "labels: ", "prediction: ", "val: ", "init: ", "stopped: ")
_BAR = re.compile(r"\d+/(?:\d+|\?) \[|\d+%\||^\S+: \d+\S* \[")
_LIBRARY = "PNG warning: "  # libpng's own words, of interlaced files: no way to ask it to be still


# What one input may take: bytes beyond what the process has, and s of processor time
MEMORY, SECONDS = 2**31, 20


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, or the signal that killed it, and what it said."""

    code: int
    signal: int
    error: str
    seconds: float

    @property
    def kind(self) -> str:
        """``result``, ``line`` (exit code 2, one clear line), or what else it was.

        Either may come with notes, a line each.
        """
        said = [
            part
            for part in re.split(r"[\r\n]+", self.error)
            if part.strip() and not _BAR.search(part) and not part.startswith(_LIBRARY)
        ]
        notes = [part for part in said if part.startswith(_TOLD)]
        said = [part for part in said if part not in notes]
        if self.signal:
            return f"killed by {signal.Signals(self.signal).name}"
        if "Traceback" in self.error:
            return "traceback"
        if not all(part.isprintable() for part in notes):
            return "control characters"
        if self.code == 0:
            return "result" if not said else "result with noise"
        if self.code != 2:
            return f"exit code {self.code}"
        if len(said) != 1 or not said[0].startswith("error: "):
            return "not one line"
        return "line" if said[0].isprintable() else "control characters"


def run_forked(command: Callable[[list[str]], int], arguments: list[str], folder: Path) -> Outcome:
    """Run a command line in a fork of this process, in a folder, and wait for its end."""
    error = folder / ".stderr"
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            _confine(folder, error)
            code = command(arguments)
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return Outcome(
        code=os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else -1,
        signal=os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        error=error.read_text("utf-8", "backslashreplace") if error.exists() else "",
        seconds=usage.ru_utime + usage.ru_stime,
    )


def _confine(folder: Path, error: Path) -> None:
    os.chdir(folder)
    for descriptor, path in ((1, os.devnull), (2, error)):
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    signal.alarm(10 * SECONDS)  # for one that waits and computes nothing
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
