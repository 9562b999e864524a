"""Predictions into OME-Zarr: the same values, by parts, after faults, and what they say."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_repro.cluster import Machines
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.files.places import Folder
from unet_repro.images import zarr_output
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.ome_zarr import write_group
from unet_repro.images.stacks import read_stack, write_stack
from unet_repro.images.zarr_output import halved
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.prediction.predict_stack import predict_stack, prepared
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner

OPTIONS: dict[str, Any] = {"shard": 64, "tile": 76}  # 2 x 2 tiles of 40 px, less at the border


def network(seed: int = 0, **shape: Any) -> UNet:
    shape = {"depth": 2, "base_channels": 4, "input_mean": (100.0,), "input_std": (50.0,)} | shape
    return UNet(UNetConfig(**shape), generator=torch.Generator().manual_seed(seed)).eval()


MODEL = network()


@pytest.fixture(scope="module")
def stack_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.tif"
    pixels = np.random.default_rng(1).integers(0, 256, (2, 90, 110)).astype(np.uint8)
    write_stack(path, pixels, voxel_size_um=(0.05, 0.004, 0.008))
    return path


@pytest.fixture(scope="module")
def probability(stack_file: Path) -> np.ndarray:
    """P(class 1) of whole slices at once, (z, y, x)."""
    predictor = OverlapTilePredictor(MODEL)
    return np.stack([predictor(image)[1] for image in read_stack(stack_file)])


def level(path: Path, number: int = 0) -> np.ndarray:
    return zarr.open_group(path, mode="r")[str(number)][:]


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_border_of_shards_does_not_show(
    stack_file: Path, tmp_path: Path, probability: np.ndarray, ngff: Any
) -> None:
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", ngff=ngff, verify=True, **OPTIONS)
    assert np.abs(level(out) - probability).max() <= 1e-5
    assert np.ptp(probability) > 0.1
    np.testing.assert_allclose(level(out, 1), halved(level(out), are_labels=False), atol=1e-7)
    assert not (out / "job.json").exists()
    array = zarr.open_group(out, mode="r")["0"]
    shards = array.shards if ngff == "0.5" else (1, 64, 64)
    assert (shards, array.chunks) == ((1, 64, 64), (1, 16, 16))


@given(data=st.data())
@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_exact_arithmetic_is_equal_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Weights -1, 0 and 1 in float64 make sums without rounding: any wrong window shows."""
    model = network(base_channels=2, input_mean=(0.0,), input_std=(1.0,)).double()
    random = np.random.default_rng(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.from_numpy(random.integers(-1, 2, weight.shape)).double())
    height, width = data.draw(st.integers(20, 100)), data.draw(st.integers(20, 100))
    top, left = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 19))
    folder = tmp_path_factory.mktemp("exact")
    image = random.integers(0, 4, (1, height, width)).astype(np.uint8)
    write_stack(folder / "s.tif", image)
    out = predict_stack(
        folder / "s.tif",
        model,
        folder / "o.zarr",
        kind="logits",
        shard=data.draw(st.sampled_from([16, 32, 48])),
        tile=data.draw(st.sampled_from([52, 60, 76])),
        average=data.draw(st.sampled_from(["none", "rotations"])),
        roi=f"{top}:{height},{left}:{width}",
    )
    predictor = OverlapTilePredictor(model, average=read_settings(out)["average"])
    expected = predictor.logits(image[0])[:, top:, left:]
    assert np.abs(expected).max() < 2**24  # float32 holds it
    np.testing.assert_array_equal(level(out)[:, 0], expected)


def read_settings(path: Path) -> dict[str, Any]:
    return json.loads(read_info(path) or "")["settings"]


