"""Notebooks from their sources: `python notebooks/build.py [NAME...]` makes NAME.ipynb of
source/NAME.py, runs it on the CPU and keeps its outputs.

A source is Python in percent format: `# %%` begins a cell of code, `# %% [markdown]` one of prose.
Edit the source, never the notebook.

A lab's source, labs/source/NAME.py, gives two notebooks. labs/NAME.ipynb is for students, without
solutions, hidden tests and outputs. labs/solutions/NAME.ipynb is run. Solutions stand between the
marks of `minigemm.labs.marks`. In a cell's header,

    # %% answer="ring"               is a cell that the student fills in,
    # %% test="ring" points=4        one that grades it; lines between ### BEGIN HIDDEN TESTS and
                                     ### END HIDDEN TESTS are the instructor's alone,
    # %% solution_only=true          one that only the solution has.

Every other cell is locked. nbgrader reads all of this from the cells' metadata.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from minigemm.labs import marks
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCES = HERE / "source"
LABS = HERE / "labs"
_HIDDEN = re.compile(
    r"^### BEGIN HIDDEN TESTS\n.*?^### END HIDDEN TESTS\n?", re.MULTILINE | re.DOTALL
)
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def names() -> list[str]:
    """List every lesson, in the order of the course."""
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def unrun(name: str) -> nbformat.NotebookNode:
    """Make the notebook of a source, without outputs; equal sources give equal notebooks."""
    notebook = jupytext.read(SOURCES / f"{name}.py", fmt="py:percent")
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def labs() -> list[str]:
    """List every lab, in the order of the course."""
    return sorted(path.stem for path in (LABS / "source").glob("*.py"))


def lab(name: str, solution: bool) -> nbformat.NotebookNode:
    """Make a lab's notebook without outputs: the instructor's, or the student's."""
    notebook = jupytext.read(LABS / "source" / f"{name}.py", fmt="py:percent")
    notebook.metadata = nbformat.from_dict(KERNEL)

    # Cells are numbered before some are left out: nbgrader finds a student's cell in the
    # instructor's notebook by its name.
    numbered = [
        (number, cell)
        for number, cell in enumerate(notebook.cells)
        if solution or not cell.metadata.get("solution_only")
    ]
    notebook.cells = [cell for _, cell in numbered]
    for number, cell in numbered:
        answer, test = cell.metadata.get("answer"), cell.metadata.get("test")
        if cell.cell_type == "code" and solution:
            cell.source = marks.solution(cell.source)
        elif cell.cell_type == "code":
            cell.source = _HIDDEN.sub("", marks.student(cell.source)).rstrip()
        own = f"test-{test}" if test else f"cell-{number}"
        grading = {
            "grade": test is not None,
            "solution": answer is not None,
            "locked": answer is None,
            "task": False,
            "schema_version": 3,
            "grade_id": f"answer-{answer}" if answer else own,
            "cell_type": cell.cell_type,
        }
        if test:
            grading["points"] = cell.metadata["points"]
        cell.id = grading["grade_id"]
        cell.metadata = nbformat.from_dict({"nbgrader": grading})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def run_lab(
    notebook: nbformat.NotebookNode, timeout: int = 60, allow_errors: bool = False
) -> float:
    """Run a lab's notebook in a folder of its own, where its scratch files stay behind.

    Returns the seconds that it took.
    """
    kept = [nbformat.from_dict(cell.metadata) for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as folder:
        seconds = run(notebook, timeout, Path(folder), allow_errors)
    for cell, metadata in zip(notebook.cells, kept, strict=True):
        cell.metadata = metadata
    return seconds


def run(
    notebook: nbformat.NotebookNode,
    timeout: int = 90,
    folder: Path = HERE,
    allow_errors: bool = False,
) -> float:
    """Run a notebook from top to bottom as the folder's reader would. Returns the seconds that it
    took.

    An error in a cell is raised here, unless errors are allowed.
    """
    # The committed pictures are those of the emulator, which every reader has.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        allow_errors=allow_errors,
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})  # the times of the run
    return time.perf_counter() - started


def main(wanted: list[str]) -> None:
    """Build the named notebooks, or all of them."""
    for name in wanted or [*names(), *labs()]:
        if name in labs():
            nbformat.write(lab(name, solution=False), LABS / f"{name}.ipynb")
            notebook = lab(name, solution=True)
            seconds = run_lab(notebook)
            (LABS / "solutions").mkdir(exist_ok=True)
            nbformat.write(notebook, LABS / "solutions" / f"{name}.ipynb")
            print(f"{name}: {seconds:.1f} s, student and solution")
            continue
        notebook = unrun(name)
        seconds = run(notebook)
        nbformat.write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}: {seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
