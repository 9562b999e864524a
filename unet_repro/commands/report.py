"""Write the report of a run anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from unet_repro.commands.options import (
    arg,
)
from unet_repro.program import loading


@dataclass(frozen=True)
class Report:
    """Write report.html of a run anew, from the files in its folder.

    Parameters
    ----------
    folder
        Folder of the run.
    """

    folder: Annotated[tyro.conf.Positional[Path], arg(metavar="RUN")]

    def run(self) -> int:
        with loading():
            from unet_repro.reports.report import write_report

        print(write_report(self.folder))
        return 0
