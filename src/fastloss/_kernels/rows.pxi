# Rows: the traversal of samples whose classes lie side by side, with lanes over the classes.
#
# Layout: a) the largest of a row, b) exponentials, c) sums of a row, d) sums of distances, e) from
# exponentials to what is written, f) items of work: short rows and long ones.
#
# The exponentials of a row are kept until its sum is known. Then they are scaled on the way to
# memory, a little at a time between the exponentials of the next rows (see drain.pxd).
#
# No row's maximum is looked for where the exponent of the rows before will do (`sum_rows`,
# `sum_long_row`): the power of two that a row's exponentials are scaled by changes no bit of the
# results, as long as no exponential that counts is lost or overflows.
#
# Why local arrays of constant length: the compiler turns loops over them into vector registers, and
# source and destination may be one array (out=logits), which a loop that reads one and writes the
# other could not be vectorised for.

from libc.stdint cimport int16_t, int32_t, int64_t
from libc.string cimport memcpy

from .group cimport Group, in_two_parts
from .samples cimport SCORE, SOFT, Job, class_of
from .storage cimport emit, load, prefetch_bytes, storage, value_at
from .sums cimport (
    LANES, RunningSum, Sum, Tally, add, clear, exp_add64, folded, max16, sum_add, sum_begin,
    sum_end, value_of,
)
from .tempers cimport exp_over
from .vecmath cimport (
    EXP_TABLE, INFINITY, NAN, Temper, exp_capped, exp_high, exp_limit, exp_low, exp_magic,
    exponent_of, fma, mul_add, power_of_two, real,
)
from .workspace cimport LINE, lines

cdef enum:
    BLOCK = 8192         # classes of a long row that are worked on at a time
    GROUP = 4096         # elements of short rows that are worked on at a time
    CHUNK = 1024         # classes whose targets are held at a time
    BLOCKS = 32          # most blocks of a row whose exponentials are kept
    KEPT = BLOCKS * BLOCK

# Scratch of a thread that works on rows; what follows it in memory is in `RowSpace`.
cdef struct RowDesk:
    Group group
    Drain drain
    Tally tally
    Sum sums[LANES]          # of rows side by side


# Of SCORE: sums over a row beside that of the exponentials.
cdef struct Moments:
    bint squared
    bint spread
    bint varied
    double top               # the largest logit, shifted as the others are
    RunningSum squares       # exponential**2 without the class left out
    RunningSum distance      # exponential times distance
    RunningSum variance      # and times its square


cdef struct RowSpace:
    RowDesk *desk
    void *e              # exponentials: of short rows, or of a block of a long one
    void *wide           # classes as they are computed with, where memory has another type
    void *targets        # CHUNK targets, of SOFT
    void *row            # a long row's exponentials, or NULL
    void *ranked         # the likeliest classes of a group's rows, where they are asked for


cdef inline real far(real unused) noexcept nogil:
    """A distance from the largest logit at which an exponential is 0; its square is finite."""
    return <real>1e18


