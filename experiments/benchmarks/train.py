"""Training steps a second: ours against a plain PyTorch loop with scipy's augmentation.

Goal: with the same network, tile and optimiser, 1.5 times the plain loop's steps a second on two
CPU cores, in the precision that the preset takes there (bfloat16 where the processor multiplies in
it), the plain loop in float32. Either precision is compared with the plain loop in the same one as
well, by autocast: most of a step are the same convolutions on both sides. Both augment in the same
process: ours in torch, on the device; the plain loop with ``scipy.ndimage.map_coordinates`` on the
CPU, images in (N, C, H, W) order and the optimiser as PyTorch takes it by default, as is customary.
The plain loop is timed on one tile that is ready, too: its network and optimiser alone.

    python experiments/benchmarks/train.py [--out train.json] [--quick]

A busy machine shows in wall times above the CPU times, which count all threads. Takes two
minutes, with --quick half a one. A CPU that only emulates bfloat16 leaves it out. On a GPU the
share of the matrix multiplication peak that training reaches is reported as well.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unet_repro.augmentation import augment
from unet_repro.challenges.phantom import em_phantom
from unet_repro.config import PRESETS, TrainConfig, UNetConfig
from unet_repro.files.atomic import atomic_path
from unet_repro.network.device import (
    autocast,
    choose_device,
    choose_precision,
    describe,
    reused_memory,
)
from unet_repro.network.model import UNet
from unet_repro.program import guarded, parse
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.loss import weighted_cross_entropy
from unet_repro.training.state import TrainingState, output_side
from unet_repro.weight_maps.weight_map import weight_map

TARGET = 1.5
BLOCK = 5  # steps of one side at a time
Sample = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Benchmark:
    """Time training steps against a plain PyTorch loop.

    Parameters
    ----------
    out
        JSON to write.
    steps
        Steps to measure on each side, five of ours and five of the other by turns.
    tile
        Side of the input tile in px.
    base_channels
        Of the network.
    quick
        Five steps of small tiles.
    """

    out: Path | None = None
    steps: int = 15
    tile: int = 380
    base_channels: int = 16
    device: str = "auto"
    threads: int = 2
    quick: tyro.conf.FlagCreatePairsOff[bool] = False

    def run(self) -> int:
        torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        steps, tile = (5, 188) if self.quick else (self.steps, self.tile)
        rows = []
        for optimizer in ("adam", "sgd"):
            settings = replace(
                PRESETS["quick"],
                model=UNetConfig(base_channels=self.base_channels, dropout=0.0),
                tile=tile,
                optimizer=optimizer,
                weight_average=0.0,
                precision="float32",
            )
            rows.append({"optimizer": optimizer, "tile": tile, **measure(settings, device, steps)})
            print(line(rows[-1]), flush=True)
        result = {
            "steps": steps,
            "base_channels": self.base_channels,
            "hardware": describe(device),
            "versions": {"torch": torch.__version__},
            "rows": rows,
        }
        if self.out:
            with atomic_path(self.out, overwrite=True) as part:
                part.write_text(json.dumps(result, indent=1))
        return 0


def measure(settings: TrainConfig, device: torch.device, steps: int) -> dict[str, Any]:
    """Return the median milliseconds of a step of each, taken by turns."""
    images, labels = em_phantom(slices=2)
    classes = (labels > 0).astype(np.uint8)
    weights = weight_map(labels)
    contenders: dict[str, Callable[[], Any]] = {}
    folder = Path(tempfile.gettempdir())
    preset_precision = choose_precision("auto", device)
    is_emulated = device.type == "cpu" and preset_precision == "float32"
    precisions = ["float32"] if is_emulated else ["float32", "bfloat16"]
    for precision in precisions:
        chosen = replace(settings, precision=precision)
        plain = Plain(images, classes, weights, chosen, device)
        data = TrainingSet(images, classes, weights, device=device)
        state = TrainingState(data, chosen, folder)
        state.network.train()
        contenders |= {
            f"plain_{precision}": plain,
            f"ready_{precision}": partial(plain, plain.sample()),
            precision: state.step,
        }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(-(-steps // BLOCK) + 1):
        for name, step in contenders.items():
            with reused_memory(device) if name in precisions else nullcontext():  # as train does
                for _ in range(BLOCK):
                    begin, cpu = time.perf_counter(), time.process_time()
                    step()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    times[name].append((time.perf_counter() - begin, time.process_time() - cpu))
    row: dict[str, Any] = {"preset_precision": preset_precision, "precisions": precisions}
    for name, measured in times.items():
        wall, cpu = 1e3 * np.median(measured[BLOCK:], axis=0)  # the first block warms up
        row |= {f"{name}_ms": wall, f"{name}_cpu_ms": cpu}
    for name in precisions:
        row[f"ratio_{name}"] = ratio(row, "plain_float32", name)
    if device.type == "cuda":
        row |= peak_share(settings, device, row["bfloat16_ms"])
    return row


def ratio(row: dict[str, Any], peer: str, ours: str, clock: str = "ms") -> float:
    """Return how many steps we take in one of the peer's."""
    return row[f"{peer}_{clock}"] / row[f"{ours}_{clock}"]


