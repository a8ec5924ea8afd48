# What each loss of single elements makes of a block of them.
#
# An ending reads x and t of the desk and writes a loss and a gradient (and a second derivative) for
# each element. Weights, the upstream gradient and the scale are multiplied in afterwards, in
# double, in one way for all (elements.pyx).
#
# Layout: a) the desk, b) binary cross-entropy, c) focal loss, d) divergence, e) functions, f) what
# a float does for, g) logarithms that a sum shares.

from libc.stdint cimport int32_t, uint32_t

from .operands cimport Operand
from .sums cimport LANES, PARTS
from .vecmath cimport (
    FMA, INFINITY, NAN, Pair, Pair32, bits32, exp_negative, exp_pair, exp_pair32, float_of,
    log1p, log1p_positive, log1p_unit, log_cubic, log_exponent, log_fraction, log_normal,
    log_of, log_pair, log_positive, mul_add, pair_inverse, pair_product, pair_sum, product_low,
    product_low32, real,
)

cdef enum:
    BLOCK = 512              # elements that are worked on at a time: 512, 256 or 128
    DOUBLES = 128            # and of doubles, whose desk is to stay in the nearest cache
    AHEAD = 1024             # elements that are fetched before they are read
    KEPT = 4096              # elements of a gradient that may wait to be written

# What to compute. fastloss.losses and fastloss.special name the same numbers.
cdef enum:
    BCE_WITH_LOGITS = 0
    BCE = 1
    FOCAL = 2
    KL = 3
    KL_LOG_TARGET = 4
    SIGMOID = 5
    LOG_SIGMOID = 6
    SOFTPLUS = 7

# What goes with the elements, in the order in which Python passes it.
cdef enum:
    TARGET = 0
    WEIGHT = 1
    SAMPLE_WEIGHT = 2
    POS_WEIGHT = 3
    ALPHA = 4
    UPSTREAM = 5
    OPERANDS = 6

# ---- a) the desk -----------------------------------------------------------------------------

cdef struct Job:
    int kind
    Py_ssize_t size
    Py_ssize_t item          # elements that a thread does at a time
    Operand x                # what is computed from, as an operand
    Operand operands[OPERANDS]
    double gamma
    double scale             # of the gradient
    double floor             # least second derivative, -inf: none
    double ignored           # target that takes an element out
    bint ignoring            # whether there is one
    bint integral            # whether a target other than 0, 1 and `ignored` is wrong
    bint want_loss
    bint want_gradient
    bint want_hess
    Py_ssize_t step          # elements of a block
    bint floats              # whether float may do for elements of this call
    bint quick               # whether float may do for whole blocks, without a look at each
    bint factored            # whether losses and gradients may be multiplied up
    bint check               # whether what is read is still to be checked
    bint weigh               # whether sample weights are still to be added up
    bint look                # only these two are to be done
    bint narrow              # what is written are floats though x are doubles
    bint streaming

# A thread's scratch. Arrays that are fields of one struct do not overlap, and the compiler knows.
cdef struct Desk:
    float x32[BLOCK]
    float t32[BLOCK]
    float loss32[BLOCK]
    float grad32[BLOCK]
    float e32[BLOCK]         # what f) and g) take the logarithm of 1 and that of
    float by32[BLOCK]        # a factor, or 0 for what float does not do for
    float positive32[BLOCK]
    float row32[2 * BLOCK]   # a factor that repeats, over and over
    float alpha32[BLOCK]     # weights of the target and of what it is less than 1
    float rest32[BLOCK]
    double x[BLOCK]
    double t[BLOCK]
    double e[BLOCK]
    double loss[BLOCK]
    double grad[BLOCK]
    double hess[BLOCK]
    double by[BLOCK]         # a factor
    double kept[BLOCK]       # 0 for what is ignored
    double p[BLOCK]
    double q[BLOCK]
    double u[BLOCK]
    double u_low[BLOCK]
    double power[BLOCK]
    double d[BLOCK]
    double b[BLOCK]
    float waiting[KEPT]      # gradient on its way past the caches


