"""The authors' release: files made from Caffe's public definition, and what Caffe makes of them."""

from __future__ import annotations

import builtins
import functools
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unet_repro import cli
from unet_repro.bridges import caffe
from unet_repro.bridges.caffe import caffe_layers, read_caffemodel
from unet_repro.config import MODELS, UNetConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, read_metadata

SMALL = replace(MODELS["release"], base_channels=2)
SMALLEST = replace(MODELS["release"], base_channels=1, depth=1)
# 23 layers and the shapes of their weights, from the release's network definition; the bias of each
# has as many values as the layer gives channels
RELEASE = {
    "conv_d0a-b": (64, 1, 3, 3),
    "conv_d0b-c": (64, 64, 3, 3),
    "conv_d1a-b": (128, 64, 3, 3),
    "conv_d1b-c": (128, 128, 3, 3),
    "conv_d2a-b": (256, 128, 3, 3),
    "conv_d2b-c": (256, 256, 3, 3),
    "conv_d3a-b": (512, 256, 3, 3),
    "conv_d3b-c": (512, 512, 3, 3),
    "conv_d4a-b": (1024, 512, 3, 3),
    "conv_d4b-c": (1024, 1024, 3, 3),
    "upconv_d4c_u3a": (1024, 512, 2, 2),
    "conv_u3b-c": (512, 1024, 3, 3),
    "conv_u3c-d": (512, 512, 3, 3),
    "upconv_u3d_u2a": (512, 256, 2, 2),
    "conv_u2b-c": (256, 512, 3, 3),
    "conv_u2c-d": (256, 256, 3, 3),
    "upconv_u2d_u1a": (256, 128, 2, 2),
    "conv_u1b-c": (128, 256, 3, 3),
    "conv_u1c-d": (128, 128, 3, 3),
    "upconv_u1d_u0a": (128, 128, 2, 2),
    "conv_u0b-c": (64, 192, 3, 3),
    "conv_u0c-d": (64, 64, 3, 3),
    "conv_u0d-score": (2, 64, 1, 1),
}
Weights = dict[str, tuple[NDArray, NDArray]]

# --- Caffe's messages, written by hand: keys, lengths, values


def varint(value: int) -> bytes:
    groups = [value & 127]
    while value := value >> 7:
        groups[-1] |= 128
        groups.append(value & 127)
    return bytes(groups)


