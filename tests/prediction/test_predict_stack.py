"""Streamed predictions against those of the same slices in memory; kinds, regions, plans."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.files.block_array import BlockArray
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.png_files import encode_png, pixels_per_metre
from unet_repro.images.stacks import read_stack, write_stack
from unet_repro.network import backends
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.prediction.local import BlockRun
from unet_repro.prediction.plan import Outlook, Plan
from unet_repro.prediction.predict_stack import predict_stack, prepared
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner
from unet_repro.prediction.values import Values, check_values


def network(seed: int = 0, **shape: Any) -> UNet:
    shape = {"depth": 2, "base_channels": 4, "input_mean": (100.0,), "input_std": (50.0,)} | shape
    return UNet(UNetConfig(**shape), generator=torch.Generator().manual_seed(seed)).eval()


def grey_stack(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape).astype(dtype)


@pytest.fixture(scope="module")
def stack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    write_stack(path, grey_stack(3, 70, 90), voxel_size_um=(0.05, 0.004, 0.008))
    return path


def in_memory(path: Path, model: UNet, **options: Any) -> np.ndarray:
    """P(class), (z, classes, y, x)."""
    predictor = OverlapTilePredictor(model, **options)
    return np.stack([predictor(image) for image in read_stack(path)])


TILE = {"tile": 76}  # keeps 40 px: 2 x 3 tiles of 70 x 90 px


@pytest.mark.parametrize("classes", [2, 3])
def test_kinds_are_what_their_names_say(stack_file: Path, tmp_path: Path, classes: int) -> None:
    model = network(classes=classes)
    expected = in_memory(stack_file, model)
    scores = np.stack([OverlapTilePredictor(model).logits(i) for i in read_stack(stack_file)])
    # of two classes P(class 1), of more a channel for each
    kept = expected[:, 1] if classes == 2 else expected

    def predicted(**options: Any) -> np.ndarray:
        out = predict_stack(
            stack_file, model, tmp_path / "o.tif", overwrite=True, verify=True, **TILE, **options
        )
        with tifffile.TiffFile(out) as file:
            pixels = file.asarray()
            assert file.series[0].axes == ("ZYX" if pixels.ndim == 3 else "ZCYX")
            return pixels

    probability = predicted()
    assert (probability.dtype, probability.shape) == (np.float32, kept.shape)
    assert np.ptp(expected[:, 1]) > 0.1
    np.testing.assert_allclose(probability, kept, rtol=0, atol=1e-5)
    rounded = predicted(kind="uint8")
    assert rounded.dtype == np.uint8
    assert np.abs(rounded - 255 * kept).max() <= 0.5 + 1e-3
    labels = predicted(kind="labels")
    assert labels.dtype == np.uint8
    top = np.sort(expected, axis=1)
    is_clear = top[:, -1] - top[:, -2] > 1e-5
    assert np.array_equal(labels[is_clear], expected.argmax(axis=1)[is_clear])
    assert set(np.unique(labels)) == set(range(classes))
    of_class = None if classes == 2 else 1
    wide = predicted(kind="labels", dtype="uint16", threshold=0.6, of_class=of_class)
    assert wide.dtype == np.uint16
    is_clear = np.abs(expected[:, 1] - 0.6) > 1e-5
    assert np.array_equal(wide[is_clear], (expected[:, 1] > 0.6)[is_clear])
    for dtype, tolerance in (("float32", 1e-4), ("float16", 1e-2)):
        logits = predicted(kind="logits", dtype=dtype)
        assert (logits.dtype, logits.shape) == (dtype, scores.shape)  # z, class, y, x
        np.testing.assert_allclose(logits, scores, rtol=1e-3, atol=tolerance)


def test_one_class_is_one_plane(stack_file: Path, tmp_path: Path) -> None:
    model = network(classes=3)
    options: dict[str, Any] = {"overwrite": True, "verify": True, "z": "1:2", **TILE}

    def predicted(**more: Any) -> np.ndarray:
        out = predict_stack(stack_file, model, tmp_path / "o.tif", **options, **more)
        return tifffile.imread(out)

    probability, logits = predicted(), predicted(kind="logits")  # class, y, x
    np.testing.assert_array_equal(predicted(of_class=2), probability[2])
    np.testing.assert_array_equal(predicted(of_class=0, kind="uint8"), predicted(kind="uint8")[0])
    np.testing.assert_array_equal(predicted(of_class=2, kind="logits"), logits[2])
    labels = predicted(of_class=2, kind="labels", threshold=0.3)
    np.testing.assert_array_equal(labels, probability[2] > 0.3)
    assert 0 < labels.mean() < 1
    recorded = json.loads(read_info(tmp_path / "o.tif") or "")["settings"]
    assert recorded["of_class"] == 2


def test_of_two_classes_the_record_is_as_it_was(stack_file: Path, tmp_path: Path) -> None:
    out = predict_stack(stack_file, network(), tmp_path / "o.tif", z="0:1", **TILE)
    assert "of_class" not in json.loads(read_info(out) or "")["settings"]
    options: dict[str, Any] = {"z": "0:1", "overwrite": True, **TILE}
    plain = tifffile.imread(out)
    other = tifffile.imread(predict_stack(stack_file, network(), out, of_class=0, **options))
    np.testing.assert_allclose(other, 1 - plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"of_class": 3}, r"--class is 3: the model's classes are 0 \.\.\. 2"),
        ({"of_class": -1}, "--class is -1"),
        ({"kind": "labels", "of_class": 1}, "--class 1: the labels are of all classes"),
        ({"kind": "labels", "threshold": 0.5}, "the model has 3: --class says which"),
    ],
)
def test_a_class_that_cannot_be_is_refused(
    stack_file: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict_stack(stack_file, network(classes=3), tmp_path / "o.tif", **options)
    assert not list(tmp_path.iterdir())


def test_a_wrong_plane_does_not_pass_verification() -> None:
    again = np.array([0.2, 0.3, 0.5], np.float32).reshape(3, 1, 1)
    for values, kept in (
        (Values(classes=3), again),
        (Values(classes=3, of_class=2), again[2:]),
        (Values("uint8", classes=3), np.rint(255 * again)),
        (Values("labels", threshold=0.4, classes=3, of_class=2), np.ones((1, 1, 1), np.uint8)),
        (Values("logits", classes=3, of_class=0), again[:1]),
    ):
        check_values(kept, again, values, "float32", "here")
        wrong = 1 - kept if values.kind == "labels" else kept[::-1] + values.planes % 2
        with pytest.raises(InputError, match="verification failed at here"):
            check_values(wrong, again, values, "float32", "here")


def test_several_channels_in(tmp_path: Path) -> None:
    model = network(in_channels=3)
    image = grey_stack(61, 50, 3)
    tifffile.imwrite(tmp_path / "rgb.tif", image, photometric="rgb")
    out = predict_stack(tmp_path / "rgb.tif", model, tmp_path / "p.tif", **TILE)
    expected = OverlapTilePredictor(model)(np.moveaxis(image, 2, 0))[1]
    np.testing.assert_allclose(tifffile.imread(out), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axes", ["TZYX", "ZTYX"])
@pytest.mark.parametrize("kind", ["probability", "logits"])
def test_times_and_slices_are_written_as_they_were_read(
    tmp_path: Path, axes: str, kind: Any
) -> None:
    model, stack, source = network(), grey_stack(2, 3, 40, 50), tmp_path / "s.tif"
    options = {"ome": True, "photometric": "minisblack", "metadata": {"axes": axes}}
    tifffile.imwrite(source, stack, **options)
    write_stack(tmp_path / "plain.tif", stack.reshape(6, 40, 50))
    plain = predict_stack(tmp_path / "plain.tif", model, tmp_path / "p.tif", kind=kind)
    with pytest.warns(InputNote, match=f"{axes[0]} x {axes[1]} = 2 x 3: read as 6 slices") as notes:
        predict_stack(source, model, tmp_path / "o.tif", kind=kind)
    assert len(notes) == 1
    classes = (2,) if kind == "logits" else ()
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        series = file.series[0]
        assert series.axes == (f"{axes[:2]}CYX" if classes else axes)
        assert series.shape == (2, 3, *classes, 40, 50)
        pixels = file.asarray()
    np.testing.assert_array_equal(pixels.reshape(6, *classes, 40, 50), tifffile.imread(plain))
    with (
        pytest.warns(InputNote, match="read as 6 slices"),
        pytest.warns(InputNote, match=r"a part of the slices .* is written as plain slices"),
    ):
        predict_stack(source, model, tmp_path / "part.tif", kind=kind, z="1:4")
    with tifffile.TiffFile(tmp_path / "part.tif") as file:
        assert file.series[0].axes == ("ZCYX" if classes else "ZYX")
        part = file.asarray()
    np.testing.assert_array_equal(part, tifffile.imread(plain)[1:4])


def test_grey_stored_as_colour_is_predicted_as_grey_and_takes_more_memory(tmp_path: Path) -> None:
    model, stack = network(), grey_stack(2, 300, 200)
    write_stack(tmp_path / "grey.tif", stack)
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([stack] * 3, -1), photometric="rgb")
    predicted, peaks = [], []
    for name in ("grey", "rgb"):
        is_noted = (
            pytest.warns(InputNote, match="stored as RGB") if name == "rgb" else nullcontext()
        )
        with is_noted:
            source, out = tmp_path / f"{name}.tif", tmp_path / f"{name}_p.tif"
            predicted.append(tifffile.imread(predict_stack(source, model, out, **TILE)))
            with prepared(source, model, out, PredictionSettings(**TILE)) as job:
                peaks.append(job.plan.peak_bytes)
    np.testing.assert_array_equal(predicted[0], predicted[1])
    assert peaks[1] - peaks[0] > 5 * 76**2  # of five blocks at work, a byte a pixel at least


def test_signed_numbers_of_imagej_are_predicted_as_such(tmp_path: Path) -> None:
    model, stack = network(), grey_stack(2, 40, 50, dtype="int16") - 100
    text = "ImageJ=1.54f\nimages=2\nslices=2\ncf=0\nc0=-32768.0\nc1=1.0\n"
    options = {"photometric": "minisblack", "metadata": None}
    stored = (stack.astype(int) + 32768).astype("uint16")
    tifffile.imwrite(tmp_path / "s.tif", stored, description=text, **options)
    tifffile.imwrite(tmp_path / "plain.tif", stack, **options)
    plain = predict_stack(tmp_path / "plain.tif", model, tmp_path / "p.tif")
    with pytest.warns(InputNote, match="ImageJ's calibration -32768"):
        out = predict_stack(tmp_path / "s.tif", model, tmp_path / "o.tif")
    np.testing.assert_array_equal(tifffile.imread(out), tifffile.imread(plain))


def test_scale_and_settings_are_carried_over(stack_file: Path, tmp_path: Path) -> None:
    model = network()
    save_model(model, tmp_path / "m.safetensors")
    out = predict_stack(stack_file, tmp_path / "m.safetensors", tmp_path / "p.tif", kind="uint8")
    with tifffile.TiffFile(out) as file:
        described = file.imagej_metadata
        resolution = file.pages.first.tags.valueof("XResolution")
    assert described["unit"] == "um" and described["spacing"] == pytest.approx(0.05)
    assert resolution[0] / resolution[1] == pytest.approx(125)  # px per um
    facts = json.loads(read_info(out))
    assert facts["settings"]["kind"] == "uint8" and facts["source"] == "stack.tif"
    again = predict_stack(stack_file, model, tmp_path / "q.tif", kind="uint8")
    assert again.read_bytes() == out.read_bytes()


def test_folder_gives_a_folder_of_the_same_names(tmp_path: Path) -> None:
    images = grey_stack(3, 40, 44)
    source = tmp_path / "in"
    source.mkdir()
    for name, image in zip(("A1.PNG", "a2.png"), images):
        (source / name).write_bytes(imagecodecs.png_encode(image))
    tifffile.imwrite(source / "a10.tif", images[2])
    model = network()
    out = predict_stack(source, model, tmp_path / "labels", kind="labels")
    assert sorted(file.name for file in out.iterdir()) == ["A1.PNG", "a10.tif", "a2.png"]
    expected = [OverlapTilePredictor(model)(image).argmax(axis=0) for image in images]
    assert np.array_equal(read_stack(out), expected)
    predict_stack(source, model, tmp_path / "p", kind="probability")
    names = sorted(file.name for file in (tmp_path / "p").iterdir())
    assert names == ["A1.tif", "a10.tif", "a2.tif"]
    single = predict_stack(source, model, tmp_path / "p.tif", kind="labels")
    assert np.array_equal(tifffile.imread(single), expected)
    (tmp_path / "labels" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds notes.txt, which is none of the files to write"):
        predict_stack(source, model, tmp_path / "labels", kind="labels", overwrite=True)
    (tmp_path / "labels" / "notes.txt").unlink()
    predict_stack(source, model, tmp_path / "labels", kind="uint8", overwrite=True)
    assert read_stack(tmp_path / "labels").max() > 1


def test_jpeg_in_gives_files_without_loss(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name, image in zip(("a.JPG", "b.v2.jpeg", "c.png"), grey_stack(3, 40, 44)):
        Image.fromarray(image).save(source / name)
    model = network()
    expected = [OverlapTilePredictor(model)(image).argmax(axis=0) for image in read_stack(source)]
    out = predict_stack(source, model, tmp_path / "labels", kind="labels", overwrite=True)
    assert sorted(file.name for file in out.iterdir()) == ["a.png", "b.v2.png", "c.png"]
    assert np.array_equal(read_stack(out), expected)
    out = predict_stack(source, model, tmp_path / "p")
    assert sorted(file.name for file in out.iterdir()) == ["a.tif", "b.v2.tif", "c.tif"]


def test_one_png_is_a_stack_of_one_slice(tmp_path: Path) -> None:
    image, model = grey_stack(1, 40, 44), network()
    (tmp_path / "a.png").write_bytes(encode_png(image[0], (2.5e8, 2e8)))
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", metadata={"axes": "ZYX"})
    found, expected = (
        predict_stack(tmp_path / f"a.{suffix}", model, tmp_path / f"{suffix}-out.tif")
        for suffix in ("png", "tif")
    )
    assert np.array_equal(read_stack(found), read_stack(expected))
    calibration = read_calibration(found)
    assert calibration.pixels_per_metre == pytest.approx((2.5e8, 2e8))


def test_scale_of_png_files_is_carried_over(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for z, image in enumerate(grey_stack(2, 40, 44)):
        (source / f"{z}.png").write_bytes(encode_png(image, (2.5e8, 2e8)))
    out = predict_stack(source, network(), tmp_path / "labels", kind="labels")
    assert pixels_per_metre(out / "1.png") == ((250_000_000, 200_000_000), True)
    out = predict_stack(source, network(), tmp_path / "p.tif")
    assert read_calibration(out).pixels_per_metre == pytest.approx((2.5e8, 2e8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="masks"), "kind is 'masks': one of probability, uint8, labels, mask, logits, i"),
        (dict(threshold=0.5), "goes with kind labels, mask, instances; the kind is probability"),
        (dict(kind="labels", threshold=1.0), r"threshold 1.0 is not in \[0, 1\)"),
        (dict(dtype="float16"), "dtype is float16: probability is stored as float32"),
        (dict(kind="labels", dtype="float32"), "labels is stored as uint8 or uint16"),
        (dict(z="2:4"), "--z '2:4': a range a:b with 0 <= a < b <= 3 is needed"),
        (dict(roi="0:10"), "rows and columns y0:y1,x0:x1 are needed"),
        (dict(roi="0:10,80:91"), "--roi, columns, '80:91': a range a:b with .* <= 90"),
        (dict(memory=10_000), "9.77 KiB of memory are too few"),
        (dict(memory=0), "memory is 0"),
        (dict(memory=10**9, tile=76), "tile and memory exclude each other"),
    ],
)
def test_bad_option_is_refused(
    stack_file: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        predict_stack(stack_file, network(), tmp_path / "o.tif", **options)
    assert not list(tmp_path.iterdir())


def test_output_must_have_a_place_of_its_own(stack_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would be among the files"):
        predict_stack(stack_file, network(), stack_file, overwrite=True)
    with pytest.raises(InputError, match=r"a name that ends in .tif or .zarr is needed"):
        predict_stack(stack_file, network(), tmp_path / "o.png")
    (tmp_path / "o.tif").write_text("mine")
    with pytest.raises(InputError, match="exists already; give --overwrite"):
        predict_stack(stack_file, network(), tmp_path / "o.tif")
    assert (tmp_path / "o.tif").read_text() == "mine"


def test_pixel_that_is_not_finite_is_named(tmp_path: Path) -> None:
    stack = grey_stack(3, 70, 90, dtype="float32")
    stack[1, 61, 85] = np.nan
    write_stack(tmp_path / "s.tif", stack)
    with pytest.raises(InputError, match=r"s.tif: slice 1 is nan at y = 61, x = 85"):
        predict_stack(tmp_path / "s.tif", network(), tmp_path / "o.tif", **TILE)
    assert not (tmp_path / "o.tif").exists()


class Failure(Exception):
    pass


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As many numbers as tiles have been computed."""
    log: list[int] = []
    compute = TileRunner.compute

    def counting(self: TileRunner, *arguments: Any, **options: Any) -> np.ndarray:
        log.append(1)
        return compute(self, *arguments, **options)

    monkeypatch.setattr(TileRunner, "compute", counting)
    return log


