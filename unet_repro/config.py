"""Every number of the paper, once, and the dataclasses that carry a run's settings.

Ronneberger, Fischer, Brox: U-Net, MICCAI 2015 (arXiv 1505.04597). A default is the paper's value
with its section beside it; what the paper leaves open is marked ``not in the paper``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unet_repro.errors import InputError
from unet_repro.quantities import seconds

# The network, Sec. 2 and Fig. 1
DEPTH = 4  # poolings; Fig. 1
BASE_CHANNELS = 64  # Fig. 1
TILE_INPUT_PX = 572  # Fig. 1
TILE_OUTPUT_PX = 388  # Fig. 1
# Training, Sec. 3
MOMENTUM = 0.99  # Sec. 3
BATCH_SIZE = 1  # Sec. 3: "a single image"
W0 = 10.0  # Eq. 2
LARGEST_W0 = 1e30  # weights are float32
SIGMA_PX = 5.0  # Eq. 2: "approximately 5 pixels"
HE_GAIN = 2.0  # Sec. 3: standard deviation sqrt(2 / N)
# Augmentation, Sec. 3.1
ELASTIC_GRID = 3  # "a coarse 3 by 3 grid"
ELASTIC_SIGMA_PX = 10.0  # "10 pixels standard deviation"
# The EM challenge, Sec. 4, Table 1 (6 March 2015): warping, Rand and pixel error
TABLE_1 = {
    "human values": (0.000005, 0.0021, 0.0010),
    "u-net": (0.000353, 0.0382, 0.0611),
    "DIVE-SCI": (0.000355, 0.0305, 0.0584),
    "IDSIA": (0.000420, 0.0504, 0.0613),
    "DIVE": (0.000430, 0.0545, 0.0582),
    "IDSIA-SCI": (0.000653, 0.0189, 0.1027),
}
# Cell tracking, Sec. 4, Table 2: IOU of the u-net
TABLE_2 = {"PhC-U373": 0.9203, "DIC-HeLa": 0.7756}

# The release of 2015-10-02 (not in the paper)
DROPOUT = 0.5

FINE_TUNING_RATE = 0.1  # of the preset's learning rate, to go on from a model; not in the paper

SHARD_PX = 1536  # side of what is kept as one file of an OME-Zarr output
LARGEST_ELASTIC_GRID = 1024  # points a side; more are not coarse, and would fill the memory
ImageInterpolation = Literal["bilinear", "bicubic"]
Preset = Literal["paper", "release", "port", "quick", "robust"]
_MOST_CLASSES = 256  # of labels
_MOST_AT_ONCE = 65_536  # tiles in a step, px of a tile's side: beyond any memory


def check_seed(seed: int) -> None:
    """Raise an `InputError` if the random numbers cannot begin with it, or with its successors."""
    if not 0 <= seed < 2**62:
        raise InputError(f"seed is {seed}: it must lie in [0, 2^62)")


@dataclass(frozen=True)
class UNetConfig:
    """The network's shape. The defaults are the paper's Fig. 1: 31,030,658 parameters.

    Parameters
    ----------
    in_channels
        Channels of the image.
    classes
        Channels of the output: classes 0 ... classes - 1. More than 2 are trained with labels
        that are classes.
    depth
        Number of 2x2 max-poolings; the channels double at each.
    base_channels
        Channels of the first level.
    dropout
        Probability at the end of the contracting path: after the second ReLU of the last level
        before the bottom and of the bottom. Not in the paper: rate and places (the release's).
    dropped_skip
        The skip of that last level carries the dropped activations (release), not the undropped.
    up_relu
        A ReLU after every up-convolution (release); Fig. 1 and the text show none.
    wide_last_up
        The last up-convolution keeps its input's channels (release).
    padding
        3x3 convolutions padded by 1: the output is as large as the input (port).
    batch_norm
        Batch normalisation and no bias in the 3x3 convolutions (port).
    bilinear
        Bilinear upsampling instead of the up-convolution (port).
    input_mean, input_std
        ``(x - mean) / std`` is the network's first operation, so that images go in with the grey
        values they have. One value, or one per channel. Not in the paper: no normalisation is
        stated; without any normalisation layer, uncentred input trains badly.
    """

    in_channels: int = 1
    classes: int = 2
    depth: int = DEPTH
    base_channels: int = BASE_CHANNELS
    dropout: float = DROPOUT
    dropped_skip: bool = False
    up_relu: bool = False
    wide_last_up: bool = False
    padding: bool = False
    batch_norm: bool = False
    bilinear: bool = False
    input_mean: tuple[float, ...] = (0.0,)
    input_std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name, least in (("in_channels", 1), ("classes", 2), ("depth", 1), ("base_channels", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= 2**16:
                raise InputError(
                    f"{name} is {value!r:.60}: it must be an integer, {least} or more (to 65536)"
                )
        if self.depth > 8:
            raise InputError(f"depth is {self.depth}: at most 8 (the paper's network has {DEPTH})")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout is {self.dropout}: a probability in [0, 1) is needed")
        if self.bilinear and (self.up_relu or self.wide_last_up):
            raise InputError(
                "bilinear upsampling has no up-convolution: "
                "up_relu and wide_last_up must be False with it"
            )
        if self.bilinear and self.base_channels % 2:
            raise InputError(
                f"base_channels is {self.base_channels}: bilinear upsampling halves the channels "
                "inside a block and needs an even number"
            )
        if self.dropped_skip and not self.dropout:
            raise InputError("dropped_skip needs dropout > 0: there is nothing to drop")
        for name in ("input_mean", "input_std"):
            given = getattr(self, name)
            values = (given,) if isinstance(given, Real) else given
            # numpy's numbers would make the network compute in float64
            object.__setattr__(self, name, tuple(float(value) for value in values))
            if len(getattr(self, name)) not in (1, self.in_channels):
                raise InputError(
                    f"{name} has {len(getattr(self, name))} values: one, or one for each of the "
                    f"{self.in_channels} channels, is needed"
                )
        if not all(math.isfinite(mean) for mean in self.input_mean):
            raise InputError(f"input_mean is {self.input_mean}: every value must be finite")
        if not all(0 < std < math.inf for std in self.input_std):
            raise InputError(
                f"input_std is {self.input_std}: every value must be above 0 and finite"
            )


@dataclass(frozen=True)
class AugmentationConfig:
    """Ranges from which one training sample's augmentation is drawn (Sec. 3.1).

    Shift needs no range: a tile's centre lies anywhere in the slice.
    """

    rotation_deg: float = 180.0  # +-; not in the paper: "rotation invariance", no range
    elastic_sigma_px: float = ELASTIC_SIGMA_PX  # Sec. 3.1
    elastic_grid: int = ELASTIC_GRID  # Sec. 3.1
    contrast: float = 0.2  # slope 1 +- this about the mean; not in the paper
    brightness: float = 0.2  # +- this many standard deviations; not in the paper
    flips: bool = False  # the paper does not mention flips
    # of the image; not in the paper. Bilinear (the authors' later code) smooths away noise that
    # the images to be predicted have; bicubic (Keys) keeps more of it
    interpolation: ImageInterpolation = "bilinear"
    # share of samples that are cut out, turned by multiples of 90 degrees and flipped, but neither
    # turned otherwise nor deformed; not in the paper. Nothing is interpolated there: noise and the
    # borders of labels are those of the images to be predicted
    unwarped: float = 0.0
    # against images of other microscopes; not in the paper, and none by default. Samples that are
    # unwarped have none of the three
    scale: float = 0.0  # magnified by 1 / (1 + this) ... 1 + this, evenly in its logarithm
    blur_px: float = 0.0  # standard deviation of a Gaussian blur, 0 ... this
    noise: float = 0.0  # white Gaussian noise of 0 ... this standard deviations

    def __post_init__(self) -> None:
        amounts = ("rotation_deg", "elastic_sigma_px", "contrast", "brightness")
        for name in (*amounts, "scale", "blur_px", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more, finite")
        if not 2 <= self.elastic_grid <= LARGEST_ELASTIC_GRID:
            raise InputError(
                f"elastic_grid is {self.elastic_grid}: 2 to {LARGEST_ELASTIC_GRID} points a side"
            )
        if self.contrast >= 1:
            raise InputError(f"contrast is {self.contrast}: it must stay below 1")
        for name, most in (("scale", 7.0), ("blur_px", 32.0)):
            if getattr(self, name) > most:
                raise InputError(f"{name} is {getattr(self, name)}: {most:.0f} at most")
        if not 0 <= self.unwarped <= 1:
            raise InputError(f"unwarped is {self.unwarped}: a share in [0, 1] is needed")


@dataclass(frozen=True)
class WeightMapConfig:
    """Settings of the weight map, and of the classes it is for (Sec. 3, Eq. 2).

    Parameters
    ----------
    w0, sigma
        Height of the border term and its width in px.
    class_balance
        frequency: both classes weigh the same in total; none: 1 everywhere.
    separate_touching
        Cells that touch, or lie no more than `separation_px` apart, get a ridge of background
        between them: the paper's "separation border", made by morphological operations.
    separation_px
        The pixels of a cell that lie so near to another cell become ridge. Not in the paper; the
        authors' later code has 1.
    """

    w0: float = W0  # Eq. 2
    sigma: float = SIGMA_PX  # Eq. 2
    class_balance: Literal["frequency", "none"] = "frequency"  # not in the paper: how
    separate_touching: bool = False
    separation_px: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.w0 <= LARGEST_W0:
            raise InputError(f"w0 is {self.w0}: a number from 0 to {LARGEST_W0:g} is needed")
        if not 0 < self.sigma < math.inf:
            raise InputError(f"sigma is {self.sigma}: it must be above 0, finite")
        if not 0 <= self.separation_px < math.inf:
            raise InputError(f"separation_px is {self.separation_px}: 0 or more, finite is needed")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run; the defaults are the preset ``paper``.

    Parameters
    ----------
    preset
        The named set of values that the others start from.
    init
        A model file whose network, weights and all, the run begins from; empty for random weights.
        Its shape and classes are taken over; dropout may be another. The optimiser is fresh, and
        --learning-rate by default a tenth of the preset's. A resumed run does without the file;
        where it is there, its weights must be the same.
    input_statistics
        Of what --init begins from: model keeps its input mean and deviation, so that images must
        be like those that it was trained on; images measures them on the training slices.
    val
        Held-out slices: 25:30 (25 ... 29), 3,7,12:15, 20% (a block at the end, rounded up), or
        names of a folder's images, such as a,b. What can be numbers is: 7 is the eighth image,
        7.png the one of that name. Empty for none.
    iterations
        Optimiser steps; 0 for as many as the time budget allows or, without one, for the preset's
        number (`PRESET_ITERATIONS`).
    time_budget
        Training stops cleanly after so long ("90s", "10m", "2h"); empty for no limit. The learning
        rate follows whichever is further on, iterations or time: a run that must be repeated to
        the bit names its iterations instead.
    patience
        Training stops cleanly after so many validations in a row without a pixel error below the
        lowest one before; 0 for never. The learning rate follows the run's whole length anyway.
    tile
        Side of the input tile in px (padded networks: side of input and output).
    batch_size
        Tiles in a step, in each of the processes that torchrun has started.
    device
        auto: CUDA where there is one, else the CPU; or any that PyTorch knows, such as cpu, cuda:1
        (the second) or xpu. It needs float64, which mps has not.
    deterministic
        Use no operation whose result may differ from time to time (GPU; slower). A CPU needs no
        such rule.
    compile
        Train through torch.compile: the first step takes a minute, the others may be faster.
    """

    preset: Preset = "paper"
    model: UNetConfig = field(default_factory=UNetConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    weight_map: WeightMapConfig = field(default_factory=WeightMapConfig)
    init: str = ""
    input_statistics: Literal["model", "images"] = "model"
    val: str = ""
    iterations: int = 0
    time_budget: str = ""
    patience: int = 0
    tile: int = TILE_INPUT_PX
    batch_size: int = BATCH_SIZE
    optimizer: Literal["sgd", "adam"] = "sgd"  # Sec. 3; adam: with decoupled weight decay
    momentum: float = MOMENTUM  # Sec. 3
    learning_rate: float = 3e-3  # not in the paper; with momentum 0.99, 3e-2 is too high
    warmup_iterations: int = 500  # not in the paper
    schedule: Literal["constant", "cosine"] = "cosine"  # not in the paper
    weight_decay: float = 0.0  # not in the paper
    weight_average: float = 0.0  # decay of a running mean of the weights; 0 for none
    validate_every: int = 500
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    deterministic: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "validate_every", "tile"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        for name in ("batch_size", "tile"):
            if getattr(self, name) > _MOST_AT_ONCE:
                raise InputError(f"{name} is {getattr(self, name)}: at most {_MOST_AT_ONCE}")
        if self.time_budget:
            seconds(self.time_budget)
        for name in ("iterations", "weight_decay", "warmup_iterations", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: it must be 0 or more, finite")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}: above 0 and finite is needed")
        check_seed(self.seed)
        if self.model.classes > _MOST_CLASSES:
            raise InputError(
                f"classes is {self.model.classes}: labels hold {_MOST_CLASSES} at most"
            )
        if self.model.batch_norm and self.weight_average:
            raise InputError(
                "weight_average with batch_norm: averaged weights do not fit the running "
                "statistics of the last ones; set weight_average to 0"
            )
        for name in ("momentum", "weight_average"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must lie in [0, 1)")


MODELS: dict[Preset, UNetConfig] = {
    "paper": UNetConfig(),
    "release": UNetConfig(dropped_skip=True, up_relu=True, wide_last_up=True),
    "port": UNetConfig(padding=True, batch_norm=True, dropout=0.0),
    "quick": UNetConfig(base_channels=16, dropout=0.0),
    "robust": UNetConfig(base_channels=16, dropout=0.0),
}

PRESETS: dict[Preset, TrainConfig] = {
    "paper": TrainConfig(),
    "release": TrainConfig(preset="release", model=MODELS["release"]),
    "port": TrainConfig(
        preset="port",
        model=MODELS["port"],
        tile=512,
        optimizer="adam",
        momentum=0.9,
        learning_rate=1e-3,
    ),
    "quick": TrainConfig(
        preset="quick",
        model=MODELS["quick"],
        augmentation=AugmentationConfig(flips=True, interpolation="bicubic"),
        weight_map=WeightMapConfig(w0=2.0, class_balance="none"),
        tile=380,
        optimizer="adam",
        momentum=0.9,
        learning_rate=1e-3,
        warmup_iterations=50,
        weight_average=0.99,
        validate_every=500,
        precision="auto",
    ),
}

# quick, for images of other microscopes: chosen on the EM challenge's slices 0-24 (TRIALS.md)
PRESETS["robust"] = replace(
    PRESETS["quick"],
    preset="robust",
    augmentation=AugmentationConfig(
        flips=True,
        interpolation="bicubic",
        unwarped=0.3,
        contrast=0.5,
        brightness=1.2,
        scale=0.3,
        blur_px=1.0,
        noise=0.4,
    ),
)

Config = TypeVar("Config")
_HUGE = 1e300  # beyond any setting; JSON can hold integers that no float can

PRESET_ITERATIONS: dict[Preset, int] = {  # not in the paper
    "paper": 30_000,
    "release": 30_000,
    "port": 3_000,
    "quick": 5_000,
    "robust": 20_000,
}


def keywords_from(settings_class: type) -> Callable[[Callable], Callable]:
    """Let a function that takes ``settings`` take their fields as keywords as well.

    The signature that `help` and editors show has the fields; what is none is a TypeError.

    Examples
    --------
    >>> @keywords_from(AugmentationConfig)
    ... def flipped(image, *, settings):
    ...     return settings.flips
    >>> flipped(0), flipped(0, flips=True), flipped(0, settings=AugmentationConfig(flips=True))
    (False, True, True)
    """
    fields = [field.name for field in dataclasses.fields(settings_class)]

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            given = {name: options.pop(name) for name in fields if name in options}
            if "settings" in options and given:
                raise TypeError(f"settings is given, and {', '.join(given)} as well")
            if "settings" not in options:
                options["settings"] = settings_class(**given)
            return function(*arguments, **options)

        shown = []
        for parameter in inspect.signature(function).parameters.values():
            is_expanded = parameter.name == "settings"
            own = inspect.signature(settings_class).parameters.values()
            shown += [p.replace(kind=p.KEYWORD_ONLY) for p in own] if is_expanded else [parameter]
        call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return call

    return decorate


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration dataclass as plain dicts, lists and scalars (JSON-ready)."""
    return dataclasses.asdict(config)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings within settings as ``group.name``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        is_group = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if is_group else {prefix + name: value}
    return found


def from_dict(cls: type[Config], values: Any) -> Config:
    """Build a settings dataclass from `to_dict`'s output; `InputError` for what does not fit."""
    if not isinstance(values, dict):
        raise InputError(f"{cls.__name__} needs an object with its fields, not {values!r:.60}")
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise InputError(
            f"unknown {cls.__name__} key {unknown[0]!r:.60}; known: {', '.join(hints)}"
        )
    return cls(**{key: _checked(cls, key, hints[key], value) for key, value in values.items()})


def _checked(cls: type, key: str, hint: Any, value: Any) -> Any:
    """Return `value` as the field's type, or raise."""
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value)  # type: ignore[arg-type]
    good: Any = None
    if get_origin(hint) is Literal:
        good = value if value in get_args(hint) else None
    elif get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        good = tuple(float(v) for v in value if type(v) in (int, float) and abs(v) < _HUGE)
        good = good if len(good) == len(value) else None
    elif hint is float and type(value) in (int, float):
        good = float(value) if abs(value) < _HUGE else None
    elif type(value) is hint:
        good = value
    if good is None:
        raise InputError(f"{cls.__name__}.{key} cannot be {value!r:.60}")
    return good