@pytest.mark.parametrize("kind", ["labels", "instances", "uint8", "logits"])
def test_kinds_are_those_of_tiff(stack_file: Path, tmp_path: Path, kind: Any) -> None:
    options: dict[str, Any] = {"kind": kind, "z": "1:2", **OPTIONS}
    whole = tifffile.imread(predict_stack(stack_file, MODEL, tmp_path / "o.tif", **options))
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **options)
    values = level(out)
    assert values.dtype == whole.dtype
    if kind == "logits":
        assert values.shape == (2, 1, 90, 110)  # c, z, y, x: OME-Zarr's order
        np.testing.assert_allclose(values[:, 0], whole, atol=1e-4)
        return
    difference = np.abs(values[0].astype(int) - whole.astype(int))
    assert difference.max() <= (1 if kind == "uint8" else 0)
    if kind in ("labels", "instances"):
        np.testing.assert_array_equal(level(out, 1), values[:, ::2, ::2])
    assert read_settings(out)["kind"] == kind
    assert [entry.name for entry in out.iterdir() if entry.name.startswith("scratch")] == []


def test_scale_and_place_of_each_level(stack_file: Path, tmp_path: Path) -> None:
    out = predict_stack(
        stack_file, MODEL, tmp_path / "o.zarr", z="1:2", roi="10:90,20:110", **OPTIONS
    )
    fine, coarse = read_calibration(out), read_calibration(out, level=1)
    assert fine.resolution == pytest.approx((125, 250)) and fine.spacing == 0.05
    assert fine.unit == r"\u00B5m"
    assert fine.origin == pytest.approx((0.05, 0.04, 0.16))
    assert coarse.origin == pytest.approx((0.05, 0.042, 0.164))  # half a pixel of the finer one
    (multiscale,) = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]["multiscales"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"micrometer"}


def test_parts_make_the_whole_and_the_last_one_completes_it(
    stack_file: Path, tmp_path: Path
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **OPTIONS)
    out = tmp_path / "o.zarr"
    for part in (2, 0, 1):
        with pytest.raises(InputError, match=r"is an unfinished prediction.* --resume"):
            read_stack(out) if out.exists() else read_stack(unfinished(stack_file, tmp_path))
        machines = Machines(part=f"{part}/3")
        predict_stack(stack_file, MODEL, out, machines=machines, **OPTIONS)
        assert (out / "zarr.json").exists() == (part == 1)
    assert contents(out) == contents(whole)
    before = times(out)
    predict_stack(stack_file, MODEL, out, machines=Machines(part="1/3"), **OPTIONS)
    assert times(out) == before
    with pytest.raises(InputError, match="--overwrite with --part would delete"):
        predict_stack(
            stack_file, MODEL, out, machines=Machines(part="0/3"), overwrite=True, **OPTIONS
        )


def unfinished(source: Path, folder: Path) -> Path:
    out = folder / "begun.zarr"
    predict_stack(source, MODEL, out, machines=Machines(part="0/3"), **OPTIONS)
    return out


