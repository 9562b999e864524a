"""Packages of bioimage.io: what they describe is what they hold, and blocks give one pass."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_repro.config import MODELS, UNetConfig
from unet_repro.errors import InputError, InputNote
from unet_repro.network import portable, standalone
from unet_repro.network.bioimageio_package import Filter, read_example
from unet_repro.network.export import export_model
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.geometry import alignment, block_geometry, halo
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.prediction.predictor import OverlapTilePredictor

CONFIG = UNetConfig(
    depth=2,
    base_channels=2,
    in_channels=2,
    classes=3,
    input_mean=(121.5, 40.0),
    input_std=(42.25,),
)
GIVEN = {
    "author": ("Ada Lovelace", "Charles Babbage"),
    "citation": (
        "Cardona et al. 2010, https://doi.org/10.1371/journal.pbio.1000502.",
        "The images (https://example.org/images)",
    ),
    "license": "CC-BY-4.0",
}


def network_of(config: UNetConfig) -> UNet:
    network = UNet(config, generator=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        network.classifier.weight *= 5  # probabilities far from one half
    return network


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A model file and an example of two channels, 200 x 90 px of 4 nm."""
    folder = tmp_path_factory.mktemp("package")
    save_model(network_of(CONFIG), folder / "m.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (2, 2, 200, 90), dtype=np.uint8)
    tifffile.imwrite(
        folder / "example.tif",
        image,
        imagej=True,
        resolution=(0.25, 0.2),
        metadata={"unit": "nm", "axes": "ZCYX"},
    )
    return folder


def export(folder: Path, out: Path, **changed: object) -> None:
    options = {**GIVEN, "example": folder / "example.tif", **changed}
    export_model(folder / "m.safetensors", out, format="bioimageio", **options)


@pytest.fixture
def without_onnx(monkeypatch):
    """Leave the ONNX file, which takes ten seconds, empty; it is tested in test_export."""
    for name in ("bioimageio.spec", "ruyaml"):
        pytest.importorskip(name)

    def write(network, path, **options):
        path.write_bytes(b"")
        monkeypatch.setattr(portable, "run_onnx", lambda path: torch.no_grad()(network))

    monkeypatch.setattr(portable, "write_onnx", write)


def contents(path: Path) -> tuple[dict, dict[str, bytes]]:
    """Return a package's description and its files."""
    from ruyaml import YAML

    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    return YAML(typ="safe").load(files["rdf.yaml"].decode()), files


def test_a_package_holds_what_it_describes(files, tmp_path, without_onnx):
    out = tmp_path / "my net.zip"
    export(files, out, class_names=("ground", "cell", "nucleus"))
    assert [path.name for path in tmp_path.iterdir()] == ["my net.zip"]
    described, held = contents(out)
    assert described["name"] == "U-Net my net"
    assert described["authors"] == [{"name": "Ada Lovelace"}, {"name": "Charles Babbage"}]
    assert described["license"] == "CC-BY-4.0" and described["documentation"] == "README.md"
    cited = [entry.get("doi") or entry["url"] for entry in described["cite"]]
    assert cited == [
        "10.1371/journal.pbio.1000502",
        "https://example.org/images",
        "10.1007/978-3-319-24574-4_28",
    ]

    def check_hashes(part):
        if isinstance(part, list):
            for one in part:
                check_hashes(one)
        elif isinstance(part, dict):
            if "sha256" in part:
                content = held[part["source"]]
                assert hashlib.sha256(content).hexdigest() == part["sha256"]
            check_hashes(list(part.values()))

    check_hashes(described)
    (given_,), (result,) = described["inputs"], described["outputs"]
    for index, scale in ((2, 5.0), (3, 4.0)):
        size, place = given_["axes"][index], result["axes"][index]
        assert (size["size"], size["scale"], size["unit"]) == (
            {"min": 2 * 24 + 4, "step": 4},
            pytest.approx(scale),
            "nanometer",
        )
        assert place["halo"] == 24 and place["scale"] == size["scale"]
    assert result["axes"][1]["channel_names"] == ["ground", "cell", "nucleus"]
    kwargs = given_["preprocessing"][0]["kwargs"]
    assert kwargs == {"mean": [121.5, 40.0], "std": [42.25, 42.25], "axis": "channel"}
    text = held["README.md"].decode()
    for told in ("52 + 4 n px", "halo of 24 px", "only in unet_repro", "## Validation"):
        assert told in text


def test_weights_and_architecture_give_the_test_output(files, tmp_path, without_onnx):
    export(files, tmp_path / "m.zip")
    described, held = contents(tmp_path / "m.zip")
    names: dict = {"__name__": "architecture"}
    exec(held["unet_architecture.py"].decode(), names)  # as other programs do, from the file alone
    how = described["weights"]["pytorch_state_dict"]["architecture"]
    network = names[how["callable"]](**how["kwargs"]).eval()
    weights = torch.load(io.BytesIO(held["weights.pt"]), weights_only=True)
    network.load_state_dict(weights)
    kwargs = described["inputs"][0]["preprocessing"][0]["kwargs"]
    mean, std = (np.reshape(kwargs[name], (1, -1, 1, 1)) for name in ("mean", "std"))
    image, expected = (
        np.load(io.BytesIO(held[f"test_{name}.npy"])) for name in ("input", "output")
    )
    window = torch.from_numpy(((image - mean) / std).astype(np.float32))
    (tmp_path / "t.pt").write_bytes(held["weights_torchscript.pt"])
    for run in (torch.no_grad()(network), portable.run_torchscript(tmp_path / "t.pt")):
        np.testing.assert_allclose(run(window), expected, atol=1e-5)
    # the middle of the first slice: 88 px, a multiple of 4, and the mirrored image about it
    first = tifffile.imread(files / "example.tif")[0]
    np.testing.assert_array_equal(image[0, :, 24:-24, 24:-24], first[:, 56:144, :88])
    mirrored = np.pad(first, [(0, 0), (0, 0), (30, 30)], mode="reflect")
    np.testing.assert_array_equal(image[0], mirrored[:, 32:168, 6:142])
    # where it is to be used it is what this package predicts
    predicted = OverlapTilePredictor(load_model(files / "m.safetensors"))(first)
    inner = expected[0, :, 24:-24, 24:-24]
    np.testing.assert_allclose(inner, predicted[:, 56:144, :88], atol=1e-4)
    for name, values in (("input", image), ("output", expected)):
        sample = tifffile.imread(io.BytesIO(held[f"sample_{name}.tif"]))
        np.testing.assert_array_equal(sample.reshape(values.shape), values)
    cover = imagecodecs.png_decode(held["cover.png"])
    assert cover.shape == (88, 176, 3)
    shown = inner.argmax(axis=0) * 127.5
    assert np.abs(cover[:, 88:, 0] - shown).max() <= 0.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"license": "my own"}, "license is no SPDX name of a licence, such as CC-BY-4.0"),
        ({"name": "a/b: c"}, "name: "),
        ({"citation": ("me",)}, "citation 'me': needs a DOI or URL"),
        ({"class_names": ("a", "b")}, "the network has 3 classes"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(files, tmp_path, without_onnx, changed, message):
    with pytest.raises(InputError, match=message):
        export(files, tmp_path / "m.zip", **changed)
    with pytest.raises(InputError, match=r"m\.onnx: a bioimage\.io package is a \.zip"):
        export(files, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_an_example_of_another_range_is_told(tmp_path):
    path, blocks = tmp_path / "example.tif", block_geometry(CONFIG.depth, padding=False)
    given = ExportSettings("bioimageio", **(GIVEN | {"example": path}))
    image = np.random.default_rng(0).integers(0, 255, (2, 60, 90)).astype(np.float32)
    for factor in (1, 1 / 255):
        tifffile.imwrite(path, image * factor, imagej=True, metadata={"axes": "CYX"})
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", InputNote)
            read_example(given, CONFIG, blocks)
        told = [f"{each.message}" for each in seen if each.category is InputNote]
        assert len(told) == (factor < 1)
    assert "of channel 0 (mean 0.4" in told[0] and "likely wrong" in told[0]


def test_examples_that_do_not_fit_are_refused(files, tmp_path, without_onnx):
    small = tmp_path / "small.tif"
    tifffile.imwrite(small, np.zeros((2, 50, 3), np.uint8), imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(InputError, match=r"is 50 x 3 px; an example needs 4 a side"):
        export(files, tmp_path / "m.zip", example=small)
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, np.zeros((64, 64), np.uint8))
    with pytest.raises(InputError, match="channel"):
        export(files, tmp_path / "m.zip", example=grey)


@pytest.mark.parametrize("depth", range(1, 8))
def test_blocks_lie_on_the_grid_of_our_own_tiles(depth):
    grid = alignment(depth)
    for padding in (False, True):
        blocks = block_geometry(depth, padding=padding)
        assert (2 * blocks.halo) % grid == blocks.least % grid == 0 and blocks.step == grid
        assert blocks.least > 2 * blocks.halo
        assert blocks.halo - blocks.crop >= halo(depth)
        # the first block's window, and that of the first tile, which begins a margin before
        first = -blocks.halo + blocks.crop
        ours = 0 if padding else -(6 * grid - 4)
        assert (first - ours) % grid == 0


def in_blocks(run, image: np.ndarray, blocks, side: int, *, shift: int = 0) -> np.ndarray:
    """Predict a normalised image (c, h, w) as other programs do, the halo mirrored."""
    around, stride = blocks.halo, side - 2 * blocks.halo
    padded = np.pad(image, [(0, 0), (around, around), (around, around)], mode="reflect")
    result = None
    for y in range(shift, image.shape[1], stride):
        for x in range(shift, image.shape[2], stride):
            # the last block ends where the image does
            y0, x0 = (max(0, min(n, s - stride)) for n, s in zip((y, x), image.shape[1:]))
            block = torch.from_numpy(padded[None, :, y0 : y0 + side, x0 : x0 + side].copy())
            found = run(block)[0].numpy()[:, around:-around, around:-around]
            if result is None:
                result = np.full((len(found), *image.shape[1:]), np.nan, np.float32)
            result[:, y0 : y0 + stride, x0 : x0 + stride] = found
    assert result is not None
    return result


NETWORKS = {
    f"depth {depth}, {'padded' if padding else 'unpadded'}": network_of(
        UNetConfig(depth=depth, base_channels=2, padding=padding)
    )
    for depth in (1, 2, 3)
    for padding in (False, True)
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_blocks_give_one_pass(network, data):
    package = Filter.of(network)
    alone = standalone.SameSizeUNet(**package.arguments()).eval()
    alone.load_state_dict(network.state_dict())
    blocks, grid = package.blocks, package.blocks.step
    side = blocks.least + grid * data.draw(st.integers(0, 3))
    stride = side - 2 * blocks.halo
    height, width = (max(stride, grid * data.draw(st.integers(1, 10)), 2 * grid) for _ in range(2))
    image = np.random.default_rng(0).normal(size=(1, height, width)).astype(np.float32)
    expected = OverlapTilePredictor(network)(image[0])
    found = in_blocks(torch.no_grad()(alone), image, blocks, side)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_blocks_off_the_grid_do_not_give_one_pass():
    network = NETWORKS["depth 3, unpadded"]
    package = Filter.of(network)
    blocks = package.blocks
    image = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
    expected = OverlapTilePredictor(network)(image[0])
    off = in_blocks(package, image, blocks, blocks.least, shift=4)[:, 4:, 4:]
    assert np.abs(off - expected[:, 4:, 4:]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("preset", MODELS)
def test_bioimageio_core_runs_the_package(preset, tmp_path):
    """The test of the format's own program, and prediction by it, in blocks and at once."""
    pytest.importorskip("bioimageio.core")
    config = replace(MODELS[preset], base_channels=4, input_mean=(121.5,), input_std=(42.25,))
    network = network_of(config)
    save_model(network, tmp_path / "m.safetensors")
    image = np.random.default_rng(0).integers(0, 255, (304, 400), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "example.tif", image)
    out = tmp_path / "m.zip"
    export(tmp_path, out)
    # in a process of its own: it warns of much, and keeps caches
    command = [sys.executable, "-m", "bioimageio.core", "test", str(out)]
    tested = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    script = tmp_path / "predict.py"
    script.write_text(_PREDICT)
    subprocess.run([sys.executable, script, out, tmp_path], check=True, cwd=tmp_path)
    expected = OverlapTilePredictor(network)(image.astype(np.float32))
    around = halo(config.depth)
    inner = (slice(None), slice(around, -around), slice(around, -around))
    for name in json.loads((tmp_path / "done.json").read_text()):
        found = np.load(tmp_path / f"{name}.npy")
        np.testing.assert_allclose(found[inner], expected[inner], atol=1e-4, err_msg=name)


_PREDICT = """
import json, sys, warnings
import numpy as np, tifffile
warnings.simplefilter("ignore")
from bioimageio.core import create_prediction_pipeline
from bioimageio.core.digest_spec import create_sample_for_model
from bioimageio.spec import load_description

package, folder = sys.argv[1:]
model = load_description(package, perform_io_checks=False)
image = tifffile.imread(f"{folder}/example.tif").astype("float32")
done = []
for form in ("onnx", "torchscript", "pytorch_state_dict"):
    with create_prediction_pipeline(model, weight_format=form) as pipeline:
        for way in ("in_blocks", "at_once"):
            sample = create_sample_for_model(model, inputs={"image": image[None, None].copy()})
            if way == "in_blocks":
                result = pipeline.predict_sample_with_blocking(sample, ns=2)
            else:
                result = pipeline.predict_sample_without_blocking(sample)
            done.append(f"{form}_{way}")
            values = np.asarray(result.members["probability"].data)
            np.save(f"{folder}/{done[-1]}.npy", values[0])
json.dump(done, open(f"{folder}/done.json", "w"))
"""
