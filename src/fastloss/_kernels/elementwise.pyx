# Losses of single elements, and the functions they are made of.
#
# Every array counts as flat. Elements are worked on in blocks of BLOCK: the logits and each
# operand (target, weights, upstream gradient) are widened to the compute type in local arrays,
# one loop per loss makes loss and gradient of them, and both are written out. An operand that is
# broadcast is never blown up: element i of the result uses its element (i / div) % mod.
#
# Layout: a) operands, b) one block of each loss, c) one block of binary cross-entropy of which only
# the sum is wanted, d) a block from memory to memory, e) what Python calls. Nothing here raises: a
# value out of range is reported before anything is written.

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from .sums cimport Sum, accumulate, add, value_of
from .storage cimport (
    bfloat16, emit, float16, load, narrow, overlap, prefetch, prefetch_bytes, put_lines, storage,
    stream_bytes, stream_end, widen_bfloat, widen_half,
)
from .vecmath cimport (
    INFINITY, NAN, bits32, exp_low, exp_magic, exp_negative, exp_scaled, float_of, log1p,
    log1p_positive, log1p_unit, log_positive, mul_add, real, spare,
)

cdef enum:
    BLOCK = 512
    AHEAD = 1024             # elements that c) fetches before it reads them
    KEPT = 4096              # elements of a gradient that may wait to be written
    ITEM = 65536
    MAX_ITEMS = 4096
    # More gradient than the caches hold is written past them.
    STREAM = 16777216

# What to compute. fastloss.losses and fastloss.special name the same numbers.
cpdef enum Kind:
    BCE_WITH_LOGITS = 0
    BCE = 1
    FOCAL = 2
    KL = 3
    KL_LOG_TARGET = 4
    SIGMOID = 5
    LOG_SIGMOID = 6
    SOFTPLUS = 7

# ---- a) operands -----------------------------------------------------------------------------

# Element types, by the code that Python passes along with the bytes.
cpdef enum Type:
    FLOAT32 = 0
    FLOAT64 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT8 = 4
    UINT8 = 5
    INT16 = 6
    UINT16 = 7
    INT32 = 8
    UINT32 = 9
    INT64 = 10
    UINT64 = 11

cdef struct Operand:
    const uint8_t *data      # NULL: not given
    int type
    Py_ssize_t div
    Py_ssize_t mod
    Py_ssize_t nbytes


cdef struct Job:
    int kind
    Py_ssize_t size
    Py_ssize_t item          # elements that a thread does at a time
    Operand probs            # what is computed from, as an operand
    Operand target
    Operand weight
    Operand pos_weight
    Operand upstream
    double first             # alpha
    double second            # gamma
    double scale             # of the gradient
    bint want_loss
    bint sums_alone          # no loss by itself is wanted, nor weighted: c) may do
    bint check               # whether numbers outside [0, 1] are still to be looked for
    bint streaming


