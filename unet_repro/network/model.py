"""The U-Net of Fig. 1 (Sec. 2), its initialisation (Sec. 3) and its file."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_repro import config
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import geometry

_FLOATS = ("F32", "F64", "F16", "BF16")  # as safetensors names them


class UNet(nn.Module):
    """The U-Net of Fig. 1: unpadded, (N, C, H, W) -> (N, classes, H - 184, W - 184) logits.

    ::

        image 572 ─ conv conv 568 ───────────── crop 392 ─┐ conv conv 388 ─ 1x1 ─ logits
                      │ pool 284                      up ─┘
                      └ conv conv 280 ───────── crop 200 ─┐ conv conv 196
                          │ pool 140                  up ─┘
                          └ conv conv 136 ───── crop 104 ─┐ conv conv 100
                              │ pool 68               up ─┘
                              └ conv conv 64 ── crop 56 ──┐ conv conv 52
                                  │ pool 32           up ─┘
                                  └ conv conv 28 ─────┘

    Each `conv` is 3x3 with ReLU, `pool` 2x2 max-pooling, `up` a 2x2 up-convolution that halves the
    channels; `crop` takes the centre of the contracting path's map, which is concatenated.

    Parameters
    ----------
    shape : UNetConfig
        Depth, channels and departures from the paper; the default is the paper's network.
    generator : torch.Generator, optional
        Source of the initial weights: reproducible, and independent of the global state.

    Notes
    -----
    Input: float (N, C, H, W), grey values as they are in the files; height and width may differ
    and must be valid sizes (`geometry.is_valid_input`), or any size from 2^depth up where the
    configuration pads. Output: logits of the same dtype; class 1 is the cell interior, class 0 the
    membrane or background.

    Not in the paper: the order of concatenation (upsampled map first), and the places and rate of
    dropout; both as in the authors' release. Biases start at 0.

    Examples
    --------
    >>> network = UNet(UNetConfig(base_channels=2))
    >>> network(torch.zeros(1, 1, 572, 188)).shape
    torch.Size([1, 2, 388, 4])
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(
        self, shape: UNetConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = shape = shape or UNetConfig()
        widths = [shape.base_channels * 2**level for level in range(shape.depth + 1)]
        if shape.bilinear:
            widths[-1] //= 2
        self.contracting_path = nn.ModuleList(
            _double_convolution(before, width, width, shape)
            for before, width in zip([shape.in_channels, *widths], widths)
        )
        self.expanding_path = nn.ModuleList(
            _Expansion(widths, level, shape) for level in reversed(range(shape.depth))
        )
        self.dropout = nn.Dropout(shape.dropout)
        self.classifier = nn.Conv2d(shape.base_channels, shape.classes, kernel_size=1)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(shape, f"input_{name}")).reshape(1, -1, 1, 1)
            self.register_buffer(f"input_{name}", values, persistent=False)
        initialise(self, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        self._check(image)
        shape = self.config
        last = shape.depth - 1
        skips = []
        x = (image - self.input_mean) / self.input_std  # (N, C, H, W)
        # Layer by layer, with no name but `x`: a map is freed as soon as the next one is there.
        for level, convolutions in enumerate(self.contracting_path):
            for layer in convolutions:  # type: ignore[attr-defined]
                x = layer(x)  # (N, width, H, W)
            skip = x
            if level >= last:  # the end of the contracting path
                x = self.dropout(x)
            if shape.dropped_skip:
                skip = x
            if level <= last:  # the bottom has no skip
                x = F.max_pool2d(x, kernel_size=2)  # (N, width, H / 2, W / 2)
                skips.append(self._kept(skip, level))
            del skip
        for expansion in self.expanding_path:
            x = expansion.upsampled(x)  # type: ignore[operator]
            x = crop_and_concatenate(x, skips.pop())
            for layer in expansion.convolutions:  # type: ignore[union-attr]
                x = layer(x)
        return self.classifier(x)  # (N, classes, H - 184, W - 184)

    def _kept(self, skip: Tensor, level: int) -> Tensor:
        """Return what is needed of a skip: a copy of its centre, unless autograd keeps it all."""
        if torch.is_grad_enabled() or self.config.padding:
            return skip
        lost = geometry.skip_margin(level, self.config.depth)
        return skip[:, :, lost:-lost, lost:-lost].clone()

    def _check(self, image: Tensor) -> None:
        shape = self.config
        if image.ndim != 4 or image.shape[1] != shape.in_channels:
            raise InputError(
                f"input has shape {tuple(image.shape)}: "
                f"(N, {shape.in_channels}, height, width) is needed"
            )
        for name, size in zip(("height", "width"), image.shape[2:]):
            if not shape.padding:
                geometry.check_input(size, shape.depth, f"input {name}")
            elif size < 2**shape.depth:
                raise InputError(
                    f"input {name} {size} vanishes in {shape.depth} poolings: "
                    f"at least {2**shape.depth} is needed"
                )


def _double_convolution(before: int, middle: int, after: int, shape: UNetConfig) -> nn.Sequential:
    """Two 3x3 convolutions, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((before, middle), (middle, after)):
        padding = 1 if shape.padding else 0
        bias = not shape.batch_norm
        layers.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=padding, bias=bias))
        if shape.batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class _Expansion(nn.Module):
    """The layers of a step of the expanding path; `UNet.forward` concatenates between them."""

    def __init__(self, widths: list[int], level: int, shape: UNetConfig) -> None:
        super().__init__()
        below, width = widths[level + 1], widths[level]
        after = width
        self.up_convolution: nn.Module
        if shape.bilinear:
            upsampled = width  # the level below has already halved its channels
            below = after = width // 2 if level else width
            self.up_convolution = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            upsampled = below if shape.wide_last_up and level == 0 else width
            self.up_convolution = nn.ConvTranspose2d(below, upsampled, kernel_size=2, stride=2)
        self.up_relu = shape.up_relu
        self.convolutions = _double_convolution(upsampled + width, width, after, shape)

    def upsampled(self, x: Tensor) -> Tensor:
        x = self.up_convolution(x)  # (N, upsampled, 2 H, 2 W)
        return F.relu(x) if self.up_relu else x


def crop_and_concatenate(x: Tensor, skip: Tensor) -> Tensor:
    """Concatenate `x` with the centre of `skip` (N, C, H, W), `x` first (Fig. 1, grey arrows).

    In a padded network an odd skip is one px larger than `x`, which is then padded with zeros.
    """
    heights, widths = ((s - n) for s, n in zip(skip.shape[2:], x.shape[2:]))
    if heights < 2 and widths < 2:
        x = F.pad(x, (0, widths, 0, heights)) if heights or widths else x
        return torch.cat((x, skip), dim=1)
    top, left = heights // 2, widths // 2
    centre = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
    return torch.cat((x, centre), dim=1)


@torch.no_grad()
def initialise(network: nn.Module, *, generator: torch.Generator | None = None) -> None:
    """Draw all weights from Gaussians of standard deviation sqrt(2 / N) (Sec. 3); biases are 0.

    N is the number of incoming nodes of one neuron: 9 C_in for a 3x3 convolution. Each output of a
    2x2 up-convolution with stride 2 sees one px of its input, hence N = C_in.

    Not in the paper: N of an up-convolution. Caffe's filler, and PyTorch's fan-in of a transposed
    convolution, count 4 C_out; this is the literal reading.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            incoming = layer.in_channels * math.prod(layer.kernel_size)
        elif isinstance(layer, nn.ConvTranspose2d):
            incoming = layer.in_channels
        else:
            continue
        if layer.weight.is_meta:  # holds no values; torch would import its compiler to draw none
            continue
        layer.weight.normal_(0, math.sqrt(config.HE_GAIN / incoming), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
