import os

import pytest
import torch
from torch.nn import functional as F

from unet_repro.errors import InputError
from unet_repro.training.reproducible import deterministic_algorithms


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
