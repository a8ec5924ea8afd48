# Sums that lose nothing.
#
# Layout: a) numbers in two parts, b) sums of losses, c) sums of a row's exponentials.
#
# A sum of 100,000 exponentials would lose 5 digits if added up one after the other. Two vectors are
# added, and that sum goes to a double (compute type float) or to a pair of doubles by Knuth's
# two-sum (compute type double), so that the error does not grow with the number of classes.

from libc.string cimport memcpy

from .vecmath cimport Pair, pair_sum, real

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
    cdef real v
    cdef double t, z
    for i in range(0, 64, 32):  # two at a time
        for j in range(PARTS):
            v = a[i + j] + a[i + j + PARTS]
            if real is float:
                high[j] = high[j] + <double>v
            else:
                t = high[j] + v
                z = t - high[j]
                low[j] = low[j] + ((high[j] - (t - z)) + (v - z))
                high[j] = t


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
    void lanes_add "fastloss_lanes_add"(Lanes *, const float *, int n) noexcept
    void lanes_store "fastloss_lanes_store"(const Lanes *, double *to) noexcept
    void lanes_fold8 "fastloss_lanes_fold8"(const double *, double *to) noexcept
    double lanes_fold "fastloss_lanes_fold"(const Lanes *) noexcept
    float max16 "fastloss_max16"(const float *) noexcept


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


cdef inline void sum_begun(RunningSum *sum, const real *e, Py_ssize_t n) noexcept nogil:
    """Begin a sum with e[:n]."""
    cdef Py_ssize_t i
    cdef real few[LANES]
    sum_begin(sum, e[0])
    for i in range(0, n & -64, 64):
        sum_add(sum, e + i, 0, -1)
    if n & 63:
        e = e + (n & -64)
        if real is float:
            lanes_add(&sum.lanes, e, n & 63)
        else:
            for i in range(LANES):
                few[i] = 0
            memcpy(&few[0], e, (n & 63) * sizeof(real))
            sum_add(sum, &few[0], 0, -1)


cdef inline Sum row_sum(const real *e, Py_ssize_t n) noexcept nogil:
    """Sum of e[:n]."""
    cdef RunningSum sum
    sum_begun(&sum, e, n)
    return sum_end(&sum, e[0])


cdef inline void row_sums(
    const real *e, Py_ssize_t rows, Py_ssize_t n, double *parts, Sum *sums
) noexcept nogil:
    """`row_sum` of at most LANES rows side by side, bit for bit; parts: scratch, 8 for each."""
    cdef RunningSum sum
    cdef double high[LANES]
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
