"""The house's own laws, read from its source: who imports whom, what may be exported, how long anything is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bsconv_nas

ROOT = Path(bsconv_nas.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sorted(FILES.items())}

# Rooms from the ground up: a module imports what stands on a line before its own, or on its own without a cycle.
FLOORS = (
    "errors",
    "decompositions",
    "space.places",
    "space.base space.graph space.table",
    "cost.analytic",
    "cost.budget cost.latency_units cost.latency",
    "space training.laws training.recipe training.spec network",
    "space.sampling space.summary",
    "training export cost.latency_measure",
    "check",
    "search.record",
    "search.table_sampler search.variation search.additive search.evolution search.stratified search.uniform",
    "search.checkpoint search.environment search.experiment search.mirror search.pick search.samplers search.proposer "
    "search.fatal_signals search.ray_schedulers search.scheduler search.storage",
    "search.calibration search.store search.status",
    "report",
    "search api card run show analyze calibrate doctor latency cli __init__",  # these compose
)
TORCH = (
    "space.trace",
    "cost.latency_measure",
    "network",
    "training",
    "export",
    "api",
    "run",
    "card",
    "analyze",
)
TORCH += tuple(
    f"search.{name}"
    for name in ("checkpoint", "trial", "own_trial", "worker", "tuning", "runner", "retrain", "cluster", "inheritance")
)
TORCH += ("check", "search.gpus", "search.machines", "search.measure")
COMPOSES_TORCH = ("search.driver", "search.verdict")  # what they import does
RAY = ("search.runner", "search.cluster", "search.tuning", "search.worker", "search.gpus", "search.shared", "doctor")
RAY += ("search.ray_schedulers",)
OPTUNA = ("search.table_sampler", "search.samplers", "search.proposer", "search.mirror", "report.importance")
BARE = ("network", "training", "cost.latency_measure")  # these run where nothing but PyTorch is installed


def within(name: str, rooms: tuple[str, ...]) -> bool:
    """Whether a module is one of `rooms`, inside one, or a neighbour whose name begins with one and `_`."""
    return any(name == room or name.startswith((f"{room}.", f"{room}_")) for room in rooms)


def imports(name: str) -> Iterator[str]:
    """Every module that a module needs, at whatever depth of its code: ours without the package's name."""
    typing_only = (n for n in ast.walk(TREES[name]) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    left_out = {inner for block in typing_only for inner in ast.walk(block)}
    for node in (n for n in ast.walk(TREES[name]) if n not in left_out):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("bsconv_nas.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            module = (node.module or "").removeprefix("bsconv_nas").removeprefix(".")
            inner = [f"{module}.{alias.name}".removeprefix(".") for alias in node.names]
            ours = (node.module or "").startswith("bsconv_nas")
            yield from (path if path in TREES else module for path in inner) if ours else [module]


def floor(name: str) -> int:
    """The line of a module: that of the longest room which it is in."""
    found = [(len(room), i) for i, line in enumerate(FLOORS) for room in line.split() if within(name, (room,))]
    assert found, f"{name} stands in no room of the house"
    return max(found)[1]


def test_imports_point_down() -> None:
    graph = {name: {found for found in imports(name) if found in TREES} for name in TREES if name != "__init__"}
    up = [(name, found) for name in graph for found in graph[name] if floor(found) > floor(name)]
    assert not up
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [("torch", TORCH), ("torchvision", TORCH), ("safetensors", TORCH), ("ray", RAY), ("optuna", OPTUNA)],
)
def test_a_library_stays_in_its_rooms(library: str, allowed: tuple[str, ...]) -> None:
    strays = [name for name in TREES if library in {found.partition(".")[0] for found in imports(name)}]
    assert not [name for name in strays if not within(name, allowed)]


@pytest.mark.parametrize("library", ["ray", "optuna", "pydantic", "pandas", "plotly"])
def test_the_bare_rooms_need_nothing_but_pytorch(library: str) -> None:
    """Neither themselves nor what they import."""
    pending, seen = {name for name in TREES if within(name, BARE)}, set[str]()
    while pending:
        name = pending.pop()
        seen.add(name)
        found = set(imports(name))
        assert library not in {module.partition(".")[0] for module in found}, name
        pending |= (found & TREES.keys()) - seen


def test_what_must_not_need_torch_does_not() -> None:
    """In a process of its own, whatever else is imported on the way."""
    modules = [f"bsconv_nas.{name}" for name in TREES if not within(name, (*TORCH, *RAY, *COMPOSES_TORCH, "__init__"))]
    rest = ["bsconv_nas", "bsconv_nas.api", "bsconv_nas.training.spec", "bsconv_nas.training.recipe"]
    code = "import sys\nfor name in sys.argv[1:]: __import__(name)\nassert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code, *modules, *rest], check=True, timeout=120)


def test_torchvision_is_imported_where_it_is_used() -> None:
    """At nobody's top: it takes as long to import as torch, and every process that drives or trains would."""
    tops = {name: [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)] for name, tree in TREES.items()}
    assert not [name for name, found in tops.items() if any("torchvision" in ast.unparse(node) for node in found)]


def test_the_package_itself_is_imported_at_once() -> None:
    code = "import sys, bsconv_nas\nassert not {'torch', 'numpy', 'pandas', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


@pytest.mark.parametrize("name", TREES)
def test_exports_are_there_and_sorted(name: str) -> None:
    names = exported(TREES[name])
    if names is None:
        assert FILES[name].name in ("__init__.py", "__main__.py", "clean_process.py"), "a module says what it exports"
        return
    assert set(names) <= set(defined(TREES[name]))
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda n: (not n.isupper(), n[0].islower(), n)) or names == sorted(names)


def test_the_public_names_can_be_had() -> None:
    assert bsconv_nas.__all__ == sorted(bsconv_nas.__all__) == dir(bsconv_nas)
    for name in bsconv_nas.__all__:
        assert getattr(bsconv_nas, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'serach'"):
        _ = bsconv_nas.serach


@pytest.mark.parametrize("name", TREES)
def test_nothing_is_long(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name


def test_most_functions_are_short() -> None:
    functions = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    assert lengths[len(lengths) // 2] <= 10
