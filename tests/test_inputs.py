"""Inputs as people have them: what is accepted gives the result of the plain TIFF stack."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy import ndimage

from unet_repro.cli import main
from unet_repro.config import UNetConfig
from unet_repro.images.calibration import read_calibration
from unet_repro.images.stacks import read_stack
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.weight_maps.weight_map import frequency_weights, weight_map

rng = np.random.default_rng(0)
GREY = ndimage.gaussian_filter(rng.integers(0, 256, (3, 40, 44)).astype(float), (0, 1, 1))
GREY = np.clip((GREY - 128) * 4 + 128, 0, 255).astype(np.uint8)
SMOOTH = ndimage.gaussian_filter(rng.random((3, 40, 44)), (0, 3, 3))
CELLS = SMOOTH > np.quantile(SMOOTH, 0.55, axis=(1, 2), keepdims=True)
IDS = np.stack([ndimage.label(slice_)[0] for slice_ in CELLS]).astype(np.uint8)
MASK = CELLS * np.uint8(255)


def plain(path: Path, stack: np.ndarray, **options) -> Path:
    metadata = {"axes": "ZYX"}
    tifffile.imwrite(path, stack, photometric="minisblack", metadata=metadata, **options)
    return path


def png(image: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(image))


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def one_file_each(path: Path, stack: np.ndarray, write: Callable[..., None], **options) -> Path:
    path.mkdir()
    for z, slice_ in enumerate(stack):
        write(path / f"{z}.tif", slice_, **options)
    return path


@pytest.fixture
def at(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path / "images.tif", GREY)
    plain(tmp_path / "mask.tif", MASK)
    plain(tmp_path / "ids.tif", IDS)
    shape = UNetConfig(depth=1, base_channels=2, input_mean=(128.0,), input_std=(60.0,))
    network = UNet(shape, generator=torch.Generator().manual_seed(0))
    save_model(network, tmp_path / "m.safetensors")
    return tmp_path


def run(capsys, *arguments) -> str:
    """Run a command that must end well; return what it says on standard error."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.err


