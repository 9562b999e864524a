"""Scale is read from each kind of file, and written by `write_pages`."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from unet_repro.errors import InputNote
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.png_files import encode_png
from unet_repro.images.scale import UNCALIBRATED, Calibration
from unet_repro.images.stacks import read_stack
from unet_repro.images.tiff_writer import write_pages
from unet_repro.images.units import length_ratio

STACK = np.random.default_rng(0).integers(0, 99, (3, 20, 30)).astype(np.uint8)

CALIBRATIONS = {
    "none": UNCALIBRATED,
    "volume": Calibration(resolution=(250.0, 200.0), unit="um", spacing=0.05),
    "movie": Calibration(resolution=(1.5, 1.5), unit="\\u00B5m", interval=600.0),
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
        axes="TYX" if calibration.interval else "ZYX",
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
    with pytest.warns(InputNote, match="PhysicalSizeX 'none' is no size"):
        assert read_calibration(tmp_path / "s.ome.tif").unit is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("um", "um"),
        ("micron", "micron"),
        ("µm", r"\u00B5m"),
        ("\N{GREEK SMALL LETTER MU}m", r"\u00B5m"),
        ("Å", r"\u00C5"),
        ("\N{ANGSTROM SIGN}", r"\u00C5"),
        (r"\u00B5m", r"\u00B5m"),
        (r"\u03BCm", r"\u00B5m"),
        ("µm ☃", r"\u00B5m \u2603"),
    ],
)
def test_unit_keeps_its_spelling_and_becomes_ascii(tmp_path, given, expected):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], metadata={"unit": given})
    assert read_calibration(tmp_path / "s.tif").unit == expected


@pytest.mark.parametrize("unit", ["um\nimages=99", "\x1b[31m", "x" * 61])
def test_what_is_no_name_of_a_unit_is_not_carried_over(tmp_path, unit):
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], metadata={"unit": unit})
    with pytest.warns(InputNote, match="is no name of a unit: it is not carried over"):
        assert read_calibration(tmp_path / "s.tif").unit is None


@pytest.mark.parametrize("size", ["1e-320", "1e300", "5e9", "nan", "-1"])
def test_ome_scale_that_no_tag_can_hold_is_none(tmp_path, size):
    tifffile.imwrite(tmp_path / "s.ome.tif", STACK, metadata={"axes": "ZYX", "PhysicalSizeX": size,
                                                             "PhysicalSizeY": 0.5})  # fmt: skip
    with pytest.warns(InputNote, match=f"PhysicalSizeX '{size}' is no size"):
        assert read_calibration(tmp_path / "s.ome.tif").unit is None


def test_folder_is_a_volume_of_its_first_files_scale(tmp_path):
    options = {"resolution": (300, 300), "resolutionunit": "inch"}
    tifffile.imwrite(tmp_path / "0.tif", STACK[0], **options)
    tifffile.imwrite(tmp_path / "1.tif", STACK[1])
    expected = Calibration(resolution=(300.0, 300.0), resolution_unit=2)
    with pytest.warns(InputNote, match=r"1\.tif has another scale than 0\.tif, whose is used"):
        assert read_calibration(tmp_path) == expected
    (tmp_path / "0.tif").rename(tmp_path / "2.tif")
    (tmp_path / "0.png").write_bytes(imagecodecs.png_encode(STACK[0]))
    with pytest.warns(InputNote, match=r"2\.tif has another scale than 0\.png, whose is used"):
        assert read_calibration(tmp_path) == UNCALIBRATED
    (tmp_path / "2.tif").unlink()  # 1.tif states none either
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
    assert (found.interval, found.resolution_unit) == (0.5, 1)
    assert read_info(tmp_path / "s.ome.tif") == "a < b"
    entity = '<!DOCTYPE l [<!ENTITY l "lol">]>'
    bomb = f"{entity}<OME><Image><Description>&l;</Description></Image></OME>"
    options = {"photometric": "minisblack", "metadata": None}
    tifffile.imwrite(tmp_path / "b.tif", STACK, description=bomb, **options)
    assert read_info(tmp_path / "b.tif") is None


def ome(path, **texts):
    tifffile.imwrite(path, STACK, photometric="minisblack", ome=True,
                     metadata={"axes": "ZYX", **texts})  # fmt: skip


def imagej(path, *lines, resolution=(4.0, 2.0)):
    description = "\n".join(["ImageJ=1.54f", "images=3", "slices=3", *lines, ""])
    tifffile.imwrite(path, STACK, photometric="minisblack", metadata=None, resolution=resolution,
                     resolutionunit=1, description=description.encode("latin-1"))  # fmt: skip


def sizes(calibration):
    """A pixel's sides along x, y and z in nm, and the interval in s; 0 where it is not stated."""
    unit = length_ratio(calibration.plane_unit or "", "nm")
    assert unit is not None
    x, y = calibration.resolution
    sides = [1 / x, 1 / y, calibration.spacing or 0]
    return (*(side * float(unit) for side in sides), calibration.interval or 0)


