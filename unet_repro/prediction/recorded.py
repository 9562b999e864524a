"""What the values of a prediction's file mean, as the file itself records it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from unet_repro.choices import Backend, Kind, Precision
from unet_repro.files.block_store import unfinished_record
from unet_repro.files.file_access import parse_json
from unet_repro.files.places import place_at
from unet_repro.images.arrays import is_folder_of_images
from unet_repro.images.calibration import read_info
from unet_repro.images.ome_zarr import begun_job
from unet_repro.images.zarr_output import is_zarr_name

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


def recorded_way(out: Path) -> dict[str, str]:
    """Return the backend and the precision of what is at an output's place, unfinished or not.

    Nothing where they are not known: there is nothing, or nothing of this package.
    """
    record: Any = begun_job(place_at(out)) if is_zarr_name(out) else unfinished_record(out)
    if record is None:
        files = sorted(out.iterdir()) if is_folder_of_images(out) else [out]
        try:
            record = parse_json((read_info(files[0]) if files else None) or "")
        except ValueError:
            return {}
    settings = record.get("settings") if isinstance(record, Mapping) else None
    known = {"backend": get_args(Backend), "precision": get_args(Precision)}
    found = {name: (settings or {}).get(name) for name in known}
    return {name: str(value) for name, value in found.items() if value in known[name]}
