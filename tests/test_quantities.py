"""Durations, sizes and ranges as people write them."""

from __future__ import annotations

import pytest

from unet_repro.errors import InputError
from unet_repro.quantities import index_range, memory_bytes, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30", 30),
        ("90s", 90),
        ("10m", 600),
        ("1.5h", 5400),
        (".5h", 1800),
        ("1d", 86_400),
        (" 10 M ", 600),
    ],
)
def test_seconds(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("1KiB", 1024),
        ("2kB", 2000),
        ("500MiB", 524_288_000),
        ("8G", 8_589_934_592),
        ("8 gib", 8_589_934_592),
        ("1.5TB", 1_500_000_000_000),
    ],
)
def test_memory_bytes(text, expected):
    found = memory_bytes(text)
    assert found == expected
    assert isinstance(found, int)


@pytest.mark.parametrize("text", ["", "h", "10x", "-3m", "1,5h", "0", "0.0h", "10 m s", "1e3s"])
def test_what_is_no_duration(text):
    message = f"^'{text}' is not a duration such as 90s, 10m or 2h, above 0$"
    with pytest.raises(InputError, match=message):
        seconds(text)


@pytest.mark.parametrize("text", ["", "GiB", "8 apples", "-8GiB", "0MB", "8GiB/2", "8KB8"])
def test_what_is_no_size(text):
    message = f"^'{text}' is not a size such as 8GiB or 500MB, above 0$"
    with pytest.raises(InputError, match=message):
        memory_bytes(text)


@pytest.mark.parametrize("text", ["1" + 400 * "0", 5000 * "9", "9" * 30 + "h"])
def test_what_is_too_much_is_refused(text):
    for read in (seconds, memory_bytes):
        with pytest.raises(InputError, match=r"is too much|is not a size") as caught:
            read(text)
        assert len(str(caught.value)) < 120
    with pytest.raises(InputError, match="a range a:b"):
        index_range(f"0:{5000 * '9'}", length=30, name="--val")  # beyond what int() takes


def test_long_nonsense_is_cut_short():
    with pytest.raises(InputError) as caught:
        seconds(10_000 * "nonsense")
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("text", "expected"),
    [("25:30", range(25, 30)), ("0:30", range(30)), ("29:30", range(29, 30)), (" 1 : 2 ", [1])],
)
def test_index_range(text, expected):
    assert list(index_range(text, length=30, name="--val")) == list(expected)


@pytest.mark.parametrize(
    "text", ["", ":", "5", "5:", ":5", "5:5", "6:5", "25:31", "-1:3", "1:2:3", "a:b", "1.0:2"]
)
def test_what_is_no_range(text):
    message = (
        f"^--val '{text}': a range a:b with 0 <= a < b <= 30 is needed "
        r"\(a ... b-1 are taken\)$"
    )
    with pytest.raises(InputError, match=message):
        index_range(text, length=30, name="--val")
