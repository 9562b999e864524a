"""Run many hostile inputs in forked processes: ``python -m tests.fuzz.campaign COUNT``.

Every input is named by family and seed and can be made again. The folder of one that ended
otherwise than in a result or one clear line is kept, with its command line and what it said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch

from . import cases
from .file_bytes import MARKER
from .forked import Outcome, run_forked


def plan(count: int, first: int, families: list[str]) -> list[tuple[str, int]]:
    """Return (family, seed) of so many inputs, the families in proportion to their shares."""
    turn = [name for name in families for _ in range(cases.SHARES[name])]
    return [(turn[i % len(turn)], first + i) for i in range(count)]


def run_case(
    family: str, seed: int, folder: Path, templates: cases.Templates
) -> tuple[str, Outcome]:
    """Make an input in a new folder and run it; return its kind of end, and how it ended."""
    folder.mkdir(parents=True)
    arguments = cases.make(family, seed, folder, templates)
    (folder / ".command").write_text(cases.describe(arguments) + "\n", "utf-8", "surrogatepass")
    outcome = run_forked(cases.run, arguments, folder)
    is_executed = any(folder.rglob(MARKER))
    return "a pickle was executed" if is_executed else outcome.kind, outcome


def campaign(count: int, first: int, families: list[str], keep: Path) -> dict[str, object]:
    """Run so many inputs; return how many ended how, and the failures."""
    failures, counts, ends, slowest = [], Counter[str](), Counter[str](), (0.0, "")
    with tempfile.TemporaryDirectory() as scratch:
        templates = cases.Templates(Path(scratch, "templates"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            templates.warm_up()
        torch.set_num_threads(1)
        for family, seed in plan(count, first, families):
            folder = Path(scratch, f"{family}-{seed}")
            try:
                kind, outcome = run_case(family, seed, folder, templates)
            except KeyboardInterrupt:  # tell of those before
                break
            counts[f"{family}: {kind}"] += 1
            ends[kind] += 1
            slowest = max(slowest, (outcome.seconds, folder.name))
            if kind not in ("result", "line"):
                last = " ".join(outcome.error.strip().splitlines()[-1:])[:200]
                failures.append({"case": folder.name, "kind": kind, "last": last})
                shutil.move(folder, keep / folder.name)
            else:
                shutil.rmtree(folder)
    return {
        "count": sum(ends.values()),
        "ends": ends,
        "by_family": dict(sorted(counts.items())),
        "failures": failures,
        "slowest": slowest,
    }


def main() -> int:
    """Run a campaign and print its result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--family", choices=cases.FAMILIES, action="append")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    families = options.family or list(cases.FAMILIES)
    real, sys.stdout = sys.stdout, sys.stderr  # what the commands print is not the result
    result = campaign(options.count, options.first, families, options.keep)
    print(json.dumps(result, indent=1), file=real)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
