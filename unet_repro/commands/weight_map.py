"""Precompute a weight map."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from unet_repro.cluster import Machines
from unet_repro.commands.options import (
    Labels,
    Overwrite,
    ResumeOutput,
    tell,
    told,
)
from unet_repro.errors import one_line
from unet_repro.files.atomic import check_apart, check_output, check_png
from unet_repro.program import INTERRUPTED, loading
from unet_repro.weight_maps.settings import WeightMapSettings


@dataclass(frozen=True)
class WeightMap:
    """Precompute the weight map of a labelled stack (Eq. 2), float32, page by page.

    Parameters
    ----------
    out
        TIFF stack or OME-Zarr (a name that ends in .zarr, also s3://) to write; axes and scale are
        the labels', the settings are recorded in it. For a folder of images of several sizes, a
        folder.
    preview
        PNG to draw the middle slice in: labels, class weight, border term, sum.
    threads
        Of this process; by default one per core.
    """

    labels: Labels
    out: Path
    settings: tyro.conf.OmitArgPrefixes[WeightMapSettings] = field(
        default_factory=WeightMapSettings
    )
    machines: tyro.conf.OmitArgPrefixes[Machines] = field(default_factory=Machines)
    preview: Path | None = None
    threads: int | None = None
    resume: ResumeOutput = False
    overwrite: Overwrite = False

    def run(self) -> int:
        with loading():
            from unet_repro.weight_maps.stack import Survey, write_weight_map

        replaces = self.overwrite or self.resume
        if self.preview:
            check_apart(self.preview, self.labels)
            check_apart(self.preview, self.out)
            check_png(self.preview)
            check_output(self.preview, overwrite=replaces)

        def surveyed(survey: Survey) -> None:
            tell("labels", survey.reading)
            if self.preview:
                from unet_repro.reports.preview import weight_map_preview

                options = self.settings.map_options() | {"class_balance": survey.class_balance}
                weight_map_preview(
                    survey.middle,
                    self.preview,
                    **options,
                    reading=survey.reading,
                    overwrite=replaces,
                )

        try:
            is_complete = write_weight_map(
                self.labels,
                self.out,
                settings=self.settings,
                resume=self.resume,
                overwrite=self.overwrite,
                threads=self.threads,
                machines=self.machines,
                on_survey=surveyed,
            )
        except KeyboardInterrupt:
            print(one_line(f"interrupted; --resume goes on with {self.out}"), file=sys.stderr)
            return INTERRUPTED
        return told(is_complete, self.machines, self.out)
