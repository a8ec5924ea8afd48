# One row at a time, for loops that other people write: what fastloss.cython offers.
#
# The same arithmetic as in the traversals over many samples (rows.pxi), without their scratch
# memory: 64 classes at a time lie on the stack, and a gradient's exponentials wait where the
# gradient goes.
#
# Layout: a) a row's sums, b) functions of a row, c) a block of elements, d) under the names that
# are looked up, one for each type.

from libc.string cimport memcpy

from .element_endings cimport minus_abs, sigmoid, softplus
from .group cimport Group, divide, in_two_parts, settle
from .sums cimport LANES, RunningSum, Sum, sum_add, sum_begin, sum_end, two_sum
from .vecmath cimport (
    INFINITY, NAN, exp_limit, exp_low, exp_magic, exp_negative, exp_scaled, exponent_of, mul_add,
    real,
)

cdef enum:
    STEP = 16                # classes that a short row is filled up to a multiple of
    HELD = 128               # elements of a block that are worked on at a time


# ---- a) a row's sums -------------------------------------------------------------------------

cdef real largest_of(const real *x, Py_ssize_t n, Py_ssize_t *where) noexcept nogil:
    """The largest of x[:n] and its place; NaNs are passed over, of nothing it is -inf."""
    cdef real best[STEP]
    cdef real top = <real>(-INFINITY)
    cdef Py_ssize_t i = 0, j
    for j in range(STEP):
        best[j] = <real>(-INFINITY)
    while i + STEP <= n:
        for j in range(STEP):
            best[j] = x[i + j] if x[i + j] > best[j] else best[j]
        i += STEP
    for j in range(STEP):
        top = best[j] if best[j] > top else top
    while i < n:
        top = x[i] if x[i] > top else top
        i += 1
    where[0] = 0
    for i in range(n):
        if x[i] == top:
            where[0] = i
            break
    return top


cdef void sum_row(
    const real *x, Py_ssize_t n, Py_ssize_t own, real top, real *e, Group *group
) noexcept nogil:
    """The sums of x[:n] without x[own], settled; e, unless it is NULL, gets all exponentials.

    top: the largest of them. e may be x.
    """
    cdef RunningSum sum
    cdef Sum rest
    cdef real a[LANES]
    cdef real shift = 0, exponent, magic, low
    cdef Py_ssize_t i, j, m, filled
    if not -exp_limit(top) <= top <= exp_limit(top):
        shift = top if -<real>INFINITY < top < <real>INFINITY else <real>NAN
        top = 0
    exponent = exponent_of(top)
    magic = exp_magic(exponent)
    low = exp_low(exponent)
    group.own_x[0] = x[own] - shift
    group.shift[0] = shift
    group.exponent[0] = exponent
    sum_begin(&sum, top)
    i = 0
    while i < n:
        m = min(n - i, <Py_ssize_t>LANES)
        filled = (m + STEP - 1) // STEP * STEP
        for j in range(m):
            a[j] = x[i + j] - shift
        for j in range(m, filled):
            a[j] = <real>(-INFINITY)
        for j in range(filled):
            a[j] = exp_scaled(a[j], magic, low)
        for j in range(filled, LANES):
            a[j] = 0
        if e != NULL:
            memcpy(e + i, &a[0], m * sizeof(real))
        sum_add(&sum, &a[0], 0, own - i)
        i += m
    rest = sum_end(&sum, top)
    group.rest[0] = rest.high + rest.low
    group.rest_low[0] = rest.low - (group.rest[0] - rest.high)
    settle(top, group, 1)


cdef void scale_row(
    real *e, Py_ssize_t n, Py_ssize_t own, double by_what, double at, Group *group
) noexcept nogil:
    """Exponentials to by_what times probabilities in place, with `at` for that of `own`."""
    cdef Py_ssize_t i
    cdef real by, low
    cdef double result
    divide(e[0], group, 1, &by_what, NULL)
    by = <real>group.by[0]
    low = <real>group.by_low[0]
    result = mul_add(at, group.by[0], at * group.by_low[0] if real is double else 0.0)
    if in_two_parts(by, group, 0) or by_what == 0:
        for i in range(n):
            e[i] = mul_add(e[i], by, e[i] * low)
    else:
        for i in range(n):
            e[i] = <real>(e[i] * group.by[0])
    e[own] = <real>result


# ---- b) functions of a row -------------------------------------------------------------------

