"""Fine-tuning: what a run takes over from the model that it begins from (``--init``).

Not in the paper: all its networks begin from random weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from torch import Tensor

from unet_repro.config import TrainConfig, UNetConfig, from_dict
from unet_repro.errors import InputError
from unet_repro.network.grey_values import unlike
from unet_repro.network.model_file import load_model, network_sha256
from unet_repro.training.checkpoint import CHECKPOINT, read_identity
from unet_repro.training.dataset import TrainingSet

_MEASURED = ("in_channels", "input_mean", "input_std")  # at their defaults the model's count


@dataclass(frozen=True, eq=False)
class Initial:
    """The model that a run begins from: its file's name, its network, its weights and their hash.

    Of a run that goes on without the file there are no weights: its checkpoint has its own.
    """

    name: str
    model: UNetConfig
    sha256: str
    weights: Mapping[str, Tensor] | None

    def shape(self, training: TrainingSet, settings: TrainConfig) -> UNetConfig:
        """Return the network's shape with the input statistics that the settings ask for.

        `InputError`: the images have other channels.
        """
        if self.model.in_channels != training.channels:
            raise InputError(
                f"{self.name}: takes {self.model.in_channels} channels, but the images have "
                f"{training.channels}; begin from another model, or from none"
            )
        if settings.input_statistics == "model":
            return self.model
        return replace(
            self.model,
            input_mean=tuple(training.mean.flatten().tolist()),
            input_std=tuple(training.std.flatten().tolist()),
        )

    def doubt(self, training: TrainingSet, settings: TrainConfig) -> str:
        """Say that the images have other grey values than the model's, if so and if it matters."""
        if settings.input_statistics != "model":
            return ""
        mean, std = (values.flatten().tolist() for values in (training.mean, training.std))
        given = {"input_mean": self.model.input_mean, "input_std": self.model.input_std}
        text = unlike(mean, std, **given)
        return text and f"the images' {text}; --input-statistics images measures them anew"

    def line(self, training: TrainingSet, settings: TrainConfig) -> str:
        """Say what the run begins from, and what grey values its network reckons with."""
        mean, std = (_shown(values.flatten().tolist()) for values in (training.mean, training.std))
        mean0, std0 = _shown(self.model.input_mean), _shown(self.model.input_std)
        if settings.input_statistics == "model":
            whose = f"model (mean {mean0}, deviation {std0}; the images have {mean}, {std})"
        else:
            whose = f"images (mean {mean}, deviation {std}; the model had {mean0}, {std0})"
        return (
            f"{self.model.base_channels} channels, {self.model.classes} classes, from {self.name}; "
            f"input statistics of the {whose}"
        )


def _shown(values: Sequence[float]) -> str:
    return "/".join(f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" for value in values)


def initial_model(settings: TrainConfig, resumed: Path | None = None) -> Initial | None:
    """Read the model that `settings.init` names; None where it names none.

    Parameters
    ----------
    settings
        Its `model` is the file's, or leaves open what data decide; dropout may be another.
    resumed
        Folder of a run to go on with, if there is one: where the file is gone, the checkpoint
        there says what it held.

    Raises
    ------
    InputError
        The file is no model, or the settings name another network than its own.
    """
    if not settings.init:
        return None
    name = Path(settings.init).name
    try:
        network = load_model(settings.init)
        weights: Mapping[str, Tensor] | None = network.state_dict()
        model, sha256 = network.config, network_sha256(network)
    except InputError:
        if resumed is None or Path(settings.init).exists():
            raise
        before = read_identity(resumed / CHECKPOINT)
        if not before.get("init"):
            raise
        model, sha256, weights = from_dict(UNetConfig, before["model"]), str(before["init"]), None
        return Initial(name, model, sha256, weights)
    return Initial(name, _agreed(settings.model, model, name), sha256, weights)


def _agreed(given: UNetConfig, model: UNetConfig, name: str) -> UNetConfig:
    """Return a model's network with the dropout of the settings, which may not differ otherwise."""
    default = UNetConfig()
    for key in (field.name for field in fields(UNetConfig)):
        ours, theirs = getattr(given, key), getattr(model, key)
        is_open = key == "dropout" or (key in _MEASURED and ours == getattr(default, key))
        if ours != theirs and not is_open:
            raise InputError(
                f"{name}: its network has {key} = {theirs}, not {ours}; --init takes the network "
                "from the model, so leave that setting out (in Python, give load_model(...).config)"
            )
    return replace(model, dropout=given.dropout)
