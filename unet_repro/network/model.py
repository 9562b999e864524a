"""The U-Net of Fig. 1 (Sec. 2) and its initialisation (Sec. 3): blocks first, the network last.

The blocks work on one list, the feature maps that are still needed, newest last: a block takes its
input out and appends its result. A map that nothing else holds is thus freed once it is used; an
argument `x` would be held by the caller until the block returns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unet_repro.config import HE_GAIN, UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import geometry


class DoubleConvolution(nn.Sequential):
    """Two 3x3 convolutions, each followed by a ReLU (blue arrows)."""

    def __init__(self, before: int, middle: int, after: int, config: UNetConfig) -> None:
        super().__init__()
        self.lost = 0 if config.padding else 4  # rows and columns, by both together
        self.widest = max(before, middle, after)  # channels
        for inputs, outputs in ((before, middle), (middle, after)):
            padding, bias = int(config.padding), not config.batch_norm
            self.append(nn.Conv2d(inputs, outputs, kernel_size=3, padding=padding, bias=bias))
            if config.batch_norm:
                self.append(nn.BatchNorm2d(outputs))
            self.append(nn.ReLU(inplace=True))

    def forward(self, maps: list[Tensor]) -> None:
        for layer in self:
            maps.append(layer(maps.pop()))  # (N, after, H - 4, W - 4) in the end


class Contraction(DoubleConvolution):
    """A level of the contracting path: convolutions, then max-pooling (red), but at the bottom.

    The skip and, on top of it, the pooled map are left; at the bottom the one map there is.
    """

    def __init__(self, before: int, after: int, level: int, config: UNetConfig) -> None:
        super().__init__(before, after, after, config)
        self.dropout = config.dropout if level >= config.depth - 1 else 0.0  # the end of the path
        self.dropped_skip = config.dropped_skip
        self.is_bottom = level == config.depth
        is_cropped = not (config.padding or self.is_bottom)
        self.skip_margin = geometry.skip_margin(level, config.depth) if is_cropped else 0

    def forward(self, maps: list[Tensor]) -> None:
        super().forward(maps)
        x = maps.pop()
        dropped = F.dropout(x, self.dropout, self.training)
        if self.is_bottom:
            maps.append(dropped)
            return
        pooled = F.max_pool2d(dropped, kernel_size=2)  # (N, after, H / 2, W / 2)
        skip = dropped if self.dropped_skip else x
        lost = self.skip_margin
        if lost and not torch.is_grad_enabled():  # autograd keeps the whole of it anyway
            skip = skip[:, :, lost:-lost, lost:-lost].clone()
        maps += [skip, pooled]


class Expansion(nn.Module):
    """A step of the expanding path: up-convolution (green), the skip (grey), convolutions."""

    def __init__(self, channels: list[int], level: int, config: UNetConfig) -> None:
        super().__init__()
        below, width = channels[level + 1], channels[level]
        after = width
        self.up_convolution: nn.Module
        if config.bilinear:
            upsampled = width  # the level below has already halved its channels
            after = width // 2 if level else width
            self.up_convolution = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        else:
            upsampled = below if config.wide_last_up and level == 0 else width
            self.up_convolution = nn.ConvTranspose2d(below, upsampled, kernel_size=2, stride=2)
        self.up_relu = config.up_relu
        self.convolutions = DoubleConvolution(upsampled + width, width, after, config)

    def forward(self, maps: list[Tensor]) -> None:
        maps.append(self.up_convolution(maps.pop()))  # (N, upsampled, 2 H, 2 W)
        if self.up_relu:
            maps.append(F.relu(maps.pop()))
        maps.append(crop_and_concatenate(maps.pop(), maps.pop()))
        self.convolutions(maps)


def crop_and_concatenate(x: Tensor, skip: Tensor) -> Tensor:
    """Concatenate `x` with the centre of `skip` (N, C, H, W), `x` first (Fig. 1, grey arrows).

    In a padded network an odd skip is one px larger than `x`, which is then padded with zeros.
    """
    heights, widths = ((s - n) for s, n in zip(skip.shape[2:], x.shape[2:]))
    if heights < 2 and widths < 2:
        x = F.pad(x, (0, widths, 0, heights)) if heights or widths else x
        return torch.cat((x, skip), dim=1)
    top, left = heights // 2, widths // 2
    # not sliced: of a slice the gradient comes back contiguous, whatever the order of the map
    centre = F.pad(skip, (-left, left - widths, -top, top - heights))
    return torch.cat((x, centre), dim=1)


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
    config : UNetConfig
        Depth, channels and departures from the paper; the default is the paper's network.
    generator : torch.Generator, optional
        Source of the initial weights: reproducible, and independent of the global state.

    Notes
    -----
    Input: float, grey values as they are in the files; height and width may differ and must be
    valid sizes (`geometry.is_valid_input`), or any from 2^depth up where the configuration pads.
    Output: logits of the same dtype; class 1 is the cell interior, 0 the membrane or background.

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
    separation_px: float  # that training has parted touching cells by; `load_model` reads it

    def __init__(
        self, config: UNetConfig | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config = config or UNetConfig()
        self.separation_px = 0.0
        channels = [config.base_channels * 2**level for level in range(config.depth + 1)]
        if config.bilinear:
            channels[-1] //= 2
        self.contracting_path = nn.ModuleList(
            Contraction(before, after, level, config)
            for level, (before, after) in enumerate(zip([config.in_channels, *channels], channels))
        )
        self.expanding_path = nn.ModuleList(
            Expansion(channels, level, config) for level in reversed(range(config.depth))
        )
        self.classifier = nn.Conv2d(config.base_channels, config.classes, kernel_size=1)
        for name in ("input_mean", "input_std"):
            values = torch.tensor(getattr(config, name)).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        initialise(self, generator=generator)

    def forward(self, image: Tensor) -> Tensor:
        self.check(image)
        maps = [(image - self.input_mean) / self.input_std]  # (N, C, H, W)
        for contraction in self.contracting_path:
            contraction(maps)
        for expansion in self.expanding_path:
            expansion(maps)
        return self.classifier(maps.pop())  # (N, classes, H - 184, W - 184)

    def check(self, image: Tensor) -> None:
        """Raise an `InputError` that says what is needed unless the network takes `image`."""
        channels, depth = self.config.in_channels, self.config.depth
        if image.ndim != 4 or image.shape[1] != channels:
            raise InputError(
                f"input has shape {tuple(image.shape)}: (N, {channels}, height, width) is needed"
            )
        for name, size in zip(("height", "width"), image.shape[2:]):
            if not self.config.padding:
                geometry.check_input(size, depth, f"input {name}")
            elif size < 2**depth:
                least = f"at least {2**depth} is needed"
                raise InputError(f"input {name} {size} vanishes in {depth} poolings: {least}")


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
        layer.weight.normal_(0, math.sqrt(HE_GAIN / incoming), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
