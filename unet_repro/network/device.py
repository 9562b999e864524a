"""Where and in which precision to compute, and what that machine is."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from unet_repro.choices import Precision
from unet_repro.errors import InputError, is_out_of_memory


def choose_device(name: str) -> torch.device:
    """Return the device that a name means.

    Parameters
    ----------
    name
        "auto" (CUDA where there is one, else the CPU), or any that PyTorch knows: "cpu", "cuda",
        "cuda:1", "mps", "xpu", ...

    Raises
    ------
    InputError
        PyTorch knows no such device, or finds none here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on names of the past
            device = torch.device(name)
    except RuntimeError as error:
        raise InputError(
            f"device {name!r:.40}: PyTorch knows no such device; auto, cpu, cuda, cuda:1 (the "
            "second one), mps and xpu are some that it knows"
        ) from error
    module, kind = _module(device), device.type.upper()
    is_there = bool(getattr(module, "is_available", bool)())
    count = module.device_count() if is_there and hasattr(module, "device_count") else 0
    if not count:
        raise InputError(f"device {name}: PyTorch finds no {kind} device here; use --device cpu")
    if (device.index or 0) >= count:
        last = f"{device.type}:{count - 1}"
        raise InputError(f"device {name}: {last} is the last {kind} device that PyTorch finds here")
    return torch.device("cpu") if device.type == "cpu" else device


def _module(device: torch.device) -> Any:
    """Return PyTorch's functions for a kind of device, such as `torch.cuda`; None without any."""
    return getattr(torch, device.type, None)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return "float32" or "bfloat16"; "auto" takes bfloat16 where the hardware multiplies in it.

    `InputError`: bfloat16 is named, and the device has none. A CPU and CUDA emulate it.
    """
    if name == "bfloat16" and device.type not in ("cpu", "cuda"):
        check_type(device, torch.bfloat16, "use --precision float32")
    if name != "auto":
        return cast(Precision, name)
    if device.type != "cpu":
        has_bfloat16 = getattr(_module(device), "is_bf16_supported", None)
        is_fast = has_bfloat16 is not None and has_bfloat16(including_emulation=False)
        return "bfloat16" if is_fast else "float32"
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & cpu_flags() else "float32"


def check_type(device: torch.device, dtype: torch.dtype, remedy: str) -> None:
    """Raise an `InputError` that names a remedy unless a device computes in a type.

    mps has no float64, some XPUs have none, and older hardware has no bfloat16.
    """
    try:
        ones = torch.ones(1, 1, 2, 2, dtype=dtype, device=device)
        torch.nn.functional.conv2d(ones, ones).cpu()
    except (RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        name = str(dtype).removeprefix("torch.")
        raise InputError(f"device {device}: has no {name} here; {remedy}") from error


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; nothing waits for it where that is safe.

    What is not in pinned memory is staged at once, but by mps: its copy may read the tensor's
    memory after that has been freed.
    """
    return tensor.to(device, non_blocking=device.type != "mps")


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which convolutions run in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def training_format(device: torch.device) -> torch.memory_format:
    """Return the order of a map's values in which a step of training is fastest.

    Channels last, but for CPUs whose widest instructions are AVX2: there oneDNN's gradient of a
    convolution's weights is slow on maps in that order. Contiguous, a whole step took 0.8 of the
    time with 16 channels, 0.4 with 64.
    """
    is_avx2 = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
    return torch.contiguous_format if is_avx2 else torch.channels_last


def describe(device: torch.device) -> dict[str, str | int]:
    """Return what the machine is, for the record."""
    hardware: dict[str, str | int] = {
        "device": str(device),
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type != "cpu":
        name_of = getattr(_module(device), "get_device_name", None)
        hardware["gpu"] = name_of(device) if name_of else device.type
    return hardware


def cpu_flags() -> set[str]:
    """Return what the processor says that it can do, such as "avx2"; nothing but on Linux."""
    return set(_cpu_info("flags").split())


def _cpu_info(field: str) -> str:
    """Return a field of Linux's /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def free_memory(device: torch.device) -> int:
    """Return the free bytes of a device, or of this process's share of the machine.

    The machine's for a CPU, and for mps, which shares its memory: on Linux the least of what the
    kernel and the control groups leave; 8 GiB where nothing says.
    """
    if device.type != "cpu" and hasattr(_module(device), "mem_get_info"):
        return _module(device).mem_get_info(device)[0]
    left = [_available(), *(_left_in_group(*names) for names in _CONTROL_GROUPS)]
    return max(0, min((size for size in left if size is not None), default=8 * 2**30))


_GROUPS = Path("/sys/fs/cgroup")
_CONTROL_GROUPS = (  # limit, use, and statistics that name what can be reclaimed; version 2, 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = dict(line.split(":", 1) for line in lines)["MemAvailable"]  # "  123456 kB"
        return int(free.split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_in_group(limit: str, used: str, statistics: str) -> int | None:
    """Return what a control group's limit leaves; cached files in it can be reclaimed."""
    try:
        allowed, taken = (int((_GROUPS / name).read_text()) for name in (limit, used))
        facts = dict(line.split() for line in (_GROUPS / statistics).read_text().splitlines())
        return allowed - taken + int(facts.get("inactive_file", 0))
    except (OSError, ValueError):  # no such group, or "max": no limit
        return None


# Parameters of mallopt of glibc, and what its own adaptation ends at where blocks are large
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NO_LIMIT = 2**31 - 1
_USUAL = ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**26))
_reusing = 0  # contexts of `reused_memory` that are open in this process


@contextmanager
def reused_memory(device: torch.device) -> Iterator[None]:
    """Let the C library reuse large blocks meanwhile, instead of returning each to the system.

    A CPU spends up to a quarter of its time on fresh pages otherwise. Only with glibc; what is free
    goes back to the system at the end, of the outermost if several are open.
    """
    global _reusing
    library = ctypes.CDLL(None) if device.type == "cpu" and sys.platform == "linux" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    assert library is not None
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, _NO_LIMIT)
    _reusing += 1
    try:
        yield
    finally:
        _reusing -= 1
        if not _reusing:
            for parameter, value in _USUAL:
                library.mallopt(parameter, value)
            library.malloc_trim(0)
