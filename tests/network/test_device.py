"""Which device and precision are chosen, on machines that are only pretended."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch

from unet_repro.errors import InputError
from unet_repro.network.device import (
    autocast,
    choose_device,
    choose_precision,
    describe,
    reused_memory,
    training_format,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def has_cuda(monkeypatch):
    """Pretend that there is a CUDA device, or none."""

    def pretend(is_there: bool, *, has_bfloat16: bool = True, count: int = 1) -> None:
        def is_bf16_supported(including_emulation: bool = True) -> bool:
            return has_bfloat16 or including_emulation  # as Volta and Turing do

        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count if is_there else 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Titan 6 GB")

    return pretend


@pytest.fixture
def cpu_info(monkeypatch):
    """Pretend that /proc/cpuinfo says this; None: that there is no such file."""

    def pretend(text: str | None) -> None:
        def read_text(path: Path) -> str:
            assert path == Path("/proc/cpuinfo")
            if text is None:
                raise FileNotFoundError(path)
            return text

        monkeypatch.setattr(Path, "read_text", read_text)

    return pretend


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        (CPU, "AVX2", torch.contiguous_format),
        *((CPU, name, torch.channels_last) for name in ("AVX512", "DEFAULT", "NO AVX")),
        (CUDA, "AVX2", torch.channels_last),
    ],
)
def test_maps_are_contiguous_only_on_a_cpu_with_avx2(device, capability, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert training_format(device) == expected


@pytest.mark.parametrize(
    ("name", "is_there", "expected"),
    [
        *(("auto", False, CPU), ("auto", True, CUDA), ("cpu", True, CPU), ("cpu:0", False, CPU)),
        *(("cuda", True, CUDA), ("cuda:0", True, torch.device("cuda", 0))),
        ("cuda:1", True, torch.device("cuda", 1)),
    ],
)
def test_device(has_cuda, name, is_there, expected):
    has_cuda(is_there, count=2)
    assert choose_device(name) == expected


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "device cuda: PyTorch finds no CUDA device here; use --device cpu"),
        ("cuda:1", 0, "device cuda:1: PyTorch finds no CUDA device here; use --device cpu"),
        ("cuda:2", 2, "device cuda:2: cuda:1 is the last CUDA device that PyTorch finds here"),
        ("cpu:1", 0, "device cpu:1: cpu:0 is the last CPU device that PyTorch finds here"),
        ("mtia", 0, "device mtia: PyTorch finds no MTIA device here; use --device cpu"),
        ("meta", 0, "device meta: PyTorch finds no META device here; use --device cpu"),
        ("hip:3", 0, "device hip:3: PyTorch finds no HIP device here; use --device cpu"),
        ("gpu", 0, "device 'gpu': PyTorch knows no such device; auto, cpu, cuda, cuda:1 (the "),
        ("", 0, "device '': PyTorch knows no such device; "),
        ("cuda:-1", 2, "device 'cuda:-1': PyTorch knows no such device; "),
    ],
)
def test_a_device_that_is_not_there_is_refused(has_cuda, name, count, message):
    has_cuda(count > 0, count=count)
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        choose_device(name)


def test_every_kind_of_device_that_pytorch_knows_is_taken_or_refused_in_a_line():
    with pytest.raises(RuntimeError) as told:
        torch.device("nonesuch")
    kinds = re.search("one of (.*?) device type", str(told.value))[1].split(", ")
    assert {"cpu", "cuda", "mps", "xpu"} <= set(kinds)
    for kind in kinds:
        try:
            found = choose_device(kind).type
            assert found == kind or kind == "privateuseone"  # which may have been renamed
        except InputError as refused:
            assert str(refused).startswith(f"device {kind}: PyTorch finds no ")


def test_precision_on_cuda(has_cuda):
    """What the hardware only emulates is slow: it must be asked for."""
    for is_there, expected in ((True, "bfloat16"), (False, "float32")):
        has_cuda(True, has_bfloat16=is_there)
        assert choose_precision("auto", CUDA) == expected
        assert choose_precision("bfloat16", CUDA) == "bfloat16"  # what is named is taken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_bf16 sse\n", "bfloat16"),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16\n", "bfloat16"),
        ("model name\t: avx512_bf16\nflags\t\t: fpu avx512f avx512_bf16x\n", "float32"),
        (None, "float32"),
    ],
)
def test_automatic_precision_on_a_cpu_is_what_it_multiplies_in(cpu_info, text, expected):
    cpu_info(text)
    assert choose_precision("auto", CPU) == expected


def test_autocast_runs_convolutions_in_the_precision():
    image, kernel = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    for precision in ("float32", "bfloat16"):
        with autocast(precision, CPU):
            found = torch.nn.functional.conv2d(image, kernel).dtype
        assert found == getattr(torch, precision)


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_description(has_cuda, cpu_info, device):
    has_cuda(True)
    cpu_info("processor\t: 0\nmodel name\t: Abacus: 9 beads\nmodel name\t: other\n")
    found = describe(device)
    assert (found["device"], found["cpu"]) == (device.type, "Abacus: 9 beads")
    assert (found["cores"], found["threads"]) == (os.cpu_count(), torch.get_num_threads())
    assert found.get("gpu") == ("Titan 6 GB" if device == CUDA else None)
    cpu_info(None)
    assert describe(CPU)["cpu"]  # without /proc/cpuinfo, too


def test_memory_is_reused_until_the_outermost_end(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))

        def malloc_trim(self, pad):
            calls.append("trim")

    monkeypatch.setattr("unet_repro.network.device.ctypes.CDLL", lambda name: Library())
    monkeypatch.setattr("unet_repro.network.device.sys.platform", "linux")
    with reused_memory(CPU):
        with pytest.raises(KeyError), reused_memory(CPU):
            raise KeyError
        assert (-4, 0) in calls and "trim" not in calls  # M_MMAP_MAX 0: no block is mapped alone
        calls.clear()
    assert calls[-1] == "trim" and (-4, 65536) in calls  # glibc's default
    calls.clear()
    with reused_memory(CUDA):
        assert not calls
