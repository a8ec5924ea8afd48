# Cross-entropy with class probabilities, and with smoothed class indices.
#
# Both have a target a[c] = weight[c] * q[c] for every class, q = (1 - smoothing) * p +
# smoothing / C with p the probabilities given, or 1 at the index. With m the largest logit, `rest`
# the sum of the other exponentials relative to it and L = log(1 + rest):
#
#   loss     = sum(a[c] * (m - x[c])) + A * L,  A = sum(a)      two sums of positive terms
#   gradient = p[c] * (A - a[c]) - a[c] * (1 - p[c])            1 - p[c] = rest / (1 + rest) at m
#
# The gradient is the difference of two numbers that may be close: its exponentials and all else
# are computed in double, whatever the logits' type, so that floats lose nothing. With doubles it is
# right to a few ulp of the larger of the two; for a one-hot target one of them is exactly 0. A loss
# alone has nothing that cancels: for logits of at most 32 bits its exponentials are floats.
#
# Two ways through memory, chosen by the number of classes alone:
#
#   a) rows   more than TILE classes: sample by sample, in blocks that the L1 cache holds: the
#             maximum, then the sums, with the exponentials kept or, in a row of more than KEPT
#             classes, computed once more for the gradient
#   b) tiles  LANES samples at a time, turned into a scratch block, class after class

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t

from .blocks cimport (
    LANES, RunningSum, Sum, Tally, add, block_max, chunk_exp, clear, count, few_exp, folded,
    sum_begin, sum_end, value_of,
)
from .samples cimport (
    OVERLAP, Check, Job, check, class_of, item_size, offset_of, out_overlaps, weighted,
)
from .storage cimport emit, load, narrow, overlap, prefetch_bytes, storage, stream_end, value_at
from .tiles cimport fix_range, turn, turn_back
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, fma, log1p, mul_add,
    real, spare_bits,
)

cdef enum:
    BLOCK = 1024         # classes of a row that are worked on at a time
    KEPT = 8192          # most classes of a row whose exponentials are kept for the gradient
    TILE = 64            # most classes of a tile
    # Gradients that are larger than the caches are written past them.
    STREAM = 16777216

ctypedef fused probability:
    float
    double

cdef struct Smoothing:
    double keep          # 1 - smoothing
    double spread        # smoothing / C

# ---- a) rows ---------------------------------------------------------------------------------

cdef inline Sum product(double a, double b) noexcept nogil:
    """a * b to twice the digits."""
    cdef double high = a * b
    return Sum(high, fma(a, b, -high))


cdef inline double quotient_low(double quotient, Sum a, Sum b) noexcept nogil:
    """What a / b has beyond the rounded quotient."""
    return ((fma(-quotient, b.high, a.high) + a.low) - quotient * b.low) / b.high


# What is known of a row once it is summed.
cdef struct Row:
    double magic
    double low_x
    double shift
    double total         # sum of the exponentials, scaled
    double rest          # the same without the largest
    double own           # the largest alone
    Py_ssize_t largest   # its class
    double largest_a     # its a
    double mass          # A
    double others        # the same without the largest
    double by            # mass / total: exponential to probability times mass
    double by_low        # what `by` lost by rounding
    double loss


cdef inline bint uniform(const Job *job, const probability *p) noexcept nogil:
    """Whether a[c] is the same for all classes but the target's."""
    return p == NULL and job.weight == NULL


cdef inline void load_row(
    real *to, const storage *x, Py_ssize_t n, Py_ssize_t stride, real shift
) noexcept nogil:
    """to[:n] = x[:n * stride:stride] - shift."""
    cdef Py_ssize_t c
    if stride == 1:
        load(to, x, n, shift)
    else:
        for c in range(n):
            to[c] = value_at(x, c * stride, shift) - shift


cdef inline const real *seen(
    real *to, const storage *x, Py_ssize_t n, Py_ssize_t stride
) noexcept nogil:
    """x[:n * stride:stride] as it lies in memory, or else as loaded into `to`."""
    if (storage is float and real is float) or (storage is double and real is double):
        if stride == 1:
            return x
    load_row(to, x, n, stride, <real>0)
    return to


