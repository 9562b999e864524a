"""The scale of an image or a stack: what its file states of lengths and times."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from unet_repro.images.units import length_ratio

NO_UNIT, INCH, CENTIMETRE = 1, 2, 3  # values of the tag ResolutionUnit; 2 where it is missing
TAG_UNITS = {INCH: "in", CENTIMETRE: "cm"}


@dataclass(frozen=True)
class Calibration:
    """Scale of a stack, as its file states it; all lengths in one unit, that of x."""

    resolution: tuple[float, float] | None = None  # pixels per unit along x and y
    resolution_unit: int = NO_UNIT  # the tag; with 1 `unit` holds, as in ImageJ
    unit: str | None = None  # its name; ASCII
    spacing: float | None = None  # of the slices, in this unit
    interval: float | None = None  # between the slices, in s
    origin: tuple[float, float, float] | None = None  # (z, y, x) of the first pixel, in this unit

    @property
    def plane_unit(self) -> str | None:
        """The unit along x and y."""
        return TAG_UNITS.get(self.resolution_unit, self.unit)

    @property
    def pixels_per_metre(self) -> tuple[float, float] | None:
        """Resolution along x and y in metres, None if there is none or the unit is no length."""
        ratio = length_ratio("m", self.plane_unit or "")
        if self.resolution is None or ratio is None:
            return None
        x, y = (float(Fraction(number) * ratio) for number in self.resolution)
        return x, y


UNCALIBRATED = Calibration()
