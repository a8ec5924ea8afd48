# exp, log and log1p as plain arithmetic, for loops that the compiler vectorises.
#
# Layout: a) types and bit casts, b) exp, c) log and log1p, d) what the losses make of them.
#
# A bare 1 among floats would be a double to the C compiler: constants are written <real>1.
#
# Polynomials are summed in pairs and not from the top down (Estrin's way): as many operations, but
# half as many that wait for each other, which is what the loops' speed hangs on.
#
# Every function is branch-free (its ternaries become selects), calls nothing but the others here
# (and exp_by_table a form with intrinsics), and states its largest error and its valid range;
# tests/test_vecmath.py holds it to both. An ulp is the spacing of the result's type at the exact
# value. The polynomials come from bench/fit_polynomials.py. Where the processor has a fused
# multiply-add (FMA is a constant of the
# C compiler) it is asked for by name: nothing depends on what the compiler contracts.

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef extern from "simd/fma.h" nogil:
    const bint FMA "FASTLOSS_FMA"

cdef extern from "simd/exp.h" nogil:
    # See tempers.pxd.
    ctypedef struct Temper "fastloss_temper":
        double temperature
        double inverse
        double log2e
        double ln2[3]
        float table[4]
    const int EXP_TABLE "FASTLOSS_EXP_TABLE"
    float table_magic "fastloss_exp_magic"(float magic) noexcept
    void exp64 "fastloss_exp64"(
        float *to, const float *x, const float *magic, const float *low, const Temper *temper
    ) noexcept

cdef extern from "<math.h>" nogil:
    float fmaf(float, float, float)
    double fma(double, double, double)
    const double INFINITY
    const double NAN

# ---- a) types and bit casts ------------------------------------------------------------------

ctypedef fused real:
    float
    double

cdef union Bits32:
    float f
    uint32_t u

cdef union Bits64:
    double f
    uint64_t u


cdef inline uint32_t bits32(float x) noexcept nogil:
    cdef Bits32 b
    b.f = x
    return b.u


cdef inline float float_of(uint32_t u) noexcept nogil:
    cdef Bits32 b
    b.u = u
    return b.f


cdef inline uint64_t bits64(double x) noexcept nogil:
    cdef Bits64 b
    b.f = x
    return b.u


cdef inline double double_of(uint64_t u) noexcept nogil:
    cdef Bits64 b
    b.u = u
    return b.f


cdef inline real mul_add(real a, real b, real c) noexcept nogil:
    """a * b + c, rounded once where the processor does that, else twice."""
    if FMA:
        if real is float:
            return fmaf(a, b, c)
        else:
            return fma(a, b, c)
    return a * b + c


# A number in two parts, of which `low` is below an ulp of `high`.
cdef struct Pair:
    double high
    double low


cdef struct Pair32:
    float high
    float low


cdef inline float product_low32(float a, float b, float product) noexcept nogil:
    """a * b - product, rounded once."""
    if FMA:
        return fmaf(a, b, -product)
    return <float>(<double>a * <double>b - <double>product)


cdef inline double product_low(double a, double b, double product) noexcept nogil:
    """What rounding took from product = a * b; a and b below 1e300, no part of it subnormal."""
    cdef double c, a_high, b_high, a_low, b_low
    if FMA:
        return fma(a, b, -product)
    c = 134217729.0 * a
    a_high = c - (c - a)
    a_low = a - a_high
    c = 134217729.0 * b
    b_high = c - (c - b)
    b_low = b - b_high
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


cdef inline Pair pair_product(Pair a, Pair b) noexcept nogil:
    cdef Pair c
    c.high = a.high * b.high
    c.low = product_low(a.high, b.high, c.high) + (a.high * b.low + a.low * b.high)
    return c


cdef inline Pair pair_sum(Pair a, Pair b) noexcept nogil:
    cdef Pair c
    cdef double z
    c.high = a.high + b.high
    z = c.high - a.high
    c.low = ((a.high - (c.high - z)) + (b.high - z)) + (a.low + b.low)
    return c


cdef inline Pair pair_inverse(Pair a) noexcept nogil:
    """1 / a."""
    cdef Pair c
    cdef double p
    c.high = 1 / a.high
    p = c.high * a.high
    c.low = c.high * (((1 - p) - product_low(c.high, a.high, p)) - c.high * a.low)
    return c


