"""Arrays read as stacks: OME-Zarr of both versions, plain zarr, HDF5."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet_repro.errors import InputError, InputNote
from unet_repro.files.watched_store import WatchedStore
from unet_repro.images.calibration import read_calibration
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.stacks import read_images, read_stack, write_stack

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 30, 40), dtype=np.uint8)  # tczyx


def ome_zarr(path: Path, pixels: np.ndarray, axes: str, version: str, **more: Any) -> Path:
    """An image as others write it: two levels, the second without a translation."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    units = {"z": "nanometer", "y": "nanometer", "x": "nanometer", "t": "millisecond"}
    scale = {"t": 500.0, "c": 1.0, "z": 50.0, "y": 4.0, "x": 8.0}
    kinds = {"t": "time", "c": "channel"}
    datasets = []
    for level, values in enumerate((pixels, pixels[..., ::2, ::2])):
        chunks = (*[1] * (pixels.ndim - 2), 16, 16)
        group.create_array(str(level), data=values, chunks=chunks)
        step = [scale[axis] * (2**level if axis in "yx" else 1) for axis in axes]
        datasets.append(
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": step}],
            }
        )
    datasets[0]["coordinateTransformations"].append(
        {"type": "translation", "translation": [7.0 if axis == "y" else 0.0 for axis in axes]}
    )
    named = [
        {
            "name": axis,
            "type": kinds.get(axis, "space"),
            **({"unit": units[axis]} if axis in units else {}),
        }
        for axis in axes
    ]
    multiscale = {"axes": named, "datasets": datasets, **more}
    if version == "0.5":
        group.attrs["ome"] = {"version": "0.5", "multiscales": [multiscale]}
    else:
        group.attrs["multiscales"] = [{**multiscale, "version": "0.4"}]
    return path


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_slices_and_channels_of_an_image(tmp_path: Path, version: str) -> None:
    path = ome_zarr(tmp_path / "a.zarr", PIXELS, "tczyx", version)
    with StackReader(path, channels=3) as stack:
        assert stack.shape == (8, 30, 40) and stack.depth_axes == (("T", 2), ("Z", 4))
        region = stack.read_region(5, slice(3, 9), slice(20, 40))
        np.testing.assert_array_equal(region, PIXELS[1, :, 1, 3:9, 20:40])
    with StackReader(path, channels=3, level=1) as stack:
        np.testing.assert_array_equal(
            stack.read(), PIXELS[..., ::2, ::2].swapaxes(1, 2).reshape(8, 3, 15, 20)
        )
    with pytest.raises(InputError, match=r"has several channels \(axes TCZYX"):
        read_stack(path)
    with pytest.raises(InputError, match="--level 2 is none of its levels, 0 to 1"):
        StackReader(path, channels=3, level=2)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_scale_of_each_level(tmp_path: Path, version: str) -> None:
    path = ome_zarr(tmp_path / "a.zarr", PIXELS[:, 0], "tzyx", version)
    fine, coarse = read_calibration(path), read_calibration(path, level=1)
    assert fine.resolution == (1 / 8, 1 / 4) and coarse.resolution == (1 / 16, 1 / 8)
    assert (fine.unit, fine.spacing, fine.interval) == ("nm", 50.0, 0.5)
    assert fine.origin == (0.0, 7.0, 0.0) and coarse.origin is None
    assert read_calibration(path / "1") == coarse  # an array of an image knows whose it is
    np.testing.assert_array_equal(read_stack(path / "0"), PIXELS[:, 0].reshape(8, 30, 40))


def test_transformations_of_all_levels_count(tmp_path: Path) -> None:
    whole = [{"type": "scale", "scale": [10.0, 10.0, 10.0]}]
    path = ome_zarr(
        tmp_path / "a.zarr", PIXELS[0, 0], "zyx", "0.5", coordinateTransformations=whole
    )
    calibration = read_calibration(path)
    assert calibration.resolution == (1 / 80, 1 / 40) and calibration.spacing == 500
    assert calibration.origin == (0.0, 70.0, 0.0)


