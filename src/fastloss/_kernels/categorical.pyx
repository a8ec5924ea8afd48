# Cross-entropy with class indices, and negative log-likelihood: loss and gradient in one pass.
#
# Arrays arrive as (outer, C, inner): a sample is one (outer, inner) position, numbered
# sample = o * inner + i. Two ways through memory, chosen by shape alone:
#
#   a) rows   inner == 1 and C > LANES: lanes run over the classes of a row
#   b) tiles  otherwise: lanes run over LANES samples, class after class, in a scratch block that
#             the samples are turned into (see tiles.pxd)
#
# Samples are dealt out as items of a size that depends on the shape alone; an item's losses are
# summed by itself and the items' sums added in order, so that the number of threads changes no bit.
#
# c) is the negative log-likelihood, d) what Python calls. Nothing here raises: a bad target index
# is returned by position, found before anything is written. Indices are checked again where they
# are used.

from cython.parallel cimport prange, threadid
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from .blocks cimport (
    LANES, SCRATCH, Ending, RunningSum, Sum, Tally, add, block_max, chunk_exp, clear, count,
    few_exp, finish, folded, row_sum, sum_begin, sum_end, value_of,
)
from .drain cimport Drain, drain_begin, drain_rest, drain_some, scaled
from .samples cimport (
    OVERLAP, Check, Job, check, class_of, factor_of, item_size, offset_of, out_overlaps, weighted,
)
from .storage cimport emit, load, prefetch_bytes, storage, stream_end, value_at
from .tiles cimport fix_range, shift_tile, tile_max, turn, turn_back
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of, mul_add, power_of_two,
    real,
)

cdef enum:
    BLOCK = 8192         # classes of a long row that are worked on at a time
    GROUP = 4096         # classes of short rows that are worked on at a time
    FIRST_TILE = 64      # most classes for which a row is turned into a tile
    KEPT = 262144        # most classes of a row whose exponentials are kept for the gradient
    # Gradients of more bytes are larger than the caches and written past them.
    STREAM = 16777216


# ---- a) rows ---------------------------------------------------------------------------------
#
# The exponentials of a row are kept until its sum is known. Then they are scaled on the way to
# memory: at once, or where the gradient is larger than the caches, a little at a time between the
# exponentials of the next rows (see drain.pxd). Scratch of a thread, in elements: 2 * BLOCK on the
# stack; where rows are long or are drained, more on the heap (see `heap_size`).

cdef Sum row_exp(
    const real *x, real *e, Py_ssize_t n, Py_ssize_t skip, real exponent, bint keep,
    const storage *ahead, Drain *drain
) noexcept nogil:
    """`block_exp`, and meanwhile `ahead` is fetched and what is in `drain` written.

    A function of its own: inlined, its loop would not keep its registers.
    """
    cdef RunningSum sum
    cdef real magic = exp_magic(exponent), low_x = exp_low(exponent)
    cdef Py_ssize_t i = 0
    cdef int seen = 0
    if n < 64:
        return few_exp(x, e, n, skip, magic, low_x, keep)
    sum_begin(&sum, magic)
    while i < n:
        # Beyond the last row that fetches nothing, and does no harm.
        prefetch_bytes(ahead + i, 64 * sizeof(storage))
        if drain != NULL:
            drain_some(drain, <storage *>NULL, magic)
        if n - i < 64:
            # The last chunk reaches back over what has been summed.
            seen = <int>(64 - (n - i))
            i = n - 64
        chunk_exp(x + i, e + i, seen, skip - i, magic, low_x, keep, &sum)
        i += 64
    return sum_end(&sum, magic)


