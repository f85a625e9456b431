; The shadow of shared memory: what each access asks and leaves behind. shadow.py explains the cells and their fields.
; A name with a dollar sign is a constant: of the field CELL_LANE, say, CELL_LANE is the mask, CELL_LANE_SHIFT its lowest
; bit, and CELL_LANE_LOW the mask shifted down to bit 0.

; ---- the fields of cells

; the column of a stamp or a cell
define internal i64 @column(i64 %stamp) alwaysinline {
  %c = lshr i64 %stamp, $CELL_COLUMN_SHIFT
  %r = and i64 %c, $CELL_COLUMN_LOW
  ret i64 %r
}

; a stamp's clock and lane as they stand in a mark
define internal i32 @author(i64 %stamp) alwaysinline {
  %clock = trunc i64 %stamp to i32
  %l = lshr i64 %stamp, $CELL_LANE_SHIFT
  %lane = trunc i64 %l to i32
  %r = or i32 %clock, %lane
  ret i32 %r
}

; have all of these bytes been written, by whomever?
define internal i1 @written(i64 %cell, i32 %mask) alwaysinline {
  %b = lshr i64 %cell, $CELL_BYTES_EVER_SHIFT
  %ever = trunc i64 %b to i32
  %have = and i32 %ever, %mask
  %r = icmp eq i32 %have, %mask
  ret i1 %r
}

; did the last ordinary write touch one of these bytes?
define internal i1 @touched(i64 %cell, i32 %mask) alwaysinline {
  %b = lshr i64 %cell, $CELL_BYTES_LAST_SHIFT
  %last = trunc i64 %b to i32
  %hit = and i32 %last, %mask
  %r = icmp ne i32 %hit, 0
  ret i1 %r
}

; is this cell's write ordered before the thread? In the thread's own interval only its own lane's is.
define internal i1 @ordered(i64 %cell, ptr %row, i64 %stamp) alwaysinline {
  %clock = trunc i64 %cell to i32
  %column = call i64 @column(i64 %cell)
  %hp = getelementptr i32, ptr %row, i64 %column
  %have = load i32, ptr %hp
  %known = icmp ule i32 %clock, %have
  %x = xor i64 %cell, %stamp
  %interval = and i64 %x, $CELL_INTERVAL
  %same = icmp eq i64 %interval, 0
  %lane = and i64 %x, $CELL_LANE
  %other = icmp ne i64 %lane, 0
  %within = and i1 %same, %other
  %apart = xor i1 %within, true
  %r = and i1 %known, %apart
  ret i1 %r
}

; was this mark of the thread's column left in the thread's interval, by another lane?
define internal i1 @within(i32 %mark, i64 %stamp) alwaysinline {
  %mine = call i32 @author(i64 %stamp)
  %x = xor i32 %mark, %mine
  %interval = icmp ult i32 %x, $CLOCK_STEP
  %lane = and i32 %x, $MARK_LANE
  %differ = icmp ne i32 %lane, 0
  %r = and i1 %interval, %differ
  ret i1 %r
}

; the read cells of a word, one for each column
define internal ptr @marks(ptr %reads, i64 %columns, i64 %word) alwaysinline {
  %base = mul i64 %word, %columns
  %r = getelementptr i32, ptr %reads, i64 %base
  ret ptr %r
}

; the cell of an ordinary write by this thread, now: the bytes that it writes in one interval add up
define internal i64 @cell_of_write(i64 %cell, i64 %stamp, i32 %mask) alwaysinline {
  %bytes = zext i32 %mask to i64
  %ever0 = shl i64 %bytes, $CELL_BYTES_EVER_SHIFT
  %ever1 = and i64 %cell, $CELL_BYTES_EVER
  %ever = or i64 %ever0, %ever1
  %x = xor i64 %cell, %stamp
  %author = and i64 %x, $CELL_AUTHOR
  %same = icmp eq i64 %author, 0
  %last0 = and i64 %cell, $CELL_BYTES_LAST
  %last1 = select i1 %same, i64 %last0, i64 0
  %last2 = shl i64 %bytes, $CELL_BYTES_LAST_SHIFT
  %last = or i64 %last1, %last2
  %n0 = or i64 %stamp, $CELL_GENERIC
  %n1 = or i64 %n0, %ever
  %r = or i64 %n1, %last
  ret i64 %r
}

; ---- what an access leaves behind

