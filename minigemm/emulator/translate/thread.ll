; One kernel's threads: the function that runs a thread until it yields, and what calls it.
; A name with a dollar sign is an offset or a code of context.py, or what assemble.py fills in.

; Run one thread from the place where it yielded to the next such place.
define internal void @thread(ptr noalias %ctx, ptr noalias %rt) {
entry:
$REGISTERS
  %code = alloca i32      ; why the thread leaves
  %cc = alloca i1         ; the carry of add.cc and its like
  %generic = alloca ptr   ; where a generic address points
  %budget = alloca i64    ; iterations of loops that are left
  %logged = alloca i64    ; entries in the log

  ; what the block record says: it does not change while the thread runs
  %shared.p = getelementptr i64, ptr %rt, i64 $SHARED
  %shared = load ptr, ptr %shared.p, !invariant.load !2
  %shared_end.p = getelementptr i64, ptr %rt, i64 $SHARED_END
  %shared_end = load i64, ptr %shared_end.p, !invariant.load !2
  %shared_base.p = getelementptr i64, ptr %rt, i64 $SHARED_BASE
  %shared_base = load i64, ptr %shared_base.p, !invariant.load !2
  %cells.p = getelementptr i64, ptr %rt, i64 $CELLS
  %cells = load ptr, ptr %cells.p, !invariant.load !2
  %reads.p = getelementptr i64, ptr %rt, i64 $READS
  %reads = load ptr, ptr %reads.p, !invariant.load !2
  %columns.p = getelementptr i64, ptr %rt, i64 $READ_COLUMNS
  %columns = load i64, ptr %columns.p, !invariant.load !2
  %params.p = getelementptr i64, ptr %rt, i64 $PARAMETERS
  %params = load i64, ptr %params.p, !invariant.load !2
  %counts.p = getelementptr i64, ptr %rt, i64 $COUNTS
  %counts = load ptr, ptr %counts.p, !invariant.load !2
  %limit.p = getelementptr i64, ptr %rt, i64 $BUDGET_LIMIT
  %limit = load i64, ptr %limit.p, !invariant.load !2
  %log_limit.p = getelementptr i64, ptr %rt, i64 $LOG_LIMIT
  %log_limit = load i64, ptr %log_limit.p, !invariant.load !2

  ; what the thread's context says
  %row.p = getelementptr i8, ptr %ctx, i64 $ROW
  %row = load ptr, ptr %row.p
  %stamp.p = getelementptr i8, ptr %ctx, i64 $STAMP
  %stamp = load i64, ptr %stamp.p
  %log.p = getelementptr i8, ptr %ctx, i64 $LOG
  %log = load ptr, ptr %log.p
  %context = ptrtoint ptr %ctx to i64
  %logged.p = getelementptr i8, ptr %ctx, i64 $LOGGED
  %before = load i64, ptr %logged.p
  store i64 %before, ptr %logged
  store i64 %limit, ptr %budget
  store i32 $DONE, ptr %code

  ; go on where the thread yielded
  %pc = load i32, ptr %ctx
  switch i32 %pc, label %L0 [ $PLACES ]
$BODY
leave:
  %final = load i64, ptr %logged
  store i64 %final, ptr %logged.p
  %why = load i32, ptr %code
  %why.p = getelementptr i8, ptr %ctx, i64 $CODE
  store i32 %why, ptr %why.p
  ret void
}

; Run n threads, given by their indices, each until it yields. Their logs begin at zero.
define void @step(ptr %contexts, i64 %stride, i64 %n, ptr %ids, ptr %rt) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %done ]
  %ip = getelementptr i32, ptr %ids, i64 %i
  %id = load i32, ptr %ip
  %wide = zext i32 %id to i64
  %offset = mul i64 %wide, %stride
  %ctx = getelementptr i8, ptr %contexts, i64 %offset
  %lp = getelementptr i8, ptr %ctx, i64 $LOGGED
  store i64 0, ptr %lp
  call void @thread(ptr %ctx, ptr %rt)
  %cp = getelementptr i8, ptr %ctx, i64 $CODE
  %code = load i32, ptr %cp
  %bad = icmp eq i32 %code, $FAULT
  br i1 %bad, label %fault, label %done
done:
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %out
fault:
  %tp = getelementptr i64, ptr %rt, i64 $FAULT_THREAD
  store i64 %wide, ptr %tp
  br label %out
out:
  ret void
}

; Look an address up in the table of buffers, and remember the hit for the instruction. Returns 0, or the kind of fault.
define internal i64 @find_range(ptr %rt, ptr %entry, i64 %where, i64 %size, i1 %store) noinline cold {
  %tp = getelementptr i64, ptr %rt, i64 $RANGES
  %table = load ptr, ptr %tp
  %np = getelementptr i64, ptr %rt, i64 $RANGE_COUNT
  %n = load i64, ptr %np
  br label %loop
loop:
  %i = phi i64 [ 0, %0 ], [ %i1, %next ]
  %more = icmp ult i64 %i, %n
  br i1 %more, label %look, label %none
look:
  %at = mul i64 %i, 3
  %p0 = getelementptr i64, ptr %table, i64 %at
  %low = load i64, ptr %p0
  %p1 = getelementptr i64, ptr %p0, i64 1
  %high = load i64, ptr %p1
  %a = icmp uge i64 %where, %low
  %last = sub i64 %high, %size
  %b = icmp ule i64 %where, %last
  %in = and i1 %a, %b
  br i1 %in, label %found, label %next
next:
  %i1 = add i64 %i, 1
  br label %loop
found:
  %p2 = getelementptr i64, ptr %p0, i64 2
  %w = load i64, ptr %p2
  %fixed = icmp eq i64 %w, 0
  %bad = and i1 %fixed, %store
  br i1 %bad, label %readonly, label %keep
keep:
  store i64 %low, ptr %entry
  %ep = getelementptr i64, ptr %entry, i64 1
  store i64 %high, ptr %ep
  ret i64 0
readonly:
  ret i64 $READ_ONLY
none:
  ret i64 $GLOBAL_BOUNDS
}

!0 = !{!"branch_weights", i32 10000, i32 1} ; the condition nearly always holds
!1 = !{!"branch_weights", i32 1, i32 10000} ; it nearly never holds
!2 = !{}
