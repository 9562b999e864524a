"""Synthetic cells: in the challenge's layout, and hard where the real ones are."""

import numpy as np
import pytest

from unet_repro.challenges.cell_phantom import write_cell_phantom
from unet_repro.challenges.ctc import read_ctc_sequence
from unet_repro.errors import InputError
from unet_repro.weight_maps.weight_map import separate_touching


def test_is_a_data_set_of_the_challenge(tmp_path):
    write_cell_phantom(tmp_path, frames=4, height=120, width=180, cells=6)
    for name in ("01", "02"):
        sequence = read_ctc_sequence(tmp_path, name)
        assert sequence.images.shape == (4, 120, 180) and sequence.images.dtype == np.uint8
        assert sequence.frames == (1, 3)
        assert sequence.is_complete == (True, False)  # the last lacks a cell
        assert [len(np.unique(frame)) - 1 for frame in sequence.labels] == [6, 5]
        silver = read_ctc_sequence(tmp_path, name, truth="silver")
        assert silver.frames == (0, 1, 2, 3) and all(silver.is_complete)
        drawn = sequence.labels > 0
        np.testing.assert_array_equal(silver.labels[[1, 3]][drawn], sequence.labels[drawn])


def test_sequences_and_seeds_differ_and_one_seed_gives_one_phantom(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_cell_phantom(tmp_path / folder, frames=3, seed=seed)
    a, b, c = (read_ctc_sequence(tmp_path / folder, "01") for folder in "abc")
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.images != read_ctc_sequence(tmp_path / "a", "02").images).any()
    assert (a.images != c.images).any()
    # neighbours come within some pixels
    assert (separate_touching(a.labels, radius=5, label_kind="ids") != a.labels).any()


@pytest.mark.parametrize("options", [{"frames": 2}, {"height": 79}, {"cells": 1}, {"seed": -1}])
def test_sizes_that_hold_nothing_are_refused(tmp_path, options):
    with pytest.raises(InputError, match="at least 3, 80 × 80, 2 and 0 are needed"):
        write_cell_phantom(tmp_path, **options)