cdef void load_target(
    double *to, const probability *p, const Job *job, Py_ssize_t t, Smoothing smoothing,
    Py_ssize_t c, Py_ssize_t n
) noexcept nogil:
    """to[:n] = a[c:c + n] of probabilities p, or of class t."""
    cdef Py_ssize_t i, stride = job.inner
    if p == NULL:
        for i in range(n):
            to[i] = smoothing.spread
        if c <= t < c + n:
            to[t - c] += smoothing.keep
    elif stride == 1:
        for i in range(n):
            to[i] = mul_add(smoothing.keep, <double>p[c + i], smoothing.spread)
    else:
        for i in range(n):
            to[i] = mul_add(smoothing.keep, <double>p[(c + i) * stride], smoothing.spread)
    if job.weight != NULL:
        for i in range(n):
            to[i] = to[i] * job.weight[c + i]


cdef Py_ssize_t find(const real *x, Py_ssize_t n, real value) noexcept nogil:
    """First of x[:n] that is `value`, or n."""
    cdef int32_t i, first = <int32_t>n
    for i in range(<int32_t>n):
        first = min(first, i if x[i] == value else <int32_t>n)
    return first


cdef inline void two_sum(double *high, double *low, double value) noexcept nogil:
    """Add to a number in two parts."""
    cdef double t = high[0] + value
    cdef double z = t - high[0]
    low[0] = low[0] + ((high[0] - (t - z)) + (value - z))
    high[0] = t


# A block has 32 running sums: of doubles, or where the logits are doubles themselves of pairs.

cdef inline void into(real unused, double *high, double *low, double value) noexcept nogil:
    if real is double:
        two_sum(high, low, value)
    else:
        high[0] += value


cdef inline Sum fold(real unused, double *high, double *low) noexcept nogil:
    """What the 32 sums add up to: as a tree, since one by one would cost more than a row."""
    cdef Py_ssize_t j
    cdef Sum total
    for j in range(16):
        if real is double:
            low[j] = low[j] + low[j + 16]
        into(unused, &high[j], &low[j], high[j + 16])
    for j in range(8):
        if real is double:
            low[j] = low[j] + low[j + 8]
        into(unused, &high[j], &low[j], high[j + 8])
    if real is double:
        total = Sum(high[0], low[0])
        for j in range(1, 8):
            total = add(total, Sum(high[j], low[j]))
    else:
        total.high = ((high[0] + high[4]) + (high[2] + high[6])) + (
            (high[1] + high[5]) + (high[3] + high[7])
        )
        total.low = 0
    return total


cdef Sum sum_of(real unused, const double *value, Py_ssize_t n) noexcept nogil:
    """Sum of value[:n]."""
    cdef double high[32]
    cdef double low[32]
    cdef Py_ssize_t i, j, whole = n // 32 * 32
    for j in range(32):
        high[j] = low[j] = 0
    for i in range(0, whole, 32):
        for j in range(32):
            into(unused, &high[j], &low[j], value[i + j])
    for j in range(n - whole):
        into(unused, &high[j], &low[j], value[whole + j])
    return fold(unused, &high[0], &low[0])


cdef Sum distance_of(
    const real *x, const double *a, Py_ssize_t n, double top, const char *ahead, int step,
    Sum *mass
) noexcept nogil:
    """Sum of a * (top - x) of n classes, where a class with a = 0 adds 0; sum(a) goes to mass.

    Without `a` it is the sum of top - x alone. At `ahead` lies what will be read next, `step`
    bytes for 32 classes, or NULL; it is fetched meanwhile.
    """
    cdef double high[32]
    cdef double low[32]
    cdef double high_mass[32]
    cdef double low_mass[32]
    cdef Py_ssize_t i, j, whole = n // 32 * 32
    cdef double part
    for j in range(32):
        high[j] = low[j] = high_mass[j] = low_mass[j] = 0
    if a == NULL:
        for i in range(0, whole, 32):
            for j in range(32):
                into(<real>0, &high[j], &low[j], top - x[i + j])
        for j in range(n - whole):
            into(<real>0, &high[j], &low[j], top - x[whole + j])
        return fold(<real>0, &high[0], &low[0])
    for i in range(0, whole, 32):
        if ahead != NULL:
            prefetch_bytes(ahead, step)
            ahead += step
        for j in range(32):
            part = a[i + j] * (top - x[i + j])
            into(<real>0, &high[j], &low[j], part if a[i + j] != 0 else 0.0)
            into(<real>0, &high_mass[j], &low_mass[j], a[i + j])
    for j in range(n - whole):
        part = a[whole + j] * (top - x[whole + j])
        into(<real>0, &high[j], &low[j], part if a[whole + j] != 0 else 0.0)
        into(<real>0, &high_mass[j], &low_mass[j], a[whole + j])
    mass[0] = fold(<real>0, &high_mass[0], &low_mass[0])
    return fold(<real>0, &high[0], &low[0])