cdef inline double logsumexp_row(const real *x, Py_ssize_t n) noexcept nogil:
    cdef Group group
    cdef Py_ssize_t own, i
    cdef real top = largest_of(x, n, &own)
    if n <= 0:
        return -INFINITY
    if top - top != 0:
        # An infinite logit is the answer, but a NaN anywhere wins.
        for i in range(n):
            if x[i] != x[i]:
                return NAN
        return top
    sum_row(x, n, own, top, <real *>NULL, &group)
    return (group.own_x[0] + group.shift[0]) + group.log_rest[0]


cdef inline void softmax_row(const real *x, Py_ssize_t n, real *out) noexcept nogil:
    cdef Group group
    cdef Py_ssize_t own
    cdef real top = largest_of(x, n, &own)
    if n > 0:
        sum_row(x, n, own, top, out, &group)
        scale_row(out, n, own, 1, group.own[0], &group)


cdef inline double cross_entropy_row(
    const real *x, Py_ssize_t n, Py_ssize_t target, double scale, real *grad
) noexcept nogil:
    """The loss, and unless `grad` is NULL the gradient, that of the target -rest / total."""
    cdef Group group
    cdef Py_ssize_t own, i
    cdef real top
    if not 0 <= target < n:
        if grad != NULL:
            for i in range(n):
                grad[i] = <real>NAN
        return NAN
    top = largest_of(x, n, &own)
    sum_row(x, n, target, top, grad, &group)
    if grad != NULL:
        scale_row(grad, n, target, scale, -group.rest[0], &group)
    return group.log_rest[0]


# ---- c) a block of elements ------------------------------------------------------------------

cdef inline double bce_block(
    const real *x, const real *target, Py_ssize_t n, double scale, real *losses, real *grad
) noexcept nogil:
    """Sum of the losses; losses and gradients are written where there is a place for them."""
    cdef real loss[HELD]
    cdef real slope[HELD]
    cdef real e, t, v, a, b
    cdef double high = 0, low = 0
    cdef Py_ssize_t i, first = 0, m
    while first < n:
        m = min(n - first, <Py_ssize_t>HELD)
        for i in range(m):
            v = x[first + i]
            t = target[first + i]
            e = exp_negative(minus_abs(v))
            # A target of exactly 0 or 1 leaves a term out, an infinite one too.
            a = <real>0 if t == 0 else t * softplus(-v, e)
            b = <real>0 if t == 1 else (<real>1 - t) * softplus(v, e)
            loss[i] = a + b
            slope[i] = (<real>1 - t) * sigmoid(v, e) - t * sigmoid(-v, e)
        for i in range(m):
            two_sum(<double>0, &high, &low, loss[i])
        if losses != NULL:
            memcpy(losses + first, &loss[0], m * sizeof(real))
        if grad != NULL:
            for i in range(m):
                slope[i] = <real>(slope[i] * scale)
            memcpy(grad + first, &slope[0], m * sizeof(real))
        first += m
    # An infinite sum's error term is NaN, and not to be added.
    return high + low if low - low == 0 else high


# ---- d) by name and type ---------------------------------------------------------------------

cdef double logsumexp_row_float32(const float *x, Py_ssize_t classes) noexcept nogil:
    return logsumexp_row(x, classes)


cdef double logsumexp_row_float64(const double *x, Py_ssize_t classes) noexcept nogil:
    return logsumexp_row(x, classes)


cdef void softmax_row_float32(const float *x, Py_ssize_t classes, float *out) noexcept nogil:
    softmax_row(x, classes, out)


cdef void softmax_row_float64(const double *x, Py_ssize_t classes, double *out) noexcept nogil:
    softmax_row(x, classes, out)


cdef double cross_entropy_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil:
    return cross_entropy_row(x, classes, target, 1, <float *>NULL)


cdef double cross_entropy_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil:
    return cross_entropy_row(x, classes, target, 1, <double *>NULL)


cdef double cross_entropy_grad_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target, double scale, float *grad
) noexcept nogil:
    return cross_entropy_row(x, classes, target, scale, grad)


cdef double cross_entropy_grad_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target, double scale, double *grad
) noexcept nogil:
    return cross_entropy_row(x, classes, target, scale, grad)


cdef double bce_with_logits_block_float32(
    const float *x, const float *target, Py_ssize_t n, double scale, float *losses, float *grad
) noexcept nogil:
    return bce_block(x, target, n, scale, losses, grad)


cdef double bce_with_logits_block_float64(
    const double *x, const double *target, Py_ssize_t n, double scale, double *losses, double *grad
) noexcept nogil:
    return bce_block(x, target, n, scale, losses, grad)
