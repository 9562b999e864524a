"""What the values of a prediction's file mean, as the file itself records it."""

from __future__ import annotations

from typing import get_args

from unet_repro.choices import Kind
from unet_repro.files.file_access import parse_json

FULL_SCALE: dict[Kind, int] = {  # what stands for P = 1
    "probability": 1,
    "uint8": 255,
    "labels": 1,
    "mask": 255,
}


def recorded_full_scale(info: str | None) -> int | None:
    """Return the value that stands for P = 1 in a file whose recorded text is `info`, if any.

    Examples
    --------
    >>> recorded_full_scale('{"model_sha256": "", "settings": {"kind": "uint8"}}')
    255
    """
    kind = recorded_kind(info)
    return None if kind is None else FULL_SCALE.get(kind)


def recorded_kind(info: str | None) -> Kind | None:
    """Return the kind of values in a file whose recorded text is `info`, if any."""
    try:
        facts = parse_json(info or "")
    except ValueError:
        return None
    settings = facts.get("settings") if isinstance(facts, dict) else None
    if not isinstance(settings, dict) or "model_sha256" not in facts:
        return None
    return next((kind for kind in get_args(Kind) if kind == settings.get("kind")), None)
