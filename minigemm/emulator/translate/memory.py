"""Memory accesses: each one is checked, logged, and becomes a host pointer.

1. The state space says what the address counts from. A generic address is looked at when the kernel runs: in
   the shared window, in the thread's own context (local memory), or in a buffer of the launch.
2. Bounds and alignment are checked; a fault ends the launch. A global access compares with the buffer that
   the same instruction hit last, and searches the table of buffers (`@find_range`) only when it is another
   one.
3. The address goes to the thread's log, from which the counters are made (watch/profile.py).
4. On shared memory the shadow is asked whether the access is ordered after those of other threads
   (shadow.py), one 4-byte word at a time. Strong accesses of global memory are flags that may carry order.
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import context as c
from ..clusters import OFFSETS, RANK_SHIFT
from ..ptx.module import Address, Instruction, Symbol
from . import shadow
from .builder import EXPECTED, Builder
from .sites import Access, Strength, space_of

__all__ = ["SHARED_ADDRESS", "Memory", "Request"]

SHARED_ADDRESS = 0xFFFF_FFFF  # the bits of a shared address in a 64-bit register
_LOG_SITE = 48  # a log entry is site << 48 | address


@dataclass(frozen=True)
class Request:
    """One access by one thread."""

    index: int  # of the instruction in the function's code
    ins: Instruction
    size: int  # bytes
    store: bool
    words: tuple[str, ...] = ()  # that a store writes, 32 bits each; empty where nobody asks for them

    @property
    def strength(self) -> Strength:
        return Strength.of(self.ins)


class Memory:
    """Writes the checks of memory accesses.

    `publishes`: may a thread of this kernel publish its order through memory? Without a fence or a release
    nothing has to be kept for it.
    """

    def __init__(self, builder: Builder, hazards: bool, profile: bool, publishes: bool) -> None:
        self.b, self.hazards, self.profile, self.publishes = builder, hazards, profile, publishes

    def locate(self, request: Request, address: Address) -> str:
        """Check one access and return its host pointer."""
        b, base, space = self.b, address.base, space_of(request.ins)
        if isinstance(base, Symbol) and base.name in b.program.local_places:
            space = "local"
        elif space == "param":
            return b.let(f"inttoptr i64 {b.read(address, 64)} to ptr")

        # A variable of the own CTA needs no look at a rank.
        if space == "shared" and isinstance(base, Symbol) and base.name in b.program.shared_offsets:
            own = str(b.program.shared_offsets[base.name] + base.offset + address.offset)
            return self.own(request, own, own)

        where = b.read(address, 64)
        if space == "shared":
            where = b.let(f"and i64 {where}, {SHARED_ADDRESS}")
            return self.shared(request, where, anywhere="shared::cluster" in request.ins.modifiers)
        if space == "local":
            return self.local(request, where)
        if space in ("global", "const"):
            return self.in_buffer(request, where)
        return self.generic(request, where)

    # --- the state spaces

    def generic(self, request: Request, where: str) -> str:
        """Tell by a generic address which memory it is in."""
        # Only the running kernel knows the memory, so the code has a branch for each. All leave their pointer
        # in one place.
        b = self.b
        tag = b.number()
        shared, elsewhere, local, buffer, done = (f"{name}{tag}" for name in ("gs", "gl", "go", "gg", "gd"))
        b.branch(self.in_shared_window(where), shared, elsewhere)

        # A generic address may lie in the shared memory of any CTA of the cluster.
        b.label(shared)
        offset = b.let(f"and i64 {where}, {SHARED_ADDRESS}")
        b.emit(f"store ptr {self.shared(request, offset, anywhere=True)}, ptr %generic")
        b.jump(f"br label %{done}")

        # Local memory lies in the thread's context; anything else must be in a buffer of the launch.
        b.label(elsewhere)
        b.branch(self.in_own_context(where), local, buffer)

        # The thread's own local memory.
        b.label(local)
        b.emit(f"store ptr {self.local(request, where)}, ptr %generic")
        b.jump(f"br label %{done}")

        # A buffer of the launch, or a fault.
        b.label(buffer)
        b.emit(f"store ptr {self.in_buffer(request, where)}, ptr %generic")
        b.jump(f"br label %{done}")

        # The counters call the access generic, whatever the branches called it.
        b.label(done)
        b.emit(f"%generic{tag} = load ptr, ptr %generic")
        b.program.accesses[request.index] = Access("generic", request.size, request.store)
        return f"%generic{tag}"

    def in_shared_window(self, generic: str) -> str:
        """Return an i1: is this generic address one of shared memory?"""
        top = self.b.let(f"lshr i64 {generic}, {c.GENERIC_SHARED.bit_length() - 1}")
        return self.b.let(f"icmp eq i64 {top}, 1")

    def in_own_context(self, generic: str) -> str:
        """Return an i1: is this generic address in the thread's own context, where its local memory lies?"""
        offset = self.b.let(f"sub i64 {generic}, %context")
        return self.b.let(f"icmp ult i64 {offset}, {self.b.program.context_bytes}")

    def local(self, request: Request, where: str) -> str:
        """Local memory lies in the thread's context, at its host address."""
        b, program = self.b, self.b.program
        start = b.let(f"add i64 %context, {program.local_offset}")
        offset = b.let(f"sub i64 {where}, {start}")
        room = program.local_bytes - request.size
        outside = b.let(f"icmp ugt i64 {offset}, {room}") if room >= 0 else "true"
        b.fault_if(outside, c.LOCAL_BOUNDS, offset, request.size, request.index)
        self.aligned(request, where)
        return b.let(f"inttoptr i64 {where} to ptr")

    def in_buffer(self, request: Request, where: str) -> str:
        """Global memory is the buffers of the launch, at their host addresses."""
        b, i, size = self.b, request.index, request.size
        b.program.accesses[i] = Access("global", size, request.store)

        # Is it in the buffer that this instruction hit last? A buffer's end less the size cannot wrap around,
        # as an address plus the size can.
        table = b.field(c.SITE_RANGES, "ptr")
        entry = b.let(f"getelementptr i64, ptr {table}, i64 {2 * i}")
        low = b.let(f"load i64, ptr {entry}")
        high = b.let(f"load i64, ptr {b.let(f'getelementptr i64, ptr {entry}, i64 1')}")
        last = b.let(f"sub i64 {high}, {size}")
        above, below = b.let(f"icmp uge i64 {where}, {low}"), b.let(f"icmp ule i64 {where}, {last}")
        tag = b.number()
        miss, hit = f"miss{tag}", f"hit{tag}"
        b.branch(b.let(f"and i1 {above}, {below}"), hit, miss, EXPECTED)

        # If not, search all buffers, or fault.
        b.label(miss)
        arguments = f"ptr %rt, ptr {entry}, i64 {where}, i64 {size}, i1 {_bit(request.store)}"
        kind = b.let(f"call i64 @find_range({arguments})")
        b.fault_if(b.let(f"icmp ne i64 {kind}, 0"), kind, where, size, i)
        b.label(hit)
        self.aligned(request, where)
        self.log(request, where)

        # A strong access may read or set a flag.
        strength = request.strength
        if strength.any and self.publishes:
            flags = (not request.store or strength.atomic, request.store, strength.release)
            bits = ", ".join(f"i1 {_bit(flag)}" for flag in flags)
            b.emit(f"call void @global_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 {i}, {bits})")
        return b.let(f"inttoptr i64 {where} to ptr")

    def shared(self, request: Request, where: str, anywhere: bool) -> str:
        """Shared memory, of the own CTA or `anywhere` in the cluster."""
        if not self.b.clusters:
            return self.own(request, where, where)
        if anywhere:
            return self.of_cluster(request, where)
        return self.own(request, self.b.let(f"sub i64 {where}, %shared_base"), where)

    def own(self, request: Request, where: str, address: str) -> str:
        """Shared memory of the own CTA. `where` counts from its beginning; the kernel calls it `address`."""
        b = self.b
        b.program.accesses[request.index] = Access("shared", request.size, request.store)
        self.inside_shared(request, where, address)
        self.aligned(request, where)
        self.log(request, where)
        if self.hazards:
            self.check_order(request, where)
        return b.let(f"getelementptr i8, ptr %shared, i64 {where}")

    def of_cluster(self, request: Request, where: str) -> str:
        """Shared memory of any CTA of the cluster: that of the own CTA, at another distance."""
        b, i = self.b, request.index
        b.program.accesses[i] = Access("shared", request.size, request.store)
        rank, offset = b.let(f"lshr i64 {where}, {RANK_SHIFT}"), b.let(f"and i64 {where}, {OFFSETS}")
        unknown = b.let(f"icmp uge i64 {rank}, {b.field(c.NCTARANK)}")
        b.fault_if(unknown, c.BAD_RANK, where, request.size, i)
        self.inside_shared(request, offset, where)
        self.aligned(request, where)
        self.log(request, where)

        window = b.field(c.WINDOW)
        apart = b.let(f"sub i64 {rank}, {b.field(c.CTARANK)}")
        at = b.let(f"add i64 {offset}, {b.let(f'mul i64 {apart}, {window}')}")
        if self.hazards:
            word = b.let(f"ashr i64 {at}, 2")
            arguments = f"ptr %ctx, ptr %rt, ptr %row, i64 {rank}, i64 {word}, i64 {i}"
            b.emit(f"call void @check_remote({arguments})")
            self.check_order(request, at)
        return b.let(f"getelementptr i8, ptr %shared, i64 {at}")

    # --- checks

    def inside_shared(self, request: Request, where: str, address: str) -> None:
        """Check the bounds of one CTA's shared memory."""
        b = self.b
        offset = b.let(f"sub i64 {where}, {c.SHARED_FIRST}")
        room = b.let(f"sub i64 %shared_end, {c.SHARED_FIRST + request.size - 1}")
        outside, negative = b.let(f"icmp sge i64 {offset}, {room}"), b.let(f"icmp slt i64 {offset}, 0")
        condition = b.let(f"or i1 {outside}, {negative}")
        b.fault_if(condition, c.SHARED_BOUNDS, address, request.size, request.index)

    def aligned(self, request: Request, where: str) -> None:
        if request.size > 1:
            low = self.b.let(f"and i64 {where}, {request.size - 1}")
            condition = self.b.let(f"icmp ne i64 {low}, 0")
            self.b.fault_if(condition, c.MISALIGNED, where, request.size, request.index)

    def log(self, request: Request, address: str) -> None:
        """Append the access to the thread's log."""
        if not self.profile:
            return
        b = self.b
        count = b.let("load i64, ptr %logged")
        low = b.let(f"and i64 {address}, {(1 << _LOG_SITE) - 1}")
        entry = b.let(f"or i64 {low}, {request.index << _LOG_SITE}")
        b.emit(f"store i64 {entry}, ptr {b.let(f'getelementptr i64, ptr %log, i64 {count}')}")
        b.emit(f"store i64 {b.let(f'add i64 {count}, 1')}, ptr %logged")

    # --- order on shared memory

    def check_order(self, request: Request, where: str) -> None:
        """Ask the shadow about each word of an access; `where` counts from the own CTA's shared memory."""
        b, strength = self.b, request.strength
        word = b.let(f"ashr i64 {where}, 2")  # signed: the CTAs of lower ranks lie before the own one

        # The word, the bytes of it, and the value, shifted to where the bytes are.
        pieces: list[tuple[str, str, str]] = []
        if request.size < 4:
            byte = b.let(f"trunc i64 {b.let(f'and i64 {where}, 3')} to i32")
            mask = b.let(f"shl i32 {(1 << request.size) - 1}, {byte}")
            bits = b.let(f"shl i32 {byte}, 3") if request.words else ""
            value = b.let(f"shl i32 {request.words[0]}, {bits}") if bits else "0"
            pieces.append((word, mask, value))
        for k in range(request.size // 4):
            at = b.let(f"add i64 {word}, {k}") if k else word
            pieces.append((at, "15", request.words[k] if request.words else "0"))
        arguments = [
            (f"{shadow.THREAD}, i64 {at}, i32 {mask}, i64 {request.index}", value)
            for at, mask, value in pieces
        ]

        if not request.store:
            for at, _ in arguments:
                b.emit(f"call void @load_{'strong' if strength.any else 'word'}({at})")
        elif strength.strong:
            self.store_strong(arguments, strength)
        elif not strength.volatile or not self.publishes:
            self.store_word(arguments)
        else:
            self.store_volatile(arguments, strength)

    def store_word(self, arguments: list[tuple[str, str]]) -> None:
        for at, value in arguments:
            self.b.emit(f"call void @store_word({at}, i32 {value})")

    def store_strong(self, arguments: list[tuple[str, str]], strength: Strength) -> None:
        for at, _ in arguments:
            bits = f"i1 {_bit(strength.atomic)}, i1 {_bit(strength.release)}"
            self.b.emit(f"call void @store_strong({at}, {bits})")

    def store_volatile(self, arguments: list[tuple[str, str]], strength: Strength) -> None:
        """Write a flag if there was a fence before it, else data that was not meant for another thread."""
        b = self.b
        tag = b.number()
        flag, data, done = f"flag{tag}", f"data{tag}", f"stored{tag}"
        fenced = b.let(f"load i64, ptr {b.in_context(c.FENCED)}")
        b.branch(b.let(f"icmp ne i64 {fenced}, 0"), flag, data)
        b.label(flag)
        self.store_strong(arguments, strength)
        b.jump(f"br label %{done}")
        b.label(data)
        self.store_word(arguments)
        b.label(done)


def _bit(flag: bool) -> str:
    return "true" if flag else "false"
