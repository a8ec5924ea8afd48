# Losses of single elements, and the functions they are made of.
#
# Every array counts as flat. There is one traversal: elements are worked on in blocks; a block and
# what goes with it (target, weights, upstream gradient) are widened to the compute type on a desk,
# the loss's ending (element_endings.pxd) makes losses and gradients of them, factors are multiplied
# in, and all is written out. A pass that looks for numbers out of range, and one that adds up the
# sample weights that the gradient of a mean is divided by, are the same traversal without the
# ending.
#
# Arrays of float32 and narrower are computed in float, a block at a time where a float does for all
# of it. An element that a float does not do for (a float64 target, a loss so small that a weight
# may bring it back) is done in double, beside the others of its block.
#
# Layout: a) checks, b) factors, c) a block in float, d) one in which a float does not do for all,
# e) the traversal, f) what Python calls, g) small calls.

from cython.parallel cimport prange, threadid
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from .buffers cimport Lying, address, alike, lies
from .element_endings cimport (
    AHEAD, ALPHA, BCE, BCE_WITH_LOGITS, BLOCK, DOUBLES, FOCAL, KEPT, KL, KL_LOG_TARGET,
    LOG_SIGMOID, OPERANDS, POS_WEIGHT, SAMPLE_WEIGHT, SIGMOID, SOFTPLUS, TARGET, UPSTREAM, WEIGHT,
    Desk, Job, add_logarithms, add_softplus, bce, bce_probabilities,
    bce_probabilities32, focal, focal32, function, good, hard_bits, kl, kl32, kl_log_target,
    largest_logit, odds_in_range, probability_odds,
)
from .element_second cimport bce_second, raise_to
from .operands cimport (
    BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64,
    Operand, floats, size_of, widen,
)
from .storage cimport (
    Waiting, bfloat16, emit, float16, load, narrow, overlap, prefetch, prefetch_bytes, storage,
    stream_end, write_later, write_rest, write_some,
)
from .sums cimport LANES, PARTS, Sum, accumulate, add, two_sum, value_of
from .vecmath cimport INFINITY, Pair, bits32, pair_sum, product_low, real
from .workspace cimport (
    FINE, NO_MEMORY, OVERLAPS, PROBS_OUTSIDE, TARGET_OUTSIDE, WRONG_INDEX, WRONG_TARGET, Status,
    Workspace, give_back, part_of, take,
)

cdef enum:
    ITEM = 65536
    MAX_ITEMS = 4096
    # More gradient than the caches hold is written past them.
    STREAM = 16777216

# What Python calls these numbers by.
KINDS = {
    "BCE_WITH_LOGITS": BCE_WITH_LOGITS, "BCE": BCE, "FOCAL": FOCAL, "KL": KL,
    "KL_LOG_TARGET": KL_LOG_TARGET, "SIGMOID": SIGMOID, "LOG_SIGMOID": LOG_SIGMOID,
    "SOFTPLUS": SOFTPLUS,
}
TYPES = {
    "float32": FLOAT32, "float64": FLOAT64, "float16": FLOAT16, "bfloat16": BFLOAT16,
    "int8": INT8, "uint8": UINT8, "int16": INT16, "uint16": UINT16, "int32": INT32,
    "uint32": UINT32, "int64": INT64, "uint64": UINT64, "bool": UINT8,
}
STATUS = {
    "FINE": FINE, "NO_MEMORY": NO_MEMORY, "OVERLAPS": OVERLAPS, "WRONG_INDEX": WRONG_INDEX,
    "WRONG_TARGET": WRONG_TARGET, "PROBS_OUTSIDE": PROBS_OUTSIDE,
    "TARGET_OUTSIDE": TARGET_OUTSIDE,
}

# What an item, or the whole call, comes to.
cdef struct Part:
    Sum total
    Sum weight               # of what is not ignored
    Status status

# Sums that go on from block to block, to be folded at an item's end.
cdef struct Running:
    double high[PARTS]
    double low[PARTS]


cdef inline void begin(Running *sums) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(PARTS):
        sums.high[i] = sums.low[i] = 0


cdef inline void add_block(Running *sums, double *values, Py_ssize_t n) noexcept nogil:
    """Add values[:n]; what comes behind them on the desk is overwritten."""
    cdef Py_ssize_t i
    cdef Py_ssize_t groups = (n + LANES - 1) // LANES
    for i in range(n, groups * LANES):
        values[i] = 0
    for i in range(groups):
        accumulate(values + i * LANES, &sums.high[0], &sums.low[0])


