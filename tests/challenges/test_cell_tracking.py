"""Frames of a sequence: predicted, segmented into the challenge's layout, scored."""

import json

import numpy as np
import pytest
import tifffile
import torch

from unet_repro.challenges.cell_tracking import (
    annotated_part,
    cell_table,
    score_frames,
    segment_sequence,
    write_cell_results,
)
from unet_repro.challenges.ctc import CTCSequence
from unet_repro.errors import InputError
from unet_repro.prediction.instances import InstanceRule
from unet_repro.prediction.predictor import OverlapTilePredictor

RULE = InstanceRule(threshold=0.5, grow_to=0.5, least_px=0, border_px=0)


def bright_is_cell(x):
    """A stand-in for the network: log-odds +-2 where the image is above 100."""
    cell = torch.where(x > 100, 1.0, -1.0)[..., 8:-8, 8:-8]
    return torch.cat((-cell, cell), 1)


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
    arrays = {"images": images, "labels": labels, "is_known": known}
    about = {"frames": (1, 2, 4), "is_complete": (True, False, False)}
    return CTCSequence(name="02", digits=("000", "001", "002", "003", "004"), **arrays, **about)


def test_flips_average_the_raw_scores_of_the_four_mirror_images():
    def upper_left(x):  # another pixel's value, so that a mirror image has other scores
        return torch.cat((-x, x), 1)[..., 7:-9, 7:-9]

    image = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.float32)
    once = OverlapTilePredictor(upper_left, depth=1)
    steps = [(rows, columns) for rows in (1, -1) for columns in (1, -1)]
    views = [once.logits(image[::rows, ::columns])[:, ::rows, ::columns] for rows, columns in steps]
    flips = OverlapTilePredictor(upper_left, depth=1, average="flips").logits(image)
    np.testing.assert_array_equal(flips, np.mean(views, axis=0))
    assert not np.array_equal(flips, views[0])


def test_all_frames_become_masks_and_the_annotated_ones_come_back(sequence, tmp_path):
    (tmp_path / "02_RES").mkdir()
    tifffile.imwrite(tmp_path / "02_RES/mask099.tif", np.zeros((2, 2), np.uint16))  # of before
    predictor = OverlapTilePredictor(bright_is_cell, depth=1, average="flips")
    found = segment_sequence(predictor, sequence, tmp_path, rule=RULE)
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
    for name in ("labels", "is_known"):
        np.testing.assert_array_equal(getattr(part, name), getattr(sequence, name)[[0, 2]])
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
    first = {"frame": "007", "cells": 2, "missed": 1, "found": 1, "complete": True}
    assert result["frames"][0] == {**first, "iou": pytest.approx(3 / 8)}
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
