"""Weight maps of stacks on disc: equal to those of arrays, and whole whatever kills the process."""

from __future__ import annotations

import json
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from unet_repro.errors import InputError, InputNote
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.labels import read_meaning
from unet_repro.images.stacks import read_stack
from unet_repro.weight_maps import stack as weight_stack
from unet_repro.weight_maps.stack import write_weight_map
from unet_repro.weight_maps.weight_map import weigh, weight_map


def ids(depth: int = 5, side: int = 40, dtype: str = "uint16") -> np.ndarray:
    """Rectangles of 1 to 6 cells a slice, some of them touching."""
    rng = np.random.default_rng(7)
    stack = np.zeros((depth, side, side), dtype)
    for slice_ in stack:
        for cell in range(1, rng.integers(2, 7)):
            y, x = rng.integers(side - 5, size=2)
            slice_[y : y + rng.integers(4, 15), x : x + rng.integers(4, 15)] = cell
    return stack


def masks() -> np.ndarray:
    """0/255, the first slice empty: seen alone it could be a 0/1 mask as well."""
    stack = np.where(ids(dtype="uint8") > 0, 255, 0).astype(np.uint8)
    stack[0] = 0
    return stack


def spoiled_masks() -> np.ndarray:
    """The masks after a blur: every value up to 255 on the rims of the cells."""
    return np.stack([ndimage.uniform_filter(slice_, 3) for slice_ in masks()])


def unknown_pixels() -> np.ndarray:
    stack = ids(dtype="int32")
    stack[:, :6] = -1
    return stack


def two_ranges() -> np.ndarray:
    """A mask whose slices hold 0/1 and 0/255."""
    stack = np.zeros((2, 9, 20), np.uint8)
    stack[0, :, :5] = stack[0, :, 8:] = 1
    stack[1, :, :5] = stack[1, :, 8:] = 255
    return stack


def save(path: Path, stack: np.ndarray, **options) -> Path:
    tifffile.imwrite(path, stack, photometric="minisblack", **options)
    return path


CASES = {
    "ids": (ids(), {}),
    "one slice, by all threads": (ids(1), {}),
    "mask, first slice empty": (masks(), {}),
    "1-bit mask": (masks() > 0, {}),
    "0/1 and 0/255": (two_ranges(), {}),
    "ids by force": (masks(), {"label_kind": "ids"}),
    "mask by force": (spoiled_masks(), {"label_kind": "mask"}),
    "spoiled mask, touching": (
        spoiled_masks(),
        {"label_kind": "mask", "separate_touching": True, "separation_px": 2.5},
    ),
    "whole numbers as floating-point": (ids().astype(np.float32), {}),
    "touching": (ids(), {"separate_touching": True}),
    "touching masks": (masks(), {"separate_touching": True}),
    "touching, no balance": (ids(), {"separate_touching": True, "class_balance": None}),
    "unknown pixels": (unknown_pixels(), {"ignore_label": -1}),
    "touching and unknown": (unknown_pixels(), {"ignore_label": -1, "separate_touching": True}),
    "settings": (ids(), {"w0": 3.5, "sigma": 2.0, "class_balance": None}),
    "wide ridge": (ids(), {"separate_touching": True, "separation_px": 2.5}),
    "masks, wide ridge": (masks(), {"separate_touching": True, "separation_px": 3}),
    "falk2019": (ids(), {"variant": "falk2019", "sigma": 4.0}),
    "classes": (ids(), {"label_kind": "classes"}),
    "touching classes": (ids(), {"label_kind": "classes", "separate_touching": True}),
    "unknown classes": (unknown_pixels(), {"label_kind": "classes", "ignore_label": -1}),
}


@pytest.mark.filterwarnings("default::unet_repro.errors.InputNote")
@pytest.mark.parametrize("case", CASES)
def test_equals_the_weight_map_of_the_whole_stack(tmp_path, case):
    stack, settings = CASES[case]
    labels = save(tmp_path / "labels.tif", stack)
    write_weight_map(labels, tmp_path / "w.tif", threads=3, progress=False, **settings)
    written = read_stack(tmp_path / "w.tif")
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, weight_map(stack, **settings))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.tif", "w.tif"]


