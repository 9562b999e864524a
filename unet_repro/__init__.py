"""The U-Net of 2015 (Ronneberger, Fischer, Brox; arXiv 1505.04597), exactly.

The names below are imported when they are first used: PyTorch takes seconds, which programs that
need other parts alone do not wait for.
"""

import importlib
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# Ctrl-C while our own programs load their libraries ends them without a traceback; `program`
# listens again. Programs of others keep their handlers.
if os.path.basename("".join(sys.argv[:1])) in ("-m", "unet-repro"):  # python -m unet_repro
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from unet_repro._version import __version__

if TYPE_CHECKING:
    from unet_repro.augmentation.augment import elastic_deformation
    from unet_repro.config import UNetConfig
    from unet_repro.errors import InputError
    from unet_repro.metrics import em_challenge_metrics
    from unet_repro.network.model import UNet
    from unet_repro.network.model_file import load_model, save_model
    from unet_repro.prediction.predict_stack import predict_stack
    from unet_repro.prediction.predictor import OverlapTilePredictor
    from unet_repro.weight_maps.weight_map import weight_map

_MODULES = {
    "InputError": "errors",
    "OverlapTilePredictor": "prediction.predictor",
    "UNet": "network.model",
    "UNetConfig": "config",
    "elastic_deformation": "augmentation.augment",
    "em_challenge_metrics": "metrics",
    "load_model": "network.model_file",
    "predict_stack": "prediction.predict_stack",
    "save_model": "network.model_file",
    "weight_map": "weight_maps.weight_map",
}

__all__ = [
    "InputError",
    "OverlapTilePredictor",
    "UNet",
    "UNetConfig",
    "__version__",
    "elastic_deformation",
    "em_challenge_metrics",
    "load_model",
    "predict_stack",
    "save_model",
    "weight_map",
]


def __getattr__(name: str) -> Any:
    """Import one of the package's names, or a part of the package (PEP 562)."""
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
