"""Segment slices as they are and changed in nine ways: duller, noisier, smaller, ...

    python experiments/robustness.py                            # em
    python experiments/robustness.py results/em             # of a job, or of its folds

A network with held-out slices of the EM challenge is scored on these, with their labels, which are
enlarged with the images; of several networks the means are given too. One that has none, as `em`,
is scored where it has seen no label: on --slices of the challenge's test volume, changed ones
against unchanged ones thresholded at 0.5, and on slices of the phantom with their labels.
A single view; the noise is drawn anew from one seed for each network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from unet_repro.challenges.em_job import load
from unet_repro.challenges.phantom import em_phantom
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.network.device import choose_device
from unet_repro.network.model_file import load_model, read_metadata
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume
from unet_repro.program import guarded
from unet_repro.quantities import index_range
from unet_repro.reports.evaluation import evaluate_em

FIGURES = ("v_rand", "v_info", "pixel_error")
UNCHANGED = "as they are"
PHANTOM_SEED = 7  # no other script's
NOISE = 0.4  # standard deviations of the images


def _about_mean(factor: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: factor * (x - x.mean()) + x.mean()


def _noisy(x: np.ndarray) -> np.ndarray:
    return x + np.random.default_rng(0).normal(0, NOISE * x.std(), x.shape)


GREY_VALUES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of 0 to 255
    UNCHANGED: lambda x: x,
    "contrast x 0.5 about the mean": _about_mean(0.5),
    "grey values x 0.6": lambda x: 0.6 * x,
    "+ 40, clipped at 255": lambda x: x + 40,
    "contrast x 1.4": _about_mean(1.4),
    f"noise of {NOISE} standard deviations": _noisy,
    "blur of 1 px": lambda x: ndimage.gaussian_filter(x, (0, 1, 1)),
    "gamma 1.5": lambda x: 255 * (x / 255) ** 1.5,
}
SIZES = {"0.8 times as large": 0.8, "1.25 times as large": 1.25}
WAYS = (*GREY_VALUES, *SIZES)


def changed(images: np.ndarray, way: str) -> np.ndarray:
    """Return images, uint8 (z, y, x), changed in a way; rounded and clipped to uint8."""
    x = images.astype(np.float64)
    x = resized(x, SIZES[way], order=3) if way in SIZES else GREY_VALUES[way](x)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def resized(stack: np.ndarray, factor: float, *, order: int) -> np.ndarray:
    """Return every slice so many times as high and wide."""
    return ndimage.zoom(stack, (1, factor, factor), order=order)


def rows_of(
    model: str | Path,
    images: np.ndarray,
    truth: np.ndarray | None,
    on: str,
    *,
    ways: Sequence[str],
    device: str,
) -> list[dict[str, Any]]:
    """Return the figures of each way, against labels, or against what is found unchanged."""
    predictor = OverlapTilePredictor(load_model(model, device=choose_device(device)))
    unchanged: np.ndarray | None = None
    rows = []
    for way in ways if truth is not None else (UNCHANGED, *ways):
        probability = predict_volume(predictor, changed(images, way))
        if truth is not None:
            labels = resized(truth, SIZES[way], order=0) if way in SIZES else truth
        elif unchanged is None:
            unchanged = probability
            continue
        elif way == UNCHANGED:
            continue
        else:
            like = resized(unchanged, SIZES[way], order=1) if way in SIZES else unchanged
            labels = like > 0.5
        figures = evaluate_em(np.where(labels > 0, 255, 0).astype(np.uint8), probability)["figures"]
        figures = {name: round(figures[name], 4) for name in FIGURES}
        rows.append({"model": str(model), "on": on, "way": way, **figures})
        print(rows[-1], flush=True)
    return rows


def held_out_of(model: str | Path) -> list[int]:
    """Return the slices of the challenge that a network was held from, by its own metadata."""
    data = read_metadata(model)["training"].get("data", {})
    parts = str(data.get("heldout_slices") or "").split(",")
    ranges = (index_range(part, length=10**6, name="held-out slices") for part in parts if part)
    return [z for each in ranges for z in each]


def networks(given: list[str]) -> list[str | Path]:
    """Return the models, of a folder that of a run, or those of its folds."""
    found: list[str | Path] = []
    for place in given:
        folds = sorted(Path(place).glob("fold-*/model.safetensors"))
        found += folds or [Path(place) / "model.safetensors" if Path(place).is_dir() else place]
    return found


def compare(
    models: list[str], data: str, slices: int, ways: Sequence[str], device: str
) -> list[dict[str, Any]]:
    """Return the rows of all networks, and the means of those with labels."""
    labelled, test_volume, _ = load(data)
    images, truth = np.asarray(labelled.images), np.asarray(labelled.truth)
    rows = []
    options: dict[str, Any] = {"ways": ways, "device": device}
    for model in networks(models):
        held_out = held_out_of(model)
        if held_out:
            name = read_metadata(model)["training"]["data"].get("name")
            if name != labelled.name:
                raise InputError(
                    f"{model}: was trained on {name}, and {labelled.name} is at hand: its held-out "
                    "slices are others (--data)"
                )
            on = f"held-out slices {held_out[0]}-{held_out[-1]}"
            rows += rows_of(model, images[held_out], truth[held_out], on, **options)
            continue
        step = max(1, len(test_volume) // slices)
        on = f"every {step}th slice of the test volume, against unchanged"
        rows += rows_of(model, test_volume[::step][:slices], None, on, **options)
        rows += rows_of(model, *em_phantom(slices=10, seed=PHANTOM_SEED), "phantom", **options)
    return rows + _means([row for row in rows if row["on"].startswith("held-out")])


def _means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ways = dict.fromkeys(row["way"] for row in rows)
    number = len({row["model"] for row in rows})
    means = []
    for way in ways if number > 1 else ():
        of_way = [row for row in rows if row["way"] == way]
        figures = {
            name: round(float(np.mean([row[name] for row in of_way])), 4) for name in FIGURES
        }
        means.append({"model": f"mean of {number}", "on": "held-out slices", "way": way, **figures})
        print(means[-1])
    return means


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["em"], help="model files, folders, or em")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    parser.add_argument("--data", default="auto", help="as in em_challenge.sh")
    parser.add_argument("--slices", type=int, default=6, help="of the test volume")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    given = parser.parse_args()

    def run() -> int:
        rows = compare(given.models, given.data, given.slices, given.ways, given.device)
        if given.out:
            with atomic_path(given.out, overwrite=True) as part:
                part.write_text(json.dumps(rows, indent=1))
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
