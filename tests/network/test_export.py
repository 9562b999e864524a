"""ONNX and TorchScript files, run by programs that know nothing of this package."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import unet_repro
from unet_repro import cli
from unet_repro.config import UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network import portable
from unet_repro.network.export import export_model
from unet_repro.network.export_settings import ExportSettings
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model

CONFIG = UNetConfig(
    depth=1,
    base_channels=2,
    in_channels=2,
    classes=3,
    input_mean=(30000.0, -4.0),
    input_std=(50.0, 0.1),
)
SHAPES = [(3, 2, 20, 34), (1, 2, 18, 18), (2, 2, 50, 28)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A file of half-precision weights: two channels in, three classes out."""
    path = tmp_path_factory.mktemp("model") / "half.safetensors"
    network = UNet(CONFIG, generator=torch.Generator().manual_seed(0))
    halves = {name: tensor.half() for name, tensor in network.state_dict().items()}
    metadata = {"unet_repro": "0", "config": json.dumps(to_dict(CONFIG)), "training": "{}"}
    save_file(halves, path, metadata)
    return path


@pytest.fixture(scope="module")
def onnx_file(model) -> Path:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = model.with_name("network.onnx")
    export_model(model, out, format="onnx", class_names=("ground", "cell", "nucleus"))
    return out


@pytest.fixture(scope="module")
def torchscript_file(model) -> Path:
    out = model.with_name("network.pt")
    export_model(model, out, format="torchscript")
    return out


def grey_values(shape) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=shape)
    mean, std = (np.reshape(v, (1, -1, 1, 1)) for v in (CONFIG.input_mean, CONFIG.input_std))
    return (mean + std * values).astype(np.float32)


def assert_same(found: np.ndarray, model: Path, image: np.ndarray) -> None:
    with torch.inference_mode():
        expected = load_model(model)(torch.from_numpy(image)).numpy()
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


def test_onnxruntime_gives_the_logits_of_any_size_and_batch(onnx_file, model):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for shape in SHAPES:
        image = grey_values(shape)
        assert_same(session.run(["logits"], {"image": image})[0], model, image)


def test_openvino_reads_the_onnx_file(onnx_file, model):
    openvino = pytest.importorskip("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(onnx_file), "CPU", settings)
    image = grey_values(SHAPES[0])
    assert_same(compiled(image)["logits"], model, image)
    with pytest.raises(RuntimeError):
        compiled(grey_values((1, 2, 21, 34)))


def test_a_wrong_size_fails_in_the_files_too(onnx_file, torchscript_file):
    wrong = torch.from_numpy(grey_values((1, 2, 21, 34)))
    for run in (portable.run_onnx(onnx_file), portable.run_torchscript(torchscript_file)):
        with pytest.raises(Exception, match=r"(?i)sizes of tensors must match|must match: Axis 2"):
            run(wrong)


def test_the_onnx_file_says_how_to_use_it(onnx_file):
    import onnx

    proto = onnx.load(onnx_file)
    for told in (
        "mean 30000, -4, std 50, 0.1",
        "n % 2 == 0, n >= 18",
        "such as 67",  # 18 + 24 * 2 + 1
        "answers silently",
        "height - 16",
        "0 = ground, 1 = cell, 2 = nucleus",
    ):
        assert told in proto.doc_string
    recorded = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(recorded["config"])["input_mean"] == [30000.0, -4.0]
    assert json.loads(recorded["classes"]) == ["ground", "cell", "nucleus"]
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [18]


def test_the_onnx_file_holds_no_place_on_this_machine(onnx_file):
    content = onnx_file.read_bytes()
    for place in (Path(unet_repro.__file__).parent, Path(torch.__file__).parent):
        assert str(place).encode() not in content
    assert b"forward" not in content  # of a line of code


def test_torchscript_gives_the_logits_of_any_size_and_batch(torchscript_file, model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises another format
        extra = {"documentation": "", "classes": ""}
        traced = torch.jit.load(io.BytesIO(torchscript_file.read_bytes()), _extra_files=extra)
        for shape in SHAPES:
            image = grey_values(shape)
            assert_same(traced(torch.from_numpy(image)).detach().numpy(), model, image)
    assert "n % 2 == 0, n >= 18" in extra["documentation"].decode()
    assert json.loads(extra["classes"]) == ["class_0", "class_1", "class_2"]


def test_documentation_of_the_papers_network():
    text = portable.documentation(UNetConfig(input_mean=(121.5,)), ["background", "cell"])
    for told in ("such as 573", "n % 16 == 12, n >= 188", "height - 184", "multiples of 16 px"):
        assert told in text
    padded = portable.documentation(UNetConfig(padding=True), ["background", "cell"])
    assert "with n >= 16" in padded and "height - 0" in padded and "silently" not in padded


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    write = portable.write_torchscript

    def flawed(network, path, **options):
        with torch.no_grad():
            network.network.classifier.bias += 1
        write(network, path, **options)

    monkeypatch.setattr(portable, "write_torchscript", flawed)
    with pytest.raises(InputError, match=r"in TorchScript: of an input of 2 x 2 x 24 x 26, it dif"):
        export_model(model, tmp_path / "m.pt", format="torchscript")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: x[:, :, 1:], r"gives \(1, 1, 2, 3\) and PyTorch \(1, 1, 3, 3\)"),
        (lambda x: x * torch.nan, "differs from PyTorch by nan"),
        (lambda x: x + 3e-4, "where values range over 2"),
    ],
)
def test_what_is_not_equal_is_told(run, message):
    window = torch.linspace(-1, 1, 9).reshape(1, 1, 3, 3)
    portable.check_equal(lambda x: x + 1e-4, lambda x: x, [window], what="it")
    with pytest.raises(InputError, match=message):
        portable.check_equal(run, lambda x: x, [window], what="it")


