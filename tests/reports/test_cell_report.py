"""The cell tracking part of the report."""

import dataclasses

import numpy as np
import pytest
import tifffile

from unet_repro.challenges.cell_tracking import STACKS, score_frames
from unet_repro.errors import InputError
from unet_repro.prediction.instances import InstanceRule
from unet_repro.reports.cell_report import COLOURS, cell_section, outlines

LABELS = np.zeros((3, 12, 12), np.uint16)
LABELS[:, 1:6, 1:6] = 1
LABELS[:, 7:11, 7:11] = 2
FOUND = LABELS.copy()
FOUND[1, 1:6, 1:6] = 0  # one of two missed: the worst
FOUND[2, 1, 1:6] = 0  # four of five rows found


@pytest.fixture
def cells():
    known = np.ones(LABELS.shape, bool)
    evaluation = score_frames(LABELS, FOUND, known=known, names=["003", "005", "008"])
    about = {"title": "PhC-U373", "train_sequence": "01", "test_sequence": "02", "views": "flips"}
    about |= {"is_heldout": False, "is_synthetic": False, "published": 0.9203}
    return {**about, "rule": dataclasses.asdict(InstanceRule()), **evaluation}


def write_stacks(folder, n):
    for name, stack in zip(STACKS, (np.full(LABELS.shape, 99, np.uint8), LABELS, FOUND)):
        tifffile.imwrite(folder / name, stack[:n], photometric="minisblack")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_stacks(tmp_path, 3)


def test_a_run_without_cells_has_no_section(folder):
    assert cell_section(folder, {"heldout": None}) == ""


def test_figures_stand_beside_those_of_table_2(folder, cells):
    page = str(cell_section(folder, {"cells": cells}))
    expected = (1 + 1 + 0 + 1 + 0.8 + 1) / 6
    assert f'<div class="value">{expected:.4f}</div>' in page
    assert "0.9203" in page and "0.7756" in page and "0.83" in page and "0.46" in page
    assert "Sequence 02, trained on sequence 01" in page
    assert "hidden sequences" in page and "neighbours in time" not in page
    assert "synthetic" not in page


def test_best_median_and_worst_frame_are_shown(folder, cells):
    page = str(cell_section(folder, {"cells": cells}))
    titles = ("Best frame: 003", "Median frame: 008", "Worst frame: 005")
    places = [page.index(title) for title in titles]
    assert places == sorted(places) and page.count("data:image/png;base64,") == 6


def test_a_single_frame_is_shown_once(tmp_path, cells):
    cells["frames"] = cells["frames"][:1]
    page = str(cell_section(write_stacks(tmp_path, 1), {"cells": cells}))
    assert page.count('<section class="shown">') == 1 and "Best frame" in page


def test_without_the_stacks_the_figures_remain(tmp_path, cells):
    page = str(cell_section(tmp_path, {"cells": cells}))
    assert "Frame by frame" in page and "data:image" not in page


def test_held_out_and_synthetic_frames_are_told_apart(folder, cells):
    held_out = str(cell_section(folder, {"cells": {**cells, "is_heldout": True}}))
    assert "Held-out frames of sequence 02" in held_out and "neighbours in time" in held_out
    changed = {**cells, "published": None, "is_synthetic": True}
    synthetic = str(cell_section(folder, {"cells": changed}))
    assert "synthetic data" in synthetic and "hidden sequences" not in synthetic


def test_texts_are_escaped(folder, cells):
    page = str(cell_section(folder, {"cells": {**cells, "test_sequence": "<b>"}}))
    assert "<b>" not in page and "&lt;b&gt;" in page


def test_outlines_are_the_outermost_pixels():
    image = np.zeros((7, 9), np.uint8)
    labels, found = np.zeros((2, 7, 9), int)
    labels[1:5, 1:5] = 1
    labels[1:5, 5:8] = 2  # touches: both sides of the border are outline
    found[1:5, 1:8] = 1
    canvas = outlines(image, labels, found)
    colours = {name: tuple(bytes.fromhex(value[1:])) for name, value in COLOURS.items()}
    assert tuple(canvas[0, 0]) == tuple(canvas[2, 2]) == (0, 0, 0)
    assert tuple(canvas[1, 1]) == colours["both"]
    assert tuple(canvas[2, 4]) == tuple(canvas[2, 5]) == colours["annotated"]
    assert tuple(outlines(image, 0 * labels, found)[1, 1]) == colours["found"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cells: cells.pop("rule"),
        lambda cells: cells["figures"].update(iou="high"),
        lambda cells: cells.update(frames=[]),
        lambda cells: cells["frames"][0].pop("missed"),
        lambda cells: cells.update(title=3),
    ],
)
def test_other_content_is_refused(folder, cells, spoil):
    spoil(cells)
    with pytest.raises(InputError, match="'cells' is not what a cell tracking job writes"):
        cell_section(folder, {"cells": cells})


def test_stacks_of_other_frames_are_refused(folder, cells):
    cells["frames"] = cells["frames"][:2]
    with pytest.raises(InputError, match="are of different frames"):
        cell_section(folder, {"cells": cells})
