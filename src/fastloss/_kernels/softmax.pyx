# What is read off a softmax: logsumexp, softmax and log_softmax themselves, and a sample's scores.
#
# All of it follows from one pass over a row: its maximum m and where it is, and `rest`, the sum of
# the other exponentials relative to it. With L = log(1 + rest):
#
#   logsumexp = m + L      log_softmax[c] = (x[c] - m) - L      entropy = L + sum(p[c] (m - x[c]))
#
# Only logsumexp adds terms of different signs. Two ways through memory, by the number of classes:
#
#   a) rows   more than TILE classes: sample by sample. A row, also a strided one, is loaded into a
#             scratch block; one beyond that is loaded again for each step
#   b) tiles  LANES samples at a time, turned into a scratch block, class after class

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t

from .blocks cimport LANES, Sum, accumulate, add, block_exp, block_max
from .storage cimport emit, load, narrow, storage, value_at
from .tiles cimport fix_range, shift_tile, turn, turn_back
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, log1p, real,
)

cdef enum:
    ROW = 4096           # classes of a row that are held at a time
    TILE = 64            # most classes of a tile
    ITEM = 65536         # elements that one item of work holds, about

cpdef enum Kind:
    LOGSUMEXP = 0
    SOFTMAX = 1
    LOG_SOFTMAX = 2
    SCORE = 3

cdef struct Job:
    int kind
    Py_ssize_t classes
    Py_ssize_t inner
    const int64_t *target    # for SCORE
    # OUT, by sample: logsumexp or the target's log-probability; for SCORE the other three.
    double *first
    int64_t *predicted
    double *predicted_log_prob
    double *entropy

# ---- a) rows ---------------------------------------------------------------------------------

cdef struct Row:
    double top               # m
    Py_ssize_t largest       # where it is
    double shift             # subtracted from what is in the scratch block
    double exponent
    double total             # sum of the exponentials, scaled
    double log_rest          # L


cdef inline void load_row(
    real *to, const storage *x, Py_ssize_t n, Py_ssize_t stride, double shift
) noexcept nogil:
    """to[:n] = x[:n * stride:stride] - shift."""
    cdef Py_ssize_t c
    if stride == 1:
        load(to, x, n, <real>shift)
    else:
        for c in range(n):
            to[c] = value_at(x, c * stride, <real>0) - <real>shift


cdef inline Row read_row(
    const storage *x, Py_ssize_t classes, Py_ssize_t stride, real *xs, real *e
) noexcept nogil:
    """Sum a row. One of at most ROW classes is left in xs, its exponentials in e."""
    cdef Row row
    cdef Py_ssize_t c, i, n
    cdef real top = <real>(-INFINITY), value, exponent
    cdef double own
    cdef Sum rest = Sum(0, 0)
    cdef bint whole = classes <= ROW
    row.largest = 0
    row.shift = 0
    for c in range(0, classes, 4096):
        n = min(classes - c, <Py_ssize_t>ROW)
        load_row(xs, x + c * stride, n, stride, 0)
        value = block_max(xs, n)
        if value > top:
            top = value
            for i in range(n):
                if xs[i] == value:
                    row.largest = c + i
                    break
    row.top = top
    if not -exp_limit(top) <= top <= exp_limit(top):
        row.shift = top if -<real>INFINITY < top < <real>INFINITY else NAN
        top = 0
        if whole:
            load_row(xs, x, classes, stride, row.shift)
    exponent = exponent_of(top)
    row.exponent = exponent
    for c in range(0, classes, 4096):
        n = min(classes - c, <Py_ssize_t>ROW)
        if not whole:
            load_row(xs, x + c * stride, n, stride, row.shift)
        rest = add(
            rest,
            block_exp(
                xs, e, n, row.largest - c, exp_magic(exponent), exp_low(exponent), True
            ),
        )
    own = exp_scaled(top, exp_magic(exponent), exp_low(exponent))
    if row.shift != row.shift:
        own = NAN
    if whole and classes > 0:
        e[row.largest] = <real>own
    row.total = rest.high + rest.low + own
    row.log_rest = log1p((rest.high + rest.low) / own)
    return row


