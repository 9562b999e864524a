"""Ways to run a trained U-Net fast: PyTorch, `torch.compile`, OpenVINO; float32 or bfloat16.

Not in the paper. The network and its weights are the same in all of them; only rounding differs.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from unet_repro.choices import Backend, Precision
from unet_repro.errors import InputError
from unet_repro.network.device import autocast, cpu_flags
from unet_repro.network.model import UNet
from unet_repro.network.strips import forward_in_strips

Network = Callable[[Tensor], Tensor]


def make_network(
    model: Network,
    *,
    backend: Backend = "torch",
    device: str | torch.device = "cpu",
    precision: Precision = "float32",
) -> Network:
    """Return a function from windows to logits that runs `model` fast, for inference only.

    Parameters
    ----------
    model : UNet or callable
        Never changed: neither its weights, nor its mode, nor where it is. Dropout is off, whatever
        the mode. Any other callable runs as it is, with backend ``torch`` alone.
    backend
        ``torch`` runs the layers one by one. ``compile`` fuses them by `torch.compile`; each new
        window size takes 10 to 40 s, and a C++ compiler. ``openvino`` needs a CPU and the package
        openvino.
    device : str or torch.device
        Where the windows are.
    precision
        ``bfloat16``: convolutions in bfloat16, normalisation and what comes out in float32. On a
        CPU without bfloat16, PyTorch emulates it, and OpenVINO computes in float32 instead.

    Returns
    -------
    callable
        Maps a float32 window (N, C, h, w), best with channels-last strides, to float32 logits
        (N, classes, h', w'), sizes as in `UNet`. Not meant to be called by two threads at once.

    Raises
    ------
    InputError
        An unknown backend or precision; a backend that cannot run here or not with this model. The
        function raises the model's, for wrong sizes.

    Notes
    -----
    With ``torch`` in float32 on the model's own device, the function shares the model's weights and
    follows their changes; a model of float64 then computes and returns float64. Everything else
    takes a copy of the weights as they are now.

    Against the plain model, relative to the range of its logits, with initial weights (Sec. 3):
    float32 differs by less than 1e-5 (1e-4 is tested) and bfloat16 by 1.2 % at most, 0.14 % on
    average; probabilities in bfloat16 by 0.11 at most and 0.0015 on average. OpenVINO's bfloat16
    rounds even the logits where channels are few (4, not 16): one of 5 then has steps of 0.03. On
    CUDA float32 is float32 here, not TF32: that has 10 bits, and on an H200 two windows differed by
    4e-4 where they overlap.

    Examples
    --------
    >>> from unet_repro.config import UNetConfig
    >>> network = make_network(UNet(UNetConfig(depth=1, base_channels=2)), precision="bfloat16")
    >>> logits = network(torch.zeros(1, 1, 20, 24))
    >>> logits.shape, logits.dtype
    (torch.Size([1, 2, 4, 8]), torch.float32)
    """
    device = torch.device(device)
    check_way(backend, precision)
    if not isinstance(model, UNet):
        if backend != "torch":
            raise InputError(f"backend {backend} runs a UNet only; any callable runs with torch")
        return _for_inference(model, lambda: autocast(precision, device))
    if backend == "openvino":
        return _OpenVino(model, device, precision)
    network = _prepared(model, device, precision)
    run: Network = network
    if backend == "compile":
        run = _compiled(network, device)
    elif is_in_strips(model, backend, device):
        run = partial(forward_in_strips, network)
    return _for_inference(run, lambda: _cuda_kernels(device))


def choose_backend(
    name: Literal["auto"] | Backend, device: torch.device, precision: Precision
) -> Backend:
    """Return the backend that a name means; "auto" takes what was measured to be faster.

    That is OpenVINO, if it is installed, in float32 on a processor with AVX2 and without AVX-512:
    4 to 17 % less time for 8 to 64 channels. With AVX-512, and in bfloat16, PyTorch was faster.
    """
    if name != "auto":
        return name
    flags = cpu_flags() if device.type == "cpu" and precision == "float32" else set()
    is_faster = "avx2" in flags and "avx512f" not in flags and find_spec("openvino")
    return "openvino" if is_faster else "torch"


def is_in_strips(model: Network, backend: Backend, device: torch.device) -> bool:
    """Tell whether a model is computed in strips of rows (`strips`), in less memory."""
    return isinstance(model, UNet) and backend == "torch" and device.type == "cpu"


def check_way(backend: Backend, precision: Precision) -> None:
    """Raise an `InputError` unless backend and precision are known."""
    if backend not in get_args(Backend):
        raise InputError(f"backend is {backend!r}: one of {', '.join(get_args(Backend))} is needed")
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}: float32 or bfloat16 is needed")


def _for_inference(network: Network, context: Callable[[], AbstractContextManager]) -> Network:
    """Return `network` without gradients, in a context, and with float32 or float64 as result."""

    def run(window: Tensor) -> Tensor:
        with torch.inference_mode(), context():
            logits = network(window)
            return logits if logits.dtype == torch.float64 else logits.float()

    return run


@contextmanager
def _cuda_kernels(device: torch.device) -> Iterator[None]:
    """Let cuDNN try its kernels on the first window of a size, but those that round to TF32.

    Its settings, which are global, are left as they were.
    """
    cudnn = torch.backends.cudnn
    if device.type != "cuda":
        yield
        return
    benchmark = cudnn.benchmark
    try:
        allows_tf32 = cudnn.allow_tf32
    except RuntimeError:  # set for each kind of layer, by PyTorch's newer settings: left alone
        allows_tf32 = None
    cudnn.benchmark = not cudnn.deterministic
    if allows_tf32:
        cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        if allows_tf32:
            cudnn.allow_tf32 = True


def _prepared(model: UNet, device: torch.device, precision: str) -> UNet:
    """Return the network in eval mode: with the model's own tensors if they will do."""
    device = torch.empty(0, device=device).device  # with its number: "cuda" may be "cuda:0"
    tensors = [*model.parameters(), *model.buffers()]
    if precision == "float32" and all(tensor.device == device for tensor in tensors):
        return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).eval()
    network = copy.deepcopy(model).to(device).eval()
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "bfloat16":
        network.float()
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.to(torch.bfloat16)
        # the last layer in float32, or else a logit of 5 has steps of 0.03
        network.classifier.float()
        _cast_input(network.contracting_path[0][0], torch.bfloat16)
        _cast_input(network.classifier, torch.float32)
    return network


