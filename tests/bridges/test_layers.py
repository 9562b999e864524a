"""Layers are predicted as files are, keep their place, and a cancelled job goes on."""

from __future__ import annotations

import ast
import importlib
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import yaml

import unet_repro
from unet_repro import cli
from unet_repro.bridges import layers
from unet_repro.bridges.layers import (
    Cancelled,
    ImageLayer,
    LayerJob,
    Watch,
    phantom,
    session_folder,
    suggested_axes,
)
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings

PROBABILITY = PredictionSettings()


def saved(path: Path, **values: Any) -> str:
    shape = {"depth": 1, "base_channels": 2, "input_mean": (100.0,), "input_std": (60.0,)}
    network = UNet(UNetConfig(**{**shape, **values}), generator=torch.Generator().manual_seed(0))
    save_model(network, path)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    return saved(tmp_path / "model.safetensors")


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 40, 50), dtype=np.uint8)


def expected_of(model: str, image: np.ndarray) -> np.ndarray:
    """Return P(class) of one image, predicted in memory."""
    return OverlapTilePredictor(load_model(model))(image)


# --- results


def test_a_layer_is_predicted_as_the_command_line_does(tmp_path, model, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    for kind, more in (("probability", {}), ("instances", {"min_size": 4})):
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in more.items()]
        command = ["predict", str(tmp_path / "in.tif"), "--model", model, "--kind", kind]
        assert cli.main([*command, "--out", str(tmp_path / f"{kind}.tif"), *flags]) == 0
        expected = tifffile.imread(tmp_path / f"{kind}.tif")
        settings = PredictionSettings(kind=kind, **more)
        layer = ImageLayer("tissue", stack, "ZYX")
        ((values, options, layer_type),) = LayerJob(layer, model, settings).run(Watch())
        np.testing.assert_array_equal(values, expected)
        assert values.dtype == expected.dtype and values.shape == stack.shape
        assert options["name"] == f"tissue {kind}"
        assert layer_type == ("labels" if kind == "instances" else "image")
    assert not list(tmp_path.glob(".*"))  # nothing is left beside


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("YX", (40, 50)),
        ("ZYX", (1, 40, 50)),
        ("TYX", (2, 40, 50)),
        ("TZYX", (2, 3, 40, 50)),
        ("ZTYX", (2, 3, 40, 50)),
        ("TZYX", (2, 1, 40, 50)),
        ("CYX", (1, 40, 50)),
        ("TCZYX", (2, 1, 3, 40, 50)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*read as 6 slices in this order")
def test_each_plane_of_a_grey_layer_is_predicted_alone(model, axes, shape):
    data = np.random.default_rng(1).integers(0, 400, shape, dtype=np.uint16)
    placement = {
        "scale": tuple(range(1, len(axes) + 1)),
        "translate": tuple(range(10, 10 + len(axes))),
        "units": tuple(axes),
    }
    job = LayerJob(ImageLayer("a", data, axes, placement), model, PROBABILITY)
    ((values, options, _),) = job.run(Watch())
    kept = [i for i, axis in enumerate(axes) if axis != "C"]
    assert values.shape == tuple(shape[i] for i in kept)
    planes = data.reshape(-1, 40, 50)
    for plane, value in zip(planes, values.reshape(-1, 40, 50), strict=True):
        np.testing.assert_array_equal(value, expected_of(model, plane)[1])
    assert options["scale"] == tuple(i + 1 for i in kept)
    assert options["translate"] == tuple(i + 10 for i in kept)
    assert options["units"] == tuple(axes[i] for i in kept)


@pytest.mark.parametrize("axes", ["YXS", "ZYXS", "CYX", "CZYX", "ZCYX"])
def test_channels_and_classes(tmp_path, axes):
    model = saved(tmp_path / "three.safetensors", in_channels=3, classes=3)
    sizes = {"Z": 2, "C": 3, "S": 3, "Y": 40, "X": 50}
    shape = tuple(sizes[axis] for axis in axes)
    data = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    results = LayerJob(ImageLayer("rgb", data, axes), model, PROBABILITY).run(Watch())
    assert [options["name"][-10:] for _, options, _ in results] == [
        f"of class {k}" for k in range(3)
    ]
    letters = "".join(sorted(axes, key="ZCSYX".index))
    images = np.transpose(data, [axes.index(axis) for axis in letters]).reshape(-1, 3, 40, 50)
    expected = np.stack([expected_of(model, image) for image in images])
    for k, (values, _, _) in enumerate(results):
        assert values.shape == ((2, 40, 50) if "Z" in axes else (40, 50))
        np.testing.assert_array_equal(values.reshape(-1, 40, 50), expected[:, k])


@pytest.mark.filterwarnings("ignore:.*far from what the network expects")  # of a mask
@pytest.mark.parametrize("dtype", ["int16", "float64", "float16", ">f4", "uint32", "bool"])
def test_pixels_of_any_type_are_those_that_the_network_takes(model, stack, dtype):
    data = (stack > 128 if dtype == "bool" else stack[0] - 100.0).astype(dtype)
    data = data if data.ndim == 2 else data[0]
    ((values, *_),) = LayerJob(ImageLayer("a", data, "YX"), model, PROBABILITY).run(Watch())
    np.testing.assert_array_equal(values, expected_of(model, data.astype(np.float32))[1])


class Planes:
    """An array that is computed plane by plane, as a viewer's lazy arrays are."""

    def __init__(self, stack: np.ndarray) -> None:
        self.stack, self.shape, self.dtype = stack, stack.shape, stack.dtype

    def __getitem__(self, place: tuple[Any, ...]) -> np.ndarray:
        assert all(isinstance(i, int) for i in place) and len(place) == self.stack.ndim - 2
        return self.stack[place]


def test_lazy_layers_are_read_plane_by_plane(model, stack):
    lazy, eager = (
        LayerJob(ImageLayer("a", data, "ZYX"), model, PROBABILITY).run(Watch())[0][0]
        for data in (Planes(stack), stack)
    )
    np.testing.assert_array_equal(lazy, eager)


@pytest.mark.parametrize("classes", [2, 3])
def test_large_results_stay_in_their_file(tmp_path, stack, monkeypatch, classes):
    dask = pytest.importorskip("dask.array")
    model = saved(tmp_path / "classes.safetensors", classes=classes)
    job = LayerJob(ImageLayer("a", stack, "ZYX"), model, PROBABILITY)
    at_once = job.run(Watch())
    monkeypatch.setattr(layers, "IN_MEMORY_BYTES", 1)
    later = job.run(Watch())
    assert len(later) == len(at_once) == (1 if classes == 2 else 3)
    for (lazy, *_), (values, *_) in zip(later, at_once):
        assert isinstance(lazy, dask.Array) and lazy.chunksize == (1, 40, 50)
        np.testing.assert_array_equal(np.asarray(lazy), values)


def test_a_file_keeps_its_scale_and_its_result_is_the_file(tmp_path, model, stack):
    tifffile.imwrite(
        tmp_path / "in.tif", stack, imagej=True, resolution=(250, 200), resolutionunit=1,
        metadata={"axes": "ZYX", "spacing": 50, "unit": "nm"},
    )  # fmt: skip
    out = tmp_path / "out.tif"
    job = LayerJob(tmp_path / "in.tif", model, replace(PROBABILITY, kind="uint8"), out)
    ((values, options, layer_type),) = job.run(Watch())
    np.testing.assert_array_equal(values, tifffile.imread(out))
    assert layer_type == "image" and options["contrast_limits"] == (0, 255)
    assert options["scale"] == pytest.approx((50, 1 / 200, 1 / 250))
    assert options["units"] == ("nm", "nm", "nm")
    tifffile.imwrite(tmp_path / "one.tif", stack[0])
    job = replace(job, source=tmp_path / "one.tif", out=tmp_path / "one_out.tif")
    ((values, options, _),) = job.run(Watch())
    assert values.shape == (40, 50)
    assert options["scale"] == (1, 1) and options["units"] == ("pixel", "pixel")


# --- cancelled and resumed


class CancelsAt(Watch):
    """Cancels when so many tiles are done."""

    def __init__(self, tile: int) -> None:
        super().__init__()
        self.tile = tile

    def update(self, n: int = 1) -> None:
        if self.done + n >= self.tile:
            self.cancel()
        super().update(n)


@pytest.mark.parametrize("has_place", [True, False])
def test_a_cancelled_job_goes_on_and_gives_the_same(tmp_path, model, stack, has_place):
    whole = tmp_path / "whole.tif" if has_place else None
    tiles = replace(PROBABILITY, tile=36)  # 20 to a side of 40 x 50 px: 2 x 3
    layer = ImageLayer("a", stack, "ZYX")
    uncancelled = LayerJob(layer, model, tiles, out=whole)
    out = tmp_path / "out.tif" if has_place else None
    job = replace(uncancelled, out=out)
    first = CancelsAt(7)
    with pytest.raises(Cancelled):
        job.run(first)
    assert (first.done, first.total) == (7, 18)
    assert out is None or not out.exists()
    again = Watch()
    ((values, *_),) = job.run(again)
    assert (again.done, again.total) == (18, 18)
    counts: list[int] = []
    fresh = ImageLayer("a", stack[::-1][::-1].copy(), "ZYX")  # the same pixels, of another session
    monitored = CancelsAt(10**9)
    monitored.update = lambda n=1: counts.append(n)  # type: ignore[method-assign]
    ((expected, *_),) = replace(uncancelled, source=fresh).run(monitored)
    np.testing.assert_array_equal(values, expected)
    if has_place:
        assert counts == [0, *[1] * 18]
        assert out.read_bytes() == whole.read_bytes()  # type: ignore[union-attr]
    else:
        assert counts == []  # it is there


def test_what_was_done_is_not_done_again(tmp_path, model, stack):
    job = LayerJob(
        ImageLayer("a", stack, "ZYX"), model, replace(PROBABILITY, tile=36), tmp_path / "out.tif"
    )
    with pytest.raises(Cancelled):
        job.run(CancelsAt(7))
    counts: list[int] = []
    watch = Watch()
    watch.update = lambda n=1: counts.append(n)  # type: ignore[method-assign]
    job.run(watch)
    assert counts[0] in (7, 8) and sum(counts) == 18  # one more was kept meanwhile, or not
    with pytest.raises(InputError, match="give --overwrite to replace it"):
        replace(job, resume=False).run(Watch())


def test_a_cancelled_job_of_other_pixels_is_not_gone_on_with(tmp_path, model, stack):
    settings = replace(PROBABILITY, tile=36)
    job = LayerJob(ImageLayer("a", stack, "ZYX"), model, settings, tmp_path / "out.tif")
    with pytest.raises(Cancelled):
        job.run(CancelsAt(3))
    other = replace(job, source=ImageLayer("a", stack ^ 1, "ZYX"))
    with pytest.raises(InputError, match=r"cannot be resumed, it was begun with source\.files"):
        other.run(Watch())
    ((values, *_),) = replace(other, resume=False, overwrite=True).run(Watch())
    expected = expected_of(model, stack[2] ^ 1)[1]
    np.testing.assert_allclose(values[2], expected, rtol=0, atol=1e-5)


def test_what_is_cancelled_before_it_begins_leaves_nothing(tmp_path, model, stack):
    watch = Watch()
    watch.cancel()
    with pytest.raises(Cancelled):
        LayerJob(ImageLayer("a", stack, "ZYX"), model, PROBABILITY, tmp_path / "o.tif").run(watch)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_results_without_a_place_are_those_of_the_weights_not_of_their_name(tmp_path, stack):
    job = LayerJob(ImageLayer("a", stack[0], "YX"), str(tmp_path / "m"), PROBABILITY)
    for mean in (0.0, 200.0):
        saved(tmp_path / "m", input_mean=(mean,))
        ((values, *_),) = job.run(Watch())
        np.testing.assert_array_equal(values, expected_of(job.model, stack[0])[1])


# --- what is refused


@pytest.mark.parametrize(
    ("data", "axes", "message"),
    [
        (np.zeros((40, 50, 3), np.uint8), "YXS", r"layer a: is in colour \(RGB\), 3 channels; the"),
        (np.zeros((2, 40, 50), np.uint8), "CYX", r"has axes CYX, 2 channels; the model takes 1: a"),
        (np.zeros((2, 40, 50), np.uint8), "YX", r"has 3 dimensions \(2 × 40 × 50\); axes YX are 2"),
        (np.zeros((2, 40, 50), np.uint8), "YXZ", "transpose the layer"),
        (np.zeros((2, 40, 50), np.uint8), "QYX", "layer a: axes 'QYX': letters of TCZYXS"),
        (np.zeros((2, 40, 50), np.uint8), "", "layer a: axes '': letters of TCZYXS"),
        (np.zeros((1, 40, 50, 1), np.uint8), "CYXS", "either C or S"),
        (np.zeros((40, 50), np.complex64), "YX", "is 40 × 50 complex64; pixels that are integers"),
        (np.zeros((0, 40, 50)), "ZYX", "is 0 × 40 × 50 float64; pixels"),
        (np.full((2, 40, 50), np.nan), "ZYX", "layer a: slice 0.* nan"),
        (np.full((40, 50), 1e300), "YX", "layer a: slice 0.* inf"),
    ],
)
def test_layers_that_no_network_takes_are_refused(model, data, axes, message):
    before = set(session_folder().iterdir())
    with pytest.raises(InputError, match=message) as error:
        LayerJob(ImageLayer("a", data, axes), model, PROBABILITY).run(Watch())
    assert "\n" not in str(error.value)
    assert not [f for f in set(session_folder().iterdir()) - before if f.name.startswith(".unet")]


def test_jobs_that_lack_something_are_refused(tmp_path, model, stack):
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    for job, message in (
        (LayerJob(tmp_path / "in.tif", model, PROBABILITY), "where the result goes is needed"),
        (LayerJob(tmp_path, model, PROBABILITY, tmp_path / "o.tif"), "is a folder; predict on"),
        (LayerJob(tmp_path / "in.tif", "", PROBABILITY, tmp_path / "o.tif"), "no model is chosen"),
        (LayerJob(tmp_path / "no.tif", model, PROBABILITY, tmp_path / "o.tif"), "no such file"),
        (LayerJob(tmp_path / "in.tif", model, PROBABILITY, tmp_path / "in.tif"), "another place"),
        (LayerJob(ImageLayer("a", stack, "ZYX"), model, PROBABILITY, tmp_path / "o.png"), ".tif"),
        (LayerJob(tmp_path / "in.tif", "none", PROBABILITY, tmp_path / "o.tif"), "no such model"),
    ):
        with pytest.raises(InputError, match=message):
            job.run(Watch())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["in.tif", "model.safetensors"]


def test_a_turned_layer_keeps_its_turn_unless_it_loses_an_axis(tmp_path, model, stack):
    turn = np.eye(4)
    layer = ImageLayer("a", stack, "ZYX", {"affine": turn, "rotate": None})
    ((_, options, _),) = LayerJob(layer, model, PROBABILITY).run(Watch())
    assert options["affine"] is turn and "rotate" not in options
    three = saved(tmp_path / "three.safetensors", in_channels=3)
    with pytest.raises(InputError, match="layer a: affine is of 3 dimensions and the result has"):
        LayerJob(replace(layer, axes="CYX"), three, PROBABILITY).run(Watch())


def test_what_is_said_of_a_layers_pixels_names_the_layer(model):
    data = np.zeros((2, 3, 40, 50), np.uint8)
    layer = ImageLayer("my cells", data, "TZYX")
    with pytest.warns(InputNote, match="T x Z = 2 x 3: read as 6 slices") as notes:
        LayerJob(layer, model, PROBABILITY).run(Watch())
    told = [layer.named(str(note.message)) for note in notes]
    assert told == ["layer my cells: T x Z = 2 x 3: read as 6 slices in this order"]


def test_suggested_axes():
    assert [suggested_axes(n) for n in range(1, 6)] == ["", "YX", "ZYX", "TZYX", ""]
    assert [suggested_axes(n, is_rgb=True) for n in (2, 3)] == ["YXS", "ZYXS"]


# --- the manifest


def test_the_manifest_names_what_is_there():
    (entry,) = entry_points(group="napari.manifest", name="unet-repro")
    package, _, file = entry.value.partition(":")
    path = Path(importlib.import_module(package).__path__[0], file)
    manifest = yaml.safe_load(path.read_text())
    assert manifest["name"] == "unet-repro"  # the distribution's
    commands = {command["id"]: command for command in manifest["contributions"]["commands"]}
    for command in commands.values():
        module, _, name = command["python_name"].partition(":")
        assert callable(getattr(importlib.import_module(module), name))
    offers = manifest["contributions"]["widgets"] + manifest["contributions"]["sample_data"]
    assert {offer["command"] for offer in offers} == set(commands)


def test_nothing_imports_napari_or_qt_before_the_widget_is_made():
    of_viewers = {"napari", "qtpy", "magicgui", "superqt", "dask"}
    seen = set()
    for path in Path(unet_repro.__path__[0]).rglob("*.py"):
        source = path.read_text("utf-8")
        tree = ast.parse(source if any(name in source for name in of_viewers) else "")
        for place, node in [(p, n) for p in ast.walk(tree) for n in ast.iter_child_nodes(p)]:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or "", *(a.name for a in node.names)]
                found = {name.partition(".")[0] for name in names} & of_viewers
                assert not found or isinstance(place, ast.FunctionDef), path
                seen |= found
    assert {"napari", "qtpy", "magicgui"} <= seen  # inside functions


def test_the_phantom_is_a_stack_with_its_cells_in_one_place(monkeypatch):
    small = np.zeros((1, 20, 30), np.uint8), np.ones((1, 20, 30), np.uint8)
    monkeypatch.setattr(layers, "em_phantom", lambda **sizes: small)
    (images, placed, kind), (cells, cells_placed, cells_kind) = phantom()
    assert images is small[0] and cells is small[1]
    assert (kind, cells_kind) == ("image", "labels")
    assert placed["scale"] == cells_placed["scale"] == (0.05, 0.004, 0.004)
    assert placed["units"] == cells_placed["units"] == ("um", "um", "um")
    assert placed["name"] != cells_placed["name"]


def test_the_package_holds_the_manifest():
    assert Path(unet_repro.__path__[0], "napari.yaml").is_file()
