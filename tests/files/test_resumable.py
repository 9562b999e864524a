"""What `Parts` keeps, refuses and removes; kills are in `test_weight_stack`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.files.resumable import Parts, differences

SLICE = np.arange(6, dtype=np.float32).reshape(2, 3)


def begin(parts: Parts, **record) -> None:
    parts.begin({"sigma": 5.0, **record}, dtype=np.float32)


def test_finished_slices_wait_for_a_resume(tmp_path):
    with Parts(tmp_path / "a.tif") as parts:
        begin(parts)
        assert not parts.has(7)
        parts.put(7, SLICE.T.copy().T)  # of any memory layout
    with Parts(tmp_path / "a.tif", resume=True) as parts:
        begin(parts)
        assert parts.has(7) and not parts.has(0)
        np.testing.assert_array_equal(parts.get(7, (2, 3)), SLICE)
        with pytest.raises(InputError, match="is missing or damaged"):
            parts.get(0, (2, 3))
        parts.finish(lambda path: path.write_bytes(parts.get(7, (2, 3))))
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == SLICE.tobytes()


def test_nothing_begun_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bad labels"), Parts(tmp_path / "new/a.tif"):
        raise ValueError("bad labels")
    assert not list((tmp_path / "new").iterdir())


def test_failing_assembly_leaves_the_old_output_and_the_slices(tmp_path):
    (tmp_path / "a.tif").write_text("old")
    with (
        pytest.raises(OSError, match="full"),
        Parts(tmp_path / "a.tif", overwrite=True) as parts,
    ):
        begin(parts)
        parts.put(0, SLICE)
        parts.finish(fail)
    assert (tmp_path / "a.tif").read_text() == "old"
    with Parts(tmp_path / "a.tif", resume=True) as parts:
        begin(parts)
        assert parts.has(0)


def fail(path):
    path.write_bytes(b"half")
    raise OSError("the disc is full")


def test_output_made_by_another_program_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(InputError, match="exists already"),
        Parts(tmp_path / "a.tif") as parts,
    ):
        begin(parts)
        (tmp_path / "a.tif").write_text("theirs")
        parts.finish(lambda path: path.write_text("ours"))
    assert (tmp_path / "a.tif").read_text() == "theirs"


def test_damaged_record_is_refused(tmp_path):
    with Parts(tmp_path / "a.tif") as parts:
        begin(parts)
    # what can just be parsed cannot be compared and shown
    deep = b'{"overwrite": false, "record": {"a": ' + 950 * b"[" + 950 * b"]" + b"}}"
    for content in (b"", b"{", b"[]", b'{"record": 1}', b"\xff\xfe", deep):
        (tmp_path / ".a.tif.parts/manifest.json").write_bytes(content)
        with (
            pytest.raises(InputError, match=r"manifest\.json: is damaged"),
            Parts(tmp_path / "a.tif", resume=True) as parts,
        ):
            begin(parts)
    with Parts(tmp_path / "a.tif", overwrite=True) as parts:
        begin(parts)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), Parts(tmp_path / "file/a.tif"):
        pass
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a regular file"):
            Parts(tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_root_of_all_folders_is_no_output(is_folder):
    with pytest.raises(InputError, match="cannot be replaced"):
        Parts("/", overwrite=True, is_folder=is_folder)


def test_link_to_an_output_survives(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with Parts(tmp_path / "link", overwrite=True) as parts:
        begin(parts)
        parts.finish(lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, []),
        ({"a": True, "b": {"c": [1]}}, ["b.c [1, 2], not [1]"]),
        ({"a": 2, "b": {"c": [1, 2], "d": "x"}}, ["a 1, not 2", 'b.d null, not "x"']),
        ({"b": 3}, ["a 1, not null", 'b {"c": [1, 2]}, not 3']),
    ],
)
def test_differences_are_named(new, expected):
    assert differences({"a": 1, "b": {"c": [1, 2]}}, new) == expected


def test_parts_without_a_record_are_nobodys(tmp_path):
    """A kill while an earlier run's folder was removed leaves some: they are not taken over."""
    with Parts(tmp_path / "a.tif") as parts:
        begin(parts)
        parts.put(0, SLICE)
    (tmp_path / ".a.tif.parts" / "manifest.json").unlink()
    with Parts(tmp_path / "a.tif", resume=True) as parts:
        begin(parts)
        assert not parts.has(0)


def test_record_goes_last(tmp_path, monkeypatch):
    with Parts(tmp_path / "a.tif") as parts:
        begin(parts)
        for number in range(3):
            parts.put(number, SLICE)
    left = []
    unlink = Path.unlink

    def look(path, *arguments, **options):
        left.append((path.name, sorted(file.name for file in path.parent.glob("*.zst"))))
        unlink(path, *arguments, **options)

    monkeypatch.setattr(Path, "unlink", look)
    with Parts(tmp_path / "a.tif", overwrite=True):
        pass
    assert ("manifest.json", []) in left
