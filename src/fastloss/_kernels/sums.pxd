# Sums that lose nothing.
#
# Layout: a) numbers in two parts, b) sums of losses, c) sums of a row's exponentials.
#
# A sum of 100,000 exponentials would lose 5 digits if added up one after the other. Four vectors
# are added, and that sum goes to a double (compute type float), or two and their sum goes to a pair
# of doubles by Knuth's two-sum (compute type double), so that the error does not grow with the
# number of classes.

from .vecmath cimport Pair, Temper, pair_sum, real

cdef enum:
    LANES = 64           # samples of a group or a tile; also the classes that a row advances by
    PARTS = 16           # running sums of a row

# ---- a) numbers in two parts -----------------------------------------------------------------

ctypedef Pair Sum


cdef inline Sum add(Sum a, Sum b) noexcept nogil:
    """a + b, the rounding error kept in `low`."""
    return pair_sum(a, b)


cdef inline void two_sum(real unused, double *high, double *low, double value) noexcept nogil:
    """Add to a running sum: compute type double keeps what is lost in `low`."""
    cdef double t, z
    if real is float:
        high[0] = high[0] + value
    else:
        t = high[0] + value
        z = t - high[0]
        low[0] = low[0] + ((high[0] - (t - z)) + (value - z))
        high[0] = t


cdef inline double value_of(Sum s) noexcept nogil:
    """The sum as one number; an infinity is not turned into NaN by its own error term."""
    return s.high + s.low if s.low - s.low == 0 else s.high


cdef inline void accumulate(
    const real *a, double *high, double *low
) noexcept nogil:
    """Add 64 numbers to 16 sums."""
    cdef Py_ssize_t i, j
    for i in range(0, 64, 32):  # two at a time
        for j in range(PARTS):
            two_sum(<real>0, high + j, low + j, a[i + j] + a[i + j + PARTS])


# ---- b) sums of losses ----------------------------------------------------------------------

# Losses are summed in LANES running two-sums.

cdef struct Tally:
    double high[LANES]
    double low[LANES]


cdef inline void clear(Tally *tally) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(LANES):
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
    for i in range(LANES):
        total = add(total, Sum(tally.high[i], tally.low[i]))
    return total

# ---- c) sums of a row -----------------------------------------------------------------------

cdef extern from "simd/lanes.h" nogil:
    ctypedef struct Lanes "fastloss_lanes":
        pass
    void lanes_clear "fastloss_lanes_clear"(Lanes *) noexcept
    void lanes_add64 "fastloss_lanes_add64"(
        Lanes *, const float *, int first, int skip
    ) noexcept
    double lanes_fold "fastloss_lanes_fold"(const Lanes *) noexcept
    float max16 "fastloss_max16"(const float *) noexcept

cdef extern from "simd/exp.h" nogil:
    void exp_add64 "fastloss_exp_add64"(
        Lanes *, float *to, const float *, int first, int skip, float magic, float low,
        float high, const Temper *temper, bint keep,
    ) noexcept


# Running sums of a row's exponentials.

cdef struct RunningSum:
    Lanes lanes              # compute type float
    double high[PARTS]          # compute type double
    double low[PARTS]


cdef inline void sum_begin(RunningSum *sum, real unused) noexcept nogil:
    cdef Py_ssize_t j
    if real is float:
        lanes_clear(&sum.lanes)
    else:
        for j in range(PARTS):
            sum.high[j] = sum.low[j] = 0


cdef inline void sum_add(
    RunningSum *sum, const real *a, int first, Py_ssize_t skip
) noexcept nogil:
    """Add a[first:64] without a[skip], if skip lies in [0, 64)."""
    cdef real kept[LANES]
    cdef int lane
    cdef int left_out = <int>skip if 0 <= skip < LANES else -1
    if real is float:
        lanes_add64(&sum.lanes, a, first, left_out)
    elif first == 0 and left_out < 0:
        accumulate(a, &sum.high[0], &sum.low[0])
    else:
        for lane in range(LANES):
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