; note that the thread accesses shared memory in this interval; the word's write cell
define internal i64 @visit(ptr %ctx, ptr %cells, i64 %stamp, i64 %word) alwaysinline {
  %tp = getelementptr i8, ptr %ctx, i64 $TOUCHED
  store i64 %stamp, ptr %tp
  %cp = getelementptr i64, ptr %cells, i64 %word
  %cell = load i64, ptr %cp
  ret i64 %cell
}

; the instruction that last stored to the word (%which 0), or loaded from it (1)
define internal void @note_site(ptr %rt, i64 %word, i64 %which, i64 %site) alwaysinline {
  %sp = getelementptr i64, ptr %rt, i64 $ACCESS_SITES
  %sites = load ptr, ptr %sp, !invariant.load !2
  %w2 = shl i64 %word, 1
  %at = or i64 %w2, %which
  %p = getelementptr i32, ptr %sites, i64 %at
  %s32 = trunc i64 %site to i32
  store i32 %s32, ptr %p
  ret void
}

; mark the read cell of the thread's warp; what its lanes do in one interval adds up
define internal void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 %kind, i64 %site)
    alwaysinline {
  %column = call i64 @column(i64 %stamp)
  %at0 = mul i64 %word, %columns
  %at = add i64 %at0, %column
  %rp = getelementptr i32, ptr %reads, i64 %at
  %old = load i32, ptr %rp
  %mine0 = call i32 @author(i64 %stamp)
  %m = shl i32 %mask, $MARK_BYTES_SHIFT
  %mk = or i32 %m, %kind
  %mine = or i32 %mine0, %mk
  %x = xor i32 %old, %mine
  %same = icmp ult i32 %x, $CLOCK_STEP
  %om = and i32 %old, $MARK_WHAT
  %merged = or i32 %mine, %om
  %ld = and i32 %x, $MARK_LANE
  %other = icmp ne i32 %ld, 0
  %several = or i32 %merged, $MARK_LANE ; all of its bits: several lanes
  %kept = select i1 %other, i32 %several, i32 %merged
  %new = select i1 %same, i32 %kept, i32 %mine
  store i32 %new, ptr %rp
  call void @note_site(ptr %rt, i64 %word, i64 1, i64 %site)
  ret void
}

; ---- records, which watch/order.py turns into words

; kind, site, address, thread, cell, reader, and for a hazard the sites that accessed the word before
define internal void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 %reader)
    noinline cold {
  %np = getelementptr i64, ptr %rt, i64 $RECORD_COUNT
  %n = load i64, ptr %np
  %flag = icmp uge i64 %kind, $FLAG_READ
  %limit = select i1 %flag, i64 $RECORD_ROOM, i64 $RECORD_LIMIT
  %room = icmp ult i64 %n, %limit
  br i1 %room, label %keep, label %full
keep:
  %n1 = add i64 %n, 1
  store i64 %n1, ptr %np
  %bp = getelementptr i64, ptr %rt, i64 $RECORDS
  %b = load ptr, ptr %bp
  %at = mul i64 %n, $RECORD_WORDS
  %p0 = getelementptr i64, ptr %b, i64 %at
  store i64 %kind, ptr %p0
  %p1 = getelementptr i64, ptr %p0, i64 1
  store i64 %site, ptr %p1
  %a = shl i64 %word, 2
  %p2 = getelementptr i64, ptr %p0, i64 2
  store i64 %a, ptr %p2
  %tp = getelementptr i8, ptr %ctx, i64 $THREAD
  %t = load i32, ptr %tp
  %t64 = zext i32 %t to i64
  %p3 = getelementptr i64, ptr %p0, i64 3
  store i64 %t64, ptr %p3
  %p4 = getelementptr i64, ptr %p0, i64 4
  store i64 %cell, ptr %p4
  %p5 = getelementptr i64, ptr %p0, i64 5
  store i64 %reader, ptr %p5
  br i1 %flag, label %done, label %others
others:
  %wp = getelementptr i64, ptr %rt, i64 $ACCESS_SITES
  %ws = load ptr, ptr %wp
  %wa = getelementptr i64, ptr %ws, i64 %word
  %sites = load i64, ptr %wa, align 4
  %p6 = getelementptr i64, ptr %p0, i64 6
  store i64 %sites, ptr %p6
  br label %done
done:
  ret void
full:
  %lp = getelementptr i64, ptr %rt, i64 $RECORDS_LOST
  %lost = load i64, ptr %lp
  %bit = select i1 %flag, i64 2, i64 1
  %lost1 = or i64 %lost, %bit
  store i64 %lost1, ptr %lp
  ret void
}

