"""The progress of a work: a bar on a terminal, few lines in a log, and never a reason to stop."""

import errno
import io
import re

import pytest

from unet_repro import progress
from unet_repro.progress import ProgressBar

DELAY = progress.BAR_DELAY_S


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    def write(self, *_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write  # type: ignore[assignment]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "monotonic", clock)
    monkeypatch.setattr(progress, "BAR_DELAY_S", 0.0)
    return clock


def work(clock: Clock, steps: int, seconds: float, **options) -> None:
    with ProgressBar(options.pop("total", steps), unit="tile", desc="predict", **options) as bar:
        for step in range(steps):
            clock.now += seconds
            bar.set_postfix_str(f"loss {step}")
            bar.update()


def test_ten_minutes_are_a_line_each_half_minute_in_a_log(clock, capsys):
    work(clock, 600, 1.0)
    text = capsys.readouterr().err
    lines = text.splitlines()
    assert 19 <= len(lines) <= 21 and "\r" not in text
    assert lines[9] == "predict: 300/600 tile, 05:00 elapsed, 05:00 left, loss 299"
    assert lines[-1].startswith("predict: 600/600 tile, 10:00 elapsed, 00:00 left")


def test_less_than_half_a_minute_leaves_no_line(clock, capsys):
    work(clock, 290, 0.1)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [  # what was done before does not shorten the time left; without a total none is told
        ({"total": 10, "initial": 8}, "9/10 tile, 00:40 elapsed, 00:40 left"),
        ({"total": None}, "1 tile, 00:40 elapsed"),
    ],
)
def test_time_left_is_that_of_the_rest(clock, capsys, options, said):
    work(clock, 1, 40.0, **options)
    assert capsys.readouterr().err == f"predict: {said}, loss 0\n"


def test_a_terminal_gets_a_bar_with_total_and_time_left(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with ProgressBar(4, unit="tile", desc="predict") as bar:
        bar.set_postfix_str("loss 0.1")
        bar.update(3)
        bar.write("a word between")
    text = progress.sys.stderr.getvalue()
    assert "\ra word between\n" in text
    assert re.search(r"\rpredict:  75%.* 3/4 \[.*<.*loss 0.1\]", text)


def test_short_work_shows_no_bar_on_a_terminal(clock, monkeypatch):
    monkeypatch.setattr(progress, "BAR_DELAY_S", DELAY)
    monkeypatch.setattr("sys.stderr", Terminal())
    work(clock, 3, 60.0)  # by this clock; tqdm's own says that no time has passed
    assert progress.sys.stderr.getvalue() == ""


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_nothing_is_shown_unasked_but_what_is_written(clock, monkeypatch, stream):
    monkeypatch.setattr("sys.stderr", stream())
    with ProgressBar(4, unit="tile", is_shown=False) as bar:
        clock.now += 100
        bar.update(3)
        bar.write("a warning")
    assert progress.sys.stderr.getvalue() == "a warning\n"


@pytest.mark.parametrize(
    "stream", [Full(), type("FullTerminal", (Full, Terminal), {})(), Terminal(), None]
)
def test_a_stream_that_takes_nothing_stops_nothing(clock, monkeypatch, stream):
    if type(stream) is Terminal:
        stream.close()
    monkeypatch.setattr("sys.stderr", stream)
    work(clock, 4, 100.0)
