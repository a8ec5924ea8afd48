# Endings: what each loss, and each function over classes, makes of its samples' sums.
#
# Layout: a) before the sums, b) an ending for each kind, c) the choice between them.
#
# The traversals (rows.pxd, tiles.pxd) know exponentials and sums, and nothing of losses. An ending
# sees up to LANES samples at once, outside the hot loops. It fills in their losses, and what turns
# exponentials into what is written: see `Written`.

from libc.stdint cimport int64_t

from .group cimport Group, divide, settle
from .samples cimport (
    CROSS_ENTROPY, FOCAL, LOGSUMEXP, LOG_SOFTMAX, SCORE, SOFT, SOFTMAX, Job, class_of, factor_of,
    has_indices, logit_at, offset_of, weighted,
)
from .sums cimport LANES, Sum, Tally, add, count
from .vecmath cimport (
    INFINITY, NAN, Pair, exp_negative, exp_pair, fma, log_pair, log_positive, log_scaled,
    pair_product, real, spare_bits,
)

# How an element of the result is made of the exponential e of its class.
cdef enum Written:
    SCALED = 0           # e * by, and at * by for the class left out
    AGAINST_TARGET = 1   # e * by - target * scale, and `at` for the class left out
    LOGARITHM = 2        # logit less the logarithm of the sum


cdef inline Written written(const Job *job) noexcept nogil:
    if job.kind == SOFT:
        return AGAINST_TARGET
    return LOGARITHM if job.kind == LOG_SOFTMAX else SCALED


cdef inline bint wants_largest(const Job *job) noexcept nogil:
    """Whether the largest class is looked for, to be left out of the sample's sum."""
    return not has_indices(job) and job.kind != SOFTMAX and job.kind != SCORE


cdef inline bint wants_distance(const Job *job) noexcept nogil:
    """Whether the ending reads `distance` (and of SOFT the masses)."""
    return job.kind == SOFT or wants_spread(job)


# ---- a) before the sums ----------------------------------------------------------------------

cdef void begin(
    const Job *job, Py_ssize_t first, Py_ssize_t n, Group *group
) noexcept nogil:
    """factor of n samples, and own_class: the target, or -1 where the sample does not count.

    Elsewhere own_class is 0, till the largest class is found.
    """
    cdef Py_ssize_t i
    cdef int64_t t, ignored = job.ignore_index, classes = job.classes
    cdef bint indices = has_indices(job)
    cdef double one = 1 / job.unit
    if job.target == NULL or job.kind == SCORE:
        for i in range(n):
            group.own_class[i] = 0
            group.factor[i] = one
    else:
        for i in range(n):
            t = job.target[first + i]
            t = t if (t != ignored) & (t >= 0) & (t < classes) else -1
            group.own_class[i] = <Py_ssize_t>(t if indices or t < 0 else 0)
        for i in range(n):
            group.factor[i] = one if group.own_class[i] >= 0 else 0.0
    if indices and (job.weight != NULL or job.factor != NULL):
        for i in range(n):
            if group.own_class[i] >= 0:
                group.factor[i] = factor_of(job, first + i, group.own_class[i])
    elif job.factor != NULL:
        for i in range(n):
            if group.own_class[i] >= 0:
                group.factor[i] = group.factor[i] * job.factor[first + i]


# ---- b) endings ------------------------------------------------------------------------------

cdef inline double log_of_sum(real unused, const Group *group, Py_ssize_t i) noexcept nogil:
    """Logarithm of the sum of a sample's exponentials, as they were given.

    Through the class left out only where that is the largest: it may be any distance below.
    """
    cdef double s
    if group.rest[i] <= group.own[i]:
        return (group.own_x[i] + group.shift[i]) + group.log_rest[i]
    s = log_scaled(group.total[i], group.exponent[i] - <double>spare_bits(unused))
    return s + group.shift[i] if group.total[i] - group.total[i] == 0 else NAN


