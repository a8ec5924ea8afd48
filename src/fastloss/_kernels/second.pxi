# Gradients with second derivatives of class indices: lanes over the samples, in any layout.
#
# LANES samples are a tile, as in tiles.pxi, but what is written is two numbers for each logit, and
# the losses are not. Logits that lie class by class are read where they lie. The largest class is
# left out of a sample's sum, `own` in what follows: p <= 1/2 for all others, so that their 1 - p
# loses nothing. Which one it is nobody asks: classes whose exponentials are alike are treated
# alike. With p the softmax, q = 1 - p and a the targets of sum 1,
#
#   gradient of a class = by * (p - a)
#   its derivative      = by * p * q + bend * d**2, d = 1 at the target, else p over the sum of all
#                         classes but the target
#
# of which the cross-entropy has by = the sample's factor and bend = 0; a is 1 at the target, or
# what smoothing makes of that. Only smoothing without class weights comes this way.
#
# Layout: a) the desk, b) the largest, c) exponentials and sums, d) what they come to, e) what is
# written, f) items of work.

from .group cimport Group, in_two_parts, settle
from .samples cimport FOCAL, Job, has_indices, offset_of
from .storage cimport emit, load, narrow, prefetch_bytes, storage, transpose
from .sums cimport LANES, Sum, add, two_sum
from .vecmath cimport (
    INFINITY, NAN, Pair, exp_low, exp_magic, exp_negative, exp_pair, exp_scaled, fma, log_pair,
    log_positive, mul_add, pair_product, product_low, real,
)
from .workspace cimport lines

cdef enum:
    STRIPE = 16              # lanes whose sums are held in registers; 16 where a loop steps by it

# Scratch of a thread; what follows it in memory is in `SecondSpace`. Arrays of LANES.
cdef struct SecondDesk:
    Group group              # own_class: what `begin` made of it, the target or -1
    double one               # 1, which the compiler does not know: see `second_exp`
    double target[LANES]     # the target, or -1
    double high[LANES]       # sums of the exponentials below the largest
    double low[LANES]
    double alike[LANES]      # how many classes have the largest logit
    double own_e[LANES]      # the largest
    double target_e[LANES]   # exponential and logit of the target, of the focal loss
    double target_x[LANES]
    # What is written is made of, in double: see `second_ending`.
    double by[LANES]         # 1 / total
    double by_low[LANES]
    double factor_by[LANES]  # by / total
    double factor_low[LANES]
    double own_a[LANES]      # factor times the target's a, and times those of the others
    double other_a[LANES]
    double over_rest[LANES]  # 1 / sum without the target, and what that lost
    double over_low[LANES]
    double bend[LANES]
    double own_grad[LANES]   # of the largest class where it is not the target, and where it is
    double own_target[LANES]
    double own_hess[LANES]   # without the bend


cdef struct SecondSpace:
    SecondDesk *desk
    void *es                 # exponentials of a block of tiles, then gradients
    void *hs                 # second derivatives; before them, logits turned class-major
    void *stage              # the same in the order of memory


cdef inline bint makes_second(const Job *job) noexcept nogil:
    """Whether this is the traversal of a job."""
    return job.second != NULL and has_indices(job)


cdef inline Py_ssize_t second_space(
    SecondSpace *space, char *scratch, const Job *job, Py_ssize_t size
) noexcept nogil:
    """Lay out a thread's scratch, elements of `size` bytes; return how many bytes it takes."""
    cdef Py_ssize_t at = lines(sizeof(SecondDesk))
    cdef Py_ssize_t block = lines(
        width_of(job.classes, job.inner) * min(job.classes, <Py_ssize_t>TILE) * size
    )
    space.desk = <SecondDesk *>scratch
    space.es = scratch + at
    space.hs = scratch + at + block
    space.stage = scratch + at + 2 * block
    return at + 3 * block


