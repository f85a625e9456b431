"""The shadow of shared memory, as LLVM IR: who wrote and who read each 4-byte word, and whether this access is ordered after them.

A *write cell* (i64 for each word) holds the last ordinary write, ``clock | column << 32 | lane << 40 | flags | bytes ever written << 48 | bytes last
written << 52 | version as a flag << 56``. The *read cells* (u32 for each word and each reading column) hold ``clock | kinds << 10 | byte mask << 6 |
lane``. An access is ordered after another when the thread's vector clock has reached that clock in that column (Flanagan and Freund, FastTrack, PLDI
2009). Columns are warps, mbarriers and asynchronous readers; two lanes of one warp are told apart inside one clock interval by the lane. Only the slow
path looks at byte masks, and it only writes a record: hazards.py turns records into words.

*Strong* accesses (atomics, relaxed, acquire, release) race with ordinary ones, not with each other. A strong write therefore leaves the cell of the
last ordinary write as it is, sets CELL_ATOMIC in it, and marks its read cell. A volatile load is strong. A volatile store is strong when its thread
has executed a fence, as one does before a flag is set, and an ordinary store otherwise.

Strong accesses carry order. A strong write by a thread that has executed a fence (or a release) raises the version of its word; who reads it by a
strong read leaves a record.
"""

from __future__ import annotations

from ..context import (
    ACCESS_SITES,
    ATOMIC_AFTER_ACCESS,
    CELL_ATOMIC,
    CELL_GENERIC,
    CLOCK_STEP,
    CTA_GONE,
    CTA_NOT_STARTED,
    CTA_WARPS,
    CTARANK,
    FENCED,
    FLAG_READ,
    FLAG_WRITTEN,
    GLOBAL_FLAG,
    GONE,
    LOAD_AFTER_WRITE,
    LOAD_UNWRITTEN,
    MARK_READ,
    MARK_WRITE,
    RECORD_COUNT,
    RECORD_LIMIT,
    RECORD_ROOM,
    RECORD_WORDS,
    RECORDS,
    RECORDS_LOST,
    STORE_AFTER_READ,
    STORE_AFTER_WRITE,
    SYNC_SEEN,
    SYNC_WROTE,
    THREAD,
    TOUCHED,
    UNWRITTEN,
)

ARGS = "ptr %ctx, ptr %rt, ptr %smem, ptr %cells, ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i64 %site"

LOW = CLOCK_STEP - 1
LATER = ", ".join([f"i32 {LOW}"] * 8)
ORDINARY = ", ".join([f"i32 {MARK_READ}"] * 8)

