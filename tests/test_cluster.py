"""Work in units on Dask's workers: all of it, once, a few at a time, whatever fails or dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from unet_repro import cluster
from unet_repro.cluster import Failure, Machines, Run, compute, connected, run_units, threads_each
from unet_repro.errors import InputError, InputNote, note

distributed = pytest.importorskip("distributed")
dask = pytest.importorskip("dask")


@dataclass(frozen=True)
class Marks:
    """A file for each unit that is done; some units fail, or kill their worker."""

    folder: str
    failing: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    seconds: float = 0.0

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        Path(self.folder, f"opened.{os.getpid()}.{time.monotonic_ns()}").touch()

        def run(numbers: Iterable[int]) -> Iterator[int]:
            for number in numbers:
                if number in self.deadly:
                    os.kill(os.getpid(), signal.SIGKILL)
                if number in self.failing:
                    raise InputError(f"pixel {number} is damaged")
                time.sleep(self.seconds)
                Path(self.folder, str(number)).touch()
                yield number

        yield run

    def done(self) -> set[int]:
        return {int(file.name) for file in Path(self.folder).iterdir() if file.name.isdigit()}


@contextmanager
def threads_as_workers(workers: int = 2) -> Iterator[distributed.Client]:
    """A cluster without processes, for what no death is needed."""
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "--workers is 0: at least 1 process"),
        ({"workers": 2, "part": "0/2"}, "--workers and --part exclude each other"),
        ({"part": "2/2"}, "i/n with 0 <= i < n is needed"),
        ({"part": "1"}, "i/n with 0 <= i < n is needed"),
    ],
)
def test_machines_that_are_none_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Machines(**options)


@pytest.mark.parametrize("units", [0, 1, 7, 100])
@pytest.mark.parametrize("n", [1, 3, 8])
def test_parts_are_the_whole_and_equal_but_for_one(units, n):
    shares = [Machines(part=f"{i}/{n}").share(units) for i in range(n)]
    assert [number for share in shares for number in share] == list(range(units))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_units_run_once_and_a_failing_one_is_named(tmp_path):
    work = Marks(str(tmp_path), failing=(11, 30))
    with threads_as_workers() as client:
        failures: list[Failure] = []
        done = list(run_units(client, work, range(50), failures, largest_batch=8))
        assert sorted(failures) == [
            (11, "pixel 11 is damaged"),
            (30, "pixel 30 is damaged"),
        ]
        assert sorted(done) == sorted(set(range(50)) - {11, 30}) == sorted(work.done())
        with pytest.raises(InputError, match=r"out: 1 units failed, .* again: px 3: pixel 3 is"):
            list(
                compute(
                    client,
                    Marks(str(tmp_path), failing=(3,)),
                    range(9),
                    what="out",
                    name=lambda number: f"px {number}",
                )
            )


def test_few_batches_are_known_to_the_scheduler_and_none_is_kept(tmp_path):
    most = 0
    with threads_as_workers() as client:
        for number in run_units(client, Marks(str(tmp_path)), range(300), [], largest_batch=5):
            most = max(most, len(client.futures))
            assert number < 300
        assert 0 < most <= 2 + 2  # one a worker, and what is just being released
        assert not client.futures


def test_batches_grow_and_none_is_more_than_half_of_a_fair_part(tmp_path, monkeypatch):
    batches = []
    with threads_as_workers() as client:

        def submit(function, key, batch, **options):
            batches.append(len(batch))
            return type(client).submit(client, function, key, batch, **options)

        monkeypatch.setattr(client, "submit", submit)
        list(run_units(client, NoWork(), range(200), []))
    assert sum(batches) == 200 and max(batches) > 8
    begun = 0
    for size in batches:
        assert size <= max(1, (200 - begun) / 2 / 2)
        begun += size
    assert batches[-3:] == [1, 1, 1]


def test_worker_that_comes_later_gets_work_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_LOOK_S", 0.01)
    with threads_as_workers(1) as client:
        for number in run_units(client, Where(str(tmp_path)), range(60), [], largest_batch=1):
            if number == 3:
                client.cluster.scale(2)
                client.wait_for_workers(2)
    assert len(list(tmp_path.iterdir())) == 2


@dataclass(frozen=True)
class Where:
    """A file for each worker that has done something."""

    folder: str

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        def run(numbers: Iterable[int]) -> Iterator[int]:
            for number in numbers:
                name = distributed.get_worker().address.replace("/", ".")
                Path(self.folder, name).touch()
                time.sleep(0.02)
                yield number

        yield run


@dataclass(frozen=True)
class Telling:
    """Gives a note on opening and with each unit."""

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        note("opened")

        def run(numbers: Iterable[int]) -> Iterator[int]:
            for number in numbers:
                note(f"kind {number % 2}")
                yield number

        yield run


def test_notes_of_workers_are_given_once_but_for_those_of_opening():
    with threads_as_workers() as client, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(run_units(client, Telling(), range(20), []))
    texts = [str(each.message) for each in said if each.category is InputNote]
    assert sorted(texts) == ["kind 0", "kind 1"]


def test_what_fails_everywhere_ends_soon(tmp_path):
    work = Marks(str(tmp_path), failing=tuple(range(100_000)))
    with threads_as_workers() as client:
        with pytest.raises(InputError, match="too many units fail, such as unit"):
            list(run_units(client, work, range(100_000), []))


def test_without_a_scheduler_is_one_line():
    with (
        pytest.raises(InputError, match=r"--scheduler tcp://127\.0\.0\.1:9: no scheduler answers"),
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        connected(Machines(scheduler="tcp://127.0.0.1:9")),
    ):
        pass


def test_workers_share_the_processors():
    assert threads_each(Machines(workers=10_000)) == 1
    assert threads_each(Machines(scheduler="tcp://there:8786")) == 0


@pytest.mark.slow
def test_unit_that_kills_its_worker_is_named_and_the_others_are_done(tmp_path):
    work = Marks(str(tmp_path), deadly=(7,))
    failures: list[Failure] = []
    with connected(Machines(workers=2)) as client:
        done = list(run_units(client, work, range(30), failures, largest_batch=4))
    assert failures == [(7, "its worker died each time that it was tried")]
    assert set(done) == set(range(30)) - {7} == work.done()


ENDS = """
import sys
from unet_repro.cluster import Machines, connected, run_units
from unet_repro.errors import InputError
sys.path.insert(0, sys.argv[1])
from test_cluster import Marks
with connected(Machines(scheduler=sys.argv[2])) as client:
    print("begun", flush=True)
    try:
        list(run_units(client, Marks(sys.argv[3], seconds=0.05), range(10**6), []))
    except InputError as error:
        print(error, flush=True)
