"""Strips of rows against the whole maps: to the bit where arithmetic is exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unet_repro.config import UNetConfig
from unet_repro.network import cost
from unet_repro.network.backends import make_network
from unet_repro.network.cost import NetworkCost
from unet_repro.network.model import UNet
from unet_repro.network.strips import forward_in_strips

CONFIGS = {
    "the paper's": {},
    "of the release": {"up_relu": True, "wide_last_up": True},
    "channels and classes": {"in_channels": 2, "classes": 3},
    "padded": {"padding": True},
    "port": {"padding": True, "batch_norm": True},
    "bilinear": {"padding": True, "bilinear": True},
    "bilinear, unpadded": {"bilinear": True},
}
UNPADDED, PADDED = ((92, 108), (140, 92)), ((64, 80), (67, 50), (65, 47), (8, 31))


def exact_network(**values: object) -> UNet:
    """Float64 and integer weights: every sum is exact, but for bilinear upsampling."""
    generator = torch.Generator().manual_seed(0)
    network = UNet(UNetConfig(depth=3, base_channels=2, **values)).double().eval()  # type: ignore[arg-type]
    for weights in network.parameters():
        weights.data = torch.randint(-1, 2, weights.shape, generator=generator).double()
    return network


def windows(network: UNet, height: int, width: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = count, height, width, network.config.in_channels
    return torch.randint(0, 16, shape, generator=generator).double().permute(0, 3, 1, 2)


@pytest.mark.parametrize("values", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("rows", [2, 6, 34])
def test_strips_are_the_whole_maps(values, rows, monkeypatch):
    monkeypatch.setattr(cost, "_STRIP_VALUES", 1)
    monkeypatch.setattr(cost, "_STRIP_ROWS", rows)
    network = exact_network(**values)
    for (height, width), count in zip(PADDED if values.get("padding") else UNPADDED, (1, 2, 1, 1)):
        image = windows(network, height, width, count)
        with torch.inference_mode():
            expected, found = network(image), forward_in_strips(network, image)
        assert expected.abs().max() > 1000
        if values.get("bilinear") or values.get("batch_norm"):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-9)
        else:
            assert torch.equal(found, expected)


def test_no_layer_sees_more_than_a_strip(monkeypatch):
    monkeypatch.setattr(cost, "_STRIP_VALUES", 40_000)
    monkeypatch.setattr(cost, "_STRIP_ROWS", 2)
    network = UNet(UNetConfig(base_channels=4)).eval()
    seen: list[int] = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _, x, y: seen.append(max(x[0].numel(), y.numel())))
    with torch.inference_mode():
        make_network(network)(torch.zeros(1, 1, 572, 412))
    assert len(seen) > 100 and max(seen) < 1.5 * 40_000  # with the rows by which strips overlap


def test_strips_take_less_memory_than_whole_maps_and_as_many_operations():
    for values, share in (({}, 0.7), ({"wide_last_up": True}, 0.5), ({"padding": True}, 0.7)):
        whole, strips = (
            NetworkCost(4, 64, in_strips=in_strips, **values)  # type: ignore[arg-type]
            for in_strips in (False, True)
        )
        assert strips.peak_bytes(1212, 1212) < share * whole.peak_bytes(1212, 1212)
        assert strips.flops(1212, 1212) == whole.flops(1212, 1212)


def test_bfloat16_goes_through_strips(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    config = UNetConfig(depth=2, base_channels=8, input_mean=(30000.0,), input_std=(50.0,))
    network = UNet(config, generator=generator).eval()
    image = 30000 + 50 * torch.randn(1, 140, 108, 1, generator=generator).permute(0, 3, 1, 2)
    run = make_network(network, precision="bfloat16")
    whole = run(image)
    monkeypatch.setattr(cost, "_STRIP_VALUES", 1)
    monkeypatch.setattr(cost, "_STRIP_ROWS", 30)
    assert whole.std() > 0.1
    torch.testing.assert_close(run(image), whole, rtol=0, atol=1e-2)