# ---- b) binary cross-entropy -----------------------------------------------------------------

cdef inline real softplus(real z, real e) noexcept nogil:
    """log(1 + exp(z)), with e = exp(-|z|)."""
    return (z if z > 0 else <real>0) + log1p_unit(e)


cdef inline real sigmoid(real z, real e) noexcept nogil:
    """1 / (1 + exp(-z)), with e = exp(-|z|)."""
    return (e if z < 0 else <real>1) / (<real>1 + e)


cdef inline real minus_abs(real z) noexcept nogil:
    if real is float:
        return float_of(bits32(z) | 0x80000000u)
    else:
        return z if z < 0 else -z


cdef inline bint all_hard(const double *t, Py_ssize_t n) noexcept nogil:
    """Whether every target is 0 or 1."""
    cdef Py_ssize_t i
    cdef int soft = 0
    for i in range(n):
        soft |= (t[i] != 0) & (t[i] != 1)
    return soft == 0


cdef inline void bce(
    const real *x, const real *t, const real *positive, real *e, real *loss, real *grad,
    real scale, Py_ssize_t n
) noexcept nogil:
    """exp(-|x|), the gradient, and in `loss` what `add_softplus` adds a logarithm to.

    With a = t * positive and b = 1 - t the loss is a * softplus(-x) + b * softplus(x), that is
    (a + b) * log(1 + exp(-|x|)), and |x| times a or b. Neither cancels. The slope of both has one
    denominator. positive: weights of the term of t, or NULL; grad may be NULL.
    """
    cdef Py_ssize_t i
    cdef real minus, small, a, b, c, d
    for i in range(n):
        minus = minus_abs(x[i])
        small = exp_negative(minus)
        e[i] = small
        a = t[i]
        if positive != NULL:
            a = <real>0 if a == 0 else a * positive[i]
        b = <real>1 - t[i]
        c = b if x[i] > 0 else a
        # A target of exactly 0 or 1, or a weight of 0, leaves a term out, an infinite one too.
        loss[i] = <real>0 if c == 0 else -(c * minus)
    if grad != NULL:
        for i in range(n):
            a = t[i]
            if positive != NULL:
                a = <real>0 if a == 0 else a * positive[i]
            b = <real>1 - t[i]
            c = b if x[i] > 0 else a
            d = a if x[i] > 0 else b
            c = mul_add(-d, e[i], c) / (<real>1 + e[i])
            grad[i] = (c if x[i] > 0 else -c) * scale


cdef inline void add_softplus(
    const real *e, const real *t, const real *positive, real *loss, Py_ssize_t n
) noexcept nogil:
    """The rest of the loss of `bce`."""
    cdef Py_ssize_t i
    cdef real a, c
    for i in range(n):
        c = log1p_unit(e[i])
        if positive != NULL:
            a = (<real>0 if t[i] == 0 else t[i] * positive[i]) + (<real>1 - t[i])
            c = a * c
        loss[i] = c + loss[i]


cdef inline real probability_slope(real p, real t) noexcept nogil:
    """(p - t) / max(p * (1 - p), 1e-12)."""
    cdef real d = p * (<real>1 - p)
    return (p - t) / (d if d > <real>1e-12 else <real>1e-12)


cdef inline void bce_probabilities(
    const double *p, const double *t, double *loss, double *grad, Py_ssize_t n
) noexcept nogil:
    """Probabilities in [0, 1]; logarithms are clamped at -100. grad may be NULL."""
    cdef Py_ssize_t i
    cdef double a, b
    for i in range(n):
        a = log_positive(p[i])
        b = log1p(-p[i])
        a = a if a > -100 else -100.0
        b = b if b > -100 else -100.0
        loss[i] = -(t[i] * a + (1 - t[i]) * b)
    if grad != NULL:
        for i in range(n):
            grad[i] = probability_slope(p[i], t[i])


# ---- c) focal loss ---------------------------------------------------------------------------
#
# u**gamma * BCE, with u = p * (1 - t) + q * t the probability of the wrong answer, p = sigmoid(x)
# and q = sigmoid(-x). The power makes of an error of u one that is gamma times as large, and of one
# of its logarithm 700 times: where the result is a double (`exact`) both are taken in two parts.
# Where it is a float, a double does for them, and a float for the cross-entropy.

