"""A trained U-Net as a package of bioimage.io, for ilastik, deepImageJ and others.

Not in the paper. The network goes along in three formats, as a filter (`geometry.BlockGeometry`):
described as what it is, with an output smaller than its input, it passes every test of the format
and comes out wrong wherever images are predicted block by block.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from torch import Tensor
from torch.nn import functional as F

from unet_repro._version import __version__
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError, note
from unet_repro.images.calibration import read_calibration
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.units import symbol
from unet_repro.network import geometry, portable, standalone
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.grey_values import unlike
from unet_repro.network.model import UNet

FORMAT_VERSION = "0.5.4"  # the newest one that bioimageio.core 0.9 reads
_PAPER = (
    "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation, "
    "MICCAI 2015",
    "10.1007/978-3-319-24574-4_28",
)
_LARGEST_COVER_PX = 256  # a side of its two pictures; the format wants less than 500 kB
_LEAST_STD = 1e-6  # that the format takes
_UNITS = {  # as the format calls them
    **{"nm": "nanometer", "µm": "micrometer", "mm": "millimeter", "cm": "centimeter"},
    **{"m": "meter", "Å": "angstrom", "pm": "picometer", "in": "inch", "dm": "decimeter"},
}
_DOI = re.compile(r"\b10\.\d{4,9}/[^\s,;]+[^\s,;.)\]]")
_URL = re.compile(r"https?://[^\s,;]+[^\s,;.)\]]")


def write_package(model: UNet, path: Path, settings: ExportSettings, *, name: str) -> None:
    """Write a package to an open place, complete and checked, or raise.

    Parameters
    ----------
    model
        In eval mode, on the CPU.
    path
        The .zip, which is replaced.
    settings
        Of format bioimageio.
    name
        To call the model by where the settings do not.
    """
    what = "a bioimage.io package"
    portable.require(("onnx", "onnxscript", "onnxruntime", "bioimageio.spec", "ruyaml"), what)
    if min(model.config.input_std) < _LEAST_STD:
        raise InputError(
            f"input_std is {min(model.config.input_std):g}: {what} can hold {_LEAST_STD:g} or "
            "more; train on images of larger grey values, or export onnx"
        )
    network = Filter.of(model)
    example = read_example(settings, model.config, network.blocks)
    classes = settings.classes(model.config.classes)
    citations = [citation(text) for text in settings.citation]
    with _folder_beside(path) as folder:
        write_weights(network, folder, classes)
        write_images(network, example, folder)
        description = describe(network, example, settings, classes, citations, name, folder)
        check_description(description, folder)
        (folder / "README.md").write_text(readme(network, description), encoding="utf-8")
        _write_yaml(description, folder / "rdf.yaml")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder named as an atomic file in progress, and remove it in the end."""
    folder = path.with_suffix(".parts")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True)
class Filter:
    """The network behind its normalisation, with probabilities of the size of its input."""

    config: UNetConfig  # of the model, normalisation included
    plain: UNet  # the model without its normalisation
    blocks: geometry.BlockGeometry

    @classmethod
    def of(cls, model: UNet) -> Filter:
        """Return the filter of a network; its weights are copied."""
        config = model.config
        plain = UNet(replace(config, input_mean=(0.0,), input_std=(1.0,)))
        plain.load_state_dict(model.state_dict())
        blocks = geometry.block_geometry(config.depth, padding=config.padding)
        return cls(config, plain.eval(), blocks)

    def __call__(self, image: Tensor) -> Tensor:
        """Return probabilities of a normalised image (N, C, H, W), by the package's own network."""
        with torch.inference_mode():
            logits = self.plain(image[:, :, self.blocks.crop :, self.blocks.crop :])
            return F.pad(logits.softmax(dim=1), [*self.blocks.lost] * 2)

    def normalised(self, image: Tensor) -> Tensor:
        """Return grey values (N, C, H, W) as the filter takes them."""
        mean, std = (
            torch.tensor(values).reshape(1, -1, 1, 1)
            for values in (self.config.input_mean, self.config.input_std)
        )
        return (image - mean) / std

    def arguments(self) -> dict[str, Any]:
        """Return what `standalone.SameSizeUNet` is to be made with; ready for JSON."""
        own = {"crop": self.blocks.crop, "lost": list(self.blocks.lost)}
        return own | portable.standalone_arguments(self.config)

    def sizes(self) -> portable.Sizes:
        """Return the sides of its blocks."""
        return portable.Sizes(self.blocks.least, self.blocks.step)


