"""A trained U-Net as a file that other programs run: ONNX and TorchScript.

Not in the paper. Both are made from `standalone`, and compared with the package's own network.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unet_repro._version import __version__
from unet_repro.config import UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network import geometry
from unet_repro.network.model import UNet
from unet_repro.network.standalone import StandaloneUNet

OPSET = 18
LARGEST_DIFFERENCE = 1e-4  # from PyTorch, in ranges of the logits
_LARGEST_ONNX_BYTES = 2**31 - 2**20  # of a protobuf message, less what is no weight

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sizes:
    """The sides in px that a network takes: ``least + n * step``; height and width are free."""

    least: int
    step: int

    @classmethod
    def of(cls, config: UNetConfig) -> Sizes:
        """Return those of a network."""
        if config.padding:
            return cls(2**config.depth, 1)
        return cls(geometry.smallest_input(config.depth), geometry.alignment(config.depth))

    def __str__(self) -> str:
        if self.step == 1:
            return f"n >= {self.least}"
        return f"n % {self.step} == {self.least % self.step}, n >= {self.least}"

    def windows(self, config: UNetConfig) -> list[Tensor]:
        """Return grey values of three sizes, in batches of 1 and 2, about the network's mean.

        Where any size goes, two of the sizes are odd.
        """
        generator = torch.Generator().manual_seed(0)
        step = self.step if self.step > 1 else 5
        mean, std = (
            torch.tensor(values).reshape(1, -1, 1, 1)
            for values in (config.input_mean, config.input_std)
        )
        return [
            mean
            + std
            * torch.randn(
                count,
                config.in_channels,
                self.least + rows * step,
                self.least + columns * step,
                generator=generator,
            )
            for count, rows, columns in ((2, 3, 4), (1, 2, 2), (1, 5, 3))
        ]

    def dims(self) -> dict[int, Any]:
        """Return the dimensions of (N, C, H, W) that vary, as `torch.export` states them."""
        found: dict[int, Any] = {0: torch.export.Dim("batch")}
        for axis, name in ((2, "height"), (3, "width")):
            if self.step == 1:
                found[axis] = torch.export.Dim(name, min=self.least)
            else:
                steps = torch.export.Dim(f"{name}_steps", min=self.least // self.step)
                found[axis] = self.step * steps + self.least % self.step
        return found


def require(packages: Sequence[str], what: str) -> None:
    """Raise an `InputError` that says what to install unless all of the packages are there."""
    for name in packages:
        parent = name.partition(".")[0]
        if not find_spec(parent) or not find_spec(name):
            raise InputError(f"{what} needs the package {name}: pip install 'unet_repro[export]'")


def standalone_arguments(config: UNetConfig) -> dict[str, Any]:
    """Return what `StandaloneUNet` is to be made with; ready for JSON."""
    margins = [
        0 if config.padding else geometry.skip_margin(level, config.depth)
        for level in range(config.depth)
    ]
    names = (
        *("in_channels", "classes", "base_channels", "padding", "batch_norm", "bilinear"),
        *("up_relu", "wide_last_up"),
    )
    return {name: getattr(config, name) for name in names} | {"skip_margins": margins}


class FromGreyValues(nn.Module):
    """The whole network: normalisation, then the layers."""

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, model: UNet) -> None:
        super().__init__()
        self.network = StandaloneUNet(**standalone_arguments(model.config))
        self.network.load_state_dict(model.state_dict())
        self.register_buffer("input_mean", model.input_mean.float())
        self.register_buffer("input_std", model.input_std.float())

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image - self.input_mean) / self.input_std)


def documentation(config: UNetConfig, classes: Sequence[str]) -> str:
    """Return what who is given the file must know."""
    sizes, lost = Sizes.of(config), 0 if config.padding else geometry.margin(config.depth)
    grid = geometry.alignment(config.depth)
    mean, std = (
        ", ".join(f"{value:.9g}" for value in values)
        for values in (config.input_mean, config.input_std)
    )
    lines = [
        "U-Net of 2015 (Ronneberger, Fischer, Brox; arXiv 1505.04597), for inference; written by "
        f"unet_repro {__version__}.",
        f"Input `image`: float32 (N, {config.in_channels}, height, width), grey values as they "
        f"are in the files. Normalisation is inside: (image - mean) / std, mean {mean}, "
        f"std {std}. Do not normalise twice.",
        f"Output `logits`: float32 (N, {config.classes}, height - {2 * lost}, width - {2 * lost})"
        f", of the image less {lost} px on each side; a softmax over axis 1 gives probabilities.",
        "Classes: " + ", ".join(f"{index} = {name}" for index, name in enumerate(classes)) + ".",
        f"Sizes: height and width n, each by itself, with {sizes}.",
    ]
    if not config.padding:
        wrong = sizes.least + 24 * grid + 1  # 573 in the paper's network
        lines.append(
            f"The file cannot refuse another size, such as {wrong}, by name: it fails where maps "
            "are concatenated (PyTorch, onnxruntime and OpenVINO then tell of sizes that do not "
            "match), but a program that does not compare sizes there answers silently, and "
            "wrongly. Check the size first."
        )
    lines.append(
        f"Tiles agree with a pass over the whole image only if their origins differ by multiples "
        f"of {grid} px, and a pixel depends on up to {geometry.halo(config.depth)} px around it. "
        "Beyond its border unet_repro mirrors the image, about the border pixel."
    )
    return "\n".join(lines)


def described(config: UNetConfig, classes: Sequence[str]) -> dict[str, str]:
    """Return the metadata of a file; all but the documentation is JSON."""
    return {
        "unet_repro": json.dumps(__version__),
        "config": json.dumps(to_dict(config)),
        "classes": json.dumps(list(classes)),
        "documentation": documentation(config, classes),
    }


def write_onnx(
    network: nn.Module,
    path: Path,
    *,
    example: Tensor,
    sizes: Sizes,
    names: tuple[str, str],
    metadata: dict[str, str],
) -> None:
    """Write a network as ONNX, opset 18, for any batch and all of its sizes.

    Parameters
    ----------
    network
        (N, C, H, W) -> one tensor, in eval mode, on the CPU.
    example
        An input; N, and the steps of H and W above the least, are 2 or more.
    names
        Of the input and the output.
    metadata
        Goes into the file; its documentation is the model's `doc_string` as well.
    """
    require(("onnx", "onnxscript", "onnxruntime"), "an ONNX file")
    weights = sum(tensor.nbytes for tensor in network.state_dict().values())
    if weights > _LARGEST_ONNX_BYTES:
        raise InputError(
            f"the weights take {weights / 2**30:.1f} GiB; an ONNX file holds less than 2 GiB: "
            "use --format torchscript"
        )
    import onnx

    with _quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=[sizes.dims()],
            opset_version=OPSET,
            external_data=False,
            verbose=False,
            input_names=[names[0]],
            output_names=[names[1]],
        )
    assert program is not None
    proto = program.model_proto
    graph = proto.graph
    # the exporter notes whence each value came: lines of code, by their place on this machine
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    proto.producer_name, proto.producer_version = "unet_repro", __version__
    proto.doc_string = metadata["documentation"]
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def write_torchscript(
    network: nn.Module, path: Path, *, example: Tensor, metadata: dict[str, str]
) -> None:
    """Write a network as TorchScript, by tracing; metadata become the archive's extra files.

    Parameters are those of `write_onnx`.
    """
    with _quietly(), torch.no_grad():
        traced = torch.jit.trace(network, (example,), check_trace=False)
        buffer = io.BytesIO()  # torch cannot open every name of a file
        torch.jit.save(traced, buffer, _extra_files=metadata)
    path.write_bytes(buffer.getvalue())


def run_onnx(path: Path) -> Function:
    """Return a function that runs an ONNX file of one input and one output in onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        path.read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda window: torch.from_numpy(session.run(None, {name: window.numpy()})[0])


