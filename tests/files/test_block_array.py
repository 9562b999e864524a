"""Units of an array: which are there, which are whole, and who may write them."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unet_repro.errors import InputError
from unet_repro.files.block_array import BlockArray
from unet_repro.files.places import Folder

LAYOUTS = {  # shard and chunk of (z, y, x), format, coding
    "sharded": ((1, 8, 8), (1, 4, 4), 3, "zstd"),
    "sharded, as it is": ((1, 8, 8), (1, 4, 4), 3, "none"),
    "chunks": ((1, 8, 8), (1, 8, 8), 3, "zstd"),
    "format 2": ((1, 4, 4), (1, 4, 4), 2, "zstd"),
    "format 2, as it is": ((1, 4, 4), (1, 4, 4), 2, "none"),
}


def array_at(path: Path, name: str, unit: tuple[int, int, int] = (1, 8, 8)) -> BlockArray:
    shard, chunk, form, coding = LAYOUTS[name]
    array = BlockArray(Folder(path), (2, 13, 21), "uint16", unit, shard, chunk, form, coding)
    array.create()
    return array


def values_of(array: BlockArray) -> np.ndarray:
    return np.arange(np.prod(array.shape), dtype=array.dtype).reshape(array.shape)


def fill(array: BlockArray, numbers: range) -> None:
    for number in numbers:
        array.write(number, values_of(array)[array.slices(number)])


@pytest.mark.parametrize("name", LAYOUTS)
def test_units_are_there_one_by_one_and_zarr_reads_them_all(tmp_path: Path, name: str) -> None:
    array = array_at(tmp_path / "0", name)
    assert len(array) == 2 * 2 * 3
    fill(array, range(5))
    assert array.missing().tolist() == [5, 6, 7, 8, 9, 10, 11]
    fill(pickle.loads(pickle.dumps(array)), range(5, 12))  # another process's
    assert not array.missing(heals=True).size
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "0", mode="r")[:], values_of(array))


@pytest.mark.parametrize("name", LAYOUTS)
def test_units_of_zeros_are_there(tmp_path: Path, name: str) -> None:
    array = array_at(tmp_path / "0", name)
    for number in range(len(array)):
        array.write(number, np.zeros_like(values_of(array)[array.slices(number)]))
    assert not array.missing(heals=True).size


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_cut_units_are_computed_again_the_last_one_too(
    tmp_path: Path, name: str, damage: str
) -> None:
    array = array_at(tmp_path / "0", name)
    fill(array, range(12))
    prefix = "c/" if array.format == 3 else ""
    at_edge = tuple((side - 1) // shard for side, shard in zip(array.shape, array.shard))
    for index in ((0, 0, 0), at_edge):
        file = tmp_path / "0" / (prefix + "/".join(map(str, index)))
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: -7 if damage == "cut" else 0])
    file.with_name("0.abc.partial").write_bytes(b"half")
    assert array.missing(heals=True).tolist() == [0, 11]
    fill(array, range(12))
    assert not array.missing(heals=True).size
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "0", mode="r")[:], values_of(array))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "garbage", "index"])
def test_damage_that_a_look_finds_is_missing_and_stays(
    tmp_path: Path, name: str, damage: str
) -> None:
    """What the docstring of `missing` promises; nothing is removed before it is computed again."""
    array = array_at(tmp_path / "0", name)
    fill(array, range(12))
    key = "c/0/0/1" if array.format == 3 else "0/0/2"
    file = tmp_path / "0" / key
    content = bytearray(file.read_bytes())
    garbage = np.random.default_rng(0).bytes(len(content))
    if damage == "index":  # two chunks of one shard exchanged: lengths are right
        if array.shard == array.chunk:
            pytest.skip("chunks have no index")
        content[-68:-52], content[-52:-36] = content[-52:-36], content[-68:-52]
    file.write_bytes(
        {"cut": content[:-7], "empty": b"", "longer": content + b"1234", "garbage": garbage}.get(
            damage, content
        )
    )
    is_seen = not (damage == "garbage" and array.coding == "none" and array.shard == array.chunk)
    assert array.missing(looks=True).tolist() == ([1] if is_seen else [])
    assert not array.missing().size and file.exists()
    assert array.missing(heals=True).tolist() == ([1] if is_seen else [])
    assert file.exists() != is_seen


def test_flipped_bit_is_found_by_reading_and_its_unit_removed(tmp_path: Path) -> None:
    array = array_at(tmp_path / "0", "sharded")
    fill(array, range(12))
    file = tmp_path / "0/c/0/1/1"
    content = bytearray(file.read_bytes())
    content[20] ^= 1
    file.write_bytes(content)
    whole = tuple(slice(0, side) for side in array.shape)
    with pytest.raises(InputError, match="is missing or damaged; --resume computes it again"):
        array.read_part(whole, discards=True)
    assert array.missing().tolist() == [4]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
    many=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    data=st.data(),
)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_units_of_several_shards_are_there_when_all_of_them_are(
    tmp_path_factory: pytest.TempPathFactory, shape, many, data
) -> None:
    path = tmp_path_factory.mktemp("a")
    unit = (1, 8 * many[0], 8 * many[1])
    array = BlockArray(Folder(path), shape, "uint8", unit, (1, 8, 8), (1, 4, 4))
    array.create()
    for number in range(len(array)):
        array.write(number, np.ones([p.stop - p.start for p in array.slices(number)], np.uint8))
    assert not array.missing().size
    assert zarr.open_array(path, mode="r")[:].all()
    files = sorted(file for file in (path / "c").rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    z, y, x = (int(part) for part in file.relative_to(path / "c").parts)
    file.unlink()
    grid = [-(-side // length) for side, length in zip(shape, unit)]
    number = (z * grid[1] + 8 * y // unit[1]) * grid[2] + 8 * x // unit[2]
    assert array.missing().tolist() == [number]


def test_nothing_is_written_without_the_claim(tmp_path: Path) -> None:
    claim = b"job 1"
    (tmp_path / "job").write_bytes(claim)
    array = BlockArray(
        Folder(tmp_path / "0"),
        *((4, 4), "uint8", (2, 4), (2, 4), (2, 4)),
        claim=("job", hashlib.sha256(claim).hexdigest()),
    )
    array.create()
    array.write(0, np.ones((2, 4), np.uint8))
    (tmp_path / "job").write_bytes(b"job 2")
    with pytest.raises(InputError, match="another run has begun it anew"):
        array.write(1, np.ones((2, 4), np.uint8))
    assert array.missing().tolist() == [1]
    array.write(0, np.zeros((2, 4), np.uint8))  # it is there: nothing is done
    assert array.read(0).all()


@pytest.mark.parametrize("name", LAYOUTS)
def test_unit_goes_when_the_claim_goes_while_it_is_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run begins anew between the look at the claim and the writing."""
    (tmp_path / "job").write_bytes(b"job 1")
    claim = "job", hashlib.sha256(b"job 1").hexdigest()
    array = replace(array_at(tmp_path / "0", name), claim=claim)
    fill(array, range(1))
    opened = array.array

    def beginning_anew() -> zarr.Array:
        (tmp_path / "job").write_bytes(b"job 2")
        return opened()

    monkeypatch.setattr(BlockArray, "array", lambda _: beginning_anew())
    with pytest.raises(InputError, match="another run has begun it anew"):
        fill(array, range(1, 2))
    assert array.missing().tolist() == list(range(1, 12))


@pytest.mark.parametrize("name", LAYOUTS)
def test_array_that_another_process_has_just_made_stays(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = array_at(tmp_path / "0", name)
    fill(array, range(1))
    with monkeypatch.context() as late:
        late.setattr(Folder, "has", lambda place, key: False)  # it looked before
        array.create()
    np.testing.assert_array_equal(array.read(0), values_of(array)[array.slices(0)])