# ---- b) exp ----------------------------------------------------------------------------------
#
# e**x = 2**k * e**r with k the integer nearest to x / ln 2. The sum of a softmax needs its terms
# relative to the largest one only up to a power of two, so nothing is subtracted from x: the
# maximum m enters as an integer K near m / ln 2, and the term is e**x * 2**(SPARE - K). No
# rounding of x - m is lost because there is no x - m.
#
# Adding the number `magic` = 1.5 * 2**(mantissa bits) + (SPARE - K + exponent bias) rounds x / ln 2
# to an integer and leaves, in the low bits of the sum, the exponent field of 2**(k + SPARE - K):
# one shift makes it a number. SPARE keeps terms normal numbers that are subnormal relative to the
# maximum, and leaves room for K to be that of a larger or smaller number than the maximum; it goes
# away when a result is scaled, in one rounding.
#
# `low` is where that exponent field is 0: x is clamped there, the power of two is then exactly 0
# and so is the term, of -inf as well. A NaN stays NaN.
#
# Valid for |x| <= EXP_LIMIT above `low` (k * LN2_HIGH is then exact even without FMA). Rows whose
# maximum is farther out subtract it first, which is exact there: every x that counts lies within
# a factor of two of the maximum.

cdef inline real spare_bits(real unused) noexcept nogil:
    """SPARE."""
    return 70 if real is float else 128


cdef inline real exp_limit(real unused) noexcept nogil:
    """Largest |m| for which a row is computed without subtracting its maximum."""
    return 1000.0 if real is float else 2000.0


cdef inline real exponent_of(real m) noexcept nogil:
    """K, the even integer nearest to m / ln 2; |m| <= exp_limit.

    Even, so that halfway between two integers x / ln 2 is rounded alike with every K: what other
    rows a row is computed with changes no bit.
    """
    cdef real magic
    if real is float:
        magic = <float>12582912.0
        return 2 * (mul_add(m, <float>0.7213475204444817, magic) - magic)
    else:
        magic = 6755399441055744.0
        return 2 * (mul_add(m, <double>0.7213475204444817, magic) - magic)


cdef inline real exp_magic(real exponent) noexcept nogil:
    """The `magic` of exp_scaled for a row with exponent K."""
    if real is float:
        return <float>12582912.0 + (spare_bits(exponent) + 127 - exponent)
    else:
        return 6755399441055744.0 + (spare_bits(exponent) + 1023 - exponent)


cdef inline real exp_low(real exponent) noexcept nogil:
    """The `low` of exp_scaled for a row with exponent K."""
    if real is float:
        return (exponent - spare_bits(exponent) - 127) * <float>0.6931471805599453
    else:
        return (exponent - spare_bits(exponent) - 1023) * 0.6931471805599453


cdef inline real exp_high(real exponent) noexcept nogil:
    """Where the scaled exponential of a row with exponent K becomes infinite."""
    if real is float:
        return (exponent - spare_bits(exponent) + 128) * <float>0.6931471805599453
    else:
        return (exponent - spare_bits(exponent) + 1024) * 0.6931471805599453


cdef inline double exp_tail(double r, double square) noexcept nogil:
    """(e**r - 1 - r) / r**2 for |r| <= ln 2 / 2, with square = r * r."""
    cdef double p, low_part, high_part
    p = mul_add(r, <double>2.5027991964081563e-08, <double>2.7631478385462734e-07)
    low_part = mul_add(r, <double>2.7557497479195075e-06, <double>2.4801489318727205e-05)
    high_part = mul_add(r, <double>0.00019841269607174817, <double>0.0013888888947727362)
    high_part = mul_add(low_part, square, high_part)
    p = mul_add(p, square * square, high_part)
    low_part = mul_add(r, <double>0.00833333333344726, <double>0.041666666666511976)
    high_part = mul_add(r, <double>0.16666666666666488, <double>0.5000000000000013)
    high_part = mul_add(low_part, square, high_part)
    return mul_add(p, square * square, high_part)


cdef inline real exp_reduced(real r, real k) noexcept nogil:
    """e**r * 2**n for |r| <= ln 2 / 2, n the exponent that the low bits of k hold."""
    cdef real p, square, low_part
    square = r * r
    if real is float:
        p = mul_add(r, <float>0.00836896151304245, <float>0.041669655591249466)
        p = mul_add(square, <float>0.0013744814787060022, p)
        low_part = mul_add(r, <float>0.166665181517601, <float>0.49999988079071045)
        p = mul_add(p, square, low_part)
        # 1 is added last, and scaled with the rest: one rounding of the size of the result.
        p = mul_add(p, square, r)
        r = float_of(bits32(k) << 23)
    else:
        p = exp_tail(r, square)
        p = mul_add(p, square, r)
        r = double_of(bits64(k) << 52)
    return mul_add(p, r, r)


