"""Masks and instances that `predict_stack` writes: tiles, folders, resuming, plans, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from scipy import ndimage

from unet_repro.cli import main
from unet_repro.config import TrainConfig, UNetConfig, WeightMapConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.images.calibration import read_info
from unet_repro.images.stacks import read_labels, write_stack
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.components import components
from unet_repro.prediction.growing import grown
from unet_repro.prediction.outputs import Destination
from unet_repro.prediction.predict_stack import predict_stack, prepared
from unet_repro.prediction.recorded import recorded_full_scale
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner

TILE: dict[str, Any] = {"tile": 76}  # keeps 40 px: 2 x 3 tiles of 70 x 90 px
SHAPE = UNetConfig(depth=2, base_channels=4, input_mean=(100.0,), input_std=(50.0,))


@pytest.fixture(scope="module")
def model() -> UNet:
    return UNet(SHAPE, generator=torch.Generator().manual_seed(0)).eval()


def smooth_stack(*shape: int) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal(shape)
    return (128 + 400 * ndimage.gaussian_filter(values, (0, 2, 2))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_stack(path, smooth_stack(3, 70, 90), voxel_size_um=(0.05, 0.004, 0.008))
    return path


def labelled(mask: np.ndarray, min_size: int = 0) -> np.ndarray:
    return np.stack([components(slice_, min_size=min_size) for slice_ in mask])


@pytest.mark.parametrize("options", [{}, {"threshold": 0.45}, {"roi": "5:66,3:88", "z": "1:3"}])
def test_masks_and_instances_are_made_of_the_labels(
    model: UNet, source: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    def predicted(kind: Any, **more: Any) -> np.ndarray:
        out = tmp_path / "o.tif"
        predict_stack(
            source, model, out, kind=kind, overwrite=True, verify=True, **TILE, **options, **more
        )
        return tifffile.imread(out)

    labels = predicted("labels")
    assert 0.05 < labels.mean() < 0.95
    mask = predicted("mask")
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, 255 * labels)
    expected = labelled(labels)
    assert expected.max() > 10
    np.testing.assert_array_equal(predicted("instances"), expected)
    np.testing.assert_array_equal(predicted("instances", min_size=9), labelled(labels, 9))
    together = [np.concatenate(list(grown([page.astype(np.uint16)], 2))) for page in expected]
    np.testing.assert_array_equal(predicted("instances", grow=2), together)


def test_a_mask_of_several_classes_is_of_all_above_0(source: Path, tmp_path: Path) -> None:
    network = UNet(UNetConfig(depth=1, base_channels=4, classes=4, input_std=(50.0,))).eval()
    labels, mask = (
        tifffile.imread(
            predict_stack(source, network, tmp_path / f"{kind}.tif", kind=kind, verify=True)
        )
        for kind in ("labels", "mask")
    )
    np.testing.assert_array_equal(mask, np.where(labels > 0, 255, 0))


@pytest.mark.parametrize(("pixels", "dtype"), [(20, "uint8"), (40, "uint16"), (380, "uint32")])
def test_ids_take_the_smallest_dtype_of_the_stack(
    tmp_path: Path, pixels: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slices of 1 and of pixels² / 2 instances: a chessboard."""
    board = np.indices((pixels, pixels)).sum(axis=0) % 2
    stack = np.stack([board * 0, board]).astype(np.uint8)
    stack[0, 0, 0] = 1
    write_stack(tmp_path / "s.tif", stack)
    network = UNet(UNetConfig(depth=1, base_channels=1)).eval()
    _reads_the_image(monkeypatch)
    out = predict_stack(tmp_path / "s.tif", network, tmp_path / "o.tif", kind="instances")
    found = tifffile.imread(out)
    assert found.dtype == dtype and found[1].max() == pixels**2 // 2 and found[0].max() == 1
    np.testing.assert_array_equal(found, labelled(stack))
    with tifffile.TiffFile(out) as file:
        assert file.is_ome == (dtype == "uint32")
    np.testing.assert_array_equal(read_labels(out), found)
    if dtype == "uint32":
        (tmp_path / "in").mkdir()
        (tmp_path / "in/a.png").write_bytes(imagecodecs.png_encode(stack[1]))
        with pytest.raises(InputError, match="more than 65535 instances, too many for PNG: --out"):
            predict_stack(tmp_path / "in", network, tmp_path / "out", kind="instances")


