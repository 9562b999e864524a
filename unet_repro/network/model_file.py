"""A network's file: weights and the whole configuration, nothing that is ever executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from unet_repro._version import __version__
from unet_repro.config import UNetConfig, from_dict, to_dict
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.files.file_access import parse_json
from unet_repro.network.bundled import bundled_models, model_path
from unet_repro.network.model import UNet

_FLOATS = ("F32", "F64", "F16", "BF16")  # as safetensors names them


def save_model(
    model: UNet,
    path: str | os.PathLike[str],
    *,
    training: dict[str, Any] | None = None,
    half: bool = False,
) -> None:
    """Write weights and configuration, input normalisation included, to one file, atomically.

    Parameters
    ----------
    model
        The file alone is enough to predict with it.
    path
        Usually ``model.safetensors``; replaced if it exists.
    training : dict, optional
        How the weights came about (JSON-ready); kept in the metadata, not needed to predict.
    half
        Write float16: half the size, and weights rounded to eleven bits.

    Raises
    ------
    InputError
        `half`, and a weight beyond float16's range.
    """
    metadata = {
        "unet_repro": __version__,
        "config": json.dumps(to_dict(model.config)),
        "training": json.dumps(training or {}),
    }
    weights = model.state_dict().items()
    tensors = {name: value.detach().contiguous().cpu() for name, value in weights}
    if half:
        tensors = {name: _halved(name, value) for name, value in tensors.items()}
    with atomic_path(path, overwrite=True) as part:
        part.write_bytes(save(tensors, metadata))


def _halved(name: str, weights: Tensor) -> Tensor:
    """Return floating-point weights as float16."""
    if not weights.is_floating_point():
        return weights
    halved = weights.half()
    if not bool(halved.isfinite().all()):
        raise InputError(f"weight {name} holds values beyond float16's range (65504)")
    return halved


def network_sha256(network: UNet) -> str:
    """Return the SHA-256 of a network, wherever it lies: its configuration and all its weights."""
    digest = hashlib.sha256(json.dumps(to_dict(network.config)).encode())
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(path: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> UNet:
    """Read a network from `save_model`'s file, in eval mode. Nothing in the file is executed.

    Parameters
    ----------
    path
        A model file, or the name of a network that comes with the package, such as ``"em"``
        (`bundled_models`). Weights of any floating-point type become float32.
    device
        Where the network goes.

    Raises
    ------
    InputError
        The file is missing, not safetensors (a pickle is never opened), not one of ours, or its
        weights do not fit its configuration.
    """
    path = model_path(path)
    metadata = read_metadata(path)
    config = from_dict(UNetConfig, metadata["config"])
    with torch.device("meta"):  # a configuration may lie: compare before allocating
        expected = UNet(config).state_dict()
    try:
        tensors = _read_tensors(path, expected)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    model = UNet(config)
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"{path}: weight {name} holds NaN or infinite values")
    model.load_state_dict(tensors)
    model.separation_px = _separation_px(metadata["training"])
    return model.to(device).eval()


def _separation_px(training: Any) -> float:
    """Return the px that training has parted touching cells by, 0.0 where it says no such thing."""
    try:
        how = training["settings"]["weight_map"]
        px = float(how["separation_px"]) if how["separate_touching"] is True else 0.0
    except (KeyError, TypeError, ValueError, OverflowError):  # whatever a file may hold
        return 0.0
    return px if 0 < px < math.inf else 0.0


def _read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file, which must be those expected in shape and kind of number."""
    with safe_open(path, framework="pt") as file:
        parts = {name: file.get_slice(name) for name in file.keys()}
        for name in sorted(expected.keys() | parts.keys()):
            needed = tuple(expected[name].shape) if name in expected else None
            found = tuple(parts[name].get_shape()) if name in parts else None
            if needed != found:
                raise InputError(
                    f"{path}: weight {name} has shape {found}, its configuration needs {needed}"
                )
            dtype = parts[name].get_dtype()
            allowed = _FLOATS if expected[name].is_floating_point() else ("I64",)
            if dtype not in allowed:
                raise InputError(
                    f"{path}: weight {name} is stored as {dtype}; {' or '.join(allowed)} is needed"
                )
        return {name: file.get_tensor(name) for name in parts}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a model file's ``config``, ``training`` (dicts) and version (``unet_repro``).

    A bundled network's name will do. A file that is missing or not one of ours is an `InputError`.
    """
    path = model_path(path)
    if not path.is_file():
        inside = path / "model.safetensors"
        if inside.is_file():
            raise InputError(f"{path}: is the folder of a run: its model is {inside}")
        names = ", ".join(bundled_models())
        raise InputError(
            f"{path}: no such model file (train writes model.safetensors), nor a network that "
            f"comes with the package ({names})"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return {
            "unet_repro": metadata["unet_repro"],
            "config": parse_json(metadata["config"]),
            "training": parse_json(metadata["training"]),
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(
            f"{path}: not a model of unet_repro ({reason.splitlines()[0][:80]}); "
            "needed is a .safetensors file written by train"
        ) from error