; a load of bytes that nobody wrote: one record for each site is enough, and leaves room for the race that explains it
define internal void @unwritten(ptr %ctx, ptr %rt, i64 %word, i64 %site, i64 %cell) noinline cold {
  %up = getelementptr i64, ptr %rt, i64 $UNWRITTEN
  %u = load ptr, ptr %up
  %ap = getelementptr i8, ptr %u, i64 %site
  %known = load i8, ptr %ap
  %new = icmp eq i8 %known, 0
  br i1 %new, label %first, label %out
first:
  store i8 1, ptr %ap
  call void @record(ptr %ctx, ptr %rt, i64 $LOAD_UNWRITTEN, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
out:
  ret void
}

; an access to the shared memory of another CTA: does that still exist, and does the thread know anything that it did?
define internal void @check_remote(ptr %ctx, ptr %rt, ptr %row, i64 %rank, i64 %word, i64 %site) noinline {
  %op = getelementptr i64, ptr %rt, i64 $CTARANK
  %own = load i64, ptr %op
  %same = icmp eq i64 %own, %rank
  br i1 %same, label %out, label %other
other:
  %gp = getelementptr i64, ptr %rt, i64 $GONE
  %g = load i64, ptr %gp
  %s = lshr i64 %g, %rank
  %gone = trunc i64 %s to i1
  br i1 %gone, label %report, label %known, !prof !1
report:
  call void @record(ptr %ctx, ptr %rt, i64 $CTA_GONE, i64 %word, i64 %site, i64 0, i64 -1)
  ret void
known:
  %wp = getelementptr i64, ptr %rt, i64 $CTA_WARPS
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
  call void @record(ptr %ctx, ptr %rt, i64 $CTA_NOT_STARTED, i64 %word, i64 %site, i64 0, i64 -1)
  ret void
out:
  ret void
}

; ---- is an access ordered after the marks of a word?

; Has a column left a mark, with a bit of %kinds, at a clock that the thread does not know? Which bytes is not asked.
; Eight columns at once: there is always a multiple of eight.
define internal i1 @any_late(ptr %marks, ptr %row, i64 %columns, i32 %kinds) alwaysinline {
entry:
  %k1 = insertelement <8 x i32> poison, i32 %kinds, i64 0
  %k8 = shufflevector <8 x i32> %k1, <8 x i32> poison, <8 x i32> zeroinitializer
  br label %loop
loop:
  %j = phi i64 [ 0, %entry ], [ %j8, %loop ]
  %acc = phi <8 x i1> [ zeroinitializer, %entry ], [ %acc1, %loop ]
  %rp = getelementptr i32, ptr %marks, i64 %j
  %rv = load <8 x i32>, ptr %rp, align 4
  %hp = getelementptr i32, ptr %row, i64 %j
  %hv = load <8 x i32>, ptr %hp, align 4
  %hm = or <8 x i32> %hv, splat (i32 $MARK_BELOW_CLOCK)
  %unknown = icmp ugt <8 x i32> %rv, %hm
  %rk = and <8 x i32> %rv, %k8
  %kind = icmp ne <8 x i32> %rk, zeroinitializer
  %late = and <8 x i1> %unknown, %kind
  %acc1 = or <8 x i1> %acc, %late
  %j8 = add i64 %j, 8
  %more = icmp ult i64 %j8, %columns
  br i1 %more, label %loop, label %test
test:
  %any = call i1 @llvm.vector.reduce.or.v8i1(<8 x i1> %acc1)
  ret i1 %any
}

; the slow and exact question: the first column whose mark, of one of these kinds (0: any), touches these bytes and is
; not ordered before the thread; as a reader, or -1
define internal i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 %kinds)
    noinline cold {
entry:
  %own = call i64 @column(i64 %stamp)
  %marks = call ptr @marks(ptr %reads, i64 %columns, i64 %word)
  %every = icmp eq i32 %kinds, 0
  br label %loop
loop:
  %j = phi i64 [ 0, %entry ], [ %j1, %next ]
  %rp = getelementptr i32, ptr %marks, i64 %j
  %r = load i32, ptr %rp
  %hp = getelementptr i32, ptr %row, i64 %j
  %h = load i32, ptr %hp
  %hl = or i32 %h, $MARK_BELOW_CLOCK
  %late = icmp ugt i32 %r, %hl
  %self = icmp eq i64 %j, %own
  %within = call i1 @within(i32 %r, i64 %stamp)
  %inner = and i1 %self, %within
  %any = or i1 %late, %inner
  %rm0 = lshr i32 %r, $MARK_BYTES_SHIFT
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
  %rl = and i32 %r, $MARK_LANE
  %rl64 = zext i32 %rl to i64
  %lane = shl i64 %rl64, $READER_LANE_SHIFT
  %k0 = lshr i32 %r, $MARK_KINDS_SHIFT
  %k1 = and i32 %k0, $MARK_KINDS_LOW
  %k64 = zext i32 %k1 to i64
  %which = shl i64 %k64, $READER_KINDS_SHIFT
  %n0 = lshr i32 %r, $MARK_CLOCK_SHIFT
  %n64 = zext i32 %n0 to i64
  %interval = shl i64 %n64, $READER_INTERVAL_SHIFT
  %w0 = or i64 %j, %lane
  %w1 = or i64 %w0, %which
  %reader = or i64 %w1, %interval
  ret i64 %reader
none:
  ret i64 -1
}