def _cast_input(layer: nn.Module, dtype: torch.dtype) -> None:
    layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))


def _compiled(network: UNet, device: torch.device) -> Network:
    """Return the network compiled anew for each window size, in silence."""
    if device.type in ("cuda", "xpu"):
        if not find_spec("triton"):
            kind = device.type.upper()
            message = f"backend compile on {kind} needs the package triton; use backend torch"
            raise InputError(message)
    else:
        compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
        if not shutil.which(compiler.split()[0]):
            raise InputError(
                f"backend compile needs a C++ compiler, and {compiler} is not found: install one, "
                "name it in CXX, or use backend torch"
            )
    compiled: dict[torch.Size, Network] = {}

    def run(window: Tensor) -> Tensor:
        if window.shape in compiled:
            return compiled[window.shape](window)
        with warnings.catch_warnings(), _quiet("torch._dynamo", "torch._inductor"):
            warnings.simplefilter("ignore")
            compiled[window.shape] = function = torch.compile(network.forward, dynamic=False)
            return function(window)

    return run


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


class _OpenVino:
    """The network as OpenVINO's graph, for windows of any size.

    OpenVINO's own conversion traces the model, warns of what it traces, and reports its use over
    the network unasked. Normalisation stays in PyTorch: OpenVINO may fold it into the first
    convolution, and bfloat16 then rounds the grey values.
    """

    def __init__(self, model: UNet, device: torch.device, precision: str) -> None:
        if device.type != "cpu":
            raise InputError(f"backend openvino runs on the CPU, not on {device}: use torch there")
        if not find_spec("openvino"):
            raise InputError(
                "backend openvino needs the package openvino: pip install 'unet_repro[openvino]'"
            )
        self._model = copy.deepcopy(model).to("cpu").float().eval()
        self._settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # no faster, and other threads would be in the way
        }
        self._requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, window: Tensor) -> Tensor:
        import openvino

        self._model.check(window)
        with torch.inference_mode():
            model = self._model
            pixels = ((window.float() - model.input_mean) / model.input_std).contiguous()
        request = self._request(*window.shape[2:])
        request.set_input_tensor(openvino.Tensor(pixels.numpy(), shared_memory=True))
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data.copy())  # the next call reuses it

    def _request(self, height: int, width: int) -> Any:
        """Return what runs windows of this size: crops and pads hang on its place on the grid."""
        grid = 2**self._model.config.depth
        key = (height % grid, width % grid)
        if key not in self._requests:
            graph = _openvino_graph(self._model, height, width)
            graph.reshape([-1, self._model.config.in_channels, -1, -1])
            compiled = openvino_core().compile_model(graph, "CPU", self._settings)
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]