cdef void second_turn(
    real *to, const storage *x, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """`turn`, also of a part of the classes of rows."""
    cdef Py_ssize_t lane, c
    if inner != 1 or m == classes:
        turn(to, x, stage, classes, inner, first, n, from_class, m, width)
        return
    for c in range(m):
        for lane in range(n, (n + LANES - 1) // LANES * LANES):
            to[c * width + lane] = 0
    x = x + first * classes + from_class
    for lane in range(n):
        load(stage + lane * m, x + lane * classes, m, <real>0)
    transpose(to, width, stage, m, n, m)


cdef void second_turn_back(
    storage *to, const real *values, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width,
    bint streaming
) noexcept nogil:
    """`turn_back`, also of a part of the classes of rows."""
    cdef Py_ssize_t lane
    if inner != 1 or m == classes:
        turn_back(
            to, values, stage, classes, inner, first, n, from_class, m, width, streaming
        )
        return
    transpose(stage, m, values, width, m, n)
    to = to + first * classes + from_class
    for lane in range(n):
        emit(to + lane * classes, stage + lane * m, m, False)


cdef void turn_narrow(
    float *to, const real *values, real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t width
) noexcept nogil:
    """`turn_back` of all classes to an array of floats."""
    cdef float *rounded = <float *>stage
    cdef Py_ssize_t lane = 0, c, run, classes = job.classes, inner = job.inner
    if inner == 1:
        turn_back(to, values, stage, classes, inner, first, n, 0, classes, width, False)
        return
    while lane < n:
        run = min(n - lane, inner - (first + lane) % inner)
        for c in range(classes):
            narrow(rounded, values + c * width + lane, run)
            emit(
                to + offset_of(job, first + lane, c), rounded, run,
                job.streaming and run >= LONG_RUN,
            )
        lane += run


# ---- b) the largest --------------------------------------------------------------------------

cdef void second_top(
    const real *xs, Py_ssize_t stride, Py_ssize_t m, real *top
) noexcept nogil:
    """The largest of each lane; NaNs are passed over."""
    cdef real best[STRIPE]
    cdef real x
    cdef Py_ssize_t lane, c, j
    for lane in range(0, LANES, 16):
        for j in range(STRIPE):
            best[j] = top[lane + j]
        for c in range(m):
            for j in range(STRIPE):
                x = xs[c * stride + lane + j]
                best[j] = x if x > best[j] else best[j]
        for j in range(STRIPE):
            top[lane + j] = best[j]


# ---- c) exponentials and sums ----------------------------------------------------------------

cdef void second_exp(
    const real *xs, Py_ssize_t stride, real *es, Py_ssize_t width, Py_ssize_t m, const real *top,
    const real *magic, const real *low_x, SecondDesk *desk
) noexcept nogil:
    """Exponentials of m classes into es, which is not xs, and their sums.

    A loop that only copies becomes moves of 16 bytes, for which a load of a whole vector has to
    wait long. Hence what is held in registers is multiplied by `one` on its way there.
    """
    cdef real two[STRIPE]
    cdef real alike[STRIPE]
    cdef real largest[STRIPE]
    cdef real to_magic[STRIPE]
    cdef real to_low[STRIPE]
    cdef double sum_high[STRIPE]
    cdef double sum_low[STRIPE]
    cdef real a, x, one = <real>desk.one
    cdef Py_ssize_t lane, c, j
    for lane in range(0, LANES, 16):
        for j in range(STRIPE):
            sum_high[j] = desk.high[lane + j] * desk.one
            sum_low[j] = desk.low[lane + j] * desk.one
        for j in range(STRIPE):
            largest[j] = top[lane + j] * one
            to_magic[j] = magic[lane + j] * one
            to_low[j] = low_x[lane + j] * one
            two[j] = alike[j] = 0
        for c in range(m):
            for j in range(STRIPE):
                x = xs[c * stride + lane + j]
                a = exp_scaled(x, to_magic[j], to_low[j])
                es[c * width + lane + j] = a
                two[j] = two[j] + (<real>0 if x == largest[j] else a)
                alike[j] = alike[j] + (<real>1 if x == largest[j] else <real>0)
            if c & 1 == 1 or c == m - 1:
                for j in range(STRIPE):
                    two_sum(<real>0, &sum_high[j], &sum_low[j], two[j])
                for j in range(STRIPE):
                    two[j] = 0
        for j in range(STRIPE):
            desk.high[lane + j] = sum_high[j] * desk.one
            desk.low[lane + j] = sum_low[j] * desk.one
            desk.alike[lane + j] = desk.alike[lane + j] + alike[j]


cdef inline void second_fit(
    SecondDesk *desk, const real *es, Py_ssize_t width, Py_ssize_t from_class, Py_ssize_t m
) noexcept nogil:
    """Pick the targets' exponentials from those of m classes."""
    cdef Py_ssize_t lane, c
    for lane in range(LANES):
        c = desk.group.own_class[lane] - from_class
        if 0 <= c < m:
            desk.target_e[lane] = es[c * width + lane]


# ---- d) what they come to --------------------------------------------------------------------

cdef inline void second_ending(real unused, const Job *job, SecondDesk *desk) noexcept nogil:
    """All that the sums of a tile come to, but for what the focal loss makes of it."""
    cdef Group *group = &desk.group
    cdef Py_ssize_t i
    cdef double w, p, q, others = job.spread * (<double>job.classes - 1)
    cdef Sum total
    for i in range(LANES):
        # All of those alike but one.
        w = desk.alike[i] - 1
        p = w * desk.own_e[i]
        total = add(
            Sum(desk.high[i], desk.low[i]), Sum(p, product_low(w, desk.own_e[i], p))
        )
        group.rest[i] = total.high + total.low
        group.rest_low[i] = total.low - (group.rest[i] - total.high)
        total = add(Sum(group.rest[i], group.rest_low[i]), Sum(desk.own_e[i], 0))
        group.total[i] = total.high + total.low
        group.total_low[i] = total.low - (group.total[i] - total.high)
        # 1 / total to twice the digits.
        q = 1 / group.total[i]
        desk.by[i] = q
        desk.by_low[i] = (fma(-q, group.total[i], 1.0) - q * group.total_low[i]) * q
    for i in range(LANES):
        w = job.scale * group.factor[i]
        q = group.rest[i] * desk.by[i] + (
            group.rest[i] * desk.by_low[i] + group.rest_low[i] * desk.by[i]
        )
        p = desk.own_e[i] * desk.by[i] + desk.own_e[i] * desk.by_low[i]
        desk.own_grad[i] = w * (p * (others + job.keep) - job.spread * q)
        desk.own_target[i] = w * (p * others - (job.spread + job.keep) * q)
        desk.own_hess[i] = w * (p * q) * job.curve
        desk.own_a[i] = w * (job.spread + job.keep)
        desk.other_a[i] = w * job.spread
        desk.factor_by[i] = w * desk.by[i]
        desk.factor_low[i] = product_low(w, desk.by[i], desk.factor_by[i]) + w * desk.by_low[i]


cdef inline double power_of_pair(real unused, double u, double low, double gamma) noexcept nogil:
    """(u + low)**gamma; by a logarithm in two parts for compute type double."""
    cdef Pair x
    if real is float:
        return exp_negative(gamma * log_positive(u))
    else:
        x = pair_product(log_pair(Pair(u, low)), Pair(gamma, 0))
        low = x.low
        x = exp_pair(x.high)
        return x.high + (x.low + x.high * low) if u > 0 else u


cdef inline void second_focal(real unused, const Job *job, SecondDesk *desk) noexcept nogil:
    """With L the cross-entropy, p = exp(-L) and u = 1 - p of the target: the focal loss is
    F = u**gamma L, a function of L alone, and by and bend follow from

        F' = u**gamma + gamma u**(gamma - 1) p L
        F'' u**2 = gamma u**gamma p (u (2 - L) + (gamma - 1) p L)
    """
    cdef Group *group = &desk.group
    cdef Py_ssize_t i
    cdef double w, p, q, u, low, nll, power, slope, part, gamma = job.gamma
    cdef Sum others
    cdef bint own
    settle(unused, group, LANES)
    for i in range(LANES):
        w = job.scale * group.factor[i]
        own = desk.target_x[i] == group.own_x[i]
        nll = group.log_rest[i] + (0.0 if own else group.own_x[i] - desk.target_x[i])
        # The sum without the target.
        others = add(
            Sum(group.total[i], group.total_low[i] if real is double else 0.0),
            Sum(-desk.target_e[i], 0),
        )
        if own:
            others = Sum(group.rest[i], group.rest_low[i])
        u = others.high * desk.by[i]
        low = (
            fma(-u, group.total[i], others.high) + (others.low - u * group.total_low[i])
        ) * desk.by[i]
        if real is float:
            low = 0
        p = desk.target_e[i] * desk.by[i]
        # Where the target is masked, p * L is 0 in the limit.
        nll = p * nll if p > 0 else p
        if gamma == 2:
            power = u * u
            if real is double:
                power = power + (product_low(u, u, power) + 2 * u * low)
        elif gamma == 1 or gamma == 0:
            power = u if gamma == 1 else 1.0
        else:
            power = power_of_pair(unused, u, low, gamma)
        part = nll / u if u > 0 else 1.0
        slope = w * power * (1 + gamma * part) if gamma != 0 else w
        part = u * (2 * p - nll) + (gamma - 1) * p * nll
        desk.bend[i] = w * job.curve * (gamma * power * part)
        q = 1 / others.high if others.high > 0 else 0.0
        desk.over_rest[i] = q
        desk.over_low[i] = (fma(-q, others.high, 1.0) - q * others.low) * q
        q = group.rest[i] * desk.by[i] + (
            group.rest[i] * desk.by_low[i] + group.rest_low[i] * desk.by[i]
        )
        p = desk.own_e[i] * desk.by[i] + desk.own_e[i] * desk.by_low[i]
        desk.own_grad[i] = slope * p
        desk.own_target[i] = -slope * q
        desk.own_hess[i] = slope * (p * q) * job.curve
        desk.own_a[i] = slope
        desk.other_a[i] = 0
        desk.factor_by[i] = slope * desk.by[i]
        desk.factor_low[i] = (
            product_low(slope, desk.by[i], desk.factor_by[i]) + slope * desk.by_low[i]
        )


# ---- e) what is written ----------------------------------------------------------------------

cdef inline void second_stripe(
    real *es, real *hs, Py_ssize_t width, Py_ssize_t m, Py_ssize_t from_class, Py_ssize_t lane,
    const SecondDesk *desk, double curve, bint focal, bint wide
) noexcept nogil:
    """es, exponentials of m classes of STRIPE lanes, become gradients, hs second derivatives.

    wide: in double where a factor is too small for its two parts to be floats.
    """
    cdef real by[STRIPE]
    cdef real factor_by[STRIPE]
    cdef real factor_low[STRIPE]
    cdef real own_a[STRIPE]
    cdef real other_a[STRIPE]
    cdef real target[STRIPE]
    cdef real largest[STRIPE]
    cdef real own_grad[STRIPE]
    cdef real own_target[STRIPE]
    cdef real own_hess[STRIPE]
    cdef real over_rest[STRIPE]
    cdef real over_low[STRIPE]
    cdef real bend[STRIPE]
    cdef real tiny[STRIPE]
    cdef double product, d, one = desk.one
    cdef real e, g, h, k, s, by_curve = <real>curve
    cdef Py_ssize_t c, j
    for j in range(STRIPE):
        by[j] = <real>(desk.by[lane + j] * one)
        factor_by[j] = <real>(desk.factor_by[lane + j] * one)
        own_a[j] = <real>(desk.own_a[lane + j] * one)
        other_a[j] = <real>(desk.other_a[lane + j] * one)
        target[j] = <real>(desk.target[lane + j] * one)
        largest[j] = <real>(desk.own_e[lane + j] * one)
        own_grad[j] = <real>(desk.own_grad[lane + j] * one)
        own_target[j] = <real>(desk.own_target[lane + j] * one)
        own_hess[j] = <real>(desk.own_hess[lane + j] * one)
        if real is float:
            factor_low[j] = <real>(desk.factor_by[lane + j] - <double>factor_by[j])
        else:
            factor_low[j] = desk.factor_low[lane + j] * one
        if focal:
            over_rest[j] = <real>(desk.over_rest[lane + j] * one)
            if real is float:
                over_low[j] = <real>(desk.over_rest[lane + j] - <double>over_rest[j])
            else:
                over_low[j] = desk.over_low[lane + j] * one
            bend[j] = <real>(desk.bend[lane + j] * one)
        if wide:
            tiny[j] = <real>(not in_two_parts(by[0], &desk.group, lane + j))
    for c in range(m):
        k = <real>(from_class + c)
        for j in range(STRIPE):
            e = es[c * width + lane + j]
            g = mul_add(e, factor_by[j], e * factor_low[j])
            h = g * (<real>1 - e * by[j]) * by_curve
            h = own_hess[j] if e == largest[j] else h
            if focal:
                s = mul_add(e, over_rest[j], e * over_low[j])
                s = <real>1 if target[j] == k else s
                h = mul_add(s * s, bend[j], h)
            if wide:
                product = e * desk.factor_by[lane + j]
                g = <real>product if tiny[j] != 0 else g
                product = product * (1 - e * desk.by[lane + j]) * curve
                product = desk.own_hess[lane + j] if e == largest[j] else product
                if focal:
                    d = 1.0 if target[j] == k else e * desk.over_rest[lane + j]
                    product = product + d * d * desk.bend[lane + j]
                h = <real>product if tiny[j] != 0 else h
            g = g - (own_a[j] if target[j] == k else other_a[j])
            s = own_target[j] if target[j] == k else own_grad[j]
            es[c * width + lane + j] = s if e == largest[j] else g
            hs[c * width + lane + j] = h


cdef void second_plain(
    real *es, real *hs, Py_ssize_t width, Py_ssize_t m, Py_ssize_t from_class,
    const SecondDesk *desk, double curve
) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(0, LANES, 16):
        second_stripe(es, hs, width, m, from_class, lane, desk, curve, False, False)


cdef void second_bent(
    real *es, real *hs, Py_ssize_t width, Py_ssize_t m, Py_ssize_t from_class,
    const SecondDesk *desk, double curve
) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(0, LANES, 16):
        second_stripe(es, hs, width, m, from_class, lane, desk, curve, True, False)


cdef void second_wide(
    real *es, real *hs, Py_ssize_t width, Py_ssize_t m, Py_ssize_t from_class,
    const SecondDesk *desk, double curve, bint focal
) noexcept nogil:
    cdef Py_ssize_t lane
    for lane in range(0, LANES, 16):
        if focal:
            second_stripe(es, hs, width, m, from_class, lane, desk, curve, True, True)
        else:
            second_stripe(es, hs, width, m, from_class, lane, desk, curve, False, True)


cdef void second_floor(
    real *gs, real *hs, Py_ssize_t width, Py_ssize_t m, double floor
) noexcept nogil:
    """No second derivative below the floor, but where there is no gradient either."""
    cdef Py_ssize_t c, lane
    cdef real h, least = <real>floor
    for c in range(m):
        for lane in range(LANES):
            h = hs[c * width + lane]
            h = least if (h < least) & ((h != 0) | (gs[c * width + lane] != 0)) else h
            hs[c * width + lane] = h


cdef void second_clear(
    real *gs, real *hs, Py_ssize_t width, Py_ssize_t m, const SecondDesk *desk
) noexcept nogil:
    """Exactly 0 for samples that do not count, whatever their logits hold."""
    cdef Py_ssize_t c, lane
    for lane in range(LANES):
        if desk.group.own_class[lane] < 0:
            for c in range(m):
                gs[c * width + lane] = hs[c * width + lane] = 0


# ---- f) items of work ------------------------------------------------------------------------

cdef inline void second_tile(
    const storage *x, storage *out, const real *source, Py_ssize_t stride, real *es, real *hs,
    real *stage, const Job *job, Py_ssize_t first, Py_ssize_t n, Py_ssize_t width, bint whole,
    SecondDesk *desk
) noexcept nogil:
    """n <= LANES samples: into es and hs if `whole`, else all the way into memory.

    source: their logits, class-major, if `whole`.
    """
    cdef Group *group = &desk.group
    cdef Py_ssize_t classes = job.classes, lane, c = 0, m
    cdef real top[LANES]
    cdef real largest[LANES]     # shifted as the logits are
    cdef real shift[LANES]
    cdef real magic[LANES]
    cdef real low_x[LANES]
    cdef bint focal = job.kind == FOCAL, shifted, wide = False, ignored = False
    # 1. What counts, and the largest class of each lane.
    begin(job, first, n, group)
    for lane in range(n, LANES):
        group.own_class[lane] = -1
        group.factor[lane] = 0
    for lane in range(LANES):
        desk.target[lane] = <double>group.own_class[lane]
        ignored |= group.own_class[lane] < 0
        top[lane] = <real>(-INFINITY) if lane < n else <real>0
        desk.high[lane] = desk.low[lane] = desk.alike[lane] = 0
        desk.target_e[lane] = desk.target_x[lane] = 0
    while c < classes:
        m = min(classes - c, <Py_ssize_t>TILE)
        if not whole:
            second_turn(hs, x, stage, classes, job.inner, first, n, c, m, width)
            source = hs
            stride = width
        second_top(source, stride, m, &top[0])
        if focal:
            for lane in range(n):
                if c <= group.own_class[lane] < c + m:
                    desk.target_x[lane] = source[(group.own_class[lane] - c) * stride + lane]
        c += m
    for lane in range(LANES):
        largest[lane] = top[lane]
    shifted = fix_range(&top[0], &shift[0], &job.temper)
    if shifted:
        for lane in range(LANES):
            # Less itself: 0, or NaN where it is none.
            largest[lane] = largest[lane] - shift[lane]
            desk.target_x[lane] = desk.target_x[lane] - shift[lane]
    for lane in range(LANES):
        group.own_x[lane] = largest[lane]
        group.exponent[lane] = top[lane]
        magic[lane] = exp_magic(top[lane])
        low_x[lane] = exp_low(top[lane])
        desk.own_e[lane] = exp_scaled(largest[lane], magic[lane], low_x[lane])
    # 2. Exponentials, and sums without the largest.
    c = 0
    while c < classes:
        m = min(classes - c, <Py_ssize_t>TILE)
        if not whole:
            second_turn(hs, x, stage, classes, job.inner, first, n, c, m, width)
        if shifted:
            for lane in range(m if source != hs else 0):
                load(hs + lane * width, source + lane * stride, LANES, <real>0)
            shift_tile(hs, m, width, &shift[0])
            source = hs
            stride = width
        second_exp(
            source, stride, es, width, m, &largest[0], &magic[0], &low_x[0], desk
        )
        if focal:
            second_fit(desk, es, width, c, m)
        c += m
    # 3. What they come to.
    second_ending(<real>0, job, desk)
    if focal:
        second_focal(<real>0, job, desk)
    for lane in range(n):
        group.by[lane] = desk.factor_by[lane]
        wide |= not in_two_parts(<real>0, group, lane) and group.by[lane] != 0
    for lane in range(n, LANES):
        group.by[lane] = 0
    # 4. What is written.
    c = 0
    while c < classes:
        m = min(classes - c, <Py_ssize_t>TILE)
        if not whole:
            second_turn(hs, x, stage, classes, job.inner, first, n, c, m, width)
            if shifted:
                shift_tile(hs, m, width, &shift[0])
            # The sums are not needed again.
            second_exp(hs, width, es, width, m, &largest[0], &magic[0], &low_x[0], desk)
        if wide:
            second_wide(es, hs, width, m, c, desk, job.curve, focal)
        elif focal:
            second_bent(es, hs, width, m, c, desk, job.curve)
        else:
            second_plain(es, hs, width, m, c, desk, job.curve)
        if ignored:
            second_clear(es, hs, width, m, desk)
        if job.floor > -INFINITY:
            second_floor(es, hs, width, m, job.floor)
        if not whole:
            if job.narrow:
                second_turn_back(
                    <float *>job.second, hs, stage, classes, job.inner, first, n, c, m, width,
                    job.streaming,
                )
                second_turn_back(
                    <float *>out, es, stage, classes, job.inner, first, n, c, m, width,
                    job.streaming,
                )
            else:
                second_turn_back(
                    <storage *>job.second, hs, stage, classes, job.inner, first, n, c, m, width,
                    job.streaming,
                )
                second_turn_back(
                    out, es, stage, classes, job.inner, first, n, c, m, width, job.streaming
                )
        c += m


cdef void second_item(
    const storage *x, storage *out, const Job *job, Py_ssize_t start, Py_ssize_t stop,
    Sum *result, char *scratch, real unused
) noexcept nogil:
    """Samples start to stop; their losses are not summed."""
    cdef SecondSpace space
    cdef Py_ssize_t classes = job.classes, inner = job.inner
    cdef Py_ssize_t width = width_of(classes, inner)
    cdef Py_ssize_t first = start, n, at, filled, i, c
    cdef bint whole = classes <= TILE
    # Where the next tile's logits lie, LANES of them for each of these steps.
    cdef Py_ssize_t step = LANES if inner == 1 else inner
    cdef const storage *ahead
    cdef real *es
    cdef real *hs
    cdef real *stage
    second_space(&space, scratch, job, sizeof(real))
    es = <real *>space.es
    hs = <real *>space.hs
    stage = <real *>space.stage
    space.desk.one = 1
    result[0] = Sum(0, 0)
    while first < stop:
        n = min(stop - first, width)
        at = 0
        while at < n:
            filled = min(n - at, <Py_ssize_t>LANES)
            i = (first + at) % inner
            if whole:
                ahead = x + offset_of(job, (first + at + LANES) % job.samples, 0)
                for c in range(classes):
                    prefetch_bytes(ahead + c * step, LANES * sizeof(storage))
            if (
                ((storage is float and real is float) or (storage is double and real is double))
                and whole and inner > 1 and filled == LANES and i + LANES <= inner
            ):
                second_tile(
                    x, out, <const real *>(x + offset_of(job, first + at, 0)), inner, es + at,
                    hs + at, stage, job, first + at, filled, width, whole, &space.desk[0],
                )
            else:
                if whole:
                    turn(hs + at, x, stage, classes, inner, first + at, filled, 0, classes, width)
                second_tile(
                    x, out, hs + at, width, es + at, hs + at, stage, job, first + at, filled,
                    width, whole, &space.desk[0],
                )
            at += LANES
        if whole and job.narrow:
            turn_narrow(<float *>job.second, hs, stage, job, first, n, width)
            turn_narrow(<float *>out, es, stage, job, first, n, width)
        elif whole:
            turn_back(
                <storage *>job.second, hs, stage, classes, inner, first, n, 0, classes, width,
                job.streaming,
            )
            turn_back(
                out, es, stage, classes, inner, first, n, 0, classes, width, job.streaming
            )
        first += n