cdef inline real exp_scaled(real x, real magic, real low) noexcept nogil:
    """e**x * 2**(SPARE - K): at most 1.5 ulp off for low < x < exp_high(K)."""
    cdef real k, r, p
    x = low if x < low else x
    if real is float:
        k = mul_add(x, <float>1.4426950408889634, magic)
        p = k - magic
        if FMA:
            r = mul_add(p, <float>-0.693147182464599609375, x)
            r = mul_add(p, <float>1.90465429995776e-09, r)
        else:
            r = x - p * <float>0.693115234375
            r = r - p * <float>3.19461834931e-05
            r = r - p * <float>-1.28891788e-11
    else:
        k = mul_add(x, <double>1.4426950408889634, magic)
        p = k - magic
        r = mul_add(p, <double>-0.6931471803691238, x)
        r = mul_add(p, <double>-1.9082149292705877e-10, r)
    return exp_reduced(r, k)


cdef inline void exp_by_table(
    float *to, const float *x, const float *magic, const float *low, const Temper *temper
) noexcept nogil:
    """`exp_tempered` of 64 floats where EXP_TABLE is not 0: at most 1 ulp off.

    Each has a `magic` and a `low` of its own, `magic` from `table_magic`.
    """
    exp64(to, x, magic, low, temper)


cdef inline real exp_capped(real x, real magic, real low, real high) noexcept nogil:
    """`exp_scaled` of any x: from `high` on infinite or NaN."""
    return exp_scaled(high if x > high else x, magic, low)


cdef inline real spare(real unused) noexcept nogil:
    """2**-SPARE, which takes a scaled exponential back."""
    if real is float:
        return <float>8.470329472543003e-22
    else:
        return 2.938735877055719e-39


cdef inline real exp_negative(real x) noexcept nogil:
    """e**x for x <= 0, subnormal results included: at most 1.5 ulp off; NaN stays NaN."""
    return exp_scaled(x, exp_magic(<real>0), exp_low(<real>0)) * spare(x)


cdef inline Pair32 exp_pair32(float x) noexcept nogil:
    """e**x for x <= 0 in two floats: at most 2**-25 of it off down to x = -80; NaN stays NaN."""
    cdef float magic = exp_magic(<float>0), low = exp_low(<float>0)
    cdef float k, by, r, c, p, q, s, t, square
    cdef Pair32 e
    x = low if x < low else x
    k = mul_add(x, <float>1.4426950408889634, magic)
    by = float_of(bits32(k) << 23) * spare(x)
    k = k - magic
    if FMA:
        r = mul_add(k, <float>-0.693147182464599609375, x)  # exact
        c = k * <float>1.90465429995776e-09
    else:
        t = x - k * <float>0.693359375  # exact
        c = k * <float>2.12194440e-4
        r = t + c
        c = (t - r) + c
    t = <float>1 + r
    s = r + c
    c = c + (r - (t - <float>1))
    square = s * s
    p = mul_add(s, <float>0.00019953357696067542, <float>0.0013936141040176153)
    q = mul_add(s, <float>0.008333197794854641, <float>0.04166645184159279)
    q = mul_add(square, p, q)
    p = mul_add(s, <float>0.1666666716337204, <float>0.5)
    p = mul_add(square, q, p)
    p = mul_add(p, square, c)
    e.high = t + p
    e.low = (p - (e.high - t)) * by
    e.high = e.high * by
    return e


cdef inline Pair exp_pair_scaled(double x, double magic, double low) noexcept nogil:
    """`exp_scaled` in two parts: at most 2**-56 of it off where it is a normal number."""
    cdef Pair e
    cdef double k, r, t, lost, q, by
    x = low if x < low else x
    k = mul_add(x, <double>1.4426950408889634, magic)
    by = double_of(bits64(k) << 52)
    k = k - magic
    r = mul_add(k, <double>-0.6931471803691238, x)  # exact
    t = k * 1.9082149292705877e-10
    lost = r
    r = r - t
    lost = (lost - r) - t
    q = exp_tail(r, r * r)
    t = 1 + r
    q = q * (r * r) + ((r - (t - 1)) + lost * t)
    e.high = t + q
    e.low = (q - (e.high - t)) * by
    e.high = e.high * by
    return e


cdef inline Pair exp_pair(double x) noexcept nogil:
    """e**x for x <= 0 in two parts: at most 2**-56 of it off where it is a normal number."""
    cdef Pair e = exp_pair_scaled(x, exp_magic(<double>0), exp_low(<double>0))
    e.high = e.high * spare(x)
    e.low = e.low * spare(x)
    return e


