# Cross-entropy with class indices, and negative log-likelihood: loss and gradient in one pass.
#
# Arrays arrive as (outer, C, inner): a sample is one (outer, inner) position, numbered
# sample = o * inner + i. Two ways through memory, chosen by shape alone:
#
#   a) rows   inner == 1 and C > LANES: lanes run over the classes of a row
#   b) tiles  otherwise: lanes run over LANES samples, class after class. A tile is read in place
#             where its samples lie side by side (inner > 1), else it is turned into a scratch block.
#
# Samples are dealt out as items of a size that depends on the shape alone; an item's losses are
# summed by itself and the items' sums added in order, so that the number of threads changes no bit.
#
# c) is what Python calls. Nothing here raises: a bad target index is returned by position, found
# before anything is written. Indices are checked again where they are used.

from cython.parallel cimport prange
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from .blocks cimport (
    LANES, SCRATCH, Sum, Tally, add, block_exp, block_max, clear, count, finish, folded, value_of,
)
from .samples cimport Check, Job, check, class_of, factor_of, item_size, offset_of
from .storage cimport bfloat16, emit, float16, load, storage, stream_end, value_at
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, power_of_two, real,
)

cdef enum:
    BLOCK = 4096         # classes of a long row that are worked on at a time
    FIRST_TILE = 64      # most classes for which a row is turned into a tile


cdef inline double weighted(double factor, double loss) noexcept nogil:
    """factor * loss; a weight of 0 takes an infinite loss out, too."""
    return 0.0 if (factor == 0) & (loss == INFINITY) else factor * loss


# ---- a) rows ---------------------------------------------------------------------------------

cdef struct RowSum:
    Sum rest
    double exponent
    double shift


cdef inline RowSum long_row(
    const storage *x, real *scratch, Py_ssize_t n, Py_ssize_t skip
) noexcept nogil:
    """Sum of a row of any length, read once: running exponent, sums rescaled by powers of two."""
    cdef RowSum row
    cdef Py_ssize_t i, m
    cdef real top, best = <real>(-INFINITY), shift = 0, exponent = 0, k
    cdef real *block
    cdef Sum part
    cdef double down
    row.rest = Sum(0, 0)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        if (storage is float and real is float) or (storage is double and real is double):
            if shift == 0:
                block = <real *>x + i
            else:
                load(scratch, x + i, m, shift)
                block = scratch
        else:
            load(scratch, x + i, m, shift)
            block = scratch
        top = block_max(block, m)
        if top > best:
            if not -exp_limit(top) <= top <= exp_limit(top):
                if not top < <real>INFINITY:
                    break
                # The exact maximum has to be known before anything is summed: start again.
                best = top + shift
                while i < n:
                    m = min(n - i, <Py_ssize_t>BLOCK)
                    load(scratch, x + i, m, <real>0)
                    top = block_max(scratch, m)
                    best = top if top > best else best
                    i += m
                if not best < <real>INFINITY:
                    break
                shift = best
                best = <real>(-INFINITY)
                row.rest = Sum(0, 0)
                i = 0
                continue
            k = exponent_of(top)
            if best == <real>(-INFINITY):
                exponent = k
            elif k > exponent:
                down = power_of_two(exponent - k)
                row.rest.high *= down
                row.rest.low *= down
                exponent = k
            best = top
        # An all -inf block before the first number, or one too far below, adds exact zeros.
        part = block_exp(
            block, scratch, m, skip - i, exp_magic(exponent), exp_low(exponent), False
        )
        row.rest = add(row.rest, part)
        i += m
    if i < n or best == <real>(-INFINITY):
        row.rest = Sum(NAN, 0)
    row.exponent = exponent
    row.shift = shift
    return row


