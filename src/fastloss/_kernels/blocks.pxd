# Blocks of a softmax: maximum, sum of exponentials, and what a sample's loss makes of them.
#
# Layout: a) sizes, b) sums that lose nothing, c) a row (its classes lie side by side: lanes run
# over classes), d) the end of a sample, for up to LANES samples at once.
#
# Why arrays of constant length: the compiler turns loops over them into vector registers. Why
# local arrays between load and store: source and destination may be one array (out=logits), which
# a loop that reads one and writes the other could not be vectorised for.

from libc.stdint cimport int32_t

from .storage cimport Drain, drain_some, prefetch
from .vecmath cimport (
    INFINITY, NAN, bits64, double_of, exp_scaled, exp_tail, fma, log1p, log_positive, mul_add, real,
    spare_bits,
)

# ---- a) sizes --------------------------------------------------------------------------------

cdef enum:
    LANES = 64       # samples of a tile; also the classes that a row advances by
    SCRATCH = 8192   # elements of a thread's scratch block: what is kept of a gradient in cache

# ---- b) sums ---------------------------------------------------------------------------------
#
# A sum of 100,000 exponentials would lose 5 digits if added up one after the other. Four vectors
# are added as a tree, and that sum goes to a double (compute type float) or to a pair of doubles
# by Knuth's two-sum (compute type double), so that the error does not grow with the class count.

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
    for j in range(8):
        m[j] = m[j + 8] if m[j + 8] > m[j] else m[j]
    for j in range(4):
        m[j] = m[j + 4] if m[j + 4] > m[j] else m[j]
    top = m[0]
    for j in range(1, 4):
        top = m[j] if m[j] > top else top
    return top


cdef inline void accumulate(
    const real *a, double *high, double *low
) noexcept nogil:
    """Add 64 numbers to 16 sums."""
    cdef Py_ssize_t j
    cdef real v
    cdef double t, z
    for j in range(16):
        v = (a[j] + a[j + 16]) + (a[j + 32] + a[j + 48])
        if real is float:
            high[j] = high[j] + <double>v
        else:
            t = high[j] + v
            z = t - high[j]
            low[j] = low[j] + ((high[j] - (t - z)) + (v - z))
            high[j] = t


cdef inline Sum block_exp(
    const real *x, real *e, Py_ssize_t n, Py_ssize_t skip, real magic, real low_x, bint keep,
    const void *ahead, int step, Drain *drain
) noexcept nogil:
    """Sum of the scaled exponentials of x[:n] but for x[skip] (none if skip is outside [0, n)).

    With `keep` they are written to e[:n]; e may be x. e[skip] is then 0. At `ahead`
    lies what will be read next, `step` bytes (64, 128, 256 or 512) for a chunk of 64 classes; it
    is fetched meanwhile. What `drain` holds is written meanwhile.
    """
    cdef double high[16]
    cdef double low[16]
    cdef real a[64]
    cdef Py_ssize_t i = 0, j
    cdef int32_t lane, m, left_out
    cdef const char *next_line
    cdef double t, z
    cdef Sum total
    for j in range(16):
        high[j] = 0
        low[j] = 0
    while i < n:
        if ahead != NULL:
            # Chunk i // 64 begins at i * step / 64.
            next_line = <const char *>ahead + (i >> 6) * step
            prefetch(next_line)
            if step > 64:
                prefetch(next_line + 64)
            if step > 128:
                prefetch(next_line + 128)
                prefetch(next_line + 192)
            if step > 256:
                prefetch(next_line + 256)
                prefetch(next_line + 320)
                prefetch(next_line + 384)
                prefetch(next_line + 448)
        if drain != NULL:
            drain_some(drain)
        if n - i >= 64 and not (i <= skip < i + 64):
            for j in range(64):
                a[j] = exp_scaled(x[i + j], magic, low_x)
            if keep:
                for j in range(64):
                    e[i + j] = a[j]
        else:
            # A chunk with the skipped element, or the row's tail: -inf stands in for what is
            # not to count.
            m = <int32_t>min(n - i, <Py_ssize_t>64)
            left_out = <int32_t>(skip - i) if i <= skip < i + 64 else -1
            for lane in range(64):
                a[lane] = x[i + lane] if (lane < m) & (lane != left_out) else <real>(-INFINITY)
            for j in range(64):
                a[j] = exp_scaled(a[j], magic, low_x)
            if keep:
                for j in range(m):
                    e[i + j] = a[j]
        accumulate(&a[0], &high[0], &low[0])
        i += 64
    if real is float:
        for j in range(8):
            high[j] += high[j + 8]
        for j in range(4):
            high[j] += high[j + 4]
        total.high = (high[0] + high[2]) + (high[1] + high[3])
        total.low = 0
    else:
        for j in range(8):
            t = high[j] + high[j + 8]
            z = t - high[j]
            low[j] = (low[j] + low[j + 8]) + ((high[j] - (t - z)) + (high[j + 8] - z))
            high[j] = t
        for j in range(4):
            t = high[j] + high[j + 4]
            z = t - high[j]
            low[j] = (low[j] + low[j + 4]) + ((high[j] - (t - z)) + (high[j + 4] - z))
            high[j] = t
        total.high = high[0]
        total.low = low[0]
        for j in range(1, 4):
            total = add(total, Sum(high[j], low[j]))
    return total


# ---- d) the end of a sample ------------------------------------------------------------------
#
# With `rest` the sum over all classes but the target, and `own` the target's own exponential, in
# the same scale: loss = log(1 + rest / own). Every term is positive and the target is not in
# `rest`, so nothing cancels: a loss of 1e-37 has all its digits. The gradient at the target is
# -rest / (rest + own) for the same reason.
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
    double own_gradient[64]  # gradient at the target


cdef inline void finish(real unused, Ending *end, Py_ssize_t n) noexcept nogil:
    """Losses and gradients' scales of n <= LANES samples."""
    cdef Py_ssize_t i
    cdef double magic, low, k, own, total
    cdef double ratio[64]
    cdef double spare = <double>spare_bits(unused)
    if real is float:
        for i in range(n):
            magic = 6755399441055744.0 + (spare + 1023 - end.exponent[i])
            low = (end.exponent[i] - spare - 1023) * 0.6931471805599453
            own = exp_scaled(end.own_x[i], magic, low)
            ratio[i] = end.rest[i] / own
            total = end.rest[i] + own
            end.total[i] = total
            end.scale[i] = end.factor[i] / total
            end.scale_low[i] = end.scale[i] - <double><float>end.scale[i]
            end.own_gradient[i] = -end.rest[i] * end.factor[i] / total
        for i in range(n):
            end.loss[i] = log1p(ratio[i])
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
    cdef double magic, low, q, q_low, g
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
        g = end.rest[i] * q
        end.own_gradient[i] = -(
            g + (fma(end.rest[i], q, -g) + (end.rest_low[i] * q + end.rest[i] * end.scale_low[i]))
        )