cdef inline double power_of_two(double k) noexcept nogil:
    """2**k for an integer k <= 1023; 0 below the normal numbers."""
    return double_of(<uint64_t>(<int64_t>k + 1023) << 52) if k > -1023 else 0.0


# ---- c) log and log1p ------------------------------------------------------------------------
#
# u = 2**k * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), then a polynomial in f (float) or in
# s = f / (2 + f) (double). k becomes a floating number through the bits of 2**52, since AVX2 has
# no conversion of 64-bit integers.

cdef inline float log_cubic(float f, float z) noexcept nogil:
    """log(1 + f) - f + f**2 / 2, with z = f * f."""
    cdef float four = z * z
    cdef float p, s, t
    p = mul_add(f, <float>-0.11656239628791809, <float>0.11905733495950699)
    s = mul_add(f, <float>-0.12409625947475433, <float>0.14217515289783478)
    p = mul_add(z, p, s)
    p = mul_add(four, <float>0.06684789061546326, p)
    s = mul_add(f, <float>-0.1666772961616516, <float>0.20002228021621704)
    t = mul_add(f, <float>-0.25000014901161194, <float>0.3333331048488617)
    t = mul_add(z, s, t)
    p = mul_add(four, p, t)
    return p * (z * f)


cdef inline double log_tail(double z) noexcept nogil:
    """R of log(1 + f) = f - f**2 / 2 + s * (f**2 / 2 + R), with s = f / (2 + f) and z = s * s."""
    cdef double four = z * z
    cdef double p, t
    p = mul_add(z, <double>0.15313611598771842, <double>0.18183581585260053)
    p = mul_add(four, <double>0.14800353745551603, p)
    t = mul_add(z, <double>0.2222219823454037, <double>0.28571428745827954)
    p = mul_add(four, p, t)
    t = mul_add(z, <double>0.3999999999939793, <double>0.6666666666666737)
    p = mul_add(four, p, t)
    return p * z


cdef inline real log_parts(real u, real k, real f, real c) noexcept nogil:
    """k ln 2 + log(1 + f) + c, with c small."""
    cdef real z, p, s
    if real is float:
        z = f * f
        p = log_cubic(f, z)
        p = p + (k * <float>-2.12194440e-4 + c)
        p = mul_add(z, <float>-0.5, p)
        return mul_add(k, <float>0.693359375, f + p)
    else:
        s = f / (2.0 + f)
        p = log_tail(s * s)
        z = 0.5 * f * f
        p = s * (z + p) + (k * 1.9082149292705877e-10 + c)
        return k * 0.6931471803691238 - ((z - p) - f)


cdef inline int32_t log_exponent(float u) noexcept nogil:
    """k of a positive normal finite u."""
    return <int32_t>(bits32(u) - 0x3f3504f3u) >> 23


cdef inline float log_fraction(float u, int32_t k) noexcept nogil:
    """f of u."""
    return float_of(bits32(u) - (<uint32_t>k << 23)) - <float>1


cdef inline float log_of(float k, float f) noexcept nogil:
    """k ln 2 + log(1 + f): `log_parts` of float without a c."""
    cdef float z = f * f
    cdef float p = mul_add(k, <float>-2.12194440e-4, log_cubic(f, z))
    p = mul_add(z, <float>-0.5, p)
    return mul_add(k, <float>0.693359375, f + p)


