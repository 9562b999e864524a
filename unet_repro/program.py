"""What every command and every job needs: options parsed, faults told in a line, exit codes."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn, TextIO, TypeVar, get_args

import tyro

from unet_repro.config import FINE_TUNING_RATE, PRESETS, Preset, TrainConfig
from unet_repro.errors import InputError, InputNote, is_out_of_memory, one_line

Options = TypeVar("Options")
Settings = tyro.conf.OmitArgPrefixes[TrainConfig]
INTERRUPTED = 130
_NOTES_WAIT_S = 3.0
_is_own_process = False  # nothing in it is another's


def preset_settings(arguments: Sequence[str], default: Preset) -> TrainConfig:
    """Return the settings that the flags start from: those of the last ``--preset`` given.

    With ``--init`` the network is that of the model, where it can be read (training says what is
    wrong with it), and the learning rate a tenth. Running means of weights do not fit batch
    normalisation (`TrainConfig`): a network that has it is trained without.
    """
    name = _last(arguments, "--preset")
    settings = PRESETS[name if name in get_args(Preset) else default]  # type: ignore[index]
    init = _last(arguments, "--init")
    if not init:
        return settings
    from unet_repro.network.model_file import load_model

    rate = float(f"{FINE_TUNING_RATE * settings.learning_rate:.6g}")
    settings = replace(settings, learning_rate=rate)
    with contextlib.suppress(InputError, OSError):
        network = load_model(init).config
        decay = 0.0 if network.batch_norm else settings.weight_average
        return replace(settings, model=network, weight_average=decay)
    return settings


def _last(arguments: Sequence[str], flag: str) -> str:
    """Return the last value given for a flag, as ``--flag value`` or ``--flag=value``."""
    value = ""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument == flag:
            value = following
        elif argument.startswith(f"{flag}="):
            value = argument.partition("=")[2]
    return value


def parse(
    options: type[Options], arguments: Sequence[str], *, prog: str, default: Options | None = None
) -> Options:
    """Parse arguments into an options dataclass; bad usage raises an `InputError` of one line."""
    printed = io.StringIO()
    if default is None:
        default = tyro.MISSING
    try:
        with contextlib.redirect_stderr(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tyro's, on the missing defaults
            return tyro.cli(options, args=list(arguments), prog=prog, default=default)
    except SystemExit as exit_:
        if not exit_.code:
            raise
        raise InputError(f"{_said(printed.getvalue())} (see {prog} --help)") from None


def _said(framed: str) -> str:
    """Return the words of tyro's framed message, without frame, title, help texts and advice."""
    words: list[str] = []
    for line in framed.splitlines()[1:]:
        text = line.strip("│")
        is_rule = not text.strip(" ─-╰╯")
        if is_rule and words:
            break
        if not is_rule and not text.startswith(" " * 9):  # deeper: the help of an option
            words += text.split()
    said = re.sub(r"^Error parsing \S*(settings\S*|dummy\S*): ", "", " ".join(words))
    of_no_type = r"^Error parsing (\S+): no type matching (\S+) could be .* from \[(.*)\]\.?$"
    return re.sub(of_no_type, r"\1 \3: \2 is needed", said)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Load libraries without the garbage collector, a sixth of their time: what they make stays.

    In a process of our own (`program`) later collections leave it out too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if _is_own_process:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def guarded(command: Callable[[], int]) -> int:
    """Run a command; turn bad input, full disks, Ctrl-C and SIGTERM into a line and an exit code.

    The codes are those of `main`. Whatever standard error cannot take, being full, goes untold.
    """
    try:
        with _termination_as_interrupt(), _notes_on_stderr():
            code = command()
            sys.stdout.flush()  # at exit it would be too late to tell
        return code
    except InputError as error:
        message, code = str(error), 2
    except (KeyboardInterrupt, SystemError) as error:
        # numba wraps what interrupts a compiled function into a SystemError
        if not isinstance(error.__cause__ or error, KeyboardInterrupt):
            raise
        message, code = "interrupted", INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence(sys.stdout)
        return 0
    except OSError as error:
        message, code = f"{error.filename or 'input or output'}: {error.strerror or error}", 2
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message, code = f"out of memory: smaller tiles need less (--tile): {error}", 2
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)
    try:
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
    except OSError:
        _silence(sys.stderr)
    return code


def program(main: Callable[[], int]) -> NoReturn:
    """Run a program and end the process; before and after, Ctrl-C does so without more words."""
    global _is_own_process
    _is_own_process = True
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
    except KeyboardInterrupt:  # before `guarded` or after it
        print("error: interrupted", file=sys.stderr)
        code = INTERRUPTED
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it may be ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


class _Notes:
    """Notes of how input was read, each a line on standard error, once.

    They wait for some seconds or for the command's end, so that a refusal is one line alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, bool] = {}  # and whether each has been shown
        self._timer: threading.Timer | None = None

    def add(self, text: str) -> None:
        with self._lock:
            self._texts.setdefault(text, False)
            if self._timer is None or not self._timer.is_alive():
                self._timer = threading.Timer(_NOTES_WAIT_S, self.show)
                self._timer.daemon = True
                self._timer.start()

    def show(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            for text in [text for text, is_shown in self._texts.items() if not is_shown]:
                self._texts[text] = True
                print(f"note: {one_line(text)}", file=sys.stderr, flush=True)

    def drop(self) -> None:
        with self._lock:
            self._texts = dict.fromkeys(self._texts, True)
            if self._timer is not None:
                self._timer.cancel()


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """Show notes as lines, but for those of a command that is refused; other warnings as ever."""
    notes = _Notes()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, InputNote):
            notes.add(str(message))
        else:
            others(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InputNote)
        others, warnings.showwarning = warnings.showwarning, show
        try:
            yield
            notes.show()
        except KeyboardInterrupt:
            notes.show()
            raise
        finally:
            notes.drop()


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, where nobody handles it, do what Ctrl-C does: clean up, then end."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if is_ours:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _silence(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, or the interpreter would complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
