"""The shadow of shared memory, as LLVM IR: who wrote and who read each 4-byte word, and whether this access is ordered after them.

A *write cell* (i64 for each word) holds ``clock | column << 32 | lane << 40 | flags | bytes ever written << 48 | bytes last written << 52``.
The *read cells* (u32 for each word and each reading column) hold ``clock | byte mask << 6 | lane``. An access is ordered after another when the
thread's vector clock has reached that clock in that column (Flanagan and Freund, FastTrack, PLDI 2009). Columns are warps, mbarriers and
asynchronous readers; two lanes of one warp are told apart inside one clock interval by the lane. Only the slow path looks at byte masks, and it
only writes a record: hazards.py turns records into words.
"""

from __future__ import annotations

from .context import (
    ACCESS_SITES,
    ATOMIC_AFTER_ACCESS,
    CELL_ATOMIC,
    CELL_GENERIC,
    LOAD_AFTER_WRITE,
    LOAD_UNWRITTEN,
    RECORD_COUNT,
    RECORD_LIMIT,
    RECORD_WORDS,
    RECORDS,
    STORE_AFTER_READ,
    STORE_AFTER_WRITE,
    THREAD,
    TOUCHED,
)  # fmt: skip

ARGS = "ptr %ctx, ptr %rt, ptr %smem, ptr %cells, ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i64 %site"

