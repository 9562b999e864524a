"""The widget, driven as a user does, in a viewer without a window; needs napari and a Qt."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from unet_repro import cli
from unet_repro.bridges import napari_plugin
from unet_repro.bridges.layers import Watch
from unet_repro.config import UNetConfig
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.prediction.settings import PredictionSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of napari's libraries
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")


@pytest.fixture(scope="module")
def app():
    pytest.importorskip("napari")
    widgets = pytest.importorskip("qtpy.QtWidgets")
    return widgets.QApplication.instance() or widgets.QApplication([])


@pytest.fixture
def viewer(app):
    from napari.components import ViewerModel

    return ViewerModel()


@pytest.fixture
def stack() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 60, 70), dtype=np.uint8)


@pytest.fixture
def model(tmp_path) -> Path:
    shape = UNetConfig(depth=2, base_channels=2, input_mean=(120.0,), input_std=(60.0,))
    save_model(UNet(shape, generator=torch.Generator().manual_seed(0)), tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def panel_of(viewer: Any, model: Path) -> napari_plugin.PredictPanel:
    panel = napari_plugin.PredictPanel(viewer)
    panel.model.value, panel.model_file.value = napari_plugin.A_FILE, model
    panel.device.value = "cpu"
    return panel


def press_and_wait(app: Any, panel: napari_plugin.PredictPanel) -> str:
    panel.predict.native.click()
    deadline = time.monotonic() + 120
    while panel.watch is not None and time.monotonic() < deadline:
        app.processEvents()
        time.sleep(0.01)
    assert panel.watch is None and panel.predict.enabled and not panel.cancel.enabled
    return panel.status.value


def test_a_layers_result_is_the_command_lines_and_in_its_place(app, viewer, stack, model, tmp_path):
    layer = viewer.add_image(
        stack, name="tissue", scale=(50, 4, 4), units="nm", translate=(1, 2, 3), rotate=(0, 0, 10)
    )
    panel = panel_of(viewer, model)
    assert panel.image.value is layer and panel.axes.value == "ZYX"
    panel.kind.value, panel.threshold.value, panel.min_size.value = "instances", "0.45", 3
    assert press_and_wait(app, panel) == "done"
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    flags = ("--kind", "instances", "--threshold", "0.45", "--min-size", "3", "--device", "cpu")
    paths = (str(tmp_path / "in.tif"), "--model", str(model), "--out", str(tmp_path / "out.tif"))
    assert cli.main(["predict", *paths, *flags]) == 0
    result = viewer.layers[-1]
    assert type(result).__name__ == "Labels" and result.name == "tissue instances"
    np.testing.assert_array_equal(result.data, tifffile.imread(tmp_path / "out.tif"))
    assert result.data.max() > 1
    for name in ("scale", "translate", "rotate", "units"):
        np.testing.assert_array_equal(getattr(result, name), getattr(layer, name))
    assert (panel.progress.value, panel.progress.max) == (3, 3)


def test_a_cancelled_job_goes_on(app, viewer, stack, model, tmp_path, monkeypatch):
    class CancelledByTheUser(Watch):
        def update(self, n: int = 1) -> None:
            if self.done + n == 2:
                panel.cancel.changed.emit(True)
            super().update(n)

    viewer.add_image(stack, name="tissue")
    panel = panel_of(viewer, model)
    panel.out.value = tmp_path / "out.tif"
    monkeypatch.setattr(napari_plugin, "Watch", CancelledByTheUser)
    assert press_and_wait(app, panel) == "cancelled at tile 2 of 3; Predict goes on from there"
    assert len(viewer.layers) == 1 and not panel.out.value.exists()
    monkeypatch.setattr(napari_plugin, "Watch", Watch)
    assert press_and_wait(app, panel) == f"done: {tmp_path / 'out.tif'}"
    np.testing.assert_array_equal(viewer.layers[-1].data, tifffile.imread(tmp_path / "out.tif"))
    panel.average.value = "dihedral"
    assert "exists already; give --overwrite" in press_and_wait(app, panel)
    panel.overwrite.value = True
    assert press_and_wait(app, panel).startswith("done")


def test_quitting_cancels_what_runs(app, viewer, stack, model, tmp_path, monkeypatch):
    from napari._qt.qthreading import wait_for_workers_to_quit

    class EndlessUnlessCancelled(Watch):
        def update(self, n: int = 1) -> None:
            deadline = time.monotonic() + 60
            while self.done + n == 2 and not self.is_cancelled and time.monotonic() < deadline:
                time.sleep(0.01)
            super().update(n)

    viewer.add_image(stack)
    panel = panel_of(viewer, model)
    panel.out.value = tmp_path / "out.tif"
    monkeypatch.setattr(napari_plugin, "Watch", EndlessUnlessCancelled)
    panel.predict.native.click()
    watch = panel.watch
    wait_for_workers_to_quit(50_000)
    assert watch is not None and watch.is_cancelled and watch.done < 3
    assert not panel.out.value.exists()


def test_a_file_is_predicted_into_a_file_that_opens(app, viewer, stack, model, tmp_path):
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack")
    panel = panel_of(viewer, model)
    assert panel.image.value == napari_plugin.A_FILE and panel.axes.value == ""
    assert press_and_wait(app, panel) == "error: no image is chosen: a layer, or a file"
    panel.file.value = tmp_path / "in.tif"
    assert "where the result goes is needed" in press_and_wait(app, panel)
    panel.out.value = tmp_path / "out.tif"
    assert press_and_wait(app, panel).startswith("done")
    (result,) = viewer.layers
    assert type(result).__name__ == "Image" and result.name == "in probability"
    np.testing.assert_array_equal(result.data, tifffile.imread(tmp_path / "out.tif"))


def test_what_cannot_be_used_is_one_line(app, viewer, stack, model):
    grey = viewer.add_image(stack, name="grey")
    photo = viewer.add_image(np.zeros((60, 70, 3), np.uint8), name="photo", rgb=True)
    panel = panel_of(viewer, model)
    panel.image.value = photo
    assert panel.axes.value == "YXS"
    said = press_and_wait(app, panel)
    assert said.startswith("error: layer photo: is in colour (RGB)") and "\n" not in said
    panel.image.value = grey
    assert panel.axes.value == "ZYX"
    panel.kind.value, panel.threshold.value = "mask", "much"
    assert press_and_wait(app, panel) == "error: threshold 'much' is no number"
    panel.threshold.value = "2"
    assert "threshold 2.0 is not in [0, 1)" in press_and_wait(app, panel)
    panel.threshold.value, panel.memory.value = "", "lots"
    assert "'lots' is not a size such as 8GiB" in press_and_wait(app, panel)
    panel.memory.value, panel.model_file.value = "", None
    assert "no model is chosen" in press_and_wait(app, panel)


def test_axes_are_the_layers_own_labels_where_these_are_letters(app, viewer):
    zeros = np.zeros((2, 3, 8, 9), np.uint8)
    labelled = viewer.add_image(zeros, axis_labels=("t", "c", "y", "x"))
    plain = viewer.add_image(zeros)
    pyramid = viewer.add_image([zeros, zeros[..., ::2, ::2]], multiscale=True)
    assert [napari_plugin.axes_of(layer) for layer in (labelled, plain)] == ["TCYX", "TZYX"]
    assert napari_plugin.image_layer(pyramid, "TZYX").data.shape == zeros.shape


def test_the_panel_asks_for_fields_of_the_settings(app, viewer, stack, model):
    viewer.add_image(stack)
    panel = panel_of(viewer, model)
    panel.kind.value, panel.threshold.value, panel.of_class.value = "mask", "0.25", "0"
    panel.average.value, panel.memory.value = "seven", "1GiB"
    job = panel.job()
    expected = PredictionSettings(
        kind="mask", threshold=0.25, of_class=0, average="seven", memory="1GiB"
    )
    assert job.settings == expected and job.model == str(model)
    assert {field.name for field in fields(job)} >= {"out", "resume", "overwrite"}
    panel.kind.value = "probability"  # a threshold that is hidden is not asked for
    assert panel.job().settings == replace(expected, kind="probability", threshold=None)


def test_the_bundled_networks_are_offered_em_first(app, viewer, stack, monkeypatch):
    monkeypatch.setattr(napari_plugin, "bundled_models", lambda: {"cells": None, "em": None})
    viewer.add_image(stack)
    panel = napari_plugin.PredictPanel(viewer)
    assert panel.model.choices == ("em", "cells", napari_plugin.A_FILE)
    assert panel.job().model == "em"


def test_napari_itself_finds_the_manifest_valid():
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_distribution("unet-repro")
    manifest.validate_imports()
    program = "from npe2.cli import main; main()"
    command = [sys.executable, "-c", program, "validate", "unet-repro"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "valid" in done.stdout, done.stderr
