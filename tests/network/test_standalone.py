"""The network that goes into other programs, against the package's own: layers, sizes, cost."""

from __future__ import annotations

import ast
import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unet_repro.config import MODELS, UNetConfig
from unet_repro.network import backends, portable, standalone
from unet_repro.network.cost import NetworkCost
from unet_repro.network.export import export_model
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model

CONFIGS = {
    **{name: replace(config, base_channels=4) for name, config in MODELS.items()},
    "bilinear": UNetConfig(depth=2, base_channels=4, padding=True, bilinear=True),
    "unpadded, bilinear": UNetConfig(depth=3, base_channels=4, bilinear=True),
    "channels": UNetConfig(depth=1, base_channels=2, in_channels=3, classes=5, batch_norm=True),
}


def network_of(config: UNetConfig) -> UNet:
    """Return a network none of whose tensors is at its neutral value."""
    generator = torch.Generator().manual_seed(0)
    network = UNet(config, generator=generator).eval()
    for name, tensor in network.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + noise.abs() if name.endswith("var") else tensor + noise)
    return network


def sizes_for(config: UNetConfig) -> list[tuple[int, int]]:
    """Return heights and widths that the network takes, odd ones where it can."""
    least, grid = portable.Sizes.of(config).least, 2**config.depth
    if config.padding:
        return [(5 * grid, 3 * grid), (4 * grid + 1, 3 * grid - 1), (2 * grid - 1, 3 * grid + 7)]
    return [(least, least + grid), (least + 3 * grid, least)]


def windows_for(config: UNetConfig) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, config.in_channels, *size, generator=generator) for size in sizes_for(config)
    ]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_layers_and_names_of_weights_are_those_of_the_network(config):
    network = network_of(config)
    alone = standalone.StandaloneUNet(**portable.standalone_arguments(config)).eval()
    alone.load_state_dict(network.state_dict())
    for window in windows_for(config):
        assert torch.equal(alone(window), network(window))


@pytest.mark.parametrize("size", [573, 574, 576, 580, 187, 20])
def test_a_size_that_is_not_valid_fails(size):
    config = CONFIGS["paper"]
    alone = standalone.StandaloneUNet(**portable.standalone_arguments(config)).eval()
    with pytest.raises(RuntimeError):
        alone(torch.zeros(1, 1, size, 572))


def test_the_file_needs_pytorch_alone():
    imports = set()
    for node in ast.walk(ast.parse(inspect.getsource(standalone))):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imports.add(node.module)
    assert {name.partition(".")[0] for name in imports} == {"__future__", "collections", "torch"}


def counted(network: nn.Module, window: Tensor) -> int:
    """Return the floating-point operations that PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        network(window)
    return counter.get_total_flops()


def of_convolutions(convolutions: list[tuple[str, list[int], list[int]]]) -> int:
    """Return the operations of convolutions, from their kind, weights' and output's shapes."""
    total = 0
    for kind, weights, output in convolutions:
        # an up-convolution has (in, out, 2, 2), and one of its four weights meets each output
        terms = weights[0] if kind == "up" else math.prod(weights[1:])
        total += 2 * terms * math.prod(output)
    return total


def openvino_flops(network: UNet, height: int, width: int) -> int:
    convolutions = []
    for node in backends._openvino_graph(network, height, width).get_ops():
        kind = {"Convolution": "plain", "ConvolutionBackpropData": "up"}.get(node.get_type_name())
        if kind:
            weights, output = node.input(1).get_shape(), node.output(0).get_shape()
            convolutions.append((kind, list(weights), list(output)))
    return of_convolutions(convolutions)


def onnx_flops(path, height: int, width: int) -> int:
    import onnx

    model = onnx.load(path)
    for axis, size in zip((0, 2, 3), (1, height, width)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output)
    }
    kinds = {"Conv": "plain", "ConvTranspose": "up"}
    return of_convolutions(
        [
            (kinds[node.op_type], weights[node.input[1]], shapes[node.output[0]])
            for node in graph.node
            if node.op_type in kinds
        ]
    )


@pytest.mark.parametrize("preset", MODELS)
@torch.inference_mode()
def test_forward_cost_and_openvino_describe_the_same_network(preset):
    config = replace(CONFIGS[preset], input_mean=(0.3,), input_std=(2.0,))
    network = network_of(config)
    names = ("depth", "base_channels", "in_channels", "classes", "padding", "wide_last_up")
    cost = NetworkCost(**{name: getattr(config, name) for name in (*names, "bilinear")})
    for window in windows_for(config):
        height, width = window.shape[2:]
        assert cost.flops(height, width) == counted(network, window[:1])
        assert cost.flops(height, width) == counted(portable.FromGreyValues(network), window[:1])
    pytest.importorskip("openvino")
    run = backends.make_network(network, backend="openvino")
    for window in windows_for(config):
        portable.check_equal(run, network, [window], what="OpenVINO")
        assert cost.flops(*window.shape[2:]) == openvino_flops(network, *window.shape[2:])


@pytest.mark.slow
@pytest.mark.parametrize("preset", MODELS)
@torch.inference_mode()
def test_the_onnx_file_describes_the_same_network(preset, tmp_path):
    pytest.importorskip("onnxscript")
    config = replace(CONFIGS[preset], input_mean=(0.3,), input_std=(2.0,))
    network = network_of(config)
    model, out = tmp_path / "m.safetensors", tmp_path / "m.onnx"
    save_model(network, model)
    export_model(model, out, format="onnx")
    names = ("depth", "base_channels", "in_channels", "classes", "padding", "wide_last_up")
    cost = NetworkCost(**{name: getattr(config, name) for name in (*names, "bilinear")})
    run = portable.run_onnx(out)
    for window in windows_for(config):
        found, expected = run(window), network(window)
        assert found.shape == expected.shape
        spread = float(expected.max() - expected.min())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * spread)
        assert onnx_flops(out, *window.shape[2:]) == cost.flops(*window.shape[2:])
