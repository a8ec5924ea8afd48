# Two arrays of logits at once: how far the softmax of one is from that of the other.
#
# Layout: a) a call, b) from memory to blocks and back, c) maxima, d) exponentials and their sums,
# e) terms of the divergences, f) gradients, g) some samples, from first to last, h) what Python
# calls.
#
# With p and q the two softmaxes and d = log p - log q of a class,
#
#   KL(p || q) = sum p d = sum p h(-d),   KL(q || p) = sum -q d = sum q h(d),   h(x) = e**x - 1 - x,
#
# since both p and q sum to 1. The sums of p d lose all digits where the two are alike; those of
# p h(-d) have terms of one sign. Near 0 h(x) is x**2 times a series, elsewhere p h(-d) is
# q - p + p d.
#
# d is the difference of the logits less D, that of their logsumexps. D comes from sums of rounded
# exponentials, so it is off by some e. What e does to the sum is known: with q' = q e**e, as it
# comes of that D, and S = sum (q' - p), which is all that e changes,
#
#   KL(p || q) = sum p h(-d') - (S - log(1 + S)),
#
# and e only counts squared. Where that would still be more than half of the result, the terms are
# summed again with a D corrected by log(1 + S).
#
# Samples are worked on by blocks of vectors of LANES elements. For few classes, or a class axis
# that is not the last, a vector is a class of LANES samples (a tile); else it is LANES classes of
# one sample (a row), whose lanes are added up in the end. Both are the same loops, and a row's
# numbers stand in all lanes. Samples of more classes than a block are gone through twice: for the
# maxima, and for all else, while a row is in the caches.
#
# The two arrays may have different types. Both are widened block by block, by a call for each, so
# that types don't multiply the compiled code: it is compiled for float and for double.

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from .buffers cimport address
from .group cimport Group, divide, settle
from .operands cimport FLOAT16, FLOAT32, FLOAT64, size_of
from .samples cimport ITEM, MAX_ITEMS, Job, check, class_of, offset_of, weighted
from .storage cimport (
    bfloat16, emit, float16, load, overlap, prefetch_bytes, stream_end, transpose,
)
from .sums cimport (
    LANES, RunningSum, Sum, Tally, add, clear, count, folded, sum_add, sum_begin, sum_end, two_sum,
    value_of,
)
from .tempers cimport TEMPERS, exp_over, temper_of
from .vecmath cimport (
    EXP_TABLE, INFINITY, NAN, Pair, Temper, exp_by_table, exp_limit, exp_low, exp_magic,
    exponent_of, fma, log1p, log_pair, log_tail, mul_add, pair_product, pair_sum, real, table_magic,
)
from .workspace cimport (
    FINE, NO_MEMORY, OVERLAPS, Status, Workspace, give_back, lines, part_of, take,
)

cdef enum:
    TILE = 128           # most classes of a block of a tile
    ROW = 1024           # most classes of a block of a row
    AGAIN = 3            # times that terms are summed again at most
    # What is written is written past the caches where it is larger than they are.
    STREAM = 16777216

#: The square of a d that a class is added by itself for.
cdef const double FAR = 1e300
#: The smallest divergence that is told from 0.
cdef const double LEAST = 1e-30

# ---- a) a call -------------------------------------------------------------------------------

cdef struct Pairs:
    Job job                  # samples, classes, inner, target, factor, ignore_index, scale
    const void *x[2]         # the logits, p those of the first and q of the second
    int type[2]              # FLOAT32, FLOAT64, FLOAT16 or BFLOAT16 each
    Temper temper
    bint row                 # whether a vector holds classes of one sample
    bint wants_divergence
    # OUT, by sample, or NULL: the two divergences, both or none.
    double *kl
    double *reverse_kl
    double *log_prob[2]      # of the target
    int64_t *predicted[2]
    # Of a loss: one of the divergences, times T**2.
    bint reverse             # whether that is KL(p || q), else KL(q || p)
    double *losses           # OUT, or NULL
    void *out                # OUT, gradient with respect to the first logits, or NULL


# What is known of the samples of a block in one of the arrays, one entry a lane.
cdef struct Half:
    Group group
    double top[LANES]        # largest logit so far, and its class
    Py_ssize_t largest[LANES]
    double shift[LANES]      # what is subtracted from all logits
    double magic[LANES]      # of exp_tempered
    double low_x[LANES]
    float magic32[LANES]
    float low_x32[LANES]
    RunningSum sum           # of a row: of the exponentials but for the class left out
    double high[LANES]       # the same sum of each lane
    double low[LANES]
    double own_e[LANES]      # that class's exponential
    double own_x_low[LANES]  # what its logit over T lost by rounding
    bint shifted


# Scratch of a thread; its blocks follow in memory (see `Space`).
cdef struct Desk:
    Half half[2]
    Tally tally
    double offset[LANES]     # T D
    double offset_low[LANES]  # what it lost by rounding
    double ratio[LANES]      # q' = ratio * exponential of the second array, p that of the first
    double terms[3][LANES]   # sums of p h(-d), q h(d) and q' - p
    double terms_low[3][LANES]
    double divergence[LANES]
    double by[2][LANES]      # of the gradient
    double by_low[2][LANES]


cdef struct Space:
    Desk *desk
    void *x[2]               # logits of a block
    void *e[2]               # their exponentials; before, a block in the order of memory