cdef inline RowSum short_row(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, bint keep
) noexcept nogil:
    """Sum of a row of at most SCRATCH classes, its exponentials kept in e[:n] if asked for."""
    cdef RowSum row
    cdef const real *block
    cdef real top, exponent
    row.shift = 0
    if (storage is float and real is float) or (storage is double and real is double):
        block = x
    else:
        load(e, x, n, <real>0)
        block = e
    top = block_max(block, n)
    if not -exp_limit(top) <= top <= exp_limit(top):
        if not -<real>INFINITY < top < <real>INFINITY:
            row.rest = Sum(NAN, 0)
            row.exponent = 0
            return row
        load(e, x, n, top)
        block = e
        row.shift = top
        top = 0
    exponent = exponent_of(top)
    row.exponent = exponent
    row.rest = block_exp(block, e, n, skip, exp_magic(exponent), exp_low(exponent), keep)
    return row


cdef inline void scale_block(real *e, Py_ssize_t n, double by) noexcept nogil:
    """e[:n] *= by, once rounded, also where `by` is no normal number of the type."""
    cdef Py_ssize_t i
    cdef real factor = <real>by
    cdef double tiny = 1.1754943508222875e-38
    if real is float:
        if not (by >= tiny or by <= -tiny):
            for i in range(n):
                e[i] = <real>(e[i] * by)
            return
    for i in range(n):
        e[i] = e[i] * factor


cdef inline void rows_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *e,
) noexcept nogil:
    """Rows start to stop; e: scratch of SCRATCH elements."""
    cdef Tally tally
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t group = min(max(SCRATCH // classes, 1), LANES)
    cdef Py_ssize_t first, n, g, i, m
    cdef bint short = classes <= SCRATCH
    cdef bint want_gradient = grad != NULL
    cdef RowSum row
    cdef double rest[64]
    cdef double exponent[64]
    cdef double own[64]
    cdef double loss[64]
    cdef double total[64]
    cdef double factor[64]
    cdef double by
    cdef Py_ssize_t target[64]
    cdef real target_gradient, k
    clear(&tally)
    first = start
    while first < stop:
        n = min(stop - first, group)
        for g in range(n):
            target[g] = class_of(job, first + g)
            if target[g] < 0:
                rest[g] = exponent[g] = own[g] = factor[g] = 0
                continue
            if short:
                row = short_row(
                    x + (first + g) * classes, e + g * classes, classes, target[g], want_gradient
                )
            else:
                row = long_row(x + (first + g) * classes, e, classes, target[g])
            rest[g] = row.rest.high + row.rest.low
            exponent[g] = row.exponent
            factor[g] = factor_of(job, first + g, target[g])
            # The difference of two doubles: exact for float, and where it matters for double.
            own[g] = value_at(x + (first + g) * classes, target[g], <double>0) - row.shift
        finish(<real>0, n, &rest[0], &exponent[0], &own[0], &loss[0], &total[0])
        for g in range(n):
            loss[g] = weighted(factor[g], loss[g]) if target[g] >= 0 else 0.0
        count(&tally, &loss[0], n)
        if losses != NULL:
            for g in range(n):
                losses[first + g] = <real>loss[g]
        if want_gradient:
            for g in range(n):
                if target[g] < 0:
                    if short:
                        for i in range(classes):
                            e[g * classes + i] = 0
                    else:
                        clear_row(grad + (first + g) * classes, e, classes, job.streaming)
                    continue
                by = job.scale * factor[g] / total[g]
                target_gradient = <real>(-rest[g] * (job.scale * factor[g]) / total[g])
                if short:
                    scale_block(e + g * classes, classes, by)
                    e[g * classes + target[g]] = target_gradient
                else:
                    # Recomputed: its exponentials did not fit into the cache.
                    i = 0
                    k = <real>exponent[g]
                    while i < classes:
                        m = min(classes - i, <Py_ssize_t>BLOCK)
                        load(e, x + (first + g) * classes + i, m, <real>row.shift)
                        block_exp(e, e, m, -1, exp_magic(k), exp_low(k), True)
                        scale_block(e, m, by)
                        if i <= target[g] < i + m:
                            e[target[g] - i] = target_gradient
                        emit(grad + (first + g) * classes + i, e, m, job.streaming)
                        i += m
            if short:
                emit(grad + first * classes, e, n * classes, job.streaming)
        first += n
    result[0] = folded(&tally)


cdef inline void clear_row(storage *grad, real *e, Py_ssize_t n, bint streaming) noexcept nogil:
    cdef Py_ssize_t i, m
    for i in range(min(n, <Py_ssize_t>BLOCK)):
        e[i] = 0
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        emit(grad + i, e, m, streaming)
        i += m


# ---- b) tiles --------------------------------------------------------------------------------
#
# LANES samples whose logits lie class-major: class c of the tile's samples at x + c * stride. Up
# to TILE classes are held at a time. A tile that fits is read once; of a larger one the running
# maximum is found first, then sums, then gradients, block of classes by block of classes.

cdef enum:
    TILE = 128           # SCRATCH // LANES


cdef inline void turn(
    real *to, const storage *x, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m, const real *shift,
) noexcept nogil:
    """Classes from_class to from_class + m of n samples, class-major; lanes from n on hold 0."""
    cdef Py_ssize_t lane, c, i, run, base
    cdef Py_ssize_t inner = job.inner
    if n < LANES:
        for i in range(m * LANES):
            to[i] = 0
    if inner == 1:
        x = x + first * job.classes + from_class
        if n == LANES:
            for c in range(m):
                for lane in range(LANES):
                    to[c * LANES + lane] = value_at(x, lane * job.classes + c, <real>0)
        else:
            for lane in range(n):
                for c in range(m):
                    to[c * LANES + lane] = value_at(x, lane * job.classes + c, <real>0)
    else:
        lane = 0
        while lane < n:
            # Samples of one outer position lie side by side.
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * job.classes + from_class) * inner + i
            for c in range(m):
                load(to + c * LANES + lane, x + base + c * inner, run, <real>0)
            lane += run
    if shift != NULL:
        for c in range(m):
            for lane in range(LANES):
                to[c * LANES + lane] = to[c * LANES + lane] - shift[lane]


cdef inline void turn_back(
    storage *grad, const real *g, real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m,
) noexcept nogil:
    """Write a class-major block of gradients to where its samples lie; stage: m * LANES elements."""
    cdef Py_ssize_t lane, c, i, run, base
    cdef Py_ssize_t inner = job.inner
    if inner == 1:
        for lane in range(n):
            for c in range(m):
                stage[lane * m + c] = g[c * LANES + lane]
        if m == job.classes:
            emit(grad + first * m, stage, n * m, job.streaming)
        else:
            for lane in range(n):
                emit(grad + (first + lane) * job.classes + from_class, stage + lane * m, m, False)
    else:
        lane = 0
        while lane < n:
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * job.classes + from_class) * inner + i
            for c in range(m):
                emit(grad + base + c * inner, g + c * LANES + lane, run, False)
            lane += run


