"""What `BlockStore` keeps, refuses and removes; kills are in `faults`."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.files.block_store import BlockStore, differences

FIRST, INDEX = 0, 7  # of 8 blocks
HEADER = ".a.tif.parts/blocks/zarr.json"
SLICE = np.arange(6, dtype=np.float32).reshape(1, 2, 3)


def begin(store: BlockStore, **record) -> None:
    shape, chunks = (8, 2, 3), (1, 2, 3)
    store.begin({"sigma": 5.0, **record}, shape=shape, dtype=np.float32, chunks=chunks)


def missing(store: BlockStore) -> list[int]:
    return store.blocks.missing(heals=True).tolist()


def test_finished_slices_wait_for_a_resume(tmp_path):
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
        assert INDEX in missing(store)
        store.blocks.write(INDEX, SLICE.T.copy().T)  # of any memory layout
    with BlockStore(tmp_path / "a.tif", resume=True) as store:
        begin(store)
        assert missing(store) == list(range(7))
        np.testing.assert_array_equal(store.blocks.read(INDEX), SLICE)
        with pytest.raises(InputError, match="is missing or damaged"):
            store.blocks.read(FIRST)
        store.finish(lambda path: path.write_bytes(store.blocks.read(INDEX)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == SLICE.tobytes()


def test_nothing_begun_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="bad labels"), BlockStore(tmp_path / "new/a.tif"):
        raise ValueError("bad labels")
    assert not list((tmp_path / "new").iterdir())


def test_second_writer_is_refused_whatever_it_asks_for(tmp_path):
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with (
                pytest.raises(InputError, match="another process is writing it"),
                BlockStore(tmp_path / "a.tif", **options),
            ):
                pass
        store.blocks.write(FIRST, SLICE)  # nothing was taken from it


def test_failing_assembly_leaves_the_old_output_and_the_slices(tmp_path):
    (tmp_path / "a.tif").write_text("old")
    with (
        pytest.raises(OSError, match="full"),
        BlockStore(tmp_path / "a.tif", overwrite=True) as store,
    ):
        begin(store)
        store.blocks.write(FIRST, SLICE)
        store.finish(fail)
    assert (tmp_path / "a.tif").read_text() == "old"
    with BlockStore(tmp_path / "a.tif", resume=True) as store:
        begin(store)
        assert FIRST not in missing(store)


def fail(path):
    path.write_bytes(b"half")
    raise OSError("the disc is full")


def test_output_made_by_another_program_meanwhile_is_kept(tmp_path):
    with (
        pytest.raises(InputError, match="exists already"),
        BlockStore(tmp_path / "a.tif") as store,
    ):
        begin(store)
        (tmp_path / "a.tif").write_text("theirs")
        store.finish(lambda path: path.write_text("ours"))
    assert (tmp_path / "a.tif").read_text() == "theirs"


def test_damaged_record_is_refused(tmp_path):
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
    # what can just be parsed cannot be compared and shown
    deep = b'{"overwrite": false, "record": {"a": ' + 950 * b"[" + 950 * b"]" + b"}}"
    for content in (b"", b"{", b"[]", b'{"record": 1}', b"\xff\xfe", deep):
        (tmp_path / HEADER).write_bytes(content)
        with (
            pytest.raises(InputError, match=r"zarr\.json: is damaged"),
            BlockStore(tmp_path / "a.tif", resume=True) as store,
        ):
            begin(store)
    with BlockStore(tmp_path / "a.tif", overwrite=True) as store:
        begin(store)


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), BlockStore(tmp_path / "file/a.tif"):
        pass
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a regular file"):
            BlockStore(tmp_path, overwrite=overwrite)


@pytest.mark.parametrize("is_folder", [False, True])
def test_the_root_of_all_folders_is_no_output(is_folder):
    with pytest.raises(InputError, match="cannot be replaced"):
        BlockStore("/", overwrite=True, is_folder=is_folder)


def test_link_to_an_output_survives(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with BlockStore(tmp_path / "link", overwrite=True) as store:
        begin(store)
        store.finish(lambda path: path.write_text("new"))
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
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
        store.blocks.write(FIRST, SLICE)
    (tmp_path / HEADER).unlink()
    with BlockStore(tmp_path / "a.tif", resume=True) as store:
        begin(store)
        assert FIRST in missing(store)


def test_record_goes_last(tmp_path, monkeypatch):
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
        for number in range(3):
            store.blocks.write(number, SLICE)
    left = []
    rmtree = shutil.rmtree

    def look(path, *arguments, **options):
        left.append((Path(path).name, (tmp_path / HEADER).exists()))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", look)
    with BlockStore(tmp_path / "a.tif", overwrite=True):
        pass
    assert left[:2] == [("c", True), ("blocks", True)]


@pytest.mark.parametrize("damage", ["truncated", "empty", "changed"])
def test_damaged_block_is_missing_and_can_be_written_again(tmp_path, damage):
    with BlockStore(tmp_path / "a.tif") as store:
        begin(store)
        store.blocks.write(FIRST, SLICE)
        store.blocks.write(INDEX, SLICE)
    (file,) = (tmp_path / ".a.tif.parts/blocks/c/7").rglob("0/0")
    content = file.read_bytes()
    changed = content[:9] + bytes([content[9] ^ 1]) + content[10:]
    file.write_bytes({"truncated": content[:-3], "empty": b"", "changed": changed}[damage])
    (file.parent / "0.123.partial").write_bytes(b"half written")
    with BlockStore(tmp_path / "a.tif", resume=True) as store:
        begin(store)
        with pytest.raises(InputError, match="is missing or damaged; --resume computes it again"):
            store.blocks.read(INDEX)
        assert missing(store) == list(range(1, 8))
        store.blocks.write(INDEX, SLICE + 1)
        np.testing.assert_array_equal(store.blocks.read(INDEX), SLICE + 1)
    assert not list(tmp_path.rglob("*.partial"))


def test_block_of_zeros_is_there(tmp_path):
    """On every handle: the one that made the array, and one that goes on with it."""
    for resume, index in ((False, FIRST), (True, INDEX)):
        with BlockStore(tmp_path / "a.tif", resume=resume) as store:
            begin(store)
            store.blocks.write(index, np.zeros_like(SLICE))
            assert index not in missing(store)


def test_blocks_at_the_far_ends_are_smaller(tmp_path):
    values = np.arange(35, dtype=np.uint8).reshape(5, 7)
    with BlockStore(tmp_path / "a.tif") as store:
        store.begin({}, shape=(5, 7), dtype=np.uint8, chunks=(3, 4))
        for i in range(2):
            for j in range(2):
                store.blocks.write(2 * i + j, values[3 * i : 3 * i + 3, 4 * j : 4 * j + 4])
        np.testing.assert_array_equal(store.blocks.read(3), values[3:, 4:])


class Death(BaseException):
    pass


def test_death_before_and_after_every_renaming_costs_at_most_a_block(tmp_path, monkeypatch):
    """All that is seen from outside happens by os.replace."""
    replace, written = os.replace, []

    def run(**options):
        with BlockStore(tmp_path / "a.tif", **options) as store:
            begin(store)
            left = [] if store.is_complete else missing(store)
            for index in (number for number in (FIRST, INDEX) if number in left):
                written.append(index)
                store.blocks.write(index, SLICE)
            if not store.is_complete:
                store.finish(lambda path: path.write_bytes(store.blocks.read(INDEX)))

    def dying(at, is_after):
        calls = itertools.count(1)

        def count(*paths):
            is_last = next(calls) == at
            if is_last and not is_after:
                raise Death
            replace(*paths)
            if is_last:
                raise Death

        return count

    died = 0
    for at, is_after in itertools.product(range(1, 10), (False, True)):
        written.clear()
        monkeypatch.setattr(os, "replace", dying(at, is_after))
        try:
            run()
        except Death:
            died += 1
        monkeypatch.setattr(os, "replace", replace)
        if not (tmp_path / "a.tif").exists():
            run(resume=True)
        elif (tmp_path / ".a.tif.parts").exists():
            run(resume=True)  # nothing is left to do
        assert (tmp_path / "a.tif").read_bytes() == SLICE.tobytes()
        assert len(written) <= 3
        assert [file.name for file in tmp_path.iterdir()] == ["a.tif"]
        (tmp_path / "a.tif").unlink()
    assert died == 2 * 4  # the record, two blocks, the output


def folder_over_an_old_one(out: Path, **options) -> None:
    with BlockStore(out, is_folder=True, **options) as store:
        begin(store)
        store.whole.mkdir(exist_ok=True)
        (store.whole / "new").touch()
        store.finish(lambda path: None)


@pytest.mark.parametrize("is_death", [False, True])
@pytest.mark.parametrize("at", [1, 2])
def test_old_folder_is_back_when_its_successor_does_not_get_its_name(
    tmp_path, monkeypatch, is_death, at
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    replace, calls = os.replace, itertools.count(1)

    def failing(old, new):
        if Path(new).name in ("out", "replaced") and next(calls) == at:
            raise Death if is_death else OSError(13, "Permission denied", str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", failing)
    refused = pytest.raises(InputError, match=r"Permission denied; what is done stays, --resume")
    with pytest.raises(Death) if is_death else refused:
        folder_over_an_old_one(out, overwrite=True)
    if not is_death:
        assert [file.name for file in out.iterdir()] == ["old"]
    refused = pytest.raises(InputError, match=r"exists already|--resume goes on")
    with refused, BlockStore(out, is_folder=True):
        pass
    assert [file.name for file in out.iterdir()] == ["old"]  # after a kill too
    folder_over_an_old_one(out, resume=True)
    assert [file.name for file in out.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_old_folder_that_cannot_come_back_is_named(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    replace = os.replace

    def failing(old, new):
        if Path(new) == out:
            raise OSError(30, "Read-only file system", str(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(InputError, match=r"before is .*\.out\.parts/replaced$") as caught:
        folder_over_an_old_one(out, overwrite=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / ".out.parts/replaced").is_dir()
