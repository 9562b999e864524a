import os

import pytest
import torch
from torch.nn import functional as F

from unet_repro.errors import InputError
from unet_repro.training.reproducible import deterministic_algorithms, seed_device


def switches():
    cudnn = torch.backends.cudnn
    return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark


def test_the_switches_are_on_inside_and_as_before_outside(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = switches()
    with deterministic_algorithms():
        assert switches() == (True, True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert switches() == before
    with deterministic_algorithms(False):
        assert switches() == before


def test_an_operation_without_a_deterministic_form_is_named():
    pooled, places = F.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
    with (
        pytest.raises(InputError, match=r"no deterministic max_unpool\S* on this device; train"),
        deterministic_algorithms(),
    ):
        F.max_unpool2d(pooled, places, 2)
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), deterministic_algorithms():
        raise RuntimeError("something else")


def test_the_named_device_is_seeded_and_not_the_first_one(monkeypatch):
    now, seeds = ["cuda:0"], []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            now.append(str(self.device))

        def __exit__(self, *_):
            now.pop()

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seeds.append((now[-1], seed)))
    seed_device(3, torch.device("cuda", 1))
    seed_device(4, torch.device("cpu"))
    assert seeds == [("cuda:1", 3)]
