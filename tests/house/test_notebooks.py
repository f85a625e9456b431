"""The lessons: each notebook is what its source gives, keeps the house rules, and runs from top to bottom on
a CPU."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the lessons need jupytext and nbclient, which `make test` installs")
import nbformat

FOLDER = Path(__file__).parents[2] / "notebooks"
_spec = importlib.util.spec_from_file_location("notebooks_build", FOLDER / "build.py")
assert _spec and _spec.loader
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)

NAMES = build.names()
KINDS = {"image/png", "text/html"}  # what a reader sees without running anything
SECONDS = 90


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def kinds(cell: nbformat.NotebookNode) -> set[str]:
    return {kind for output in cell.get("outputs", []) for kind in output.get("data", {})} & KINDS


def test_every_source_has_its_notebook_and_every_notebook_its_source():
    assert NAMES and sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_source_gives(name):
    made, kept = build.unrun(name), committed(name)
    assert [(c.cell_type, c.source) for c in made.cells] == [(c.cell_type, c.source) for c in kept.cells], (
        "run: python notebooks/build.py " + name
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(4 * SECONDS)
def test_runs_from_top_to_bottom(name):
    made, kept = build.unrun(name), committed(name)
    before = os.times()
    build.run(made, timeout=4 * SECONDS)
    after = os.times()  # of the processor: what else runs on the machine does not count
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < seconds < SECONDS, f"{name} took {seconds:.0f} s"
    for number, (now, then) in enumerate(zip(made.cells, kept.cells, strict=True)):
        assert kinds(now) == kinds(then), (
            f"cell {number} shows something else than what is committed: {now.source}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_house_rules(name):
    cells = committed(name).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for cell in code:
        assert len(cell.source.splitlines()) <= (
            40 if not cell.source.startswith("%%writefile") else 10**6
        ), cell.source
        assert not any(output.output_type == "error" for output in cell.outputs), cell.source
        assert "__global__" not in cell.source, "kernels live in the package"
    between = 0
    for number, cell in enumerate(cells):
        shown = (
            re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL)
            if cell.cell_type == "markdown"
            else ""
        )
        between = between + len(shown.split()) if shown else 0
        header = number == 0 or any(c.cell_type == "code" for c in cells[:number]) is False
        footer = all(c.cell_type == "markdown" for c in cells[number:])
        assert header or footer or between <= 100, (
            f"cell {number}: {between} words without a picture or a cell to run"
        )
    head, foot = prose[0], "\n".join(prose[-3:])
    for word in ("You will be able to", "You need to know", "minutes", "CPU", "minigemm/"):
        assert word in head, f"the header says nothing of {word!r}"
    for word in ("## Recap", "## Quiz", "<details>", "## Exercises", "## Further reading", "Next:"):
        assert word in foot, f"the footer has no {word!r}"
    assert sum(bool(kinds(cell)) for cell in code) >= 3, "a lesson shows pictures"
    for link in re.findall(r"\]\(([^)#\s]+)\)", "\n".join(prose)):
        assert "://" in link or (FOLDER / link).exists(), f"{link} leads nowhere"
