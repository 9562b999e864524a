"""Files written band by band: the same pixels, scale and bytes, whoever reads them."""

from __future__ import annotations

import errno
import io
import json
import shutil
import subprocess
import threading
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unet_repro.errors import InputError, InputNote
from unet_repro.images import tiff_writer as tiff_output
from unet_repro.images.calibration import Calibration, read_calibration, read_info
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_writer import layout_of, write_pages

DTYPES = ["uint8", "uint16", "uint32", "float16", "float32"]
COMPRESSIONS = ["zlib", "zstd", "lzw", "none"]
SCALE = Calibration(resolution=(2.0, 4.0), unit=r"\u00B5m", spacing=0.5, interval=3.0)
INFO = json.dumps({"settings": {"name": "Zürich <&>"}}, indent=1)
IMAGEJ = Path("/usr/share/java/ij.jar")

IMAGEJ_PROGRAM = """
import ij.*; import ij.io.*; import ij.measure.*; import ij.process.*;
public class Show {
  public static void main(String[] paths) {
    for (String path : paths) {
      ImagePlus image = new Opener().openImage(path);
      if (image == null) { System.out.println("[]"); continue; }
      int[] d = image.getDimensions(); Calibration c = image.getCalibration();
      StringBuilder sums = new StringBuilder();
      for (int s = 1; s <= image.getStackSize(); s++) {
        ImageProcessor p = image.getStack().getProcessor(s); double sum = 0;
        for (int y = 0; y < d[1]; y++) for (int x = 0; x < d[0]; x++)
          sum += p.getPixelValue(x, y) * (1 + x + 2 * y);
        sums.append(",").append(sum);
      }
      System.out.println("[" + d[0] + "," + d[1] + "," + d[2] + "," + d[3] + "," + d[4] + ","
        + c.pixelWidth + "," + c.pixelHeight + "," + c.pixelDepth + "," + c.frameInterval + ","
        + (c.getUnit().equals("\\u00B5m") && image.getProperty("Info") != null) + sums + "]");
    }
  }
}
"""


def noise(shape, dtype, seed=0):
    values = np.random.default_rng(seed).random(shape)
    scales = {"float16": 1, "float32": 1, "uint32": 2**32 - 1}
    scale = scales.get(np.dtype(dtype).name, 250)
    return (values * scale).astype(dtype)


def cut(array, rows):
    """Yield the bands of an array, all in one buffer, which is overwritten each time."""
    pages = array.reshape(-1, *array.shape[-2:])
    buffer = np.empty((rows, array.shape[-1]), array.dtype)
    for page in pages:
        for top in range(0, len(page), rows):
            band = page[top : top + rows]
            buffer[: len(band)] = band
            yield buffer[: len(band)]


def write(path, array, *, rows=7, **options):
    write_pages(path, cut(array, rows), shape=array.shape, dtype=array.dtype, **options)
    return path


def read_pages(path):
    with tifffile.TiffFile(path) as file:
        return np.stack([page.asarray() for page in file.pages])


AXES = {
    3: ["ZYX", "TYX"],
    4: ["ZCYX", "TCYX", "TZYX", "ZTYX"],
    5: ["TZCYX", "ZTCYX"],
}


@st.composite
def cases(draw):
    side = st.one_of(st.integers(1, 40), st.sampled_from([1, 512, 513]))
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    array = noise((*shape, draw(side), draw(side)), draw(st.sampled_from(DTYPES)))
    pages = array.reshape(-1, *array.shape[-2:])
    bands = []
    for page in pages:
        cuts = draw(st.lists(st.integers(0, len(page)), max_size=3))
        edges = [0, *sorted(cuts), len(page)]
        bands += [page[a:b] for a, b in pairwise(edges)]
    axes = draw(st.sampled_from(AXES[array.ndim]))
    is_tiled = array.dtype in (np.float16, np.uint32) or axes.startswith("ZT")  # not ImageJ's
    layouts = ["tiles"] if is_tiled else ["strips", "tiles"]
    options = {
        "axes": axes,
        "layout": draw(st.sampled_from(layouts)),
        "compression": draw(st.sampled_from(COMPRESSIONS)),
        "info": draw(st.sampled_from(["", INFO])),
    }
    return array, bands, options


