"""Training samples from images that hold their own coordinates, and worked cases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_repro.config import AugmentationConfig
from unet_repro.errors import InputError
from unet_repro.training.dataset import Batch, TrainingSet

SAME_GREY = AugmentationConfig(contrast=0, brightness=0)
STILL = replace(SAME_GREY, rotation_deg=0, elastic_sigma_px=0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def coordinate_set() -> TrainingSet:
    """Two slices of 16 x 16 px: channels y and x, one class for each pixel, weight 1 + y + 16 x."""
    y, x = np.mgrid[:16, :16]
    images = np.stack([[y, x]] * 2).astype(np.uint8)
    classes = np.stack([16 * y + x] * 2)
    weights = np.stack([1 + y + 16 * x] * 2).astype(np.float32)
    return TrainingSet(images, classes, weights)


def small_set(seed: int = 0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 20, 24), np.uint8)
    return TrainingSet(images, images > 100, rng.random((3, 20, 24), np.float32) + 0.1)


def draw(
    data: TrainingSet,
    seed: int,
    *,
    ranges: AugmentationConfig = SAME_GREY,
    batch_size: int = 3,
    window: int = 28,
    output: int = 12,
) -> Batch:
    return data.draw_batch(
        ranges, batch_size=batch_size, window=window, output=output, generator=seeded(seed)
    )


@pytest.mark.parametrize(("window", "output"), [(28, 12), (27, 5), (20, 20)])
@pytest.mark.parametrize("is_flipped", [False, True])
def test_labels_and_weights_are_the_centre_of_the_images_field(window, output, is_flipped):
    ranges = replace(SAME_GREY, flips=is_flipped)
    batch = draw(coordinate_set(), 0, ranges=ranges, batch_size=6, window=window, output=output)
    margin = (window - output) // 2
    inner = slice(margin, margin + output)
    y, x = batch.image[:, :, inner, inner].double().unbind(1)
    assert torch.equal(batch.labels, (16 * torch.floor(y + 0.5) + torch.floor(x + 0.5)).long())
    torch.testing.assert_close(batch.weights.double(), 1 + y + 16 * x, rtol=0, atol=1e-4)


def test_batch_has_the_shapes_and_types_of_a_step():
    batch = draw(coordinate_set(), 1)
    assert (batch.image.shape, batch.image.dtype) == ((3, 2, 28, 28), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((3, 12, 12), torch.int64)
    assert (batch.weights.shape, batch.weights.dtype) == ((3, 12, 12), torch.float32)
    assert draw(small_set(), 1).image.shape == (3, 1, 28, 28)


def test_a_still_window_is_cut_out_and_mirrored():
    data = coordinate_set()
    for seed in range(20):
        batch = draw(data, seed, ranges=STILL, batch_size=1, window=7, output=5)
        y, x = batch.image[0, :, 3, 3].int().tolist()  # the window's centre
        around = np.pad(np.arange(256).reshape(16, 16), 3, mode="reflect")[y : y + 7, x : x + 7]
        assert np.array_equal(batch.image[0, 0], around // 16)
        assert np.array_equal(batch.image[0, 1], around % 16)
        assert np.array_equal(batch.labels[0], around[1:-1, 1:-1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_interpolated_as_asked(interpolation):
    # y and y^2, sampled at the same place: bicubic (Keys) reproduces parabolas, bilinear does not
    y = np.mgrid[:64, :64][0].astype(float)
    images = np.stack([y, y**2])[None]
    data = TrainingSet(images, np.zeros((1, 64, 64), int), np.ones((1, 64, 64)))
    ranges = replace(SAME_GREY, interpolation=interpolation)
    place, square = draw(data, 6, ranges=ranges, batch_size=8).image.unbind(1)
    is_inside = (place > 2) & (place < 61)  # mirrored beyond
    error = (square - place**2)[is_inside].abs().max()
    assert is_inside.float().mean() > 0.5
    assert error < 2e-3 if interpolation == "bicubic" else error > 0.2


def test_mean_and_deviation_are_of_each_channel_over_the_stack():
    # channel 0: 1, 3, 5, 7, mean 4, squares of the deviations 9, 1, 1, 9; channel 1: 10 or 20
    images = np.array([[[[1, 3]], [[10, 20]]], [[[5, 7]], [[20, 10]]]])  # (z, c, y, x)
    data = TrainingSet(images, np.zeros((2, 1, 2), int), np.ones((2, 1, 2)))
    assert len(data) == 2
    assert data.mean.shape == data.std.shape == (2, 1, 1)
    torch.testing.assert_close(data.mean.flatten(), torch.tensor([4.0, 15.0]))
    torch.testing.assert_close(data.std.flatten(), torch.tensor([5**0.5, 5.0]))


def test_grey_values_vary_about_the_stacks_mean():
    # one slice all 0, one all 8: mean 4, deviation 4
    images = np.broadcast_to(np.array([0.0, 8.0])[:, None, None], (2, 6, 6))
    data = TrainingSet(images, np.zeros((2, 6, 6), int), np.ones((2, 6, 6)))
    ranges = AugmentationConfig(contrast=0.5, brightness=0.25)
    batch = draw(data, 4, ranges=ranges, batch_size=400, window=2, output=2)
    values = batch.image[:, 0, 0, 0]
    assert torch.equal(batch.image, values[:, None, None, None].expand_as(batch.image))
    # 4 + (1 +- 0.5) (-+4) +- 0.25 * 4: within [-3, 3] and [5, 11]
    low, high = values[values < 4], values[values > 4]
    assert -3 <= low.min() < -2 and 2 < low.max() <= 3
    assert 5 <= high.min() < 6 and 10 < high.max() <= 11


def test_every_slice_is_drawn_alike():
    z = np.arange(5)[:, None, None] + np.zeros((5, 4, 4), int)
    batch = draw(TrainingSet(z, z, z + 1), 5, batch_size=1000, window=2, output=2)
    assert torch.equal(batch.image[:, 0].round().long(), batch.labels)  # of the same slice
    torch.testing.assert_close(batch.weights, batch.labels.float() + 1)
    drawn = batch.labels[:, 0, 0].bincount()
    assert len(drawn) == 5
    assert (drawn - 200).abs().max() < 60  # standard deviation 12.6


def test_one_seed_one_batch_whatever_the_global_generators():
    batches = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state()
        batches.append(draw(small_set(), 6, ranges=AugmentationConfig()))
        assert torch.equal(torch.get_rng_state(), before)
    for name in ("image", "labels", "weights"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))
    assert not torch.equal(batches[0].image, draw(small_set(), 7).image)


def test_processes_with_equal_generators_share_a_batch():
    data = small_set()
    together, generators = draw(data, 8, batch_size=4), [seeded(8), seeded(8)]
    for rank, generator in enumerate(generators):
        made = data.draw_batch(
            SAME_GREY,
            batch_size=4,
            window=28,
            output=12,
            generator=generator,
            part=range(2 * rank, 2 * rank + 2),
        )
        for name in ("image", "labels", "weights"):
            expected = getattr(together, name)[2 * rank : 2 * rank + 2]
            assert torch.equal(getattr(made, name), expected)
    # both have drawn for all four: the next batch is shared too
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_batches_are_made_on_the_sets_device_without_waiting_for_it():
    # A meta tensor has no values: whatever reads one back, or mixes devices, raises.
    images = np.arange(2 * 20 * 20).reshape(2, 20, 20)
    data = TrainingSet(images, images > 5, np.ones((2, 20, 20)), device="meta")
    batch = draw(data, 10, ranges=AugmentationConfig())
    assert (
        batch.image.device.type == batch.labels.device.type == batch.weights.device.type == "meta"
    )


def test_the_callers_arrays_are_not_shared():
    images = np.arange(64, dtype=np.float32).reshape(1, 8, 8)
    classes, weights = (images > 9).astype(np.uint8), np.ones((1, 8, 8), np.float32)
    data = TrainingSet(images, classes, weights)
    before = data.fingerprint()
    images += 1
    classes[:] = 0
    weights *= 2
    assert data.fingerprint() == before


class TestPriorEntropy:
    @pytest.mark.parametrize(
        ("classes", "weights", "expected"),
        [
            ([0, 0, 1, 1], [1, 1, 2, 0], math.log(2)),  # 2 of 4 each
            ([0, 1, 1, 1], [3, 0, 1, 0], -0.75 * math.log(0.75) - 0.25 * math.log(0.25)),
            ([0, 1, 2, 7], [1, 1, 1, 1], math.log(4)),
            ([0, 0, 1, 1], [1, 5, 0, 0], 0),  # the other class is unknown everywhere
        ],
    )
    def test_by_hand(self, classes, weights, expected):
        data = TrainingSet(
            np.arange(4.0).reshape(1, 2, 2),
            np.reshape(classes, (1, 2, 2)),
            np.reshape(weights, (1, 2, 2)).astype(float),
        )
        assert data.prior_entropy() == pytest.approx(expected, abs=1e-12)


class TestFingerprint:
    @pytest.mark.parametrize("name", ["images", "classes", "weights"])
    def test_any_pixel_changes_it(self, name):
        data = small_set()
        found = {data.fingerprint()}
        part = getattr(data, name).flatten()  # a view: the tensor is contiguous
        for index in (0, 777, len(part) - 1):
            before = part[index].clone()
            part[index] = 1 - before if name == "classes" else before * 1.001 + 1e-3
            found.add(data.fingerprint())
            part[index] = before
        assert len(found) == 4
        assert data.fingerprint() in found

    def test_memory_layout_does_not_matter_but_the_shape_does(self):
        images = np.arange(24).reshape(1, 4, 6)
        classes, weights = images > 5, np.ones(images.shape)
        usual = TrainingSet(images, classes, weights).fingerprint()
        fortran = [np.asfortranarray(part) for part in (images, classes, weights)]
        assert TrainingSet(*fortran).fingerprint() == usual
        reshaped = [part.reshape(1, 6, 4) for part in (images, classes, weights)]
        assert TrainingSet(*reshaped).fingerprint() != usual


IMAGES = np.arange(2 * 4 * 5).reshape(2, 4, 5)
CLASSES, WEIGHTS = (IMAGES > 9).astype(int), np.ones(IMAGES.shape)


def changed(array: np.ndarray, value: float) -> np.ndarray:
    array = array.astype(float)
    array[0, 0, 0] = value
    return array


@pytest.mark.parametrize(
    ("images", "classes", "weights", "message"),
    [
        (IMAGES, CLASSES[:1], WEIGHTS, r"images \(2, 1, 4, 5\) do not fit the labels \(1, 4, 5\)"),
        (
            IMAGES,
            CLASSES,
            WEIGHTS[:, :, :4],
            r"weights \(2, 4, 4\) do not fit the labels \(2, 4, 5\)",
        ),
        (IMAGES[:0], CLASSES[:0], WEIGHTS[:0], r"shape \(0, 4, 5\): there is nothing to learn"),
        (IMAGES, CLASSES * 256, WEIGHTS, r"classes are int64 in 0 ... 256: integers in 0 ... 255"),
        (IMAGES, -CLASSES, WEIGHTS, r"classes are int64 in -1 ... 0"),
        (IMAGES, CLASSES / 2, WEIGHTS, r"classes are float64 in 0.0 ... 0.5"),
        (changed(IMAGES, 1e39), CLASSES, WEIGHTS, "images .* not finite, or none of float32"),
        (IMAGES, CLASSES, changed(WEIGHTS, -np.inf), "the weights hold a value that is not finite"),
        (IMAGES, CLASSES, changed(WEIGHTS, -1), "a weight is -1.0: weights must be 0 or more"),
        (IMAGES, CLASSES, 0 * WEIGHTS, "every weight is 0: there is nothing to learn from"),
        (
            np.stack([IMAGES, 0 * IMAGES + 7], axis=1),
            CLASSES,
            WEIGHTS,
            "channel 1 of the images is 7 everywhere: there is nothing to learn from",
        ),
    ],
)
def test_errors_say_what_is_wrong(images, classes, weights, message):
    with pytest.raises(InputError, match=message):
        TrainingSet(images, classes, weights)
