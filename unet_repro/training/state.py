"""The state of a training run: its step (Sec. 3), and all that a checkpoint must hold."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unet_repro import config
from unet_repro.config import TrainConfig, UNetConfig
from unet_repro.errors import InputError
from unet_repro.network import geometry
from unet_repro.network.device import autocast, choose_precision, training_format
from unet_repro.network.model import UNet
from unet_repro.network.model_file import save_model
from unet_repro.quantities import seconds
from unet_repro.training.checkpoint import (
    CHECKPOINT,
    identity,
    restore_checkpoint,
    write_checkpoint,
)
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.initial import Initial
from unet_repro.training.loss import weighted_cross_entropy
from unet_repro.training.optimisation import (
    WeightAverage,
    for_training,
    learning_rate,
    make_optimizer,
    restore_optimizer,
)
from unet_repro.training.parallel import ALONE, Processes
from unet_repro.training.reproducible import random_states, seed_device, set_random_states
from unet_repro.training.watch import CollapseWatch

CHECKPOINT_EVERY = 60.0  # seconds of training, at least: what a kill can cost
CHECKPOINT_SHARE = 0.02  # of the time, at most, goes into such checkpoints


@dataclass(frozen=True)
class Best:
    """The validation with the lowest pixel error so far, the first of equals."""

    iteration: int
    pixel_error: float


def output_side(settings: TrainConfig) -> int:
    """Return the side of the output tile in px (572: 388), or name the nearest valid tile."""
    shape = settings.model
    if not shape.padding:
        geometry.check_input(settings.tile, shape.depth, "tile")
        return geometry.output_size(settings.tile, shape.depth)
    grid = 2**shape.depth
    if settings.tile % grid or settings.tile < 2 * grid:
        raise InputError(f"tile {settings.tile} is not a multiple of {grid}, {2 * grid} or more")
    return settings.tile


class TrainingState:
    """A network in training: it steps, saves itself and goes on; arguments as of `train.train`."""

    def __init__(
        self,
        training: TrainingSet,
        settings: TrainConfig,
        folder: Path,
        processes: Processes = ALONE,
        origin: Mapping[str, Any] | None = None,
        initial: Initial | None = None,
    ) -> None:
        self.training, self.settings, self.folder = training, settings, folder
        self.processes, self.origin, self.initial = processes, origin or {}, initial
        self.device = training.device
        self.precision = choose_precision(settings.precision, self.device)
        self.output = output_side(settings)
        self.generator = torch.Generator().manual_seed(settings.seed)
        measured = initial.shape(training, settings) if initial else _measured(settings, training)
        self.network = UNet(measured, generator=self.generator)
        if initial and initial.weights:
            self.network.load_state_dict(initial.weights)
        self.format = training_format(self.device)
        self.network.to(self.device, memory_format=self.format)  # type: ignore[call-overload]
        decay = settings.weight_average
        self.average = WeightAverage(self.network, decay) if decay else None
        self.forward = for_training(self.network, settings, processes)
        self.optimizer = make_optimizer(self.network, settings)
        self.watch = CollapseWatch(
            prior=training.prior_entropy(), warmup=settings.warmup_iterations
        )
        data = training.fingerprint()
        init = initial.sha256 if initial else ""
        self.identity = identity(settings, processes=processes.count, data=data, init=init)
        self.iteration = 0
        self.seconds = 0.0
        self.losses: list[Tensor] = []  # since the last row of the log
        self.best: Best | None = None
        self.dropout: list[list[Tensor]] = []  # per process: random states of CPU and device
        self.next_checkpoint = CHECKPOINT_EVERY
        self.budget = seconds(settings.time_budget) if settings.time_budget else math.inf
        self.limit = settings.iterations
        if not self.limit and not settings.time_budget:
            self.limit = config.PRESET_ITERATIONS[settings.preset]

    def result(self) -> UNet:
        """Return the network to predict with: the averaged weights where there are any."""
        return self.average.network if self.average else self.network

    def share(self) -> float:
        """Return the share of the run that is over, by iterations or by time."""
        done = self.iteration / self.limit if self.limit else 0.0
        return max(done, self.seconds / self.budget)

    def is_out_of_patience(self) -> bool:
        """Whether so many validations in a row have not been better than the best one."""
        patience, every = self.settings.patience, self.settings.validate_every
        if not (patience and self.best):
            return False
        return (self.iteration - self.best.iteration) // every >= patience

    def step(self) -> None:
        """Take one step of the optimiser; keep its loss, on the device: nothing waits for it."""
        settings, processes = self.settings, self.processes
        rate = learning_rate(settings, iteration=self.iteration, progress=self.share())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        size = settings.batch_size
        batch = self.training.draw_batch(
            settings.augmentation,
            batch_size=size * processes.count,
            window=settings.tile,
            output=self.output,
            generator=self.generator,
            part=range(size * processes.rank, size * (processes.rank + 1)),
        )
        with autocast(self.precision, self.device):
            logits = self.forward(_in_format(batch.image, self.format))
        loss = weighted_cross_entropy(logits, batch.labels, batch.weights)
        if processes.count > 1:
            # gradients are averaged over the processes; a process counts by its weights' sum
            weight = batch.weights.sum()
            loss = loss * (processes.count * weight / processes.sum(weight).clamp(min=1e-12))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.average:
            is_first = self.iteration == 0 and not self.initial
            self.average.update(self.network, is_first=is_first)
        self.losses.append(loss.detach())
        self.iteration += 1

    def mean_loss(self) -> float:
        """Return the mean loss since the last row; raise where it or a weight is no number."""
        mean = torch.stack(self.losses).mean()
        loss = float(self.processes.sum(mean)) / self.processes.count
        weights = [weight.isfinite().all() for weight in self.network.parameters()]
        is_finite = bool(torch.stack(weights).all())
        if not (math.isfinite(loss) and is_finite):
            raise InputError(
                f"the loss became {loss if is_finite else math.nan} by iteration "
                f"{self.iteration}: the learning rate {self.settings.learning_rate} is too high "
                "for these data; try a tenth of it, or a longer warm-up (with --overwrite)"
            )
        return loss

    def take_mean_loss(self) -> float:
        """Return `mean_loss`, and begin the next mean."""
        loss = self.mean_loss()
        self.losses.clear()
        return loss

    def save(self) -> None:
        """Write checkpoint and model, each complete or not at all."""
        self.save_checkpoint()
        if self.processes.is_first:
            self.save_model_as("model.safetensors")

    def save_model_as(self, name: str, **facts: Any) -> None:
        """Write the network to predict with, and how it came about."""
        training = {
            "settings": config.to_dict(replace(self.settings, init=Path(self.settings.init).name)),
            "processes": self.processes.count,
            "iterations": self.iteration,
            "seconds": round(self.seconds, 2),
            "precision": self.precision,
            **facts,
            **self.origin,
        }
        save_model(self.result(), self.folder / name, training=training)

    def save_checkpoint(self) -> None:
        """Write what training needs to go on, to the bit."""
        begin = time.monotonic()
        losses = None
        if self.losses:
            self.mean_loss()  # nothing that is no number is ever saved
            losses = self.processes.sum(torch.stack(self.losses)) / self.processes.count
        states = [self.processes.gather(state) for state in random_states(self.device)]
        state = {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "losses": losses,
            "best": vars(self.best) if self.best else None,
            "watch": self.watch.state(),
            "generator": self.generator.get_state(),
            "dropout": [list(of_process) for of_process in zip(*states)],
        }
        if self.processes.is_first:
            write_checkpoint(self.folder / CHECKPOINT, state, self.identity)
        took = time.monotonic() - begin
        self.next_checkpoint = self.seconds + max(CHECKPOINT_EVERY, took / CHECKPOINT_SHARE)

    def load(self, resume: bool) -> None:
        """Go on from the checkpoint, if there is one; the first process reads it for all."""
        ours = json.dumps(self.identity).encode()
        if self.processes.from_first(ours) != ours:
            raise InputError(
                f"process {self.processes.rank} has other settings or data than process 0: all "
                "processes of a run need the same command and the same files"
            )
        path = self.folder / CHECKPOINT
        is_there = resume and self.processes.is_first and path.is_file()
        content = self.processes.from_first(path.read_bytes() if is_there else b"")
        if content:
            restore_checkpoint(content, path, self.identity, self._restore)

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.network.load_state_dict(state["average"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.iteration, self.seconds = int(state["iteration"]), float(state["seconds"])
        self.next_checkpoint = self.seconds + CHECKPOINT_EVERY
        losses = state["losses"]
        self.losses = [] if losses is None else list(losses.to(self.device))
        self.best = Best(**state["best"]) if state["best"] else None
        self.watch.restore(state["watch"])
        self.generator.set_state(state["generator"])
        self.dropout = state["dropout"]

    def seed_dropout(self) -> None:
        """Set torch's global random states, from which dropout draws: one a process."""
        rank = self.processes.rank
        seed = self.settings.seed + 1 + 1_000_003 * rank + self.iteration
        if len(self.dropout) == self.processes.count:
            states = self.dropout[rank]
        else:  # at the beginning, or with another number of processes than before
            states = [torch.Generator().manual_seed(seed).get_state()]
        if len(states) == 1:
            seed_device(seed, self.device)
        set_random_states(states, self.device)


def _measured(settings: TrainConfig, training: TrainingSet) -> UNetConfig:
    """Return the network's shape with what the data decide; refuse it where settings name it."""
    shape, default, channels = settings.model, UNetConfig(), training.channels
    if shape.in_channels not in (default.in_channels, channels):
        raise InputError(f"in_channels is {shape.in_channels}, but the images have {channels}")
    for name in ("input_mean", "input_std"):
        if getattr(shape, name) != getattr(default, name):
            raise InputError(f"{name} is measured on the training slices; leave it at its default")
    return replace(
        shape,
        in_channels=channels,
        input_mean=tuple(training.mean.flatten().tolist()),
        input_std=tuple(training.std.flatten().tolist()),
    )


def _in_format(image: Tensor, order: torch.memory_format) -> Tensor:
    """Return (N, C, H, W) in an order that its strides spell out even for C = 1.

    Torch calls one channel contiguous either way, and then convolves in the slower order.
    """
    image = image.contiguous(memory_format=order)
    if order != torch.channels_last:
        return image
    _, channels, height, width = image.shape
    strides = (channels * height * width, 1, channels * width, channels)
    return image.as_strided(image.shape, strides)
