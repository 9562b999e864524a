"""The commands weight-map and preview-augmentation, from flags to exit codes."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_repro import cli
from unet_repro.images.stacks import read_stack
from unet_repro.weight_maps.weight_map import weight_map


@pytest.fixture
def files(two_cells, tmp_path):
    images, labels = two_cells
    tifffile.imwrite(tmp_path / "images.tif", images, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    return tmp_path


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def error_line(capsys) -> str:
    """Return the one line on standard error; more than one line, or a traceback, fails."""
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1, text
    return text


def size_of_png(path: Path) -> tuple[int, ...]:
    return imagecodecs.png_decode(path.read_bytes()).shape


def test_only_the_path_is_printed(files, capsys):
    assert run("weight-map", files / "labels.tif", "--out", files / "w.tif") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{files / 'w.tif'}\n" and printed.err == ""
    expected = weight_map(read_stack(files / "labels.tif"))
    np.testing.assert_array_equal(read_stack(files / "w.tif"), expected)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("--w0 4 --sigma 2.5 --class-balance none", {"w0": 4, "sigma": 2.5, "class_balance": None}),
        ("--variant short", {"variant": "short"}),
        ("--variant falk2019 --w0 20", {"variant": "falk2019", "w0": 20}),
        ("--ignore-label 255", {"ignore_label": 255}),
        ("--kind ids --separate-touching", {"kind": "ids", "separate_touching": True}),
        ("--workers 1", {}),
    ],
)
def test_flags_are_the_settings(files, flags, settings):
    assert run("weight-map", files / "labels.tif", "--out", files / "w.tif", *flags.split()) == 0
    expected = weight_map(read_stack(files / "labels.tif"), **settings)
    np.testing.assert_array_equal(read_stack(files / "w.tif"), expected)


def test_compression_and_preview(files):
    assert run("weight-map", files / "labels.tif", "--out", files / "w.tif",
               "--compression", "zlib", "--preview", files / "p.png") == 0  # fmt: skip
    with tifffile.TiffFile(files / "w.tif") as file:
        assert file.pages.first.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
    assert min(size_of_png(files / "p.png")[:2]) > 500


def test_existing_outputs_are_kept_without_overwrite(files, capsys):
    (files / "w.tif").write_bytes(b"precious")
    command = ("weight-map", files / "labels.tif", "--out", files / "w.tif")
    assert run(*command) == 2
    assert "--overwrite" in error_line(capsys)
    assert (files / "w.tif").read_bytes() == b"precious"
    assert run(*command, "--overwrite") == 0
    capsys.readouterr()
    (files / "p.png").write_bytes(b"precious")
    assert run(*command, "--overwrite", "--resume") == 0
    other = ("weight-map", files / "labels.tif", "--out", files / "other.tif")
    capsys.readouterr()
    assert run(*other, "--preview", files / "p.png") == 2
    assert "p.png" in error_line(capsys)
    assert (files / "p.png").read_bytes() == b"precious" and not (files / "other.tif").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--sigma -1", "sigma is -1"),
        ("--sigma nan", "sigma is nan"),
        ("--w0 many", "many"),
        ("--variant long", "long"),
        ("--compression jpeg", "jpeg"),
        ("--workers 0", "workers is 0"),
        ("--ignore-label x", "x"),
        ("--preview {files}/images.tif", "exists already"),
        ("--preview {files}/labels.tif", "would be among the files"),
        ("--out {files}/labels.tif --overwrite", "would be among the files"),
        ("--out {files}/images.tif/w.tif", "cannot be written"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(files, capsys, flags, message):
    before = sorted(files.iterdir())
    words = flags.format(files=files).split()
    out = () if "--out" in words else ("--out", files / "w.tif")
    assert run("weight-map", files / "labels.tif", *out, *words) == 2
    assert message in error_line(capsys)
    assert sorted(files.iterdir()) == before


def test_bad_labels_are_one_line_and_leave_nothing(files, capsys):
    tifffile.imwrite(files / "float.tif", np.zeros((3, 5, 6), np.float32), photometric="minisblack")
    negative = np.full((3, 5, 6), -2, np.int16)
    tifffile.imwrite(files / "negative.tif", negative, photometric="minisblack")
    (files / "cut.tif").write_bytes((files / "labels.tif").read_bytes()[:-700])
    before = sorted(files.iterdir())
    for name, message in (
        ("float", "must be integers"),
        ("negative", "slice 0: labels hold -2"),
        ("cut", "truncated"),
        ("none", "no such file"),
    ):
        assert run("weight-map", files / f"{name}.tif", "--out", files / "w.tif") == 2
        assert message in error_line(capsys)
    assert sorted(files.iterdir()) == before


def test_preview_of_augmentation(files, capsys):
    command = ("preview-augmentation", files / "images.tif", files / "labels.tif")
    options = ("--tile", "72", "--samples", "2")
    assert run(*command, "--out", files / "grid.png", *options) == 0
    assert capsys.readouterr().out == f"{files / 'grid.png'}\n"
    assert min(size_of_png(files / "grid.png")[:2]) > 500
    assert run(*command, "--out", files / "grid.png", *options) == 2
    assert "--overwrite" in error_line(capsys)
    assert run(*command, "--out", files / "other.png", *options, "--seed", "1", "--flips") == 0
    assert (files / "grid.png").read_bytes() != (files / "other.png").read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--samples 0", "samples 0"),
        ("--tile 0", "window is 0"),
        ("--contrast 2", "contrast is 2"),
        ("--elastic-grid 1", "elastic_grid is 1"),
        ("--seed x", "x"),
        ("--seed -1", "seed is -1"),
        (f"--seed {2**62}", "seed is 4611686018427387904"),
    ],
)
def test_bad_preview_options_are_one_line(files, capsys, flags, message):
    command = ("preview-augmentation", files / "images.tif", files / "labels.tif")
    assert run(*command, "--out", files / "grid.png", *flags.split()) == 2
    assert message in error_line(capsys)
    assert not (files / "grid.png").exists()


def test_preview_of_images_and_labels_that_do_not_fit_is_one_line(files, capsys):
    tifffile.imwrite(files / "small.tif", np.ones((4, 60, 64), np.uint8), photometric="minisblack")
    command = ("preview-augmentation", files / "images.tif", files / "small.tif")
    assert run(*command, "--out", files / "grid.png") == 2
    assert "60" in error_line(capsys)
