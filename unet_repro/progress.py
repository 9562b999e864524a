"""How far a long work is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import io
import math
import sys
from contextlib import suppress
from time import monotonic
from typing import Any

from tqdm import tqdm

BAR_DELAY_S = 1.0  # shorter work shows no bar
LINE_EVERY_S = 30.0  # where standard error is no terminal; shorter work writes no line


class ProgressBar:
    """Show the progress of a work on standard error, inside a ``with``.

    On a terminal it is a bar with total and time left; elsewhere, at most one line every half
    minute. A standard error that is full, closed or gone never stops the work. `desc` is done to
    `total` of a `unit` (None if not known how many), `initial` of them before.
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str,
        desc: str = "",
        initial: int = 0,
        is_shown: bool = True,
    ) -> None:
        self._stream = _Unfailing(sys.stderr)
        has_bar = is_shown and self._stream.isatty()
        self._bar = tqdm(
            total=total,
            unit=unit,
            desc=desc or None,
            initial=initial,
            disable=not has_bar,
            delay=BAR_DELAY_S,
            dynamic_ncols=True,
            file=self._stream,
        )
        self._total, self._unit, self._desc, self._postfix = total, unit, desc, ""
        self._count = self._initial = self._written = initial
        self._begin = monotonic()
        self._next_line = self._begin + LINE_EVERY_S if is_shown and not has_bar else math.inf

    def update(self, n: int = 1) -> None:
        """Count `n` more as done."""
        self._count += n
        self._bar.update(n)
        now = monotonic()
        if now >= self._next_line:
            self._next_line = now + LINE_EVERY_S
            self._write_line(now)

    def set_postfix_str(self, text: str) -> None:
        """Say more behind the count, from the next time that it is shown."""
        self._postfix = text
        self._bar.set_postfix_str(text, refresh=False)

    def write(self, text: str) -> None:
        """Write a line of its own, above the bar; also where no bar is shown."""
        tqdm.write(text, file=self._stream)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._initial < self._written < self._count:
            self._write_line(monotonic())

    def _write_line(self, now: float) -> None:
        self._written = self._count
        elapsed, done = now - self._begin, self._count - self._initial
        parts = [f"{self._count} {self._unit}", f"{tqdm.format_interval(elapsed)} elapsed"]
        if self._total is not None:
            parts[0] = f"{self._count}/{self._total} {self._unit}"
            left = elapsed * max(self._total - self._count, 0) / max(done, 1)
            parts.append(f"{tqdm.format_interval(left)} left")
        if self._postfix:
            parts.append(self._postfix)
        self._stream.write(f"{self._desc or 'progress'}: {', '.join(parts)}\n")
        self._stream.flush()


class _Unfailing:
    """A stream whose writes fail in silence: of a full disk, a closed pipe, or no stream at all."""

    def __init__(self, stream: Any) -> None:
        self._stream = io.StringIO() if stream is None else stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
            return bool(self._stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:  # encoding, fileno: what tqdm asks of a terminal
        return getattr(self._stream, name)