cdef inline void cross_entropy_ending(
    real unused, const Job *job, Py_ssize_t n, bint gradient, Group *group
) noexcept nogil:
    """loss = L, gradient = p, and p - 1 = -rest / total at the target.

    With z_loss: loss + z S**2, S the logarithm of the sum, and all p times 1 + 2 z S.
    """
    cdef Py_ssize_t i
    cdef double s, slope
    cdef double by_what[LANES]
    for i in range(n):
        group.loss[i] = group.log_rest[i]
    if gradient:
        for i in range(n):
            group.at[i] = -group.rest[i]
            by_what[i] = job.scale * group.factor[i]
    if job.z_loss != 0:
        for i in range(n):
            s = log_of_sum(unused, group, i)
            group.loss[i] = group.loss[i] + job.z_loss * s * s
            slope = 2 * job.z_loss * s
            s = 1 + slope
            # `at` is a multiple of this; the product of both is finite even where it vanishes.
            s = 1e-200 if -1e-200 < s < 1e-200 else s
            by_what[i] = by_what[i] * s
            group.at[i] = (slope * group.own[i] - group.rest[i]) / s
    if gradient:
        divide(unused, group, n, &by_what[0], NULL)


cdef inline double power_of(
    real unused, const Group *group, Py_ssize_t i, double u, double gamma
) noexcept nogil:
    """u**gamma of u = rest / total; by a logarithm in two parts for compute type double."""
    cdef double low
    cdef Pair x
    if real is float:
        return exp_negative(gamma * log_positive(u))
    else:
        low = fma(-u, group.total[i], group.rest[i]) + (
            group.rest_low[i] - u * group.total_low[i]
        )
        x = pair_product(log_pair(Pair(u, low / group.total[i])), Pair(gamma, 0))
        low = x.low
        x = exp_pair(x.high)
        low = x.high + (x.low + x.high * low)
        return low if u > 0 else u


cdef inline void focal_ending(
    real unused, const Job *job, Py_ssize_t n, bint gradient, Group *group
) noexcept nogil:
    """loss = u**gamma L with u = 1 - p_t = rest / total.

    Its derivative is that of the cross-entropy times u**gamma + gamma u**(gamma - 1) p_t L.
    """
    cdef Py_ssize_t i
    cdef double u, power, slope
    cdef double by_what[LANES]
    for i in range(n):
        u = group.rest[i] / group.total[i]
        if job.gamma == 2:
            power = u * u
            slope = 2 * u
        elif job.gamma == 1 or job.gamma == 0:
            power = u if job.gamma == 1 else 1.0
            slope = job.gamma
        else:
            power = power_of(unused, group, i, u, job.gamma)
            slope = job.gamma * (power / u if u > 0 else 0.0)
        group.loss[i] = power * group.log_rest[i]
        group.at[i] = -group.rest[i]
        slope = slope * (group.own[i] / group.total[i])
        # Where the target is masked, p_t L is 0 in the limit.
        slope = slope * group.log_rest[i] if slope != 0 else 0.0
        by_what[i] = job.scale * group.factor[i] * (power + slope)
    if gradient:
        divide(unused, group, n, &by_what[0], NULL)


cdef inline void soft_ending(
    real unused, const Job *job, Py_ssize_t first, Py_ssize_t n, bint gradient, Group *group
) noexcept nogil:
    """With targets a, of sum A, and the largest logit m: loss = sum(a (m - x)) + A L.

    The gradient is A p - a; at the largest p * (the other targets) - a (1 - p), terms of two signs.
    With z_loss: loss + z w S**2, S the logarithm of the sum and w the weight of a class index, and
    2 z w S more for each A. The second derivative is A p (1 - p), and 2 z w p**2 more.
    """
    cdef Py_ssize_t i
    cdef double s, w, part
    cdef Sum mass
    for i in range(n):
        mass = add(Sum(group.others[i], group.others_low[i]), Sum(group.own_a[i], 0))
        group.mass[i] = mass.high
        group.mass_low[i] = mass.low
        part = group.mass[i] * group.log_rest[i]
        group.loss[i] = group.distance[i] + (0.0 if group.mass[i] == 0 else part)
        if group.total[i] - group.total[i] != 0:
            group.loss[i] = NAN
    if job.z_loss != 0:
        for i in range(n):
            w = job.unit
            if job.target != NULL and job.weight != NULL and group.own_class[i] >= 0:
                w = w * job.weight[max(class_of(job, first + i), <Py_ssize_t>0)]
            s = log_of_sum(unused, group, i)
            group.loss[i] = group.loss[i] + w * job.z_loss * s * s
            group.bend[i] = 2 * w * job.z_loss
            s = group.bend[i] * s
            group.mass[i] = group.mass[i] + s
            group.others[i] = group.others[i] + s
    if gradient:
        for i in range(n):
            w = job.scale * group.factor[i]
            group.at[i] = w * (
                group.own[i] / group.total[i] * group.others[i]
                - group.own_a[i] * (group.rest[i] / group.total[i])
            )
            group.mass[i] = group.mass[i] * w
            group.mass_low[i] = group.mass_low[i] * w
            group.bend[i] = group.bend[i] * w if job.z_loss != 0 else 0.0
        divide(unused, group, n, &group.mass[0], &group.mass_low[0])