cdef Sum float_exp(
    const float *x, Py_ssize_t n, Py_ssize_t skip, float exponent, const char *ahead, int step
) noexcept nogil:
    """`block_exp` in float; for `ahead` and `step` see sum_exp."""
    cdef RunningSum sum
    cdef float magic = exp_magic(exponent), low_x = exp_low(exponent)
    cdef Py_ssize_t i = 0
    cdef int seen_before = 0
    if n < 64:
        return few_exp(x, <float *>NULL, n, skip, magic, low_x, False)
    sum_begin(&sum, magic)
    while i < n:
        if ahead != NULL:
            prefetch_bytes(ahead, step)
            ahead += step
        if n - i < 64:
            # The last chunk reaches back over what has been summed.
            seen_before = <int>(64 - (n - i))
            i = n - 64
        chunk_exp(
            x + i, <float *>NULL, seen_before, skip - i, magic, low_x, <float>INFINITY, False,
            &sum,
        )
        i += 64
    return sum_end(&sum, magic)


cdef Sum sum_exp(
    const real *x, double *e, Py_ssize_t n, Py_ssize_t skip, double magic, double low_x,
    const char *ahead, int step
) noexcept nogil:
    """Sum of the scaled exponentials of x[:n] but for x[skip]; they are left in e[:n], 0 at skip.

    At `ahead` lies what will be read next, `step` bytes for 64 classes, or NULL; it is fetched
    meanwhile. e may be x.
    """
    cdef Py_ssize_t i, j, m
    for i in range(0, n, 64):
        if ahead != NULL:
            prefetch_bytes(ahead, step)
            ahead += step
        # A number of steps unknown to the compiler: it would unroll them all, and run slower.
        m = min(n - i, <Py_ssize_t>64)
        for j in range(m):
            e[i + j] = exp_scaled(<double>x[i + j], magic, low_x)
    if 0 <= skip < n:
        e[skip] = 0
    return sum_of(<real>0, e, n)


cdef inline Sum exp_part(
    const storage *x, const Row *row, real *xs, double *e, Py_ssize_t n, Py_ssize_t stride,
    Py_ssize_t skip, const char *ahead
) noexcept nogil:
    """`sum_exp` of n classes of a row; xs is scratch."""
    if row.shift != 0:
        load_row(e, x, n, stride, row.shift)
        return sum_exp(e, e, n, skip, row.magic, row.low_x, NULL, 0)
    return sum_exp(
        seen(xs, x, n, stride), e, n, skip, row.magic, row.low_x, ahead, 64 * sizeof(storage)
    )


cdef inline bint sum_floats(
    const storage *x, const Job *job, Row *row, double top, real *xs, bint last
) noexcept nogil:
    """`rest` and `own` from exponentials in float, or False where these would not do.

    They are good to three ulp of a float: enough for a loss, in which nothing cancels, and not
    for a gradient.
    """
    cdef Py_ssize_t classes = job.classes, c, n, stride = job.inner
    cdef Sum rest = Sum(0, 0)
    cdef float exponent
    cdef double k
    cdef const char *ahead
    if real is double:
        return False
    else:
        if not -exp_limit(<float>0) <= top <= exp_limit(<float>0):
            return False
        exponent = exponent_of(<float>top)
        for c in range(0, classes, 1024):
            n = min(classes - c, <Py_ssize_t>BLOCK)
            ahead = NULL
            if stride == 1 and not (last and c + n >= classes):
                ahead = <const char *>(x + c + n)
            rest = add(rest, float_exp(
                seen(xs, x + c * stride, n, stride), n, row.largest - c, exponent, ahead,
                64 * sizeof(storage)
            ))
        # The same in double, whose own SPARE is another.
        k = exponent + (spare_bits(<double>0) - spare_bits(<float>0))
        row.own = exp_scaled(top, exp_magic(k), exp_low(k))
        row.rest = rest.high
        # Where the sum is this small (or NaN), terms may be lost as too small for a float.
        return rest.high > 1e-20