; ---- flags: words that carry order from thread to thread

; a strong read of a flag: a record, unless the thread has left the same one
define internal void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 %atomic) noinline {
  %some = icmp ne i64 %version, 0
  br i1 %some, label %look, label %out
look:
  %k0 = shl i64 %word, $SEEN_WORD_SHIFT
  %k1 = shl i64 %version, $SEEN_VERSION_SHIFT
  %k2 = and i64 %stamp, $CELL_CLOCK
  %k3 = or i64 %k0, %k1
  %key = or i64 %k3, %k2
  %sp = getelementptr i8, ptr %ctx, i64 $SYNC_SEEN
  %seen = load i64, ptr %sp
  %same = icmp eq i64 %seen, %key
  br i1 %same, label %out, label %new
new:
  store i64 %key, ptr %sp
  %how = zext i1 %atomic to i64
  call void @record(ptr %ctx, ptr %rt, i64 $FLAG_READ, i64 %word, i64 %site, i64 %how, i64 -1)
  ret void
out:
  ret void
}

; a strong write: the flag's next version, if the thread has something to publish. After the last version comes 1.
define internal i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 %release) noinline {
  %fp = getelementptr i8, ptr %ctx, i64 $FENCED
  %f = load i64, ptr %fp
  %fenced = icmp ne i64 %f, 0
  %publish = or i1 %fenced, %release
  br i1 %publish, label %look, label %out
look:
  %k0 = shl i64 %word, $WROTE_WORD_SHIFT
  %k1 = and i64 %stamp, $CELL_CLOCK
  %key = or i64 %k0, %k1
  %sp = getelementptr i8, ptr %ctx, i64 $SYNC_WROTE
  %wrote = load i64, ptr %sp
  %same0 = icmp eq i64 %wrote, %key
  %some = icmp ne i64 %version, 0
  %same = and i1 %same0, %some
  br i1 %same, label %out, label %new
new:
  store i64 %key, ptr %sp
  call void @record(ptr %ctx, ptr %rt, i64 $FLAG_WRITTEN, i64 %word, i64 %site, i64 0, i64 -1)
  %v1 = add i64 %version, 1
  %over = icmp ugt i64 %v1, $CELL_VERSION_LOW
  %v = select i1 %over, i64 1, i64 %v1
  ret i64 %v
out:
  ret i64 %version
}

; strong accesses of global memory: all of it is one flag, word -1
define internal void @global_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %site, i1 %reads, i1 %writes, i1 %release)
    noinline {
  %vp = getelementptr i64, ptr %rt, i64 $GLOBAL_FLAG
  %version = load i64, ptr %vp
  br i1 %reads, label %see, label %next
see:
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 -1, i64 %site, i64 %version, i1 %writes)
  br label %next
next:
  br i1 %writes, label %set, label %out
set:
  %v = call i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 -1, i64 %site, i64 %version, i1 %release)
  store i64 %v, ptr %vp
  br label %out
out:
  ret void
}

; ---- loads

