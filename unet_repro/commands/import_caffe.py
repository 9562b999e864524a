"""Read the weights of the authors' release."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unet_repro.commands.options import (
    Overwrite,
    arg,
)
from unet_repro.files.atomic import check_apart, check_output
from unet_repro.program import loading


@dataclass(frozen=True)
class ImportCaffe:
    """Make a model of the weights in the authors' release: phseg_v5.caffemodel of 2015-10-02.

    Parameters
    ----------
    file
        The .caffemodel, unpacked from the authors' archive.
    out
        Model file to write, such as release.safetensors.
    input_mean
        (grey value - mean) / std goes into the network; the file does not say how.
    input_std
        255 makes [0, 1] of 8-bit images, as the release's script does; 16-bit images need 65535.
    """

    file: Annotated[tyro.conf.Positional[Path], arg(metavar="FILE")]
    out: Path
    input_mean: float = 0.0
    input_std: float = 255.0
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.bridges import caffe
            from unet_repro.network.model_file import save_model

        check_apart(self.out, self.file)
        check_output(self.out, overwrite=self.overwrite)
        network = caffe.read_caffemodel(
            self.file, input_mean=self.input_mean, input_std=self.input_std
        )
        save_model(network, self.out, training=caffe.origin(self.file))
        scaling = f"(grey value - {self.input_mean:g}) / {self.input_std:g}"
        print(f"input: {scaling}; the release was trained on [0, 1]", file=sys.stderr)
        print(self.out)
        return 0
