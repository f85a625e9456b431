"""The labs' notebooks: student's and solution are what their source gives, nothing of a solution leaks, and
both run on a CPU."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path

import pytest

from minigemm import labs

pytest.importorskip(
    "jupytext", reason="the labs' notebooks need jupytext and nbclient, which `make test` installs"
)
import nbformat

ROOT = Path(__file__).parents[2]
LAB = labs.PIPELINE
POINTS = {criterion.name: criterion.points for criterion in LAB.criteria}
_spec = importlib.util.spec_from_file_location("notebooks_build", ROOT / "notebooks" / "build.py")
assert _spec and _spec.loader
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
NAMES = build.labs()


def committed(name: str, solution: bool) -> nbformat.NotebookNode:
    return nbformat.read(build.LABS / ("solutions" if solution else "") / f"{name}.ipynb", as_version=4)


def test_every_source_has_its_two_notebooks():
    for folder in (build.LABS, build.LABS / "solutions"):
        assert NAMES and sorted(path.stem for path in folder.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("solution", [False, True], ids=["student", "solution"])
@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_source_gives(name, solution):
    made, kept = build.lab(name, solution), committed(name, solution)
    assert [(c.cell_type, c.source, c.metadata) for c in made.cells] == [
        (c.cell_type, c.source, c.metadata) for c in kept.cells
    ], "run: python notebooks/build.py " + name
    assert solution or not any(cell.get("outputs") or cell.get("execution_count") for cell in kept.cells), (
        "the student's copy is clean"
    )
    assert not any(output.output_type == "error" for cell in kept.cells for output in cell.get("outputs", []))
    nbformat.validate(kept)


@pytest.mark.parametrize("name", NAMES)
def test_the_student_s_copy_holds_no_solution(name):
    student, solution = (
        "\n".join(cell.source for cell in committed(name, kind).cells) for kind in (False, True)
    )
    source = (build.LABS / "source" / f"{name}.py").read_text(encoding="utf-8")
    hidden = re.findall(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", source, re.DOTALL)
    solved = re.findall(r"# BEGIN SOLUTION[^\n]*\n(.*?)# END SOLUTION", source, re.DOTALL)
    assert hidden and solved
    for part in (*hidden, *solved):
        assert part.strip() in solution and part.strip() not in student
    assert (
        not any(word in student for word in ("HIDDEN", "SOLUTION", "labs.solve", "__global__"))
        and "BEGIN SOLUTION" not in solution
    )


@pytest.mark.parametrize("name", NAMES)
def test_both_copies_name_their_cells_alike(name):
    """nbgrader puts the instructor's locked cells in place of the student's by these names."""
    student, solution = ({cell.id: cell for cell in committed(name, kind).cells} for kind in (False, True))
    assert [key for key in solution if key in student] == list(student)
    for key, cell in student.items():
        if cell.metadata["nbgrader"]["locked"] and "### BEGIN HIDDEN TESTS" not in solution[key].source:
            assert cell.source == solution[key].source
    assert [solution[key].source for key in solution.keys() - student.keys()] == ["labs.solve(path, lab)"]


@pytest.mark.parametrize("name", NAMES)
def test_nbgrader_metadata_and_points(name):
    for solution in (False, True):
        cells = [cell.metadata["nbgrader"] for cell in committed(name, solution).cells]
        assert len({cell["grade_id"] for cell in cells}) == len(cells)
        assert all(cell["locked"] != cell["solution"] and cell["schema_version"] == 3 for cell in cells)
        points = {cell["grade_id"]: cell["points"] for cell in cells if cell["grade"]}
        assert points.pop("test-result") == POINTS["compiles"] + POINTS["result"]
        assert {key: value for key, value in points.items() if key.removeprefix("test-") in POINTS} == {
            f"test-{key}": value for key, value in POINTS.items() if key not in ("compiles", "result")
        }
        head = committed(name, solution).cells[0].source
        plan = sum(value for key, value in points.items() if key.removeprefix("test-") not in POINTS)
        assert f"{plan} for the plan, {LAB.points} for the kernel" in " ".join(head.split())


@pytest.mark.parametrize("name", NAMES)
def test_house_rules(name):
    cells = committed(name, False).cells
    between = 0
    for number, cell in enumerate(cells):
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert len(cell.source.splitlines()) <= 40
            between = 0
        elif number and any(later.cell_type == "code" for later in cells[number:]):
            between += len(re.sub(r"<details>.*?</details>", "", cell.source, flags=re.DOTALL).split())
            assert between <= 100, f"cell {number}: {between} words without a cell to run"
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    for words in (
        "You will be able to",
        "You need to know",
        "minutes",
        "CPU",
        "minigemm/",
        "## Recap",
        "## Quiz",
        "## Exercises",
        "## Further reading",
        "Next:",
    ):
        assert words in prose


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_solution_runs_from_top_to_bottom(name):
    before = os.times()
    build.run_lab(build.lab(name, solution=True), timeout=240)
    after = os.times()  # of the processor: what else runs on the machine does not count
    assert after.children_user - before.children_user < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_student_s_copy_stops_only_at_what_is_still_to_do(name):
    notebook = build.lab(name, solution=False)
    build.run_lab(notebook, allow_errors=True)
    errors = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    assert len(errors) >= 3 and all(
        error.ename in ("NotImplementedError", "StillToDo") and error.evalue.startswith("Still to do")
        for error in errors
    )