cdef inline void tile_max(const real *x, Py_ssize_t stride, Py_ssize_t m, real *top) noexcept nogil:
    """top[lane] = max(top[lane], x[..., lane]) over m classes; NaNs are passed over."""
    cdef real best[64]
    cdef Py_ssize_t c, lane
    for lane in range(64):
        best[lane] = top[lane]
    for c in range(m):
        for lane in range(64):
            best[lane] = x[lane] if x[lane] > best[lane] else best[lane]
        x = x + stride
    for lane in range(64):
        top[lane] = best[lane]


cdef inline void tile_exp(
    const real *x, Py_ssize_t stride, real *e, Py_ssize_t m,
    const int32_t *skip, const real *magic, const real *low_x, double *high, double *low, bint keep
) noexcept nogil:
    """Exponentials of m classes, added to the lanes' sums but for the class skip[lane]."""
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real a[64]
    cdef real four[64]
    cdef double t, z
    for lane in range(64):
        four[lane] = 0
    for c in range(m):
        for lane in range(64):
            a[lane] = exp_scaled(x[lane], magic[lane], low_x[lane])
        if keep:
            for lane in range(64):
                e[c * 64 + lane] = a[lane]
        for lane in range(64):
            four[lane] = four[lane] + (<real>0 if skip[lane] == c else a[lane])
        if c & 3 == 3 or c == m - 1:
            for lane in range(64):
                if real is float:
                    high[lane] = high[lane] + <double>four[lane]
                else:
                    t = high[lane] + four[lane]
                    z = t - high[lane]
                    low[lane] = low[lane] + ((high[lane] - (t - z)) + (four[lane] - z))
                    high[lane] = t
                four[lane] = 0
        x = x + stride


