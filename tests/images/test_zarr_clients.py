"""What is written as OME-Zarr, seen by validators, by readers of others, and by our own checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unet_repro.files.places import Folder
from unet_repro.images.ome_zarr import ImageFacts
from unet_repro.images.scale import Calibration
from unet_repro.images.zarr_output import Layout, ZarrOutput

SHAPE = (2, 200, 150)
PIXELS = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
SCALE = Calibration(resolution=(0.25, 0.125), unit="nm", spacing=50.0)


def written(path: Path, ngff: Any, *, are_labels: bool) -> Path:
    layout = Layout("ZYX", SHAPE, "uint8", ngff, 128, "zstd")
    output = ZarrOutput(path, layout)
    output.claimed({})
    output.begin({})
    for number in range(len(output.blocks)):
        output.blocks.write(number, PIXELS[output.blocks.slices(number)])
    channels = () if are_labels else ("P(class 1)",)
    facts = ImageFacts("image", "ZYX", SCALE, are_labels, channels, 255.0)
    output.finish(facts, "{}")
    return path


@pytest.fixture(params=["0.5", "0.4"])
def ngff(request: pytest.FixtureRequest) -> str:
    return request.param


def attributes(path: Path, ngff: str) -> dict[str, Any]:
    if ngff == "0.5":
        return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]
    return json.loads((path / ".zattrs").read_text())


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("are_labels", [False, True])
def test_validators_accept_it(tmp_path: Path, ngff: str, are_labels: bool) -> None:
    models = pytest.importorskip("ome_zarr_models")
    yaozarrs = pytest.importorskip("yaozarrs")
    import zarr

    path = written(tmp_path / "a.ome.zarr", ngff, are_labels=are_labels)
    found = models.open_ome_zarr(zarr.open_group(path, mode="r"))
    assert type(found).__name__ == ("ImageLabel" if are_labels else "Image")
    yaozarrs.validate_zarr_store(str(path))


@pytest.mark.parametrize("are_labels", [False, True])
def test_what_validators_do_not_look_at(tmp_path: Path, ngff: str, are_labels: bool) -> None:
    path = written(tmp_path / "a.ome.zarr", ngff, are_labels=are_labels)
    ome = attributes(path, ngff)
    (multiscale,) = ome["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in multiscale["axes"]} == {"nanometer"}  # in full
    assert ("image-label" in ome) == are_labels
    assert multiscale["type"] == ("nearest" if are_labels else "mean")
    if not are_labels:
        assert ome["omero"]["rdefs"]["defaultT"] == 0
        assert ome["omero"]["channels"][0]["window"]["max"] == 255
    for level, dataset in enumerate(multiscale["datasets"]):
        scale, translation = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [50.0, 8.0 * 2**level, 4.0 * 2**level]}
        # pixels of all levels cover the same: the first centre moves by half of what they grow
        assert translation["translation"] == [0.0, 4.0 * (2**level - 1), 2.0 * (2**level - 1)]
    others = {entry.name for entry in path.iterdir()} - {"zarr.json", ".zattrs", ".zgroup"}
    assert others == {str(level) for level in range(len(multiscale["datasets"]))}
    assert Folder(path).has("0/zarr.json" if ngff == "0.5" else "0/.zarray")


def test_tensorstore_reads_the_same_pixels(tmp_path: Path, ngff: str) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    path = written(tmp_path / "a.ome.zarr", ngff, are_labels=True)
    for level in range(2):
        spec = {
            "driver": "zarr3" if ngff == "0.5" else "zarr",
            "kvstore": {"driver": "file", "path": str(path / str(level))},
        }
        read = tensorstore.open(spec, open=True, read=True).result().read().result()
        np.testing.assert_array_equal(read, PIXELS[:, :: 2**level, :: 2**level])