def contents(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def times(path: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_kill_at_any_block_costs_a_few_blocks_and_another_job_is_refused(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **OPTIONS)
    write, written = BlockArray.write, []

    def killing(array: BlockArray, number: int, values: np.ndarray) -> None:
        written.append(number)
        write(array, number, values)
        if len(written) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "o.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(BlockArray, "write", killing)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(stack_file, MODEL, out, **OPTIONS)
    for options, message in (
        ({}, "an unfinished run of it is there; --resume goes on with it"),
        ({"resume": True, "kind": "uint8"}, 'settings.kind "probability", not "uint8"'),
        ({"resume": True, "shard": 32}, r"plan\.block"),
        ({"resume": True, "ngff": "0.4"}, 'ngff "0.5", not "0.4"'),
    ):
        with pytest.raises(InputError, match=message):
            predict_stack(stack_file, MODEL, out, **OPTIONS | options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"cannot be resumed, it was begun with model"):
        predict_stack(stack_file, network(1), out, resume=True, **OPTIONS)
    monkeypatch.setattr(
        BlockArray,
        "write",
        lambda array, number, values: (written.append(number), write(array, number, values)),
    )
    shards = sorted(file for file in (out / "0/c").rglob("*") if file.is_file())
    shards[-1].write_bytes(shards[-1].read_bytes()[:50])
    predict_stack(stack_file, MODEL, out, resume=True, **OPTIONS)
    assert contents(out) == contents(whole)
    of_level_0 = 8
    assert len(written) <= of_level_0 + 1 + (len(contents(out)) - of_level_0)


def test_damage_within_a_shard_is_found_before_the_image_is_complete(
    stack_file: Path, tmp_path: Path
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **OPTIONS)
    out = tmp_path / "o.zarr"
    predict_stack(stack_file, MODEL, out, machines=Machines(part="0/2"), **OPTIONS)
    (shard, *_) = sorted(file for file in (out / "0/c").rglob("*") if file.is_file())
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    with pytest.raises(InputError, match="is missing or damaged; --resume computes it again"):
        predict_stack(stack_file, MODEL, out, resume=True, **OPTIONS)
    assert not (out / "zarr.json").exists()
    predict_stack(stack_file, MODEL, out, resume=True, **OPTIONS)
    assert contents(out) == contents(whole)


def test_background_is_an_image_and_its_resume_does_nothing(tmp_path: Path) -> None:
    write_stack(tmp_path / "s.tif", np.zeros((2, 70, 90), np.uint8))
    model = network()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([9.0, -9.0]))
    out = tmp_path / "o.zarr"
    options: dict[str, Any] = {"kind": "labels", **OPTIONS}
    predict_stack(tmp_path / "s.tif", model, out, **options)
    assert not level(out).any()
    before = times(out)
    predict_stack(tmp_path / "s.tif", model, out, resume=True, **options)
    assert times(out) == before


def test_another_run_that_began_anew_stops_the_first_one(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "o.zarr", BlockArray.write
    other: dict[str, Any] = {"overwrite": True, **OPTIONS}
    expected = predict_stack(stack_file, network(1), tmp_path / "other.zarr", **OPTIONS)

    def interfering(array: BlockArray, number: int, values: np.ndarray) -> None:
        if number == 2:
            monkeypatch.setattr(BlockArray, "write", write)
            predict_stack(stack_file, network(1), out, **other)
        write(array, number, values)

    monkeypatch.setattr(BlockArray, "write", interfering)
    with pytest.raises(InputError, match="another run has begun it anew"):
        predict_stack(stack_file, MODEL, out, **OPTIONS)
    assert contents(out) == contents(expected)


@pytest.mark.parametrize(
    ("kind", "where"), [("probability", "0"), ("instances", "scratch"), ("instances", "0")]
)
def test_two_runs_of_one_job_at_once_make_what_one_makes(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, where: str
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", kind=kind, **OPTIONS)
    out, write = tmp_path / "o.zarr", BlockArray.write
    options: dict[str, Any] = {"resume": True, "kind": kind, **OPTIONS}

    def interfering(array: BlockArray, number: int, values: np.ndarray) -> None:
        if number == 2 and array.place.path.name == where:
            monkeypatch.setattr(BlockArray, "write", write)
            predict_stack(stack_file, MODEL, out, **options)  # from beginning to end
        write(array, number, values)

    monkeypatch.setattr(BlockArray, "write", interfering)
    predict_stack(stack_file, MODEL, out, **options)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
@pytest.mark.parametrize("where", ["0", "1"])
def test_unit_that_is_written_while_another_run_of_the_job_completes_it_stays(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, ngff: Any
) -> None:
    """The claim goes with that, as it does when another run begins anew."""
    options: dict[str, Any] = {"resume": True, "ngff": ngff, **OPTIONS}
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **options)
    out, opened, check = tmp_path / "o.zarr", BlockArray.array, BlockArray.check_claim
    looked: list[str] = []

    def looking(array: BlockArray) -> None:
        check(array)
        looked.append(array.place.path.name)

    def completing(array: BlockArray) -> zarr.Array:
        if looked.count(where) == 2:  # making the array, then a unit: between look and writing
            monkeypatch.setattr(BlockArray, "array", opened)
            monkeypatch.setattr(BlockArray, "check_claim", check)
            predict_stack(stack_file, MODEL, out, **options)  # from beginning to end
            assert not (out / "job.json").exists()
        return opened(array)

    monkeypatch.setattr(BlockArray, "check_claim", looking)
    monkeypatch.setattr(BlockArray, "array", completing)
    predict_stack(stack_file, MODEL, out, **options)
    assert contents(out) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume", "--workers", "1"]])
def test_two_processes_that_begin_at_once_make_one_image(
    stack_file: Path, tmp_path: Path, flags: list[str]
) -> None:
    save_model(MODEL, tmp_path / "m.safetensors")
    out, options = tmp_path / "o.zarr", {**OPTIONS, "tile": 60}
    whole = predict_stack(stack_file, tmp_path / "m.safetensors", tmp_path / "w.zarr", **options)
    command = [sys.executable, "-m", "unet_repro", "predict", str(stack_file), "--out", str(out)]
    command += ["--model", str(tmp_path / "m.safetensors"), *flags]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    codes = [process.returncode for process in both]
    assert 0 in codes and set(codes) <= {0, 2}, said
    for code, (_, errors) in zip(codes, said):
        assert code == 0 or len(errors.splitlines()) == 1, errors
    assert contents(out).keys() == contents(whole).keys()
    np.testing.assert_allclose(level(out), level(whole), atol=1e-6)  # of other threads


def test_without_a_scheduler_nothing_is_begun(stack_file: Path, tmp_path: Path) -> None:
    dask = pytest.importorskip("dask")
    pytest.importorskip("distributed")
    save_model(MODEL, tmp_path / "m.safetensors")
    machines = Machines(scheduler="tcp://127.0.0.1:9")
    for name in ("o.zarr", "o.tif"):
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
            pytest.raises(InputError, match="no scheduler answers"),
        ):
            predict_stack(
                stack_file, tmp_path / "m.safetensors", tmp_path / name, machines=machines
            )
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_what_is_read_only_is_no_output(stack_file: Path) -> None:
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:9/o\.zarr: is read only"):
        predict_stack(stack_file, MODEL, Path("http://127.0.0.1:9/o.zarr"), **OPTIONS)


def test_a_place_that_holds_other_things_is_kept(stack_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.zarr"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"exists already|is not replaced"):
            predict_stack(stack_file, MODEL, out, overwrite=overwrite, **OPTIONS)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]
    with pytest.raises(InputError, match="shard is 40: a multiple of 16 px"):
        predict_stack(stack_file, MODEL, tmp_path / "p.zarr", shard=40)
    with pytest.raises(InputError, match="with this network a multiple of 32 px"):
        predict_stack(stack_file, network(depth=5), tmp_path / "p.zarr", shard=48)
    with pytest.raises(InputError, match="parts of an array job write one OME-Zarr"):
        predict_stack(stack_file, MODEL, tmp_path / "o.tif", machines=Machines(part="0/2"))


def test_outlook_counts_the_windows_that_run(stack_file: Path, tmp_path: Path) -> None:
    counted = []

    def counting(window: torch.Tensor) -> torch.Tensor:
        counted.append(tuple(window.shape[2:]))
        return MODEL(window)

    options = PredictionSettings(roi="0:80,0:74", **OPTIONS)  # the last blocks: 16 and 10 px
    with prepared(stack_file, MODEL, tmp_path / "o.zarr", options) as prediction:
        tiles = prediction.plan.tiles
        with prediction.predictor.running() as runner:
            runner.network = counting
            prediction.run(runner=runner)
    assert len(counted) == 2 * len(tiles)
    flops = sum(int(prediction.predictor.cost.flops(*window)) for window in counted)
    assert flops == 2 * tiles.flops
    assert min(counted) < max(counted)  # small blocks at the border have small windows


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float16])
def test_half_is_the_mean_of_what_is_there(dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (2, 5, 7)).astype(dtype)
    half = halved(pixels, are_labels=False)
    assert half.dtype == dtype and half.shape == (2, 3, 4)
    for y in range(3):
        for x in range(4):
            mean = pixels[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(float).mean((1, 2))
            expected = np.floor(mean + 0.5) if np.dtype(dtype).kind == "u" else mean
            np.testing.assert_allclose(half[:, y, x], expected, rtol=1e-3)


def test_zarr_in_is_tiff_in(stack_file: Path, tmp_path: Path) -> None:
    pixels = read_stack(stack_file)
    zarr.create_array(tmp_path / "s.zarr", data=pixels, chunks=(1, 32, 32))
    from_tiff = predict_stack(stack_file, MODEL, tmp_path / "a.tif", **OPTIONS)
    from_zarr = predict_stack(tmp_path / "s.zarr", MODEL, tmp_path / "b.tif", **OPTIONS)
    np.testing.assert_array_equal(tifffile.imread(from_tiff), tifffile.imread(from_zarr))


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_shards_that_an_image_has_lost_are_told_and_made_again(
    stack_file: Path, tmp_path: Path, ngff: Any
) -> None:
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", ngff=ngff, **OPTIONS)
    whole = contents(out)
    folder = out / ("0/c" if ngff == "0.5" else "0")
    shards = (file for file in folder.rglob("*") if file.is_file() and file.name.isdigit())
    sorted(shards)[-1].unlink()
    sorted(file for file in (out / "1").rglob("*") if file.name.isdigit() and file.is_file())[
        0
    ].unlink()
    any_grey = network(input_mean=(0.0,), input_std=(1.0,))
    with pytest.raises(InputError, match="is missing, which was there when it was complete"):
        predict_stack(out, any_grey, tmp_path / "of_it.tif", tile=76)
    with pytest.raises(InputError, match="the --shard that it was made with"):
        predict_stack(stack_file, MODEL, out, ngff=ngff, resume=True, **OPTIONS | {"shard": 128})
    predict_stack(stack_file, MODEL, out, ngff=ngff, resume=True, **OPTIONS)
    assert contents(out) == whole


@pytest.mark.parametrize(
    ("options", "damage"),
    [
        *(({}, "cut"), ({}, "garbage"), ({"ngff": "0.4"}, "cut"), ({"ngff": "0.4"}, "garbage")),
        *(({"compression": "none", "shard": 32}, "cut"), ({"shard": 32}, "garbage")),
    ],
)
def test_damaged_shards_of_a_complete_image_are_made_again(
    stack_file: Path, tmp_path: Path, options: dict[str, Any], damage: str
) -> None:
    options = OPTIONS | options
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **options)
    whole = contents(out)
    for level_ in ("0", "1"):
        files = [file for file in (out / level_).rglob("*") if file.name.isdigit()]
        file = sorted(file for file in files if file.is_file())[1]
        content = file.read_bytes()
        garbage = np.random.default_rng(0).bytes(len(content))
        file.write_bytes(garbage if damage == "garbage" else content[:-9])
        before = contents(out)
        if options["shard"] == 64:
            with pytest.raises(InputError, match="the --shard that it was made with"):
                predict_stack(stack_file, MODEL, out, resume=True, **options | {"shard": 128})
        assert contents(out) == before
        predict_stack(stack_file, MODEL, out, resume=True, **options)
        assert contents(out) == whole