cdef inline void tile_gradient(
    real *e, Py_ssize_t m, const int32_t *skip, const int32_t *used,
    const double *scale, const real *own, bint wide,
) noexcept nogil:
    """Exponentials to gradients, in place: own[lane] at the target, exactly 0 where unused.

    `wide`: a scale is no normal float, and is to be multiplied in double.
    """
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real g
    cdef real by[64]
    for lane in range(64):
        by[lane] = <real>scale[lane]
    if wide:
        for c in range(m):
            for lane in range(64):
                g = own[lane] if skip[lane] == c else <real>(e[lane] * scale[lane])
                e[lane] = g if used[lane] else <real>0
            e = e + 64
        return
    for c in range(m):
        for lane in range(64):
            g = own[lane] if skip[lane] == c else e[lane] * by[lane]
            e[lane] = g if used[lane] else <real>0
        e = e + 64


cdef inline void tiles_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *e, real *stage,
) noexcept nogil:
    """Samples start to stop; e and stage: scratch of SCRATCH elements each."""
    cdef Tally tally
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t inner = job.inner
    cdef Py_ssize_t first, n, lane, c, m, stride
    cdef bint whole = classes <= TILE
    cdef bint in_place, shifted, wide
    cdef double scales[64]
    cdef const real *block
    cdef real top[64]
    cdef real shift[64]
    cdef real magic[64]
    cdef real low_x[64]
    cdef real own_gradient[64]
    cdef Py_ssize_t target[64]
    cdef int32_t skip[64]
    cdef int32_t used[64]
    cdef double high[64]
    cdef double low[64]
    cdef double rest[64]
    cdef double exponent[64]
    cdef double own[64]
    cdef double loss[64]
    cdef double total[64]
    cdef double factor[64]
    clear(&tally)
    for first in range(start, stop, 64):
        n = min(stop - first, <Py_ssize_t>LANES)
        in_place = (
            ((storage is float and real is float) or (storage is double and real is double))
            and n == LANES and inner > 1 and first % inner + n <= inner
        )
        stride = inner if in_place else LANES
        # 1. Maximum of each lane.
        for lane in range(64):
            top[lane] = <real>(-INFINITY)
            shift[lane] = 0
        for c in range(0, classes, 128):
            m = min(classes - c, <Py_ssize_t>TILE)
            block = tile_block(x, e, job, first, n, c, m, in_place, <const real *>NULL)
            tile_max(block, stride, m, &top[0])
        shifted = False
        for lane in range(n):
            if not -exp_limit(top[0]) <= top[lane] <= exp_limit(top[0]):
                shift[lane] = top[lane]
                shifted = True
        if shifted:
            for lane in range(n):
                if shift[lane] != 0:
                    top[lane] = 0
                if not -<real>INFINITY < shift[lane] < <real>INFINITY:
                    shift[lane] = NAN
        for lane in range(64):
            top[lane] = exponent_of(top[lane]) if lane < n else <real>0
            exponent[lane] = top[lane]
            magic[lane] = exp_magic(top[lane])
            low_x[lane] = exp_low(top[lane])
        # 2. Targets.
        for lane in range(64):
            target[lane] = class_of(job, first + lane) if lane < n else -1
            used[lane] = target[lane] >= 0
            factor[lane] = own[lane] = high[lane] = low[lane] = 0
        for lane in range(n):
            if target[lane] >= 0:
                factor[lane] = factor_of(job, first + lane, target[lane])
                own[lane] = value_at(
                    x, ((first + lane) // inner * classes + target[lane]) * inner
                    + (first + lane) % inner, <double>0
                ) - shift[lane]
        # 3. Sums without the target.
        for c in range(0, classes, 128):
            m = min(classes - c, <Py_ssize_t>TILE)
            for lane in range(64):
                skip[lane] = <int32_t>(target[lane] - c) if 0 <= target[lane] - c < m else -1
            if not whole or shifted:
                block = tile_block(
                    x, e, job, first, n, c, m, in_place and not shifted,
                    &shift[0] if shifted else <const real *>NULL,
                )
                stride = inner if in_place and not shifted else LANES
            tile_exp(
                block, stride, e, m, &skip[0], &magic[0], &low_x[0], &high[0], &low[0],
                whole and grad != NULL,
            )
        # 4. Losses.
        for lane in range(64):
            rest[lane] = high[lane] + low[lane]
        finish(<real>0, n, &rest[0], &exponent[0], &own[0], &loss[0], &total[0])
        for lane in range(n):
            loss[lane] = weighted(factor[lane], loss[lane]) if used[lane] else 0.0
        count(&tally, &loss[0], n)
        if losses != NULL:
            for lane in range(n):
                losses[first + lane] = <real>loss[lane]
        if grad == NULL:
            continue
        # 5. Gradients.
        wide = False
        for lane in range(64):
            scales[lane] = own_gradient[lane] = 0
        for lane in range(n):
            scales[lane] = job.scale * factor[lane] / total[lane]
            own_gradient[lane] = <real>(-rest[lane] * (job.scale * factor[lane]) / total[lane])
            if -1.2e-38 < scales[lane] < 1.2e-38 and scales[lane] != 0:
                wide = True
        for c in range(0, classes, 128):
            m = min(classes - c, <Py_ssize_t>TILE)
            if not whole:
                for lane in range(64):
                    skip[lane] = <int32_t>(target[lane] - c) if 0 <= target[lane] - c < m else -1
                block = tile_block(
                    x, e, job, first, n, c, m, in_place and not shifted,
                    &shift[0] if shifted else <const real *>NULL,
                )
                tile_exp(
                    block, stride, e, m, &skip[0], &magic[0], &low_x[0], &high[0], &low[0], True
                )
            tile_gradient(e, m, &skip[0], &used[0], &scales[0], &own_gradient[0], wide)
            turn_back(grad, e, stage, job, first, n, c, m)
    result[0] = folded(&tally)


cdef inline const real *tile_block(
    const storage *x, real *e, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t c, Py_ssize_t m, bint in_place, const real *shift,
) noexcept nogil:
    """Classes c to c + m of a tile: where they lie if they can be read there, else turned to e."""
    if (storage is float and real is float) or (storage is double and real is double):
        if in_place:
            return x + (first // job.inner * job.classes + c) * job.inner + first % job.inner
    turn(e, x, job, first, n, c, m, shift)
    return e


# ---- c) negative log-likelihood --------------------------------------------------------------

cdef inline void nll_item(
    const storage *x, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real unused,
) noexcept nogil:
    cdef Tally tally
    cdef Py_ssize_t first, i, n, t
    cdef double loss[64]
    clear(&tally)
    for first in range(start, stop, 64):
        n = min(stop - first, <Py_ssize_t>LANES)
        for i in range(n):
            t = class_of(job, first + i)
            loss[i] = 0
            if t >= 0:
                loss[i] = -factor_of(job, first + i, t) * value_at(
                    x, offset_of(job, first + i, t), <double>0
                )
            if losses != NULL:
                losses[first + i] = <real>loss[i]
        count(&tally, &loss[0], n)
    result[0] = folded(&tally)


cdef inline void nll_gradient(
    storage *grad, const Job *job, Py_ssize_t start, Py_ssize_t stop, real unused
) noexcept nogil:
    """The targets' gradients, over zeros."""
    cdef Py_ssize_t sample, t
    cdef real g
    for sample in range(start, stop):
        t = class_of(job, sample)
        if t >= 0:
            g = <real>(-factor_of(job, sample, t) * job.scale)
            emit(grad + offset_of(job, sample, t), &g, 1, False)


# ---- d) what Python calls --------------------------------------------------------------------

cdef inline void item(
    const storage *x, storage *grad, float *losses32, double *losses64, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result,
) noexcept nogil:
    cdef float e[8192]
    cdef float stage[8192]
    cdef double e64[8192]
    cdef double stage64[8192]
    if storage is double:
        if job.inner == 1 and job.classes > FIRST_TILE:
            rows_item(x, grad, losses64, job, start, stop, result, &e64[0])
        else:
            tiles_item(x, grad, losses64, job, start, stop, result, &e64[0], &stage64[0])
    else:
        if job.inner == 1 and job.classes > FIRST_TILE:
            rows_item(x, grad, losses32, job, start, stop, result, &e[0])
        else:
            tiles_item(x, grad, losses32, job, start, stop, result, &e[0], &stage[0])
    if job.streaming:
        stream_end()


cdef void work(
    const storage *x, storage *grad, float *losses32, double *losses64, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, bint log_probs,
) noexcept nogil:
    if not log_probs:
        item(x, grad, losses32, losses64, job, start, stop, result)
    elif storage is double:
        nll_item(x, losses64, job, start, stop, result, <double>0)
    else:
        nll_item(x, losses32, job, start, stop, result, <float>0)


def cross_entropy(
    const storage[:, :, ::1] logits,     # IN   (outer, C, inner)
    const int64_t[:, ::1] target,        # IN   (outer, inner)
    const double[::1] weight,            # IN   (C,) or None
    const double[:, ::1] factor,         # IN   (outer, inner) or None: multiplies each loss
    int64_t ignore_index,
    double scale,                        # IN   upstream gradient, one for all samples
    bint mean,                           # IN   whether to divide by the sum of the weights
    float[:, ::1] losses32,              # OUT  (outer, inner) or None
    double[:, ::1] losses64,             # OUT  the same for double logits, or None
    storage[:, :, ::1] grad,             # OUT  (outer, C, inner) or None; may be the logits
    int threads,
    bint streaming,
    bint log_probs,                      # IN   whether the logits are log-probabilities (NLL)
):
    """Return (position of a bad target or -1, sum of the losses, sum of the weights)."""
    cdef Job job
    cdef Check checked
    cdef Sum partial[4096]
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t size, items, i
    cdef const storage *x = NULL
    cdef storage *g = NULL
    cdef float *out32 = NULL
    cdef double *out64 = NULL
    job.samples = target.shape[0] * target.shape[1]
    job.classes = logits.shape[1]
    job.inner = logits.shape[2]
    if job.samples == 0:
        return -1, 0.0, 0.0
    job.target = &target[0, 0]
    job.weight = &weight[0] if weight is not None else NULL
    job.factor = &factor[0, 0] if factor is not None else NULL
    job.ignore_index = ignore_index
    job.streaming = streaming
    if losses32 is not None:
        out32 = &losses32[0, 0]
    if losses64 is not None:
        out64 = &losses64[0, 0]
    with nogil:
        checked = check(&job)
        if checked.bad < 0 and job.classes > 0:
            x = &logits[0, 0, 0]
            if grad is not None:
                g = &grad[0, 0, 0]
            if mean:
                scale = scale / checked.weights if checked.weights != 0 else 0
            job.scale = scale
            size = item_size(&job)
            items = (job.samples + size - 1) // size
            if threads > 1 and items > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    work(
                        x, g, out32, out64, &job, i * size, min(job.samples, (i + 1) * size),
                        &partial[i], log_probs,
                    )
            else:
                for i in range(items):
                    work(
                        x, g, out32, out64, &job, i * size, min(job.samples, (i + 1) * size),
                        &partial[i], log_probs,
                    )
            for i in range(items):
                total = add(total, partial[i])
            if log_probs and g != NULL:
                # Losses first: the gradient may be written over the log-probabilities.
                memset(g, 0, job.samples * job.classes * sizeof(storage))
                if storage is double:
                    nll_gradient(g, &job, 0, job.samples, <double>0)
                else:
                    nll_gradient(g, &job, 0, job.samples, <float>0)
    return checked.bad, value_of(total), checked.weights