@cache
def openvino_core() -> Any:
    """Return the one core of this process, which stays to its end.

    A core gives its thread a stack for signal handlers and at its own end brings back the one from
    before. With two that end in the order they began, that is a stack which is no longer there:
    the next signal, as of Ctrl-C, would end the process by a fault.
    """
    import openvino

    return openvino.Core()


def _openvino_graph(model: UNet, height: int, width: int) -> Any:
    """Return `UNet.forward` after the normalisation, for windows (1, C, height, width)."""
    from openvino import Model, opset13

    window = opset13.parameter([1, model.config.in_channels, height, width], np.float32)
    x, skips = window, []
    for level, convolutions in enumerate(model.contracting_path):
        if level:
            skips.append(x)
            x = opset13.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)
        x = _openvino_layers(convolutions, x)
    for expand in model.expanding_path:
        x = _openvino_layers([expand.up_convolution], x)
        x = opset13.relu(x) if expand.up_relu else x
        x = _openvino_layers(expand.convolutions, _openvino_crop_and_concatenate(x, skips.pop()))
    return Model([_openvino_layers([model.classifier], x)], [window])


def _openvino_crop_and_concatenate(x: Any, skip: Any) -> Any:
    """Do as `model.crop_and_concatenate` does. Crops count from both ends: sizes may then vary."""
    from openvino import opset13

    sizes, skip_sizes = (list(part.get_output_shape(0))[2:] for part in (x, skip))
    rest = [theirs - ours for theirs, ours in zip(skip_sizes, sizes)]
    if max(rest) < 2:
        if any(rest):
            x = opset13.pad(x, [0, 0, 0, 0], [0, 0, *rest], "constant", np.float32(0))
    else:
        top_left = [n // 2 for n in rest]
        ends = [-(n - n // 2) for n in rest]
        skip = opset13.slice(skip, top_left, ends, [1, 1], [2, 3])
    return opset13.concat([x, skip], axis=1)


def _openvino_layers(layers: Any, x: Any) -> Any:
    """Append PyTorch's layers to a graph."""
    from openvino import opset13

    for layer in layers:
        tensors = {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}
        if isinstance(layer, nn.Conv2d):
            pads = list(layer.padding)
            x = opset13.convolution(x, tensors["weight"], [1, 1], pads, pads, [1, 1])
        elif isinstance(layer, nn.ConvTranspose2d):
            x = opset13.convolution_backprop_data(
                x, tensors["weight"], [2, 2], pads_begin=[0, 0], pads_end=[0, 0], dilations=[1, 1]
            )
        elif isinstance(layer, nn.BatchNorm2d):
            names = ("weight", "bias", "running_mean", "running_var")
            statistics = [tensors[name] for name in names]
            x = opset13.batch_norm_inference(x, *statistics, epsilon=layer.eps)
        elif isinstance(layer, nn.ReLU):
            x = opset13.relu(x)
        elif isinstance(layer, nn.Upsample):
            scales, corners = np.full(2, layer.scale_factor, np.float32), "align_corners"
            x = opset13.interpolate(
                x,
                scales,
                "linear_onnx",
                "scales",
                coordinate_transformation_mode=corners,
                axes=[2, 3],
            )
        else:
            raise TypeError(f"no rule for a {type(layer).__name__}")
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and layer.bias is not None:
            x = opset13.add(x, tensors["bias"].reshape(1, -1, 1, 1))
    return x