cdef inline void widen(
    real *to, const Operand *source, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """to[:n] = elements first to first + n of the operand."""
    cdef Py_ssize_t i
    if source.type == FLOAT32:
        for i in range(n):
            to[i] = <real>(<const float *>source.data)[first + i]
    elif source.type == FLOAT64:
        for i in range(n):
            to[i] = <real>(<const double *>source.data)[first + i]
    elif source.type == FLOAT16:
        for i in range(n):
            to[i] = widen_half((<const float16 *>source.data)[first + i])
    elif source.type == BFLOAT16:
        for i in range(n):
            to[i] = widen_bfloat((<const bfloat16 *>source.data)[first + i])
    elif source.type == INT8:
        for i in range(n):
            to[i] = (<const int8_t *>source.data)[first + i]
    elif source.type == UINT8:
        for i in range(n):
            to[i] = (<const uint8_t *>source.data)[first + i]
    elif source.type == INT16:
        for i in range(n):
            to[i] = (<const int16_t *>source.data)[first + i]
    elif source.type == UINT16:
        for i in range(n):
            to[i] = (<const uint16_t *>source.data)[first + i]
    elif source.type == INT32:
        for i in range(n):
            to[i] = <real>(<const int32_t *>source.data)[first + i]
    elif source.type == UINT32:
        for i in range(n):
            to[i] = <real>(<const uint32_t *>source.data)[first + i]
    elif source.type == INT64:
        for i in range(n):
            to[i] = <real>(<const int64_t *>source.data)[first + i]
    else:
        for i in range(n):
            to[i] = <real>(<const uint64_t *>source.data)[first + i]


cdef void fetch(
    real *to, const Operand *source, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """to[:n] = the operand for elements first to first + n of the result."""
    cdef Py_ssize_t i, run, j, at
    cdef real value
    i = 0
    while i < n:
        at = (first + i) // source.div
        if source.div == 1:
            at = at % source.mod
            run = min(n - i, source.mod - at)
            widen(to + i, source, at, run)
        else:
            run = min(n - i, (at + 1) * source.div - (first + i))
            widen(&value, source, at % source.mod, 1)
            for j in range(run):
                to[i + j] = value
        i += run
        if i < n and source.mod == 1:
            # One number for everything.
            for j in range(i, n):
                to[j] = to[0]
            return


cdef inline bint fetch_product(
    real *to, real *other, const Operand *a, const Operand *b, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """to = a * b, of which either may be missing; False, and nothing done, if both are."""
    cdef Py_ssize_t i
    if a.data == NULL and b.data == NULL:
        return False
    if a.data == NULL:
        fetch(to, b, first, n)
        return True
    fetch(to, a, first, n)
    if b.data != NULL:
        fetch(other, b, first, n)
        for i in range(n):
            to[i] = to[i] * other[i]
    return True


cdef struct Waiting:
    # Part of a gradient on its way past the caches. Such stores take as long as the computation:
    # they are done beside it, a little at a time.
    const char *values
    char *to                 # a cache line's beginning
    Py_ssize_t left          # bytes


cdef inline void write_some(Waiting *waiting) noexcept nogil:
    """Write four lines; calls nothing, so that loops keep their registers."""
    if waiting.left >= 256:
        put_lines(waiting.to, waiting.values, 4, True)
        waiting.values += 256
        waiting.to += 256
        waiting.left -= 256


cdef inline void write_rest(Waiting *waiting) noexcept nogil:
    stream_bytes(waiting.to, waiting.values, waiting.left)
    waiting.left = 0


cdef inline void write_later(
    Waiting *waiting, char *to, const char *values, Py_ssize_t n
) noexcept nogil:
    """Take over n bytes, which lie behind those that are left, if any are."""
    cdef Py_ssize_t head
    if waiting.left == 0:
        head = min(n, (-<Py_ssize_t>to) & 63)
        memcpy(to, values, head)
        waiting.to = to + head
        waiting.values = values + head
        waiting.left = -head
    waiting.left += n


# ---- b) one block of each loss ---------------------------------------------------------------

cdef inline bint all_hard(const real *t, Py_ssize_t n) noexcept nogil:
    """Whether every target is 0 or 1."""
    cdef Py_ssize_t i
    cdef int soft = 0
    for i in range(n):
        soft |= (t[i] != 0) & (t[i] != 1)
    return soft == 0


cdef inline real softplus(real z, real e) noexcept nogil:
    """log(1 + exp(z)), with e = exp(-|z|)."""
    return (z if z > 0 else <real>0) + log1p_unit(e)


cdef inline real sigmoid(real z, real e) noexcept nogil:
    """1 / (1 + exp(-z)), with e = exp(-|z|)."""
    return (e if z < 0 else <real>1) / (<real>1 + e)


cdef inline real minus_abs(real z) noexcept nogil:
    return z if z < 0 else -z


cdef inline void bce_hard(
    const real *x, const real *t, const real *pos, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """Targets of 0 and 1: softplus(x) or pos * softplus(-x). pos may be NULL."""
    cdef Py_ssize_t i
    cdef real z, e, c
    if pos == NULL:
        for i in range(n):
            z = -x[i] if t[i] != 0 else x[i]
            e = exp_negative(minus_abs(z))
            loss[i] = softplus(z, e)
            c = sigmoid(z, e)
            grad[i] = -c if t[i] != 0 else c
    else:
        for i in range(n):
            z = -x[i] if t[i] != 0 else x[i]
            e = exp_negative(minus_abs(z))
            c = pos[i] if t[i] != 0 else <real>1
            loss[i] = softplus(z, e) * c
            c = c * sigmoid(z, e)
            grad[i] = -c if t[i] != 0 else c


cdef inline void bce_hard_loss(
    const real *x, const real *t, const real *pos, real *loss, Py_ssize_t n
) noexcept nogil:
    """`bce_hard` without the gradient."""
    cdef Py_ssize_t i
    cdef real z
    for i in range(n):
        z = -x[i] if t[i] != 0 else x[i]
        loss[i] = softplus(z, exp_negative(minus_abs(z)))
    if pos != NULL:
        for i in range(n):
            loss[i] = loss[i] * (pos[i] if t[i] != 0 else <real>1)


cdef inline void bce_soft(
    const double *x, const double *t, const double *pos, double *loss, double *grad, Py_ssize_t n
) noexcept nogil:
    """Any targets, in double: the two terms of the gradient may be close to each other."""
    cdef Py_ssize_t i
    cdef double e, p, a, b
    for i in range(n):
        e = exp_negative(minus_abs(x[i]))
        p = t[i] * pos[i]
        a = p * softplus(-x[i], e)
        b = (1 - t[i]) * softplus(x[i], e)
        # A target of exactly 0 or 1 leaves a term out, infinite ones too.
        loss[i] = (0.0 if p == 0 else a) + (0.0 if t[i] == 1 else b)
        grad[i] = (1 - t[i]) * sigmoid(x[i], e) - p * sigmoid(-x[i], e)


cdef inline real probability_slope(real p, real t) noexcept nogil:
    """(p - t) / max(p * (1 - p), 1e-12)."""
    cdef real d = p * (<real>1 - p)
    return (p - t) / (d if d > <real>1e-12 else <real>1e-12)


cdef inline void bce_probabilities(
    const real *p, const real *t, real *loss, real *grad, Py_ssize_t n
) noexcept nogil:
    """Probabilities in [0, 1]; logarithms are clamped at -100."""
    cdef Py_ssize_t i
    cdef real a, b
    for i in range(n):
        a = log_positive(p[i])
        b = log1p(-p[i])
        a = a if a > -100 else <real>-100
        b = b if b > -100 else <real>-100
        loss[i] = -(t[i] * a + (<real>1 - t[i]) * b)
        grad[i] = probability_slope(p[i], t[i])


cdef void focal(
    const double *x, const double *t, double alpha, double gamma, double *loss, double *grad,
    Py_ssize_t n
) noexcept nogil:
    """alpha_t * u**gamma * BCE with u = 1 - p_t, in double. alpha < 0: no alpha_t."""
    cdef Py_ssize_t i
    cdef double e, a, b, w
    cdef double p[512]
    cdef double q[512]
    cdef double u[512]
    cdef double ce[512]
    cdef double power[512]   # u**gamma
    cdef double slope[512]   # gamma * u**(gamma - 1)
    cdef double positive = 1.0 if alpha < 0 else alpha
    cdef double negative = 1.0 if alpha < 0 else 1 - alpha
    for i in range(n):
        e = exp_negative(minus_abs(x[i]))
        p[i] = sigmoid(x[i], e)
        q[i] = sigmoid(-x[i], e)
        u[i] = p[i] * (1 - t[i]) + q[i] * t[i]
        a = t[i] * softplus(-x[i], e)
        b = (1 - t[i]) * softplus(x[i], e)
        ce[i] = (0.0 if t[i] == 0 else a) + (0.0 if t[i] == 1 else b)
    if gamma == 2:
        for i in range(n):
            power[i] = u[i] * u[i]
            slope[i] = 2 * u[i]
    elif gamma == 1 or gamma == 0:
        for i in range(n):
            power[i] = u[i] if gamma == 1 else 1.0
            slope[i] = gamma
    else:
        for i in range(n):
            power[i] = exp_negative(gamma * log_positive(u[i]))
        for i in range(n):
            slope[i] = gamma * (power[i] / u[i] if u[i] > 0 else 0.0)
    for i in range(n):
        w = positive * t[i] + negative * (1 - t[i])
        # An infinite logit's cross-entropy meets a factor of 0, and that wins; a NaN stays.
        a = ce[i] * power[i]
        loss[i] = w * (0.0 if power[i] == 0 else a)
        e = slope[i] * (p[i] * q[i]) * (1 - 2 * t[i])
        a = ce[i] * e
        grad[i] = w * (((1 - t[i]) * p[i] - t[i] * q[i]) * power[i] + (0.0 if e == 0 else a))


cdef inline void kl(
    const double *x, const double *t, double *loss, double *grad, Py_ssize_t n
) noexcept nogil:
    """t * (log t - x); a target of 0 adds 0, a negative one is NaN."""
    cdef Py_ssize_t i
    cdef double a
    for i in range(n):
        a = t[i] * (log_positive(t[i]) - x[i])
        a = 0.0 if t[i] == 0 else a
        loss[i] = NAN if t[i] < 0 else a
        grad[i] = -t[i]


cdef inline void kl_log_target(
    const double *x, const double *t, double *loss, double *grad, Py_ssize_t n
) noexcept nogil:
    """exp(t) * (t - x); a target of -inf adds 0."""
    cdef Py_ssize_t i
    cdef double e, a
    for i in range(n):
        e = exp_negative(minus_abs(t[i]))
        e = 1 / e if t[i] > 0 else e
        a = e * (t[i] - x[i])
        loss[i] = 0.0 if e == 0 else a
        grad[i] = -e


# ---- c) one block, of which only the sum is wanted -------------------------------------------
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


cdef inline void add_logarithms(const float *e, double *total) noexcept nogil:
    """Add log(1 + e) of a block to 16 sums."""
    cdef Py_ssize_t j
    for j in range(16):
        total[j] = total[j] + log1p_positive(joined(joined16(e + j), joined16(e + j + 256)))


cdef inline uint32_t mask_of(float t) noexcept nogil:
    """All bits for a target of 1, none for one of 0: the exponent's last bit, spread."""
    return <uint32_t>(<int32_t>(bits32(t) << 8) >> 31)


cdef inline bint hard_bits(const float *t) noexcept nogil:
    """Whether a block of targets is of 0 and 1 alone, told by their bits."""
    cdef Py_ssize_t i
    cdef uint32_t other = 0
    for i in range(512):
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
    for i in range(512):
        top = bits32(e[i]) if bits32(e[i]) > top else top
    return top <= bits32(<float>1e9)


cdef bint sum_block(
    const float *x, const float *t, const Job *job, float *grad, double *high, double *low,
    Waiting *waiting, bint ahead
) noexcept nogil:
    """Add the losses of a block to the sums and write its gradient, unless that is NULL.

    False, with nothing added, if it is no block for this: for a target other than 0 and 1, odds
    that are too long, what is no probability. `ahead`: fetch what comes after x and t.
    """
    cdef float e[512]
    cdef float z[64]
    cdef Py_ssize_t i, j
    cdef float scale = <float>job.scale
    if not hard_bits(t):
        return False
    for i in range(0, 512, 64):
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


# ---- d) a block from memory to memory --------------------------------------------------------

cdef void block(
    const real *x, const Job *job, Py_ssize_t first, Py_ssize_t n, double *loss, real *grad,
    bint want_gradient
) noexcept nogil:
    """Losses and gradients of n elements, weights and scale included.

    An element's loss does not depend on what else is in its block.
    """
    cdef real t[512]
    cdef real w[512]
    cdef real v[512]
    cdef real l[512]
    cdef double loss64[512]
    cdef double grad64[512]
    cdef Py_ssize_t i
    cdef real scale, a
    cdef real *pos = NULL
    cdef bint hard
    if job.kind == SIGMOID or job.kind == LOG_SIGMOID or job.kind == SOFTPLUS:
        function(x, job.kind, grad, n)
        return
    if job.kind != BCE and job.kind != BCE_WITH_LOGITS:
        in_double(x, job, first, n, loss, &grad64[0])
        for i in range(n):
            grad[i] = <real>grad64[i]
        return
    fetch(&t[0], &job.target, first, n)
    hard = True
    if job.kind == BCE:
        bce_probabilities(x, &t[0], &l[0], grad, n)
    else:
        hard = all_hard(&t[0], n)
        if job.pos_weight.data != NULL:
            fetch(&v[0], &job.pos_weight, first, n)
            pos = &v[0]
        if want_gradient:
            bce_hard(x, &t[0], pos, &l[0], grad, n)
        else:
            bce_hard_loss(x, &t[0], pos, &l[0], n)
    if job.weight.data != NULL:
        fetch(&w[0], &job.weight, first, n)
        for i in range(n):
            a = l[i] * w[i]
            l[i] = <real>0 if (w[i] == 0) & (l[i] == <real>INFINITY) else a
    for i in range(n):
        loss[i] = l[i]
    if want_gradient:
        if fetch_product(&w[0], &v[0], &job.weight, &job.upstream, first, n):
            for i in range(n):
                grad[i] = grad[i] * w[i]
        scale = <real>job.scale
        for i in range(n):
            grad[i] = grad[i] * scale
    if not hard:
        # The others, between 0 and 1, are taken from the computation in double.
        in_double(x, job, first, n, &loss64[0], &grad64[0])
        for i in range(n):
            loss[i] = loss[i] if (t[i] == 0) | (t[i] == 1) else loss64[i]
        if want_gradient:
            for i in range(n):
                grad[i] = grad[i] if (t[i] == 0) | (t[i] == 1) else <real>grad64[i]


cdef void in_double(
    const real *x, const Job *job, Py_ssize_t first, Py_ssize_t n, double *loss, double *grad
) noexcept nogil:
    """What `block` does, for what is computed in double whatever the type."""
    cdef double xs[512]
    cdef double t[512]
    cdef double w[512]
    cdef double v[512]
    cdef double a
    cdef Py_ssize_t i
    for i in range(n):
        xs[i] = x[i]
    fetch(&t[0], &job.target, first, n)
    if job.kind == BCE_WITH_LOGITS:
        for i in range(n):
            v[i] = 1
        if job.pos_weight.data != NULL:
            fetch(&v[0], &job.pos_weight, first, n)
        bce_soft(&xs[0], &t[0], &v[0], loss, grad, n)
    elif job.kind == FOCAL:
        focal(&xs[0], &t[0], job.first, job.second, loss, grad, n)
    elif job.kind == KL:
        kl(&xs[0], &t[0], loss, grad, n)
    else:
        kl_log_target(&xs[0], &t[0], loss, grad, n)
    if job.weight.data != NULL:
        fetch(&w[0], &job.weight, first, n)
        for i in range(n):
            a = loss[i] * w[i]
            loss[i] = 0.0 if (w[i] == 0) & (loss[i] == INFINITY) else a
    if fetch_product(&w[0], &v[0], &job.weight, &job.upstream, first, n):
        for i in range(n):
            grad[i] = grad[i] * w[i]
    for i in range(n):
        grad[i] = grad[i] * job.scale


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


cdef inline bint plainly_inside(const float *p, Py_ssize_t n) noexcept nogil:
    """Whether n numbers lie in [0, 1], told by their bits, of which those of -0.0 say no."""
    cdef Py_ssize_t i
    cdef uint32_t top = 0
    for i in range(n):
        top = bits32(p[i]) if bits32(p[i]) > top else top
    return top <= bits32(<float>1)


cdef Py_ssize_t first_outside(
    const Operand *source, Py_ssize_t start, Py_ssize_t stop
) noexcept nogil:
    """Position of an operand's first number outside [0, 1] or NaN, -1 if there is none."""
    cdef double values[512]
    cdef Py_ssize_t first, i, n
    cdef int bad
    for first in range(start, stop, 512):
        n = min(stop - first, <Py_ssize_t>BLOCK)
        if source.type == FLOAT32 and plainly_inside(<const float *>source.data + first, n):
            continue
        widen(&values[0], source, first, n)
        bad = 0
        for i in range(n):
            bad |= not ((values[i] >= 0) & (values[i] <= 1))
        if bad:
            for i in range(n):
                if not 0 <= values[i] <= 1:
                    return first + i
    return -1


cdef inline bint outside_unit(const Job *job, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """Whether a probability or a target is outside [0, 1] or NaN."""
    return (
        first_outside(&job.probs, start, stop) >= 0
        or first_outside(&job.target, start, stop) >= 0
    )


cdef inline void fetch_ahead(
    const storage *x, const Operand *target, Py_ssize_t size, Py_ssize_t first
) noexcept nogil:
    """Bring a block of both arrays into the caches, if there is one."""
    # The target, which a function does not have, has an element for each of x.
    cdef Py_ssize_t each = target.nbytes // size
    if first + BLOCK <= size:
        prefetch_bytes(x + first, BLOCK * sizeof(storage))
        prefetch_bytes(target.data + first * each, BLOCK * each)


cdef struct Part:
    Sum total
    bint outside             # whether such a number was found


cdef Part item_of(
    const storage *x, storage *grad, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, real *xs
) noexcept nogil:
    """Elements start to stop; xs: scratch of BLOCK elements."""
    cdef double loss[512]
    cdef real g[512]
    cdef double high[16]
    cdef double low[16]
    cdef Part part
    cdef Py_ssize_t first, n, i
    part.total = Sum(0, 0)
    part.outside = False
    for i in range(16):
        high[i] = low[i] = 0
    for first in range(start, stop, 512):
        n = min(stop - first, <Py_ssize_t>BLOCK)
        if job.check and outside_unit(job, first, first + n):
            part.outside = True
            return part
        load(xs, x + first, n, <real>0)
        # The next block is fetched while this one is worked on.
        fetch_ahead(x, &job.target, job.size, first + BLOCK)
        block(xs, job, first, n, &loss[0], &g[0], grad != NULL)
        if job.want_loss:
            for i in range(n, (n + 63) // 64 * 64):
                loss[i] = 0
            for i in range(0, n, 64):
                accumulate(&loss[i], &high[0], &low[0])
            if losses != NULL:
                narrow(losses + first, &loss[0], n)
        if grad != NULL:
            emit(grad + first, &g[0], n, job.streaming)
    for i in range(16):
        part.total = add(part.total, Sum(high[i], low[i]))
    return part


cdef inline Part sum_of(
    const storage *x, storage *grad, const Job *job, Py_ssize_t start, Py_ssize_t stop, float *xs
) noexcept nogil:
    """`item_of` where c) may do."""
    cdef float ts[512]
    cdef float gradients[4096]
    cdef float *g = NULL
    cdef const float *source
    cdef const float *target
    cdef double high[16]
    cdef double low[16]
    cdef Part part, other
    cdef Waiting waiting
    cdef Py_ssize_t first = start, n, i
    cdef Py_ssize_t kept = 0     # elements of `gradients` that wait
    cdef bint done, direct
    part.total = Sum(0, 0)
    part.outside = False
    waiting.left = 0
    for i in range(16):
        high[i] = low[i] = 0
    while first < stop:
        n = min(stop - first, <Py_ssize_t>BLOCK)
        done = False
        # Read where they lie, if they are float there.
        source = xs
        target = &ts[0]
        if storage is float:
            source = x + first
        else:
            load(xs, x + first, n, <float>0)
        if n == BLOCK:
            if job.target.type == FLOAT32:
                target = <const float *>job.target.data + first
            else:
                fetch(&ts[0], &job.target, first, n)
            direct = source != xs and target != &ts[0]
            if not direct:
                fetch_ahead(x, &job.target, job.size, first + BLOCK)
            if grad != NULL:
                g = &gradients[kept]
            done = sum_block(
                source, target, job, g, &high[0], &low[0], &waiting,
                direct and first + AHEAD + BLOCK <= job.size,
            )
        if not done:
            # Such blocks come in runs: the next ones are not tried.
            n = min(stop - first, <Py_ssize_t>KEPT)
            other = item_of(x, grad, <float *>NULL, job, first, first + n, xs)
            part.total = add(part.total, other.total)
            part.outside = part.outside or other.outside
        elif storage is float and job.streaming:
            write_later(
                &waiting, <char *>(grad + first), <const char *>g, n * <Py_ssize_t>sizeof(float)
            )
            kept += n
        elif grad != NULL:
            emit(grad + first, g, n, job.streaming)
        if kept == KEPT or not done:
            write_rest(&waiting)
            kept = 0
        first += n
    write_rest(&waiting)
    for i in range(16):
        part.total = add(part.total, Sum(high[i], low[i]))
    return part


cdef void item(
    const storage *x, storage *grad, float *losses32, double *losses64, const Job *job,
    Py_ssize_t start, Part *result
) noexcept nogil:
    cdef Py_ssize_t stop = min(job.size, start + job.item)
    cdef float xs[512]
    cdef double xs64[512]
    if storage is double:
        result[0] = item_of(x, grad, losses64, job, start, stop, &xs64[0])
    elif job.sums_alone:
        result[0] = sum_of(x, grad, job, start, stop, &xs[0])
    else:
        result[0] = item_of(x, grad, losses32, job, start, stop, &xs[0])
    if job.streaming:
        stream_end()


cdef bint item_outside_unit(const Job *job, Py_ssize_t start) noexcept nogil:
    return outside_unit(job, start, min(job.size, start + job.item))


# ---- e) what Python calls --------------------------------------------------------------------

cdef inline int storage_type(const storage *x) noexcept nogil:
    if storage is float:
        return FLOAT32
    elif storage is double:
        return FLOAT64
    elif storage is float16:
        return FLOAT16
    else:
        return BFLOAT16


cdef bint operand_overlaps(const void *grad, Py_ssize_t size, const Operand *a) noexcept nogil:
    return overlap(grad, size, a.data, a.nbytes)


cdef Operand operand_of(object spec):
    """The operand of (bytes, type, div, mod), or of None.

    The caller's tuple keeps the bytes alive, and says how many there are for what it describes.
    """
    cdef Operand result
    cdef const uint8_t[::1] data
    result.data = NULL
    result.type = 0
    result.div = result.mod = 1
    result.nbytes = 0
    if spec is not None:
        data = spec[0]
        if data.shape[0] > 0:
            result.data = &data[0]
            result.nbytes = data.shape[0]
        result.type = spec[1]
        result.div = spec[2]
        result.mod = spec[3]
    return result


def first_outside_unit(tuple spec):
    """Position of an operand's first number outside [0, 1] or NaN, -1 if there is none."""
    cdef Operand source = operand_of(spec)
    cdef Py_ssize_t position = -1
    with nogil:
        if source.data != NULL:
            position = first_outside(&source, 0, source.mod)
    return position


def evaluate(
    int kind,
    const storage[::1] x,            # IN   logits, probabilities or log-probabilities
    tuple target,                    # IN   operands: (bytes, type, div, mod) or None
    tuple weight,
    tuple pos_weight,
    tuple upstream,
    double first,                    # IN   alpha of the focal loss
    double second,                   # IN   gamma of the focal loss
    double scale,                    # IN   multiplies the gradient
    bint want_loss,
    float[::1] losses32,             # OUT  or None
    double[::1] losses64,            # OUT  the same for double, or None
    storage[::1] grad,               # OUT  gradient, or a function's values; or None
    int threads,
):
    """Return the sum of the losses, or None where `grad` overlaps something else that is read.

    NaN, and nothing written to `grad`, where a probability or its target is outside [0, 1].
    """
    cdef Job job
    cdef Part partial[4096]
    cdef bint outside = False
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t size, items, i
    cdef const storage *source = NULL
    cdef storage *g = NULL
    cdef float *out32 = NULL
    cdef double *out64 = NULL
    job.kind = kind
    job.size = x.shape[0]
    if job.size == 0:
        return 0.0
    job.target = operand_of(target)
    job.weight = operand_of(weight)
    job.pos_weight = operand_of(pos_weight)
    job.upstream = operand_of(upstream)
    job.first = first
    job.second = second
    job.scale = scale
    job.want_loss = want_loss
    source = &x[0]
    job.probs = Operand(
        <const uint8_t *>source, storage_type(source), 1, job.size, job.size * sizeof(storage)
    )
    job.sums_alone = (
        (kind == BCE or kind == BCE_WITH_LOGITS)
        and job.weight.data == NULL
        and job.pos_weight.data == NULL
        and job.upstream.data == NULL
        and losses32 is None
    )
    job.check = kind == BCE
    if losses32 is not None:
        out32 = &losses32[0]
    if losses64 is not None:
        out64 = &losses64[0]
    if grad is not None:
        g = &grad[0]
        size = job.size * <Py_ssize_t>sizeof(storage)
        if (
            (<const void *>g != <const void *>source and overlap(g, size, source, size))
            or operand_overlaps(g, size, &job.target)
            or operand_overlaps(g, size, &job.weight)
            or operand_overlaps(g, size, &job.pos_weight)
            or operand_overlaps(g, size, &job.upstream)
        ):
            return None
    job.streaming = g != NULL and job.size * <Py_ssize_t>sizeof(storage) >= STREAM
    with nogil:
        job.item = max(<Py_ssize_t>ITEM, (job.size + MAX_ITEMS - 1) // MAX_ITEMS)
        items = (job.size + job.item - 1) // job.item
        threads = threads if items > 1 else 1
        if job.check and (g != NULL or job.target.type == FLOAT64):
            # Before anything is written. Without a gradient it is done on the way, except that a
            # float64 that is too large by little is 1 once it is narrowed.
            if threads > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    partial[i].outside = item_outside_unit(&job, i * job.item)
            else:
                for i in range(items):
                    partial[i].outside = item_outside_unit(&job, i * job.item)
            for i in range(items):
                outside = outside or partial[i].outside
            job.check = False
        if not outside:
            if threads > 1:
                for i in prange(items, schedule="dynamic", num_threads=threads):
                    item(source, g, out32, out64, &job, i * job.item, &partial[i])
            else:
                for i in range(items):
                    item(source, g, out32, out64, &job, i * job.item, &partial[i])
            for i in range(items):
                total = add(total, partial[i].total)
                outside = outside or partial[i].outside
    return NAN if outside else value_of(total)
