"""The network against Fig. 1 and Sec. 3, and its file against everything that is not one."""

from __future__ import annotations

import json
import math
import pickle
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unet_repro.config import MODELS, UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network.model import UNet, crop_and_concatenate
from unet_repro.network.model_file import load_model, read_metadata, save_model


def parameters(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())


def small(**shape: object) -> UNet:
    generator = torch.Generator().manual_seed(0)
    return UNet(UNetConfig(**{"base_channels": 2, **shape}), generator=generator)  # type: ignore[arg-type]


# Shape


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("paper", 31_030_658),  # Fig. 1, 1 channel in, 2 classes out
        ("release", 31_100_354),  # 128 channels kept in the last up-convolution
        # the biases of the 3x3 convolutions become two values of batch normalisation each
        ("port", 31_030_658 + 2 * (64 + 128 + 256 + 512 + 1024) + 2 * (512 + 256 + 128 + 64)),
    ],
)
def test_parameter_count(preset: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(UNet(MODELS[preset])) == count  # type: ignore[index]


def test_parameter_count_of_the_bilinear_port() -> None:
    """The count known of that port: 17,262,977 for 3 channels and 1 class, here 1 and 2."""
    with torch.device("meta"):
        network = UNet(UNetConfig(padding=True, batch_norm=True, bilinear=True, dropout=0.0))
        assert parameters(network) == 17_262_977 - 2 * 9 * 64 + 65


def test_there_are_23_convolutions() -> None:
    layers = list(small().modules())
    up = [layer for layer in layers if isinstance(layer, nn.ConvTranspose2d)]
    plain = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size for layer in plain] == [(3, 3)] * 18 + [(1, 1)]
    assert [layer.kernel_size + layer.stride for layer in up] == [(2, 2, 2, 2)] * 4
    assert all(layer.bias is not None for layer in plain + up)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


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


def test_height_and_width_are_independent() -> None:
    network = small(in_channels=3, classes=5)
    assert network(torch.zeros(2, 3, 204, 572)).shape == (2, 5, 20, 388)
    assert network(torch.zeros(1, 3, 284, 188)).shape == (1, 5, 100, 4)


@pytest.mark.parametrize(
    ("depth", "size", "output"), [(1, 18, 2), (2, 44, 4), (3, 92, 4), (5, 380, 4)]
)
def test_other_depths(depth: int, size: int, output: int) -> None:
    network = small(depth=depth, base_channels=1)
    assert network(torch.zeros(1, 1, size, size + 2**depth)).shape[2:] == (
        output,
        output + 2**depth,
    )


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 50), (64, 47)])
def test_port_takes_any_size_from_16_px(bilinear: bool, size: tuple[int, int]) -> None:
    network = small(padding=True, batch_norm=True, bilinear=bilinear, dropout=0.0).eval()
    output = network(torch.rand(1, 1, *size))
    assert output.shape == (1, 2, *size)
    assert torch.isfinite(output).all()
    assert output.std() > 0


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 570, 572), "input height 570 .* nearest: 556, 572"),
        ((1, 1, 572, 100), "input width 100 .* nearest: 188$"),
        ((1, 2, 572, 572), r"shape \(1, 2, 572, 572\): \(N, 1, height, width\)"),
        ((572, 572), r"shape \(572, 572\): \(N, 1, height, width\)"),
    ],
)
def test_wrong_input_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small()(torch.zeros(shape))


def test_port_refuses_what_vanishes() -> None:
    with pytest.raises(InputError, match="width 15 vanishes in 4 poolings: at least 16"):
        small(padding=True)(torch.zeros(1, 1, 16, 15))


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


def test_skip_carries_position_straight_through() -> None:
    """With the way up switched off, an output pixel sees 2 px around itself, and no shift."""
    network = small(depth=2, base_channels=1, dropout=0.0)
    for name, weights in network.named_parameters():
        weights.data.fill_(0.0 if "up_convolution" in name or name.endswith("bias") else 1.0)
    image = torch.zeros(1, 1, 60, 60)
    image[0, 0, 28, 31] = 1
    output = network(image)[0, 0].nonzero() + 20  # margin of depth 2
    assert output.min(dim=0).values.tolist() == [28 - 4, 31 - 4]  # four 3x3 convolutions
    assert output.max(dim=0).values.tolist() == [28 + 4, 31 + 4]


