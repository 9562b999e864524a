"""Write a trained network for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unet_repro.commands.options import (
    Overwrite,
    arg,
)
from unet_repro.network.export_settings import ExportSettings
from unet_repro.program import loading


@dataclass(frozen=True)
class Export:
    """Write a trained network for other programs; it is compared with this one before.

    Parameters
    ----------
    model
        A model.safetensors that train has written, or the name of a network that comes with the
        package.
    out
        File to write; of a bioimage.io package a .zip.
    """

    model: Annotated[tyro.conf.Positional[Path], arg(metavar="MODEL")]
    settings: tyro.conf.OmitArgPrefixes[ExportSettings]
    out: Path
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.network.export import export_model

        export_model(self.model, self.out, settings=self.settings, overwrite=self.overwrite)
        print(self.out)
        return 0
