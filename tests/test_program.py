"""What every command says: notes of how input was read, and one line alone where it is refused."""

from __future__ import annotations

import gc
import threading
import warnings

import pytest

from unet_repro import program
from unet_repro.errors import InputError, note
from unet_repro.program import guarded, loading


def test_notes_are_shown_once_each_at_the_end(capsys):
    def command() -> int:
        for text in ("a.tif: read as grey", "b.tif: read\nas grey", "a.tif: read as grey"):
            note(text)
        assert capsys.readouterr().err == ""
        return 0

    assert guarded(command) == 0
    assert capsys.readouterr().err == "note: a.tif: read as grey\nnote: b.tif: read as grey\n"


def test_a_refusal_is_one_line_without_notes(capsys):
    def command() -> int:
        note("a.tif: read as grey")
        raise InputError("a.tif: holds no slices")

    assert guarded(command) == 2
    assert capsys.readouterr().err == "error: a.tif: holds no slices\n"


def test_notes_of_a_long_command_do_not_wait_for_its_end(capsys, monkeypatch):
    monkeypatch.setattr(program, "_NOTES_WAIT_S", 0.01)
    seen = []

    def command() -> int:
        note("a.tif: read as grey")
        for _ in range(500):
            seen.append(capsys.readouterr().err)
            if seen[-1]:
                return 0
            threading.Event().wait(0.01)
        return 1

    assert guarded(command) == 0
    assert seen[-1] == "note: a.tif: read as grey\n" and capsys.readouterr().err == ""


def test_notes_are_shown_when_a_command_is_interrupted(capsys):
    def command() -> int:
        note("a.tif: read as grey")
        raise KeyboardInterrupt

    assert guarded(command) == 130
    assert capsys.readouterr().err == "note: a.tif: read as grey\nerror: interrupted\n"


def test_other_warnings_are_as_ever(capsys):
    def command() -> int:
        warnings.warn("something else", stacklevel=1)
        return 0

    with pytest.warns(UserWarning, match="something else"):
        assert guarded(command) == 0
    assert capsys.readouterr().err == ""


def test_libraries_load_without_the_collector():
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()


@pytest.mark.parametrize("is_own", [True, False])
def test_what_was_loaded_is_left_out_of_collections_in_a_process_of_our_own(is_own, monkeypatch):
    monkeypatch.setattr(program, "_is_own_process", is_own)
    frozen = gc.get_freeze_count()
    try:
        with loading():
            pass
        # elsewhere it would keep what the caller has for good
        assert (gc.get_freeze_count() > frozen) == is_own
    finally:
        gc.unfreeze()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
