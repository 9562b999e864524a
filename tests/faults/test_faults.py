"""Full disks, read-only folders, vanishing inputs, clocks that turn back, two at the same work.

Whatever happens: exit code 2 and one line on standard error, nothing half under a final name, and
the same command gives the undisturbed result once the fault is gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_inputs import Inputs
from test_kills import Job, jobs
from warm_server import Child, Server

NAMES = ["train", "predict", "weight-map", "evaluate", "download"]


@pytest.fixture(params=NAMES)
def job(request: pytest.FixtureRequest, inputs: Inputs, published: str) -> Job:
    return {job.name: job for job in jobs(inputs, published)}[request.param]


def is_refused(child: Child, *words: str) -> None:
    text = child.words()
    assert child.code == 2, (child.code, text)
    *before, last = text.split("\n")  # training tells of its validations
    assert last.startswith("error: ") and any(word in last for word in words), text
    told = ("iteration ", "labels: ", "val: ")
    assert not [line for line in before if not line.startswith(told)], text


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    """Mount a tmpfs at a folder; skip where that is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not mount or not sys.platform.startswith("linux"):
        pytest.skip("a tmpfs can be mounted on Linux only")
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def goes_on(job: Job, server: Server, folder: Path, *, is_again: bool = True) -> None:
    child = job.start(server, folder, is_again=is_again)
    assert child.wait() == 0, child.words()
    assert job.read(folder)


def with_words_elsewhere(job: Job, server: Server, place: Path, words: Path) -> Child:
    """Run a command whose words go to another folder than its output."""
    words.mkdir(exist_ok=True)
    return server.run(words, job.arguments(place), **job.more)