cdef inline real log_normal(real u) noexcept nogil:
    """log(u): at most 1 ulp off for positive normal finite u (anything for other u)."""
    cdef int32_t i
    cdef uint64_t j
    cdef real k, f
    if real is float:
        i = log_exponent(u)
        return log_of(<float>i, log_fraction(u, i))
    else:
        j = (bits64(u) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
        f = double_of(bits64(u) - ((j - 1023ull) << 52)) - 1.0
        k = double_of(j + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
        return log_parts(u, k, f, 0.0)


cdef inline double log_scaled(double u, double bits) noexcept nogil:
    """log(u * 2**bits) for an integer |bits| < 10,000: at most 1 ulp of the larger of the result
    and 0.7 off, for positive normal finite u.

    The same for any u and bits whose product is the same.
    """
    cdef uint64_t j = (bits64(u) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
    cdef double f = double_of(bits64(u) - ((j - 1023ull) << 52)) - 1.0
    cdef double k = double_of(j + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
    return log_parts(u, k + bits, f, 0.0)


cdef inline real log_positive(real u) noexcept nogil:
    """log(u): at most 1 ulp (float: 1.01) off for u > 0, subnormal and +inf included.

    0 gives -inf, NaN NaN.
    """
    cdef real tiny, up, off, result
    if real is float:
        tiny = <float>1.1754943508222875e-38
        up = <float>16777216.0
        off = <float>16.635532333438686
    else:
        tiny = 2.2250738585072014e-308
        up = 18014398509481984.0
        off = 37.42994775023705
    result = log_normal(u * up if u < tiny else u)
    result = result - off if u < tiny else result
    result = result if u > 0 else <real>(-INFINITY)
    return result if u - u == 0 else u


cdef inline Pair log_pair(Pair u) noexcept nogil:
    """log(u) for u > 0, in two parts: at most 2**-57 plus 2**-70 of it off; +inf and NaN stay."""
    cdef bint small = u.high < 2.2250738585072014e-308
    cdef double up = 18014398509481984.0 if small else 1.0
    cdef double v = u.high * up
    cdef uint64_t j = (bits64(v) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
    cdef double k = double_of(j + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
    cdef double f = double_of(bits64(v) - ((j - 1023ull) << 52)) - 1.0
    cdef double s = f / (2.0 + f)
    cdef double half = 0.5 * f * f
    cdef double rest = log_tail(s * s)
    cdef double a, b
    cdef Pair result
    # log(1 + f) = f - (half - s * (half + rest)), and to that what was lost of half and of u.
    rest = s * (half + rest) - product_low(0.5 * f, f, half) + (u.low * up) / v
    k = k - 54.0 if small else k
    rest = rest + k * 1.9082149292705877e-10
    a = f - half
    b = (f - a) - half
    f = k * 0.6931471803691238
    s = f + a
    rest = ((f - s) + a) + b + rest
    result.high = s + rest
    result.low = (s - result.high) + rest
    result.high = result.high if u.high - u.high == 0 else u.high
    result.low = result.low if u.high - u.high == 0 else 0.0
    return result


cdef inline real log1p(real y) noexcept nogil:
    """log(1 + y): at most 1 ulp (float: 1.5) off for y > -1; -1 gives -inf, +inf +inf, NaN NaN."""
    cdef int32_t i
    cdef uint64_t j
    cdef real u, k, f, c, result
    u = <real>1 + y
    # What the rounding of 1 + y lost, relative to it.
    c = (<real>1 - (u - y) if u > 2 else y - (u - <real>1)) / u
    if real is float:
        i = log_exponent(u)
        f = log_fraction(u, i)
        k = <float>i
    else:
        j = (bits64(u) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
        f = double_of(bits64(u) - ((j - 1023ull) << 52)) - 1.0
        k = double_of(j + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
    f = y if k == 0 else f
    c = <real>0 if k == 0 else c
    result = log_parts(u, k, f, c)
    result = result if y > -1 else <real>(-INFINITY)
    return result if y - y == 0 else y


cdef inline double log1p_positive(double y) noexcept nogil:
    """log(1 + y): at most 1.5 ulp off for 0 <= y <= 1e300; NaN stays NaN."""
    cdef uint64_t i = (bits64(1 + y) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
    cdef double k = double_of(i + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
    # 2**-k: y times that is exact, and so is 1 less up to k = 53; then y * scale is all of 1 + f.
    cdef double scale = double_of((2046ull - i) << 52)
    return log_parts(y, k, mul_add(y, scale, scale - 1), 0.0)


cdef inline double log1p_wide(double y) noexcept nogil:
    """log(1 + y): at most 2**-26 of it off for 0 <= y <= 1e300; NaN stays NaN."""
    cdef uint64_t i = (bits64(1 + y) - 0x3fe6a09e667f3bcdull + (1023ull << 52)) >> 52
    cdef double k = double_of(i + 0x4330000000000000ull) - (4503599627370496.0 + 1023.0)
    # 2**-k: y times that is exact, and so is 1 less up to k = 53; then y * scale is all of 1 + f.
    cdef double scale = double_of((2046ull - i) << 52)
    cdef double f = mul_add(y, scale, scale - 1)
    cdef float narrow = <float>f
    # As in log_wide: only the cubic terms have a float's rounding errors.
    f = f - 0.5 * f * f + log_cubic(narrow, narrow * narrow)
    return mul_add(k, <double>0.6931471805599453, f)


cdef inline real log1p_unit(real e) noexcept nogil:
    """log(1 + e): at most 1.5 ulp off for 0 <= e <= 1 (e = exp(-|x|)); NaN stays NaN."""
    cdef real f, k
    # Above sqrt(2) - 1 half of 1 + e is taken; e - 1 is exact there.
    f = <real>0.5 * (e - <real>1) if e > <real>0.41421356 else e
    k = <real>1 if e > <real>0.41421356 else <real>0
    if real is float:
        return log_of(k, f)
    else:
        return log_parts(e, k, f, 0.0)
