"""What the measurements of memory share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MEASURE = """
import sys
import torch

def kilobytes(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key))

torch.set_num_threads(1)
BEFORE
with open("/proc/self/clear_refs", "w") as clear:
    clear.write("5")  # the high-water mark starts anew
before = kilobytes("VmRSS")
WORK
print(1024 * (kilobytes("VmHWM") - before))
"""


@pytest.fixture
def peak_bytes() -> Callable[..., int]:
    """Return the memory that work takes beyond what a process holds before it; needs Linux."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc")

    def measure(before: str, work: str, *arguments: object) -> int:
        program = MEASURE.replace("BEFORE", before).replace("WORK", work)
        command = [sys.executable, "-c", program, *map(str, arguments)]
        alone = os.environ | {"OMP_NUM_THREADS": "1"}  # how far threads overlap is chance
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=alone)
        return int(done.stdout)

    return measure
