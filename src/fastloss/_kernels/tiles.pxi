# Tiles: the traversal of samples with lanes over the samples, for few classes or a class axis that
# is not the last.
#
# Layout: a) turning samples into tiles and back, b) maxima, c) sums, d) from exponentials to what
# is written, e) items of work.
#
# LANES samples are a tile: they lie class-major in a scratch block, class c of lane i at
# xs[c * width + i]. Samples of one outer position lie side by side in memory, so that turning them
# is copying; it is done all the same, since class planes a power of two apart share the sets of a
# cache.
#
# Up to TILE classes are held. If that is all of them, they are read once. If not, the maxima are
# found first, then sums, then gradients, block of classes by block of classes.

from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from .group cimport Group, in_two_parts
from .samples cimport SCORE, SOFT, Job, class_of, offset_of
from .storage cimport emit, load, prefetch_bytes, storage, transpose
from .sums cimport LANES, Sum, Tally, add, clear, folded, two_sum
from .tempers cimport exp_over
from .vecmath cimport (
    EXP_TABLE, INFINITY, NAN, Temper, exp_by_table, exp_limit, exp_low, exp_magic, exp_scaled,
    exponent_of, mul_add, real, table_magic,
)
from .workspace cimport lines

cdef enum:
    TILE = 128           # most classes of a tile
    WIDTH = 7            # most tiles side by side in a block
    FOUR = 4             # classes that are added before they go to a sum
    LONG_RUN = 256       # samples side by side from which they are written past the caches

cdef struct Tile:
    int32_t skip[LANES]      # the class left out, within the block of classes, or -1
    double high[LANES]       # sums of the exponentials without that class
    double low[LANES]
    double distance[LANES]   # as in Group, in two parts
    double distance_low[LANES]
    double others[LANES]
    double others_low[LANES]
    double spread[LANES]
    double spread_low[LANES]
    double squares[LANES]
    double squares_low[LANES]


# Of SCORE (see scores.pxi), while the blocks of classes go by.
cdef struct Standing:
    int32_t target[LANES]        # -1: it has none
    double value[LANES]          # the target's logit, as the compute type
    double second[LANES]         # the largest after the first of the largest, the same
    int32_t count[LANES]         # classes that are `value` or more


# Scratch of a thread that works on tiles; what follows it in memory is in `TileSpace`.
cdef struct TileDesk:
    Group group
    Tally tally
    Tile tile
    Standing standing


cdef struct TileSpace:
    TileDesk *desk
    void *xs             # a block of tiles
    void *stage          # the same in the order of memory
    void *targets        # targets of a tile, of SOFT
    void *second         # second derivatives of a block, where they are asked for
    void *ranked         # the likeliest classes of LANES samples, where they are asked for


