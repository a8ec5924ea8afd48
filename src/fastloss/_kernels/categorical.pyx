# Cross-entropy with class indices, and negative log-likelihood: loss and gradient in one pass.
#
# Arrays arrive as (outer, C, inner): a sample is one (outer, inner) position, numbered
# sample = o * inner + i. Two ways through memory, chosen by shape alone:
#
#   a) rows   inner == 1 and C > FIRST_TILE: lanes run over the classes of a row
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
from libc.string cimport memcpy, memset

from .blocks cimport (
    LANES, SCRATCH, Ending, RunningSum, Sum, Tally, add, block_max, chunk_exp, clear, count,
    finish, folded, least_scale, max_of, row_sum, row_sums, sum_begin, sum_end, value_of,
)
from .drain cimport (
    Drain, drain_begin, drain_by, drain_low, drain_rest, drain_set, drain_some, drain_start,
    drain_until, scaled,
)
from .samples cimport (
    OVERLAP, Check, Job, check, class_of, factor_of, item_size, offset_of, out_overlaps, weighted,
)
from .storage cimport emit, load, prefetch_bytes, storage, stream_end, value_at
from .tiles cimport fix_range, shift_tile, tile_max, turn, turn_back
from .vecmath cimport (
    INFINITY, NAN, exp_capped, exp_high, exp_limit, exp_low, exp_magic, exp_scaled, exponent_of,
    mul_add, power_of_two, real,
)

cdef enum:
    BLOCK = 8192         # classes of a long row that are worked on at a time
    WIDE = 1024          # classes of a row from which it is summed while exponentials are taken
    GROUP = 4096         # classes of short rows that are worked on at a time
    FIRST_TILE = 31      # most classes for which a row is turned into a tile
    KEPT = 262144        # most classes of a row whose exponentials are kept for the gradient
    # Gradients of more bytes are larger than the caches and written past them.
    STREAM = 16777216


# ---- a) rows ---------------------------------------------------------------------------------
#
# The exponentials of a row are kept until its sum is known. Then they are scaled on the way to
# memory, a little at a time between the exponentials of the next rows (see drain.pxd). Scratch of
# a thread, in elements: 2 * BLOCK on the stack; where rows are long, more on the heap (see
# `heap_size`).
#
# No row's maximum is looked for where the exponent of the rows before will do (`sum_rows`,
# `sum_long_row`): the power of two that a row's exponentials are scaled by changes no bit of the
# results, as long as no exponential that counts is lost or overflows.

cdef inline void row_step(
    const storage *x, real *e, int first, Py_ssize_t skip, real magic, real low_x, real high_x,
    bint keep, const storage *ahead, Drain *drain, RunningSum *sum
) noexcept nogil:
    """`chunk_exp`, and meanwhile `ahead` is fetched and what is in `drain` written."""
    cdef real wide[64]
    # Beyond the last row that fetches nothing, and does no harm.
    prefetch_bytes(ahead, 64 * sizeof(storage))
    if drain != NULL:
        drain_some(drain, <storage *>NULL, magic)
    if (storage is float and real is float) or (storage is double and real is double):
        chunk_exp(x, e, first, skip, magic, low_x, high_x, keep, sum)
    else:
        load(&wide[0], x, 64, <real>0)
        chunk_exp(&wide[0], e, first, skip, magic, low_x, high_x, keep, sum)


