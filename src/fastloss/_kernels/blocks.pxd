# Blocks of a softmax: maximum, sum of exponentials, and what a sample's loss makes of them.
#
# Layout: a) sizes, b) sums that lose nothing, c) a row (its classes lie side by side: lanes run
# over classes), d) the end of a sample, for up to LANES samples at once.
#
# Why arrays of constant length: the compiler turns loops over them into vector registers. Why
# local arrays between load and store: source and destination may be one array (out=logits), which
# a loop that reads one and writes the other could not be vectorised for.

from libc.stdint cimport int16_t
from libc.string cimport memcpy

from .storage cimport storage, value_at
from .vecmath cimport (
    INFINITY, NAN, bits64, double_of, exp_capped, exp_scaled, exp_tail, fma, log1p, log_positive,
    mul_add, real, spare_bits,
)

# ---- a) sizes --------------------------------------------------------------------------------

cdef enum:
    LANES = 64       # samples of a tile; also the classes that a row advances by
    SCRATCH = 8192   # elements of a thread's scratch block: what is kept of a gradient in cache

# ---- b) sums ---------------------------------------------------------------------------------
#
# A sum of 100,000 exponentials would lose 5 digits if added up one after the other. Two vectors are
# added, and that sum goes to a double (compute type float) or to a pair of doubles by Knuth's
# two-sum (compute type double), so that the error does not grow with the class count.

cdef struct Sum:
    double high
    double low


cdef inline Sum add(Sum a, Sum b) noexcept nogil:
    """a + b, the rounding error kept in `low`."""
    cdef Sum s
    cdef double z
    s.high = a.high + b.high
    z = s.high - a.high
    s.low = (a.low + b.low) + ((a.high - (s.high - z)) + (b.high - z))
    return s


# Losses are summed in LANES running two-sums.

cdef struct Tally:
    double high[64]
    double low[64]


cdef inline void clear(Tally *tally) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(64):
        tally.high[i] = 0
        tally.low[i] = 0


cdef inline void count(Tally *tally, const double *value, Py_ssize_t n) noexcept nogil:
    """Add value[:n], n <= LANES, lane by lane."""
    cdef Py_ssize_t i
    cdef double t, z
    for i in range(n):
        t = tally.high[i] + value[i]
        z = t - tally.high[i]
        tally.low[i] = tally.low[i] + ((tally.high[i] - (t - z)) + (value[i] - z))
        tally.high[i] = t


cdef inline Sum folded(const Tally *tally) noexcept nogil:
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t i
    for i in range(64):
        total = add(total, Sum(tally.high[i], tally.low[i]))
    return total


cdef inline double value_of(Sum s) noexcept nogil:
    """The sum as one number; an infinity is not turned into NaN by its own error term."""
    return s.high + s.low if s.low - s.low == 0 else s.high


# ---- c) a row --------------------------------------------------------------------------------

# The few steps across a vector that compilers make badly of loops.

cdef extern from "simd/lanes.h" nogil:
    ctypedef struct Lanes "fastloss_lanes":
        pass
    void lanes_clear "fastloss_lanes_clear"(Lanes *) noexcept
    void lanes_add64 "fastloss_lanes_add64"(
        Lanes *, const float *, int first, int skip
    ) noexcept
    void lanes_add "fastloss_lanes_add"(Lanes *, const float *, int n) noexcept
    void lanes_store "fastloss_lanes_store"(const Lanes *, double *to) noexcept
    void lanes_fold8 "fastloss_lanes_fold8"(const double *, double *to) noexcept
    double lanes_fold "fastloss_lanes_fold"(const Lanes *) noexcept
    float max16 "fastloss_max16"(const float *) noexcept