cdef inline Py_ssize_t space_of(
    Space *space, char *scratch, const Pairs *pairs, Py_ssize_t size
) noexcept nogil:
    """Lay out a thread's scratch, elements of `size` bytes; return how many bytes it takes."""
    cdef Py_ssize_t classes = pairs.job.classes, at = lines(sizeof(Desk)), i
    cdef Py_ssize_t block = LANES * min(classes, <Py_ssize_t>TILE)
    if pairs.row:
        block = min((classes + LANES - 1) // LANES * LANES, <Py_ssize_t>ROW)
    space.desk = <Desk *>scratch
    for i in range(2):
        space.x[i] = scratch + at
        at += lines(block * size)
        space.e[i] = scratch + at
        at += lines(block * size)
    return at


# ---- b) from memory to blocks and back ---------------------------------------------------------

cdef void load_any(
    real *to, const void *x, int type, Py_ssize_t at, Py_ssize_t n
) noexcept nogil:
    """to[:n] = x[at:at + n]."""
    if type == FLOAT32:
        load(to, <const float *>x + at, n, <real>0)
    elif type == FLOAT64:
        load(to, <const double *>x + at, n, <real>0)
    elif type == FLOAT16:
        load(to, <const float16 *>x + at, n, <real>0)
    else:
        load(to, <const bfloat16 *>x + at, n, <real>0)


cdef void store_any(
    void *to, int type, Py_ssize_t at, const real *x, Py_ssize_t n, bint streaming
) noexcept nogil:
    """to[at:at + n] = x[:n]."""
    if type == FLOAT32:
        emit(<float *>to + at, x, n, streaming)
    elif type == FLOAT64:
        emit(<double *>to + at, x, n, streaming)
    elif type == FLOAT16:
        emit(<float16 *>to + at, x, n, streaming)
    else:
        emit(<bfloat16 *>to + at, x, n, streaming)


cdef double logit(const Pairs *pairs, int i, Py_ssize_t at) noexcept nogil:
    cdef double x
    load_any(&x, pairs.x[i], pairs.type[i], at, 1)
    return x


cdef Py_ssize_t fill(
    real *to, real *stage, const Pairs *pairs, int i, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m
) noexcept nogil:
    """Load m classes of n samples; return how many vectors they are. stage: scratch of a block.

    Lanes without a sample hold 0, and of a row -inf.
    """
    cdef const Job *job = &pairs.job
    cdef Py_ssize_t lane, c, at, run
    if pairs.row:
        load_any(to, pairs.x[i], pairs.type[i], first * job.classes + from_class, m)
        for lane in range(m, (m + LANES - 1) // LANES * LANES):
            to[lane] = <real>(-INFINITY)
        return (m + LANES - 1) // LANES
    for c in range(m if n < LANES else 0):
        for lane in range(n, LANES):
            to[c * LANES + lane] = 0
    if job.inner == 1:
        # All classes are held.
        load_any(stage, pairs.x[i], pairs.type[i], first * m, n * m)
        transpose(to, LANES, stage, m, n, m)
        return m
    lane = 0
    while lane < n:
        # Samples of one outer position lie side by side.
        at = offset_of(job, first + lane, from_class)
        run = min(n - lane, job.inner - (first + lane) % job.inner)
        for c in range(m):
            load_any(to + c * LANES + lane, pairs.x[i], pairs.type[i], at + c * job.inner, run)
        lane += run
    return m


cdef void put(
    const real *g, real *stage, const Pairs *pairs, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m
) noexcept nogil:
    """Write m classes of n samples to the gradient."""
    cdef const Job *job = &pairs.job
    cdef Py_ssize_t lane = 0, c, at, run
    if pairs.row:
        store_any(
            pairs.out, pairs.type[0], first * job.classes + from_class, g, m, job.streaming
        )
    elif job.inner == 1:
        transpose(stage, m, g, LANES, m, n)
        store_any(pairs.out, pairs.type[0], first * m, stage, n * m, job.streaming)
    else:
        while lane < n:
            at = offset_of(job, first + lane, from_class)
            run = min(n - lane, job.inner - (first + lane) % job.inner)
            for c in range(m):
                store_any(
                    pairs.out, pairs.type[0], at + c * job.inner, g + c * LANES + lane, run, False
                )
            lane += run


cdef inline Py_ssize_t step_of(const Pairs *pairs, int i) noexcept nogil:
    """Bytes of a vector, of classes that are gone through once."""
    if pairs.job.classes > (ROW if pairs.row else TILE):
        return 0
    return LANES * size_of(pairs.type[i])


cdef inline const char *ahead_of(
    const Pairs *pairs, int i, Py_ssize_t first, Py_ssize_t n, Py_ssize_t c
) noexcept nogil:
    """What follows classes up to c of n samples in memory; it is of no use for other layouts."""
    cdef Py_ssize_t at = (first + n) * pairs.job.classes
    if pairs.row:
        at = first * pairs.job.classes + c
    return <const char *>pairs.x[i] + at * size_of(pairs.type[i])


# ---- c) maxima -------------------------------------------------------------------------------

cdef void tile_largest(
    const real *x, Py_ssize_t m, Py_ssize_t from_class, Half *half
) noexcept nogil:
    """Go on with each lane's first largest logit; NaNs are passed over."""
    cdef real best[LANES]
    cdef int32_t which[LANES]
    cdef int32_t c
    cdef Py_ssize_t lane
    for lane in range(LANES):
        best[lane] = <real>half.top[lane]
        which[lane] = -1
    for c in range(<int32_t>m):
        for lane in range(LANES):
            which[lane] = c if x[lane] > best[lane] else which[lane]
            best[lane] = x[lane] if x[lane] > best[lane] else best[lane]
        x = x + LANES
    for lane in range(LANES):
        half.top[lane] = best[lane]
        if which[lane] >= 0:
            half.largest[lane] = from_class + which[lane]


cdef void row_largest(
    const real *x, Py_ssize_t m, Py_ssize_t from_class, Half *half
) noexcept nogil:
    """The same of a row's block of m vectors."""
    cdef real best[LANES]
    cdef real top
    cdef Py_ssize_t c, lane, step = LANES // 2
    cdef int32_t hit = 0
    for lane in range(LANES):
        best[lane] = <real>(-INFINITY)
    for c in range(m):
        for lane in range(LANES):
            best[lane] = x[c * LANES + lane] if x[c * LANES + lane] > best[lane] else best[lane]
    while step > 0:
        for lane in range(step):
            best[lane] = best[lane + step] if best[lane + step] > best[lane] else best[lane]
        step //= 2
    top = best[0]
    if top > half.top[0]:
        half.top[0] = top
        c = 0
        while not hit:
            for lane in range(LANES):
                hit |= x[c + lane] == top
            c += LANES
        c -= LANES
        while x[c] != top:
            c += 1
        half.largest[0] = from_class + c


cdef void fix_range(real unused, const Pairs *pairs, Half *half) noexcept nogil:
    """Turn maxima into what exponentials are scaled by; those far out are subtracted first."""
    cdef Py_ssize_t lane, lanes = 1 if pairs.row else LANES
    cdef double z
    cdef real k
    half.shifted = False
    for lane in range(lanes):
        z = half.top[lane] * pairs.temper.inverse
        half.shift[lane] = 0
        if not -exp_limit(unused) <= z <= exp_limit(unused):
            # An infinite maximum makes all of the sample NaN.
            half.shift[lane] = half.top[lane] if -INFINITY < half.top[lane] < INFINITY else NAN
            half.shifted = True
            z = 0
        k = exponent_of(<real>z)
        half.group.exponent[lane] = k
        half.group.shift[lane] = half.shift[lane]
        half.magic[lane] = exp_magic(k)
        half.low_x[lane] = <double>exp_low(k) * pairs.temper.temperature
    for lane in range(lanes, LANES):
        half.shift[lane] = half.shift[0]
        half.magic[lane] = half.magic[0]
        half.low_x[lane] = half.low_x[0]
    if real is float:
        for lane in range(LANES):
            half.magic32[lane] = <float>half.magic[lane]
            if EXP_TABLE:
                half.magic32[lane] = table_magic(half.magic32[lane])
            half.low_x32[lane] = <float>half.low_x[lane]


cdef void shift_block(real *x, Py_ssize_t m, const Half *half) noexcept nogil:
    cdef Py_ssize_t c, lane
    if half.shifted:
        for c in range(m):
            for lane in range(LANES):
                x[c * LANES + lane] = x[c * LANES + lane] - <real>half.shift[lane]


# ---- d) exponentials and their sums ------------------------------------------------------------

cdef void add_up(const real *e, Py_ssize_t m, Half *half) noexcept nogil:
    """Add m vectors to the lanes' sums."""
    cdef real two[LANES]
    cdef double high[LANES]
    cdef double low[LANES]
    cdef Py_ssize_t c, lane
    memcpy(&high[0], &half.high[0], LANES * sizeof(double))
    memcpy(&low[0], &half.low[0], LANES * sizeof(double))
    c = 0
    while c + 1 < m:
        for lane in range(LANES):
            two[lane] = e[lane] + e[LANES + lane]
        for lane in range(LANES):
            two_sum(<real>0, &high[lane], &low[lane], two[lane])
        e = e + 2 * LANES
        c += 2
    if c < m:
        for lane in range(LANES):
            two_sum(<real>0, &high[lane], &low[lane], e[lane])
    memcpy(&half.high[0], &high[0], LANES * sizeof(double))
    memcpy(&half.low[0], &low[0], LANES * sizeof(double))


cdef void tempered_block(
    const real *x, real *e, Py_ssize_t m, Half *half, const Temper *temper, const char *ahead,
    Py_ssize_t step
) noexcept nogil:
    """The exponentials of m vectors, each lane with a scale of its own."""
    cdef real a[LANES]
    cdef real *magic
    cdef real *low_x
    cdef Py_ssize_t _c, lane
    if real is float:
        magic = &half.magic32[0]
        low_x = &half.low_x32[0]
    else:
        magic = &half.magic[0]
        low_x = &half.low_x[0]
    for _c in range(m):
        prefetch_bytes(ahead, step)
        if real is float and EXP_TABLE:
            exp_by_table(e, x, magic, low_x, temper)
        else:
            for lane in range(LANES):
                a[lane] = exp_over(x[lane], magic[lane], low_x[lane], temper)
            memcpy(e, &a[0], LANES * sizeof(real))
        ahead += step
        x = x + LANES
        e = e + LANES


cdef void exponentials(
    const real *x, real *e, Py_ssize_t m, Py_ssize_t from_class, Py_ssize_t classes,
    const Pairs *pairs, Half *half, const char *ahead, Py_ssize_t step
) noexcept nogil:
    """The exponentials of a block of m vectors, added to the sums.

    Those of the classes left out go to own_e. `step` bytes a vector from `ahead` on, which will be
    read next, are fetched meanwhile.
    """
    cdef Py_ssize_t lane, c, lanes = 1 if pairs.row else LANES
    tempered_block(x, e, m, half, &pairs.temper, ahead, step)
    for lane in range(lanes):
        c = half.group.own_class[lane] - from_class
        if 0 <= c < classes:
            c = c if pairs.row else c * LANES + lane
            half.own_e[lane] = e[c]
            e[c] = 0
    if pairs.row:
        for c in range(m):
            sum_add(&half.sum, e + c * LANES, 0, -1)
    else:
        add_up(e, m, half)
    for lane in range(lanes):
        c = half.group.own_class[lane] - from_class
        if 0 <= c < classes:
            e[c if pairs.row else c * LANES + lane] = <real>half.own_e[lane]


cdef Sum over_lanes(real unused, const double *high, const double *low) noexcept nogil:
    """The sum of all lanes."""
    cdef double h[LANES]
    cdef double l[LANES]
    cdef double t, z
    cdef Py_ssize_t lane, step = LANES // 2
    memcpy(&h[0], high, LANES * sizeof(double))
    memcpy(&l[0], low, LANES * sizeof(double))
    while step > 0:
        for lane in range(step):
            t = h[lane] + h[lane + step]
            if real is double:
                z = t - h[lane]
                l[lane] = (l[lane] + l[lane + step]) + (
                    (h[lane] - (t - z)) + (h[lane + step] - z)
                )
            h[lane] = t
        step //= 2
    return Sum(h[0], l[0] if real is double else 0.0)


# ---- e) terms of the divergences ---------------------------------------------------------------
#
# h(d) and h(-d) come of series up to |d| = 2, with (h(x) + h(-x)) / 2 = x**2 even(x**2) and
# (h(x) - h(-x)) / 2 = x**3 odd(x**2), and of p, q and d beyond. All of it is double; of compute
# type float, whose p and q have errors of 2**-24 themselves, the series are shorter.

cdef inline double even_part(real unused, double y) noexcept nogil:
    """even(y), for y <= 4: of float at most 2**-26 of it off."""
    cdef double s
    if real is float:
        s = mul_add(y, <double>2.9687709002246265e-07, <double>2.4727649361011572e-05)
        s = mul_add(y, s, <double>0.0013889922993257642)
        s = mul_add(y, s, <double>0.04166661575436592)
    else:
        s = 1.0 / 620448401733239439360000.0
        s = mul_add(y, s, <double>(1.0 / 1124000727777607680000.0))
        s = mul_add(y, s, <double>(1.0 / 2432902008176640000.0))
        s = mul_add(y, s, <double>(1.0 / 6402373705728000.0))
        s = mul_add(y, s, <double>(1.0 / 20922789888000.0))
        s = mul_add(y, s, <double>(1.0 / 87178291200.0))
        s = mul_add(y, s, <double>(1.0 / 479001600.0))
        s = mul_add(y, s, <double>(1.0 / 3628800.0))
        s = mul_add(y, s, <double>(1.0 / 40320.0))
        s = mul_add(y, s, <double>(1.0 / 720.0))
        s = mul_add(y, s, <double>(1.0 / 24.0))
    return mul_add(y, s, <double>0.5)


cdef inline double odd_part(real unused, double y) noexcept nogil:
    """odd(y), for y <= 4: of float at most 2**-28 of it off."""
    cdef double s
    if real is float:
        s = mul_add(y, <double>2.669341547800741e-08, <double>2.7499984298628988e-06)
        s = mul_add(y, s, <double>0.0001984207920031622)
        s = mul_add(y, s, <double>0.008333329111337662)
        return mul_add(y, s, <double>0.1666666716337204)
    else:
        s = 1.0 / 25852016738884976640000.0
        s = mul_add(y, s, <double>(1.0 / 51090942171709440000.0))
        s = mul_add(y, s, <double>(1.0 / 121645100408832000.0))
        s = mul_add(y, s, <double>(1.0 / 355687428096000.0))
        s = mul_add(y, s, <double>(1.0 / 1307674368000.0))
        s = mul_add(y, s, <double>(1.0 / 6227020800.0))
        s = mul_add(y, s, <double>(1.0 / 39916800.0))
        s = mul_add(y, s, <double>(1.0 / 362880.0))
        s = mul_add(y, s, <double>(1.0 / 5040.0))
        s = mul_add(y, s, <double>(1.0 / 120.0))
        return mul_add(y, s, <double>(1.0 / 6.0))


cdef inline double log_quotient(
    real a, real b, double offset, double offset_low, const Temper *temper
) noexcept nogil:
    """d = (a - b - offset) / T, as if the difference of a and b were not rounded."""
    cdef double gap = <double>a - <double>b, lost, z
    if real is float:
        # Rounded once; what the offset lost is the same for all classes, and corrected by S.
        return (gap - offset) * temper.inverse
    else:
        z = gap - a
        lost = ((a - (gap - z)) - (b + z)) - offset_low
        lost = lost if lost - lost == 0 else 0.0
        return ((gap - offset) + lost) / temper.temperature


cdef inline void add_far(
    real unused, double d, double p, double q, Desk *desk, Py_ssize_t lane
) noexcept nogil:
    """Add the terms of one class. Without probability it adds nothing, however far its logit is."""
    cdef double f = INFINITY if d == INFINITY else (q - p) + (p * d if p != 0 else 0.0)
    cdef double g = INFINITY if d == -INFINITY else (p - q) - (q * d if q != 0 else 0.0)
    two_sum(unused, &desk.terms[0][lane], &desk.terms_low[0][lane], f)
    two_sum(unused, &desk.terms[1][lane], &desk.terms_low[1][lane], g)
    two_sum(unused, &desk.terms[2][lane], &desk.terms_low[2][lane], q - p)


cdef inline void sum_some_terms(
    const real *xa, const real *xb, const real *ea, const real *eb, Py_ssize_t m,
    const Temper *temper, Desk *desk, bint wants_kl, bint wants_reverse
) noexcept nogil:
    """`sum_terms`, where it is known to the compiler which of the two divergences are wanted."""
    cdef double ds[LANES]
    cdef Py_ssize_t _c, lane
    cdef int64_t far
    cdef double d, p, q, y, even, odd, gap, kl, reverse, t
    for _c in range(m):
        far = 0
        # In two loops: one would not do with the registers that there are. A d of 0 adds nothing,
        # and where both are masked it is NaN, and adds nothing either.
        for lane in range(LANES):
            d = log_quotient(
                xa[lane], xb[lane], desk.offset[lane], desk.offset_low[lane], temper
            )
            far |= <int64_t>-1 if d * d >= FAR else <int64_t>0
            ds[lane] = d if d * d < FAR else 0.0
        for lane in range(LANES):
            d = ds[lane]
            p = ea[lane]
            q = eb[lane] * desk.ratio[lane]
            y = d * d
            even = even_part(xa[0], y)
            odd = odd_part(xa[0], y)
            gap = q - p
            kl = p * y * mul_add(-odd, d, even)
            reverse = q * y * mul_add(odd, d, even)
            t = mul_add(-p, d, kl) if wants_kl else -mul_add(q, d, reverse)
            t = t if y <= 4 else gap
            if real is float:
                kl = kl if y <= 4 else mul_add(p, d, gap)
                reverse = reverse if y <= 4 else -mul_add(q, d, gap)
            else:
                # The difference of the two parts of a series has lost digits.
                kl = kl if (y <= 4) & (d <= 1) else mul_add(p, d, gap)
                reverse = reverse if (y <= 4) & (d >= -1) else -mul_add(q, d, gap)
            if wants_kl:
                two_sum(<real>0, &desk.terms[0][lane], &desk.terms_low[0][lane], kl)
            if wants_reverse:
                two_sum(<real>0, &desk.terms[1][lane], &desk.terms_low[1][lane], reverse)
            two_sum(<real>0, &desk.terms[2][lane], &desk.terms_low[2][lane], t)
        for lane in range(LANES if far != 0 else 0):
            d = log_quotient(
                xa[lane], xb[lane], desk.offset[lane], desk.offset_low[lane], temper
            )
            if d * d >= FAR:
                add_far(<real>0, d, ea[lane], eb[lane] * desk.ratio[lane], desk, lane)
        xa = xa + LANES
        xb = xb + LANES
        ea = ea + LANES
        eb = eb + LANES


cdef void sum_terms(
    const real *xa, const real *xb, const real *ea, const real *eb, Py_ssize_t m,
    const Pairs *pairs, Desk *desk
) noexcept nogil:
    """Add the terms of m vectors."""
    if pairs.kl != NULL:
        sum_some_terms(xa, xb, ea, eb, m, &pairs.temper, desk, True, True)
    elif pairs.reverse:
        sum_some_terms(xa, xb, ea, eb, m, &pairs.temper, desk, True, False)
    else:
        sum_some_terms(xa, xb, ea, eb, m, &pairs.temper, desk, False, True)


cdef inline double excess(double s) noexcept nogil:
    """s - log(1 + s), which is at least 0, for -0.29 < s < 0.41."""
    cdef double half = 0.5 * s * s, f = s / (2 + s)
    return half - f * (half + log_tail(f * f))


cdef inline Pair offset_of_ratio(double k, double ratio, double temperature) noexcept nogil:
    """T D, where the second array's exponentials times the ratio are to be the first's.

    k: what the exponent of the first is above that of the second.
    """
    cdef Pair log = pair_sum(
        Pair(k * 0.6931471803691238, k * 1.9082149292705877e-10), log_pair(Pair(ratio, 0))
    )
    return pair_product(log, Pair(temperature, 0))


cdef void set_offset(
    const Pairs *pairs, Desk *desk, Py_ssize_t lane, double ratio
) noexcept nogil:
    """Set D of one lane, a row's in all lanes."""
    cdef double k = desk.half[0].group.exponent[lane] - desk.half[1].group.exponent[lane]
    cdef Pair offset = offset_of_ratio(k, ratio, pairs.temper.temperature)
    cdef Py_ssize_t i
    for i in range(LANES if pairs.row else 1):
        desk.ratio[lane + i] = ratio
        desk.offset[lane + i] = offset.high
        desk.offset_low[lane + i] = offset.low


cdef inline double ratio_of(double p, double q) noexcept nogil:
    """p / q; or 1, where a block has no more than exponentials that are about to underflow."""
    cdef double ratio = p / q
    return ratio if (ratio > 1e-290) & (ratio < 1e290) else 1.0


cdef void guess_offset(real unused, const Pairs *pairs, Desk *desk) noexcept nogil:
    """D from the sums so far, or from the maxima where there is nothing to sum yet."""
    cdef Half *a = &desk.half[0]
    cdef Half *b = &desk.half[1]
    cdef double p, q
    cdef double ratio[LANES]
    cdef double k[LANES]
    cdef double high[LANES]
    cdef double low[LANES]
    cdef double temperature = pairs.temper.temperature
    cdef Pair offset
    cdef Py_ssize_t lane
    cdef RunningSum of_a = a.sum, of_b = b.sum
    if pairs.row:
        p = value_of(sum_end(&of_a, unused)) + a.own_e[0]
        q = value_of(sum_end(&of_b, unused)) + b.own_e[0]
        set_offset(pairs, desk, 0, ratio_of(p, q))
        return
    for lane in range(LANES):
        p = a.high[lane] + a.own_e[lane]
        q = b.high[lane] + b.own_e[lane]
        ratio[lane] = ratio_of(p, q)
        k[lane] = a.group.exponent[lane] - b.group.exponent[lane]
    for lane in range(LANES):
        offset = offset_of_ratio(k[lane], ratio[lane], temperature)
        high[lane] = offset.high
        low[lane] = offset.low
    memcpy(&desk.ratio[0], &ratio[0], sizeof(ratio))
    memcpy(&desk.offset[0], &high[0], sizeof(high))
    memcpy(&desk.offset_low[0], &low[0], sizeof(low))


cdef bint correct_offset(
    const Pairs *pairs, Desk *desk, Py_ssize_t n, int turn
) noexcept nogil:
    """Correct D where its error would be about half of a result or more; whether there was any."""
    cdef Py_ssize_t lane
    cdef double total, s, f
    cdef bint any = False
    for lane in range(n):
        total = desk.half[0].group.total[lane]
        s = desk.terms[2][lane] / total
        f = INFINITY
        if pairs.kl != NULL or pairs.reverse:
            f = desk.terms[0][lane]
        if pairs.kl != NULL or not pairs.reverse:
            f = min(f, desk.terms[1][lane])
        f = f / total
        if (s * s > f) | (s < -0.5) | (s > 1):
            any = True
            if turn == 0 and pairs.job.classes > (ROW if pairs.row else TILE):
                # It came from one block: the sums are of all.
                set_offset(pairs, desk, lane, total / desk.half[1].group.total[lane])
            else:
                set_offset(pairs, desk, lane, desk.ratio[lane] / (1 + s))
    return any


# ---- f) gradients ------------------------------------------------------------------------------

cdef void subtract_softmaxes(
    real *ea, const real *eb, Py_ssize_t m, const Desk *desk
) noexcept nogil:
    """The difference of two multiples of p and q, in the place of p's exponentials.

    Of float a difference of doubles: nothing but the exponentials' errors is in it.
    """
    cdef double g
    cdef Py_ssize_t _c, lane
    cdef real a[LANES]
    for _c in range(m):
        for lane in range(LANES):
            if real is float:
                g = ea[lane] * desk.by[0][lane] - eb[lane] * desk.by[1][lane]
            else:
                # Alike, so that equal logits give 0.
                g = mul_add(ea[lane], desk.by[0][lane], ea[lane] * desk.by_low[0][lane])
                g = g - mul_add(eb[lane], desk.by[1][lane], eb[lane] * desk.by_low[1][lane])
            a[lane] = <real>g
        memcpy(ea, &a[0], LANES * sizeof(real))
        ea = ea + LANES
        eb = eb + LANES


cdef void reverse_gradient(
    const real *xa, const real *xb, real *ea, Py_ssize_t m, const Temper *temper, const Desk *desk
) noexcept nogil:
    """A multiple of p (d - KL(p || q)), in the place of p's exponentials.

    What weighs nothing has no gradient, even where d or the divergence is infinite.
    """
    cdef double d
    cdef Py_ssize_t _c, lane
    cdef real a[LANES]
    for _c in range(m):
        for lane in range(LANES):
            d = log_quotient(
                xa[lane], xb[lane], desk.offset[lane], desk.offset_low[lane], temper
            )
            d = (d - desk.divergence[lane]) * desk.by[0][lane] * ea[lane]
            a[lane] = <real>(d if (ea[lane] != 0) & (desk.by[0][lane] != 0) else 0.0)
        memcpy(ea, &a[0], LANES * sizeof(real))
        xa = xa + LANES
        xb = xb + LANES
        ea = ea + LANES


cdef void gradient(
    real unused, const Pairs *pairs, Py_ssize_t first, Py_ssize_t n, Space *space
) noexcept nogil:
    """Write the gradients of n samples. A single block's exponentials are still there."""
    cdef Desk *desk = space.desk
    cdef Half *half
    cdef const Job *job = &pairs.job
    cdef Py_ssize_t step = ROW if pairs.row else TILE, c = 0, amount, m, lane
    cdef Py_ssize_t lanes = 1 if pairs.row else LANES
    cdef double by_what[LANES]
    cdef real *x[2]
    cdef real *e[2]
    cdef int i
    for lane in range(lanes):
        by_what[lane] = job.scale * pairs.temper.temperature
        if job.factor != NULL and lane < n:
            by_what[lane] = by_what[lane] * job.factor[first + lane]
    for i in range(2):
        x[i] = <real *>space.x[i]
        e[i] = <real *>space.e[i]
        half = &desk.half[i]
        divide(unused, &half.group, lanes, &by_what[0], NULL)
        for lane in range(LANES):
            desk.by[i][lane] = half.group.by[lane if lane < lanes else 0]
            desk.by_low[i][lane] = half.group.by_low[lane if lane < lanes else 0]
    for lane in range(lanes, LANES):
        desk.divergence[lane] = desk.divergence[0]
        desk.offset[lane] = desk.offset[0]
        desk.offset_low[lane] = desk.offset_low[0]
    while c < job.classes:
        amount = min(job.classes - c, step)
        m = amount if not pairs.row else (amount + LANES - 1) // LANES
        if job.classes > step:
            for i in range(2):
                fill(x[i], e[i], pairs, i, first, n, c, amount)
                shift_block(x[i], m, &desk.half[i])
                exponentials(
                    x[i], e[i], m, c, amount, pairs, &desk.half[i],
                    ahead_of(pairs, i, first, n, c + amount), step_of(pairs, i),
                )
        if pairs.reverse:
            reverse_gradient(x[0], x[1], e[0], m, &pairs.temper, desk)
        else:
            subtract_softmaxes(e[0], e[1], m, desk)
        put(e[0], x[0], pairs, first, n, c, amount)
        c += amount


# ---- g) some samples, from first to last -------------------------------------------------------

cdef void begin(
    real *block, const Pairs *pairs, Py_ssize_t first, Py_ssize_t n, Half *half, int i
) noexcept nogil:
    """The class left out of each sample: its target, or the largest; and its logit over T.

    block: all classes of the samples, or NULL.
    """
    cdef Py_ssize_t lane, t
    cdef double x, lost
    cdef double own_x[LANES]
    cdef double temperature = pairs.temper.temperature
    for lane in range(1 if pairs.row else LANES):
        half.group.own_class[lane] = half.largest[lane]
        half.group.own_x[lane] = half.own_x_low[lane] = 0
        half.high[lane] = half.low[lane] = half.own_e[lane] = 0
    sum_begin(&half.sum, <real>0)
    for lane in range(n):
        if pairs.job.target != NULL:
            t = class_of(&pairs.job, first + lane)
            if t >= 0:
                half.group.own_class[lane] = t
        t = half.group.own_class[lane]
        if block != NULL:
            x = block[t if pairs.row else t * LANES + lane]
        else:
            x = logit(pairs, i, offset_of(&pairs.job, first + lane, t))
        own_x[lane] = x - half.shift[lane]
    for lane in range(n):
        half.group.own_x[lane] = own_x[lane] / temperature
    if real is double:
        for lane in range(n):
            lost = fma(-half.group.own_x[lane], temperature, own_x[lane])
            half.own_x_low[lane] = lost / temperature if lost - lost == 0 else 0.0


cdef void add_lanes(real unused, const Pairs *pairs, Desk *desk) noexcept nogil:
    """Terms by sample: of a row those of all lanes, and with what was lost of them."""
    cdef Py_ssize_t k, lane
    for k in range(3):
        if pairs.row:
            desk.terms[k][0] = value_of(
                over_lanes(unused, &desk.terms[k][0], &desk.terms_low[k][0])
            )
        elif real is double:
            for lane in range(LANES):
                desk.terms[k][lane] = value_of(
                    Sum(desk.terms[k][lane], desk.terms_low[k][lane])
                )


cdef void settle_half(real unused, const Pairs *pairs, Half *half) noexcept nogil:
    cdef Py_ssize_t lane
    cdef double part
    cdef Sum sum
    if pairs.row:
        sum = sum_end(&half.sum, unused)
        half.high[0], half.low[0] = sum.high, sum.low
    for lane in range(1 if pairs.row else LANES):
        half.group.rest[lane] = half.high[lane] + half.low[lane]
        half.group.rest_low[lane] = half.low[lane] - (half.group.rest[lane] - half.high[lane])
    settle(unused, &half.group, 1 if pairs.row else LANES)
    if real is double and pairs.temper.temperature != 1:
        for lane in range(1 if pairs.row else LANES):
            part = half.group.own[lane] * half.own_x_low[lane]
            half.group.log_rest[lane] -= half.own_x_low[lane] * (
                half.group.rest[lane] / half.group.total[lane]
            )
            half.group.total_low[lane] += part
            half.group.total[lane] += half.group.total_low[lane]
            half.group.total_low[lane] = 0


cdef void finish(
    real unused, const Pairs *pairs, Py_ssize_t first, Py_ssize_t n, Desk *desk
) noexcept nogil:
    """Divergences, and what is reported by sample."""
    cdef Py_ssize_t lane, sample, t, lanes = 1 if pairs.row else LANES
    cdef double other, g, temperature = pairs.temper.temperature
    cdef double total[LANES]
    cdef double s[LANES]
    cdef double each[LANES]
    cdef double kl[LANES]
    cdef double reverse[LANES]
    cdef double loss[LANES]
    cdef int64_t beyond = 0
    cdef int i
    for lane in range(lanes):
        total[lane] = desk.half[0].group.total[lane]
        other = desk.half[1].group.total[lane]
        s[lane] = desk.terms[2][lane] / total[lane]
        beyond |= <int64_t>0 if (s[lane] > -0.29) & (s[lane] < 0.41) else <int64_t>-1
        # Here q' is `ratio` times q's exponentials.
        g = desk.ratio[lane] * other
        each[lane] = excess(s[lane])
        kl[lane] = desk.terms[0][lane] / total[lane]
        reverse[lane] = desk.terms[1][lane] / g
        other = total[lane] - total[lane] + (other - other)
        # NaN where one of the softmaxes is.
        kl[lane] = kl[lane] + (other if other != 0 else 0.0)
        reverse[lane] = reverse[lane] + (other if other != 0 else 0.0)
    if beyond != 0:
        for lane in range(n):
            if not -0.29 < s[lane] < 0.41:
                each[lane] = s[lane] - log1p(s[lane])
    for lane in range(lanes):
        g = kl[lane] - each[lane]
        # What is less has no digits: D has none below 1e-16.
        kl[lane] = 0.0 if g < LEAST else g
        g = reverse[lane] - (s[lane] * s[lane] / (1 + s[lane]) - each[lane])
        reverse[lane] = 0.0 if g < LEAST else g
    for lane in range(n):
        sample = first + lane
        # Of a d that the gradient is to be made of.
        if pairs.out != NULL and pairs.reverse:
            desk.offset[lane] = desk.offset[lane] - temperature * log1p(s[lane])
            desk.divergence[lane] = kl[lane]
        t = -1
        if pairs.job.target != NULL:
            t = class_of(&pairs.job, sample)
            if t < 0:
                kl[lane] = reverse[lane] = NAN
        if pairs.kl != NULL:
            pairs.kl[sample] = kl[lane]
            pairs.reverse_kl[sample] = reverse[lane]
        for i in range(2):
            if pairs.predicted[i] != NULL:
                pairs.predicted[i][sample] = desk.half[i].largest[lane]
            if pairs.log_prob[i] != NULL:
                pairs.log_prob[i][sample] = -desk.half[i].group.log_rest[lane] if t >= 0 else NAN
        loss[lane] = temperature * temperature * (kl[lane] if pairs.reverse else reverse[lane])
        if pairs.job.factor != NULL:
            loss[lane] = weighted(pairs.job.factor[sample], loss[lane])
        if pairs.losses != NULL:
            pairs.losses[sample] = loss[lane]
    if pairs.wants_divergence:
        count(&desk.tally, &loss[0], n)


cdef void unit(
    real unused, const Pairs *pairs, Py_ssize_t first, Py_ssize_t n, Space *space
) noexcept nogil:
    """All of n samples: of a tile, or of one row."""
    cdef Desk *desk = space.desk
    cdef const Job *job = &pairs.job
    cdef Half *half
    cdef Py_ssize_t step = ROW if pairs.row else TILE, c, m = 0, amount, lane
    cdef bint whole = job.classes <= step
    cdef real *x[2]
    cdef real *e[2]
    cdef int i, turn
    for i in range(2):
        x[i] = <real *>space.x[i]
        e[i] = <real *>space.e[i]
        half = &desk.half[i]
        # 1. Maxima, and what they say of the exponents.
        for lane in range(1 if pairs.row else LANES):
            half.top[lane] = -INFINITY
            half.largest[lane] = 0
        c = 0
        while c < job.classes:
            amount = min(job.classes - c, step)
            m = fill(x[i], e[i], pairs, i, first, n, c, amount)
            if pairs.row:
                row_largest(x[i], m, c, half)
            else:
                tile_largest(x[i], m, c, half)
            c += amount
        fix_range(unused, pairs, half)
        begin(x[i] if whole else <real *>NULL, pairs, first, n, half, i)
    # 2. Sums, and terms relative to them; terms again where D was too far off.
    turn = 0
    while True:
        for c in range(LANES):
            for i in range(3):
                desk.terms[i][c] = desk.terms_low[i][c] = 0
        c = 0
        while c < job.classes:
            amount = min(job.classes - c, step)
            if turn == 0 or not whole:
                for i in range(2):
                    half = &desk.half[i]
                    if not whole:
                        m = fill(x[i], e[i], pairs, i, first, n, c, amount)
                    shift_block(x[i], m, half)
                    # What is added in a second turn is not read.
                    exponentials(
                        x[i], e[i], m, c, amount, pairs, half,
                        ahead_of(pairs, i, first, n, c + amount), step_of(pairs, i),
                    )
            if pairs.wants_divergence:
                if turn == 0 and c == 0:
                    guess_offset(unused, pairs, desk)
                sum_terms(x[0], x[1], e[0], e[1], m, pairs, desk)
            c += amount
        if turn == 0:
            for i in range(2):
                settle_half(unused, pairs, &desk.half[i])
        if not pairs.wants_divergence:
            break
        add_lanes(unused, pairs, desk)
        if turn == AGAIN or not correct_offset(pairs, desk, n, turn):
            break
        turn += 1
    # 3. What is written.
    finish(unused, pairs, first, n, desk)
    if pairs.out != NULL:
        gradient(unused, pairs, first, n, space)


cdef void item(
    real unused, const Pairs *pairs, Py_ssize_t start, Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop."""
    cdef Space space
    cdef Py_ssize_t first = start, n
    space_of(&space, scratch, pairs, sizeof(real))
    clear(&space.desk.tally)
    while first < stop:
        n = 1 if pairs.row else min(stop - first, <Py_ssize_t>LANES)
        unit(unused, pairs, first, n, &space)
        first += n
    if pairs.job.streaming:
        stream_end()
    result[0] = folded(&space.desk.tally)


cdef void work(
    bint wide, const Pairs *pairs, Py_ssize_t start, Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    if wide:
        item(<double>0, pairs, start, stop, result, scratch)
    else:
        item(<float>0, pairs, start, stop, result, scratch)


cdef bint out_overlaps(const Pairs *pairs, Py_ssize_t nbytes, Py_ssize_t other) noexcept nogil:
    """Whether the gradient shares memory with what is read; all of its logits is allowed."""
    return pairs.out != NULL and (
        (pairs.out != pairs.x[0] and overlap(pairs.out, nbytes, pairs.x[0], nbytes))
        or overlap(pairs.out, nbytes, pairs.x[1], other)
        or overlap(pairs.out, nbytes, pairs.job.factor, pairs.job.samples * 8)
    )


cdef Status run(Pairs *pairs, bint mean, int threads, Sum *total, double *weights) noexcept nogil:
    """Check the arguments, take scratch memory and deal out the samples."""
    cdef Job *job = &pairs.job
    cdef Status status
    cdef Workspace space, sums
    cdef Space unused
    cdef Sum alone
    cdef Sum *partial = &alone
    cdef Py_ssize_t size, items, i
    cdef double t = pairs.temper.temperature
    cdef bint wide = pairs.type[0] == FLOAT64 or pairs.type[1] == FLOAT64
    total[0] = Sum(0, 0)
    weights[0] = 0
    wide = wide or not 2.0**-TEMPERS <= t <= 2.0**TEMPERS
    pairs.temper = temper_of(t, <double>0) if wide else temper_of(t, <float>0)
    # With more classes, a tile's blocks would be gone through twice where a row's need not be.
    pairs.row = job.inner == 1 and job.classes > TILE
    status = check(job, weights)
    if status.what != FINE or job.classes == 0:
        return status
    if mean:
        job.scale = job.scale / weights[0] if weights[0] != 0 else 0
    size = max(ITEM // job.classes, (job.samples + MAX_ITEMS - 1) // MAX_ITEMS, <Py_ssize_t>1)
    if not pairs.row:
        size = (size + LANES - 1) // LANES * LANES
    items = (job.samples + size - 1) // size
    threads = <int>min(<Py_ssize_t>max(threads, 1), items)
    if not take(&space, space_of(&unused, NULL, pairs, 8 if wide else 4), threads):
        return Status(NO_MEMORY, 0)
    if items > 1:
        if not take(&sums, items * sizeof(Sum), 1):
            give_back(&space)
            return Status(NO_MEMORY, 0)
        partial = <Sum *>sums.parts
    if threads > 1:
        for i in prange(items, schedule="dynamic", num_threads=threads):
            work(
                wide, pairs, i * size, min(job.samples, (i + 1) * size), partial + i,
                part_of(&space, threadid()),
            )
    else:
        for i in range(items):
            work(
                wide, pairs, i * size, min(job.samples, (i + 1) * size), partial + i, space.parts
            )
    for i in range(items):
        total[0] = add(total[0], partial[i])
    if items > 1:
        give_back(&sums)
    give_back(&space)
    return status


# ---- h) what Python calls ----------------------------------------------------------------------

def evaluate(
    int type,                  # of the logits, FLOAT32, FLOAT64, FLOAT16 or BFLOAT16
    object logits,             # IN   (outer, C, inner), as all arrays here contiguous
    int other_type,
    object other,              # IN   the same
    tuple shape,               # (outer, C, inner)
    object target=None,        # IN   int64 (outer, inner), class indices
    object factor=None,        # IN   double (outer, inner), multiplies each loss
    object numbers=None,       # OUT  double (2, outer, inner), with a target 4: KL divergence of
                               #      `other` from `logits` and the reverse, log-probabilities
    object predicted=None,     # OUT  int64 (2, outer, inner)
    object losses=None,        # OUT  double (outer, inner)
    object out=None,           # OUT  as the logits, gradient; may be them
    bint value=True,           # IN   whether the divergences are asked for
    bint reverse=False,        # IN   of the loss
    int64_t ignore_index=-1,
    double temperature=1,
    double scale=1,            # IN   upstream gradient, one for all samples
    bint mean=False,           # IN   whether to divide by the sum of the weights
    int threads=1,
):
    """Return (status, its position, sum of the losses, sum of the weights)."""
    cdef Pairs pairs
    cdef Job *job = &pairs.job
    cdef Status status
    cdef Sum total
    cdef double weights
    cdef double *number
    cdef int64_t *prediction
    cdef Py_ssize_t outer, elements, nbytes, other_nbytes
    outer, job.classes, job.inner = shape
    job.samples = outer * job.inner
    elements = job.samples * job.classes
    if job.samples == 0:
        return FINE, 0, 0.0, 0.0
    nbytes, other_nbytes = elements * size_of(type), elements * size_of(other_type)
    pairs.type[0], pairs.type[1] = type, other_type
    pairs.x[0] = address(logits, nbytes)
    pairs.x[1] = address(other, other_nbytes)
    pairs.out = address(out, nbytes)
    pairs.losses = <double *>address(losses, job.samples * 8)
    job.target = <const int64_t *>address(target, job.samples * 8)
    job.factor = <const double *>address(factor, job.samples * 8)
    job.weight = NULL
    job.ignore_index = ignore_index
    job.scale = scale
    job.streaming = out is not None and nbytes >= STREAM
    number = <double *>address(numbers, job.samples * 8 * (2 if target is None else 4))
    pairs.kl, pairs.reverse_kl = number, number + job.samples
    pairs.log_prob[0] = pairs.log_prob[1] = NULL
    if target is not None:
        pairs.log_prob[0] = number + 2 * job.samples
        pairs.log_prob[1] = number + 3 * job.samples
    prediction = <int64_t *>address(predicted, job.samples * 16)
    pairs.predicted[0] = prediction
    pairs.predicted[1] = prediction + job.samples if prediction != NULL else NULL
    pairs.reverse = reverse
    # The gradient of the reverse divergence is made of it.
    pairs.wants_divergence = value or (reverse and out is not None)
    pairs.temper.temperature = temperature
    with nogil:
        if out_overlaps(&pairs, nbytes, other_nbytes):
            status = Status(OVERLAPS, 0)
        else:
            status = run(&pairs, mean, threads, &total, &weights)
    if status.what != FINE:
        return status.what, status.where, 0.0, 0.0
    return status.what, status.where, value_of(total), weights