cdef inline void softmax_ending(real unused, Py_ssize_t n, Group *group) noexcept nogil:
    cdef Py_ssize_t i
    cdef double by_what[LANES]
    for i in range(n):
        group.at[i] = group.own[i]
        by_what[i] = 1
    divide(unused, group, n, &by_what[0], NULL)


cdef inline void logsumexp_ending(
    const Job *job, Py_ssize_t first, Py_ssize_t n, const Group *group
) noexcept nogil:
    """Where the largest logit is infinite it is the answer, but a NaN anywhere wins."""
    cdef Py_ssize_t i, c
    cdef double value, largest
    for i in range(n):
        job.number[first + i] = (group.own_x[i] + group.shift[i]) + group.log_rest[i]
        if group.shift[i] != group.shift[i]:
            largest = -INFINITY
            for c in range(job.classes):
                value = logit_at(job, offset_of(job, first + i, c))
                if value != value:
                    largest = value
                    break
                largest = value if value > largest else largest
            job.number[first + i] = largest


# ---- c) the choice ---------------------------------------------------------------------------

cdef void over_temperature(const Job *job, Py_ssize_t n, Group *group) noexcept nogil:
    """Divide what is a logit, or a difference of two."""
    cdef Py_ssize_t i
    cdef double by = job.temper.inverse
    for i in range(n):
        group.own_x[i] = group.own_x[i] * by
        group.shift[i] = group.shift[i] * by
    if wants_distance(job):
        for i in range(n):
            group.distance[i] = group.distance[i] * by
    if job.kind == SCORE:
        for i in range(n):
            group.gap[i] = group.gap[i] * by
            group.margin[i] = group.margin[i] * by
            group.spread[i] = group.spread[i] * by * by


cdef void end(
    const Job *job, Py_ssize_t first, Py_ssize_t n, bint gradient, Group *group, Tally *tally,
    real *losses
) noexcept nogil:
    """All that follows from the sums of n samples."""
    cdef Py_ssize_t i
    if job.temper.temperature != 1:
        over_temperature(job, n, group)
    settle(<real>0, group, n)
    if job.kind == CROSS_ENTROPY:
        cross_entropy_ending(<real>0, job, n, gradient, group)
    elif job.kind == SOFT:
        soft_ending(<real>0, job, first, n, gradient, group)
    elif job.kind == FOCAL:
        focal_ending(<real>0, job, n, gradient, group)
    elif job.kind == LOGSUMEXP:
        logsumexp_ending(job, first, n, group)
        return
    elif job.kind == SCORE:
        score_ending(<real>0, job, first, n, group)
        return
    else:
        if job.kind == SOFTMAX:
            softmax_ending(<real>0, n, group)
        return
    for i in range(n):
        group.loss[i] = weighted(group.factor[i], group.loss[i])
        # An ignored sample has loss 0, whatever its logits made of it.
        group.loss[i] = group.loss[i] if group.own_class[i] >= 0 else 0.0
    count(tally, &group.loss[0], n)
    if losses != NULL:
        for i in range(n):
            losses[first + i] = <real>group.loss[i]