cdef inline void add_floats(Running *sums, const float *values, Py_ssize_t n) noexcept nogil:
    """Add values[:n], n a multiple of LANES. Four floats lose next to nothing in a double."""
    cdef Py_ssize_t i, j, k
    cdef double a, b
    for k in range(n // LANES):
        i = k * LANES
        for j in range(PARTS):
            a = <double>values[i + j] + <double>values[i + j + PARTS]
            b = <double>values[i + j + 2 * PARTS] + <double>values[i + j + 3 * PARTS]
            two_sum(<double>0, &sums.high[j], &sums.low[j], a + b)


cdef inline Sum folded(const Running *sums) noexcept nogil:
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t i
    for i in range(PARTS):
        total = add(total, Sum(sums.high[i], sums.low[i]))
    return total


cdef void fetch(
    real *to, const Operand *source, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """to[:n] = the operand for elements first to first + n of the result.

    One function for all that call it: reading a dozen types is much code.
    """
    cdef Py_ssize_t i = 0, run, j, at
    while i < n:
        at = (first + i) // source.div
        if source.div == 1:
            at = at % source.mod
            run = min(n - i, source.mod - at)
            widen(to + i, source, at, run)
        else:
            run = min(n - i, (at + 1) * source.div - (first + i))
            widen(to + i, source, at % source.mod, 1)
            for j in range(1, run):
                to[i + j] = to[i]
        i += run
        if i < n and source.mod == 1:
            # One number for everything.
            for j in range(i, n):
                to[j] = to[0]
            return


# ---- a) checks -------------------------------------------------------------------------------

cdef inline bint plainly_inside(const float *p, Py_ssize_t n) noexcept nogil:
    """Whether n numbers lie in [0, 1], told by their bits, of which those of -0.0 say no."""
    cdef Py_ssize_t i
    cdef uint32_t top = 0
    for i in range(n):
        top = bits32(p[i]) if bits32(p[i]) > top else top
    return top <= bits32(<float>1)


cdef Py_ssize_t outside_unit(
    const Operand *source, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Position of a block's first number outside [0, 1] or NaN, -1 if there is none."""
    cdef Py_ssize_t i
    cdef int bad = 0
    if source.type == FLOAT32 and plainly_inside(<const float *>source.data + first, n):
        return -1
    widen(&desk.by[0], source, first, n)
    for i in range(n):
        bad |= not ((desk.by[i] >= 0) & (desk.by[i] <= 1))
    if bad:
        for i in range(n):
            if not 0 <= desk.by[i] <= 1:
                return first + i
    return -1


cdef inline bint plainly_labels(
    const Operand *source, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Whether n integers are all 0 or 1, told by their bits."""
    cdef Py_ssize_t i
    cdef uint64_t all64 = 0
    cdef uint32_t all32 = 0
    cdef uint8_t all8 = 0
    if source.type == INT64 or source.type == UINT64:
        for i in range(n):
            all64 |= (<const uint64_t *>source.data)[first + i]
    elif source.type == INT32 or source.type == UINT32:
        for i in range(n):
            all32 |= (<const uint32_t *>source.data)[first + i]
    elif source.type == INT8 or source.type == UINT8:
        for i in range(n):
            all8 |= source.data[first + i]
    else:
        return False
    return (all64 | all32 | all8) <= 1


cdef Py_ssize_t wrong_target(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Position of a block's first target other than 0, 1 and what is ignored, or -1."""
    cdef Py_ssize_t i
    cdef int bad = 0
    cdef double other = job.ignored if job.ignoring else 0.0
    if plainly_labels(&job.operands[TARGET], first, n):
        return -1
    widen(&desk.t[0], &job.operands[TARGET], first, n)
    for i in range(n):
        bad |= (desk.t[i] != 0) & (desk.t[i] != 1) & (desk.t[i] != other)
    if bad:
        for i in range(n):
            if desk.t[i] != 0 and desk.t[i] != 1 and desk.t[i] != other:
                return first + i
    return -1


cdef inline void find_ignored(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """desk.kept: 0 for what is ignored, else 1."""
    cdef Py_ssize_t i
    fetch(&desk.t[0], &job.operands[TARGET], first, n)
    for i in range(n):
        desk.kept[i] = 0.0 if desk.t[i] == job.ignored else 1.0


cdef Status checked(const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n) noexcept nogil:
    """What is wrong with the first element of a block that something is wrong with."""
    cdef Py_ssize_t a = -1, b = -1
    if job.kind == BCE:
        a = outside_unit(&job.x, desk, first, n)
        b = outside_unit(&job.operands[TARGET], desk, first, n)
    elif job.integral:
        a = wrong_target(job, desk, first, n)
        if a >= 0:
            return Status(WRONG_TARGET, a)
    if b >= 0 and (a < 0 or b < a):
        return Status(TARGET_OUTSIDE, b)
    return Status(PROBS_OUTSIDE if a >= 0 else FINE, a)


cdef void weigh(
    const Job *job, Desk *desk, Running *weights, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Add up the sample weights of a block."""
    cdef Py_ssize_t i
    if job.operands[SAMPLE_WEIGHT].data != NULL:
        fetch(&desk.by[0], &job.operands[SAMPLE_WEIGHT], first, n)
    else:
        for i in range(n):
            desk.by[i] = 1
    if job.ignoring:
        find_ignored(job, desk, first, n)
        for i in range(n):
            desk.by[i] = desk.by[i] if desk.kept[i] != 0 else 0.0
    add_block(weights, &desk.by[0], n)


# ---- b) factors ------------------------------------------------------------------------------

cdef inline double product(double a, double by) noexcept nogil:
    """a * by, where a factor of 0 takes away what is infinite."""
    cdef double c = a * by
    return 0.0 if (by == 0) & ((a == INFINITY) | (a == -INFINITY)) else c


cdef inline void multiply(const Job *job, Desk *desk, Py_ssize_t n) noexcept nogil:
    """Multiply desk.by into all results."""
    cdef Py_ssize_t i
    cdef int zeros = 0
    for i in range(n):
        zeros |= desk.by[i] == 0
    if zeros:
        for i in range(n):
            desk.loss[i] = product(desk.loss[i], desk.by[i])
            desk.grad[i] = product(desk.grad[i], desk.by[i])
    elif job.want_gradient:
        for i in range(n):
            desk.loss[i] = desk.loss[i] * desk.by[i]
            desk.grad[i] = desk.grad[i] * desk.by[i]
    else:
        for i in range(n):
            desk.loss[i] = desk.loss[i] * desk.by[i]
    if job.want_hess:
        for i in range(n):
            desk.hess[i] = product(desk.hess[i], desk.by[i])


cdef inline void multiply_all(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Weights into losses and gradients, upstream gradient and scale into gradients alone."""
    cdef Py_ssize_t i
    if job.operands[WEIGHT].data != NULL:
        fetch(&desk.by[0], &job.operands[WEIGHT], first, n)
        multiply(job, desk, n)
    if job.operands[SAMPLE_WEIGHT].data != NULL:
        fetch(&desk.by[0], &job.operands[SAMPLE_WEIGHT], first, n)
        multiply(job, desk, n)
    if job.operands[UPSTREAM].data != NULL:
        fetch(&desk.by[0], &job.operands[UPSTREAM], first, n)
        for i in range(n):
            desk.grad[i] = product(desk.grad[i], desk.by[i])
    if job.want_gradient and job.scale != 1:
        for i in range(n):
            desk.grad[i] = desk.grad[i] * job.scale
    if job.ignoring:
        for i in range(n):
            desk.loss[i] = desk.loss[i] if desk.kept[i] != 0 else 0.0
            desk.grad[i] = desk.grad[i] if desk.kept[i] != 0 else 0.0
            desk.hess[i] = desk.hess[i] if desk.kept[i] != 0 else 0.0


# ---- c) a block in float ---------------------------------------------------------------------

cdef struct Sources:
    # Where a block's floats lie: in the arrays themselves or on the desk.
    const float *x
    const float *t
    const float *positive    # or NULL
    const float *alpha       # or NULL, and 1 - alpha
    const float *rest
    bint ahead               # whether what follows x and t there is to be fetched


cdef inline void proceed(const Sources *at, Py_ssize_t i, Waiting *waiting) noexcept nogil:
    """What is done beside the computation, at each LANES elements."""
    cdef Py_ssize_t j
    if at.ahead:
        for j in range(4):
            prefetch(at.x + i + AHEAD + 16 * j)
            prefetch(at.t + i + AHEAD + 16 * j)
    write_some(waiting)


# Functions of their own: in one large function the registers of all loops would be spilled.

cdef void logits_in_float(
    const Job *job, const Sources *at, float *e, float *loss, float *grad, float scale, bint sums,
    Py_ssize_t n, Waiting *waiting
) noexcept nogil:
    """sums: `loss` is left without its logarithms, which are those of 1 + e."""
    cdef Py_ssize_t i, k
    cdef float *g
    for k in range(n // LANES):
        i = k * LANES
        proceed(at, i, waiting)
        g = NULL if grad == NULL else grad + i
        if at.positive != NULL:
            bce(at.x + i, at.t + i, at.positive + i, e + i, loss + i, g, scale, LANES)
            add_softplus(e + i, at.t + i, at.positive + i, loss + i, LANES)
        else:
            bce(at.x + i, at.t + i, <float *>NULL, e + i, loss + i, g, scale, LANES)
            if not sums:
                add_softplus(e + i, at.t + i, <float *>NULL, loss + i, LANES)


cdef void probabilities_in_float(
    const Sources *at, float *loss, float *grad, float scale, Py_ssize_t n, Waiting *waiting
) noexcept nogil:
    cdef Py_ssize_t i, k
    for k in range(n // LANES):
        i = k * LANES
        proceed(at, i, waiting)
        bce_probabilities32(
            at.x + i, at.t + i, loss + i, <float *>NULL if grad == NULL else grad + i, scale
        )


cdef bint odds_in_float(
    const Sources *at, float *e, float *grad, float scale, Py_ssize_t n, Waiting *waiting
) noexcept nogil:
    """Odds of probabilities; False where a target is not 0 or 1, or odds are too long."""
    cdef Py_ssize_t i, k
    if not hard_bits(at.t, LANES) or not hard_bits(at.t, n):
        return False
    for k in range(n // LANES):
        i = k * LANES
        proceed(at, i, waiting)
        if grad == NULL:
            probability_odds(at.x + i, at.t + i, e + i, NULL, scale)
        else:
            probability_odds(at.x + i, at.t + i, e + i, grad + i, scale)
    return odds_in_range(e, n)


cdef void divergence_in_float(
    const Job *job, const Sources *at, float *loss, float *grad, float scale, Py_ssize_t n,
    Waiting *waiting
) noexcept nogil:
    cdef Py_ssize_t i, k
    for k in range(n // LANES):
        i = k * LANES
        proceed(at, i, waiting)
        if job.kind == KL_LOG_TARGET:
            kl_log_target(
                at.x + i, at.t + i, loss + i, NULL if grad == NULL else grad + i, scale, LANES
            )
        else:
            kl32(at.x + i, at.t + i, loss + i, NULL if grad == NULL else grad + i, scale)


cdef void focal_in_float(
    const Job *job, const Sources *at, float *loss, float *grad, float scale, Py_ssize_t n,
    Waiting *waiting
) noexcept nogil:
    cdef Py_ssize_t i, k
    cdef const float *alpha
    for k in range(n // LANES):
        i = k * LANES
        proceed(at, i, waiting)
        alpha = at.alpha
        if alpha != NULL:
            alpha = alpha + i
        if grad == NULL:
            focal32(at.x + i, at.t + i, alpha, at.rest + i, job.gamma, loss + i, NULL, scale)
        else:
            focal32(at.x + i, at.t + i, alpha, at.rest + i, job.gamma, loss + i, grad + i, scale)


cdef inline bint plainly_good(const Job *job, const Sources *at, Py_ssize_t n) noexcept nogil:
    """Whether float does for all of a block, told by bits, of which some say no where it does."""
    cdef Py_ssize_t i
    cdef uint32_t most = bits32(largest_logit(job)), top = 0, least = 0xffffffffu
    cdef uint32_t size
    if job.operands[TARGET].type == FLOAT64:
        return False
    if job.kind == BCE_WITH_LOGITS or job.kind == FOCAL or (job.kind == KL and job.factored):
        for i in range(n):
            size = bits32(at.x[i]) & 0x7fffffffu
            top = size if size > top else top
        if top > most:
            return False
        if job.kind != KL and at.positive == NULL:
            return True
        top = 0
    if job.kind == BCE_WITH_LOGITS:
        for i in range(n):
            size = bits32(at.positive[i])
            top = size if size > top else top
            least = size if size < least else least
        return least >= bits32(<float>1e-2) and top <= bits32(<float>1e30)
    # Positive normal numbers, and 0, which turns into the largest of all.
    if job.kind == KL:
        for i in range(n):
            size = bits32(at.t[i])
            top = size if size > top else top
            least = size - 1 if size - 1 < least else least
        return least >= 0x7fffffu and top < 0x7f800000u
    if job.kind == BCE and not job.factored:
        for i in range(n):
            size = bits32(at.x[i]) - 1
            least = size if size < least else least
        return least >= 0x7fffffu
    return False


cdef inline bint find_good(
    const Job *job, const Sources *at, float *which, Py_ssize_t n
) noexcept nogil:
    """Whether float does for all of a block; which: 0 for what it does not do for; or NULL."""
    cdef Py_ssize_t i
    cdef int others = 0
    cdef float most = largest_logit(job)
    cdef bint factored = job.factored
    if which != NULL:
        for i in range(n):
            which[i] = good(
                job.kind, at.x[i], at.t[i],
                <float>1 if at.positive == NULL else at.positive[i], most, factored
            )
    elif job.kind == BCE:
        for i in range(n):
            others |= not good(BCE, at.x[i], at.t[i], 1, most, factored)
    elif job.kind == KL_LOG_TARGET:
        for i in range(n):
            others |= not good(KL_LOG_TARGET, at.x[i], at.t[i], 1, most, factored)
    else:
        for i in range(n):
            others |= not good(
                job.kind, at.x[i], at.t[i],
                <float>1 if at.positive == NULL else at.positive[i], most, factored
            )
    return others == 0


cdef inline void in_float(
    const Job *job, const Sources *at, Desk *desk, float *grad, float scale, bint sums,
    Py_ssize_t n, Waiting *waiting
) noexcept nogil:
    """Losses, into desk.loss32, and gradients of n elements, with no factor but this scale."""
    if job.kind == BCE_WITH_LOGITS:
        logits_in_float(
            job, at, &desk.e32[0], &desk.loss32[0], grad, scale, sums, n, waiting
        )
    elif job.kind == BCE:
        probabilities_in_float(at, &desk.loss32[0], grad, scale, n, waiting)
    elif job.kind == FOCAL:
        focal_in_float(job, at, &desk.loss32[0], grad, scale, n, waiting)
    else:
        divergence_in_float(job, at, &desk.loss32[0], grad, scale, n, waiting)


cdef inline void find_alpha32(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """alpha and 1 - alpha, each rounded once; of what is behind the last element 0."""
    cdef Py_ssize_t i
    fetch(&desk.by[0], &job.operands[ALPHA], first, n)
    for i in range(n):
        desk.alpha32[i] = <float>desk.by[i]
        desk.rest32[i] = <float>(1 - desk.by[i])
    for i in range(n, BLOCK):
        desk.alpha32[i] = desk.rest32[i] = 0


cdef inline const float *floats_at(
    const Operand *source, const Job *job, float *desk, Py_ssize_t first, Py_ssize_t n,
    Py_ssize_t size, float rest
) noexcept nogil:
    """n of an operand's floats where they lie, or put on the desk, with `rest` up to `size`."""
    cdef Py_ssize_t i
    if n == size and source.type == FLOAT32 and source.div == 1 and source.mod >= job.size:
        return <const float *>source.data + first
    if source == &job.operands[TARGET] and job.integral and source.type >= INT64:
        # Labels, checked: of integers of 64 bits the lower half will do.
        for i in range(n):
            desk[i] = <float><int32_t>(<const int64_t *>source.data)[first + i]
    else:
        fetch(desk, source, first, n)
    for i in range(n, size):
        desk[i] = rest
    return desk


cdef inline void fetch_ahead(const Job *job, Py_ssize_t first) noexcept nogil:
    """Bring a block of logits and targets into the caches, if there is one."""
    cdef const Operand *target = &job.operands[TARGET]
    cdef Py_ssize_t of_x = job.x.nbytes // job.size
    # The target, which a function does not have, has an element for each of x.
    cdef Py_ssize_t of_target = target.nbytes // job.size
    if first + BLOCK <= job.size:
        prefetch_bytes(job.x.data + first * of_x, BLOCK * of_x)
        prefetch_bytes(target.data + first * of_target, BLOCK * of_target)


cdef inline int only_weight(const Job *job) noexcept nogil:
    """The one operand that multiplies losses and gradients, if it has floats; -1 otherwise."""
    cdef int k, one = -1
    for k in range(WEIGHT, UPSTREAM + 1):
        if job.operands[k].data != NULL and k != POS_WEIGHT and k != ALPHA:
            if one >= 0:
                return -1
            one = k
    if one == WEIGHT or one == SAMPLE_WEIGHT:
        if floats(&job.operands[one]):
            return one
    return -1


cdef inline const Operand *repeating(const Job *job) noexcept nogil:
    """The one operand of floats that repeats so soon that it is laid out over and over; or NULL."""
    cdef int k = POS_WEIGHT if job.operands[POS_WEIGHT].data != NULL else only_weight(job)
    if k < 0 or job.operands[k].div != 1 or job.operands[k].mod > BLOCK:
        return NULL
    return &job.operands[k]


cdef inline void multiply_floats(
    const Job *job, Desk *desk, float *grad, float *losses32, const float *by,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t size, Running *losses
) noexcept nogil:
    """What `multiply_all` does for one weight, bit for bit, and the losses' sums."""
    cdef Py_ssize_t i, j, k
    cdef const float *loss = &desk.loss32[0]
    cdef double scale = job.scale
    if losses32 != NULL:
        for i in range(n):
            losses32[first + i] = <float>(<double>loss[i] * <double>by[i])
    if job.want_loss:
        for k in range(size // PARTS):
            i = k * PARTS
            for j in range(PARTS):
                losses.high[j] = losses.high[j] + <double>loss[i + j] * <double>by[i + j]
    if grad != NULL:
        for i in range(size):
            grad[i] = <float>(<double>grad[i] * <double>by[i] * scale)


cdef bint quick(
    float *grad, float *losses32, const Job *job, Py_ssize_t start, Py_ssize_t first,
    Py_ssize_t n, Desk *desk, Running *losses, Waiting *waiting, Py_ssize_t *kept
) noexcept nogil:
    """A block of an item in float; False, with nothing written, if float does not do for all of it.

    The gradient is left in desk.grad32, but where floats are to be written past the caches: `grad`
    is not NULL then, and a block that is full waits there. kept: elements that wait.
    """
    cdef Sources at
    cdef Py_ssize_t i, size = (n + LANES - 1) // LANES * LANES
    cdef const Operand *target = &job.operands[TARGET]
    cdef const Operand *row = repeating(job)
    cdef const float *by = &desk.row32[0]
    cdef float *g = NULL
    cdef int one
    cdef bint plain = not job.factored and losses32 == NULL
    cdef bint sums = plain and (job.kind == BCE_WITH_LOGITS or job.kind == BCE)
    cdef bint direct, shared = False   # shared: a logarithm for 32 elements
    cdef float scale = <float>1 if job.factored else <float>job.scale
    # What is behind the last element has a loss of 0.
    cdef bint logits = job.kind == BCE_WITH_LOGITS or job.kind == FOCAL
    at.x = floats_at(
        &job.x, job, &desk.x32[0], first, n, size, <float>-3e38 if logits else <float>0
    )
    at.t = floats_at(
        target, job, &desk.t32[0], first, n, size,
        <float>(-INFINITY) if job.kind == KL_LOG_TARGET else <float>0,
    )
    direct = at.x != &desk.x32[0] and at.t != &desk.t32[0]
    at.ahead = direct and first + AHEAD + BLOCK <= job.size
    if not direct:
        fetch_ahead(job, first + BLOCK)
    if row != NULL:
        by = by + (first - start) % row.mod
    at.positive = NULL
    if job.operands[POS_WEIGHT].data != NULL:
        at.positive = by
        if row == NULL:
            at.positive = floats_at(
                &job.operands[POS_WEIGHT], job, &desk.positive32[0], first, n, size, 0
            )
    at.alpha = NULL
    at.rest = &desk.rest32[0]
    if job.operands[ALPHA].data != NULL:
        at.alpha = &desk.alpha32[0]
        if job.operands[ALPHA].mod > 1:
            find_alpha32(job, desk, first, n)
    if job.want_gradient:
        g = &desk.grad32[0]
        if grad != NULL and n == BLOCK:
            g = &desk.waiting[kept[0]]
    # 1. Losses and gradients.
    if job.kind == BCE and sums:
        shared = odds_in_float(&at, &desk.e32[0], g, scale, size, waiting)
    if not shared:
        if job.check and checked(job, desk, first, n).what != FINE:
            return False
        if (
            (job.factored or at.positive != NULL or target.type == FLOAT64 or job.kind == BCE
             or job.kind == KL or job.kind == FOCAL)
            and not (plainly_good(job, &at, n) or find_good(job, &at, NULL, n))
        ):
            return False
        shared = sums and job.kind == BCE_WITH_LOGITS and at.positive == NULL
        in_float(job, &at, desk, g, scale, shared, size, waiting)
        if plain and job.want_loss:
            add_floats(losses, &desk.loss32[0], size)
    if shared and job.want_loss:
        for i in range(size, BLOCK):
            desk.e32[i] = 0
        add_logarithms(&desk.e32[0], &losses.high[0])
    # 2. Factors.
    one = only_weight(job)
    if job.factored and one >= 0:
        if row == NULL or one != <int>(row - &job.operands[0]):
            by = floats_at(&job.operands[one], job, &desk.by32[0], first, n, size, 0)
        multiply_floats(job, desk, g, losses32, by, first, n, size, losses)
    elif job.factored:
        for i in range(n):
            desk.loss[i] = desk.loss32[i]
        if g != NULL:
            for i in range(n):
                desk.grad[i] = g[i]
        multiply_all(job, desk, first, n)
        if g != NULL:
            for i in range(n):
                g[i] = <float>desk.grad[i]
        if losses32 != NULL:
            narrow(losses32 + first, &desk.loss[0], n)
        if job.want_loss:
            add_block(losses, &desk.loss[0], n)
    elif losses32 != NULL:
        memcpy(losses32 + first, &desk.loss32[0], n * sizeof(float))
    # 3. A gradient that waits.
    if g != NULL and g != &desk.grad32[0]:
        write_later(
            waiting, <char *>(grad + first), <const char *>g, BLOCK * <Py_ssize_t>sizeof(float)
        )
        kept[0] += BLOCK
    return True


# ---- d) a block in double, or in both --------------------------------------------------------

cdef inline void find_positive(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """desk.by: weights of the positive, or 1."""
    cdef Py_ssize_t i
    if job.operands[POS_WEIGHT].data != NULL:
        fetch(&desk.by[0], &job.operands[POS_WEIGHT], first, n)
    else:
        for i in range(n):
            desk.by[i] = 1


cdef inline void find_alpha(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """desk.by: alpha * t + (1 - alpha) * (1 - t), or 1."""
    cdef Py_ssize_t i
    cdef double a, b, t, lost
    cdef Pair sum
    if job.operands[ALPHA].data != NULL:
        fetch(&desk.by[0], &job.operands[ALPHA], first, n)
        for i in range(n):
            a = desk.by[i]
            t = desk.t[i]
            # Both terms in two parts.
            b = (1 - a) * (1 - t)
            lost = (1 - a) * ((1 - (1 - t)) - t) + (1 - t) * ((1 - (1 - a)) - a)
            lost = lost + product_low(1 - a, 1 - t, b) + product_low(a, t, a * t)
            sum = pair_sum(Pair(a * t, 0), Pair(b, lost))
            desk.by[i] = sum.high + sum.low
    else:
        for i in range(n):
            desk.by[i] = 1


cdef inline void in_second(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Gradients and second derivatives of binary cross-entropy in place of losses."""
    cdef Py_ssize_t i
    if job.operands[POS_WEIGHT].data != NULL:
        find_positive(job, desk, first, n)
        bce_second(&desk.x[0], &desk.t[0], &desk.by[0], &desk.grad[0], &desk.hess[0], n)
    else:
        bce_second(&desk.x[0], &desk.t[0], <double *>NULL, &desk.grad[0], &desk.hess[0], n)
    for i in range(n):
        desk.loss[i] = 0


cdef void in_double(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n, bint exact
) noexcept nogil:
    """Losses and gradients of desk.x, weights of the positive and alpha alone included.

    exact: whether they are wanted as doubles.
    """
    cdef Py_ssize_t i
    fetch(&desk.t[0], &job.operands[TARGET], first, n)
    if job.ignoring:
        for i in range(n):
            desk.t[i] = desk.t[i] if desk.kept[i] != 0 else 0.0
    if job.kind == BCE_WITH_LOGITS:
        if job.want_hess:
            in_second(job, desk, first, n)
        elif job.operands[POS_WEIGHT].data != NULL:
            find_positive(job, desk, first, n)
            bce(
                &desk.x[0], &desk.t[0], &desk.by[0], &desk.e[0], &desk.loss[0], &desk.grad[0], 1.0,
                n,
            )
            add_softplus(&desk.e[0], &desk.t[0], &desk.by[0], &desk.loss[0], n)
        else:
            if job.want_gradient:
                bce(
                    &desk.x[0], &desk.t[0], <double *>NULL, &desk.e[0], &desk.loss[0],
                    &desk.grad[0], 1.0, n,
                )
            else:
                bce(
                    &desk.x[0], &desk.t[0], <double *>NULL, &desk.e[0], &desk.loss[0],
                    <double *>NULL, 1.0, n,
                )
            add_softplus(&desk.e[0], &desk.t[0], <double *>NULL, &desk.loss[0], n)
    elif job.kind == BCE and job.want_gradient:
        bce_probabilities(&desk.x[0], &desk.t[0], &desk.loss[0], &desk.grad[0], n)
    elif job.kind == BCE:
        bce_probabilities(&desk.x[0], &desk.t[0], &desk.loss[0], <double *>NULL, n)
    elif job.kind == FOCAL:
        find_alpha(job, desk, first, n)
        if exact:
            focal(desk, job.gamma, n, job.want_gradient, job.want_hess, True)
        else:
            focal(desk, job.gamma, n, job.want_gradient, job.want_hess, False)
    elif job.kind == KL_LOG_TARGET:
        kl_log_target(&desk.x[0], &desk.t[0], &desk.loss[0], &desk.grad[0], 1.0, n)
    else:
        kl(desk, n)


cdef inline void on_desk_in_float(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Losses and gradients of desk.x32 where float does; desk.by32: 0 where it does not."""
    cdef Sources at
    cdef Waiting nothing
    cdef Py_ssize_t i, size = (n + LANES - 1) // LANES * LANES
    at.x = &desk.x32[0]
    at.t = &desk.t32[0]
    at.positive = NULL
    at.alpha = NULL
    at.rest = &desk.rest32[0]
    at.ahead = False
    nothing.left = 0
    fetch(&desk.t32[0], &job.operands[TARGET], first, n)
    if job.ignoring:
        for i in range(n):
            desk.t32[i] = desk.t32[i] if desk.kept[i] != 0 else <float>0
    if job.operands[POS_WEIGHT].data != NULL:
        fetch(&desk.positive32[0], &job.operands[POS_WEIGHT], first, n)
        at.positive = &desk.positive32[0]
    if job.operands[ALPHA].data != NULL:
        find_alpha32(job, desk, first, n)
        at.alpha = &desk.alpha32[0]
    for i in range(n, size):
        desk.x32[i] = desk.t32[i] = 0
    in_float(job, &at, desk, &desk.grad32[0], 1, False, size, &nothing)
    find_good(job, &at, &desk.by32[0], n)


cdef inline bint second_in_float(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Derivatives in float, the second one in loss32; False if the targets are no floats."""
    fetch(&desk.t32[0], &job.operands[TARGET], first, n)
    if not floats(&job.operands[TARGET]) and not job.integral:
        return False
    bce_second(
        &desk.x32[0], &desk.t32[0], <double *>NULL, &desk.grad32[0], &desk.loss32[0], n
    )
    return True


cdef void compute(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n, real unused
) noexcept nogil:
    """Losses (in double) and gradients of the n elements on the desk, all factors included.

    An element's results do not depend on what else is in its block.
    """
    cdef Py_ssize_t i
    cdef bint plain
    if job.kind == SIGMOID or job.kind == LOG_SIGMOID or job.kind == SOFTPLUS:
        if real is float:
            function(&desk.x32[0], job.kind, &desk.grad32[0], n)
        else:
            function(&desk.x[0], job.kind, &desk.grad[0], n)
        return
    if job.ignoring:
        find_ignored(job, desk, first, n)
        for i in range(n):
            if real is float:
                desk.x32[i] = desk.x32[i] if desk.kept[i] != 0 else <float>0
            else:
                desk.x[i] = desk.x[i] if desk.kept[i] != 0 else 0.0
    if real is float and job.kind == BCE_WITH_LOGITS and job.want_hess:
        # Without any factor a float does for both derivatives.
        plain = not job.factored and not job.ignoring and job.operands[POS_WEIGHT].data == NULL
        if plain and second_in_float(job, desk, first, n):
            return
    if real is float:
        for i in range(n):
            desk.x[i] = desk.x32[i]
        in_double(job, desk, first, n, False)
        if job.floats:
            on_desk_in_float(job, desk, first, n)
            for i in range(n):
                desk.loss[i] = desk.loss32[i] if desk.by32[i] != 0 else desk.loss[i]
                desk.grad[i] = desk.grad32[i] if desk.by32[i] != 0 else desk.grad[i]
    else:
        in_double(job, desk, first, n, True)
    multiply_all(job, desk, first, n)
    if real is float and job.want_gradient:
        for i in range(n):
            desk.grad32[i] = <float>desk.grad[i]
    if real is float and job.want_hess:
        # In the place of losses, of which there are none then.
        for i in range(n):
            desk.loss32[i] = <float>desk.hess[i]


# ---- e) the traversal ------------------------------------------------------------------------

cdef void item(
    const storage *x, storage *grad, storage *hess, float *losses32, double *losses64,
    const Job *job, Py_ssize_t start, Desk *desk, Part *part
) noexcept nogil:
    """Elements from `start` on, as many as an item has."""
    cdef Py_ssize_t stop = min(job.size, start + job.item)
    cdef Py_ssize_t first = start, n
    cdef Py_ssize_t kept = 0, before
    cdef float *later = NULL
    cdef Py_ssize_t passed = start   # up to here `quick` is not tried
    cdef bint done
    cdef const Operand *row
    cdef Running losses, weights
    cdef Waiting waiting
    part.status = Status(FINE, 0)
    waiting.left = 0
    begin(&losses)
    begin(&weights)
    if storage is not double:
        if storage is float:
            later = grad if job.streaming else NULL
        if job.quick:
            row = repeating(job)
            if row != NULL:
                fetch(
                    &desk.row32[0], row, start,
                    min(<Py_ssize_t>2 * BLOCK, stop - start + LANES + row.mod),
                )
            if job.operands[ALPHA].data != NULL and job.operands[ALPHA].mod == 1:
                find_alpha32(job, desk, start, BLOCK)
    while first < stop:
        n = min(stop - first, job.step)
        done = False
        if storage is not double:
            if job.quick:
                if first >= passed:
                    before = kept
                    done = quick(
                        later, losses32, job, start, first, n, desk, &losses, &waiting, &kept
                    )
                    if done and grad != NULL and kept == before:
                        emit(grad + first, &desk.grad32[0], n, job.streaming)
                    if not done:
                        # Such blocks come in runs.
                        passed = first + KEPT
                if kept == KEPT or not done:
                    write_rest(&waiting)
                    kept = 0
                if not done:
                    n = min(n, <Py_ssize_t>DOUBLES)
                elif job.weigh:
                    weigh(job, desk, &weights, first, n)
        if not done:
            if job.check:
                part.status = checked(job, desk, first, n)
                if part.status.what != FINE:
                    break
            if job.weigh:
                weigh(job, desk, &weights, first, n)
            if not job.look:
                # The next block is fetched while this one is worked on.
                if storage is double:
                    load(&desk.x[0], x + first, n, <double>0)
                    fetch_ahead(job, first + n)
                    compute(job, desk, first, n, <double>0)
                else:
                    load(&desk.x32[0], x + first, n, <float>0)
                    fetch_ahead(job, first + n)
                    compute(job, desk, first, n, <float>0)
                if grad != NULL:
                    if storage is double and job.narrow:
                        emit(<float *>grad + first, &desk.grad[0], n, job.streaming)
                    elif storage is double:
                        emit(grad + first, &desk.grad[0], n, job.streaming)
                    else:
                        emit(grad + first, &desk.grad32[0], n, job.streaming)
                if hess != NULL and storage is double:
                    if job.floor > -INFINITY:
                        raise_to(&desk.grad[0], &desk.hess[0], n, job.floor)
                    if job.narrow:
                        emit(<float *>hess + first, &desk.hess[0], n, job.streaming)
                    else:
                        emit(hess + first, &desk.hess[0], n, job.streaming)
                elif hess != NULL:
                    if job.floor > -INFINITY:
                        raise_to(&desk.grad32[0], &desk.loss32[0], n, job.floor)
                    emit(hess + first, &desk.loss32[0], n, job.streaming)
                if losses32 != NULL:
                    narrow(losses32 + first, &desk.loss[0], n)
                if losses64 != NULL:
                    narrow(losses64 + first, &desk.loss[0], n)
                if job.want_loss:
                    add_block(&losses, &desk.loss[0], n)
        first += n
    write_rest(&waiting)
    part.total = folded(&losses)
    part.weight = folded(&weights)
    if job.streaming:
        stream_end()


cdef Part traverse(
    const storage *x, storage *grad, storage *hess, float *losses32, double *losses64,
    const Job *job, Py_ssize_t items, Part *parts, const Workspace *space, int threads
) noexcept nogil:
    """Every item, and what they come to."""
    cdef Part part
    cdef Py_ssize_t i
    if threads > 1:
        for i in prange(items, schedule="dynamic", num_threads=threads):
            item(
                x, grad, hess, losses32, losses64, job, i * job.item,
                <Desk *>part_of(space, threadid()), &parts[i],
            )
    else:
        for i in range(items):
            item(
                x, grad, hess, losses32, losses64, job, i * job.item, <Desk *>space.parts,
                &parts[i],
            )
    part.total = part.weight = Sum(0, 0)
    part.status = Status(FINE, 0)
    for i in range(items):
        part.total = add(part.total, parts[i].total)
        part.weight = add(part.weight, parts[i].weight)
        if part.status.what == FINE:
            part.status = parts[i].status
    return part


# ---- f) what Python calls --------------------------------------------------------------------

cdef int take_operand(Operand *operand, object spec) except -1:
    """Fill in the operand of (array, type, div, mod), or of None.

    The array is C-contiguous and aligned; the caller's tuple keeps it alive.
    """
    cdef Py_buffer view
    operand.data = NULL
    operand.type = 0
    operand.div = operand.mod = 1
    operand.nbytes = 0
    if spec is not None:
        operand.type = spec[1]
        operand.div = spec[2]
        operand.mod = spec[3]
        # Of any element type: bytes, without a look at the format.
        PyObject_GetBuffer(spec[0], &view, PyBUF_SIMPLE)
        if view.len > 0:
            operand.data = <const uint8_t *>view.buf
            operand.nbytes = view.len
        PyBuffer_Release(&view)
    return 0


cdef bint overlaps(const void *result, const Job *job, Py_ssize_t nbytes) noexcept nogil:
    """Whether a result shares memory with what is read; it may be x as a whole."""
    cdef int k
    if result != job.x.data and overlap(result, nbytes, job.x.data, nbytes):
        return True
    for k in range(OPERANDS):
        if overlap(result, nbytes, job.operands[k].data, job.operands[k].nbytes):
            return True
    return False


cdef Part run(
    Job *job, const storage *x, storage *grad, storage *hess, void *losses, bint divide,
    bint given, int threads
) noexcept nogil:
    """Take scratch memory, look for what is wrong, and deal out the items."""
    cdef Part whole, single
    cdef Part *parts = &single
    cdef Workspace space, list_space
    cdef Py_ssize_t items
    cdef float *losses32 = NULL
    cdef double *losses64 = NULL
    cdef double magnitude, weights = <double>job.size
    cdef bint known = not job.weigh
    whole.total = whole.weight = Sum(0, 0)
    whole.status = Status(FINE, 0)
    if storage is double:
        losses64 = <double *>losses
    else:
        losses32 = <float *>losses
    job.item = max(<Py_ssize_t>ITEM, (job.size + MAX_ITEMS - 1) // MAX_ITEMS)
    items = (job.size + job.item - 1) // job.item
    threads = <int>min(<Py_ssize_t>max(threads, 1), items)
    space.taken = list_space.taken = NULL
    if items > 1:
        if take(&list_space, items * sizeof(Part), 1):
            parts = <Part *>list_space.parts
        else:
            whole.status.what = NO_MEMORY
    if whole.status.what == FINE and not take(&space, sizeof(Desk), threads):
        whole.status.what = NO_MEMORY
    if whole.status.what == FINE and (
        (job.check and given) or (job.weigh and divide and grad != NULL)
    ):
        # Before anything is written.
        job.look = True
        job.quick = False
        job.step = BLOCK
        whole = traverse(x, grad, hess, losses32, losses64, job, items, parts, &space, threads)
        if not known:
            weights = value_of(whole.weight)
        known = True
        job.look = job.check = job.weigh = False
    if whole.status.what == FINE:
        if divide:
            job.scale = job.scale / weights if weights != 0 else 0.0
        magnitude = job.scale if job.scale >= 0 else -job.scale
        if not (magnitude <= 1 and (magnitude >= 1e-30 or magnitude == 0)):
            job.factored = True
        if storage is not double:
            if not job.factored:
                # As a block in float multiplies by it.
                job.scale = <float>job.scale
        job.quick = job.floats and not job.ignoring
        job.step = BLOCK
        if storage is double or (job.kind <= KL_LOG_TARGET and not job.quick):
            job.step = DOUBLES
        whole = traverse(x, grad, hess, losses32, losses64, job, items, parts, &space, threads)
        if known:
            whole.weight = Sum(weights, 0)
    give_back(&list_space)
    give_back(&space)
    return whole


cdef Part answer(
    Job *job, void *grad, void *second, void *losses, bint divide, bint given, int threads
) noexcept nogil:
    """What a call comes to whose `job` says what Python said."""
    cdef Part whole
    cdef Py_ssize_t nbytes = job.x.nbytes
    cdef int type = job.x.type
    cdef const void *x = job.x.data
    job.want_gradient = grad != NULL
    job.want_hess = second != NULL
    job.check = job.kind == BCE or job.integral
    job.weigh = job.operands[SAMPLE_WEIGHT].data != NULL or job.ignoring
    job.look = False
    job.streaming = grad != NULL and nbytes >= STREAM
    # A power makes of an error of its base one that is so many times as large.
    job.floats = (
        job.kind <= KL_LOG_TARGET
        and not job.want_hess
        and job.gamma <= 4
        and (floats(&job.operands[POS_WEIGHT]) or job.operands[POS_WEIGHT].type == FLOAT64)
        and (floats(&job.operands[TARGET]) or (job.kind != KL and job.kind != KL_LOG_TARGET))
    )
    if not job.narrow and (
        overlaps(grad, job, nbytes)
        or overlaps(second, job, nbytes)
        or overlap(grad, nbytes, second, nbytes)
    ):
        whole.total = whole.weight = Sum(0, 0)
        whole.status = Status(OVERLAPS, 0)
        return whole
    if type == FLOAT32:
        return run(
            job, <const float *>x, <float *>grad, <float *>second, losses, divide, given, threads
        )
    if type == FLOAT64:
        return run(
            job, <const double *>x, <double *>grad, <double *>second, losses, divide, given,
            threads,
        )
    if type == FLOAT16:
        return run(
            job, <const float16 *>x, <float16 *>grad, <float16 *>second, losses, divide, given,
            threads,
        )
    return run(
        job, <const bfloat16 *>x, <bfloat16 *>grad, <bfloat16 *>second, losses, divide, given,
        threads,
    )


def evaluate(
    int kind,                  # one of KINDS
    int type,                  # of `x`, one of the first four TYPES
    object x,                  # IN   logits, probabilities or log-probabilities; as all arrays here
                               #      contiguous
    Py_ssize_t size,           # elements of it
    tuple operands,            # IN   an (array, type, div, mod) or None for each of them
    double gamma=0,            # IN   of the focal loss
    object ignored=None,       # IN   target of what is ignored
    bint integral=False,       # IN   whether other targets than 0 and 1 are wrong
    double scale=1,            # IN   multiplies the gradient
    bint divide=False,         # IN   whether the sum of the sample weights divides it
    bint want_loss=False,
    object losses=None,        # OUT  of the compute type
    object out=None,           # OUT  gradient, or a function's values; may be x
    object hess=None,          # OUT  second derivatives
    bint given=False,          # IN   whether they hold something that an error must leave
    int threads=1,
    double floor=-INFINITY,    # IN   least second derivative
    bint narrowed=False,       # IN   whether `out` and `hess` are new float arrays for double x
):
    """Return (what, where, sum of the losses, sum of the sample weights of what is not ignored).

    what: a number of STATUS; where: the position of what is wrong.
    """
    cdef Job job
    cdef Part whole
    cdef Py_ssize_t nbytes, written_bytes
    cdef const void *source
    cdef void *grad
    cdef void *second
    cdef void *each
    cdef int k
    if size == 0:
        return FINE, 0, 0.0, 0.0
    job.kind = kind
    job.size = size
    job.factored = False
    for k in range(OPERANDS):
        take_operand(&job.operands[k], operands[k])
        if k != TARGET and k != POS_WEIGHT and k != ALPHA:
            job.factored = job.factored or job.operands[k].data != NULL
    job.gamma = gamma
    job.floor = floor
    job.ignoring = ignored is not None
    job.ignored = ignored if job.ignoring else 0.0
    job.integral = integral
    job.scale = scale
    nbytes = size * size_of(type)
    written_bytes = nbytes // 2 if narrowed else nbytes
    source = address(x, nbytes)
    grad = address(out, written_bytes)
    second = address(hess, written_bytes)
    each = address(losses, size * (8 if type == FLOAT64 else 4))
    job.x = Operand(<const uint8_t *>source, type, 1, size, nbytes)
    job.want_loss = want_loss
    job.narrow = narrowed
    with nogil:
        whole = answer(&job, grad, second, each, divide, given, threads)
    if whole.status.what != FINE:
        return whole.status.what, whole.status.where, 0.0, 0.0
    return FINE, 0, value_of(whole.total), value_of(whole.weight)


# ---- g) small calls --------------------------------------------------------------------------

import numpy as np

cdef object ndarray = np.ndarray
cdef object empty = np.empty
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef object int64 = np.dtype(np.int64)
cdef object single = np.float32


def usual(
    int kind, object x, object target, object out, object reduction, bint gradient, object alpha,
    object gamma,
    Py_ssize_t most,           # elements of a call on one thread
):
    """Return (loss, gradient, its two sums) of a small, usual call, None for any other.

    As in `classes.pyx`: what is not taken here is checked and told in Python.
    """
    cdef Job job
    cdef Part whole
    cdef Lying logits, goal, grad
    cdef double weighting, loss
    cdef bint double_too, mean, given
    cdef Py_ssize_t size = 1, each
    cdef int k, operand
    if type(reduction) is not str:
        return None
    mean = reduction == "mean"
    if not (
        (mean or reduction == "sum")
        and type(gamma) is float
        and (alpha is None or type(alpha) is float)
    ):
        return None
    double_too = type(x) is ndarray and x.dtype is float64
    dtype = float64 if double_too else float32
    if not lies(&logits, x, ndarray, dtype, False):
        return None
    for k in range(logits.ndim):
        size = size * logits.shape[k]
    if not 0 < size < most:
        return None
    if lies(&goal, target, ndarray, dtype, False):
        k = FLOAT64 if double_too else FLOAT32
    elif kind != KL and kind != KL_LOG_TARGET and lies(&goal, target, ndarray, int64, False):
        k = INT64
    else:
        return None
    if not alike(&goal, &logits):
        return None
    given = out is not None
    grad.start = NULL
    if gradient:
        if out is None:
            out = empty(x.shape, dtype)
        if not lies(&grad, out, ndarray, dtype, True) or not alike(&grad, &logits):
            return None
    memset(&job, 0, sizeof(job))
    each = 8 if double_too else 4
    job.kind = kind
    job.size = size
    job.x = Operand(
        <const uint8_t *>logits.start, FLOAT64 if double_too else FLOAT32, 1, size, size * each
    )
    for operand in range(OPERANDS):
        take_operand(&job.operands[operand], None)
    job.operands[TARGET] = Operand(
        <const uint8_t *>goal.start, k, 1, size, size * (8 if k != FLOAT32 else 4)
    )
    if alpha is not None:
        weighting = alpha
        job.operands[ALPHA] = Operand(<const uint8_t *>&weighting, FLOAT64, 1, 1, 8)
    job.gamma = gamma
    job.floor = -INFINITY
    job.integral = k == INT64 and (kind == BCE_WITH_LOGITS or kind == FOCAL)
    job.scale = 1
    job.want_loss = True
    with nogil:
        whole = answer(&job, grad.start, NULL, NULL, mean, given, 1)
    if whole.status.what != FINE:
        return None
    # From here on there is no way back: `out` may be x.
    sums = (value_of(whole.total), value_of(whole.weight))
    loss = sums[0]
    if mean:
        loss /= size
    if not double_too:
        loss = <float>loss
    return (float64.type if double_too else single)(loss), out if gradient else None, sums
