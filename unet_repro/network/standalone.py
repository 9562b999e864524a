"""The U-Net of 2015 for inference, in one file that needs nothing but PyTorch.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015 (arXiv 1505.04597). This file goes along with weights
into other programs; layers and names of weights are those of `UNet` of the package unet_repro.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Expansion(nn.Module):
    """A step of the expanding path."""

    def __init__(
        self, up: nn.Module, convolutions: nn.Module, *, up_relu: bool, padding: bool
    ) -> None:
        super().__init__()
        self.up_convolution, self.convolutions = up, convolutions
        self.up_relu, self.padding = up_relu, padding

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up_convolution(x)
        if self.up_relu:
            x = F.relu(x)
        if self.padding:  # pooling has dropped the last row or column of an odd map
            x = F.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
        return self.convolutions(torch.cat((x, skip), dim=1))


class StandaloneUNet(nn.Module):
    """The network behind its normalisation: (N, C, H, W) -> logits (N, classes, H', W').

    Parameters
    ----------
    in_channels, classes, base_channels
        Channels of the image, of the output, and of the first level; they double at each level.
    skip_margins
        Px cropped from each side of a level's skip, from the first level on: 88, 40, 16, 4 in the
        paper. As many as there are poolings; 0 each where the convolutions are padded.
    padding, batch_norm, bilinear, up_relu, wide_last_up
        Departures from the paper: padded 3x3 convolutions, batch normalisation in place of biases,
        bilinear upsampling, a ReLU after every up-convolution, a last up-convolution that keeps
        its channels.

    Notes
    -----
    An unpadded network crops by fixed margins, so that an image of another size than its poolings
    divide fails where maps are concatenated. There is no dropout: it is not for training.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        classes: int,
        base_channels: int,
        skip_margins: Sequence[int],
        padding: bool = False,
        batch_norm: bool = False,
        bilinear: bool = False,
        up_relu: bool = False,
        wide_last_up: bool = False,
    ) -> None:
        super().__init__()
        self.skip_margins = list(skip_margins)
        depth = len(self.skip_margins)
        channels = [base_channels * 2**level for level in range(depth + 1)]
        if bilinear:
            channels[-1] //= 2

        def convolutions(before: int, middle: int, after: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for inputs, outputs in ((before, middle), (middle, after)):
                layers.append(
                    nn.Conv2d(inputs, outputs, 3, padding=int(padding), bias=not batch_norm)
                )
                layers += [nn.BatchNorm2d(outputs)] if batch_norm else []
                layers.append(nn.ReLU())
            return nn.Sequential(*layers)

        self.contracting_path = nn.ModuleList(
            convolutions(before, after, after)
            for before, after in zip([in_channels, *channels], channels)
        )
        self.expanding_path = nn.ModuleList()
        for level in reversed(range(depth)):
            below, width = channels[level + 1], channels[level]
            up: nn.Module
            if bilinear:
                upsampled, after = width, width // 2 if level else width
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            else:
                upsampled, after = below if wide_last_up and not level else width, width
                up = nn.ConvTranspose2d(below, upsampled, 2, stride=2)
            double = convolutions(upsampled + width, width, after)
            self.expanding_path.append(Expansion(up, double, up_relu=up_relu, padding=padding))
        self.classifier = nn.Conv2d(base_channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for convolutions, margin in zip(self.contracting_path, self.skip_margins):
            x = convolutions(x)
            skips.append(F.pad(x, [-margin] * 4))
            x = F.max_pool2d(x, 2)
        x = self.contracting_path[-1](x)
        for step in self.expanding_path:
            x = step(x, skips.pop())
        return self.classifier(x)


class SameSizeUNet(StandaloneUNet):
    """The network as a filter: (N, C, H, W) -> probabilities (N, classes, H, W).

    Parameters
    ----------
    crop
        Px taken off before the first row and column, for a side that the network takes.
    lost
        Px before the first and behind the last row and column that are not computed, those taken
        off included: 96 and 92 in the paper, after a crop of 4. They are 0 in all classes.
    others
        As of `StandaloneUNet`.
    """

    def __init__(
        self,
        *,
        crop: int,
        lost: Sequence[int],
        in_channels: int,
        classes: int,
        base_channels: int,
        skip_margins: Sequence[int],
        padding: bool = False,
        batch_norm: bool = False,
        bilinear: bool = False,
        up_relu: bool = False,
        wide_last_up: bool = False,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            classes=classes,
            base_channels=base_channels,
            skip_margins=skip_margins,
            padding=padding,
            batch_norm=batch_norm,
            bilinear=bilinear,
            up_relu=up_relu,
            wide_last_up=wide_last_up,
        )
        self.crop = crop
        self.lost = list(lost)

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x[:, :, self.crop :, self.crop :])
        return F.pad(torch.softmax(logits, dim=1), self.lost * 2)
