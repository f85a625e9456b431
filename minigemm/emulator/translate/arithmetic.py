"""PTX arithmetic as LLVM IR: every instruction that only reads registers and writes registers.

Each function of the table :data:`OPERATIONS` takes a :class:`Builder` and an instruction and appends IR.
Registers hold plain bits, so a float operation begins and ends with a bit cast, which costs nothing in
machine code.

The numbers are the hardware's:

- FP32 addition, product, FMA, division, square root and conversions are correctly rounded in the mode that
  the instruction names.
- A NaN result is the GPU's canonical one (0x7fffffff), not whatever payload the CPU would keep.
- 16-bit floats are computed wide enough that the second rounding cannot differ from a single one.
- Approximate functions (``ex2.approx`` and its like) are defined by PTX only up to an error bound. They are
  computed in double precision here and may differ from a GPU's in the last bits.

Source: PTX ISA, chapters "Integer Arithmetic", "Floating-Point", "Half Precision", "Comparison and
Selection", "Data Movement and Conversion".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ptx.module import Immediate, Instruction, Operand, Pair, Vector
from .builder import BITS, Builder

FLOATS = {"f32": "float", "f64": "double"}
HALVES = {"f16", "bf16", "f16x2", "bf16x2"}
ROUNDINGS = ("rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna")

Operation = Callable[[Builder, Instruction], None]
OPERATIONS: dict[str, Operation] = {}


def operation(*names: str) -> Callable[[Operation], Operation]:
    """Enter a function in the table under these opcodes."""

    def register(function: Operation) -> Operation:
        for name in names:
            OPERATIONS[name] = function
        return function

    return register


def types(ins: Instruction) -> list[str]:
    """Return the types among an instruction's modifiers."""
    return [m for m in ins.modifiers if m in BITS]


def type_of(ins: Instruction) -> str:
    """Return the type of an instruction: the last one among its modifiers."""
    found = types(ins)
    return found[-1] if found else "b32"


def signed(kind: str) -> bool:
    return kind[0] == "s"


# --- floats


def read_float(b: Builder, operand: Operand, kind: str, ftz: bool = False) -> str:
    """Return an ``f32`` or ``f64`` operand as an LLVM float.

    ``ftz`` flushes a subnormal f32 to a zero of its sign.
    """
    bits = b.read(operand, BITS[kind])
    if ftz and kind == "f32":
        bits = b.let(f"call i32 @flush(i32 {bits})")
    return b.let(f"bitcast i{BITS[kind]} {bits} to {FLOATS[kind]}")


def write_float(b: Builder, ins: Instruction, value: str, kind: str, canonical: bool = True) -> None:
    b.write(ins.operands[0], float_bits(b, ins, value, kind, canonical), BITS[kind])


def float_bits(b: Builder, ins: Instruction, value: str, kind: str, canonical: bool = True) -> str:
    """Return the bits of a result, with ``.sat``, the canonical NaN and ``.ftz`` applied."""
    if "sat" in ins.modifiers:
        value = saturate(b, value, kind)
    bits = b.let(f"bitcast {FLOATS[kind]} {value} to i{BITS[kind]}")
    if canonical:
        nan = b.let(f"fcmp uno {FLOATS[kind]} {value}, {value}")
        quiet = 0x7FFFFFFF if kind == "f32" else 0x7FF8000000000000
        bits = b.let(f"select i1 {nan}, i{BITS[kind]} {quiet}, i{BITS[kind]} {bits}")
    if "ftz" in ins.modifiers and kind == "f32":
        bits = b.let(f"call i32 @flush(i32 {bits})")
    return bits


def saturate(b: Builder, value: str, kind: str) -> str:
    """Clamp to [0, 1]; NaN becomes +0."""
    t = FLOATS[kind]
    low = b.let(f"fcmp ogt {t} {value}, 0.0")
    value = b.let(f"select i1 {low}, {t} {value}, {t} 0.0")
    high = b.let(f"fcmp olt {t} {value}, 1.0")
    return b.let(f"select i1 {high}, {t} {value}, {t} 1.0")


def rounding(ins: Instruction) -> str:
    return next((m for m in ins.modifiers if m in ROUNDINGS), "rn")


def widen(b: Builder, bits: str, kind: str) -> str:
    """Return an ``f16`` or ``bf16`` (i16) as an LLVM float, which is exact."""
    if kind == "f16":
        return b.let(f"fpext half {b.let(f'bitcast i16 {bits} to half')} to float")
    wide = b.let(f"shl i32 {b.let(f'zext i16 {bits} to i32')}, 16")
    return b.let(f"bitcast i32 {wide} to float")


def narrow(b: Builder, value: str, kind: str, mode: str = "rn") -> str:
    """Round a float to ``f16`` or ``bf16`` bits (i16). NaN gives 0x7fff."""
    bits = b.let(f"bitcast float {value} to i32")
    if mode not in ("rn", "rz"):
        raise ValueError(mode)
    return b.let(f"call i16 @{kind}_{mode}(i32 {bits})")


def lanes(b: Builder, operand: Operand, kind: str) -> list[str]:
    """Return the i16 parts of an operand: one of a 16-bit type, two (low first) of a packed pair."""
    if not kind.endswith("x2"):
        return [b.read(operand, 16)]
    bits = b.read(operand, 32)
    return [b.let(f"trunc i32 {bits} to i16"), b.let(f"trunc i32 {b.let(f'lshr i32 {bits}, 16')} to i16")]


