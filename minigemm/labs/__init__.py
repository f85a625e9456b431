"""Graded labs: the file that a learner starts from, what it is worth, and a grader that needs no GPU.

    from minigemm import labs
    path = labs.start("pipeline.cu", labs.PIPELINE)  # the stage before, with TODOs
    labs.check(path, labs.PIPELINE)  # points by criterion, and what to do next

`python -m minigemm.labs grade FOLDER` grades each `.cu` file of a folder in a process of its own.
"""

from __future__ import annotations

from .grading import Criterion, Grade, Lab, Outcome, StillToDo, check, require, solve, start
from .pipeline import PIPELINE

__all__ = [
    "LABS", "PIPELINE", "Criterion", "Grade", "Lab", "Outcome", "StillToDo", "check", "require", "solve", "start",
]  # fmt: skip

LABS = {lab.name: lab for lab in (PIPELINE,)}