@dataclass(frozen=True)
class Example:
    """A block of the user's image, mirrored beyond its border, and its pixel size."""

    grey: np.ndarray  # float32 (C, h, w)
    scale: tuple[float, float] | None  # y, x
    unit: str | None  # as the format calls it


def read_example(
    settings: ExportSettings, config: UNetConfig, blocks: geometry.BlockGeometry
) -> Example:
    """Return a square block in the middle of the example: 256 px, or what there is, and halo."""
    path, channels = settings.example, config.in_channels
    assert path is not None
    axes = settings.axes or None
    with StackReader(path, channels=channels if channels > 1 else None, axes=axes) as stack:
        sides = stack.shape[1:]
        inner = min(*sides, _LARGEST_COVER_PX) // blocks.step * blocks.step
        if not inner:
            raise InputError(
                f"{path}: is {sides[0]} x {sides[1]} px; an example needs {blocks.step} a side"
            )
        cuts, pads = [], []
        for side in sides:
            middle = (side - inner) // 2 // blocks.step * blocks.step  # on the grid
            start = middle - blocks.halo
            stop = start + inner + 2 * blocks.halo
            cuts.append(slice(max(0, start), min(side, stop)))
            pads.append((max(0, -start), max(0, stop - side)))
        stored = stack.read_region(0, *cuts)
    if not np.isfinite(stored).all():
        raise InputError(f"{path}: holds NaN or infinite values")
    flat = stored.reshape(channels, -1).astype(np.float64)
    given = {"input_mean": config.input_mean, "input_std": config.input_std}
    doubt = unlike(flat.mean(axis=1).tolist(), flat.std(axis=1).tolist(), **given)
    if doubt:
        note(f"{path}: its {doubt}: as an example it shows a result that is likely wrong")
    grey = np.pad(stored.astype(np.float32), [(0, 0), *pads], mode="reflect")
    scale, unit = _scale(path)
    return Example(grey, scale, unit)


def _scale(path: Path) -> tuple[tuple[float, float] | None, str | None]:
    """Return the size of a pixel (y, x) and its unit, where the file states both."""
    calibration = read_calibration(path)
    unit = _UNITS.get(symbol(calibration.plane_unit or ""))
    if calibration.resolution is None or unit is None:
        return None, None
    x, y = calibration.resolution
    return (1 / y, 1 / x), unit


def write_weights(network: Filter, folder: Path, classes: list[str]) -> None:
    """Write the network in three formats, and check that each gives what the package's own does."""
    source = inspect.getsource(standalone)
    (folder / "unet_architecture.py").write_text(source, encoding="utf-8")
    same_size = standalone.SameSizeUNet(**network.arguments()).eval()
    same_size.load_state_dict(network.plain.state_dict())
    torch.save(dict(same_size.state_dict()), folder / "weights.pt")
    sizes = network.sizes()
    windows = sizes.windows(network.plain.config)
    metadata = {"documentation": f"{_summary(network.config)} {_blocks(network, classes)}"}
    torchscript, onnx = folder / "weights_torchscript.pt", folder / "weights.onnx"
    portable.write_torchscript(same_size, torchscript, example=windows[0], metadata=metadata)
    portable.write_onnx(
        same_size,
        onnx,
        example=windows[0],
        sizes=sizes,
        names=("image", "probability"),
        metadata=metadata,
    )
    ways = {
        "the state dict": _from_state_dict(network, folder),
        "TorchScript": portable.run_torchscript(torchscript),
        "onnxruntime": portable.run_onnx(onnx),
    }
    for way, run in ways.items():
        portable.check_equal(run, network, windows, what=f"the package's network, in {way}")


def _from_state_dict(network: Filter, folder: Path) -> portable.Function:
    """Return the network that the package's architecture makes of the package's weights."""
    model = standalone.SameSizeUNet(**network.arguments()).eval()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return torch.inference_mode()(model)


def write_images(network: Filter, example: Example, folder: Path) -> None:
    """Write test tensors, sample and cover."""
    image = torch.from_numpy(example.grey)[None]
    probability = network(network.normalised(image)).numpy()
    np.save(folder / "test_input.npy", example.grey[None])
    np.save(folder / "test_output.npy", probability)
    for name, values in (("input", example.grey[None]), ("output", probability)):
        tifffile.imwrite(
            folder / f"sample_{name}.tif", values, photometric="minisblack", metadata=None
        )
    inner = slice(network.blocks.halo, -network.blocks.halo)
    grey, shares = example.grey[:, inner, inner], probability[0][:, inner, inner]
    cover = np.concatenate([_picture(grey), _result(shares)], axis=1)  # 2 : 1
    png = imagecodecs.png_encode(np.ascontiguousarray(cover), level=9)
    (folder / "cover.png").write_bytes(png)