cdef Sum row_exp(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, real exponent, bint keep,
    const storage *ahead, Drain *drain
) noexcept nogil:
    """Sum of the scaled exponentials of x[:n], n >= 64, without x[skip], if skip lies in [0, n).

    With `keep` all of them are written to e, which may be where `drain` reads from. Meanwhile
    `ahead` is fetched.
    """
    cdef RunningSum sum
    cdef real magic = exp_magic(exponent), low_x = exp_low(exponent), high_x = exp_high(exponent)
    cdef Py_ssize_t whole = n // 64, chunk, i
    # The chunk of `skip` comes last: a branch where it turns up would be mispredicted.
    cdef Py_ssize_t own = skip // 64 if 0 <= skip < 64 * whole else 0
    sum_begin(&sum, magic)
    if drain != NULL:
        # One step ahead of what is written to e.
        drain_some(drain, <storage *>NULL, magic)
    for chunk in range(whole - 1):
        i = 64 * (chunk + (chunk >= own))
        row_step(x + i, e + i, 0, -1, magic, low_x, high_x, keep, ahead + i, drain, &sum)
    i = 64 * own
    row_step(x + i, e + i, 0, skip - i, magic, low_x, high_x, keep, ahead + i, drain, &sum)
    if 64 * whole < n:
        # The rest reaches back over what has been summed.
        i = n - 64
        row_step(
            x + i, e + i, <int>(64 * (whole + 1) - n), skip - i, magic, low_x, high_x, keep,
            ahead + i, drain, &sum,
        )
    return sum_end(&sum, magic)


cdef void block_of_exp(
    const storage *x, real *e, Py_ssize_t n, real exponent, const storage *ahead, Drain *drain
) noexcept nogil:
    """e[:n] = the scaled exponentials of x[:n]; meanwhile `ahead` is fetched, `drain` written.

    n >= 16, but for arrays of the compute type. x and e do not overlap. e may be where `drain`
    reads from: it is ahead of what is written.
    """
    cdef real stage[16]
    cdef int lane
    cdef real magic = exp_magic(exponent), low_x = exp_low(exponent), high_x = exp_high(exponent)
    cdef Py_ssize_t i, j, m, at, _chunk
    for i in range(0, n, 256):
        m = min(n - i, <Py_ssize_t>256)
        # Beyond the last row that fetches nothing, and does no harm.
        prefetch_bytes(ahead + i, m * sizeof(storage))
        if drain != NULL:
            for _chunk in range(0, m, 64):
                drain_some(drain, <storage *>NULL, magic)
        if (storage is float and real is float) or (storage is double and real is double):
            for j in range(i, i + m):
                e[j] = exp_capped(<real>x[j], magic, low_x, high_x)
        else:
            for j in range(i, i + m, 16):
                # The last step reaches back.
                at = min(j, n - 16)
                load(&stage[0], x + at, 16, <real>0)
                for lane in range(16):
                    stage[lane] = exp_capped(stage[lane], magic, low_x, high_x)
                memcpy(e + at, &stage[0], 16 * sizeof(real))