IR = f"""
define internal void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 %column) noinline cold {{
  %np = getelementptr i64, ptr %rt, i64 {RECORD_COUNT}
  %n = load i64, ptr %np
  %flag = icmp uge i64 %kind, {FLAG_READ}
  %limit = select i1 %flag, i64 {RECORD_ROOM}, i64 {RECORD_LIMIT}
  %room = icmp ult i64 %n, %limit
  br i1 %room, label %keep, label %full
keep:
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %np
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
  br i1 %flag, label %done, label %others
others:
  %wp = getelementptr i64, ptr %rt, i64 {ACCESS_SITES}
  %ws = load ptr, ptr %wp
  %wa = getelementptr i64, ptr %ws, i64 %word
  %sites = load i64, ptr %wa, align 4
  %p6 = getelementptr i64, ptr %p0, i64 6
  store i64 %sites, ptr %p6
  br label %done
done:
  ret void
full:
  %lp = getelementptr i64, ptr %rt, i64 {RECORDS_LOST}
  %lost = load i64, ptr %lp
  %bit = select i1 %flag, i64 2, i64 1
  %lost1 = or i64 %lost, %bit
  store i64 %lost1, ptr %lp
  ret void
}}

; one for each site is enough, and leaves room for the race that explains it
define internal void @unwritten(ptr %ctx, ptr %rt, i64 %word, i64 %site, i64 %cell) noinline cold {{
  %up = getelementptr i64, ptr %rt, i64 {UNWRITTEN}
  %u = load ptr, ptr %up
  %ap = getelementptr i8, ptr %u, i64 %site
  %known = load i8, ptr %ap
  %new = icmp eq i8 %known, 0
  br i1 %new, label %first, label %out
first:
  store i8 1, ptr %ap
  call void @record(ptr %ctx, ptr %rt, i64 {LOAD_UNWRITTEN}, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
out:
  ret void
}}

; an access to the shared memory of another CTA: is that still there, and does the thread know of anything that it did?
define internal void @check_remote(ptr %ctx, ptr %rt, ptr %row, i64 %rank, i64 %word, i64 %site) noinline {{
  %op = getelementptr i64, ptr %rt, i64 {CTARANK}
  %own = load i64, ptr %op
  %same = icmp eq i64 %own, %rank
  br i1 %same, label %out, label %other
other:
  %gp = getelementptr i64, ptr %rt, i64 {GONE}
  %g = load i64, ptr %gp
  %s = lshr i64 %g, %rank
  %gone = trunc i64 %s to i1
  br i1 %gone, label %report, label %known, !prof !1
report:
  call void @record(ptr %ctx, ptr %rt, i64 {CTA_GONE}, i64 %word, i64 %site, i64 0, i64 -1)
  ret void
known:
  %wp = getelementptr i64, ptr %rt, i64 {CTA_WARPS}
  %warps = load i64, ptr %wp
  %first = mul i64 %warps, %rank
  br label %loop
loop:
  %j = phi i64 [ 0, %known ], [ %j1, %next ]
  %column = add i64 %first, %j
  %hp = getelementptr i32, ptr %row, i64 %column
  %h = load i32, ptr %hp
  %some = icmp ne i32 %h, 0
  br i1 %some, label %out, label %next
next:
  %j1 = add i64 %j, 1
  %more = icmp ult i64 %j1, %warps
  br i1 %more, label %loop, label %early
early:
  call void @record(ptr %ctx, ptr %rt, i64 {CTA_NOT_STARTED}, i64 %word, i64 %site, i64 0, i64 -1)
  ret void
out:
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

; marks the read cell of the thread's warp; what its lanes did in one interval adds up
define internal void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 %kind, i64 %site) alwaysinline {{
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
  %mk = or i32 %m, %kind
  %mine = or i32 %mine0, %mk
  %x = xor i32 %old, %mine
  %same = icmp ult i32 %x, {CLOCK_STEP}
  %om = and i32 %old, {LOW ^ 63}
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
  ret void
}}

; the first column whose mark of one of these kinds (0: any) touches these bytes and is not ordered before the thread, or -1:
; column | lane << 8 | kinds << 16 | (18 is the caller's) | interval << 20
define internal i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 %kinds) noinline cold {{
entry:
  %own0 = lshr i64 %stamp, 32
  %own = and i64 %own0, 255
  %clock = trunc i64 %stamp to i32
  %q0 = lshr i64 %stamp, 40
  %lane = trunc i64 %q0 to i32
  %mine = or i32 %clock, %lane
  %base = mul i64 %word, %columns
  %every = icmp eq i32 %kinds, 0
  br label %loop
loop:
  %j = phi i64 [ 0, %entry ], [ %j1, %next ]
  %ra = add i64 %base, %j
  %rp = getelementptr i32, ptr %reads, i64 %ra
  %r = load i32, ptr %rp
  %hp = getelementptr i32, ptr %row, i64 %j
  %h = load i32, ptr %hp
  %hl = or i32 %h, {LOW}
  %late = icmp ugt i32 %r, %hl
  %self = icmp eq i64 %j, %own
  %x = xor i32 %r, %mine
  %interval = icmp ult i32 %x, {CLOCK_STEP}
  %xl = and i32 %x, 63
  %differ = icmp ne i32 %xl, 0
  %inner0 = and i1 %self, %interval
  %inner = and i1 %inner0, %differ
  %any = or i1 %late, %inner
  %rm0 = lshr i32 %r, 6
  %rm = and i32 %rm0, %mask
  %overlap = icmp ne i32 %rm, 0
  %rk = and i32 %r, %kinds
  %kind0 = icmp ne i32 %rk, 0
  %kind = or i1 %kind0, %every
  %c0 = and i1 %any, %overlap
  %conflict = and i1 %c0, %kind
  br i1 %conflict, label %found, label %next
next:
  %j1 = add i64 %j, 1
  %more = icmp ult i64 %j1, %columns
  br i1 %more, label %loop, label %none
found:
  %rl = and i32 %r, 63
  %rl64 = zext i32 %rl to i64
  %jl = shl i64 %rl64, 8
  %k0 = lshr i32 %r, 10
  %k1 = and i32 %k0, 3
  %k64 = zext i32 %k1 to i64
  %kl = shl i64 %k64, 16
  %w0 = or i64 %j, %jl
  %w1 = or i64 %w0, %kl
  %n0 = lshr i32 %r, {CLOCK_STEP.bit_length() - 1}
  %n64 = zext i32 %n0 to i64
  %nl = shl i64 %n64, 20
  %who = or i64 %w1, %nl
  ret i64 %who
none:
  ret i64 -1
}}

define internal void @load_slow({ARGS}, i64 %cell, i1 %strong) noinline cold {{
  %i0 = lshr i64 %cell, 48
  %i1 = trunc i64 %i0 to i32
  %have = and i32 %i1, %mask
  %ready = icmp eq i32 %have, %mask
  br i1 %ready, label %race, label %never
never:
  call void @unwritten(ptr %ctx, ptr %rt, i64 %word, i64 %site, i64 %cell)
  ret void
race:
  %l0 = lshr i64 %cell, 52
  %l1 = trunc i64 %l0 to i32
  %hit = and i32 %l1, %mask
  %touch = icmp ne i32 %hit, 0
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad0 = xor i1 %ok, true
  %bad = and i1 %bad0, %touch
  br i1 %bad, label %report, label %marks
report:
  call void @record(ptr %ctx, ptr %rt, i64 {LOAD_AFTER_WRITE}, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
marks:
  %atomic0 = and i64 %cell, {CELL_ATOMIC}
  %atomic = icmp ne i64 %atomic0, 0
  %ordinary = xor i1 %strong, true
  %look = and i1 %atomic, %ordinary
  br i1 %look, label %scan, label %out
scan:
  %who = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 {MARK_WRITE})
  %found = icmp sge i64 %who, 0
  br i1 %found, label %atomics, label %out
atomics:
  call void @record(ptr %ctx, ptr %rt, i64 {LOAD_AFTER_WRITE}, i64 %word, i64 %site, i64 %cell, i64 %who)
  ret void
out:
  ret void
}}

define internal void @load_word({ARGS}) {{
  %tp = getelementptr i8, ptr %ctx, i64 {TOUCHED}
  store i64 %stamp, ptr %tp
  %cp = getelementptr i64, ptr %cells, i64 %word
  %cell = load i64, ptr %cp
  ; all bytes are there, and no strong write (the bit below): one comparison
  %i0 = lshr i64 %cell, 47
  %i1 = trunc i64 %i0 to i32
  %want = shl i32 %mask, 1
  %care = or i32 %want, 1
  %have = and i32 %i1, %care
  %ready = icmp eq i32 %have, %want
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %fine = and i1 %ready, %ok
  br i1 %fine, label %mark, label %slow, !prof !0
slow:
  call void @load_slow({ARGS}, i64 %cell, i1 false)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 {MARK_READ}, i64 %site)
  ret void
}}

; a strong read of a flag: a record, unless the thread has left the same one
define internal void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 %atomic) noinline {{
  %some = icmp ne i64 %version, 0
  br i1 %some, label %look, label %out
look:
  %k0 = shl i64 %word, 40
  %k1 = shl i64 %version, 32
  %k2 = and i64 %stamp, 4294967295
  %k3 = or i64 %k0, %k1
  %key = or i64 %k3, %k2
  %sp = getelementptr i8, ptr %ctx, i64 {SYNC_SEEN}
  %seen = load i64, ptr %sp
  %same = icmp eq i64 %seen, %key
  br i1 %same, label %out, label %new
new:
  store i64 %key, ptr %sp
  %how = zext i1 %atomic to i64
  call void @record(ptr %ctx, ptr %rt, i64 {FLAG_READ}, i64 %word, i64 %site, i64 %how, i64 -1)
  ret void
out:
  ret void
}}

; a strong write by a thread that has something to publish: the flag's next version
define internal i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i64 %last, i1 %release) noinline {{
  %fp = getelementptr i8, ptr %ctx, i64 {FENCED}
  %f = load i64, ptr %fp
  %fenced = icmp ne i64 %f, 0
  %publish = or i1 %fenced, %release
  br i1 %publish, label %look, label %out
look:
  %k0 = shl i64 %word, 32
  %k1 = and i64 %stamp, 4294967295
  %key = or i64 %k0, %k1
  %sp = getelementptr i8, ptr %ctx, i64 {SYNC_WROTE}
  %wrote = load i64, ptr %sp
  %same0 = icmp eq i64 %wrote, %key
  %some = icmp ne i64 %version, 0
  %same = and i1 %same0, %some
  br i1 %same, label %out, label %new
new:
  store i64 %key, ptr %sp
  call void @record(ptr %ctx, ptr %rt, i64 {FLAG_WRITTEN}, i64 %word, i64 %site, i64 0, i64 -1)
  %v1 = add i64 %version, 1
  %over = icmp ugt i64 %v1, %last
  %v = select i1 %over, i64 1, i64 %v1
  ret i64 %v
out:
  ret i64 %version
}}

define internal void @load_strong({ARGS}) noinline {{
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
  call void @load_slow({ARGS}, i64 %cell, i1 true)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 0, i64 %site)
  %version = lshr i64 %cell, 56
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 false)
  ret void
}}

; strong accesses of global memory: all of it is one flag, -1
define internal void @global_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %site, i1 %reads, i1 %writes, i1 %release) noinline {{
  %vp = getelementptr i64, ptr %rt, i64 {GLOBAL_FLAG}
  %version = load i64, ptr %vp
  br i1 %reads, label %see, label %next
see:
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 -1, i64 %site, i64 %version, i1 %writes)
  br label %next
next:
  br i1 %writes, label %set, label %out
set:
  %v = call i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 -1, i64 %site, i64 %version, i64 255, i1 %release)
  store i64 %v, ptr %vp
  br label %out
out:
  ret void
}}

define internal void @store_slow({ARGS}, i64 %cell, i32 %value) noinline cold {{
  %l0 = lshr i64 %cell, 52
  %l1 = trunc i64 %l0 to i32
  %hit = and i32 %l1, %mask
  %touch = icmp ne i32 %hit, 0
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad = xor i1 %ok, true
  %race = and i1 %bad, %touch
  br i1 %race, label %compare, label %readers
compare:
  ; writing what is there already is harmless, and common (every thread sets one flag)
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
  %changes = icmp ne i32 %d, 0
  br i1 %changes, label %report, label %readers
report:
  call void @record(ptr %ctx, ptr %rt, i64 {STORE_AFTER_WRITE}, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
readers:
  %who = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 0)
  %found = icmp sge i64 %who, 0
  br i1 %found, label %read, label %out
read:
  call void @record(ptr %ctx, ptr %rt, i64 {STORE_AFTER_READ}, i64 %word, i64 %site, i64 %cell, i64 %who)
  ret void
out:
  ret void
}}

define internal void @store_word({ARGS}, i32 %value) {{
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
  %interval = icmp ult i32 %x, {CLOCK_STEP}
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
  %hm = or <8 x i32> %hv, <{LATER}>
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
  call void @store_slow({ARGS}, i64 %cell, i32 %value)
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
  %n0 = or i64 %stamp, {CELL_GENERIC}
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

; %reads_too: an atomic, which reads what it replaces; %release: its order has been published already
define internal void @store_strong({ARGS}, i1 %reads_too, i1 %release) noinline {{
entry:
  %tp = getelementptr i8, ptr %ctx, i64 {TOUCHED}
  store i64 %stamp, ptr %tp
  %cp = getelementptr i64, ptr %cells, i64 %word
  %cell = load i64, ptr %cp
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %l0 = lshr i64 %cell, 52
  %l1 = trunc i64 %l0 to i32
  %hit = and i32 %l1, %mask
  %touch = icmp ne i32 %hit, 0
  %notok = xor i1 %ok, true
  %race = and i1 %notok, %touch
  br i1 %race, label %report, label %others, !prof !1
report:
  %kind = select i1 %reads_too, i64 {ATOMIC_AFTER_ACCESS}, i64 {STORE_AFTER_WRITE}
  call void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 -1)
  br label %mark
others:
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
  %interval = icmp ult i32 %x, {CLOCK_STEP}
  %xl = and i32 %x, 63
  %differ = icmp ne i32 %xl, 0
  %rk = and i32 %r, {MARK_READ}
  %ordinary = icmp ne i32 %rk, 0
  %inner0 = and i1 %interval, %differ
  %inner = and i1 %inner0, %ordinary
  br label %loop
loop:
  %j = phi i64 [ 0, %others ], [ %j8, %loop ]
  %acc = phi <8 x i1> [ zeroinitializer, %others ], [ %acc1, %loop ]
  %rp = getelementptr i32, ptr %rp0, i64 %j
  %rv = load <8 x i32>, ptr %rp, align 4
  %hp = getelementptr i32, ptr %row, i64 %j
  %hv = load <8 x i32>, ptr %hp, align 4
  %hm = or <8 x i32> %hv, <{LATER}>
  %late0 = icmp ugt <8 x i32> %rv, %hm
  %ro = and <8 x i32> %rv, <{ORDINARY}>
  %rn = icmp ne <8 x i32> %ro, zeroinitializer
  %late = and <8 x i1> %late0, %rn
  %acc1 = or <8 x i1> %acc, %late
  %j8 = add i64 %j, 8
  %more = icmp ult i64 %j8, %columns
  br i1 %more, label %loop, label %test
test:
  %any = call i1 @llvm.vector.reduce.or.v8i1(<8 x i1> %acc1)
  %bad = or i1 %any, %inner
  br i1 %bad, label %slow, label %mark, !prof !1
slow:
  %who0 = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 {MARK_READ})
  %found = icmp sge i64 %who0, 0
  br i1 %found, label %read, label %mark
read:
  %verb = select i1 %reads_too, i64 262144, i64 0
  %who = or i64 %who0, %verb
  call void @record(ptr %ctx, ptr %rt, i64 {STORE_AFTER_READ}, i64 %word, i64 %site, i64 %cell, i64 %who)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 {MARK_WRITE}, i64 %site)
  %version = lshr i64 %cell, 56
  br i1 %reads_too, label %see, label %set
see:
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 true)
  br label %set
set:
  %v = call i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i64 255, i1 %release)
  %m64 = zext i32 %mask to i64
  %init = shl i64 %m64, 48
  %n0 = and i64 %cell, 72057594037927935
  %n1 = or i64 %n0, %init
  %n2 = or i64 %n1, {CELL_ATOMIC}
  %v56 = shl i64 %v, 56
  %n3 = or i64 %n2, %v56
  store i64 %n3, ptr %cp
  ret void
}}

declare i1 @llvm.vector.reduce.or.v8i1(<8 x i1>)
"""
