"""Nothing in a user's file is executed, leaves its place, or reaches a page or terminal raw."""

import ast
import io
import json
import os
import pickle
import signal
import socket
import stat
import sys
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import save_file

from unet_repro import cli
from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path
from unet_repro.files.file_access import open_binary
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, save_model
from unet_repro.reports import evaluation
from unet_repro.reports.report import write_report
from unet_repro.training.checkpoint import restore_checkpoint
from unet_repro.training.log import COLUMNS

PACKAGE = Path(__file__).parents[1] / "unet_repro"
TRAIN = [
    *("--preset", "quick", "--depth", "1", "--base-channels", "2", "--tile", "36"),
    *("--iterations", "1", "--device", "cpu", "--precision", "float32", "--average", "none"),
]
PAYLOAD = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}"


def calls() -> list[tuple[str, str, list[str], dict[str, str]]]:
    """Return each call in the package: file, what is called, positional and keyword arguments."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                options = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
                values = [ast.unparse(value) for value in node.args]
                found.append((path.name, ast.unparse(node.func), values, options))
    return found


def test_no_loader_of_the_package_may_run_what_it_loads():
    loads = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    seen = []
    for file, name, _, options in calls():
        if name in loads:
            seen.append(name)
            option, value = loads[name].split("=")
            assert options.get(option) == value, (file, name)
    assert seen == ["torch.load"] * 2  # checkpoints, and weights that an export has just written
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
    assert not [call for call in calls() if call[1] in forbidden or "shell" in call[3]]
    # no pickles, and no temporary files with names or places that others may know
    unwanted = {"pickle", "marshal", "shelve", "dill", "tempfile"}
    private = "from tempfile import TemporaryDirectory"  # of a random name, for the user alone
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and ast.unparse(node) != private:
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not unwanted & names, path


def test_json_and_tiff_of_users_are_read_in_one_way_only():
    for file, name, values, _ in calls():
        if name == "json.loads" and file != "file_access.py":
            assert values[0].startswith("json.dumps("), file  # our own, as JSON has it
        if name == "tifffile.TiffFile":
            assert values[0].endswith("handle"), file  # of file_access.open_binary, not a path
        assert name not in ("json.load", "tifffile.imread", "tifffile.memmap"), (file, name)


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickles(marker: Path) -> dict[str, bytes]:
    """Return files of every form that torch, or NumPy, ever loaded pickles from."""
    content = pickle.dumps(Malicious(marker), protocol=2)
    files = {"bare": content, "new": io.BytesIO(), "legacy": io.BytesIO(), "tar": io.BytesIO()}
    torch.save({"identity": Malicious(marker)}, files["new"])
    torch.save({"a": Malicious(marker)}, files["legacy"], _use_new_zipfile_serialization=False)
    with tarfile.open(fileobj=files["tar"], mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    files["npy"] = io.BytesIO()
    np.save(files["npy"], np.array([Malicious(marker)], object), allow_pickle=True)
    files["zip"] = io.BytesIO()
    with zipfile.ZipFile(files["zip"], "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3")
    return {k: v if isinstance(v, bytes) else v.getvalue() for k, v in files.items()}


@pytest.mark.parametrize("form", ("bare", "new", "legacy", "tar", "npy", "zip"))
def test_a_pickle_is_never_executed(tmp_path, form):
    marker = tmp_path / "executed"
    content = pickles(marker)[form]
    with pytest.raises(InputError, match="not a checkpoint of unet_repro, or damaged"):
        restore_checkpoint(content, tmp_path / "checkpoint.pt", {}, lambda state: None)
    model = tmp_path / "model.safetensors"
    model.write_bytes(content)
    with pytest.raises(InputError, match="not a model of unet_repro"):
        load_model(model)
    assert not marker.exists()


def test_json_nested_without_end_is_refused_in_models_and_checkpoints(tmp_path):
    nested = "[" * 100_000 + "]" * 100_000
    texts = {"unet_repro": "1", "config": nested, "training": "{}"}
    save_file({"weight": torch.zeros(1)}, tmp_path / "m.safetensors", texts)
    with pytest.raises(InputError, match="it is nested in more than 50 levels"):
        load_model(tmp_path / "m.safetensors")
    content = io.BytesIO()
    torch.save({"identity": nested}, content)
    with pytest.raises(InputError, match="not a checkpoint of unet_repro, or damaged"):
        restore_checkpoint(content.getvalue(), tmp_path / "c.pt", {}, lambda state: None)


class Active(HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "object", "embed", "link", "form", "base"):
            self.found.append(tag)
        for name, value in attrs:
            is_address = name in ("src", "href", "xlink:href", "action", "srcset")
            is_inside = (value or "").startswith(("data:image/png;base64,", "#"))
            if name.startswith("on") or (is_address and not is_inside):
                self.found.append(f"{tag} {name}={value}")


def hostile_texts(value):
    """Return JSON with the payload in place of every text, and in every key of free choice."""
    if isinstance(value, dict):
        return {key: hostile_texts(inner) for key, inner in value.items()} | {PAYLOAD: PAYLOAD}
    return [hostile_texts(inner) for inner in value] if isinstance(value, list) else PAYLOAD


def test_a_report_escapes_every_text(tmp_path, two_cells):
    images, labels = two_cells
    probability = np.where(labels > 0, 0.8, 0.2).astype(np.float32)
    metrics = {"heldout": evaluation.evaluate_em(labels, probability), "average": PAYLOAD}
    metrics["heldout"]["slices"][0]["slice"] = PAYLOAD
    metrics["remark"] = PAYLOAD
    sections = ("settings", "versions", "hardware", "data", "state")
    texts = {"name": "", "images": "", "labels": "", "train_slices": "", "preset": "", "model": {}}
    record = {name: hostile_texts(dict(texts)) for name in sections}
    (tmp_path / "config.json").write_text(json.dumps(record | {"command": PAYLOAD}))
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "log.csv").write_text(",".join(COLUMNS) + "\n1,1,1,1,,\n2,1,1,1,,\n")
    for name, stack in (("image", images), ("labels", labels), ("probability", probability)):
        tifffile.imwrite(tmp_path / f"heldout_{name}.tif", stack, photometric="minisblack")
    page = write_report(tmp_path).read_text("utf-8")
    reader = Active()
    reader.feed(page)
    assert reader.found == []
    assert page.count("&lt;script&gt;alert(1)") > 10  # they are all there, as texts
    assert "{{ 7 * 7 }}" in page and "49" not in page.partition("<title>")[2][:80]


@pytest.fixture
def model(tmp_path) -> Path:
    shape = UNetConfig(depth=1, base_channels=2, input_mean=(120.0,), input_std=(60.0,))
    save_model(UNet(shape, generator=torch.Generator().manual_seed(0)), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def ome_tiff(path: Path, image: np.ndarray, *, names: str) -> None:
    """Write a page whose OME metadata say that it is the first of two, the other in `names`."""
    place = '<TiffData IFD="0" FirstZ="{}" PlaneCount="1"><UUID FileName="{}">{}</UUID></TiffData>'
    height, width = image.shape
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="uint8" SizeX="{width}" SizeY="{height}" SizeZ="2" SizeC="1" SizeT="1">'
        f"{place.format(0, path.name, 'urn:uuid:1')}{place.format(1, names, 'urn:uuid:2')}"
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, image, description=xml, metadata=None)


@pytest.fixture
def in_ten_seconds():
    """End what waits for a pipe: an error of the file, with other words than expected."""

    def end(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def reading(path: Path, model: Path, out: Path) -> list[list[str]]:
    """Return commands that read a stack."""
    name = str(path)
    return [
        ["predict", name, "--model", str(model), "--out", str(out / "p.tif")],
        ["train", name, name, "--out", str(out / "run"), *TRAIN],
        ["weight-map", name, "--out", str(out / "w.tif"), "--threads", "1"],
        ["evaluate", name, name],
    ]


@pytest.mark.skipif(os.name == "nt", reason="pipes")
@pytest.mark.parametrize("place", ["beside", "outside", "relative", "pipe"])
def test_no_file_is_read_that_a_tiff_names(
    tmp_path, two_cells, model, capsys, monkeypatch, in_ten_seconds, place
):
    images, other = two_cells[0].astype(np.uint8), tmp_path / "other" / "other.tif"
    inside = tmp_path / "inside"
    inside.mkdir()
    other.parent.mkdir()
    monkeypatch.chdir(inside)
    names = {"beside": "beside.tif", "relative": "../other/other.tif"}.get(place, str(other))
    if place == "pipe":
        os.mkfifo(other)
    else:
        tifffile.imwrite(inside / names, images[1])
    path = inside / "stack.tif"
    ome_tiff(path, images[0], names=names)
    if place != "pipe":
        with tifffile.TiffFile(path) as file:  # by itself, it would read the other file
            assert file.series[0].shape == images[:2].shape
            assert file.asarray().tolist() == images[:2].tolist()
    for command in reading(path, model, tmp_path):
        assert cli.main(command) == 2
        line = capsys.readouterr().err
        assert "declares 2 slices but holds 1 pages" in line and "in other files" in line, line


def test_tifffile_is_given_no_file_on_disc(tmp_path):
    """Only beside one does it look for the rest of Micro-Manager's stacks, and of NDTiff."""
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint8))
    with open_binary(tmp_path / "a.tif") as handle, tifffile.TiffFile(handle, name="a") as file:
        assert not file.filehandle.is_file and file.filehandle.dirname == ""
        assert file.asarray().shape == (4, 4)


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_pipe_or_device_is_no_stack(tmp_path, two_cells, model, capsys, in_ten_seconds):
    (tmp_path / "folder").mkdir()
    tifffile.imwrite(tmp_path / "folder" / "0.tif", two_cells[0][0])
    os.mkfifo(tmp_path / "folder" / "1.tif")
    os.mkfifo(tmp_path / "pipe.tif")
    for path in (tmp_path / "folder", tmp_path / "pipe.tif", Path("/dev/zero")):
        for command in reading(path, model, tmp_path):
            assert cli.main(command) == 2
            assert "is a pipe or a device, not a regular file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a\nb\r.tif", "\x1b[2J\x1b[31mred.tif", "\x9b2J.tif", "\u202e.tif"]
)
def test_names_reach_the_terminal_on_one_line_without_escapes(tmp_path, capsys, name):
    path = tmp_path / name
    path.write_bytes(b"no TIFF")
    assert cli.main(["evaluate", str(path), str(path)]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert line.removesuffix("\n").isprintable(), line


@pytest.mark.skipif(sys.platform != "linux", reason="names are texts there")
def test_a_name_that_is_no_text_is_written_as_its_bytes(tmp_path, two_cells, model, capfdbinary):
    images, labels = two_cells
    name = os.fsdecode(b"caf\xe9.tif")  # Latin-1
    tifffile.imwrite(tmp_path / name, images, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    out = tmp_path / f"out_{name}"
    assert (
        cli.main(["predict", str(tmp_path / name), "--model", str(model), "--out", str(out)]) == 0
    )
    assert out.exists() and capfdbinary.readouterr().out.strip() == os.fsencode(out)
    run = tmp_path / "run"
    assert cli.main(["train", str(tmp_path / name), str(tmp_path / "labels.tif"), "--out", str(run),
                     *TRAIN]) == 0  # fmt: skip
    assert "caf?.tif" in (run / "report.html").read_text("utf-8")


def test_no_command_opens_a_connection(tmp_path, two_cells, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection is opened")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    images, labels = two_cells
    tifffile.imwrite(tmp_path / "images.tif", images, photometric="minisblack")
    tifffile.imwrite(tmp_path / "labels.tif", labels, photometric="minisblack")
    at = {name: str(tmp_path / name) for name in ("images.tif", "labels.tif", "run", "p.tif")}
    model = str(tmp_path / "run" / "model.safetensors")
    for arguments in (
        ["train", at["images.tif"], at["labels.tif"], "--out", at["run"], "--val", "2:4", *TRAIN],
        ["predict", at["images.tif"], "--model", model, "--out", at["p.tif"]],
        ["weight-map", at["labels.tif"], "--out", str(tmp_path / "w.tif")],
        ["evaluate", at["labels.tif"], at["p.tif"]],
        ["report", at["run"]],
    ):
        assert cli.main(arguments) == 0, arguments


@pytest.mark.skipif(os.name == "nt", reason="file modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_outputs_are_written_beside_their_place_and_have_the_users_mode(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        names = set()
        for _ in range(3):
            with atomic_path(tmp_path / "out.json", overwrite=True) as part:
                assert part.parent == tmp_path and stat.S_IMODE(part.stat().st_mode) == mode
                names.add(part.name)
        assert len(names) == 3  # no one can put a link in its place beforehand
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.json").stat().st_mode) == mode
