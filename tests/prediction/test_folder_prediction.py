"""Folders with images of several sizes: each predicted as it is alone; all or none appear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.images.calibration import read_info
from unet_repro.images.stacks import read_stack, write_stack
from unet_repro.network.model import UNet
from unet_repro.prediction.local import BlockRun
from unet_repro.prediction.predict_stack import predict_stack, prepared
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.settings import PredictionSettings
from unet_repro.prediction.tile_runner import TileRunner

SHAPE = UNetConfig(depth=2, base_channels=4, input_mean=(100.0,), input_std=(50.0,))
TILE = {"tile": 76}  # keeps 40 px


@pytest.fixture(scope="module")
def model() -> UNet:
    return UNet(SHAPE, generator=torch.Generator().manual_seed(0)).eval()


def folder_of(folder: Path, images: dict[str, tuple[int, int]]) -> Path:
    folder.mkdir(parents=True)
    for number, (name, size) in enumerate(images.items()):
        image = np.random.default_rng(number).integers(0, 256, size).astype(np.uint8)
        if name.endswith(".png"):
            (folder / name).write_bytes(imagecodecs.png_encode(image))
        else:
            tifffile.imwrite(folder / name, image, resolution=(number + 2, number + 2))
    return folder


SIZES = {"1.png": (70, 90), "2.tif": (31, 44), "10.tif": (45, 8)}  # 2 x 3, 1 x 2, 2 x 1 tiles


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "in", SIZES)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=2, max_size=3))
def test_each_image_is_predicted_as_it_is_alone(
    model: UNet, tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    source = folder_of(folder / "in", {f"{k}.tif": size for k, size in enumerate(sizes)})
    out = predict_stack(source, model, folder / "out")
    assert sorted(contents(out)) == sorted(contents(source))
    for k in range(len(sizes)):
        alone = predict_stack(source / f"{k}.tif", model, folder / f"{k}.tif")
        assert np.array_equal(tifffile.imread(out / f"{k}.tif"), tifffile.imread(alone))


def test_names_types_scales_and_numbers_are_those_of_the_images(
    model: UNet, source: Path, tmp_path: Path
) -> None:
    out = predict_stack(source, model, tmp_path / "out", kind="uint8", z="0:2")
    assert sorted(contents(out)) == ["1.png", "2.tif"]
    assert [image.shape for image in read_stack(out)] == [(70, 90), (31, 44)]
    with tifffile.TiffFile(out / "2.tif") as file:
        assert file.pages.first.tags.valueof("XResolution") == (3, 1)
    part = predict_stack(source, model, tmp_path / "part", kind="logits", roi="4:9,2:8")
    for name in ("1.tif", "2.tif", "10.tif"):
        scores = tifffile.imread(part / name)
        assert scores.shape == (2, 5, 6) and scores.dtype == np.float32


def test_the_plan_is_that_of_all_images_and_the_memory_of_the_largest(
    model: UNet, source: Path, tmp_path: Path
) -> None:
    with prepared(source, model, tmp_path / "out", PredictionSettings(**TILE)) as prediction:
        outlook = prediction.outlook()
        text = str(outlook)
        peaks = [image.plan.peak_bytes for image in prediction.images]
    assert [len(plan.tiles) for plan in outlook.plans] == [6, 2, 2]
    assert outlook.output_bytes == 4 * (70 * 90 + 31 * 44 + 45 * 8)
    assert outlook.largest.peak_bytes == max(peaks) and outlook.seconds > 0
    assert "3 of 45 × 8 to 70 × 90 px" in text and "tiles              10" in text
    assert not (tmp_path / "out").exists()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Where the tiles began that the network was run on."""
    compute, found = TileRunner.compute, []

    def counting(runner: TileRunner, region: Any, *arguments: Any, **options: Any) -> Any:
        found.append((region.rows.tile.start, region.columns.tile.start))
        return compute(runner, region, *arguments, **options)

    monkeypatch.setattr(TileRunner, "compute", counting)
    return found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "out.tif"}, r"out\.tif: one file cannot hold the images of .*\(45 × 8 to 70 × 90"),
        ({"out": "in"}, "would be among the files"),
        ({"roi": "0:40,0:8"}, r"2\.tif: --roi, rows, '0:40': .* <= 31"),
        ({"z": "2:4"}, "--z '2:4'"),
        ({"memory": "1MiB"}, r"1\.png: 1 MiB of memory are too few"),
        ({"out": "there"}, "there: exists already; give --overwrite"),
        ({"out": "other", "overwrite": True}, r"holds mine\.txt, which is none of the files"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_computed(
    model: UNet,
    source: Path,
    tmp_path: Path,
    computed: list[tuple[int, int]],
    options: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "2.tif").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        predict_stack(source, model, tmp_path / options.pop("out", "out"), **options)
    assert not computed and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(  # in the first image, behind it, in the second, in the third
    ("kind", "stopped_at"),
    [("uint8", 3), ("uint8", 6), ("probability", 7), ("probability", 9)],  # uint8: 1.png is PNG
)
def test_interrupted_and_resumed_equals_undisturbed(
    model: UNet,
    source: Path,
    tmp_path: Path,
    computed: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    stopped_at: int,
) -> None:
    whole = predict_stack(source, model, tmp_path / "whole", kind=kind, **TILE)
    tiles = computed.copy()
    assert len(tiles) == 10
    computed.clear()
    stopped_at = min(stopped_at, len(tiles) - 1)
    compute = TileRunner.compute

    def stopping(*arguments: Any, **options: Any) -> Any:
        if len(computed) == stopped_at:
            raise KeyboardInterrupt
        return compute(*arguments, **options)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TileRunner, "compute", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(source, model, out, kind=kind, **TILE)
    assert not out.exists()
    with pytest.raises(InputError, match="an unfinished run of it is there"):
        predict_stack(source, model, out, kind=kind)
    with pytest.raises(InputError, match=r"begun with settings\.average"):
        predict_stack(source, model, out, kind=kind, average="dihedral", resume=True)
    with pytest.raises(InputError, match=r"begun with settings\.z"):
        predict_stack(source, model, out, kind=kind, z="0:2", resume=True)
    predict_stack(source, model, out, kind=kind, resume=True)  # with the tiles that it had
    assert computed == tiles  # each once
    assert contents(out) == contents(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]
    predict_stack(source, model, out, kind=kind, resume=True)
    assert computed == tiles  # it is kept


def test_a_kill_before_an_image_is_marked_as_complete_costs_nothing_but_time(
    model: UNet, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_stack(source, model, tmp_path / "whole", kind="uint8")
    write = BlockArray.write

    def killed(blocks: BlockArray, number: int, values: np.ndarray) -> None:
        if str(blocks.place.path.parent.name) == ".out.parts":
            raise KeyboardInterrupt
        write(blocks, number, values)

    with monkeypatch.context() as patch:
        patch.setattr(BlockArray, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_stack(source, model, tmp_path / "out", kind="uint8")
    out = predict_stack(source, model, tmp_path / "out", kind="uint8", resume=True)
    assert contents(out) == contents(whole)


def test_an_image_that_changes_after_it_was_predicted_is_refused(
    model: UNet, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = BlockRun.go

    def changing(run: BlockRun, **options: Any) -> None:
        go(run, **options)
        if run.source.names == ["10.tif"]:
            (source / "1.png").write_bytes(b"another")

    monkeypatch.setattr(BlockRun, "go", changing)
    with pytest.raises(InputError, match=r"1\.png: has changed since reading began"):
        predict_stack(source, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_image_is_verified_and_an_output_is_replaced_by_complete_ones(
    model: UNet, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = predict_stack(source, model, tmp_path / "out")
    before, verify, verified = contents(out), BlockRun._verify, []

    def failing(run: BlockRun, *arguments: Any) -> None:
        verify(run, *arguments)
        verified.extend(run.source.names)
        if len(verified) == len(SIZES):
            raise InputError("a difference")

    with monkeypatch.context() as patch:
        patch.setattr(BlockRun, "_verify", failing)
        with pytest.raises(InputError, match="a difference"):
            predict_stack(source, model, out, average="seven", verify=True, overwrite=True)
    assert verified == list(SIZES) and contents(out) == before  # in natural order
    with pytest.raises(InputError, match=r"holds 1\.tif, which is none of the files to write"):
        predict_stack(source, model, out, kind="labels", overwrite=True)
    predict_stack(source, model, out, average="rotations", overwrite=True)
    assert "rotations" in str(read_info(out / "2.tif")) and contents(out) != before


def test_resume_of_a_complete_folder_of_png_files_keeps_it(
    model: UNet, tmp_path: Path, computed: list[tuple[int, int]]
) -> None:
    source = folder_of(tmp_path / "in", {"1.png": (40, 50), "2.png": (31, 44)})
    out = predict_stack(source, model, tmp_path / "out", kind="mask")
    before, computed_before = contents(out), computed.copy()
    predict_stack(source, model, out, kind="mask", resume=True)
    assert contents(out) == before and computed == computed_before
    with pytest.raises(InputError, match="exists already"):
        predict_stack(source, model, out, kind="mask", threshold=0.7, resume=True)


@pytest.mark.parametrize("second", [(33, 50), (40, 50)])  # of several sizes, or of one
def test_axes_that_are_given_hold_for_each_image(tmp_path: Path, second: tuple[int, int]) -> None:
    shape = replace(SHAPE, in_channels=3, input_mean=(100.0,) * 3, input_std=(50.0,) * 3)
    model = UNet(shape, generator=torch.Generator().manual_seed(0)).eval()
    (tmp_path / "in").mkdir()
    pixels = [
        np.random.default_rng(number).integers(0, 256, (3, *size)).astype(np.uint8)
        for number, size in enumerate([(40, 50), second])
    ]
    for number, image in enumerate(pixels):  # slices, as the file says
        write_stack(tmp_path / "in" / f"{number}.tif", image)
    out = predict_stack(tmp_path / "in", model, tmp_path / "out", axes="CYX")
    for number, image in enumerate(pixels):
        expected = OverlapTilePredictor(model)(image)[1]
        found = tifffile.imread(out / f"{number}.tif")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