def join(b: Builder, parts: list[str]) -> tuple[str, int]:
    """Return one or two i16 parts as one value, and its width in bits."""
    if len(parts) == 1:
        return parts[0], 16
    low, high = (b.let(f"zext i16 {p} to i32") for p in parts)
    return b.let(f"or i32 {low}, {b.let(f'shl i32 {high}, 16')}"), 32


def halfwise(b: Builder, ins: Instruction, kind: str, compute: Callable[..., str]) -> None:
    """Apply ``compute(float, ...) -> float`` to each 16-bit lane and round the result once."""
    element = kind.removesuffix("x2")
    columns = [lanes(b, o, kind) for o in ins.operands[1:]]
    parts = []
    for lane in zip(*columns, strict=True):
        value = compute(*(widen(b, bits, element) for bits in lane))
        if "sat" in ins.modifiers:
            value = saturate(b, value, "f32")
        if "relu" in ins.modifiers:
            value = relu(b, value)
        parts.append(narrow(b, value, element))
    bits, width = join(b, parts)
    b.write(ins.operands[0], bits, width)


def relu(b: Builder, value: str) -> str:
    """Return max(value, +0). NaN stays."""
    negative = b.let(f"fcmp ole float {value}, 0.0")
    return b.let(f"select i1 {negative}, float 0.0, float {value}")


ARITHMETIC = {"add": "fadd", "sub": "fsub", "mul": "fmul"}


def float_binary(b: Builder, ins: Instruction, kind: str) -> None:
    if kind in HALVES:
        return halfwise(b, ins, kind, lambda x, y: b.let(f"{ARITHMETIC[ins.opcode]} float {x}, {y}"))
    ftz, t, mode = "ftz" in ins.modifiers, FLOATS[kind], rounding(ins)
    x, y = (read_float(b, o, kind, ftz) for o in ins.operands[1:3])
    if mode == "rn":
        value = b.let(f"{ARITHMETIC[ins.opcode]} {t} {x}, {y}")
    elif kind == "f32":
        # Exact in double precision up to a sticky last bit, then rounded once, in the mode asked for.
        x, y = (b.let(f"fpext float {v} to double") for v in (x, y))
        if ins.opcode == "mul":
            wide = b.let(f"fmul double {x}, {y}")
        else:
            addend = b.let(f"fneg double {y}") if ins.opcode == "sub" else y
            wide = b.let(f"call double @{exact_sum(mode)}(double {x}, double {addend})")
        value = b.let(f"call float @to_float_{mode}(double {wide})")
    else:
        raise b.unsupported(ins, f"rounding mode .{mode} for f64")
    write_float(b, ins, value, kind)
    return None


def exact_sum(mode: str) -> str:
    """Name the function that adds two doubles so that its rounding cannot show after the next one."""
    return "add_odd_down" if mode == "rm" else "add_odd"


@operation("fma")
def fma(b: Builder, ins: Instruction) -> None:
    # The product of halves is exact in double. The sum is rounded to odd: only the last rounding shows.
    kind = type_of(ins)
    if kind in HALVES:

        def once(x: str, y: str, z: str) -> str:
            x, y, z = (b.let(f"fpext float {v} to double") for v in (x, y, z))
            product = b.let(f"fmul double {x}, {y}")  # exact: at most 22 bits
            total = b.let(f"call double @add_odd(double {product}, double {z})")
            return b.let(f"call float @to_float_odd(double {total})")

        return halfwise(b, ins, kind, once)

    # LLVM's fma rounds to nearest. For other modes a double holds the product exactly.
    ftz, t, mode = "ftz" in ins.modifiers, FLOATS[kind], rounding(ins)
    x, y, z = (read_float(b, o, kind, ftz) for o in ins.operands[1:4])
    if mode == "rn":
        value = b.let(f"call {t} @llvm.fma.f{BITS[kind]}({t} {x}, {t} {y}, {t} {z})")
    elif kind == "f32":
        x, y, z = (b.let(f"fpext float {v} to double") for v in (x, y, z))
        product = b.let(f"fmul double {x}, {y}")  # exact: 48 bits
        wide = b.let(f"call double @{exact_sum(mode)}(double {product}, double {z})")
        value = b.let(f"call float @to_float_{mode}(double {wide})")
    else:
        raise b.unsupported(ins, f"rounding mode .{mode} for f64")
    return write_float(b, ins, value, kind)


def float_unary(name: str, compute: Callable[[Builder, str, str], str]) -> None:
    """Enter a function of one float in the table. ``compute`` takes the builder, the value and its type."""

    @operation(name)
    def lower(b: Builder, ins: Instruction) -> None:
        kind = type_of(ins)
        if kind in HALVES:
            return halfwise(b, ins, kind, lambda x: compute(b, x, "f32"))
        x = read_float(b, ins.operands[1], kind, "ftz" in ins.modifiers)
        return write_float(b, ins, compute(b, x, kind), kind)


def libm(name: str) -> Callable[[Builder, str, str], str]:
    """Call the C library in double precision: PTX defines these functions only up to an error bound."""

    def compute(b: Builder, x: str, kind: str) -> str:
        if kind == "f32":
            x = b.let(f"fpext float {x} to double")
        y = b.let(f"call double @{name}(double {x})")
        return b.let(f"fptrunc double {y} to float") if kind == "f32" else y

    return compute


float_unary("ex2", libm("exp2"))
float_unary("lg2", libm("log2"))
float_unary("sin", libm("sin"))
float_unary("cos", libm("cos"))
float_unary("tanh", libm("tanh"))
float_unary("rcp", lambda b, x, kind: b.let(f"fdiv {FLOATS[kind]} 1.0, {x}"))
float_unary(
    "sqrt", lambda b, x, kind: b.let(f"call {FLOATS[kind]} @llvm.sqrt.f{BITS[kind]}({FLOATS[kind]} {x})")
)