define internal void @load_word($ACCESS) {
  %cell = call i64 @visit(ptr %ctx, ptr %cells, i64 %stamp, i64 %word)
  ; Written, and by no strong write: one comparison, since CELL_ATOMIC is the bit below CELL_BYTES_EVER.
  %i0 = lshr i64 %cell, $CELL_STRONG_AND_EVER_SHIFT
  %i1 = trunc i64 %i0 to i32
  %want = shl i32 %mask, 1
  %care = or i32 %want, 1
  %have = and i32 %i1, %care
  %ready = icmp eq i32 %have, %want
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %fine = and i1 %ready, %ok
  br i1 %fine, label %mark, label %slow, !prof !0
slow:
  call void @load_slow($ACCESS, i64 %cell, i1 false)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 $MARK_READ, i64 %site)
  ret void
}

define internal void @load_strong($ACCESS) noinline {
  %cell = call i64 @visit(ptr %ctx, ptr %cells, i64 %stamp, i64 %word)
  %ready = call i1 @written(i64 %cell, i32 %mask)
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %fine = and i1 %ready, %ok
  br i1 %fine, label %mark, label %slow, !prof !0
slow:
  call void @load_slow($ACCESS, i64 %cell, i1 true)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 0, i64 %site)
  %version = lshr i64 %cell, $CELL_VERSION_SHIFT
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 false)
  ret void
}

define internal void @load_slow($ACCESS, i64 %cell, i1 %strong) noinline cold {
  %ready = call i1 @written(i64 %cell, i32 %mask)
  br i1 %ready, label %race, label %never
never:
  call void @unwritten(ptr %ctx, ptr %rt, i64 %word, i64 %site, i64 %cell)
  ret void
race:
  %touch = call i1 @touched(i64 %cell, i32 %mask)
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad0 = xor i1 %ok, true
  %bad = and i1 %bad0, %touch
  br i1 %bad, label %report, label %marks
report:
  call void @record(ptr %ctx, ptr %rt, i64 $LOAD_AFTER_WRITE, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
marks:
  %atomic0 = and i64 %cell, $CELL_ATOMIC
  %atomic = icmp ne i64 %atomic0, 0
  %ordinary = xor i1 %strong, true
  %look = and i1 %atomic, %ordinary
  br i1 %look, label %scan, label %out
scan:
  %writer = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 $MARK_WRITE)
  %found = icmp sge i64 %writer, 0
  br i1 %found, label %atomics, label %out
atomics:
  call void @record(ptr %ctx, ptr %rt, i64 $LOAD_AFTER_WRITE, i64 %word, i64 %site, i64 %cell, i64 %writer)
  ret void
out:
  ret void
}

; ---- stores

define internal void @store_word($ACCESS, i32 %value) {
  %cell = call i64 @visit(ptr %ctx, ptr %cells, i64 %stamp, i64 %word)
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %marks = call ptr @marks(ptr %reads, i64 %columns, i64 %word)
  %own = call i64 @column(i64 %stamp)
  %op = getelementptr i32, ptr %marks, i64 %own
  %mine = load i32, ptr %op
  %inner = call i1 @within(i32 %mine, i64 %stamp)
  %late = call i1 @any_late(ptr %marks, ptr %row, i64 %columns, i32 -1)
  %notok = xor i1 %ok, true
  %b0 = or i1 %late, %inner
  %bad = or i1 %b0, %notok
  br i1 %bad, label %slow, label %mark, !prof !1
slow:
  call void @store_slow($ACCESS, i64 %cell, i32 %value)
  br label %mark
mark:
  %new = call i64 @cell_of_write(i64 %cell, i64 %stamp, i32 %mask)
  %cp = getelementptr i64, ptr %cells, i64 %word
  store i64 %new, ptr %cp
  call void @note_site(ptr %rt, i64 %word, i64 0, i64 %site)
  ret void
}

