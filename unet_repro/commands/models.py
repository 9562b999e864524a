"""List the networks that come with the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from unet_repro.commands.options import (
    arg,
)
from unet_repro.errors import InputError
from unet_repro.network.bundled import bundled_models


@dataclass(frozen=True)
class Models:
    """List the trained networks that come with the package, or show the card of one.

    Parameters
    ----------
    name
        Show this network's card: data, terms, figures, what it is not for.
    """

    name: Annotated[tyro.conf.Positional[str], arg(metavar="NAME")] = ""

    def run(self) -> int:
        models = bundled_models()
        if self.name and self.name not in models:
            raise InputError(
                f"{self.name}: no network of the package has that name; there are "
                f"{', '.join(models)}"
            )
        if self.name:
            print(models[self.name].card)
            return 0
        for name, model in models.items():
            print(f"{name}: {model.summary}\n{' ' * len(name)}  {model.path}")
        return 0
