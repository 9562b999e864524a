"""Draw augmented samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from unet_repro.commands.options import (
    ImageAxes,
    Images,
    LabelOptions,
    Labels,
    MaskSuffix,
    Overwrite,
    read_both,
    tell,
)
from unet_repro.config import TILE_INPUT_PX, AugmentationConfig
from unet_repro.files.atomic import check_apart, check_output, check_png
from unet_repro.images.label_settings import LabelSettings
from unet_repro.program import loading


@dataclass(frozen=True)
class PreviewAugmentation:
    """Draw the middle slice, and augmented samples of it with their deformed weight maps.

    Parameters
    ----------
    out
        PNG to write.
    in_channels
        Channels of the images; three are drawn as colours, of others the first.
    tile
        Side of a sample in px.
    samples
        How many to draw beside the original.
    seed
        Of the samples.
    """

    images: Images
    labels: Labels
    out: Path
    settings: tyro.conf.OmitArgPrefixes[AugmentationConfig] = field(
        default_factory=AugmentationConfig
    )
    read_as: LabelOptions = field(default_factory=LabelSettings)
    axes: ImageAxes = ""
    mask_suffix: MaskSuffix = ""
    in_channels: int = 1
    tile: int = TILE_INPUT_PX
    samples: int = 8
    seed: int = 0
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.reports.preview import augmentation_preview

        for source in (self.images, self.labels):
            check_apart(self.out, source)
        check_png(self.out)
        check_output(self.out, overwrite=self.overwrite)
        images, labels = read_both(self, self.in_channels)
        reading = augmentation_preview(
            images,
            labels,
            self.out,
            settings=self.settings,
            window=self.tile,
            samples=self.samples,
            seed=self.seed,
            **vars(self.read_as),
            overwrite=self.overwrite,
        )
        tell("labels", reading)
        print(self.out)
        return 0
