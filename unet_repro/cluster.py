"""Work in numbered units on Dask's workers, never more of it in flight than they need.

A task is a batch of units, its result a short list, and each worker has one: a graph of a million
tasks takes the scheduler a gigabyte before any work, and what waits at a busy worker keeps the
others idle at the end. What is done is no matter of Dask's: whoever gives the numbers knows
(`files.block_array`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import logging
import math
import os
import queue
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from unet_repro.errors import InputError, note, notes_kept, one_line

Run = Callable[[Iterable[int]], Iterator[int]]  # computes units in order, yields their numbers
Failure = tuple[int, str]  # of a unit, and why

BATCH_S = 60.0  # what a batch should take; a kill costs at most that much for each worker
_LARGEST_BATCH = 1000
_SHARES = 2  # no batch is more of a worker's part of what is left than one of so many
_LOOK_S = 1.0  # how often workers are counted: they come and go
_MOST_FAILED = 100  # then no more are tried
_MOST_NAMED = 5
_SETTINGS = {  # of Dask, where it is started here
    "distributed.scheduler.worker-saturation": 1.0,
    # nothing waits at a worker: there is nothing to steal
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.profile.enabled": False,  # looks at all threads a hundred times a second
    # glibc gives the thread that computes a heap of its own, which holds no block of 64 MB: each
    # would be fresh pages, for 40 % more time. The others are what it adapts to, unless Dask sets
    # one of them
    "distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 2**25,
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**26,
}
_EXTRA = "needs the package distributed: pip install 'unet-repro[distributed]'"


@dataclass(frozen=True)
class Machines:
    """Where the work is done; by default in this process.

    Parameters
    ----------
    workers
        So many processes on this machine; of several GPUs each has its own. Instances are numbered,
        and labels surveyed, by the process that starts them.
    scheduler
        Address of a Dask scheduler, as tcp://host:8786, whose workers see the same files.
    part
        i/n, as 0/8: this process does part i of n, as an array job; the last one to end completes
        the output. No scheduler is needed.
    """

    workers: int | None = None
    scheduler: str = ""
    part: str = ""

    def __post_init__(self) -> None:
        given = [
            name
            for name, value in (
                ("--workers", self.workers is not None),
                ("--scheduler", self.scheduler),
                ("--part", self.part),
            )
            if value
        ]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} exclude each other")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers is {self.workers}: at least 1 process is needed")
        self.share(0)

    @property
    def are_others(self) -> bool:
        """Whether other processes than this one compute."""
        return self.workers is not None or bool(self.scheduler)

    def share(self, units: int) -> range:
        """Return the numbers, of so many units, that are this process's part."""
        if not self.part:
            return range(units)
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.part)
        if not found or not int(found[1]) < int(found[2]):
            raise InputError(
                f"--part {self.part!r:.40}: i/n with 0 <= i < n is needed, such as 0/8 ... 7/8"
            )
        i, n = int(found[1]), int(found[2])
        return range(units * i // n, units * (i + 1) // n)


HERE = Machines()  # in this process


class Work(Protocol):
    """What a worker needs to compute units: plain data, which can be pickled."""

    def opened(self, threads: int) -> AbstractContextManager[Run]:
        """Load and open everything in the process that works, for so many threads."""
        ...


@dataclass
class _Held:
    """A process's work, opened once: the network stays loaded from task to task."""

    work: Work
    threads: int
    lock: threading.Lock = field(default_factory=threading.Lock)  # a process does one batch a time
    run: Run | None = None
    stack: ExitStack = field(default_factory=ExitStack)


_held: dict[str, _Held] = {}  # of this process, by the key of a run


def _plugin(key: str, work: Work, threads: int) -> Any:
    """Return what makes every worker of a cluster ready, also one that is started again."""
    from distributed import WorkerPlugin

    class Ready(WorkerPlugin):
        name = key

        def setup(self, worker: Any) -> None:
            from unet_repro.cluster import hold

            hold(key, work, threads)

        def teardown(self, worker: Any) -> None:
            from unet_repro.cluster import let_go

            let_go(key)

    return Ready()


def hold(key: str, work: Work, threads: int) -> None:
    """Keep in a worker's process what it works with; it is opened by the first batch."""
    _held[key] = _Held(work, threads)


def let_go(key: str) -> None:
    """Close in a worker's process what it has worked with."""
    held = _held.pop(key, None)
    if held is not None:
        held.stack.close()


def work_on(key: str, numbers: list[int]) -> tuple[float, list[Failure], list[str]]:
    """Compute a batch in a worker's process; return the seconds, what failed, and notes."""
    held = _held[key]
    with held.lock:
        if held.run is None:
            with notes_kept():  # those of opening, the process that began it has given
                held.run = held.stack.enter_context(held.work.opened(held.threads))
        begin = time.monotonic()
        with notes_kept() as notes:
            failures = _run_all(held.run, numbers)
        return time.monotonic() - begin, failures, notes


def _run_all(run: Run, numbers: list[int]) -> list[Failure]:
    """Compute units; what fails is left out, and told."""
    left = deque(numbers)
    with contextlib.suppress(InputError):
        for _ in run(numbers):
            left.popleft()
    failures: list[Failure] = []
    while left:  # one by one, for reading ahead hides which one has failed
        number = left.popleft()
        try:
            for _ in run([number]):
                pass
        except InputError as error:
            failures.append((number, str(error)))
    return failures


@contextmanager
def connected(machines: Machines, gpus: int = 0) -> Iterator[Any]:
    """Give a client of a cluster: of processes that are started here, or of one that is there.

    None where this process computes. `gpus` are those of this machine: each worker sees one.
    """
    if not machines.are_others:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise InputError(f"--workers and --scheduler: {_EXTRA}") from error
    import dask

    # what Dask says of every death and every late answer would bury our own lines
    parts = ("", ".nanny", ".scheduler", ".worker", ".client", ".core")
    names = [f"distributed{part}" for part in parts]
    levels = {name: logging.getLogger(name).level for name in names}
    with ExitStack() as stack:
        stack.enter_context(
            dask.config.set({**_SETTINGS, "logging": dict.fromkeys(names, "critical")})
        )
        stack.enter_context(_same_environment())
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
            stack.callback(logging.getLogger(name).setLevel, levels[name])
        if machines.scheduler:
            address: Any = machines.scheduler
        else:
            assert machines.workers is not None
            address = stack.enter_context(_local_cluster(machines.workers, gpus))
        try:
            client = distributed.Client(address, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(
                f"--scheduler {machines.scheduler}: no scheduler answers there: "
                f"{one_line(str(error))[:200]}"
            ) from error
        # not as a context: where the scheduler is gone, closing may raise
        stack.callback(_closed, client)
        yield client


@contextmanager
def _same_environment() -> Iterator[None]:
    """Undo at the end what Dask sets for the processes that it starts."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _closed(client: Any) -> None:
    with contextlib.suppress(Exception):
        client.close(timeout=2)


def _local_cluster(workers: int, gpus: int) -> Any:
    from distributed import Nanny, Scheduler, SpecCluster

    def environment(n: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": str(n % gpus)} if gpus else {}

    host = {"host": "127.0.0.1", "dashboard": False}
    return SpecCluster(
        scheduler={"cls": Scheduler, "options": {**host, "port": 0, "dashboard_address": ":0"}},
        workers={
            n: {
                "cls": Nanny,
                "options": {
                    **host,
                    "nthreads": 1,
                    "memory_limit": 0,  # the plan keeps to what there is
                    "env": environment(n),
                    "silence_logs": logging.CRITICAL,
                },
            }
            for n in range(workers)
        },
        silence_logs=logging.CRITICAL,
    )


def threads_each(machines: Machines) -> int:
    """Return the threads of each worker's process, 0 for as many as its machine gives."""
    return max(1, cores() // machines.workers) if machines.workers else 0


def cores() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_units(
    client: Any,
    work: Work,
    numbers: Collection[int],
    failures: list[Failure],
    *,
    threads: int = 0,
    largest_batch: int = _LARGEST_BATCH,
) -> Iterator[int]:
    """Compute units on a cluster; yield their numbers, batch by batch as they are done.

    A unit that fails, or kills its workers more often than the scheduler allows
    (``distributed.scheduler.allowed-failures``), is left out and added to `failures`.

    Raises
    ------
    InputError
        The scheduler has ended, or so many units fail that more would only do the same.
    """
    key = f"unet-repro-{uuid.uuid4().hex}"
    lost = InputError(
        "the connection to the scheduler is lost: it has ended, or cannot be reached; what is "
        "done stays, --resume goes on"
    )
    try:
        client.register_plugin(_plugin(key, work, threads))
        yield from _Window(client, key, numbers, failures, largest_batch).results()
    except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
        raise lost from error
    except (OSError, TimeoutError) as error:  # as CommClosedError
        raise lost from error
    finally:
        with contextlib.suppress(BaseException):
            if client.status == "running":
                client.unregister_worker_plugin(key)


class _Window:
    """The batches in flight: one for each worker, smaller ones towards the end."""

    def __init__(
        self,
        client: Any,
        key: str,
        numbers: Collection[int],
        failures: list[Failure],
        largest_batch: int,
    ) -> None:
        self._client, self._key, self._numbers = client, key, iter(numbers)
        self._left = len(numbers)
        self._failures, self._largest = failures, largest_batch
        self._told: set[str] = set()  # notes
        self._batch = 1  # until it is known how long a unit takes
        self._again: deque[int] = deque()  # of batches whose workers died: each alone
        self._flying: dict[str, list[int]] = {}  # by the future's key
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()  # futures
        self._workers, self._counted_at = 1, -math.inf

    def results(self) -> Iterator[int]:
        self._refill()
        while self._flying:
            with contextlib.suppress(queue.Empty):
                future = self._ended.get(timeout=_LOOK_S)
                batch = self._flying.pop(future.key)
                done = self._result(future, batch)
                future.release()
                del future
                self._refill()
                yield from done
            self._refill()

    def _result(self, future: Any, batch: list[int]) -> list[int]:
        """Return what is done of a batch, and learn of it how large the next ones may be."""
        from distributed import KilledWorker

        if future.status in ("cancelled", "lost"):  # with the scheduler; no task here ends so
            raise OSError(f"a batch is {future.status}")
        try:
            taken_s, failures, notes = future.result()
        except KilledWorker:
            if len(batch) > 1:
                self._again.extend(batch)
            else:
                words = "its worker died each time that it was tried"
                self._failed([(batch[0], words)])
            return []
        except (OSError, TimeoutError):
            raise
        except InputError:  # nothing can be computed, such as for want of the network
            raise
        except Exception as error:  # a fault of ours, or another version there
            words = f"{type(error).__name__}: {one_line(str(error))[:200]}"
            raise InputError(f"a worker cannot do its work: {words}") from error
        self._failed(failures)
        for text in set(notes) - self._told:
            note(text)
        self._told.update(notes)
        failed = {number for number, _ in failures}
        fitting = BATCH_S * len(batch) / max(taken_s, 1e-9)
        # no more than twice as many at once: the first units may be the easy ones
        self._batch = max(1, min(self._largest, 2 * len(batch), int(fitting)))
        return [number for number in batch if number not in failed]

    def _failed(self, failures: list[Failure]) -> None:
        self._failures.extend(failures)
        if len(self._failures) > _MOST_FAILED:
            number, reason = self._failures[0]
            raise InputError(f"too many units fail, such as unit {number}: {reason}")

    def _refill(self) -> None:
        if time.monotonic() > self._counted_at + _LOOK_S:
            self._workers = max(1, len(self._client.nthreads()))
            self._counted_at = time.monotonic()
        while len(self._flying) < self._workers:
            batch = [self._again.popleft()] if self._again else self._next()
            if not batch:
                return
            future = self._client.submit(work_on, self._key, batch, pure=False, retries=0)
            self._flying[future.key] = batch
            future.add_done_callback(self._ended.put)

    def _next(self) -> list[int]:
        fair = self._left // (_SHARES * self._workers)
        batch = [
            int(number)
            for number in itertools.islice(self._numbers, max(1, min(self._batch, fair)))
        ]
        self._left -= len(batch)
        return batch


def compute(
    client: Any,
    work: Work,
    numbers: Collection[int],
    *,
    what: str,
    name: Callable[[int], str],
    threads: int = 0,
) -> Iterator[int]:
    """Compute units on a cluster, or, without a client, here; yield their numbers.

    Raises
    ------
    InputError
        As `run_units`. Here, what is wrong with the first unit that fails; of a cluster, at the
        end, what failed of `what`, by its `name`.
    """
    if client is None:
        with ExitStack() as stack:
            with notes_kept():  # as in `work_on`
                run = stack.enter_context(work.opened(threads))
            yield from run(numbers)
        return
    if not len(numbers):
        return
    failures: list[Failure] = []
    yield from run_units(client, work, numbers, failures, threads=threads)
    if failures:
        more = f" and {len(failures) - _MOST_NAMED} more" if len(failures) > _MOST_NAMED else ""
        named = "; ".join(f"{name(number)}: {why}" for number, why in failures[:_MOST_NAMED])
        raise InputError(
            f"{what}: {len(failures)} units failed, the others are done; --resume tries them "
            f"again: {named}{more}"
        )
