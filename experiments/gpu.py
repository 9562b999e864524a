"""All that a GPU is for: the paper's own recipe, six folds, both cell data sets, speed, weights.

    bash experiments/gpu.sh [--list] [--dry-run] [NAME ...]

One call takes nine minutes at most and does the steps that are not done yet, in their order.
Training that does not fit is stopped, and the next call goes on with it: call again until all is
done. Every call ends with the lines for the table of RESULTS.md. --dry-run does the same in small,
on the CPU and on synthetic data, into a folder of its own. Without a network, put the data sets
into data/*/raw or a folder that UNET_REPRO_DATA names; MONAI is compared with where it is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unet_repro.errors import InputError
from unet_repro.network.device import choose_device, describe
from unet_repro.network.model_file import load_model, read_metadata, save_model
from unet_repro.program import INTERRUPTED, guarded

ROOT = Path(__file__).resolve().parents[1]
CALL_S = 540.0
GRACE_S = 30.0  # for a step that is told to stop
PART_BYTES = 15 * 2**20  # of a file with weights
SMALL = (  # besides a step's own options, in a dry run
    *("--data", "phantom", "--base-channels", "2", "--tile", "188", "--average", "none"),
    *("--precision", "float32", "--time-budget", "4s"),
)
PAPER_EM = "V_rand 0.9728, V_info 0.9866, pixel error 0.0611, Rand 0.0382, warping 0.000353"
BEST = (
    *("--preset", "quick", "--base-channels", "64", "--learning-rate", "4e-4"),
    *("--precision", "bfloat16"),
)


@dataclass(frozen=True)
class Step:
    """A command, how long it takes, and what to say of its results."""

    name: str
    what: str
    minutes: float  # estimated; of training, its budget and what follows
    command: tuple[str, ...]  # of Python, in the project's folder
    small: tuple[str, ...]  # the same in a dry run
    result: str = ""  # what --out names, below the step's folder
    is_resumable: bool = True
    rows: Callable[[Path], list[list[str]]] = lambda out: []  # cells of the table

    def arguments(self, out: Path, device: str, *, is_dry: bool) -> list[str]:
        """Return what Python is started with."""
        words = [*(self.small if is_dry else self.command)]
        if self.result:
            place = (out / self.name / self.result).resolve()
            words += ["--device", device, "--out", str(place)]
        return words


def job(
    name: str, what: str, minutes: float, *command: str, rows: Callable[[Path], list[list[str]]]
) -> Step:
    return Step(name, what, minutes, command, (*command, *SMALL), ".", rows=rows)


def cell(script: str, title: str, sequence: str) -> Step:
    return job(
        *(f"{script}-{sequence}", f"{title}, trained on {sequence}, scored on the other", 5),
        *(f"experiments/{script}.py", "--train-sequence", sequence, *BEST, "--time-budget", "4m"),
        rows=cell_rows,
    )


def speed(name: str, what: str, minutes: float, script: str, *options: str) -> Step:
    command = (f"experiments/benchmarks/{script}.py",)
    files = ((*command, *options), (*command, "--quick"), "speed.json")
    return Step(name, what, minutes, *files, is_resumable=False, rows=speed_rows)


def steps() -> list[Step]:
    """Return what is to be done, in the order of its worth."""
    script = "experiments/em_challenge.py"
    paper = ("--preset", "paper", "--precision", "bfloat16")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests")
    return [
        Step(
            "tests", "the tests marked gpu", 3, tests, (*tests[:5], "tests/network/test_device.py")
        ),
        job(
            *("em-paper", "EM, the paper's recipe, slices 25-29 held out", 11),
            *(script, *paper, "--time-budget", "10m"),
            rows=em_rows,
        ),
        job(
            *("em-best", "EM, the default recipe at 64 channels, slices 25-29 held out", 7),
            *(script, *BEST, "--time-budget", "6m"),
            rows=em_rows,
        ),
        speed(
            *("speed-training", "training, 64 channels, tiles of 572 px", 2, "train"),
            *("--base-channels", "64", "--tile", "572"),
        ),
        speed("speed-512", "prediction, 512 x 512 px, and a stack", 2, "predict", "--size", "512"),
        speed("speed-4096", "prediction, 4096 x 4096 px", 3, "predict", "--size", "4096"),
        job(
            *("em-folds", "EM, six folds of the default recipe at 64 channels", 20),
            *(script, *BEST, "--folds", "6", "--time-budget", "3m"),
            rows=fold_rows,
        ),
        cell("phc_u373", "PhC-U373", "01"),
        cell("phc_u373", "PhC-U373", "02"),
        cell("dic_hela", "DIC-HeLa", "01"),
        cell("dic_hela", "DIC-HeLa", "02"),
    ]


def run(step: Step, out: Path, *, is_dry: bool, limit_s: float, device: str) -> bool:
    """Do a step, or go on with it; tell whether it came to its end in time."""
    (out / step.name).mkdir(parents=True, exist_ok=True)
    arguments = step.arguments(out, device, is_dry=is_dry)
    print(f"== {step.name}: {step.what}\n   python {shlex.join(arguments)}", flush=True)
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT)
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it leaves what the next call goes on from
        try:
            code = process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()  # its checkpoint is a minute old at most
            code = process.wait()
        how = "goes on" if step.is_resumable else "begins it anew"
        print(f"   {step.name} is not done yet; the next call {how}", flush=True)
        return False
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise InputError(
            f"{step.name} failed with exit code {code}; the other steps by their names"
        )
    done = {"seconds": round(time.monotonic() - begin, 1), "commit": commit()}
    done |= {"date": date.today().isoformat(), "hardware": describe(choose_device(device))}
    (out / step.name / "done.json").write_text(json.dumps(done, indent=1))
    return True


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def hardware(out: Path) -> str:
    facts = read(out / "done.json")["hardware"]
    return str(facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads")


def training(folder: Path) -> str:
    """Return the length of a run in words."""
    record = read(folder / "config.json")
    state, model = record["state"], record["settings"]["model"]
    rate = state["iterations"] / max(state["seconds"], 1e-9)
    return (
        f"{state['iterations']} steps in {state['seconds']:.0f} s ({rate:.2f}/s), "
        f"{model['base_channels']} channels"
    )


def em_line(figures: dict[str, float]) -> str:
    names = ("v_rand", "v_info", "pixel_error", "rand_error", "warping_error", "pixel_accuracy")
    words = ("V_rand", "V_info", "pixel error", "Rand", "warping", "accuracy")
    digits = (4, 4, 4, 4, 6, 4)
    found = zip(words, names, digits, strict=True)
    return ", ".join(f"{word} {figures[name]:.{n}f}" for word, name, n in found)


def em_rows(out: Path) -> list[list[str]]:
    record, result = read(out / "config.json"), read(out / "metrics.json")["heldout"]
    split = f"{record['data']['train_slices']}; {record['data']['heldout_slices']} held out"
    ours = em_line(result["figures"])
    return [[PAPER_EM, ours, split, training(out), record["command"]]]


def fold_rows(out: Path) -> list[list[str]]:
    found = read(out / "crossvalidation.json")
    figures = [fold["figures"] for fold in found["folds"]]
    spread = ", ".join(
        f"{word} {min(f[name] for f in figures):.4f} to {max(f[name] for f in figures):.4f}"
        for word, name in (
            ("V_rand", "v_rand"),
            ("V_info", "v_info"),
            ("pixel error", "pixel_error"),
        )
    )
    ours = f"{em_line(found['all']['figures'])}; folds: {spread}"
    one = read(out / "fold-1" / "config.json")
    split = f"each of {len(figures)} blocks by the other slices"
    return [[PAPER_EM, ours, split, f"each: {training(out / 'fold-1')}", one["command"]]]


def cell_rows(out: Path) -> list[list[str]]:
    cells, record = read(out / "metrics.json")["cells"], read(out / "config.json")
    published = cells["published"]
    figures = cells["figures"]
    ours = f"IOU {figures['iou']:.4f}, SEG {figures['seg']:.4f}"
    split = f"{cells['train_sequence']} ({cells['truth']}), {cells['test_sequence']}"
    paper = f"IOU {published:.4f}" if published else "–"
    return [[paper, ours, split, training(out), record["command"]]]


def speed_rows(out: Path) -> list[list[str]]:
    found = read(out / "speed.json")
    if "rows" in found:  # of training
        ours = "; ".join(
            f"{row['optimizer']} {1e3 / row['bfloat16_ms']:.2f} steps/s in bfloat16, "
            f"{row['ratio_bfloat16']:.2f} times the plain loop's"
            + (f", {row['peak_share']:.2f} of the matrix product" if "peak_share" in row else "")
            for row in found["rows"]
        )
        script = "train.py"
    else:
        size = found["settings"]["size"]
        ours = "; ".join(
            f"{name}: {size**2 / row['clock_s'] / 1e6:.2f} million px/s, "
            f"{row['times_faster_than_tiles']:.2f} times the tiles, "
            f"{row['times_faster_than_monai']:.2f} times MONAI, "
            f"{row['share_of_matrix_product']:.2f} of the matrix product"
            for name, row in found["ways"].items()
            if name.startswith("ours")
        )
        stack = min(found["stack"], key=lambda row: row["ratio"])
        ours += f"; a stack {stack['ratio']:.2f} times the bare network"
        script = f"predict.py --size {size}"
    return [["–", ours, "–", "–", f"python experiments/benchmarks/{script}"]]


def keep_weights(out: Path) -> list[Path]:
    """Write the weights of steps that are done in half precision, in parts of at most 15 MiB."""
    written: list[Path] = []
    for model in sorted(out.glob("*/model.safetensors")):
        target = out / "weights" / f"{model.parent.name}.safetensors"
        is_done = (model.parent / "done.json").exists()
        if not is_done or any(target.parent.glob(f"{target.name}*")):
            continue
        target.parent.mkdir(exist_ok=True)
        facts = read_metadata(model)["training"]
        save_model(load_model(model), target, training=facts, half=True)
        content = target.read_bytes()
        print(f"{target}: {len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")
        if len(content) <= PART_BYTES:
            written.append(target)
            continue
        target.unlink()
        for number, start in enumerate(range(0, len(content), PART_BYTES)):
            part = target.with_name(f"{target.name}.{number:02d}")
            part.write_bytes(content[start : start + PART_BYTES])
            written.append(part)
        print(f"  in parts: cat {target.name}.?? > {target.name}")
    return written


def table(todo: list[Step], out: Path) -> list[str]:
    """Return the lines for RESULTS.md of all that is done."""
    lines = []
    for step in todo:
        if (out / step.name / "done.json").exists():
            done = read(out / step.name / "done.json")
            lines += [
                f"| {step.what} | {paper} | {ours} | {split} | {length} | "
                f"{hardware(out / step.name)} | `{command}` | {done['commit']}, {done['date']} |"
                for paper, ours, split, length, command in step.rows(out / step.name)
            ]
    return lines


def call(arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    todo = steps()
    names = [step.name for step in todo]
    if unknown := set(arguments.names) - set(names):
        raise InputError(f"{sorted(unknown)[0]}: no such step; there are {', '.join(names)}")
    default = "results/gpu-dry-run" if arguments.dry_run else "results/gpu"
    out: Path = arguments.out or Path(default)
    device = "cpu" if arguments.dry_run else arguments.device
    open_ = [step for step in todo if not (out / step.name / "done.json").exists()]
    if arguments.list:
        for step in todo:
            mark = "to do" if step in open_ else "done"
            print(f"{mark:6} {step.minutes:4.0f} min  {step.name:15} {step.what}")
            words = step.arguments(out, device, is_dry=arguments.dry_run)
            print(f"{'':17}python {shlex.join(words)}")
        print(f"about {sum(step.minutes for step in open_):.0f} minutes left, nine a call")
        return 0
    if not arguments.dry_run and choose_device(device).type == "cpu":
        raise InputError("no GPU is here; --dry-run does it all in small on the CPU")
    for step in open_ if not arguments.names else [s for s in open_ if s.name in arguments.names]:
        left = arguments.call_s - GRACE_S - (time.monotonic() - begin)
        if left < GRACE_S or not (step.is_resumable or 60 * step.minutes <= left):
            break
        if step.name == "tests" and not find_spec("pytest"):
            print("== tests: pytest is not installed; pip install -e '.[test]'")
            continue
        if not run(step, out, is_dry=arguments.dry_run, limit_s=left, device=device):
            break
    keep_weights(out)
    left_over = [step.name for step in todo if not (out / step.name / "done.json").exists()]
    print("\n".join(["", *table(todo, out), ""]))
    print(f"left for further calls: {', '.join(left_over)}" if left_over else "all is done")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="steps to do; by default all")
    parser.add_argument("--list", action="store_true", help="say what there is to do, and stop")
    parser.add_argument("--dry-run", action="store_true", help="in small, on the CPU")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, xpu, ...")
    parser.add_argument("--out", type=Path, help="folder of all results")
    parser.add_argument(
        "--call-s", type=float, default=CALL_S, help="what a call may take, seconds"
    )
    arguments = parser.parse_args()
    return guarded(lambda: call(arguments))


if __name__ == "__main__":
    sys.exit(main())