def _picture(grey: np.ndarray) -> np.ndarray:
    """Return an image (c, h, w) as RGB of 8 bits, of other than three channels the first."""
    shown = grey if len(grey) == 3 else np.repeat(grey[:1], 3, axis=0)
    black, white = np.percentile(shown, (0.5, 99.5))
    bright = (shown - black) / max(float(white - black), np.finfo(np.float32).tiny)
    return np.moveaxis((255 * bright.clip(0, 1)).round().astype(np.uint8), 0, -1)


def _result(shares: np.ndarray) -> np.ndarray:
    """Return P(class 1) as grey, or of more than two classes the most probable one."""
    if len(shares) == 2:
        level = shares[1]
    else:
        level = shares.argmax(axis=0) / (len(shares) - 1)
    return np.repeat((255 * level).round().astype(np.uint8)[..., None], 3, axis=2)


def citation(text: str) -> dict[str, str]:
    """Return an entry of `cite`: a text, and the DOI or URL within it.

    Examples
    --------
    >>> citation("Cardona et al. 2010 (https://doi.org/10.1371/journal.pbio.1000502).")["doi"]
    '10.1371/journal.pbio.1000502'
    """
    if found := _DOI.search(text):
        return {"text": text, "doi": found[0]}
    if found := _URL.search(text):
        return {"text": text, "url": found[0]}
    raise InputError(
        f"citation {text!r:.80}: needs a DOI or URL, as 'Cardona et al. 2010, "
        "https://doi.org/10.1371/journal.pbio.1000502'"
    )


def describe(
    network: Filter,
    example: Example,
    settings: ExportSettings,
    classes: list[str],
    citations: list[dict[str, str]],
    name: str,
    folder: Path,
) -> dict[str, Any]:
    """Return the package's description, as the format has it."""

    def file(source: str) -> dict[str, str]:
        content = (folder / source).read_bytes()
        return {"source": source, "sha256": hashlib.sha256(content).hexdigest()}

    def axes(names: list[str], size: Any, **more: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"type": "batch"},
            {"type": "channel", "channel_names": names},
        ]
        for index, axis in enumerate("yx"):
            found.append({"type": "space", "id": axis, "size": size(axis), **more})
            if example.scale is not None:
                found[-1] |= {"scale": example.scale[index], "unit": example.unit}
        return found

    blocks, channels = network.blocks, network.config.in_channels
    input_names = ["intensity"] if channels == 1 else [f"channel_{n}" for n in range(channels)]
    input_axes = axes(input_names, lambda _: {"min": blocks.least, "step": blocks.step})
    output_axes = axes(
        classes,
        lambda axis: {"tensor_id": "image", "axis_id": axis, "offset": 0},
        halo=blocks.halo,
    )
    torch_version = torch.__version__.partition("+")[0]
    cited = [entry.get("doi", "").lower() for entry in citations]
    paper = [] if _PAPER[1] in cited else [{"text": _PAPER[0], "doi": _PAPER[1]}]
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": settings.name or _name(name),
        "description": settings.description or _summary(network.config),
        "authors": [{"name": author} for author in settings.author],
        "cite": [*citations, *paper],
        "license": settings.license,
        "documentation": "README.md",
        "covers": ["cover.png"],
        "tags": ["unet", "2d", "semantic-segmentation", "pytorch"],
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [
            {
                "id": "image",
                "description": "Grey values as they are in the files",
                "axes": input_axes,
                "data": {"type": "float32"},
                "test_tensor": file("test_input.npy"),
                "sample_tensor": file("sample_input.tif"),
                "preprocessing": [_normalisation(network.config)],
            }
        ],
        "outputs": [
            {
                "id": "probability",
                "description": "Probability of each class; 0 in all where not computed",
                "axes": output_axes,
                "data": {"type": "float32", "range": [0.0, 1.0]},
                "test_tensor": file("test_output.npy"),
                "sample_tensor": file("sample_output.tif"),
            }
        ],
        "weights": {
            "pytorch_state_dict": {
                **file("weights.pt"),
                "pytorch_version": torch_version,
                "architecture": {
                    **file("unet_architecture.py"),
                    "callable": "SameSizeUNet",
                    "kwargs": network.arguments(),
                },
            },
            "torchscript": {
                **file("weights_torchscript.pt"),
                "pytorch_version": torch_version,
                "parent": "pytorch_state_dict",
            },
            "onnx": {
                **file("weights.onnx"),
                "opset_version": portable.OPSET,
                "parent": "pytorch_state_dict",
            },
        },
    }