def run_torchscript(path: Path) -> Function:
    """Return a function that runs a TorchScript file."""
    with _quietly():
        traced = torch.jit.load(io.BytesIO(path.read_bytes()), map_location="cpu")

    def run(window: Tensor) -> Tensor:
        with torch.inference_mode(), _quietly():
            return traced(window)

    return run


def check_equal(run: Function, expected: Function, windows: Sequence[Tensor], *, what: str) -> None:
    """Raise an `InputError` unless two functions agree to 1e-4 of the range of what they give."""
    for window in windows:
        with torch.inference_mode():
            truth = expected(window)
        found = run(window)
        size = " x ".join(map(str, window.shape))
        if found.shape != truth.shape:
            raise InputError(
                f"{what}: of an input of {size}, it gives {tuple(found.shape)} and PyTorch "
                f"{tuple(truth.shape)}; nothing is written"
            )
        spread = float(truth.max() - truth.min())
        difference = float((found - truth).abs().max())
        if not difference <= LARGEST_DIFFERENCE * spread:
            raise InputError(
                f"{what}: of an input of {size}, it differs from PyTorch by {difference:.3g}, "
                f"where values range over {spread:.3g} ({LARGEST_DIFFERENCE:g} of that is "
                "allowed); nothing is written"
            )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what the exporter tells of itself, and of what it will do without, from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
        warnings.simplefilter("ignore")
        try:
            with contextlib.redirect_stdout(nowhere):
                yield
        finally:
            logger.setLevel(before)