@settings(max_examples=60, deadline=None)
@given(case=cases(), workers=st.integers(1, 3))
def test_pixels_are_kept_and_the_bytes_do_not_depend_on_bands_or_workers(
    tmp_path_factory, case, workers
):
    array, bands, options = case
    folder = tmp_path_factory.mktemp("tiff")
    given_, whole = folder / "given.tif", folder / "whole.tif"
    write_pages(
        given_, iter(bands), shape=array.shape, dtype=array.dtype, workers=workers, **options
    )
    pages = np.concatenate(bands).reshape(-1, *array.shape[-2:])
    read = read_pages(given_)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, pages)
    np.testing.assert_array_equal(tifffile.imread(given_).reshape(array.shape), array)
    write(whole, array, rows=array.shape[-2], **options)
    assert given_.read_bytes() == whole.read_bytes()
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("shape", "dtype", "compression", "layout"),
    [
        ((30, 512, 512), "uint8", "none", "strips"),
        ((30, 512, 512), "uint8", "zstd", "tiles"),  # ImageJ cannot
        ((1, 8, 8), "float16", "none", "tiles"),
        ((1, 8, 8), "uint32", "none", "tiles"),
        ((1, 2**15, 2**15), "float32", "none", "tiles"),  # 4 GiB
        ((1, 2**15, 2**15 - 2**9), "float32", "none", "strips"),
        ((1, 2**15, 2**15 - 2**9), "float32", "lzw", "tiles"),  # LZW makes noise larger
        ((1, 2**15, 2**15 - 2**9), "uint16", "lzw", "strips"),
        ((1, 2**16, 2**15), "uint8", "none", "tiles"),  # 2**31 pixels
        ((2, 2**16 - 1, 2**15 - 2**9), "uint8", "none", "strips"),
        ((10**7, 2, 2), "uint8", "none", "tiles"),  # the tags alone have 4 GiB
        ((3, 2, 2**14, 2**14), "float32", "zlib", "tiles"),
    ],
)
def test_layout_is_imagejs_where_imagej_can_hold_the_file(shape, dtype, compression, layout):
    assert layout_of(shape, dtype, compression) == layout


@pytest.mark.parametrize(("compression", "growth"), [("zlib", 1.001), ("lzw", 1.5)])
def test_noise_grows_no_more_than_the_layout_allows_for(tmp_path, compression, growth):
    array = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024), np.uint8)
    path = write(tmp_path / "a.tif", array, rows=512, layout="strips", compression=compression)
    assert path.stat().st_size < growth * array.nbytes + 4096


def test_structure_of_strips(tmp_path):
    array = noise((2, 700, 300), "float32")
    with tifffile.TiffFile(write(tmp_path / "a.tif", array)) as file:
        assert file.is_imagej and not file.is_bigtiff and file.series[0].axes == "ZYX"
        page = file.pages.first
        assert page.compression.name == "ADOBE_DEFLATE" and page.predictor == 1
        assert 2**16 <= page.rowsperstrip * 300 * 4 <= 2**18
        assert "DateTime" not in page.tags


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "float32", "float16"])
def test_structure_of_tiles(tmp_path, dtype):
    array = noise((2, 3, 600, 20), dtype)
    path = write(tmp_path / "a.tif", array, axes="ZCYX", layout="tiles", compression="zstd")
    with tifffile.TiffFile(path) as file:
        assert file.is_bigtiff and file.is_ome == (dtype != "float16")
        assert file.series[0].axes == "ZCYX" and len(file.pages) == 6
        page = file.pages.first
        assert page.tile == (512, 32) and page.compression.name == "ZSTD"
        assert "DateTime" not in page.tags


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [("uint8", "strips"), ("float16", "tiles"), ("uint32", "tiles"), ("float32", "tiles")],
)
def test_scale_is_recorded(tmp_path, dtype, layout):
    array = noise((3, 20, 30), dtype)
    path = write(tmp_path / "a.tif", array, layout=layout, calibration=SCALE, info=INFO)
    read = read_calibration(path)
    assert read.resolution == pytest.approx((2, 4)) and read.resolution_unit == 1
    assert (read.unit, read.spacing) == (r"\u00B5m", 0.5)
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            assert page.resolution == (2, 4) and page.resolutionunit == 1
        if not file.is_ome:
            assert read.interval == 3 and read_info(path) == INFO


