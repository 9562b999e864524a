"""Predict stacks larger than memory (Sec. 2, Fig. 2): streamed, resumable, planned beforehand."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from unet_repro._version import __version__
from unet_repro.errors import InputError
from unet_repro.files.resumable import Parts
from unet_repro.images.calibration import read_calibration, read_info
from unet_repro.images.stack_reader import StackReader
from unet_repro.images.tiff_writer import Compression, layout_of
from unet_repro.network import geometry
from unet_repro.network.backends import Backend
from unet_repro.network.device import Precision
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model
from unet_repro.prediction.local import TILES_AT_WORK, StackRun
from unet_repro.prediction.outputs import Destination, Kind, Values, names_in_folder
from unet_repro.prediction.plan import StackPlan, size_text
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.prediction.tiling import TilePlan
from unet_repro.prediction.views import Average, largest_batch
from unet_repro.quantities import index_range

PathLike = str | os.PathLike[str]

_CACHE_BYTES = 2**26  # of decoded parts of pages
_THREADS = 2**24  # what their stacks, codecs and heaps take
_TRIAL_FLOPS, _TRIAL_PX = 10**11, 400  # of the window that the speed is measured on


def predict_stack(
    source: PathLike,
    model: UNet | PathLike,
    out: PathLike,
    *,
    kind: Kind = "probability",
    dtype: str = "",
    threshold: float | None = None,
    average: Average = "none",
    tile: int | None = None,
    memory: int | None = None,
    z: str = "",
    roi: str = "",
    precision: Precision = "float32",
    backend: Backend = "torch",
    compression: Compression = "zlib",
    resume: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    progress: bool = False,
) -> Path:
    """Segment a stack of any size, tile by tile, into a TIFF file or a folder of images.

    Reading, computing and writing overlap. Memory is that of the plan, whatever the number of
    slices, and of pages larger than memory only the parts at work are read. Killed at any moment,
    it goes on with `resume`, and the result is the same to the byte (on the same machine, as far as
    the network's own arithmetic is).

    Parameters
    ----------
    source : path-like
        A TIFF stack, or a folder of TIFF or PNG images in natural order, with as many channels as
        the network has inputs.
    model : UNet or path-like
        The network, or a ``model.safetensors``; it runs where it is.
    out : path-like
        A TIFF file (``.tif``); or, if `source` is a folder, a folder: a file of the same name for
        each image.
    resume
        Go on with what an interrupted or killed call has left, if it left anything.
    overwrite
        Replace an existing output. Of a folder only if it holds nothing but files of these names.
    verify
        Before the output gets its name, compute a few random places again with other windows; a
        difference beyond rounding is an error, and the output does not appear.
    progress
        Show a bar that counts tiles, on standard error.
    kind, dtype, threshold, average, tile, memory, z, roi, precision, backend, compression
        As in `StackPrediction`.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        An option or a file that cannot be used, damaged pixels, pixels that are not finite, a
        source that changes while it is read, a full disk. What was done stays, to be resumed.
    """
    with StackPrediction(
        source,
        model,
        out,
        kind=kind,
        dtype=dtype,
        threshold=threshold,
        average=average,
        tile=tile,
        memory=memory,
        z=z,
        roi=roi,
        precision=precision,
        backend=backend,
        compression=compression,
    ) as prediction:
        prediction.run(resume=resume, overwrite=overwrite, verify=verify, progress=progress)
    return Path(out)


class StackPrediction:
    """A stack, a network and what to make of them, checked and planned before anything runs.

    To be used as a context: the source is open from the beginning to the end.

    Parameters
    ----------
    source, model, out
        As in `predict_stack`.
    kind, dtype, threshold
        As in `stack_output.Values`.
    average, tile, precision, backend
        As in `OverlapTilePredictor`.
    memory : int, optional
        Bytes that the prediction may take beyond what the process holds before; by default as in
        `OverlapTilePredictor`.
    z
        The slices ``a:b`` to predict (a ... b-1); empty for all.
    roi
        The rows and columns ``y0:y1,x0:x1`` to predict; empty for all. The pixels around them are
        their context: the result is that part of the whole prediction.
    compression
        Of the output, lossless.

    Attributes
    ----------
    plan : TilePlan
        The tiles of each slice.
    """

    def __init__(
        self,
        source: PathLike,
        model: UNet | PathLike,
        out: PathLike,
        *,
        kind: Kind = "probability",
        dtype: str = "",
        threshold: float | None = None,
        average: Average = "none",
        tile: int | None = None,
        memory: int | None = None,
        z: str = "",
        roi: str = "",
        precision: Precision = "float32",
        backend: Backend = "torch",
        compression: Compression = "zlib",
    ) -> None:
        if tile is not None and memory is not None:
            raise InputError("tile and memory exclude each other: memory is there to choose tiles")
        if memory is not None and memory < 1:
            raise InputError(f"memory is {memory}: a number of bytes above 0 is needed")
        self.out = Path(out)
        network = model if isinstance(model, UNet) else load_model(model)
        self._shape = network.config
        self.values = Values(kind, dtype, threshold, network.config.classes)
        self.predictor = OverlapTilePredictor(
            network, tile, average=average, precision=precision, backend=backend
        )
        self._memory = memory
        self._model_sha256 = hashlib.sha256(save(_state(network))).hexdigest()
        self._settings: dict[str, Any] = {
            "kind": kind,
            "dtype": self.values.dtype,
            "threshold": threshold,
            "average": average,
            "precision": precision,
            "backend": backend,
            "device": self.predictor.device.type,
            "compression": compression,
        }
        self._available = memory or self.predictor.default_memory()
        self._cache_bytes = min(_CACHE_BYTES, self._available // 8)
        self._source = StackReader(
            source, channels=network.config.in_channels, cache_bytes=self._cache_bytes
        )
        try:
            self._choose(z, roi, compression)
            self._make_plan()
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> StackPrediction:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._source.close()

    def _choose(self, z: str, roi: str, compression: Compression) -> None:
        """Settle what is predicted, and where it goes."""
        source, path = self._source, self._source.path
        slices, height, width = source.shape
        self._slices = index_range(z, length=slices, name="--z") if z else range(slices)
        self._roi = (range(height), range(width))
        if roi:
            rows, comma, columns = roi.partition(",")
            if not comma:
                raise InputError(f"--roi {roi!r:.40}: rows and columns y0:y1,x0:x1 are needed")
            self._roi = (
                index_range(rows, length=height, name="--roi, rows,"),
                index_range(columns, length=width, name="--roi, columns,"),
            )
        self._settings |= {
            "z": [self._slices.start, self._slices.stop],
            "roi": [[axis.start, axis.stop] for axis in self._roi],
        }
        names: tuple[str, ...] = ()
        if path.is_dir():
            names = names_in_folder(self.out, [source.names[i] for i in self._slices], self.values)
        elif self.out.suffix.lower() not in (".tif", ".tiff"):
            raise InputError(f"{self.out}: a name that ends in .tif is needed for a stack")
        target, origin = Path(os.path.realpath(self.out)), Path(os.path.realpath(path))
        if origin in (target, *target.parents) or target in origin.parents:
            raise InputError(f"{self.out}: would be among the images of {path}; give another place")
        self.destination = Destination(
            self.out,
            names,
            (len(self._slices), len(self._roi[0]), len(self._roi[1])),
            self.values.planes,
            self.values.dtype,
            read_calibration(path),
            compression,
        )

    def _make_plan(self) -> None:
        """Plan tiles whose memory, with that of all buffers, stays within what is given."""
        predictor, (height, width) = self.predictor, self._source.shape[1:]
        rows, columns = self._roi
        predictor.memory = None if predictor.tile else self._available
        buffers = self._buffer_bytes if predictor.device.type == "cpu" else None
        self.plan = predictor.plan(height, width, rows=rows, columns=columns, buffers=buffers)
        self.batch = largest_batch(predictor.views)
        while self.batch > 1 and self._peak_bytes(self.batch) > self._available:
            self.batch //= 2

    def _peak_bytes(self, batch: int) -> int:
        on_device = batch * self.plan.peak_bytes
        if self.predictor.device.type != "cpu":
            return on_device
        rows, columns = self.plan.rows, self.plan.columns
        kept = max(t.stop - t.start for t in rows), max(t.stop - t.start for t in columns)
        return on_device + int(self._buffer_bytes(self.plan.window, kept))

    def _buffer_bytes(self, windows: tuple[Any, Any], kept: tuple[Any, Any]) -> Any:
        """Return what the tiles take that are read, converted and put together meanwhile.

        Of heights and widths of windows and of the largest tile, which may be arrays.
        """
        source = self._source
        size = np.dtype(self.values.dtype).itemsize
        sides = (*windows, *kept)
        height, width, rows, columns = (np.asarray(side, float) for side in sides)  # no overflow
        window = height * width * source.channels * (4 + source.dtype.itemsize)
        values = rows * columns * self._shape.classes * 4
        row_of_tiles = rows * self.destination.shape[2] * size * (self.values.planes + 1)
        row_of_segments = min(512, self.destination.shape[1]) * self.destination.shape[2] * size
        touched = np.minimum(source.shape[1], height + len(self._roi[0])) * source.shape[2]
        cache = np.minimum(self._cache_bytes, touched * source.channels * source.dtype.itemsize)
        return TILES_AT_WORK * (window + values) + row_of_tiles + row_of_segments + cache + _THREADS

    def describe(self) -> StackPlan:
        """Return what the run will take, with the time, from a measurement of the speed."""
        return StackPlan(
            tiles=self.plan,
            slices=len(self._slices),
            views=len(self.predictor.views),
            batch=self.batch,
            peak_bytes=self._peak_bytes(self.batch),
            output_bytes=self.destination.n_bytes,
            layout=self._layout(),
            seconds=self._estimate(),
        )

    def _layout(self) -> str:
        destination = self.destination
        shape = destination.page_shape
        if destination.names:
            shape = (1, *shape[1:])
        layout = layout_of(shape, destination.dtype, destination.compression)
        kind = "ImageJ TIFF in strips" if layout == "strips" else "BigTIFF in tiles, OME metadata"
        if not destination.names:
            return kind
        pngs = sum(name.lower().endswith(".png") for name in destination.names)
        tiffs = len(destination.names) - pngs
        files = [f"{pngs} PNG files"] * (pngs > 0) + [f"{tiffs} files: {kind}"] * (tiffs > 0)
        return ", ".join(files)

    def _estimate(self) -> float:
        """Return the seconds that the network will take, from its speed on a window."""
        predictor, channels = self.predictor, self._shape.in_channels
        cost = predictor.cost
        height, width = self.plan.window
        while cost.flops(height, width) > _TRIAL_FLOPS and max(height, width) > _TRIAL_PX:
            half = geometry.window_of(
                max(height, width) // 2, predictor.depth, padding=predictor.padding
            )
            height, width = min(height, half), min(width, half)
        pixels = torch.zeros(1, height, width, channels, device=predictor.device)
        taken = []
        with predictor.running() as runner, torch.inference_mode():
            for _ in range(3):
                begin = time.perf_counter()
                runner.network(pixels.permute(0, 3, 1, 2)).sum().item()  # waits for a GPU
                taken.append(time.perf_counter() - begin)
        windows = len(self._slices) * len(predictor.views)
        return min(taken) * windows * self.plan.flops / int(cost.flops(height, width))

    def run(
        self,
        *,
        resume: bool = False,
        overwrite: bool = False,
        verify: bool = False,
        progress: bool = False,
    ) -> None:
        """Predict and write; arguments and errors are those of `predict_stack`."""
        is_folder = bool(self.destination.names)
        self._check_folder()
        if verify:
            self._check_verifiable()
        with Parts(self.out, resume=resume, overwrite=overwrite, is_folder=is_folder) as parts:
            if resume and self._is_complete(parts.target):
                parts.is_complete = True
                return
            self._take_over(parts.record)
            parts.begin(self._record(), dtype=self.values.dtype)
            if parts.is_complete:
                return
            run = StackRun(
                self._source,
                self._slices,
                self.predictor,
                self.plan,
                self.batch,
                self.values,
                self.destination,
                parts,
                self.info,
            )
            run.go(verify=verify, progress=progress)

    def _check_folder(self) -> None:
        """Refuse to replace a folder that holds anything else than what is written."""
        if not self.destination.names or not self.out.is_dir():
            return
        others = {entry.name for entry in self.out.iterdir()} - set(self.destination.names)
        if others:
            raise InputError(
                f"{self.out}: holds {min(others)}, which is none of the files to write; give a "
                "folder of its own"
            )

    def _check_verifiable(self) -> None:
        if self._shape.bilinear:
            raise InputError(
                "bilinear upsampling depends on the window's size: its tiles cannot be verified"
            )

    def _is_complete(self, target: Path) -> bool:
        """Tell whether the output is there and made of the same; PNG files cannot tell."""
        names = [name for name in self.destination.names if not name.lower().endswith(".png")]
        if names:
            target = target / names[0]
        elif target.is_dir():
            return False
        return target.is_file() and read_info(target) == self.info

    def _take_over(self, record: dict[str, Any] | None) -> None:
        """Keep to the plan of an unfinished run, which another machine's memory may have made."""
        if record is None or self.predictor.tile:
            return
        self.plan = TilePlan.from_record(record.get("plan"))
        self.batch = record.get("batch", 1)
        if type(self.batch) is not int or self.batch < 1:
            raise InputError(
                f"{self.out}: its unfinished run is damaged; --overwrite without --resume begins "
                "anew"
            )
        peak = self._peak_bytes(self.batch)
        if self._memory is not None and peak > self._memory:
            raise InputError(
                f"{self.out}: was begun with tiles that take {size_text(peak)}, more than "
                f"{size_text(self._memory)}; give that much memory, or --overwrite without "
                "--resume to begin anew"
            )

    def _record(self) -> dict[str, Any]:
        return {
            "settings": self._settings,
            "model": self._model_sha256,
            "source": self._source.fingerprint(),
            "unet_repro": __version__,
            "torch": torch.__version__,
            "plan": self.plan.to_record(),
            "batch": self.batch,
        }

    @property
    def info(self) -> str:
        """What the output records of its making; the fingerprint is of names, sizes and times."""
        fingerprint = json.dumps(self._source.fingerprint(), sort_keys=True)
        facts = {
            "unet_repro": __version__,
            "model_sha256": self._model_sha256,
            "source": self._source.path.name,
            "source_fingerprint": hashlib.sha256(fingerprint.encode()).hexdigest(),
            "settings": self._settings,
        }
        return json.dumps(facts, indent=1)


def _state(network: UNet) -> dict[str, torch.Tensor]:
    state = network.state_dict().items()
    return {name: value.detach().contiguous().cpu() for name, value in state}
