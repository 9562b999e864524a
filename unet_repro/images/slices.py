"""A stack in memory: an array (z, y, x), or, where its images have several sizes, a list of them.

Both are sequences of images, so that most code sees no difference. What is below is for the rest.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_repro.errors import InputError

Slices = np.ndarray | Sequence[np.ndarray]  # images (y, x), or (c, y, x), of one dtype


def joined(images: Any) -> Slices:
    """Return images as an array if all have one shape, else as a list; an array as it is.

    >>> joined([[[1, 2]], [[3, 4]]]).shape, len(joined([[[1, 2]], [[3]]]))
    ((2, 1, 2), 2)
    """
    if not isinstance(images, Sequence):
        return np.asarray(images)
    listed = [np.asarray(image) for image in images]
    return np.array(listed) if len({image.shape for image in listed}) <= 1 else listed


def pieces(stack: Slices) -> Sequence[np.ndarray]:
    """Return the arrays that hold all pixels, slice by slice: an array itself, or the images."""
    return [stack] if isinstance(stack, np.ndarray) else stack


def flat(stack: Slices) -> np.ndarray:
    """Return all values in one dimension, slice by slice; of an array a view, where it can be."""
    if isinstance(stack, np.ndarray):
        return stack.ravel()
    return np.concatenate([image.ravel() for image in stack])


def part(stack: Slices, numbers: Iterable[int]) -> Slices:
    """Return the slices of these numbers; an array if all of them have one size."""
    if not isinstance(stack, np.ndarray):
        return joined([stack[z] for z in numbers])
    if isinstance(numbers, range) and numbers.step == 1:
        return stack[numbers.start : numbers.stop]  # a view
    return stack[list(numbers)]


def mapped(function: Callable[..., np.ndarray], *stacks: Slices) -> Slices:
    """Return what a function that treats slices apart makes of stacks of the same sizes.

    It is called with the arrays, or with the images one after the other.
    """
    if all(isinstance(stack, np.ndarray) for stack in stacks):
        return function(*stacks)
    return [function(*images) for images in zip(*stacks, strict=True)]


def room_for(stack: Slices, dtype: npt.DTypeLike) -> Any:
    """Return slices to be filled, with one value for each pixel (y, x) of a stack."""
    if isinstance(stack, np.ndarray):
        return np.empty((len(stack), *stack.shape[-2:]), dtype)
    return [np.empty(image.shape[-2:], dtype) for image in stack]


def sizes(stack: Slices) -> list[tuple[int, int]]:
    """Return (height, width) of each slice."""
    return [(image.shape[-2], image.shape[-1]) for image in stack]


def described(stack: Slices) -> str:
    """Return the shape of an array, or those of the first few of several images, as text."""
    if isinstance(stack, np.ndarray):
        return str(stack.shape)
    shapes = ", ".join(str(image.shape) for image in stack[:3])
    return f"of {shapes}{' ...' if len(stack) > 3 else ''}"


def of_one_size(stack: Slices, name: object) -> np.ndarray:
    """Return a stack that must be an array, or raise `InputError`."""
    if isinstance(stack, np.ndarray):
        return stack
    raise InputError(f"{name}: its images have several sizes; here all must have one")