cdef inline void focal_parts(Desk *desk, Py_ssize_t n, bint want_slope) noexcept nogil:
    """p, q, u, the cross-entropy in `loss`, its slope b, and d = u' / u if wanted."""
    cdef Py_ssize_t i
    cdef double e, r, x, t, a, c, log
    for i in range(n):
        x = desk.x[i]
        t = desk.t[i]
        e = exp_negative(minus_abs(x))
        r = 1 / (1 + e)
        a = e * r
        desk.p[i] = a if x < 0 else r
        desk.q[i] = r if x < 0 else a
        desk.u[i] = desk.p[i] * (1 - t) + desk.q[i] * t
        desk.b[i] = desk.p[i] * (1 - t) - desk.q[i] * t
        # A float cannot hold an e that is small, but that is log(1 + e) itself.
        log = <double>log1p_unit(<float>e)
        log = e if e < 1e-9 else log
        c = 1 - t if x > 0 else t
        a = c * -minus_abs(x)
        desk.loss[i] = log + (0.0 if c == 0 else a)
    if not want_slope:
        return
    if all_hard(&desk.t[0], n):
        for i in range(n):
            desk.d[i] = -desk.p[i] if desk.t[i] != 0 else desk.q[i]
    else:
        for i in range(n):
            t = desk.t[i]
            a = desk.p[i] * desk.q[i] * (1 - 2 * t) / desk.u[i]
            a = desk.q[i] if t == 0 else a
            desk.d[i] = -desk.p[i] if t == 1 else a


cdef inline void focal_parts_exact(Desk *desk, Py_ssize_t n) noexcept nogil:
    """`focal_parts` from numbers in two parts: each at most 1.1 ulp off."""
    cdef Py_ssize_t i
    cdef double x, t, a, c, low
    cdef Pair both, small, large, p, q, u, rest, log
    for i in range(n):
        x = desk.x[i]
        t = desk.t[i]
        small = exp_pair(minus_abs(x))
        both = pair_sum(Pair(1, 0), small)
        large = pair_inverse(both)
        small = pair_product(small, large)
        p.high = small.high if x < 0 else large.high
        p.low = small.low if x < 0 else large.low
        q.high = large.high if x < 0 else small.high
        q.low = large.low if x < 0 else small.low
        rest = Pair(1 - t, (1 - (1 - t)) - t)
        large = pair_product(p, rest)
        small = pair_product(q, Pair(t, 0))
        u = pair_sum(large, small)
        desk.u[i] = u.high + u.low
        desk.u_low[i] = (u.high - desk.u[i]) + u.low
        small = pair_sum(large, Pair(-small.high, -small.low))
        desk.b[i] = small.high + small.low
        desk.p[i] = p.high + p.low
        desk.q[i] = q.high + q.low
        # p * q * (1 - 2 * t) / u, with p and u times a power of two where 1 / u would be infinite
        a = 3.402823669209385e38 if u.high < 1e-280 else 1.0
        p = Pair(a * p.high, a * p.low)
        u = Pair(a * u.high, a * u.low)
        p = pair_product(pair_product(p, q), pair_inverse(u))
        p = pair_product(p, Pair(1 - 2 * t, (1 - (1 - 2 * t)) - 2 * t))
        desk.d[i] = p.high + p.low
        log = log_pair(both)
        c = rest.high if x > 0 else t
        low = rest.low if x > 0 else 0.0
        x = -minus_abs(x)
        a = c * x
        low = product_low(c, x, a) + low * x
        a = 0.0 if c == 0 else a
        low = low if low - low == 0 else 0.0
        desk.loss[i] = (a + log.high) + (log.low + (0.0 if c == 0 else low))


