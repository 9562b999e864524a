"""Quantities as people write them on a command line: durations, sizes in bytes, ranges."""

from __future__ import annotations

import re
from collections.abc import Sequence

from unet_repro.errors import InputError

_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "b": 1}
for _power, _prefix in enumerate("kmgt", start=1):
    _BYTES |= {f"{_prefix}ib": 1024**_power, f"{_prefix}b": 1000**_power, _prefix: 1024**_power}
_MOST = 1e18  # of seconds or bytes: beyond any, and within 64 bits


def seconds(text: str) -> float:
    """Return a duration in seconds.

    Examples
    --------
    >>> seconds("90s"), seconds("10m"), seconds("1.5h"), seconds("30")
    (90.0, 600.0, 5400.0, 30.0)
    """
    return _number_with_unit(text, _SECONDS, "a duration such as 90s, 10m or 2h")


def memory_bytes(text: str) -> int:
    """Return a size in bytes.

    Examples
    --------
    >>> memory_bytes("8GiB"), memory_bytes("500MB"), memory_bytes("4096")
    (8589934592, 500000000, 4096)
    """
    return int(_number_with_unit(text, _BYTES, "a size such as 8GiB or 500MB"))


def duration_text(seconds: float) -> str:
    """Return a duration in words.

    Examples
    --------
    >>> duration_text(7.25), duration_text(598), duration_text(36_120), duration_text(360_000)
    ('7.2 s', '9 min 58 s', '10 h 2 min', '100 h 0 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size_text(n_bytes: float) -> str:
    """Return a size in words.

    Examples
    --------
    >>> size_text(999), size_text(1023999), size_text(8 * 2**30)
    ('999 B', '1000 KiB', '8 GiB')
    """
    unit = 0
    while n_bytes >= 1023.5 and unit < 4:
        n_bytes, unit = n_bytes / 1024, unit + 1
    digits = f"{n_bytes:.0f}" if n_bytes >= 100 or unit == 0 else f"{n_bytes:.3g}"
    return f"{digits} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _number_with_unit(text: str, units: dict[str, int], wanted: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    if not match or match[2].lower() not in units or float(match[1]) == 0:
        raise InputError(f"{text!r:.40} is not {wanted}, above 0")
    value = float(match[1]) * units[match[2].lower()]
    if value > _MOST:
        raise InputError(f"{text!r:.40} is too much: {wanted}, at most 1e18, is needed")
    return value


def index_range(text: str, *, length: int, name: str) -> range:
    """Return the indices ``a ... b-1`` of "a:b", which must lie in ``[0, length)``.

    Examples
    --------
    >>> index_range("25:30", length=30, name="--val")
    range(25, 30)
    """
    match = re.fullmatch(r"\s*0*(\d{1,18})\s*:\s*0*(\d{1,18})\s*", text)
    if not match or not int(match[1]) < int(match[2]) <= length:
        raise InputError(
            f"{name} {text!r:.40}: a range a:b with 0 <= a < b <= {length} is needed "
            f"(a ... b-1 are taken)"
        )
    return range(int(match[1]), int(match[2]))


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as ranges that end before their second number.

    Examples
    --------
    >>> ranges([0, 1, 2, 5])
    '0:3, 5:6'
    """
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    starts, stops = [0, *breaks], [*breaks, len(numbers)]
    blocks = zip(starts, stops) if numbers else ()
    return ", ".join(f"{numbers[a]}:{numbers[b - 1] + 1}" for a, b in blocks)
