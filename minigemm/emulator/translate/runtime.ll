; Arithmetic that LLVM has no instruction for, as the GPU defines it. It is part of every translated kernel; LLVM drops
; what the kernel does not use.

declare float @llvm.fma.f32(float, float, float)
declare double @llvm.fma.f64(double, double, double)
declare float @llvm.sqrt.f32(float)
declare double @llvm.sqrt.f64(double)
declare float @llvm.fabs.f32(float)
declare double @llvm.fabs.f64(double)
declare float @llvm.rint.f32(float)
declare i32 @llvm.fshl.i32(i32, i32, i32)
declare double @exp2(double)
declare double @log2(double)
declare double @sin(double)
declare double @cos(double)
declare double @tanh(double)

; a subnormal f32 becomes a zero of its sign (.ftz)
define internal i32 @flush(i32 %x) alwaysinline {
  %e = and i32 %x, 2139095040
  %s = and i32 %x, -2147483648
  %z = icmp eq i32 %e, 0
  %r = select i1 %z, i32 %s, i32 %x
  ret i32 %r
}

; any f32 NaN becomes the GPU's canonical NaN
define internal i32 @quiet(i32 %x) alwaysinline {
  %a = and i32 %x, 2147483647
  %n = icmp ugt i32 %a, 2139095040
  %r = select i1 %n, i32 2147483647, i32 %x
  ret i32 %r
}

; a + b rounded to odd: a second rounding to 51 bits or fewer is then correct (Boldo and Melquiond, 2008). The error term
; is Knuth's TwoSum.
define internal double @add_odd(double %a, double %b) {
  %s = fadd double %a, %b
  %bb = fsub double %s, %a
  %a1 = fsub double %s, %bb
  %da = fsub double %a, %a1
  %db = fsub double %b, %bb
  %err = fadd double %da, %db
  %bits = bitcast double %s to i64
  %inexact = fcmp one double %err, 0.0
  %low = and i64 %bits, 1
  %even = icmp eq i64 %low, 0
  %move = and i1 %inexact, %even
  %up = fcmp ogt double %err, 0.0
  %positive = fcmp ogt double %s, 0.0
  %away = icmp eq i1 %up, %positive
  %step = select i1 %away, i64 1, i64 -1
  %moved = add i64 %bits, %step
  %chosen = select i1 %move, i64 %moved, i64 %bits
  %r = bitcast i64 %chosen to double
  ret double %r
}

; the same where the sum is going to be rounded down: an exact zero is then -0, unless both operands are +0
define internal double @add_odd_down(double %a, double %b) {
  %r = call double @add_odd(double %a, double %b)
  %zero = fcmp oeq double %r, 0.0
  %x = bitcast double %a to i64
  %y = bitcast double %b to i64
  %both = or i64 %x, %y
  %negative = icmp ne i64 %both, 0
  %change = and i1 %zero, %negative
  %s = select i1 %change, double -0.0, double %r
  ret double %s
}

define internal double @sitofp_odd_i64(i64 %x) {
  %high = ashr i64 %x, 32
  %low = and i64 %x, 4294967295
  %h = sitofp i64 %high to double
  %hs = fmul double %h, 4294967296.0
  %l = uitofp i64 %low to double
  %r = call double @add_odd(double %hs, double %l)
  ret double %r
}

define internal double @uitofp_odd_i64(i64 %x) {
  %high = lshr i64 %x, 32
  %low = and i64 %x, 4294967295
  %h = uitofp i64 %high to double
  %hs = fmul double %h, 4294967296.0
  %l = uitofp i64 %low to double
  %r = call double @add_odd(double %hs, double %l)
  ret double %r
}

; the neighbours of an f32
define internal float @next_up(float %f) {
  %b = bitcast float %f to i32
  %zero = fcmp oeq float %f, 0.0
  %negative = icmp slt i32 %b, 0
  %step = select i1 %negative, i32 -1, i32 1
  %n = add i32 %b, %step
  %c = select i1 %zero, i32 1, i32 %n
  %r = bitcast i32 %c to float
  ret float %r
}

define internal float @next_down(float %f) {
  %m = fneg float %f
  %u = call float @next_up(float %m)
  %r = fneg float %u
  ret float %r
}

define internal float @to_float_rn(double %d) alwaysinline {
  %r = fptrunc double %d to float
  ret float %r
}

define internal float @to_float_rm(double %d) {
  %f = fptrunc double %d to float
  %w = fpext float %f to double
  %above = fcmp ogt double %w, %d
  %n = call float @next_down(float %f)
  %r = select i1 %above, float %n, float %f
  ret float %r
}

