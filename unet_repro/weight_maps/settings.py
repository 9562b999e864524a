"""Settings of a weight map: the flags of `weight-map`, and the numbers of its border term."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unet_repro import config
from unet_repro.choices import Compression, LabelKind, Ngff, Variant
from unet_repro.errors import InputError
from unet_repro.images.label_settings import LabelSettings

DEFAULT_W0 = {"paper": config.W0, "short": 1.0, "falk2019": 50.0}
DEFAULT_SIGMA_PX = {"paper": config.SIGMA_PX, "short": config.SIGMA_PX, "falk2019": 6.0}


@dataclass(frozen=True)
class WeightMapSettings:
    """Settings of a stack's weight map: the flags of `weight-map`.

    Parameters
    ----------
    w0
        Height of the border term; by default 10, of the variant short 1, of falk2019 50.
    sigma
        Its width in px; by default 5, of the variant falk2019 6.
    class_balance
        frequency: both classes weigh the same in total over the stack; none: 1 everywhere.
    variant
        paper: Eq. 2; short: with w0 = 1; falk2019: that of Falk et al., with its own balance.
    label_kind
        What the values mean. mask: 4-connected components in a slice are the cells, of several
        values above 0 what is above half of the highest. ids: k > 0 is cell k. classes: components
        of a class above 0 are cells. auto: a mask where one value above 0 occurs, else ids; what
        looks like a grey image or a spoiled mask is refused.
    ignore_label
        Value of pixels of which nothing is known: they weigh 0.
    axes
        Of the labels, in place of those that the file declares, such as ZYX.
    separate_touching
        Weight a ridge between touching cells as background.
    separation_px
        The pixels of a cell that lie so near to another cell become ridge.
    compression
        Of the output, lossless; ImageJ reads zlib, lzw and none. OME-Zarr is zstd.
    level
        Of an OME-Zarr image that is read; 0 is the finest.
    ngff
        Version of the OME-Zarr image that is written: 0.5, sharded; or 0.4, which has no shards,
        for older readers.
    """

    w0: float | None = None
    sigma: float | None = None
    class_balance: Literal["frequency", "none"] = "frequency"
    variant: Variant = "paper"
    label_kind: LabelKind = "auto"
    ignore_label: int | None = None
    separate_touching: bool = False
    separation_px: float = 1.0
    axes: str = ""
    compression: Compression = "none"
    level: int = 0
    ngff: Ngff = "0.5"

    def __post_init__(self) -> None:
        if self.class_balance is None:
            object.__setattr__(self, "class_balance", "none")
        allowed = {"class_balance": ("frequency", "none"), "compression": get_args(Compression)}
        for name, choices in allowed.items():
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"{name} is {value!r}: one of {', '.join(choices)} is needed")
        border_term(self.variant, self.w0, self.sigma)
        check_radius(self.separation_px, "separation_px")
        self.labels  # noqa: B018 - refuses what is no setting

    @property
    def labels(self) -> LabelSettings:
        """How the labels are to be read."""
        return LabelSettings(self.label_kind, self.ignore_label)

    def map_options(self) -> dict[str, Any]:
        """Return what `weigh` takes, w_c as it is without the whole stack."""
        names = ("w0", "sigma", "variant", "separate_touching", "separation_px")
        balance = "frequency" if self.class_balance == "frequency" else None
        return {**{name: getattr(self, name) for name in names}, "class_balance": balance}

    def record(self) -> dict[str, Any]:
        """Return them as JSON takes them, with the values that the defaults stand for."""
        given = {name: value for name, value in vars(self).items() if name != "ngff"}
        if not self.level:  # it decides nothing
            del given["level"]
        w0, sigma = border_term(self.variant, self.w0, self.sigma)
        return {
            **given,
            "w0": w0,
            "sigma": sigma,
            # falk2019 has a balance of its own
            "class_balance": "none" if self.variant == "falk2019" else self.class_balance,
        }


def border_term(variant: Variant, w0: float | None, sigma: float | None) -> tuple[float, float]:
    """Return w0 and sigma (px) of a variant, its own where none is given; `InputError` if odd."""
    if variant not in DEFAULT_W0:
        raise InputError(f"variant is {variant!r}: one of {', '.join(DEFAULT_W0)} is needed")
    w0 = float(DEFAULT_W0[variant] if w0 is None else w0)
    sigma = float(DEFAULT_SIGMA_PX[variant] if sigma is None else sigma)
    if not 0 <= w0 <= config.LARGEST_W0:
        raise InputError(f"w0 is {w0}: a number from 0 to {config.LARGEST_W0:g} is needed")
    if not 0 < sigma < math.inf:
        raise InputError(f"sigma is {sigma}: a finite number of px above 0 is needed")
    if variant == "short" and w0 != 1:
        raise InputError(f"w0 is {w0}: the variant 'short' means 1; 'paper' takes any")
    return w0, sigma


def check_radius(radius: float, name: str) -> None:
    """Raise an `InputError` unless it is a distance in px."""
    if not radius >= 0:
        raise InputError(f"{name} is {radius}: it must be 0 px or more")
