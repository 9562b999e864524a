"""Settings of reading labels: flags of every command that takes some."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import get_args

from unet_repro.choices import LabelKind
from unet_repro.errors import InputError


@dataclass(frozen=True)
class LabelSettings:
    """How labels are to be read.

    Parameters
    ----------
    label_kind
        What the values mean. mask: 0 and another value, whose 4-connected components in a slice
        are the cells; of more values, those above half of the highest are cell. ids: k > 0 is
        cell k. classes: k is class k, components of a class above 0 are cells. auto: a mask where
        one value above 0 occurs, else ids; what looks like a grey image or a spoiled mask is
        refused.
    ignore_label
        Value of pixels of which nothing is known.
    """

    label_kind: LabelKind = "auto"
    ignore_label: int | None = None

    def __post_init__(self) -> None:
        if self.label_kind not in get_args(LabelKind):
            kinds = ", ".join(get_args(LabelKind))
            raise InputError(f"label_kind is {self.label_kind!r}: one of {kinds} is needed")
        number = self.ignore_label
        if number is not None and (isinstance(number, bool) or not isinstance(number, Integral)):
            raise InputError(f"ignore_label is {number!r}: an integer or None is needed")


AUTO = LabelSettings()