define internal float @to_float_rp(double %d) {
  %f = fptrunc double %d to float
  %w = fpext float %f to double
  %below = fcmp olt double %w, %d
  %n = call float @next_up(float %f)
  %r = select i1 %below, float %n, float %f
  ret float %r
}

define internal float @to_float_rz(double %d) {
  %negative = fcmp olt double %d, 0.0
  %up = call float @to_float_rp(double %d)
  %down = call float @to_float_rm(double %d)
  %r = select i1 %negative, float %up, float %down
  ret float %r
}

define internal float @to_float_odd(double %d) {
  %f = fptrunc double %d to float
  %w = fpext float %f to double
  %inexact = fcmp one double %w, %d
  %b = bitcast float %f to i32
  %low = and i32 %b, 1
  %even = icmp eq i32 %low, 0
  %move = and i1 %inexact, %even
  %above = fcmp ogt double %d, %w
  %up = call float @next_up(float %f)
  %down = call float @next_down(float %f)
  %n = select i1 %above, float %up, float %down
  %r = select i1 %move, float %n, float %f
  ret float %r
}

define internal i16 @f16_rn(i32 %x) alwaysinline {
  %a = and i32 %x, 2147483647
  %n = icmp ugt i32 %a, 2139095040
  %f = bitcast i32 %x to float
  %h = fptrunc float %f to half
  %b = bitcast half %h to i16
  %r = select i1 %n, i16 32767, i16 %b
  ret i16 %r
}

define internal i16 @f16_rz(i32 %x) {
  %b = call i16 @f16_rn(i32 %x)
  %h = bitcast i16 %b to half
  %w = fpext half %h to float
  %aw = call float @llvm.fabs.f32(float %w)
  %f = bitcast i32 %x to float
  %af = call float @llvm.fabs.f32(float %f)
  %over = fcmp ogt float %aw, %af
  %less = sub i16 %b, 1
  %r = select i1 %over, i16 %less, i16 %b
  ret i16 %r
}

define internal i16 @bf16_rn(i32 %x) alwaysinline {
  %a = and i32 %x, 2147483647
  %n = icmp ugt i32 %a, 2139095040
  %l = lshr i32 %x, 16
  %o = and i32 %l, 1
  %c = add i32 %o, 32767
  %d = add i32 %x, %c
  %e = lshr i32 %d, 16
  %s = select i1 %n, i32 32767, i32 %e
  %r = trunc i32 %s to i16
  ret i16 %r
}

define internal i16 @bf16_rz(i32 %x) alwaysinline {
  %a = and i32 %x, 2147483647
  %n = icmp ugt i32 %a, 2139095040
  %e = lshr i32 %x, 16
  %s = select i1 %n, i32 32767, i32 %e
  %r = trunc i32 %s to i16
  ret i16 %r
}

define internal i32 @tf32_rna(i32 %x) {
  %n = call i32 @quiet(i32 %x)
  %a = add i32 %n, 4096
  %m = and i32 %a, -8192
  %e = and i32 %n, 2139095040
  %special = icmp eq i32 %e, 2139095040
  %r = select i1 %special, i32 %n, i32 %m
  ret i32 %r
}

define internal i32 @tf32_rn(i32 %x) {
  %n = call i32 @quiet(i32 %x)
  %l = lshr i32 %n, 13
  %o = and i32 %l, 1
  %c = add i32 %o, 4095
  %a = add i32 %n, %c
  %m = and i32 %a, -8192
  %e = and i32 %n, 2139095040
  %special = icmp eq i32 %e, 2139095040
  %r = select i1 %special, i32 %n, i32 %m
  ret i32 %r
}

; minNum and maxNum with -0 below +0; the _nan forms return NaN when either operand is one
define internal float @minimum_f32(float %x, float %y) alwaysinline {
  %bx = bitcast float %x to i32
  %by = bitcast float %y to i32
  %both = or i32 %bx, %by
  %eq = bitcast i32 %both to float
  %lt = fcmp olt float %x, %y
  %gt = fcmp ogt float %x, %y
  %c1 = select i1 %gt, float %y, float %eq
  %c2 = select i1 %lt, float %x, float %c1
  %nx = fcmp uno float %x, 0.0
  %ny = fcmp uno float %y, 0.0
  %c3 = select i1 %ny, float %x, float %c2
  %r = select i1 %nx, float %y, float %c3
  ret float %r
}

