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


def campaign(count: int, first: int, keep: Path) -> dict[str, Any]:
    """Run so many hostile inputs in a process of its own, which forks for each of them."""
    command = [sys.executable, "-m", "fuzz.campaign", str(count), "--first", str(first)]
    done = subprocess.run(
        [*command, "--keep", str(keep)], cwd=TESTS, capture_output=True, text=True
    )
    assert done.returncode in (0, 1), done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["failures"] == [], f"their files are in {keep}"
    return result


def test_hostile_inputs_end_in_a_result_or_one_line(tmp_path):
    ends = campaign(34, 0, tmp_path)["ends"]  # one turn: some of every family
    assert ends["result"] > 2 and ends["line"] > 10, ends  # neither is all there is


@pytest.mark.fuzz
def test_ten_thousand_hostile_inputs(tmp_path):
    print(json.dumps(campaign(10_000, 100_000, tmp_path), indent=1))


@pytest.mark.parametrize("seed", range(6))
def test_an_undamaged_tiff_is_read_as_it_is_and_none_cut_within_its_directories(tmp_path, seed):
    """The other side of the campaign: its files are right but for what is spoilt on purpose."""
    pages, path = grey_pages(Random(seed), n=3), tmp_path / "stack.tif"
    checks = np.add.outer(np.arange(24) // 8, np.arange(24) // 8) % 2
    for big in (True, False):
        content = assemble(pages, big=big)
        path.write_bytes(content)
        with StackReader(path) as stack:
            assert stack.shape == (3, 24, 24)
            for z in range(3):
                np.testing.assert_array_equal(stack.read_slice(z) != 0, checks != 0)
        read_calibration(path)
    for end in directory_ends(content):
        path.write_bytes(content[:end])
        with pytest.raises(InputError):
            StackReader(path)


def test_a_case_is_made_again_from_its_seed(tmp_path):
    from . import cases

    templates: Any = SimpleNamespace(folder=tmp_path)  # no file of theirs is opened
    made = [
        (cases.make("tiff_images", 1, tmp_path, templates), (tmp_path / "images.tif").read_bytes())
        for _ in range(2)
    ]
    assert made[0] == made[1]
