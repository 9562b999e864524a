"""Claim: to begin from a trained network beats beginning from nothing, at equal short time.

    python experiments/fine_tuning.py                       # em, on the synthetic phantom
    python experiments/fine_tuning.py --data auto --init results/first_twenty/model.safetensors

Five labelled slices are trained on, five others scored, from --init and from random weights, after
each of --seconds. On the phantom the two are slices 0-4 and 5-9. On the EM challenge's slices
(20-24 and 25-29) `em` itself would know what is scored: give a network of slices 0-19 only, as
`bash experiments/em_challenge.sh --preset robust --val 20:30 --out results/first_twenty` makes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unet_repro.challenges.em_job import load
from unet_repro.challenges.phantom import em_phantom
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.network.model_file import load_model, read_metadata
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume
from unet_repro.program import guarded, preset_settings
from unet_repro.reports.evaluation import evaluate_em
from unet_repro.training.samples import LabelledStack
from unet_repro.training_run import start_run

FIGURES = ("v_rand", "v_info", "pixel_error")


def slices_of(data: str, init: str) -> tuple[LabelledStack, np.ndarray, np.ndarray]:
    """Return five slices to train on, and images and labels of five others."""
    if data == "phantom":
        images, labels = em_phantom(slices=10, seed=0)
        training = LabelledStack(images[:5], labels[:5], "phantom", "", "", True)
        return training, images[5:], labels[5:]
    whole, _, _ = load(data)
    trained_on = read_metadata(init)["training"]["data"]["train_slices"]
    if whole.is_synthetic or trained_on != "0:20":
        raise InputError(
            f"{init}: was trained on the slices {trained_on}, or the challenge's data are not at "
            "hand; --data auto needs a network of the slices 0:20"
        )
    images, truth = np.asarray(whole.images), np.asarray(whole.truth)
    training = LabelledStack(images[20:25], truth[20:25], "slices 20-24", "", "")
    return training, images[25:], truth[25:]


def score(model: str | Path, images: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the figures of a network on slices."""
    probability = predict_volume(OverlapTilePredictor(load_model(model)), images)
    figures = evaluate_em(truth, probability)["figures"]
    return {name: round(figures[name], 4) for name in FIGURES}


def compare(data: str, init: str, seconds: list[int]) -> list[dict[str, Any]]:
    """Train for each length from the network and from nothing; return a row of figures for each."""
    labelled, images, truth = slices_of(data, init)
    rows: list[dict[str, Any]] = [{"from": init, "seconds": 0, **score(init, images, truth)}]
    print(rows[-1], flush=True)
    for budget in seconds:
        for start in (init, ""):
            settings = preset_settings(["--init", start], "quick")
            settings = replace(settings, time_budget=f"{budget}s", init=start)
            with tempfile.TemporaryDirectory() as folder:
                run = start_run(labelled, settings, Path(folder), is_quiet=True)
                figures = score(Path(folder) / "model.safetensors", images, truth)
            row = {"from": start or "nothing", "seconds": budget, "iterations": run.iterations}
            rows.append(row | figures)
            print(rows[-1], flush=True)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="phantom", help="phantom, or as in em_challenge.sh")
    parser.add_argument("--init", default="em")
    parser.add_argument("--seconds", type=int, nargs="+", default=[60, 300])
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    given = parser.parse_args()

    def run() -> int:
        rows = compare(given.data, given.init, given.seconds)
        if given.out:
            with atomic_path(given.out, overwrite=True) as part:
                part.write_text(json.dumps(rows, indent=1))
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
