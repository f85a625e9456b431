"""The GPU's numbers stand once in minigemm.hopper, and once in the emulator, which stands alone."""

from __future__ import annotations

import pytest

from minigemm import emulator, hopper
from minigemm.emulator import launching
from minigemm.emulator.machine import registers
from minigemm.emulator.translate import builder

NOTHING = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry nothing()\n{\n  ret;\n}\n"


def test_the_emulator_has_the_same_numbers() -> None:
    assert builder.FIXED["%nsmid"] == hopper.SMS
    assert registers.REGISTER_FILE == hopper.SM_REGISTERS
    assert emulator.Rates().products == hopper.PRODUCTS_PER_CYCLE


def test_the_emulator_has_the_same_shared_memory() -> None:
    emulator.launch(NOTHING, 1, 1, [], shared=hopper.SHARED_LIMIT)
    with pytest.raises(ValueError, match=f"exceed the {hopper.SHARED_LIMIT} that a CTA"):
        emulator.launch(NOTHING, 1, 1, [], shared=hopper.SHARED_LIMIT + 1)


def test_the_emulator_has_the_same_limit_of_threads() -> None:
    emulator.launch(NOTHING, 1, hopper.THREAD_LIMIT, [])
    with pytest.raises(ValueError, match=str(hopper.THREAD_LIMIT)):
        emulator.launch(NOTHING, 1, hopper.THREAD_LIMIT + 1, [])


def test_the_emulator_has_the_same_limit_of_ctas() -> None:
    assert launching.GRID_LIMIT == hopper.GRID_LIMIT
    for grid in ((1, hopper.GRID_LIMIT + 1), (1, 1, hopper.GRID_LIMIT + 1)):
        with pytest.raises(ValueError, match=str(hopper.GRID_LIMIT)):
            emulator.launch(NOTHING, grid, 1, [])
