import math

import pytest

from unet_repro.training.watch import CollapseWatch

PRIOR = math.log(2)


def losses_until(watch, last, loss, first=20):
    """Give the watch a loss every 20 iterations; return the warnings."""
    found = [watch.see_training(i, loss) for i in range(first, last + 1, 20)]
    return [text for text in found if text]


def test_a_training_loss_stuck_at_the_priors_entropy_is_told_once():
    watch = CollapseWatch(prior=PRIOR, warmup=100)
    assert not losses_until(watch, 880, PRIOR)  # not before 4 warm-ups and 500 iterations
    assert not watch.has_collapsed
    (warning,) = losses_until(watch, 3000, PRIOR, first=900)
    assert warning.startswith("iteration 900:") and "--learning-rate" in warning
    assert watch.has_collapsed


def test_a_falling_training_loss_is_not_a_collapse_and_neither_is_one_bad_row():
    watch = CollapseWatch(prior=PRIOR, warmup=0)
    assert not losses_until(watch, 2000, 0.9 * PRIOR)
    assert not watch.see_training(2020, 1.3 * PRIOR)  # the mean: 0.9 + 0.4 / 10 of the prior
    assert watch.mean == pytest.approx(0.94 * PRIOR)
    assert watch.see_training(2040, 1.3 * PRIOR)  # 0.94 + 0.36 / 10
    losses_until(watch, 2200, 0.5 * PRIOR, first=2060)
    assert not watch.has_collapsed


@pytest.mark.parametrize(
    ("iteration", "loss", "is_one_class", "expected"),
    [(201, 1.0, True, True), (200, 1.0, True, False), (201, 0.9, True, False),
     (201, 1.0, False, False)],
)  # fmt: skip
def test_held_out_slices_of_one_class(iteration, loss, is_one_class, expected):
    watch = CollapseWatch(prior=PRIOR, warmup=100)
    text = watch.see_validation(iteration, loss * PRIOR, is_one_class=is_one_class)
    assert bool(text) == watch.has_collapsed == expected


def test_a_resumed_watch_remembers_and_does_not_tell_again():
    watch, resumed = (CollapseWatch(prior=PRIOR, warmup=0) for _ in range(2))
    assert losses_until(watch, 600, PRIOR)
    resumed.restore(watch.state())
    assert resumed.has_collapsed and resumed.mean == watch.mean
    assert not losses_until(resumed, 900, PRIOR, first=620)
    assert not resumed.see_validation(900, PRIOR, is_one_class=True)
