"""Fetching data sets from a server on the loopback address; no other network is touched."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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
    """Serves `content`; closes the connection after `breaks.pop(0)` bytes of an answer."""

    def __init__(self, content):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.has_ranges = True
        self.breaks = []
        self.ranges = []
        self.url = f"http://127.0.0.1:{self.server_port}/folder/set.zip"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        start = int(wanted[len("bytes=") : -1]) if wanted and server.has_ranges else 0
        total = len(server.content)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

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
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fetch(root):
    return find_or_download("set", root, show_progress=False)


def test_download_is_unpacked_without_its_outer_folder(tmp_path, declare, server):
    folder = fetch(tmp_path)
    assert folder == tmp_path / "set"
    assert names_below(tmp_path) == {"set/volume.tif", "set/readme.txt"}
    np.testing.assert_array_equal(read_stack(folder / "volume.tif"), STACK)
    assert server.ranges == [None]


def test_what_is_there_is_not_downloaded_again(tmp_path, declare, server, monkeypatch):
    fetch(tmp_path)
    assert fetch(tmp_path) == tmp_path / "set"
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path))
    assert find_or_download("set") == tmp_path / "set"
    assert len(server.ranges) == 1


def test_environment_comes_before_root(tmp_path, declare, monkeypatch):
    for root in ("a", "b"):
        (tmp_path / root / "set").mkdir(parents=True)
        (tmp_path / root / "set/volume.tif").touch()
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path / "a"))
    assert fetch(tmp_path / "b") == tmp_path / "a/set"


def test_interrupted_transfer_goes_on_where_it_stopped(tmp_path, declare, server):
    server.breaks = [50_000, 30_000]
    np.testing.assert_array_equal(read_stack(fetch(tmp_path) / "volume.tif"), STACK)
    assert server.ranges == [None, "bytes=50000-", "bytes=80000-"]


def test_next_call_goes_on_where_the_last_one_stopped(tmp_path, declare, server):
    server.breaks = [50_000, 0]
    with pytest.raises(InputError, match="closed after 50000 bytes, which are kept"):
        fetch(tmp_path)
    assert names_below(tmp_path) == {"download/set.zip.part"}
    fetch(tmp_path)
    assert server.ranges[-1] == "bytes=50000-"


def test_server_without_ranges_starts_over(tmp_path, declare, server):
    server.has_ranges = False
    server.breaks = [50_000]
    np.testing.assert_array_equal(read_stack(fetch(tmp_path) / "volume.tif"), STACK)
    assert server.ranges == [None, "bytes=50000-"]


def test_server_that_never_gets_further_is_given_up(tmp_path, declare, server):
    server.has_ranges = False
    server.breaks = [50_000] * 5
    with pytest.raises(InputError, match="closed after 50000 bytes"):
        fetch(tmp_path)
    assert len(server.ranges) == 2


def test_complete_part_is_not_asked_for_again(tmp_path, declare, server):
    part = tmp_path / "download/set.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.content)
    fetch(tmp_path)
    assert server.ranges == [f"bytes={len(server.content)}-"]


def test_part_longer_than_the_file_is_thrown_away(tmp_path, declare, server):
    part = tmp_path / "download/set.zip.part"
    part.parent.mkdir()
    part.write_bytes(server.content + b"more")
    np.testing.assert_array_equal(read_stack(fetch(tmp_path) / "volume.tif"), STACK)


def test_archive_with_the_wrong_hash_is_deleted(tmp_path, declare):
    declare(sha256="0" * 64)
    with pytest.raises(InputError, match=r"its SHA-256 is [0-9a-f]{64}, not 0{64}; it was deleted"):
        fetch(tmp_path)
    assert not names_below(tmp_path)


def test_part_of_another_file_is_found_by_the_hash(tmp_path, declare):
    part = tmp_path / "download/set.zip.part"
    part.parent.mkdir()
    part.write_bytes(b"of another file")
    with pytest.raises(InputError, match="SHA-256"):
        fetch(tmp_path)
    fetch(tmp_path)


def test_wrong_pixels_are_refused(tmp_path, declare):
    declare(pixels_sha256={"volume.tif": "0" * 64})
    with pytest.raises(InputError, match=f"the pixels of volume.tif have the SHA-256 {PIXELS}"):
        fetch(tmp_path)
    assert not names_below(tmp_path)


def test_page_in_place_of_the_archive_is_refused(tmp_path, declare, server):
    server.content = b"<html>Please log in</html>"
    declare(sha256=None)
    with pytest.raises(InputError, match="the archive was deleted: File is not a zip file"):
        fetch(tmp_path)
    assert not names_below(tmp_path)


def test_damaged_archive_is_refused(tmp_path, declare, server):
    content = bytearray(server.content)
    content[60_000] ^= 255
    server.content = bytes(content)
    declare(sha256=None)
    with pytest.raises(InputError, match="Bad CRC-32"):
        fetch(tmp_path)
    assert not names_below(tmp_path)


def test_archive_of_something_else_is_refused(tmp_path, declare, server):
    server.content = archive_of({"readme.txt": b""})
    declare(sha256=None)
    with pytest.raises(InputError, match=r"it lacks volume\.tif"):
        fetch(tmp_path)


def link_member():
    member = zipfile.ZipInfo("set/link")
    member.external_attr = 0o120777 << 16
    return member


@pytest.mark.parametrize(
    "name", ["../evil.txt", "set/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt", None]
)
def test_member_outside_the_folder_is_refused(tmp_path, declare, server, members, name):
    server.content = archive_of(members | {link_member() if name is None else name: b"/etc"})
    declare(sha256=None)
    with pytest.raises(InputError, match="would be written outside the folder"):
        fetch(tmp_path / "root")
    assert not names_below(tmp_path)


def test_archive_that_unpacks_without_end_is_refused(tmp_path, declare, monkeypatch):
    monkeypatch.setattr(download, "_LARGEST_UNPACKED_BYTES", STACK.nbytes)
    with pytest.raises(InputError, match="it would unpack to"):
        fetch(tmp_path)


def test_without_network_one_line_says_what_to_do(tmp_path, declare, server, monkeypatch):
    server.shutdown()
    server.server_close()  # nothing listens on the port any more
    monkeypatch.setenv("UNET_REPRO_DATA", str(tmp_path / "mine"))
    with pytest.raises(InputError, match="refused") as caught:
        fetch(tmp_path / "root")
    message = str(caught.value)
    assert "\n" not in message
    for part in (tmp_path / "mine/set", tmp_path / "root/set", server.url, "put volume.tif into"):
        assert str(part) in message
    assert not names_below(tmp_path)


def test_missing_page_is_told(tmp_path, declare, server):
    server.content = b""  # every start lies beyond the end
    with pytest.raises(InputError, match="HTTP Error 416"):
        fetch(tmp_path)


def test_incomplete_folder_is_left_alone(tmp_path, declare, server):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/notes.txt").touch()
    with pytest.raises(InputError, match=r"is there but lacks volume\.tif; complete or remove"):
        fetch(tmp_path)
    assert names_below(tmp_path) == {"set/notes.txt"}
    assert not server.ranges


def test_one_process_at_a_time_downloads(tmp_path, declare, server):
    with (
        exclusive(tmp_path / "download/.set.lock", "busy"),
        pytest.raises(InputError, match=f"another process is downloading to {tmp_path}"),
    ):
        fetch(tmp_path)
    assert not server.ranges and not names_below(tmp_path)
    fetch(tmp_path)


def test_what_a_killed_call_unpacked_is_removed(tmp_path, declare):
    (tmp_path / ".set.0123abcd/set").mkdir(parents=True)
    (tmp_path / ".set.0123abcd/set/volume.tif").touch()
    fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_ctrl_c_is_one_line(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "find_or_download", interrupted)
    assert prepare.main("isbi2012", ["--root", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_folder_that_cannot_be_made_is_told(tmp_path, declare):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        fetch(tmp_path / "file")


def test_unknown_data_set_is_refused():
    with pytest.raises(InputError, match="coco: no such data set; there are isbi2012, phc-u373"):
        find_or_download("coco")


def test_own_folder_is_not_tracked_by_git():
    folder = download._own_folder("phc-u373")
    project = Path(__file__).parents[2]
    assert folder == project / "data/phc_u373/raw"
    assert "data/*/raw/" in (project / ".gitignore").read_text().split()


def test_progress_goes_to_standard_error(tmp_path, declare, capsys):
    find_or_download("set", tmp_path)
    out, err = capsys.readouterr()
    assert not out and "set.zip: 100%" in err


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
