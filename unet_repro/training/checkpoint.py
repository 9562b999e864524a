"""The file that a training run goes on from: written whole or not at all, read with distrust."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from unet_repro import config
from unet_repro.config import TrainConfig
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.files.file_access import parse_json

CHECKPOINT = "checkpoint.pt"  # in the folder of a run
FREE = ("iterations", "time_budget", "patience", "device")  # settings that a resumed run may change

_OTHERS = {"data": "other images, labels or weights", "init": "other initial weights (--init)"}


def identity(settings: TrainConfig, *, processes: int, data: str, init: str = "") -> dict[str, Any]:
    """Return what a resumed run must share: settings (batch size over all processes) and data.

    Of a model that the run begins from it holds the weights' hash, `init`, not where they lie.
    """
    values = json.loads(json.dumps(config.to_dict(settings)))
    for name in FREE:
        del values[name]
    values["batch_size"] *= processes
    return {"init": ""} | values | {"init": init, "data": data}  # other weights are told first


def write_checkpoint(path: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Write a checkpoint, complete or not at all."""
    content = io.BytesIO()  # torch would turn a full disk into a RuntimeError
    torch.save({**state, "identity": json.dumps(identity)}, content)
    with atomic_path(path, overwrite=True) as part:
        part.write_bytes(content.getbuffer())


def restore_checkpoint(
    content: bytes,
    path: Path,
    identity: Mapping[str, Any],
    restore: Callable[[dict[str, Any]], None],
) -> None:
    """Check a checkpoint's bytes and hand its state, on the CPU, to `restore`.

    `InputError`: the file is damaged or not ours, or of other settings or data than `identity`.
    """
    state, made_with = _opened(content, path)
    # a setting that did not exist then had the paper's value
    before = config.flat(config.to_dict(TrainConfig())) | config.flat(made_with)
    for name, now in config.flat(identity).items():
        if before.get(name) != now:
            values = f"{name} = {before.get(name)!r:.80}, not {now!r:.80}"
            what = _OTHERS.get(name, values)
            raise InputError(
                f"{path}: was made with {what}; a resumed run may only change iterations, "
                "time budget, patience and device; --overwrite begins anew"
            )
    try:
        restore(state)
    except Exception as error:  # a part is missing or does not fit
        raise _foreign(path) from error


def read_identity(path: Path) -> dict[str, Any]:
    """Return the identity in a checkpoint, empty where there is no file.

    `InputError`: the file is damaged or not ours.
    """
    return _opened(path.read_bytes(), path)[1] if path.is_file() else {}


def _opened(content: bytes, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's state and identity; raise for what is damaged or not ours."""
    if not content.startswith(b"PK\x03\x04"):  # of torch's forms only the one that we write
        raise _foreign(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that are refused below
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        made_with = parse_json(state["identity"])
        config.from_dict(config.UNetConfig, made_with["model"])
        return state, made_with
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _foreign(path) from error


def _foreign(path: Path) -> InputError:
    return InputError(
        f"{path}: not a checkpoint of unet_repro, or damaged; --overwrite begins anew"
    )