def ome(path):
    with tifffile.TiffFile(path) as file:
        root = ElementTree.fromstring(file.ome_metadata)
    image = root.find("{*}Image")
    return image.findtext("{*}Description"), image.find("{*}Pixels").attrib


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        (
            SCALE,
            {
                **{"PhysicalSizeX": "0.5", "PhysicalSizeY": "0.25", "PhysicalSizeZ": "0.5"},
                **{f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"},
                **{"TimeIncrement": "3.0", "TimeIncrementUnit": "s"},
            },
        ),
        (
            Calibration(resolution=(8.0, 8.0), resolution_unit=3, spacing=2.0),
            {
                **{"PhysicalSizeX": "0.125", "PhysicalSizeY": "0.125", "PhysicalSizeZ": "2.0"},
                **{f"PhysicalSize{axis}Unit": "cm" for axis in "XYZ"},
            },
        ),
        (
            Calibration(resolution=(8.0, 8.0), unit=r"\u00C5", spacing=20.0),
            {
                **{"PhysicalSizeX": "0.125", "PhysicalSizeY": "0.125", "PhysicalSizeZ": "20.0"},
                **{f"PhysicalSize{axis}Unit": "Å" for axis in "XYZ"},
            },
        ),
        (
            Calibration(resolution=(8.0, 8.0)),
            {
                **{"PhysicalSizeX": "0.125", "PhysicalSizeY": "0.125"},
                **{f"PhysicalSize{axis}Unit": "reference frame" for axis in "XY"},
            },
        ),
        (Calibration(), {}),
    ],
)
def test_ome_states_scale_size_and_text(tmp_path, calibration, expected):
    array = noise((2, 3, 20, 30), "uint16")
    options = {"axes": "TCYX", "layout": "tiles", "calibration": calibration, "info": INFO}
    info, pixels = ome(write(tmp_path / "a.tif", array, **options))
    assert info == INFO
    scale = {key: value for key, value in pixels.items() if key.startswith(("Phys", "Time"))}
    assert scale == expected
    sizes = {key: value for key, value in pixels.items() if key.startswith("Size")}
    assert sizes == {"SizeX": "30", "SizeY": "20", "SizeC": "3", "SizeZ": "1", "SizeT": "2"}


def test_unit_that_ome_has_not_is_noted(tmp_path):
    scale = Calibration(resolution=(8.0, 8.0), unit="furlong")
    with pytest.warns(InputNote, match="OME-TIFF has no unit 'furlong'"):
        path = write(tmp_path / "a.tif", noise((1, 4, 5), "uint8"), layout="tiles",
                     calibration=scale)  # fmt: skip
    assert ome(path)[1]["PhysicalSizeXUnit"] == "reference frame"
    assert read_calibration(path).resolution == (8.0, 8.0)


def test_memory_is_a_row_of_tiles_and_not_a_page(tmp_path):
    height, width = 20_000, 2000  # 160 MB; a row of tiles 4 MB, a tile 1 MB
    column = np.arange(height, dtype=np.float32)[:, None]
    bands = (np.repeat(column[top : top + 100], width, 1) for top in range(0, height, 100))
    tracemalloc.start()
    try:
        write_pages(
            tmp_path / "a.tif", bands, shape=(1, height, width), dtype="float32", layout="tiles"
        )
        assert tracemalloc.get_traced_memory()[1] < 16e6
    finally:
        tracemalloc.stop()
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.pages.first.asarray()[:, 7], column[:, 0])


