"""A GPU that is none: it computes on the CPU, and fails where a real one would.

Its tensors say that they are on the device ``pretended``. An operation on tensors of two devices
raises, and so does numpy that reaches for their values. All that crosses between device and host
is written down (`Crossing`): at each of these a program waits for a GPU, but at an upload that says
``non_blocking``. Random numbers come from a generator of the device's own.

PyTorch's interface for devices written in Python is experimental: `register` skips without it.
`conftest.py` makes the device known at the start of every process of tests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_map

NAME = "pretended"
_PACKAGE = str(Path(__file__).parents[1] / "unet_repro")
_FACTORIES = ("empty.memory_format", "empty_strided", "zeros", "ones", "full", "arange.start_step")
# their sizes hang on values, which a host must read before it can go on
_READS_VALUES = ("nonzero", "masked_select", "_unique2", "unique_dim", "equal", "bincount")
_MAY_MIX = ("copy_", "_to_copy")  # what moves tensors between devices
_HALVED = ("conv2d", "conv_transpose2d.input")  # that autocast runs in a lower precision


@dataclass(frozen=True)
class Crossing:
    """Values that went between host and device: which way, how many, and on whose behalf."""

    way: str  # "up", "down", or the operation that needs values to know its result's size
    numel: int
    is_waited_for: bool
    where: str  # the innermost function of the package, as "augment.coordinates"; not `to_device`


_crossings: list[Crossing] | None = None
_missing: set[torch.dtype] = set()
_generator = torch.Generator()


class OnDevice(torch.Tensor):
    """A tensor of the device; `raw` holds its values."""

    raw: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        if raw.dtype in _missing:
            raise TypeError(f"Cannot convert to {raw.dtype}: the framework doesn't support it")
        tensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
        )
        tensor.raw = raw
        return tensor

    def __init__(self, raw: torch.Tensor) -> None:
        super().__init__()

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        """The tensor without its history; what is set is taken over, values and all."""
        return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other: OnDevice) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.raw = other.raw

    def __repr__(self) -> str:  # type: ignore[override]
        return f"on the device: {self.raw!r}"

    def tolist(self) -> Any:
        """Return the values; the wrapper alone keeps PyTorch from doing so."""
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be stored as values, which a reader without such a device gets by ``map_location``."""
        _note("down", self.numel())
        return self.raw.detach().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = function._schema.name.removeprefix("aten::")
        _check_devices(name, args, kwargs)
        if name == "_to_copy":
            return _copied(args[0], kwargs)
        if name == "copy_":
            way = "up" if isinstance(args[0], cls) else "down"
            if not (isinstance(args[0], cls) and isinstance(args[1], cls)):
                _note(way, args[0].numel(), waits=not kwargs.get("non_blocking", _third(args)))
        elif name == "_local_scalar_dense":
            _note("down", 1)
        elif name in _READS_VALUES or _is_masked(name, args):
            _note(name, args[0].numel())
        plain_args, plain = tree_map(_raw, (args, kwargs))
        if "device" in plain:
            plain["device"] = torch.device("cpu")
        with _own_random_state(torch.Tag.nondeterministic_seeded in function.tags):
            out = function(*plain_args, **plain)
        # in inference mode, too, a view of a usual tensor is one
        is_usual = function.is_view and not args[0].is_inference()
        with torch.inference_mode(torch.is_inference_mode_enabled() and not is_usual):
            wrapped = tree_map(lambda x: cls(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(function, args, kwargs, wrapped)


def _third(args: tuple) -> bool:
    return bool(args[2]) if len(args) > 2 else False


def _raw(x: Any) -> Any:
    return x.raw if isinstance(x, OnDevice) else x


def _check_devices(name: str, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise as a GPU does where a tensor of the host is among its own.

    Of one value it may be, where operations take numbers, but not in a list, as of `torch.stack`.
    """
    if name in _MAY_MIX:
        return
    for argument in (*args, *kwargs.values()):
        is_list = isinstance(argument, (list, tuple))
        for x in argument if is_list else (argument,):
            is_ours = not isinstance(x, torch.Tensor) or isinstance(x, OnDevice)
            if not is_ours and (x.dim() or is_list):
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {name} got "
                    f"{tuple(x.shape)} on {x.device} and others on {NAME}"
                )


def _copied(tensor: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """Do `Tensor.to`: between devices, types and memory formats."""
    target = torch.device(kwargs.pop("device", None) or NAME)
    waits = not kwargs.pop("non_blocking", False)
    copied = torch.ops.aten._to_copy(_raw(tensor), **kwargs)
    if target.type == NAME:
        return OnDevice(copied)
    _note("down", tensor.numel(), waits=waits)
    return copied


def _is_masked(name: str, args: tuple) -> bool:
    """Tell whether values are chosen by a mask, whose sum the host must know."""
    is_index = name in ("index", "index_put", "index_put_")
    return is_index and any(x is not None and x.dtype == torch.bool for x in args[1])


def _note(way: str, numel: int, *, waits: bool = True) -> None:
    if _crossings is None:
        return
    frame, where = sys._getframe(1), ""
    while frame is not None and not where:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE) and frame.f_code.co_name != "to_device":
            where = f"{Path(file).stem}.{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    _crossings.append(Crossing(way, numel, waits, where))


@contextmanager
def _own_random_state(is_random: bool) -> Iterator[None]:
    """Draw from the device's own generator meanwhile."""
    if not is_random:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(_generator.get_state())
    try:
        yield
    finally:
        _generator.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


class _Module:
    """What ``torch.pretended`` offers, as ``torch.cuda`` does."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return torch.bfloat16 not in _missing

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed(self, seed: int) -> None:
        _generator.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        _generator.manual_seed(seed)

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return _generator.get_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        _generator.set_state(state)

    def get_device_name(self, device: Any = None) -> str:
        return "a GPU that is none"

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_library: list[torch.library.Library] = []


def register_if_possible() -> bool:
    """Make the device known to PyTorch, once in a process, before the first gradient of it."""
    from torch.utils import backend_registration

    setup = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if setup is None:
        return False
    if not _library:
        setup(NAME, backend_module=_Module())
        library = torch.library.Library("aten", "IMPL")
        for name in _FACTORIES:
            library.impl(name, _factory(name), "PrivateUse1")
        for name in _HALVED:
            library.impl(name, _in_lower_precision(name), "AutocastPrivateUse1")
        library.impl("_copy_from", _copy_from, "PrivateUse1")
        others = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
        others.fallback(torch.library.fallthrough_kernel)
        _library.extend((library, others))  # what is registered lives as long as these
    return True


def register() -> torch.device:
    """Return the device; skip the test where PyTorch takes none that is written in Python.

    Nor where there is a real one: gradients are computed on one kind of device in a process.
    """
    if torch.cuda.is_available():
        pytest.skip("a real GPU is here: its tests run with -m gpu")
    if not register_if_possible():
        pytest.skip(f"PyTorch {torch.__version__} takes no device written in Python")
    return torch.device(NAME, 0)


def _operation(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _factory(name: str) -> Any:
    def make(*args: Any, device: Any = None, **kwargs: Any) -> OnDevice:
        return OnDevice(_operation(name)(*args, device=torch.device("cpu"), **kwargs))

    return make


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    """Fill what ``torch.tensor(..., device=...)`` makes."""
    _note("up", source.numel(), waits=not non_blocking)
    _raw(target).copy_(_raw(source))
    return target


def _in_lower_precision(name: str) -> Any:
    """Return an operation as autocast runs it: floating-point arguments in its precision."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(x: Any) -> Any:
        is_float = isinstance(x, torch.Tensor) and x.dtype == torch.float32
        return x.to(torch.get_autocast_dtype(NAME)) if is_float else x

    def run(*args: Any, **kwargs: Any) -> torch.Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return _operation(name)(*map(cast, args), **kwargs)

    return run


@contextmanager
def watched() -> Iterator[list[Crossing]]:
    """Give the list of what crosses meanwhile."""
    global _crossings
    before, _crossings = _crossings, []
    try:
        yield _crossings
    finally:
        _crossings = before


@contextmanager
def lacking(*types: torch.dtype) -> Iterator[None]:
    """Let the device have no tensors of these types, as mps has none of float64."""
    _missing.update(types)
    try:
        yield
    finally:
        _missing.difference_update(types)
