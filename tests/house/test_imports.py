"""Imports point one way.

The graph is drawn from the source with ast, imports inside functions included: an edge that points up is
wrong wherever it is written. A new module has to be given its place in ROOMS.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import minigemm

ROOT = Path(minigemm.__file__).parent

# Bottom first. A module may import its own room and those before it.
ROOMS = (
    "store", "emulator", "types", "hopper", "torch_ops", "layout", "quantize", "checks", "compiler", "runtime",
    "kernels", "plan", "api", "machine", "verify", "views", "bench", "labs", "compat", "tour", "cli", "__main__",
)  # fmt: skip
# The rooms of the emulator, and its modules that belong to none.
EMULATOR_ROOMS = ("errors", "clusters", "context", "ptx", "translate", "watch", "machine", "launching")
RANK = {room: rank for rank, room in enumerate(ROOMS)}
EMULATOR_RANK = {room: rank for rank, room in enumerate(EMULATOR_ROOMS)}
MAY_USE_THE_PUBLIC_NAMES = {"verify", "bench", "views", "labs", "compat", "tour", "cli", "__main__"}
DOOR_LIMIT = 23  # torch_ops.py is beside the calls, which a reader of api.py looks for there


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(name: str, path: Path) -> set[str]:
    """Return the modules of minigemm that the file at `path` imports, the most specific ones that exist."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*start, *([base] if base else [])])
            submodules = {f"{base}.{alias.name}" for alias in node.names}
            found.update(target if target in MODULES else base for target in submodules)
    return {target for target in found if target.split(".")[0] == "minigemm"} - {name}


# The package itself only forwards names, lazily, so it is no part of the order; who may use it is checked
# below.
GRAPH = {name: imported(name, path) for name, path in MODULES.items() if name != "minigemm"}
EDGES = sorted((source, target) for source, targets in GRAPH.items() for target in targets)


def part(name: str) -> str:
    """Return the room: `compiler` of `minigemm.compiler.jit`, `api` of `minigemm.api`."""
    return name.split(".")[1]


def is_stage(name: str) -> bool:
    return name.startswith("minigemm.kernels.s") and name.split(".")[-1][1:3].isdigit()


def drawn(edges: list[tuple[str, str]]) -> str:
    return "\n".join(f"  {source} -> {target}" for source, target in edges)


def test_every_module_has_a_room() -> None:
    unplaced = sorted({part(name) for name in GRAPH} - RANK.keys())
    assert not unplaced, f"give {unplaced} a place in ROOMS"
    rooms = {name.split(".")[2] for name in GRAPH if name.startswith("minigemm.emulator.")}
    assert rooms == EMULATOR_RANK.keys()


def test_the_door_is_narrow() -> None:
    """A newcomer reads the folder before anything else."""
    ignored = {"__pycache__", "py.typed"}
    entries = sorted(path.name for path in ROOT.iterdir() if path.name not in ignored)
    assert len(entries) <= DOOR_LIMIT, entries


def test_no_circle() -> None:
    try:
        tuple(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail("imports run in a circle: " + " <- ".join(error.args[1]))


def test_imports_point_down() -> None:
    inside = [(s, t) for s, t in EDGES if t != "minigemm" and {part(s), part(t)} <= RANK.keys()]
    wrong = [edge for edge in inside if RANK[part(edge[0])] < RANK[part(edge[1])]]
    assert not wrong, f"these imports point up:\n{drawn(wrong)}"


def test_imports_point_down_inside_the_emulator() -> None:
    inside = [
        (s, t) for s, t in EDGES if s.startswith("minigemm.emulator.") and t.startswith("minigemm.emulator.")
    ]
    wrong = [(s, t) for s, t in inside if EMULATOR_RANK[s.split(".")[2]] < EMULATOR_RANK[t.split(".")[2]]]
    assert not wrong, f"these imports point up:\n{drawn(wrong)}"


def test_the_emulator_stands_alone() -> None:
    wrong = [(s, t) for s, t in EDGES if part(s) == "emulator" and part(t) not in ("emulator", "store")]
    assert not wrong, f"the emulator imports more of minigemm than the store:\n{drawn(wrong)}"


def test_stages_never_import_each_other() -> None:
    wrong = [(s, t) for s, t in EDGES if is_stage(t) and (is_stage(s) or s == "minigemm.kernels.stage")]
    assert not wrong, f"stages import each other:\n{drawn(wrong)}"


def test_no_module_imports_the_public_names() -> None:
    """A module takes a name from where it lives; through the package, a circle would hide."""
    wrong = [(s, t) for s, t in EDGES if t == "minigemm" and part(s) not in MAY_USE_THE_PUBLIC_NAMES]
    assert not wrong, f"import these names from where they live:\n{drawn(wrong)}"


def test_importing_minigemm_is_cheap() -> None:
    code = "import sys, minigemm; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert "minigemm" in loaded
    assert not loaded & {"torch", "numpy", "numba", "llvmlite", "cuda", "rich"}
    assert not [name for name in loaded if name.startswith("minigemm.")]


@pytest.mark.parametrize("name", minigemm.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(minigemm, name) is not None
    assert name in dir(minigemm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        minigemm.nothing  # noqa: B018