IR = f"""
define internal void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 %column) noinline cold {{
  %np = getelementptr i64, ptr %rt, i64 {RECORD_COUNT}
  %n = load i64, ptr %np
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %np
  %room = icmp ult i64 %n, {RECORD_LIMIT}
  br i1 %room, label %keep, label %full
keep:
  %bp = getelementptr i64, ptr %rt, i64 {RECORDS}
  %b = load ptr, ptr %bp
  %at = mul i64 %n, {RECORD_WORDS}
  %p0 = getelementptr i64, ptr %b, i64 %at
  store i64 %kind, ptr %p0
  %p1 = getelementptr i64, ptr %p0, i64 1
  store i64 %site, ptr %p1
  %a = shl i64 %word, 2
  %p2 = getelementptr i64, ptr %p0, i64 2
  store i64 %a, ptr %p2
  %tp = getelementptr i8, ptr %ctx, i64 {THREAD}
  %t = load i32, ptr %tp
  %t64 = zext i32 %t to i64
  %p3 = getelementptr i64, ptr %p0, i64 3
  store i64 %t64, ptr %p3
  %p4 = getelementptr i64, ptr %p0, i64 4
  store i64 %cell, ptr %p4
  %p5 = getelementptr i64, ptr %p0, i64 5
  store i64 %column, ptr %p5
  ret void
full:
  ret void
}}

; is this cell's write ordered before the thread? (or by the same lane)
define internal i1 @ordered(i64 %cell, ptr %row, i64 %stamp) alwaysinline {{
  %clock = trunc i64 %cell to i32
  %c1 = lshr i64 %cell, 32
  %column = and i64 %c1, 255
  %hp = getelementptr i32, ptr %row, i64 %column
  %have = load i32, ptr %hp
  %known = icmp ule i32 %clock, %have
  %x = xor i64 %cell, %stamp
  %interval = and i64 %x, 1099511627775
  %same = icmp eq i64 %interval, 0
  %lane = and i64 %x, 34084860461056
  %other = icmp ne i64 %lane, 0
  %within = and i1 %same, %other
  %apart = xor i1 %within, true
  %r = and i1 %known, %apart
  ret i1 %r
}}

define internal void @load_slow({ARGS}, i64 %cell, i1 %strong) noinline cold {{
  %i0 = lshr i64 %cell, 48
  %i1 = trunc i64 %i0 to i32
  %have = and i32 %i1, %mask
  %ready = icmp eq i32 %have, %mask
  br i1 %ready, label %race, label %unwritten
unwritten:
  call void @record(ptr %ctx, ptr %rt, i64 {LOAD_UNWRITTEN}, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
race:
  %l0 = lshr i64 %cell, 52
  %l1 = trunc i64 %l0 to i32
  %hit = and i32 %l1, %mask
  %touch = icmp ne i32 %hit, 0
  %atomic0 = and i64 %cell, {CELL_ATOMIC}
  %atomic = icmp ne i64 %atomic0, 0
  %both = and i1 %atomic, %strong
  %plain = xor i1 %both, true
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad0 = xor i1 %ok, true
  %bad1 = and i1 %bad0, %touch
  %bad = and i1 %bad1, %plain
  br i1 %bad, label %report, label %out
report:
  call void @record(ptr %ctx, ptr %rt, i64 {LOAD_AFTER_WRITE}, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
out:
  ret void
}}

define internal void @load_word({ARGS}, i1 %strong) {{
  %tp = getelementptr i8, ptr %ctx, i64 {TOUCHED}
  store i64 %stamp, ptr %tp
  %cp = getelementptr i64, ptr %cells, i64 %word
  %cell = load i64, ptr %cp
  %i0 = lshr i64 %cell, 48
  %i1 = trunc i64 %i0 to i32
  %have = and i32 %i1, %mask
  %ready = icmp eq i32 %have, %mask
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %fine = and i1 %ready, %ok
  br i1 %fine, label %mark, label %slow, !prof !0
slow:
  call void @load_slow({ARGS}, i64 %cell, i1 %strong)
  br label %mark
mark:
  br i1 %strong, label %done, label %plain
plain:
  %c0 = lshr i64 %stamp, 32
  %column = and i64 %c0, 255
  %at0 = mul i64 %word, %columns
  %at = add i64 %at0, %column
  %rp = getelementptr i32, ptr %reads, i64 %at
  %old = load i32, ptr %rp
  %clock = trunc i64 %stamp to i32
  %l0 = lshr i64 %stamp, 40
  %lane = trunc i64 %l0 to i32
  %m = shl i32 %mask, 6
  %mine0 = or i32 %clock, %lane
  %mine = or i32 %mine0, %m
  %x = xor i32 %old, %mine
  %same = icmp ult i32 %x, 1024
  %om = and i32 %old, 960
  %merged = or i32 %mine, %om
  %ld = and i32 %x, 63
  %other = icmp ne i32 %ld, 0
  %several = or i32 %merged, 63
  %kept = select i1 %other, i32 %several, i32 %merged
  %new = select i1 %same, i32 %kept, i32 %mine
  store i32 %new, ptr %rp
  %wp = getelementptr i64, ptr %rt, i64 {ACCESS_SITES}
  %ws = load ptr, ptr %wp, !invariant.load !2
  %w2 = shl i64 %word, 1
  %w3 = or i64 %w2, 1
  %wa = getelementptr i32, ptr %ws, i64 %w3
  %s32 = trunc i64 %site to i32
  store i32 %s32, ptr %wa
  br label %done
done:
  ret void
}}

define internal void @store_slow({ARGS}, i64 %cell, i32 %value, i1 %strong) noinline cold {{
  %atomic0 = and i64 %cell, {CELL_ATOMIC}
  %atomic = icmp ne i64 %atomic0, 0
  %both = and i1 %atomic, %strong
  br i1 %both, label %readers, label %writer
writer:
  %l0 = lshr i64 %cell, 52
  %l1 = trunc i64 %l0 to i32
  %hit = and i32 %l1, %mask
  %touch = icmp ne i32 %hit, 0
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad = xor i1 %ok, true
  %race = and i1 %bad, %touch
  br i1 %race, label %compare, label %readers
compare:
  ; writing what is there already is harmless, and common (every thread sets one flag); an atomic is not excused by its value
  %at = shl i64 %word, 2
  %mp = getelementptr i8, ptr %smem, i64 %at
  %now = load i32, ptr %mp
  %d0 = xor i32 %now, %value
  %e0 = and i32 %mask, 1
  %e1 = and i32 %mask, 2
  %e2 = and i32 %mask, 4
  %e3 = and i32 %mask, 8
  %f0 = mul i32 %e0, 255
  %g1 = mul i32 %e1, 32640
  %g2 = mul i32 %e2, 4177920
  %g3 = mul i32 %e3, 534773760
  %h0 = or i32 %f0, %g1
  %h1 = or i32 %g2, %g3
  %bytes = or i32 %h0, %h1
  %d = and i32 %d0, %bytes
  %changes0 = icmp ne i32 %d, 0
  %changes = or i1 %changes0, %strong
  br i1 %changes, label %report, label %readers
report:
  %kind = select i1 %strong, i64 {ATOMIC_AFTER_ACCESS}, i64 {STORE_AFTER_WRITE}
  call void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
readers:
  %own0 = lshr i64 %stamp, 32
  %own = and i64 %own0, 255
  %clock = trunc i64 %stamp to i32
  %q0 = lshr i64 %stamp, 40
  %lane = trunc i64 %q0 to i32
  %mine = or i32 %clock, %lane
  %base = mul i64 %word, %columns
  br label %loop
loop:
  %j = phi i64 [ 0, %readers ], [ %j1, %next ]
  %ra = add i64 %base, %j
  %rp = getelementptr i32, ptr %reads, i64 %ra
  %r = load i32, ptr %rp
  %hp = getelementptr i32, ptr %row, i64 %j
  %h = load i32, ptr %hp
  %h1023 = or i32 %h, 1023
  %late = icmp ugt i32 %r, %h1023
  %self = icmp eq i64 %j, %own
  %x = xor i32 %r, %mine
  %interval = icmp ult i32 %x, 1024
  %xl = and i32 %x, 63
  %differ = icmp ne i32 %xl, 0
  %inner0 = and i1 %self, %interval
  %inner = and i1 %inner0, %differ
  %any = or i1 %late, %inner
  %rm0 = lshr i32 %r, 6
  %rm = and i32 %rm0, %mask
  %overlap = icmp ne i32 %rm, 0
  %conflict = and i1 %any, %overlap
  br i1 %conflict, label %read, label %next
next:
  %j1 = add i64 %j, 1
  %more = icmp ult i64 %j1, %columns
  br i1 %more, label %loop, label %out
read:
  %kind2 = select i1 %strong, i64 {ATOMIC_AFTER_ACCESS}, i64 {STORE_AFTER_READ}
  %r64 = zext i32 %r to i64
  %rl = and i64 %r64, 63
  %jl = shl i64 %rl, 8
  %who = or i64 %j, %jl
  call void @record(ptr %ctx, ptr %rt, i64 %kind2, i64 %word, i64 %site, i64 %cell, i64 %who)
  ret void
out:
  ret void
}}

define internal void @store_word({ARGS}, i32 %value, i1 %strong) {{
  %tp = getelementptr i8, ptr %ctx, i64 {TOUCHED}
  store i64 %stamp, ptr %tp
  %cp = getelementptr i64, ptr %cells, i64 %word
  %cell = load i64, ptr %cp
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %own0 = lshr i64 %stamp, 32
  %own = and i64 %own0, 255
  %clock = trunc i64 %stamp to i32
  %q0 = lshr i64 %stamp, 40
  %lane = trunc i64 %q0 to i32
  %mine = or i32 %clock, %lane
  %base = mul i64 %word, %columns
  %rp0 = getelementptr i32, ptr %reads, i64 %base
  %op = getelementptr i32, ptr %rp0, i64 %own
  %r = load i32, ptr %op
  %x = xor i32 %r, %mine
  %interval = icmp ult i32 %x, 1024
  %xl = and i32 %x, 63
  %differ = icmp ne i32 %xl, 0
  %inner = and i1 %interval, %differ
  br label %loop
loop:
  %j = phi i64 [ 0, %0 ], [ %j8, %loop ]
  %acc = phi <8 x i1> [ zeroinitializer, %0 ], [ %acc1, %loop ]
  %rp = getelementptr i32, ptr %rp0, i64 %j
  %rv = load <8 x i32>, ptr %rp, align 4
  %hp = getelementptr i32, ptr %row, i64 %j
  %hv = load <8 x i32>, ptr %hp, align 4
  %hm = or <8 x i32> %hv, <i32 1023, i32 1023, i32 1023, i32 1023, i32 1023, i32 1023, i32 1023, i32 1023>
  %late = icmp ugt <8 x i32> %rv, %hm
  %acc1 = or <8 x i1> %acc, %late
  %j8 = add i64 %j, 8
  %more = icmp ult i64 %j8, %columns
  br i1 %more, label %loop, label %test
test:
  %any = call i1 @llvm.vector.reduce.or.v8i1(<8 x i1> %acc1)
  %notok = xor i1 %ok, true
  %b0 = or i1 %any, %inner
  %bad = or i1 %b0, %notok
  br i1 %bad, label %slow, label %mark, !prof !1
slow:
  call void @store_slow({ARGS}, i64 %cell, i32 %value, i1 %strong)
  br label %mark
mark:
  %m64 = zext i32 %mask to i64
  %init = shl i64 %m64, 48
  %ever = and i64 %cell, 4222124650659840
  %i1 = or i64 %init, %ever
  %cx = xor i64 %cell, %stamp
  %cs = and i64 %cx, 35184372088831
  %same = icmp eq i64 %cs, 0
  %last0 = and i64 %cell, 67553994410557440
  %last1 = select i1 %same, i64 %last0, i64 0
  %lm = shl i64 %m64, 52
  %last = or i64 %last1, %lm
  %flag = select i1 %strong, i64 {CELL_GENERIC | CELL_ATOMIC}, i64 {CELL_GENERIC}
  %n0 = or i64 %stamp, %flag
  %n1 = or i64 %n0, %i1
  %n2 = or i64 %n1, %last
  store i64 %n2, ptr %cp
  %wp = getelementptr i64, ptr %rt, i64 {ACCESS_SITES}
  %ws = load ptr, ptr %wp
  %w2 = shl i64 %word, 1
  %wa = getelementptr i32, ptr %ws, i64 %w2
  %s32 = trunc i64 %site to i32
  store i32 %s32, ptr %wa
  ret void
}}

declare i1 @llvm.vector.reduce.or.v8i1(<8 x i1>)
"""
