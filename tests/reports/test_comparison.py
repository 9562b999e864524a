"""Files compared: what each says of itself is kept to, and slices are those of one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from unet_repro.errors import InputError
from unet_repro.images.label_settings import AUTO, LabelSettings
from unet_repro.images.png_files import encode_png
from unet_repro.images.stacks import read_pair, write_stack
from unet_repro.reports.comparison import Comparison, compare

LABELS = np.zeros((2, 30, 40), np.uint8)
LABELS[0, 4:14, 5:25] = LABELS[0, 18:28, 5:25] = LABELS[1, 10:20, 10:30] = 1


def info_of(kind: str) -> str:
    return json.dumps({"model_sha256": "", "settings": {"kind": kind}})


def compared(labels: Path, prediction: Path, **options: Any) -> Comparison:
    given: Any = {"task": "em", "read_as": AUTO, "axes": None, "mask_suffix": "", "max_value": None}
    return compare(labels, prediction, **(given | options))


@pytest.mark.parametrize("task", ["em", "cells"])
def test_a_folder_says_what_it_holds_beside_a_stack_of_labels(tmp_path: Path, task: Any) -> None:
    write_stack(tmp_path / "labels.tif", LABELS)
    (tmp_path / "p").mkdir()
    for z, slice_ in enumerate(LABELS):  # as 8-bit integers they could be ids, or a mask
        probability = np.where(slice_ == 1, 200 + np.arange(40) % 3, 100).astype(np.uint8)
        (tmp_path / "p" / f"{z}.png").write_bytes(encode_png(probability, text=info_of("uint8")))
    figures = compared(tmp_path / "labels.tif", tmp_path / "p", task=task).result["figures"]
    assert figures["pixel_error" if task == "em" else "iou"] == (0 if task == "em" else 1)


def test_instances_are_no_classes(tmp_path: Path) -> None:
    write_stack(tmp_path / "labels.tif", LABELS)
    write_stack(tmp_path / "p.tif", LABELS, info=info_of("instances"))
    with pytest.raises(InputError, match="holds instances: classes are needed"):
        compared(tmp_path / "labels.tif", tmp_path / "p.tif", task="classes")
    write_stack(tmp_path / "c.tif", LABELS, info=info_of("labels"))
    result = compared(tmp_path / "labels.tif", tmp_path / "c.tif", task="classes").result
    assert result["figures"]["mean_iou"] == 1


def test_mask_as_it_is_displayed_is_no_map_of_classes(tmp_path: Path) -> None:
    mask = (LABELS == 1).astype(np.uint8)
    write_stack(tmp_path / "m.tif", mask * np.uint8(255))
    write_stack(tmp_path / "p.tif", mask)
    with pytest.raises(InputError, match=r"holds 0 and 255 alone: of classes 0, 1, \.\.\. a mask"):
        compared(tmp_path / "m.tif", tmp_path / "p.tif", task="classes")
    some = mask.copy()
    some[:, 0] = 255
    write_stack(tmp_path / "unknown.tif", some)
    how = LabelSettings(ignore_label=255)
    result = compared(tmp_path / "unknown.tif", tmp_path / "p.tif", task="classes", read_as=how)
    assert result.result["figures"]["mean_iou"] == 1


@pytest.mark.filterwarnings("ignore::unet_repro.errors.InputNote")
@pytest.mark.parametrize("other", ["ZTYX", "TZYX"])  # another order, other numbers
def test_times_and_slices_in_another_order_are_refused(tmp_path: Path, other: str) -> None:
    stack = np.concatenate([LABELS] * 3)
    for name, axes, shape in (("l", "TZYX", (2, 3)), ("p", other, (3, 2))):
        options: Any = {"ome": True, "metadata": {"axes": axes}}
        tifffile.imwrite(tmp_path / f"{name}.tif", stack.reshape(*shape, 30, 40), **options)
    said = f"are T x Z = 2 x 3, those of .* {' x '.join(other[:2])} = 3 x 2: both must be in one"
    with pytest.raises(InputError, match=said):
        compared(tmp_path / "l.tif", tmp_path / "p.tif", task="classes")
    with pytest.raises(InputError, match=said):
        read_pair(tmp_path / "l.tif", tmp_path / "p.tif")
    write_stack(tmp_path / "plain.tif", stack)
    assert compared(tmp_path / "l.tif", tmp_path / "plain.tif", task="classes").result
