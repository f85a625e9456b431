"""What every test shares: patience for the first compilation, and GPU tests only on a Hopper GPU."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# The first example of a property compiles a kernel, the others find it; a deadline would blame the first.
settings.register_profile("minigemm", deadline=None, print_blob=True)
settings.load_profile("minigemm")

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers are the parallelism
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        return
    skip = pytest.mark.skip(reason="needs a Hopper GPU")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
