"""Tiles against one pass over the whole image: to the bit where arithmetic is exact."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import geometry
from unet_repro.network.model import UNet
from unet_repro.prediction.mirror import mirror_index
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume

EXACT = 2.0**53  # integers below are exact in float64, in any order of summation


def exact_network(depth: int, seed: int = 0, **shape: int | bool) -> UNet:
    """Float64, weights in {-1, 0, 1}, 2 base channels: every sum of integers is exact."""
    generator = torch.Generator().manual_seed(seed)
    network = UNet(UNetConfig(depth=depth, base_channels=2, **shape)).double().eval()  # type: ignore[arg-type]
    for weights in network.parameters():
        ternary = torch.randint(-1, 2, weights.shape, generator=generator)
        weights.data = ternary.double()
    return network


def integer_image(height: int, width: int, *channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 16, (*channels, height, width))


def mirrored(image: np.ndarray, before: int, size: tuple[int, int]) -> np.ndarray:
    """Pad by NumPy's own mirror, which it repeats where the image is too small."""
    *channels, height, width = image.shape
    after = [side - before - n for side, n in zip(size, (height, width))]
    pads = [(0, 0)] * len(channels) + [(before, after[0]), (before, after[1])]
    return np.pad(image, pads, mode="reflect")


@torch.no_grad()
def whole_pass(network: UNet, image: np.ndarray) -> Tensor:
    """One window over the mirrored image: what tiles must reproduce. (classes, height, width)"""
    depth = network.config.depth
    grid = 2**depth
    if network.config.padding:  # the receptive field, rounded up to the pooling grid
        before = 7 * grid
        sides = [-(-n // grid) * grid + 2 * before for n in image.shape[-2:]]
    else:
        before = 6 * grid - 4
        sides = [n + 2 * before for n in image.shape[-2:]]
        sides = [n + (-4 - n) % grid for n in sides]  # n % 16 == 12
    window = torch.from_numpy(mirrored(image, before, (sides[0], sides[1])))
    window = window.to(next(network.parameters()).dtype)
    logits = network(window.reshape(1, network.config.in_channels, *window.shape[-2:]))[0]
    top = before if network.config.padding else 0
    return logits[:, top : top + image.shape[-2], top : top + image.shape[-1]]


def window_of(size: int, tiles: int, depth: int) -> int:
    """Return the valid window of the smallest aligned stride that covers `size` so."""
    return geometry.input_size(geometry.aligned_stride(size, tiles, depth), depth)


@given(
    depth=st.integers(1, 4),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    tiles=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@example(depth=4, height=1, width=1, tiles=1, seed=0)
@example(depth=4, height=5, width=300, tiles=4, seed=0)
@example(depth=4, height=70, width=100, tiles=7, seed=1)
@settings(deadline=None, max_examples=60)
def test_tiles_equal_the_whole_pass_bit_for_bit(
    depth: int, height: int, width: int, tiles: int, seed: int
) -> None:
    network = exact_network(depth, seed)
    image = integer_image(height, width, seed=seed)
    tile = window_of(max(height, width), tiles, depth)
    tiled = OverlapTilePredictor(network, tile=tile).logits(image)
    assert tiled.dtype == np.float64
    assert torch.equal(torch.from_numpy(tiled), whole_pass(network, image))


@pytest.mark.parametrize(
    "shape",
    [
        dict(in_channels=3, classes=4),
        dict(up_relu=True, wide_last_up=True, dropped_skip=True),
        dict(padding=True),
        dict(padding=True, in_channels=2),
    ],
    ids=["channels", "release", "padded", "padded channels"],
)
@pytest.mark.parametrize("depth", [1, 3])
def test_other_networks_are_exact_too(shape: dict[str, int], depth: int) -> None:
    network = exact_network(depth, **shape)
    image = integer_image(75, 131, shape.get("in_channels", 1))
    whole = OverlapTilePredictor(network, memory=2**40).plan(75, 131).peak_bytes
    predictor = OverlapTilePredictor(network, memory=int(0.8 * whole))
    assert len(predictor.plan(75, 131)) > 1
    tiled = predictor.logits(image)
    assert torch.equal(torch.from_numpy(tiled), whole_pass(network, image))


def test_exact_arithmetic_stays_in_range() -> None:
    """The premise of the tests above: no sum can reach 2^53, and the depth does speak."""
    network = exact_network(4)
    largest = []

    def record(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        incoming = sum(abs(weights).sum(dim=(1, 2, 3)).max() for weights in [layer.weight])
        largest.append(float(inputs[0].abs().max() * incoming))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(record)
    whole_pass(network, integer_image(300, 300))
    assert max(largest) < EXACT
    assert max(largest) > 1e9


def test_window_off_the_pooling_grid_differs() -> None:
    """Negative control: a tile that begins 4 px off the grid is another result."""
    network = exact_network(4)
    image = integer_image(96, 300)
    whole = whole_pass(network, image)
    window = torch.from_numpy(mirrored(image, 92, (284, 492)))[None, None].double()
    for start, is_equal in ((16, True), (4, False), (8, False), (20, False), (32, True)):
        with torch.no_grad():
            tile = network(window[..., start : start + 284])[0]  # keeps 100 px
        assert torch.equal(tile[:, :96], whole[..., start : start + 100]) is is_equal, start


def test_abutting_388_px_tiles_differ_from_the_whole_pass() -> None:
    network = exact_network(4)
    image = integer_image(20, 776)
    whole = whole_pass(network, image)
    window = torch.from_numpy(mirrored(image, 92, (204, 184 + 784)))[None, None].double()
    with torch.no_grad():
        abutting = network(window[..., 388 : 388 + 572])[0]
        aligned = network(window[..., 384 : 384 + 572])[0]
    assert not torch.equal(abutting, whole[..., 388:776])
    assert torch.equal(aligned, whole[..., 384:772])


@pytest.mark.parametrize("padding", [False, True], ids=["unpadded", "padded"])
def test_float32_tiles_stay_within_rounding_of_the_whole_pass(padding: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    shape = UNetConfig(base_channels=8, padding=padding, batch_norm=padding, input_mean=(0.5,))
    network = UNet(shape, generator=generator).eval()
    image = np.random.default_rng(0).random((230, 190), dtype=np.float32)
    tile = 320 if padding else 284
    tiled = OverlapTilePredictor(network, tile=tile)(image)
    whole = whole_pass(network, image).softmax(dim=0)
    assert tiled.dtype == np.float32
    assert np.ptp(tiled[1]) > 0.01
    np.testing.assert_allclose(tiled, whole.numpy(), rtol=0, atol=1e-5)


# A stand-in with a neighbourhood: the sizes of depth 1 (16 px lost), asymmetric on purpose
KERNEL = torch.from_numpy(np.random.default_rng(7).integers(-3, 4, (2, 1, 17, 17))).float()


def neighbourhood(window: Tensor) -> Tensor:
    return F.conv2d(window / 300, KERNEL)


def neighbourhood_of_whole(image: np.ndarray) -> np.ndarray:
    padded = np.pad(image, 8, mode="reflect").astype(np.float32)
    return neighbourhood(torch.from_numpy(padded)[None, None])[0].numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def by_hand(average: str, image: np.ndarray, finish: object) -> np.ndarray:
    """Average over explicit turns, flips and turns back of whole passes."""
    results = []
    for flipped in (False, True):
        for turns in range(4):
            is_identity = not (turns or flipped)
            if {"rotations": flipped, "none": not is_identity, "seven": is_identity}.get(average):
                continue
            view = np.fliplr(np.rot90(image, turns)) if flipped else np.rot90(image, turns)
            result = finish(neighbourhood_of_whole(view))  # type: ignore[operator]
            planes = [np.fliplr(plane) if flipped else plane for plane in result]
            results.append(np.stack([np.rot90(plane, -turns) for plane in planes]))
    assert len(results) == {"none": 1, "rotations": 4, "dihedral": 8, "seven": 7}[average]
    return np.mean(results, axis=0)


@pytest.mark.parametrize("average", ["none", "rotations", "dihedral", "seven"])
def test_average_is_the_mean_over_turned_whole_passes(average: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (21, 50)).astype(np.uint8)
    predictor = OverlapTilePredictor(neighbourhood, tile=28, depth=1, average=average)  # type: ignore[arg-type]
    expected = by_hand(average, image, softmax)
    assert np.ptp(expected[1]) > 0.2
    np.testing.assert_allclose(predictor(image), expected, rtol=0, atol=1e-5)
    raw = by_hand(average, image, lambda logits: logits)
    np.testing.assert_allclose(predictor.logits(image), raw, rtol=0, atol=1e-4)


@settings(deadline=None)
@given(size=st.integers(1, 40), start=st.integers(-120, 60), length=st.integers(1, 200))
def test_mirror_index_is_numpys_reflection(size: int, start: int, length: int) -> None:
    line = np.pad(np.arange(size), (120, 300), mode="reflect")
    found = mirror_index(start, start + length, size)
    np.testing.assert_array_equal(found, line[start + 120 : start + 120 + length])


@pytest.mark.parametrize("dtype", [">u2", "int64", "float16", "float64", "bool", "<f4"])
def test_any_integer_or_float_type_gives_the_same_values(dtype: str) -> None:
    image = integer_image(9, 12) % 2
    predictor = OverlapTilePredictor(neighbourhood, depth=1)
    expected = predictor(image.astype(np.float32))
    assert np.array_equal(predictor(image.astype(dtype)), expected)


def test_float64_network_sees_float64_pixels() -> None:
    network = exact_network(1)
    image = integer_image(9, 12) + 2**40  # float32 would round to multiples of 2^17
    logits = OverlapTilePredictor(network).logits(image)
    assert torch.equal(torch.from_numpy(logits), whole_pass(network, image))


def test_image_is_not_changed_and_may_be_read_only() -> None:
    image = np.random.default_rng(0).random((30, 20), dtype=np.float32)
    before = image.copy()
    image.flags.writeable = False
    OverlapTilePredictor(neighbourhood, depth=1, average="dihedral")(image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.array([[1, 2], [3, np.nan]]), r"is nan at y = 1, x = 1: every pixel must be finite"),
        (np.array([[1e300, 2]]), r"is 1e\+300 at y = 0, x = 0.*within float32"),
        (np.ones((4, 4), complex), "holds complex128: integers or floats"),
        (np.array([["a"]]), "holds <U1: integers or floats"),
        (np.ones((0, 4)), r"shape \(0, 4\): \(height, width\) or \(1, height, width\) is needed"),
        (np.ones((3, 4, 4)), r"shape \(3, 4, 4\)"),
        (np.ones((1, 1, 4, 4)), r"shape \(1, 1, 4, 4\)"),
    ],
)
def test_bad_image_is_refused(image: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverlapTilePredictor(UNet(UNetConfig(depth=1, base_channels=1)))(image)


def test_flat_image_is_refused_where_channels_are_needed() -> None:
    with pytest.raises(InputError, match=r"\(4, 4\): \(3, height, width\) is needed"):
        OverlapTilePredictor(exact_network(1, in_channels=3))(np.ones((4, 4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(tile=570), r"tile 570 .*n % 16 == 12, n >= 204\); nearest: 556, 572"),
        (dict(tile=188), "tile 188 keeps no 16 aligned px: at least 204 is needed"),
        (dict(tile=572, memory=10**9), "exclude each other"),
        (dict(average="eight"), "average is 'eight': one of none, rotations, dihedral, seven"),
        (dict(precision="float16"), "precision is 'float16': float32 or bfloat16"),
        (dict(backend="onnx"), "backend is 'onnx': one of torch, compile, openvino"),
        (dict(model=neighbourhood), "depth, its number of poolings, is needed"),
    ],
)
def test_bad_option_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OverlapTilePredictor(**{"model": exact_network(4), **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [dict(depth=2), dict(depth=1, classes=3), dict(depth=1, padding=True)]
)
def test_output_of_an_unexpected_shape_is_refused(options: dict[str, int]) -> None:
    predictor = OverlapTilePredictor(neighbourhood, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the model made \(1, 2, .* is needed"):
        predictor(np.ones((30, 30)))


def test_too_little_memory_names_what_is_needed() -> None:
    predictor = OverlapTilePredictor(exact_network(4), memory=1000)
    with pytest.raises(InputError, match=r"1000 B of memory are too few.*16 x 16 px, takes"):
        predictor(np.ones((100, 100)))


def test_planned_tiles_keep_to_the_memory() -> None:
    plan = OverlapTilePredictor(UNet(UNetConfig(base_channels=1))).plan(100, 130)
    assert (len(plan), plan.redundancy, plan.window) == (1, 1.0, (284, 316))  # by default
    predictor = OverlapTilePredictor(UNet(UNetConfig(base_channels=4)), memory=20_000_000)
    plan = predictor.plan(600, 900)
    assert 1 < len(plan)
    assert plan.peak_bytes <= 20_000_000
    bfloat16 = OverlapTilePredictor(predictor.model, memory=20_000_000, precision="bfloat16")
    assert len(bfloat16.plan(600, 900)) < len(plan)


class Probe(nn.Module):
    """Records in which state it is called; dropout would show in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.dropout = nn.Dropout(), nn.Dropout()
        self.frozen.eval()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: set[tuple[object, ...]] = set()

    def forward(self, window: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled("cpu")
        self.seen.add((self.training, self.dropout.training, window.requires_grad, autocast))
        self.seen.add((window.dtype, window.is_contiguous(memory_format=torch.channels_last)))
        if window.mean() < 0:
            raise RuntimeError("inside the model")
        x = self.dropout(neighbourhood(window)) * self.weight
        assert not x.requires_grad
        return x.bfloat16() if autocast else x


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_model_runs_in_eval_mode_and_is_left_as_it_was(precision: str) -> None:
    model = Probe()
    predictor = OverlapTilePredictor(model, depth=1, precision=precision)  # type: ignore[arg-type]
    image = np.ones((20, 20))
    probability = predictor(image)
    assert probability.dtype == predictor.logits(image).dtype == np.float32
    assert model.seen == {(False, False, False, precision == "bfloat16"), (torch.float32, True)}
    with pytest.raises(RuntimeError, match="inside the model"):
        predictor(-image)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert not torch.is_autocast_enabled("cpu")


def test_module_moves_only_when_a_device_is_named() -> None:
    network = UNet(UNetConfig(depth=1, base_channels=1)).to("meta")
    assert OverlapTilePredictor(network).device.type == "meta"
    moved = UNet(UNetConfig(depth=1, base_channels=1))
    OverlapTilePredictor(moved, device="meta")
    assert next(moved.parameters()).device.type == "meta"


def test_volume_is_the_interior_of_every_slice() -> None:
    stack = integer_image(20, 31, 4).astype(np.uint8)
    predictor = OverlapTilePredictor(neighbourhood, tile=28, depth=1, average="rotations")
    volume = predict_volume(predictor, stack)
    assert (volume.shape, volume.dtype) == ((4, 20, 31), np.float32)
    for image, probability in zip(stack, volume):
        assert np.array_equal(probability, predictor(image)[1])


@pytest.mark.parametrize("shape", [(20, 31), (0, 20, 31), (3, 2, 2, 2, 2)])
def test_stack_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    predictor = OverlapTilePredictor(neighbourhood, depth=1)
    with pytest.raises(InputError, match=r"the stack has shape .* \(z, y, x\)"):
        predict_volume(predictor, np.ones(shape))


def test_progress_counts_tiles_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unet_repro.progress.LINE_EVERY_S", 0)
    stack = integer_image(20, 31, 2)
    predictor = OverlapTilePredictor(neighbourhood, tile=28, depth=1, average="rotations")
    predict_volume(predictor, stack)
    assert capsys.readouterr() == ("", "")
    predict_volume(predictor, stack, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "16/16 tile" in shown.err  # 2 slices, 2 x 4 tiles


WARMED_UP = """
import numpy as np
from unet_repro import OverlapTilePredictor, UNet, UNetConfig

predictor = OverlapTilePredictor(UNet(UNetConfig(base_channels=16)), tile=572)
predictor(np.zeros((4, 4)))  # libraries and kernels are loaded
"""


def test_predicted_peak_is_near_the_measured(peak_bytes: Callable[..., int]) -> None:
    predictor = OverlapTilePredictor(UNet(UNetConfig(base_channels=16)), tile=572)
    measured = peak_bytes(WARMED_UP, "predictor(np.zeros((1152, 384)))")  # three windows
    ratio = predictor.plan(1152, 384).peak_bytes / measured
    assert 0.7 < ratio < 1.4  # +-20 % as a rule; the heap's layout varies
