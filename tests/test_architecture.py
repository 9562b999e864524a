"""The house: imports run one way, between packages and inside them; half of it needs no torch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unet_repro"
FLOORS = (  # from the ground up: each may import from those before it
    *("_version", "errors", "choices", "quantities", "threads", "progress", "cluster", "config"),
    *("files", "images", "metrics", "network", "weight_maps", "augmentation"),
    *(
        "prediction",
        "training",
        "reports",
        "program",
        "training_run",
        "challenges",
        "bridges",
        "commands",
        "cli",
        "__main__",
    ),
)
NO_TORCH = (
    *("config", "threads", "files", "images", "metrics", "weight_maps", "reports.comparison"),
    *("network.geometry", "network.cost", "prediction.tiling", "prediction.instances"),
    *("challenges.download", "challenges.phantom", "challenges.tissue", "challenges.ctc"),
)


def name_of(path: Path) -> str:
    """Return a module's name below the package: "files.atomic", or "files" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
MODULES |= {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def imported(path: Path) -> set[str]:
    """Return the full names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports hide where they lead"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {n for n in names if n.removeprefix("unet_repro.") in MODULES}
            found |= submodules if len(submodules) == len(names) else {node.module, *submodules}
    return found


def inside(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    names = {name.removeprefix("unet_repro.") for name in imported(path)}
    return {name for name in names if name in MODULES}


GRAPH = {name: inside(path) - {name} for name, path in MODULES.items()}


def reached(module: str) -> set[str]:
    """Return what a module leads to, directly or not."""
    pending, seen = [module], set()
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending += GRAPH.get(name, ())
    return seen


def floor(module: str) -> int:
    return FLOORS.index(module.partition(".")[0])


def test_every_module_has_a_floor():
    assert {name.partition(".")[0] for name in GRAPH} == set(FLOORS)


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_lead_to_the_same_floor_or_below(module):
    above = {name for name in reached(module) if floor(name) > floor(module)}
    assert not above


def test_no_module_imports_itself_through_others():
    order = list(TopologicalSorter(GRAPH).static_order())  # raises where there is a circle
    assert order.index("network.geometry") < order.index("prediction.tiling")


@pytest.mark.parametrize("place", NO_TORCH)
def test_arrays_and_arithmetic_need_no_torch(place):
    starts = [name for name in GRAPH if name == place or name.startswith(f"{place}.")]
    assert starts
    for name in set().union(*map(reached, starts)):
        libraries = {library.partition(".")[0] for library in imported(MODULES[name])}
        assert not libraries & {"torch", "safetensors"}, name


def test_the_package_itself_loads_no_torch_and_gives_all_its_names():
    program = """
import sys
import unet_repro
assert not {"torch", "numba", "scipy"} & sys.modules.keys(), sorted(sys.modules)
assert set(unet_repro.__all__) == {*unet_repro._MODULES, "__version__"}
for name in unet_repro._MODULES:
    assert getattr(unet_repro, name).__module__.startswith("unet_repro")
assert unet_repro.metrics.em_challenge_metrics is unet_repro.em_challenge_metrics
assert not hasattr(unet_repro, "no_such_name")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_command_line_loads_no_library_that_only_commands_need():
    program = """
import sys
import unet_repro.cli
found = {name.partition(".")[0] for name in sys.modules}
heavy = {"torch", "numpy", "scipy", "numba", "zarr", "matplotlib", "tifffile", "imagecodecs"}
assert not heavy & found, sorted(heavy & found)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_prediction_in_memory_knows_no_model_class():
    assert "network.model" not in GRAPH["prediction.predictor"]


def test_every_package_says_what_it_is_for():
    for path in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_module_is_a_drawer():
    assert not {name.rpartition(".")[2] for name in GRAPH} & {"utils", "helpers", "common", "misc"}
