"""Trained networks for other programs: ONNX, TorchScript, packages of bioimage.io."""

from __future__ import annotations

import os
from pathlib import Path

from unet_repro.config import keywords_from
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path, check_apart
from unet_repro.network import bioimageio_package, portable
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model

PathLike = str | os.PathLike[str]

_SUFFIXES = {"onnx": ".onnx", "torchscript": ".pt", "bioimageio": ".zip"}


@keywords_from(ExportSettings)
def export_model(
    model: PathLike, out: PathLike, *, settings: ExportSettings, overwrite: bool = False
) -> None:
    """Write a model file's network in a format that other programs run.

    Parameters
    ----------
    model : path-like
        A ``model.safetensors``; weights of any precision are written as float32.
    out : path-like
        The file to write; of a bioimage.io package it ends in ``.zip``.
    settings
        Or each of its fields as a keyword.
    overwrite
        Replace what is there.

    Raises
    ------
    InputError
        Settings or files that do not fit, the name of another format; a package of the extra
        ``export`` that is missing; a written network that differs from PyTorch's by more than 1e-4
        of the logits' range, at one of three sizes and batches of 1 and 2. Nothing is written then.

    Notes
    -----
    Not in the paper. The formats, and what a user must know of each, are told in the file itself:
    in ONNX by `doc_string`, in TorchScript by the extra file ``documentation``, in a package by
    its README.
    """
    out = Path(out)
    check_apart(out, Path(model))
    if settings.example is not None:
        check_apart(out, settings.example)
    if settings.format == "bioimageio" and out.suffix.lower() != ".zip":
        raise InputError(f"{out}: a bioimage.io package is a .zip: name it {out.stem}.zip")
    for other, suffix in _SUFFIXES.items():
        if other != settings.format and out.suffix.lower() == suffix:
            raise InputError(
                f"{out}: {out.suffix} names the format {other}; the format is {settings.format}: "
                f"name it {out.stem}{_SUFFIXES[settings.format]}"
            )
    network = load_model(model).float()
    write = {
        "onnx": _write_onnx,
        "torchscript": _write_torchscript,
        "bioimageio": bioimageio_package.write_package,
    }[settings.format]
    with atomic_path(out, overwrite=overwrite) as part:
        write(network, part, settings, name=out.stem)


def _write_onnx(model: UNet, path: Path, settings: ExportSettings, *, name: str) -> None:
    portable.require(("onnx", "onnxscript", "onnxruntime"), "an ONNX file")
    sizes = portable.Sizes.of(model.config)
    windows = sizes.windows(model.config)
    portable.write_onnx(
        portable.FromGreyValues(model).eval(),
        path,
        example=windows[0],
        sizes=sizes,
        names=("image", "logits"),
        metadata=portable.described(model.config, settings.classes(model.config.classes)),
    )
    portable.check_equal(portable.run_onnx(path), model, windows, what=f"{name}, in onnxruntime")


def _write_torchscript(model: UNet, path: Path, settings: ExportSettings, *, name: str) -> None:
    windows = portable.Sizes.of(model.config).windows(model.config)
    portable.write_torchscript(
        portable.FromGreyValues(model).eval(),
        path,
        example=windows[0],
        metadata=portable.described(model.config, settings.classes(model.config.classes)),
    )
    run = portable.run_torchscript(path)
    portable.check_equal(run, model, windows, what=f"{name}, in TorchScript")