X4 = {"PhysicalSizeX": 4, "PhysicalSizeXUnit": "nm"}
XY4 = {**X4, "PhysicalSizeY": 4, "PhysicalSizeYUnit": "nm"}
MIXED_OME = {
    "z in µm": ({**XY4, "PhysicalSizeZ": 0.05, "PhysicalSizeZUnit": "µm"}, (4, 4, 50, 0)),
    "z by default": ({**XY4, "PhysicalSizeZ": 0.05}, (4, 4, 50, 0)),
    "y in Å": ({**X4, "PhysicalSizeY": 35, "PhysicalSizeYUnit": "Å"}, (4, 3.5, 0, 0)),
    "z in inches": ({**XY4, "PhysicalSizeZ": 1e-5, "PhysicalSizeZUnit": "in"}, (4, 4, 254, 0)),
    "minutes": ({**XY4, "TimeIncrement": 5, "TimeIncrementUnit": "min"}, (4, 4, 0, 300)),
    "hours": ({**XY4, "TimeIncrement": 0.1, "TimeIncrementUnit": "h"}, (4, 4, 0, 360)),
    "µs": ({**XY4, "TimeIncrement": 70, "TimeIncrementUnit": "µs"}, (4, 4, 0, 7e-5)),
    "seconds": ({**XY4, "TimeIncrement": 7}, (4, 4, 0, 7)),
}


@pytest.mark.parametrize("case", MIXED_OME)
def test_every_axis_of_ome_has_its_own_unit(tmp_path, case):
    texts, expected = MIXED_OME[case]
    ome(tmp_path / "s.tif", **texts)
    found = read_calibration(tmp_path / "s.tif")
    assert found.unit == "nm"
    assert sizes(found) == expected  # to the last digit


MICRON = "unit=micron"
MIXED_IMAGEJ = {
    "z": ([MICRON, "zunit=nm", "spacing=50"], (250, 500, 50, 0)),
    "same z": (["unit=nm", "zunit=nm", "spacing=0.3"], (0.25, 0.5, 0.3, 0)),
    "other name": ([MICRON, "zunit=\\u00B5m", "spacing=0.3"], (250, 500, 300, 0)),
    "y": ([MICRON, "yunit=nm"], (250, 0.5, 0, 0)),
    "all": (["unit=cm", "yunit=mm", "zunit=inch", "spacing=1"], (2.5e6, 5e5, 2.54e7, 0)),
    "minutes": ([MICRON, "finterval=5", "tunit=min"], (250, 500, 0, 300)),
    "ms": ([MICRON, "finterval=40", "tunit=msec"], (250, 500, 0, 0.04)),
    "seconds": ([MICRON, "finterval=5"], (250, 500, 0, 5)),
    "sec": ([MICRON, "finterval=5", "tunit=sec"], (250, 500, 0, 5)),
}


