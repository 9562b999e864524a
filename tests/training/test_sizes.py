"""Training and validation on images of several sizes: equal sizes notice nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_repro.augmentation import augment
from unet_repro.config import AugmentationConfig, TrainConfig, WeightMapConfig
from unet_repro.errors import InputError
from unet_repro.metrics import pixel_error
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.samples import LabelledStack, samples, split
from unet_repro.training.state import TrainingState
from unet_repro.training.validation import HeldOut, validate
from unet_repro.weight_maps.weight_map import frequency_weights, weight_map

STILL = AugmentationConfig(
    contrast=0, brightness=0, rotation_deg=0, elastic_sigma_px=0, flips=False
)


def random_slices(*sizes: tuple[int, ...], seed: int = 0) -> tuple[list, list, list]:
    """Images, classes and weights."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, size).astype(np.uint8) for size in sizes]
    classes = [(image > 100).astype(np.uint8) for image in images]
    return images, classes, [rng.random(size, np.float32) + 0.1 for size in sizes]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_list_of_equal_sizes_is_the_array():
    slices = random_slices((20, 24), (20, 24), (20, 24))
    listed, stacked = TrainingSet(*slices), TrainingSet(*map(np.stack, slices))
    assert listed.fingerprint() == stacked.fingerprint()
    assert torch.equal(listed.mean, stacked.mean) and torch.equal(listed.std, stacked.std)
    first, second = (
        data.draw_batch(
            AugmentationConfig(), batch_size=4, window=28, output=12, generator=seeded(3)
        )
        for data in (listed, stacked)
    )
    assert torch.equal(first.image, second.image) and torch.equal(first.weights, second.weights)


def test_mean_deviation_and_prior_are_over_all_pixels():
    images, classes, weights = random_slices((5, 7), (30, 40))
    data = TrainingSet(images, classes, weights)
    pixels = np.concatenate([image.ravel() for image in images]).astype(float)
    assert float(data.mean) == pytest.approx(pixels.mean(), rel=1e-6)
    assert float(data.std) == pytest.approx(pixels.std(), rel=1e-6)
    total = sum(one.sum(dtype=float) for one in weights)
    share = sum(one[k == 1].sum(dtype=float) for one, k in zip(weights, classes)) / total
    expected = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert data.prior_entropy() == pytest.approx(expected, rel=1e-12)
    colour = [np.stack([image, 2.0 * image]) for image in images]
    two = TrainingSet(colour, classes, weights)
    assert two.channels == 2 and float(two.mean[1]) == pytest.approx(2 * pixels.mean(), rel=1e-6)
    assert two.fingerprint() != data.fingerprint()


def test_slices_are_drawn_in_proportion_to_their_pixels():
    images, _, weights = random_slices((10, 10), (20, 20), (20, 25))
    classes = [np.full(image.shape, k) for k, image in enumerate(images)]
    data = TrainingSet(images, classes, weights)
    batch = data.draw_batch(STILL, batch_size=600, window=1, output=1, generator=seeded())
    shares = np.bincount(batch.labels.flatten(), minlength=3) / 600
    np.testing.assert_allclose(shares, [0.1, 0.4, 0.5], atol=0.06)  # 1/3 each would be far off


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    window=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_small_images_are_mirrored_as_often_as_need_be(height, width, window, seed):
    image = torch.arange(1, height * width + 1).reshape(height, width)
    drawn = augment.draw(
        STILL, image_size=(height, width), window=(window, window), generator=seeded(seed)
    )
    sample = augment.apply(
        drawn, image[None].double(), image, image.double(), window=(window, window)
    )
    pad = window + 1
    mirrored = np.pad(image.numpy(), pad, mode="reflect")
    y, x = (int(centre - (window - 1) / 2) + pad for centre in drawn.centre)
    expected = mirrored[y : y + window, x : x + window]
    for found in (sample.image[0], sample.labels, sample.weights):
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c, w: (i, c[::-1], w), r"images of \(1, 5, 7\), \(1, 8, 6\) do not fit"),
        (lambda i, c, w: (i, c, w[:1]), r"weights \(1, 5, 7\) do not fit the labels of \(5, 7\)"),
        (lambda i, c, w: ([i[0][None], np.stack([i[1]] * 2)], c, w), r"\[1, 2\] channels"),
        (lambda i, c, w: ([i[0], i[1] + np.nan], c, w), "images hold a value that is not finite"),
        (lambda i, c, w: (i, c, [w[0], w[1] + np.inf]), "weights hold a value that is not finite"),
        (lambda i, c, w: (i, [c[0], c[1] + 300], w), r"in 0 ... 301: integers in 0 ... 255"),
        (lambda i, c, w: (i, c, [w[0], -w[1]]), "a weight is -"),
        (lambda i, c, w: ([0 * i[0], 0 * i[1]], c, w), "channel 0 of the images is 0 everywhere"),
    ],
)
def test_errors_in_any_slice_are_found(change, message):
    images, classes, weights = random_slices((5, 7), (8, 6))
    TrainingSet([0 * images[0], images[1]], classes, weights)  # one grey value in one slice only
    with pytest.raises(InputError, match=message):
        TrainingSet(*change(images, [one.astype(int) for one in classes], weights))


