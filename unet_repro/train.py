"""The training loop (Sec. 3): optimiser, schedule, validation, log and checkpoints."""

from __future__ import annotations

import csv
import io
import json
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from unet_repro import config, geometry
from unet_repro.atomic import atomic_path
from unet_repro.config import TrainConfig, UNetConfig
from unet_repro.dataset import TrainingSet
from unet_repro.device import autocast, choose_precision
from unet_repro.errors import InputError
from unet_repro.loss import weighted_cross_entropy
from unet_repro.metrics import pixel_error
from unet_repro.model import UNet, save_model
from unet_repro.predict import OverlapTilePredictor
from unet_repro.quantities import seconds

LOG_EVERY = 20  # iterations
COLUMNS = (
    "iteration",
    "seconds",
    "learning_rate",
    "loss",
    "validation_loss",
    "validation_pixel_error",
)
Stopped = Literal["finished", "time budget", "interrupted"]


@dataclass(frozen=True)
class HeldOut:
    """Slices that training never sees: images, classes and weights as in `TrainingSet`."""

    images: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Trained:
    """What training gives: the network in eval mode, and how it came to its end."""

    network: UNet
    iterations: int
    seconds: float
    stopped: Stopped
    has_collapsed: bool


@dataclass(frozen=True)
class Start:
    """What a run begins with: its completed network, steps taken before, whether it is over."""

    model: UNetConfig
    iterations: int
    is_over: bool


def output_side(settings: TrainConfig) -> int:
    """Return the side of the output tile in px (572: 388).

    Raises
    ------
    InputError
        The tile is not a valid input size; the message names the nearest.
    """
    shape = settings.model
    if not shape.padding:
        geometry.check_input(settings.tile, shape.depth, "tile")
        return geometry.output_size(settings.tile, shape.depth)
    grid = 2**shape.depth
    if settings.tile % grid or settings.tile < 2 * grid:
        raise InputError(f"tile {settings.tile} is not a multiple of {grid}, {2 * grid} or more")
    return settings.tile


def learning_rate(settings: TrainConfig, *, iteration: int, progress: float) -> float:
    """Return the rate of a step: linear warm-up, then constant or half a cosine down to 0.

    Not in the paper: it states no rate and no schedule.

    Parameters
    ----------
    iteration
        Steps taken before this one.
    progress
        Share of the run that is over, in [0, 1].
    """
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return rate * min(1.0, (iteration + 1) / max(settings.warmup_iterations, 1))


def train(
    training: TrainingSet,
    settings: TrainConfig,
    folder: Path,
    *,
    held_out: HeldOut | None = None,
    resume: bool = False,
    is_quiet: bool = False,
    on_start: Callable[[Start], None] = lambda start: None,
) -> Trained:
    """Train a network and leave ``model.safetensors``, ``checkpoint.pt`` and ``log.csv`` behind.

    Parameters
    ----------
    training
        The labelled slices to learn from, on the device to train on.
    settings
        The run; `settings.model` is completed by the images' channels, mean and deviation.
    folder
        Where the files go; it exists.
    held_out
        Slices to validate on every `settings.validate_every` iterations.
    resume
        Go on from ``checkpoint.pt`` if there is one.
    is_quiet
        No progress bar.
    on_start
        Called when all has been checked, before the first file is written.

    Raises
    ------
    InputError
        The loss is no longer a number; a tile that the network cannot take; a checkpoint of other
        settings.

    Notes
    -----
    Everything random comes from `settings.seed`: initial weights, samples, dropout. The same seed
    on the same machine with the same number of threads gives the same weights, bit for bit, if the
    run's length is given in iterations, and so does a run that was interrupted and resumed. That
    holds on a CPU; a GPU's kernels add in any order.
    """
    device = training.images.device
    # initialisation and dropout leave the global state alone
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        run = _Run(training, settings, folder)
        if resume:
            run.load()
        run.restore_dropout()
        on_start(Start(run.network.config, run.iteration, run.progress() >= 1))
        with _Log(folder, run.iteration) as log:
            stopped = run.loop(log, held_out, is_quiet)
        return Trained(run.finished(), run.iteration, run.seconds, stopped, run.has_collapsed)


