"""Training in two processes on the CPU, as torchrun would start them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unet_repro.config import TrainConfig, UNetConfig, to_dict
from unet_repro.errors import InputError
from unet_repro.network.model_file import load_model
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.optimisation import for_training
from unet_repro.training.parallel import ALONE, Processes, check_alone, started
from unet_repro.training.train import train
from unet_repro.training.validation import HeldOut

SIZE = 64


def stack() -> TrainingSet:
    """Slices whose weights differ: an average of the processes' losses would be wrong."""
    rng = np.random.default_rng(1)
    classes = (rng.random((4, SIZE // 8, SIZE // 8)) > 0.5).astype(np.uint8)
    classes = classes.repeat(8, axis=1).repeat(8, axis=2)
    images = 50 + 100 * classes + rng.normal(0, 5, classes.shape)
    return TrainingSet(images, classes, np.ones(classes.shape) * [[[1]], [[30]], [[0]], [[5]]])


def held_out() -> HeldOut:
    data = stack()
    return HeldOut(data.images[:1, 0].numpy(), data.classes[:1].numpy(), np.ones((1, SIZE, SIZE)))


def without_dropout(tiny):
    return replace(
        tiny, model=replace(tiny.model, dropout=0.0), optimizer="sgd", learning_rate=1e-2
    )


def with_dropout(tiny):
    return replace(tiny, validate_every=4, weight_average=0.9)


WORKER = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_parallel import held_out, stack, with_dropout, without_dropout
from unet_repro import progress
from unet_repro.program import guarded
from unet_repro.config import TrainConfig, from_dict
from unet_repro.errors import InputError
from unet_repro.training.parallel import started
from unet_repro.training.train import train
from unet_repro.training.state import TrainingState
progress.LINE_EVERY_S = 0
tiny = from_dict(TrainConfig, json.loads({settings!r}))

def run(settings, name, **more):
    folder = Path({folder!r}, name)
    if processes.is_first:
        folder.mkdir(exist_ok=True)
    return train(stack(), settings, folder, held_out=held_out(), processes=processes, **more)

def job():
    global processes
    with started() as processes:
{body}
    return 0
sys.exit(guarded(job))
"""


def launch(folder: Path, settings: TrainConfig, body: str) -> list[tuple[int, str]]:
    """Run a body in two processes; return their exit codes and what they say on stderr."""
    # as torchrun does, keep the processes' common store outside of them
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    indented = "".join(f"        {line}\n" for line in body.strip().splitlines())
    code = WORKER.format(
        tests=str(Path(__file__).parent),
        folder=str(folder),
        settings=json.dumps(to_dict(settings)),
        body=indented,
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", code],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)},
                **{"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=300)[1] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, text) for worker, text in zip(workers, said)]


def weights_of(folder: Path, name: str = "model") -> dict[str, torch.Tensor]:
    return load_model(folder / f"{name}.safetensors").state_dict()


@pytest.fixture(scope="module")
def two(tiny, tmp_path_factory):
    """What two processes leave that train, train, are interrupted, resume and break: folder, end.

    Starting them takes longer than all that they do.
    """
    folder = tmp_path_factory.mktemp("two")
    return folder, launch(
        folder,
        tiny,
        f"""
folder = {str(folder)!r}
run(without_dropout(tiny), "two")
run(with_dropout(tiny), "whole")
step = TrainingState.step
def step_and_interrupt(state):
    step(state)
    if processes.rank == 1 and state.iteration == 6:
        os.kill(os.getpid(), signal.SIGTERM)
TrainingState.step = step_and_interrupt
first = run(with_dropout(tiny), "parts", is_quiet=True)
assert (first.stopped, first.iterations) == ("interrupted", 6), first
TrainingState.step = step
second = run(with_dropout(tiny), "parts", resume=True, is_quiet=True)
assert (second.stopped, second.iterations) == ("finished", 12), second
from unet_repro.network.model_file import load_model
from unet_repro.training import train as module
from unet_repro.training.validation import Validation
errors = iter([0.4, 0.2, 0.3, 0.3])  # as the first process, which alone validates, sees them
module.validate = lambda predictor, slices: Validation(
    0.5, next(errors), False, slices.images)
patient = replace(without_dropout(tiny), patience=2, validate_every=3)
run(replace(patient, iterations=3), "patient", is_quiet=True)
third = run(replace(patient, iterations=60), "patient", resume=True, is_quiet=True)
assert (third.stopped, third.iterations) == ("patience", 12), third
model = Path(folder, "whole", "model.safetensors")
begun = replace(with_dropout(tiny), init=str(model), model=load_model(model).config, iterations=1)
run(begun, "begun", is_quiet=True)
def step_and_break(state):
    step(state)
    if processes.rank == 1 and state.iteration == 2:
        raise InputError("this one line")
TrainingState.step = step_and_break
run(without_dropout(tiny), "broken", is_quiet=True)
""",
    )


def test_two_processes_train_as_one_does_and_resume_to_the_bit(tiny, two, tmp_path):
    folder, _ = two
    # two tiles of one process are one tile of two
    (tmp_path / "one").mkdir()
    settings = replace(without_dropout(tiny), batch_size=2)
    train(stack(), settings, tmp_path / "one", held_out=held_out(), is_quiet=True)
    one, of_two = weights_of(tmp_path / "one"), weights_of(folder / "two")
    for name, value in one.items():
        torch.testing.assert_close(of_two[name], value, rtol=1e-5, atol=1e-6)
    initial = train(stack(), replace(settings, iterations=1), tmp_path / "one", is_quiet=True)
    moved = [float((one[n] - v).abs().max()) for n, v in initial.network.state_dict().items()]
    assert max(moved) > 1e-3  # far more than the tolerance
    # with dropout of its own in every process, an interrupted run still ends in the same bits
    for name in ("model", "best"):
        whole, parts = weights_of(folder / "whole", name), weights_of(folder / "parts", name)
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
    # a checkpoint of two processes with one tile goes on in one process with two
    more = replace(settings, iterations=14)
    resumed = train(stack(), more, folder / "two", resume=True, is_quiet=True)
    assert resumed.iterations == 14
    with pytest.raises(InputError, match="batch_size = 2, not 1"):
        train(stack(), replace(more, batch_size=1), folder / "two", resume=True)


def test_an_error_in_one_process_ends_both_with_one_line(two):
    (first, said), second = two[1]
    assert first == 2 and second == (2, "error: this one line\n")
    assert "train:" in said and "error:" not in said  # only the first one speaks of the progress


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_takes_the_other_along(tiny, tmp_path, rank):
    ended = launch(
        tmp_path,
        tiny,
        f"""
step = TrainingState.step
def step_and_die(state):
    step(state)
    if processes.rank == {rank} and state.iteration == 3:
        os.kill(os.getpid(), signal.SIGKILL)
TrainingState.step = step_and_die
run(without_dropout(tiny), "killed", is_quiet=True)
""",
    )
    assert ended[rank] == (-9, "")
    code, said = ended[1 - rank]
    assert code == 2 and said.count("\n") == 1 and "has lost another one, which" in said


def test_one_process_needs_no_others(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with started() as processes:
        assert processes is ALONE and processes.is_first
    value = torch.tensor(3.0)
    assert processes.sum(value) is value
    assert processes.highest(1.5, 0) == [1.5, 0]
    assert processes.from_first(b"x") == b"x"
    check_alone()


def test_several_processes_that_nobody_joined_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="runs in one process, but torchrun has started several"):
        check_alone()
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"do not find each other.*MASTER_ADDR"), started():
        pass


def test_batch_statistics_over_processes_need_gpus(tiny):
    from unet_repro.network.model import UNet

    shape = UNetConfig(depth=1, base_channels=2, batch_norm=True)
    settings = replace(tiny, model=shape)
    with pytest.raises(InputError, match="batch_norm in several processes needs a GPU"):
        for_training(UNet(shape), settings, Processes(0, 2))


@pytest.mark.parametrize("name", ["cuda:1", "mps", "xpu"])
def test_several_processes_take_no_named_gpu_and_no_other_kind(name):
    assert Processes(1, 2, 1).place(torch.device("cpu")) == torch.device("cpu")
    assert ALONE.place(torch.device(name)) == torch.device(name)
    with pytest.raises(InputError, match=f"device {name}: several processes train on cuda, each"):
        Processes(1, 2, 1).place(torch.device(name))