cdef inline Row sum_row(
    const storage *x, const probability *p, const Job *job, Smoothing smoothing, Py_ssize_t t,
    real *xs, double *a, double *e, bint keep, bint last
) noexcept nogil:
    """Everything but the gradient; xs, a, e are scratch.

    With `keep`, at most KEPT classes leave their exponentials in e, and at most BLOCK their
    targets in a, unless these are uniform; both but for the largest's.
    """
    cdef Row row
    cdef Py_ssize_t classes = job.classes, c, n, stride = job.inner
    cdef Sum rest = Sum(0, 0), distance = Sum(0, 0), others = Sum(0, 0), mass = Sum(0, 0)
    cdef Sum part
    cdef const real *block
    cdef const double *targets
    cdef double *to
    cdef const char *ahead
    cdef const char *ahead_p
    cdef double top = -INFINITY, exponent
    cdef real value
    cdef bint summed = False
    row.largest = 0
    row.largest_a = row.shift = 0
    for c in range(0, classes, 1024):
        n = min(classes - c, <Py_ssize_t>BLOCK)
        block = seen(xs, x + c * stride, n, stride)
        value = block_max(block, n)
        if value > top:
            top = value
            row.largest = c + find(block, n, value)
    if not keep:
        summed = sum_floats(x, job, &row, top, xs, last)
    if not -exp_limit(top) <= top <= exp_limit(top):
        row.shift = top if -INFINITY < top < INFINITY else NAN
        top = 0
    exponent = exponent_of(top)
    row.magic = exp_magic(exponent)
    row.low_x = exp_low(exponent)
    for c in range(0, classes, 1024):
        n = min(classes - c, <Py_ssize_t>BLOCK)
        # What lies behind this block is read next, also if that is the next row.
        ahead = ahead_p = NULL
        if stride == 1 and not (last and c + n >= classes):
            ahead = <const char *>(x + c + n)
            if p != NULL:
                ahead_p = <const char *>(p + c + n)
        targets = NULL
        if not uniform(job, p):
            load_target(a, p, job, t, smoothing, c, n)
            if c <= row.largest < c + n:
                row.largest_a = a[row.largest - c]
                a[row.largest - c] = 0
            targets = a
        to = e + c if classes <= KEPT else e
        if row.shift != 0:
            load_row(to, x + c * stride, n, stride, row.shift)
            part = distance_of(to, targets, n, top, NULL, 0, &mass)
        else:
            part = distance_of(
                seen(xs, x + c * stride, n, stride), targets, n, top, ahead_p,
                32 * sizeof(probability), &mass
            )
        distance = add(distance, part)
        others = add(others, mass)
        if not summed:
            part = exp_part(x + c * stride, &row, xs, to, n, stride, row.largest - c, ahead)
            rest = add(rest, part)
    if not summed:
        row.own = exp_scaled(top, row.magic, row.low_x)
        row.rest = rest.high + rest.low if row.shift == row.shift else NAN
        rest.low = rest.low - (row.rest - rest.high)
    row.total = row.rest + row.own
    row.loss = value_of(distance)
    if uniform(job, p):
        row.largest_a = smoothing.spread
        others = product(smoothing.spread, classes - 1)
        row.loss = smoothing.spread * row.loss if smoothing.spread != 0 else 0.0
        if t == row.largest:
            row.largest_a += smoothing.keep
        elif smoothing.keep != 0:
            others = add(others, Sum(smoothing.keep, 0))
            row.loss += smoothing.keep * (top - (value_at(x, t * stride, top) - row.shift))
    row.others = value_of(others)
    row.mass = row.largest_a + row.others
    row.by = row.mass / row.total
    row.by_low = quotient_low(
        row.by, add(others, Sum(row.largest_a, 0)), add(Sum(row.rest, rest.low), Sum(row.own, 0))
    )
    if row.mass != 0:
        row.loss = row.loss + row.mass * log1p(row.rest / row.own)
    if row.total - row.total != 0:
        row.loss = NAN
    return row