@pytest.mark.parametrize(
    ("ngff", "name"),
    [("0.5", "zarr.json"), ("0.5", "0/zarr.json"), ("0.4", ".zattrs"), ("0.4", "1/.zarray")],
)
def test_damaged_descriptions_are_told_with_the_cure_which_helps(
    stack_file: Path, tmp_path: Path, ngff: Any, name: str
) -> None:
    options = {**OPTIONS, "ngff": ngff}
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **options)
    whole = contents(out)
    (out / name).write_text("{")
    with pytest.raises(InputError, match=r"damaged: .*; --overwrite without --resume begins"):
        predict_stack(stack_file, MODEL, out, resume=True, **options)
    predict_stack(stack_file, MODEL, out, overwrite=True, **options)
    assert contents(out) == whole


@pytest.mark.parametrize("begun", ["job.json", "zarr.json"])
def test_what_is_no_part_of_an_image_is_never_removed(
    stack_file: Path, tmp_path: Path, begun: str
) -> None:
    out = tmp_path / "o.zarr"
    (out / "labels").mkdir(parents=True)
    (out / "labels/by_hand.txt").write_text("a year of work")
    (out / begun).write_text("{}")
    for resume in (False, True):
        message = "cannot be resumed" if resume and begun == "job.json" else "holds labels, which"
        with pytest.raises(InputError, match=message):
            predict_stack(stack_file, MODEL, out, overwrite=True, resume=resume, **OPTIONS)
        assert sorted(contents(out)) == sorted([begun, "labels/by_hand.txt"])


