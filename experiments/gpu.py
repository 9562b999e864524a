"""All that a GPU is for: the paper's own recipe, six folds, both cell data sets, speed, weights.

    bash experiments/gpu.sh [--list] [--dry-run] [NAME ...]

One call takes nine minutes at most and does the steps that are not done yet, in their order.
Trainings run side by side, for a step of one keeps a large card busy for a fraction of its time;
what measures speed runs alone. Training that does not fit is stopped, and the next call goes on
with it: call again until all is done. Every call ends with the lines for the table of RESULTS.md.
--dry-run does the same in small, on the CPU and on synthetic data, into a folder of its own.
Without a network, put the data sets into data/*/raw or a folder that UNET_REPRO_DATA names, and let
UNET_REPRO_PYTHON name a Python that has what setup.cfg lists; MONAI is compared with where it is
there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
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
from unet_repro.program import guarded

ROOT = Path(__file__).resolve().parents[1]
CALL_S = 540.0
GRACE_S = 30.0  # for steps that are told to stop
POLL_S = 0.2
DONE = "done.json"  # in a step's folder
PART_BYTES = 15 * 2**20  # of a file with weights
SMALL = (  # besides a step's own options, in a dry run
    *("--data", "phantom", "--base-channels", "2", "--tile", "188", "--average", "none"),
    *("--precision", "float32", "--time-budget", "4s"),
)
PAPER_EM = "V_rand 0.9728, V_info 0.9866, pixel error 0.0611, Rand 0.0382, warping 0.000353"
FOLDS = tuple(f"{start}:{start + 5}" for start in range(0, 30, 5))
EM = "experiments/em_challenge.py"
LITERAL = ("--preset", "paper", "--precision", "bfloat16")
BEST = ("--preset", "quick", "--base-channels", "64", "--learning-rate", "4e-4")
QUICK = ("--preset", "quick", "--iterations", "5000")  # as long as two cores need ten minutes for
ROBUST = ("--preset", "robust", "--iterations")
SELDOM = ("--validate-every", "2500")  # it costs more than so many steps


@dataclass(frozen=True)
class Step:
    """A command, how long it takes, and what to say of its results."""

    name: str
    what: str
    minutes: float  # estimated, alone; of training, and what follows
    command: tuple[str, ...]  # of Python, in the project's folder; RESULTS is that of all steps
    small: tuple[str, ...]  # the same in a dry run
    result: str = ""  # what --out names, below the step's folder
    is_alone: bool = False  # nothing runs beside it, and stopped it begins anew
    after: tuple[str, ...] = ()  # steps whose results it needs
    rows: Callable[[Path], list[list[str]]] = lambda out: []  # cells of the table

    def arguments(self, out: Path, device: str, *, is_dry: bool) -> list[str]:
        """Return what Python is started with."""
        results = str(out.resolve())
        words = [w.replace("RESULTS", results) for w in (self.small if is_dry else self.command)]
        if self.result:
            place = (out / self.name / self.result).resolve()
            words += ["--device", device, "--out", str(place)]
        return words


def job(
    name: str,
    what: str,
    minutes: float,
    *command: str,
    after: tuple[str, ...] = (),
    rows: Callable[[Path], list[list[str]]] = lambda out: [],
) -> Step:
    return Step(name, what, minutes, command, (*command, *SMALL), ".", after=after, rows=rows)


def literal(iterations: int, minutes: float) -> Step:
    what = f"EM, the paper's recipe, {iterations} steps, slices 25-29 held out"
    length = ("--iterations", str(iterations))
    return job(
        *(f"em-paper-{iterations}", what, minutes, EM, *LITERAL, *length, *SELDOM), rows=em_rows
    )


def folds(name: str, what: str, minutes: float, *recipe: str) -> list[Step]:
    """Return a step for each held-out block, and the one that scores all slices together."""
    names = tuple(f"{name}/fold-{number}" for number in range(1, len(FOLDS) + 1))
    parts = [
        job(part, f"{what}, slices {val} held out", minutes, EM, *recipe, *SELDOM, "--val", val)
        for part, val in zip(names, FOLDS, strict=True)
    ]
    count = ("--folds", str(len(FOLDS)))
    all_ = job(
        *(name, f"{what}, six folds", 1, EM, *recipe, *SELDOM, *count), after=names, rows=fold_rows
    )
    return [*parts, all_]


def cell(script: str, title: str, sequence: str, truth: str) -> Step:
    return job(
        f"{script}-{sequence}-{truth}",
        f"{title}, trained on {sequence} ({truth}), scored on the other",
        4,
        *(f"experiments/{script}.py", "--train-sequence", sequence, "--truth", truth),
        *(*BEST, "--iterations", "10000", *SELDOM),
        rows=cell_rows,
    )


def speed(name: str, what: str, minutes: float, script: str, *options: str) -> Step:
    command = (f"experiments/benchmarks/{script}.py",)
    files = ((*command, *options), (*command, "--quick"), "speed.json")
    return Step(name, what, minutes, *files, is_alone=True, rows=speed_rows)


def steps() -> list[Step]:
    """Return what is to be done, in the order of its worth."""
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu")
    marked = ("augmentation", "network", "prediction", "training", "test_device_path.py")
    small = (*tests[:5], "tests/network/test_device.py")
    files = (f"tests/{name}" for name in marked)
    long = ("--iterations", "10000")
    return [
        speed(
            *("speed-training", "training, 64 channels, tiles of 572 px", 1, "train"),
            *("--base-channels", "64", "--tile", "572", "--steps", "100"),
        ),
        speed("speed-512", "prediction, 512 x 512 px, and a stack", 1, "predict", "--size", "512"),
        speed("speed-4096", "prediction, 4096 x 4096 px", 2, "predict", "--size", "4096"),
        Step("tests", "the tests marked gpu", 2, (*tests, *files), small),
        *(literal(n, n / 6000 + 0.5) for n in (30_000, 15_000, 10_000, 5_000, 2_000)),
        *folds("em-best", "EM, the default recipe at 64 channels", 3, *BEST, *long),
        job(
            *("em-best-32", "EM, the default recipe at 32 channels, slices 25-29 held out", 3),
            *(EM, *BEST, "--base-channels", "32", "--learning-rate", "6e-4", *long, *SELDOM),
            rows=em_rows,
        ),
        *(
            cell(*data, sequence, truth)
            for data in (("phc_u373", "PhC-U373"), ("dic_hela", "DIC-HeLa"))
            for truth in ("gold", "silver")
            for sequence in ("01", "02")
        ),
        *folds("em-default", "EM, the default job", 2, *QUICK),
        *(
            job(
                *(f"em-default-seed-{seed}", f"EM, the default job, seed {seed}", 2),
                *(EM, *QUICK, *SELDOM, "--seed", str(seed)),
                rows=em_rows,
            )
            for seed in (1, 2)
        ),
        *folds("em-robust", "EM, the recipe of em", 6, *ROBUST, "20000"),
        Step(
            *("em-robust-changed", "EM, the recipe of em, held-out slices changed in nine ways", 2),
            ("experiments/robustness.py", "RESULTS/em-robust"),
            ("experiments/robustness.py", "RESULTS/em-robust", *SMALL[:2], "--ways", "gamma 1.5"),
            "changed.json",
            after=("em-robust",),
        ),
        Step(
            *("em-pretrained", "the network em", 6),
            ("experiments/pretrained_em.py",),
            ("-c", ""),  # it takes real slices alone
            ".",
        ),
        *folds("em-robust-5000", "EM, a quarter of the recipe of em", 2, *ROBUST, "5000"),
    ]


class Calls:
    """The processes of one call: steps side by side, and an end that leaves what can go on."""

    def __init__(self, out: Path, *, is_dry: bool, device: str, at_once: int) -> None:
        self.out, self.is_dry, self.device, self.at_once = out, is_dry, device, at_once
        self.running: dict[Step, subprocess.Popen] = {}
        self.begun: dict[Step, float] = {}
        self.failed: list[str] = []
        threads = str(max(1, (os.cpu_count() or 1) // at_once))
        self.environment = {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, **os.environ}

    def run(self, open_: list[Step], until: float) -> None:
        """Do steps until all are done or the clock says so; then stop what still runs."""
        todo = list(open_)
        try:
            while (todo or self.running) and time.monotonic() < until:
                for step in [step for step in todo if self._may_start(step, until)]:
                    if self._has_room(step):
                        todo.remove(step)
                        self._start(step)
                if not self.running:
                    return  # nothing more fits
                time.sleep(POLL_S)
                self._reap()
        finally:
            self._stop()

    def _may_start(self, step: Step, until: float) -> bool:
        if not all(is_done(self.out / name) for name in step.after):
            return False
        needed = 60 * step.minutes if step.is_alone else GRACE_S
        return self.is_dry or until - time.monotonic() >= needed

    def _has_room(self, step: Step) -> bool:
        if step.is_alone:
            return not self.running
        return len(self.running) < self.at_once and not any(s.is_alone for s in self.running)

    def _start(self, step: Step) -> None:
        folder = self.out / step.name
        folder.mkdir(parents=True, exist_ok=True)
        words = step.arguments(self.out, self.device, is_dry=self.is_dry)
        print(f"== {step.name}: {step.what}\n   python {shlex.join(words)}", flush=True)
        environment = dict(os.environ) if step.is_alone else self.environment
        with (folder / "output.txt").open("ab") as output:
            self.running[step] = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us, who stop it once
            )
        self.begun[step] = time.monotonic()

    def _reap(self, *, is_told: bool = False) -> None:
        for step, process in list(self.running.items()):
            code = process.poll()
            if code is None:
                continue
            del self.running[step]
            seconds = time.monotonic() - self.begun[step]
            if code and is_told:
                how = "begins it anew" if step.is_alone else "goes on"
                print(f"   {step.name} is not done yet; the next call {how}", flush=True)
            elif code:
                self.failed.append(step.name)
                print(f"   {step.name} failed with exit code {code}:\n{self._end(step)}")
            else:
                self._write_done(step, seconds)
                print(f"   {step.name} is done ({seconds:.0f} s)", flush=True)

    def _end(self, step: Step) -> str:
        text = (self.out / step.name / "output.txt").read_text(errors="replace")
        return "\n".join(text.replace("\r", "\n").splitlines()[-12:])

    def _write_done(self, step: Step, seconds: float) -> None:
        facts = {"seconds": round(seconds, 1), "commit": commit()}
        facts |= {"date": date.today().isoformat()}
        facts |= {"hardware": describe(choose_device(self.device))}
        (self.out / step.name / DONE).write_text(json.dumps(facts, indent=1))

    def _stop(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGINT)  # it leaves what the next call goes on from
        limit = time.monotonic() + GRACE_S
        for process in self.running.values():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()  # its checkpoint is a minute old at most
                process.wait()
        self._reap(is_told=True)


def is_done(folder: Path) -> bool:
    return (folder / DONE).exists()


def commit() -> str:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def hardware(out: Path) -> str:
    facts = read(out / DONE)["hardware"]
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


def training_speed(row: dict[str, Any]) -> str:
    precision = row["precisions"][-1]  # bfloat16 where it is not emulated
    words = (
        f"{row['optimizer']} {1e3 / row[f'{precision}_ms']:.2f} steps/s in {precision}, "
        f"{row[f'ratio_{precision}']:.2f} times the plain loop's"
    )
    share = row.get("peak_share")
    return words + (f", {share:.3f} of the matrix product" if share else "")


def speed_rows(out: Path) -> list[list[str]]:
    found = read(out / "speed.json")
    if "rows" in found:  # of training
        ours = "; ".join(training_speed(row) for row in found["rows"])
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
        if not is_done(model.parent) or any(target.parent.glob(f"{target.name}*")):
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
        if is_done(out / step.name):
            done = read(out / step.name / DONE)
            lines += [
                f"| {step.what} | {paper} | {ours} | {split} | {length} | "
                f"{hardware(out / step.name)} | `{command}` ({done['commit']}, {done['date']}) |"
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
    open_ = [step for step in todo if not is_done(out / step.name)]
    if arguments.list:
        for step in todo:
            mark = "to do" if step in open_ else "done"
            print(f"{mark:6} {step.minutes:4.0f} min  {step.name:20} {step.what}")
            words = step.arguments(out, device, is_dry=arguments.dry_run)
            print(f"{'':17}python {shlex.join(words)}")
        print(f"about {sum(step.minutes for step in open_):.0f} minutes left, nine a call")
        return 0
    if not arguments.dry_run and choose_device(device).type == "cpu":
        raise InputError("no GPU is here; --dry-run does it all in small on the CPU")
    chosen = [step for step in open_ if not arguments.names or step.name in arguments.names]
    if not find_spec("pytest"):
        print("== tests: pytest is not installed; pip install -e '.[test]'")
        chosen = [step for step in chosen if step.name != "tests"]
    calls = Calls(out, is_dry=arguments.dry_run, device=device, at_once=arguments.at_once)
    calls.run(chosen, begin + arguments.call_s - GRACE_S)
    keep_weights(out)
    left_over = [step.name for step in todo if not is_done(out / step.name)]
    print("\n".join(["", *table(todo, out), ""]))
    print(f"left for further calls: {', '.join(left_over)}" if left_over else "all is done")
    if calls.failed:
        raise InputError(
            f"{', '.join(calls.failed)} failed: output.txt in its folder says why; "
            "the next call tries it again"
        )
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
    parser.add_argument("--at-once", type=int, default=12, help="trainings side by side, at most")
    arguments = parser.parse_args()
    return guarded(lambda: call(arguments))


if __name__ == "__main__":
    sys.exit(main())