cdef inline void end_rows(
    const Job *job, Py_ssize_t first, Py_ssize_t n, const Py_ssize_t *target, Ending *end,
    Tally *tally, real *losses, bint gradient
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
    finish(<real>0, end, n, gradient)
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
    # One NaN for all: writers of halves rely on its lower bits being 0 (see storage.pxd).
    cdef double by = end.scale[row] if end.scale[row] == end.scale[row] else NAN
    cdef double tiny = least_scale()
    cdef Py_ssize_t i
    drain_set(drain, row, <real>by, <real>end.scale_low[row])
    if not used:
        for i in range(n):
            e[i] = 0
        drain_set(drain, row, <real>0, <real>0)
        return
    if 0 <= own < n:
        # The gradient at the target is -rest * scale.
        e[own] = <real>-end.rest[row]
    if real is float:
        if not (by >= tiny or by <= -tiny):
            # Too small for the two parts: scaled in double.
            for i in range(n):
                e[i] = <real>(e[i] * by)
            drain_set(drain, row, <real>1, <real>0)


cdef inline double most(real unused) noexcept nogil:
    """Where a sum is too large for its exponent: 2**(SPARE + 16).

    Far from overflow, since the scale of a gradient is as small as the sum is large, and what is
    lost of it by rounding is to be a normal number too.
    """
    return 7.737125245533627e25 if real is float else 2.2300745198530623e43


cdef inline Sum sum_block(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, real shift, real exponent, bint keep,
    real *scratch, Drain *drain
) noexcept nogil:
    """Sum of a row's block, n <= BLOCK, but for x[skip], if that is in there.

    With `keep` e is given the exponentials, else it is scratch, as `scratch` is.
    """
    if shift != 0 or n < 16:
        if drain != NULL:
            drain_rest(drain, <storage *>NULL, <real>0)
        load(scratch, x, n, shift)
        if n >= WIDE:
            return row_exp(scratch, e, n, skip, exponent, keep, scratch, NULL)
        block_of_exp(scratch, e, n, exponent, scratch, NULL)
    else:
        # What is read next in a long row is fetched meanwhile.
        if n >= WIDE:
            return row_exp(x, e, n, skip, exponent, keep, x + BLOCK, drain)
        block_of_exp(x, e, n, exponent, x + BLOCK, drain)
    if 0 <= skip < n:
        # Nothing more is asked of the target's exponential.
        e[skip] = 0
    return row_sum(e, n)


cdef Sum sum_row_alone(
    const storage *x, real *e, real *scratch, Py_ssize_t n, Py_ssize_t row, Py_ssize_t target,
    bint keep, Ending *end
) noexcept nogil:
    """Sum of a row with an exponent of its own."""
    cdef real top, shift = 0
    load(scratch, x, n, <real>0)
    top = block_max(scratch, n)
    if not -exp_limit(top) <= top <= exp_limit(top):
        # An infinite maximum makes all of the row NaN.
        shift = top if -<real>INFINITY < top < <real>INFINITY else <real>NAN
        top = 0
    end.exponent[row] = exponent_of(top)
    # The difference of two doubles: exact for float, and where it matters for double.
    end.own_x[row] = value_at(x, target, <double>0) - shift
    return sum_block(x, e, n, target, shift, exponent_of(top), keep, scratch, NULL)


cdef inline void sum_rows(
    const storage *x, real *e, Py_ssize_t rows, Py_ssize_t n, const Py_ssize_t *target, bint keep,
    real *guess, real *scratch, Drain *drain, Ending *end
) noexcept nogil:
    """Sums of rows that lie side by side, each of more than FIRST_TILE classes, at most
    BLOCK together.

    Fills in rest, exponent and own_x of `end`; a row with a target below 0 does not count. With
    `keep` e is given the exponentials, else it is scratch, as `scratch` is: both of BLOCK elements.

    All rows are tried with one exponent: that of the last rows, or if that has just failed, of
    the largest of their maxima. It will do unless a row's own maximum is farther below or above it
    than SPARE is there for.
    """
    cdef Sum sums[64]
    cdef real top, exponent
    cdef double least, lowest, highest
    cdef Py_ssize_t row, i
    if guess[0] != guess[0]:
        top = max_of(x, rows * n, <real>0)
        if -exp_limit(top) <= top <= exp_limit(top):
            guess[0] = exponent_of(top)
    exponent = guess[0]
    # The next rows are fetched while these are worked on.
    if exponent != exponent:
        if drain != NULL:
            drain_rest(drain, <storage *>NULL, <real>0)
    elif n < WIDE:
        block_of_exp(x, e, rows * n, exponent, x + rows * n, drain)
        for row in range(rows):
            # Nothing more is asked of the target's exponential.
            if target[row] >= 0:
                e[row * n + target[row]] = 0
        row_sums(e, rows, n, &sums[0])
    else:
        for row in range(rows):
            i = row * n
            if target[row] >= 0:
                sums[row] = row_exp(
                    x + i, e + i, n, target[row], exponent, keep, x + rows * n + i, drain
                )
            elif drain != NULL:
                drain_until(drain, i + n, <storage *>NULL, <real>0)
    # Where a sum is 32 bits below what the exponent is for, 2**(SPARE - 32), the terms that are
    # lost still add up to nothing: 2**-126 of each, of 8192, are 2**-151 of it.
    least = 274877906944.0 if real is float else 7.922816251426434e28
    lowest = (exponent - 32) * 0.6931471805599453
    highest = (exponent + 16) * 0.6931471805599453
    for row in range(rows):
        end.rest[row] = end.rest_low[row] = end.exponent[row] = end.own_x[row] = 0
        if target[row] < 0:
            continue
        end.exponent[row] = exponent
        end.own_x[row] = value_at(x, row * n + target[row], <double>0)
        # All are false without an exponent.
        if not (
            end.own_x[row] < highest and sums[row].high < most(exponent)
            and (end.own_x[row] >= lowest or sums[row].high >= least)
        ):
            guess[0] = <real>NAN
            sums[row] = sum_row_alone(
                x + row * n, e + row * n, scratch, n, row, target[row], keep, end
            )
        end.rest[row] = sums[row].high + sums[row].low
        end.rest_low[row] = sums[row].low - (end.rest[row] - sums[row].high)


cdef void short_item(
    const storage *x, storage *grad, real *losses, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, real *e, real *scratch,
) noexcept nogil:
    """Rows start to stop, of at most BLOCK classes each; e, scratch: of BLOCK elements."""
    cdef Tally tally
    cdef Ending end
    cdef Drain drain
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t group = min(max(GROUP // classes, 1), LANES)
    cdef Py_ssize_t first = start, n, g
    cdef Py_ssize_t target[64]
    cdef real guess = <real>NAN
    drain_start(&drain, job.streaming)
    clear(&tally)
    while first < stop:
        n = min(stop - first, group)
        for g in range(n):
            target[g] = class_of(job, first + g)
        sum_rows(
            x + first * classes, e, n, classes, &target[0], grad != NULL, &guess, scratch,
            &drain if grad != NULL else NULL, &end,
        )
        end_rows(job, first, n, &target[0], &end, &tally, losses, grad != NULL)
        if grad != NULL:
            drain_rest(&drain, grad, <real>0)
            for g in range(n):
                set_factor(
                    &drain, g, e + g * classes, classes, target[g], target[g] >= 0, &end
                )
            drain_begin(&drain, grad + first * classes, e, n, classes)
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

    The exponent is that of the first classes' maximum, and another one only where a block's sum
    is too large for it.
    """
    cdef RowSum row
    cdef Py_ssize_t i, j, m
    cdef real top, best = <real>(-INFINITY), shift = 0, exponent = 0, k
    cdef real *to
    cdef Sum part
    cdef double down
    cdef real exponents[64]  # of the blocks, of which KEPT has 32
    cdef bint restarted = False
    row.rest = Sum(0, 0)
    top = max_of(x, 1024, <real>0)
    if -exp_limit(top) <= top <= exp_limit(top):
        best = top
        exponent = exponent_of(top)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        to = e + i if e != NULL else scratch + BLOCK
        part.high = INFINITY
        # The target is in no sum, but is not to overflow either.
        if best > -<real>INFINITY and (
            not i <= skip < i + m
            or value_at(x, skip, shift) - shift < (exponent + 16) * <real>0.6931471805599453
        ):
            part = sum_block(
                x + i, to, m, skip - i, shift, exponent, e != NULL, scratch, drain
            )
        if not part.high < most(exponent):
            load(scratch, x + i, m, shift)
            top = block_max(scratch, m)
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
            # An all -inf block before the first number, or one too far below, adds exact zeros.
            part = sum_block(
                x + i, to, m, skip - i, shift, exponent, e != NULL, scratch, drain
            )
        if e != NULL:
            exponents[i // BLOCK] = exponent
        row.rest = add(row.rest, part)
        i += m
    if drain != NULL:
        drain_rest(drain, <storage *>NULL, <real>0)
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


cdef void long_item(
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
    cdef bint keep = heap != NULL and classes <= KEPT
    cdef const storage *xs
    cdef storage *g
    drain_start(&drain, job.streaming)
    clear(&tally)
    for index in range(start, stop):
        xs = x + index * classes
        target = class_of(job, index)
        end.rest[0] = end.rest_low[0] = end.exponent[0] = end.own_x[0] = 0
        if target >= 0:
            row = sum_long_row(
                xs, scratch, heap if keep else NULL, classes, target, &drain if keep else NULL
            )
            end.rest[0] = row.rest.high + row.rest.low
            end.rest_low[0] = row.rest.low - (end.rest[0] - row.rest.high)
            end.exponent[0] = row.exponent
            # The difference of two doubles: exact for float, and where it matters for double.
            end.own_x[0] = value_at(xs, target, <double>0) - row.shift
        end_rows(job, index, 1, &target, &end, &tally, losses, grad != NULL)
        if grad == NULL:
            continue
        g = grad + index * classes
        if keep:
            drain_rest(&drain, grad, <real>0)
            set_factor(&drain, 0, heap, classes, target, target >= 0, &end)
            drain_begin(&drain, g, heap, 1, classes)
            continue
        # Computed once more: the exponentials have not been kept.
        i = 0
        while i < classes:
            m = min(classes - i, <Py_ssize_t>BLOCK)
            if target >= 0:
                sum_block(
                    xs + i, scratch + BLOCK, m, -1, <real>row.shift, <real>row.exponent, True,
                    scratch, NULL,
                )
            set_factor(&drain, 0, scratch + BLOCK, m, target - i, target >= 0, &end)
            scaled(
                g + i, scratch + BLOCK, m, drain_by(&drain, 0, <real>0),
                drain_low(&drain, 0, <real>0),
            )
            i += m
    drain_rest(&drain, grad, <real>0)
    result[0] = folded(&tally)


cdef inline Py_ssize_t heap_size(const Job *job) noexcept nogil:
    """Elements of a thread's scratch for a gradient, beside what is on the stack."""
    if job.inner == 1 and job.classes > BLOCK:
        return job.classes if job.classes <= KEPT else 0
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
        own[lane] = <real>-end.rest[lane]
        if real is float:
            # Whether some scale is too small for the two parts, and is to be multiplied in double.
            wide |= (
                (end.scale[lane] < least_scale()) & (end.scale[lane] > -least_scale())
                & (end.scale[lane] != 0)
            )
    if wide:
        for c in range(m):
            for lane in range(64):
                g = own[lane] if tile.skip[lane] == c else e[lane]
                e[lane] = <real>(g * end.scale[lane]) if tile.used[lane] else <real>0
            e = e + width
        return
    for c in range(m):
        for lane in range(64):
            g = own[lane] if tile.skip[lane] == c else e[lane]
            g = mul_add(g, by[lane], g * correction[lane])
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


cdef void tiles_item(
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
            finish(<real>0, &end, LANES, grad != NULL)
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

cdef void nll_item(
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
    cdef float room[16400]   # 2 * BLOCK, from a cache line's beginning; for tiles SCRATCH is enough
    cdef double room64[16400]
    cdef float stage[8192]
    cdef double stage64[8192]
    cdef float *e = <float *>((<Py_ssize_t>&room[0] + 63) & -64)
    cdef double *e64 = <double *>((<Py_ssize_t>&room64[0] + 63) & -64)
    if storage is double:
        if job.inner > 1 or job.classes <= FIRST_TILE:
            tiles_item(x, grad, losses64, job, start, stop, result, e64, &stage64[0])
        elif job.classes <= BLOCK:
            short_item(x, grad, losses64, job, start, stop, result, e64, e64 + BLOCK)
        else:
            long_item(x, grad, losses64, job, start, stop, result, e64, <double *>heap)
    else:
        if job.inner > 1 or job.classes <= FIRST_TILE:
            tiles_item(x, grad, losses32, job, start, stop, result, e, &stage[0])
        elif job.classes <= BLOCK:
            short_item(x, grad, losses32, job, start, stop, result, e, e + BLOCK)
        else:
            long_item(x, grad, losses32, job, start, stop, result, e, <float *>heap)
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
