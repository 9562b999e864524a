"""Hostile files and values end in a result or in one clear line: no traceback, crash or noise."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unet_repro.errors import InputError
from unet_repro.images.calibration import read_calibration
from unet_repro.images.stack_reader import StackReader

from .tiff_bytes import assemble, directory_ends, grey_pages

pytest.importorskip("resource")  # forks and bounds: not on Windows
TESTS = Path(__file__).parents[1]


def campaign(count: int, first: int, keep: Path) -> dict[str, object]:
    """Run so many hostile inputs in a process of its own, which forks for each of them."""
    command = [sys.executable, "-m", "fuzz.campaign", str(count), "--first", str(first)]
    done = subprocess.run(
        [*command, "--keep", str(keep)], cwd=TESTS, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_hostile_inputs_end_in_a_result_or_one_line(tmp_path):
    result = campaign(120, 0, tmp_path)
    assert result["failures"] == [], f"their files are in {tmp_path}"
    ends = result["ends"]
    assert ends["result"] > 10 and ends["line"] > 50, ends  # neither is all there is


@pytest.mark.fuzz
def test_ten_thousand_hostile_inputs(tmp_path):
    result = campaign(10_000, 100_000, tmp_path)
    print(json.dumps(result, indent=1))
    assert result["failures"] == [], f"their files are in {tmp_path}"


@pytest.mark.parametrize("seed", range(4))
def test_a_tiff_cut_within_its_directories_is_never_read_as_whole(tmp_path, seed):
    content = assemble(grey_pages(Random(seed), n=3))
    path = tmp_path / "stack.tif"
    path.write_bytes(content)
    with StackReader(path) as stack:
        assert stack.shape == (3, 24, 24)
    for end in directory_ends(content):
        path.write_bytes(content[:end])
        with pytest.raises(InputError):
            StackReader(path)


@pytest.mark.parametrize("seed", range(6))
def test_an_undamaged_tiff_is_read_as_it_is(tmp_path, seed):
    """The other side of the campaign: its files are right but for what is spoilt on purpose."""
    pages = grey_pages(Random(seed), n=2)
    (tmp_path / "stack.tif").write_bytes(assemble(pages, big=seed % 2 == 0))
    with StackReader(tmp_path / "stack.tif") as stack:
        checks = np.add.outer(np.arange(24) // 8, np.arange(24) // 8) % 2
        for z in range(2):
            image = stack.read_slice(z)
            np.testing.assert_array_equal(image != 0, checks != 0)
    read_calibration(tmp_path / "stack.tif")


def test_a_case_is_made_again_from_its_seed(tmp_path):
    from . import cases

    made, seed = [], 1
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        templates: Any = SimpleNamespace(folder=tmp_path)  # no file of theirs is opened
        arguments = cases.make("tiff_images", seed, folder, templates)
        made.append((arguments, (folder / "images.tif").read_bytes()))
    assert made[0] == made[1]
