"""Fetching data sets from a server on the loopback address; no other network is touched."""

import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from unet_repro.challenges import download, prepare
from unet_repro.challenges.download import DATASETS, Dataset, find_or_download, pixels_sha256
from unet_repro.errors import InputError
from unet_repro.files.lock import exclusive
from unet_repro.images.stacks import read_stack, write_stack

STACK = np.random.default_rng(0).integers(0, 256, (3, 200, 200), dtype=np.uint8)
PIXELS = hashlib.sha256(STACK.tobytes()).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content`, of which only `sent` bytes arrive; counts the requests."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.sent, self.requests = content, None, 0
        self.url = f"http://127.0.0.1:{self.server_port}/folder/set.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests += 1
        self.send_response(200 if server.content else 404)
        self.send_header("Content-Length", str(len(server.content)))
        self.end_headers()
        self.wfile.write(server.content[: server.sent])

    def log_message(self, *args):
        pass


def archive_of(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "volume.tif"
    write_stack(path, STACK)
    return {"set/volume.tif": path.read_bytes(), "set/readme.txt": b"terms"}


@pytest.fixture
def server(members):
    with Server(archive_of(members)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def declare(monkeypatch, server):
    """Put a data set named ``set`` into the table, as published by the server."""

    def declare(**changes):
        default = {
            "url": server.url,
            "terms": "free",
            "required": ("volume.tif",),
            "sha256": hashlib.sha256(server.content).hexdigest(),
            "pixels_sha256": {"volume.tif": PIXELS},
        }
        monkeypatch.setitem(DATASETS, "set", Dataset(**default | changes))

    monkeypatch.delenv("UNET_REPRO_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    declare()
    return declare


def names_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def fetch(root):
    return find_or_download("set", root, show_progress=False)


def test_download_is_unpacked_without_its_outer_folder_and_once(
    tmp_path, declare, server, monkeypatch, capsys
):
    (tmp_path / ".set.0123abcd/unpacked/set").mkdir(parents=True)  # of a killed call
    monkeypatch.setattr("unet_repro.progress.LINE_EVERY_S", 0)
    folder = find_or_download("set", tmp_path)
    assert folder == tmp_path / "set"
    assert names_below(tmp_path) == {"set", "set/volume.tif", "set/readme.txt"}
    np.testing.assert_array_equal(read_stack(folder / "volume.tif"), STACK)
    out, err = capsys.readouterr()
    counts = re.findall(r"download: (\d+)/(\d+) B,", err)  # in lines of their own
    assert not out and counts and counts[-1][0] == counts[-1][1] == counts[0][1]
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path))
    assert fetch(tmp_path) == find_or_download("set") == folder
    assert server.requests == 1 and capsys.readouterr() == ("", "")


def test_environment_comes_before_root(tmp_path, declare, monkeypatch):
    for root in ("a", "b"):
        (tmp_path / root / "set").mkdir(parents=True)
        (tmp_path / root / "set/volume.tif").touch()
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path / "a"))
    assert fetch(tmp_path / "b") == tmp_path / "a/set"


def damaged(content):
    return content[:60_000] + bytes([content[60_000] ^ 255]) + content[60_001:]


@pytest.mark.parametrize(
    ("change", "declared", "message"),
    [
        (None, {"sha256": "0" * 64}, r"its SHA-256 is [0-9a-f]{64}, not 0{64}; it was deleted"),
        (None, {"pixels_sha256": {"volume.tif": "0" * 64}}, f"pixels of volume.tif .* {PIXELS}"),
        (lambda content: b"<html>Please log in</html>", {}, "the archive was deleted: File is not"),
        (damaged, {}, "Bad CRC-32"),
        (lambda content: archive_of({"readme.txt": b""}), {}, r"it lacks volume\.tif"),
        (lambda content: b"", {}, "404 Client Error"),
    ],
)
def test_what_is_not_as_published_is_refused_and_removed(
    tmp_path, declare, server, change, declared, message
):
    server.content = change(server.content) if change else server.content
    declare(**{"sha256": None} | declared)
    with pytest.raises(InputError, match=message) as caught:
        fetch(tmp_path)
    assert "\n" not in str(caught.value) and not names_below(tmp_path)


def test_cut_off_transfer_is_told_and_leaves_nothing(tmp_path, declare, server):
    server.sent = 50_000
    with pytest.raises(InputError, match="50000 bytes read"):
        fetch(tmp_path)
    assert not names_below(tmp_path)
    server.sent = None
    fetch(tmp_path)


def test_full_disc_is_told_and_nothing_is_left(tmp_path, declare, monkeypatch):
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(download.zipfile.ZipFile, "extractall", full)
    with pytest.raises(InputError, match="set cannot be written: No space left on device"):
        fetch(tmp_path)
    monkeypatch.setattr(download.pooch, "HTTPDownloader", lambda **options: full)
    with pytest.raises(InputError, match="No space left on device"):
        fetch(tmp_path)
    assert not names_below(tmp_path)


def test_nothing_is_written_outside_the_folder(tmp_path, declare, server, members):
    link = zipfile.ZipInfo("set/link")
    link.external_attr = 0o120777 << 16
    names = ("../evil.txt", "set/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt")
    server.content = archive_of({**members, **{name: b"" for name in names}, link: b"/etc"})
    declare(sha256=None)
    folder = fetch(tmp_path / "root")
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"set"}
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert not (folder / "link").is_symlink() and not Path("/evil.txt").exists()


def test_archive_that_unpacks_without_end_is_refused(tmp_path, declare, monkeypatch):
    monkeypatch.setattr(download, "_LARGEST_UNPACKED_BYTES", STACK.nbytes)
    with pytest.raises(InputError, match="it would unpack to"):
        fetch(tmp_path)


def test_without_network_one_line_says_what_to_do(tmp_path, declare, server, monkeypatch):
    server.shutdown()
    server.server_close()  # nothing listens on the port any more
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path / "mine"))
    with pytest.raises(InputError, match=r"failed: .* refused;") as caught:
        fetch(tmp_path / "root")
    message = str(caught.value)
    assert "\n" not in message and "object at" not in message
    for part in (tmp_path / "mine/set", tmp_path / "root/set", server.url, "put volume.tif into"):
        assert str(part) in message
    assert not names_below(tmp_path)


def test_what_another_process_downloads_or_left_incomplete_is_left_alone(tmp_path, declare, server):
    busy = pytest.raises(InputError, match=f"another process is downloading to {tmp_path}")
    with exclusive(tmp_path / ".set.lock", "busy"), busy:
        fetch(tmp_path)
    assert not names_below(tmp_path)
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"is there but lacks volume\.tif; complete or remove"):
        fetch(tmp_path)
    assert names_below(tmp_path) == {"set"} and not server.requests


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "find_or_download", Mock(side_effect=KeyboardInterrupt))
    assert prepare.main("isbi2012", ["--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_unknown_data_set_and_unwritable_folder_are_refused(tmp_path, declare):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        fetch(tmp_path / "file")
    with pytest.raises(InputError, match="coco: no such data set; there are isbi2012, phc-u373"):
        find_or_download("coco")


def test_own_folder_is_not_tracked_by_git():
    folder = download._own_folder("phc-u373")
    project = Path(__file__).parents[2]
    assert folder == project / "data/phc_u373/raw"
    assert "data/*/raw/" in (project / ".gitignore").read_text().split()


def test_hash_of_pixels_does_not_depend_on_the_compression(tmp_path):
    write_stack(tmp_path / "s.tif", STACK, compression="zlib")
    assert pixels_sha256(tmp_path / "s.tif") == PIXELS


def test_prepare_prints_counts(tmp_path, capsys, monkeypatch):
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, :4] = 255
    (tmp_path / "isbi2012").mkdir()
    for name in ("train-volume", "train-labels", "test-volume"):
        write_stack(tmp_path / f"isbi2012/{name}.tif", labels)
    monkeypatch.delenv("UNET_REPRO_DATA", raising=False)
    assert prepare.main("isbi2012", ["--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "train-labels: 2 × 8 × 8 uint8, 75.0% membrane, 1 components, PIXELS NOT AS" in out
    assert "test-labels: not there, so the test volume cannot be scored" in out
    write_stack(tmp_path / "isbi2012/test-labels.tif", labels)
    prepare.main("isbi2012", ["--root", str(tmp_path)])
    assert "test-labels: 2 × 8 × 8 uint8, 75.0% membrane" in capsys.readouterr().out
    (tmp_path / "isbi2012/test-volume.tif").write_text("no stack")
    assert prepare.main("isbi2012", ["--root", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("dataset", ["isbi2012", "phc-u373", "dic-hela"])
def test_counts_of_the_real_data_are_those_of_the_readme(real_data, capsys, dataset):
    if not (real_data / dataset).is_dir():
        pytest.skip(f"real data: UNET_REPRO_DATA holds no {dataset}/")
    assert prepare.main(dataset, []) == 0
    readme = (Path(__file__).parents[2] / "data/README.md").read_text(encoding="utf-8")
    counts = [line for line in capsys.readouterr().out.splitlines() if " × " in line]
    assert len(counts) >= 2
    for line in counts:
        assert line in readme