def test_input_is_normalised_per_channel_first() -> None:
    plain = small(in_channels=2, depth=1)
    shifted = small(in_channels=2, depth=1, input_mean=(10.0, -3.0), input_std=(4.0, 0.5))
    x = torch.rand(1, 2, 20, 20)
    raw = x * torch.tensor([4.0, 0.5]).reshape(1, 2, 1, 1)
    raw = raw + torch.tensor([10.0, -3.0]).reshape(1, 2, 1, 1)
    assert torch.allclose(shifted.eval()(raw), plain.eval()(x), atol=1e-5)


# Initialisation (Sec. 3)


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


def test_paper_example_of_n(paper_network: UNet) -> None:
    """ "For a 3x3 convolution and 64 feature channels in the previous layer, N = 576"."""
    second = paper_network.contracting_path[0][2]  # type: ignore[index]
    assert second.weight.shape == (64, 64, 3, 3)
    assert second.weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)


def test_signal_keeps_its_variance_through_the_network() -> None:
    """What the initialisation is for. Two layers less or more in N would show as factors of 2."""
    network = small(base_channels=32, depth=2, dropout=0.0)
    squares = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.register_forward_hook(lambda _, __, y: squares.append(y.pow(2).mean().item()))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        network(torch.randn(1, 1, 100, 100, generator=generator))
    assert 0.2 < squares[-1] / squares[0] < 30


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
def test_dropout_stands_at_the_end_of_the_contracting_path(dropped_skip: bool) -> None:
    network = small(base_channels=4, dropped_skip=dropped_skip).train()
    before: list[Tensor] = []
    after: list[Tensor] = []
    joined: list[Tensor] = []
    network.dropout.register_forward_hook(lambda _, x, y: (before.append(x[0]), after.append(y))[1])
    first = network.expanding_path[0].convolutions[0]  # type: ignore[union-attr, index]
    first.register_forward_pre_hook(lambda _, x: joined.append(x[0]))
    network(torch.rand(1, 1, 220, 220))
    assert [x.shape[1] for x in before] == [4 * 8, 4 * 16]  # 512 and 1024 in the paper
    assert [x.shape[2] for x in before] == [20, 6]
    for x, y in zip(before, after):
        alive = x > 0  # after the ReLU
        share = (y[alive] > 0).float().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(int(alive.sum()))
        assert torch.allclose(y[y > 0], 2 * x[y > 0])
    skip = (after if dropped_skip else before)[0][:, :, 4:-4, 4:-4]
    assert torch.equal(joined[0][:, 4 * 8 :], skip)
    assert not torch.equal(after[0], before[0])


def test_dropout_acts_in_training_only() -> None:
    network = small()
    image = torch.rand(1, 1, 188, 188)
    assert not torch.equal(network.train()(image), network(image))
    assert torch.equal(network.eval()(image), network(image))
    undropped = small(dropout=0.0).train()
    assert torch.equal(undropped(image), network(image))


@pytest.mark.parametrize("up_relu", [False, True])
def test_relu_after_the_up_convolution_is_the_releases(up_relu: bool) -> None:
    network = small(up_relu=up_relu).eval()
    seen = []
    for expansion in network.expanding_path:
        upsampled = expansion.convolutions[0].in_channels // 2  # type: ignore[union-attr, operator]
        expansion.convolutions[0].register_forward_pre_hook(  # type: ignore[union-attr, index]
            lambda _, x, channels=upsampled: seen.append(x[0][:, :channels].min().item())
        )
    network(torch.rand(1, 1, 188, 188))
    assert len(seen) == 4
    assert all((least >= 0) is up_relu for least in seen)


# The file


@pytest.mark.parametrize("preset", ["paper", "release", "port", "quick"])
def test_saved_network_gives_the_same_output(preset: str, tmp_path: Path) -> None:
    values = {**to_dict(MODELS[preset]), "base_channels": 2, "input_mean": (0.4,)}  # type: ignore[index]
    network = small(**values).train()
    with torch.no_grad():
        for buffer in network.buffers():  # batch statistics are saved as well
            buffer.add_(1)
    path = tmp_path / "model.safetensors"
    network.input_mean.fill_(0.4)
    network.input_std.fill_(1)
    save_model(network, path, training={"seed": 3})
    loaded = load_model(path)
    assert loaded.config == network.config
    assert not loaded.training
    image = torch.rand(1, 1, 188, 220)
    assert torch.equal(loaded(image), network.eval()(image))
    metadata = read_metadata(path)
    assert metadata["training"] == {"seed": 3}
    assert metadata["config"]["input_mean"] == [0.4]
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def saved(folder: Path, **shape: object) -> Path:
    path = folder / "model.safetensors"
    save_model(small(depth=1, **shape), path)
    return path