PAGE = np.zeros((5, 4), np.uint8)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ([PAGE], "end at row 0 of page 1 of 2"),
        ([PAGE, PAGE[:3]], "end at row 3 of page 1 of 2"),
        ([PAGE, PAGE, PAGE[:1]], "more bands than 2 pages"),
        ([PAGE[:3], PAGE], "page 0: a band of 5 rows at row 3 of 5"),
        ([PAGE[:, :3]], r"a band of shape \(5, 3\)"),
        ([PAGE[None]], r"a band of shape \(1, 5, 4\)"),
        ([PAGE.astype(np.uint16)], "uint16"),
        ([], "end at row 0 of page 0 of 2"),
    ],
)
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_bands_that_do_not_tile_the_pages_are_errors(tmp_path, bands, message, layout):
    with pytest.raises(ValueError, match=message):
        write_pages(tmp_path / "a.tif", bands, shape=(2, 5, 4), dtype="uint8", layout=layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dtype": "float64"},
            "dtype 'float64': one of uint8, uint16, uint32, float16, float32 is",
        ),
        ({"compression": "jpeg"}, "compression 'jpeg': one of zlib, zstd, lzw, none is needed"),
        ({"layout": "rows"}, "layout 'rows': one of strips, tiles is needed"),
        ({"dtype": "float16", "layout": "strips"}, "cannot hold float16; tiles can"),
        ({"dtype": "uint32", "layout": "strips"}, "cannot hold uint32; tiles can"),
        (
            {"shape": (2, 2, 5, 4), "axes": "ZTYX", "layout": "strips"},
            "cannot hold axes ZTYX; tiles can",
        ),
        ({"shape": (1, 2**16, 2**16), "layout": "strips"}, "1 × 65536 × 65536 uint8 is too large"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_first_band(tmp_path, options, message):
    def bands():
        raise AssertionError("asked for")
        yield

    options = {"shape": (1, 5, 4), "dtype": "uint8", **options}
    with pytest.raises(InputError, match=message):
        write_pages(tmp_path / "a.tif", bands(), **options)
    assert not (tmp_path / "a.tif").exists()


@pytest.mark.parametrize(
    ("shape", "axes"), [((5, 4), "YX"), ((1, 2, 5, 4), "ZYX"), ((0, 5, 4), "ZYX")]
)
def test_axes_and_shape_have_to_fit(tmp_path, shape, axes):
    with pytest.raises(ValueError, match="do not fit"):
        write_pages(tmp_path / "a.tif", [], shape=shape, dtype="uint8", axes=axes)


class _Interrupt(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError("the network is gone"), StopIteration(), _Interrupt()])
@pytest.mark.parametrize("pages", [0, 1, 20])
def test_errors_of_the_bands_are_raised_as_they_are(tmp_path, error, pages):
    class Bands:
        left = pages

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0:
                raise error
            self.left -= 1
            return PAGE

    threads = threading.active_count()
    expected = ValueError if isinstance(error, StopIteration) else type(error)  # it only ends them
    with pytest.raises(expected) as caught:
        write_pages(
            tmp_path / "a.tif", Bands(), shape=(30, 5, 4), dtype="uint8", layout="tiles", workers=2
        )
    assert expected is ValueError or caught.value is error
    assert threading.active_count() == threads


