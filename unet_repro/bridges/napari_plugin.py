"""The napari plugin's widget *Predict*: a panel whose button runs a `LayerJob` in a thread.

napari finds it by the manifest ``napari.yaml``, which imports nothing; napari and Qt are imported
when the widget is made, never before.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np

from unet_repro.bridges.layers import (
    LABEL_KINDS,
    Cancelled,
    ImageLayer,
    LayerData,
    LayerJob,
    Watch,
    suggested_axes,
)
from unet_repro.choices import Average, Kind
from unet_repro.errors import InputError, InputNote, one_line
from unet_repro.network.bundled import bundled_models
from unet_repro.prediction.settings import PredictionSettings

A_FILE = "a file …"
_POLL_MS = 200
_STATUS_PX = 120  # height; six lines
Number = TypeVar("Number", int, float)


def predict_widget() -> Any:
    """Return the widget for the viewer that is open."""
    import napari

    return PredictPanel(napari.current_viewer()).container


class PredictPanel:
    """The widget *Predict* of a viewer: what to predict, with which network, and how far it is.

    Attributes
    ----------
    container : magicgui.widgets.Container
        What is shown.
    """

    def __init__(self, viewer: Any) -> None:
        from magicgui import widgets
        from qtpy.QtCore import Qt, QTimer

        w: Any = widgets  # with or without magicgui: types are not checked
        self.viewer = viewer
        self.watch: Watch | None = None
        self.notes: list[str] = []
        self._source: ImageLayer | Path = Path()  # of the job that runs
        models = sorted(bundled_models(), key=lambda name: (name != "em", name))
        self.model = w.ComboBox(
            label="model", choices=[*models, A_FILE], tooltip="A network that comes along, or yours"
        )
        self.model_file = w.FileEdit(
            label="", mode="r", filter="*.safetensors", nullable=True, tooltip="model.safetensors"
        )
        self.image = w.ComboBox(
            label="image", choices=self._images, tooltip="A layer, or a file larger than memory"
        )
        self.file = w.FileEdit(label="", mode="r", filter="*.tif *.tiff *.png *.jpg", nullable=True)
        self.axes = w.LineEdit(
            label="axes",
            tooltip="A letter for each dimension: the planes Y, X are last (Y, X, S in colour); "
            "those along Z and T are segmented one by one; C are channels. Of a file: empty for "
            "those that it declares.",
        )
        self.kind = w.ComboBox(label="result", choices=list(get_args(Kind)))
        self.threshold = w.LineEdit(
            label="threshold", tooltip="Of P(cell), in [0, 1); empty: the likeliest class"
        )
        self.of_class = w.LineEdit(label="class", tooltip="One class in place of class 1, or all")
        self.min_size = w.SpinBox(label="min size (px)", max=10**6)
        self.average = w.ComboBox(
            label="average", choices=list(get_args(Average)), tooltip="Views that are averaged"
        )
        self.memory = w.LineEdit(label="memory", tooltip="At most, such as 8GiB; empty: as it fits")
        self.device = w.ComboBox(label="device", choices=["auto", "cpu", "cuda"])
        self.out = w.FileEdit(
            label="save as",
            mode="w",
            filter="*.tif",
            nullable=True,
            tooltip="TIFF; may be empty for a layer, whose result then goes with the session",
        )
        self.resume = w.CheckBox(
            text="resume", value=True, tooltip="Go on with what a cancelled job has left"
        )
        self.overwrite = w.CheckBox(text="overwrite", tooltip="Replace what is there")
        self.predict = w.PushButton(text="Predict")
        self.cancel = w.PushButton(text="Cancel", enabled=False)
        self.progress = w.ProgressBar(label="tiles", max=1)
        self.status = w.Label(label="", value="")
        self.status.native.setWordWrap(True)
        self.status.native.setMinimumHeight(_STATUS_PX)
        self.status.native.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignLeft)
        self.status.native.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._asked = [self.model, self.model_file, self.image, self.file, self.axes, self.kind]
        self._asked += [self.threshold, self.of_class, self.min_size, self.average, self.memory]
        self._asked += [self.device, self.out, self.resume, self.overwrite, self.predict]
        shown = [*self._asked, self.cancel, self.progress, self.status]
        self.container = w.Container(widgets=shown, labels=True)
        self.container._panel = self  # signals hold it by weak references only
        self.model.changed.connect(self._show_fields)
        self.kind.changed.connect(self._show_fields)
        self.image.changed.connect(self._image_chosen)
        self.predict.changed.connect(self.start)
        self.cancel.changed.connect(self.stop)
        self._timer = QTimer(self.container.native)
        self._timer.setInterval(_POLL_MS)
        self._timer.timeout.connect(self._poll)
        self._is_closed = False
        self.container.native.destroyed.connect(self._closed)
        self._image_chosen()

    # --- what is asked for

    def _images(self, _widget: Any) -> list[tuple[str, Any]]:
        from napari.layers import Image

        layers = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        return [*((layer.name, layer) for layer in layers), (A_FILE, A_FILE)]

    def _image_chosen(self) -> None:
        layer = self.image.value
        is_layer = layer not in (None, A_FILE)
        self.axes.value = axes_of(layer) if is_layer else ""
        self._show_fields()

    def _show_fields(self) -> None:
        self.model_file.visible = self.model.value == A_FILE
        self.file.visible = self.image.value in (None, A_FILE)
        self.min_size.visible = self.kind.value == "instances"
        self.threshold.visible = self.kind.value in LABEL_KINDS

    def job(self) -> LayerJob:
        """Return what the panel asks for; `InputError` where that is nothing."""
        axes = self.axes.value.strip().upper()
        model = self.model_file.value if self.model.value == A_FILE else self.model.value
        source: ImageLayer | Path
        if self.image.value in (None, A_FILE):
            if self.file.value is None:
                raise InputError("no image is chosen: a layer, or a file")
            source = Path(self.file.value)
        else:
            source, axes = image_layer(self.image.value, axes), ""
        kind = self.kind.value  # what is hidden may hold a value, and is not asked for
        settings = PredictionSettings(
            kind=kind,
            threshold=_number(self.threshold, float) if kind in LABEL_KINDS else None,
            of_class=_number(self.of_class, int),
            min_size=self.min_size.value if kind == "instances" else 0,
            average=self.average.value,
            memory=self.memory.value.strip(),
            axes=axes,
        )
        return LayerJob(
            source,
            str(model or ""),
            settings,
            out=self.out.value,
            device=self.device.value,
            resume=self.resume.value,
            overwrite=self.overwrite.value,
        )

    # --- the run

    def start(self) -> None:
        """Begin the job in a thread."""
        from napari.qt.threading import create_worker

        try:
            job = self.job()
        except InputError as error:
            self._say(f"error: {error}")
            return
        self.watch, self.notes, self._source = Watch(), [], job.source
        self._enable(False)
        self._say("running")
        self._timer.start()
        worker = create_worker(
            _work,
            job,
            self.watch,
            _start_thread=False,
            _connect={
                "returned": self._returned,
                "warned": self._warned,
                "finished": self._finished,
            },
        )
        worker.quit = self.watch.cancel  # what napari calls, and waits for, when it quits
        worker.start()

    def stop(self) -> None:
        """Cancel the job that runs; the tile that it is at is finished."""
        if self.watch:
            self.watch.cancel()
            self._say("cancelling: the tile at work is finished first")

    def _closed(self) -> None:
        self._is_closed = True
        if self.watch:
            self.watch.cancel()

    def _poll(self) -> None:
        if self.watch and self.watch.total:
            self.progress.max = max(self.watch.total, self.watch.done)
            self.progress.value = self.watch.done

    def _returned(self, result: list[LayerData] | str) -> None:
        if self._is_closed:
            return
        if isinstance(result, str):
            self._say(result)
            return
        for data, options, layer_type in result:
            getattr(self.viewer, f"add_{layer_type}")(data, **options)
        where = f": {self.out.value}" if self.out.value else ""
        self._say("\n".join([f"done{where}", *self.notes]))

    def _warned(self, warning: tuple[Any, ...]) -> None:
        message, category = warning[:2]
        if issubclass(category, InputNote):
            source, text = self._source, str(message)
            text = source.named(text) if isinstance(source, ImageLayer) else text
            self.notes.append(f"note: {text}")

    def _finished(self) -> None:
        if self._is_closed:
            return
        self._poll()
        self._timer.stop()
        self.watch = None
        self._enable(True)

    def _enable(self, is_free: bool) -> None:
        for widget in self._asked:
            widget.enabled = is_free
        self.cancel.enabled = not is_free

    def _say(self, text: str) -> None:
        self.status.value = "\n".join(map(one_line, text.split("\n")))


def _work(job: LayerJob, watch: Watch) -> list[LayerData] | str:
    """Return the layers of a job, or what is to be said instead; else a fault is ours."""
    try:
        return job.run(watch)
    except Cancelled:
        return f"cancelled at tile {watch.done} of {watch.total}; Predict goes on from there"
    except InputError as error:
        return f"error: {error}".replace("\n", " ")


def _number(field: Any, kind: Callable[[str], Number]) -> Number | None:
    """Return what a field holds, None if nothing."""
    text = field.value.strip()
    try:
        return kind(text) if text else None
    except ValueError:
        raise InputError(f"{field.label} {text!r:.40} is no number") from None


def axes_of(layer: Any) -> str:
    """Return the letters of a napari image layer's axes: its own labels, or the likely ones."""
    labels = "".join(layer.axis_labels).upper()
    if len(labels) == layer.ndim and labels.endswith("YX") and set(labels[:-2]) <= set("TZC"):
        return labels + "S" * layer.rgb
    return suggested_axes(layer.ndim, is_rgb=layer.rgb)


def image_layer(layer: Any, axes: str) -> ImageLayer:
    """Return a napari image layer as we take it; of several scales the full one."""
    ndim = layer.ndim
    turned = {
        "rotate": (layer.rotate, np.eye(ndim)),
        "shear": (layer.shear, np.zeros_like(layer.shear)),
        "affine": (layer.affine.affine_matrix, np.eye(ndim + 1)),
    }
    return ImageLayer(
        layer.name,
        layer.data[0] if layer.multiscale else layer.data,
        axes,
        {
            "scale": tuple(layer.scale),
            "translate": tuple(layer.translate),
            "units": tuple(layer.units),
            "axis_labels": tuple(layer.axis_labels),
            **{
                name: None if np.allclose(value, none) else value
                for name, (value, none) in turned.items()
            },
        },
    )