define internal float @maximum_f32(float %x, float %y) alwaysinline {
  %bx = bitcast float %x to i32
  %by = bitcast float %y to i32
  %both = and i32 %bx, %by
  %eq = bitcast i32 %both to float
  %lt = fcmp olt float %x, %y
  %gt = fcmp ogt float %x, %y
  %c1 = select i1 %lt, float %y, float %eq
  %c2 = select i1 %gt, float %x, float %c1
  %nx = fcmp uno float %x, 0.0
  %ny = fcmp uno float %y, 0.0
  %c3 = select i1 %ny, float %x, float %c2
  %r = select i1 %nx, float %y, float %c3
  ret float %r
}

define internal float @minimum_nan_f32(float %x, float %y) {
  %u = fcmp uno float %x, %y
  %m = call float @minimum_f32(float %x, float %y)
  %r = select i1 %u, float 0x7FF8000000000000, float %m
  ret float %r
}

define internal float @maximum_nan_f32(float %x, float %y) {
  %u = fcmp uno float %x, %y
  %m = call float @maximum_f32(float %x, float %y)
  %r = select i1 %u, float 0x7FF8000000000000, float %m
  ret float %r
}

define internal double @minimum_f64(double %x, double %y) {
  %bx = bitcast double %x to i64
  %by = bitcast double %y to i64
  %both = or i64 %bx, %by
  %eq = bitcast i64 %both to double
  %lt = fcmp olt double %x, %y
  %gt = fcmp ogt double %x, %y
  %c1 = select i1 %gt, double %y, double %eq
  %c2 = select i1 %lt, double %x, double %c1
  %nx = fcmp uno double %x, 0.0
  %ny = fcmp uno double %y, 0.0
  %c3 = select i1 %ny, double %x, double %c2
  %r = select i1 %nx, double %y, double %c3
  ret double %r
}

define internal double @maximum_f64(double %x, double %y) {
  %bx = bitcast double %x to i64
  %by = bitcast double %y to i64
  %both = and i64 %bx, %by
  %eq = bitcast i64 %both to double
  %lt = fcmp olt double %x, %y
  %gt = fcmp ogt double %x, %y
  %c1 = select i1 %lt, double %y, double %eq
  %c2 = select i1 %gt, double %x, double %c1
  %nx = fcmp uno double %x, 0.0
  %ny = fcmp uno double %y, 0.0
  %c3 = select i1 %ny, double %x, double %c2
  %r = select i1 %nx, double %y, double %c3
  ret double %r
}

; bit fields: position and length are taken from the low 8 bits and clamp at the width
define internal i32 @bfe_u32(i32 %x, i32 %p, i32 %l) {
  %r64 = zext i32 %x to i64
  %r = call i64 @field(i64 %r64, i32 %p, i32 %l, i32 32)
  %t = trunc i64 %r to i32
  ret i32 %t
}

define internal i64 @bfe_u64(i64 %x, i32 %p, i32 %l) {
  %r = call i64 @field(i64 %x, i32 %p, i32 %l, i32 64)
  ret i64 %r
}

define internal i64 @mask_of(i32 %l) {
  %big = icmp ugt i32 %l, 63
  %l64 = zext i32 %l to i64
  %s = shl i64 1, %l64
  %m = sub i64 %s, 1
  %r = select i1 %big, i64 -1, i64 %m
  ret i64 %r
}

define internal i64 @field(i64 %x, i32 %p0, i32 %l0, i32 %n) {
  %p = and i32 %p0, 255
  %l = and i32 %l0, 255
  %out = icmp uge i32 %p, %n
  %p64 = zext i32 %p to i64
  %s = lshr i64 %x, %p64
  %m = call i64 @mask_of(i32 %l)
  %f = and i64 %s, %m
  %r = select i1 %out, i64 0, i64 %f
  ret i64 %r
}

define internal i64 @field_signed(i64 %sx, i32 %p0, i32 %l0, i32 %n) {
  ; sx is the value sign-extended to 64 bits. The sign bit is the last bit of the field, or of the value where the field
  ; runs over its end.
  %p = and i32 %p0, 255
  %l = and i32 %l0, 255
  %none = icmp eq i32 %l, 0
  %last = sub i32 %n, 1
  %e0 = add i32 %p, %l
  %e = sub i32 %e0, 1
  %over = icmp ugt i32 %e, %last
  %end = select i1 %over, i32 %last, i32 %e
  %left = sub i32 63, %end
  %left64 = zext i32 %left to i64
  %up = shl i64 %sx, %left64
  %pover = icmp ugt i32 %p, %last
  %pc = select i1 %pover, i32 %last, i32 %p
  %right = add i32 %left, %pc
  %right64 = zext i32 %right to i64
  %d = ashr i64 %up, %right64
  %r = select i1 %none, i64 0, i64 %d
  ret i64 %r
}

define internal i32 @bfe_s32(i32 %x, i32 %p, i32 %l) {
  %w = sext i32 %x to i64
  %r = call i64 @field_signed(i64 %w, i32 %p, i32 %l, i32 32)
  %t = trunc i64 %r to i32
  ret i32 %t
}

