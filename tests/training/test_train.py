import csv
import math
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch

from unet_repro.config import PRESETS, AugmentationConfig, TrainConfig, UNetConfig
from unet_repro.errors import InputError
from unet_repro.network.model_file import load_model, read_metadata
from unet_repro.prediction.predictor import OverlapTilePredictor
from unet_repro.training import state as training_state
from unet_repro.training import train as train_module
from unet_repro.training.dataset import TrainingSet
from unet_repro.training.log import TrainLog
from unet_repro.training.optimisation import learning_rate
from unet_repro.training.state import Best, TrainingState, output_side
from unet_repro.training.train import train
from unet_repro.training.validation import HeldOut, Validation

FORMATS = (torch.contiguous_format, torch.channels_last)


def stack(two_cells, weights=None):
    images, labels = two_cells
    weights = np.ones(labels.shape, np.float32) if weights is None else weights
    return TrainingSet(images, (labels > 0).astype(np.uint8), weights)


def learn(two_cells, settings, folder, *, weights=None, **options):
    """Train on two cells, in a folder that is made."""
    folder.mkdir(exist_ok=True)
    return train(stack(two_cells, weights), settings, folder, is_quiet=True, **options)


def held_out(two_cells):
    images, labels = two_cells
    return HeldOut(images[:1], (labels[:1] > 0).astype(np.uint8), np.ones((1, 64, 64), np.float32))


def validated(state, two_cells):
    with TrainLog(state.folder, 0) as log:
        return train_module._Loop(state, log, is_quiet=True)._validate(held_out(two_cells), log)