cdef inline void focal_power(Desk *desk, double gamma, Py_ssize_t n, bint exact) noexcept nogil:
    """u**gamma."""
    cdef Py_ssize_t i
    cdef double y, low, u
    cdef Pair part
    if gamma == 2:
        for i in range(n):
            u = desk.u[i]
            y = u * u
            if exact:
                y = y + (product_low(u, u, y) + 2 * u * desk.u_low[i])
            desk.power[i] = y
    elif gamma == 1 or gamma == 0:
        for i in range(n):
            desk.power[i] = desk.u[i] if gamma == 1 else 1.0
    elif exact:
        for i in range(n):
            part = log_pair(Pair(desk.u[i], desk.u_low[i]))
            y = gamma * part.high
            low = product_low(gamma, part.high, y) + gamma * part.low
            low = low if y > -1000 else 0.0
            part = exp_pair(-1000.0 if y < -1000 else y)
            y = part.high + (part.low + part.high * low)
            desk.power[i] = 0.0 if desk.u[i] == 0 else y
    else:
        for i in range(n):
            desk.power[i] = exp_negative(gamma * log_positive(desk.u[i]))


cdef inline void focal(
    Desk *desk, double gamma, Py_ssize_t n, bint want_gradient, bint want_hess, bint exact
) noexcept nogil:
    """desk.by * u**gamma * BCE, exact or as exact as a float.

    An infinite logit's cross-entropy meets a factor of 0, and that wins.
    """
    cdef Py_ssize_t i
    cdef double p, q, a, b, d, ce, power, low = 0
    if exact:
        focal_parts_exact(desk, n)
    else:
        focal_parts(desk, n, want_gradient or want_hess)
    focal_power(desk, gamma, n, exact)
    for i in range(n):
        ce = desk.loss[i]
        b = desk.b[i]
        d = 0.0 if desk.u[i] == 0 else desk.d[i]
        power = desk.by[i] * desk.power[i]
        if exact:
            low = product_low(desk.by[i], desk.power[i], power)
        a = ce * power
        if exact:
            a = mul_add(ce, power, ce * low) if ce - ce == 0 else a
        desk.loss[i] = 0.0 if power == 0 else a
        # Derivatives of the cross-entropy: b and p * q; of u: d * u and d * (q - p) * u.
        if want_gradient:
            a = mul_add(gamma * d, ce, b)
            a = b if d == 0 else a
            desk.grad[i] = mul_add(power, a, a * low) if exact else power * a
        if want_hess:
            p = desk.p[i]
            q = desk.q[i]
            a = gamma * ce * d * ((gamma - 1) * d + (q - p))
            a = (0.0 if d == 0 else a) + 2 * gamma * d * b + p * q
            desk.hess[i] = 0.0 if power == 0 else power * a


# ---- d) divergence ---------------------------------------------------------------------------

cdef inline void kl(Desk *desk, Py_ssize_t n) noexcept nogil:
    """t * (log t - x); a target of 0 adds 0, a negative one is NaN.

    The logarithm has more digits than the result, so that the difference of near numbers keeps
    some.
    """
    cdef Py_ssize_t i
    cdef double a, t
    cdef Pair log
    for i in range(n):
        t = desk.t[i]
        log = log_pair(Pair(t, 0))
        a = t * ((log.high - desk.x[i]) + log.low)
        a = 0.0 if t == 0 else a
        desk.loss[i] = NAN if t < 0 else a
        desk.grad[i] = -t


cdef inline void kl_log_target(
    const real *x, const real *t, real *loss, real *grad, real scale, Py_ssize_t n
) noexcept nogil:
    """exp(t) * (t - x), the gradient times scale; a target of -inf adds 0. grad may be NULL."""
    cdef Py_ssize_t i
    cdef real e, a
    for i in range(n):
        e = exp_negative(minus_abs(t[i]))
        e = 1 / e if t[i] > 0 else e
        a = e * (t[i] - x[i])
        # Where exp(t) is lost, a NaN is not.
        loss[i] = <real>0 if (e == 0) & ((x[i] == x[i]) | (t[i] == -<real>INFINITY)) else a
        if grad != NULL:
            grad[i] = -e * scale


# ---- e) functions ----------------------------------------------------------------------------

