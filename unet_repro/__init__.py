"""The U-Net of 2015 (Ronneberger, Fischer, Brox; arXiv 1505.04597), exactly."""

import os
import signal
import sys

# Ctrl-C while our own programs load their libraries ends them without a traceback; `program`
# listens again. Programs of others keep their handlers.
if os.path.basename("".join(sys.argv[:1])) in ("-m", "unet-repro"):  # python -m unet_repro
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from unet_repro._version import __version__
from unet_repro.augmentation.augment import elastic_deformation
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.metrics import em_challenge_metrics
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predict_stack import predict_stack
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.weight_maps.weight_map import weight_map

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