cdef inline Py_ssize_t width_of(Py_ssize_t classes, Py_ssize_t inner) noexcept nogil:
    """Samples of a block: LANES times an odd number, against conflicts in the cache.

    Samples that lie side by side are read in longer stretches so. Rows come one after the other
    anyway, and the processor fetches them ahead best in small blocks.
    """
    cdef Py_ssize_t tiles = min(max(TILE // max(classes, 1), <Py_ssize_t>1), <Py_ssize_t>WIDTH)
    if inner == 1:
        return LANES
    return LANES * (tiles if tiles & 1 else tiles - 1)


cdef inline Py_ssize_t tiles_space(
    TileSpace *space, char *scratch, const Job *job, Py_ssize_t size
) noexcept nogil:
    """Lay out a thread's scratch, elements of `size` bytes; return how many bytes it takes."""
    cdef Py_ssize_t at = lines(sizeof(TileDesk))
    cdef Py_ssize_t block = width_of(job.classes, job.inner) * min(job.classes, <Py_ssize_t>TILE)
    space.desk = <TileDesk *>scratch
    space.xs = scratch + at
    at += lines(block * size)
    space.stage = scratch + at
    at += lines(block * size)
    space.targets = scratch + at
    at += lines(LANES * min(job.classes, <Py_ssize_t>TILE) * size) if job.kind == SOFT else 0
    space.second = scratch + at
    at += lines(block * size) if job.second != NULL else 0
    space.ranked = scratch + at
    at += lines(list_bytes(job) + ranked_bytes(job, LANES))
    return at


# ---- a) turning ------------------------------------------------------------------------------

cdef void turn(
    real *to, const storage *x, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Classes from_class to from_class + m of n samples, class-major.

    Where a last tile is not full, its other lanes hold 0. stage: scratch of SCRATCH elements.
    """
    cdef Py_ssize_t lane, c, i, run, base
    if n % LANES != 0:
        for c in range(m):
            for lane in range(n, (n + LANES - 1) // LANES * LANES):
                to[c * width + lane] = 0
    if inner == 1:
        # All classes are held: rows of more classes are not turned.
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
            base = ((first + lane) // inner * classes + from_class) * inner + i
            for c in range(m):
                load(to + c * width + lane, x + base + c * inner, run, <real>0)
            lane += run


cdef void turn_back(
    storage *grad, const real *g, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width,
    bint streaming
) noexcept nogil:
    """Write a class-major block to where its samples lie; stage: scratch of SCRATCH elements."""
    cdef Py_ssize_t lane, c, i, run, base
    if inner == 1:
        transpose(stage, m, g, width, m, n)
        emit(grad + first * m, stage, n * m, streaming)
    else:
        lane = 0
        while lane < n:
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * classes + from_class) * inner + i
            for c in range(m):
                emit(
                    grad + base + c * inner, g + c * width + lane, run,
                    streaming and run >= LONG_RUN,
                )
            lane += run


cdef inline void shift_tile(
    real *xs, Py_ssize_t m, Py_ssize_t width, const real *shift
) noexcept nogil:
    cdef Py_ssize_t c, lane
    for c in range(m):
        for lane in range(LANES):
            xs[c * width + lane] = xs[c * width + lane] - shift[lane]


# ---- b) maxima -------------------------------------------------------------------------------

cdef void tile_max(
    const real *xs, Py_ssize_t m, Py_ssize_t width, real *top
) noexcept nogil:
    """top[lane] = max(top[lane], xs[..., lane]) over m classes; NaNs are passed over."""
    cdef real best[LANES]
    cdef real x
    cdef Py_ssize_t c, lane
    for lane in range(LANES):
        best[lane] = top[lane]
    for c in range(m):
        for lane in range(LANES):
            x = xs[c * width + lane]
            best[lane] = x if x > best[lane] else best[lane]
    for lane in range(LANES):
        top[lane] = best[lane]


cdef void tile_largest(
    const real *xs, Py_ssize_t m, Py_ssize_t width, Py_ssize_t first, real *top, int32_t *largest
) noexcept nogil:
    """`tile_max`, and which of the classes from `first` on it is."""
    cdef real best[LANES]
    cdef int32_t which[LANES]
    cdef Py_ssize_t lane
    cdef int32_t c, k
    cdef real x
    for lane in range(LANES):
        best[lane] = top[lane]
        which[lane] = largest[lane]
    for c in range(<int32_t>m):
        k = c + <int32_t>first
        for lane in range(LANES):
            x = xs[c * width + lane]
            # As a choice of k or what is there it would be a store with a branch about it.
            which[lane] += (k - which[lane]) & -<int32_t>(x > best[lane])
            best[lane] = x if x > best[lane] else best[lane]
    for lane in range(LANES):
        top[lane] = best[lane]
        largest[lane] = which[lane]


cdef inline bint fix_range(real *top, real *shift, const Temper *temper) noexcept nogil:
    """Turn maxima into exponents; those out of range become shifts. Returns whether there are."""
    cdef Py_ssize_t lane
    cdef real z
    cdef bint shifted = False
    for lane in range(LANES):
        z = over(top[lane], temper)
        shifted |= not ((z <= exp_limit(z)) & (z >= -exp_limit(z)))
    if shifted:
        for lane in range(LANES):
            shift[lane] = 0
            if not in_range(over(top[lane], temper)):
                shift[lane] = (
                    top[lane] if -<real>INFINITY < top[lane] < <real>INFINITY else <real>NAN
                )
                top[lane] = 0
    for lane in range(LANES):
        top[lane] = exponent_of(over(top[lane], temper))
    return shifted


# ---- c) sums ---------------------------------------------------------------------------------

cdef inline void add_four(
    double *high, double *low, const real *a, const real *b, const real *c, const real *d
) noexcept nogil:
    """Add four numbers to each lane's sum."""
    cdef Py_ssize_t lane
    for lane in range(LANES):
        if real is float:
            high[lane] = high[lane] + ((a[lane] + b[lane]) + (c[lane] + d[lane]))
        else:
            two_sum(<real>0, &high[lane], &low[lane], a[lane] + b[lane])
            two_sum(<real>0, &high[lane], &low[lane], c[lane] + d[lane])


cdef void tile_exp(
    real *xs, Py_ssize_t m, Py_ssize_t width, const real *magic, const real *low_x,
    const Temper *temper, Tile *tile, bint keep, const storage *ahead, Py_ssize_t stride
) noexcept nogil:
    """Exponentials of m classes, added to the lanes' sums.

    With `keep` they take the logits' place. What will be read next lies at `ahead`, a class each
    `stride` elements, and is fetched meanwhile.
    """
    cdef real e[FOUR * LANES]
    cdef Py_ssize_t lane, c = 0, i, some
    cdef const real *x
    while c < m:
        some = min(m - c, <Py_ssize_t>FOUR)
        for i in range(some):
            prefetch_bytes(ahead + (c + i) * stride, LANES * sizeof(storage))
            x = xs + i * width
            if real is float and EXP_TABLE:
                exp_by_table(&e[i * LANES], x, magic, low_x, temper)
            elif temper.temperature == 1:
                for lane in range(LANES):
                    e[i * LANES + lane] = exp_scaled(x[lane], magic[lane], low_x[lane])
            else:
                for lane in range(LANES):
                    e[i * LANES + lane] = exp_over(x[lane], magic[lane], low_x[lane], temper)
            if keep:
                memcpy(xs + i * width, &e[i * LANES], LANES * sizeof(real))
        for i in range(some, FOUR):
            for lane in range(LANES):
                e[i * LANES + lane] = 0
        add_four(
            &tile.high[0], &tile.low[0], &e[0], &e[LANES], &e[2 * LANES], &e[3 * LANES]
        )
        xs = xs + some * width
        c += some


cdef void tile_targets(
    real *a, real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class,
    Py_ssize_t m
) noexcept nogil:
    """Targets of m classes of n samples, LANES a class; stage: scratch."""
    cdef Py_ssize_t c, lane
    cdef int32_t target[LANES]
    cdef real keep = <real>job.keep, spread = <real>job.spread
    cdef real own = <real>(job.spread + job.keep), w
    if job.p32 != NULL:
        turn(a, job.p32, stage, job.classes, job.inner, first, n, from_class, m, LANES)
    elif job.p64 != NULL:
        turn(a, job.p64, stage, job.classes, job.inner, first, n, from_class, m, LANES)
    else:
        for lane in range(LANES):
            target[lane] = -1
        for lane in range(n):
            target[lane] = <int32_t>(class_of(job, first + lane) - from_class)
        for c in range(m):
            for lane in range(LANES):
                a[c * LANES + lane] = own if target[lane] == <int32_t>c else spread
    if job.target == NULL and job.keep != 1:
        for c in range(m * LANES):
            a[c] = mul_add(keep, a[c], spread)
    if job.weight != NULL:
        for c in range(m):
            w = <real>(job.weight[from_class + c] * job.unit)
            for lane in range(LANES):
                a[c * LANES + lane] = a[c * LANES + lane] * w


cdef void tile_distance(
    const real *xs, real *a, Py_ssize_t m, Py_ssize_t width, const real *top, Tile *tile,
    Group *group, const char *ahead, Py_ssize_t step, Py_ssize_t stride
) noexcept nogil:
    """Add target times distance, and the targets, of m classes.

    The target of the class left out is moved to `own_a`: its distance is 0. `step` bytes a class,
    each `stride` bytes from `ahead` on, are fetched meanwhile.
    """
    cdef Py_ssize_t lane, i, some, c = 0
    cdef real d
    cdef real part[FOUR * LANES]
    cdef real rest[LANES]        # the targets of classes beyond the last
    for lane in range(LANES):
        rest[lane] = 0
        if tile.skip[lane] >= 0:
            group.own_a[lane] = a[tile.skip[lane] * LANES + lane]
            a[tile.skip[lane] * LANES + lane] = 0
    while c < m:
        some = min(m - c, <Py_ssize_t>FOUR)
        for i in range(some):
            prefetch_bytes(ahead + (c + i) * stride, step)
            for lane in range(LANES):
                d = a[i * LANES + lane] * (top[lane] - xs[lane])
                part[i * LANES + lane] = d if a[i * LANES + lane] != 0 else <real>0
            xs = xs + width
        for i in range(some, FOUR):
            for lane in range(LANES):
                part[i * LANES + lane] = 0
        add_four(
            &tile.distance[0], &tile.distance_low[0], &part[0], &part[LANES], &part[2 * LANES],
            &part[3 * LANES],
        )
        add_four(
            &tile.others[0], &tile.others_low[0], a, a + LANES if some > 1 else &rest[0],
            a + 2 * LANES if some > 2 else &rest[0], a + 3 * LANES if some > 3 else &rest[0],
        )
        a = a + FOUR * LANES
        c += some


cdef void fit_block(
    Tile *tile, Group *group, const real *xs, Py_ssize_t c, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Look for the classes left out among classes c to c + m, which are in xs."""
    cdef Py_ssize_t lane, k
    for lane in range(LANES):
        k = group.own_class[lane] - c
        tile.skip[lane] = <int32_t>k if 0 <= k < m else -1
        if 0 <= k < m:
            group.own_x[lane] = xs[k * width + lane]


cdef void put_own(
    const Tile *tile, const double *values, real *xs, Py_ssize_t width
) noexcept nogil:
    """Put each lane's value in the place of the class left out; of NULL that is -inf."""
    cdef Py_ssize_t lane
    for lane in range(LANES):
        if tile.skip[lane] >= 0:
            xs[tile.skip[lane] * width + lane] = (
                <real>(-INFINITY) if values == NULL else <real>values[lane]
            )


# ---- d) from exponentials to what is written --------------------------------------------------

cdef void tile_scaled(
    real *e, Py_ssize_t m, Py_ssize_t width, const Tile *tile, const Group *group
) noexcept nogil:
    """e * by in place: exactly 0 for a sample that does not count."""
    cdef Py_ssize_t lane, c
    cdef real g
    cdef real by[LANES]
    cdef real low[LANES]
    cdef double at[LANES]
    cdef bint any_tiny = False     # whether some `by` is too small for the two parts
    for lane in range(LANES):
        by[lane] = <real>group.by[lane]
        low[lane] = <real>group.by_low[lane]
        at[lane] = group.at[lane] * group.by[lane]
        if real is double:
            at[lane] = mul_add(group.at[lane], group.by[lane], group.at[lane] * group.by_low[lane])
        any_tiny |= (group.by[lane] != 0) & (not in_two_parts(by[0], group, lane))
    for c in range(m):
        if any_tiny:
            # Those lanes are multiplied in double; the others as ever.
            for lane in range(LANES):
                g = mul_add(e[lane], by[lane], e[lane] * low[lane])
                if not in_two_parts(by[0], group, lane):
                    g = <real>(e[lane] * group.by[lane])
                e[lane] = g
        else:
            for lane in range(LANES):
                e[lane] = mul_add(e[lane], by[lane], e[lane] * low[lane])
        e = e + width
    put_own(tile, &at[0], e - m * width, width)
    for lane in range(LANES):
        if group.own_class[lane] < 0:
            for c in range(m):
                e[(c - m) * width + lane] = 0


cdef void tile_against_target(
    real *e, const real *a, Py_ssize_t m, Py_ssize_t width, const Job *job, const Tile *tile,
    const Group *group
) noexcept nogil:
    """e * by - a * scale in place: exactly 0 for a sample that does not count."""
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real g
    cdef real by[LANES]
    cdef real low[LANES]
    cdef real own[LANES]
    cdef real scale[LANES]
    cdef int32_t used[LANES]
    cdef int32_t wide[LANES]     # whether by or scale would lose digits, and double is used
    cdef double product
    cdef int32_t any_wide = 0
    for lane in range(LANES):
        by[lane] = <real>group.by[lane]
        low[lane] = <real>group.by_low[lane]
        own[lane] = <real>group.at[lane]
        scale[lane] = <real>(job.scale * group.factor[lane])
        used[lane] = group.own_class[lane] >= 0
        wide[lane] = not (
            in_two_parts(by[0], group, lane) and as_one(job.scale * group.factor[lane], by[0])
        )
        any_wide |= wide[lane] & used[lane]
    for c in range(m):
        if any_wide:
            for lane in range(LANES):
                g = mul_add(e[lane], by[lane], mul_add(e[lane], low[lane], -a[lane] * scale[lane]))
                product = e[lane] * group.by[lane] - a[lane] * (job.scale * group.factor[lane])
                g = <real>product if wide[lane] else g
                g = own[lane] if tile.skip[lane] == c else g
                e[lane] = g if used[lane] else <real>0
        else:
            for lane in range(LANES):
                g = mul_add(e[lane], by[lane], mul_add(e[lane], low[lane], -a[lane] * scale[lane]))
                g = own[lane] if tile.skip[lane] == c else g
                e[lane] = g if used[lane] else <real>0
        e = e + width
        a = a + LANES


cdef void tile_second(
    const real *e, real *to, Py_ssize_t m, Py_ssize_t width, const Tile *tile, const Group *group
) noexcept nogil:
    """Second derivatives from exponentials: exactly 0 for a sample that does not count."""
    cdef Py_ssize_t lane
    cdef int32_t c
    cdef real p, h
    cdef double q
    cdef real by[LANES]
    cdef real mass[LANES]
    cdef real bend[LANES]
    cdef real own[LANES]
    cdef int32_t used[LANES]
    for lane in range(LANES):
        used[lane] = group.own_class[lane] >= 0
        q = group.own[lane] / group.total[lane]
        by[lane] = <real>(1 / group.total[lane])
        mass[lane] = <real>group.mass[lane]
        bend[lane] = <real>group.bend[lane]
        own[lane] = <real>(
            q * (group.rest[lane] / group.total[lane]) * group.mass[lane]
            + q * q * group.bend[lane]
        )
    for c in range(m):
        for lane in range(LANES):
            p = e[lane] * by[lane]
            h = p * (<real>1 - p) * mass[lane] + p * p * bend[lane]
            h = own[lane] if tile.skip[lane] == c else h
            to[lane] = h if used[lane] else <real>0
        e = e + width
        to = to + width


cdef void tile_logarithm(
    real *xs, Py_ssize_t m, Py_ssize_t width, const Group *group
) noexcept nogil:
    """Logits, shifted as the largest is, to logarithms in place."""
    cdef Py_ssize_t c, lane
    for c in range(m):
        for lane in range(LANES):
            xs[lane] = <real>((<double>xs[lane] - group.own_x[lane]) - group.log_rest[lane])
        xs = xs + width


# ---- e) items of work ------------------------------------------------------------------------

cdef void tiles_item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop."""
    cdef TileSpace space
    cdef Py_ssize_t classes = job.classes, inner = job.inner
    cdef Py_ssize_t width = width_of(classes, inner)
    cdef Py_ssize_t first, n, lane, c, m, at, filled
    cdef bint whole = classes <= TILE
    cdef bint largest_too = wants_largest(job) or job.kind == SCORE, shifted
    cdef Written how = written(job)
    # Where the next samples' classes lie, of which LANES elements are fetched with each of these.
    cdef Py_ssize_t next_class = LANES if inner == 1 else inner
    cdef Py_ssize_t next_lanes = classes if inner == 1 else 1, next
    cdef Py_ssize_t size = 4 if job.p32 != NULL else 8 if job.p64 != NULL else 0
    cdef const char *probabilities = <const char *>(
        <const void *>job.p32 if job.p32 != NULL else <const void *>job.p64
    )
    cdef Group *group
    cdef Tally *tally
    cdef Tile *tile
    cdef Standing *standing
    cdef real *xs
    cdef real *stage
    cdef real *a
    cdef real *second
    cdef int32_t largest[LANES]
    cdef real top[LANES]
    cdef real maximum[LANES]     # shifted as the logits are
    cdef real shift[LANES]
    cdef real magic[LANES]
    cdef real low_x[LANES]
    tiles_space(&space, scratch, job, sizeof(real))
    group = &space.desk.group
    tally = &space.desk.tally
    tile = &space.desk.tile
    xs = <real *>space.xs
    stage = <real *>space.stage
    a = <real *>space.targets
    second = <real *>space.second
    standing = &space.desk.standing
    group.list = <int64_t *>space.ranked
    group.ranked = group.list + list_bytes(job) // 8
    clear(tally)
    first = start
    while first < stop:
        n = min(stop - first, width)
        if whole:
            turn(xs, x, stage, classes, inner, first, n, 0, classes, width)
        at = 0
        while at < n:
            filled = min(n - at, <Py_ssize_t>LANES)
            # 1. What counts, and the maximum of each lane.
            begin(job, first + at, filled, group)
            for lane in range(filled, LANES):
                group.own_class[lane] = -1
                group.factor[lane] = 0
            for lane in range(LANES):
                top[lane] = <real>(-INFINITY) if lane < filled else <real>0
                largest[lane] = 0
            if job.kind == SCORE:
                stand_begin(
                    standing, x, xs + at if whole else NULL, job, first + at, filled, width, group
                )
            c = 0
            while c < classes:
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, classes, inner, first, n, c, m, width)
                if job.kind == SCORE:
                    tile_stand(xs + at, m, width, c, &top[0], &largest[0], standing)
                    if job.top_k:
                        tile_offer(xs + at, m, width, c, filled, job, group)
                elif largest_too:
                    tile_largest(xs + at, m, width, c, &top[0], &largest[0])
                else:
                    tile_max(xs + at, m, width, &top[0])
                c += m
            if job.kind == SCORE:
                stand_end(standing, &top[0], &largest[0], group)
                if job.top_k and inserts(job.top_k):
                    tile_inserted(job, filled, group, top[0])
            if largest_too:
                for lane in range(LANES):
                    maximum[lane] = top[lane]
                    if group.own_class[lane] >= 0:
                        group.own_class[lane] = largest[lane]
            shifted = fix_range(&top[0], &shift[0], &job.temper)
            for lane in range(LANES):
                group.shift[lane] = 0
            if shifted:
                for lane in range(LANES):
                    group.shift[lane] = shift[lane]
                    # The maximum less itself: 0, or NaN where it is none.
                    maximum[lane] = maximum[lane] if shift[lane] == 0 else shift[lane] - shift[lane]
                if whole:
                    shift_tile(xs + at, classes, width, &shift[0])
            for lane in range(LANES):
                group.exponent[lane] = top[lane]
                group.own_x[lane] = 0
                magic[lane] = exp_magic(top[lane])
                if real is float and EXP_TABLE and not wants_moments(job):
                    magic[lane] = table_magic(magic[lane])
                low_x[lane] = exp_low(top[lane]) * <real>job.temper.temperature
                tile.high[lane] = tile.low[lane] = 0
            if wants_distance(job):
                for lane in range(LANES):
                    tile.distance[lane] = tile.distance_low[lane] = 0
                    tile.others[lane] = tile.others_low[lane] = group.own_a[lane] = 0
            if wants_moments(job):
                moments_clear(tile)
            # 2. Sums without the class left out.
            c = 0
            while c < classes:
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, classes, inner, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                fit_block(tile, group, xs + at, c, m, width)
                next = offset_of(job, (first + n) % job.samples, 0) + at * next_lanes
                if job.kind == SOFT:
                    tile_targets(a, stage, job, first + at, filled, c, m)
                    tile_distance(
                        xs + at, a, m, width, &maximum[0], tile, group,
                        probabilities + next * size, LANES * size, next_class * size,
                    )
                if wants_moments(job):
                    tile_moments(
                        xs + at, m, width, &magic[0], &low_x[0], &maximum[0], job, tile, x + next,
                        next_class,
                    )
                else:
                    # The exponential of the class left out is 0 so, and in no sum.
                    put_own(tile, NULL, xs + at, width)
                    tile_exp(
                        xs + at, m, width, &magic[0], &low_x[0], &job.temper, tile,
                        whole and out != NULL and how != LOGARITHM, x + next, next_class,
                    )
                if how == LOGARITHM:
                    put_own(tile, &group.own_x[0], xs + at, width)
                c += m
            # 3. What the sums come to.
            for lane in range(LANES):
                group.rest[lane] = tile.high[lane] + tile.low[lane]
                group.rest_low[lane] = tile.low[lane] - (group.rest[lane] - tile.high[lane])
            if wants_moments(job):
                moments_settle(tile, group)
            if wants_distance(job):
                for lane in range(LANES):
                    group.distance[lane] = tile.distance[lane] + tile.distance_low[lane]
                    # An infinite sum's error term is NaN, and not to be added.
                    if tile.distance_low[lane] - tile.distance_low[lane] != 0:
                        group.distance[lane] = tile.distance[lane]
                    group.others[lane] = tile.others[lane] + tile.others_low[lane]
                    group.others_low[lane] = tile.others_low[lane] - (
                        group.others[lane] - tile.others[lane]
                    )
            end(job, first + at, filled, out != NULL, group, tally, losses)
            if out == NULL:
                at += LANES
                continue
            # 4. What is written.
            for lane in range(filled, LANES):
                group.by[lane] = group.by_low[lane] = group.at[lane] = 0
                group.total[lane] = 1
                group.own[lane] = group.mass[lane] = group.bend[lane] = 0
            c = 0
            while c < classes:
                m = min(classes - c, <Py_ssize_t>TILE)
                if not whole:
                    turn(xs, x, stage, classes, inner, first, n, c, m, width)
                    if shifted:
                        shift_tile(xs, m, width, &shift[0])
                    fit_block(tile, group, xs, c, m, width)
                    if how != LOGARITHM:
                        put_own(tile, NULL, xs, width)
                        tile_exp(
                            xs, m, width, &magic[0], &low_x[0], &job.temper, tile, True, x, 0,
                        )
                    if job.kind == SOFT:
                        tile_targets(a, stage, job, first, filled, c, m)
                if how == LOGARITHM:
                    tile_logarithm(xs + at, m, width, group)
                elif how == AGAINST_TARGET:
                    if job.second != NULL:
                        tile_second(xs + at, second + at, m, width, tile, group)
                    tile_against_target(xs + at, a, m, width, job, tile, group)
                else:
                    tile_scaled(xs + at, m, width, tile, group)
                if not whole:
                    if job.second != NULL:
                        turn_back(
                            <storage *>job.second, second, stage, classes, inner, first, n, c, m,
                            width, job.streaming,
                        )
                    turn_back(
                        out, xs, stage, classes, inner, first, n, c, m, width, job.streaming
                    )
                c += m
            at += LANES
        if whole and out != NULL and job.second != NULL:
            turn_back(
                <storage *>job.second, second, stage, classes, inner, first, n, 0, classes, width,
                job.streaming,
            )
        if whole and out != NULL:
            turn_back(
                out, xs, stage, classes, inner, first, n, 0, classes, width, job.streaming
            )
        first += n
    result[0] = folded(tally)