cdef inline real block_max(const real *x, Py_ssize_t n) noexcept nogil:
    """Largest of x[:n]; NaNs are passed over, of nothing -inf."""
    cdef real m[64]
    cdef real top
    cdef Py_ssize_t i, j
    if n < 64:
        top = <real>(-INFINITY)
        for i in range(n):
            top = x[i] if x[i] > top else top
        return top
    for j in range(64):
        m[j] = <real>(-INFINITY)
    i = 0
    while i < n:
        # The last step reaches back: a maximum may count an element twice.
        if i > n - 64:
            i = n - 64
        for j in range(64):
            m[j] = x[i + j] if x[i + j] > m[j] else m[j]
        i += 64
    for j in range(32):
        m[j] = m[j + 32] if m[j + 32] > m[j] else m[j]
    for j in range(16):
        m[j] = m[j + 16] if m[j + 16] > m[j] else m[j]
    if real is float:
        return max16(&m[0])
    else:
        for j in range(8):
            m[j] = m[j + 8] if m[j + 8] > m[j] else m[j]
        for j in range(4):
            m[j] = m[j + 4] if m[j + 4] > m[j] else m[j]
        top = m[0]
        for j in range(1, 4):
            top = m[j] if m[j] > top else top
        return top


cdef inline real max_of(const storage *x, Py_ssize_t n, real unused) noexcept nogil:
    """`block_max` of x[:n], as it lies in memory.

    Halves are compared as integers, in which a NaN may come out as the largest.
    """
    cdef int16_t m[64]
    cdef int16_t key
    cdef Py_ssize_t i, j, most
    if storage is float or storage is double:
        return <real>block_max(x, n)
    else:
        for j in range(64):
            m[j] = -32768
        for i in range(0, n, 64):
            most = min(n - i, <Py_ssize_t>64)
            for j in range(most):
                # What is negative is ordered the other way round.
                key = <int16_t>x[i + j]
                key = key ^ ((key >> 15) & 0x7fff)
                m[j] = key if key > m[j] else m[j]
        key = m[0]
        for j in range(1, 64):
            key = m[j] if m[j] > key else key
        m[0] = key ^ ((key >> 15) & 0x7fff)
        return value_at(<const storage *>&m[0], 0, unused)


cdef inline void accumulate(
    const real *a, double *high, double *low
) noexcept nogil:
    """Add 64 numbers to 16 sums."""
    cdef Py_ssize_t i, j
    cdef real v
    cdef double t, z
    for i in range(0, 64, 32):
        for j in range(16):
            v = a[i + j] + a[i + j + 16]
            if real is float:
                high[j] = high[j] + <double>v
            else:
                t = high[j] + v
                z = t - high[j]
                low[j] = low[j] + ((high[j] - (t - z)) + (v - z))
                high[j] = t


# Running sums of a row's exponentials.

cdef struct RunningSum:
    Lanes lanes              # compute type float
    double high[16]          # compute type double
    double low[16]


cdef inline void sum_begin(RunningSum *sum, real unused) noexcept nogil:
    cdef Py_ssize_t j
    if real is float:
        lanes_clear(&sum.lanes)
    else:
        for j in range(16):
            sum.high[j] = sum.low[j] = 0


cdef inline void sum_add(
    RunningSum *sum, const real *a, int first, Py_ssize_t skip
) noexcept nogil:
    """Add a[first:64] without a[skip], if skip lies in [0, 64)."""
    cdef real kept[64]
    cdef int lane
    cdef int left_out = <int>skip if 0 <= skip < 64 else -1
    if real is float:
        lanes_add64(&sum.lanes, a, first, left_out)
    elif first == 0 and left_out < 0:
        accumulate(a, &sum.high[0], &sum.low[0])
    else:
        for lane in range(64):
            kept[lane] = a[lane] if (lane >= first) & (lane != left_out) else <real>0
        accumulate(&kept[0], &sum.high[0], &sum.low[0])


cdef inline Sum sum_end(RunningSum *sum, real unused) noexcept nogil:
    cdef Py_ssize_t j
    cdef double t, z
    cdef Sum total
    if real is float:
        total.high = lanes_fold(&sum.lanes)
        total.low = 0
    else:
        for j in range(8):
            t = sum.high[j] + sum.high[j + 8]
            z = t - sum.high[j]
            sum.low[j] = (sum.low[j] + sum.low[j + 8]) + (
                (sum.high[j] - (t - z)) + (sum.high[j + 8] - z)
            )
            sum.high[j] = t
        total = Sum(0, 0)
        for j in range(8):
            total = add(total, Sum(sum.high[j], sum.low[j]))
    return total


