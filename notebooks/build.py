"""Notebooks from their sources: `python notebooks/build.py [NAME...]` makes NAME.ipynb of source/NAME.py, runs it on the CPU and keeps what it shows.

A source is Python in percent format: `# %%` begins a cell of code, `# %% [markdown]` one of prose. Edit the source, never the notebook.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SOURCES = HERE / "source"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}


def names() -> list[str]:
    """Every lesson, in the order of the course."""
    return sorted(path.stem for path in SOURCES.glob("*.py"))


def unrun(name: str) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; equal sources give equal notebooks."""
    notebook = jupytext.read(SOURCES / f"{name}.py", fmt="py:percent")
    notebook.metadata = nbformat.from_dict(KERNEL)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.from_dict({})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def run(notebook: nbformat.NotebookNode, timeout: int = 90) -> float:
    """Run it from top to bottom as the folder's reader would; seconds. What a cell raises is raised here."""
    # The committed pictures are those of the emulator, which every reader has.
    environment = {"CUDA_VISIBLE_DEVICES": "", **{key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}}
    started = time.perf_counter()
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute(env=environment)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})  # the times of the run
    return time.perf_counter() - started


def main(wanted: list[str]) -> None:
    for name in wanted or names():
        notebook = unrun(name)
        seconds = run(notebook)
        nbformat.write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}: {seconds:.1f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
