"""The mbarrier object against a scalar model, and every misuse with the cause that its message must name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigemm.emulator.machine.mbarrier import COUNT_MAX, BarrierMisuse, MBarrier, never_initialised


@dataclass
class Model:
    """The PTX ISA's words, one line each. A phase is complete when neither arrivals nor bytes are pending."""

    expected: int
    pending: int
    tx: int = 0
    phase: int = 0

    def step(self, arrivals: int = 0, drop: int = 0, expect: int = 0, complete: int = 0) -> None:
        self.tx += expect
        self.expected -= drop
        self.pending -= arrivals
        self.tx -= complete
        if self.pending == 0 and self.tx == 0:
            self.phase, self.pending = self.phase + 1, self.expected


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from("aedcx"), st.integers(1, 3), st.integers(0, 64)), max_size=60),
)
def test_follows_the_model(count: int, operations: list[tuple[str, int, int]]) -> None:
    barrier, model = MBarrier(count), Model(count, count)
    for kind, arrivals, nbytes in operations:
        before = (model.phase, model.pending)
        state = None
        if kind == "a" and arrivals <= model.pending:
            state = barrier.arrive(arrivals)
            model.step(arrivals)
        elif kind == "e" and model.pending:
            state = barrier.arrive_expect_tx(nbytes)
            model.step(1, expect=nbytes)
        elif kind == "d" and model.pending and model.expected > 1:
            state = barrier.arrive_drop()
            model.step(1, drop=1)
        elif kind == "c":
            barrier.complete_tx(nbytes)
            model.step(complete=nbytes)
        elif kind == "x":
            barrier.expect_tx(nbytes)
            model.step(expect=nbytes)
        assert (barrier.phase, barrier.pending, barrier.tx, barrier.expected) == (
            model.phase,
            model.pending,
            model.tx,
            model.expected,
        )
        if state is not None:
            assert MBarrier.pending_count(state) == before[1]
            assert barrier.test_wait(state) == (model.phase > before[0])
        assert barrier.test_wait_parity(model.phase & 1) is False
        assert barrier.test_wait_parity(1 - model.phase & 1) is True


def test_bytes_may_land_before_they_are_announced() -> None:
    barrier = MBarrier(1)
    barrier.complete_tx(4096)
    assert (barrier.tx, barrier.phase) == (-4096, 0)
    barrier.arrive_expect_tx(4096)
    assert (barrier.tx, barrier.phase) == (0, 1)


def test_a_state_is_64_bits_and_good_for_the_preceding_phase() -> None:
    barrier = MBarrier(COUNT_MAX)
    states = [barrier.arrive(COUNT_MAX) for _ in range(3)]
    assert [state < 2**64 for state in states] == [True] * 3
    assert barrier.test_wait(states[2])
    with pytest.raises(BarrierMisuse, match="a wait for phase 1 of an mbarrier that is in phase 3"):
        barrier.test_wait(states[1])


def test_inval_then_init_starts_again() -> None:
    barrier = MBarrier(1)
    barrier.arrive()
    barrier.invalidate()
    barrier.reinitialise(2)
    assert (barrier.phase, barrier.pending, barrier.tx) == (0, 2, 0)


def after(count: int, *steps: Callable[[MBarrier], object]) -> MBarrier:
    barrier = MBarrier(count)
    for step in steps:
        step(barrier)
    return barrier


