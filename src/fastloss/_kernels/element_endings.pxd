# What each loss of single elements makes of a block of them.
#
# An ending reads x and t of the desk and writes a loss and a gradient (and a second derivative) for
# each element. Weights, the upstream gradient and the scale are multiplied in afterwards, in
# double, in one way for all (elements.pyx).
#
# Layout: a) the desk, b) binary cross-entropy, c) focal loss, d) divergence, e) functions, f) hard
# binary cross-entropy of which only the sum is wanted.

from libc.stdint cimport int32_t, uint32_t

from .operands cimport Operand
from .storage cimport Waiting, prefetch, write_some
from .sums cimport PARTS, accumulate
from .vecmath cimport (
    INFINITY, NAN, Pair, bits32, exp_low, exp_magic, exp_negative, exp_pair, exp_scaled, float_of,
    log1p, log1p_positive, log1p_unit, log_pair, log_positive, log_wide, mul_add, pair_inverse,
    pair_product, pair_sum, product_low, real, spare,
)

cdef enum:
    BLOCK = 512              # elements that are worked on at a time: 512, 256 or 128
    AHEAD = 1024             # elements that f) fetches before it reads them
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
    double ignored           # target that takes an element out
    bint ignoring            # whether there is one
    bint integral            # whether a target other than 0, 1 and `ignored` is wrong
    bint want_loss
    bint want_gradient
    bint want_hess
    bint sums_alone          # no loss by itself is wanted, nor weighted: f) may do
    bint factored            # whether losses and gradients may be multiplied up
    bint check               # whether what is read is still to be checked
    bint weigh               # whether sample weights are still to be added up
    bint look                # only these two are to be done
    bint streaming

# A thread's scratch. Arrays that are fields of one struct do not overlap, and the compiler knows.
cdef struct Desk:
    float x32[BLOCK]
    float t32[BLOCK]
    float loss32[BLOCK]
    float grad32[BLOCK]
    double x[BLOCK]
    double t[BLOCK]
    double loss[BLOCK]
    double grad[BLOCK]
    double hess[BLOCK]
    double by[BLOCK]         # a factor
    double kept[BLOCK]       # 0 for what is ignored
    float done32[BLOCK]      # 0 for what float does not do for
    double p[BLOCK]
    double q[BLOCK]
    double u[BLOCK]
    double u_low[BLOCK]
    double power[BLOCK]
    double d[BLOCK]
    double b[BLOCK]
    float waiting[KEPT]      # for f) alone


# ---- b) binary cross-entropy -----------------------------------------------------------------

cdef inline real softplus(real z, real e) noexcept nogil:
    """log(1 + exp(z)), with e = exp(-|z|)."""
    return (z if z > 0 else <real>0) + log1p_unit(e)


cdef inline real sigmoid(real z, real e) noexcept nogil:
    """1 / (1 + exp(-z)), with e = exp(-|z|)."""
    return (e if z < 0 else <real>1) / (<real>1 + e)


cdef inline real minus_abs(real z) noexcept nogil:
    return z if z < 0 else -z


cdef inline bint all_hard(const real *t, Py_ssize_t n) noexcept nogil:
    """Whether every target is 0 or 1."""
    cdef Py_ssize_t i
    cdef int soft = 0
    for i in range(n):
        soft |= (t[i] != 0) & (t[i] != 1)
    return soft == 0


