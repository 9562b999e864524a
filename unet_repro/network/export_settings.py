"""Settings of an export: the flags of `export`, the keywords of `export_model`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unet_repro.errors import InputError

Format = Literal["onnx", "torchscript", "bioimageio"]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT [TEXT ...]")]

_OF_A_PACKAGE = ("example", "author", "citation", "license", "name", "description", "axes")
_NEEDED = {  # nobody but the user knows these
    "example": "an image like those to be segmented (sample, test and cover are made from it)",
    "author": "who made the model, as 'Ada Lovelace'",
    "citation": "what is to be cited, each with its DOI or URL, as 'Cardona et al. 2010, "
    "https://doi.org/10.1371/journal.pbio.1000502'",
    "license": "the model's licence by its SPDX name, as CC-BY-4.0",
}


@dataclass(frozen=True)
class ExportSettings:
    """What to make of a model file.

    Parameters
    ----------
    format
        onnx and torchscript: the network with its normalisation, grey values in, logits out;
        bioimageio: a package for ilastik, deepImageJ and others, with the network in three
        formats as a filter that gives probabilities.
    class_names
        Of class 0, 1, ...; by default background and cell, of more than two class_0, class_1, ...
    example
        Of a package, as all that follow: an image of which a part becomes sample, test and cover;
        of a stack its first slice. Its pixel size is the package's.
    author
        Who made the model; several may be given.
    citation
        What is to be cited, each with its DOI or URL; the paper of the U-Net is added.
    license
        Of the model, by its SPDX name, such as CC-BY-4.0.
    name
        Of the model; by default U-Net and the name of the file written.
    description
        In a sentence; by default what network it is.
    axes
        Of the example, in place of those that the file declares, such as ZYX.
    """

    format: Format
    class_names: Names = ()
    example: Path | None = None
    author: Names = ()
    citation: Names = ()
    license: str = ""
    name: str = ""
    description: str = ""
    axes: str = ""

    def __post_init__(self) -> None:
        if self.format == "bioimageio":
            missing = [name for name in _NEEDED if not getattr(self, name)]
            if missing:
                told = "; ".join(f"--{name}: {_NEEDED[name]}" for name in missing)
                raise InputError(f"a bioimage.io package needs {told}")
            return
        for field in fields(self):
            if field.name in _OF_A_PACKAGE and getattr(self, field.name):
                raise InputError(
                    f"{field.name} goes with format bioimageio; the format is {self.format}"
                )

    def classes(self, number: int) -> list[str]:
        """Return the names of a network's classes; `InputError` for names that are none."""
        if not self.class_names:
            if number == 2:
                return ["background", "cell"]
            return [f"class_{index}" for index in range(number)]
        names = list(self.class_names)
        if len(names) != number or len(set(names)) != number:
            raise InputError(
                f"class_names are {', '.join(names)}: the network has {number} classes, and each "
                "needs a name of its own"
            )
        for name in names:
            if not (name.isascii() and name.isidentifier()):
                raise InputError(
                    f"class name {name!r:.60}: letters, digits and _ only, as cell_border"
                )
        return names
