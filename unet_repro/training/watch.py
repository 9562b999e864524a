"""What a training run watches for: a wish to stop, and a network that has collapsed."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NO_BETTER = 0.95  # a loss above this share of the prior's entropy has learnt nothing
_HORIZON = 10  # log rows that the running mean of the loss reaches back
_KEPT = ("mean", "is_stuck", "is_one_class", "has_warned")
_PATIENCE = 500  # iterations after a long warm-up before the training loss is judged


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the step under way."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)  # a second one is not waited for

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class CollapseWatch:
    """Tells once when a network has collapsed: it gives every pixel the same class.

    A collapsed network knows the frequencies of the classes and nothing else, so its loss is the
    entropy of the class prior (`prior`, nats). Seen twice: on the held-out slices, where classes
    can be counted, and in the running mean of the training loss, long after the warm-up.
    """

    def __init__(self, *, prior: float, warmup: int) -> None:
        self.prior, self.warmup = prior, warmup
        self.mean = math.nan  # of the training loss, running
        self.is_stuck = self.is_one_class = False  # what loss and held-out slices say last
        self.has_warned = False

    @property
    def has_collapsed(self) -> bool:
        """Whether either says that the network has collapsed."""
        return self.is_stuck or self.is_one_class

    def state(self) -> dict[str, float | bool]:
        """Return what a checkpoint keeps."""
        return {name: getattr(self, name) for name in _KEPT}

    def restore(self, state: dict[str, float | bool]) -> None:
        """Go on from a `state`."""
        for name in _KEPT:
            setattr(self, name, state[name])

    def see_training(self, iteration: int, loss: float) -> str:
        """Take the training loss of a log row; return a warning, or nothing."""
        if math.isnan(self.mean):
            self.mean = loss
        self.mean += (loss - self.mean) / _HORIZON
        is_late = iteration >= 4 * self.warmup + _PATIENCE
        self.is_stuck = is_late and self.mean >= _NO_BETTER * self.prior
        return self._warn(
            self.is_stuck,
            f"iteration {iteration}: the training loss, {self.mean:.3f} in the mean, is no better "
            f"than guessing by class frequency ({self.prior:.3f}): the network seems to have "
            "collapsed.",
        )

    def see_validation(self, iteration: int, loss: float, *, is_one_class: bool) -> str:
        """Take the loss on held-out slices; return a warning, or nothing."""
        is_late = iteration > 2 * self.warmup
        self.is_one_class = is_late and is_one_class and loss > _NO_BETTER * self.prior
        return self._warn(
            self.is_one_class,
            f"iteration {iteration}: every held-out pixel gets the same class, and the loss "
            f"{loss:.3f} is no better than guessing by class frequency ({self.prior:.3f}): the "
            "network has collapsed.",
        )

    def _warn(self, is_found: bool, finding: str) -> str:
        if not is_found or self.has_warned:
            return ""
        self.has_warned = True
        return (
            f"{finding} Start again (--overwrite) with a lower --learning-rate, more "
            "--warmup-iterations or another --seed."
        )
