"""Training in several processes, one per GPU: who is who, and what they agree on.

Not in the paper: it trains on one GPU. ``torchrun`` starts the processes, on one machine or many.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from unet_repro.errors import InputError

# A process waits so long for another one, which may be validating. One that has ended is noticed
# at once: its connections close.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one; the first writes all files and shows the progress."""

    rank: int = 0  # number of this process, 0 ... count - 1
    count: int = 1
    local_rank: int = 0  # its number on this machine, and that of its GPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows its progress."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """Return this process's device of that type; of several processes each has its own GPU.

        `InputError`: there are fewer GPUs on this machine than processes, or one is named for all.
        """
        if self.count == 1 or device.type == "cpu":
            return device
        if device.type != "cuda" or device.index is not None:
            raise InputError(
                f"device {device}: several processes train on cuda, each on a GPU of its own, or "
                "on cpu"
            )
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"process {self.local_rank} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}, so --nproc-per-node can be at most that"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of all processes' tensors, on its device; no wait for a GPU."""
        if self.count > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def highest(self, *values: float) -> list[float]:
        """Return the highest of all processes' values, each."""
        if self.count == 1:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.float64)  # on the CPU, whatever the device
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed.tolist()

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return the CPU tensors of all processes, by rank; they have one shape and type."""
        if self.count == 1:
            return [value]
        gathered = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(gathered, value)
        return gathered

    def from_first(self, content: bytes) -> bytes:
        """Return the first process's bytes in every process."""
        if self.count == 1:
            return content
        box: list[Any] = [content]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]


ALONE = Processes()


def check_alone() -> None:
    """Refuse a job that has not joined the others, though several processes were started."""
    if int(os.environ.get("WORLD_SIZE") or 1) > 1 and not dist.is_initialized():
        raise InputError(
            "this job runs in one process, but torchrun has started several: only "
            "`torchrun -m unet_repro train` trains in more than one"
        )


@contextmanager
def started() -> Iterator[Processes]:
    """Join the other processes of this run, where ``torchrun`` has started several.

    `InputError`: they cannot be reached, or one of them has ended. An error ends all processes,
    and the first to fail reports it; the others leave quietly (`SystemExit`). GPUs exchange data
    by NCCL, everything else by Gloo.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield ALONE
        return
    try:
        store, rank, count = next(dist.rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes do not find each other: {_line(error)}") from error
    try:
        yield Processes(rank, count, int(os.environ.get("LOCAL_RANK", rank)))
    except (Exception, KeyboardInterrupt) as error:
        if not _is_first_to_fail(store, rank):
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        if isinstance(error, RuntimeError) and re.search("gloo|nccl|connection|peer", str(error)):
            raise InputError(
                f"process {rank} of {count} has lost another one, which has ended; "
                "--resume goes on from the last checkpoint"
            ) from error
        raise
    else:
        dist.destroy_process_group()


def _is_first_to_fail(store: Any, rank: int) -> bool:
    """Enter this process as failed; return whether none had failed before it."""
    try:
        return store.compare_set("unet_repro_failed", "", str(rank)).decode() == str(rank)
    except RuntimeError:  # who kept the store has failed before
        return False


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
