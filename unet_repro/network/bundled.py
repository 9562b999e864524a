"""The trained networks that come with the package, each with its model card."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unet_repro.errors import InputError

_FOLDER = Path(__file__).parent.parent / "pretrained"


@dataclass(frozen=True)
class BundledModel:
    """A network of the package: its name, its file, and the card that says what it is for."""

    name: str
    path: Path

    @property
    def card(self) -> str:
        """The model card, Markdown: data, terms, recipe, figures, what it is not for."""
        return self.path.with_suffix(".md").read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """What it segments, in one line: the card's first one below its title."""
        lines = [line for line in self.card.splitlines() if line and not line.startswith("#")]
        return lines[0]


def bundled_models() -> dict[str, BundledModel]:
    """Return the networks that come with the package, by name."""
    paths = sorted(_FOLDER.glob("*.safetensors"))
    return {path.stem: BundledModel(path.stem, path) for path in paths}


def model_path(model: str | os.PathLike[str]) -> Path:
    """Return the file of a model: that of the bundled one of this name, or the path as given.

    `InputError`: a bundled network's name is that of a file here as well.
    """
    path, found = Path(model), bundled_models().get(os.fspath(model))
    if found is None:
        return path
    if path.is_file():
        raise InputError(
            f"{model}: is a network that comes with the package, and a file here as well; give the "
            f"file as {path.absolute()}, or rename it"
        )
    return found.path