cdef inline void end_rows(
    const Job *job, Py_ssize_t first, Py_ssize_t n, const Py_ssize_t *target, Ending *end,
    Tally *tally, real *losses
) noexcept nogil:
    """Losses of n <= LANES rows whose sums are in `end`, and their gradients' scales."""
    cdef double factor[64]
    cdef Py_ssize_t g
    for g in range(n):
        factor[g] = target[g] >= 0
    if job.weight != NULL or job.factor != NULL:
        for g in range(n):
            if target[g] >= 0:
                factor[g] = factor_of(job, first + g, target[g])
    for g in range(n):
        end.factor[g] = job.scale * factor[g]
    finish(<real>0, end, n)
    for g in range(n):
        end.loss[g] = weighted(factor[g], end.loss[g])
        end.loss[g] = end.loss[g] if target[g] >= 0 else 0.0
    count(tally, &end.loss[0], n)
    if losses != NULL:
        for g in range(n):
            losses[first + g] = <real>end.loss[g]


cdef inline void set_factor(
    Drain *drain, Py_ssize_t row, real *e, Py_ssize_t n, Py_ssize_t own, bint used,
    const Ending *end
) noexcept nogil:
    """Prepare a row's exponentials e[:n] for being scaled; the target is at `own`, if there."""
    cdef double by = end.scale[row]
    cdef double tiny = 1.1754943508222875e-38
    cdef Py_ssize_t i
    drain.by[row] = by
    drain.by_low[row] = end.scale_low[row]
    if not used:
        for i in range(n):
            e[i] = 0
        drain.by[row] = drain.by_low[row] = 0
        return
    if 0 <= own < n:
        # The gradient at the target is -rest * scale.
        e[own] = <real>-end.rest[row]
    if real is float:
        if not (by >= tiny or by <= -tiny):
            # No normal number of the type: scaled in double.
            for i in range(n):
                e[i] = <real>(e[i] * by)
            drain.by[row] = 1
            drain.by_low[row] = 0


cdef void block_of_exp(
    const real *x, real *e, Py_ssize_t n, real exponent, const storage *ahead, Drain *drain
) noexcept nogil:
    """e[:n] = the scaled exponentials of x[:n]; meanwhile `ahead` is fetched, `drain` written.

    x and e do not overlap.
    """
    cdef real magic = exp_magic(exponent), low_x = exp_low(exponent)
    cdef Py_ssize_t i, j, m, _chunk
    for i in range(0, n, 256):
        m = min(n - i, <Py_ssize_t>256)
        # Beyond the last row that fetches nothing, and does no harm.
        prefetch_bytes(ahead + i, m * sizeof(storage))
        if drain != NULL:
            for _chunk in range(0, m, 64):
                drain_some(drain, <storage *>NULL, magic)
        for j in range(i, i + m):
            e[j] = exp_scaled(x[j], magic, low_x)


cdef inline void sum_rows(
    const storage *x, real *e, real *xs, Py_ssize_t rows, Py_ssize_t n, const Py_ssize_t *target,
    Drain *drain, Ending *end
) noexcept nogil:
    """Sums of rows that lie side by side, each of 64 classes or more, together at most BLOCK.

    Fills in rest, exponent and own_x of `end`; a row with a target below 0 does not count. e: the
    exponentials. xs: scratch of BLOCK elements.

    All rows are tried with the exponent of the largest of their maxima. That will do unless a
    row's own maximum is below it by more than SPARE is there for.
    """
    cdef const real *block
    cdef real top, exponent, least
    cdef Py_ssize_t g
    cdef Sum sum
    if (storage is float and real is float) or (storage is double and real is double):
        block = x
    else:
        load(xs, x, rows * n, <real>0)
        block = xs
    top = block_max(block, rows * n)
    exponent = 0
    least = <real>INFINITY
    if -exp_limit(top) <= top <= exp_limit(top):
        exponent = exponent_of(top)
        # The next rows are fetched while these are worked on.
        block_of_exp(block, e, rows * n, exponent, x + rows * n, drain)
        # 2**(SPARE - 44): 44 bits below the largest maximum, and no term is lost that counts.
        least = 67108864.0 if real is float else 1.9342813113834067e25
    for g in range(rows):
        end.rest[g] = end.rest_low[g] = end.exponent[g] = end.own_x[g] = 0
        if target[g] < 0:
            continue
        sum = row_sum(e + g * n, n, target[g])
        end.exponent[g] = exponent
        end.own_x[g] = value_at(x, g * n + target[g], <double>0)
        if not least <= sum.high + e[g * n + target[g]] < INFINITY:
            sum = sum_row_alone(x + g * n, e + g * n, xs + g * n, n, g, target[g], end)
        end.rest[g] = sum.high + sum.low
        end.rest_low[g] = sum.low - (end.rest[g] - sum.high)


