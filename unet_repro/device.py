"""Where and in which precision to compute, and what that machine is."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, cast

import torch

from unet_repro.errors import InputError

Precision = Literal["float32", "bfloat16"]


def choose_device(name: str) -> torch.device:
    """Return the device of "auto" (CUDA where there is one), "cpu" or "cuda"."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return "float32" or "bfloat16"; "auto" takes bfloat16 where the hardware multiplies in it."""
    if name != "auto":
        return cast(Precision, name)
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = _cpu_info("flags").split()
    return "bfloat16" if {"avx512_bf16", "amx_bf16"} & set(flags) else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """Return the context in which convolutions run in `precision`."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def describe(device: torch.device) -> dict[str, str | int]:
    """Return what the machine is, for the record."""
    hardware: dict[str, str | int] = {
        "device": str(device),
        "cpu": _cpu_info("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name(device)
    return hardware


def _cpu_info(field: str) -> str:
    """Return a field of Linux's /proc/cpuinfo, empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