cdef inline void function(const real *x, int kind, real *y, Py_ssize_t n) noexcept nogil:
    """sigmoid, log_sigmoid = -softplus(-x) or softplus, element by element."""
    cdef Py_ssize_t i
    if kind == SIGMOID:
        for i in range(n):
            y[i] = sigmoid(x[i], exp_negative(minus_abs(x[i])))
    elif kind == LOG_SIGMOID:
        for i in range(n):
            y[i] = -softplus(-x[i], exp_negative(minus_abs(x[i])))
    else:
        for i in range(n):
            y[i] = softplus(x[i], exp_negative(minus_abs(x[i])))


# ---- f) what a float does for ----------------------------------------------------------------
#
# The same losses and gradients for float32 and narrower arrays, a whole number of times LANES
# elements at a time. Each is as exact as in double, once it is rounded to float, for the elements
# that `good` names; any factor may follow. Others are garbage, and done in double.
#
# What takes long is that results wait for each other: two short loops are faster than a long one.

cdef inline bint good(
    int kind, float x, float t, float positive, float most, bint factored
) noexcept nogil:
    """Whether float does. Not for a target or a weight that is no float, for which NaN stands, and
    not for what is too small for a float if a factor may bring it back.

    most: size of the largest logit for which that is none of it.
    """
    cdef bint inside = (x <= most) & (x >= -most)
    if kind == BCE_WITH_LOGITS:
        inside = inside & (t == t) & (positive == positive)
        return inside & ((t == 0) | ((positive >= <float>1e-2) & (positive <= <float>1e30)))
    elif kind == BCE:
        inside = ((x >= <float>1.1754944e-38) | (x == 0)) & (t == t)
        return inside & (
            (not factored) | (t == 0) | (t == 1) | ((t >= <float>5e-20) & (x >= <float>5e-20))
        )
    elif kind == KL:
        return inside & (
            (t == 0) | ((t >= <float>1.1754944e-38) & (t <= <float>3.4028235e38))
        )
    elif kind == KL_LOG_TARGET:
        return inside & (t == t) & ((not factored) | ((t >= -80) & (t <= 80)))
    return inside & (t == t)


cdef inline float largest_logit(const Job *job) noexcept nogil:
    """`most` of `good`."""
    cdef bint factored = job.factored or job.operands[POS_WEIGHT].data != NULL
    if job.kind == FOCAL:
        # Infinite logits meet factors of 0.
        return <float>(80 / (1 + job.gamma)) if factored else <float>3.4028235e38
    elif job.kind == BCE_WITH_LOGITS and factored:
        return 80
    return <float>3.4028235e38 if factored else <float>INFINITY


cdef inline void bce_probabilities32(
    const float *p, const float *t, float *loss, float *grad, float scale
) noexcept nogil:
    """`bce_probabilities` of LANES elements, the gradient times scale."""
    cdef Py_ssize_t i
    cdef int32_t k
    cdef float u, by, c
    for i in range(LANES):
        c = log_normal(p[i])
        loss[i] = t[i] * (<float>-100 if p[i] == 0 else c)
    for i in range(LANES):
        # log(1 - p), with 1 - p = 2**k * (1 + f): f is taken of p, which 1 - p may have lost
        # digits of, and is exact.
        u = <float>1 - p[i]
        k = log_exponent(u)
        by = float_of((127u << 23) - (<uint32_t>k << 23))
        c = log_of(<float>k, (by - <float>1) - by * p[i])
        loss[i] = mul_add(t[i] - <float>1, <float>-100 if u == 0 else c, -loss[i])
    if grad != NULL:
        for i in range(LANES):
            grad[i] = probability_slope(p[i], t[i]) * scale


cdef inline float less_half_square(float a, float f) noexcept nogil:
    """a - f**2 / 2, from an exact square."""
    cdef float high
    if FMA:
        return mul_add(<float>-0.5 * f, f, a)
    high = float_of(bits32(f) & 0xfffff000u)
    return (a - <float>0.5 * (high * high)) - <float>0.5 * (f - high) * (f + high)


