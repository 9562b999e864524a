"""Segment a stack with a trained network."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from unet_repro.cluster import Machines
from unet_repro.commands.options import (
    Flag,
    Overwrite,
    ResumeOutput,
    arg,
    told,
)
from unet_repro.errors import one_line
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.program import INTERRUPTED, loading


@dataclass(frozen=True)
class Predict:
    """Segment a stack of any size, slice by slice and tile by tile, with a trained network.

    Parameters
    ----------
    stack
        TIFF stack, PNG or JPEG image, folder of images in natural order; OME-Zarr image or zarr
        array, a folder or URL (s3://, https://); file.h5:/dataset.
    model
        A model.safetensors that train has written, or the name of a network that comes with the
        package: em (see unet-repro models).
    out
        TIFF file to write; OME-Zarr (a name that ends in .zarr, also s3://), which several
        processes can write; or, where STACK is a folder, a folder for files of the same names
        (needed where its images have several sizes).
    device
        auto: CUDA where there is one, else the CPU; or any that PyTorch knows, such as cpu, cuda:1
        (the second), mps or xpu.
    plan
        Show tiles, memory, output and time, and stop.
    verify
        Compute random places again with other windows before the output gets its name.
    """

    stack: Annotated[tyro.conf.Positional[Path], arg(metavar="STACK")]
    model: Path
    out: Path
    settings: tyro.conf.OmitArgPrefixes[PredictionSettings] = field(
        default_factory=PredictionSettings
    )
    machines: tyro.conf.OmitArgPrefixes[Machines] = field(default_factory=Machines)
    device: str = "auto"
    plan: Flag = False
    verify: Flag = False
    resume: ResumeOutput = False
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.network.device import choose_device
            from unet_repro.network.model_file import load_model
            from unet_repro.prediction.predict_stack import prepared

        network = load_model(self.model, device=choose_device(self.device))
        options: dict[str, Any] = {
            "machines": self.machines,
            "model_file": self.model,
            "resume": self.resume,
        }
        with prepared(self.stack, network, self.out, self.settings, **options) as prediction:
            if self.plan:
                print(prediction.outlook())
                return 0
            if "auto" in (self.settings.backend, self.settings.precision):
                print(f"network: {prediction.predictor.way}", file=sys.stderr)
            try:
                is_complete = prediction.run(
                    resume=self.resume, overwrite=self.overwrite, verify=self.verify, progress=True
                )
            except KeyboardInterrupt:
                print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
                return INTERRUPTED
        return told(is_complete, self.machines, self.out)
