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
from .forked import run_forked


def campaign(count: int, first: int, families: list[str], keep: Path) -> dict[str, object]:
    """Run so many inputs; return how many ended how, and the failures."""
    failures, counts, ends, slowest = [], Counter[str](), Counter[str](), (0.0, "")
    turn = [name for name in families for _ in range(cases.SHARES[name])]  # as their shares are
    with tempfile.TemporaryDirectory() as scratch:
        templates = cases.Templates(Path(scratch, "templates"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            templates.warm_up()
        torch.set_num_threads(1)
        for i, seed in enumerate(range(first, first + count)):
            family = turn[i % len(turn)]
            folder = Path(scratch, f"{family}-{seed}")
            try:
                folder.mkdir()
                arguments = cases.make(family, seed, folder, templates)
                said = cases.describe(arguments) + "\n"
                (folder / ".command").write_text(said, "utf-8", "surrogatepass")
                outcome = run_forked(cases.run, arguments, folder)
            except KeyboardInterrupt:  # tell of those before
                break
            kind = "a pickle was executed" if any(folder.rglob(MARKER)) else outcome.kind
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
