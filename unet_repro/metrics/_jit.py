"""Compile the kernels of this package: without the GIL, kept on disk where the disk allows it."""

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Kernel = TypeVar("Kernel", bound=Callable[..., Any])


def jit(function: Kernel) -> Kernel:
    """Compile a function on its first call, to run without Python objects and without the GIL.

    Compiled code is kept next to the source, in `NUMBA_CACHE_DIR` or in the user's cache. Where
    none of them can be written, numba raises RuntimeError here; then the code is compiled anew
    in every process.
    """
    compiled: Any
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        compiled = numba.njit(nogil=True)(function)
    return compiled
