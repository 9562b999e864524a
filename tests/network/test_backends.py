"""Every backend against the plain model in float32, and what the user's model goes through."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import backends as backend_module
from unet_repro.network.backends import Network, make_network, openvino_core
from unet_repro.network.geometry import smallest_input
from unet_repro.network.model import UNet

CONFIGS = {
    "the paper's": {},
    "of the release": {"depth": 4, "up_relu": True, "wide_last_up": True},
    "channels and classes": {
        "in_channels": 2,
        "classes": 3,
        "input_mean": (30000.0, -4.0),
        "input_std": (50.0, 0.1),
    },
    "padded": {"padding": True, "batch_norm": True},
    "bilinear": {"padding": True, "bilinear": True},
}


def network_of(depth: int = 2, **values: object) -> UNet:
    """Return a network with He weights, whose other tensors are not at their neutral values."""
    generator = torch.Generator().manual_seed(0)
    config = UNetConfig(depth=depth, base_channels=4, **values)  # type: ignore[arg-type]
    network = UNet(config, generator=generator).eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():  # biases; those of batch norm, too
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + noise.abs() if name.endswith("var") else tensor + noise)
    return network


def window_for(network: UNet, height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    """Return grey values around the mean that the network takes off, channels last."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, height, width, network.config.in_channels, generator=generator)
    pixels = pixels.permute(0, 3, 1, 2)
    return pixels * network.input_std + network.input_mean


@torch.inference_mode()
def differences(network: UNet, window: Tensor, logits: Tensor) -> tuple[float, float]:
    """Return the largest and the mean difference from the plain model, in ranges of its logits."""
    expected = network(window)
    assert logits.shape == expected.shape
    assert logits.dtype == torch.float32
    difference = (logits - expected).abs() / (expected.max() - expected.min())
    return difference.max().item(), difference.mean().item()


@pytest.fixture(params=["torch", "openvino", pytest.param("cuda", marks=pytest.mark.gpu)])
def way(request) -> str:
    """Where and how to run: a backend on the CPU, or PyTorch on CUDA."""
    if request.param == "openvino":
        pytest.importorskip("openvino")
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
    return request.param


def make(way: str, network: UNet, **options: Any) -> Network:
    """Return what `make_network` makes, between tensors of the CPU."""
    if way != "cuda":
        return make_network(network, backend=way, **options)  # type: ignore[arg-type]
    run = make_network(network, device="cuda", **options)
    return lambda window: run(window.cuda()).cpu()


def has_bfloat16(way: str) -> bool:
    """Tell whether bfloat16 is more than a wish: OpenVINO takes float32 where the CPU has none."""
    if way != "openvino":
        return True
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_float32_is_the_plain_model(way, values):
    network = network_of(**values)
    run = make(way, network)
    least, grid = smallest_input(network.config.depth), 2**network.config.depth
    # other sizes with the same function; two windows; height and width that differ
    for rows, columns, count in ((0, 2, 1), (4, 0, 2), (0, 0, 1)):
        window = window_for(network, least + rows * grid, least + columns * grid, count)
        logits = run(window)
        assert differences(network, window, logits)[0] < 1e-5
        assert not logits.requires_grad


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
def test_bfloat16_is_near_the_plain_model(way, values):
    # grey values around 30000 +- 50 would be 128 apart in bfloat16: they are normalised before
    network = network_of(**values)
    window = window_for(network, 204, 220)
    logits = make(way, network, precision="bfloat16")(window)
    largest, mean = differences(network, window, logits)
    assert largest < 3e-2 and mean < 5e-3
    assert (mean > 1e-5) is has_bfloat16(way)
    if way != "openvino":  # whose logits are rounded
        assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 22), (23, 16)])
def test_padded_windows_off_the_pooling_grid(way, height, width):
    network = network_of(padding=True)
    run = make(way, network)
    for more in (0, 8):  # the same place on the grid
        window = window_for(network, height + more, width)
        assert differences(network, window, run(window))[0] < 1e-5