def _normalisation(config: UNetConfig) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"mean": config.input_mean[0], "std": config.input_std[0]}
    if max(len(config.input_mean), len(config.input_std)) > 1:
        mean, std = (
            [float(value) for value in np.broadcast_to(values, config.in_channels)]
            for values in (config.input_mean, config.input_std)
        )
        kwargs = {"mean": mean, "std": std, "axis": "channel"}
    return {"id": "fixed_zero_mean_unit_variance", "kwargs": kwargs}


def _name(stem: str) -> str:
    """Return a name made of the letters that the format takes."""
    return f"U-Net {re.sub(r'[^A-Za-z0-9_+() -]+', '-', stem)}"[:64]


def _summary(config: UNetConfig) -> str:
    """Say in a sentence what network it is."""
    kind = "padded" if config.padding else "unpadded"
    channels = "" if config.in_channels == 1 else f"{config.in_channels} channels in, "
    return (
        f"U-Net of 2015 (Ronneberger, Fischer, Brox): {kind}, {config.depth} poolings, "
        f"{config.base_channels} channels in the first level, {channels}{config.classes} classes "
        f"(unet_repro {__version__})."
    )


def _blocks(network: Filter, classes: list[str]) -> str:
    """Say what holds of blocks; one paragraph."""
    blocks, grid = network.blocks, geometry.alignment(network.config.depth)
    lost = (
        f"Its first {blocks.lost[0]} and last {blocks.lost[1]} rows and columns are not computed "
        "and hold 0 in all classes. "
        if any(blocks.lost)
        else ""
    )
    return (
        f"It takes normalised images of {blocks.least} + {blocks.step} n px a side and gives "
        f"probabilities of the same size, for the classes {', '.join(classes)}. {lost}"
        f"What is nearer to a block's border than the halo of {blocks.halo} px is to be thrown "
        f"away. Of an image whose sides are multiples of {grid} px, blocks then give what one pass "
        "does."
    )


def readme(network: Filter, description: dict[str, Any]) -> str:
    """Return the package's documentation, in Markdown."""
    classes = description["outputs"][0]["axes"][1]["channel_names"]
    cited = "\n".join(
        f"- {entry['text']} ({entry.get('doi') or entry.get('url')})"
        for entry in description["cite"]
    )
    bilinear = (
        "The network upsamples bilinearly, by an amount that depends on the block's size: blocks "
        "never agree quite with one pass.\n\n"
        if network.config.bilinear
        else ""
    )
    return f"""# {description["name"]}

{description["description"]}

## Use

Give it images as they are: their grey values go in unchanged, the description normalises them.
Images must be like those that it was trained on, in stain, pixel size and exposure.

{_blocks(network, classes)} Of other images
a program may move the last block of a row off the grid of the poolings, and its pixels differ a
little, or refuse them.

{bilinear}The image's own border is exact only in unet_repro, which mirrors the image about the
border pixel; other programs continue it in ways of their own, and some not at all.

## Validation

Predict labelled images that had no part in the training, and compare: the share of wrong pixels,
the intersection over union of the classes, and how many cells are split or merged. With unet_repro:

    unet-repro predict images.tif --model model.safetensors --out probability.tif
    unet-repro evaluate labels.tif probability.tif

This package holds no figures: its author knows them.

## Citation

{cited}
"""


def _write_yaml(description: dict[str, Any], path: Path) -> None:
    from ruyaml import YAML

    yaml = YAML()
    yaml.width = 100  # type: ignore[assignment]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(description, file)


def check_description(description: dict[str, Any], folder: Path) -> None:
    """Raise an `InputError` unless the format's validator takes a description, without network."""
    with _in_silence():
        from bioimageio.spec import ValidationContext, validate_format

        # files it would look for, and addresses that it would open
        context = ValidationContext(root=folder, file_name="rdf.yaml", perform_io_checks=False)
        summary = validate_format(copy.deepcopy(description), context=context)
    if summary.status == "failed":
        told = []
        for error in (error for detail in summary.details for error in detail.errors):
            place = ".".join(str(part) for part in error.loc)
            told.append(f"{place}: {error.msg}")
        if any(line.startswith("license") for line in told):
            raise InputError(
                "license is no SPDX name of a licence, such as CC-BY-4.0 or BSD-3-Clause "
                "(spdx.org/licenses)"
            )
        raise InputError(f"the bioimage.io package is not valid: {'; '.join(told)[:600]}")


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Keep the validator's log from the user; its verdict is told."""
    import loguru

    loguru.logger.disable("bioimageio")
    try:
        yield
    finally:
        loguru.logger.enable("bioimageio")
