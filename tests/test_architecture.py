"""The layers: imports inside the package point one way, and its lower half needs no torch."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "unet_repro"
NO_TORCH = [
    *("config", "errors", "geometry", "quantities", "tiling", "weight_map", "nearest_cells"),
    *("phantom", "tissue", "stack_io", "image_files", "download", "metrics", "atomic"),
    *("network_cost", "resumable", "threads", "stack_reader", "tiff_output", "calibration"),
]


def imports(path: Path) -> set[str]:
    """Return the top-level modules of the package, or the libraries, that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "unet_repro":
                found |= {f"unet_repro.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def graph() -> dict[str, set[str]]:
    """Return the package's modules (a sub-package counts as one) and what each imports."""
    edges: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name != "__init__":
            inside = {i.split(".")[1] for i in imports(path) if i.startswith("unet_repro.")}
            edges[name] = edges.get(name, set()) | inside - {name}
    return edges


def test_imports_have_no_cycle():
    order = list(TopologicalSorter(graph()).static_order())
    assert order.index("config") < order.index("model") < order.index("train")
    assert order.index("train") < order.index("run") < order.index("cli")


@pytest.mark.parametrize("module", NO_TORCH)
def test_arrays_and_arithmetic_need_no_torch(module):
    edges = graph()
    pending, seen = [module], set()
    while pending:
        name = pending.pop()
        seen.add(name)
        pending += edges.get(name, set()) - seen
    for name in seen:
        files = [PACKAGE / f"{name}.py", *(PACKAGE / name).glob("*.py")]
        for path in filter(Path.exists, files):
            assert not any(i.split(".")[0] == "torch" for i in imports(path)), path.name


def test_prediction_knows_no_model_class():
    assert "model" not in graph()["predict"]
