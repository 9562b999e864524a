"""Bit for bit the same again: PyTorch's deterministic algorithms, and none else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