@pytest.mark.parametrize("form", [2, 3])
def test_plain_arrays(tmp_path: Path, form: int) -> None:
    zarr.create_array(tmp_path / "a", data=PIXELS[0, 0].astype(">i2"), zarr_format=form)
    with StackReader(tmp_path / "a") as stack:
        assert stack.dtype == np.int16 and stack.dtype.isnative
        np.testing.assert_array_equal(stack.read(), PIXELS[0, 0])
    zarr.create_array(tmp_path / "b", data=PIXELS[0], zarr_format=form)
    with pytest.raises(InputError, match=r"has 4 axes .* --axes does, as --axes TZYX"):
        read_stack(tmp_path / "b")
    np.testing.assert_array_equal(
        read_images(tmp_path / "b", channels=3, axes="CZYX"), PIXELS[0].swapaxes(0, 1)
    )
    zarr.create_array(tmp_path / "c", data=np.moveaxis(PIXELS[0], 0, -1), zarr_format=form)
    np.testing.assert_array_equal(
        read_images(tmp_path / "c", channels=3, axes="ZYXC"), PIXELS[0].swapaxes(0, 1)
    )


def test_hdf5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes/raw"] = PIXELS[0, 0]
    path = Path(f"{tmp_path}/a.h5:/volumes/raw")
    np.testing.assert_array_equal(read_stack(path), PIXELS[0, 0])
    with StackReader(path) as stack:
        assert stack.fingerprint()["files"][0]["name"] == "a.h5"
    message = r"a dataset must be named: it holds volumes/raw .*a\.h5:/volumes/raw"
    with pytest.raises(InputError, match=message):
        read_stack(tmp_path / "a.h5")
    with pytest.raises(InputError, match="holds no dataset 'volumes/x'"):
        read_stack(f"{tmp_path}/a.h5:/volumes/x")
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90))
    with pytest.raises(InputError, match=r"b\.h5: cannot be read"):
        read_stack(f"{tmp_path}/b.h5:/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plate": {}}, "is a plate"),
        ({"bioformats2raw.layout": 3}, r"give .*a\.zarr/0"),
        ({}, "is a zarr group, but no OME-Zarr image"),
        ({"ome": {"multiscales": [{"axes": ["z", "y", "x"]}]}}, "list no datasets"),
        ({"ome": {"multiscales": [{"datasets": [{"path": "../0"}]}]}}, r"has the path '\.\./0'"),
        (
            {"ome": {"multiscales": [{"axes": ["y", "z", "x"], "datasets": [{"path": "0"}]}]}},
            "its axes are y, z, x",
        ),
        (
            {
                "ome": {
                    "multiscales": [
                        {
                            "axes": ["z", "y", "x"],
                            "datasets": [
                                {
                                    "path": "0",
                                    "coordinateTransformations": [
                                        {"type": "scale", "scale": [1, 0, 1]}
                                    ],
                                }
                            ],
                        }
                    ]
                }
            },
            "is no scale of 3 axes",
        ),
    ],
)
def test_what_is_no_one_image_is_told(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.zarr"
    group = zarr.create_group(path)
    group.create_array("0", data=PIXELS[0, 0])
    group.attrs.update(change)
    with pytest.raises(InputError, match=message):
        read_stack(path)


def test_damaged_chunks_and_descriptions_are_one_line(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", PIXELS[0, 0], "zyx", "0.5")
    (path / "0/c/2/0/1").write_bytes(b"no zstd")
    with StackReader(path) as stack:
        np.testing.assert_array_equal(
            stack.read_region(2, slice(0, 16), slice(0, 16))[0], PIXELS[0, 0, 2, :16, :16]
        )
        with pytest.raises(InputError, match=r"a\.zarr: slice 2 cannot be read"):
            stack.read_slice(2)
        document = json.loads((path / "zarr.json").read_text())
        document["attributes"]["ome"]["multiscales"][0]["name"] = "other"
        (path / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match="was written to since reading began"):
            stack.check_unchanged()
    (path / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"zarr\.json: is damaged"):
        read_stack(path)


def test_chunks_that_are_not_stored_are_told_once(tmp_path: Path) -> None:
    pixels = PIXELS[0, 0].copy()
    pixels[2, :16, 16:32] = 0
    path = ome_zarr(tmp_path / "a.zarr", pixels, "zyx", "0.5")
    assert not (path / "0/c/2/0/1").exists()  # zarr leaves out what is all fill value
    with StackReader(path) as stack:
        stack.read_region(2, slice(0, 16), slice(0, 16))  # nothing is missing there
        with pytest.warns(InputNote, match=r"a\.zarr: chunks are missing, which read as 0") as said:
            np.testing.assert_array_equal(stack.read_slice(2), pixels[2])
            stack.read_slice(2)
    assert len(said) == 1


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a server of the folder."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_url_is_shown_as_it_is_and_its_missing_chunks_are_told_once(
    tmp_path: Path, address: str
) -> None:
    pytest.importorskip("obstore")
    pixels = PIXELS[0, 0].copy()
    pixels[2, :16, 16:32] = 0
    ome_zarr(tmp_path / "a.zarr", pixels, "zyx", "0.5")
    with StackReader(Path(f"{address}/a.zarr")) as stack:
        with pytest.warns(InputNote) as said:
            np.testing.assert_array_equal(stack.read(), pixels)
            stack.read_slice(2)
        (text,) = (str(each.message) for each in said)
        assert text.startswith(f"{address}/a.zarr: chunks are missing, which read as 0")
        (tmp_path / "a.zarr/0/c/1/0/0").write_bytes(b"damaged")
        with pytest.raises(InputError, match=f"^{address}/a.zarr: slice 1 cannot be read"):
            stack.read_slice(1)


def test_missing_shard_is_told(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(2, 32, 32), chunks=(1, 8, 8), shards=(1, 16, 16), dtype="u1"
    )
    array[0] = 5
    array[1, :16] = 5
    with StackReader(tmp_path / "a.zarr") as stack:
        stack.read_slice(0)
        with pytest.warns(InputNote, match="chunks are missing"):
            stack.read_region(1, slice(20, 24), slice(3, 5))


def test_folder_that_is_called_zarr_and_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.zarr/0").mkdir(parents=True)
    with pytest.raises(InputError, match=r"and is no zarr: neither zarr\.json nor \.zgroup"):
        StackReader(tmp_path / "a.zarr")


def test_the_first_of_several_images_is_read_and_that_is_told(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path / "a.zarr", PIXELS[0, 0], "zyx", "0.5", name="raw")
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["ome"]["multiscales"].append({"name": "other"})
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.warns(InputNote, match=r"describes 2 images; the first, 'raw', is read"):
        np.testing.assert_array_equal(read_stack(path), PIXELS[0, 0])


def test_chunks_of_a_sparse_array_are_not_gathered() -> None:
    store = WatchedStore(zarr.storage.MemoryStore())
    array = zarr.create_array(store, shape=(9, 9), chunks=(1, 1), dtype="uint8", fill_value=7)
    store.absent.clear()
    assert (array[:] == 7).all() and (array[:] == 7).all()
    assert len(store.absent) == 1


@pytest.mark.parametrize("shape", [(20, 30, 1), (20, 1, 30), (5, 20, 30, 1)])
def test_arrays_without_names_whose_images_would_be_1_px_wide_or_high(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """(y, x, 1) of one image is likelier than (z, y, 1): it is for the user to say."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    zarr.create_array(tmp_path / "a.zarr", data=pixels)
    with pytest.raises(InputError, match="of which nothing says what they are; --axes does"):
        read_stack(tmp_path / "a.zarr")
    letters = "TZYX"[-len(shape) :]
    slices = pixels.reshape(-1, *shape[-2:])
    np.testing.assert_array_equal(read_stack(tmp_path / "a.zarr", axes=letters), slices)
    if shape[-1] == 1:
        image = read_stack(tmp_path / "a.zarr", axes=letters[1:])
        np.testing.assert_array_equal(image, pixels[..., 0].reshape(-1, *shape[-3:-1]))


@pytest.mark.parametrize("text", ['{"array": "0-7"}', "{", "[1]", None])
def test_job_of_another_program_makes_no_output_of_ours(tmp_path: Path, text: str | None) -> None:
    """Folders of images, and arrays, may lie beside what a cluster was told."""
    image = PIXELS[0, 0, 0]
    for name in ("1.tif", "2.tif"):
        write_stack(tmp_path / name, image)
    zarr.create_array(tmp_path / "a", data=image)
    if text is None:
        (tmp_path / "job.json").mkdir()
    else:
        (tmp_path / "job.json").write_text(text)
    np.testing.assert_array_equal(read_stack(tmp_path), [image, image])
    np.testing.assert_array_equal(read_stack(tmp_path / "a"), [image])


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"unet_repro": "0", "settings": {}}, "is an unfinished prediction, .*: predict --resume"),
        ({"unet_repro": "0", "weight_map": 1}, "an unfinished weight map, .*: weight-map --resume"),
    ],
)
def test_what_is_unfinished_says_how_it_is_completed(
    tmp_path: Path, job: dict[str, Any], message: str
) -> None:
    zarr.create_array(tmp_path / "o.zarr/0", data=PIXELS[0, 0])
    (tmp_path / "o.zarr/job.json").write_text(json.dumps(job))
    blocks = zarr.create_array(tmp_path / ".o.tif.parts/blocks", data=PIXELS[0, 0])
    blocks.attrs.update({"overwrite": False, "record": job})
    for path in ("o.zarr", "o.zarr/0", ".o.tif.parts/blocks"):
        with pytest.raises(InputError, match=message) as caught:
            read_stack(tmp_path / path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [3, 2, "labels", "ilastik"])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("zyx", "slices"),
        ("yxz", "slices"),
        ("yxc", r"has several channels \(axes YXC"),
        ("xyz", r"has axes XYZ .*: Y must be right before X"),
        (
            ["depth", "row", "col"],
            "whose names are others than T, C, Z, Y and X, each once; --axes",
        ),
        (["y", "y", "x"], "whose names are others than T, C, Z, Y and X, each once; --axes does"),
        (["dim_0", "dim_1", "dim_2"], "slices"),
    ],
    ids=str,
)
def test_names_of_axes_are_believed(
    tmp_path: Path, form: int | str, names: str | list[str], expected: str
) -> None:
    """As zarr, xarray, h5py and ilastik write them; any but these would be read as ZYX."""
    slices = PIXELS[0, 0]
    order = ["zyx".index(axis) for axis in names] if sorted(names) == list("xyz") else [0, 1, 2]
    pixels = np.ascontiguousarray(slices.transpose(order))
    path = tmp_path / "a.zarr"
    if form == 3:
        zarr.create_array(path, data=pixels, dimension_names=list(names))
    elif form == 2:
        array = zarr.create_array(path, data=pixels, zarr_format=2)
        array.attrs["_ARRAY_DIMENSIONS"] = list(names)
    else:
        h5py = pytest.importorskip("h5py")
        path = tmp_path / "a.h5:/a"
        with h5py.File(tmp_path / "a.h5", "w") as file:
            dataset = file.create_dataset("a", data=pixels)
            if form == "ilastik":
                dataset.attrs["axistags"] = json.dumps({"axes": [{"key": name} for name in names]})
            else:
                for dimension, name in zip(dataset.dims, names):
                    dimension.label = name
    if expected == "slices":
        np.testing.assert_array_equal(read_stack(path), slices)
        return
    with pytest.raises(InputError, match=expected):
        read_stack(path)
    np.testing.assert_array_equal(read_stack(path, axes="ZYX"), pixels)


@pytest.mark.parametrize("name", ["scalar", "empty", "outside", "line"])
def test_datasets_that_are_no_images_are_refused(tmp_path: Path, name: str) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["scalar"], file["empty"], file["line"] = 3, h5py.Empty("f"), np.arange(9)
        file["outside"] = h5py.ExternalLink("elsewhere.h5", "/raw")
    with pytest.raises(InputError, match=r"has no axes|cannot be read|has 1 axes"):
        read_stack(tmp_path / f"a.h5:/{name}")


@pytest.mark.parametrize("size", [(3, 30, 40), (4, 30, 40), (4, 32, 64), (9, 30, 40)])
@pytest.mark.parametrize("form", ["digits", "bytes"])
def test_zeros_that_imaris_appends_are_not_read(
    tmp_path: Path, size: tuple[int, int, int], form: str
) -> None:
    """It stores whole chunks; a size that cannot be is none."""
    h5py = pytest.importorskip("h5py")
    stored = np.zeros((4, 32, 64), np.uint8)
    z, y, x = np.minimum(size, stored.shape)
    stored[:z, :y, :x] = np.random.default_rng(0).integers(1, 255, (z, y, x))
    place = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"
    with h5py.File(tmp_path / "a.ims", "w") as file:
        channel = file.create_group(place)
        channel.create_dataset("Data", data=stored, chunks=(2, 16, 32))
        for axis, side in zip("ZYX", size):
            digits = np.array(list(str(side)), "S1") if form == "digits" else np.bytes_(str(side))
            channel.attrs[f"ImageSize{axis}"] = digits
    is_padded = size in ((3, 30, 40), (4, 30, 40))
    expected = stored[:z, :y, :x] if is_padded else stored
    told = pytest.warns(InputNote, match="as Imaris says, of 4 × 32 × 64 stored")
    with told if is_padded else nullcontext():
        reader = StackReader(tmp_path / f"a.ims:/{place}/Data")
    with reader:
        assert reader.shape == expected.shape
        np.testing.assert_array_equal(reader.read(), expected)
        region = reader.read_region(1, slice(5, 20), slice(30, 39))
        np.testing.assert_array_equal(region[0], expected[1, 5:20, 30:39])