class _Run:
    """The state of a training run: all that a checkpoint must hold."""

    def __init__(self, training: TrainingSet, settings: TrainConfig, folder: Path) -> None:
        self.training, self.settings, self.folder = training, settings, folder
        self.device = training.images.device
        self.precision = choose_precision(settings.precision, self.device)
        self.output = output_side(settings)
        _check_measured(settings.model, channels=training.images.shape[1])
        shape = replace(
            settings.model,
            in_channels=training.images.shape[1],
            input_mean=tuple(training.mean.flatten().tolist()),
            input_std=tuple(training.std.flatten().tolist()),
        )
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.network = UNet(shape, generator=self.generator).to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = (
            AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(settings.weight_average))
            if settings.weight_average
            else None
        )
        self.optimizer = _optimizer(self.network, settings)
        self.iteration = 0
        self.seconds = 0.0
        self.has_collapsed = False
        self.dropout_states = [torch.Generator().manual_seed(settings.seed + 1).get_state()]
        self.budget = seconds(settings.time_budget) if settings.time_budget else math.inf
        self.limit = settings.iterations
        if not self.limit and not settings.time_budget:
            self.limit = config.PRESET_ITERATIONS[settings.preset]

    def finished(self) -> UNet:
        """Return the network to predict with: the averaged weights where there are any."""
        return self._best_weights().eval()

    def _best_weights(self) -> UNet:
        return cast(UNet, self.average.module) if self.average else self.network

    def progress(self) -> float:
        """Return the share of the run that is over, by iterations or by time."""
        done = self.iteration / self.limit if self.limit else 0.0
        return max(done, self.seconds / self.budget)

    def restore_dropout(self) -> None:
        """Set torch's global random state, from which dropout draws."""
        torch.set_rng_state(self.dropout_states[0])
        if self.device.type == "cuda":
            if len(self.dropout_states) == 1:
                torch.cuda.manual_seed(self.settings.seed + 1)
            else:
                torch.cuda.set_rng_state(self.dropout_states[1], self.device)

    def _current_dropout(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return states

    def loop(self, log: _Log, held_out: HeldOut | None, is_quiet: bool) -> Stopped:
        """Step until the end, the time budget or Ctrl-C; leave a checkpoint and a model."""
        losses: list[torch.Tensor] = []
        every = self.settings.validate_every
        bar = tqdm(
            total=self.limit or None,
            initial=self.iteration,
            unit="it",
            disable=is_quiet,
            desc="train",
        )
        self.network.train()
        with bar, _stop_signals() as stop:
            while self.progress() < 1 and not stop.is_set():
                begin = time.monotonic()
                losses.append(self._step())
                self.iteration += 1
                is_validated = self.iteration % every == 0
                if is_validated or self.iteration % LOG_EVERY == 0:
                    row = self._row(losses)
                    losses.clear()
                    if held_out and is_validated:
                        row |= self._validate(held_out)
                        if not is_quiet:
                            bar.write(_validation_line(row), file=sys.stderr)
                    log.write(row)
                    bar.set_postfix_str(self._status(row), refresh=False)
                self.seconds += time.monotonic() - begin
                bar.update()
                if is_validated:
                    self.save()
            if losses:
                log.write(self._row(losses))
            self.save()
        if stop.is_set():
            return "interrupted"
        return "finished" if self.limit and self.iteration >= self.limit else "time budget"

    def _step(self) -> torch.Tensor:
        """Take one step of the optimiser; return the loss, still on the device."""
        settings = self.settings
        rate = learning_rate(settings, iteration=self.iteration, progress=self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.training.draw_batch(
            settings.augmentation,
            batch_size=settings.batch_size,
            window=settings.tile,
            output=self.output,
            generator=self.generator,
        )
        with autocast(self.precision, self.device):
            logits = self.network(_channels_last(batch.image))
        loss = weighted_cross_entropy(logits, batch.labels, batch.weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.network)
        return loss.detach()

    def _row(self, losses: list[torch.Tensor]) -> dict[str, Any]:
        """Return a log row; raise where the loss or a weight is no longer a number."""
        loss = float(torch.stack(losses).mean())
        is_finite = all(bool(weight.isfinite().all()) for weight in self.network.parameters())
        if not (math.isfinite(loss) and is_finite):
            raise InputError(
                f"the loss became {loss if is_finite else math.nan} by iteration "
                f"{self.iteration}: the learning rate {self.settings.learning_rate} is too high "
                "for these data; try a tenth of it, or a longer warm-up (with --overwrite)"
            )
        return {
            "iteration": self.iteration,
            "seconds": round(self.seconds, 2),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "loss": loss,
        }

    def _status(self, row: dict[str, Any]) -> str:
        """Return what the progress bar says: loss, learning rate, time left."""
        share = self.progress()
        left = self.seconds * (1 - share) / share if share else math.inf
        return f"loss {row['loss']:.4f}, rate {row['learning_rate']:.2g}, {left / 60:.1f} min left"

    def _validate(self, held_out: HeldOut) -> dict[str, Any]:
        """Return loss and pixel error on the held-out slices; look for a collapse."""
        network = self.finished()
        predictor = OverlapTilePredictor(network, device=self.device, precision=self.precision)
        loss = total = 0.0
        interior = np.empty(held_out.classes.shape, np.float32)
        for z, image in enumerate(held_out.images):
            logits = torch.from_numpy(predictor.logits(image))  # (classes, y, x)
            weights = torch.from_numpy(held_out.weights[z])
            classes = torch.from_numpy(held_out.classes[z].astype(np.int64))
            share = float(weights.sum())
            loss += share * float(
                weighted_cross_entropy(logits[None], classes[None], weights[None])
            )
            total += share
            interior[z] = torch.softmax(logits, dim=0)[1].numpy()
        self.network.train()
        loss /= max(total, 1e-12)
        prior = self.training.prior_entropy()
        is_one_class = np.unique(interior > 0.5).size == 1 and loss > 0.95 * prior
        self.has_collapsed = is_one_class and self.iteration > 2 * self.settings.warmup_iterations
        if self.has_collapsed:
            tqdm.write(
                f"iteration {self.iteration}: every held-out pixel gets the same class, and the "
                f"loss {loss:.3f} is no better than guessing by class frequency ({prior:.3f}): "
                "the network has collapsed. Start again (--overwrite) with a lower "
                "--learning-rate, more --warmup-iterations or another --seed.",
                file=sys.stderr,
            )
        return {
            "validation_loss": loss,
            "validation_pixel_error": pixel_error(held_out.classes, interior).best,
        }

    def save(self) -> None:
        """Write checkpoint and model, each complete or not at all."""
        state = {
            "identity": json.dumps(self._identity()),
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "has_collapsed": self.has_collapsed,
            "generator": self.generator.get_state(),
            "dropout": self._current_dropout(),
        }
        with atomic_path(self.folder / "checkpoint.pt", overwrite=True) as path:
            content = io.BytesIO()  # torch would turn a full disk into a RuntimeError
            torch.save(state, content)
            path.write_bytes(content.getbuffer())
        training = {
            "settings": config.to_dict(self.settings),
            "iterations": self.iteration,
            "seconds": round(self.seconds, 2),
            "precision": self.precision,
        }
        save_model(self._best_weights(), self.folder / "model.safetensors", training=training)

    def _identity(self) -> dict[str, Any]:
        """Return what a resumed run must share with its beginning: settings and data."""
        settings = json.loads(json.dumps(config.to_dict(self.settings)))
        for free in ("iterations", "time_budget", "device"):
            del settings[free]
        return settings | {"data": self.training.fingerprint()}

    def load(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, on files that are refused below
                state = torch.load(path, map_location=self.device, weights_only=True)
            before, now = json.loads(state["identity"]), self._identity()
        except Exception as error:  # torch raises many kinds for a damaged file
            raise _foreign_checkpoint(path) from error
        for name in now:
            if before.get(name) != now[name]:
                what = (
                    "other images, labels or weights"
                    if name == "data"
                    else f"{name} = {before.get(name)!r:.80}, not {now[name]!r:.80}"
                )
                raise InputError(
                    f"{path}: was made with {what}; a resumed run may only change iterations, "
                    "time budget and device; --overwrite begins anew"
                )
        try:
            self.network.load_state_dict(state["network"])
            if self.average:
                self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.iteration, self.seconds = int(state["iteration"]), float(state["seconds"])
            self.has_collapsed = bool(state["has_collapsed"])
            self.generator.set_state(state["generator"].cpu())
            self.dropout_states = [each.cpu() for each in state["dropout"]]
        except Exception as error:  # a part is missing or does not fit
            raise _foreign_checkpoint(path) from error


def _check_measured(shape: UNetConfig, *, channels: int) -> None:
    """Refuse settings that the data decide, rather than replace them silently."""
    default = UNetConfig()
    if shape.in_channels not in (default.in_channels, channels):
        raise InputError(f"in_channels is {shape.in_channels}, but the images have {channels}")
    for name in ("input_mean", "input_std"):
        if getattr(shape, name) != getattr(default, name):
            raise InputError(f"{name} is measured on the training slices; leave it at its default")


def _foreign_checkpoint(path: Path) -> InputError:
    return InputError(
        f"{path}: not a checkpoint of unet_repro, or damaged; --overwrite begins anew"
    )


def _channels_last(image: torch.Tensor) -> torch.Tensor:
    """Return (N, C, H, W) with channels innermost, spelled out in the strides even for C = 1.

    Torch calls one channel contiguous either way, and then convolves in the slower order.
    """
    _, channels, height, width = image.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return image.contiguous(memory_format=torch.channels_last).as_strided(image.shape, strides)


def _optimizer(network: UNet, settings: TrainConfig) -> torch.optim.Optimizer:
    parameters = network.parameters()
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True
        )
    return torch.optim.AdamW(
        parameters, lr=rate, betas=(settings.momentum, 0.999), weight_decay=decay, fused=True
    )


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop after the step under way."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)  # a second one is not waited for

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _validation_line(row: dict[str, Any]) -> str:
    return (
        f"iteration {row['iteration']}: loss {row['loss']:.4f}, held out: "
        f"loss {row['validation_loss']:.4f}, pixel error {row['validation_pixel_error']:.4f}"
    )


class _Log:
    """``log.csv``: a row every `LOG_EVERY` iterations, flushed at once."""

    def __init__(self, folder: Path, iteration: int) -> None:
        self.path = folder / "log.csv"
        kept = []
        if iteration and self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file, COLUMNS))[1:]
            kept = [
                row
                for row in rows
                if None not in row  # more columns than ours
                and str(row["iteration"]).isdecimal()
                and int(row["iteration"]) <= iteration
            ]
        self.file = self.path.open("w", newline="")
        self.writer = csv.DictWriter(self.file, COLUMNS, restval="")
        self.writer.writeheader()
        self.writer.writerows(kept)

    def write(self, row: dict[str, Any]) -> None:
        self.writer.writerow(row)
        self.file.flush()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