def reciprocal_root(b: Builder, x: str, kind: str) -> str:
    if kind == "f32":
        x = b.let(f"fpext float {x} to double")
    y = b.let(f"fdiv double 1.0, {b.let(f'call double @llvm.sqrt.f64(double {x})')}")
    return b.let(f"fptrunc double {y} to float") if kind == "f32" else y


float_unary("rsqrt", reciprocal_root)


@operation("min", "max")
def minmax(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    if kind in HALVES:
        return halfwise(b, ins, kind, lambda *v: float_minmax(b, ins, list(v), "f32"))
    if kind in FLOATS:
        values = [read_float(b, o, kind, "ftz" in ins.modifiers) for o in ins.operands[1:]]
        return write_float(b, ins, float_minmax(b, ins, values, kind), kind)
    order = ("s" if signed(kind) else "u") + ("lt" if ins.opcode == "min" else "gt")
    if kind in ("u16x2", "s16x2"):
        parts = []
        for x, y in zip(lanes(b, ins.operands[1], kind), lanes(b, ins.operands[2], kind), strict=True):
            parts.append(b.let(f"select i1 {b.let(f'icmp {order} i16 {x}, {y}')}, i16 {x}, i16 {y}"))
        bits, width = join(b, parts)
        return b.write(ins.operands[0], bits, width)
    n = BITS[kind]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    value = b.let(f"select i1 {b.let(f'icmp {order} i{n} {x}, {y}')}, i{n} {x}, i{n} {y}")
    if "relu" in ins.modifiers:
        value = b.let(f"select i1 {b.let(f'icmp sgt i{n} {value}, 0')}, i{n} {value}, i{n} 0")
    return b.write(ins.operands[0], value, n)


def float_minmax(b: Builder, ins: Instruction, values: list[str], kind: str) -> str:
    """IEEE minNum and maxNum with -0 < +0.

    With ``.NaN`` a NaN operand wins. With ``.xorsign.abs`` the result has the largest or smallest magnitude
    and the XOR of the signs.
    """
    t, n = FLOATS[kind], BITS[kind]
    sign = ""
    if "xorsign" in ins.modifiers:
        bits = [b.let(f"bitcast {t} {v} to i{n}") for v in values]
        sign = b.let(f"and i{n} {b.let(f'xor i{n} {bits[0]}, {bits[1]}')}, {-(1 << (n - 1))}")
        values = [b.let(f"call {t} @llvm.fabs.f{n}({t} {v})") for v in values]
    name = ("minimum" if ins.opcode == "min" else "maximum") + ("_nan" if "NaN" in ins.modifiers else "")
    value = values[0]
    for other in values[1:]:
        value = b.let(f"call {t} @{name}_f{n}({t} {value}, {t} {other})")
    if sign:
        magnitude = b.let(f"bitcast {t} {value} to i{n}")
        value = b.let(f"bitcast i{n} {b.let(f'or i{n} {magnitude}, {sign}')} to {t}")
    return value


@operation("abs", "neg")
def sign_operation(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    n = BITS[kind]
    x = b.read(ins.operands[1], n)
    if kind in FLOATS or kind in HALVES:
        mask = 1 << (n - 1) if not kind.endswith("x2") else 0x80008000
        if "ftz" in ins.modifiers and kind == "f32":
            x = b.let(f"call i32 @flush(i32 {x})")
        flipped = ins.opcode == "neg"
        value = b.let(f"xor i{n} {x}, {mask}" if flipped else f"and i{n} {x}, {~mask & ((1 << n) - 1)}")
        if kind == "f32":
            value = b.let(f"call i32 @quiet(i32 {value})")
        return b.write(ins.operands[0], value, n)
    negative = b.let(f"sub i{n} 0, {x}")
    if ins.opcode == "abs":
        negative = b.let(f"select i1 {b.let(f'icmp slt i{n} {x}, 0')}, i{n} {negative}, i{n} {x}")
    return b.write(ins.operands[0], negative, n)


@operation("copysign")
def copysign(b: Builder, ins: Instruction) -> None:
    n = BITS[type_of(ins)]
    sign, magnitude = (b.read(o, n) for o in ins.operands[1:3])
    sign = b.let(f"and i{n} {sign}, {-(1 << (n - 1))}")
    magnitude = b.let(f"and i{n} {magnitude}, {(1 << (n - 1)) - 1}")
    b.write(ins.operands[0], b.let(f"or i{n} {sign}, {magnitude}"), n)


#: Tests of testp as sets of llvm.is.fpclass.
FLOAT_CLASSES = {
    "finite": 0x1F8,
    "infinite": 0x204,
    "number": 0x3FC,
    "notanumber": 0x3,
    "normal": 0x108,
    "subnormal": 0x90,
}


@operation("testp")
def testp(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    test = next(FLOAT_CLASSES[m] for m in ins.modifiers if m in FLOAT_CLASSES)
    x = read_float(b, ins.operands[1], kind)
    value = b.let(f"call i1 @llvm.is.fpclass.f{BITS[kind]}({FLOATS[kind]} {x}, i32 {test})")
    b.write(ins.operands[0], value, 1)


# --- integers


@operation("add", "sub", "mul")
def add_sub_mul(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    if kind in FLOATS or kind in HALVES:
        return float_binary(b, ins, kind)
    if ins.opcode == "mul":
        return b.write(ins.operands[0], *product(b, ins, kind))
    n = BITS[kind]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    if kind in ("u16x2", "s16x2"):
        pairs = zip(lanes(b, ins.operands[1], kind), lanes(b, ins.operands[2], kind), strict=True)
        bits, width = join(b, [b.let(f"{ins.opcode} i16 {p}, {q}") for p, q in pairs])
        return b.write(ins.operands[0], bits, width)
    if "cc" in ins.modifiers:
        return carry_chain(b, ins, n, x, y, carry_in=False)
    if "sat" in ins.modifiers:
        value = b.let(f"call i{n} @llvm.s{ins.opcode}.sat.i{n}(i{n} {x}, i{n} {y})")
        return b.write(ins.operands[0], value, n)
    return b.write(ins.operands[0], b.let(f"{ins.opcode} i{n} {x}, {y}"), n)


@operation("addc", "subc")
def with_carry(b: Builder, ins: Instruction) -> None:
    n = BITS[type_of(ins)]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    carry_chain(b, ins, n, x, y, carry_in=True)


def carry_chain(b: Builder, ins: Instruction, n: int, x: str, y: str, carry_in: bool) -> None:
    """add.cc, addc, sub.cc and subc, over the condition-code register ``%cc`` (one bit)."""
    op = ins.opcode[:3]
    w = n + 1
    x, y = (b.let(f"zext i{n} {v} to i{w}") for v in (x, y))
    total = b.let(f"{op} i{w} {x}, {y}")
    if carry_in:
        carry = b.let(f"zext i1 {b.let('load i1, ptr %cc')} to i{w}")
        total = b.let(f"{op} i{w} {total}, {carry}")
    if "cc" in ins.modifiers:
        inner = b.let(f"lshr i{w} {total}, {n}")
        b.emit(f"store i1 {b.let(f'trunc i{w} {inner} to i1')}, ptr %cc")
    b.write(ins.operands[0], b.let(f"trunc i{w} {total} to i{n}"), n)


def product(b: Builder, ins: Instruction, kind: str) -> tuple[str, int]:
    """Return the ``.lo`` (default), ``.hi`` or ``.wide`` product of the first two sources, and its width."""
    n = BITS[kind]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    if "wide" in ins.modifiers or "hi" in ins.modifiers:
        extend = "sext" if signed(kind) else "zext"
        x, y = (b.let(f"{extend} i{n} {v} to i{2 * n}") for v in (x, y))
        wide = b.let(f"mul i{2 * n} {x}, {y}")
        if "wide" in ins.modifiers:
            return wide, 2 * n
        return b.let(f"trunc i{2 * n} {b.let(f'lshr i{2 * n} {wide}, {n}')} to i{n}"), n
    return b.let(f"mul i{n} {x}, {y}"), n


@operation("mad", "madc")
def mad(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    if kind in FLOATS:
        return fma(b, ins)
    value, n = product(b, ins, kind)
    addend = b.read(ins.operands[3], n)
    if "cc" in ins.modifiers or ins.opcode == "madc":
        chained = replace(ins, opcode="add")
        return carry_chain(b, chained, n, value, addend, carry_in=ins.opcode == "madc")
    if "sat" in ins.modifiers:
        total = b.let(f"call i{n} @llvm.sadd.sat.i{n}(i{n} {value}, i{n} {addend})")
        return b.write(ins.operands[0], total, n)
    return b.write(ins.operands[0], b.let(f"add i{n} {value}, {addend}"), n)


@operation("mul24", "mad24")
def mul24(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    shift = "ashr" if signed(kind) else "lshr"
    x, y = (b.let(f"{shift} i32 {b.let(f'shl i32 {b.read(o, 32)}, 8')}, 8") for o in ins.operands[1:3])
    extend = "sext" if signed(kind) else "zext"
    wide = b.let(f"mul i64 {b.let(f'{extend} i32 {x} to i64')}, {b.let(f'{extend} i32 {y} to i64')}")
    if "hi" in ins.modifiers:
        wide = b.let(f"lshr i64 {wide}, 16")
    value = b.let(f"trunc i64 {wide} to i32")
    if ins.opcode == "mad24":
        value = b.let(f"add i32 {value}, {b.read(ins.operands[3], 32)}")
    b.write(ins.operands[0], value, 32)


@operation("sad")
def sad(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    n = BITS[kind]
    x, y, z = (b.read(o, n) for o in ins.operands[1:4])
    less = b.let(f"icmp {'s' if signed(kind) else 'u'}lt i{n} {x}, {y}")
    up, down = b.let(f"sub i{n} {y}, {x}"), b.let(f"sub i{n} {x}, {y}")
    distance = b.let(f"select i1 {less}, i{n} {up}, i{n} {down}")
    b.write(ins.operands[0], b.let(f"add i{n} {z}, {distance}"), n)


@operation("div", "rem")
def divide(b: Builder, ins: Instruction) -> None:
    """Division by zero does not fault on a GPU: the quotient is all ones, the remainder the dividend."""
    kind = type_of(ins)
    if kind in HALVES:
        return halfwise(b, ins, kind, lambda x, y: b.let(f"fdiv float {x}, {y}"))
    if kind in FLOATS:
        x, y = (read_float(b, o, kind, "ftz" in ins.modifiers) for o in ins.operands[1:3])
        if rounding(ins) != "rn":
            raise b.unsupported(ins, f"division with rounding mode .{rounding(ins)}")
        return write_float(b, ins, b.let(f"fdiv {FLOATS[kind]} {x}, {y}"), kind)
    n = BITS[kind]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    zero = b.let(f"icmp eq i{n} {y}, 0")
    unsafe = zero
    if signed(kind):
        lowest = b.let(f"icmp eq i{n} {x}, {-(1 << (n - 1))}")
        inner = b.let(f"icmp eq i{n} {y}, -1")
        unsafe = b.let(f"or i1 {zero}, {b.let(f'and i1 {lowest}, {inner}')}")
    safe = b.let(f"select i1 {unsafe}, i{n} 1, i{n} {y}")
    value = b.let(f"{'s' if signed(kind) else 'u'}{ins.opcode} i{n} {x}, {safe}")
    value = b.let(f"select i1 {zero}, i{n} {'-1' if ins.opcode == 'div' else x}, i{n} {value}")
    return b.write(ins.operands[0], value, n)


@operation("and", "or", "xor", "not", "cnot")
def logic(b: Builder, ins: Instruction) -> None:
    n = BITS[type_of(ins)]
    x = b.read(ins.operands[1], n)
    if ins.opcode == "not":
        value = b.let(f"xor i{n} {x}, -1")
    elif ins.opcode == "cnot":
        value = b.let(f"zext i1 {b.let(f'icmp eq i{n} {x}, 0')} to i{n}")
    else:
        value = b.let(f"{ins.opcode} i{n} {x}, {b.read(ins.operands[2], n)}")
    b.write(ins.operands[0], value, n)


@operation("shl", "shr")
def shift(b: Builder, ins: Instruction) -> None:
    """Shift counts are unsigned and clamp at the width."""
    kind = type_of(ins)
    n = BITS[kind]
    x, wide = b.read(ins.operands[1], n), b.read(ins.operands[2], 32)
    inside = b.let(f"icmp ult i32 {wide}, {n}")
    capped = b.let(f"select i1 {inside}, i32 {wide}, i32 {n - 1}")
    count = capped if n == 32 else b.let(f"{'zext' if n > 32 else 'trunc'} i32 {capped} to i{n}")
    if ins.opcode == "shr" and signed(kind):
        return b.write(ins.operands[0], b.let(f"ashr i{n} {x}, {count}"), n)
    value = b.let(f"{'shl' if ins.opcode == 'shl' else 'lshr'} i{n} {x}, {count}")
    return b.write(ins.operands[0], b.let(f"select i1 {inside}, i{n} {value}, i{n} 0"), n)


@operation("shf")
def funnel_shift(b: Builder, ins: Instruction) -> None:
    low, high, count = (b.read(o, 32) for o in ins.operands[1:4])
    if "clamp" in ins.modifiers:
        count = b.let(f"select i1 {b.let(f'icmp ult i32 {count}, 32')}, i32 {count}, i32 32")
    else:
        count = b.let(f"and i32 {count}, 31")
    inner = b.let(f"zext i32 {high} to i64")
    wide = b.let(f"or i64 {b.let(f'shl i64 {inner}, 32')}, {b.let(f'zext i32 {low} to i64')}")
    count = b.let(f"zext i32 {count} to i64")
    if "l" in ins.modifiers:
        wide = b.let(f"lshr i64 {b.let(f'shl i64 {wide}, {count}')}, 32")
    else:
        wide = b.let(f"lshr i64 {wide}, {count}")
    b.write(ins.operands[0], b.let(f"trunc i64 {wide} to i32"), 32)


@operation("lop3")
def lop3(b: Builder, ins: Instruction) -> None:
    """Compute any function of three bits from its truth table, as an OR of minterms."""
    boolean = next((m for m in ins.modifiers if m in ("and", "or")), None)
    destination, *sources = ins.operands
    x, y, z = (b.read(o, 32) for o in sources[:3])
    table = immediate(sources[3])
    value = "0"
    for index in range(8):
        if table >> index & 1:
            term = [v if index >> (2 - i) & 1 else b.let(f"xor i32 {v}, -1") for i, v in enumerate((x, y, z))]
            minterm = b.let(f"and i32 {b.let(f'and i32 {term[0]}, {term[1]}')}, {term[2]}")
            value = b.let(f"or i32 {value}, {minterm}")
    if boolean:
        assert isinstance(destination, Pair)
        result = b.let(f"icmp ne i32 {value}, 0")
        b.write(destination.second, b.let(f"{boolean} i1 {result}, {b.read(sources[4], 1)}"), 1)
        destination = destination.first
    b.write(destination, value, 32)


#: The selector that a mode of prmt stands for, by the two low bits of the third source.
PERMUTATIONS = {
    "f4e": (0x3210, 0x4321, 0x5432, 0x6543),
    "b4e": (0x5670, 0x6701, 0x7012, 0x0123),
    "rc8": (0x0000, 0x1111, 0x2222, 0x3333),
    "ecl": (0x3210, 0x3211, 0x3222, 0x3333),
    "ecr": (0x0000, 0x1110, 0x2210, 0x3210),
    "rc16": (0x1010, 0x3232, 0x1010, 0x3232),
}


@operation("prmt")
def permute(b: Builder, ins: Instruction) -> None:
    mode = next((m for m in ins.modifiers if m in PERMUTATIONS), "")
    x, y, selector = (b.read(o, 32) for o in ins.operands[1:4])
    if mode:
        table = PERMUTATIONS[mode]
        chosen = b.let(f"and i32 {selector}, 3")
        selector = str(table[3])
        for index in range(2, -1, -1):
            here = b.let(f"icmp eq i32 {chosen}, {index}")
            selector = b.let(f"select i1 {here}, i32 {table[index]}, i32 {selector}")

    # Each nibble of the selector picks one of the eight bytes, or replicates its sign bit.
    inner = b.let(f"zext i32 {y} to i64")
    wide = b.let(f"or i64 {b.let(f'shl i64 {inner}, 32')}, {b.let(f'zext i32 {x} to i64')}")
    value = "0"
    for index in range(4):
        nibble = b.let(f"lshr i32 {selector}, {4 * index}")
        inner = b.let(f"and i32 {nibble}, 7")
        amount = b.let(f"zext i32 {b.let(f'shl i32 {inner}, 3')} to i64")
        byte = b.let(f"trunc i64 {b.let(f'lshr i64 {wide}, {amount}')} to i8")
        replicate = b.let(f"icmp ne i32 {b.let(f'and i32 {nibble}, 8')}, 0")
        byte = b.let(f"select i1 {replicate}, i8 {b.let(f'ashr i8 {byte}, 7')}, i8 {byte}")
        placed = b.let(f"shl i32 {b.let(f'zext i8 {byte} to i32')}, {8 * index}")
        value = b.let(f"or i32 {value}, {placed}")
    b.write(ins.operands[0], value, 32)


def immediate(operand: Operand) -> int:
    """Return the value of a constant operand."""
    if not isinstance(operand, Immediate):
        raise ValueError("expected an immediate operand")
    return operand.value


@operation("bfe", "bfi", "szext", "bmsk")
def bit_field(b: Builder, ins: Instruction) -> None:
    """Call functions of runtime.ll: position and length may be registers, and clamp at the width."""
    kind = type_of(ins)
    n = BITS[kind]
    t = f"i{n}"
    if ins.opcode == "bfe":
        x = b.read(ins.operands[1], n)
        position, length = b.read(ins.operands[2], 32), b.read(ins.operands[3], 32)
        name = f"bfe_{'s' if signed(kind) else 'u'}{n}"
        value = b.let(f"call {t} @{name}({t} {x}, i32 {position}, i32 {length})")
    elif ins.opcode == "bfi":
        x, y = b.read(ins.operands[1], n), b.read(ins.operands[2], n)
        position, length = b.read(ins.operands[3], 32), b.read(ins.operands[4], 32)
        value = b.let(f"call {t} @bfi_{n}({t} {x}, {t} {y}, i32 {position}, i32 {length})")
    else:
        raise b.unsupported(ins, "this bit-field instruction")
    b.write(ins.operands[0], value, n)


@operation("brev", "popc", "clz", "bfind")
def bit_count(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    n = BITS[kind]
    x = b.read(ins.operands[1], n)
    if ins.opcode == "brev":
        return b.write(ins.operands[0], b.let(f"call i{n} @llvm.bitreverse.i{n}(i{n} {x})"), n)
    if ins.opcode == "bfind" and signed(kind):
        x = b.let(f"xor i{n} {x}, {b.let(f'ashr i{n} {x}, {n - 1}')}")
    if ins.opcode == "popc":
        value = b.let(f"call i{n} @llvm.ctpop.i{n}(i{n} {x})")
    else:
        value = b.let(f"call i{n} @llvm.ctlz.i{n}(i{n} {x}, i1 false)")
    if n == 64:
        value = b.let(f"trunc i64 {value} to i32")
    if ins.opcode == "bfind":
        none = b.let(f"icmp eq i32 {value}, {n}")
        if "shiftamt" not in ins.modifiers:
            value = b.let(f"sub i32 {n - 1}, {value}")
        value = b.let(f"select i1 {none}, i32 -1, i32 {value}")
    return b.write(ins.operands[0], value, 32)


@operation("dp4a", "dp2a")
def dot_product(b: Builder, ins: Instruction) -> None:
    first, second = types(ins)
    x, y, total = (b.read(o, 32) for o in ins.operands[1:4])
    count, width = (4, 8) if ins.opcode == "dp4a" else (2, 16)
    for index in range(count):
        part = b.let(f"trunc i32 {b.let(f'lshr i32 {x}, {width * index}')} to i{width}")
        at = 8 * index + (16 if "hi" in ins.modifiers else 0)
        other = b.let(f"trunc i32 {b.let(f'lshr i32 {y}, {at}')} to i8")
        left = b.let(f"{'sext' if signed(first) else 'zext'} i{width} {part} to i32")
        right = b.let(f"{'sext' if signed(second) else 'zext'} i8 {other} to i32")
        total = b.let(f"add i32 {total}, {b.let(f'mul i32 {left}, {right}')}")
    b.write(ins.operands[0], total, 32)


# --- comparison, selection

INTEGER_ORDER = {
    "eq": "eq",
    "ne": "ne",
    "lt": "lt",
    "le": "le",
    "gt": "gt",
    "ge": "ge",
    "lo": "lt",
    "ls": "le",
    "hi": "gt",
    "hs": "ge",
}
FLOAT_ORDER = {
    "eq": "oeq", "ne": "one", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge",
    "equ": "ueq", "neu": "une", "ltu": "ult", "leu": "ule", "gtu": "ugt", "geu": "uge", "num": "ord", "nan": "uno",
}  # fmt: skip


def compare(b: Builder, ins: Instruction, kind: str, x: Operand, y: Operand) -> list[str]:
    """Return one i1, or two for a packed type."""
    order = next(m for m in ins.modifiers if m in FLOAT_ORDER or m in INTEGER_ORDER)
    if kind in HALVES:
        element = kind.removesuffix("x2")
        pairs = zip(lanes(b, x, kind), lanes(b, y, kind), strict=True)
        return [
            b.let(f"fcmp {FLOAT_ORDER[order]} float {widen(b, p, element)}, {widen(b, q, element)}")
            for p, q in pairs
        ]
    if kind in FLOATS:
        left, right = (read_float(b, o, kind, "ftz" in ins.modifiers) for o in (x, y))
        return [b.let(f"fcmp {FLOAT_ORDER[order]} {FLOATS[kind]} {left}, {right}")]
    n = BITS[kind]
    prefix = "" if order in ("eq", "ne") else ("s" if signed(kind) else "u")
    return [b.let(f"icmp {prefix}{INTEGER_ORDER[order]} i{n} {b.read(x, n)}, {b.read(y, n)}")]


def combine(b: Builder, ins: Instruction, value: str) -> str:
    """Combine an i1 with the third source, a predicate, by ``.and``, ``.or`` or ``.xor`` if there is one."""
    boolean = next((m for m in ins.modifiers if m in ("and", "or", "xor")), None)
    return b.let(f"{boolean} i1 {value}, {b.read(ins.operands[3], 1)}") if boolean else value


@operation("setp")
def setp(b: Builder, ins: Instruction) -> None:
    kind = type_of(ins)
    values = compare(b, ins, kind, ins.operands[1], ins.operands[2])
    destination = ins.operands[0]
    if isinstance(destination, Pair):
        if len(values) == 1:
            values.append(b.let(f"xor i1 {values[0]}, true"))
        combined = [combine(b, ins, v) for v in values]
        b.write(destination.first, combined[0], 1)
        b.write(destination.second, combined[1], 1)
    else:
        b.write(destination, combine(b, ins, values[0]), 1)


@operation("set")
def set_value(b: Builder, ins: Instruction) -> None:
    result, kind = types(ins)
    values = [combine(b, ins, v) for v in compare(b, ins, kind, ins.operands[1], ins.operands[2])]
    if result.endswith("x2"):
        one = "15360" if result == "f16x2" else "16256"
        bits, width = join(b, [b.let(f"select i1 {v}, i16 {one}, i16 0") for v in values])
        return b.write(ins.operands[0], bits, width)
    n = BITS[result]
    one = {"f32": str(0x3F800000), "f16": str(0x3C00), "bf16": str(0x3F80)}.get(result, "-1")
    return b.write(ins.operands[0], b.let(f"select i1 {values[0]}, i{n} {one}, i{n} 0"), n)


@operation("selp")
def selp(b: Builder, ins: Instruction) -> None:
    n = BITS[type_of(ins)]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    b.write(ins.operands[0], b.let(f"select i1 {b.read(ins.operands[3], 1)}, i{n} {x}, i{n} {y}"), n)


@operation("slct")
def slct(b: Builder, ins: Instruction) -> None:
    result, kind = types(ins)
    n = BITS[result]
    x, y = (b.read(o, n) for o in ins.operands[1:3])
    if kind == "f32":
        choose = b.let(f"fcmp oge float {read_float(b, ins.operands[3], kind)}, 0.0")
    else:
        choose = b.let(f"icmp sge i32 {b.read(ins.operands[3], 32)}, 0")
    b.write(ins.operands[0], b.let(f"select i1 {choose}, i{n} {x}, i{n} {y}"), n)


@operation("mov")
def mov(b: Builder, ins: Instruction) -> None:
    n = BITS[type_of(ins)]
    destination, source = ins.operands
    if isinstance(destination, Vector):
        value, part = b.read(source, n), n // len(destination.items)
        for index, item in enumerate(destination.items):
            shifted = b.let(f"lshr i{n} {value}, {part * index}")
            b.write(item, b.let(f"trunc i{n} {shifted} to i{part}"), part)
    elif isinstance(source, Vector):
        part, value = n // len(source.items), "0"
        for index, item in enumerate(source.items):
            wide = b.let(f"zext i{part} {b.read(item, part)} to i{n}")
            value = b.let(f"or i{n} {value}, {b.let(f'shl i{n} {wide}, {part * index}')}")
        b.write(destination, value, n)
    else:
        b.write(destination, b.read(source, n), n)


# --- conversion


@operation("cvt")
def cvt(b: Builder, ins: Instruction) -> None:
    # FP8 values come in pairs, and have functions of their own.
    to, source = types(ins)[:2]
    mode = rounding(ins)
    if to in ("e4m3x2", "e5m2x2"):
        return to_fp8(b, ins, to, source)
    if source in ("e4m3x2", "e5m2x2"):
        pair = b.read(ins.operands[1], 16)
        low, high = b.let(f"and i16 {pair}, 255"), b.let(f"lshr i16 {pair}, 8")
        bits, width = join(b, [b.let(f"call i16 @{source[:4]}_to_f16(i16 {v})") for v in (low, high)])
        if "relu" in ins.modifiers:
            raise b.unsupported(ins, ".relu on this conversion")
        return b.write(ins.operands[0], bits, width)

    # A packed result has two sources, the high half first.
    if to in ("f16x2", "bf16x2"):  # d = {a (high), b (low)}
        parts = []
        for operand in (ins.operands[2], ins.operands[1]):
            value = read_float(b, operand, source)
            parts.append(narrow(b, relu(b, value) if "relu" in ins.modifiers else value, to[:-2], mode))
        bits, width = join(b, parts)
        return b.write(ins.operands[0], bits, width)

    # TF32 is a float with fewer bits.
    if to == "tf32":
        value = b.let(f"call i32 @tf32_{mode}(i32 {b.read(ins.operands[1], 32)})")
        return b.write(ins.operands[0], value, 32)

    # The other conversions have one value on each side.
    source_float, to_float = source in FLOATS or source in HALVES, to in FLOATS or to in HALVES
    if not source_float and not to_float:
        return integer_to_integer(b, ins, to, source)
    if not source_float:
        return integer_to_float(b, ins, to, source, mode)
    if not to_float:
        return float_to_integer(b, ins, to, source, mode)
    return float_to_float(b, ins, to, source, mode)


def integer_to_integer(b: Builder, ins: Instruction, to: str, source: str) -> None:
    n, m = BITS[to], BITS[source]
    value = b.read(ins.operands[1], m)
    if "sat" in ins.modifiers:
        wide = b.let(f"{'sext' if signed(source) else 'zext'} i{m} {value} to i128")
        low, high = (-(1 << (n - 1)), (1 << (n - 1)) - 1) if signed(to) else (0, (1 << n) - 1)
        wide = b.let(f"select i1 {b.let(f'icmp slt i128 {wide}, {low}')}, i128 {low}, i128 {wide}")
        wide = b.let(f"select i1 {b.let(f'icmp sgt i128 {wide}, {high}')}, i128 {high}, i128 {wide}")
        value = b.let(f"trunc i128 {wide} to i{n}")
    elif n > m:
        value = b.let(f"{'sext' if signed(source) else 'zext'} i{m} {value} to i{n}")
    elif n < m:
        value = b.let(f"trunc i{m} {value} to i{n}")
    write_extended(b, ins, value, n, signed(to))


def write_extended(b: Builder, ins: Instruction, value: str, n: int, is_signed: bool) -> None:
    """Write an integer. The register may be wider than the type, and holds the value extended by its sign."""
    if n < 32 and is_signed:
        value, n = b.let(f"sext i{n} {value} to i32"), 32
    b.write(ins.operands[0], value, n)


def integer_to_float(b: Builder, ins: Instruction, to: str, source: str, mode: str) -> None:
    m = BITS[source]
    value, convert = b.read(ins.operands[1], m), "sitofp" if signed(source) else "uitofp"
    if to == "f64":
        if mode != "rn" and m == 64:
            raise b.unsupported(ins, f"rounding mode .{mode}")
        return write_float(b, ins, b.let(f"{convert} i{m} {value} to double"), "f64", canonical=False)
    if mode == "rn" and to == "f32":
        return write_float(b, ins, b.let(f"{convert} i{m} {value} to float"), "f32", canonical=False)
    odd = b.let(f"call double @{convert}_odd_i64(i64 {extend64(b, value, m, signed(source))})")
    if to == "f32":
        value = b.let(f"call float @to_float_{mode}(double {odd})")
        return write_float(b, ins, value, "f32", canonical=False)
    return b.write(ins.operands[0], narrow(b, b.let(f"call float @to_float_odd(double {odd})"), to, mode), 16)


def extend64(b: Builder, value: str, m: int, is_signed: bool) -> str:
    return value if m == 64 else b.let(f"{'sext' if is_signed else 'zext'} i{m} {value} to i64")


def float_operand(b: Builder, ins: Instruction, source: str) -> tuple[str, str]:
    """Return the source as an LLVM float or double, and its type ("f32" or "f64")."""
    if source in HALVES:
        return widen(b, b.read(ins.operands[1], 16), source), "f32"
    return read_float(b, ins.operands[1], source, "ftz" in ins.modifiers), source


INTEGRAL = {"rni": "roundeven", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}


def float_to_integer(b: Builder, ins: Instruction, to: str, source: str, mode: str) -> None:
    """A value out of range saturates.

    NaN gives 0, except for a double source or a 64-bit result: there it gives the highest bit alone (PTX ISA,
    "cvt").
    """
    value, kind = float_operand(b, ins, source)
    t, n = FLOATS[kind], BITS[to]
    value = b.let(f"call {t} @llvm.{INTEGRAL.get(mode, 'trunc')}.f{BITS[kind]}({t} {value})")
    result = b.let(f"call i{n} @llvm.fpto{'s' if signed(to) else 'u'}i.sat.i{n}.f{BITS[kind]}({t} {value})")
    if n == 64 or kind == "f64":
        nan = b.let(f"fcmp uno {t} {value}, {value}")
        result = b.let(f"select i1 {nan}, i{n} {-(1 << (n - 1))}, i{n} {result}")
    write_extended(b, ins, result, n, signed(to))


def float_to_float(b: Builder, ins: Instruction, to: str, source: str, mode: str) -> None:
    value, kind = float_operand(b, ins, source)
    if mode in INTEGRAL:
        t = FLOATS[kind]
        value, mode = b.let(f"call {t} @llvm.{INTEGRAL[mode]}.f{BITS[kind]}({t} {value})"), "rn"
    if to == kind:
        return write_float(b, ins, value, to)
    if to == "f64":
        return write_float(b, ins, b.let(f"fpext float {value} to double"), to)
    if kind == "f64":
        narrowing = mode if to == "f32" else "odd"
        nearest = f"fptrunc double {value} to float"
        value = b.let(nearest if narrowing == "rn" else f"call float @to_float_{narrowing}(double {value})")
    if to == "f32":
        return write_float(b, ins, value, to)
    if "sat" in ins.modifiers:
        value = saturate(b, value, "f32")
    if "relu" in ins.modifiers:
        value = relu(b, value)
    return b.write(ins.operands[0], narrow(b, value, to, mode), 16)


def to_fp8(b: Builder, ins: Instruction, to: str, source: str) -> None:
    """Pack two FP8 values, a in the high byte and b in the low one, from two f32 or from a packed f16x2."""
    if source == "f32":
        values = [read_float(b, o, "f32") for o in (ins.operands[2], ins.operands[1])]
    else:
        values = [widen(b, bits, source[:-2]) for bits in lanes(b, ins.operands[1], source)]
    if "relu" in ins.modifiers:
        values = [relu(b, v) for v in values]
    low, high = (b.let(f"call i16 @to_{to[:4]}(float {v})") for v in values)
    b.write(ins.operands[0], b.let(f"or i16 {low}, {b.let(f'shl i16 {high}, 8')}"), 16)