cdef inline void bce_hard(
    const real *x, const real *t, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """Targets of 0 and 1: softplus(x) or softplus(-x). grad may be NULL."""
    cdef Py_ssize_t i
    cdef real z, e, c
    for i in range(n):
        z = -x[i] if t[i] != 0 else x[i]
        e = exp_negative(minus_abs(z))
        loss[i] = softplus(z, e)
        if grad != NULL:
            c = sigmoid(z, e)
            grad[i] = -c if t[i] != 0 else c


cdef inline void bce_soft(
    const real *x, const real *t, const double *positive, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """Any targets, bit for bit like `bce_hard` where they are 0 or 1.

    positive: weights of the term of t, or NULL; in double alone.
    """
    cdef Py_ssize_t i
    cdef real e, p, a, b
    for i in range(n):
        e = exp_negative(minus_abs(x[i]))
        p = t[i]
        if positive != NULL:
            p = <real>0 if p == 0 else p * <real>positive[i]
        a = p * softplus(-x[i], e)
        b = (<real>1 - t[i]) * softplus(x[i], e)
        # A target of exactly 0 or 1, or a weight of 0, leaves a term out, an infinite one too.
        loss[i] = (<real>0 if p == 0 else a) + (<real>0 if t[i] == 1 else b)
        grad[i] = (<real>1 - t[i]) * sigmoid(x[i], e) - p * sigmoid(-x[i], e)


cdef inline void bce_hess(Desk *desk, const double *positive, Py_ssize_t n) noexcept nogil:
    """(t * positive + 1 - t) * p * (1 - p)."""
    cdef Py_ssize_t i
    cdef double e, r, t
    for i in range(n):
        t = desk.t[i]
        e = exp_negative(minus_abs(desk.x[i]))
        r = 1 / (1 + e)
        desk.hess[i] = ((0.0 if t == 0 else t * positive[i]) + (1 - t)) * (e * r * r)


cdef inline real probability_slope(real p, real t) noexcept nogil:
    """(p - t) / max(p * (1 - p), 1e-12)."""
    cdef real d = p * (<real>1 - p)
    return (p - t) / (d if d > <real>1e-12 else <real>1e-12)


cdef inline void bce_probabilities(
    const real *p, const real *t, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """Probabilities in [0, 1]; logarithms are clamped at -100. grad may be NULL."""
    cdef Py_ssize_t i
    cdef real a, b
    for i in range(n):
        a = log_positive(p[i])
        b = log1p(-p[i])
        a = a if a > -100 else <real>-100
        b = b if b > -100 else <real>-100
        loss[i] = -(t[i] * a + (<real>1 - t[i]) * b)
        if grad != NULL:
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

cdef inline void kl(Desk *desk, Py_ssize_t n, bint exact) noexcept nogil:
    """t * (log t - x); a target of 0 adds 0, a negative one is NaN.

    The logarithm has more digits than the result, so that the difference of near numbers keeps
    some: of a double if `exact`, else of the float that t is.
    """
    cdef Py_ssize_t i
    cdef double a, t
    cdef Pair log
    for i in range(n):
        t = desk.t[i]
        if exact:
            log = log_pair(Pair(t, 0))
            a = t * ((log.high - desk.x[i]) + log.low)
        else:
            a = t * (log_wide(<float>t) - desk.x[i])
        a = 0.0 if t == 0 else a
        desk.loss[i] = NAN if t < 0 else a
        desk.grad[i] = -t


cdef inline void kl_log_target(
    const real *x, const real *t, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """exp(t) * (t - x); a target of -inf adds 0."""
    cdef Py_ssize_t i
    cdef real e, a
    for i in range(n):
        e = exp_negative(minus_abs(t[i]))
        e = 1 / e if t[i] > 0 else e
        a = e * (t[i] - x[i])
        loss[i] = <real>0 if e == 0 else a
        grad[i] = -e


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


# ---- f) only the sum -------------------------------------------------------------------------
#
# The loss of a target of 0 or 1 is log(1 + e), where e is the odds against the target: (1 - q) / q
# if q is its probability. The sum of 32 such losses takes one logarithm, that of the product of the
# 1 + e. What is kept of a product is how much it exceeds 1: every term of that is positive, so
# nothing cancels, and in double neither the product nor the sum loses a digit that a float has.
#
# With logits e is exp(z), z the logit of the wrong answer: -x or x. For z > 0 the loss is z more
# than log(1 + exp(-z)).
#
# A block that this does not fit is left to b).

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


cdef inline bint hard_bits(const float *t) noexcept nogil:
    """Whether a block of targets is of 0 and 1 alone, told by their bits."""
    cdef Py_ssize_t i
    cdef uint32_t other = 0
    for i in range(BLOCK):
        other |= bits32(t[i]) ^ (mask_of(t[i]) & 0x3f800000u)
    return other == 0


cdef inline void logit_odds(
    const float *x, const float *t, float *e, float *z, float *grad, float scale
) noexcept nogil:
    """64 elements: odds, max(z, 0), and the gradient unless that is NULL."""
    cdef Py_ssize_t j
    cdef float magic = exp_magic(<float>0)
    cdef float low = exp_low(<float>0)
    cdef float wrong, a, g
    cdef uint32_t sign
    for j in range(64):
        sign = mask_of(t[j]) & 0x80000000u
        wrong = float_of(bits32(x[j]) ^ sign)
        a = exp_scaled(float_of(bits32(x[j]) | 0x80000000u), magic, low) * spare(wrong)
        e[j] = a
        z[j] = wrong if wrong > 0 else <float>0
        if grad != NULL:
            g = (a if wrong < 0 else <float>1) / (<float>1 + a)
            grad[j] = float_of(bits32(g) ^ sign) * scale


cdef inline void probability_odds(
    const float *p, const float *t, float *e, float *grad, float scale
) noexcept nogil:
    """64 elements: odds, and the gradient unless that is NULL."""
    cdef Py_ssize_t j
    cdef float other, d, q
    cdef uint32_t mask
    for j in range(64):
        mask = mask_of(t[j])
        other = <float>1 - p[j]
        q = p[j] if mask else other
        d = other if mask else p[j]
        e[j] = d / q
        if grad != NULL:
            grad[j] = probability_slope(p[j], t[j]) * scale


cdef inline bint odds_in_range(const float *e) noexcept nogil:
    """Whether a block of odds lies in [0, 1e9], where the product of 32 does not overflow.

    Odds of what is no probability are negative or NaN: their bits, too, are above those of 1e9.
    """
    cdef Py_ssize_t i
    cdef uint32_t top = 0
    for i in range(BLOCK):
        top = bits32(e[i]) if bits32(e[i]) > top else top
    return top <= bits32(<float>1e9)


cdef inline bint odds_block(
    const float *x, const float *t, const Job *job, float *grad, double *high, double *low,
    Waiting *waiting, bint ahead
) noexcept nogil:
    """Add the losses of a block to the sums and write its gradient, unless that is NULL.

    False, with nothing added, if it is no block for this: for a target other than 0 and 1, odds
    that are too long, what is no probability. `ahead`: fetch what comes after x and t.
    """
    cdef float e[BLOCK]
    cdef float z[64]
    cdef Py_ssize_t i, j
    cdef float scale = <float>job.scale
    if not hard_bits(t):
        return False
    for i in range(0, BLOCK, 64):
        if ahead:
            for j in range(0, 64, 16):
                prefetch(x + i + AHEAD + j)
                prefetch(t + i + AHEAD + j)
        write_some(waiting)
        if job.kind == BCE_WITH_LOGITS:
            if grad == NULL:
                logit_odds(x + i, t + i, &e[i], &z[0], NULL, scale)
            else:
                logit_odds(x + i, t + i, &e[i], &z[0], grad + i, scale)
            if job.want_loss:
                accumulate(&z[0], high, low)
        elif grad == NULL:
            probability_odds(x + i, t + i, &e[i], NULL, scale)
        else:
            probability_odds(x + i, t + i, &e[i], grad + i, scale)
    if job.kind == BCE and not odds_in_range(&e[0]):
        return False
    if job.want_loss:
        add_logarithms(&e[0], high)
    return True