def test_what_was_added_to_an_image_is_not_removed_with_it(
    stack_file: Path, tmp_path: Path
) -> None:
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **OPTIONS)
    (out / "labels").mkdir()
    (out / "labels/by_hand.txt").write_text("a year of work")
    for resume in (False, True):
        with pytest.raises(InputError, match="holds labels, which is no part of an image"):
            predict_stack(
                stack_file, MODEL, out, overwrite=True, resume=resume, kind="mask", **OPTIONS
            )
    assert "labels/by_hand.txt" in contents(out)
    assert "zarr.json" in contents(out)


@pytest.mark.parametrize("kind", ["probability", "logits", "instances"])
@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
def test_times_within_slices_become_slices_within_times(tmp_path: Path, kind: Any) -> None:
    stack = np.random.default_rng(3).integers(0, 256, (2, 3, 40, 50)).astype(np.uint8)
    source = tmp_path / "s.ome.tif"
    tifffile.imwrite(source, stack, ome=True, metadata={"axes": "ZTYX"})
    tiff = predict_stack(source, MODEL, tmp_path / "o.tif", kind=kind)
    expected = tifffile.imread(tiff).swapaxes(0, 1)  # T, Z
    if kind == "logits":
        expected = expected.swapaxes(1, 2)  # T, C, Z
    out = predict_stack(source, MODEL, tmp_path / "o.zarr", kind=kind, verify=True)
    np.testing.assert_allclose(level(out), expected, rtol=0, atol=1e-5)
    part = predict_stack(source, MODEL, tmp_path / "part.zarr", kind=kind, z="1:4")
    tiff = predict_stack(source, MODEL, tmp_path / "part.tif", kind=kind, z="1:4")
    plain = tifffile.imread(tiff)
    plain = plain.swapaxes(0, 1) if kind == "logits" else plain
    np.testing.assert_allclose(level(part), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("out", ["o.tif", "o.zarr"])
@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
def test_arrays_of_colours_and_arrays_that_say_nothing_of_their_axes(
    tmp_path: Path, out: str
) -> None:
    def whole(path: Path) -> np.ndarray:
        return level(path) if out.endswith(".zarr") else tifffile.imread(path)

    pixels = np.random.default_rng(4).integers(0, 256, (2, 3, 40, 50)).astype(np.uint8)
    colour = network(in_channels=3, input_mean=(100.0,) * 3, input_std=(50.0,) * 3)
    names = ["z", "c", "y", "x"]
    zarr.create_array(
        tmp_path / "c.zarr", data=pixels, chunks=(1, 1, 32, 32), dimension_names=names
    )
    found = whole(predict_stack(tmp_path / "c.zarr", colour, tmp_path / f"c_{out}"))
    expected = np.stack([OverlapTilePredictor(colour)(image)[1] for image in pixels])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    zarr.create_array(tmp_path / "p.zarr", data=pixels, chunks=(1, 1, 32, 32))
    path = predict_stack(tmp_path / "p.zarr", MODEL, tmp_path / out, axes="TZYX")
    expected = [[OverlapTilePredictor(MODEL)(image)[1] for image in part] for part in pixels]
    np.testing.assert_allclose(whole(path), np.array(expected), rtol=0, atol=1e-5)


def test_overwriting_behind_a_link_leaves_nothing_of_what_was_there(
    stack_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o.zarr").symlink_to("elsewhere")
    predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **OPTIONS)
    other = network(seed=1)
    out = predict_stack(stack_file, other, tmp_path / "o.zarr", **OPTIONS, overwrite=True)
    expected = predict_stack(stack_file, other, tmp_path / "expected.zarr", **OPTIONS)
    np.testing.assert_array_equal(level(out), level(expected))
    assert out.is_symlink()


def test_what_cannot_be_removed_to_make_room_is_told(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **OPTIONS)

    unlink = os.unlink

    def refusing(path: Any, **options: Any) -> None:
        if Path(path).name.isdigit():  # a shard
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refusing)
    with pytest.raises(InputError, match="cannot be removed: Permission denied"):
        predict_stack(stack_file, network(seed=1), out, **OPTIONS, overwrite=True)