cdef inline void kl32(
    const float *x, const float *t, float *loss, float *grad, float scale
) noexcept nogil:
    """`kl` of LANES elements, the gradient times scale.

    With t = 2**k * (1 + f): where log t is near x, k * 355 / 512 - x and that plus f are exact, so
    that the difference keeps the digits that log t, rounded to float, would lose.
    """
    cdef Py_ssize_t i
    cdef int32_t j
    cdef float k, f, a
    for i in range(LANES):
        j = log_exponent(t[i])
        f = log_fraction(t[i], j)
        k = <float>j
        a = less_half_square((k * <float>0.693359375 - x[i]) + f, f)
        a = t[i] * (a + mul_add(k, <float>-2.12194440e-4, log_cubic(f, f * f)))
        loss[i] = <float>0 if t[i] == 0 else a
    if grad != NULL:
        for i in range(LANES):
            grad[i] = -t[i] * scale


cdef inline void focal32(
    const float *x, const float *t, const float *alpha, const float *rest, double gamma,
    float *loss, float *grad, float scale
) noexcept nogil:
    """Focal loss of LANES elements, the gradient times scale; grad may be NULL.

    alpha and rest, 1 - alpha, are the weights of t and 1 - t, or NULL. What is raised to a power,
    the probability u of the wrong answer, is in two parts.
    """
    cdef Py_ssize_t i
    cdef float minus, a, b, c, d, p_low, q_low, small, inverse, inverse_low
    cdef Pair32 e, p, q
    cdef float ce[LANES]
    cdef float u[LANES]
    cdef float u_low[LANES]
    cdef float slope[LANES]  # of the cross-entropy
    cdef float both[LANES]   # slope of u
    cdef double wide[LANES]
    cdef double power[LANES]
    cdef double by[LANES]    # alpha * t + rest * (1 - t)
    cdef double g
    for i in range(LANES):
        minus = minus_abs(x[i])
        e = exp_pair32(minus)
        # 1 / (1 + e) and e / (1 + e).
        c = <float>1 + e.high
        d = ((<float>1 - c) + e.high) + e.low
        inverse = <float>1 / c
        inverse_low = -inverse * mul_add(inverse, d, product_low32(inverse, c, <float>1))
        small = e.high * inverse
        d = product_low32(e.high, inverse, small)
        d = mul_add(e.low, inverse, mul_add(e.high, inverse_low, d))
        if grad != NULL:
            # The slope of p, and of u.
            c = mul_add(small, inverse, mul_add(small, inverse_low, d * inverse))
            both[i] = c * (<float>1 - <float>2 * t[i])
        p.high = inverse if x[i] > 0 else small
        p.low = inverse_low if x[i] > 0 else d
        q.high = small if x[i] > 0 else inverse
        q.low = d if x[i] > 0 else inverse_low
        # u = p * (1 - t) + q * t
        b = <float>1 - t[i]
        a = p.high * b
        p_low = product_low32(p.high, b, a)
        p_low = mul_add(p.low, b, mul_add(p.high, (<float>1 - b) - t[i], p_low))
        c = q.high * t[i]
        q_low = mul_add(q.low, t[i], product_low32(q.high, t[i], c))
        u[i] = a + c
        d = u[i] - a
        u_low[i] = ((a - (u[i] - d)) + (c - d)) + (p_low + q_low)
        # The cross-entropy, but for log(1 + e), and what that loses with e.low.
        ce[i] = mul_add(e.low, inverse, -minus * (b if x[i] > 0 else t[i]))
        loss[i] = e.high
        if grad != NULL:
            slope[i] = a - c
    for i in range(LANES):
        ce[i] = log1p_unit(loss[i]) + ce[i]
    if grad != NULL or gamma != 2:
        for i in range(LANES):
            wide[i] = <double>u[i] + <double>u_low[i]
            power[i] = wide[i]
    if gamma != 2:
        for i in range(LANES):
            g = exp_negative(gamma * log_positive(wide[i])) / wide[i]
            power[i] = g if wide[i] > 0 else 0.0
    if alpha != NULL:
        # In float the weight alone would be off by two of the four ulp.
        for i in range(LANES):
            g = <double>rest[i] * (1 - <double>t[i])
            by[i] = mul_add(<double>alpha[i], <double>t[i], g)
    if grad != NULL:
        for i in range(LANES):
            g = power[i] * (wide[i] * slope[i] + gamma * both[i] * ce[i])
            grad[i] = <float>(g if alpha == NULL else g * by[i]) * scale
    if gamma == 2:
        for i in range(LANES):
            a = u[i] * u[i]
            c = mul_add(<float>2 * u[i], u_low[i], product_low32(u[i], u[i], a))
            loss[i] = mul_add(a, ce[i], c * ce[i])
    else:
        for i in range(LANES):
            loss[i] = <float>(power[i] * wide[i] * ce[i])
    if alpha != NULL:
        for i in range(LANES):
            loss[i] = <float>(<double>loss[i] * by[i])