MISUSES: dict[str, tuple[MBarrier, Callable[[MBarrier], object], str]] = {
    "a thread refills without waiting": (
        after(1, lambda b: b.arrive_expect_tx(64)),
        lambda b: b.arrive_expect_tx(64),
        "producer must wait until a buffer is empty",
    ),
    "count too small": (after(2), lambda b: b.arrive(32), "count given to mbarrier.init is smaller than"),
    "everyone dropped out": (after(1, lambda b: b.arrive_drop()), lambda b: b.arrive(), "is smaller than"),
    "drops more than it counts": (
        after(2, lambda b: b.arrive_drop(2), lambda b: setattr(b, "pending", 2)),
        lambda b: b.arrive_drop(),
        "Drop each participant once",
    ),
    "zero arrivals": (after(1), lambda b: b.arrive(0), "with a count of 0"),
    "noComplete completes": (after(1), lambda b: b.arrive(no_complete=True), "without .noComplete"),
    "too many bytes announced": (after(1), lambda b: b.expect_tx(COUNT_MAX + 1), "at most 1048575 bytes"),
    "too many bytes in two calls": (
        after(2, lambda b: b.arrive_expect_tx(COUNT_MAX)),
        lambda b: b.arrive_expect_tx(1),
        "Spread the copies",
    ),
    "too many bytes unannounced": (after(1), lambda b: b.complete_tx(COUNT_MAX + 1), "are unannounced"),
    "used after inval": (
        after(1, lambda b: b.invalidate()),
        lambda b: b.arrive(),
        "arrive after mbarrier.inval",
    ),
    "waited for after inval": (
        after(1, lambda b: b.invalidate()),
        lambda b: b.test_wait_parity(0),
        "after mbarrier",
    ),
    "invalidated twice": (
        after(1, lambda b: b.invalidate()),
        lambda b: b.invalidate(),
        "inval after mbarrier.inval",
    ),
    "initialised twice": (after(1), lambda b: b.reinitialise(1), "init on a live mbarrier"),
    "parity that counts": (after(1), lambda b: b.test_wait_parity(2), "phase \\^= 1"),
    "count of zero": (after(1), lambda b: MBarrier(0), "init with a count of 0"),
    "count beyond 20 bits": (after(1), lambda b: MBarrier(2**20), "init with a count of 1048576"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_names_its_cause_and_changes_nothing(name: str) -> None:
    barrier, misuse, message = MISUSES[name]
    before = barrier.describe(), barrier.state, barrier.tx, barrier.expected
    with pytest.raises(BarrierMisuse, match=message):
        misuse(barrier)
    assert (barrier.describe(), barrier.state, barrier.tx, barrier.expected) == before


def test_never_initialised_names_the_operation() -> None:
    assert never_initialised("mbarrier.arrive").message.startswith(
        "mbarrier.arrive on memory that holds no mbarrier"
    )


DIAGNOSES: dict[str, tuple[MBarrier, str, str]] = {
    "fresh": (after(1), "phase 0 (parity 0): 0 of 1 arrival came", "nobody has arrived at it yet"),
    "some arrivals missing": (
        after(128, lambda b: b.arrive(96)),
        "phase 0 (parity 0): 96 of 128 arrivals came",
        "32 arrivals missing: the count given to mbarrier.init is larger",
    ),
    "bytes missing": (
        after(1, lambda b: b.arrive_expect_tx(8192), lambda b: b.complete_tx(4096)),
        "phase 0 (parity 0): 1 of 1 arrival came, 4096 of 8192 expected bytes landed",
        "4096 bytes never landed: expect_tx announces more",
    ),
    "too many bytes": (
        after(
            1, lambda b: b.arrive_expect_tx(4096), lambda b: b.complete_tx(4096), lambda b: b.complete_tx(1)
        ),
        "phase 1 (parity 1): 0 of 1 arrival came, 1 of 0 expected bytes landed",
        "1 byte landed unannounced",
    ),
    "later phase": (
        after(1, lambda b: b.arrive()),
        "phase 1 (parity 1): 0 of 1 arrival came",
        "parity is inverted",
    ),
    "invalidated": (
        after(1, lambda b: b.invalidate()),
        "invalidated by mbarrier.inval",
        "after the last wait",
    ),
}


@pytest.mark.parametrize("name", DIAGNOSES)
def test_describe_and_diagnose(name: str) -> None:
    barrier, description, diagnosis = DIAGNOSES[name]
    assert barrier.describe() == description
    assert diagnosis in barrier.diagnose()


def test_leftover_bytes_are_told_at_the_end() -> None:
    assert after(1).leftover() == ""
    assert (
        after(2, lambda b: b.arrive()).leftover() == ""
    )  # consumers that release a buffer nobody fills again
    unannounced = after(1, lambda b: b.arrive(), lambda b: b.complete_tx(4096))
    assert "An expect_tx is missing or too small" in unannounced.leftover()
    assert "never landed" in after(2, lambda b: b.arrive_expect_tx(16)).leftover()