def of_length(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def of_number(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(values: NDArray, form: str = "v1") -> bytes:
    """Return a BlobProto: num … width = 1 … 4, data = 5, shape = 7, double_data = 8."""
    if form in ("v1", "unpacked"):
        sides = (*(1,) * (4 - values.ndim), *values.shape)
        shape = b"".join(of_number(i, side) for i, side in enumerate(sides, start=1))
    else:
        shape = of_length(7, of_length(1, b"".join(map(varint, values.shape))))
    if form == "double":
        return of_length(8, values.astype("<f8").tobytes()) + shape
    if form == "unpacked":
        key = varint(5 << 3 | 5)
        return shape + b"".join(key + value.tobytes() for value in values.astype("<f4").ravel())
    data = values.astype("<f4").tobytes()
    half = len(data) // 8 * 4  # a list may come in parts
    return shape + of_length(5, data[:half]) + of_length(5, data[half:])


def v1_layer(name: str, *blobs: bytes) -> bytes:
    """Return a layer as NetParameter holds it in field 2: bottom, top, name, type, blobs."""
    parts = [of_length(2, b"below"), of_length(3, b"above"), of_length(4, name.encode())]
    return of_length(2, b"".join([*parts, of_number(5, 4), *(of_length(6, b) for b in blobs)]))


def v2_layer(name: str, *blobs: bytes) -> bytes:
    """Return a layer as NetParameter holds it in field 100: name, type, blobs, a setting."""
    parts = [of_length(1, name.encode()), of_length(2, b"Convolution")]
    parts += [of_length(7, b) for b in blobs]
    return of_length(100, b"".join([*parts, of_length(106, of_number(1, 64))]))


def caffemodel(weights: Weights, form: str = "v1") -> bytes:
    """Return a NetParameter with layers of weights, and others."""
    layer = v1_layer if form in ("v1", "unpacked") else v2_layer
    others = [layer("data"), layer("relu"), layer("data")]
    layers = [layer(name, *(blob(part, form) for part in pair)) for name, pair in weights.items()]
    return of_length(1, b"phseg_v5") + of_number(5, 1) + b"".join([*others, *layers])


def weights_of(config: UNetConfig) -> Weights:
    """Draw weights for the release's layers, in the shapes of RELEASE or smaller."""
    rng = np.random.default_rng(0)
    with torch.device("meta"):
        layers = caffe_layers(UNet(config))
    weights = {}
    for name, layer in layers.items():
        assert layer.bias is not None
        shape = tuple(layer.weight.shape)
        deviation = np.sqrt(2 / np.prod(shape[1:]))
        weights[name] = (
            (deviation * rng.standard_normal(shape)).astype(np.float32),
            rng.normal(0, 0.1, len(layer.bias)).astype(np.float32),
        )
    return weights


def refused(path: Path, content: bytes, message: str, config: UNetConfig = SMALLEST) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_caffemodel(path, config=config)
    assert "\n" not in str(error.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "phseg_v5.caffemodel"


# --- what is read


def test_the_preset_has_the_layers_of_the_release():
    with torch.device("meta"):
        network = UNet(MODELS["release"])
    layers = caffe_layers(network)
    assert {name: tuple(layer.weight.shape) for name, layer in layers.items()} == RELEASE
    assert list(layers) == list(RELEASE)  # the order in which the network has them
    assert len(set(map(id, layers.values()))) == 23
    assert sum(value.numel() for value in network.parameters()) == 31_100_354
    named = {id(value) for layer in layers.values() for value in layer.parameters()}
    assert named == {id(value) for value in network.parameters()}


@pytest.mark.parametrize("form", ["v1", "v2", "unpacked", "double"])
def test_every_form_of_caffes_files_gives_the_same_weights(path, form):
    weights = weights_of(SMALL)
    path.write_bytes(caffemodel(weights, form))
    layers = caffe_layers(read_caffemodel(path, config=SMALL))
    for name, (weight, bias) in weights.items():
        np.testing.assert_array_equal(layers[name].weight.detach().numpy(), weight)
        np.testing.assert_array_equal(layers[name].bias.detach().numpy(), bias)


def test_doubles_are_rounded_and_said_to_be(path):
    weights = weights_of(SMALLEST)
    weights["conv_d0a-b"] = (weights["conv_d0a-b"][0].astype(np.float64) + 1e-12, np.zeros(1))
    path.write_bytes(caffemodel(weights, "double"))
    with pytest.warns(InputNote, match="stored as float64; they are rounded to float32"):
        network = read_caffemodel(path, config=SMALLEST)
    weight = caffe_layers(network)["conv_d0a-b"].weight.detach().numpy()
    np.testing.assert_array_equal(weight, weights["conv_d0a-b"][0].astype(np.float32))


def convolution(x: NDArray, weight: NDArray, bias: NDArray) -> NDArray:
    """Return y[o, y, x] = b[o] + sum over c, i, j of w[o, c, i, j] x[c, y + i, x + j]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.einsum("ocij,cyxij->oyx", weight, windows, optimize=True) + bias[:, None, None]


def deconvolution(x: NDArray, weight: NDArray, bias: NDArray) -> NDArray:
    """Spread w[c, o, i, j] x[c, y, x] over the pixels (2 y + i, 2 x + j) of y[o]."""
    spread = np.einsum("coij,cyx->oyixj", weight, x, optimize=True)
    return spread.reshape(len(spread), 2 * x.shape[1], 2 * x.shape[2]) + bias[:, None, None]


def caffe_forward(weights: Weights, data: NDArray) -> NDArray:
    """Return the scores (2, y, x) of the release's network as its definition lists its layers."""

    def twice(x: NDArray, *names: str) -> NDArray:
        for name in names:
            x = np.maximum(convolution(x, *weights[name]), 0)
        return x

    maps, x = [], data
    for level in range(5):
        x = twice(x, f"conv_d{level}a-b", f"conv_d{level}b-c")
        if level < 4:
            maps.append(x)
            c, height, width = x.shape
            x = x.reshape(c, height // 2, 2, width // 2, 2).max(axis=(2, 4))
    for level, below in ((3, "d4c"), (2, "u3d"), (1, "u2d"), (0, "u1d")):
        up = np.maximum(deconvolution(x, *weights[f"upconv_{below}_u{level}a"]), 0)
        skip = maps[level]
        top, left = ((s - u) // 2 for s, u in zip(skip.shape[1:], up.shape[1:]))
        skip = skip[:, top : top + up.shape[1], left : left + up.shape[2]]
        x = twice(np.concatenate([up, skip]), f"conv_u{level}b-c", f"conv_u{level}c-d")
    return convolution(x, *weights["conv_u0d-score"])


def test_scores_are_those_of_caffes_layers(path):
    weights = weights_of(SMALL)
    path.write_bytes(caffemodel(weights))
    network = read_caffemodel(path, config=SMALL)
    image = np.random.default_rng(1).integers(0, 256, (1, 188, 204)).astype(np.float32)
    exact = {
        name: tuple(part.astype(np.float64) for part in pair) for name, pair in weights.items()
    }
    expected = caffe_forward(exact, image.astype(np.float64) / 255)
    assert expected.shape == (2, 4, 20) and np.ptp(expected) > 0.1
    with torch.no_grad():
        scores = network(torch.from_numpy(image)[None])[0].numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_command_makes_a_model_that_predicts(path, monkeypatch, capsys):
    small = functools.partial(read_caffemodel, config=SMALL)
    monkeypatch.setattr(caffe, "read_caffemodel", small)
    path.write_bytes(caffemodel(weights_of(SMALL)))
    out = path.with_name("model.safetensors")
    command = ["import-caffe", str(path), "--out", str(out)]
    assert cli.main([*command, "--input-std", "65535"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n" and "(grey value - 0) / 65535" in printed.err
    network = load_model(out)
    assert network.config == replace(SMALL, input_std=(65535.0,))
    image = torch.rand(1, 1, 188, 188)
    assert torch.equal(network(image), small(path, input_std=65535.0)(image))
    digest = read_metadata(out)["training"]["imported"]["sha256"]
    assert len(digest) == 64
    before = out.read_bytes()
    for bad in ([], ["--overwrite", "--input-std", "0"]):
        assert cli.main([*command, *bad]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and text.count("\n") == 1
    assert out.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [out.name, path.name]


# --- what is refused


def changed(change: Callable[[Weights], object]) -> bytes:
    weights = weights_of(SMALLEST)
    change(weights)
    return caffemodel(weights)


def test_other_layers_are_refused(path):
    weights = weights_of(SMALLEST)
    whole = caffemodel(weights)
    pair = weights["conv_u0c-d"]
    layer = v1_layer("conv_u0c-d", *map(blob, pair))
    refused(path, whole + layer, "layer conv_u0c-d is there twice")
    refused(path, whole + v2_layer("conv_u0c-d", *map(blob, pair)), "conv_u0c-d is there twice")
    refused(path, whole + v1_layer("fc8", blob(pair[0])), "weights of a layer 'fc8', which the")
    hostile = v1_layer("\x1b[31m\n" + 300 * "x", blob(pair[0]))
    refused(path, whole + hostile, r"weights of a layer '\\x1b\[31m\\nx+, which")
    missing = changed(lambda weights: weights.pop("conv_u0c-d"))
    refused(path, missing, r"no weights of layer conv_u0c-d \(1 of the release's 8 layers")
    refused(path, b"", r"no weights of layer conv_d0a-b \(8 of")
    refused(path, missing + v1_layer("conv_u0c-d", blob(pair[0])), "conv_u0c-d has 1 blob; weight")
    refused(path, missing + v1_layer("conv_u0c-d", *3 * [blob(pair[0])]), "more than 2 blobs")


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_other_shapes_are_refused(path, form):
    def with_weight(shape: tuple[int, ...]) -> bytes:
        weights = weights_of(SMALLEST)
        weights["conv_d1a-b"] = (np.zeros(shape, np.float32), np.zeros(2, np.float32))
        return caffemodel(weights, form)

    message = "layer conv_d1a-b: the weight is {}; the release has 2 × 1 × 3 × 3"
    refused(path, with_weight((1, 2, 3, 3)), message.format("1 × 2 × 3 × 3"))
    refused(path, with_weight((2, 1, 3, 1)), message.format("2 × 1 × 3 × 1"))
    refused(path, with_weight((64, 1, 3, 3)), message.format("64 × 1 × 3 × 3"))
    # the paper's network, whose last up-convolution halves the channels
    paper = weights_of(replace(SMALLEST, wide_last_up=False))
    expected = "the weight is 2 × 1 × 2 × 2; the release has 2 × 2 × 2 × 2"
    refused(path, caffemodel(paper, form), f"upconv_d1c_u0a: {expected}")


def one_blob(content: bytes) -> bytes:
    return v1_layer("conv_d0a-b", content, blob(np.zeros(1)))


def test_other_values_are_refused(path):
    shape = b"".join(of_number(i, side) for i, side in enumerate((1, 1, 3, 3), start=1))
    nine = struct.pack("<9f", *range(9))
    for value in (np.nan, np.inf, -np.inf):
        weight = np.full((1, 1, 3, 3), value, np.float32)
        refused(path, one_blob(blob(weight)), "conv_d0a-b: the weight holds values that are NaN")
    refused(path, one_blob(blob(np.full((1, 1, 3, 3), 1e300), "double")), "or beyond float32")
    refused(path, one_blob(shape + of_length(5, nine[:-4])), "has 8 values; 1 × 1 × 3 × 3 are")
    refused(path, one_blob(shape + of_length(5, nine + nine[:4])), "has 10 values; 1 × 1 × 3")
    refused(path, one_blob(shape), "has 0 values")
    refused(path, one_blob(shape + of_length(5, nine[:-1])), "its blob is damaged")
    both = of_length(5, nine) + of_length(8, bytes(72))
    refused(path, one_blob(shape + both), "has float and double values")
    refused(path, one_blob(of_length(5, nine)), "the weight is 0 × 0 × 0 × 0; the release has")
    endless = of_length(7, of_length(1, bytes([1]) * 1000))
    refused(path, one_blob(endless + of_length(5, nine)), "a shape of more than 64 bytes")
    negative = of_length(7, of_length(1, varint(2**64 - 1) * 2 + varint(3) * 2))
    refused(path, one_blob(negative + of_length(5, nine)), "the weight is -1 × -1 × 3 × 3")


def test_files_without_end_are_refused_before_they_fill_the_memory(path):
    refused(path, of_length(2, b"") * 1001, "more than 1000 layers")
    with path.open("wb") as file:
        file.truncate(2**31)  # of zeros, and of no bytes on disc
    with pytest.raises(InputError, match=r"larger than 16,779,976 bytes, too large for 138"):
        read_caffemodel(path, config=SMALLEST)
    refused(path, one_blob(bytes(2**21)), r"takes 2,097,152 bytes, too many for 1 × 1 × 3 × 3")
    refused(path, v1_layer("x", *3 * [b""]), "has more than 2 blobs")
    refused(path, of_number(5, 1) * 10_001, "more than 10000 fields")
    refused(path, of_length(2, of_number(5, 1) * 10_001), "more than 10000 fields")
    refused(path, bytes(2**20), "truncated one: a field 0")


def test_other_formats_are_refused(path):
    refused(path, b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5, as the authors' later release has it")
    with tarfile.open(path, "w:gz"):
        pass
    refused(path, path.read_bytes(), "compressed archive; unpack it")
    refused(path, b"name: 'phseg_v5'\nlayers { top: 'data' }", "no Caffe model")
    refused(path, b"\xff" * 40, "no Caffe model, or a truncated one: a number without an end")
    refused(path, b"\x0b\x0c", "no Caffe model, or a truncated one: a field of type 3")
    path.unlink()
    with pytest.raises(InputError, match=r"phseg_v5\.caffemodel: cannot be read: No such file"):
        read_caffemodel(path)


def test_a_file_cut_anywhere_is_refused(path):
    whole = caffemodel(weights_of(SMALLEST))
    for length in range(0, len(whole), 11):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"truncated|no weights of layer"):
            read_caffemodel(path, config=SMALLEST)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from(["v1", "v2", "unpacked"]),
    changes=st.lists(
        st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6
    ),
)
def test_whatever_its_bytes_a_file_is_a_network_or_refused(tmp_path, form, changes):
    content = bytearray(caffemodel(weights_of(SMALLEST), form))
    for place, byte in changes:
        content[place % len(content)] = byte
    path = tmp_path / "hostile.caffemodel"
    path.write_bytes(content)
    try:
        network = read_caffemodel(path, config=SMALLEST)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert all(value.isfinite().all() for value in network.parameters())


def test_without_protobuf_one_line_says_what_to_install(path, monkeypatch, capsys):
    def no_protobuf(name: str, *rest: object) -> object:
        if name.startswith("google"):
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    real = builtins.__import__
    caffe._messages.cache_clear()
    monkeypatch.setattr(builtins, "__import__", no_protobuf)
    path.write_bytes(caffemodel(weights_of(SMALLEST)))
    assert cli.main(["import-caffe", str(path), "--out", str(path.with_name("m"))]) == 2
    text = capsys.readouterr().err
    assert text == (
        "error: import-caffe needs the package protobuf: pip install 'unet_repro[caffe]'\n"
    )


# --- the release's size, and an importer of others


@pytest.mark.slow
@pytest.mark.parametrize("form", ["v1", "v2"])
def test_opencvs_importer_of_caffe_models_gives_the_same_scores(path, form):
    cv2 = pytest.importorskip("cv2")
    weights = weights_of(MODELS["release"])
    path.write_bytes(caffemodel(weights, form))
    definition = path.with_suffix(".prototxt")
    definition.write_text(prototxt(188, 204))
    net = cv2.dnn.readNetFromCaffe(str(definition), str(path))
    image = np.random.default_rng(1).integers(0, 256, (1, 1, 188, 204)).astype(np.float32)
    net.setInput(image / 255)
    expected = net.forward()
    with torch.no_grad():
        scores = read_caffemodel(path)(torch.from_numpy(image)).numpy()
    assert scores.shape == expected.shape == (1, 2, 4, 20)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def prototxt(height: int, width: int) -> str:
    """Return the release's network as Caffe's text, with centred crops."""
    lines = ["input: 'data'", *(f"input_dim: {n}" for n in (1, 1, height, width))]

    def layer(name: str, kind: str, bottoms: str, top: str, parameters: str = "") -> str:
        places = "".join(f" bottom: '{bottom}'" for bottom in bottoms.split())
        lines.append(f"layer {{ name: '{name}' type: '{kind}'{places} top: '{top}' {parameters} }}")
        return top

    def convolve(name: str, bottom: str, top: str) -> str:
        kind = "Deconvolution" if name.startswith("up") else "Convolution"
        inputs, outputs, side, _ = RELEASE[name]
        channels = outputs if kind == "Deconvolution" else inputs
        stride = 2 if kind == "Deconvolution" else 1
        numbers = f"num_output: {channels} kernel_size: {side} stride: {stride}"
        layer(name, kind, bottom, top, f"convolution_param {{ {numbers} }}")
        return top if "score" in name else layer(f"relu_{top}", "ReLU", top, top)

    x = "data"
    for level in range(5):
        x = convolve(f"conv_d{level}a-b", x, f"d{level}b")
        x = convolve(f"conv_d{level}b-c", x, f"d{level}c")
        if level < 4:
            pool = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"
            x = layer(f"pool_{level}", "Pooling", x, f"d{level + 1}a", pool)
    for level, margin in ((3, 4), (2, 16), (1, 40), (0, 88)):
        up = convolve(f"upconv_{x}_u{level}a", x, f"u{level}a")
        crop = f"crop_param {{ axis: 2 offset: {margin} offset: {margin} }}"
        skip = layer(f"crop_{level}", "Crop", f"d{level}c {up}", f"d{level}cc", crop)
        x = layer(f"concat_{level}", "Concat", f"{up} {skip}", f"u{level}b")
        x = convolve(f"conv_u{level}b-c", x, f"u{level}c")
        x = convolve(f"conv_u{level}c-d", x, f"u{level}d")
    convolve("conv_u0d-score", x, "score")
    return "\n".join(lines)