def log_rows(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights_of(folder):
    return load_model(folder / "model.safetensors").state_dict()


def same_weights(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_learns_two_cells(two_cells, tiny, tmp_path):
    still = AugmentationConfig(0.0, 0.0, 3, 0.0, 0.0)
    settings = replace(tiny, iterations=120, learning_rate=1e-2, augmentation=still)
    trained = learn(two_cells, settings, tmp_path, held_out=held_out(two_cells))
    images, labels = two_cells
    found = OverlapTilePredictor(trained.network)(images[0])[1] > 0.5
    assert (found == (labels[0] > 0)).mean() > 0.98
    assert trained.iterations == 120 and trained.stopped == "finished"
    assert not trained.has_collapsed


@pytest.mark.parametrize("weight", [0, 1])
def test_only_weight_zero_hides_the_labels_of_a_slice(two_cells, tiny, tmp_path, weight):
    images, labels = two_cells
    wrong = labels.copy()
    wrong[1:] = 255 - wrong[1:]
    weights = np.full(labels.shape, weight, np.float32)
    weights[0] = 1
    for name, given in (("right", labels), ("wrong", wrong)):
        learn((images, given), tiny, tmp_path / name, weights=weights)
    is_same = same_weights(weights_of(tmp_path / "right"), weights_of(tmp_path / "wrong"))
    assert is_same == (weight == 0)


def test_same_seed_same_weights_and_other_seed_others(two_cells, tiny, tmp_path):
    settings = replace(tiny, weight_average=0.9)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(torch.seed())  # the global state must not matter
        learn(two_cells, replace(settings, seed=seed), tmp_path / name)
    first = weights_of(tmp_path / "a")
    assert same_weights(first, weights_of(tmp_path / "b"))
    assert not same_weights(first, weights_of(tmp_path / "c"))


def test_global_random_state_is_left_alone(two_cells, tiny, tmp_path):
    before = torch.get_rng_state()
    learn(two_cells, tiny, tmp_path)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_interrupted_and_resumed_equals_undisturbed(
    two_cells, tiny, tmp_path, monkeypatch, optimizer
):
    settings = replace(tiny, optimizer=optimizer, weight_average=0.9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learn(two_cells, settings, whole, held_out=held_out(two_cells))

    step, count = TrainingState.step, 0

    def step_and_interrupt(run):
        nonlocal count
        count += 1
        if count == 8:
            os.kill(os.getpid(), signal.SIGINT)
        step(run)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingState, "step", step_and_interrupt)
        first = learn(two_cells, settings, parts, held_out=held_out(two_cells))
    assert first.stopped == "interrupted" and first.iterations == 8
    second = learn(two_cells, settings, parts, held_out=held_out(two_cells), resume=True)
    assert second.stopped == "finished" and second.iterations == 12
    assert same_weights(weights_of(whole), weights_of(parts))
    validated = [
        [row for row in log_rows(folder) if row["validation_loss"]] for folder in (whole, parts)
    ]
    for rows in validated:
        assert [row["iteration"] for row in rows] == ["6", "12"]
    assert validated[0][1]["validation_loss"] == validated[1][1]["validation_loss"]


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("orders", [FORMATS, FORMATS[::-1]])
def test_a_run_goes_on_where_weights_are_laid_out_otherwise(
    two_cells, tiny, tmp_path, monkeypatch, optimizer, orders
):
    """As on another machine: the optimiser's memory of a weight follows that weight's order."""
    model = replace(tiny.model, dropout=0.0)
    settings = replace(tiny, model=model, optimizer=optimizer, weight_average=0.9)
    expected = TrainingState(stack(two_cells), settings, tmp_path)
    expected.network.train()
    for _ in range(8):
        expected.step()
    for order in orders:
        monkeypatch.setattr(training_state, "training_format", lambda device, order=order: order)
        run = TrainingState(stack(two_cells), settings, tmp_path)
        run.load(resume=True)
        run.network.train()
        for _ in range(4):
            run.step()
        run.save_checkpoint()
    assert run.iteration == expected.iteration
    for result in ("network", "average.network"):
        found, wanted = (attrgetter(result)(state).parameters() for state in (run, expected))
        torch.testing.assert_close(list(found), list(wanted), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("order", FORMATS)
def test_maps_and_their_gradients_keep_one_order(two_cells, tiny, tmp_path, monkeypatch, order):
    """A step is slow where an operation meets two orders, at the skips above all."""
    monkeypatch.setattr(training_state, "training_format", lambda device: order)
    run = TrainingState(stack(two_cells), tiny, tmp_path)
    run.network.train()
    found, innermost = [], 1 if order == torch.channels_last else 3

    def see(values):
        found.append(values.stride(innermost) == 1)

    def see_both(layer, inputs, output):
        see(output)
        output.register_hook(see)

    for layer in run.network.modules():
        if isinstance(layer, (torch.nn.ReLU, torch.nn.ConvTranspose2d)):
            layer.register_forward_hook(see_both)
    run.step()
    assert found == [True] * 24  # 10 convolutions and 2 up-convolutions


def test_resume_refuses_other_settings_other_data_and_foreign_files(two_cells, tiny, tmp_path):
    learn(two_cells, tiny, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    with pytest.raises(InputError, match=r"learning_rate = 0\.003.*not 0\.5"):
        learn(two_cells, replace(tiny, learning_rate=0.5), tmp_path, resume=True)
    images, labels = two_cells
    with pytest.raises(InputError, match="made with other images"):
        learn((images[::-1].copy(), labels), tiny, tmp_path, resume=True)
    torch.save(state | {"optimizer": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="damaged"):
        learn(two_cells, tiny, tmp_path, resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        learn(two_cells, tiny, tmp_path, resume=True)


def test_a_finished_run_goes_on_if_more_iterations_are_asked_for(two_cells, tiny, tmp_path):
    learn(two_cells, tiny, tmp_path)
    for asked, done in ((14, 14), (14, 14), (5, 14)):
        settings = replace(tiny, iterations=asked)
        again = learn(two_cells, settings, tmp_path, resume=True)
        assert again.iterations == done and again.stopped == "finished"


def test_time_budget_ends_the_run_and_drives_the_schedule(two_cells, tiny, tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(train_module.time, "monotonic", lambda: float(next(ticks)))
    settings = replace(tiny, iterations=0, time_budget="10s", warmup_iterations=0)
    trained = learn(two_cells, settings, tmp_path)
    assert trained.stopped == "time budget"
    assert trained.iterations == 10  # a step takes one tick of the clock
    row = read_metadata(tmp_path / "model.safetensors")["training"]
    assert row["iterations"] == 10
    assert learning_rate(settings, iteration=9, progress=0.9) < 0.03 * settings.learning_rate


def test_learning_rate_warms_up_then_follows_half_a_cosine():
    settings = TrainConfig(learning_rate=1.0, warmup_iterations=4, schedule="cosine")
    assert learning_rate(settings, iteration=0, progress=0) == pytest.approx(0.25)
    assert learning_rate(settings, iteration=3, progress=0) == pytest.approx(1.0)
    assert learning_rate(settings, iteration=50, progress=0.5) == pytest.approx(0.5)
    assert learning_rate(settings, iteration=99, progress=1) == pytest.approx(0)
    flat = replace(settings, schedule="constant")
    assert learning_rate(flat, iteration=99, progress=0.9) == pytest.approx(1.0)


def test_collapse_to_one_class_is_told(two_cells, tiny, tmp_path, capsys):
    # a rate so small that the network stays where its bias is: one class everywhere
    settings = replace(tiny, learning_rate=1e-12, warmup_iterations=1)
    run_set = stack(two_cells)
    state = TrainingState(run_set, settings, tmp_path)
    with torch.no_grad():
        state.network.classifier.weight.zero_()
        share = float((two_cells[1] > 0).mean())
        state.network.classifier.bias.copy_(torch.tensor([1 - share, share]).log())
    state.iteration = 6
    row = validated(state, two_cells)
    assert state.watch.has_collapsed
    assert row["validation_loss"] == pytest.approx(run_set.prior_entropy(), rel=1e-3)
    assert "collapsed" in capsys.readouterr().err


def test_weight_average_is_what_is_saved(two_cells, tiny, tmp_path):
    settings = replace(tiny, weight_average=0.5, iterations=2, validate_every=1)
    learn(two_cells, settings, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    saved = weights_of(tmp_path)
    for name, value in saved.items():
        assert torch.equal(value, state["average"][name])
    assert not same_weights(saved, state["network"])


def test_model_file_alone_predicts_raw_grey_values(two_cells, tiny, tmp_path):
    learn(two_cells, tiny, tmp_path)
    config = load_model(tmp_path / "model.safetensors").config
    images = two_cells[0].astype(np.float64)
    assert config.input_mean == pytest.approx((images.mean(),), rel=1e-5)
    assert config.input_std == pytest.approx((images.std(),), rel=1e-5)


def test_output_side_names_the_nearest_valid_tile():
    assert output_side(TrainConfig()) == 388
    with pytest.raises(InputError, match="nearest: 556, 572"):
        output_side(TrainConfig(tile=571))
    padded = UNetConfig(padding=True)
    assert output_side(TrainConfig(tile=512, model=padded)) == 512
    with pytest.raises(InputError, match="not a multiple of 16"):
        output_side(TrainConfig(tile=500, model=padded))


@pytest.mark.parametrize("preset", ["paper", "release", "port", "quick"])
def test_one_step_of_every_preset_narrowed(two_cells, tmp_path, preset):
    settings = PRESETS[preset]
    padded = settings.model.padding
    settings = replace(
        settings,
        model=replace(settings.model, base_channels=2, depth=2),
        iterations=1,
        tile=64 if padded else 76,
        precision="float32",
        device="cpu",
    )
    trained = learn(two_cells, settings, tmp_path)
    assert trained.iterations == 1
    record = read_metadata(tmp_path / "model.safetensors")["training"]
    assert record["settings"]["preset"] == preset


@pytest.mark.parametrize("what", ["weights", "loss"])
@pytest.mark.parametrize("broken_at", [6, 9, 11])  # at a validation, between, at the end
def test_weights_that_are_no_numbers_are_never_saved(
    two_cells, tiny, tmp_path, monkeypatch, broken_at, what
):
    step = TrainingState.step

    def step_and_break(run):
        step(run)
        if run.iteration == broken_at and what == "loss":
            run.losses[-1] *= math.nan
        elif run.iteration == broken_at:
            with torch.no_grad():
                run.network.classifier.weight.fill_(math.nan)

    monkeypatch.setattr(TrainingState, "step", step_and_break)
    with pytest.raises(InputError, match=r"became nan by iteration .*learning rate 0\.003"):
        learn(two_cells, replace(tiny, iterations=11), tmp_path, held_out=held_out(two_cells))
    if broken_at > 6:
        assert all(value.isfinite().all() for value in weights_of(tmp_path).values())
    else:
        assert not (tmp_path / "model.safetensors").exists()


def test_sgd_is_momentum_099_by_hand(two_cells, tiny, tmp_path):
    """Two steps against v = 0.99 v + g, w = w - rate v."""
    settings = replace(
        tiny, optimizer="sgd", momentum=0.99, schedule="constant", warmup_iterations=0
    )
    run = TrainingState(stack(two_cells), settings, tmp_path)
    run.network.train()
    weight = run.network.classifier.weight
    expected, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        run.step()
        velocity = 0.99 * velocity + weight.grad
        expected -= settings.learning_rate * velocity
    torch.testing.assert_close(weight.detach(), expected)


def test_optimisers_get_the_settings(two_cells, tiny, tmp_path):
    adam = TrainingState(stack(two_cells), replace(tiny, weight_decay=0.25), tmp_path)
    assert adam.optimizer.defaults["betas"] == (0.9, 0.999)
    assert adam.optimizer.defaults["weight_decay"] == 0.25
    settings = replace(tiny, optimizer="sgd", weight_decay=0.125)
    sgd = TrainingState(stack(two_cells), settings, tmp_path)
    assert sgd.optimizer.defaults["weight_decay"] == 0.125


def test_validation_leaves_the_network_training_and_the_end_does_not(two_cells, tiny, tmp_path):
    run = TrainingState(stack(two_cells), tiny, tmp_path)
    run.network.train()
    validated(run, two_cells)
    assert run.network.training
    assert not learn(two_cells, tiny, tmp_path).network.training


@pytest.mark.parametrize("is_right", [True, False])
def test_validation_error_has_the_right_polarity(two_cells, tiny, tmp_path, monkeypatch, is_right):
    """A network of one threshold on the grey value tells bright cells from dark membrane."""

    class Threshold(torch.nn.Module):
        config = tiny.model

        def forward(self, x):
            x = x[..., 20:-20, 20:-20] - 120
            return torch.cat((-x, x) if is_right else (x, -x), dim=1)

    run = TrainingState(stack(two_cells), tiny, tmp_path)
    run.result = Threshold
    monkeypatch.setattr(run, "save_model_as", lambda name, **facts: None)
    error = validated(run, two_cells)["validation_pixel_error"]
    assert error < 0.01 if is_right else error > 0.3


def test_a_used_up_time_budget_stays_used_up(two_cells, tiny, tmp_path, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(train_module.time, "monotonic", lambda: float(next(ticks)))
    settings = replace(tiny, iterations=0, time_budget="8s", validate_every=1)
    first = learn(two_cells, settings, tmp_path)
    again = learn(two_cells, settings, tmp_path, resume=True)
    assert first.iterations == again.iterations == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 7}, "in_channels is 7"),
        ({"input_mean": (5.0,)}, "input_mean is measured"),
    ],
)
def test_settings_that_the_data_decide_are_refused(two_cells, tiny, tmp_path, change, message):
    settings = replace(tiny, model=replace(tiny.model, **change))
    with pytest.raises(InputError, match=message):
        learn(two_cells, settings, tmp_path)


def test_best_weights_are_those_of_the_lowest_validation_error(
    two_cells, tiny, tmp_path, monkeypatch
):
    errors, kept = iter([0.4, 0.2, 0.3, 0.2]), []

    def scripted(predictor, slices):
        return Validation(0.5, next(errors), False, np.zeros(slices.classes.shape, np.float32))

    monkeypatch.setattr(train_module, "validate", scripted)
    trained = learn(
        two_cells,
        replace(tiny, validate_every=3, iterations=13),
        tmp_path,
        held_out=held_out(two_cells),
        on_validation=lambda progress: kept.append(weights_of(tmp_path)),
    )
    assert trained.best == Best(6, 0.2)  # the first of equals
    best = load_model(tmp_path / "best.safetensors").state_dict()
    assert [same_weights(best, weights) for weights in kept] == [False, True, False, False]
    record = read_metadata(tmp_path / "best.safetensors")["training"]
    assert (record["iterations"], record["validation_pixel_error"]) == (6, 0.2)
    monkeypatch.setattr(  # worse than before the pause: the best stays
        train_module,
        "validate",
        lambda predictor, slices: Validation(0.5, 0.25, False, np.zeros((1, 64, 64), np.float32)),
    )
    again = learn(
        two_cells,
        replace(tiny, validate_every=3, iterations=16),
        tmp_path,
        held_out=held_out(two_cells),
        resume=True,
    )
    assert again.best == Best(6, 0.2)
    assert same_weights(best, load_model(tmp_path / "best.safetensors").state_dict())


def scripted(errors):
    """Validations with these pixel errors, by iteration."""

    def validate(predictor, slices):
        return Validation(0.5, errors.pop(0), False, np.zeros(slices.classes.shape, np.float32))

    return validate


ERRORS = [0.4, 0.2, 0.3, 0.1, 0.1, 0.2, 0.3, 0.05]  # three in a row are no better than the fourth


def test_patience_ends_a_run_that_no_longer_improves(two_cells, tiny, tmp_path, monkeypatch):
    settings = replace(tiny, validate_every=2, iterations=20, patience=3)
    starts, options = [], {"held_out": held_out(two_cells), "on_start": lambda s: starts.append(s)}
    monkeypatch.setattr(train_module, "validate", scripted(ERRORS.copy()))
    stopped = learn(two_cells, settings, tmp_path / "a", **options)
    assert (stopped.stopped, stopped.iterations, stopped.best) == ("patience", 14, Best(8, 0.1))
    # such a run is over, until more patience is asked for
    again = learn(two_cells, settings, tmp_path / "a", resume=True, **options)
    assert (again.stopped, again.iterations, again.best) == ("patience", 14, Best(8, 0.1))
    assert [start.is_over for start in starts] == [False, True]
    monkeypatch.setattr(train_module, "validate", scripted([0.05, 0.06, 0.07]))
    more = replace(settings, patience=0)
    longer = learn(two_cells, more, tmp_path / "a", resume=True, **options)
    assert (longer.stopped, longer.iterations, longer.best) == ("finished", 20, Best(16, 0.05))
    monkeypatch.setattr(train_module, "validate", scripted(2 * ERRORS))
    patient = learn(two_cells, replace(settings, patience=4), tmp_path / "b", **options)
    assert (patient.stopped, patient.iterations) == ("finished", 20)


@pytest.mark.parametrize("interrupted_at", [7, 9, 12])  # 8 is the best validation
def test_patience_counts_on_where_a_run_was_interrupted(
    two_cells, tiny, tmp_path, monkeypatch, interrupted_at
):
    settings = replace(tiny, validate_every=2, iterations=20, patience=3)
    step = TrainingState.step

    def step_and_interrupt(run):
        step(run)
        if run.folder.name == "parts" and run.iteration == interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(TrainingState, "step", step_and_interrupt)
    for name in ("whole", "parts"):
        monkeypatch.setattr(train_module, "validate", scripted(ERRORS.copy()))
        options = {"held_out": held_out(two_cells), "resume": True}
        trained = learn(two_cells, settings, tmp_path / name, **options)
        if name == "parts":
            assert (trained.stopped, trained.iterations) == ("interrupted", interrupted_at)
            trained = learn(two_cells, settings, tmp_path / name, **options)
        assert (trained.stopped, trained.iterations) == ("patience", 14)
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


def test_checkpoints_come_by_the_clock_too(two_cells, tiny, tmp_path, monkeypatch):
    """One iteration takes one second, a checkpoint one: a second in 10 when asked for 3."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(train_module.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(training_state, "CHECKPOINT_EVERY", 3.0)
    monkeypatch.setattr(training_state, "CHECKPOINT_SHARE", 0.1)
    written, write = [], training_state.write_checkpoint

    def count(path, state, identity):
        written.append(state["iteration"])
        write(path, state, identity)

    monkeypatch.setattr(training_state, "write_checkpoint", count)
    settings = replace(tiny, iterations=30, validate_every=1000)
    learn(two_cells, settings, tmp_path)
    assert written == [3, 13, 23, 30]


def train_in_a_child(folder, two_cells, settings, is_resumed):
    """Train with a checkpoint after every step; runs in a process that may be killed."""
    torch.set_num_threads(1)
    training_state.CHECKPOINT_EVERY, training_state.CHECKPOINT_SHARE = 0.0, math.inf
    learn(two_cells, settings, folder, held_out=held_out(two_cells), resume=is_resumed)


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_equals_undisturbed(two_cells, tiny, tmp_path, kills):
    settings = replace(tiny, iterations=12 + 2 * kills, validate_every=7, weight_average=0.9)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    learn(two_cells, settings, whole, held_out=held_out(two_cells))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([train_module.__name__, __name__])
    moment = random.Random(0)
    for k in range(kills + 1):
        arguments = (parts, two_cells, settings, k > 0)
        child = context.Process(target=train_in_a_child, args=arguments)
        before = (parts / "checkpoint.pt").stat().st_mtime_ns if k else 0
        child.start()
        if k < kills:
            while child.is_alive() and not has_gone_on(parts / "checkpoint.pt", before):
                time.sleep(0.01)
            time.sleep(moment.uniform(0, 0.3))
            child.kill()
        child.join()
    assert child.exitcode == 0
    assert same_weights(weights_of(whole), weights_of(parts))
    best = [load_model(folder / "best.safetensors").state_dict() for folder in (whole, parts)]
    assert same_weights(*best)
    rows = [log_rows(folder) for folder in (whole, parts)]
    for row in (*rows[0], *rows[1]):
        del row["seconds"]
    assert rows[0] == rows[1]


def has_gone_on(checkpoint, before):
    return checkpoint.exists() and checkpoint.stat().st_mtime_ns != before


@pytest.mark.parametrize("is_on", [True, False])
def test_steps_are_deterministic_if_asked_for(two_cells, tiny, tmp_path, monkeypatch, is_on):
    step, seen = TrainingState.step, []

    def look_and_step(run):
        seen.append(torch.are_deterministic_algorithms_enabled())
        step(run)

    monkeypatch.setattr(TrainingState, "step", look_and_step)
    settings = replace(tiny, deterministic=is_on, iterations=2)
    learn(two_cells, settings, tmp_path)
    assert seen == [is_on, is_on] and not torch.are_deterministic_algorithms_enabled()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_an_interrupted_run_ends_in_the_same_bits(two_cells, tiny, tmp_path, monkeypatch):
    images, labels = two_cells
    classes, weights = (labels > 0).astype(np.uint8), np.ones(labels.shape, np.float32)
    on_gpu = TrainingSet(images, classes, weights, device="cuda")
    settings = replace(tiny, device="cuda", deterministic=True, weight_average=0.9)
    step, stops = TrainingState.step, []

    def step_and_interrupt(run):
        if run.iteration + 1 in stops:
            os.kill(os.getpid(), signal.SIGINT)
        step(run)

    monkeypatch.setattr(TrainingState, "step", step_and_interrupt)
    for name, stops[:] in (("whole", []), ("parts", [5])):
        (tmp_path / name).mkdir()
        options = {"held_out": held_out(two_cells), "is_quiet": True}
        trained = train(on_gpu, settings, tmp_path / name, **options)
        assert trained.iterations == (5 if stops else 12)
    stops.clear()
    train(on_gpu, settings, tmp_path / "parts", resume=True, **options)
    assert same_weights(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_training_gives_nearly_the_same_weights_and_the_same_names(
    two_cells, tiny, tmp_path
):
    settings = replace(tiny, model=replace(tiny.model, dropout=0.0), optimizer="sgd")
    for name, is_on in (("plain", False), ("compiled", True)):
        learn(two_cells, replace(settings, compile=is_on), tmp_path / name)
    plain, compiled = weights_of(tmp_path / "plain"), weights_of(tmp_path / "compiled")
    assert list(plain) == list(compiled)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)
