"""Words to the user: what cannot be used (an exception), and how input was read (a note)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input, told in one line: what was given, the rule, what would work.

    Raised by every public function of the package that rejects its arguments or files. The
    command line prints its message and exits with code 2; any other exception is a bug of ours.
    """


class ChannelsError(InputError):
    """An image of other channels than are to be read."""


class InputNote(UserWarning):
    """How input was read where that is not plain: what was converted, or not carried over.

    Nothing is lost by it; the command line shows it as a line ``note: ...`` on standard error.
    """


def note(text: str) -> None:
    """Give an `InputNote`, once for each text unless filters say otherwise."""
    if _kept is None:
        warnings.warn(text, InputNote, stacklevel=3)
    else:
        _kept.append(text)


_kept: list[str] | None = None  # see `notes_kept`


@contextmanager
def notes_kept() -> Iterator[list[str]]:
    """Keep the texts of notes, of all threads, in a process that works for another, which tells."""
    global _kept
    before, _kept = _kept, []
    try:
        yield _kept
    finally:
        _kept = before


def one_line(text: str) -> str:
    r"""Return a text on one line, what a terminal would act on or could not show written out.

    File names and metadata may hold line breaks, escape sequences and undecodable bytes.

    Examples
    --------
    >>> print(one_line("a\nb \x1b[31mred"))
    a b \x1b[31mred
    """
    words = " ".join(text.split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in words
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, on the host or on the device, whoever reports it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    words = (
        *("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"),
        "could not create a primitive",  # oneDNN, for want of its scratch memory
    )
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