@pytest.mark.faults
@pytest.mark.parametrize("kilobytes", [0, 4, 16, 60])
def test_full_disk_is_told_and_costs_nothing(job, server, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    with small_disk(disk, "size=64k"):
        (disk / "others").write_bytes(bytes(1024 * (64 - kilobytes)))
        child = with_words_elsewhere(job, server, disk, tmp_path / "words")
        if child.code == 0:
            assert kilobytes, "something was written to a full disk"
            return  # it was enough
        is_refused(child, "No space left")
        job.read(disk)  # nothing is half
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        flags = [job.again] if job.again else []
        again = server.run(tmp_path / "words", [*job.arguments(disk), *flags], **job.more)
        assert again.code == 0, again.words()
        assert job.read(disk)


@pytest.mark.faults
def test_file_too_large_is_told(job, server, tmp_path):
    """The limit of a user, where there is no small disk to be had."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (900, r.RLIM_INFINITY))\n"
    words = tmp_path / "words"
    more = {**job.more, "prelude": limit + job.more.get("prelude", "")}
    # its own words count too: they are short, but for the progress bars
    child = server.run(words, job.arguments(tmp_path), **more, err=os.devnull, out=os.devnull)
    assert child.code == 2
    assert not job.read(tmp_path) or job.name == "train"
    goes_on(job, server, tmp_path)


@pytest.mark.faults
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize("stream", ["out", "err"])
def test_words_that_cannot_be_written_leave_nothing_half(job, server, tmp_path, stream):
    """Full standard output is bad input; what full standard error cannot take is left out."""
    (tmp_path / "words").mkdir()
    child = server.run(
        tmp_path / "words", job.arguments(tmp_path), **job.more, **{stream: "/dev/full"}
    )
    assert child.code in (0, 2), child.code
    if stream == "out":
        is_refused(child, "No space left")
    job.read(tmp_path)


@pytest.mark.faults
def test_folder_that_cannot_be_written_is_told(job, server, tmp_path):
    """Root writes whatever the permissions say, so the folder is a read-only mount."""
    disk = tmp_path / "disk"
    with small_disk(disk, "size=1m,ro"):
        child = with_words_elsewhere(job, server, disk, tmp_path / "words")
    is_refused(child, "cannot be written", "Read-only")


VANISHING = """
import os, shutil
from unet_repro.images.stack_reader import StackReader
read, count = StackReader._read, 0
def read_and_lose(self, *arguments, **options):
    global count
    count += 1
    if count == 2:
        {fault}
    return read(self, *arguments, **options)
StackReader._read = read_and_lose
"""


@pytest.mark.faults
@pytest.mark.parametrize("name", ["predict", "weight-map", "train", "evaluate"])
@pytest.mark.parametrize("fault", ["os.remove(p)", "os.truncate(p, 100)", "os.utime(p, (1, 1))"])
def test_input_that_vanishes_is_told(server, inputs, tmp_path, name, fault):
    """A slice of a folder is removed, cut off, or written to, while the one before is read."""
    for stack in ("slices", "label_slices"):
        shutil.copytree(inputs / stack, tmp_path / stack)
    images, labels = tmp_path / "slices", tmp_path / "label_slices"
    arguments = {
        "predict": ["predict", images, "--model", inputs / "m.safetensors", "--tile", "92"],
        "weight-map": ["weight-map", labels, "--threads", "1"],
        "train": ["train", images, labels],
        "evaluate": ["evaluate", labels, inputs / "probability.tif"],
    }[name]
    out = tmp_path / ("run" if name == "train" else "o.tif")
    arguments += ["--json" if name == "evaluate" else "--out", out]
    victim = (labels if name in ("weight-map", "evaluate") else images) / "2.tif"
    if "utime" in fault and name in ("train", "evaluate"):
        pytest.skip("reads each file once, so a new time means nothing")
    prelude = VANISHING.format(fault=fault.replace("(p", f"({str(victim)!r}"))
    child = server.run(tmp_path / "words", arguments, prelude=prelude)
    is_refused(child, str(victim))
    assert not out.exists()


BACKWARDS = """
import time
now = time.time
begin = now()
time.time = lambda: begin - 50 * (now() - begin)  # an hour's work takes two days off the clock
"""


@pytest.mark.faults
@pytest.mark.parametrize("name", ["train", "predict", "weight-map", "evaluate"])
def test_clock_that_turns_back_changes_nothing(server, inputs, published, tmp_path, name):
    """Also files of the future: those of an unfinished run, when it is resumed."""
    job = {job.name: job for job in jobs(inputs, published)}[name]
    goes_on(job, server, tmp_path / "whole", is_again=False)
    more = {**job.more, "prelude": BACKWARDS + job.more.get("prelude", "")}
    child = server.start(tmp_path / "back", job.arguments(tmp_path / "back"), **more)
    child.wait_until_begun()
    parts = tmp_path / "back"
    patterns = ("run/checkpoint.pt", ".*.parts/blocks/c/0/0/0*", "e.json")
    child.wait_for(lambda: any(path for pattern in patterns for path in parts.glob(pattern)))
    child.signal(signal.SIGKILL)
    assert child.wait() in (0, -signal.SIGKILL)
    for path in parts.rglob("*"):
        os.utime(path, (4e9, 4e9))
    flags = [job.again]
    again = server.run(parts, [*job.arguments(parts), *flags], **more)
    assert again.code == 0, again.words()
    assert job.read(parts) == job.read(tmp_path / "whole")


HOLD = """
import importlib, pathlib, time
module = importlib.import_module("unet_repro.{module}")
work = module.{name}
def wait_and_work(*arguments, **options):
    pathlib.Path({at_work!r}).touch()
    while not pathlib.Path({go_on!r}).exists():
        time.sleep(0.001)
    return work(*arguments, **options)
module.{name} = wait_and_work
"""
AT_WORK = {
    "train": ("training_run", "train"),
    "predict": ("prediction.stack_prediction", "BlockRun"),
    "weight-map": ("weight_maps.stack", "weigh"),
    "download": ("challenges.download", "_unpack"),
}


@pytest.mark.faults
@pytest.mark.parametrize("name", AT_WORK)
def test_second_process_on_the_same_output_is_refused(server, inputs, published, tmp_path, name):
    job = {job.name: job for job in jobs(inputs, published)}[name]
    goes_on(job, server, tmp_path / "whole", is_again=False)
    place, at_work, go_on = (tmp_path / path for path in ("place", "at_work", "go_on"))
    module, function = AT_WORK[name]
    hold = HOLD.format(module=module, name=function, at_work=str(at_work), go_on=str(go_on))
    more = {**job.more, "prelude": job.more.get("prelude", "") + "\n" + hold}
    first = server.start(place, job.arguments(place), **more)
    try:
        first.wait_for(at_work.exists)
        for flag in {job.again, *(["--overwrite"] if job.again else [])}:
            arguments = [*job.arguments(place), *([flag] if flag else [])]
            second = server.run(tmp_path / "second", arguments, **job.more)
            is_refused(second, "another process is")
    finally:
        go_on.touch()
        first.wait()
    assert first.code == 0, first.words()
    assert job.read(place) == job.read(tmp_path / "whole")
    assert not list(place.rglob("*lock"))