def test_logits_outlive_the_next_call(way):
    network = network_of()
    run = make(way, network)
    first, second = (window_for(network, 76, 76, seed=seed) for seed in (1, 2))
    logits = run(first)
    kept = logits.clone()
    assert not torch.equal(run(second), kept)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_stays_as_it_was(way, precision):
    network = network_of(padding=True, batch_norm=True, dropout=0.5).train()
    network.expanding_path[0].eval()  # a part apart
    before = copy.deepcopy(network.state_dict())
    modes = [part.training for part in network.modules()]
    window = window_for(network, 44, 44)
    run = make(way, network, precision=precision)
    assert torch.equal(run(window), run(window))  # no dropout, no statistics of the batch
    assert [part.training for part in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
        assert tensor.stride() == before[name].stride()
        assert not tensor.is_inference()
    assert not [hook for part in network.modules() for hook in part._forward_pre_hooks]
    assert all(weight.requires_grad for weight in network.parameters())


def test_plain_float32_follows_the_weights_and_needs_no_second_copy():
    network = network_of()
    run = make_network(network)
    window = window_for(network, 44, 44)
    before = run(window)
    with torch.no_grad():
        network.classifier.bias += 1
    torch.testing.assert_close(run(window), before + 1)
    copied = make_network(network, precision="bfloat16")
    before = copied(window)
    with torch.no_grad():
        network.classifier.bias += 1
    assert torch.equal(copied(window), before)


def test_a_float64_model_stays_float64():
    network = network_of().double()
    window = window_for(network, 44, 44)
    with torch.inference_mode():
        expected = network(window)
    logits = make_network(network)(window)
    assert logits.dtype == torch.float64
    assert torch.equal(logits, expected)
    assert make_network(network, precision="bfloat16")(window.float()).dtype == torch.float32


def test_wrong_windows_are_refused_as_by_the_model(way):
    network = network_of()
    run = make(way, network)
    for shape in ((1, 1, 45, 44), (1, 2, 44, 44), (1, 44, 44)):
        with pytest.raises(InputError) as expected:
            network(torch.zeros(shape))
        with pytest.raises(InputError) as found:
            run(torch.zeros(shape))
        assert str(found.value) == str(expected.value)


def test_any_callable_runs_as_it_is():
    layer = nn.Conv2d(1, 2, 3)
    window = torch.rand(1, 1, 9, 9)
    with torch.inference_mode():
        expected = layer(window)
    assert torch.equal(make_network(layer)(window), expected)
    assert torch.equal(make_network(lambda x: 2 * x)(window), 2 * window)
    rounded = make_network(layer, precision="bfloat16")(window)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, rounded.bfloat16().float())
    torch.testing.assert_close(rounded, expected, atol=0.02, rtol=0.02)
    with pytest.raises(InputError, match="backend openvino runs a UNet only"):
        make_network(layer, backend="openvino")


@pytest.mark.parametrize(
    ("flags", "installed", "device", "precision", "expected"),
    [
        ({"sse2", "avx2"}, True, "cpu", "float32", "openvino"),
        ({"sse2", "avx2"}, False, "cpu", "float32", "torch"),
        ({"sse2", "avx2"}, True, "cpu", "bfloat16", "torch"),
        ({"sse2", "avx2", "avx512f"}, True, "cpu", "float32", "torch"),
        ({"asimd"}, True, "cpu", "float32", "torch"),
        (set(), True, "cpu", "float32", "torch"),  # an unknown system
        ({"sse2", "avx2"}, True, "meta", "float32", "torch"),
    ],
)
def test_auto_is_what_was_measured(flags, installed, device, precision, expected, monkeypatch):
    monkeypatch.setattr(backend_module, "cpu_flags", lambda: flags)
    monkeypatch.setattr(backend_module, "find_spec", lambda name: installed or None)
    found = backend_module.choose_backend("auto", torch.device(device), precision)
    assert found == expected
    for name in ("torch", "compile", "openvino"):
        assert backend_module.choose_backend(name, torch.device(device), precision) == name


def test_what_cannot_run_is_told_in_one_line(monkeypatch):
    network = network_of()
    with pytest.raises(InputError, match="one of torch, compile, openvino is needed"):
        make_network(network, backend="onnx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="float32 or bfloat16 is needed"):
        make_network(network, precision="float16")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="openvino runs on the CPU, not on cuda"):
        make_network(network, backend="openvino", device="cuda")
    monkeypatch.setattr(backend_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'unet_repro\[openvino\]'"):
        make_network(network, backend="openvino")
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(InputError, match=r"C\+\+ compiler, and no-such-compiler"):
        make_network(network, backend="compile")


def test_networks_of_openvino_that_have_ended_leave_ctrl_c_as_it_was():
    pytest.importorskip("openvino")
    command = """
import os, signal
import torch
from unet_repro.config import UNetConfig
from unet_repro.network.backends import make_network
from unet_repro.network.model import UNet

model = UNet(UNetConfig(depth=1, base_channels=2))
networks = [make_network(model, backend="openvino") for _ in range(2)]
for network in networks:
    network(torch.zeros(1, 1, 20, 20))
del network
del networks[0]
del networks[0]
os.kill(os.getpid(), signal.SIGINT)
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", command], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGINT and "KeyboardInterrupt" in done.stderr


def test_openvino_sends_no_report_of_its_use(monkeypatch):
    pytest.importorskip("openvino")
    telemetry = pytest.importorskip("openvino_telemetry")

    def send(*_: object, **__: object) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr(telemetry.Telemetry, "__init__", send)
    network = network_of()
    make_network(network, backend="openvino")(window_for(network, 44, 44))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_is_near_and_silent(precision, capfd):
    network = network_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = make_network(network, backend="compile", precision=precision)
        for height, width in ((44, 52), (60, 44)):
            window = window_for(network, height, width)
            limit = 1e-5 if precision == "float32" else 3e-2
            assert differences(network, window, run(window))[0] < limit
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize("before", [(False, True), (True, False)])
def test_on_cuda_kernels_are_tried_and_none_rounds_to_tf32(monkeypatch, before, is_deterministic):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "deterministic", is_deterministic)
    for name, value in zip(("benchmark", "allow_tf32"), before):
        monkeypatch.setattr(cudnn, name, value)
    with backend_module._cuda_kernels(torch.device("cpu")):
        assert (cudnn.benchmark, cudnn.allow_tf32) == before
    with backend_module._cuda_kernels(torch.device("cuda")):
        assert (cudnn.benchmark, cudnn.allow_tf32) == (not is_deterministic, False)
    assert (cudnn.benchmark, cudnn.allow_tf32) == before