def labelled(**options) -> LabelledStack:
    """Cells of ids 1 and 2 in the second image; in the first, two apart that are both 1."""
    labels = [np.zeros((20, 30), np.uint8), np.zeros((25, 21), np.uint8), np.zeros((9, 40), "u1")]
    labels[0][5:15, 4:10] = labels[0][5:15, 14:20] = 1
    labels[1][5:15, 2:8], labels[1][5:15, 8:14] = 1, 2
    labels[2][2:5, 3:30] = 7
    images = random_slices(*(one.shape for one in labels))[0]
    return LabelledStack(images, labels, "several", "", "", **options)


def test_classes_and_weights_of_several_sizes():
    data = labelled(
        known=[np.ones((20, 30), bool), np.ones((25, 21), bool), np.ones((9, 40), bool)]
    )
    data.known[1][:3] = False
    how = WeightMapConfig(separate_touching=True)
    taken = TrainConfig(val="2:3", weight_map=how)
    training, held_out = samples(data, split(data, taken), how)
    ridge = data.labels[1] > 0
    ridge[5:15, 7:9] = False
    expected = [data.labels[0] > 0, ridge]
    for found, classes in zip(training.classes, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), classes)
    cells = sum(int(one.sum()) for one in expected)
    known = sum(int(one.sum()) for one in data.known[:2])
    balance = frequency_weights(known - cells, cells)
    weights = [
        weight_map(one, class_balance=balance, separate_touching=True, label_kind="ids")
        for one in data.labels
    ]
    weights[1][:3] = 0
    # the first alone would be a mask of two cells, with a border between them
    np.testing.assert_array_equal(training.weights[0].numpy(), weights[0])
    np.testing.assert_array_equal(training.weights[1].numpy(), weights[1])
    np.testing.assert_array_equal(held_out.weights[0], weights[2])
    assert held_out.images.shape == (1, 9, 40)


@pytest.mark.parametrize(("value", "found"), [(0, "background"), (3, "cell interior")])
def test_one_class_in_all_training_images_is_refused(value, found):
    data = labelled()
    data.labels[0][:] = data.labels[1][:] = value
    with pytest.raises(InputError, match=f"the training slices' labels are all {found}"):
        split(data, TrainConfig(val="2:3"))


def test_validation_weighs_slices_by_their_weights():
    images, classes, weights = random_slices((12, 9), (30, 21))

    def crop(x: torch.Tensor) -> torch.Tensor:  # the sizes of an unpadded U-Net of depth 1
        return torch.cat((x, 180 - x), dim=1)[..., 8:-8, 8:-8] / 50

    predictor = OverlapTilePredictor(crop, depth=1)
    found = validate(predictor, HeldOut(images, classes, weights))
    alone = [
        validate(predictor, HeldOut(*(np.asarray(one)[None] for one in slices)))
        for slices in zip(images, classes, weights)
    ]
    shares = [float(one.sum()) for one in weights]
    mean = sum(s * one.loss for s, one in zip(shares, alone)) / sum(shares)
    assert found.loss == pytest.approx(mean, rel=1e-5) and alone[0].loss != alone[1].loss
    for probability, one in zip(found.prediction, alone, strict=True):
        np.testing.assert_array_equal(probability, one.prediction[0])
    assert found.pixel_error == pixel_error(classes, found.prediction).best
    assert not found.is_one_class


def test_resumed_training_equals_uninterrupted(tiny, tmp_path):
    settings = replace(tiny, tile=76, batch_size=2)
    data = TrainingSet(*random_slices((20, 30), (64, 50)))

    def after(steps: int, *, resume: bool = False) -> TrainingState:
        run = TrainingState(data, settings, tmp_path)
        run.load(resume)
        run.seed_dropout()
        for _ in range(steps):
            run.step()
        return run

    whole = after(4)
    after(2).save_checkpoint()
    second = after(2, resume=True)
    for one, other in zip(whole.network.parameters(), second.network.parameters()):
        assert torch.equal(one, other)
    swapped = TrainingSet(*(part[::-1] for part in random_slices((20, 30), (64, 50))))
    with pytest.raises(InputError, match="made with other images"):
        TrainingState(swapped, settings, tmp_path).load(resume=True)