def test_three_sizes_and_a_batch_of_two_are_compared():
    for config in (CONFIG, UNetConfig(depth=2, padding=True), UNetConfig()):
        windows = portable.Sizes.of(config).windows(config)
        assert len({tuple(window.shape[2:]) for window in windows}) == 3
        assert 2 in {len(window) for window in windows}
        network = UNet(UNetConfig(**{**to_dict(config), "base_channels": 1}))
        for window in windows:
            network.check(window)
        odd = [side % 2 for window in windows for side in window.shape[2:]]
        assert any(odd) is config.padding


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"needs --example: .*--author: .*--citation: .*--license"):
        ExportSettings("bioimageio")
    with pytest.raises(InputError, match="license goes with format bioimageio; the format is onnx"):
        ExportSettings("onnx", license="MIT")
    for names in (("cell",), ("cell", "cell")):
        with pytest.raises(InputError, match="the network has 2 classes, and each needs a name"):
            ExportSettings("onnx", class_names=names).classes(2)
    with pytest.raises(InputError, match="letters, digits and _ only"):
        ExportSettings("onnx", class_names=("a", "cell border")).classes(2)
    assert ExportSettings("onnx").classes(2) == ["background", "cell"]


def test_a_missing_extra_is_told_in_a_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package onnx: pip install 'unet_repro\[ex"):
        export_model(model, tmp_path / "m.onnx", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "form, name, better",
    [("torchscript", "m.ONNX", "m.pt"), ("onnx", "m.pt", "m.onnx"), ("onnx", "m.zip", "m.onnx")],
)
def test_the_name_of_another_format_is_refused(model, tmp_path, form, name, better):
    with pytest.raises(InputError, match=f"the format is {form}: name it {better}"):
        export_model(model, tmp_path / name, format=form)
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_too_large_is_refused(model, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(portable, "_LARGEST_ONNX_BYTES", 100)
    with pytest.raises(InputError, match="less than 2 GiB: use --format torchscript"):
        export_model(model, tmp_path / "m.onnx", format="onnx")


def test_command(model, tmp_path, capsys):
    out = tmp_path / "out" / "network.pt"
    command = ["export", str(model), "--format", "torchscript", "--out", str(out)]
    assert cli.main(command) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    before = out.read_bytes()
    assert cli.main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert cli.main(["export", str(model), "--format", "torchscript", "--out", str(model)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert out.read_bytes() == before and load_model(model)
    assert [path.name for path in out.parent.iterdir()] == ["network.pt"]
