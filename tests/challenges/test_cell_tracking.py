"""Frames of a sequence: predicted, segmented into the challenge's layout, scored."""

import json

import numpy as np
import pytest
import tifffile

from unet_repro.challenges.cell_tracking import (
    annotated_part,
    cell_scores,
    cell_table,
    score_frames,
    segment_sequence,
    write_cell_results,
)
from unet_repro.challenges.ctc import CTCSequence
from unet_repro.errors import InputError
from unet_repro.prediction.instances import InstanceRule

RULE = InstanceRule(threshold=0.5, grow_to=0.5, least_px=0, border_px=0)


def bright_is_cell(image):
    """A stand-in for the network: log-odds +-2 where the image is above 100."""
    cell = np.where(image > 100, 2.0, -2.0)
    return np.stack([-cell / 2, cell / 2])


@pytest.fixture
def sequence():
    images = np.zeros((5, 12, 16), np.uint8)
    for t in range(5):
        images[t, 2:6, 1 + t : 6 + t] = images[t, 8:11, 9:14] = 200
    labels = np.zeros((3, 12, 16), np.int32)
    for i, t in enumerate((1, 2, 4)):
        labels[i, 2:6, 1 + t : 6 + t] = 7
        labels[i, 8:11, 9:14] = 3
    labels[1] = 0
    labels[2][labels[2] == 3] = 0
    known = np.stack([labels[0] >= 0, labels[1] > 0, labels[2] > 0])
    return CTCSequence(
        name="02",
        images=images,
        frames=(1, 2, 4),
        labels=labels,
        is_known=known,
        is_complete=(True, False, False),
        digits=("000", "001", "002", "003", "004"),
    )


def test_scores_are_the_log_odds_of_class_1():
    image = np.array([[0, 200], [200, 0]], np.uint8)
    np.testing.assert_array_equal(
        cell_scores(bright_is_cell, image, "none"), [[-2.0, 2.0], [2.0, -2.0]]
    )


def test_flips_average_the_four_mirror_images():
    def corner(image):  # depends on where a pixel lies in what it is given
        score = np.zeros(image.shape)
        score[0, 0] = 4.0
        return np.stack([np.zeros(image.shape), score])

    scores = cell_scores(corner, np.zeros((3, 4)), "flips")
    expected = np.zeros((3, 4))
    expected[[0, 0, 2, 2], [0, 3, 0, 3]] = 1.0
    np.testing.assert_array_equal(scores, expected)
    assert scores.dtype == np.float32
    once = cell_scores(corner, np.zeros((3, 4)), "none")
    assert once[0, 0] == 4.0 and once.sum() == 4.0


def test_flipped_views_are_turned_back():
    image = np.arange(12, dtype=float).reshape(3, 4)
    same = cell_scores(lambda x: np.stack([0 * x, x]), image, "flips")
    np.testing.assert_array_equal(same, image)


def test_all_frames_become_masks_and_the_annotated_ones_come_back(sequence, tmp_path):
    (tmp_path / "02_RES").mkdir()
    tifffile.imwrite(tmp_path / "02_RES/mask099.tif", np.zeros((2, 2), np.uint16))  # of before
    found = segment_sequence(bright_is_cell, sequence, tmp_path, views="flips", rule=RULE)
    files = sorted((tmp_path / "02_RES").iterdir())
    assert [file.name for file in files] == [f"mask{t:03d}.tif" for t in range(5)]
    for t, file in enumerate(files):
        with tifffile.TiffFile(file) as tiff:
            assert tiff.pages[0].compression.name in ("ADOBE_DEFLATE", "DEFLATE", "LZW")
            mask = tiff.asarray()
        assert mask.dtype == np.uint16 and mask.shape == (12, 16)
        np.testing.assert_array_equal(mask > 0, sequence.images[t] > 100)
        assert mask.max() == 2
    for i, t in enumerate(sequence.frames):
        np.testing.assert_array_equal(found[i], tifffile.imread(files[t]))


def test_frames_without_a_known_pixel_are_left_out(sequence):
    part = annotated_part(sequence)
    assert part.digits == ("001", "004") and part.frames == (0, 1)
    np.testing.assert_array_equal(part.images, sequence.images[[1, 4]])
    np.testing.assert_array_equal(part.labels, sequence.labels[[0, 2]])
    np.testing.assert_array_equal(part.is_known, sequence.is_known[[0, 2]])
    assert annotated_part(sequence, range(1, 2)).digits == ("004",)


def test_scores_of_frames_by_hand():
    labels = np.zeros((3, 4, 4), int)
    labels[0, 0] = 1  # found but for one px: 3/4
    labels[0, 3] = 2  # missed
    labels[2, 1] = 5  # found with a px too many: 4/5; the rest of this frame is unknown
    found = np.zeros_like(labels)
    found[0, 0, :3] = 9
    found[2, 1] = found[2, 2, 0] = 1
    found[2, 3] = 2  # unknown: costs nothing
    known = np.ones(labels.shape, bool)
    known[2] = labels[2] > 0
    result = score_frames(labels, found, known=known, names=["007", "008", "011"])
    assert result["ious"] == pytest.approx([3 / 4, 0, 4 / 5])
    assert result["figures"]["iou"] == pytest.approx((3 / 4 + 4 / 5) / 3)
    assert result["figures"]["seg"] == result["figures"]["iou"]
    assert result["figures"]["foreground_iou"] == pytest.approx((3 + 4) / (8 + 4))
    assert result["frames"][0] == {
        "frame": "007",
        "cells": 2,
        "iou": pytest.approx(3 / 8),
        "missed": 1,
        "found": 1,
        "complete": True,
    }
    assert result["frames"][1]["iou"] is None and result["frames"][1]["complete"]
    assert result["frames"][2]["found"] == 2 and not result["frames"][2]["complete"]


def test_frames_that_do_not_fit_are_refused():
    frame = np.ones((1, 2, 2), int)
    with pytest.raises(InputError, match="1 frames of labels, 2 of instances"):
        score_frames(frame, np.ones((2, 2, 2), int), known=frame > 0, names=["0"])
    with pytest.raises(InputError, match="no object"):
        score_frames(0 * frame, frame, known=frame > 0, names=["0"])


def test_results_are_written_and_told(sequence, tmp_path):
    part = annotated_part(sequence)
    about = {"published": 0.5, "title": "PhC-U373"}
    cells = write_cell_results(tmp_path, part, part.labels, rule=RULE, about=about)
    assert json.loads((tmp_path / "metrics.json").read_text())["cells"] == cells
    assert cells["rule"]["least_px"] == 0 and cells["figures"]["iou"] == 1
    assert [row["frame"] for row in cells["frames"]] == ["001", "004"]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "cells_labels.tif"), part.labels)
    text = cell_table(cells)
    assert "1.0000" in text and "0.5000" in text and "partly annotated" in text
