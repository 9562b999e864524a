"""Values at the edge of what can be computed: a defined result, or one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unet_repro import (
    OverlapTilePredictor,
    UNet,
    UNetConfig,
    em_challenge_metrics,
    predict_stack,
)
from unet_repro.config import TrainConfig
from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.train import train

FLOAT32 = np.finfo(np.float32)


def network(mean: float = 0.0, std: float = 1.0) -> UNet:
    shape = UNetConfig(depth=2, base_channels=4, input_mean=(mean,), input_std=(std,))
    return UNet(shape, generator=torch.Generator().manual_seed(0)).eval()


@pytest.mark.parametrize("options", [{}, {"tile": 76}], ids=["whole", "tiles"])
def test_a_constant_image_has_no_border(options: dict[str, Any]) -> None:
    """Mirrored, it goes on for ever: what is left is the period of the poolings, 4 px."""
    probability = OverlapTilePredictor(network(), **options)(np.full((90, 100), 5.0))
    cell = probability[:, :4, :4]
    assert np.ptp(cell[1]) > 0.1
    expected = np.tile(cell, (1, 23, 25))[:, :90]
    np.testing.assert_allclose(probability, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_images_of_few_pixels(size: tuple[int, int]) -> None:
    """As the constant image that they are, cut out at its corner."""
    predictor = OverlapTilePredictor(network(), average="none")
    expected = predictor(np.full((16, 16), 7.0))[:, : size[0], : size[1]]
    np.testing.assert_allclose(predictor(np.full(size, 7.0)), expected, rtol=0, atol=1e-6)


def test_uint16_in_its_full_range_is_that_of_floats() -> None:
    image = np.random.default_rng(0).integers(0, 2**16, (40, 40), dtype=np.uint16)
    image[0, :2] = 0, 2**16 - 1
    predictor = OverlapTilePredictor(network(32768.0, 18918.0))
    expected = predictor((image.astype(float) - 32768) / 18918 * 18918 + 32768)
    assert np.isfinite(expected).all() and np.ptp(expected[1]) > 0.1
    np.testing.assert_allclose(predictor(image), expected, rtol=0, atol=1e-5)


def test_denormal_grey_values_are_as_good_as_0() -> None:
    predictor = OverlapTilePredictor(network())
    tiny = np.full((20, 20), FLOAT32.smallest_subnormal, np.float32)
    np.testing.assert_allclose(predictor(tiny), predictor(tiny * 0), rtol=0, atol=1e-6)


def test_grey_values_too_large_for_the_network_are_named(tmp_path: Path) -> None:
    image = np.zeros((100, 200), np.float32)
    image[90, 180] = FLOAT32.max
    with pytest.raises(InputError, match=r"the image.*0 \.\.\. 3.40282e\+38 .* not finite"):
        OverlapTilePredictor(network())(image)
    stack = np.stack([image * 0, image])
    write_stack(tmp_path / "in.tif", stack)
    place = r"in.tif: slice 1: .*about y = (36|72), x = (108|144|180) .* not finite"  # in reach
    with pytest.raises(InputError, match=place):
        predict_stack(tmp_path / "in.tif", network(), tmp_path / "out.tif", tile=76)
    assert not (tmp_path / "out.tif").exists()


def test_huge_grey_values_train_like_small_ones(
    two_cells: Any, tiny: TrainConfig, tmp_path: Path
) -> None:
    """Mean and deviation are taken out: 1e30 times the image gives the same network."""
    images, labels = two_cells
    predicted = []
    for number, scale in enumerate((1.0, 1e30)):
        folder = tmp_path / str(number)
        folder.mkdir()
        classes = (labels > 0).astype(np.uint8)
        data = TrainingSet(images * scale, classes, np.ones(labels.shape))
        trained = train(data, tiny, folder, is_quiet=True)
        predictor = OverlapTilePredictor(trained.network)
        predicted.append(predictor(images[0] * scale))
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_constant_proposals_have_figures(value: float) -> None:
    """Below the value all is interior: F of 240 hits of 256; else nothing is, and F is 0."""
    labels = np.ones((1, 16, 16), np.uint8)
    labels[:, :, 8] = 0
    found = em_challenge_metrics(labels, np.full(labels.shape, value, np.float32)).as_dict()
    expected = 1 - 2 * 240 / (240 + 256) if value else 1.0
    assert found["pixel_error"] == pytest.approx(expected)
    assert all(0 <= figure <= 1 for figure in found.values())