cdef void rows_item(
    const storage *x, storage *y, const Job *job, Py_ssize_t start, Py_ssize_t stop,
    real *xs, real *e
) noexcept nogil:
    """Samples start to stop; xs and e: scratch of ROW elements each."""
    cdef Row row
    cdef Py_ssize_t sample, base, c, i, n, stride = job.inner
    cdef double distance, total, rest
    cdef real by, k
    cdef bint whole = job.classes <= ROW
    for sample in range(start, stop):
        base = sample // stride * job.classes * stride + sample % stride
        row = read_row(x + base, job.classes, stride, xs, e)
        if job.kind == LOGSUMEXP:
            end_of(x, job, sample, row.top, row.shift, row.log_rest)
        elif job.kind == SCORE:
            i = <Py_ssize_t>job.target[sample]
            if not 0 <= i < job.classes:
                i = 0
            distance = value_at(x + base, i * stride, <double>0)
            distance = 0.0 if i == row.largest else row.top - distance
            job.first[sample] = -(distance + row.log_rest)
            job.predicted[sample] = row.largest
            job.predicted_log_prob[sample] = -row.log_rest
            total = 0
            for c in range(0, job.classes, 4096):
                n = min(job.classes - c, <Py_ssize_t>ROW)
                if not whole:
                    load_row(xs, x + base + c * stride, n, stride, row.shift)
                    k = <real>row.exponent
                    block_exp(xs, e, n, -1, exp_magic(k), exp_low(k), True)
                total += spread(xs, e, n, row.top - row.shift)
            job.entropy[sample] = row.log_rest + total / row.total
        else:
            for c in range(0, job.classes, 4096):
                n = min(job.classes - c, <Py_ssize_t>ROW)
                k = <real>row.exponent
                if not whole:
                    load_row(xs, x + base + c * stride, n, stride, row.shift)
                if job.kind == SOFTMAX:
                    if not whole:
                        block_exp(xs, e, n, -1, exp_magic(k), exp_low(k), True)
                    by = <real>(1 / row.total)
                    for i in range(n):
                        e[i] = e[i] * by
                else:
                    rest = row.top - row.shift
                    for i in range(n):
                        e[i] = <real>((xs[i] - rest) - row.log_rest)
                write(y + base + c * stride, e, n, stride)


cdef inline double spread(const real *x, const real *e, Py_ssize_t n, double top) noexcept nogil:
    """Sum of e * (top - x); a class of probability 0 adds 0."""
    cdef double high[16]
    cdef double low[16]
    cdef real part[64]
    cdef Py_ssize_t i = 0, j, m
    cdef real t = <real>top
    cdef Sum total = Sum(0, 0)
    for j in range(16):
        high[j] = low[j] = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>64)
        if m < 64:
            for j in range(64):
                part[j] = 0
        for j in range(m):
            part[j] = e[i + j] * (t - x[i + j]) if e[i + j] != 0 else <real>0
        accumulate(&part[0], &high[0], &low[0])
        i += 64
    for j in range(16):
        total = add(total, Sum(high[j], low[j]))
    return total.high + total.low


cdef inline void write(
    storage *y, const real *values, Py_ssize_t n, Py_ssize_t stride
) noexcept nogil:
    """y[:n * stride:stride] = values[:n], rounded once."""
    cdef storage one
    cdef Py_ssize_t c
    if stride == 1:
        emit(y, values, n, False)
    else:
        for c in range(n):
            narrow(&one, values + c, 1)
            y[c * stride] = one


cdef inline void end_of(
    const storage *x, const Job *job, Py_ssize_t sample, double top, double shift, double log_rest
) noexcept nogil:
    """Write a sample's logsumexp."""
    cdef Py_ssize_t c, base = sample // job.inner * job.classes * job.inner + sample % job.inner
    cdef double value
    job.first[sample] = top + log_rest
    if shift - shift != 0:
        # Where the maximum is infinite it is the answer, but a NaN anywhere wins.
        job.first[sample] = top
        for c in range(job.classes):
            value = value_at(x + base, c * job.inner, <double>0)
            if value != value:
                job.first[sample] = value
                return


# ---- b) tiles --------------------------------------------------------------------------------

