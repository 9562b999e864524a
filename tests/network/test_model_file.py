"""The network's file: what is saved comes back, and anything else is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unet_repro.config import MODELS, UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network.model import UNet
from unet_repro.network.model_file import (
    load_model,
    network_sha256,
    read_metadata,
    save_model,
)


def network_of(**values: object) -> UNet:
    generator = torch.Generator().manual_seed(0)
    return UNet(UNetConfig(**{"base_channels": 2, **values}), generator=generator)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A network of depth 1 in its file."""
    path = tmp_path / "model.safetensors"
    save_model(network_of(depth=1), path)
    return path


@pytest.mark.parametrize("preset", ["release", "port"])
def test_saved_network_gives_the_same_output(preset: str, tmp_path: Path) -> None:
    values = {**to_dict(MODELS[preset]), "base_channels": 2, "input_mean": (0.4,)}  # type: ignore[index]
    network = network_of(**values).train()
    for name, buffer in network.named_buffers():
        if not name.startswith("input_"):  # statistics of batches are saved as well
            buffer.add_(1)
    path = tmp_path / "model.safetensors"
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


def test_half_precision_rounds_the_weights_and_halves_the_file(tmp_path: Path) -> None:
    network = network_of(base_channels=8)
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    save_model(network, whole)
    save_model(network, half, half=True)
    assert 1.9 < whole.stat().st_size / half.stat().st_size < 2.0
    for name, value in load_model(half).state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, network.state_dict()[name].half().float())


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    network = network_of(depth=1)
    with torch.no_grad():
        next(network.parameters())[0] = 1e5
    with pytest.raises(InputError, match="beyond float16's range"):
        save_model(network, tmp_path / "half.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_saving_replaces_atomically(path: Path) -> None:
    before = path.read_bytes()
    network = network_of(depth=1)
    network.config = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        save_model(network, path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]


def test_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match=rf"{path.name}: no such model file"):
            load_model(path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(InputError, match=r"is the folder of a run: its model is .*safetensors$"):
        load_model(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9999])
def test_truncated_file_is_refused(share: float, path: Path) -> None:
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


def rewrite(path: Path, change: dict[str, object], **tensors: Tensor) -> None:
    """Give a model file another configuration, and other tensors."""
    model = load_model(path)
    config = json.dumps({**to_dict(model.config), **change})
    metadata = {"unet_repro": "0", "config": config, "training": "{}"}
    save_file({**model.state_dict(), **tensors}, path, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_channels": 4}, "weight .* has shape .* its configuration needs"),
        ({"depth": 2}, r"weight contracting_path\.2.* has shape None"),
        ({"base_channels": 2**16}, "weight .* its configuration needs"),  # never allocated
        ({"leaky": 0.1}, "unknown UNetConfig key 'leaky'; known: in_channels, classes"),
        ({"input_mean": [float("nan")]}, "input_mean cannot be .*nan"),
    ],
)
def test_configuration_that_does_not_fit_is_refused(
    change: dict[str, object], message: str, path: Path
) -> None:
    rewrite(path, change)
    with pytest.raises(InputError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("classifier.bias", torch.zeros(2).long(), r"bias is stored as I64; F32 or F64"),
        ("classifier.bias", torch.zeros(2).to(torch.float8_e4m3fn), "is stored as F8_E4M3"),
        ("classifier.bias", torch.tensor([0, torch.nan]), "holds NaN or infinite values"),
        ("extra", torch.zeros(3), r"weight extra has shape \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    name: str, tensor: Tensor, message: str, path: Path
) -> None:
    rewrite(path, {}, **{name: tensor})
    with pytest.raises(InputError, match=message):
        load_model(path)


def test_the_hash_is_of_the_network_and_not_of_how_it_came_about(tmp_path: Path) -> None:
    shape = UNetConfig(depth=1, base_channels=2)
    network = UNet(shape)
    for name, facts in (("a", {}), ("b", {"seed": 3})):
        save_model(network, tmp_path / name, training=facts)
    ours = network_sha256(network)
    assert {network_sha256(load_model(tmp_path / name)) for name in "ab"} == {ours}
    other = UNet(replace(shape, input_mean=(1.0,)))  # which is no weight, and decides the output
    other.load_state_dict(network.state_dict())
    assert network_sha256(other) != ours
    with torch.no_grad():
        network.classifier.bias[0] += 1e-7
    assert network_sha256(network) != ours
