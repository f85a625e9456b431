"""Bugs planted in the shipped stages by text edits, at two tile sizes and under every schedule: found, with the cause and the line."""

from __future__ import annotations

import pytest

from minigemm import emulator, observe

from .products import STAGES, operands

TILES = {
    "s02_tiled": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 32, "thread_m": 2, "thread_n": 4},
    ),
    "s03_tma": (
        {"block_m": 64, "block_n": 64, "thread_m": 4, "thread_n": 4},
        {"block_m": 32, "block_n": 64, "block_k": 64, "thread_m": 4, "thread_n": 4},
    ),
}
TILE_READY = "    __syncthreads();  // all threads arrive with their part of the tiles written"
TILE_READ = "    __syncthreads();  // all threads arrive when they have read"
# stage, text that goes (a line, unless it says what comes instead), what is found, words of it, text on the line that it names
BUGS = {
    "s02: no barrier after the load": ("s02_tiled", TILE_READY, "    //", ("race",), "data race", None),
    "s02: no barrier after the reads": ("s02_tiled", TILE_READ, "    //", ("race",), "data race", None),
    "s02: row beyond the matrix": ("s02_tiled", "row0 + row < rows && ", "", ("Fault",), "past the end of args", "vector = *reinterpret_cast"),
    "s03: no wait for the tiles": (
        "s03_tma", "mbarrier_wait_parity(&shared.full, phase);", ";", ("tma-not-complete",), "does not wait", "read(",
    ),
    "s03: inverted parity": (
        "s03_tma", "mbarrier_wait_parity(&shared.full, phase);", "mbarrier_wait_parity(&shared.full, phase ^ 1);", ("tma-not-complete", "Deadlock"),
        "parity", None,
    ),
    "s03: phase never flips": ("s03_tma", "phase ^= 1", "phase ^= 0", ("tma-not-complete", "mbarrier", "Deadlock"), "", None),
    "s03: too few bytes": (
        "s03_tma", "sizeof(shared.a) + sizeof(shared.b)", "sizeof(shared.a)", ("Deadlock", "mbarrier-bytes", "tma-not-complete"), "", None,
    ),
    "s03: no barrier before the next load": ("s03_tma", TILE_READ, "    //", ("tile-overwritten", "tma-load-overwrites"), "overwrites", None),
    "s03: no proxy fence": ("s03_tma", "  fence_proxy_async();", "  //", ("proxy-fence",), "missing fence.proxy.async", "cp_async_bulk_tensor_store("),
    "s03: no barrier before the store": (
        "s03_tma", "  __syncthreads();      // all threads arrive with their part of d written and fenced", "  //",
        ("tma-store-too-early", "tma-store-overwritten"), "barrier", None,
    ),
    "s03: store not awaited": ("s03_tma", "cp_async_bulk_wait_group_read<0>();", ";", ("tma-store-not-awaited",), "never waited", None),
    "s03: no barrier after init": ("s03_tma", "  __syncthreads();  // all threads wait until thread 0 has initialised", "  //", ("mbarrier-init", "Fault"),
                                   "mbarrier", None),
    "s03: barrier never initialised": ("s03_tma", "    mbarrier_init(&shared.full, 1);", "    ;", ("Fault",), "nobody executed mbarrier.init", None),
    "s03: two arrivals expected": ("s03_tma", "mbarrier_init(&shared.full, 1);", "mbarrier_init(&shared.full, 2);", ("Deadlock",), "1 of 2 arrivals", None),
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["late", "early", 1, 2])
@pytest.mark.parametrize("tile", [0, 1])
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bug(bug, tile, schedule, tmp_path):
    name, old, new, kinds, words, line = BUGS[bug]
    stage = STAGES[name].stage
    text = stage.source.read_text()
    assert old in text, f"{old!r} is not in {name}.cu any more"
    mine = tmp_path / f"{name}.cu"
    mine.write_text(text.replace(old, new, 1))
    a, b = operands(70, 72, 320, 3, "cpu")
    config = STAGES[name].Config(**TILES[name][tile])
    with observe(schedule=schedule) as seen:
        try:
            stage.gemm(a, b, config, source=mine)
            found = [(h.kind, h.message, h.location) for h in seen[0].hazards]
        except emulator.EmulatorError as error:
            found = [(type(error).__name__, str(error), error.location)]
    hits = [f for f in found if f[0] in kinds]
    assert hits, found
    assert any(words in message for _, message, _ in hits), hits
    for _, _, location in hits:
        assert location is not None
    if line:
        lines = mine.read_text().splitlines()
        named = {place.line for _, _, location in hits for place in callers(location)}
        assert any(line in lines[number - 1] for number in named), (named, found)


def callers(location):
    """The line itself and those that led to it, in the stage's own file."""
    while location is not None:
        if location.file.endswith(".cu"):
            yield location
        location = location.inlined_at
