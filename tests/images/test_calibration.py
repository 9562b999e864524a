"""Axes and scale are read from each kind of file, and written by `write_pages`."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile

from unet_repro.images.calibration import UNCALIBRATED, Calibration, read_calibration, read_info
from unet_repro.images.stacks import read_stack
from unet_repro.images.tiff_writer import write_pages

STACK = np.random.default_rng(0).integers(0, 99, (3, 20, 30)).astype(np.uint8)

CALIBRATIONS = {
    "none": UNCALIBRATED,
    "volume": Calibration(resolution=(250.0, 200.0), unit="um", spacing=0.05),
    "movie": Calibration(axes="TYX", resolution=(1.5, 1.5), unit="\\u00B5m", interval=600.0),
    "centimetres": Calibration(resolution=(1e4, 1e4), resolution_unit=3),
}


@pytest.mark.parametrize("case", CALIBRATIONS)
@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_what_is_written_is_read(tmp_path, case, compression):
    calibration = CALIBRATIONS[case]
    write_pages(
        tmp_path / "s.tif",
        iter(STACK),
        shape=STACK.shape,
        dtype=STACK.dtype,
        axes=calibration.axes,
        compression=compression,
        calibration=calibration,
        info="two\nlines: é",
    )
    if case == "none":  # TIFF has no way to leave the resolution out
        calibration = Calibration(resolution=(1.0, 1.0))
    assert read_calibration(tmp_path / "s.tif") == calibration
    assert read_info(tmp_path / "s.tif") == "two\nlines: é"
    np.testing.assert_array_equal(read_stack(tmp_path / "s.tif"), STACK)


def test_ome_scale(tmp_path):
    scale = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "s.ome.tif", STACK, metadata={"axes": "ZYX", **scale})
    expected = Calibration(resolution=(4.0, 2.0), unit="\\u00B5m", spacing=2.0)
    assert read_calibration(tmp_path / "s.ome.tif") == expected
    content = (tmp_path / "s.ome.tif").read_bytes().replace(b'SizeX="0.25"', b'SizeX="none"')
    (tmp_path / "s.ome.tif").write_bytes(content)
    assert read_calibration(tmp_path / "s.ome.tif").unit is None


def test_unit_that_is_no_ascii(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], metadata={"unit": "µm ☃"})
    assert read_calibration(tmp_path / "s.tif").unit == "\\u00B5m ?"


@pytest.mark.parametrize("unit", ["um\nimages=99", "\x1b[31m", "x" * 61])
def test_what_is_no_name_of_a_unit_is_not_carried_over(tmp_path, unit):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], metadata={"unit": unit})
    assert read_calibration(tmp_path / "s.tif").unit is None


@pytest.mark.parametrize("size", ["1e-320", "1e300", "5e9", "nan", "-1"])
def test_ome_scale_that_no_tag_can_hold_is_none(tmp_path, size):
    tifffile.imwrite(tmp_path / "s.ome.tif", STACK, metadata={"axes": "ZYX", "PhysicalSizeX": size,
                                                             "PhysicalSizeY": 0.5})  # fmt: skip
    assert read_calibration(tmp_path / "s.ome.tif").unit is None


def test_folder_is_a_volume_of_its_first_files_scale(tmp_path):
    options = {"resolution": (300, 300), "resolutionunit": "inch"}
    tifffile.imwrite(tmp_path / "0.tif", STACK[0], **options)
    tifffile.imwrite(tmp_path / "1.tif", STACK[1])
    expected = Calibration(resolution=(300.0, 300.0), resolution_unit=2)
    assert read_calibration(tmp_path) == expected
    (tmp_path / "0.tif").rename(tmp_path / "2.tif")
    (tmp_path / "0.png").write_bytes(imagecodecs.png_encode(STACK[0]))
    assert read_calibration(tmp_path) == UNCALIBRATED


def test_info_of_other_files_is_none(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0])
    (tmp_path / "t.tif").write_text("no TIFF")
    assert read_info(tmp_path / "s.tif") is None
    assert read_info(tmp_path / "t.tif") is None
    assert read_info(tmp_path / "none.tif") is None


def test_ome_interval_and_entities(tmp_path):
    texts = {"axes": "TYX", "TimeIncrement": 0.5, "Description": "a < b"}
    tifffile.imwrite(tmp_path / "s.ome.tif", STACK, photometric="minisblack", metadata=texts)
    found = read_calibration(tmp_path / "s.ome.tif")
    assert (found.axes, found.interval, found.resolution_unit) == ("TYX", 0.5, 1)
    assert read_info(tmp_path / "s.ome.tif") == "a < b"
    entity = '<!DOCTYPE l [<!ENTITY l "lol">]>'
    bomb = f"{entity}<OME><Image><Description>&l;</Description></Image></OME>"
    options = {"photometric": "minisblack", "metadata": None}
    tifffile.imwrite(tmp_path / "b.tif", STACK, description=bomb, **options)
    assert read_info(tmp_path / "b.tif") is None