@pytest.mark.parametrize(
    ("code", "ngff"), [(errno.EPERM, "0.5"), (errno.ENOTSUP, "0.4"), (errno.EINVAL, "0.5")]
)
def test_file_systems_without_hard_links_will_do(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, ngff: Any
) -> None:
    def no_link(*names: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), *names)

    options = {**OPTIONS, "ngff": ngff}
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **options)
    monkeypatch.setattr(os, "link", no_link)
    out = tmp_path / "o.zarr"
    for part in ("0/2", "1/2"):
        predict_stack(stack_file, MODEL, out, machines=Machines(part=part), **options)
        if part == "0/2":
            assert (out / "job.json").exists()
            with pytest.raises(InputError, match="cannot be resumed, it was begun with"):
                predict_stack(stack_file, network(seed=1), out, resume=True, **options)
    assert contents(out) == contents(whole)
    predict_stack(stack_file, MODEL, out, resume=True, **options)
    assert contents(out) == contents(whole)


def test_claim_without_hard_links_is_one_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*names: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    place, start = Folder(tmp_path), threading.Barrier(8)

    def claim(k: int) -> bool:
        start.wait()
        return place.write("job.json", b"%d" % k, replace=False)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(claim, range(8)))
    assert found.count(True) == 1
    assert place.read("job.json") == b"%d" % found.index(True)
    assert place.entries() == ["job.json"]


