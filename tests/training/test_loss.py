"""Eq. 1 against sums written out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from unet_repro.training.loss import weighted_cross_entropy


def test_two_pixels_by_hand() -> None:
    """Scores 0 and ln 3 are probabilities 1/4 and 3/4."""
    scores = torch.tensor([[0.0, 0.0], [math.log(3), math.log(3)]])
    logits = scores.reshape(1, 2, 1, 2)
    labels = torch.tensor([[[1, 0]]])
    weights = torch.tensor([[[2.0, 5.0]]])
    expected = -(2 * math.log(3 / 4) + 5 * math.log(1 / 4)) / (2 + 5)
    assert weighted_cross_entropy(logits, labels, weights).item() == pytest.approx(expected)


def random_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, 7, generator=generator)
    labels = torch.randint(0, 3, (2, 5, 7), generator=generator)
    weights = torch.rand(2, 5, 7, generator=generator) * 10
    return logits, labels, weights


def test_sum_over_pixels_classes_and_images() -> None:
    logits, labels, weights = random_case()
    loss = total = 0.0
    for n in range(2):
        for y in range(5):
            for x in range(7):
                powers = [math.exp(score) for score in logits[n, :, y, x].tolist()]
                probability = powers[int(labels[n, y, x])] / sum(powers)
                loss -= float(weights[n, y, x]) * math.log(probability)
                total += float(weights[n, y, x])
    found = weighted_cross_entropy(logits, labels, weights).item()
    assert found == pytest.approx(loss / total, rel=1e-5)


def test_pixels_of_weight_0_count_for_nothing() -> None:
    logits, labels, weights = random_case()
    weights[0, 2:] = 0
    loss = weighted_cross_entropy(logits, labels, weights)
    logits[0, :, 2:] = 100 * torch.randn(3, 3, 7)
    labels[0, 2:] = 2 - labels[0, 2:]
    assert torch.equal(weighted_cross_entropy(logits, labels, weights), loss)
    logits.requires_grad = True
    weighted_cross_entropy(logits, labels, weights).backward()
    assert logits.grad is not None
    assert torch.count_nonzero(logits.grad[0, :, 2:]) == 0
    assert torch.count_nonzero(logits.grad[0, :, :2]) > 0


def test_all_weights_0_give_0_and_no_gradient() -> None:
    logits, labels, weights = random_case()
    logits.requires_grad = True
    loss = weighted_cross_entropy(logits, labels, 0 * weights)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_bfloat16_scores_are_summed_in_float32() -> None:
    logits, labels, weights = random_case()
    rounded = logits.bfloat16()
    loss = weighted_cross_entropy(rounded, labels, weights)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, weighted_cross_entropy(rounded.float(), labels, weights))


def test_huge_scores_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1)
    weights = torch.ones(1, 1, 1)
    wrong = weighted_cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.int64), weights)
    assert wrong.item() == pytest.approx(2e4)