cdef void tiles_item(
    const storage *x, storage *y, const Job *job, Py_ssize_t start, Py_ssize_t stop,
    real *xs, real *e, real *stage
) noexcept nogil:
    """Samples start to stop; xs, e and stage: scratch of LANES * TILE elements each."""
    cdef Py_ssize_t classes = job.classes, first, n, lane, c
    cdef int32_t k, t
    cdef real top[64]
    cdef real shift[64]
    cdef real magic[64]
    cdef real low_x[64]
    cdef real highest[64]    # the maximum, as xs has it
    cdef real maximum[64]    # the maximum, as it was given
    cdef int32_t largest[64]
    cdef double rest[64]
    cdef double spread[64]
    cdef double own[64]
    cdef double log_rest[64]
    cdef double g
    cdef real v
    for first in range(start, stop, 64):
        n = min(stop - first, <Py_ssize_t>LANES)
        for lane in range(64):
            top[lane] = <real>(-INFINITY) if lane < n else <real>0
            largest[lane] = 0
        turn(xs, x, stage, classes, job.inner, first, n, 0, classes, LANES)
        for k in range(<int32_t>classes):
            for lane in range(64):
                largest[lane] = k if xs[k * 64 + lane] > top[lane] else largest[lane]
                top[lane] = xs[k * 64 + lane] if xs[k * 64 + lane] > top[lane] else top[lane]
        for lane in range(64):
            maximum[lane] = highest[lane] = top[lane]
            shift[lane] = 0
        if fix_range(&top[0], &shift[0]):
            shift_tile(xs, classes, LANES, &shift[0])
            for lane in range(64):
                if shift[lane] != 0:
                    highest[lane] = shift[lane] - shift[lane]
        for lane in range(64):
            magic[lane] = exp_magic(top[lane])
            low_x[lane] = exp_low(top[lane])
            own[lane] = exp_scaled(highest[lane], magic[lane], low_x[lane])
            rest[lane] = spread[lane] = 0
        for k in range(<int32_t>classes):
            for lane in range(64):
                v = exp_scaled(xs[k * 64 + lane], magic[lane], low_x[lane])
                e[k * 64 + lane] = v
                rest[lane] = rest[lane] + <double>(<real>0 if largest[lane] == k else v)
        for lane in range(64):
            log_rest[lane] = log1p(rest[lane] / own[lane])
        if job.kind == LOGSUMEXP:
            for lane in range(n):
                end_of(x, job, first + lane, maximum[lane], shift[lane], log_rest[lane])
            continue
        if job.kind == SCORE:
            for k in range(<int32_t>classes):
                for lane in range(64):
                    v = e[k * 64 + lane] * (highest[lane] - xs[k * 64 + lane])
                    spread[lane] = spread[lane] + <double>(
                        <real>0 if e[k * 64 + lane] == 0 else v
                    )
            for lane in range(n):
                t = <int32_t>job.target[first + lane]
                t = t if 0 <= t < classes else 0
                g = highest[lane] - <double>xs[t * 64 + lane]
                g = 0.0 if t == largest[lane] else g
                job.first[first + lane] = -(g + log_rest[lane])
                job.predicted[first + lane] = largest[lane]
                job.predicted_log_prob[first + lane] = -log_rest[lane]
                job.entropy[first + lane] = (
                    log_rest[lane] + spread[lane] / (rest[lane] + own[lane])
                )
            continue
        if job.kind == SOFTMAX:
            for lane in range(64):
                top[lane] = <real>(1 / (rest[lane] + own[lane]))
            for c in range(classes):
                for lane in range(64):
                    e[c * 64 + lane] = e[c * 64 + lane] * top[lane]
        else:
            for c in range(classes):
                for lane in range(64):
                    g = <double>xs[c * 64 + lane] - highest[lane]
                    e[c * 64 + lane] = <real>(g - log_rest[lane])
        turn_back(y, e, stage, classes, job.inner, first, n, 0, classes, LANES, False)


cdef void item(
    const storage *x, storage *y, const Job *job, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    cdef float xs[4096]
    cdef float e[4096]
    cdef float stage[4096]
    cdef double xs64[4096]
    cdef double e64[4096]
    cdef double stage64[4096]
    if job.classes <= TILE:
        if storage is double:
            tiles_item(x, y, job, start, stop, &xs64[0], &e64[0], &stage64[0])
        else:
            tiles_item(x, y, job, start, stop, &xs[0], &e[0], &stage[0])
    elif storage is double:
        rows_item(x, y, job, start, stop, &xs64[0], &e64[0])
    else:
        rows_item(x, y, job, start, stop, &xs[0], &e[0])


# ---- c) what Python calls --------------------------------------------------------------------

def evaluate(
    int kind,
    const storage[:, :, ::1] x,            # IN   (outer, C, inner)
    storage[:, :, ::1] y,                  # OUT  (outer, C, inner): softmax, log_softmax; or None
    const int64_t[:, ::1] target,          # IN   (outer, inner) for SCORE, or None
    double[:, ::1] first,                  # OUT  (outer, inner): logsumexp, log_prob; or None
    int64_t[:, ::1] predicted,             # OUT  the same for SCORE, or None
    double[:, ::1] predicted_log_prob,
    double[:, ::1] entropy,
    int threads,
):
    """Return the position of the first bad target, or -1."""
    cdef Job job
    cdef Py_ssize_t samples, size, items, i
    cdef const storage *source = NULL
    cdef storage *to = NULL
    job.kind = kind
    samples = x.shape[0] * x.shape[2]
    job.classes = x.shape[1]
    job.inner = x.shape[2]
    if samples == 0 or job.classes == 0:
        return 0 if samples > 0 and target is not None else -1
    source = &x[0, 0, 0]
    if y is not None:
        to = &y[0, 0, 0]
    if first is not None:
        job.first = &first[0, 0]
    if target is not None:
        job.target = &target[0, 0]
        job.predicted = &predicted[0, 0]
        job.predicted_log_prob = &predicted_log_prob[0, 0]
        job.entropy = &entropy[0, 0]
        for i in range(samples):
            if not 0 <= job.target[i] < job.classes:
                return i
    with nogil:
        size = max(ITEM // job.classes, <Py_ssize_t>1)
        items = (samples + size - 1) // size
        if threads > 1 and items > 1:
            for i in prange(items, schedule="dynamic", num_threads=threads):
                item(source, to, &job, i * size, min(samples, (i + 1) * size))
        else:
            for i in range(items):
                item(source, to, &job, i * size, min(samples, (i + 1) * size))
    return -1