class Malicious:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


@pytest.mark.parametrize("writer", ["torch.save", "torch.save (old)", "pickle"])
def test_pickle_is_refused_and_never_executed(writer: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "model.safetensors"
    content = {"weight": torch.zeros(2), "trap": Malicious(marker)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch.save")
    with pytest.raises(InputError, match="not a model of unet_repro"):
        load_model(path)
    assert not marker.exists()
    if writer == "pickle":  # the trap does work
        pickle.loads(path.read_bytes())
        assert marker.exists()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.safetensors: no such model file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="no such model file"):
        load_model(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    path = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match="not a model of unet_repro"):
        load_model(path)


def test_foreign_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"not a model of unet_repro \(it lacks 'unet_repro'"):
        load_model(path)
    save_file({"weight": torch.zeros(3)}, path, {"unet_repro": "0", "config": "{", "training": ""})
    with pytest.raises(InputError, match="not a model of unet_repro"):
        load_model(path)


def rewritten(path: Path, config: object, **tensors: Tensor) -> Path:
    """Give a model file other metadata, and other tensors."""
    weights = {**load_model(path).state_dict(), **tensors}
    metadata = {"unet_repro": "0", "config": json.dumps(config), "training": "{}"}
    save_file(weights, path, metadata)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 4}, "weight .* has shape .* its configuration needs"),
        ({"depth": 2}, r"weight contracting_path\.2.* has shape None"),
        ({"leaky": 0.1}, "unknown UNetConfig key 'leaky'; known: in_channels, classes"),
        ({"depth": "one"}, "UNetConfig.depth cannot be 'one'"),
        ({"depth": 0}, "depth is 0"),
        ({"base_channels": 2**16}, "weight .* its configuration needs"),  # never allocated
        ({"base_channels": 10**15}, "base_channels is 10{15}: it must be an integer"),
        ({"input_mean": [float("nan")]}, "input_mean cannot be .*nan"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = saved(tmp_path)
    config = {**to_dict(load_model(path).config), **change}
    with pytest.raises(InputError, match=message):
        load_model(rewritten(path, config))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_weights_of_other_types_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path = saved(tmp_path)
    bias = torch.zeros(2).to(dtype)
    config = to_dict(load_model(path).config)
    with pytest.raises(InputError, match=r"weight classifier\.bias is stored as .*F32 or F64"):
        load_model(rewritten(path, config, **{"classifier.bias": bias}))


@pytest.mark.parametrize("config", [None, [], 3, "paper"])
def test_configuration_that_is_no_object_is_refused(config: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UNetConfig needs an object with its fields"):
        load_model(rewritten(saved(tmp_path), config))


def test_extra_weight_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    config = to_dict(load_model(path).config)
    with pytest.raises(InputError, match=r"weight extra has shape \(3,\)"):
        load_model(rewritten(path, config, extra=torch.zeros(3)))


def test_saving_replaces_atomically(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    network = small(depth=1)
    network.config = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        save_model(network, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_logits_do_not_depend_on_the_batch() -> None:
    network = small().eval()
    images = torch.from_numpy(np.random.default_rng(0).random((3, 1, 188, 188), dtype=np.float32))
    together = network(images)
    for image, logits in zip(images, together):
        assert torch.allclose(network(image[None])[0], logits, atol=1e-6)


def literal_logits(network: UNet, image: Tensor) -> Tensor:
    """Fig. 1 as it is drawn, every map kept."""
    shape, skips = network.config, []
    x = (image - network.input_mean) / network.input_std
    for level, convolutions in enumerate(network.contracting_path):
        x = convolutions(nn.functional.max_pool2d(x, 2) if level else x)
        skips.append(x)
    for expansion in network.expanding_path:
        skips.pop()
        x = expansion.up_convolution(x)  # type: ignore[operator]
        x = x.relu() if shape.up_relu else x
        x = expansion.convolutions(crop_and_concatenate(x, skips[-1]))  # type: ignore[operator]
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
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def count(_: nn.Module, inputs: tuple[Tensor]) -> None:
        alive.append(sum(output() is not None and output() is not inputs[0] for output in outputs))

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_pre_hook(count)
            layer.register_forward_hook(lambda _, __, y: outputs.append(weakref.ref(y)))
    with torch.inference_mode():
        network(torch.zeros(1, 1, 188, 188))
    assert alive == [0] * 23
