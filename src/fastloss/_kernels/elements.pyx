# Losses of single elements, and the functions they are made of.
#
# Every array counts as flat. There is one traversal: elements are worked on in blocks; a block and
# what goes with it (target, weights, upstream gradient) are widened to the compute type on a desk,
# the loss's ending (element_endings.pxd) makes losses and gradients of them, factors are multiplied
# in, and all is written out. A pass that looks for numbers out of range, and one that adds up the
# sample weights that the gradient of a mean is divided by, are the same traversal without the
# ending.
#
# What is computed in float, for arrays of float32 and narrower: hard binary cross-entropy and that
# of probabilities. An element that a float does not do for (a float64 target, a loss so small that
# a weight may bring it back) is done in double, beside the others of its block.
#
# Layout: a) checks, b) a block on the desk, c) the traversal, d) what Python calls.

from cython.parallel cimport prange, threadid
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .element_endings cimport (
    AHEAD, ALPHA, BCE, BCE_WITH_LOGITS, BLOCK, FOCAL, KEPT, KL, KL_LOG_TARGET, LOG_SIGMOID, SIGMOID,
    OPERANDS, POS_WEIGHT, SAMPLE_WEIGHT, SOFTPLUS, TARGET, UPSTREAM, WEIGHT, Desk, Job, all_hard,
    bce_hard, bce_probabilities, bce_soft, focal, function, kl, kl_log_target, odds_block,
)
from .element_second cimport bce_second, raise_to
from .operands cimport (
    BFLOAT16, FLOAT16, FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64,
    Operand, fetch, floats, type_of, widen,
)
from .storage cimport (
    Waiting, emit, load, narrow, overlap, prefetch_bytes, storage, stream_end, write_later,
    write_rest,
)
from .sums cimport LANES, PARTS, Sum, accumulate, add, value_of
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


cdef inline Sum folded(const Running *sums) noexcept nogil:
    cdef Sum total = Sum(0, 0)
    cdef Py_ssize_t i
    for i in range(PARTS):
        total = add(total, Sum(sums.high[i], sums.low[i]))
    return total


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


# ---- b) a block on the desk ------------------------------------------------------------------

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
    cdef bint soft
    fetch(&desk.t[0], &job.operands[TARGET], first, n)
    if job.ignoring:
        for i in range(n):
            desk.t[i] = desk.t[i] if desk.kept[i] != 0 else 0.0
    if job.kind == BCE_WITH_LOGITS:
        soft = job.operands[POS_WEIGHT].data != NULL or not all_hard(&desk.t[0], n)
        if job.want_hess:
            in_second(job, desk, first, n)
        elif soft:
            find_positive(job, desk, first, n)
            bce_soft(&desk.x[0], &desk.t[0], &desk.by[0], &desk.loss[0], &desk.grad[0], n)
        elif job.want_gradient:
            bce_hard(&desk.x[0], &desk.t[0], &desk.loss[0], &desk.grad[0], n)
        else:
            bce_hard(&desk.x[0], &desk.t[0], &desk.loss[0], <double *>NULL, n)
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
        kl_log_target(&desk.x[0], &desk.t[0], &desk.loss[0], &desk.grad[0], n)
    elif exact or not floats(&job.operands[TARGET]):
        kl(desk, n, True)
    else:
        kl(desk, n, False)


cdef inline bint good(float x, float t, float least, float most) noexcept nogil:
    return (
        ((t == 0) | (t == 1) | ((t >= least) & (x >= least))) & (x <= most) & (x >= -most)
    )


cdef inline bint plain_logits(const float *x, const float *t, Py_ssize_t n) noexcept nogil:
    """Whether all targets are 0 or 1, and all losses and slopes normal numbers of float."""
    cdef Py_ssize_t i
    cdef int others = 0
    for i in range(n):
        others |= ((t[i] != 0) & (t[i] != 1)) | (x[i] > 80) | (x[i] < -80) | (x[i] != x[i])
    return others == 0


