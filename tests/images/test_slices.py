"""Stacks in memory of one size and of several: both give the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_repro.errors import InputError
from unet_repro.images.slices import (
    flat,
    joined,
    mapped,
    of_one_size,
    part,
    pieces,
    room_for,
    sizes,
)

SIDES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(shapes=st.lists(SIDES, min_size=1, max_size=5), data=st.data())
def test_slices_are_the_images_whatever_their_sizes(shapes, data):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 9, shape) for shape in shapes]
    stack = joined(images)
    assert isinstance(stack, np.ndarray) == (len(set(shapes)) == 1)
    assert sizes(stack) == shapes and len(stack) == len(images)
    for found, image in zip(stack, images, strict=True):
        np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(flat(stack), np.concatenate([one.ravel() for one in images]))
    assert sum(piece.sum() for piece in pieces(stack)) == sum(one.sum() for one in images)
    numbers = data.draw(st.lists(st.sampled_from(range(len(images))), min_size=1, unique=True))
    chosen = part(stack, numbers)
    assert isinstance(chosen, np.ndarray) == (len({shapes[z] for z in numbers}) == 1) or (
        isinstance(stack, np.ndarray)
    )
    for found, z in zip(chosen, numbers, strict=True):
        np.testing.assert_array_equal(found, images[z])
    summed = mapped(lambda one, other: one + 2 * other, stack, stack)
    np.testing.assert_array_equal(flat(summed), 3 * flat(stack))
    room = room_for(stack, np.float32)
    assert sizes(room) == shapes and {image.dtype for image in room} == {np.dtype(np.float32)}


def test_a_part_of_one_size_is_an_array():
    stack = [np.zeros((2, 3)), np.ones((2, 3)), np.zeros((4, 3))]
    assert part(stack, range(0, 2)).shape == (2, 2, 3)
    assert len(part(stack, range(1, 3))) == 2
    with pytest.raises(InputError, match="x: its images have several sizes"):
        of_one_size(stack, "x")