def test_resumed_run_computes_only_what_is_missing(
    stack_file: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    undisturbed = predict_stack(stack_file, model, tmp_path / "u.tif", **TILE)
    total = len(computed)
    assert total == 3 * 2 * 3
    computed.clear()
    fetch = TileRunner.fetch
    fetched: list[int] = []

    def failing(self: TileRunner, *arguments: Any, **options: Any) -> Any:
        fetched.append(1)
        if len(fetched) > 7:
            raise Failure
        return fetch(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(TileRunner, "fetch", failing)
        with pytest.raises(Failure):
            predict_stack(stack_file, model, tmp_path / "o.tif", **TILE)
    assert not (tmp_path / "o.tif").exists()
    with pytest.raises(InputError, match="an unfinished run of it is there; --resume"):
        predict_stack(stack_file, model, tmp_path / "o.tif", **TILE)
    out = predict_stack(stack_file, model, tmp_path / "o.tif", resume=True)  # takes over the tiles
    assert out.read_bytes() == undisturbed.read_bytes()
    assert len(computed) <= total + 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["o.tif", "u.tif"]
    computed.clear()
    predict_stack(stack_file, model, tmp_path / "o.tif", resume=True, **TILE)
    assert not computed  # complete already


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kind="uint8"), 'settings.kind "probability", not "uint8"'),
        (dict(average="rotations"), 'settings.average "none", not "rotations"'),
        (dict(z="0:2"), r"settings.z \[0, 3\], not \[0, 2\]"),
        (dict(tile=92), r"plan.strides \[36, 36\], not \[52, 52\]"),
        (dict(seed=1), "model "),
        (dict(touch=True), "source.files"),
    ],
    ids=str,
)
def test_resume_of_something_else_is_refused(
    stack_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    message: str,
) -> None:
    source = tmp_path / "s.tif"
    source.write_bytes(stack_file.read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(BlockRun, "go", lambda self, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict_stack(source, network(), tmp_path / "o.tif", **TILE)
    model = network(seed=change.pop("seed", 0))
    if change.pop("touch", False):
        source.write_bytes(stack_file.read_bytes() + b" ")
    with pytest.raises(InputError, match=message):
        predict_stack(source, model, tmp_path / "o.tif", resume=True, **(TILE | change))


def test_source_that_changes_under_way_is_noticed(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "s.tif"
    source.write_bytes(stack_file.read_bytes())
    compute = TileRunner.compute

    def touching(self: TileRunner, *arguments: Any, **options: Any) -> np.ndarray:
        with source.open("ab") as file:
            file.write(b" ")
        return compute(self, *arguments, **options)

    monkeypatch.setattr(TileRunner, "compute", touching)
    with pytest.raises(InputError, match=r"s.tif.*chang"):
        predict_stack(source, network(), tmp_path / "o.tif", **TILE)
    assert not (tmp_path / "o.tif").exists()


def test_truncated_page_in_the_middle_keeps_what_was_done(tmp_path: Path) -> None:
    stack = grey_stack(4, 70, 90)
    tifffile.imwrite(tmp_path / "s.tif", stack, compression="zlib", photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "s.tif") as file:
        page = file.pages[2]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
    content = bytearray((tmp_path / "s.tif").read_bytes())
    content[offset + 10 : offset + count] = bytes(count - 10)
    (tmp_path / "s.tif").write_bytes(content)
    with pytest.raises(InputError, match=r"s.tif.*slice 2"):
        predict_stack(tmp_path / "s.tif", network(), tmp_path / "o.tif")
    kept = [file.name for file in (tmp_path / ".o.tif.parts/blocks/c").rglob("0/*/*")]
    assert kept and not (tmp_path / "o.tif").exists()


def test_failing_allocation_goes_on_with_smaller_tiles(
    stack_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = network()
    expected = tifffile.imread(
        predict_stack(stack_file, model, tmp_path / "e.tif", average="dihedral")
    )
    run = TileRunner._run

    def limited(self: TileRunner, windows: torch.Tensor) -> torch.Tensor:
        if windows.numel() > 90 * 90:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return run(self, windows)

    monkeypatch.setattr(TileRunner, "_run", limited)
    out = predict_stack(stack_file, model, tmp_path / "o.tif", average="dihedral")
    np.testing.assert_allclose(tifffile.imread(out), expected, rtol=0, atol=1e-5)
    assert "going on with smaller tiles" in caplog.text
    monkeypatch.setattr(
        TileRunner, "_run", lambda self, windows: (_ for _ in ()).throw(MemoryError)
    )
    with pytest.raises(InputError, match="out of memory even with the smallest tile"):
        predict_stack(stack_file, model, tmp_path / "f.tif")


@pytest.mark.parametrize("kind", ["probability", "uint8", "labels", "logits"])
def test_verify_passes_what_is_right(stack_file: Path, tmp_path: Path, kind: Any) -> None:
    options: dict[str, Any] = {**TILE, "kind": kind, "average": "rotations"}
    assert predict_stack(stack_file, network(), tmp_path / "o.tif", verify=True, **options).exists()


@pytest.mark.parametrize("kind", ["probability", "uint8", "labels", "logits"])
def test_verify_finds_tiles_off_the_pooling_grid(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    """As if tiles abutted without regard to the grid: their windows read 1 px beside."""
    fetch = TileRunner.fetch
    calls: list[int] = []

    def beside(self: TileRunner, read: Callable, *arguments: Any, **options: Any) -> Any:
        region = fetch(self, read, *arguments, **options)
        calls.append(1)
        if len(calls) <= 18:  # all tiles, but not the places that are computed again
            region.pixels[:] = np.roll(region.pixels, 1, axis=0)
        return region

    monkeypatch.setattr(TileRunner, "fetch", beside)
    with pytest.raises(InputError, match=r"verification failed at slice \d, y = \d+:\d+"):
        predict_stack(stack_file, network(), tmp_path / "o.tif", kind=kind, verify=True, **TILE)
    assert not (tmp_path / "o.tif").exists()


def outlook(source: Path, model: UNet, memory: int | str = "") -> Outlook:
    given_memory = PredictionSettings(memory=memory)
    with prepared(source, model, source.parent / "o.tif", given_memory) as prediction:
        return prediction.outlook()


def test_plan_keeps_to_the_memory_and_says_so(stack_file: Path) -> None:
    model = network(base_channels=8)
    whole = outlook(stack_file, model)
    memory = whole.plan.peak_bytes - whole.plan.tiles.peak_bytes // 2
    tiled = outlook(stack_file, model, memory)
    assert len(whole.plan.tiles) == 1 < len(tiled.plan.tiles)
    assert tiled.plan.peak_bytes <= memory
    assert tiled.output_bytes == 3 * 70 * 90 * 4
    for word in ("tiles per slice", "redundant compute", "peak memory", "output", "time"):
        assert word in str(tiled)
    assert list(stack_file.parent.iterdir()) == [stack_file]


@pytest.mark.parametrize("chosen", ["torch", "openvino"])
def test_auto_is_told_and_stands_in_the_record(
    stack_file: Path, tmp_path: Path, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(chosen)
    place = "unet_repro.prediction.predict_stack.choose_backend"
    monkeypatch.setattr(place, lambda *_: chosen)
    automatic = PredictionSettings(backend="auto", z="0:1")
    with prepared(stack_file, network(), tmp_path / "o.tif", automatic) as prediction:
        assert f"{chosen}, float32, on cpu" in str(prediction.outlook())
        prediction.run()
    out = predict_stack(stack_file, network(), tmp_path / "p.tif", backend=chosen, z="0:1")
    assert (tmp_path / "o.tif").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("out", ["o.tif", "o.zarr", "folder"])
@pytest.mark.parametrize("installed", ["after", "before"])
def test_auto_stays_what_it_was_when_openvino_comes_or_goes(
    stack_file: Path, tmp_path: Path, out: str, installed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    source = stack_file
    if out == "folder":
        source = tmp_path / "in"
        source.mkdir()
        for k in range(2):
            write_stack(source / f"{k}.tif", grey_stack(1, 70 + 8 * k, 90)[0])
    monkeypatch.setattr(backends, "cpu_flags", lambda: {"avx2"})
    settings: dict[str, Any] = {"backend": "auto", **TILE}
    begun_with = {"after": "torch", "before": "openvino"}[installed]
    options = {**settings, "backend": begun_with}
    expected = predict_stack(source, network(), tmp_path / f"expected_{out}", **options)

    def install(is_there: bool) -> None:
        monkeypatch.setattr(backends, "find_spec", lambda name: is_there or None)

    install(installed == "before")
    write, written = BlockArray.write, []

    def killing(array: BlockArray, number: int, values: np.ndarray) -> None:
        write(array, number, values)
        written.append(number)
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BlockArray, "write", killing)
        predict_stack(source, network(), tmp_path / out, **settings)
    install(installed == "after")
    if installed == "before":
        with pytest.raises(InputError, match=r"needs the package openvino: pip install"):
            predict_stack(source, network(), tmp_path / out, resume=True, **settings)
        install(True)
    for _ in ("unfinished", "complete"):
        predict_stack(source, network(), tmp_path / out, resume=True, **settings)
    for file in [expected] if out == "o.tif" else expected.rglob("*"):
        if file.is_file():
            made = tmp_path / out / file.relative_to(expected)
            assert made.read_bytes() == file.read_bytes(), made


def test_buffers_leave_room_for_a_plan(tmp_path: Path) -> None:
    """A narrow network: windows are cheap, and what is read and written counts."""
    model, path = network(base_channels=1, depth=4), tmp_path / "large.tif"
    tifffile.imwrite(path, shape=(3000, 3000), dtype="uint8", tile=(256, 256))

    def planned(**options: Any) -> Plan:
        with prepared(path, model, path.with_name("o.tif"), PredictionSettings(**options)) as job:
            return job.plan

    whole = planned()
    for share in (0.9, 0.25):
        memory = int(share * whole.peak_bytes)
        plan = planned(memory=memory)
        assert plan.peak_bytes <= memory
        assert len(plan.tiles) <= 100  # of 3000 x 3000 px


WARMED_UP = """
from unet_repro import UNet, UNetConfig
from unet_repro.prediction.predict_stack import predict_stack

network = UNet(UNetConfig(base_channels=2, depth=2, input_std=(50.0,)))
stack, out = sys.argv[1:]
predict_stack(stack, network, out, z="0:2")  # libraries and kernels are loaded
"""


def test_memory_does_not_grow_with_the_slices(
    tmp_path: Path, peak_bytes: Callable[..., int]
) -> None:
    peaks = []
    for slices in (8, 48):
        stack, out = tmp_path / f"{slices}.tif", tmp_path / f"o{slices}.tif"
        pixels = grey_stack(slices, 256, 256)
        tifffile.imwrite(stack, pixels, compression="zlib", photometric="minisblack")
        work = "predict_stack(stack, network, out, overwrite=True)"
        peaks.append(peak_bytes(WARMED_UP, work, stack, out))
    assert peaks[1] - peaks[0] < 40 * 256 * 256 * 4 / 2  # half of what 40 slices take


def test_output_that_is_complete_is_told_from_another(stack_file: Path, tmp_path: Path) -> None:
    source = tmp_path / "s.tif"
    source.write_bytes(stack_file.read_bytes())
    out = predict_stack(source, network(), tmp_path / "o.tif")
    before = out.stat().st_mtime_ns
    predict_stack(source, network(), out, resume=True)
    assert out.stat().st_mtime_ns == before
    stack = read_stack(source)
    write_stack(source, 255 - stack, overwrite=True)
    os.utime(source, ns=(0, 0))  # older than the output
    with pytest.raises(InputError, match="exists already"):
        predict_stack(source, network(), out, resume=True)


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("kind", ["uint8", "logits"])
def test_output_that_was_cut_since_is_not_complete(
    stack_file: Path, tmp_path: Path, kind: Any, compression: Any
) -> None:
    model = network()
    options: dict[str, Any] = {"kind": kind, "compression": compression}
    out = predict_stack(stack_file, model, tmp_path / "o.tif", **options)
    whole = out.read_bytes()
    assert predict_stack(stack_file, model, out, resume=True, **options) == out
    out.write_bytes(whole[:-900])
    with pytest.raises(InputError, match=r"exists already.*give --overwrite") as caught:
        predict_stack(stack_file, model, out, resume=True, **options)
    if compression != "zstd":  # its directories, which tell what it is, lie at the end
        assert "truncated" in str(caught.value) and "\n" not in str(caught.value)
    predict_stack(stack_file, model, out, resume=True, overwrite=True, **options)
    assert out.read_bytes() == whole


def test_network_of_nan_is_refused(stack_file: Path, tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        model.classifier.bias[0] = np.nan  # type: ignore[index]
    with pytest.raises(InputError, match=r"slice 0.* y = 0, x = 0 .*values that are not finite"):
        predict_stack(stack_file, model, tmp_path / "o.tif", kind="labels")  # would hide it
    assert not (tmp_path / "o.tif").exists()


def test_full_disc_while_the_output_is_written(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("unet_repro.prediction.outputs.write_pages", full)
        with pytest.raises(InputError, match=r"o.tif: cannot be written: No space left"):
            predict_stack(stack_file, network(), tmp_path / "o.tif", **TILE)
    assert not (tmp_path / "o.tif").exists()
    predict_stack(stack_file, network(), tmp_path / "o.tif", resume=True)
    expected = in_memory(stack_file, network())[:, 1]
    np.testing.assert_allclose(tifffile.imread(tmp_path / "o.tif"), expected, rtol=0, atol=1e-5)


def contents(out: Path) -> dict[str, bytes]:
    files = sorted(out.iterdir()) if out.is_dir() else [out]
    return {file.name if out.is_dir() else "": file.read_bytes() for file in files}


@pytest.mark.parametrize("out_name", ["o.tif", "o"])
def test_killed_when_the_output_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out_name: str
) -> None:
    """Between the renaming and the end: a resumed run finds nothing left to do."""
    model, source = network(depth=1, base_channels=1), tmp_path / "in"
    write_stack(source / "a.tif", np.zeros((20, 20), np.uint8))
    replace = os.replace

    def replace_and_die(origin: Path, target: Path) -> None:
        replace(origin, target)
        if Path(target).name == out_name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_and_die)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(source, model, tmp_path / out_name)
    assert (tmp_path / f".{out_name}.parts").exists()
    before = contents(tmp_path / out_name)
    predict_stack(source, model, tmp_path / out_name, resume=True)
    assert contents(tmp_path / out_name) == before
    assert not (tmp_path / f".{out_name}.parts").exists()


WAYS = {
    "bfloat16": {"precision": "bfloat16"},
    "openvino": {"backend": "openvino"},
    "openvino, bfloat16": {"backend": "openvino", "precision": "bfloat16"},
    "compile": {"backend": "compile"},
}


@pytest.mark.parametrize(
    "way",
    [pytest.param(way, marks=[pytest.mark.slow] * (way == "compile")) for way in WAYS],
)
def test_every_backend_and_precision_end_to_end(stack_file: Path, tmp_path: Path, way: str) -> None:
    """Verified on the way: other windows agree; and near float32 of the plain network."""
    if "openvino" in way:
        pytest.importorskip("openvino")
    options: dict[str, Any] = {**WAYS[way], "average": "rotations", "z": "1:2"}
    tile = {} if way == "compile" else TILE  # each window size is compiled anew
    out = predict_stack(
        stack_file, network(), tmp_path / "o.tif", verify=way != "compile", **tile, **options
    )
    expected = in_memory(stack_file, network(), average="rotations")[1, 1]
    difference = np.abs(tifffile.imread(out) - expected).max()
    assert difference < (0.08 if "bfloat16" in way else 1e-4)
    assert way != "bfloat16" or difference > 1e-6  # OpenVINO may compute in float32 instead


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_streamed_is_in_memory_for_any_region_tile_and_average(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(2, 70)))

    def part(length: int) -> tuple[int, int]:
        start = data.draw(st.integers(0, length - 1))
        return start, data.draw(st.integers(start + 1, length))

    (z0, z1), (y0, y1), (x0, x1) = map(part, shape)
    x0, x1 = (x0, x1) if x1 - x0 > 1 or y1 - y0 == 1 else (0, shape[2])  # no page 1 px wide
    padding = data.draw(st.booleans())
    model = network(depth=1, base_channels=2, padding=padding)
    tile = data.draw(st.sampled_from(["auto", *range(36, 60, 2)]))
    average = data.draw(st.sampled_from(["none", "rotations", "dihedral", "seven"]))
    folder = tmp_path_factory.mktemp("any")
    source, out = folder / "s.tif", folder / "o.tif"
    stack = grey_stack(*shape)
    tifffile.imwrite(source, stack, photometric="minisblack", metadata={"axes": "ZYX"})
    region = {"z": f"{z0}:{z1}", "roi": f"{y0}:{y1},{x0}:{x1}"}
    predict_stack(source, model, out, average=average, tile=tile, **region)
    whole = np.stack([OverlapTilePredictor(model, average=average)(image)[1] for image in stack])
    predicted = tifffile.imread(out).reshape(z1 - z0, y1 - y0, x1 - x0)
    np.testing.assert_allclose(predicted, whole[z0:z1, y0:y1, x0:x1], rtol=0, atol=1e-5)


def test_keywords_are_the_fields_of_the_settings(stack_file: Path, tmp_path: Path) -> None:
    names = set(inspect.signature(predict_stack).parameters)
    assert {field.name for field in fields(PredictionSettings)} < names
    with pytest.raises(TypeError, match="knid"):
        predict_stack(stack_file, network(), tmp_path / "o.tif", knid="uint8")
    with pytest.raises(TypeError, match="settings is given, and kind as well"):
        both: dict[str, Any] = {"settings": PredictionSettings(), "kind": "uint8"}
        predict_stack(stack_file, network(), tmp_path / "o.tif", **both)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "NONE"),
        ({"kind": "logits", "dtype": "float16"}, "NONE"),
        ({"kind": "mask"}, "ADOBE_DEFLATE"),
        ({"kind": "uint8"}, "ADOBE_DEFLATE"),
        ({"compression": "zlib"}, "ADOBE_DEFLATE"),
        ({"kind": "mask", "compression": "none"}, "NONE"),
    ],
)
def test_floats_are_compressed_only_on_demand(stack_file, tmp_path, options, expected) -> None:
    out = predict_stack(stack_file, network(), tmp_path / "o.tif", **TILE, **options)
    with tifffile.TiffFile(out) as file:
        assert file.pages.first.compression == tifffile.COMPRESSION[expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_stack_on_a_gpu_is_that_on_the_cpu(
    stack_file: Path, tmp_path: Path, precision: Any
) -> None:
    options: dict[str, Any] = {**TILE, "precision": precision, "average": "dihedral"}
    out = predict_stack(stack_file, network().cuda(), tmp_path / "o.tif", verify=True, **options)
    expected = in_memory(stack_file, network(), average="dihedral")[:, 1]
    tolerance = 0.08 if precision == "bfloat16" else 1e-5
    assert np.abs(tifffile.imread(out) - expected).max() < tolerance