cdef Sum sum_row_alone(
    const storage *x, real *e, real *xs, Py_ssize_t n, Py_ssize_t g, Py_ssize_t target,
    Ending *end
) noexcept nogil:
    """Sum of row g, with an exponent of its own."""
    cdef real top, shift = 0
    load(xs, x, n, <real>0)
    top = block_max(xs, n)
    if not -exp_limit(top) <= top <= exp_limit(top):
        # An infinite maximum makes all of the row NaN.
        shift = top if -<real>INFINITY < top < <real>INFINITY else <real>NAN
        load(xs, x, n, shift)
        top = 0
    end.exponent[g] = exponent_of(top)
    # The difference of two doubles: exact for float, and where it matters for double.
    end.own_x[g] = value_at(x, target, <double>0) - shift
    return row_exp(xs, e, n, target, exponent_of(top), True, x, NULL)


cdef inline void short_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *scratch, real *heap,
) noexcept nogil:
    """Rows start to stop, of at most BLOCK classes each."""
    cdef Tally tally
    cdef Ending end
    cdef Drain drain
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t group = min(max(GROUP // classes, 1), LANES)
    cdef Py_ssize_t first = start, n, g
    cdef Py_ssize_t target[64]
    cdef real *e = scratch
    drain.at = drain.stop = 0
    clear(&tally)
    while first < stop:
        n = min(stop - first, group)
        if heap != NULL:
            # Two blocks in turn: the other one is drained.
            e = heap + BLOCK if e == heap else heap
        for g in range(n):
            target[g] = class_of(job, first + g)
        sum_rows(
            x + first * classes, e, scratch + BLOCK, n, classes, &target[0],
            &drain if heap != NULL else NULL, &end,
        )
        end_rows(job, first, n, &target[0], &end, &tally, losses)
        if grad != NULL:
            drain_rest(&drain, grad, <real>0)
            for g in range(n):
                set_factor(
                    &drain, g, e + g * classes, classes, target[g], target[g] >= 0, &end
                )
            if heap != NULL:
                drain_begin(&drain, grad + first * classes, e, n, classes)
            else:
                for g in range(n):
                    scaled(
                        grad + (first + g) * classes, e + g * classes, classes, drain.by[g],
                        drain.by_low[g],
                    )
        first += n
    drain_rest(&drain, grad, <real>0)
    result[0] = folded(&tally)


cdef struct RowSum:
    Sum rest
    double exponent
    double shift


cdef inline RowSum sum_long_row(
    const storage *x, real *scratch, real *e, Py_ssize_t n, Py_ssize_t skip,
    Drain *drain
) noexcept nogil:
    """Sum of a row of any length, read once: running exponent, sums rescaled by powers of two.

    scratch: 2 * BLOCK elements. With `e`, the exponentials are kept there; n <= KEPT then.
    """
    cdef RowSum row
    cdef Py_ssize_t i, j, m
    cdef real top, best = <real>(-INFINITY), shift = 0, exponent = 0, k
    cdef const real *block
    cdef Sum part
    cdef double down
    cdef real exponents[64]  # of the blocks, of which KEPT has 32
    cdef bint restarted = False
    row.rest = Sum(0, 0)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        if (storage is float and real is float) or (storage is double and real is double):
            if shift == 0:
                block = x + i
            else:
                load(scratch, x + i, m, shift)
                block = scratch
        else:
            load(scratch, x + i, m, shift)
            block = scratch
        top = block_max(block, m)
        if top > best:
            if not restarted and not -exp_limit(top) <= top <= exp_limit(top):
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
                restarted = True
                shift = best
                best = <real>(-INFINITY)
                row.rest = Sum(0, 0)
                i = 0
                continue
            # With the row's maximum subtracted, blocks far below add exact zeros.
            k = exponent_of(top if top > -exp_limit(top) else -exp_limit(top))
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
        if e != NULL:
            exponents[i // BLOCK] = exponent
        # An all -inf block before the first number, or one too far below, adds exact zeros.
        part = row_exp(
            block, e + i if e != NULL else scratch + BLOCK, m, skip - i, exponent, e != NULL,
            x + i + BLOCK, drain,
        )
        row.rest = add(row.rest, part)
        i += m
    if i < n or best == <real>(-INFINITY):
        row.rest = Sum(NAN, 0)
        if e != NULL:
            # The gradient is NaN as well, of what was kept and of what was not.
            for i in range(n):
                e[i] = <real>NAN
    elif e != NULL:
        for i in range(0, n, 8192):
            if exponents[i // BLOCK] != exponent:
                down = power_of_two(exponents[i // BLOCK] - exponent)
                for j in range(i, min(n, i + BLOCK)):
                    e[j] = <real>(e[j] * down)
    row.exponent = exponent
    row.shift = shift
    return row


cdef inline void long_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *scratch, real *heap,
) noexcept nogil:
    """Rows start to stop, of any length."""
    cdef Tally tally
    cdef Ending end
    cdef Drain drain
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t index, i, m, target
    cdef RowSum row
    cdef real *kept = NULL
    cdef bint keep = heap != NULL and classes <= KEPT
    cdef const storage *xs
    cdef storage *g
    drain.at = drain.stop = 0
    clear(&tally)
    for index in range(start, stop):
        xs = x + index * classes
        target = class_of(job, index)
        end.rest[0] = end.rest_low[0] = end.exponent[0] = end.own_x[0] = 0
        if keep:
            # Two rows in turn: the other one is drained.
            kept = heap + classes if kept == heap else heap
        if target >= 0:
            row = sum_long_row(
                xs, scratch, kept, classes, target, &drain if keep else NULL
            )
            end.rest[0] = row.rest.high + row.rest.low
            end.rest_low[0] = row.rest.low - (end.rest[0] - row.rest.high)
            end.exponent[0] = row.exponent
            # The difference of two doubles: exact for float, and where it matters for double.
            end.own_x[0] = value_at(xs, target, <double>0) - row.shift
        end_rows(job, index, 1, &target, &end, &tally, losses)
        if grad == NULL:
            continue
        g = grad + index * classes
        if keep:
            drain_rest(&drain, grad, <real>0)
            set_factor(&drain, 0, kept, classes, target, target >= 0, &end)
            if job.streaming:
                drain_begin(&drain, g, kept, 1, classes)
            else:
                scaled(g, kept, classes, drain.by[0], drain.by_low[0])
            continue
        # Computed once more: the exponentials have not been kept.
        i = 0
        while i < classes:
            m = min(classes - i, <Py_ssize_t>BLOCK)
            if target >= 0:
                load(scratch, xs + i, m, <real>row.shift)
                row_exp(
                    scratch, scratch + BLOCK, m, -1, <real>row.exponent, True, xs + i + BLOCK,
                    NULL,
                )
            set_factor(&drain, 0, scratch + BLOCK, m, target - i, target >= 0, &end)
            scaled(g + i, scratch + BLOCK, m, drain.by[0], drain.by_low[0])
            i += m
    drain_rest(&drain, grad, <real>0)
    result[0] = folded(&tally)


cdef inline Py_ssize_t heap_size(const Job *job) noexcept nogil:
    """Elements of a thread's scratch for a gradient, beside what is on the stack."""
    if job.inner == 1 and job.classes > BLOCK:
        return 2 * job.classes if job.classes <= KEPT else 0
    if job.inner == 1 and job.classes > FIRST_TILE and job.streaming:
        return 2 * BLOCK
    return 0


# ---- b) tiles --------------------------------------------------------------------------------
#
# Samples are turned into a scratch block (see tiles.pxd), which is worked on LANES samples at a
# time: a tile.
#
# Up to TILE classes are held. If that is all of them, they are read once. If not, the maxima are
# found first, then sums, then gradients, block of classes by block of classes.

cdef enum:
    TILE = 128           # SCRATCH // LANES


cdef inline Py_ssize_t width_of(Py_ssize_t classes, Py_ssize_t inner) noexcept nogil:
    """Samples of a block: LANES times an odd number, against conflicts in the cache.

    Samples that lie side by side are read in longer stretches so. Rows come one after the other
    anyway, and the processor fetches them ahead best in small blocks.
    """
    cdef Py_ssize_t tiles = min(max(SCRATCH // (LANES * max(classes, 1)), 1), 7)
    if inner == 1:
        return LANES
    return LANES * (tiles if tiles & 1 else tiles - 1)


cdef inline void tile_exp(
    real *xs, Py_ssize_t m, Py_ssize_t width, const int32_t *skip, const real *magic,
    const real *low_x, double *high, double *low, bint keep, const storage *ahead,
    Py_ssize_t stride
) noexcept nogil:
    """Exponentials of m classes, added to the lanes' sums but for the class skip[lane].

    With `keep` they take the logits' place. What will be read next lies at `ahead`, a class each
    `stride` elements, and is fetched meanwhile.
    """
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real a[64]
    cdef real two[64]
    cdef double t, z
    for lane in range(64):
        two[lane] = 0
    for c in range(m):
        prefetch_bytes(ahead + c * stride, 64 * sizeof(storage))
        for lane in range(64):
            a[lane] = exp_scaled(xs[lane], magic[lane], low_x[lane])
        if keep:
            for lane in range(64):
                xs[lane] = a[lane]
        for lane in range(64):
            two[lane] = two[lane] + (<real>0 if skip[lane] == c else a[lane])
        if c & 1 == 1 or c == m - 1:
            for lane in range(64):
                if real is float:
                    high[lane] = high[lane] + <double>two[lane]
                else:
                    t = high[lane] + two[lane]
                    z = t - high[lane]
                    low[lane] = low[lane] + ((high[lane] - (t - z)) + (two[lane] - z))
                    high[lane] = t
                two[lane] = 0
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


cdef inline void tiles_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *xs, real *stage,
) noexcept nogil:
    """Samples start to stop; xs and stage: scratch of SCRATCH elements each."""
    cdef Tally tally
    cdef Tile tile
    cdef Ending end
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t width = width_of(classes, job.inner)
    cdef Py_ssize_t first, n, lane, c, m, at, filled
    cdef bint whole = classes <= TILE
    cdef bint shifted
    # Where the next samples' classes lie, of which LANES elements are fetched with each of these.
    cdef Py_ssize_t next_class = LANES if job.inner == 1 else job.inner
    cdef Py_ssize_t next_lanes = classes if job.inner == 1 else 1
    cdef real top[64]
    cdef real shift[64]
    cdef real magic[64]
    cdef real low_x[64]
    clear(&tally)
    first = start
    while first < stop:
        n = min(stop - first, width)
        if whole:
            turn(xs, x, stage, classes, job.inner, first, n, 0, classes, width)
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
                    turn(xs, x, stage, classes, job.inner, first, n, c, m, width)
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
                    turn(xs, x, stage, classes, job.inner, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                fit_block(&tile, &end, xs + at, c, m, width)
                tile_exp(
                    xs + at, m, width, &tile.skip[0], &magic[0], &low_x[0], &tile.high[0],
                    &tile.low[0], whole and grad != NULL,
                    x + offset_of(job, (first + n) % job.samples, 0) + at * next_lanes,
                    next_class,
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
                    turn(xs, x, stage, classes, job.inner, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                    fit_block(&tile, &end, xs, c, m, width)
                    tile_exp(
                        xs, m, width, &tile.skip[0], &magic[0], &low_x[0], &tile.high[0],
                        &tile.low[0], True, x, 0,
                    )
                tile_gradient(xs + at, m, width, &tile, &end)
                if not whole:
                    turn_back(
                        grad, xs, stage, classes, job.inner, first, n, c, m, width, job.streaming
                    )
        if whole and grad != NULL:
            turn_back(
                grad, xs, stage, classes, job.inner, first, n, 0, classes, width, job.streaming
            )
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
    Py_ssize_t start, Py_ssize_t stop, Sum *result, void *heap,
) noexcept nogil:
    cdef float e[16384]      # 2 * BLOCK; for tiles SCRATCH is enough
    cdef float stage[8192]
    cdef double e64[16384]
    cdef double stage64[8192]
    if storage is double:
        if job.inner > 1 or job.classes <= FIRST_TILE:
            tiles_item(x, grad, losses64, job, start, stop, result, &e64[0], &stage64[0])
        elif job.classes <= BLOCK:
            short_item(
                x, grad, losses64, job, start, stop, result, &e64[0], <double *>heap
            )
        else:
            long_item(
                x, grad, losses64, job, start, stop, result, &e64[0], <double *>heap
            )
    else:
        if job.inner > 1 or job.classes <= FIRST_TILE:
            tiles_item(x, grad, losses32, job, start, stop, result, &e[0], &stage[0])
        elif job.classes <= BLOCK:
            short_item(
                x, grad, losses32, job, start, stop, result, &e[0], <float *>heap
            )
        else:
            long_item(
                x, grad, losses32, job, start, stop, result, &e[0], <float *>heap
            )
    if job.streaming:
        stream_end()


cdef void work(
    const storage *x, storage *grad, float *losses32, double *losses64, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, bint log_probs, void *heap,
) noexcept nogil:
    if not log_probs:
        item(x, grad, losses32, losses64, job, start, stop, result, heap)
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
    bint log_probs,                      # IN   whether the logits are log-probabilities (NLL)
):
    """Return (position of a bad target, -1 or OVERLAP; sum of the losses, sum of the weights)."""
    cdef Job job
    cdef Check checked
    cdef Sum partial[4096]
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t size, items, i, room = 0
    cdef char *heap = NULL
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
    job.streaming = (
        grad is not None
        and job.samples * job.classes * <Py_ssize_t>sizeof(storage) >= STREAM
    )
    if losses32 is not None:
        out32 = &losses32[0, 0]
    if losses64 is not None:
        out64 = &losses64[0, 0]
    if job.classes > 0:
        x = &logits[0, 0, 0]
        if grad is not None:
            g = &grad[0, 0, 0]
        if out_overlaps(g, x, job.samples * job.classes * <Py_ssize_t>sizeof(storage), &job):
            return OVERLAP, 0.0, 0.0
    with nogil:
        checked = check(&job)
        if checked.bad < 0 and job.classes > 0:
            if mean:
                scale = scale / checked.weights if checked.weights != 0 else 0
            job.scale = scale
            size = item_size(&job)
            items = (job.samples + size - 1) // size
            room = heap_size(&job) * (8 if storage is double else 4)
            if g != NULL and room > 0:
                # Without it the same is computed, more slowly.
                room = (room + 127) // 64 * 64
                heap = <char *>malloc(room * max(threads, 1))
            if threads > 1 and items > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    work(
                        x, g, out32, out64, &job, i * size, min(job.samples, (i + 1) * size),
                        &partial[i], log_probs,
                        NULL if heap == NULL else heap + threadid() * room,
                    )
            else:
                for i in range(items):
                    work(
                        x, g, out32, out64, &job, i * size, min(job.samples, (i + 1) * size),
                        &partial[i], log_probs, heap,
                    )
            for i in range(items):
                total = add(total, partial[i])
            free(heap)
            if log_probs and g != NULL:
                # Losses first: the gradient may be written over the log-probabilities.
                memset(g, 0, job.samples * job.classes * sizeof(storage))
                if storage is double:
                    nll_gradient(g, &job, 0, job.samples, <double>0)
                else:
                    nll_gradient(g, &job, 0, job.samples, <float>0)
    return checked.bad, value_of(total), checked.weights