class _SmallDisc(io.BytesIO):
    """A file on a disc with room for `room` bytes; what is over is noticed late, when closing."""

    def __init__(self, room, *, is_late):
        super().__init__()
        self._room, self._is_late = room, is_late

    def _check(self):
        if self.getbuffer().nbytes > self._room:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, content):
        written = super().write(content)
        if not self._is_late:
            self._check()
        return written

    def __exit__(self, *_):
        self._check()


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
@pytest.mark.parametrize("compression", ["zlib", "none"])
@pytest.mark.parametrize("room", [10, 5000, 30_000])
def test_full_disc_is_an_error_and_no_hang(monkeypatch, is_late, layout, compression, room):
    array = noise((10, 64, 64), "uint8")  # 40 kB
    file = _SmallDisc(room, is_late=is_late)
    monkeypatch.setattr(tiff_output, "open", lambda *_: file, raising=False)
    threads = threading.active_count()
    with pytest.raises(OSError) as caught:
        write("a.tif", array, layout=layout, compression=compression, workers=2)
    assert caught.value.errno == errno.ENOSPC
    assert threading.active_count() == threads


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16"])
@pytest.mark.parametrize("axes", [*AXES[4], *AXES[5]])
def test_axes_are_read_back(tmp_path, axes, dtype):
    lengths = {"T": 3, "Z": 5, "C": 2, "Y": 20, "X": 30}
    array = noise([lengths[axis] for axis in axes], dtype)
    write(tmp_path / "a.tif", array, axes=axes)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.series[0].axes, file.series[0].shape) == (axes, array.shape)
        assert file.is_imagej == (dtype != "float16" and not axes.startswith("ZT"))
        assert file.is_ome == (dtype != "float16" and axes.startswith("ZT"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputNote)
        reader = StackReader(tmp_path / "a.tif", channels=lengths["C"] if "C" in axes else 1)
    with reader:
        assert reader.depth_axes == tuple((axis, lengths[axis]) for axis in axes if axis in "TZ")
        read = [reader.read_region(z, slice(None), slice(None)) for z in range(reader.shape[0])]
    np.testing.assert_array_equal(np.reshape(read, array.shape), array)


CLIENT_CASES = [
    ("uint8", "strips", "zlib", (3, 70, 530), "ZYX"),
    ("uint16", "strips", "lzw", (1, 300, 530), "ZYX"),
    ("float32", "strips", "zlib", (2, 3, 300, 530), "ZCYX"),
    ("float32", "strips", "none", (3, 300, 530), "TYX"),
    ("uint16", "strips", "none", (3, 9, 1), "ZYX"),
    ("uint8", "tiles", "zlib", (2, 3, 300, 530), "ZCYX"),
    ("uint16", "tiles", "none", (3, 520, 530), "ZYX"),
    ("float32", "tiles", "zlib", (1, 300, 530), "ZYX"),
    ("uint8", "strips", "zlib", (2, 3, 70, 53), "TZYX"),
    ("float32", "strips", "zlib", (2, 3, 2, 70, 53), "TZCYX"),
    ("uint8", "tiles", "zlib", (2, 3, 2, 70, 53), "ZTCYX"),
]


OTHER_DTYPES = ("float16", "uint32")


def write_case(path, case):
    dtype, layout, compression, shape, axes = case
    array = noise(shape, dtype)
    options = {"layout": layout, "compression": compression, "axes": axes, "calibration": SCALE}
    write(path, array, info=INFO, rows=50, **options)
    return array.reshape(-1, *shape[-2:])


@pytest.mark.parametrize("case", CLIENT_CASES)
def test_pillow_reads_the_same(tmp_path, case):
    pages = write_case(tmp_path / "a.tif", case)
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == len(pages)
        for z, page in enumerate(pages):
            image.seek(z)
            np.testing.assert_array_equal(np.asarray(image), page)


@pytest.mark.skipif(not shutil.which("tiffcp"), reason="needs libtiff's tools")
@pytest.mark.parametrize(
    "case",
    [*CLIENT_CASES, *((dtype, "tiles", "zlib", (2, 40, 50), "ZYX") for dtype in OTHER_DTYPES)],
)
def test_libtiff_reads_the_same(tmp_path, case):
    pages = write_case(tmp_path / "a.tif", case)
    height, width = pages.shape[1:]
    shown = subprocess.run(
        ["tiffinfo", "a.tif"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout.count(f"Image Width: {width} Image Length: {height}\n") == len(pages)
    assert shown.stdout.count("Resolution: 2, 4 (unitless)\n") == len(pages)
    complaints = shown.stderr.splitlines()  # nothing but that it does not know ImageJ's two tags
    assert all("tag 50838" in line or "tag 50839" in line for line in complaints)
    subprocess.run(["tiffcp", "-c", "none", "a.tif", "b.tif"], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(read_pages(tmp_path / "b.tif"), pages)


@pytest.mark.skipif(not (shutil.which("java") and IMAGEJ.exists()), reason="needs ImageJ")
def test_imagej_reads_strips_the_same_and_no_tiles(tmp_path):
    (tmp_path / "Show.java").write_text(IMAGEJ_PROGRAM)
    expected = []
    for i, case in enumerate(CLIENT_CASES):
        pages = write_case(tmp_path / f"{i}.tif", case).astype(float)
        height, width = pages.shape[1:]
        weights = 1 + np.arange(width) + 2 * np.arange(height)[:, None]
        sizes = dict(zip(case[4], case[3], strict=True))
        dimensions = [width, height, *(sizes.get(axis, 1) for axis in "CZT")]
        sums = (pages * weights).sum((1, 2)).tolist()
        expected.append([*dimensions, 0.5, 0.25, 0.5, 3.0, True, *sums])
    shown = subprocess.run(
        ["java", "-Djava.awt.headless=true", "-cp", str(IMAGEJ), "Show.java"]
        + [f"{i}.tif" for i in range(len(CLIENT_CASES))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in shown.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(CLIENT_CASES)
    for case, line, want in zip(CLIENT_CASES, lines, expected, strict=True):
        assert line == (pytest.approx(want, rel=1e-6) if case[1] == "strips" else []), case