define internal i64 @bfe_s64(i64 %x, i32 %p, i32 %l) {
  %r = call i64 @field_signed(i64 %x, i32 %p, i32 %l, i32 64)
  ret i64 %r
}

define internal i64 @insert(i64 %x, i64 %y, i32 %p0, i32 %l0, i32 %n) {
  %p = and i32 %p0, 255
  %l = and i32 %l0, 255
  %out = icmp uge i32 %p, %n
  %p64 = zext i32 %p to i64
  %m0 = call i64 @mask_of(i32 %l)
  %m = shl i64 %m0, %p64
  %xs = shl i64 %x, %p64
  %new = and i64 %xs, %m
  %keep = xor i64 %m, -1
  %old = and i64 %y, %keep
  %both = or i64 %new, %old
  %r = select i1 %out, i64 %y, i64 %both
  ret i64 %r
}

define internal i32 @bfi_32(i32 %x, i32 %y, i32 %p, i32 %l) {
  %a = zext i32 %x to i64
  %b = zext i32 %y to i64
  %r = call i64 @insert(i64 %a, i64 %b, i32 %p, i32 %l, i32 32)
  %t = trunc i64 %r to i32
  ret i32 %t
}

define internal i64 @bfi_64(i64 %x, i64 %y, i32 %p, i32 %l) {
  %r = call i64 @insert(i64 %x, i64 %y, i32 %p, i32 %l, i32 64)
  ret i64 %r
}

; FP8. e4m3: bias 7, no infinity, NaN 0x7f and 0xff, largest 448. e5m2: the top byte of an f16.
define internal i16 @e4m3_to_f16(i16 %x) alwaysinline {
  %i = and i16 %x, 255
  %p = getelementptr [256 x i16], ptr @e4m3_table, i16 0, i16 %i
  %r = load i16, ptr %p
  ret i16 %r
}

define internal i16 @e5m2_to_f16(i16 %x) alwaysinline {
  %h = shl i16 %x, 8
  %a = and i16 %h, 32767
  %n = icmp ugt i16 %a, 31744
  %r = select i1 %n, i16 32767, i16 %h
  ret i16 %r
}

; round to nearest even, saturating at the largest finite value; NaN gives 0x7f
define internal i16 @to_e4m3(float %f) {
  %x = bitcast float %f to i32
  %a = and i32 %x, 2147483647
  %sign = lshr i32 %x, 24
  %s = and i32 %sign, 128
  %nan = icmp ugt i32 %a, 2139095040
  %o = lshr i32 %a, 20
  %odd = and i32 %o, 1
  %bias = add i32 %odd, 524287
  %sum = add i32 %a, %bias
  %top = lshr i32 %sum, 20
  %normal = sub i32 %top, 960
  %over = icmp ugt i32 %normal, 126
  %capped = select i1 %over, i32 126, i32 %normal
  %mag = bitcast i32 %a to float
  %scaled = fmul float %mag, 512.0
  %r = call float @llvm.rint.f32(float %scaled)
  %small = icmp ult i32 %a, 1015021568
  %safe = select i1 %small, float %r, float 0.0
  %sub = fptoui float %safe to i32
  %code = select i1 %small, i32 %sub, i32 %capped
  %signed = or i32 %code, %s
  %final = select i1 %nan, i32 127, i32 %signed
  %t = trunc i32 %final to i16
  ret i16 %t
}

define internal i16 @to_e5m2(float %f) {
  %x = bitcast float %f to i32
  %a = and i32 %x, 2147483647
  %sign = lshr i32 %x, 24
  %s = and i32 %sign, 128
  %nan = icmp ugt i32 %a, 2139095040
  %o = lshr i32 %a, 21
  %odd = and i32 %o, 1
  %bias = add i32 %odd, 1048575
  %sum = add i32 %a, %bias
  %top = lshr i32 %sum, 21
  %normal = sub i32 %top, 448
  %over = icmp ugt i32 %normal, 123
  %capped = select i1 %over, i32 123, i32 %normal
  %mag = bitcast i32 %a to float
  %scaled = fmul float %mag, 65536.0
  %r = call float @llvm.rint.f32(float %scaled)
  %small = icmp ult i32 %a, 947912704
  %safe = select i1 %small, float %r, float 0.0
  %sub = fptoui float %safe to i32
  %code = select i1 %small, i32 %sub, i32 %capped
  %signed = or i32 %code, %s
  %final = select i1 %nan, i32 127, i32 %signed
  %t = trunc i32 %final to i16
  ret i16 %t
}
