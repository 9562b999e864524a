"""What the benchmark of half an hour makes of its cycles."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "experiments/benchmarks/long_run.py"


@pytest.fixture(scope="module")
def long_run():
    spec = importlib.util.spec_from_file_location("long_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:  # dataclasses look their module up by name
        patch.setitem(sys.modules, "long_run", module)
        spec.loader.exec_module(module)
        yield module


def summary(long_run, memory):
    rest = {"files": 9, "python_threads": 2, "threads": 2}
    hours = np.linspace(0, 0.5, len(memory))
    return long_run.summary([{"hours": h, "memory_mib": m, **rest} for h, m in zip(hours, memory)])


def test_a_leak_raises_both_slopes(long_run):
    found = summary(long_run, 500 + 20 * np.linspace(0, 0.5, 200))
    assert found["memory_mib_per_hour"] == pytest.approx(20)
    assert found["median_mib_per_hour"] == pytest.approx(20)
    assert "NOT flat" in long_run.line(found)


def test_one_step_raises_the_straight_line_alone(long_run):
    found = summary(long_run, 500 + 4.0 * (np.arange(200) >= 140))
    assert found["memory_mib_per_hour"] > 10
    assert found["median_mib_per_hour"] == 0


def test_what_the_first_fifth_takes_does_not_count(long_run):
    found = summary(long_run, 500 - 50.0 * (np.arange(200) < 40))
    assert found["memory_mib_per_hour"] == pytest.approx(0, abs=1e-6)
    assert "0; growth" in long_run.line(found) and "NOT" not in long_run.line(found)
