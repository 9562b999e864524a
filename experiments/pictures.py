"""The README's pictures, made of the synthetic phantom: ``python experiments/pictures.py``.

The overlap-tile strategy (Fig. 2), a weight map (Eq. 2), augmented samples (Sec. 3.1), and what a
network trained for some minutes, and the one that comes with the package, make of a slice. No real
data; a CPU takes about five minutes. The slice is written to data/phantom/example.png.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from unet_repro.augmentation import augment
from unet_repro.challenges.phantom import em_phantom
from unet_repro.config import PRESETS, AugmentationConfig, TrainConfig
from unet_repro.network.model_file import load_model
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.reports.drawing import coloured_objects
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.train import train
from unet_repro.weight_maps.weight_map import weight_map

WINDOW_PX, TILE_PX = 572, 388  # Fig. 1
EXAMPLE = Path(__file__).parent.parent / "data" / "phantom" / "example.png"
MARGIN_PX = (WINDOW_PX - TILE_PX) // 2
BLUE, YELLOW = "#2f7fe0", "#f2c200"  # the colours of Fig. 2


def sheet(columns: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(2.6 * columns, 2.9), dpi=80, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03)
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for axes in panels:
        axes.set_axis_off()
    return figure, panels


def show(axes: Axes, image: np.ndarray, title: str, **options: object) -> None:
    axes.imshow(image, interpolation="nearest", **({"cmap": "gray"} | options))
    axes.set_title(title, fontsize=9)


def overlap_tile(image: np.ndarray) -> Figure:
    """Draw where the window of one tile reaches beyond the slice, and what is mirrored there."""
    figure, (whole, tile) = sheet(2)
    corner = (MARGIN_PX, MARGIN_PX)
    mirrored = np.pad(image, MARGIN_PX, mode="reflect")
    show(whole, mirrored, "slice, mirrored by 92 px")
    height, width = image.shape
    whole.add_patch(
        Rectangle((MARGIN_PX, MARGIN_PX), width, height, fill=False, ec="white", ls=":")
    )
    for side, place, colour in ((WINDOW_PX, 0, BLUE), (TILE_PX, MARGIN_PX, YELLOW)):
        whole.add_patch(Rectangle((place, place), side, side, fill=False, ec=colour, lw=2))
    show(tile, mirrored[:WINDOW_PX, :WINDOW_PX], "572 px in (blue), 388 px out (yellow)")
    tile.add_patch(Rectangle(corner, TILE_PX, TILE_PX, fill=False, ec=YELLOW, lw=2))
    return figure


def weights(image: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw an image, its cells and the weight map."""
    figure, panels = sheet(3)
    part = np.s_[100:300, 100:300]
    show(panels[0], image[part], "image")
    show(panels[1], coloured_objects(labels[part]), "cells")
    show(panels[2], weight_map(labels)[part], "weight map (Eq. 2)", cmap="magma")
    return figure


def augmented(image: np.ndarray, labels: np.ndarray) -> Figure:
    """Draw a part of a slice and three random deformations of it."""
    figure, panels = sheet(4)
    side, generator = 200, torch.Generator().manual_seed(3)
    show(panels[0], image[100:300, 100:300], "image")
    for axes in panels[1:]:
        drawn = augment.draw(
            AugmentationConfig(),
            image_size=image.shape,
            window=(side, side),
            generator=generator,
        )
        sample = augment.apply(
            drawn,
            torch.from_numpy(image.astype(np.float32))[None],
            torch.from_numpy(labels),
            torch.ones(image.shape),
            window=(side, side),
            mean=torch.tensor(float(image.mean())),
            std=torch.tensor(float(image.std())),
        )
        show(axes, sample.image[0].numpy(), f"turned {drawn.angle_deg:+.0f}°, deformed")
    return figure


def segmented(images: np.ndarray, labels: np.ndarray, iterations: int) -> Figure:
    """Train on all slices but the last; draw what the network makes of that one."""
    classes = (labels > 0).astype(np.uint8)
    settings = TrainConfig(**vars(PRESETS["quick"]) | {"iterations": iterations})
    data = TrainingSet(images[:-1], classes[:-1], weight_map(labels[:-1], w0=2, workers=2))
    with tempfile.TemporaryDirectory() as folder:
        trained = train(data, settings, Path(folder))
    probability = OverlapTilePredictor(trained.network, average="dihedral")(images[-1])[1]
    figure, panels = sheet(3)
    show(panels[0], images[-1], "image")
    show(panels[1], probability, "P(cell interior)", vmin=0, vmax=1)
    show(panels[2], coloured_objects(probability > 0.5), "instances")
    return figure


def at_once(image: np.ndarray) -> Figure:
    """Draw what the network that comes with the package makes of an image."""
    probability = OverlapTilePredictor(load_model("em"))(image)[1]
    figure, panels = sheet(3)
    show(panels[0], image, "example.png")
    show(panels[1], probability, "P(cell interior)", vmin=0, vmax=1)
    show(panels[2], coloured_objects(probability > 0.5), "instances")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "pictures")
    parser.add_argument("--iterations", type=int, default=600)
    options = parser.parse_args()
    images, labels = em_phantom(slices=6, seed=0)
    example = em_phantom(slices=1, seed=1)[0][0]
    EXAMPLE.parent.mkdir(exist_ok=True)
    Image.fromarray(example).save(EXAMPLE, optimize=True)
    options.out.mkdir(exist_ok=True)
    for name, figure in (
        ("overlap_tile", overlap_tile(images[0])),
        ("weight_map", weights(images[0], labels[0])),
        ("augmentation", augmented(images[0], labels[0])),
        ("segmentation", segmented(images, labels, options.iterations)),
        ("em", at_once(example)),
    ):
        path = options.out / f"{name}.png"
        figure.savefig(path)
        Image.open(path).convert("RGB").quantize(128).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main()
