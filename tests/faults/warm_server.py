"""Programs without their imports: a warm process forks one for every line that it reads.

A child runs ``python -m unet_repro`` (or a script) as the interpreter would, from `__main__` to the
interpreter's own end, so its exit code, its files and its words are those of the real program. Only
the seconds in which the libraries are loaded are missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class Server:
    """The warm process, seen from the tests."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **line: Any) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, folder: Path, arguments: Sequence[Any], *, prelude: str = "", **more) -> Child:
        """Start a program: ``-m unet_repro`` with arguments, or `script` with them.

        Its words go to files in `folder`, or to where `out` and `err` say. The Python statements
        in `prelude` run before it.
        """
        folder.mkdir(exist_ok=True)
        child = Child(self, folder, **more)
        child.begun.unlink(missing_ok=True)
        child.pid = self.ask(
            arguments=[str(argument) for argument in arguments],
            script=child.script,
            prelude=prelude,
            begun=str(child.begun),
            out=child.out or str(folder / "out"),
            err=child.err or str(folder / "err"),
        )
        return child

    def run(self, folder: Path, arguments: Sequence[Any], **more: Any) -> Child:
        """Run a program to its end."""
        child = self.start(folder, arguments, **more)
        child.wait()
        return child

    def close(self) -> None:
        with self.process as process:
            assert process.stdin
            process.stdin.close()


@dataclass
class Child:
    """A program that was started."""

    server: Server
    folder: Path
    script: str = ""
    out: str = ""
    err: str = ""
    pid: int = 0
    code: int | None = field(default=None)

    @property
    def begun(self) -> Path:
        return self.folder / "begun"

    def wait_until_begun(self) -> None:
        """Wait until the program has read its arguments; before, it has touched nothing."""
        self.wait_for(self.begun.exists)

    def wait_for(self, is_so: Any) -> None:
        give_up = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < give_up, (self.code, self.words())
            time.sleep(0.0005)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)  # it is not reaped before `wait`: never another process

    def wait(self) -> int:
        self.code = self.server.ask(wait=self.pid)
        return self.code

    def words(self) -> str:
        """Return what it said on standard error, progress bars left out."""
        text = (self.folder / "err").read_text(errors="replace")
        lines = [line.rpartition("\r")[2] for line in text.split("\n")]
        return "\n".join(line for line in lines if line.strip() and "%|" not in line)


def load() -> None:
    """Load what the commands do, also what the libraries load at their first use."""
    import contextlib
    import gc
    import importlib

    import torch
    from numba.core.registry import cpu_target

    for name in ("unet_repro.cli", "unet_repro.challenges.prepare", "matplotlib.figure", "zarr"):
        importlib.import_module(name)
    torch.set_num_threads(1)
    torch.optim.SGD([torch.zeros(1)])
    cpu_target.target_context.refresh()
    cpu_target.typing_context.refresh()
    with contextlib.suppress(ImportError):
        import torch.utils.tensorboard
    gc.freeze()  # a child's collections and its end need not touch what was here before


def serve() -> None:
    load()
    children: set[int] = set()
    while line := sys.stdin.readline():
        job = json.loads(line)
        if "wait" in job:
            children.remove(job["wait"])
            print(os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            become(job)
        children.add(pid)
        print(pid, flush=True)


def become(job: dict[str, Any]) -> None:
    import runpy
    import signal

    from unet_repro import cli
    from unet_repro.challenges import prepare

    for number, path in ((1, job["out"]), (2, job["err"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def marked(function):
        def begin(*arguments, **options):
            Path(job["begun"]).touch()
            return function(*arguments, **options)

        return begin

    cli.parse = marked(cli.parse)
    prepare.find_or_download = marked(prepare.find_or_download)
    exec(job["prelude"], {})
    sys.argv[1:] = job["arguments"]
    if job["script"]:
        runpy.run_path(job["script"], run_name="__main__")
    else:
        runpy.run_module("unet_repro", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    serve()
