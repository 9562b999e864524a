"""Images that a network knows, by mean and deviation, and images that it cannot know."""

import pytest

from unet_repro.network.grey_values import unlike

EM = {"input_mean": (126.0,), "input_std": (44.0,)}


@pytest.mark.parametrize(
    "mean, std",
    [(126, 44), (0, 20), (250, 5), (126, 1.2), (126, 0), (0, 0), (200, 127)],
    ids="same dark bright dull empty black black-and-white".split(),
)
def test_what_may_be_is_passed_in_silence(mean, std):
    assert unlike([mean], [std], **EM) == ""


@pytest.mark.parametrize(
    "mean, std",
    [(126 * 257, 44 * 257), (0.5, 0.17), (0.9, 0.5), (0, 1), (0, 11308), (2000, 700), (-10, 44)],
    ids="16-bit fractions mask normalised signed-16-bit 12-bit below".split(),
)
def test_another_range_is_told(mean, std):
    assert f"mean {mean:.4g}, deviation {std:.4g}" in unlike([mean], [std], **EM)


def test_the_release_which_divides_by_255_knows_phase_contrast():
    release = {"input_mean": (0.0,), "input_std": (255.0,)}
    assert unlike([83.3], [8.1], **release) == ""  # PhC-C2DH-U373, 01, t000
    assert unlike([83.3 / 255], [8.1 / 255], **release)


def test_a_network_that_expects_nothing_is_passed():
    assert unlike([5000], [900], input_mean=(0.0,), input_std=(1.0,)) == ""


def test_every_channel_is_looked_at():
    expected = {"input_mean": (126.0, 10.0), "input_std": (44.0, 2.0)}
    assert unlike([126, 10], [44, 2], **expected) == ""
    assert "of channel 1 (mean 126," in unlike([126, 126], [44, 44], **expected)


def test_one_value_is_all_channels():
    assert unlike([126, 90], [44, 30], **EM) == ""
    assert "of channel 1 " in unlike([126, 0.5], [44, 0.2], **EM)
    assert unlike([5, 5], [9, 9], input_mean=(0.0,), input_std=(1.0,)) == ""
