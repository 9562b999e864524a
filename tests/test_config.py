"""The paper's numbers, and what the configurations refuse."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from unet_repro import config
from unet_repro.config import (
    MODELS,
    PRESET_ITERATIONS,
    PRESETS,
    AugmentationConfig,
    TrainConfig,
    UNetConfig,
    WeightMapConfig,
    from_dict,
    to_dict,
)
from unet_repro.errors import InputError


def test_defaults_are_the_papers() -> None:
    shape = UNetConfig()
    assert (shape.depth, shape.base_channels, shape.classes, shape.in_channels) == (4, 64, 2, 1)
    assert not (shape.padding or shape.batch_norm or shape.bilinear or shape.up_relu)
    assert not (shape.wide_last_up or shape.dropped_skip)
    assert shape.dropout == 0.5
    training = TrainConfig()
    assert (training.optimizer, training.momentum, training.batch_size) == ("sgd", 0.99, 1)
    assert training.tile == 572
    assert (WeightMapConfig().w0, WeightMapConfig().sigma) == (10, 5)
    assert (AugmentationConfig().elastic_grid, AugmentationConfig().elastic_sigma_px) == (3, 10)
    assert not AugmentationConfig().flips
    assert AugmentationConfig().unwarped == 0
    assert config.TABLE_1["u-net"] == (0.000353, 0.0382, 0.0611)
    assert config.TABLE_2 == {"PhC-U373": 0.9203, "DIC-HeLa": 0.7756}


def test_presets_are_what_they_are_called() -> None:
    assert MODELS["paper"] == UNetConfig()
    release = MODELS["release"]
    assert (release.dropped_skip, release.up_relu, release.wide_last_up) == (True, True, True)
    assert (MODELS["port"].padding, MODELS["port"].batch_norm) == (True, True)
    assert MODELS["quick"].base_channels == 16
    assert set(MODELS) == set(PRESETS) == set(PRESET_ITERATIONS)
    for name, preset in PRESETS.items():
        assert (preset.preset, preset.model) == (name, MODELS[name])
    for name in ("paper", "release"):
        assert (PRESETS[name].optimizer, PRESETS[name].momentum) == ("sgd", 0.99)  # type: ignore[index]


def test_configurations_cannot_be_changed() -> None:
    for frozen in (UNetConfig(), TrainConfig(), AugmentationConfig(), WeightMapConfig()):
        name = dataclasses.fields(frozen)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(frozen, name, 1)


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (UNetConfig, dict(in_channels=0), "in_channels is 0: it must be an integer, 1 or more"),
        (UNetConfig, dict(classes=1), "classes is 1: it must be an integer, 2 or more"),
        (UNetConfig, dict(depth=0), "depth is 0: it must be an integer, 1 or more"),
        (UNetConfig, dict(depth=9), r"depth is 9: at most 8 \(the paper's network has 4\)"),
        (UNetConfig, dict(depth=2.0), "depth is 2.0: it must be an integer"),
        (
            UNetConfig,
            dict(base_channels=-3),
            "base_channels is -3: it must be",
        ),
        (UNetConfig, dict(base_channels=10**6), "base_channels is 1000000: .*65536"),
        (UNetConfig, dict(dropout=1.0), r"dropout is 1.0: a probability in \[0, 1\)"),
        (UNetConfig, dict(dropout=-0.1), "dropout is -0.1"),
        (UNetConfig, dict(dropout=math.nan), "dropout is nan"),
        (
            UNetConfig,
            dict(bilinear=True, up_relu=True),
            "bilinear upsampling has no up-convolution",
        ),
        (
            UNetConfig,
            dict(bilinear=True, wide_last_up=True),
            "bilinear upsampling has no up-convolution",
        ),
        (UNetConfig, dict(bilinear=True, base_channels=5), "base_channels is 5: .* even number"),
        (UNetConfig, dict(dropped_skip=True, dropout=0.0), "dropped_skip needs dropout > 0"),
        (
            UNetConfig,
            dict(input_mean=(1.0, 2.0)),
            "has 2 values: one, or .* of the 1 ",
        ),
        (
            UNetConfig,
            dict(in_channels=3, input_std=(1.0, 1.0)),
            "input_std has 2 .* of the 3 ",
        ),
        (UNetConfig, dict(input_mean=(math.nan,)), "input_mean is .*: every value must be finite"),
        (UNetConfig, dict(input_std=(0.0,)), "input_std is .*: every value must be above 0"),
        (UNetConfig, dict(input_std=(math.inf,)), "input_std is .*above 0 and finite"),
        (TrainConfig, dict(batch_size=0), "batch_size is 0: it must be 1 or more"),
        (TrainConfig, dict(batch_size=65_537), "batch_size is 65537: at most 65536"),
        (TrainConfig, dict(tile=2**64), "tile is 18446744073709551616: at most 65536"),
        (TrainConfig, dict(patience=-1), "patience is -1: it must be 0 or more"),
        (TrainConfig, dict(validate_every=0), "validate_every is 0"),
        (TrainConfig, dict(iterations=-1), "iterations is -1: it must be 0 or more"),
        (TrainConfig, dict(time_budget="soon"), "'soon' is not a duration such as 90s"),
        (TrainConfig, dict(weight_decay=-1.0), "weight_decay is -1.0: it must be 0 or more"),
        (TrainConfig, dict(weight_decay=math.nan), "weight_decay is nan"),
        (TrainConfig, dict(learning_rate=0.0), "learning_rate is 0.0: above 0"),
        (TrainConfig, dict(learning_rate=math.nan), "learning_rate is nan"),
        (TrainConfig, dict(momentum=1.0), r"momentum is 1.0: it must lie in \[0, 1\)"),
        (TrainConfig, dict(weight_average=1.5), r"weight_average is 1.5: it must lie in \[0, 1\)"),
        (
            TrainConfig,
            dict(seed=2**62),
            r"seed is 46.*: it must lie in \[0, 2\^62\)",
        ),
        (
            TrainConfig,
            dict(model=UNetConfig(classes=257)),
            "classes is 257: labels hold 256 at most",
        ),
        (TrainConfig, dict(model=MODELS["port"], weight_average=0.9), "running statistics"),
        (AugmentationConfig, dict(rotation_deg=-1.0), "rotation_deg is -1.0: it must be 0"),
        (AugmentationConfig, dict(elastic_sigma_px=math.nan), "elastic_sigma_px is nan"),
        (AugmentationConfig, dict(elastic_grid=1), "elastic_grid is 1: 2 to 1024 points a side"),
        (
            AugmentationConfig,
            dict(elastic_grid=1025),
            "elastic_grid is 1025: 2 to 1024",
        ),
        (AugmentationConfig, dict(contrast=1.0), "contrast is 1.0: it must stay below 1"),
        (AugmentationConfig, dict(unwarped=1.1), "unwarped is 1.1: a share in"),
        (WeightMapConfig, dict(w0=-1.0), r"w0 is -1.0: a number from 0 to 1e\+30"),
        (WeightMapConfig, dict(sigma=0.0), "sigma is 0.0: it must be above 0"),
        (WeightMapConfig, dict(separation_px=math.inf), "separation_px is inf"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(**values)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_configuration_survives_json(preset: config.Preset) -> None:
    values = json.loads(json.dumps(to_dict(PRESETS[preset])))
    assert from_dict(TrainConfig, values) == PRESETS[preset]
    shape = UNetConfig(in_channels=2, input_mean=(1.5, 2.0), input_std=(3.0, 0.25))
    assert from_dict(UNetConfig, json.loads(json.dumps(to_dict(shape)))) == shape


def test_integer_stands_for_a_float_but_not_the_reverse() -> None:
    assert from_dict(UNetConfig, {"dropout": 0, "input_mean": [1]}).input_mean == (1.0,)
    with pytest.raises(InputError, match=r"UNetConfig.depth cannot be 4.0"):
        from_dict(UNetConfig, {"depth": 4.0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leaky": 0.1}, "unknown UNetConfig key 'leaky'; known: in_channels, classes, depth"),
        ({"depth": "4"}, "UNetConfig.depth cannot be '4'"),
        ({"depth": True}, "UNetConfig.depth cannot be True"),
        ({"depth": None}, "UNetConfig.depth cannot be None"),
        ({"dropout": True}, "UNetConfig.dropout cannot be True"),
        ({"padding": 1}, "UNetConfig.padding cannot be 1"),
        ({"input_mean": 0.5}, "UNetConfig.input_mean cannot be 0.5"),
        ({"input_mean": ["a"]}, r"UNetConfig.input_mean cannot be \['a'\]"),
        ({"depth": 0}, "depth is 0"),
        ([], r"UNetConfig needs an object with its fields, not \[\]"),
    ],
)
def test_foreign_values_are_refused(values: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(UNetConfig, values)


def test_nested_and_literal_fields_are_checked() -> None:
    with pytest.raises(InputError, match="unknown UNetConfig key 'w0'"):
        from_dict(TrainConfig, {"model": {"w0": 1}})
    with pytest.raises(InputError, match=r"TrainConfig\.optimizer cannot be 'rmsprop'"):
        from_dict(TrainConfig, {"optimizer": "rmsprop"})
    with pytest.raises(InputError, match=r"WeightMapConfig\.class_balance cannot be"):
        from_dict(TrainConfig, {"weight_map": {"class_balance": ["frequency"]}})
