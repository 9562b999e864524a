"""The training loop (Sec. 3): steps, validation, log, files."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unet_repro.config import TrainConfig, UNetConfig
from unet_repro.network.device import reused_memory
from unet_repro.network.model import UNet
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.progress import ProgressBar
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.initial import Initial, initial_model
from unet_repro.training.log import TrainLog
from unet_repro.training.optimisation import compiler_errors
from unet_repro.training.parallel import ALONE, Processes
from unet_repro.training.reproducible import deterministic_algorithms, kept_random_states
from unet_repro.training.state import Best, TrainingState
from unet_repro.training.validation import HeldOut, validate
from unet_repro.training.watch import stop_signals

LOG_EVERY = 20  # iterations
Stopped = Literal["running", "finished", "time budget", "patience", "interrupted"]


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    iterations: int
    seconds: float
    stopped: Stopped
    has_collapsed: bool
    best: Best | None


@dataclass(frozen=True)
class Trained(Progress):
    """What training gives: the network in eval mode, and how it came to its end."""

    network: UNet


@dataclass(frozen=True)
class Start:
    """What a run begins with: its completed network, steps taken before, whether it is over."""

    model: UNetConfig
    iterations: int
    is_over: bool


def train(
    training: TrainingSet,
    settings: TrainConfig,
    folder: Path,
    *,
    held_out: HeldOut | None = None,
    resume: bool = False,
    is_quiet: bool = False,
    processes: Processes = ALONE,
    origin: Mapping[str, Any] | None = None,
    initial: Initial | None = None,
    on_start: Callable[[Start], None] = lambda start: None,
    on_validation: Callable[[Progress], None] = lambda progress: None,
) -> Trained:
    """Train a network; leave models, ``checkpoint.pt``, ``log.csv`` and events behind.

    Parameters
    ----------
    training
        The labelled slices to learn from, on the device to train on.
    settings
        The run; `settings.model` is completed by the images' channels, mean and deviation.
    folder
        Where the files go; it exists. ``model.safetensors`` holds the last weights, or their
        running mean; ``best.safetensors`` those with the lowest pixel error on held-out slices
        (`Validation.pixel_error`: of more than two classes the share of wrong pixels).
    held_out
        Slices to validate on every `settings.validate_every` iterations.
    resume
        Go on from ``checkpoint.pt`` if there is one.
    processes
        Those that train together (`parallel.started`): each takes `settings.batch_size` tiles of
        every step, and all end with the same weights. The first one writes, shows its progress
        unless `is_quiet`, and makes the calls below.
    origin
        What else the model files' metadata shall say (JSON-ready).
    initial
        What `settings.init` names, if it has been read already (`initial_model`).
    on_start, on_validation
        Called when all has been checked, before the first file is written; and when the files of
        a validation are written.

    Raises
    ------
    InputError
        The loss is no longer a number; a tile that the network cannot take; a checkpoint of other
        settings; settings that this machine cannot serve.

    Notes
    -----
    Everything random comes from `settings.seed`: initial weights, samples, dropout. The same seed
    on the same machine with the same number of threads gives the same weights, bit for bit, if the
    run's length is given in iterations, and so does a run that was interrupted or killed and
    resumed. That holds on a CPU, and on a GPU with `settings.deterministic`.

    n processes of batch size b make the same steps as one of batch size n b, but for rounding and
    dropout, whose masks each process draws for itself.
    """
    initial = initial or initial_model(settings, folder if resume else None)
    if initial:
        settings = replace(settings, model=initial.model)
    device = training.device
    is_quiet = is_quiet or not processes.is_first
    # initialisation and dropout leave the global state alone
    with (
        kept_random_states(device),
        deterministic_algorithms(settings.deterministic),
        compiler_errors(),
        reused_memory(device),
    ):
        state = TrainingState(training, settings, folder, processes, origin, initial)
        state.load(resume)
        state.seed_dropout()
        if processes.is_first:
            is_over = state.share() >= 1 or state.is_out_of_patience()
            on_start(Start(state.network.config, state.iteration, is_over))
        with TrainLog(folder, state.iteration) if processes.is_first else nullcontext() as log:
            stopped = _Loop(state, log, is_quiet=is_quiet).run(held_out, on_validation)
        progress = _progress(state, stopped)
        return Trained(**vars(progress), network=state.result().eval())


class _Loop:
    """Drives a `TrainingState`; the first process also validates, logs and shows how far it is."""

    def __init__(self, state: TrainingState, log: TrainLog | None, *, is_quiet: bool) -> None:
        self.state, self.log, self.is_quiet = state, log, is_quiet
        self.is_interrupted = self.is_out_of_patience = False
        self.bar = ProgressBar(
            state.limit or None,
            initial=state.iteration,
            unit="it",
            desc="train",
            is_shown=not is_quiet,
        )

    def run(self, held_out: HeldOut | None, on_validation: Callable[[Progress], None]) -> Stopped:
        """Step until the end, a budget, lost patience or Ctrl-C; leave a checkpoint and a model."""
        state = self.state
        state.network.train()
        with self.bar, stop_signals() as stop:
            while self._goes_on(stop):
                begin = time.monotonic()
                state.step()
                is_validated = state.iteration % state.settings.validate_every == 0
                if is_validated or state.iteration % LOG_EVERY == 0:
                    self._write_row(held_out if is_validated else None)
                state.seconds += time.monotonic() - begin
                self.bar.update()
                if is_validated:
                    state.save()
                    if self.log:
                        on_validation(_progress(state, "running"))
            if state.losses and not self.is_interrupted:
                self._write_row(None)
            state.save()
            if self.is_interrupted:
                return "interrupted"
            if state.limit and state.iteration >= state.limit:
                return "finished"
            if not self.is_out_of_patience:
                return "time budget"
            if state.best and not self.is_quiet:
                self.bar.write(
                    f"stopped: no validation since iteration {state.best.iteration} had a pixel "
                    f"error below {state.best.pixel_error:.4f}"
                )
        return "patience"

    def _goes_on(self, stop: threading.Event) -> bool:
        """Agree with the other processes whether to step; write a checkpoint where it is time.

        The first process's clock is everyone's: it decides on rate, end and checkpoints. So are
        its validations: it alone makes them.
        """
        state, is_first = self.state, self.state.processes.is_first
        clock = state.seconds if is_first else 0.0
        clock, is_stopped, is_due, is_out_of_patience = state.processes.highest(
            clock,
            stop.is_set(),
            clock >= state.next_checkpoint,
            is_first and state.is_out_of_patience(),
        )
        state.seconds, self.is_interrupted = clock, bool(is_stopped)
        self.is_out_of_patience = bool(is_out_of_patience)
        is_over = state.share() >= 1 or self.is_out_of_patience or self.is_interrupted
        if is_due and not is_over:
            state.save_checkpoint()
        return not is_over

    def _write_row(self, held_out: HeldOut | None) -> None:
        """Log the mean loss since the last row, and the validation on slices if there are any."""
        state = self.state
        row: dict[str, Any] = {
            "iteration": state.iteration,
            "seconds": round(state.seconds, 2),
            "learning_rate": state.optimizer.param_groups[0]["lr"],
            "loss": state.take_mean_loss(),
        }
        warning = state.watch.see_training(state.iteration, row["loss"])
        if not self.log:
            return
        self._warn(warning)
        if held_out:
            row |= self._validate(held_out, self.log)
            if not self.is_quiet:
                self.bar.write(
                    f"iteration {row['iteration']}: loss {row['loss']:.4f}, "
                    f"held out: loss {row['validation_loss']:.4f}, "
                    f"pixel error {row['validation_pixel_error']:.4f}"
                )
        self.log.write(row)
        share = state.share()
        left = state.seconds * max(0.0, 1 - share) / share / 60 if share else math.inf
        self.bar.set_postfix_str(
            f"loss {row['loss']:.4f}, rate {row['learning_rate']:.2g}, {left:.1f} min left"
        )

    def _validate(self, held_out: HeldOut, log: TrainLog) -> dict[str, Any]:
        """Return loss and pixel error on the held-out slices; keep the network if it is best."""
        state = self.state
        predictor = OverlapTilePredictor(
            state.result(), device=state.device, precision=state.precision
        )
        found = validate(predictor, held_out)
        state.network.train()
        self._warn(
            state.watch.see_validation(state.iteration, found.loss, is_one_class=found.is_one_class)
        )
        if state.best is None or found.pixel_error < state.best.pixel_error:
            state.best = Best(state.iteration, found.pixel_error)
            is_first = not (state.folder / "checkpoint.pt").exists()
            if is_first and state.processes.count == 1:  # with others it takes all of them
                state.save_checkpoint()  # no model without what going on from it needs
            state.save_model_as("best.safetensors", validation_pixel_error=found.pixel_error)
        z = len(held_out.images) // 2
        image, classes = held_out.images[z], held_out.classes[z]
        name = "prediction" if state.network.config.classes > 2 else "probability"
        pictures = {"image": image, "labels": classes, name: found.prediction[z]}
        log.show(state.iteration, pictures)
        return {"validation_loss": found.loss, "validation_pixel_error": found.pixel_error}

    def _warn(self, text: str) -> None:
        if text:
            self.bar.write(text)


def _progress(state: TrainingState, stopped: Stopped) -> Progress:
    return Progress(state.iteration, state.seconds, stopped, state.watch.has_collapsed, state.best)