def _reads_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a network say "cell" with certainty where the image is above 0."""

    def compute(self: TileRunner, region: Any, *_: Any, **__: Any) -> np.ndarray:
        rows, columns = (
            slice(s.tile.start - s.extent.start, s.tile.stop - s.extent.start)
            for s in (region.rows, region.columns)
        )
        cell = (region.pixels[rows, columns, 0] > 0).astype(np.float32)
        return np.stack([1 - cell, cell])

    monkeypatch.setattr(TileRunner, "compute", compute)


@pytest.mark.parametrize("sizes", [[(70, 90)] * 2, [(70, 90), (31, 44)]])
def test_png_folders_stay_png(model: UNet, tmp_path: Path, sizes: list[tuple[int, int]]) -> None:
    (tmp_path / "in").mkdir()
    for k, size in enumerate(sizes):
        content = imagecodecs.png_encode(smooth_stack(1, *size)[0])
        (tmp_path / f"in/{k}.png").write_bytes(content)

    def read(folder: str, **options: Any) -> list[np.ndarray]:
        out = predict_stack(tmp_path / "in", model, tmp_path / folder, **TILE, **options)
        assert sorted(file.name for file in out.iterdir()) == ["0.png", "1.png"]
        return [imagecodecs.png_decode((out / f"{k}.png").read_bytes()) for k in range(2)]

    masks, found = read("mask", kind="mask"), read("ids", kind="instances", min_size=4)
    for mask, ids, size in zip(masks, found, sizes):
        assert mask.shape == size and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(ids, components(mask, min_size=4))


class Failure(Exception):
    pass


@pytest.mark.parametrize("place", ["tiles", "output"])
def test_resumed_is_byte_for_byte_the_same(
    model: UNet, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    options: dict[str, Any] = {"kind": "instances", "min_size": 3, "grow": 1, **TILE}
    undisturbed = predict_stack(source, model, tmp_path / "u.tif", **options)
    owner, name = {"tiles": (TileRunner, "compute"), "output": (Destination, "write")}[place]
    original, calls = getattr(owner, name), []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) > (7 if place == "tiles" else 0):
            raise Failure
        return original(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(Failure):
        patch.setattr(owner, name, failing)
        predict_stack(source, model, tmp_path / "o.tif", **options)
    for change, message in (
        ({"min_size": 4}, "settings.min_size 3, not 4"),
        ({"grow": 2}, "settings.grow 1.0, not 2.0"),
        ({"kind": "mask", "min_size": 0, "grow": "auto"}, 'settings.kind "instances", not "mask"'),
    ):
        with pytest.raises(InputError, match=message):
            predict_stack(source, model, tmp_path / "o.tif", resume=True, **(options | change))
    out = predict_stack(source, model, tmp_path / "o.tif", resume=True, **options)
    assert out.read_bytes() == undisturbed.read_bytes()


def test_growth_is_that_of_the_training(source: Path, tmp_path: Path) -> None:
    network, settings = UNet(SHAPE).eval(), TrainConfig()
    for how, expected in (
        (WeightMapConfig(), 0.0),
        (WeightMapConfig(separate_touching=True, separation_px=1.5), 1.5),
    ):
        training = {"settings": to_dict(settings) | {"weight_map": to_dict(how)}}
        save_model(network, tmp_path / "m.safetensors", training=training)
        assert load_model(tmp_path / "m.safetensors").separation_px == expected
        out = predict_stack(
            source, tmp_path / "m.safetensors", tmp_path / "o.tif", kind="instances", overwrite=True
        )
        assert json.loads(read_info(out) or "")["settings"]["grow"] == expected
    for training in ({}, {"settings": {"weight_map": [1]}}, {"settings": None}):
        save_model(network, tmp_path / "m.safetensors", training=training)
        assert load_model(tmp_path / "m.safetensors").separation_px == 0
    network.separation_px = 1e6
    with pytest.raises(InputError, match="at most 64 px; --grow says by how much"):
        predict_stack(source, network, tmp_path / "p.tif", kind="instances")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(min_size=5), "min_size goes with kind instances; the kind is probability"),
        (dict(kind="mask", grow=1.0), "grow goes with kind instances; the kind is mask"),
        (dict(kind="instances", min_size=-1), "min_size is -1: it must be 0 px or more"),
        (dict(kind="instances", grow=float("nan")), "grow is nan: auto, or 0 to 64 px is needed"),
        (dict(kind="instances", dtype="uint8"), "smallest of uint8, uint16, uint32 that holds all"),
        (dict(kind="mask", dtype="uint16"), "dtype is uint16: mask is stored as uint8"),
    ],
)
def test_bad_option_is_refused(
    model: UNet, source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict_stack(source, model, tmp_path / "o.tif", **options)


def test_plan_says_what_ids_may_take(model: UNet, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", shape=(3000, 2000), dtype="uint8", tile=(256, 256))
    peaks = []
    for options in ({"kind": "labels"}, {"kind": "instances"}, {"kind": "instances", "grow": 2.0}):
        chosen = PredictionSettings(**options, tile=556)  # type: ignore[arg-type]
        with prepared(tmp_path / "s.tif", model, tmp_path / "o.tif", chosen) as prediction:
            outlook = prediction.outlook()
        peaks.append(outlook.plan.peak_bytes)
    assert peaks[0] + 2**23 < peaks[1] < peaks[2] - 2**23
    assert outlook.output_bytes == 3000 * 2000 * 4
    assert "with uint32 ids (of few cells less), ImageJ TIFF in strips up to 65535" in str(outlook)


@pytest.mark.parametrize("kind", ["mask", "instances"])
def test_evaluate_reads_both(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, capsys: Any
) -> None:
    """Of a network without an error."""
    truth = np.zeros((2, 40, 50), np.uint8)
    truth[:, 3:12, 4:20], truth[:, 12:20, 20:30], truth[1, 30:38, 40:48] = 1, 2, 3
    write_stack(tmp_path / "s.tif", 90 * truth)
    write_stack(tmp_path / "truth.tif", truth)
    _reads_the_image(monkeypatch)
    network = UNet(UNetConfig(depth=1, base_channels=1)).eval()
    predict_stack(tmp_path / "s.tif", network, tmp_path / "p.tif", kind=kind)  # type: ignore[arg-type]
    command = ["evaluate", str(tmp_path / "truth.tif"), str(tmp_path / "p.tif"), "--task", "cells"]
    assert main([*command, "--json", str(tmp_path / "f.json")]) == 0
    assert json.loads((tmp_path / "f.json").read_text())["figures"] == {"iou": 1.0, "seg": 1.0}
    told = capsys.readouterr().err
    assert ("prediction: ids" if kind == "instances" else "prediction: P(interior)") in told
    if kind == "mask":
        assert recorded_full_scale(read_info(tmp_path / "p.tif")) == 255
