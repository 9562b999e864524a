"""The network against Fig. 1 and Sec. 3."""

from __future__ import annotations

import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_repro.config import MODELS, UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network.model import UNet, crop_and_concatenate


def small(**values: object) -> UNet:
    generator = torch.Generator().manual_seed(0)
    return UNet(UNetConfig(**{"base_channels": 2, **values}), generator=generator)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (MODELS["paper"], 31_030_658),  # Fig. 1, 1 channel in, 2 classes out
        (MODELS["release"], 31_100_354),  # 128 channels kept in the last up-convolution
        # the biases of the 3x3 convolutions become two values of batch normalisation each
        (
            MODELS["port"],
            31_030_658 + 2 * (64 + 128 + 256 + 512 + 1024) + 2 * (512 + 256 + 128 + 64),
        ),
        # known of that port are 17,262,977 for 3 channels and 1 class; here 1 and 2
        (
            UNetConfig(padding=True, batch_norm=True, bilinear=True, dropout=0.0),
            17_262_977 - 2 * 9 * 64 + 65,
        ),
    ],
    ids=["paper", "release", "port", "bilinear port"],
)
def test_parameter_count(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        assert sum(weights.numel() for weights in UNet(config).parameters()) == count


def test_names_of_the_weights_are_those_of_all_files_so_far() -> None:
    layers = [
        *("contracting_path.0.0", "contracting_path.0.2"),
        *("contracting_path.1.0", "contracting_path.1.2"),
        *("expanding_path.0.up_convolution",),
        *("expanding_path.0.convolutions.0", "expanding_path.0.convolutions.2", "classifier"),
    ]
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    assert list(small(depth=1).state_dict()) == names
    normalised = small(depth=1, padding=True, batch_norm=True).state_dict()
    assert {"contracting_path.1.3.weight", "expanding_path.0.convolutions.4.running_var"} <= set(
        normalised
    )


def test_sizes_and_channels_are_those_of_fig_1() -> None:
    """Without a pixel: the paper's own network on the meta device."""
    with torch.device("meta"):
        network = UNet()
        image = torch.zeros(1, 1, 572, 572)
    seen: list[tuple[int, int]] = []
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda _, __, y: seen.append((y.shape[1], y.shape[2])))
    network(image)
    assert seen == [
        *[(64, 570), (64, 568), (128, 282), (128, 280), (256, 138), (256, 136)],
        *[(512, 66), (512, 64), (1024, 30), (1024, 28)],
        *[(512, 56), (512, 54), (512, 52), (256, 104), (256, 102), (256, 100)],
        *[(128, 200), (128, 198), (128, 196), (64, 392), (64, 390), (64, 388), (2, 388)],
    ]


@pytest.mark.parametrize(
    ("depth", "size", "output"), [(1, 18, 2), (2, 44, 4), (3, 92, 4), (5, 380, 4)]
)
def test_other_depths_and_sides_that_differ(depth: int, size: int, output: int) -> None:
    network = small(depth=depth, base_channels=1, in_channels=3, classes=5)
    logits = network(torch.zeros(2, 3, size, size + 2**depth))
    assert logits.shape == (2, 5, output, output + 2**depth)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (64, 47)])
def test_port_takes_any_size_from_16_px(bilinear: bool, size: tuple[int, int]) -> None:
    network = small(padding=True, batch_norm=True, bilinear=bilinear, dropout=0.0).eval()
    output = network(torch.rand(1, 1, *size))
    assert output.shape == (1, 2, *size)
    assert torch.isfinite(output).all()
    assert output.std() > 0