class Plain:
    """A customary training step: scipy on the CPU, or a tile, then forward, backward, step."""

    def __init__(
        self,
        images: np.ndarray,
        classes: np.ndarray,
        weights: np.ndarray,
        settings: TrainConfig,
        device: torch.device,
    ) -> None:
        self.images = ((images - images.mean()) / images.std()).astype(np.float32)
        self.classes, self.weights = classes, weights
        self.settings, self.device = settings, device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.network = UNet(settings.model, generator=self.generator).to(device).train()
        parameters, rate = self.network.parameters(), settings.learning_rate
        self.optimizer: torch.optim.Optimizer
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr=rate, momentum=settings.momentum)
        else:
            self.optimizer = torch.optim.AdamW(parameters, lr=rate)

    def __call__(self, sample: Sample | None = None) -> float:
        parts = self.sample() if sample is None else sample
        image, labels, weights = (part[None].to(self.device) for part in parts)
        with autocast(self.settings.precision, self.device):
            logits = self.network(image[None])
        loss = weighted_cross_entropy(logits, labels.long(), weights)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def sample(self) -> Sample:
        """Return an augmented image, its labels and its weights, sampled as ours are."""
        tile, output = self.settings.tile, output_side(self.settings)
        z = int(torch.randint(len(self.images), (), generator=self.generator))
        drawn = augment.draw(
            self.settings.augmentation,
            image_size=self.images.shape[1:],
            window=(tile, tile),
            generator=self.generator,
        )
        y, x = np.mgrid[:tile, :tile] - (tile - 1) / 2
        control = drawn.displacement.numpy()
        zoom = tile / control.shape[1]
        y += ndimage.zoom(control[0], zoom, order=3, mode="mirror")
        x += ndimage.zoom(control[1], zoom, order=3, mode="mirror")
        x *= -1 if drawn.is_flipped else 1
        cos, sin = np.cos(np.deg2rad(drawn.angle_deg)), np.sin(np.deg2rad(drawn.angle_deg))
        places = np.stack(
            [cos * y + sin * x + drawn.centre[0], cos * x - sin * y + drawn.centre[1]]
        )
        margin = (tile - output) // 2
        inner = places[:, margin : margin + output, margin : margin + output]
        image = ndimage.map_coordinates(self.images[z], places, order=1, mode="mirror")
        image = drawn.contrast * image + drawn.brightness
        labels = ndimage.map_coordinates(self.classes[z], inner, order=0, mode="mirror")
        weights = ndimage.map_coordinates(self.weights[z], inner, order=1, mode="mirror")
        return torch.from_numpy(image), torch.from_numpy(labels), torch.from_numpy(weights)


def peak_share(settings: TrainConfig, device: torch.device, step_ms: float) -> dict[str, float]:
    """Return what of the bfloat16 matrix multiplication peak, measured here, a step reaches."""
    network = UNet(settings.model).to(device)
    image = torch.zeros(1, 1, settings.tile, settings.tile, device=device)
    with FlopCounterMode(display=False) as counter:
        network(image).sum().backward()
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    milliseconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    peak = 2 * side**3 / min(milliseconds)  # FLOP a millisecond
    flops = counter.get_total_flops()
    return {"peak_tflops": peak / 1e9, "peak_share": flops / step_ms / peak}


def line(row: dict[str, Any]) -> str:
    """Return a row as text, with what the target says to it."""
    chosen = row["preset_precision"]
    texts = []
    for name in row["precisions"]:
        plain, ready = f"plain_{name}", f"ready_{name}"
        texts.append(
            f"{name}: plain loop {1e3 / row[f'{plain}_ms']:.2f} steps/s, "
            f"ours {1e3 / row[f'{name}_ms']:.2f} (ratio {ratio(row, plain, name):.2f}; of CPU time "
            f"{ratio(row, plain, name, 'cpu_ms'):.2f}; to the loop on a ready tile "
            f"{ratio(row, ready, name):.2f}, {ratio(row, ready, name, 'cpu_ms'):.2f})"
        )
    reached = row[f"ratio_{chosen}"]
    text = (
        f"{row['optimizer']}, tile {row['tile']} px; {'; '.join(texts)}; target {TARGET:g} in the "
        f"preset's {chosen} to the plain float32: {'met' if reached >= TARGET else 'NOT met'} "
        f"({reached:.2f})"
    )
    if "peak_share" in row:
        text += f"; {100 * row['peak_share']:.0f} % of {row['peak_tflops']:.0f} TFLOP/s bfloat16"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: parse(Benchmark, arguments, prog="train", default=Benchmark()).run())


if __name__ == "__main__":
    sys.exit(main())