@pytest.mark.parametrize("case", MIXED_IMAGEJ)
def test_every_axis_of_imagej_has_its_own_unit(tmp_path, case):
    lines, expected = MIXED_IMAGEJ[case]
    imagej(tmp_path / "s.tif", *lines)
    found = read_calibration(tmp_path / "s.tif")
    assert found.unit == lines[0].partition("=")[2]
    assert sizes(found) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("write", "texts", "message", "expected"),
    [
        (ome, {**XY4, "PhysicalSizeZ": 2, "PhysicalSizeZUnit": "pixel"},
         "spacing of slices is in 'pixel' and x in 'nm'", Calibration((.25, .25), 1, "nm")),
        (ome, {**X4, "PhysicalSizeY": 2, "PhysicalSizeYUnit": "reference frame"},
         "scale along y is in 'reference frame' and x in 'nm'", UNCALIBRATED),
        (ome, {"PhysicalSizeZ": 2}, "states no size of pixels along x and y", UNCALIBRATED),
        (imagej, ["unit=pixel", "zunit=micron", "spacing=3"],
         "spacing of slices is in 'micron' and x in 'pixel'",
         Calibration((4, 2), 1, "pixel")),
        (imagej, ["zunit=micron", "spacing=3"],
         "spacing of slices is in 'micron' and x in no unit", Calibration((4, 2))),
        (imagej, ["unit=nm", "yunit=deg"], "scale along y is in 'deg' and x in 'nm'", UNCALIBRATED),
        (imagej, ["unit=nm", "finterval=3", "tunit=frames"],
         "time between slices is in 'frames', no known unit", Calibration((4, 2), 1, "nm")),
        (imagej, ["unit=nm", "spacing=-3"], "spacing '-3' is no size",
         Calibration((4, 2), 1, "nm")),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_said(tmp_path, write, texts, message, expected):
    if write is ome:
        write(tmp_path / "s.tif", **texts)
    else:
        write(tmp_path / "s.tif", *texts)
    with pytest.warns(
        InputNote, match=rf"s\.tif: .*{message}.*: it.* is not carried over"
    ) as caught:
        assert read_calibration(tmp_path / "s.tif") == expected
    assert len(caught) == 1


def test_axes_in_one_unit_that_is_no_length_need_no_conversion(tmp_path):
    texts = {f"PhysicalSize{axis}{key}": value for axis in "XYZ"
             for key, value in (("", 2), ("Unit", "reference frame"))}  # fmt: skip
    ome(tmp_path / "s.tif", **texts)
    assert read_calibration(tmp_path / "s.tif") == Calibration((0.5, 0.5), spacing=2.0)


def test_ome_with_cdata_is_read(tmp_path):
    ome(tmp_path / "s.tif", **XY4, Description="x" * 40)
    content = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(
        content.replace(b"x" * 40, b"<![CDATA[ 2 < 3 & more ]]>".ljust(40))
    )
    assert sizes(read_calibration(tmp_path / "s.tif")) == (4, 4, 0, 0)
    assert (read_info(tmp_path / "s.tif") or "").strip() == "2 < 3 & more"
    (tmp_path / "s.tif").write_bytes(content)
    xml = tifffile.tiffcomment(tmp_path / "s.tif").replace("?>", "?><!DOCTYPE OME>", 1)
    tifffile.tiffcomment(tmp_path / "s.tif", xml.encode())
    with pytest.warns(InputNote, match="its OME description cannot be read"):
        assert read_calibration(tmp_path / "s.tif").unit is None


@pytest.mark.parametrize("tag", [34680, 34682])
def test_scale_of_fei_microscopes(tmp_path, tag):
    text = b"[User]\r\nDate=1\r\n[Scan]\r\nPixelWidth=4e-009\r\nPixelHeight=5.2e-009\r\n\0"
    tifffile.imwrite(tmp_path / "s.tif", STACK[0], metadata=None, resolution=(72, 72),
                     extratags=[(tag, 2, len(text), text, True)])  # fmt: skip
    assert sizes(read_calibration(tmp_path / "s.tif")) == pytest.approx((4, 5.2, 0, 0), rel=1e-15)


def test_scale_of_png_and_jpeg(tmp_path):
    (tmp_path / "a.png").write_bytes(encode_png(STACK[0], (2.5e8, 2e6)))
    Image.fromarray(STACK[0]).save(tmp_path / "b.jpg", dpi=(300, 200))
    Image.fromarray(STACK[0]).save(tmp_path / "c.jpg")
    assert sizes(read_calibration(tmp_path / "a.png")) == (4, 500, 0, 0)
    assert read_calibration(tmp_path / "a.png").unit == r"\u00B5m"
    found = read_calibration(tmp_path / "b.jpg")
    assert found == Calibration(resolution=(300.0, 200.0), resolution_unit=2)
    assert read_calibration(tmp_path / "c.jpg") == UNCALIBRATED


ROUND_TRIPS = {
    "ome z": (ome, MIXED_OME["z in µm"][0]),
    "ome y": (ome, MIXED_OME["y in Å"][0]),
    "ome time": (ome, MIXED_OME["minutes"][0] | {"axes": "TYX"}),
    "imagej all": (imagej, MIXED_IMAGEJ["all"][0]),
    "imagej angstrom": (imagej, ["unit=Å", "spacing=9"]),
    "imagej thirds": (imagej, ["unit=\\u00B5m", "zunit=nm", "spacing=33.3"]),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_sizes_of_the_output_are_those_of_the_input(tmp_path, case, layout):
    write, texts = ROUND_TRIPS[case]
    if write is ome:
        write(tmp_path / "s.tif", **texts)
    else:
        write(tmp_path / "s.tif", *texts)
    given = read_calibration(tmp_path / "s.tif")
    axes = "TYX" if given.interval else "ZYX"
    write_pages(tmp_path / "o.tif", iter(STACK), shape=STACK.shape, dtype=STACK.dtype, axes=axes,
                calibration=given, layout=layout)  # fmt: skip
    found = read_calibration(tmp_path / "o.tif")
    assert sizes(found) == pytest.approx(sizes(given), rel=1e-9)
