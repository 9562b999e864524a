"""One augmented training sample of 572 x 572 px: our torch code against scipy, in one process.

Claim: image, labels and weights, drawn and deformed together (Sec. 3.1), take at most 40 ms on two
CPU threads and at most a quarter of what the same augmentation takes with
``scipy.ndimage.map_coordinates``, which must give the same sample.

    python experiments/benchmarks/augmentation.py [--out augmentation.json]

A busy machine shows in wall times above the CPU times. Takes half a minute.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from scipy import ndimage
from torch import Tensor

from unet_repro.augmentation import augment
from unet_repro.config import TILE_INPUT_PX, TILE_OUTPUT_PX, AugmentationConfig
from unet_repro.files.atomic import atomic_path
from unet_repro.network.device import describe
from unet_repro.program import guarded, parse

TARGET_MS, TARGET_RATIO = 40.0, 4.0
IMAGE_SIZE = (512, 512)
WINDOW = (TILE_INPUT_PX, TILE_INPUT_PX)


@dataclass(frozen=True)
class Benchmark:
    """Time one augmented sample against scipy.

    Parameters
    ----------
    out
        JSON to write.
    samples
        Samples to measure on each side.
    threads
        Of torch; scipy has one. Each number is a line of the result.
    """

    out: Path | None = None
    samples: int = 20
    threads: tuple[int, ...] = (1, 2)

    def run(self) -> int:
        rows = []
        for threads in self.threads:
            torch.set_num_threads(threads)
            for output in (TILE_OUTPUT_PX, TILE_INPUT_PX):
                rows.append({"threads": threads, **compare((output, output), self.samples)})
                print(line(rows[-1]), flush=True)
        result = {
            "samples": self.samples,
            "hardware": describe(torch.device("cpu")),
            "versions": {"torch": torch.__version__, "scipy": scipy.__version__},
            "rows": rows,
        }
        if self.out:
            with atomic_path(self.out, overwrite=True) as part:
                part.write_text(json.dumps(result, indent=1))
        return 0 if all(row["is_same"] for row in rows) else 1


def compare(output: tuple[int, int], samples: int) -> dict[str, Any]:
    """Return the median times of both, wall and CPU, and how far their samples differ."""
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.random(IMAGE_SIZE, np.float32), 3)
    image = 255 * (image - image.min()) / np.ptp(image)
    labels = ndimage.label(image > 127)[0].astype(np.int32)
    weights = rng.random(IMAGE_SIZE, np.float32) + 0.5
    tensors = [torch.from_numpy(part) for part in (image[None], labels, weights)]
    grey = {"mean": tensors[0].mean(), "std": tensors[0].std()}
    generator = torch.Generator().manual_seed(0)

    def draw_and_apply() -> tuple[augment.Augmentation, augment.Sample]:
        drawn = augment.draw(
            AugmentationConfig(), image_size=IMAGE_SIZE, window=WINDOW, generator=generator
        )
        return drawn, augment.apply(drawn, *tensors, window=WINDOW, output=output, **grey)

    times, difference = [], np.zeros(3)
    for _ in range(samples + 2):
        (drawn, ours), *our_ms = timed(draw_and_apply)
        scipys, *scipy_ms = timed(lambda drawn=drawn: with_scipy(drawn, *tensors, output, **grey))
        times.append([*our_ms, *scipy_ms])
        difference = np.maximum(difference, differences(ours, scipys))
    ours_ms, ours_cpu_ms, scipy_ms, scipy_cpu_ms = np.median(times[2:], axis=0)  # 2 warm up
    return {
        "output_px": output[0],
        "ours_ms": ours_ms,
        "scipy_ms": scipy_ms,
        "ratio": scipy_ms / ours_ms,
        "ours_cpu_ms": ours_cpu_ms,
        "scipy_cpu_ms": scipy_cpu_ms,
        "image_difference": difference[0],
        "labels_share_different": difference[1],
        "weights_difference": difference[2],
        # float32 grey values up to 255; labels half way between two pixels; float32 weights
        "is_same": bool((difference < (1e-3, 1e-4, 1e-5)).all()),
    }


def timed(make: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return a result and the milliseconds it took, by the clock and of all threads' CPU."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = make()
    return result, 1e3 * (time.perf_counter() - clock), 1e3 * (time.process_time() - cpu)


def with_scipy(
    drawn: augment.Augmentation,
    image: Tensor,
    labels: Tensor,
    weights: Tensor,
    output: tuple[int, int],
    *,
    mean: Tensor,
    std: Tensor,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the sample of `augment.apply` with numpy and scipy.ndimage alone."""
    y, x = np.mgrid[: WINDOW[0], : WINDOW[1]].astype(np.float64)
    control = drawn.displacement.numpy()
    zoom = [side / points for side, points in zip(WINDOW, control.shape[1:])]
    y += ndimage.zoom(control[0], zoom, order=3, mode="mirror") - (WINDOW[0] - 1) / 2
    x += ndimage.zoom(control[1], zoom, order=3, mode="mirror") - (WINDOW[1] - 1) / 2
    cos, sin = np.cos(np.deg2rad(drawn.angle_deg)), np.sin(np.deg2rad(drawn.angle_deg))
    places = np.stack([cos * y + sin * x + drawn.centre[0], cos * x - sin * y + drawn.centre[1]])
    margin = [(outer - inner) // 2 for outer, inner in zip(WINDOW, output)]
    inner = places[:, margin[0] : margin[0] + output[0], margin[1] : margin[1] + output[1]]
    sampled = ndimage.map_coordinates(image[0].numpy(), places, order=1, mode="mirror")
    return (
        float(mean) + drawn.contrast * (sampled - float(mean)) + drawn.brightness * float(std),
        ndimage.map_coordinates(labels.numpy(), inner, order=0, mode="mirror"),
        ndimage.map_coordinates(weights.numpy(), inner, order=1, mode="mirror"),
    )


def differences(ours: augment.Sample, scipys: Sequence[np.ndarray]) -> np.ndarray:
    """Return the largest difference of image and weights, and the share of labels that differ."""
    image, labels, weights = (part.numpy() for part in ours if part is not None)
    return np.array(
        [
            np.abs(image[0] - scipys[0]).max(),
            (labels != scipys[1]).mean(),
            np.abs(weights - scipys[2]).max(),
        ]
    )


def line(row: dict[str, Any]) -> str:
    """Return a row as text, with what the targets say to it."""
    is_met = row["ours_ms"] <= TARGET_MS and row["ratio"] >= TARGET_RATIO and row["is_same"]
    return (
        f"{row['threads']} thread(s), labels and weights {row['output_px']} px: "
        f"{row['ours_ms']:.1f} ms (target {TARGET_MS:g}), scipy {row['scipy_ms']:.0f} ms, "
        f"ratio {row['ratio']:.1f} (target {TARGET_RATIO:g}); CPU {row['ours_cpu_ms']:.1f} and "
        f"{row['scipy_cpu_ms']:.0f} ms; samples {'agree' if row['is_same'] else 'DIFFER'}; "
        f"{'met' if is_met else 'NOT met'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return its exit code: 1 if the samples differ."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(
        lambda: parse(Benchmark, arguments, prog="augmentation", default=Benchmark()).run()
    )


if __name__ == "__main__":
    sys.exit(main())
