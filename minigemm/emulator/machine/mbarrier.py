"""The mbarrier object: arrivals, transaction bytes, phases, and what its misuse means.

Pure state. Who waits, and who is woken when `phase` moves on, is the machine's business. Every operation
either happens as PTX defines it, or raises BarrierMisuse and changes nothing.
"""

from __future__ import annotations

from ..errors import EmulatorError

__all__ = ["BarrierMisuse", "MBarrier", "never_initialised"]

COUNT_MAX = 2**20 - 1  # of arrivals, and of transaction bytes either way
_PENDING_BITS = 20


class BarrierMisuse(EmulatorError):
    """An operation on an mbarrier that PTX leaves undefined. The message names the cause and the fix."""


def never_initialised(operation: str) -> BarrierMisuse:
    """Return the misuse of an `operation` ("mbarrier.arrive") where no mbarrier was initialised."""
    return BarrierMisuse(
        f"{operation} on memory that holds no mbarrier: nobody executed mbarrier.init there before. One thread must "
        "initialise the barrier, and all must pass a __syncthreads() (a cluster barrier in clusters) before they use it"
    )


class MBarrier:
    """One mbarrier.

    phase:    how many phases are complete; its lowest bit is the parity of the current one

    expected: arrivals that every phase from the next one on waits for
    pending:  arrivals that the current phase still waits for
    tx:       bytes that the current phase still waits for; below 0 when bytes landed unannounced
    """

    __slots__ = ("_announced", "_arrived", "_valid", "expected", "pending", "phase", "tx")

    def __init__(self, count: int):
        """`mbarrier.init`: `count` arrivals complete a phase, 1 to 2**20 - 1."""
        if not 1 <= count <= COUNT_MAX:
            raise BarrierMisuse(
                f"mbarrier.init with a count of {count}: expected 1 to {COUNT_MAX}, "
                "the number of arrivals that a phase waits for"
            )
        self.phase = 0
        self.expected = self.pending = count
        self.tx = 0
        self._announced = 0  # bytes that the current phase was told to expect
        self._arrived = 0  # arrivals in the current phase
        self._valid = True

    # --- operations

    def arrive(self, count: int = 1, *, no_complete: bool = False) -> int:
        """`mbarrier.arrive`: `count` arrivals on the current phase.

        Returns the state before them, for `test_wait`. `no_complete` (`.noComplete`) promises that these are
        not the phase's last arrivals.
        """
        self._check_arrival("mbarrier.arrive", count)
        if no_complete and self.pending == count and self.tx == 0:
            raise BarrierMisuse(
                "mbarrier.arrive.noComplete completes the phase: its last arrival must be an mbarrier.arrive without "
                f".noComplete ({self.describe()})"
            )
        state = self.state
        self._arrive(count)
        return state

    def arrive_drop(self, count: int = 1) -> int:
        """`mbarrier.arrive_drop`: as `arrive`, and let later phases expect `count` arrivals less."""
        self._check_arrival("mbarrier.arrive_drop", count)
        if count > self.expected:
            raise BarrierMisuse(
                f"mbarrier.arrive_drop takes {count} from the {self.expected} arrivals that later phases expect: "
                "more threads dropped out than the barrier counts. Drop each participant once"
            )
        state = self.state
        self.expected -= count
        self._arrive(count)
        return state

    def expect_tx(self, nbytes: int) -> None:
        """`mbarrier.expect_tx`: the current phase also waits for `nbytes` bytes."""
        self._check("mbarrier.expect_tx")
        self._expect("mbarrier.expect_tx", nbytes)
        self._complete_phase()

    def complete_tx(self, nbytes: int) -> None:
        """`mbarrier.complete_tx`, or a copy that landed: `nbytes` bytes of the phase have come."""
        self._check("mbarrier.complete_tx")
        if nbytes < 0 or self.tx - nbytes < -COUNT_MAX:
            raise BarrierMisuse(
                f"{nbytes} bytes landed on an mbarrier that expected {self._announced}: more than {COUNT_MAX} bytes "
                f"are unannounced. Announce the bytes of every copy with expect_tx as it is issued ({self.describe()})"
            )
        self.tx -= nbytes
        self._complete_phase()

    def arrive_expect_tx(self, nbytes: int) -> int:
        """`mbarrier.arrive.expect_tx`: expect `nbytes` bytes, then arrive. Returns the state before both."""
        self._check_arrival("mbarrier.arrive.expect_tx", 1)
        state = self.state
        self._expect("mbarrier.arrive.expect_tx", nbytes)
        self._arrive(1)
        return state

    def invalidate(self) -> None:
        """`mbarrier.inval`: the memory may serve another purpose; every later operation is a misuse."""
        self._check("mbarrier.inval")
        self._valid = False

    def reinitialise(self, count: int) -> None:
        """`mbarrier.init` where this barrier lives: a misuse unless it was invalidated."""
        if self._valid:
            raise BarrierMisuse(
                f"mbarrier.init on a live mbarrier ({self.describe()}): initialise each barrier once, before the loop, "
                "or execute mbarrier.inval first. Phases go on by themselves; a barrier need not be reset"
            )
        self.__init__(count)  # type: ignore[misc]

    # --- queries

    @property
    def state(self) -> int:
        """The opaque 64-bit state that arrive returns: the phase, and its pending count."""
        return self.phase << _PENDING_BITS | self.pending

    @staticmethod
    def pending_count(state: int) -> int:
        """`mbarrier.pending_count`: the arrivals that were pending when `state` was taken."""
        return state & COUNT_MAX

    def test_wait(self, state: int) -> bool:
        """`mbarrier.test_wait` with the state of an arrive: has that phase completed?"""
        self._check("mbarrier.test_wait")
        phase = state >> _PENDING_BITS
        if phase not in (self.phase, self.phase - 1):
            raise BarrierMisuse(
                f"a wait for phase {phase} of an mbarrier that is in phase {self.phase}: a state is good for the phase "
                "it was taken in, until the next one completes. Wait with what the last arrive on this barrier returned"
            )
        return phase < self.phase

    def test_wait_parity(self, parity: int) -> bool:
        """`mbarrier.test_wait.parity`: has the phase of this parity, the current or the last, completed?

        A fresh barrier is in phase 0, so that parity 1, the phase before the first, counts as completed.
        """
        self._check("mbarrier.test_wait.parity")
        if parity not in (0, 1):
            raise BarrierMisuse(
                f"a wait with parity {parity}: expected 0 or 1, the lowest bit of the phase's number. Flip it with "
                "`phase ^= 1` each time the barrier comes round, do not count up"
            )
        return self.phase & 1 != parity

    def describe(self) -> str:
        """Return the state in words: phase, parity, arrivals, bytes.

        When it cannot complete by itself, the words say why.
        """
        if not self._valid:
            return "invalidated by mbarrier.inval"
        total = self._arrived + self.pending
        text = f"phase {self.phase} (parity {self.phase & 1}): {self._arrived} of {_count(total, 'arrival')} came"
        if self._announced or self.tx:
            text += f", {self._announced - self.tx} of {self._announced} expected bytes landed"
        return text

    def diagnose(self) -> str:
        """Why the current phase does not complete, and the usual fix: the sentence for a Deadlock."""
        if not self._valid:
            return "the barrier was invalidated while threads waited on it: execute mbarrier.inval after the last wait"
        if self.tx < 0 or (self.tx and not self.pending):
            return self._bytes_off()
        if self.pending and self._arrived:
            return (
                f"{_count(self.pending, 'arrival')} missing: the count given to mbarrier.init is larger than the "
                "number of threads that arrive, or some of them took another path"
            )
        if not self.phase:
            return (
                "nobody has arrived at it yet: the arrival is missing or itself waits, or this wait should start with "
                "the other parity (1 passes at a fresh barrier, as the first wait for an empty buffer must)"
            )
        return (
            f"nobody has arrived in phase {self.phase}; phase {self.phase - 1} has completed. Either the arrival is "
            "missing or itself waits, or the parity is inverted or was flipped too early or too often"
        )

    def leftover(self) -> str:
        """Return what is wrong when the kernel ends with the barrier in this state; "" when nothing is."""
        if not self._valid or not self.tx:
            return ""
        return f"the kernel ends with an mbarrier in {self.describe()}: {self._bytes_off()}"

    # --- inside

    def _bytes_off(self) -> str:
        """Why the bytes announced and the bytes landed differ."""
        if self.tx < 0:
            return (
                f"{_count(-self.tx, 'byte')} landed unannounced, so that a wait passes before they land or never does. "
                "An expect_tx is missing or too small: it counts the bytes of every copy that names the barrier, whole "
                "boxes also where they hang over the tensor's edge"
            )
        return (
            f"{_count(self.tx, 'byte')} never landed: expect_tx announces more than the copies bring, or a copy was "
            "not issued or names another barrier"
        )

    def _check(self, operation: str) -> None:
        if not self._valid:
            raise BarrierMisuse(
                f"{operation} after mbarrier.inval: the barrier is no more. Invalidate it when the last thread has "
                "used it, or initialise it again"
            )

    def _check_arrival(self, operation: str, count: int) -> None:
        self._check(operation)
        if not 1 <= count <= COUNT_MAX:
            raise BarrierMisuse(f"{operation} with a count of {count}: expected 1 to {COUNT_MAX}")
        if count <= self.pending:
            return
        if self.pending or not self._arrived:
            cause = (
                f"only {self.pending} pending. The count given to mbarrier.init is smaller than the number of threads "
                "that arrive in a phase: give it their number, or let one elected thread arrive for the others"
            )
        else:
            cause = (
                f"none pending: all {_count(self._arrived, 'arrival')} of the phase came, it only waits for bytes. A "
                "thread arrived again before the phase completed: a producer must wait until a buffer is empty "
                "before it fills it again (or the count given to mbarrier.init is too small)"
            )
        raise BarrierMisuse(f"{operation} of {count} with {cause} ({self.describe()})")

    def _expect(self, operation: str, nbytes: int) -> None:
        if nbytes < 0 or self.tx + nbytes > COUNT_MAX:
            raise BarrierMisuse(
                f"{operation} of {nbytes} bytes: a phase can wait for at most {COUNT_MAX} bytes ({self.describe()}). "
                "Spread the copies over more barriers, and wait for a phase before the next one's bytes are announced"
            )
        self.tx += nbytes
        self._announced += nbytes

    def _arrive(self, count: int) -> None:
        self.pending -= count
        self._arrived += count
        self._complete_phase()

    def _complete_phase(self) -> None:
        if self.pending == 0 and self.tx == 0 and self._arrived:
            self.phase += 1
            self.pending = self.expected
            self._announced = self._arrived = 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