cdef inline bint find_done(const Job *job, Desk *desk, Py_ssize_t n) noexcept nogil:
    """Whether all is as good in float as in double; desk.done32: which is, if not all.

    Not a target that is no float: NaN stands for it. Not what a weight may bring back when it is
    too small for a float, unless it is the float that it comes from.
    """
    cdef Py_ssize_t i
    cdef int others = 0
    # A target other than 0 and 1, and x with it, have to be at least ..., and x at most ...
    cdef float least = <float>(-INFINITY), most = <float>INFINITY
    if job.operands[POS_WEIGHT].data != NULL:
        least = <float>INFINITY
    elif job.kind == BCE and job.factored:
        least = <float>5e-20
    if job.kind == BCE_WITH_LOGITS and job.factored:
        most = <float>80
    for i in range(n):
        others |= not good(desk.x32[i], desk.t32[i], least, most)
    if others == 0:
        return True
    for i in range(n):
        desk.done32[i] = (
            <float>1 if good(desk.x32[i], desk.t32[i], least, most) else <float>0
        )
    return False


cdef inline int in_float(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Losses and gradients of desk.x32 where float does, without any factor.

    Whether it is all; 2 if factors are wanted and all is finite.
    """
    cdef Py_ssize_t i
    cdef bint plain = False
    fetch(&desk.t32[0], &job.operands[TARGET], first, n)
    if job.ignoring:
        for i in range(n):
            desk.t32[i] = desk.t32[i] if desk.kept[i] != 0 else <float>0
    if job.kind == KL_LOG_TARGET:
        kl_log_target(&desk.x32[0], &desk.t32[0], &desk.loss32[0], &desk.grad32[0], n)
        return 1
    if job.kind == BCE_WITH_LOGITS and job.factored:
        plain = plain_logits(&desk.x32[0], &desk.t32[0], n)
    if job.kind == BCE and job.want_gradient:
        bce_probabilities(&desk.x32[0], &desk.t32[0], &desk.loss32[0], &desk.grad32[0], n)
    elif job.kind == BCE:
        bce_probabilities(&desk.x32[0], &desk.t32[0], &desk.loss32[0], <float *>NULL, n)
    elif not plain and not all_hard(&desk.t32[0], n):
        bce_soft(
            &desk.x32[0], &desk.t32[0], <double *>NULL, &desk.loss32[0], &desk.grad32[0], n
        )
    else:
        if job.want_gradient:
            bce_hard(&desk.x32[0], &desk.t32[0], &desk.loss32[0], &desk.grad32[0], n)
        else:
            bce_hard(&desk.x32[0], &desk.t32[0], &desk.loss32[0], <float *>NULL, n)
        if plain:
            return 2
        if not job.factored:
            return 1
    if not job.factored and floats(&job.operands[TARGET]):
        return 1
    return find_done(job, desk, n)


cdef inline void join_float(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n, bint all_done
) noexcept nogil:
    """Results of `in_float` to those of `in_double`, with the weights of the positive."""
    cdef Py_ssize_t i
    if all_done and job.want_gradient:
        for i in range(n):
            desk.loss[i] = desk.loss32[i]
            desk.grad[i] = desk.grad32[i]
    elif all_done:
        for i in range(n):
            desk.loss[i] = desk.loss32[i]
    else:
        for i in range(n):
            desk.loss[i] = desk.loss32[i] if desk.done32[i] != 0 else desk.loss[i]
            desk.grad[i] = desk.grad32[i] if desk.done32[i] != 0 else desk.grad[i]
    if job.operands[POS_WEIGHT].data != NULL:
        fetch(&desk.by[0], &job.operands[POS_WEIGHT], first, n)
        for i in range(n):
            desk.by[i] = desk.by[i] if desk.t32[i] != 0 else 1.0
        if not all_done:
            for i in range(n):
                desk.by[i] = desk.by[i] if desk.done32[i] != 0 else 1.0
        multiply(job, desk, n)


cdef inline int only_weight(const Job *job) noexcept nogil:
    """The one operand that multiplies losses and gradients, if it has floats; -1 otherwise."""
    cdef int k, one = -1
    for k in range(WEIGHT, OPERANDS):
        if job.operands[k].data != NULL:
            if one >= 0:
                return -1
            one = k
    if one == WEIGHT or one == SAMPLE_WEIGHT or one == POS_WEIGHT:
        if floats(&job.operands[one]):
            return one
    return -1


cdef inline bint multiply_floats(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """What `join_float` and `multiply_all` do, bit for bit, in one pass; False if it can't.

    For finite results of `in_float`, from which a factor of 0 has nothing infinite to take away.
    """
    cdef Py_ssize_t i
    cdef int one = only_weight(job)
    cdef double scale = job.scale
    cdef const Operand *source
    cdef const float *by = &desk.done32[0]
    if one < 0 or job.ignoring or job.want_hess:
        return False
    source = &job.operands[one]
    if one == POS_WEIGHT:
        fetch(&desk.done32[0], source, first, n)
        for i in range(n):
            desk.done32[i] = desk.done32[i] if desk.t32[i] != 0 else <float>1
    elif source.type == FLOAT32 and source.div == 1 and source.mod >= job.size:
        # Read where they lie.
        by = <const float *>source.data + first
    else:
        fetch(&desk.done32[0], source, first, n)
    if job.want_gradient:
        for i in range(n):
            desk.loss[i] = <double>desk.loss32[i] * <double>by[i]
            desk.grad32[i] = <float>(<double>desk.grad32[i] * <double>by[i] * scale)
    else:
        for i in range(n):
            desk.loss[i] = <double>desk.loss32[i] * <double>by[i]
    return True


cdef inline bint second_in_float(
    const Job *job, Desk *desk, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """Derivatives in float, the second one in loss32; False if the targets are no floats."""
    fetch(&desk.t32[0], &job.operands[TARGET], first, n)
    if not floats(&job.operands[TARGET]) and not all_hard(&desk.t32[0], n):
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
    cdef float scale
    cdef bint all_done = False, finite = False, try_float = False
    cdef int done
    if real is float:
        try_float = (
            job.kind == BCE
            or (job.kind == BCE_WITH_LOGITS and not job.want_hess)
            or (job.kind == KL_LOG_TARGET and floats(&job.operands[TARGET]) and not job.factored)
        )
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
        if not job.factored and not job.ignoring and second_in_float(job, desk, first, n):
            return
    if real is float and try_float:
        done = in_float(job, desk, first, n)
        all_done = done != 0
        finite = done == 2 or (all_done and job.kind == BCE)
        if all_done and not job.factored and not job.ignoring:
            scale = <float>job.scale
            for i in range(n):
                desk.loss[i] = desk.loss32[i]
            if job.want_gradient:
                for i in range(n):
                    desk.grad32[i] = desk.grad32[i] * scale
            return
        if finite and multiply_floats(job, desk, first, n):
            return
    if not all_done:
        if real is float:
            for i in range(n):
                desk.x[i] = desk.x32[i]
        in_double(job, desk, first, n, real is double)
    if real is float and try_float:
        join_float(job, desk, first, n, all_done)
    multiply_all(job, desk, first, n)
    if real is float and job.want_gradient:
        for i in range(n):
            desk.grad32[i] = <float>desk.grad[i]
    if real is float and job.want_hess:
        # In the place of losses, of which there are none then.
        for i in range(n):
            desk.loss32[i] = <float>desk.hess[i]


# ---- c) the traversal ------------------------------------------------------------------------

cdef inline void fetch_ahead(
    const storage *x, const Operand *target, Py_ssize_t size, Py_ssize_t first
) noexcept nogil:
    """Bring a block of both arrays into the caches, if there is one."""
    # The target, which a function does not have, has an element for each of x.
    cdef Py_ssize_t each = target.nbytes // size
    if first + BLOCK <= size:
        prefetch_bytes(x + first, BLOCK * sizeof(storage))
        prefetch_bytes(target.data + first * each, BLOCK * each)


cdef bint sum_block(
    const float *x, const float *t, const Job *job, float *grad, Running *losses,
    Waiting *waiting, bint ahead
) noexcept nogil:
    # A function of its own: in a larger one the registers of its loops would be spilled.
    return odds_block(x, t, job, grad, &losses.high[0], &losses.low[0], waiting, ahead)


cdef inline bint summed(
    const storage *x, storage *grad, const Job *job, Py_ssize_t first, Desk *desk,
    Running *losses, Waiting *waiting, Py_ssize_t *kept
) noexcept nogil:
    """A whole block by `sum_block`; False, with nothing done, if it is none for that.

    kept: elements of the gradient that wait.
    """
    # Read where they lie, if they are float there.
    cdef const float *source = &desk.x32[0]
    cdef const float *target = &desk.t32[0]
    cdef float *g = NULL
    cdef bint direct
    if storage is float:
        source = x + first
    else:
        load(&desk.x32[0], x + first, BLOCK, <float>0)
    if job.operands[TARGET].type == FLOAT32:
        target = <const float *>job.operands[TARGET].data + first
    else:
        fetch(&desk.t32[0], &job.operands[TARGET], first, BLOCK)
    direct = storage is float and job.operands[TARGET].type == FLOAT32
    if not direct:
        fetch_ahead(x, &job.operands[TARGET], job.size, first + BLOCK)
    if grad != NULL:
        g = &desk.waiting[kept[0]]
    if not sum_block(
        source, target, job, g, losses, waiting,
        direct and first + AHEAD + BLOCK <= job.size,
    ):
        return False
    if storage is float and job.streaming:
        write_later(
            waiting, <char *>(grad + first), <const char *>g, BLOCK * <Py_ssize_t>sizeof(float)
        )
        kept[0] += BLOCK
    elif grad != NULL:
        emit(grad + first, g, BLOCK, job.streaming)
    return True


cdef void item(
    const storage *x, storage *grad, storage *hess, float *losses32, double *losses64,
    const Job *job, Py_ssize_t start, Desk *desk, Part *part
) noexcept nogil:
    """Elements from `start` on, as many as an item has."""
    cdef Py_ssize_t stop = min(job.size, start + job.item)
    cdef Py_ssize_t first = start, n
    cdef Py_ssize_t kept = 0
    cdef Py_ssize_t passed = start   # up to here `summed` is not tried
    cdef bint done
    cdef Running losses, weights
    cdef Waiting waiting
    part.status = Status(FINE, 0)
    waiting.left = 0
    begin(&losses)
    begin(&weights)
    while first < stop:
        n = min(stop - first, <Py_ssize_t>BLOCK)
        done = False
        if storage is not double:
            if job.sums_alone and n == BLOCK and first >= passed:
                done = summed(x, grad, job, first, desk, &losses, &waiting, &kept)
                if not done:
                    # Such blocks come in runs.
                    passed = first + KEPT
                if kept == KEPT or not done:
                    write_rest(&waiting)
                    kept = 0
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
                    fetch_ahead(x, &job.operands[TARGET], job.size, first + BLOCK)
                    compute(job, desk, first, n, <double>0)
                else:
                    load(&desk.x32[0], x + first, n, <float>0)
                    fetch_ahead(x, &job.operands[TARGET], job.size, first + BLOCK)
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


# ---- d) what Python calls --------------------------------------------------------------------

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


cdef bint overlaps(
    const void *result, const void *x, const Job *job, Py_ssize_t nbytes
) noexcept nogil:
    """Whether a result shares memory with what is read; it may be x as a whole."""
    cdef int k
    if result != x and overlap(result, nbytes, x, nbytes):
        return True
    for k in range(OPERANDS):
        if overlap(result, nbytes, job.operands[k].data, job.operands[k].nbytes):
            return True
    return False


def evaluate(
    int kind,
    const storage[::1] x,            # IN   logits, probabilities or log-probabilities
    tuple operands,                  # IN   an (array, type, div, mod) or None for each of them
    double gamma,                    # IN   of the focal loss
    ignored,                         # IN   target of what is ignored, or None
    bint integral,                   # IN   whether other targets than 0 and 1 are wrong
    double scale,                    # IN   multiplies the gradient
    bint divide,                     # IN   whether the sum of the sample weights divides it
    bint want_loss,
    float[::1] losses32,             # OUT  or None
    double[::1] losses64,            # OUT  the same for double, or None
    storage[::1] grad,               # OUT  gradient, or a function's values; or None
    storage[::1] hess,               # OUT  second derivative, or None
    bint given,                      # IN   whether they hold something that an error must leave
    int threads,
    double floor=-INFINITY,          # IN   least second derivative
    float[::1] grad32=None,          # OUT  both in the place of `grad` and `hess`, for double
    float[::1] hess32=None,          # OUT  logits: new arrays, which overlap nothing
):
    """Return (what, where, sum of the losses, sum of the sample weights of what is not ignored).

    what: a number of STATUS; where: the position of what is wrong.
    """
    cdef Job job
    cdef Part whole, single
    cdef Part *parts = &single
    cdef Workspace space, list_space
    cdef Py_ssize_t items, nbytes
    cdef const storage *source = NULL
    cdef storage *g = NULL
    cdef storage *h = NULL
    cdef float *out32 = NULL
    cdef double *out64 = NULL
    cdef double weights, magnitude
    cdef bint known
    cdef int k
    job.kind = kind
    job.size = x.shape[0]
    job.factored = False
    if job.size == 0:
        return FINE, 0, 0.0, 0.0
    for k in range(OPERANDS):
        take_operand(&job.operands[k], operands[k])
        if k != TARGET:
            job.factored = job.factored or job.operands[k].data != NULL
    job.gamma = gamma
    job.floor = floor
    job.ignoring = ignored is not None
    job.ignored = ignored if job.ignoring else 0.0
    job.integral = integral
    source = &x[0]
    nbytes = job.size * <Py_ssize_t>sizeof(storage)
    job.x = Operand(<const uint8_t *>source, type_of(source), 1, job.size, nbytes)
    job.want_loss = want_loss
    job.narrow = hess32 is not None
    job.want_gradient = grad is not None or job.narrow
    job.want_hess = hess is not None or job.narrow
    job.check = kind == BCE or integral
    job.weigh = job.operands[SAMPLE_WEIGHT].data != NULL or job.ignoring
    job.look = False
    if losses32 is not None:
        out32 = &losses32[0]
    if losses64 is not None:
        out64 = &losses64[0]
    if grad is not None:
        g = &grad[0]
        if overlaps(g, source, &job, nbytes):
            return OVERLAPS, 0, 0.0, 0.0
    if hess is not None:
        h = &hess[0]
        if overlaps(h, source, &job, nbytes) or overlap(g, nbytes, h, nbytes):
            return OVERLAPS, 0, 0.0, 0.0
    if job.narrow:
        g = <storage *>&grad32[0]
        h = <storage *>&hess32[0]
    job.streaming = g != NULL and nbytes >= STREAM
    with nogil:
        job.item = max(<Py_ssize_t>ITEM, (job.size + MAX_ITEMS - 1) // MAX_ITEMS)
        items = (job.size + job.item - 1) // job.item
        threads = <int>min(<Py_ssize_t>max(threads, 1), items)
        space.taken = list_space.taken = NULL
        whole.status = Status(FINE, 0)
        if items > 1:
            if take(&list_space, items * sizeof(Part), 1):
                parts = <Part *>list_space.parts
            else:
                whole.status.what = NO_MEMORY
        if whole.status.what == FINE and not take(&space, sizeof(Desk), threads):
            whole.status.what = NO_MEMORY
        weights = <double>job.size
        known = not job.weigh
        if whole.status.what == FINE and (
            (job.check and given) or (job.weigh and divide and g != NULL)
        ):
            # Before anything is written.
            job.look = True
            job.sums_alone = False
            whole = traverse(
                source, g, h, out32, out64, &job, items, parts, &space, threads
            )
            if not known:
                weights = value_of(whole.weight)
            known = True
            job.look = job.check = job.weigh = False
        if whole.status.what == FINE:
            if divide:
                scale = scale / weights if weights != 0 else 0.0
            magnitude = scale if scale >= 0 else -scale
            if not (magnitude <= 1 and (magnitude >= 1e-30 or magnitude == 0)):
                job.factored = True
            if storage is not double:
                if not job.factored:
                    # As a block in float multiplies by it.
                    scale = <float>scale
            job.scale = scale
            job.sums_alone = (
                (kind == BCE or kind == BCE_WITH_LOGITS)
                and not job.factored
                and not job.ignoring
                and not job.want_hess
                and out32 == NULL
            )
            whole = traverse(
                source, g, h, out32, out64, &job, items, parts, &space, threads
            )
            if not known:
                weights = value_of(whole.weight)
        give_back(&list_space)
        give_back(&space)
    if whole.status.what != FINE:
        return whole.status.what, whole.status.where, 0.0, 0.0
    return FINE, 0, value_of(whole.total), weights