def refused(capsys, *arguments) -> str:
    """Run a command that must be refused; return its one line."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1, said.err
    return said.err


IJ = "ImageJ=1.54f\nimages=3\nslices=3\n"
SIGNED = IJ + "cf=0\nc0=-32768.0\nc1=1.0\nvunit=gray value\n"
RGB = np.stack([GREY] * 3, axis=-1)
IMAGES: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "folder of JPEG, PNG, TIFF": (
        lambda p: folder(p, {"1.png": png(GREY[0]), "2.JPG": jpeg(GREY[1]), "3.png": png(GREY[2])}),
        [],
        "",
    ),
    "signed 16 bit of ImageJ": (
        lambda p: ij(p, GREY.astype(np.uint16) + 32768, SIGNED),
        [],
        "calibration",
    ),
    "split ImageJ stack": (
        lambda p: one_file_each(
            p, GREY, tifffile.imwrite, photometric="minisblack", metadata=None, description=IJ
        ),
        [],
        "declares 3",
    ),
    "appended blocks": (lambda p: appended(p), [], ""),
    "planes of colour": (
        lambda p: saved(p, GREY, photometric="rgb", planarconfig="separate"),
        ["--axes", "ZYX"],
        "",
    ),
    "last axis of one sample": (
        lambda p: saved(p, GREY[..., None], photometric="minisblack"),
        [],
        "",
    ),
    "first axis of length 1": (lambda p: saved(p, GREY[None], photometric="minisblack"), [], ""),
    "RGB TIFF": (lambda p: saved(p, RGB, photometric="rgb"), [], "R, G and B"),
    "RGBA PNG": (
        lambda p: folder(p, {f"{z}.png": png(rgba(s)) for z, s in enumerate(GREY)}),
        [],
        "R, G and B",
    ),
    "T x Z": (
        lambda p: saved(p, GREY[:, None], imagej=True, metadata={"axes": "TZYX"}),
        [],
        "",
    ),
    "orientation tag": (
        lambda p: saved(p, GREY, photometric="minisblack", extratags=[(274, 3, 1, 6, True)]),
        [],
        "orientation",
    ),
}


def jpeg(image: np.ndarray) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, level=100))


def rgba(image: np.ndarray) -> np.ndarray:
    return np.stack([image] * 3 + [np.full_like(image, 255)], axis=-1)


def saved(path: Path, stack: np.ndarray, **options) -> Path:
    path = path.with_suffix(".tif")
    tifffile.imwrite(path, stack, **options)
    return path


def ij(path: Path, stack: np.ndarray, description: str) -> Path:
    options = {"photometric": "minisblack", "metadata": None, "description": description}
    return saved(path, stack, **options)


def appended(path: Path) -> Path:
    path = path.with_suffix(".tif")
    plain(path, GREY[:2])
    tifffile.imwrite(path, GREY[2:], photometric="minisblack", append=True)
    return path


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_predicted_as_the_plain_stack(at, capsys, name):
    make, options, said = IMAGES[name]
    source = make(at / "in")
    run(capsys, "predict", "images.tif", "--model", "m.safetensors", "--out", "plain.tif")
    told = run(capsys, "predict", source, "--model", "m.safetensors", "--out", "o.tif", *options)
    expected = read_stack(at / "plain.tif")
    if "JPEG" in name:  # of the second slice's own pixels
        decoded = imagecodecs.jpeg8_decode((source / "2.JPG").read_bytes())
        plain(at / "second.tif", np.stack([GREY[0], decoded, GREY[2]]))
        run(capsys, "predict", "second.tif", "--model", "m.safetensors", "--out", "second_o.tif")
        expected = read_stack(at / "second_o.tif")
    np.testing.assert_array_equal(tifffile.imread(at / "o.tif").reshape(GREY.shape), expected)
    assert said in told and told.count("note: ") == bool(said)


SPOILED = np.stack([imagecodecs.jpeg8_decode(imagecodecs.jpeg8_encode(s, 90)) for s in MASK])
MIXED = np.stack([MASK[0] // 255, MASK[1], MASK[2]])
PALETTE = b"".join(bytes([k, 255 - k, 7 * k % 256]) for k in range(256))


def indexed_png(image: np.ndarray) -> bytes:

    from PIL import Image

    picture = Image.fromarray(image, mode="P")
    picture.putpalette(PALETTE)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


LABELS: dict[str, tuple[Callable[[Path], Path], list[str], str, str]] = {
    "128": (lambda p: plain(p.with_suffix(".tif"), MASK // 255 * 128), [], "mask", "mask"),
    "65535": (
        lambda p: plain(p.with_suffix(".tif"), CELLS * np.uint16(65535)), [], "mask", "mask"),
    "0/1 beside 0/255": (lambda p: plain(p.with_suffix(".tif"), MIXED), [], "mask", "mask"),
    "after JPEG": (
        lambda p: plain(p.with_suffix(".tif"), SPOILED), ["--label-kind", "mask"], "mask", "mask"),
    "CCITT": (
        lambda p: one_file_each(p, CELLS, lambda path, s: Image.fromarray(s).save(
            path, compression="group4")), [], "mask", "mask"),
    "palette PNG": (
        lambda p: folder(p, {f"{z}.png": indexed_png(s) for z, s in enumerate(IDS)}),
        [], "ids", "ids"),
    "whole floating-point numbers": (
        lambda p: plain(p.with_suffix(".tif"), IDS.astype(np.float32)), [], "ids", "ids"),
    "RGB PNG": (
        lambda p: folder(p, {f"{z}.png": png(np.stack([s] * 3, -1)) for z, s in enumerate(MASK)}),
        [], "mask", "mask"),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_weighed_as_the_plain_stack(at, capsys, name):
    make, options, same_as, kind = LABELS[name]
    labels = make(at / "in")
    run(capsys, "weight-map", f"{same_as}.tif", "--out", "plain_w.tif")
    told = run(capsys, "weight-map", labels, "--out", "w.tif", *options)
    np.testing.assert_array_equal(read_stack(at / "w.tif"), read_stack(at / "plain_w.tif"))
    assert f"labels: {kind}" in told and "cells a slice" in told


@pytest.mark.parametrize(
    ("stack", "message"),
    [
        (SPOILED, "blurred, resized or saved as JPEG"),
        (GREY, "look like a grey image"),
    ],
    ids=["after JPEG", "grey image"],
)
@pytest.mark.parametrize("command", ["weight-map", "train", "evaluate", "preview-augmentation"])
def test_labels_that_mean_nothing_sure_are_refused_everywhere(at, capsys, command, stack, message):
    plain(at / "bad.tif", stack)
    arguments = {
        "weight-map": ["bad.tif", "--out", "w.tif"],
        "train": ["images.tif", "bad.tif", "--out", "run", "--iterations", "1"],
        "evaluate": ["bad.tif", "images.tif", "--max-value", "255"],
        "preview-augmentation": ["images.tif", "bad.tif", "--out", "p.png"],
    }[command]
    before = sorted(at.iterdir())
    assert message in refused(capsys, command, *arguments)
    assert sorted(at.iterdir()) == before


TRAIN = ["--preset", "quick", "--depth", "1", "--base-channels", "2", "--tile", "36"]
TRAIN += ["--iterations", "1", "--device", "cpu", "--precision", "float32", "--average", "none"]


def test_train_leaves_unknown_pixels_out_and_says_so(at, capsys):
    unknown = np.where(np.arange(44) < 11, 255, CELLS).astype(np.uint8)
    plain(at / "u.tif", unknown)
    told = run(capsys, "train", "images.tif", "u.tif", "--out", "run", "--ignore-label", "255",
               "--val", "2:3", *TRAIN)  # fmt: skip
    assert "labels: mask, " in told and "25 % unknown pixels" in told
    record = json.loads((at / "run/config.json").read_text())["labels"]
    assert (record["kind"], record["ignore_label"]) == ("mask", 255)
    assert record["unknown"] == 3 * 40 * 11
    assert "25 % unknown pixels" in (at / "run/report.html").read_text()
    # what is unknown is drawn as background, and scored again as it was
    again = run(
        capsys,
        *("evaluate", "run/heldout_labels.tif", "run/heldout_probability.tif", "--json", "e.json"),
    )
    assert "25 % unknown" in again
    metrics = json.loads((at / "run/metrics.json").read_text())
    figures = json.loads((at / "e.json").read_text())["figures"]
    assert figures == metrics["heldout"]["figures"] and metrics["unknown_label"] == 65535


def test_unknown_pixels_are_not_scored(at, capsys):
    unknown = np.where(np.arange(44) < 11, 2, CELLS).astype(np.uint8)
    plain(at / "u.tif", unknown)
    wrong_where_unknown = np.where(unknown == 2, rng.random(CELLS.shape), CELLS)
    plain(at / "p.tif", wrong_where_unknown.astype(np.float32))
    run(capsys, "evaluate", "u.tif", "p.tif", "--ignore-label", "2", "--json", "e.json")
    figures = json.loads((at / "e.json").read_text())["figures"]
    assert figures["pixel_error"] == figures["rand_error"] == figures["warping_error"] == 0
    assert figures["pixel_accuracy"] == figures["pixel_accuracy_at_half"] == 1
    run(capsys, "evaluate", "u.tif", "p.tif", "--ignore-label", "2", "--task", "cells",
        "--json", "c.json")  # fmt: skip
    assert json.loads((at / "c.json").read_text())["figures"]["seg"] == 1


def test_resume_never_replaces_a_model_that_was_given(at, capsys):
    (at / "given").mkdir()
    given = shutil.copy(at / "m.safetensors", at / "given/model.safetensors")
    before = Path(given).read_bytes()
    line = refused(capsys, "train", "images.tif", "mask.tif", "--out", "given", "--resume", *TRAIN)
    assert "no checkpoint.pt" in line and "--init" in line
    assert Path(given).read_bytes() == before
    assert [file.name for file in (at / "given").iterdir()] == ["model.safetensors"]


def test_folders_are_scored_by_name(at, capsys):
    folder(at / "truth", {f"{z}.png": png(IDS[z]) for z in (2, 0, 1)})
    folder(at / "found", {f"{z}.png": png(IDS[z]) for z in range(3)})
    run(capsys, "evaluate", "truth", "found", "--task", "cells", "--json", "e.json")
    assert json.loads((at / "e.json").read_text())["figures"]["seg"] == 1
    (at / "found/2.png").rename(at / "found/3.png")
    line = refused(capsys, "evaluate", "truth", "found", "--task", "cells")
    assert "has no partner for 2" in line or "has no partner for 3" in line


@pytest.mark.parametrize("is_one_folder", [True, False])
def test_masks_under_a_suffix_find_their_images(at, capsys, is_one_folder):
    images = folder(at / "images", {f"img_{z}.png": png(GREY[z]) for z in range(3)})
    masks = images if is_one_folder else folder(at / "masks", {})
    for z, slice_ in enumerate(MASK):
        (masks / f"img_{z}_mask.png").write_bytes(png(slice_))
    pair = [images, masks, "--mask-suffix", "_mask"]
    told = run(capsys, "train", *pair, "--out", "run", "--val", "1:2", *TRAIN)
    assert "labels: mask" in told
    np.testing.assert_array_equal(read_stack(at / "run/heldout_image.tif")[0], GREY[1])
    np.testing.assert_array_equal(read_stack(at / "run/heldout_labels.tif")[0], MASK[1])
    run(capsys, "preview-augmentation", *pair, "--out", "p.png", "--tile", "40", "--samples", "1")
    (masks / "img_1_mask.png").unlink()
    line = refused(capsys, "train", *pair, "--out", "other", *TRAIN)
    assert "has no partner for img_1" in line


def test_8_bit_probabilities_of_our_own_are_read_as_such(at, capsys):
    common = ["images.tif", "--model", "m.safetensors", "--out"]
    run(capsys, "predict", *common, "p.tif")
    run(capsys, "predict", *common, "p8.tif", "--kind", "uint8")
    eight = read_stack(at / "p8.tif")
    plain(at / "foreign.tif", eight)
    plain(at / "exact.tif", (eight / 255).astype(np.float32))
    for task in ("em", "cells"):
        found = {}
        for name in ("p8", "foreign", "exact"):
            more = ["--max-value", "255"] if name == "foreign" else []
            run(capsys, "evaluate", "mask.tif", f"{name}.tif", "--task", task, "--json",
                f"{name}_{task}.json", *more)  # fmt: skip
            found[name] = json.loads((at / f"{name}_{task}.json").read_text())["figures"]
        assert found["p8"] == found["foreign"] == found["exact"]
        assert "--max-value" in refused(capsys, "evaluate", "mask.tif", "foreign.tif",
                                        "--task", task)  # fmt: skip
        for name, other in (("p8", "200"), ("p", "255")):
            line = refused(capsys, "evaluate", "mask.tif", f"{name}.tif", "--max-value", other)
            assert "leave --max-value out" in line


def test_png_files_of_our_own_say_what_they_hold(at, capsys):
    images = folder(at / "images", {f"{z}.png": png(s) for z, s in enumerate(GREY)})
    truth = folder(at / "truth", {f"{z}.png": png(s) for z, s in enumerate(MASK)})
    predict = ["predict", images, "--model", "m.safetensors", "--out"]
    run(capsys, *predict, "p8", "--kind", "uint8")
    run(capsys, *predict, "p")
    for task in ("em", "cells"):
        told = run(capsys, "evaluate", truth, "p8", "--task", task, "--json", f"{task}8.json")
        assert "prediction: P(interior)" in told
        figures = json.loads((at / f"{task}8.json").read_text())["figures"]
        exact = (read_stack(at / "p8") / 255).astype(np.float32)
        plain(at / "exact.tif", exact)
        run(capsys, "evaluate", "mask.tif", "exact.tif", "--task", task, "--json", f"{task}.json")
        assert figures == json.loads((at / f"{task}.json").read_text())["figures"]
    before = {path.name: path.stat().st_ino for path in (at / "p8").iterdir()}
    run(capsys, *predict, "p8", "--kind", "uint8", "--resume")  # it is complete
    assert {path.name: path.stat().st_ino for path in (at / "p8").iterdir()} == before


def test_instances_of_several_sizes_and_types_are_scored(at, capsys):
    many = np.zeros((40, 60), np.uint16)
    many[::2, ::2] = np.arange(1, 601).reshape(20, 30)
    few = np.kron(np.arange(1, 5, dtype=np.uint8).reshape(2, 2), np.ones((9, 7), np.uint8))
    found = folder(at / "found", {"a.png": png(many), "b.png": png(few)})
    run(capsys, "evaluate", found, found, "--task", "cells", "--label-kind", "ids", "--json", "j")
    assert json.loads((at / "j").read_text())["figures"]["seg"] == 1
    run(capsys, "weight-map", found, "--label-kind", "ids", "--out", "w")
    balance = frequency_weights(many.size + few.size - 600 - few.size, 600 + few.size)
    for name, one in (("a", many), ("b", few)):
        expected = weight_map(one, label_kind="ids", class_balance=balance)
        np.testing.assert_array_equal(tifffile.imread(at / f"w/{name}.tif"), expected)
    line = refused(capsys, "predict", found, "--model", "m.safetensors", "--out", "o")
    assert "images may differ in size, not in type" in line


def test_how_labels_are_read_is_said_once(at, capsys):
    tifffile.imwrite(at / "rgb.tif", np.stack([MASK] * 3, -1), photometric="rgb")
    told = run(capsys, "weight-map", "rgb.tif", "--out", "w.tif")
    assert told.count("stored as RGB; read as grey") == 1


def test_pictures_have_the_name_of_what_they_are(at, capsys):
    before = sorted(at.iterdir())
    for command in (
        ["evaluate", "mask.tif", "images.tif", "--max-value", "255", "--plot", "p.pdf"],
        ["weight-map", "mask.tif", "--out", "w.tif", "--preview", "p.jpg"],
        ["preview-augmentation", "images.tif", "mask.tif", "--out", "p"],
    ):
        assert "a name that ends in .png is needed" in refused(capsys, *command)
    assert sorted(at.iterdir()) == before


def test_no_output_replaces_an_input(at, capsys):
    with h5py.File(at / "a.h5", "w") as file:
        file["raw"] = file["mask"] = tifffile.imread(at / "mask.tif")
    (at / "m.tif").write_bytes((at / "m.safetensors").read_bytes())
    before = {path: path.read_bytes() for path in at.iterdir()}
    for command in (
        ["evaluate", "mask.tif", "images.tif", "--max-value", "255", "--json", "mask.tif"],
        ["evaluate", "mask.tif", "images.tif", "--max-value", "255", "--plot", "images.tif"],
        ["evaluate", "mask.tif", "images.tif", "--json", "a.png", "--plot", "a.png"],
        ["preview-augmentation", "images.tif", "mask.tif", "--out", "mask.tif"],
        ["weight-map", "mask.tif", "--out", "w.tif", "--preview", "w.tif"],
        ["train", "images.tif", "mask.tif", "--out", ".", *TRAIN],
        ["evaluate", "a.h5:/mask", "images.tif", "--json", "a.h5"],
        ["evaluate", "mask.tif", "a.h5:/raw", "--plot", "a.h5"],
        ["weight-map", "a.h5:/mask", "--out", "w.tif", "--preview", "a.h5"],
        ["preview-augmentation", "a.h5:/raw", "a.h5:/mask", "--out", "a.h5"],
        ["predict", "images.tif", "--model", "m.tif", "--out", "m.tif"],
        ["export", "m.safetensors", "--format", "onnx", "--out", "m.safetensors"],
        ["import-caffe", "a.png", "--out", "a.png"],
    ):
        assert "would be among the files of" in refused(capsys, *command, "--overwrite")
    assert {path: path.read_bytes() for path in at.iterdir()} == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: saved(p, GREY, photometric="rgb", planarconfig="separate"), "--axes ZYX"),
        (lambda p: saved(p, GREY, photometric="miniswhite", metadata={"axes": "ZYX"}),
         "Invert LUT"),
        (lambda p: folder(p, {"1.png": png(GREY[0]), "2.bmp": b"BM"}), "2.bmp"),
        (lambda p: saved(p, np.stack([GREY[0], GREY[1], GREY[2]], -1), photometric="rgb"),
         "colours"),
    ],
    ids=["planes of colour", "min is white", "another format", "colours"],
)  # fmt: skip
def test_what_is_refused_names_the_cure(at, capsys, make, message):
    source = make(at / "in")
    before = sorted(at.iterdir())
    command = ["predict", source, "--model", "m.safetensors", "--out", "o.tif"]
    assert message in refused(capsys, *command)
    assert sorted(at.iterdir()) == before


def test_a_page_stored_inverted_among_others_is_refused(at, capsys):
    with tifffile.TiffWriter(at / "a.tif") as file:
        file.write(GREY[0], photometric="minisblack", metadata=None)
        file.write(GREY[1], photometric="miniswhite", metadata=None)
    command = ["predict", "a.tif", "--model", "m.safetensors", "--out", "o.tif"]
    assert "Invert LUT" in refused(capsys, *command)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_one_image_is_a_stack_of_one_slice(at, capsys, suffix):
    content = png(GREY[0]) if suffix == "png" else jpeg(GREY[0])
    (at / f"one.{suffix}").write_bytes(content)
    plain(at / "one_plain.tif", read_stack(at / f"one.{suffix}"))
    for name in (f"one.{suffix}", "one_plain.tif"):
        run(capsys, "predict", name, "--model", "m.safetensors", "--out", f"{name}.o.tif")
    found, expected = (read_stack(at / f"{n}.o.tif") for n in (f"one.{suffix}", "one_plain.tif"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("compression", ["zlib", "zstd"])  # ImageJ's strips, OME's tiles
def test_every_axis_keeps_its_size(at, capsys, compression):
    scale = {f"PhysicalSize{axis}": size for axis, size in zip("XYZ", (4.0, 4.0, 0.05))}
    scale |= {f"PhysicalSize{axis}Unit": unit for axis, unit in zip("XYZ", ("nm", "nm", "µm"))}
    tifffile.imwrite(at / "a.ome.tif", GREY, ome=True, metadata={"axes": "ZYX", **scale})
    run(capsys, "predict", "a.ome.tif", "--model", "m.safetensors", "--out", "o.tif",
        "--compression", compression)  # fmt: skip
    found = read_calibration(at / "o.tif")
    assert (found.unit, found.spacing) == ("nm", 50.0)
    assert found.resolution == pytest.approx((0.25, 0.25))