cdef inline void sum_begun(RunningSum *sum, const real *e, Py_ssize_t n) noexcept nogil:
    """Begin a sum with e[:n]."""
    cdef Py_ssize_t i
    cdef real few[64]
    sum_begin(sum, e[0])
    for i in range(0, n & -64, 64):
        sum_add(sum, e + i, 0, -1)
    if n & 63:
        e = e + (n & -64)
        if real is float:
            lanes_add(&sum.lanes, e, n & 63)
        else:
            for i in range(64):
                few[i] = 0
            memcpy(&few[0], e, (n & 63) * sizeof(real))
            sum_add(sum, &few[0], 0, -1)


cdef inline Sum row_sum(const real *e, Py_ssize_t n) noexcept nogil:
    """Sum of e[:n]."""
    cdef RunningSum sum
    sum_begun(&sum, e, n)
    return sum_end(&sum, e[0])


cdef inline void row_sums(
    const real *e, Py_ssize_t rows, Py_ssize_t n, Sum *sums
) noexcept nogil:
    """`row_sum` of at most LANES rows side by side, bit for bit."""
    cdef RunningSum sum
    cdef double parts[512]
    cdef double high[64]
    cdef Py_ssize_t row
    if real is float:
        # Adding up a vector takes about as long as three more of them: eight rows at once.
        for row in range(rows):
            sum_begun(&sum, e + row * n, n)
            lanes_store(&sum.lanes, &parts[8 * row])
        for row in range(8 * rows, (8 * rows + 63) // 64 * 64):
            parts[row] = 0
        for row in range(0, rows, 8):
            lanes_fold8(&parts[8 * row], &high[row])
        for row in range(rows):
            sums[row] = Sum(high[row], 0)
    else:
        for row in range(rows):
            sums[row] = row_sum(e + row * n, n)


cdef inline void chunk_exp(
    const real *x, real *e, int first, Py_ssize_t skip, real magic, real low_x, real high_x,
    bint keep, RunningSum *sum
) noexcept nogil:
    """Add the scaled exponentials of x[first:64] without x[skip]; with `keep` e[:64] = all 64.

    For high_x see exp_capped. e may be x.
    """
    cdef real a[64]
    cdef Py_ssize_t j
    for j in range(64):
        a[j] = exp_capped(x[j], magic, low_x, high_x)
    if keep:
        memcpy(e, &a[0], 64 * sizeof(real))
    sum_add(sum, &a[0], first, skip)


cdef inline Sum few_exp(
    const real *x, real *e, Py_ssize_t n, Py_ssize_t skip, real magic, real low_x, bint keep
) noexcept nogil:
    """`block_exp` for n < 64."""
    cdef RunningSum sum
    cdef real a[64]
    cdef Py_ssize_t j
    for j in range(64):
        a[j] = <real>(-INFINITY)
    memcpy(&a[0], x, n * sizeof(real))
    sum_begin(&sum, magic)
    chunk_exp(&a[0], &a[0], 0, skip, magic, low_x, <real>INFINITY, True, &sum)
    if keep:
        memcpy(e, &a[0], n * sizeof(real))
    return sum_end(&sum, magic)


cdef inline Sum block_exp(
    const real *x, real *e, Py_ssize_t n, Py_ssize_t skip, real magic, real low_x, bint keep
) noexcept nogil:
    """Sum of the scaled exponentials of x[:n] but for x[skip] (none if skip is outside [0, n)).

    With `keep` all of them are written to e[:n], which does not overlap x.
    """
    cdef RunningSum sum
    cdef Py_ssize_t i = 0
    cdef int seen = 0
    if n < 64:
        return few_exp(x, e, n, skip, magic, low_x, keep)
    sum_begin(&sum, magic)
    while i < n:
        if n - i < 64:
            # The last chunk reaches back over what has been summed.
            seen = <int>(64 - (n - i))
            i = n - 64
        chunk_exp(x + i, e + i, seen, skip - i, magic, low_x, <real>INFINITY, keep, &sum)
        i += 64
    return sum_end(&sum, magic)


# ---- d) the end of a sample ------------------------------------------------------------------
#
# With `rest` the sum over all classes but the target, and `own` the target's own exponential, in
# the same scale: loss = log(1 + rest / own). Every term is positive and the target is not in
# `rest`, so nothing cancels: a loss of 1e-37 has all its digits. The gradient at the target is
# -rest / (rest + own) for the same reason: -rest takes the exponential's place.
#
# For compute type float all of this is double, and so exact enough. For double it is pairs of
# doubles: of the 4 ulp that a result may be off, the exponentials in `rest` need two.

cdef inline Sum exp_pair(double x, double magic, double low) noexcept nogil:
    """exp_scaled to twice the digits, as high + low: at most 2**-56 off, relatively."""
    cdef Sum e
    cdef double k, r, t, lost, q, two
    x = low if x < low else x
    k = mul_add(x, 1.4426950408889634, magic)
    two = double_of(bits64(k) << 52)
    k = k - magic
    r = x - k * 0.6931471803691238
    t = k * 1.9082149292705877e-10
    lost = r
    r = r - t
    lost = (lost - r) - t
    q = exp_tail(r, r * r)
    t = 1 + r
    q = q * (r * r) + ((r - (t - 1)) + lost * t)
    e.high = t + q
    e.low = (q - (e.high - t)) * two
    e.high = e.high * two
    return e


cdef struct Ending:
    # One array an entry, of LANES samples. IN, both scaled alike:
    double rest[64]          # sum over the other classes
    double rest_low[64]      # what `rest` lost by rounding
    double exponent[64]      # K of the sample
    double own_x[64]         # logit of the target, shifted as the others were
    double factor[64]        # of the gradient
    # OUT
    double loss[64]
    double total[64]         # sum over all classes, scaled
    double scale[64]         # exponential to gradient: factor / total
    double scale_low[64]     # what `scale` lost by rounding


cdef inline double least_scale() noexcept nogil:
    """2**-112: half of the digits of what a smaller `scale` lost are below what a float can be."""
    return 1.925929944387236e-34


cdef inline void finish(real unused, Ending *end, Py_ssize_t n, bint gradient) noexcept nogil:
    """Losses of n <= LANES samples, and with `gradient` the gradients' scales."""
    cdef Py_ssize_t i
    cdef double magic, low, k, own
    cdef double ratio[64]
    cdef double spare = <double>spare_bits(unused)
    if real is float:
        for i in range(n):
            magic = 6755399441055744.0 + (spare + 1023 - end.exponent[i])
            low = (end.exponent[i] - spare - 1023) * 0.6931471805599453
            own = exp_scaled(end.own_x[i], magic, low)
            ratio[i] = end.rest[i] / own
            end.total[i] = end.rest[i] + own
        for i in range(n):
            end.loss[i] = log1p(ratio[i])
        if gradient:
            for i in range(n):
                end.scale[i] = end.factor[i] / end.total[i]
                end.scale_low[i] = end.scale[i] - <double><float>end.scale[i]
    else:
        finish_pairs(end, n, &ratio[0], spare)
    for i in range(n):
        if not ratio[i] <= 1e290:
            # The target's exponential underflows: log(rest / own) without forming it.
            k = end.exponent[i] - spare
            end.loss[i] = log_positive(end.rest[i]) + k * 1.9082149292705877e-10
            end.loss[i] = end.loss[i] + (k * 0.6931471803691238 - end.own_x[i])
            if end.total[i] - end.total[i] != 0:
                end.loss[i] = NAN


cdef inline void finish_pairs(
    Ending *end, Py_ssize_t n, double *ratio, double spare
) noexcept nogil:
    """`finish` in pairs of doubles: quotients with what their rounding lost."""
    cdef Py_ssize_t i
    cdef Sum own, total
    cdef double magic, low, q, q_low
    for i in range(n):
        magic = 6755399441055744.0 + (spare + 1023 - end.exponent[i])
        low = (end.exponent[i] - spare - 1023) * 0.6931471805599453
        own = exp_pair(end.own_x[i], magic, low)
        total = add(Sum(end.rest[i], end.rest_low[i]), own)
        end.total[i] = total.high + total.low
        total.low = total.low - (end.total[i] - total.high)
        total.high = end.total[i]
        q = end.rest[i] / own.high
        q_low = (fma(-q, own.high, end.rest[i]) + (end.rest_low[i] - q * own.low)) / own.high
        ratio[i] = q
        end.loss[i] = log1p(q) + (q_low / (1 + q) if q_low - q_low == 0 else 0.0)
        q = end.factor[i] / total.high
        end.scale[i] = q
        end.scale_low[i] = (fma(-q, total.high, end.factor[i]) - q * total.low) / total.high
