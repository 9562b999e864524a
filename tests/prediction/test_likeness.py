"""A stack of other grey values than the network's is told beforehand; nothing else is."""

import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import tifffile
import torch

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.network.model import UNet
from unet_repro.prediction.likeness import Likeness, spread
from unet_repro.prediction.predict_stack import predict_stack

FAR = "are far from what the network expects"


@pytest.fixture(autouse=True)
def no_other_note():
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputNote)
        yield


def network(channels=1):
    expected = {"input_mean": (126.0,) * channels, "input_std": (44.0,)}
    shape = UNetConfig(depth=1, base_channels=2, in_channels=channels, **expected)
    return UNet(shape, generator=torch.Generator().manual_seed(0)).eval()


def grey(*shape):
    return np.random.default_rng(0).normal(126, 40, shape).clip(0, 255).astype(np.uint8)


def told(is_told):
    return pytest.warns(InputNote, match=FAR) if is_told else nullcontext()


@pytest.mark.parametrize(
    "change, is_told",
    [
        (lambda image: image, False),
        (lambda image: image.astype(np.float32), False),
        (lambda image: image // 3, False),
        (lambda image: 255 - image, False),  # cannot be seen
        (lambda image: np.zeros_like(image), False),
        (lambda image: (image / 255).astype(np.float32), True),
        (lambda image: image.astype(np.uint16) * 257, True),
        (lambda image: ((image - 126.0) / 44).astype(np.float32), True),
    ],
    ids="same float dull inverted empty fractions 16-bit normalised".split(),
)
def test_another_range_is_told_and_the_result_is_the_same(tmp_path, change, is_told):
    tifffile.imwrite(tmp_path / "a.tif", change(grey(2, 50, 60)), photometric="minisblack")
    with told(is_told):
        predict_stack(tmp_path / "a.tif", network(), tmp_path / "o.tif")
    assert tifffile.imread(tmp_path / "o.tif").shape == (2, 50, 60)


def test_only_what_is_predicted_is_looked_at(tmp_path):
    stack = grey(9, 50, 60).astype(np.uint16)
    stack[5:, :, 30:] *= 257
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    for z, columns, is_told in (("0:5", "0:60", 0), ("5:9", "0:30", 0), ("5:9", "30:60", 1)):
        with told(is_told):
            where = {"z": z, "roi": f"0:50,{columns}", "overwrite": True}
            predict_stack(tmp_path / "a.tif", network(), tmp_path / "o.tif", **where)


@pytest.mark.parametrize("is_told", [False, True])
def test_a_folder_of_several_sizes_is_told_once(tmp_path, is_told):
    (tmp_path / "in").mkdir()
    for k in range(5):
        image = grey(30 + k, 40).astype(np.uint16) * (257 if is_told else 1)
        tifffile.imwrite(tmp_path / "in" / f"{k}.tif", image)
    with told(is_told) as notes:
        predict_stack(tmp_path / "in", network(), tmp_path / "out")
    assert not is_told or [str(tmp_path / "in") in str(each.message) for each in notes] == [True]


def test_one_wrong_channel_is_named(tmp_path):
    image = grey(3, 40, 40).astype(np.float32)
    image[2] /= 255
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.warns(InputNote, match="of channel 2 "):
        predict_stack(tmp_path / "a.tif", network(3), tmp_path / "o.tif")


def test_few_pixels_are_read_inside_the_part():
    class Reader:
        pixels = 0

        def read_region(self, z, rows, columns):
            assert 40 <= z < 1000 and 1000 <= rows.start < rows.stop <= 90_001
            assert 7 <= columns.start < columns.stop <= 400
            part = np.zeros((1, rows.stop - rows.start, columns.stop - columns.start))
            self.pixels += part.size
            return part

    reader = Reader()
    Likeness([126.0], [44.0]).look(reader, range(40, 1000), range(1000, 90_001), range(7, 400))
    assert reader.pixels == 3 * 4 * 128**2


def test_what_cannot_be_read_is_left_to_the_prediction():
    class Reader:
        def read_region(self, z, rows, columns):
            if z:
                raise InputError("damaged")
            return np.full((1, 2, 2), np.nan)

    likeness = Likeness([126.0], [44.0])
    likeness.look(Reader(), range(2), range(9), range(9))
    likeness.tell("a.tif")  # nor of what is not finite


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 100])
def test_slices_are_spread_over_all(number):
    chosen = spread(range(10, 10 + number), 3)
    assert len(set(chosen)) == min(3, number) and set(chosen) <= set(range(10, 10 + number))
    assert number < 100 or chosen == [26, 60, 93]


def test_values_beyond_float32_are_refused_without_another_word(tmp_path):
    """Their square is beyond float64; NumPy's warning would be a second line."""
    tifffile.imwrite(tmp_path / "s.tif", grey(2, 30, 40) * 1e200, photometric="minisblack")
    with warnings.catch_warnings(), pytest.raises(InputError, match="within float32"):
        warnings.simplefilter("error")
        predict_stack(tmp_path / "s.tif", network(), tmp_path / "o.tif")