"""


@pytest.mark.slow
def test_scheduler_that_dies_is_one_line(tmp_path):
    here = str(Path(__file__).parent)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
    address = tmp_path / "scheduler.json"
    options = ["--no-dashboard", "--scheduler-file", str(address)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([*command, *options], **quiet)
    environment = {**os.environ, "PYTHONPATH": here}
    worker = driver = None
    try:
        wait_for(address.exists)
        started = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-dashboard"]
        started += ["--scheduler-file", str(address), "--no-nanny"]
        worker = subprocess.Popen(started, env=environment, **quiet)
        where = address.read_text().split('"address": "')[1].split('"')[0]
        driver = subprocess.Popen(
            [sys.executable, "-c", ENDS, here, where, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: any(file.name.isdigit() for file in tmp_path.iterdir()))
        scheduler.kill()
        said, _ = driver.communicate(timeout=120)
        assert driver.returncode == 0
        (_, line) = said.splitlines()
        assert "the connection to the scheduler is lost" in line and "--resume goes on" in line
    finally:
        for process in (scheduler, worker, driver):
            if process is not None:
                process.kill()
                process.wait()


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


MEMORY = """
import sys
from contextlib import contextmanager
from unet_repro.cluster import Machines, connected, run_units
sys.path.insert(0, sys.argv[1])
from test_cluster import NoWork

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

if __name__ == "__main__":
    before = kilobytes("VmRSS")
    with connected(Machines(workers=2)) as client:
        done = sum(1 for _ in run_units(client, NoWork(), range(10**6), []))
    print(done, kilobytes("VmHWM") - before)
"""


@dataclass(frozen=True)
class NoWork:
    """Units that are done as soon as they are begun."""

    @contextmanager
    def opened(self, threads: int) -> Iterator[Run]:
        yield iter


@pytest.mark.slow
def test_a_million_units_take_the_driver_little_memory(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(MEMORY)
    here = str(Path(__file__).parent)
    ran = subprocess.run(
        [sys.executable, str(program), here],
        env={**os.environ, "PYTHONPATH": here},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    done, kilobytes = map(int, ran.stdout.split())
    assert done == 10**6
    assert kilobytes < 200 * 1024
