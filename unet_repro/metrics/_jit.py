"""Compile the kernels of this package: without the GIL, kept on disk where the disk allows it."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def jit(function: Kernel) -> Kernel:
    """Compile a function on its first call, to run without Python objects and without the GIL.

    Where numba finds no place for its cache (it raises RuntimeError), every process compiles.
    """
    compiled: Any
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    return compiled