@pytest.mark.parametrize(
    ("padding", "shape", "message"),
    [
        (False, (1, 1, 570, 572), "input height 570 .* nearest: 556, 572"),
        (False, (1, 1, 572, 100), "input width 100 .* nearest: 188$"),
        (False, (1, 2, 572, 572), r"shape \(1, 2, 572, 572\): \(N, 1, height, width\)"),
        (False, (572, 572), r"shape \(572, 572\): \(N, 1, height, width\)"),
        (True, (1, 1, 16, 15), "width 15 vanishes in 4 poolings: at least 16"),
    ],
)
def test_wrong_input_is_refused(padding: bool, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(padding=padding)(torch.zeros(shape))


def test_crop_is_the_centre_and_follows_the_upsampled_map() -> None:
    skip = torch.arange(6 * 8).reshape(1, 1, 6, 8)
    up = -torch.ones(1, 2, 2, 2, dtype=torch.int64)
    both = crop_and_concatenate(up, skip)
    assert both.shape == (1, 3, 2, 2)
    assert torch.equal(both[:, :2], up)
    assert both[0, 2].tolist() == [[2 * 8 + 3, 2 * 8 + 4], [3 * 8 + 3, 3 * 8 + 4]]


def test_odd_skip_of_a_padded_network_gets_a_zero_row_and_column() -> None:
    both = crop_and_concatenate(torch.ones(1, 1, 2, 2), torch.full((1, 1, 3, 3), 5.0))
    assert both[0, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert both[0, 1].tolist() == [[5] * 3] * 3


def test_input_is_normalised_per_channel_first() -> None:
    plain = small(in_channels=2, depth=1)
    shifted = small(in_channels=2, depth=1, input_mean=(10.0, -3.0), input_std=(4.0, 0.5))
    x = torch.rand(1, 2, 20, 20)
    raw = x * torch.tensor([4.0, 0.5]).reshape(1, 2, 1, 1)
    raw = raw + torch.tensor([10.0, -3.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(shifted.eval()(raw), plain.eval()(x), atol=1e-5)


# Initialisation (Sec. 3)


def test_statistics_that_are_numpys_numbers_leave_the_network_in_float32():
    network = small(depth=1, input_mean=tuple(np.array([10.0])), input_std=tuple(np.array([4.0])))
    assert network(torch.zeros(1, 1, 20, 20)).dtype == torch.float32


def test_a_number_will_do_for_the_statistics_of_one_channel():
    config = UNetConfig(input_mean=126, input_std=np.float32(44))
    assert config == UNetConfig(input_mean=(126.0,), input_std=(44.0,))


@pytest.fixture(scope="module")
def paper_network() -> UNet:
    return UNet(generator=torch.Generator().manual_seed(1))


def incoming_nodes(name: str, layer: nn.Module) -> int:
    """N of Sec. 3, literally: the inputs that one output value is a sum over."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
    if "up_convolution" in name:
        return layer.in_channels  # 2x2, stride 2: each output has one source pixel
    return layer.in_channels * (1 if name == "classifier" else 9)


def test_weights_are_gaussian_with_deviation_sqrt_2_over_n(paper_network: UNet) -> None:
    """Within five standard errors, in every layer; in the large ones that is 0.2 %."""
    kinds = set()
    for name, layer in paper_network.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            continue
        weights = layer.weight.detach().double()
        expected = math.sqrt(2 / incoming_nodes(name, layer))
        tolerance = 5 / math.sqrt(2 * weights.numel())
        assert abs(weights.std().item() / expected - 1) < tolerance, name
        assert abs(weights.mean().item()) < 5 * expected / math.sqrt(weights.numel()), name
        if weights.numel() > 10_000:  # a Gaussian's kurtosis is 3, a uniform's 1.8
            kurtosis = (weights**4).mean() / (weights**2).mean() ** 2
            assert abs(kurtosis.item() - 3) < 5 * math.sqrt(24 / weights.numel()), name
        assert layer.bias is not None
        assert torch.count_nonzero(layer.bias) == 0
        kinds.add((type(layer), layer.kernel_size))
    assert len(kinds) == 3


def test_generator_determines_the_weights_whatever_the_global_state() -> None:
    torch.manual_seed(1)
    one = small()
    torch.manual_seed(2)
    other = small()
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.equal(a, b)
    third = UNet(UNetConfig(base_channels=2), generator=torch.Generator().manual_seed(5))
    assert not torch.equal(next(third.parameters()), next(one.parameters()))


# Dropout (end of the contracting path)


@pytest.mark.parametrize("dropped_skip", [False, True])
def test_dropout_stands_at_the_end_of_the_contracting_path(
    dropped_skip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small(base_channels=4, dropped_skip=dropped_skip).train()
    drop, before, after = F.dropout, [], []

    def watched(x: Tensor, p: float, training: bool) -> Tensor:
        y = drop(x, p, training)
        if p:
            before.append(x)
            after.append(y)
        return y

    monkeypatch.setattr(F, "dropout", watched)
    inputs: list[Tensor] = []
    for layer in (network.contracting_path[4][0], network.expanding_path[0].convolutions[0]):  # type: ignore[index, union-attr]
        layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0]))
    network(torch.rand(1, 1, 220, 220))
    assert [x.shape[1] for x in before] == [4 * 8, 4 * 16]  # 512 and 1024 in the paper
    assert [x.shape[2] for x in before] == [20, 6]
    for x, y in zip(before, after):
        alive = x > 0  # after the ReLU
        share = (y[alive] > 0).float().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(int(alive.sum()))
        assert torch.allclose(y[y > 0], 2 * x[y > 0])
    pooled, joined = inputs
    assert torch.equal(pooled, F.max_pool2d(after[0], 2))
    skip = (after if dropped_skip else before)[0][:, :, 4:-4, 4:-4]
    assert torch.equal(joined[:, 4 * 8 :], skip)


def test_dropout_acts_in_training_only() -> None:
    network = small()
    image = torch.rand(1, 1, 188, 188)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
    undropped = small(dropout=0.0).train()
    assert torch.equal(undropped(image), network(image))


# What is kept in memory


def literal_logits(network: UNet, image: Tensor) -> Tensor:
    """Fig. 1 as it is drawn, every map kept."""

    def in_turn(layers: nn.Module, x: Tensor) -> Tensor:
        for layer in layers.children():
            x = layer(x)
        return x

    x, skips = (image - network.input_mean) / network.input_std, []
    for level, convolutions in enumerate(network.contracting_path):
        x = in_turn(convolutions, F.max_pool2d(x, 2) if level else x)
        skips.append(x)
    for expansion, skip in zip(network.expanding_path, reversed(skips[:-1])):
        x = expansion.up_convolution(x)  # type: ignore[operator]
        x = x.relu() if network.config.up_relu else x
        x = in_turn(expansion.convolutions, crop_and_concatenate(x, skip))  # type: ignore[arg-type]
    return network.classifier(x)


@pytest.mark.parametrize("preset", ["paper", "release", "port"])
@pytest.mark.parametrize("is_channels_last", [False, True])
def test_freeing_maps_changes_no_bit(preset: str, is_channels_last: bool) -> None:
    network = small(**{**to_dict(MODELS[preset]), "base_channels": 4}).eval()  # type: ignore[index]
    image = torch.randn(2, 1, 204, 236, generator=torch.Generator().manual_seed(0))
    if is_channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = literal_logits(network, image)
        assert torch.equal(network(image), expected)
    with torch.inference_mode():
        assert torch.equal(network(image), expected)
    assert torch.equal(network(image).detach(), expected)  # with autograd


def test_no_map_outlives_its_use_in_inference() -> None:
    """Before a convolution, of all earlier ones' outputs at most its own input is alive."""
    network = small(base_channels=2).eval()
    outputs: list[weakref.ref[torch.UntypedStorage]] = []  # not even a part that is seen of it
    alive: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor]) -> None:
        kept = {storage.data_ptr() for output in outputs if (storage := output()) is not None}
        alive.append(len(kept - {inputs[0].data_ptr()}))

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_pre_hook(count)
            layer.register_forward_hook(
                lambda _, __, y: outputs.append(weakref.ref(y.untyped_storage()))
            )
    with torch.inference_mode():
        network(torch.zeros(1, 1, 188, 188))
    assert alive == [0] * 23
