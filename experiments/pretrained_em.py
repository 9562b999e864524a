"""Train the network that comes with the package as `em`: all 30 slices of the ISBI 2012 volume.

    python experiments/pretrained_em.py [--iterations 20000] [--out results/pretrained_em]

Nothing is held out, so it has no figures of its own. Those of the same recipe on slices that it
was not trained on, every block of five in turn, are made by

    bash experiments/em_challenge.sh --preset robust --iterations 20000 --folds 6

It takes five minutes on an H200 in bfloat16, and a night on a CPU.

Run again, it goes on where it was stopped. OUT/em.safetensors, in half precision, is the file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from unet_repro.challenges.em_job import load
from unet_repro.config import PRESET_ITERATIONS, PRESETS
from unet_repro.errors import InputError
from unet_repro.network.model_file import load_model, read_metadata, save_model
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_volume
from unet_repro.program import INTERRUPTED, guarded
from unet_repro.training_run import start_run

_TOLERANCE = 0.02  # of a probability, for weights rounded to half precision


def pretrain(out: Path, *, iterations: int, data: str, device: str) -> int:
    """Train into a folder, and write em.safetensors there."""
    labelled, test_volume, _ = load(data)
    if labelled.is_synthetic:
        raise InputError("em is trained on the challenge's slices, and they are not at hand")
    settings = replace(PRESETS["robust"], iterations=iterations, device=device)
    if start_run(labelled, settings, out, resume=True).stopped == "interrupted":
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    trained = out / "model.safetensors"
    network, facts = load_model(trained), read_metadata(trained)["training"]
    written = out / "em.safetensors"
    save_model(network, written, training=facts, half=True)
    before, after = (
        predict_volume(OverlapTilePredictor(model), test_volume[:2])
        for model in (network, load_model(written))
    )
    largest = float(np.abs(before - after).max())
    if largest > _TOLERANCE:
        raise InputError(f"half precision changes a probability by {largest:.3f}")
    print(f"half precision changes no probability by more than {largest:.4f}\n{written}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/pretrained_em"))
    parser.add_argument("--iterations", type=int, default=PRESET_ITERATIONS["robust"])
    parser.add_argument("--data", default="auto", help="as in em_challenge.sh")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    arguments = parser.parse_args()
    return guarded(lambda: pretrain(**vars(arguments)))


if __name__ == "__main__":
    sys.exit(main())
