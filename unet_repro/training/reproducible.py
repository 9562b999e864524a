"""Bit for bit the same again: PyTorch's deterministic algorithms, and its random states."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from unet_repro.errors import InputError


@contextmanager
def deterministic_algorithms(is_on: bool = True) -> Iterator[None]:
    """Allow only operations that give the same bits every time, on a GPU too.

    Not in the paper. A GPU's kernels add in any order unless told otherwise; a CPU's do not.
    PyTorch's settings are global; they are restored at the end. cuBLAS reads its setting from the
    environment (CUBLAS_WORKSPACE_CONFIG) when it is first used in a process.
    `InputError`: an operation has no deterministic form on this device; the message names it.
    """
    if not is_on:
        yield
        return
    cudnn = torch.backends.cudnn
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn_before = (cudnn.deterministic, cudnn.benchmark)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
        if not found:
            raise
        raise InputError(
            f"deterministic: PyTorch {torch.__version__} has no deterministic {found[1]} on this "
            "device; train without --deterministic, or on the CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark = cudnn_before


def random_states(device: torch.device) -> list[Tensor]:
    """Return torch's global random states: the CPU's, and the device's where that has its own."""
    if device.type == "cpu":
        return [torch.get_rng_state()]
    module = torch.get_device_module(device)
    return [torch.get_rng_state(), module.get_rng_state(*_which(device))]


def set_random_states(states: list[Tensor], device: torch.device) -> None:
    """Go on from `random_states`; of a CPU's alone a device's own state stays as it is."""
    torch.set_rng_state(states[0])
    if device.type != "cpu" and len(states) > 1:
        torch.get_device_module(device).set_rng_state(states[1], *_which(device))


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the random numbers of a device that has its own."""
    if device.type == "cpu":
        return
    module = torch.get_device_module(device)
    with getattr(module, "device", nullcontext)(device):  # or the first device is seeded
        module.manual_seed(seed)


@contextmanager
def kept_random_states(device: torch.device) -> Iterator[None]:
    """Leave torch's global random states, and the device's, as they were."""
    before = random_states(device)
    try:
        yield
    finally:
        set_random_states(before, device)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is one
