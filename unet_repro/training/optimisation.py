"""What moves the weights (Sec. 3): optimiser, learning rate, and the network as it is trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unet_repro.config import TrainConfig
from unet_repro.errors import InputError
from unet_repro.network.model import UNet
from unet_repro.training.parallel import Processes


def learning_rate(settings: TrainConfig, *, iteration: int, progress: float) -> float:
    """Return the rate of a step: linear warm-up, then constant or half a cosine down to 0.

    `iteration` steps were taken before, and the share `progress` of the run is over.
    Not in the paper: it states no rate and no schedule.
    """
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return rate * min(1.0, (iteration + 1) / max(settings.warmup_iterations, 1))


def make_optimizer(network: UNet, settings: TrainConfig) -> torch.optim.Optimizer:
    """Return the paper's SGD with momentum, or Adam with decoupled weight decay."""
    parameters = network.parameters()
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=settings.momentum, weight_decay=decay, fused=True
        )
    return torch.optim.AdamW(
        parameters, lr=rate, betas=(settings.momentum, 0.999), weight_decay=decay, fused=True
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state; what it keeps of a weight is laid out as that weight is.

    A fused step counts on it and does not look, and another machine may lay weights out otherwise.
    """
    optimizer.load_state_dict(state)
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                kept[name] = torch.empty_like(weight).copy_(value)


class WeightAverage:
    """A running mean of a network's weights, in a network of its own. Not in the paper.

    mean = decay mean + (1 - decay) weights, after every step. Of random weights the first step
    sets it; from those of a trained network it starts.
    """

    def __init__(self, network: UNet, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, network: UNet, *, is_first: bool) -> None:
        """Take the weights after a step into the mean; nothing waits for a GPU."""
        means, weights = list(self.network.parameters()), list(network.parameters())
        if is_first:
            for mean, weight in zip(means, weights):
                mean.copy_(weight)
        else:
            self._average(means, weights, None)


def for_training(
    network: UNet, settings: TrainConfig, processes: Processes
) -> Callable[[Tensor], Tensor]:
    """Return the network as steps call it: compiled, with averaged gradients, as need be.

    The weights, and their names, are `network`'s own. `InputError`: batch normalisation over
    several processes without a GPU.
    """
    forward: nn.Module = network
    if processes.count > 1:
        device = next(network.parameters()).device
        if settings.model.batch_norm and device.type != "cuda":
            raise InputError(
                "batch_norm in several processes needs a GPU for each (PyTorch has no "
                "synchronised statistics on the CPU): train in one process"
            )
        if settings.model.batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(network)
        forward = DistributedDataParallel(network)
    if settings.compile:
        forward = cast(nn.Module, torch.compile(forward, dynamic=False))
    return forward


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn what torch.compile raises where it cannot work into an `InputError` of one line."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0][:200] if lines else type(error).__name__
        raise InputError(f"compile: PyTorch cannot do it here ({reason}); train without") from error
