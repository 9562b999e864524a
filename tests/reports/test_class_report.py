"""Several classes: figures as JSON and text, and the part of the report that shows them."""

import base64
import json
import re
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from unet_repro import config
from unet_repro.errors import InputError
from unet_repro.images.stacks import write_stack
from unet_repro.reports import drawing
from unet_repro.reports.class_evaluation import (
    class_table,
    evaluate_classes,
    is_class_evaluation,
    predicted_classes,
)
from unet_repro.reports.report import write_report


def slices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three slices of 3 of 4 classes, of which the second is all right and the third all wrong."""
    labels = np.zeros((3, 12, 16), np.uint8)
    labels[:, 2:6, 2:8], labels[:, 8:, 4:] = 1, 3
    prediction = labels.copy()
    prediction[0, :4] = 0
    prediction[2] = 2
    known = np.ones(labels.shape, bool)
    known[:, :, 0] = False
    return labels, prediction, known


def evaluated() -> dict:
    labels, prediction, known = slices()
    return evaluate_classes(
        labels, prediction, n_classes=4, known=known, numbers=range(5, 5 + len(labels))
    )


def test_the_whole_and_each_slice_are_of_the_known_pixels():
    found = evaluated()
    assert json.loads(json.dumps(found)) == found and is_class_evaluation(found)
    assert np.sum(found["confusion"]) == 3 * 12 * 15
    assert found["figures"]["iou_2"] is None and found["figures"]["iou_1"] == (12 + 24) / 72
    assert [row["slice"] for row in found["slices"]] == [5, 6, 7]
    assert [row["pixel_accuracy"] for row in found["slices"]] == [1 - 12 / 180, 1, 0]


def test_slices_that_do_not_fit_or_are_unknown_are_refused():
    labels, prediction, known = slices()
    with pytest.raises(InputError, match="3 slices of labels and 2 of the prediction"):
        evaluate_classes(labels, prediction[:2], n_classes=4)
    with pytest.raises(InputError, match="every pixel of the labels is unknown"):
        evaluate_classes(labels, prediction, n_classes=4, known=known & False)


def test_table_shows_each_class_and_the_matrix():
    lines = class_table(evaluated()).splitlines()
    assert lines[0].split() == ["IoU", "Dice", "accuracy", "pixels"]
    assert lines[3].split() == ["class", "1", "0.5000", "0.6667", "0.5000", "72"]
    assert lines[4].split() == ["class", "2", "–", "–", "–", "0"]
    start = next(i for i, line in enumerate(lines) if line.startswith("predicted as"))
    assert lines[start + 3].split() == ["class", "1", "12", "36", "24", "0"]


@pytest.mark.parametrize(
    ("prediction", "full_scale", "message"),
    [
        (np.full((1, 2, 2), 0.5), None, "hold 0.5: integers are needed"),
        (np.full((1, 2, 2), 200), 255.0, "probabilities, of which 255 is 1"),
        (np.full((1, 2, 2), 300), None, r"holds 300 \.\.\. 300: classes 0 \.\.\. 255"),
        (np.full((1, 2, 2), -1), None, r"holds -1 \.\.\. -1"),
    ],
)
def test_a_prediction_of_something_else_is_refused(prediction, full_scale, message):
    with pytest.raises(InputError, match=message):
        predicted_classes(prediction, full_scale)


@pytest.fixture
def run(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(drawing, "svg", lambda figure, title: "")
    labels, prediction, known = slices()
    settings = config.to_dict(config.PRESETS["quick"])
    settings["model"] |= {"classes": 4, "in_channels": 3}
    record = {
        "settings": settings | {"val": "5:8"},
        "data": {"name": "tissue", "heldout_slices": "5:8", "train_slices": "0:5"},
        "labels": {"kind": "classes"},
        "state": {"iterations": 10, "seconds": 1.0, "stopped": "finished"},
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    metrics = {"heldout": evaluated(), "test": None, "average": "none", "unknown_label": 255}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    colours = np.random.default_rng(0).integers(0, 255, (3, 3, 12, 16)).astype(np.uint8)
    write_stack(tmp_path / "heldout_image.tif", colours)
    write_stack(tmp_path / "heldout_labels.tif", np.where(known, labels, 255).astype(np.uint8))
    write_stack(tmp_path / "heldout_prediction.tif", prediction)
    return tmp_path


def pictures(page: str) -> dict[str, np.ndarray]:
    found = re.findall(r'<img src="data:image/png;base64,([^"]*)"[^>]* alt="([^"]*)"', page)
    return {name: imagecodecs.png_decode(base64.b64decode(png)) for png, name in found}


def test_report_shows_figures_matrix_and_slices_in_class_colours(run):
    page = write_report(run).read_text()
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "class 1 0.5000 0.6667 0.5000 72" in text
    assert "class 1 12 36 24 0" in text
    assert "V rand" not in text and "Table 1" not in text
    labels, prediction, known = slices()
    colours = drawing.class_colours(4)
    assert len({tuple(colour) for colour in colours}) == 5  # each its own, and one for none
    found = pictures(page)
    assert [name for name in found if name.endswith("image")] == [
        f"{word} slice: {z}: image" for word, z in (("Best", 6), ("Median", 5), ("Worst", 7))
    ]
    np.testing.assert_array_equal(
        found["Median slice: 5: labels"], colours[np.where(known, labels, 4)[0]]
    )
    np.testing.assert_array_equal(found["Worst slice: 7: prediction"], colours[prediction[2]])
    assert found["Best slice: 6: image"].shape == (12, 16, 3)
    wrong = found["Median slice: 5: wrong pixels, white"] > 0
    np.testing.assert_array_equal(wrong, (labels != prediction)[0] & known[0])
    commands = re.findall("<code>(.*?)</code>", page)
    assert "--label-kind classes --classes 4 --in-channels 3" in commands[0]
    assert "--kind labels" in commands[1] and "--task classes --ignore-label 255" in commands[2]


@pytest.mark.parametrize(
    "confusion",
    [[], [[1]], [[1, 2], [3]], [[1, "<b>"], [0, 1]], [[-1, 0], [0, 0]], [[1e40, 0], [0, 0]], 7],
)
def test_a_matrix_that_is_none_is_one_line(run, confusion):
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["heldout"]["confusion"] = confusion
    metrics["heldout"].pop("curves", None)
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(InputError, match="'heldout' is not what"):
        write_report(run)


def test_files_of_other_channels_are_one_line(run):
    record = json.loads((run / "config.json").read_text())
    record["settings"]["model"]["in_channels"] = 2
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"heldout_image\.tif: has axes ZCYX"):
        write_report(run)
    record["settings"]["model"] = "of no use"
    (run / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"heldout_image\.tif: has axes ZCYX"):
        write_report(run)