@pytest.mark.parametrize("axes", ["TZYX", "ZTYX"])
def test_times_and_slices_are_written_as_they_were_read(tmp_path, axes):
    stack = ids(6).reshape(2, 3, 40, 40)
    save(tmp_path / "l.tif", stack, ome=True, metadata={"axes": axes})
    save(tmp_path / "plain.tif", stack.reshape(6, 40, 40))
    said = f"{axes[0]} x {axes[1]} = 2 x 3: read as 6 slices"
    with pytest.warns(InputNote, match=said):
        write_weight_map(tmp_path / "l.tif", tmp_path / "w.tif", progress=False)
    write_weight_map(tmp_path / "plain.tif", tmp_path / "p.tif", progress=False)
    with tifffile.TiffFile(tmp_path / "w.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == (axes, stack.shape)
        written = file.asarray().reshape(6, 40, 40)
    np.testing.assert_array_equal(written, read_stack(tmp_path / "p.tif"))


@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
def test_times_within_slices_become_slices_within_times_in_ome_zarr(tmp_path):
    stack = ids(6).reshape(2, 3, 40, 40)
    save(tmp_path / "l.tif", stack, ome=True, metadata={"axes": "ZTYX"})
    write_weight_map(tmp_path / "l.tif", tmp_path / "w.tif", progress=False)
    write_weight_map(tmp_path / "l.tif", tmp_path / "w.zarr", progress=False)
    written = zarr.open_group(tmp_path / "w.zarr", mode="r")["0"][:]
    np.testing.assert_array_equal(written, tifffile.imread(tmp_path / "w.tif").swapaxes(0, 1))


def test_scale_compression_and_settings_are_in_the_file(tmp_path):
    metadata = {"axes": "TYX", "unit": "nm", "finterval": 1.5}
    labels = tmp_path / "labels.tif"
    save(labels, ids(), imagej=True, resolution=(2.5, 4.0), metadata=metadata)
    options = {"variant": "falk2019", "compression": "lzw", "progress": False}
    write_weight_map(labels, tmp_path / "w.tif", **options)
    with tifffile.TiffFile(tmp_path / "w.tif") as file:
        assert file.series[0].axes == "TYX"
        assert {page.keyframe.compression for page in file.pages} == {tifffile.COMPRESSION.LZW}
    assert read_calibration(tmp_path / "w.tif") == read_calibration(labels)
    record = json.loads(read_info(tmp_path / "w.tif"))
    assert record["settings"] == {
        "w0": 50.0,
        "sigma": 6.0,
        "class_balance": "none",
        "variant": "falk2019",
        "label_kind": "auto",
        "ignore_label": None,
        "separate_touching": False,
        "separation_px": 1.0,
        "axes": "",
        "compression": "lzw",
    }
    assert record["labels"]["name"] == "labels.tif" and len(record["labels"]["sha256"]) == 64


def test_survey_tells_the_middle_slice_and_the_stacks_balance(tmp_path):
    seen = []
    labels = save(tmp_path / "labels.tif", masks())
    told = {"progress": False, "on_survey": seen.append}
    write_weight_map(labels, tmp_path / "w.tif", **told)
    (survey,) = seen
    np.testing.assert_array_equal(survey.middle, masks()[2])
    cells = int(np.count_nonzero(masks()))
    assert survey.class_balance[1] == pytest.approx(masks().size / (2 * cells))
    assert survey.reading == read_meaning(masks())


@pytest.mark.parametrize(("compression", "threads"), [("none", 1), ("zlib", 2)])
def test_memory_does_not_grow_with_the_number_of_slices(tmp_path, compression, threads):
    write_weight_map(save(tmp_path / "warm.tif", ids()), tmp_path / "w.tif", progress=False)
    output_bytes, peaks = 4 * 256**2, []  # of a slice
    for depth in (4, 60):
        labels = save(tmp_path / f"{depth}.tif", np.tile(ids(1, side=256), (depth, 1, 1)))
        options = {"compression": compression, "threads": threads, "progress": False}
        tracemalloc.start()
        write_weight_map(labels, tmp_path / f"w{depth}.tif", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # How far two threads overlap is chance (a slice at work takes 20 bytes a pixel), and so is what
    # the garbage collector has not yet taken. One byte a pixel that is kept would add 14 of them.
    assert peaks[1] < peaks[0] + 6 * output_bytes
    assert peaks[1] < 15 * output_bytes


class Stop(Exception):
    pass


@pytest.fixture
def half_done(tmp_path, monkeypatch):
    """A call that broke off at its fourth slice of five."""
    labels = save(tmp_path / "labels.tif", ids())
    count_calls(monkeypatch, stop_at=4)
    with pytest.raises(Stop):
        write_weight_map(labels, tmp_path / "w.tif", threads=1, progress=False)
    monkeypatch.undo()
    return tmp_path


def count_calls(monkeypatch, stop_at: int = 0) -> list[int]:
    """Count the slices that are weighted; raise at one of them."""
    weighted = []

    def counted(stack, reading, **settings):
        weighted.append(1)
        if len(weighted) == stop_at:
            raise Stop
        return weigh(stack, reading, **settings)

    monkeypatch.setattr(weight_stack, "weigh", counted)
    return weighted


def test_resume_computes_only_what_is_missing(half_done, monkeypatch):
    assert not (half_done / "w.tif").exists()
    weighted = count_calls(monkeypatch)
    options = {"threads": 1, "progress": False}
    write_weight_map(half_done / "labels.tif", half_done / "w.tif", resume=True, **options)
    assert len(weighted) == 2
    write_weight_map(half_done / "labels.tif", half_done / "again.tif", **options)
    assert (half_done / "w.tif").read_bytes() == (half_done / "again.tif").read_bytes()
    assert sorted(file.name for file in half_done.iterdir()) == ["again.tif", "labels.tif", "w.tif"]


def test_resume_with_other_settings_or_labels_is_refused(half_done):
    labels, out = half_done / "labels.tif", half_done / "w.tif"
    other = ids()
    other[4, 39, 39] += 1
    for settings, stack, message in (
        ({"sigma": 4}, ids(), r"w\.tif: cannot be resumed, .* settings.sigma 5.0, not 4.0"),
        ({"class_balance": None}, ids(), 'settings.class_balance "frequency", not "none"'),
        ({}, other, r"begun with labels\.sha256 \"\w{64}\", not"),
    ):
        save(labels, stack)
        with pytest.raises(InputError, match=message):
            write_weight_map(labels, out, resume=True, progress=False, **settings)
    save(labels, ids())
    write_weight_map(labels, out, resume=True, progress=False)  # nothing was lost


def test_resume_keeps_the_output_if_it_is_complete(tmp_path, monkeypatch):
    labels = save(tmp_path / "labels.tif", ids())
    write_weight_map(labels, tmp_path / "w.tif", progress=False)
    before = (tmp_path / "w.tif").stat()
    weighted = count_calls(monkeypatch)
    write_weight_map(labels, tmp_path / "w.tif", resume=True, progress=False)
    assert (tmp_path / "w.tif").stat().st_ino == before.st_ino and not weighted
    with pytest.raises(InputError, match="exists already; give --overwrite"):
        write_weight_map(labels, tmp_path / "w.tif", sigma=2, resume=True, progress=False)
    assert (tmp_path / "w.tif").stat().st_ino == before.st_ino
    assert not (tmp_path / ".w.tif.parts").exists()


def test_map_that_was_cut_since_is_not_complete(tmp_path):
    labels, out = tmp_path / "labels.tif", tmp_path / "w.tif"
    tifffile.imwrite(labels, ids(), photometric="minisblack")
    write_weight_map(labels, out, progress=False)
    out.write_bytes(out.read_bytes()[:-900])
    with pytest.raises(InputError, match=r"exists already, damaged \(.*truncated.*--overwrite"):
        write_weight_map(labels, out, resume=True, progress=False)


def test_resume_remembers_that_an_old_output_may_be_replaced(tmp_path, monkeypatch):
    labels, out = save(tmp_path / "labels.tif", ids()), tmp_path / "w.tif"
    out.write_text("old")
    count_calls(monkeypatch, stop_at=2)
    with pytest.raises(Stop):
        write_weight_map(labels, out, overwrite=True, threads=1, progress=False)
    assert out.read_text() == "old"
    monkeypatch.undo()
    write_weight_map(labels, out, resume=True, progress=False)
    np.testing.assert_array_equal(read_stack(out), weight_map(ids()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"w0": -1}, "w0 is -1"),  # as `weight_map` refuses it
        ({"class_balance": "median"}, "class_balance is 'median'"),
        ({"compression": "jpeg"}, "compression is 'jpeg': one of zlib, zstd, lzw, none is needed"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    labels = save(tmp_path / "labels.tif", ids())
    with pytest.raises(InputError, match=message):
        write_weight_map(labels, tmp_path / "w.tif", **settings)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.tif"]


def test_bad_labels_are_refused_and_leave_nothing(tmp_path):
    stack = ids(dtype="int16")
    stack[3, 2, 1] = -7
    labels = save(tmp_path / "labels.tif", stack)
    with pytest.raises(InputError, match=r"labels\.tif: slice 3: labels hold -7"):
        write_weight_map(labels, tmp_path / "w.tif", progress=False)
    for bad, message in (
        (np.zeros((2, 5, 6), np.uint8), r"labels\.tif: no label is above 0: there are no cells"),
        (np.where(ids() > 0, 255, 0), r"no label is above 0"),  # all of them unknown
        (np.arange(30).reshape(1, 5, 6) % 7 * 0.5, r"slice 0: the labels .* hold 0.5: integers"),
        (np.arange(30 * 40, dtype=np.uint16).reshape(1, 30, 40), "look like a grey image"),
    ):
        save(labels, bad)
        with pytest.raises(InputError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore", InputNote)
            write_weight_map(labels, tmp_path / "w.tif", progress=False, ignore_label=255)
    save(labels, ids())
    labels.write_bytes(labels.read_bytes()[:-99])
    with pytest.raises(InputError, match="truncated"):
        write_weight_map(labels, tmp_path / "w.tif", progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["labels.tif"]


def test_labels_are_never_replaced(tmp_path):
    labels = save(tmp_path / "labels.tif", ids())
    before = labels.read_bytes()
    (tmp_path / "link.tif").symlink_to(labels)
    for out in (labels, tmp_path / "link.tif"):
        with pytest.raises(InputError, match="would be among the files"):
            write_weight_map(labels, out, overwrite=True)
    assert labels.read_bytes() == before
    (tmp_path / "folder").mkdir()
    save(tmp_path / "folder/0.tif", ids()[0])
    with pytest.raises(InputError, match="would be among the files"):
        write_weight_map(tmp_path / "folder", tmp_path / "folder/w.tif")
    write_weight_map(tmp_path / "folder", tmp_path / "folder/maps/w.tif", progress=False)
    np.testing.assert_array_equal(read_stack(tmp_path / "folder/maps/w.tif"), weight_map(ids()[:1]))


def test_short_work_says_nothing_and_long_work_does(tmp_path, capsys, monkeypatch):
    labels = save(tmp_path / "labels.tif", ids())
    write_weight_map(labels, tmp_path / "w.tif")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("unet_repro.progress.LINE_EVERY_S", 0)
    write_weight_map(labels, tmp_path / "w.tif", overwrite=True)
    shown = capsys.readouterr()
    assert "weight maps" in shown.err and "5/5" in shown.err and shown.out == ""


def test_scale_is_that_of_the_level_of_the_labels(tmp_path):
    steps = [[1.0, 0.5 * 2**level, 0.5 * 2**level] for level in range(2)]
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    datasets = []
    labels = zarr.create_group(tmp_path / "labels.zarr")
    for level, step in enumerate(steps):
        labels.create_array(str(level), data=ids()[:, :: 2**level, :: 2**level])
        scale = [{"type": "scale", "scale": step}]
        datasets.append({"path": str(level), "coordinateTransformations": scale})
    multiscales = [{"axes": axes, "datasets": datasets}]
    labels.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    write_weight_map(tmp_path / "labels.zarr", tmp_path / "w.tif", level=1, progress=False)
    assert read_calibration(tmp_path / "w.tif").resolution == (1.0, 1.0)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3://bucket/w.tif", r"\.zarr is needed behind a URL"),
        ("w.png", r"\.tif or \.zarr is needed for a stack"),
        ("w", r"\.tif or \.zarr is needed for a stack"),
    ],
)
def test_a_place_of_no_stack_is_refused(tmp_path, monkeypatch, out, words):
    monkeypatch.chdir(tmp_path)
    labels = save(tmp_path / "l.tif", ids())
    with pytest.raises(InputError, match=words):
        write_weight_map(labels, out, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["l.tif"]