define internal void @store_slow($ACCESS, i64 %cell, i32 %value) noinline cold {
  %touch = call i1 @touched(i64 %cell, i32 %mask)
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %bad = xor i1 %ok, true
  %race = and i1 %bad, %touch
  br i1 %race, label %compare, label %readers
compare:
  ; To write what the word holds already is harmless, and common: every thread sets one flag. Bit k of the mask is moved
  ; to bit 8 k, and that becomes a byte.
  %at = shl i64 %word, 2
  %mp = getelementptr i8, ptr %shared, i64 %at
  %now = load i32, ptr %mp
  %d0 = xor i32 %now, %value
  %m7 = mul i32 %mask, $EVERY_7_BITS
  %m8 = and i32 %m7, $EVERY_8_BITS
  %bytes = mul i32 %m8, 255
  %d = and i32 %d0, %bytes
  %changes = icmp ne i32 %d, 0
  br i1 %changes, label %report, label %readers
report:
  call void @record(ptr %ctx, ptr %rt, i64 $STORE_AFTER_WRITE, i64 %word, i64 %site, i64 %cell, i64 -1)
  ret void
readers:
  %reader = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 0)
  %found = icmp sge i64 %reader, 0
  br i1 %found, label %read, label %out
read:
  call void @record(ptr %ctx, ptr %rt, i64 $STORE_AFTER_READ, i64 %word, i64 %site, i64 %cell, i64 %reader)
  ret void
out:
  ret void
}

; %reads_too: an atomic, which reads what it replaces; %release: its order has been published already
define internal void @store_strong($ACCESS, i1 %reads_too, i1 %release) noinline {
entry:
  %cell = call i64 @visit(ptr %ctx, ptr %cells, i64 %stamp, i64 %word)
  %ok = call i1 @ordered(i64 %cell, ptr %row, i64 %stamp)
  %touch = call i1 @touched(i64 %cell, i32 %mask)
  %notok = xor i1 %ok, true
  %race = and i1 %notok, %touch
  br i1 %race, label %report, label %others, !prof !1
report:
  %kind = select i1 %reads_too, i64 $ATOMIC_AFTER_ACCESS, i64 $STORE_AFTER_WRITE
  call void @record(ptr %ctx, ptr %rt, i64 %kind, i64 %word, i64 %site, i64 %cell, i64 -1)
  br label %mark
others:
  ; only ordinary reads count
  %marks = call ptr @marks(ptr %reads, i64 %columns, i64 %word)
  %own = call i64 @column(i64 %stamp)
  %op = getelementptr i32, ptr %marks, i64 %own
  %mine = load i32, ptr %op
  %within = call i1 @within(i32 %mine, i64 %stamp)
  %rk = and i32 %mine, $MARK_READ
  %ordinary = icmp ne i32 %rk, 0
  %inner = and i1 %within, %ordinary
  %late = call i1 @any_late(ptr %marks, ptr %row, i64 %columns, i32 $MARK_READ)
  %bad = or i1 %late, %inner
  br i1 %bad, label %slow, label %mark, !prof !1
slow:
  %who = call i64 @unordered(ptr %reads, i64 %columns, ptr %row, i64 %stamp, i64 %word, i32 %mask, i32 $MARK_READ)
  %found = icmp sge i64 %who, 0
  br i1 %found, label %read, label %mark
read:
  %verb = select i1 %reads_too, i64 $READER_ATOMIC, i64 0
  %reader = or i64 %who, %verb
  call void @record(ptr %ctx, ptr %rt, i64 $STORE_AFTER_READ, i64 %word, i64 %site, i64 %cell, i64 %reader)
  br label %mark
mark:
  call void @mark(ptr %rt, ptr %reads, i64 %columns, i64 %stamp, i64 %word, i32 %mask, i32 $MARK_WRITE, i64 %site)
  %version = lshr i64 %cell, $CELL_VERSION_SHIFT
  br i1 %reads_too, label %see, label %set
see:
  call void @see_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 true)
  br label %set
set:
  ; the cell stays that of the last ordinary write, but for the bytes, the bit and the version
  %v = call i64 @set_flag(ptr %ctx, ptr %rt, i64 %stamp, i64 %word, i64 %site, i64 %version, i1 %release)
  %m64 = zext i32 %mask to i64
  %ever = shl i64 %m64, $CELL_BYTES_EVER_SHIFT
  %n0 = and i64 %cell, $CELL_BELOW_VERSION
  %n1 = or i64 %n0, %ever
  %n2 = or i64 %n1, $CELL_ATOMIC
  %new0 = shl i64 %v, $CELL_VERSION_SHIFT
  %new = or i64 %n2, %new0
  %cp = getelementptr i64, ptr %cells, i64 %word
  store i64 %new, ptr %cp
  ret void
}

declare i1 @llvm.vector.reduce.or.v8i1(<8 x i1>)
