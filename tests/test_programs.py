"""The programs at their start and end; what happens in between is in test_cli.py and faults/."""

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unet_repro import program

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
PROJECT = Path(__file__).parents[1]
PROGRAMS = {
    "module": [sys.executable, "-m", "unet_repro"],
    "console script": [sys.executable, Path(sys.executable).with_name("unet-repro")],
    "EM challenge": [sys.executable, PROJECT / "experiments/em_challenge.py"],
    "DIC-HeLa": [sys.executable, PROJECT / "experiments/dic_hela.py"],
    "PhC-U373": [sys.executable, PROJECT / "experiments/phc_u373.py"],
    "ISBI 2012 data": [sys.executable, PROJECT / "data/isbi2012/prepare.py"],
    "DIC-HeLa data": [sys.executable, PROJECT / "data/dic_hela/prepare.py"],
    "PhC-U373 data": [sys.executable, PROJECT / "data/phc_u373/prepare.py"],
}
LIBRARY = """
import os
os.kill(os.getpid(), int(os.environ["SENT"]))
print("went on", flush=True)
os._exit(0)
"""


@pytest.fixture
def loading(tmp_path):
    """Run a program that is sent a signal while it loads a library, by default the first one."""

    def run(name, number, *arguments, is_heard=True, library="tyro"):
        (tmp_path / f"{library}.py").write_text(LIBRARY)
        if name == "console script" and not PROGRAMS[name][-1].exists():
            pytest.skip("the package is not installed")
        path = f"{tmp_path}{os.pathsep}{PROJECT}"
        handler = signal.SIG_DFL if is_heard else signal.SIG_IGN
        done = subprocess.run(
            [*PROGRAMS[name], *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "SENT": str(int(number))},
            preexec_fn=lambda: signal.signal(number, handler),
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_while_the_libraries_load_ends_the_program_without_a_word(loading, name):
    assert loading(name, signal.SIGINT) == (-signal.SIGINT, "", "")


def test_ctrl_c_while_a_command_loads_its_own_is_one_line(loading):
    command = ("predict", "image.tif", "--model", "em", "--out", "out.tif")
    assert loading("module", signal.SIGINT, *command, library="torch") == (
        program.INTERRUPTED,
        "",
        "error: interrupted\n",
    )


@pytest.mark.parametrize("name", ["module", "EM challenge", "ISBI 2012 data"])
def test_a_program_in_the_background_stays_deaf_to_ctrl_c(loading, name):
    """A shell starts it with the signal ignored."""
    assert loading(name, signal.SIGINT, is_heard=False) == (0, "went on\n", "")


@pytest.fixture
def interrupts():
    """Let a test change who handles Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_program_listens_only_while_it_runs(interrupts, capsys):
    def interrupted():
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)

    interrupts(signal.SIG_DFL)
    with pytest.raises(SystemExit) as caught:
        program.program(interrupted)
    assert caught.value.code == program.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_program_that_ignores_ctrl_c_does_so_to_its_end(interrupts):
    interrupts(signal.SIG_IGN)
    with pytest.raises(SystemExit) as caught:
        program.program(lambda: os.kill(os.getpid(), signal.SIGINT) or 3)
    assert caught.value.code == 3
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_package_leaves_the_handlers_of_other_programs_alone(interrupts):
    interrupts(signal.default_int_handler)
    runpy.run_path(str(PROJECT / "unet_repro/__init__.py"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