def test_claim_that_is_being_written_is_waited_for(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **OPTIONS)
    out, read, asked = tmp_path / "o.zarr", Folder.read, []
    predict_stack(stack_file, MODEL, out, machines=Machines(part="0/2"), **OPTIONS)

    def slow(place: Folder, key: str, size: int | None = None) -> bytes | None:
        if key == "job.json":
            asked.append(key)
            if len(asked) < 3:
                return b""
        return read(place, key, size)

    monkeypatch.setattr(Folder, "read", slow)
    predict_stack(stack_file, MODEL, out, machines=Machines(part="1/2"), **OPTIONS)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("ngff", ["0.5", "0.4"])
def test_kill_before_or_behind_the_description_costs_no_block(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ngff: Any
) -> None:
    options: dict[str, Any] = {"kind": "instances", "ngff": ngff, **OPTIONS}
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **options)
    compute, computed = TileRunner.compute, []
    monkeypatch.setattr(
        TileRunner, "compute", lambda *a, **k: computed.append(1) or compute(*a, **k)
    )
    for is_behind in (False, True):
        out = tmp_path / f"o{is_behind}.zarr"

        def killed(*arguments: Any, is_behind: bool = is_behind) -> None:
            if is_behind:
                write_group(*arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(zarr_output, "write_group", killed)
            predict_stack(stack_file, MODEL, out, **options)
        assert computed
        computed.clear()
        assert (out / "job.json").exists()
        predict_stack(stack_file, MODEL, out, resume=True, **options)
        assert not computed and contents(out) == contents(whole)


def test_process_that_describes_what_another_has_just_completed_leaves_it(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_stack(stack_file, MODEL, tmp_path / "whole.zarr", **OPTIONS)

    def late(place: Folder, *arguments: Any) -> None:
        place.remove("job.json")  # as the other one did
        write_group(place, *arguments)

    monkeypatch.setattr(zarr_output, "write_group", late)
    out = predict_stack(stack_file, MODEL, tmp_path / "o.zarr", **OPTIONS)
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("is_same", [False, True])
def test_what_has_begun_anew_is_not_described_by_the_first_run(
    stack_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_same: bool
) -> None:
    """Also not where both are of the same job: nothing of the second one is there yet."""
    model = MODEL if is_same else network(1)
    out = tmp_path / "o.zarr"

    def late(place: Folder, *arguments: Any) -> None:
        with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
            patch.setattr(BlockArray, "write", lambda *_: _interrupt())
            predict_stack(stack_file, model, out, overwrite=True, **OPTIONS)
        write_group(place, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(zarr_output, "write_group", late)
        with pytest.raises(InputError, match="another run has begun it anew"):
            predict_stack(stack_file, MODEL, out, **OPTIONS)
    assert not (out / "zarr.json").exists()
    whole = predict_stack(stack_file, model, tmp_path / "whole.zarr", **OPTIONS)
    predict_stack(stack_file, model, out, resume=True, **OPTIONS)
    assert contents(out) == contents(whole)


def _interrupt() -> None:
    raise KeyboardInterrupt
