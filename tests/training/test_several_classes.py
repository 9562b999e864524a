"""Training on several classes, and on images of several channels."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_repro.config import AugmentationConfig, TrainConfig, UNetConfig, WeightMapConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.images.label_settings import LabelSettings
from unet_repro.prediction.predictor import OverlapTilePredictor, predict_classes
from unet_repro.training.samples import LabelledStack, samples, split
from unet_repro.training.train import train
from unet_repro.training.validation import HeldOut, validate
from unet_repro.weight_maps.weight_map import weight_map

AS_CLASSES = LabelSettings("classes", ignore_label=9)


def classed(labels, *, images=None, how=AS_CLASSES) -> LabelledStack:
    if images is None:
        images = np.random.default_rng(0).integers(0, 255, labels.shape).astype(np.uint8)
    return LabelledStack(images, labels, "slices", "", "", how=how)


def settings(classes=3, **options) -> TrainConfig:
    return TrainConfig(model=UNetConfig(classes=classes), **options)


def taken(data, asked):
    return samples(data, split(data, asked), asked.weight_map)


@pytest.fixture
def row():
    """Cells of class 1 and 2 with a pixel between; an unknown pixel; class 1 in a second slice."""
    labels = np.zeros((2, 1, 12), np.uint8)
    labels[0, 0, 2:5], labels[0, 0, 6:8], labels[0, 0, 11] = 1, 2, 9
    labels[1, 0, :6] = 1
    return labels


def test_weights_are_those_of_each_class_and_of_the_border_between_two(row):
    training, _ = taken(classed(row), settings())
    background, one, two = (23 / (3 * n) for n in (12, 9, 2))  # of 23 known pixels
    weights = training.weights.numpy()
    np.testing.assert_array_equal(training.classes.numpy(), np.where(row == 9, 0, row))
    np.testing.assert_allclose(weights[0, 0, 2:5], one, rtol=1e-6)
    np.testing.assert_allclose(weights[0, 0, 6:8], two, rtol=1e-6)
    between = background + 10 * math.exp(-((1 + 1) ** 2) / 50)  # d1 = d2 = 1
    assert weights[0, 0, 5] == pytest.approx(between, rel=1e-6)
    assert weights[0, 0, 11] == 0
    np.testing.assert_allclose(weights[1, 0, 6:], background, rtol=1e-6)  # one cell: no border
    for balance in ("frequency", "none"):
        how = WeightMapConfig(class_balance=balance)
        found, _ = taken(classed(row), settings(weight_map=how))
        expected = weight_map(
            row,
            label_kind="classes",
            ignore_label=9,
            class_balance=balance if balance == "frequency" else None,
        )
        np.testing.assert_allclose(found.weights, expected, rtol=1e-6)


def test_balance_is_that_of_the_training_slices(row):
    training, held_out = taken(classed(row[[0, 0, 1]]), settings(val="2:3"))
    one = 22 / (3 * 6)  # of both training slices
    np.testing.assert_allclose(training.weights[0, 0, 2:5], one, rtol=1e-6)
    np.testing.assert_allclose(held_out.weights[0, 0, :6], one, rtol=1e-6)


def test_a_held_out_class_that_is_not_trained_on_weighs_nothing_but_counts(row):
    with pytest.warns(InputNote, match="class 2 occurs nowhere"):
        _, held_out = taken(classed(row[[1, 0]]), settings(val="1:2"))
    np.testing.assert_array_equal(held_out.weights[0] == 0, np.isin(row[0], (2, 9)))
    np.testing.assert_array_equal(held_out.known[0], row[0] != 9)


def test_a_ridge_between_touching_classes_is_class_0():
    labels = np.zeros((1, 9, 20), np.uint8)
    labels[:, :, 2:10], labels[:, :, 10:18] = 1, 2
    how = WeightMapConfig(separate_touching=True)
    training, _ = taken(classed(labels), settings(weight_map=how))
    expected = labels.copy()
    expected[:, :, 9:11] = 0
    np.testing.assert_array_equal(training.classes, expected)
    balance = [180 / (3 * np.count_nonzero(expected == k)) for k in range(3)]
    np.testing.assert_allclose(training.weights[0, 4, 12:18], balance[2], rtol=1e-6)
    ridge = balance[0] + 10 * math.exp(-1 / 50)  # d1 = 0, d2 = 1
    np.testing.assert_allclose(training.weights[0, 4, 9:11], ridge, rtol=1e-5)


def test_prior_entropy_is_that_of_all_classes(row):
    training, _ = taken(classed(row), settings(weight_map=WeightMapConfig(w0=0)))
    assert training.prior_entropy() == pytest.approx(math.log(3), rel=1e-6)  # balanced


def test_two_classes_are_the_same_as_a_mask():
    labels = np.zeros((1, 20, 30), np.uint8)
    labels[:, 3:12, 4:12] = labels[:, 3:12, 15:25] = 1
    as_mask, _ = taken(classed(labels, how=LabelSettings("mask")), settings(2))
    as_classes, _ = taken(classed(labels, how=LabelSettings("classes")), settings(2))
    assert as_mask.fingerprint() == as_classes.fingerprint()


@pytest.mark.parametrize(
    ("values", "kind", "classes", "message"),
    [
        ([0, 1, 2], "classes", 2, "the labels hold class 2, but --classes 2 means 0 ... 1"),
        ([0, 1, 5], "classes", 3, "the labels hold class 5, but --classes 3 means 0 ... 2"),
        ([0, 1, 2], "ids", 3, "--classes 3: the labels were read as ids"),
        ([0, 1], "mask", 3, "--classes 3: the labels were read as mask"),
        ([1, 1], "classes", 3, "labels are all of class 1: two classes or more"),
        ([9, 9], "classes", 3, "every pixel of the training slices' labels is unknown"),
    ],
)
def test_labels_of_other_classes_are_one_line(values, kind, classes, message):
    labels = np.array(values, np.uint8)[None, None].repeat(4, axis=1)
    data = classed(labels, how=LabelSettings(kind, ignore_label=9))
    with pytest.raises(InputError) as error:
        split(data, settings(classes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_class_that_does_not_occur_is_said(row):
    with pytest.warns(InputNote, match=r"^class 3 occurs nowhere in the training slices: "):
        taken(classed(row), settings(4))
    with pytest.warns(InputNote, match=r"^classes 2, 3 occur nowhere"):
        split(classed(row), settings(4, val="0:1"))


def test_validation_of_classes_is_the_share_of_known_pixels_that_are_wrong():
    classes = np.array([[[0, 1, 2, 2], [2, 1, 0, 0]]], np.uint8)

    def model(x: torch.Tensor) -> torch.Tensor:  # its score of class k is -|x - k|
        return torch.cat([-(x - k).abs() for k in range(3)], dim=1)[..., 8:-8, 8:-8]

    predictor = OverlapTilePredictor(model, depth=1)
    images = np.array([[[0, 1, 2, 1], [0, 0, 0, 2]]], np.float32)
    weights = np.ones(classes.shape, np.float32)
    weights[0, 1, 0] = 0  # a class that training knows nothing of weighs 0, and counts all the same
    known = np.ones(classes.shape, bool)
    known[0, 1, 2:] = False  # one right, one wrong
    found = validate(predictor, HeldOut(images, classes, weights, known))
    assert found.pixel_error == 3 / 6
    np.testing.assert_array_equal(found.prediction, images)
    assert found.prediction.dtype == np.uint8 and not found.is_one_class
    assert validate(predictor, HeldOut(images * 0, classes, weights, known)).is_one_class


TOY = TrainConfig(
    preset="quick",
    model=UNetConfig(depth=1, base_channels=8, classes=3, dropout=0.0),
    augmentation=AugmentationConfig(elastic_sigma_px=0.0, contrast=0.0, brightness=0.0),
    weight_map=WeightMapConfig(w0=0.0),
    iterations=150,
    tile=44,
    batch_size=4,
    optimizer="adam",
    momentum=0.9,
    learning_rate=1e-2,
    warmup_iterations=5,
    validate_every=75,
    val="2:3",
    device="cpu",
)


def toy() -> tuple[np.ndarray, np.ndarray]:
    """Squares of class 1 and 2, of their own grey each, in three slices."""
    labels = np.zeros((3, 48, 48), np.uint8)
    labels[:, 6:20, 6:20] = labels[:, 28:42, 28:42] = 1
    labels[:, 6:20, 28:42] = labels[:, 28:42, 6:20] = 2
    noise = np.random.default_rng(0).normal(0, 4, labels.shape)
    return (np.array([60, 130, 200])[labels] + noise).round().astype(np.uint8), labels


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_learns_every_class(tmp_path, channels):
    images, labels = toy()
    if channels == 3:  # the second tells the classes, the others nothing
        rng = np.random.default_rng(1)
        other = (rng.integers(0, 255, labels.shape, dtype=np.uint8) for _ in range(2))
        images = np.stack([next(other), images, next(other)], axis=1)
    data = classed(labels, images=images)
    training, held_out = taken(data, TOY)
    asked = replace(TOY, model=replace(TOY.model, in_channels=channels))
    trained = train(training, asked, tmp_path, held_out=held_out, is_quiet=True)
    assert trained.network.config.classes == 3
    assert len(trained.network.config.input_mean) == channels
    np.testing.assert_allclose(
        trained.network.config.input_mean,
        np.moveaxis(images[:2].reshape(2, channels, -1), 1, 0).mean(axis=(1, 2)),
        rtol=1e-4,
    )
    prediction = predict_classes(OverlapTilePredictor(trained.network), images[2:])
    for k in range(3):
        assert (prediction[labels[2:] == k] == k).mean() > 0.95
    assert trained.best is not None and trained.best.pixel_error < 0.03