cdef inline Py_ssize_t group_rows(const Job *job) noexcept nogil:
    """Short rows that are worked on at a time; fewer where they come with as many targets."""
    cdef Py_ssize_t elements = GROUP // 4 if job.p32 != NULL or job.p64 != NULL else GROUP
    return min(max(elements // job.classes, <Py_ssize_t>1), <Py_ssize_t>LANES)


cdef inline bint keeps_row(const Job *job, bint written_too) noexcept nogil:
    """Whether a long row's exponentials are kept."""
    return (
        BLOCK < job.classes <= KEPT
        and written_too and written(job) != LOGARITHM
    )


cdef inline Py_ssize_t rows_space(
    RowSpace *space, char *scratch, const Job *job, bint written_too, Py_ssize_t size
) noexcept nogil:
    """Lay out a thread's scratch, elements of `size` bytes; return how many bytes it takes."""
    cdef Py_ssize_t block = min(job.classes, <Py_ssize_t>BLOCK), at = lines(sizeof(RowDesk))
    cdef Py_ssize_t group = min(job.samples, group_rows(job)) * job.classes
    space.desk = <RowDesk *>scratch
    space.e = scratch + at
    at += lines(max(block, min(group, <Py_ssize_t>BLOCK)) * size)
    space.wide = scratch + at
    at += lines(max(block, <Py_ssize_t>CHUNK) * size)
    space.targets = scratch + at
    at += lines(CHUNK * size) if job.kind == SOFT else 0
    space.ranked = scratch + at
    at += lines(list_bytes(job) + ranked_bytes(job, min(job.samples, group_rows(job))))
    space.row = NULL
    if keeps_row(job, written_too):
        space.row = scratch + at
        # A last block of few classes is filled up.
        at += lines((job.classes + LANES) * size)
    return at


# ---- a) the largest of a row -----------------------------------------------------------------

cdef inline real block_max(const real *x, Py_ssize_t n) noexcept nogil:
    """Largest of x[:n]; NaNs are passed over, of nothing -inf."""
    cdef real m[LANES]
    cdef real top
    cdef Py_ssize_t i, j
    if n < LANES:
        top = <real>(-INFINITY)
        for i in range(n):
            top = x[i] if x[i] > top else top
        return top
    for j in range(LANES):
        m[j] = <real>(-INFINITY)
    i = 0
    while i < n:
        # The last step overlaps the one before it: a maximum may count an element twice.
        if i > n - LANES:
            i = n - LANES
        for j in range(LANES):
            m[j] = x[i + j] if x[i + j] > m[j] else m[j]
        i += LANES
    for j in range(32):
        m[j] = m[j + 32] if m[j + 32] > m[j] else m[j]
    for j in range(16):
        m[j] = m[j + 16] if m[j + 16] > m[j] else m[j]
    if real is float:
        return max16(&m[0])
    else:
        for j in range(8):
            m[j] = m[j + 8] if m[j + 8] > m[j] else m[j]
        for j in range(4):
            m[j] = m[j + 4] if m[j + 4] > m[j] else m[j]
        top = m[0]
        for j in range(1, 4):
            top = m[j] if m[j] > top else top
        return top


cdef inline int16_t ordered(int16_t bits) noexcept nogil:
    """An integer that is ordered like the half of these bits; and back."""
    # What is negative is ordered the other way round.
    return bits ^ ((bits >> 15) & 0x7fff)


cdef inline real max_of(const storage *x, Py_ssize_t n, real unused) noexcept nogil:
    """`block_max` of x[:n], as it lies in memory.

    Halves are compared as integers, in which a NaN may come out as the largest.
    """
    cdef int16_t m[LANES]
    cdef int16_t key
    cdef Py_ssize_t i, j, most
    if storage is float or storage is double:
        return <real>block_max(x, n)
    else:
        for j in range(LANES):
            m[j] = -32768
        i = 0
        while i < n:
            most = min(n - i, <Py_ssize_t>LANES)
            for j in range(most):
                key = ordered(<int16_t>x[i + j])
                m[j] = key if key > m[j] else m[j]
            i += LANES
        key = m[0]
        for j in range(1, LANES):
            key = m[j] if m[j] > key else key
        m[0] = ordered(key)
        return value_at(<const storage *>&m[0], 0, unused)


cdef inline const real *widened(real *to, const storage *x, Py_ssize_t n) noexcept nogil:
    """x[:n] as it lies in memory, or else as loaded into `to`."""
    if (storage is float and real is float) or (storage is double and real is double):
        return x
    else:
        load(to, x, n, <real>0)
        return to


cdef int32_t find(const real *x, int32_t n, real value) noexcept nogil:
    """First of x[:n] that is `value`, or n."""
    cdef int32_t i, first = n
    for i in range(n):
        first = min(first, i if x[i] == value else n)
    return first


cdef Py_ssize_t largest_of(const storage *x, Py_ssize_t n, real *wide) noexcept nogil:
    """Where the first of the largest is; NaNs are passed over, of nothing it is 0."""
    cdef Py_ssize_t c = 0, m, largest = 0
    cdef real value, top = <real>(-INFINITY)
    cdef const real *xs
    while c < n:
        m = min(n - c, <Py_ssize_t>CHUNK)
        xs = widened(wide, x + c, m)
        value = block_max(xs, m)
        if value > top:
            top = value
            largest = c + find(xs, <int32_t>m, value)
        c += m
    return largest


# ---- b) exponentials -------------------------------------------------------------------------

cdef inline real over(real x, const Temper *temper) noexcept nogil:
    """x over the temperature, about."""
    return x * <real>temper.inverse


cdef inline bint in_range(real z) noexcept nogil:
    """Whether there is an exponent for a maximum z: it is neither infinite nor far out."""
    return -exp_limit(z) <= z <= exp_limit(z)


cdef inline real distance_of(real top, real x) noexcept nogil:
    """How far x is below the largest; where that is farther, its exponential is 0."""
    return top - x if top - x < far(x) else far(x)


cdef inline real square_scale(real unused) noexcept nogil:
    """What exponentials are multiplied by before they are squared, so that none overflows."""
    return <real>5.960464477539063e-08 if real is float else <real>1


cdef inline void moments_begin(Moments *moments, const Job *job, real top) noexcept nogil:
    moments.squared = wants_squares(job)
    moments.spread = wants_spread(job)
    moments.varied = wants_variance(job)
    moments.top = top
    sum_begin(&moments.squares, top)
    sum_begin(&moments.distance, top)
    sum_begin(&moments.variance, top)


cdef void add_moments(
    Moments *moments, const real *x, const real *e, int first, Py_ssize_t skip
) noexcept nogil:
    """Add those of LANES classes from `first` on, whose exponentials are e."""
    cdef real d[LANES]
    cdef real part[LANES]
    cdef real top = <real>moments.top
    cdef Py_ssize_t j
    if moments.squared:
        for j in range(LANES):
            part[j] = e[j] * square_scale(top)
            part[j] = part[j] * part[j]
        sum_add(&moments.squares, &part[0], first, skip)
    if moments.spread:
        for j in range(LANES):
            d[j] = distance_of(top, x[j])
            part[j] = e[j] * d[j]
        sum_add(&moments.distance, &part[0], first, -1)
    if moments.varied:
        for j in range(LANES):
            part[j] = part[j] * d[j]
        sum_add(&moments.variance, &part[0], first, -1)


cdef inline void moments_end(
    Moments *moments, Py_ssize_t i, Group *group, real unused
) noexcept nogil:
    """Sums of sample i of a group."""
    cdef double scale = square_scale(unused)
    group.squares[i] = value_of(sum_end(&moments.squares, unused)) / (scale * scale)
    group.distance[i] = value_of(sum_end(&moments.distance, unused))
    group.spread[i] = value_of(sum_end(&moments.variance, unused))


cdef inline void chunk_exp(
    const real *x, real *e, int first, Py_ssize_t skip, real magic, real low_x, real high_x,
    const Temper *temper, bint keep, RunningSum *sum, Moments *moments
) noexcept nogil:
    """Add the scaled exponentials of x[first:LANES] without x[skip]; with `keep` e[:LANES] = all.

    For high_x see exp_capped. e may be x. moments: with `keep` alone, or NULL.
    """
    cdef real a[LANES]
    cdef Py_ssize_t j
    if real is float and EXP_TABLE:
        j = skip if 0 <= skip < LANES else -1
        exp_add64(
            &sum.lanes, e, x, first, <int>j, magic, low_x, high_x, temper, keep,
        )
    elif temper.temperature == 1:
        for j in range(LANES):
            a[j] = exp_capped(x[j], magic, low_x, high_x)
    else:
        for j in range(LANES):
            a[j] = exp_over(high_x if x[j] > high_x else x[j], magic, low_x, temper)
    if not (real is float and EXP_TABLE):
        if keep:
            memcpy(e, &a[0], LANES * sizeof(real))
        sum_add(sum, &a[0], first, skip)
    if moments != NULL:
        add_moments(moments, x, e, first, skip)


cdef inline void row_step(
    const storage *x, real *e, int first, Py_ssize_t skip, real magic, real low_x, real high_x,
    const Temper *temper, bint keep, const storage *ahead, Drain *drain, RunningSum *sum,
    Moments *moments
) noexcept nogil:
    """`chunk_exp`, and meanwhile `ahead` is fetched and what is in `drain` written."""
    cdef real wide[LANES]
    # Beyond the last row that fetches nothing, and does no harm.
    prefetch_bytes(ahead, LANES * sizeof(storage))
    if drain != NULL:
        drain_some(drain, <storage *>NULL, magic)
    if (storage is float and real is float) or (storage is double and real is double):
        chunk_exp(x, e, first, skip, magic, low_x, high_x, temper, keep, sum, moments)
    else:
        load(&wide[0], x, LANES, <real>0)
        chunk_exp(&wide[0], e, first, skip, magic, low_x, high_x, temper, keep, sum, moments)


cdef Sum row_exp(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, real exponent, const Temper *temper,
    bint keep, const storage *ahead, Drain *drain, Moments *moments
) noexcept nogil:
    """Sum of the scaled exponentials of x[:n], n >= LANES, without x[skip], if skip lies in [0, n).

    With `keep` all of them are written to e, which may be where `drain` reads from. Meanwhile
    `ahead` is fetched. moments: added to, or NULL.
    """
    cdef RunningSum sum
    cdef real t = <real>temper.temperature
    cdef real magic = exp_magic(exponent), low_x = exp_low(exponent) * t
    cdef real high_x = exp_high(exponent) * t
    cdef Py_ssize_t whole = n // LANES, chunk, i
    cdef int first = 0
    # The chunk of `skip` comes last: a branch where it turns up would be mispredicted.
    cdef Py_ssize_t own = skip // LANES if 0 <= skip < LANES * whole else 0
    sum_begin(&sum, magic)
    if drain != NULL:
        # One step ahead of what is written to e.
        drain_some(drain, <storage *>NULL, magic)
    for chunk in range(whole - 1):
        i = LANES * (chunk + (chunk >= own))
        row_step(
            x + i, e + i, 0, -1, magic, low_x, high_x, temper, keep, ahead + i, drain, &sum, moments
        )
    i = LANES * own
    while True:
        row_step(
            x + i, e + i, first, skip - i, magic, low_x, high_x, temper, keep, ahead + i, drain,
            &sum, moments,
        )
        if first != 0 or LANES * whole == n:
            break
        # The rest overlaps what has been summed.
        i = n - LANES
        first = <int>(LANES * (whole + 1) - n)
    return sum_end(&sum, magic)


# ---- c) sums of a row ------------------------------------------------------------------------

cdef inline double most(real unused) noexcept nogil:
    """Where a sum is too large for its exponent: 2**(SPARE + 16).

    Far from overflow, since the scale of a gradient is as small as the sum is large, and what is
    lost of it by rounding is to be a normal number too.
    """
    return 7.737125245533627e25 if real is float else 2.2300745198530623e43


cdef Sum sum_block(
    const storage *x, real *e, Py_ssize_t n, Py_ssize_t skip, real shift, real exponent,
    const Temper *temper, bint keep, const storage *ahead, real *scratch, Drain *drain,
    Moments *moments
) noexcept nogil:
    """Sum of a row's block, n <= BLOCK, but for x[skip], if that is in there.

    With `keep` e is given the exponentials, and up to LANES elements of it are. Meanwhile `ahead`
    is fetched. scratch: of BLOCK. moments: added to, or NULL.
    """
    cdef Py_ssize_t i
    if shift == 0 and n >= LANES:
        return row_exp(x, e, n, skip, exponent, temper, keep, ahead, drain, moments)
    if drain != NULL:
        drain_rest(drain, <storage *>NULL, <real>0)
    load(scratch, x, n, shift)
    for i in range(n, LANES):
        scratch[i] = <real>(-INFINITY)
    return row_exp(
        scratch, e, max(n, <Py_ssize_t>LANES), skip if skip < n else -1, exponent, temper, keep,
        scratch, NULL, moments,
    )


cdef Sum sum_row_alone(
    const storage *x, real *e, real *scratch, Py_ssize_t row, const Job *job, bint keep,
    Group *group
) noexcept nogil:
    """Sum of a row with an exponent of its own."""
    cdef real top, shift = 0
    cdef Py_ssize_t own = group.own_class[row], n = job.classes
    cdef const Temper *temper = &job.temper
    cdef Moments moments
    cdef Sum sum
    load(scratch, x, n, <real>0)
    top = block_max(scratch, n)
    if not in_range(over(top, temper)):
        # An infinite maximum makes all of the row NaN.
        shift = top if -<real>INFINITY < top < <real>INFINITY else <real>NAN
        top = 0
    group.exponent[row] = exponent_of(over(top, temper))
    # The difference of two doubles: exact for float, and where it matters for double.
    group.own_x[row] = value_at(x, own, <double>0) - shift
    group.shift[row] = shift
    moments_begin(&moments, job, <real>group.own_x[row])
    sum = sum_block(
        x, e, n, own, shift, <real>group.exponent[row], temper, keep, x, scratch, NULL,
        &moments if wants_moments(job) else NULL,
    )
    moments_end(&moments, row, group, shift)
    return sum


cdef void sum_rows(
    const storage *x, real *e, Py_ssize_t rows, const Job *job, bint keep, real *guess,
    real *scratch, Drain *drain, Group *group, Sum *sums
) noexcept nogil:
    """Sums of rows that lie side by side, each of more than a tile's classes, at most
    BLOCK together.

    Fills in rest, exponent and own_x of `group`, and of SCORE the moments; a row that leaves out
    class -1 does not count.
    With `keep` e is given the exponentials, else it is scratch, as `scratch` is: both of BLOCK
    elements.

    All rows are tried with one exponent: that of the last rows, or if that has just failed, of
    the largest of their maxima. It will do unless a row's own maximum is farther below or above it
    than SPARE is there for.
    """
    cdef real top, exponent
    cdef double least, lowest, highest
    cdef Py_ssize_t row, i, n = job.classes
    cdef const Temper *temper = &job.temper
    cdef Moments moments
    cdef Moments *wanted = &moments if wants_moments(job) else NULL
    if guess[0] != guess[0]:
        top = over(max_of(x, rows * n, <real>0), temper)
        if in_range(top):
            guess[0] = exponent_of(top)
    exponent = guess[0]
    # The next rows are fetched while these are worked on.
    if exponent != exponent:
        if drain != NULL:
            drain_rest(drain, <storage *>NULL, <real>0)
    else:
        for row in range(rows):
            i = row * n
            if group.own_class[row] >= 0:
                if wanted != NULL:
                    moments_begin(wanted, job, value_at(x, i + group.own_class[row], exponent))
                sums[row] = row_exp(
                    x + i, e + i, n, group.own_class[row], exponent, temper, keep,
                    x + rows * n + i, drain, wanted,
                )
                if wanted != NULL:
                    moments_end(wanted, row, group, exponent)
            elif drain != NULL:
                drain_until(drain, i + n, <storage *>NULL, <real>0)
    # Where a sum is 32 bits below what the exponent is for, 2**(SPARE - 32), the terms that are
    # lost still add up to nothing: 2**-126 of each, of 8192, are 2**-151 of it.
    least = 274877906944.0 if real is float else 7.922816251426434e28
    lowest = (exponent - 32) * 0.6931471805599453 * temper.temperature
    highest = (exponent + 16) * 0.6931471805599453 * temper.temperature
    for row in range(rows):
        group.rest[row] = group.rest_low[row] = group.exponent[row] = group.own_x[row] = 0
        group.shift[row] = 0
        if group.own_class[row] < 0:
            continue
        group.exponent[row] = exponent
        group.own_x[row] = value_at(x, row * n + group.own_class[row], <double>0)
        # All are false without an exponent.
        if not (
            group.own_x[row] < highest and sums[row].high < most(exponent)
            and (group.own_x[row] >= lowest or sums[row].high >= least)
        ):
            guess[0] = <real>NAN
            sums[row] = sum_row_alone(
                x + row * n, e + row * n, scratch, row, job, keep, group
            )
        group.rest[row] = sums[row].high + sums[row].low
        group.rest_low[row] = sums[row].low - (group.rest[row] - sums[row].high)


cdef void sum_long_row(
    const storage *x, real *wide, real *block, real *e, const Job *job, Drain *drain, Group *group
) noexcept nogil:
    """Sum of a row of any length, read once: running exponent, sums rescaled by powers of two.

    wide, block: scratch of BLOCK elements. With `e`, the exponentials are kept there; no more than
    KEPT classes then.

    The exponent is that of the maximum, where that is the class left out; else that of the first
    classes' maximum, and another one only where a block's sum is too large for it.
    """
    cdef Sum rest = Sum(0, 0)
    cdef const Temper *temper = &job.temper
    cdef Py_ssize_t skip = group.own_class[0], n = job.classes
    cdef Py_ssize_t i, j, m
    cdef bint restarted = False
    cdef bint known = wants_largest(job) or job.kind == SCORE    # whether the maximum is
    cdef bint keep = e != NULL or wants_moments(job)
    # Where the row has been read for its maximum, the next one is fetched.
    cdef Py_ssize_t ahead = n if known else BLOCK
    # Over the temperature, but for `largest`.
    cdef real top, best = <real>(-INFINITY), shift = 0, exponent = 0, k, largest
    cdef real *to
    cdef Moments moments
    cdef Sum part
    cdef double down
    cdef real exponents[BLOCKS]  # of the blocks
    largest = value_at(x, skip, exponent) if known else max_of(x, CHUNK, exponent)
    top = over(largest, temper)
    if in_range(top):
        best = top
        exponent = exponent_of(top)
    elif known:
        best = 0
        shift = largest if -<real>INFINITY < largest < <real>INFINITY else <real>NAN
    moments_begin(&moments, job, value_at(x, skip, shift) - shift)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>BLOCK)
        to = e + i if e != NULL else block
        part.high = INFINITY
        # The class left out is in no sum, but is not to overflow either.
        if best > -<real>INFINITY and (
            not i <= skip < i + m
            or over(value_at(x, skip, shift) - shift, temper)
            < (exponent + 16) * <real>0.6931471805599453
        ):
            part = sum_block(
                x + i, to, m, skip - i, shift, exponent, temper, keep, x + i + ahead, wide, drain,
                &moments if wants_moments(job) else NULL,
            )
        if not part.high < most(exponent):
            load(wide, x + i, m, shift)
            largest = block_max(wide, m)
            top = over(largest, temper)
            if top > best:
                if not restarted and not in_range(top):
                    # The exact maximum has to be known before anything is summed: start again.
                    # There is no shift yet.
                    while i < n and largest < <real>INFINITY:
                        m = min(n - i, <Py_ssize_t>BLOCK)
                        load(wide, x + i, m, <real>0)
                        top = block_max(wide, m)
                        largest = top if top > largest else largest
                        i += m
                    if not largest < <real>INFINITY:
                        i = 0
                        break
                    restarted = True
                    best = over(largest, temper)
                    if in_range(best):
                        exponent = exponent_of(best)
                    else:
                        # Exact: every logit that counts is within a factor of two of it.
                        shift = largest
                        best = exponent = 0
                    rest = Sum(0, 0)
                    i = 0
                    continue
                k = exponent_of(top)
                if best == <real>(-INFINITY):
                    exponent = k
                elif k > exponent:
                    # In two steps: the power of two alone may underflow where the sum does not.
                    down = power_of_two((exponent - k) // 2)
                    rest.high *= down
                    rest.low *= down
                    down = power_of_two((exponent - k) - (exponent - k) // 2)
                    rest.high *= down
                    rest.low *= down
                    exponent = k
                best = top
            # An all -inf block before the first number, or one too far below, adds exact zeros.
            # Of moments the exponent is right from the start: there is a NaN, and they are too.
            part = sum_block(
                x + i, to, m, skip - i, shift, exponent, temper, keep, x + i + ahead, wide, drain,
                NULL,
            )
        if e != NULL:
            exponents[i // BLOCK] = exponent
        rest = add(rest, part)
        i += m
    if drain != NULL:
        drain_rest(drain, <storage *>NULL, <real>0)
    if i < n or best == <real>(-INFINITY):
        rest = Sum(NAN, 0)
        if e != NULL:
            # The gradient is NaN as well, of what was kept and of what was not.
            for i in range(n):
                e[i] = <real>NAN
    elif e != NULL:
        i = 0
        while i < n:
            if exponents[i // BLOCK] != exponent:
                down = power_of_two(exponents[i // BLOCK] - exponent)
                for j in range(i, min(n, i + BLOCK)):
                    e[j] = <real>(e[j] * down)
            i += BLOCK
    if wants_moments(job):
        moments_end(&moments, 0, group, best)
    group.rest[0] = rest.high + rest.low
    group.rest_low[0] = rest.low - (group.rest[0] - rest.high)
    group.exponent[0] = exponent
    group.shift[0] = shift
    # The difference of two doubles: exact for float, and where it matters for double.
    group.own_x[0] = value_at(x, skip, <double>0) - shift


# ---- d) sums of distances --------------------------------------------------------------------
#
# A class's distance is how far its logit is below the largest, which is the class left out.

cdef inline bint uniform(const Job *job) noexcept nogil:
    """Whether the target is the same for all classes but the sample's own."""
    return job.p32 == NULL and job.p64 == NULL and job.weight == NULL


cdef inline Py_ssize_t index_of(const Job *job, Py_ssize_t sample) noexcept nogil:
    """The sample's class, or -1 where there are probabilities."""
    return -1 if job.target == NULL else class_of(job, sample)


cdef const real *targets_of(
    real *to, const Job *job, Py_ssize_t sample, Py_ssize_t t, Py_ssize_t c, Py_ssize_t n
) noexcept nogil:
    """Targets of classes c to c + n of a row whose class is t, if it has one.

    As they lie in memory, or else as loaded into `to`.
    """
    cdef Py_ssize_t i, at = sample * job.classes + c
    cdef real keep = <real>job.keep, spread = <real>job.spread
    cdef double w, unit = job.unit
    if job.weight == NULL and job.keep == 1:
        if real is float:
            if job.p32 != NULL:
                return job.p32 + at
        else:
            if job.p64 != NULL:
                return job.p64 + at
    if job.p32 != NULL:
        for i in range(n):
            to[i] = mul_add(keep, <real>job.p32[at + i], spread)
    elif job.p64 != NULL:
        for i in range(n):
            to[i] = <real>mul_add(job.keep, job.p64[at + i], job.spread)
    else:
        for i in range(n):
            to[i] = spread
        if c <= t < c + n:
            to[t - c] = <real>(job.spread + job.keep)
    if job.weight != NULL:
        for i in range(n):
            w = job.weight[c + i] * unit
            to[i] = to[i] * <real>w
    return to


cdef void add_soft(
    const storage *x, real *wide, const real *a, Py_ssize_t n, Py_ssize_t own, real top,
    RunningSum *distance, RunningSum *mass, const char *ahead, Py_ssize_t step
) noexcept nogil:
    """Add a * (top - x) to `distance`, 0 where a is, and a but for a[own] to `mass`.

    Without `a` it is 1 for all, and `mass` is left alone. At `ahead` lies what will be read next,
    `step` bytes for LANES classes, or NULL.
    """
    cdef const real *xs = widened(wide, x, n)
    cdef real part[LANES]
    cdef real few[LANES]
    cdef real d
    cdef Py_ssize_t i = 0, j, m
    while i + LANES <= n:
        if ahead != NULL:
            prefetch_bytes(ahead, step)
            ahead += step
        if a == NULL:
            for j in range(LANES):
                part[j] = top - xs[i + j]
        else:
            for j in range(LANES):
                d = a[i + j] * (top - xs[i + j])
                part[j] = d if a[i + j] != 0 else <real>0
            sum_add(mass, a + i, 0, own - i)
        sum_add(distance, &part[0], 0, -1)
        i += LANES
    if i < n:
        m = n - i
        for j in range(LANES):
            part[j] = few[j] = 0
        if a == NULL:
            for j in range(m):
                part[j] = top - xs[i + j]
        else:
            for j in range(m):
                few[j] = a[i + j]
                d = few[j] * (top - xs[i + j])
                part[j] = d if few[j] != 0 else <real>0
            sum_add(mass, &few[0], 0, own - i)
        sum_add(distance, &part[0], 0, -1)


cdef inline Sum product(double a, double b) noexcept nogil:
    """a * b to twice the digits."""
    cdef double high = a * b
    return Sum(high, fma(a, b, -high))


cdef void soft_distance(
    const storage *x, const Job *job, Py_ssize_t sample, Py_ssize_t i, real *wide, real *a,
    Group *group
) noexcept nogil:
    """`distance` and the targets' sums of sample i of a group, whose logits are x."""
    cdef RunningSum distance, mass
    cdef Py_ssize_t c = 0, n, classes = job.classes, t = index_of(job, sample)
    cdef Py_ssize_t own = group.own_class[i]
    cdef real top = value_at(x, own, <real>0)
    cdef bint alike = uniform(job)
    cdef double d
    cdef Sum others
    cdef const real *targets = NULL
    cdef const char *ahead = NULL
    cdef Py_ssize_t step = 0
    group.own_a[i] = 0
    sum_begin(&distance, top)
    sum_begin(&mass, top)
    while c < classes:
        n = min(classes - c, <Py_ssize_t>CHUNK)
        if not alike:
            targets = targets_of(a, job, sample, t, c, n)
            if c <= own < c + n:
                group.own_a[i] = targets[own - c]
            if sample + 1 < job.samples:
                # The next row's probabilities.
                if job.p32 != NULL:
                    step = LANES * sizeof(float)
                    ahead = <const char *>(job.p32 + (sample + 1) * classes + c)
                elif job.p64 != NULL:
                    step = LANES * sizeof(double)
                    ahead = <const char *>(job.p64 + (sample + 1) * classes + c)
        add_soft(x + c, wide, targets, n, own - c, top, &distance, &mass, ahead, step)
        c += n
    d = value_of(sum_end(&distance, top))
    if alike:
        group.own_a[i] = job.spread
        others = product(job.spread, <double>(classes - 1))
        d = job.spread * d if job.spread != 0 else 0.0
        if t == own:
            group.own_a[i] = group.own_a[i] + job.keep
        elif job.keep != 0:
            others = add(others, Sum(job.keep, 0))
            d = d + job.keep * (<double>top - value_at(x, t, <double>0))
    else:
        others = sum_end(&mass, top)
    group.distance[i] = d
    group.others[i] = value_of(others)
    group.others_low[i] = others.low - (group.others[i] - others.high)


# ---- e) from exponentials to what is written --------------------------------------------------

cdef inline bint as_one(double scale, real unused) noexcept nogil:
    """Whether `scale` keeps its digits in the compute type, and products with it theirs."""
    if real is float:
        return scale == 0 or 1e-30 < scale < 1e30 or -1e30 < scale < -1e-30
    else:
        return True


cdef void prepare_scaled(
    Drain *drain, Py_ssize_t row, real *e, Py_ssize_t n, Py_ssize_t own, const Group *group
) noexcept nogil:
    """Prepare exponentials e[:n] for being scaled; the class left out is at `own`, if there."""
    # One NaN for all: writers of halves rely on its lower bits being 0 (see simd/scale.h).
    cdef double by = group.by[row] if group.by[row] == group.by[row] else NAN
    cdef Py_ssize_t i
    if not in_two_parts(e[0], group, row):
        for i in range(n):
            e[i] = <real>(e[i] * by)
        if 0 <= own < n:
            e[own] = <real>(group.at[row] * by)
        drain_set(drain, row, <real>1, <real>0)
        return
    if 0 <= own < n:
        e[own] = <real>group.at[row]
    drain_set(drain, row, <real>by, <real>group.by_low[row])


cdef void against_target(
    real *e, const real *a, Py_ssize_t n, double spread, double by, double low, double scale,
    bint wide
) noexcept nogil:
    """e * by - a * scale in place; without `a` it is `spread` for all. `wide`: in double."""
    cdef Py_ssize_t i
    cdef real b = <real>by, c = <real>low, s = <real>scale, same = <real>(spread * scale)
    if wide:
        for i in range(n):
            e[i] = <real>(e[i] * by - scale * (spread if a == NULL else <double>a[i]))
    elif a == NULL:
        for i in range(n):
            e[i] = mul_add(e[i], b, mul_add(e[i], c, -same))
    else:
        for i in range(n):
            e[i] = mul_add(e[i], b, mul_add(e[i], c, -a[i] * s))


cdef void prepare_soft(
    Drain *drain, const Job *job, Py_ssize_t sample, Py_ssize_t row, real *e, Py_ssize_t first,
    Py_ssize_t classes, real *a, const Group *group
) noexcept nogil:
    """Exponentials of classes first to first + classes to gradients."""
    cdef Py_ssize_t c = 0, n, t = index_of(job, sample), own = group.own_class[row] - first
    cdef double by = group.by[row], low = group.by_low[row], at_target
    cdef double scale = job.scale * group.factor[row]
    cdef bint alike = uniform(job)
    cdef const real *targets = NULL
    cdef bint wide = not (in_two_parts(e[0], group, row) and as_one(scale, e[0]))
    drain_set(drain, row, <real>1, <real>0)
    t = t - first
    while c < classes:
        n = min(classes - c, <Py_ssize_t>CHUNK)
        if not alike:
            targets = targets_of(a, job, sample, t + first, first + c, n)
        at_target = e[t] if c <= t < c + n else 0
        against_target(e + c, targets, n, job.spread, by, low, scale, wide)
        if alike and c <= t < c + n:
            at_target = mul_add(at_target, by, -(job.spread + job.keep) * scale)
            e[t] = <real>at_target
        c += n
    if 0 <= own < classes:
        e[own] = <real>group.at[row]


cdef void prepare(
    Drain *drain, const Job *job, Py_ssize_t sample, Py_ssize_t row, real *e, Py_ssize_t first,
    Py_ssize_t n, real *a, const Group *group
) noexcept nogil:
    """Prepare exponentials of classes first to first + n of row `row` of a group for `scaled`."""
    cdef Py_ssize_t i
    if group.own_class[row] < 0:
        for i in range(n):
            e[i] = 0
        drain_set(drain, row, <real>0, <real>0)
    elif written(job) == SCALED:
        prepare_scaled(drain, row, e, n, group.own_class[row] - first, group)
    else:
        prepare_soft(drain, job, sample, row, e, first, n, a, group)


cdef void write_second(
    const real *e, storage *to, Py_ssize_t first, Py_ssize_t classes, Py_ssize_t row, real *wide,
    const Group *group
) noexcept nogil:
    """Second derivatives of classes first to first + classes, from exponentials e; wide: scratch.

    The largest class is the one left out, so that 1 - p has all its digits for the others.
    """
    cdef Py_ssize_t c = 0, n, i, own = group.own_class[row] - first
    cdef real by = <real>(1 / group.total[row]), p
    cdef real mass = <real>group.mass[row], bend = <real>group.bend[row]
    cdef double q = group.own[row] / group.total[row]
    while c < classes:
        n = min(classes - c, <Py_ssize_t>CHUNK)
        if group.own_class[row] < 0:
            for i in range(n):
                wide[i] = 0
        else:
            for i in range(n):
                p = e[c + i] * by
                wide[i] = p * (<real>1 - p) * mass + p * p * bend
        if c <= own < c + n:
            wide[own - c] = <real>(
                q * (group.rest[row] / group.total[row]) * group.mass[row]
                + q * q * group.bend[row]
            )
        emit(to + c, wide, n, False)
        c += n


cdef void write_logarithms(
    const storage *x, storage *to, Py_ssize_t n, double largest, double log_rest, real *e,
    bint streaming
) noexcept nogil:
    """to[:n] = (x - largest) - log_rest; e: scratch."""
    cdef Py_ssize_t i
    cdef const real *xs = widened(e, x, n)
    # Both are negative, so that nothing cancels.
    cdef real top = <real>largest, rest = <real>log_rest
    for i in range(n):
        e[i] = (xs[i] - top) - rest
    emit(to, e, n, streaming)


# ---- f) items of work ------------------------------------------------------------------------

cdef void short_item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, const RowSpace *space
) noexcept nogil:
    """Rows start to stop, of at most BLOCK classes each."""
    cdef Group *group = &space.desk.group
    cdef Drain *drain = &space.desk.drain
    cdef Tally *tally = &space.desk.tally
    cdef real *e = <real *>space.e
    cdef real *wide = <real *>space.wide
    cdef real *a = <real *>space.targets
    cdef Py_ssize_t classes = job.classes, first = start, n, i
    cdef Py_ssize_t most_rows = group_rows(job)
    cdef Written how = written(job)
    cdef bint drains = out != NULL and how != LOGARITHM
    cdef const storage *xs
    cdef real guess = <real>NAN
    group.list = <int64_t *>space.ranked
    group.ranked = group.list + list_bytes(job) // 8
    drain_start(drain, job.streaming)
    clear(tally)
    while first < stop:
        n = min(stop - first, most_rows)
        xs = x + first * classes
        begin(job, first, n, group)
        if job.kind == SCORE:
            for i in range(n):
                stand(xs + i * classes, job, first + i, i, wide, group)
        elif wants_largest(job):
            for i in range(n):
                if group.own_class[i] >= 0:
                    group.own_class[i] = largest_of(xs + i * classes, classes, wide)
        sum_rows(
            xs, e, n, job, drains or wants_moments(job), &guess, wide,
            drain if drains else NULL, group, &space.desk.sums[0],
        )
        for i in range(n if job.kind == SOFT else 0):
            if group.own_class[i] >= 0:
                soft_distance(xs + i * classes, job, first + i, i, wide, a, group)
        end(job, first, n, out != NULL, group, tally, losses)
        if drains:
            drain_rest(drain, out, <real>0)
            if job.second != NULL:
                for i in range(n):
                    write_second(
                        e + i * classes, <storage *>job.second + (first + i) * classes, 0, classes,
                        i, wide, group,
                    )
            for i in range(n):
                prepare(drain, job, first + i, i, e + i * classes, 0, classes, a, group)
            drain_begin(drain, out + first * classes, e, n, classes)
        elif out != NULL:
            for i in range(n):
                write_logarithms(
                    xs + i * classes, out + (first + i) * classes, classes,
                    group.own_x[i] + group.shift[i], group.log_rest[i], wide,
                    job.streaming,
                )
        first += n
    drain_rest(drain, out, <real>0)
    result[0] = folded(tally)


cdef void long_item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, const RowSpace *space
) noexcept nogil:
    """Rows start to stop, of any length."""
    cdef Group *group = &space.desk.group
    cdef Drain *drain = &space.desk.drain
    cdef Tally *tally = &space.desk.tally
    cdef real *block = <real *>space.e
    cdef real *wide = <real *>space.wide
    cdef real *a = <real *>space.targets
    cdef real *row = <real *>space.row
    cdef Py_ssize_t classes = job.classes
    cdef Py_ssize_t index, i, m
    cdef real shift
    cdef Written how = written(job)
    cdef bint drains = out != NULL and row != NULL and how != LOGARITHM
    cdef const storage *xs
    cdef storage *to
    group.list = <int64_t *>space.ranked
    group.ranked = group.list + list_bytes(job) // 8
    drain_start(drain, job.streaming)
    clear(tally)
    for index in range(start, stop):
        xs = x + index * classes
        begin(job, index, 1, group)
        if job.kind == SCORE:
            stand(xs, job, index, 0, wide, group)
        elif wants_largest(job) and group.own_class[0] >= 0:
            group.own_class[0] = largest_of(xs, classes, wide)
        group.rest[0] = group.rest_low[0] = group.exponent[0] = group.own_x[0] = 0
        group.shift[0] = 0
        if group.own_class[0] >= 0:
            sum_long_row(
                xs, wide, block, row, job, drain if drains else NULL, group
            )
            if job.kind == SOFT:
                soft_distance(xs, job, index, 0, wide, a, group)
        shift = <real>group.shift[0]
        end(job, index, 1, out != NULL, group, tally, losses)
        if out == NULL:
            continue
        to = out + index * classes
        if drains:
            drain_rest(drain, out, <real>0)
            if job.second != NULL:
                write_second(
                    row, <storage *>job.second + index * classes, 0, classes, 0, wide, group
                )
            prepare(drain, job, index, 0, row, 0, classes, a, group)
            drain_begin(drain, to, row, 1, classes)
            continue
        i = 0
        while i < classes:
            m = min(classes - i, <Py_ssize_t>BLOCK)
            if how == LOGARITHM:
                write_logarithms(
                    xs + i, to + i, m, group.own_x[0] + group.shift[0], group.log_rest[0], block,
                    job.streaming,
                )
            else:
                # Computed once more: the exponentials have not been kept.
                if group.own_class[0] >= 0:
                    sum_block(
                        xs + i, block, m, -1, shift, <real>group.exponent[0], &job.temper, True,
                        xs + i + BLOCK, wide, NULL, NULL,
                    )
                if job.second != NULL:
                    write_second(
                        block, <storage *>job.second + index * classes + i, i, m, 0, wide, group
                    )
                prepare(drain, job, index, 0, block, i, m, a, group)
                scaled(
                    to + i, block, m, drain_by(drain, 0, <real>0), drain_low(drain, 0, <real>0)
                )
            i += m
    drain_rest(drain, out, <real>0)
    result[0] = folded(tally)


cdef void rows_item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop whose classes lie side by side."""
    cdef RowSpace space
    rows_space(&space, scratch, job, out != NULL, sizeof(real))
    if job.classes <= BLOCK:
        short_item(x, out, losses, job, start, stop, result, &space)
    else:
        long_item(x, out, losses, job, start, stop, result, &space)