# ---- g) logarithms that a sum shares ---------------------------------------------------------
#
# A sum of log(1 + e) takes one logarithm for 32 of them, that of the product of the 1 + e. What is
# kept of a product is how much it exceeds 1: every term of that is positive, so nothing cancels,
# and in double neither the product nor the sum loses a digit that a float has.
#
# With logits e is exp(-|x|). Of probabilities the loss of a target of 0 or 1 is log(1 + e), where e
# is the odds against the target: (1 - q) / q if q is its probability.

cdef inline double joined(double a, double b) noexcept nogil:
    """(1 + a) * (1 + b) - 1."""
    return mul_add(a, b, a + b)


cdef inline double joined4(const float *e) noexcept nogil:
    return joined(joined(e[0], e[16]), joined(e[32], e[48]))


cdef inline double joined16(const float *e) noexcept nogil:
    return joined(
        joined(joined4(e), joined4(e + 64)), joined(joined4(e + 128), joined4(e + 192))
    )


cdef inline double joined_block(const float *e) noexcept nogil:
    """Every 16th of a block."""
    if BLOCK == 512:
        return joined(joined16(e), joined16(e + 256))
    elif BLOCK == 256:
        return joined16(e)
    else:
        return joined(joined4(e), joined4(e + 64))


cdef inline void add_logarithms(const float *e, double *total) noexcept nogil:
    """Add log(1 + e) of a block to the running sums."""
    cdef Py_ssize_t j
    for j in range(PARTS):
        total[j] = total[j] + log1p_positive(joined_block(e + j))


cdef inline uint32_t mask_of(float t) noexcept nogil:
    """All bits for a target of 1, none for one of 0: the exponent's last bit, spread."""
    return <uint32_t>(<int32_t>(bits32(t) << 8) >> 31)


cdef inline bint hard_bits(const float *t, Py_ssize_t n) noexcept nogil:
    """Whether n targets are of 0 and 1 alone, told by their bits."""
    cdef Py_ssize_t i
    cdef uint32_t other = 0
    for i in range(n):
        other |= bits32(t[i]) ^ (mask_of(t[i]) & 0x3f800000u)
    return other == 0


cdef inline void probability_odds(
    const float *p, const float *t, float *e, float *grad, float scale
) noexcept nogil:
    """LANES elements: odds, and the gradient unless that is NULL."""
    cdef Py_ssize_t j
    cdef float other, d, q
    cdef uint32_t mask
    for j in range(LANES):
        mask = mask_of(t[j])
        other = <float>1 - p[j]
        q = p[j] if mask else other
        d = other if mask else p[j]
        e[j] = d / q
        if grad != NULL:
            grad[j] = probability_slope(p[j], t[j]) * scale


cdef inline bint odds_in_range(const float *e, Py_ssize_t n) noexcept nogil:
    """Whether n odds lie in [0, 1e9], where the product of 32 does not overflow.

    Odds of what is no probability are negative or NaN: their bits, too, are above those of 1e9.
    """
    cdef Py_ssize_t i
    cdef uint32_t top = 0
    for i in range(n):
        top = bits32(e[i]) if bits32(e[i]) > top else top
    return top <= bits32(<float>1e9)