cdef void gradient_block(
    real *to, const double *e, const double *a, Py_ssize_t n, Row row, double spread,
    double scale
) noexcept nogil:
    """Exponentials to gradients, where the class is not the largest; `spread` is a's where NULL."""
    cdef Py_ssize_t i
    if a == NULL:
        for i in range(n):
            to[i] = <real>(mul_add(e[i], row.by, mul_add(e[i], row.by_low, -spread)) * scale)
    else:
        for i in range(n):
            to[i] = <real>(mul_add(e[i], row.by, mul_add(e[i], row.by_low, -a[i])) * scale)


cdef inline void gradient_row(
    const storage *x, const probability *p, storage *grad, const Job *job, Smoothing smoothing,
    Py_ssize_t t, Row *row, double scale, real *xs, double *a, double *e
) noexcept nogil:
    """The gradient of a row whose sums are known; see sum_row for what is in a and e."""
    cdef Py_ssize_t classes = job.classes, c, n, stride = job.inner
    cdef const double *block
    cdef const double *targets
    cdef double g
    for c in range(0, classes, 1024):
        n = min(classes - c, <Py_ssize_t>BLOCK)
        targets = NULL
        if not uniform(job, p):
            if classes > BLOCK:
                load_target(a, p, job, t, smoothing, c, n)
            targets = a
        block = e + c
        if classes > KEPT:
            # Computed once more: the exponentials have not been kept.
            exp_part(x + c * stride, row, xs, e, n, stride, -1, NULL)
            block = e
        gradient_block(xs, block, targets, n, row[0], smoothing.spread, scale)
        if targets == NULL and c <= t < c + n:
            g = mul_add(block[t - c], row.by_low, -(smoothing.spread + smoothing.keep))
            g = mul_add(block[t - c], row.by, g)
            xs[t - c] = <real>(g * scale)
        if c <= row.largest < c + n:
            g = row.own / row.total * row.others - row.largest_a * (row.rest / row.total)
            xs[row.largest - c] = <real>(g * scale)
        write(grad + c * stride, xs, n, stride, job.streaming)


cdef inline void write(
    storage *grad, const real *g, Py_ssize_t n, Py_ssize_t stride, bint streaming
) noexcept nogil:
    """grad[:n * stride:stride] = g[:n], rounded once."""
    cdef storage stage[1024]
    cdef Py_ssize_t c
    if stride == 1:
        emit(grad, g, n, streaming)
    else:
        narrow(&stage[0], g, n)
        for c in range(n):
            grad[c * stride] = stage[c]


