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
    LANES, SCRATCH, Ending, Sum, Tally, add, block_exp, block_max, clear, count, finish, folded, value_of,
)
from .samples cimport Check, Job, check, class_of, factor_of, item_size, offset_of, weighted
from .storage cimport bfloat16, emit, float16, load, storage, stream_end, transpose, value_at
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, mul_add, power_of_two, real,
)

cdef enum:
    BLOCK = 4096         # classes of a long row that are worked on at a time
    FIRST_TILE = 64      # most classes for which a row is turned into a tile


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
    cdef const real *block
    cdef Py_ssize_t ahead
    cdef Sum part
    cdef double down
    row.rest = Sum(0, 0)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        ahead = 0
        if (storage is float and real is float) or (storage is double and real is double):
            if shift == 0:
                block = x + i
                ahead = BLOCK if i + 2 * BLOCK <= n else 0
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
                # In two steps: the power of two alone may underflow where the sum does not.
                down = power_of_two((exponent - k) // 2)
                row.rest.high *= down
                row.rest.low *= down
                down = power_of_two((exponent - k) - (exponent - k) // 2)
                row.rest.high *= down
                row.rest.low *= down
                exponent = k
            best = top
        # An all -inf block before the first number, or one too far below, adds exact zeros.
        part = block_exp(
            block, scratch, m, skip - i, exp_magic(exponent), exp_low(exponent), False, ahead
        )
        row.rest = add(row.rest, part)
        i += m
    if i < n or best == <real>(-INFINITY):
        row.rest = Sum(NAN, 0)
    row.exponent = exponent
    row.shift = shift
    return row


cdef inline RowSum short_row(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, bint keep, bint last
) noexcept nogil:
    """Sum of a row of at most SCRATCH classes, its exponentials kept in e[:n] if asked for."""
    cdef RowSum row
    cdef const real *block
    cdef real top, exponent
    # The next row is fetched while this one is worked on.
    cdef Py_ssize_t ahead = 0 if last else n
    row.shift = 0
    if (storage is float and real is float) or (storage is double and real is double):
        block = x
    else:
        load(e, x, n, <real>0)
        block = e
        ahead = 0
    top = block_max(block, n)
    if not -exp_limit(top) <= top <= exp_limit(top):
        if not -<real>INFINITY < top < <real>INFINITY:
            row.rest = Sum(NAN, 0)
            row.exponent = 0
            return row
        load(e, x, n, top)
        block = e
        ahead = 0
        row.shift = top
        top = 0
    exponent = exponent_of(top)
    row.exponent = exponent
    row.rest = block_exp(block, e, n, skip, exp_magic(exponent), exp_low(exponent), keep, ahead)
    return row


cdef inline void scale_block(real *e, Py_ssize_t n, double by, double by_low) noexcept nogil:
    """e[:n] *= by + by_low, rounded once, also where that is no normal number of the type."""
    cdef Py_ssize_t i
    cdef real factor = <real>by, correction = <real>by_low
    cdef double tiny = 1.1754943508222875e-38
    if real is float:
        if not (by >= tiny or by <= -tiny):
            for i in range(n):
                e[i] = <real>(e[i] * by)
            return
    for i in range(n):
        e[i] = mul_add(e[i], factor, e[i] * correction)


cdef inline void rows_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *e,
) noexcept nogil:
    """Rows start to stop; e: scratch of SCRATCH elements."""
    cdef Tally tally
    cdef Ending end
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t group = min(max(SCRATCH // classes, 1), LANES)
    cdef Py_ssize_t first, n, g, i, m
    cdef bint short = classes <= SCRATCH
    cdef bint want_gradient = grad != NULL
    cdef RowSum row
    cdef double factor[64]
    cdef Py_ssize_t target[64]
    cdef real k
    clear(&tally)
    first = start
    while first < stop:
        n = min(stop - first, group)
        for g in range(n):
            target[g] = class_of(job, first + g)
            if target[g] < 0:
                end.rest[g] = end.rest_low[g] = end.exponent[g] = end.own_x[g] = factor[g] = 0
                continue
            if short:
                row = short_row(
                    x + (first + g) * classes, e + g * classes, classes, target[g],
                    want_gradient, first + g + 1 >= stop,
                )
            else:
                row = long_row(x + (first + g) * classes, e, classes, target[g])
            end.rest[g] = row.rest.high + row.rest.low
            end.rest_low[g] = row.rest.low - (end.rest[g] - row.rest.high)
            end.exponent[g] = row.exponent
            factor[g] = factor_of(job, first + g, target[g])
            # The difference of two doubles: exact for float, and where it matters for double.
            end.own_x[g] = value_at(x + (first + g) * classes, target[g], <double>0) - row.shift
        for g in range(n):
            end.factor[g] = job.scale * factor[g]
        finish(<real>0, &end, n)
        for g in range(n):
            end.loss[g] = weighted(factor[g], end.loss[g]) if target[g] >= 0 else 0.0
        count(&tally, &end.loss[0], n)
        if losses != NULL:
            for g in range(n):
                losses[first + g] = <real>end.loss[g]
        if want_gradient:
            for g in range(n):
                if target[g] < 0:
                    if short:
                        for i in range(classes):
                            e[g * classes + i] = 0
                    else:
                        clear_row(grad + (first + g) * classes, e, classes, job.streaming)
                    continue
                if short:
                    scale_block(e + g * classes, classes, end.scale[g], end.scale_low[g])
                    e[g * classes + target[g]] = <real>end.own_gradient[g]
                else:
                    # Recomputed: its exponentials did not fit into the cache.
                    i = 0
                    k = <real>end.exponent[g]
                    while i < classes:
                        m = min(classes - i, <Py_ssize_t>BLOCK)
                        load(e, x + (first + g) * classes + i, m, <real>row.shift)
                        block_exp(e, e, m, -1, exp_magic(k), exp_low(k), True, 0)
                        scale_block(e, m, end.scale[g], end.scale_low[g])
                        if i <= target[g] < i + m:
                            e[target[g] - i] = <real>end.own_gradient[g]
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
# Samples are turned into a scratch block, class-major: class c of sample i at xs[c * width + i].
# Samples of one outer position lie side by side in memory, so that turning them is copying; it is
# done all the same, since class planes a power of two apart share the sets of a cache. The block
# is then worked on LANES samples at a time: a tile.
#
# Up to TILE classes are held. If that is all of them, they are read once. If not, the maxima are
# found first, then sums, then gradients, block of classes by block of classes.

cdef enum:
    TILE = 128           # SCRATCH // LANES


cdef inline Py_ssize_t width_of(Py_ssize_t classes) noexcept nogil:
    """Samples of a block: LANES times an odd number, against conflicts in the cache."""
    cdef Py_ssize_t tiles = min(max(SCRATCH // (LANES * max(classes, 1)), 1), 7)
    return LANES * (tiles if tiles & 1 else tiles - 1)


cdef inline void turn(
    real *to, const storage *x, real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Classes from_class to from_class + m of n samples, class-major.

    Where a last tile is not full, its other lanes hold 0. stage: scratch of SCRATCH elements.
    """
    cdef Py_ssize_t lane, c, i, run, base
    cdef Py_ssize_t inner = job.inner
    if n % LANES != 0:
        for c in range(m):
            for lane in range(n, (n + LANES - 1) // LANES * LANES):
                to[c * width + lane] = 0
    if inner == 1:
        # All classes are held: a tile with inner == 1 has at most FIRST_TILE of them.
        if (storage is float and real is float) or (storage is double and real is double):
            transpose(to, width, x + first * m, m, n, m)
        else:
            load(stage, x + first * m, n * m, <real>0)
            transpose(to, width, stage, m, n, m)
    else:
        lane = 0
        while lane < n:
            # Samples of one outer position lie side by side.
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * job.classes + from_class) * inner + i
            for c in range(m):
                load(to + c * width + lane, x + base + c * inner, run, <real>0)
            lane += run


cdef inline void turn_back(
    storage *grad, const real *g, real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Write a class-major block to where its samples lie; stage: scratch of SCRATCH elements."""
    cdef Py_ssize_t lane, c, i, run, base
    cdef Py_ssize_t inner = job.inner
    if inner == 1:
        transpose(stage, m, g, width, m, n)
        emit(grad + first * m, stage, n * m, job.streaming)
    else:
        lane = 0
        while lane < n:
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * job.classes + from_class) * inner + i
            for c in range(m):
                emit(
                    grad + base + c * inner, g + c * width + lane, run,
                    job.streaming and run >= 256,
                )
            lane += run


cdef inline void shift_tile(
    real *xs, Py_ssize_t m, Py_ssize_t width, const real *shift
) noexcept nogil:
    cdef Py_ssize_t c, lane
    for c in range(m):
        for lane in range(64):
            xs[lane] = xs[lane] - shift[lane]
        xs = xs + width


cdef inline void tile_max(
    const real *xs, Py_ssize_t m, Py_ssize_t width, real *top
) noexcept nogil:
    """top[lane] = max(top[lane], xs[..., lane]) over m classes; NaNs are passed over."""
    cdef real best[64]
    cdef Py_ssize_t c, lane
    for lane in range(64):
        best[lane] = top[lane]
    for c in range(m):
        for lane in range(64):
            best[lane] = xs[lane] if xs[lane] > best[lane] else best[lane]
        xs = xs + width
    for lane in range(64):
        top[lane] = best[lane]


cdef inline void tile_exp(
    real *xs, Py_ssize_t m, Py_ssize_t width, const int32_t *skip, const real *magic,
    const real *low_x, double *high, double *low, bint keep
) noexcept nogil:
    """Exponentials of m classes, added to the lanes' sums but for the class skip[lane].

    With `keep` they take the logits' place.
    """
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real a[64]
    cdef real four[64]
    cdef double t, z
    for lane in range(64):
        four[lane] = 0
    for c in range(m):
        for lane in range(64):
            a[lane] = exp_scaled(xs[lane], magic[lane], low_x[lane])
        if keep:
            for lane in range(64):
                xs[lane] = a[lane]
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
        xs = xs + width


cdef struct Tile:
    int64_t target[64]       # -1 where there is none
    int32_t used[64]         # whether there is one
    int32_t skip[64]         # target within the block of classes, or -1
    double factor[64]
    double high[64]          # sums of the exponentials without the target's
    double low[64]


cdef inline void tile_gradient(
    real *e, Py_ssize_t m, Py_ssize_t width, const Tile *tile, const Ending *end
) noexcept nogil:
    """Exponentials to gradients, in place: exactly 0 for a sample that does not count."""
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real g
    cdef real by[64]
    cdef real correction[64]
    cdef real own[64]
    cdef bint wide = False
    for lane in range(64):
        by[lane] = <real>end.scale[lane]
        correction[lane] = <real>end.scale_low[lane]
        own[lane] = <real>end.own_gradient[lane]
        # Whether some scale is no normal float, and is to be multiplied in double.
        wide |= (
            (end.scale[lane] < 1.2e-38) & (end.scale[lane] > -1.2e-38) & (end.scale[lane] != 0)
        )
    if wide:
        for c in range(m):
            for lane in range(64):
                g = own[lane] if tile.skip[lane] == c else <real>(e[lane] * end.scale[lane])
                e[lane] = g if tile.used[lane] else <real>0
            e = e + width
        return
    for c in range(m):
        for lane in range(64):
            g = mul_add(e[lane], by[lane], e[lane] * correction[lane])
            g = own[lane] if tile.skip[lane] == c else g
            e[lane] = g if tile.used[lane] else <real>0
        e = e + width


cdef inline void fit_block(
    Tile *tile, Ending *end, const real *xs, Py_ssize_t c, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Look for the targets among classes c to c + m, which are in xs."""
    cdef Py_ssize_t lane
    for lane in range(64):
        tile.skip[lane] = -1
        if (tile.target[lane] >= c) & (tile.target[lane] < c + m):
            tile.skip[lane] = <int32_t>(tile.target[lane] - c)
    for lane in range(64):
        if tile.skip[lane] >= 0:
            end.own_x[lane] = xs[tile.skip[lane] * width + lane]


cdef inline bint fix_range(real *top, real *shift) noexcept nogil:
    """Turn maxima into exponents; those out of range become shifts. Returns whether there are."""
    cdef Py_ssize_t lane
    cdef bint shifted = False
    for lane in range(64):
        shifted |= not ((top[lane] <= exp_limit(top[0])) & (top[lane] >= -exp_limit(top[0])))
    if shifted:
        for lane in range(64):
            shift[lane] = 0
            if not -exp_limit(top[0]) <= top[lane] <= exp_limit(top[0]):
                shift[lane] = (
                    top[lane] if -<real>INFINITY < top[lane] < <real>INFINITY else <real>NAN
                )
                top[lane] = 0
    for lane in range(64):
        top[lane] = exponent_of(top[lane])
    return shifted


cdef inline void tiles_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *xs, real *stage,
) noexcept nogil:
    """Samples start to stop; xs and stage: scratch of SCRATCH elements each."""
    cdef Tally tally
    cdef Tile tile
    cdef Ending end
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t width = width_of(classes)
    cdef Py_ssize_t first, n, lane, c, m, at, filled
    cdef bint whole = classes <= TILE
    cdef bint shifted
    cdef real top[64]
    cdef real shift[64]
    cdef real magic[64]
    cdef real low_x[64]
    clear(&tally)
    first = start
    while first < stop:
        n = min(stop - first, width)
        if whole:
            turn(xs, x, stage, job, first, n, 0, classes, width)
        for at in range(0, n, 64):
            filled = min(n - at, <Py_ssize_t>LANES)
            # 1. Targets.
            targets_of(job, first + at, filled, &tile)
            # 2. Maximum of each lane.
            for lane in range(64):
                top[lane] = <real>(-INFINITY) if lane < filled else <real>0
            for c in range(0, classes, 128):
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, job, first, n, c, m, width)
                tile_max(xs + at, m, width, &top[0])
            shifted = fix_range(&top[0], &shift[0])
            if shifted and whole:
                shift_tile(xs + at, classes, width, &shift[0])
            for lane in range(64):
                end.exponent[lane] = top[lane]
                end.own_x[lane] = 0
                end.factor[lane] = job.scale * tile.factor[lane]
                magic[lane] = exp_magic(top[lane])
                low_x[lane] = exp_low(top[lane])
                tile.high[lane] = tile.low[lane] = 0
            # 3. Sums without the target.
            for c in range(0, classes, 128):
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, job, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                fit_block(&tile, &end, xs + at, c, m, width)
                tile_exp(
                    xs + at, m, width, &tile.skip[0], &magic[0], &low_x[0], &tile.high[0],
                    &tile.low[0], whole and grad != NULL,
                )
            # 4. Losses.
            for lane in range(64):
                end.rest[lane] = tile.high[lane] + tile.low[lane]
                end.rest_low[lane] = tile.low[lane] - (end.rest[lane] - tile.high[lane])
            finish(<real>0, &end, LANES)
            for lane in range(64):
                end.loss[lane] = (
                    weighted(tile.factor[lane], end.loss[lane]) if tile.used[lane] else 0.0
                )
            count(&tally, &end.loss[0], LANES)
            if losses != NULL:
                for lane in range(filled):
                    losses[first + at + lane] = <real>end.loss[lane]
            if grad == NULL:
                continue
            # 5. Gradients.
            for c in range(0, classes, 128):
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, job, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                    fit_block(&tile, &end, xs, c, m, width)
                    tile_exp(
                        xs, m, width, &tile.skip[0], &magic[0], &low_x[0], &tile.high[0],
                        &tile.low[0], True,
                    )
                tile_gradient(xs + at, m, width, &tile, &end)
                if not whole:
                    turn_back(grad, xs, stage, job, first, n, c, m, width)
        if whole and grad != NULL:
            turn_back(grad, xs, stage, job, first, n, 0, classes, width)
        first += n
    result[0] = folded(&tally)


cdef inline void targets_of(
    const Job *job, Py_ssize_t first, Py_ssize_t n, Tile *tile
) noexcept nogil:
    """Targets and factors of n samples; lanes from n on have none."""
    cdef Py_ssize_t lane
    cdef int64_t t, ignored = job.ignore_index, classes = job.classes
    for lane in range(n, 64):
        tile.target[lane] = -1
    for lane in range(n):
        t = job.target[first + lane]
        tile.target[lane] = t if (t != ignored) & (t >= 0) & (t < classes) else -1
    for lane in range(64):
        tile.used[lane] = tile.target[lane] >= 0
        tile.factor[lane] = tile.used[lane]
    if job.weight != NULL or job.factor != NULL:
        for lane in range(n):
            if tile.used[lane]:
                tile.factor[lane] = factor_of(job, first + lane, tile.target[lane])


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
                loss[i] = weighted(
                    factor_of(job, first + i, t),
                    -value_at(x, offset_of(job, first + i, t), <double>0),
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
