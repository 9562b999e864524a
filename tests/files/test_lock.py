"""The lock files that keep a second process from an output."""

import os
import signal
import subprocess
import sys
import threading

import pytest

import unet_repro
from unet_repro.errors import InputError
from unet_repro.files.lock import exclusive, run_lock, take_lock

fcntl = pytest.importorskip("fcntl")


def test_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        "import os, pathlib, sys, types\n"
        "package = sys.modules['unet_repro'] = types.ModuleType('unet_repro')\n"
        f"package.__path__ = {unet_repro.__path__!r}  # without all its imports\n"
        "from unet_repro.files.lock import take_lock\n"
        "file = take_lock(pathlib.Path(sys.argv[1]), 'busy'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / ".lock"])
    assert done.returncode == -signal.SIGKILL and (tmp_path / ".lock").exists()
    with exclusive(tmp_path / ".lock", "busy"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_lock_that_its_holder_has_removed_is_not_taken_for_one(tmp_path, monkeypatch):
    """Opened before the holder removed it, locked after: another one may already hold the next."""
    flock, calls = fcntl.flock, []

    def removed_meanwhile(file, how):
        flock(file, how)
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with take_lock(tmp_path / ".lock", "busy") as file:
        assert len(calls) == 2 and calls[0].closed
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(tmp_path / ".lock"))
        with pytest.raises(InputError, match="busy"):
            take_lock(tmp_path / ".lock", "busy")


def is_locked(folder):
    """Tell whether another process could not write a run: a file opened anew is one to flock."""
    try:
        take_lock(folder / ".lock", "busy").close()
    except InputError:
        return True
    return False


def test_a_step_inside_a_job_neither_waits_for_its_lock_nor_gives_it_up(tmp_path):
    folder = tmp_path / "run"
    with run_lock(folder):
        (folder / "model").touch()
        with run_lock(tmp_path / "." / "run"), run_lock(tmp_path / "other"):
            assert is_locked(folder) and is_locked(tmp_path / "other")
        assert is_locked(folder) and not (tmp_path / "other").exists()
        with pytest.raises(ZeroDivisionError), run_lock(folder):
            raise ZeroDivisionError
        assert is_locked(folder)
    assert not (folder / ".lock").exists()
    with exclusive(folder / ".lock", "busy"), pytest.raises(InputError, match="another process"):
        with run_lock(folder):  # what it held before is forgotten
            pass


def test_another_thread_takes_no_part_in_a_job(tmp_path):
    told = []

    def write():
        try:
            with run_lock(tmp_path):
                pass
        except InputError as error:
            told.append(str(error))

    with run_lock(tmp_path):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert told == [f"{tmp_path}: another process is writing it"]


def test_folders_made_for_a_lock_go_with_it_unless_something_came_into_them(tmp_path):
    with exclusive(tmp_path / "a/b/.lock", "busy"):
        assert (tmp_path / "a/b").is_dir()
    assert not list(tmp_path.iterdir())
    with exclusive(tmp_path / "a/b/.lock", "busy"):
        (tmp_path / "a/notes").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["notes"]
    (tmp_path / "empty").mkdir()
    with exclusive(tmp_path / "empty/.lock", "busy"):
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before
