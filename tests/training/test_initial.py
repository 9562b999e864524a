"""Fine-tuning: a run takes over network and weights of a model, and nothing else changes."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from unet_repro.config import UNetConfig
from unet_repro.errors import InputError
from unet_repro.network.model import UNet
from unet_repro.network.model_file import load_model, read_metadata, save_model
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.initial import initial_model
from unet_repro.training.state import TrainingState
from unet_repro.training.train import train


@pytest.fixture
def training(two_cells):
    images, labels = two_cells
    return TrainingSet(images, (labels > 0).astype(np.uint8), np.ones(labels.shape, np.float32))


@pytest.fixture
def shape():
    return UNetConfig(
        depth=2, base_channels=3, up_relu=True, input_mean=(100.5,), input_std=(33.25,)
    )


def saved(shape, path, seed=5):
    model = UNet(shape, generator=torch.Generator().manual_seed(seed))
    save_model(model, path)
    return model


@pytest.fixture
def begun(tiny, shape, tmp_path):
    """Settings of a run that begins from a model in a file."""
    saved(shape, tmp_path / "m.safetensors")
    return replace(tiny, init=str(tmp_path / "m.safetensors"), model=shape, weight_average=0.9)


def learn(training, settings, folder, **options):
    folder.mkdir(exist_ok=True)
    return train(training, settings, folder, is_quiet=True, **options)


def state_of(training, settings, folder):
    return TrainingState(training, settings, folder, initial=initial_model(settings))


def is_same(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("has_batch_norm", [False, True])
def test_a_run_begins_with_the_weights_of_the_model(
    training, begun, shape, tmp_path, has_batch_norm
):
    if has_batch_norm:  # its running statistics are weights too
        shape = replace(shape, batch_norm=True, padding=True)
        begun = replace(begun, model=shape, weight_average=0.0, tile=64)
    model = saved(shape, tmp_path / "m.safetensors").train()
    model(torch.rand(2, 1, 76, 76) * 200)
    save_model(model, tmp_path / "m.safetensors")
    state = state_of(training, begun, tmp_path)
    assert is_same(state.network, model) and is_same(state.result(), model)
    assert not state.optimizer.state  # fresh
    assert state.network.config == shape


def test_the_running_mean_starts_from_the_model(training, begun, tmp_path):
    state = state_of(training, begun, tmp_path)
    before = state.network.classifier.weight.detach().clone()
    state.network.train()
    state.step()
    mean = 0.9 * before + 0.1 * state.network.classifier.weight.detach()
    torch.testing.assert_close(state.result().classifier.weight, mean)
    assert not torch.equal(state.network.classifier.weight, before)


def test_the_samples_are_those_of_a_run_from_random_weights(training, begun, tmp_path):
    plain = replace(begun, init="", model=replace(begun.model, input_mean=(0.0,), input_std=(1.0,)))
    states = [state_of(training, settings, tmp_path) for settings in (begun, plain)]
    first, second = (state.generator.get_state() for state in states)
    assert torch.equal(first, second)


def test_a_trained_model_is_better_at_once(training, tiny, tmp_path):
    taught = replace(tiny, iterations=80, learning_rate=1e-2)
    learn(training, taught, tmp_path / "before")
    model = tmp_path / "before/model.safetensors"
    on = replace(taught, init=str(model), model=load_model(model).config)
    losses = []
    for settings in (on, taught):
        state = state_of(training, replace(settings, learning_rate=1e-9), tmp_path)
        for _ in range(4):
            state.step()
        losses.append(state.take_mean_loss())
    assert losses[0] < 0.5 * losses[1]


@pytest.mark.parametrize("whose", ["model", "images"])
def test_input_statistics_are_those_that_were_asked_for(training, begun, tmp_path, whose):
    settings = replace(begun, input_statistics=whose)
    initial = initial_model(settings)
    learn(training, settings, tmp_path / "run", initial=initial)
    mean, std = training.mean.item(), training.std.item()
    found = load_model(tmp_path / "run/model.safetensors")
    expected = (100.5, 33.25) if whose == "model" else (mean, std)
    assert (*found.config.input_mean, *found.config.input_std) == expected
    assert (found.input_mean.item(), found.input_std.item()) == pytest.approx(expected)
    line = initial.line(training, settings)
    assert line.startswith("3 channels, 2 classes, from m.safetensors; input statistics of the ")
    ours, theirs = f"mean {mean:.4g}, deviation {std:.4g}", "mean 100.5, deviation 33.25"
    if whose == "model":
        assert line.endswith(f"model ({theirs}; the images have {mean:.4g}, {std:.4g})")
    else:
        assert line.endswith(f"images ({ours}; the model had 100.5, 33.25)")


@pytest.mark.parametrize("whose", ["model", "images"])
def test_images_of_another_range_are_told_unless_they_are_measured(training, begun, whose):
    settings = replace(begun, input_statistics=whose)
    initial = initial_model(settings)
    assert initial.doubt(training, settings) == ""
    other = replace(initial, model=replace(initial.model, input_mean=(9000.0,), input_std=(40.0,)))
    doubt = other.doubt(training, settings)
    if whose == "model":
        assert "are far from what the network expects (9000, 40); --input-statistics" in doubt
    else:
        assert doubt == ""


def test_dropout_and_what_data_decide_may_be_left_to_the_settings(training, begun, tmp_path):
    network = replace(begun.model, dropout=0.25, input_mean=(0.0,), input_std=(1.0,))
    trained = learn(training, replace(begun, model=network, iterations=1), tmp_path / "run")
    assert trained.network.config == replace(begun.model, dropout=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 3}, r"m.safetensors: its network has depth = 2, not 3; .*leave that setting"),
        ({"up_relu": False}, "its network has up_relu = True, not False"),
        ({"input_mean": (7.0,)}, r"its network has input_mean = \(100.5,\), not \(7.0,\)"),
        ({"in_channels": 2}, "its network has in_channels = 1, not 2"),
    ],
)
def test_settings_of_another_network_are_refused(training, begun, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        learn(training, replace(begun, model=replace(begun.model, **change)), tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_other_classes_channels_and_files_are_refused(training, begun, shape, tmp_path):
    path = tmp_path / "m.safetensors"
    saved(replace(shape, classes=3), path)
    with pytest.raises(InputError, match="its network has classes = 3, not 2"):
        initial_model(begun)
    saved(replace(shape, in_channels=2), path)
    coloured = replace(begun, model=replace(shape, in_channels=2))
    with pytest.raises(InputError, match="takes 2 channels, but the images have 1"):
        learn(training, coloured, tmp_path / "run")
    with pytest.raises(InputError, match="tile 75 is not"):
        learn(training, replace(coloured, tile=75), tmp_path / "run")
    path.write_bytes(b"no model")
    for resumed in (None, tmp_path):
        with pytest.raises(InputError, match="not a model of unet_repro"):
            initial_model(begun, resumed)
    path.unlink()
    for resumed in (None, tmp_path):  # nor is there a run to go on with
        with pytest.raises(InputError, match="no such model file"):
            initial_model(begun, resumed)


@pytest.mark.parametrize("is_gone", [False, True])
def test_resumed_with_or_without_the_file_ends_in_the_same_bits(
    training, begun, tmp_path, monkeypatch, is_gone
):
    settings = replace(begun, input_statistics="images")
    whole = learn(training, settings, tmp_path / "whole")
    step = TrainingState.step

    def step_and_interrupt(run):
        if run.iteration == 7:
            os.kill(os.getpid(), signal.SIGINT)
        step(run)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "step", step_and_interrupt)
        assert learn(training, settings, tmp_path / "parts").stopped == "interrupted"
    other = settings
    if is_gone:  # as the command line has it then: the preset's network
        (tmp_path / "m.safetensors").unlink()
        other = replace(settings, model=UNetConfig(), iterations=12)
    parts = learn(training, other, tmp_path / "parts", resume=True)
    assert parts.iterations == whole.iterations == 12
    assert is_same(parts.network, whole.network)
    assert parts.network.config == whole.network.config


def test_a_resume_with_other_initial_weights_is_refused(training, begun, shape, tmp_path):
    learn(training, begun, tmp_path / "run")
    path = tmp_path / "m.safetensors"
    path.rename(tmp_path / "moved.safetensors")  # the same weights, wherever they lie
    moved = replace(begun, init=str(tmp_path / "moved.safetensors"), iterations=13)
    assert learn(training, moved, tmp_path / "run", resume=True).iterations == 13
    path.write_bytes(b"no model")  # the run could do without; but this may be a slip
    with pytest.raises(InputError, match="not a model of unet_repro"):
        learn(training, begun, tmp_path / "run", resume=True)
    saved(replace(shape, input_mean=(7.0,)), path, seed=6)
    for other in (begun, replace(begun, init="")):
        network = UNetConfig() if not other.init else replace(shape, input_mean=(7.0,))
        other = replace(other, model=replace(network, depth=2))
        with pytest.raises(InputError, match=r"made with other initial weights \(--init\); a "):
            learn(training, other, tmp_path / "run", resume=True)
    learn(training, replace(begun, init="", model=UNetConfig(depth=2)), tmp_path / "plain")
    with pytest.raises(InputError, match="made with other initial weights"):
        learn(training, moved, tmp_path / "plain", resume=True)
    (tmp_path / "moved.safetensors").unlink()
    with pytest.raises(InputError, match=r"moved.safetensors: no such model file"):
        learn(training, moved, tmp_path / "plain", resume=True)


def test_the_model_says_what_it_began_from_but_not_where_that_lay(training, begun, tmp_path):
    learn(training, begun, tmp_path / "run")
    made = read_metadata(tmp_path / "run/model.safetensors")["training"]
    assert made["settings"]["init"] == "m.safetensors"
    assert str(tmp_path) not in json.dumps(made)
