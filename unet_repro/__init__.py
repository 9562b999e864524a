"""The U-Net of 2015 (Ronneberger, Fischer, Brox; arXiv 1505.04597), exactly."""

from unet_repro import loading  # noqa: F401  # before all libraries
from unet_repro._version import __version__
from unet_repro.augment import elastic_deformation
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.metrics import em_challenge_metrics
from unet_repro.model import UNet, load_model, save_model
from unet_repro.predict import OverlapTilePredictor
from unet_repro.stack_prediction import predict_stack
from unet_repro.weight_map import weight_map

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
