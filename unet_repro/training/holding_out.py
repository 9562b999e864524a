"""Which slices a run holds out (``--val``), and which of them lie beside what it is trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path

from unet_repro.errors import InputError
from unet_repro.quantities import index_range

FORMS = "25:30 (25 ... 29), 3,7,12:15 or 20% (the last slices)"


def held_out_numbers(text: str, *, length: int, names: Sequence[str] = ()) -> list[int]:
    """Return the sorted numbers of the slices that `text` names, of ``0 ... length - 1``.

    Parameters
    ----------
    text : str
        Numbers and ranges a:b (a ... b-1), with commas between; a share such as 20%: a block at the
        end, rounded up to whole slices; or names of images, with or without suffix. What can be
        numbers is: of a folder that holds 7.png, ``7`` is its eighth image and ``7.png`` that one.
    names : sequence of str
        The file of each image, where there is one for each.

    Raises
    ------
    InputError
        Anything else, numbers of no slice, names of no image.

    Examples
    --------
    >>> held_out_numbers("12:15,3,7", length=30), held_out_numbers("10%", length=25)
    ([3, 7, 12, 13, 14], [22, 23, 24])
    >>> held_out_numbers("b, 10.png", length=3, names=["2.png", "10.png", "b.png"])
    [1, 2]
    """
    parts = [part.strip() for part in text.split(",")]
    if all(re.fullmatch(r"\d+(\s*:\s*\d+)?", part, re.ASCII) for part in parts):
        return sorted({z for part in parts for z in _numbers(part, length)})
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?\s*%", parts[0], re.ASCII) and len(parts) == 1:
        share = Fraction(parts[0].rstrip("% ")) / 100
        if not 0 < share < 1:
            raise InputError(f"--val {text!r:.40}: a share above 0% and below 100% is needed")
        return list(range(length - math.ceil(share * length), length))
    if not names:
        raise InputError(f"--val {text!r:.40}: {FORMS} is needed")
    places = {Path(name).stem: z for z, name in enumerate(names)}
    places |= {name: z for z, name in enumerate(names)}
    return sorted({_place(part, places) for part in parts})


def _numbers(part: str, length: int) -> range:
    if ":" in part:
        return index_range(part, length=length, name="--val")
    digits = part.lstrip("0") or "0"
    if len(digits) > 18 or int(digits) >= length:
        raise InputError(f"--val {part:.40}: there is no such slice; they are 0 ... {length - 1}")
    return range(int(digits), int(digits) + 1)


def _place(name: str, places: dict[str, int]) -> int:
    if name in places:
        return places[name]
    near = get_close_matches(name, places, n=1, cutoff=0.0)
    raise InputError(
        f"--val: no image is called {name!r:.60}; the nearest name is {near[0]} (besides names, "
        f"--val takes {FORMS})"
    )


def beside(held_out: Sequence[int], kept: Collection[int]) -> str:
    """Say how many held-out slices of one stack are next to a training slice, if any are."""
    trained = set(kept)
    count = sum(bool({z - 1, z + 1} & trained) for z in held_out)
    if not count:
        return ""
    return (
        f"{count} of {len(held_out)} held-out slices {'is' if count == 1 else 'are'} next to a "
        "training slice of the same stack and nearly the same image: figures there are optimistic"
    )
