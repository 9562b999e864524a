"""Outputs are complete or absent, and nothing that is there is lost."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from unet_repro.errors import InputError
from unet_repro.files.atomic import atomic_path, check_apart, check_output


def test_failure_leaves_the_old_file_and_no_temporary_one(tmp_path):
    (tmp_path / "a.json").write_text("old")
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), atomic_path(tmp_path / "a.json", overwrite=True) as temporary:
            temporary.write_text("half")
            raise error
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_output_is_absent_until_it_is_complete(tmp_path):
    with atomic_path(tmp_path / "new/folder/a.json") as temporary:
        assert temporary.parent == tmp_path / "new/folder" and temporary.suffix == ".json"
        temporary.write_text("{}")
        assert not (tmp_path / "new/folder/a.json").exists()
    assert [file.name for file in (tmp_path / "new/folder").iterdir()] == ["a.json"]


def test_output_made_by_another_program_meanwhile_is_kept(tmp_path):
    with pytest.raises(InputError, match="another program"), atomic_path(tmp_path / "a") as part:
        part.write_text("ours")
        (tmp_path / "a").write_text("theirs")
    assert (tmp_path / "a").read_text() == "theirs"


def test_link_to_an_output_survives(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_path(tmp_path / "link", overwrite=True) as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"


def test_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        check_output(tmp_path / "file/out.tif")

    def forbid(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)  # the superuser may write anywhere
    with pytest.raises(InputError, match="cannot be written: Permission denied"):
        check_output(tmp_path / "s.tif")


@pytest.mark.parametrize("overwrite", [False, True])
def test_only_regular_files_are_replaced(tmp_path, overwrite):
    with pytest.raises(InputError, match="is not a regular file"):
        check_output(tmp_path, overwrite=overwrite)
    with pytest.raises(InputError, match="is not a regular file"):
        check_output(os.devnull, overwrite=overwrite)


def test_full_disc_is_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="No space left"), atomic_path(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_error_about_another_file_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a"):
        (tmp_path / "other").read_text()


def test_a_url_is_no_place_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"s3://bucket/e\.json: no file is written behind a URL"):
        check_output(Path("s3://bucket/e.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "source", "is_refused"),
    [
        ("s3://b/a.zarr", "s3://b/a.zarr/", True),
        ("s3://b/a.zarr", "s3://b/a.zarr/0", True),  # it would go with it
        ("s3://b/a.zarr/p.zarr", "s3://b/a.zarr", True),
        ("s3://b/a.zarr", "s3://b/a.zarr2/0", False),
        ("s3://b/p.zarr", "s3://b/a.zarr", False),
        ("s3://b/a.zarr", "b/a.zarr", False),
        ("b/a.zarr", "b/a.zarr/0", True),
        ("b/p.zarr", "b/a.zarr", False),
        ("b/p.zarr", "s3://b/p.zarr", False),
        ("s3://b/a.zarr/0/c/zarr.json", "s3://b/a.zarr", True),
        ("s3://b/a.zarr/zarr.json", "s3://b/a.zarr/0", True),
        ("s3://b/a.zarr/labels/cells.zarr", "s3://b/a.zarr", False),  # where OME-Zarr has them
        ("s3://b/a.zarr/labels/zarr.json", "s3://b/a.zarr", True),
        ("s3://b/a.zarr/labels", "s3://b/a.zarr", True),
        ("b/a.h5", "b/a.h5:/raw", True),
        ("b", "b/a.h5:/raw", True),
        ("b/a.json", "b/a.h5:/raw", False),
    ],
)
def test_an_output_is_not_at_its_source(out, source, is_refused):
    with pytest.raises(InputError, match="among the files") if is_refused else nullcontext():
        check_apart(Path(out), Path(source))


def test_nothing_is_written_into_a_zarr_array_or_over_what_describes_it(tmp_path):
    array = tmp_path / "box.zarr/volumes/raw"
    array.mkdir(parents=True)
    for folder in (tmp_path / "box.zarr", tmp_path / "box.zarr/volumes", array):
        (folder / "zarr.json").touch()
    for out in ("volumes/raw/a.json", "volumes/raw/c/0/0", "zarr.json", "volumes/.zattrs"):
        with pytest.raises(InputError, match="would be among the files of"):
            check_apart(tmp_path / "box.zarr" / out, array)
    check_apart(tmp_path / "box.zarr/volumes/prediction.zarr", array)  # beside it in the same box
    with pytest.raises(InputError, match="would be among the files of"):
        check_apart(tmp_path / "box.zarr/volumes/prediction.zarr", tmp_path / "box.zarr")


def test_other_names_of_a_file_are_that_file(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").hardlink_to(tmp_path / "a")  # as two names that differ in case may be
    (tmp_path / "c").symlink_to("a")
    for out in ("b", "c"):
        with pytest.raises(InputError, match="would be among the files of"):
            check_apart(tmp_path / out, tmp_path / "a")
