"""Small data that several test files share."""

import os
from pathlib import Path

import numpy as np
import pretended_gpu
import pytest
import torch

from unet_repro.config import AugmentationConfig, TrainConfig, UNetConfig

# Small networks: a second thread costs more than it gives, above all on a busy machine.
torch.set_num_threads(1)
# PyTorch counts the devices at the first gradient of a process: known later, it would have none.
# It takes one kind of them: beside a real one the pretended one would break gradients.
if not torch.cuda.is_available():
    pretended_gpu.register_if_possible()


@pytest.fixture
def two_cells() -> tuple[np.ndarray, np.ndarray]:
    """Four slices of 64 x 64 px: two bright cells with a dark membrane between and around."""
    rng = np.random.default_rng(0)
    labels = np.zeros((4, 64, 64), np.uint8)
    labels[:, 4:60, 4:28] = labels[:, 4:60, 36:60] = 255
    images = np.where(labels > 0, 180, 60) + rng.normal(0, 8, labels.shape)
    return images.round().clip(0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    """Settings that train in a second: depth 2, 4 channels, tiles of 76 px."""
    return TrainConfig(
        preset="quick",
        model=UNetConfig(depth=2, base_channels=4),
        augmentation=AugmentationConfig(elastic_sigma_px=1.0),
        iterations=12,
        tile=76,
        optimizer="adam",
        momentum=0.9,
        learning_rate=3e-3,
        warmup_iterations=2,
        validate_every=6,
        device="cpu",
        precision="float32",
    )


@pytest.fixture
def real_data() -> Path:
    """The folder of the real data sets; skips where there is none."""
    folder = os.environ.get("UNET_REPRO_DATA")
    if not folder or not Path(folder, "isbi2012").is_dir():
        pytest.skip("real data: UNET_REPRO_DATA names no folder with isbi2012/")
    return Path(folder)