cdef void rows_item(
    const storage *x, const probability *p, storage *grad, real *losses, const Job *job,
    Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    cdef real xs[1024]
    cdef double a[1024]
    cdef double e[8192]
    cdef Tally tally
    cdef Row row
    cdef Py_ssize_t sample, c, n, t, base, stride = job.inner
    cdef double factor, one
    cdef const probability *target
    clear(&tally)
    for sample in range(start, stop):
        base = offset_of(job, sample, 0)
        t = -1 if job.target == NULL else class_of(job, sample)
        if job.target != NULL and t < 0:
            one = 0
            if grad != NULL:
                for c in range(min(job.classes, <Py_ssize_t>BLOCK)):
                    xs[c] = 0
                for c in range(0, job.classes, 1024):
                    n = min(job.classes - c, <Py_ssize_t>BLOCK)
                    write(grad + base + c * stride, &xs[0], n, stride, job.streaming)
        else:
            factor = 1.0 if job.factor == NULL else job.factor[sample]
            target = p + base if p != NULL else p
            row = sum_row(
                x + base, target, job, smoothing, t, &xs[0], &a[0], &e[0], grad != NULL,
                sample + 1 >= stop
            )
            one = weighted(factor, row.loss)
            if grad != NULL:
                gradient_row(
                    x + base, target, grad + base, job, smoothing, t, &row, factor * job.scale,
                    &xs[0], &a[0], &e[0]
                )
        count(&tally, &one, 1)
        if losses != NULL:
            losses[sample] = <real>one
    result[0] = folded(&tally)


# ---- b) tiles --------------------------------------------------------------------------------

# LANES samples, class-major.
cdef struct Tile:
    double e[4096]           # exponentials
    double a[4096]           # targets
    double top[64]           # m
    double largest[64]       # its class
    double largest_a[64]     # its a
    int64_t target[64]       # class index, or -1
    double factor[64]        # of the loss; 0 where the sample does not count
    double rest[64]
    double own[64]
    double mass[64]          # A
    double others[64]        # A without the largest
    double by[64]            # mass / total: exponential to probability times mass
    double by_low[64]        # what `by` lost by rounding
    double loss[64]


cdef inline void tile_target(
    double *a, const probability *p, probability *scratch, const Job *job, Smoothing smoothing,
    Py_ssize_t first, Py_ssize_t n, const int64_t *target
) noexcept nogil:
    """a[c * LANES + lane] = weight[c] * q[c] of each lane."""
    cdef Py_ssize_t c, lane
    if p != NULL:
        if probability is float:
            turn(scratch, p, scratch, job.classes, job.inner, first, n, 0, job.classes, LANES)
            for c in range(job.classes * 64):
                a[c] = mul_add(smoothing.keep, <double>scratch[c], smoothing.spread)
        else:
            turn(a, p, scratch, job.classes, job.inner, first, n, 0, job.classes, LANES)
            for c in range(job.classes * 64):
                a[c] = mul_add(smoothing.keep, a[c], smoothing.spread)
    else:
        for c in range(job.classes):
            for lane in range(64):
                a[c * 64 + lane] = smoothing.spread + (smoothing.keep if target[lane] == c else 0.0)
    if job.weight != NULL:
        for c in range(job.classes):
            for lane in range(64):
                a[c * 64 + lane] = a[c * 64 + lane] * job.weight[c]


cdef void tile_losses(const real *xs, Tile *tile, Py_ssize_t classes) noexcept nogil:
    """The exponentials of the logits xs, and the losses, factors included.

    Logits that are doubles lie where their exponentials will.
    """
    cdef Py_ssize_t lane, c, i
    cdef real top[64]
    cdef real largest[64]
    cdef double shift[64]
    cdef double magic[64]
    cdef double low_x[64]
    cdef double rest_low[64]
    cdef double distance[64]
    cdef double distance_low[64]
    cdef double others_low[64]
    cdef double x, e, g
    cdef Sum mass, total
    for lane in range(64):
        top[lane] = <real>(-INFINITY)
        largest[lane] = shift[lane] = 0
        tile.rest[lane] = rest_low[lane] = distance[lane] = distance_low[lane] = 0
        tile.others[lane] = others_low[lane] = tile.largest_a[lane] = 0
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            largest[lane] = <real>c if xs[i] > top[lane] else largest[lane]
            top[lane] = xs[i] if xs[i] > top[lane] else top[lane]
            if real is float:
                tile.e[i] = xs[i]
    for lane in range(64):
        tile.largest[lane] = largest[lane]
        tile.top[lane] = low_x[lane] = top[lane]
    if fix_range(&low_x[0], &shift[0]):
        for lane in range(64):
            # The maximum less itself: 0, or NaN where it is none.
            tile.top[lane] = tile.top[lane] if shift[lane] == 0 else shift[lane] - shift[lane]
    for lane in range(64):
        magic[lane] = exp_magic(low_x[lane])
        low_x[lane] = exp_low(low_x[lane])
        tile.own[lane] = exp_scaled(tile.top[lane], magic[lane], low_x[lane])
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            x = tile.e[i] - shift[lane]
            g = tile.a[i] * (tile.top[lane] - x)
            into(
                <real>0, &distance[lane], &distance_low[lane], 0.0 if tile.a[i] == 0 else g
            )
            g = 0.0 if tile.largest[lane] == c else tile.a[i]
            # Exact: it is a[i] less itself or 0.
            tile.largest_a[lane] += tile.a[i] - g
            into(<real>0, &tile.others[lane], &others_low[lane], g)
            e = exp_scaled(x, magic[lane], low_x[lane])
            tile.e[i] = e
            into(
                <real>0, &tile.rest[lane], &rest_low[lane],
                0.0 if tile.largest[lane] == c else e,
            )
    for lane in range(64):
        mass = add(Sum(tile.others[lane], others_low[lane]), Sum(tile.largest_a[lane], 0))
        total = add(Sum(tile.rest[lane], rest_low[lane]), Sum(tile.own[lane], 0))
        tile.by[lane] = (mass.high + mass.low) / (total.high + total.low)
        tile.by_low[lane] = quotient_low(tile.by[lane], mass, total)
        tile.rest[lane] = tile.rest[lane] + rest_low[lane]
        tile.others[lane] = tile.others[lane] + others_low[lane]
        tile.mass[lane] = tile.others[lane] + tile.largest_a[lane]
        g = distance[lane] + distance_low[lane]
        # An infinite sum's error term is NaN, and not to be added.
        g = g if distance_low[lane] - distance_low[lane] == 0 else distance[lane]
        e = tile.mass[lane] * log1p(tile.rest[lane] / tile.own[lane])
        g = g + (0.0 if tile.mass[lane] == 0 else e)
        e = tile.rest[lane] + tile.own[lane]
        tile.loss[lane] = g if e - e == 0 else NAN
    for lane in range(64):
        tile.loss[lane] = weighted(tile.factor[lane], tile.loss[lane])


cdef void tile_gradients(
    real *to, const Tile *tile, Py_ssize_t classes, double scale, const int64_t *targets
) noexcept nogil:
    """Exponentials to gradients; with `targets`, exactly 0 for a sample that has none."""
    cdef Py_ssize_t lane, c, i
    cdef double at_largest[64]
    cdef double factor[64]
    cdef double g, total
    for lane in range(64):
        total = tile.rest[lane] + tile.own[lane]
        factor[lane] = tile.factor[lane] * scale
        at_largest[lane] = (
            tile.own[lane] / total * tile.others[lane]
            - tile.largest_a[lane] * (tile.rest[lane] / total)
        )
    for c in range(classes):
        for lane in range(64):
            i = c * 64 + lane
            g = mul_add(tile.e[i], tile.by_low[lane], -tile.a[i])
            g = mul_add(tile.e[i], tile.by[lane], g)
            g = at_largest[lane] if tile.largest[lane] == c else g
            to[i] = <real>(g * factor[lane])
    if targets != NULL:
        for c in range(classes):
            for lane in range(64):
                i = c * 64 + lane
                to[i] = to[i] if tile.target[lane] >= 0 else <real>0


cdef void tiles_item(
    const storage *x, const probability *p, storage *grad, real *losses, const Job *job,
    Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    cdef Tile tile
    cdef real xs[4096]       # logits, then gradients, class-major
    cdef real stage[4096]
    cdef real *turned
    cdef probability ps[4096]
    cdef Tally tally
    cdef Py_ssize_t classes = job.classes, first, n, lane
    clear(&tally)
    for first in range(start, stop, 64):
        n = min(stop - first, <Py_ssize_t>LANES)
        for lane in range(64):
            tile.target[lane] = -1
            tile.factor[lane] = lane < n
        for lane in range(n):
            if job.target != NULL:
                tile.target[lane] = class_of(job, first + lane)
                tile.factor[lane] = tile.target[lane] >= 0
            if job.factor != NULL and tile.factor[lane] != 0:
                tile.factor[lane] = job.factor[first + lane]
        turned = <real *>&tile.e[0] if real is double else &xs[0]
        turn(turned, x, &stage[0], classes, job.inner, first, n, 0, classes, LANES)
        tile_target(&tile.a[0], p, &ps[0], job, smoothing, first, n, &tile.target[0])
        tile_losses(turned, &tile, classes)
        for lane in range(64):
            # An ignored sample has loss 0, whatever its logits made of it.
            if lane >= n or job.target != NULL and tile.target[lane] < 0:
                tile.loss[lane] = 0
        count(&tally, &tile.loss[0], LANES)
        if losses != NULL:
            for lane in range(n):
                losses[first + lane] = <real>tile.loss[lane]
        if grad != NULL:
            tile_gradients(&xs[0], &tile, classes, job.scale, job.target)
            turn_back(
                grad, &xs[0], &stage[0], classes, job.inner, first, n, 0, classes, LANES,
                job.streaming
            )
    result[0] = folded(&tally)


cdef void item(
    const storage *x, const probability *p, storage *grad, float *losses32, double *losses64,
    const Job *job, Smoothing smoothing, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    if job.classes <= TILE:
        if storage is double:
            tiles_item(x, p, grad, losses64, job, smoothing, start, stop, result)
        else:
            tiles_item(x, p, grad, losses32, job, smoothing, start, stop, result)
    else:
        if storage is double:
            rows_item(x, p, grad, losses64, job, smoothing, start, stop, result)
        else:
            rows_item(x, p, grad, losses32, job, smoothing, start, stop, result)
    if job.streaming:
        stream_end()


# ---- c) what Python calls --------------------------------------------------------------------

def cross_entropy(
    const storage[:, :, ::1] logits,     # IN   (outer, C, inner)
    const int64_t[:, ::1] target,        # IN   (outer, inner), or None with probabilities
    const probability[:, :, ::1] probabilities,  # IN (outer, C, inner); (0, 0, 0) with indices
    const double[::1] weight,            # IN   (C,) or None
    const double[:, ::1] factor,         # IN   (outer, inner) or None: multiplies each loss
    int64_t ignore_index,
    double smoothing,
    double scale,                        # IN   upstream gradient, one for all samples
    bint mean,                           # IN   whether to divide by the sum of the weights
    float[:, ::1] losses32,              # OUT  (outer, inner) or None
    double[:, ::1] losses64,             # OUT  the same for double logits, or None
    storage[:, :, ::1] grad,             # OUT  (outer, C, inner) or None; may be the logits
    int threads,
):
    """Return (position of a bad target, -1 or OVERLAP; sum of the losses, sum of the weights)."""
    cdef Job job
    cdef Check checked
    cdef Smoothing s
    cdef Sum partial[4096]
    cdef Sum total = Sum(0, 0)
    cdef Tally tally
    cdef Py_ssize_t size, items, i
    cdef const probability *p = NULL
    cdef const storage *x = NULL
    cdef storage *g = NULL
    cdef float *out32 = NULL
    cdef double *out64 = NULL
    job.samples = logits.shape[0] * logits.shape[2]
    job.classes = logits.shape[1]
    job.inner = logits.shape[2]
    if job.samples == 0:
        return -1, 0.0, 0.0
    job.target = &target[0, 0] if target is not None else NULL
    job.weight = &weight[0] if weight is not None and job.classes > 0 else NULL
    job.factor = &factor[0, 0] if factor is not None else NULL
    job.ignore_index = ignore_index
    job.streaming = (
        grad is not None
        and job.samples * job.classes * <Py_ssize_t>sizeof(storage) >= STREAM
    )
    s.keep = 1 - smoothing
    s.spread = smoothing / job.classes if job.classes > 0 else 0
    if losses32 is not None:
        out32 = &losses32[0, 0]
    if losses64 is not None:
        out64 = &losses64[0, 0]
    if job.classes > 0:
        x = &logits[0, 0, 0]
        if grad is not None:
            g = &grad[0, 0, 0]
        if job.target == NULL:
            p = &probabilities[0, 0, 0]
        size = job.samples * job.classes
        if out_overlaps(g, x, size * <Py_ssize_t>sizeof(storage), &job) or overlap(
            g, size * <Py_ssize_t>sizeof(storage), p, size * <Py_ssize_t>sizeof(probability)
        ):
            return OVERLAP, 0.0, 0.0
    with nogil:
        if job.target != NULL:
            checked = check(&job)
        else:
            checked.bad = -1
            checked.weights = <double>job.samples
            if job.factor != NULL:
                clear(&tally)
                for i in range(job.samples):
                    count(&tally, job.factor + i, 1)
                checked.weights = value_of(folded(&tally))
        if checked.bad < 0 and job.classes > 0:
            if mean:
                scale = scale / checked.weights if checked.weights != 0 else 0
            job.scale = scale
            size = item_size(&job)
            items = (job.samples + size - 1) // size
            if threads > 1 and items > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    item(
                        x, p, g, out32, out64, &job, s, i * size,
                        min(job.samples, (i + 1) * size), &partial[i],
                    )
            else:
                for i in range(items):
                    item(
                        x, p, g, out32, out64, &job, s, i * size,
                        min(job.samples, (i + 1) * size), &partial[i],
                    )
            for i in range(items):
                total = add(total, partial[i])
    return checked.bad, value_of(total), checked.weights
