"""The PTX parser and the splicing of calls, on PTX by hand with every form of the grammar and by NVRTC."""

from __future__ import annotations

import struct
import time

import pytest

from minigemm.emulator.errors import EmulatorError, Unsupported
from minigemm.emulator.ptx.inlining import inline_calls
from minigemm.emulator.ptx.module import (
    Address,
    Function,
    Immediate,
    Label,
    Module,
    Negated,
    Pair,
    Part,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from minigemm.emulator.ptx.parse import parse
from tests.emulator.nvrtc import ptx

HEAD = ".version 8.4\n.target sm_90a\n.address_size 64\n"


def body(code: str, before: str = "") -> Function:
    """The kernel `k` with `code` in it, some registers and variables declared."""
    module = parse(
        f"""{HEAD}.global .align 4 .b8 table[64]; {before}
        .visible .entry k(.param .u64 k_param_0, .param .align 64 .b8 map[128]) {{
        .reg .pred %p<4>; .reg .b32 %r<100>; .reg .b64 %rd<10>; .reg .f32 %f<4>; .reg .v4 .f32 quad;
        {code}
        }}"""
    )
    return module.functions["k"]


def names(function: Function) -> list[str]:
    return [instruction.name for instruction in function.code]


R1, P1 = Register("%r1"), Register("%p1")
OPERANDS = {
    "%r1": R1,
    "%tid.x": Special("%tid.x"),
    "%cluster_ctaid.y": Special("%cluster_ctaid.y"),
    "%clock64": Special("%clock64"),
    "%lanemask_lt": Special("%lanemask_lt"),
    "WARP_SZ": Immediate(32),
    "_": Sink(),
    "!%p1": Negated(P1),
    "! %p1": Negated(P1),
    "%r1|%p1": Pair(R1, P1),
    "_ | %p1": Pair(Sink(), P1),
    "%r1.b3": Part(R1, "b3"),
    "%r1.h1": Part(R1, "h1"),
    "quad.z": Register("quad.z"),
    "quad": Vector(tuple(Register(f"quad.{letter}") for letter in "xyzw")),
    "{%r1, %r2,_,7}": Vector((R1, Register("%r2"), Sink(), Immediate(7))),
    "0": Immediate(0),
    "-4": Immediate(-4),
    "42U": Immediate(42),
    "017": Immediate(15),
    "0x1fU": Immediate(31),
    "0b101": Immediate(5),
    "-9223372036854775808": Immediate(-(2**63)),
    "0xFFFFFFFFFFFFFFFF": Immediate(2**64 - 1),
    "0f3F800000": Immediate(0x3F800000, "f32"),
    "0dBFF0000000000000": Immediate(0xBFF0000000000000, "f64"),
    "1.5": Immediate(0x3FF8000000000000, "f64"),
    "-2e-1": Immediate(struct.unpack("<Q", struct.pack("<d", -0.2))[0], "f64"),
    "(1 + 2) * 3 << 1": Immediate(18),
    "~0 & 0xff": Immediate(255),
    "-7 / 2": Immediate(-3),
    "-7 % 4": Immediate(-3),
    "!1 || 5 >= 4 && 2 != 2": Immediate(0),
    "(1 == 1) ? 10 : 20": Immediate(10),
    "(.s64) 0xFFFFFFFFFFFFFFFE": Immediate(-2),
    "table": Symbol("table"),
    "table+16": Symbol("table", 16),
    "table - (4*2)": Symbol("table", -8),
    "generic(table) + 4": Symbol("table", 4),
    "k_param_0": Symbol("k_param_0"),
    "[%rd1]": Address(Register("%rd1")),
    "[%rd1+8]": Address(Register("%rd1"), 8),
    "[ %rd1 + 0x10 ]": Address(Register("%rd1"), 16),
    "[%rd1+-8]": Address(Register("%rd1"), -8),
    "[%rd1-8]": Address(Register("%rd1"), -8),
    "[table+4]": Address(Symbol("table"), 4),
    "[4096]": Address(Immediate(4096)),
    "[%rd1, {%r1, 5}]": Address(Register("%rd1"), 0, (R1, Immediate(5))),
    "[map, {%r1}]": Address(Symbol("map"), 0, (R1,)),
}


@pytest.mark.parametrize("text", OPERANDS)
def test_operands(text):
    code = body(f"op.b32 {text}, %r2,\n\t{text} ;").code
    assert code[0].operands == (OPERANDS[text], Register("%r2"), OPERANDS[text])


def number(form: str, *values: float) -> bytes:
    return struct.pack(f"<{len(values)}{form}", *values)


VARIABLES = {
    ".global .align 4 .u32 v = 5;": ("global", 4, 4, number("I", 5), ()),
    ".visible .global .u64 v;": ("global", 8, 8, None, ()),
    ".const .align 16 .b8 v[6] = {1, 2, 255};": ("const", 16, 6, b"\1\2\xff\0\0\0", ()),
    ".const .s32 v[3] = {-1, 010, 0x10};": ("const", 4, 12, number("i", -1, 8, 16), ()),
    ".global .u16 v[2][3] = {{1, 2}, {4, 5, 6}};": ("global", 2, 12, number("H", 1, 2, 0, 4, 5, 6), ()),
    ".global .f32 v[3] = {1.5, 0f40000000, 0d4008000000000000};": (
        "global",
        4,
        12,
        number("f", 1.5, 2, 3),
        (),
    ),
    ".global .f64 v[] = {1.5, 0f40000000};": ("global", 8, 16, number("d", 1.5, 2), ()),
    ".global .v4 .f32 v = {1.0, 2.0, 3.0, 4.0};": ("global", 16, 16, number("f", 1, 2, 3, 4), ()),
    '.global .b8 v[] = "a;{b}";': ("global", 1, 6, b"a;{b}\0", ()),
    ".global .u64 v = generic(table)+4;": ("global", 8, 8, bytes(8), ((0, "table", 4),)),
    ".global .u64 v[3] = {table, 7, k0};": (
        "global",
        8,
        24,
        number("Q", 0, 7, 0),
        ((0, "table", 0), (16, "k0", 0)),
    ),
    ".global .align 8 .b8 v[9] = {3, "
    + ", ".join(f"0xFF{'00' * byte}(generic(table)+2)" for byte in range(8))
    + "};": ("global", 8, 9, b"\3" + bytes(8), ((1, "table", 2),)),
    ".extern .shared .align 1024 .b8 v[];": ("shared", 1024, 0, None, ()),
    ".shared .align 8 .b8 v[(4 + 4) * 2];": ("shared", 8, 16, None, ()),
    ".weak .global .attribute(.managed) .align 4 .b8 v[4];": ("global", 4, 4, None, ()),
    ".common .global .b32 v;": ("global", 4, 4, None, ()),
    ".global .texref v;": ("global", 8, 8, None, ()),
}


@pytest.mark.parametrize("text", VARIABLES)
def test_variables(text):
    before = f"{HEAD}.global .align 4 .b8 table[64];\n.func k0() {{ ret; }}\n"
    variable = parse(before + text).variables[-1]
    found = (variable.space, variable.align, variable.size, variable.init, variable.relocations)
    assert variable.name == "v" and found == VARIABLES[text]
    assert variable.extern == (".extern" in text)


def test_a_large_table_and_two_variables_in_one_declaration():
    values = ", ".join(str(i % 256) for i in range(100_000))
    module = parse(f"{HEAD}.const .b8 big[100000] = {{{values}}};\n.shared .u32 a[2], b;")
    assert module.variables[0].init == bytes(i % 256 for i in range(100_000))
    assert [(v.name, v.size) for v in module.variables[1:]] == [("a", 8), ("b", 4)]


def test_module_directives_comments_and_headers():
    module = parse(
        """// { ; a comment
        .version 8.4  .target sm_90a, debug .address_size 64 /* and
        another } */ .file 1 "/a//b.cu", 123, 456
        .func (.param .align 8 .b8 out[12]) f (.param .b32 x, .param .align 16 .b8 s[24]) ;
        .extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b) ;
        .alias g, f;
        .visible .entry k(.param .u8 a, .param .u64 .ptr .global .align 16 b, .param .align 64 .b8 c[128])
        .maxntid 128, 2, 1 .minnctapersm 2 .maxnreg 64
        .reqnctapercluster 2 .explicitcluster .pragma "nounroll";
        { ret; }
        .entry bare .noreturn { exit; }
        .section .debug_abbrev { .b8 1 .b32 sym }"""
    )
    assert (module.version, module.target, module.files) == ("8.4", "sm_90a", {1: "/a//b.cu"})
    k = module.functions["k"]
    assert k.entry and k.defined
    assert [(p.name, p.offset, p.size, p.align) for p in k.parameters] == [
        ("a", 0, 1, 1),
        ("b", 8, 8, 8),
        ("c", 64, 128, 64),
    ]
    assert k.directives == {
        "maxntid": (128, 2, 1),
        "minnctapersm": (2,),
        "maxnreg": (64,),
        "reqnctapercluster": (2,),
        "explicitcluster": (),
    }
    f = module.functions["f"]
    assert not f.entry and not f.defined and f.returns[0].size == 12 and f.parameters[1].offset == 16
    assert module.functions["g"] is f and not module.functions["vprintf"].defined
    assert names(module.functions["bare"]) == ["exit"] and "noreturn" in module.functions["bare"].directives


def test_instructions_guards_and_lines():
    function = body(
        """
        @%p1 bra.uni done;
        @!%p2 ld.global.nc.L1::no_allocate.v4.u32 {%r1,%r2,%r3,%r4}, [%rd1+16]; @ ! %p3 ret;
        wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3 // a comment
            {%f0, %f1, /* , */ %f2, %f3},
            %rd1, %rd2, %p1, 1, -1;
        done: ret ;
        """
    )
    load = function.code[1]
    assert (load.opcode, load.guard, load.negated) == ("ld", Register("%p2"), True)
    assert load.modifiers == ("global", "nc", "L1::no_allocate", "v4", "u32")
    assert [i.line - function.code[0].line for i in function.code] == [0, 1, 1, 2, 5]
    assert function.code[3].operands[0] == Vector(tuple(Register(f"%f{i}") for i in range(4)))
    assert function.code[0].operands == (Label("done"),) and function.labels == {"done": 4}
    assert (
        function.registers["%f3"] == "f32"
        and function.registers["%p3"] == "pred"
        and "%r99" not in function.registers
    )


def test_scopes_have_their_own_names():
    block = "{ .reg .pred p, %r1; .reg .b64 t<3>; WAIT: test p, t2, %r1, %r2; @p bra DONE; bra WAIT; DONE: }"
    function = body(f"mov.u32 %r1, 0; {block} {{ {block} bra OUT; }} {block} OUT: mov.u32 %r1, 0; ret;")
    tests = [i for i in function.code if i.opcode == "test"]
    assert [i.operands[0].name for i in tests] == ["p@1", "p@3", "p@4"]
    assert tests[2].operands[1:] == (Register("t2@4"), Register("%r1@4"), Register("%r2"))
    assert function.registers["%r1"] == "b32" and function.registers["%r1@4"] == "pred"
    assert {i.operands[0].name for i in function.code if i.opcode == "bra"} == {
        "DONE@1", "WAIT@1", "DONE@3", "WAIT@3", "DONE@4", "WAIT@4", "OUT",
    }  # fmt: skip
    assert function.labels["DONE@1"] == function.labels["WAIT@3"] == 4


def test_branch_tables():
    function = body("ts: .branchtargets A, B, A; brx.idx %r1, ts; A: ret; B: ret;")
    assert function.branch_targets == {"ts": ("A", "B", "A")}
    assert function.code[0].operands == (R1, Label("ts")) and function.labels == {"A": 1, "B": 2}


ERRORS = {
    "add.s32 %r1, %nothing, 1;": r"PTX line \d+: '%nothing' is not declared: add.s32 %r1, %nothing, 1;",
    "mov.u32 %r1, %r100;": "'%r100' is not declared",
    "@%r200 ret;": "'%r200' is not declared",
    "bra nowhere;": r"there is no label 'nowhere': bra nowhere;",
    "{ a: ret; } bra a;": "there is no label 'a'",
    "a: ret; a: ret;": "label 'a' is declared twice",
    "add.s32 %r1, , 1;": "an operand is missing",
    "add.s32 %r1, %r2\nadd.s32 %r1, %r2, 1;": r"'%r2 add.s32 %r1' is no operand: add.s32 %r1, %r2$",
    "add.s32 %r1, %r2": r"this is no PTX statement: add.s32 %r1, %r2",
    "add.s32 %r1, 1 +;": "an operand is missing",
    "add.s32 %r1, 4 / 0;": "division by zero",
    "add.s32 %r1, (1;": "'\\)' is missing",
    "add.s32 %r1, 08;": "invalid",
    "ld.u32 %r1, [%rd1;": "'\\[%rd1' is no address",
    "ld.u32 %r1, [];": "an operand is missing",
    "mov.u64 %rd1, table*2;": "an address takes only an offset",
    "#!?": "this is no PTX statement",
    ".shared .q99 v;": "no declaration of a variable",
    ".reg .b32 a b;": "'a b' is no register",
    "call (%r1;": "this is no call",
    "{ ret;": "a closing brace is missing",
}


@pytest.mark.parametrize("code", ERRORS)
def test_errors_name_the_line(code):
    with pytest.raises(EmulatorError, match=ERRORS[code]):
        body(f"\n{code}\n")


def test_errors_at_module_level():
    with pytest.raises(EmulatorError, match=r"^PTX line 5: this is no PTX directive: nonsense$"):
        parse(f"{HEAD}\n  nonsense\n")
    with pytest.raises(EmulatorError, match="line 4: 'v' has fewer elements than initial values"):
        parse(f"{HEAD}.global .u32 v[2] = {{1, 2, 3}};")
    with pytest.raises(EmulatorError, match="part of an address"):
        parse(f"{HEAD}.global .u32 w; .global .u32 v = w;")


# --- calls

CALLS = f"""{HEAD}
.func (.param .b32 out) twice(.param .b32 x)
{{
  .reg .b32 %r<3>; .reg .pred %p<2>; .local .b8 scratch[16]; .shared .b8 kept[4];
  ld.param.u32 %r1, [x];
  setp.eq.u32 %p1, %r1, 0;
  @%p1 bra zero;
  st.local.u32 [scratch], %r1;
  add.u32 %r2, %r1, %r1;
  st.param.b32 [out+0], %r2;
  ret;
zero: st.param.b32 [out+0], 0;
  @%p1 ret;
  trap;
}}
.func (.reg .f32 out) half(.reg .f32 x) {{ mul.f32 out, x, 0f3F000000; ret; }}
.func (.param .b32 out) four(.param .b32 x)
{{
  .reg .b32 %r<3>;
  ld.param::func.u32 %r1, [x];
  {{ .param .b32 a; .param .b32 r; st.param.b32 [a], %r1; call.uni (r), twice, (a); ld.param.b32 %r1, [r]; }}
  {{ .param .b32 a; .param .b32 r; st.param.b32 [a], %r1; call.uni (r), twice, (a); ld.param.b32 %r1, [r]; }}
  st.param.b32 [out], %r1;
  ret;
}}
.func even(.param .b32 x) ;
.func odd(.param .b32 x) {{ call even, (x); ret; }}
.func even(.param .b32 x) {{ call odd, (x); ret; }}
.extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
"""


def kernel(code: str) -> Module:
    return parse(
        f"""{CALLS}.entry k(.param .u32 n) {{
        .reg .b32 %r<9>; .reg .f32 %f<4>; .reg .b64 %rd<3>; .reg .pred %p<2>; {code} ret; }}"""
    )


def test_calls_are_spliced_in():
    call = "{ .param .b32 a; .param .b32 r; st.param.b32 [a], %r1; call.uni (r), four, (a); ld.param.b32 %r2, [r]; }"
    function = inline_calls(kernel(f"ld.param.u32 %r1, [n]; {call} {call}"), "k")
    assert function.entry and [p.name for p in function.parameters] == ["n"]
    assert names(function)[:3] == ["ld.param.u32", "st.local.b32", "ld.local.u32"]
    assert "call" not in {i.opcode for i in function.code} and names(function).count("ret") == 1
    assert not any("param" in name for name in names(function)[1:])
    # Two calls of four, each with two of twice: six instances. Each has local variables of its own, and they
    # have one shared variable.
    assert len({r for r in function.registers if r.startswith("%r2")}) == 1 + 4
    variables = [v.name for v in function.variables]
    assert len(variables) == len(set(variables)) and variables.count("kept") == 1
    assert sum(name.startswith("scratch#") for name in variables) == 4
    assert {v.space for v in function.variables if v.name != "kept"} == {"local"}
    # the inner argument is the variable of the outer call
    bases = [i.operands[1].base.name for i in function.code if i.name == "ld.local.u32"]
    assert set(bases) <= set(variables)
    # every label is one instruction's, and a return goes to the end of its instance
    for i in function.code:
        for operand in i.operands:
            if isinstance(operand, Label):
                assert 0 <= function.labels[operand.name] < len(function.code)
    ends = [i for i in function.code if i.opcode == "bra" and i.operands[0].name.startswith("return")]
    assert any(i.guard for i in ends) and any(not i.guard for i in ends)
    assert all(function.labels[i.operands[0].name] > function.code.index(i) for i in ends)


def test_the_functions_themselves_stay_as_they_were():
    module = kernel("{ .param .b32 a; .param .b32 r; call (r), twice, (a); }")
    before = repr(module)
    first, second = inline_calls(module, "k"), inline_calls(module, "k")
    assert repr(module) == before and repr(first) == repr(second)


def test_a_kernel_that_calls_nothing_is_itself():
    module = kernel("mov.u32 %r1, 0;")
    assert inline_calls(module, "k") is module.functions["k"]


def test_registers_as_arguments():
    function = inline_calls(
        kernel("call (%f1), half, (%f2); call (%r1), twice, (7); call (_), twice, (%r1);"), "k"
    )
    listed = [(i.name, i.operands) for i in function.code]
    assert listed[0] == ("mov.f32", (Register("x#1"), Register("%f2")))
    assert ("mov.f32", (Register("%f1"), Register("out#1"))) in listed
    assert ("st.local.b32", (Address(Symbol("x#2")), Immediate(7))) in listed
    assert ("ld.local.b32", (R1, Address(Symbol("out#2")))) in listed
    assert function.registers["x#1"] == "f32"


def test_a_guarded_call_is_jumped_over():
    function = inline_calls(kernel("@%p1 call (%f1), half, (%f2); mov.u32 %r1, 0;"), "k")
    jump = function.code[0]
    assert (jump.name, jump.guard, jump.negated) == ("bra", P1, True)
    assert function.code[function.labels[jump.operands[0].name]].name == "mov.u32"


def test_functions_without_a_body_stay_calls():
    code = """{ .param .b64 a; .param .b64 b; .param .b32 r; st.param.b64 [a], %rd1;
        call.uni (r), vprintf, (a, b); ld.param.b32 %r1, [r+0]; }"""
    function = inline_calls(kernel(code), "k")
    assert names(function) == ["st.local.b64", "call.uni", "ld.local.b32", "ret"]
    a, b, r = (Symbol(f"{name}@1") for name in "abr")
    assert function.code[1].operands == (Vector((r,)), Symbol("vprintf"), Vector((a, b)))
    assert {(v.name, v.space, v.size) for v in function.variables} == {
        ("a@1", "local", 8),
        ("b@1", "local", 8),
        ("r@1", "local", 4),
    }


@pytest.mark.parametrize(
    "code, error, message",
    [
        ("{ .param .b32 x; call odd, (x); }", Unsupported, "recursion: odd calls even calls odd"),
        ("call (%r1), %rd1, (%r2), proto;", Unsupported, "a call through a pointer"),
        ("call twice, (%r1);", EmulatorError, "PTX line .* takes or returns 1 values, not 0"),
    ],
)
def test_calls_that_cannot_be_spliced(code, error, message):
    with pytest.raises(error, match=message):
        inline_calls(kernel(f"proto: .callprototype (.param .b32 _) _ (.param .b32 _); {code}"), "k")


def test_a_name_that_is_no_kernel():
    with pytest.raises(ValueError, match=r"kernel: expected one of \['k'\], got 'twice'"):
        inline_calls(kernel(""), "twice")


# --- NVRTC

SOURCE = """typedef unsigned u32;
#define TRY "mbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\\n"
#define WAIT "{\\n.reg .pred P1;\\nLAB_WAIT:\\n" TRY "@P1 bra DONE;\\nbra LAB_WAIT;\\nDONE:\\n}"
extern "C" __device__ int printf(const char*, ...);
struct Big { int a; double b; char c[5]; };
__constant__ float table[8] = {1, 2, 3, 4, 5, 6.5f, 7, 8};
__device__ const char* texts[2] = {"abc", "d;e"};
__device__ int counter = 5;
__device__ int* pointer = &counter + 1;
__device__ __noinline__ int inner(int x) {
  return x * counter;
}
__device__ __noinline__ float outer(float x, Big b) {
  return x * b.b + inner(b.a) +
         inner(b.c[2]);
}
__device__ int plus(int x) { return x + 1; }
__device__ int times(int x) { return x * 3; }
__device__ int (*chosen[2])(int) = {plus, times};
__device__ __noinline__ int factorial(int n, int m) {
  return n < 2 ? m : n * factorial(m - 1, n) + factorial(n - 1, m);
}
__device__ __forceinline__ void wait(u32 b, u32 phase) {
  // On one line: compilers differ on which line of a longer statement is its place.
  asm volatile(WAIT ::"r"(b), "r"(phase) : "memory");
}
__device__ __forceinline__ void wait_twice(u32 b) {
  wait(b, 0);
  wait(b, 1);
}
extern "C" __global__ void __launch_bounds__(128, 2) calls(float* out, int n, Big big) {
  extern __shared__ __align__(1024) char dynamic[];
  __shared__ float fixed[32];
  fixed[threadIdx.x] = dynamic[n];
  printf("%d %s", n, texts[n & 1]);
  float local[16];
  for (int i = 0; i < 16; i++) local[i] = i * out[i] + fixed[i];
  out[n] = outer(local[n & 15], big) + table[n & 7];
}
extern "C" __global__ void recursive(int* x) { *x = factorial(x[1], x[2]); }
extern "C" __global__ void by_pointer(int* x) { *x = chosen[x[1] & 1](x[2]); }
extern "C" __global__ void __cluster_dims__(2, 1, 1) waits(u32* out) {
  __shared__ unsigned long long bar[2];
  u32 b = (u32)__cvta_generic_to_shared(bar);
  wait_twice(b);
  for (int i = 0; i < 3; i++)
    wait(b, i);
  out[0] = b;
}
template <class T, int N> __global__ void rotate(T* x) {
  T v = x[threadIdx.x]; __syncthreads(); x[(threadIdx.x + N) % 32] = v;
}
template __global__ void rotate<double, 3>(double*);
template __global__ void rotate<char, 5>(char*);
extern "C" __global__ void choose(int* x, int n) {
  switch (n) {
    case 0: x[3] = x[1] / x[2]; break;
    case 1: x[1] = x[5] * x[2]; break;
    case 2: x[7] = __popc(x[1]); break;
    case 3: x[1] = __clz(x[4]); break;
    case 4: x[9] = x[1] % x[2]; break;
    case 5: x[6] = __brev(x[8]); break;
    case 6: atomicAdd(x, 4); break;
  }
}
extern "C" __global__ void wide(double* d, long long* l, float* f) {
  d[0] = sin(d[1]) + pow(d[2], d[3]);
  l[0] = l[1] / l[2] + l[3] % l[4];
  f[0] = sinf(f[1]) + powf(f[2], f[3]) + f[4] / f[5];
}
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return parse(ptx(SOURCE, "first.cu"))


def line(text: str) -> int:
    return SOURCE[: SOURCE.index(text)].count("\n") + 1


def test_every_kernel_is_taken_in(module):
    kernels = {name for name, function in module.functions.items() if function.entry}
    assert {
        "calls",
        "recursive",
        "by_pointer",
        "waits",
        "choose",
        "wide",
        "_Z6rotateIdLi3EEvPT_",
        "_Z6rotateIcLi5EEvPT_",
    } == kernels
    for name in kernels - {"recursive", "by_pointer"}:
        function = inline_calls(module, name)
        assert function.code[-1].opcode in ("ret", "bra", "trap")
        defined = {v.name for v in (*function.variables, *module.variables)} | {
            p.name for p in function.parameters
        }
        defined |= module.functions.keys()
        used = {
            o.base.name
            for i in function.code
            for o in i.operands
            if isinstance(o, Address) and isinstance(o.base, Symbol)
        }
        assert used <= defined
    assert module.functions["calls"].directives == {"maxntid": (128, 1, 1), "minnctapersm": (2,)}
    assert module.functions["waits"].directives["reqnctapercluster"] == (2, 1, 1)


def test_module_variables(module):
    variables = {v.name: v for v in module.variables}
    assert variables["table"].space == "const" and variables["table"].init == struct.pack(
        "<8f", 1, 2, 3, 4, 5, 6.5, 7, 8
    )
    texts = [variables[symbol].init for _, symbol, _ in variables["texts"].relocations]
    assert texts == [b"abc\0", b"d;e\0"]
    assert variables["pointer"].relocations == ((0, "counter", 4),)
    assert {symbol for _, symbol, _ in variables["chosen"].relocations} == {"_Z4plusi", "_Z5timesi"}
    assert (variables["dynamic"].extern, variables["dynamic"].align, variables["dynamic"].size) == (
        True,
        1024,
        0,
    )
    fixed = next(v for v in module.functions["calls"].variables if v.name.endswith("fixed"))
    assert (fixed.space, fixed.size) == ("shared", 128)


def test_asm_blocks_that_the_compiler_repeats(module):
    function = module.functions["waits"]
    tries = [i for i in function.code if i.name.startswith("mbarrier.try_wait")]
    predicates = {i.operands[0].name for i in tries}
    assert len(tries) == len(predicates) == 5 and all(
        function.registers[name] == "pred" for name in predicates
    )
    assert len(function.labels) == 10


def test_locations_lead_up_to_the_kernel(module):
    tries = [i for i in module.functions["waits"].code if i.name.startswith("mbarrier.try_wait")]
    first, second, third = (i.location for i in tries[:3])
    asm = line("  asm volatile")
    assert [place.line for place in (first, first.inlined_at, first.inlined_at.inlined_at)] == [
        asm,
        line("  wait(b, 0)"),
        line("  wait_twice(b);"),
    ]
    assert second.inlined_at.line == line(
        "  wait(b, 1)"
    ) and third.inlined_at.line == third.outermost.line == line("    wait(b, i)")
    assert (
        first.function == "_Z4waitjj"
        and first.inlined_at.function == "_Z10wait_twicej"
        and first.outermost.function == ""
    )
    assert (
        str(first)
        == f"first.cu:{asm}, called at first.cu:{line('  wait(b, 0)')}, called at first.cu:{line('  wait_twice(b);')}"
    )


def test_locations_lead_through_calls(module):
    function = inline_calls(module, "calls")
    products = [
        i.location
        for i in function.code
        if i.name == "mul.lo.s32" and i.location.line == line("return x * counter")
    ]
    assert len(products) == 2
    for place in products:
        assert place.function == "_Z5inneri" and place.inlined_at.function.startswith("_Z5outer")
        assert place.outermost.line == line("  out[n] = outer")


def test_calls_that_nvrtc_makes(module):
    with pytest.raises(
        Unsupported,
        match=r"first.cu:\d+, called at first.cu:\d+: recursion: _Z9factorialii calls _Z9factorialii",
    ):
        inline_calls(module, "recursive")
    with pytest.raises(Unsupported, match=rf"first.cu:{line('*x = chosen')}: a call through a pointer"):
        inline_calls(module, "by_pointer")
    calls = [i for i in inline_calls(module, "calls").code if i.opcode == "call"]
    assert [i.operands[1] for i in calls] == [Symbol("vprintf")]


def test_parsing_is_quick():
    """2,000 instructions take about 10 ms; a slow machine may need five times as long."""
    code = "".join(
        f"\tld.global.f32 \t%f{i % 4}, [%rd1+{4 * i}];\n\tadd.s32 \t%r{i % 100}, %r{(i + 1) % 100}, {i};\n"
        for i in range(1000)
    )
    best = min(timed(code) for _ in range(5))
    assert best < 0.05


def timed(code: str) -> float:
    start = time.process_time()
    assert len(body(code).code) == 2000
    return time.process_time() - start
