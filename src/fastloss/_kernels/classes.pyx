# Everything over classes: cross-entropy, focal loss, negative log-likelihood, the softmax and its
# relatives, and the scores of samples.
#
# Arrays arrive as (outer, C, inner); samples.pxd says what a sample is and how samples are dealt
# out. What a loss is stands in class_endings.pxi. Here an item of work is sent one of these ways
# through memory, chosen by shape and options alone:
#
#   rows      rows.pxi       the classes of a sample lie side by side, FIRST_ROW of them or more
#   tiles     tiles.pxi      any other shape
#   second    second.pxi     second derivatives of class indices
#   tempered  tempered.pxi   the softmax is taken of logits changed by temperature or softcap, or in
#                            double
#
# These files are included, since a .pxd may hold inline functions alone: what a loop calls is
# inlined, and a function with a loop of its own is not (see CMakeLists.txt).
#
# Nothing here raises. A wrong class index is found before anything is written, and reported by
# position; indices are checked again where they are used.

from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t
from libc.string cimport memset

from .buffers cimport Lying, address, alike, lies
from .operands cimport FLOAT16, FLOAT32, FLOAT64, size_of
from .samples cimport (
    CROSS_ENTROPY, FOCAL, LOGSUMEXP, LOG_SOFTMAX, NLL, SCORE, SOFT, SOFTMAX, Job, any_heavy, check,
    class_of, factor_of, is_heavy, item_size, offset_of, out_overlaps, weighted,
)
from .storage cimport (
    bfloat16, emit, float16, narrow, prefetch_bytes, storage, stream_end, value_at,
)
from .sums cimport LANES, Sum, Tally, add, clear, count, folded, value_of
from .vecmath cimport INFINITY, NAN, real
from .workspace cimport (
    FINE, NO_MEMORY, OVERLAPS, PROBS_OUTSIDE, Status, TARGET_OUTSIDE, WRONG_INDEX, WRONG_TARGET,
    Workspace, give_back, part_of, take,
)

cdef enum:
    FIRST_ROW = 64       # fewest classes of a row; samples of fewer are turned into tiles
    # What is written is written past the caches where it is larger than they are.
    STREAM = 16777216

include "class_endings.pxi"
include "drain.pxi"
include "rows.pxi"
include "tiles.pxi"
include "second.pxi"
include "tempered.pxi"
include "scores.pxi"

#: What `evaluate` computes, by name.
KINDS = {
    "cross_entropy": CROSS_ENTROPY,
    "soft_cross_entropy": SOFT,
    "softmax_focal_loss": FOCAL,
    "nll_loss": NLL,
    "logsumexp": LOGSUMEXP,
    "softmax": SOFTMAX,
    "log_softmax": LOG_SOFTMAX,
    "score": SCORE,
}

#: What SCORE computes, in the order of `scores`.
SCORES = (
    "log_prob", "predicted_log_prob", "margin", "entropy", "logsumexp", "brier", "variance", "rank",
    "predicted", "top_classes", "top_log_probs",
)

#: What a kernel reports, by name.
STATUS = {
    "FINE": FINE,
    "NO_MEMORY": NO_MEMORY,
    "OVERLAPS": OVERLAPS,
    "WRONG_INDEX": WRONG_INDEX,
    "WRONG_TARGET": WRONG_TARGET,
    "PROBS_OUTSIDE": PROBS_OUTSIDE,
    "TARGET_OUTSIDE": TARGET_OUTSIDE,
}


# ---- a) negative log-likelihood --------------------------------------------------------------

cdef struct Place:
    Py_ssize_t first         # where a sample's first class lies
    Py_ssize_t inner         # its position within `inner`


cdef inline Place place_of(const Job *job, Py_ssize_t sample) noexcept nogil:
    return Place(offset_of(job, sample, 0), sample % job.inner)


cdef inline void step(const Job *job, Place *place) noexcept nogil:
    """On to the next sample: a division for each would take longer than all the rest."""
    place.first += 1
    place.inner += 1
    if place.inner == job.inner:
        place.inner = 0
        place.first += (job.classes - 1) * job.inner


cdef inline void find_targets(
    const storage *x, const Job *job, Place *place, Py_ssize_t first, Py_ssize_t n, Py_ssize_t *at
) noexcept nogil:
    """Where the targets of n <= LANES samples lie, -1 for none; they are fetched meanwhile."""
    cdef Py_ssize_t i, t
    for i in range(n):
        t = class_of(job, first + i)
        at[i] = place.first + t * job.inner if t >= 0 else -1
        prefetch_bytes(x + (at[i] if t >= 0 else place.first), 1)
        step(job, place)


cdef void nll_item(
    const storage *x, real *losses, const Job *job, Py_ssize_t start, Py_ssize_t stop, Sum *result
) noexcept nogil:
    cdef Tally tally
    cdef Place place = place_of(job, start)
    cdef Py_ssize_t first = start, i, n = min(stop - start, <Py_ssize_t>LANES), m
    cdef double loss[LANES]
    cdef Py_ssize_t both[2][LANES]
    cdef Py_ssize_t *at = &both[0][0]
    cdef Py_ssize_t *ahead = &both[1][0]
    cdef bint plain = job.weight == NULL and job.factor == NULL
    clear(&tally)
    find_targets(x, job, &place, first, n, at)
    while n > 0:
        # Those of the next samples are on their way: one miss after the other would take long.
        m = min(stop - first - n, <Py_ssize_t>LANES)
        find_targets(x, job, &place, first + n, m, ahead)
        for i in range(n):
            loss[i] = -value_at(x, at[i], <double>0) if at[i] >= 0 else 0.0
        if not plain:
            for i in range(n):
                if at[i] >= 0:
                    loss[i] = weighted(
                        factor_of(job, first + i, max(class_of(job, first + i), <Py_ssize_t>0)),
                        loss[i],
                    )
        if losses != NULL:
            for i in range(n):
                losses[first + i] = <real>loss[i]
        count(&tally, &loss[0], n)
        first += n
        n = m
        at, ahead = ahead, at
    result[0] = folded(&tally)


cdef inline void nll_gradient(storage *grad, const Job *job, real unused) noexcept nogil:
    """The targets' gradients, over zeros."""
    cdef Place place = place_of(job, 0)
    cdef Py_ssize_t sample, t
    cdef real g
    for sample in range(job.samples):
        t = class_of(job, sample)
        if t >= 0:
            g = <real>(-factor_of(job, sample, t) * job.scale)
            narrow(grad + place.first + t * job.inner, &g, 1)
        step(job, &place)


# ---- b) an item of work ----------------------------------------------------------------------

cdef Py_ssize_t scratch_size(const Job *job, bint written_too, Py_ssize_t size) noexcept nogil:
    """Bytes of a thread's scratch; size: of an element as it is computed with."""
    cdef TemperedSpace held
    cdef RowSpace rows
    cdef TileSpace tiles
    cdef SecondSpace second
    cdef Py_ssize_t nbytes = 0
    if job.kind == NLL:
        return 0
    if tempered(job) or job.heavy:
        nbytes = tempered_space(&held, NULL, job, written_too)
    if tempered(job):
        return nbytes
    if makes_second(job):
        return max(nbytes, second_space(&second, NULL, job, size))
    if job.inner == 1 and job.classes >= FIRST_ROW:
        return max(nbytes, rows_space(&rows, NULL, job, written_too, size))
    return max(nbytes, tiles_space(&tiles, NULL, job, size))


cdef inline void send(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop, through memory by the way that is theirs."""
    if job.kind == NLL:
        nll_item(x, losses, job, start, stop, result)
    elif tempered(job):
        tempered_item(x, out, losses, job, start, stop, result, scratch)
    elif makes_second(job):
        if storage is float or storage is double:
            second_item(x, out, job, start, stop, result, scratch, <real>0)
    elif job.inner == 1 and job.classes >= FIRST_ROW:
        rows_item(x, out, losses, job, start, stop, result, scratch)
    else:
        tiles_item(x, out, losses, job, start, stop, result, scratch)


cdef inline void item(
    const storage *x, storage *out, real *losses, const Job *job, Py_ssize_t start,
    Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop: those of a huge weight by themselves, in double."""
    cdef Py_ssize_t first = start, last
    cdef Sum part
    if not job.heavy:
        send(x, out, losses, job, start, stop, result, scratch)
    else:
        result[0] = Sum(0, 0)
        while first < stop:
            last = first + 1
            if is_heavy(job, first):
                tempered_item(x, out, losses, job, first, last, &part, scratch)
            else:
                while last < stop and not is_heavy(job, last):
                    last += 1
                send(x, out, losses, job, first, last, &part, scratch)
            result[0] = add(result[0], part)
            first = last
    if job.streaming:
        stream_end()


cdef void work(
    const storage *x, storage *out, float *losses32, double *losses64, const Job *job,
    Py_ssize_t start, Py_ssize_t stop, Sum *result, char *scratch
) noexcept nogil:
    """Samples start to stop, in the compute type of the logits' type."""
    if storage is double:
        item(x, out, losses64, job, start, stop, result, scratch)
    else:
        item(x, out, losses32, job, start, stop, result, scratch)


# ---- c) a call -------------------------------------------------------------------------------

cdef double largest_weight(const Job *job) noexcept nogil:
    cdef double w, most = 0
    cdef Py_ssize_t c
    if job.weight == NULL:
        return 1
    for c in range(job.classes):
        w = job.weight[c]
        most = max(most, w if w >= 0 else -w)
    return most


cdef double unit_of(double most) noexcept nogil:
    """A power of two that brings the largest weight near 1; 1 where there is none to bring."""
    cdef double unit = 1
    while most * unit > 2 and unit > 1e-300:
        unit *= 0.5
    while 0 < most * unit < 0.5 and unit < 1e300:
        unit *= 2
    return unit


cdef Status run(
    Job *job, const storage *x, storage *out, void *losses, bint mean, int threads, Sum *total,
    double *weights
) noexcept nogil:
    """Check the arguments, take scratch memory and deal out the samples."""
    cdef Status status
    cdef Workspace space, sums
    cdef Sum alone
    cdef Sum *partial = &alone
    cdef Py_ssize_t size, items, i, nbytes = job.samples * job.classes * sizeof(storage)
    cdef float *losses32 = NULL
    cdef double *losses64 = NULL
    total[0] = Sum(0, 0)
    weights[0] = 0
    if storage is double:
        losses64 = <double *>losses
    else:
        losses32 = <float *>losses
    job.streaming = out != NULL and nbytes >= STREAM
    job.heaviest = largest_weight(job)
    job.unit = unit_of(job.heaviest) if job.kind == SOFT else 1
    job.heavy = False
    if out_overlaps(out, x, nbytes, job):
        return Status(OVERLAPS, 0)
    status = check(job, weights)
    if status.what != FINE or job.classes == 0:
        return status
    if mean:
        job.scale = job.scale / weights[0] if weights[0] != 0 else 0
    if job.softcap == 0:
        # The derivative of x / T.
        job.scale = job.scale / job.temperature
    job.temper = temper_of(1, <double>0)
    if storage is not double:
        job.temper = temper_of(job.temperature if floats_do(job) else 1, <float>0)
        job.heaviest *= max(1.0, job.scale if job.scale >= 0 else -job.scale)
        job.heaviest *= max(1.0, job.z_loss)
        job.heavy = job.kind <= FOCAL and any_heavy(job)
    size = item_size(job)
    items = (job.samples + size - 1) // size
    threads = <int>min(<Py_ssize_t>max(threads, 1), items)
    if not take(&space, scratch_size(job, out != NULL, 8 if storage is double else 4), threads):
        return Status(NO_MEMORY, 0)
    if items > 1:
        if not take(&sums, items * sizeof(Sum), 1):
            give_back(&space)
            return Status(NO_MEMORY, 0)
        partial = <Sum *>sums.parts
    if threads > 1:
        for i in prange(items, schedule="dynamic", num_threads=threads):
            work(
                x, out, losses32, losses64, job, i * size, min(job.samples, (i + 1) * size),
                partial + i, part_of(&space, threadid()),
            )
    else:
        for i in range(items):
            work(
                x, out, losses32, losses64, job, i * size, min(job.samples, (i + 1) * size),
                partial + i, space.parts,
            )
    for i in range(items):
        total[0] = add(total[0], partial[i])
    if job.kind == NLL and out != NULL:
        # Losses first: the gradient may be written over the log-probabilities.
        memset(out, 0, nbytes)
        if storage is double:
            nll_gradient(out, job, <double>0)
        else:
            nll_gradient(out, job, <float>0)
    if items > 1:
        give_back(&sums)
    give_back(&space)
    return status


# ---- d) what Python calls --------------------------------------------------------------------

def evaluate(
    int kind,                  # one of KINDS
    int type,                  # of the logits, FLOAT32, FLOAT64, FLOAT16 or BFLOAT16
    object logits,             # IN   (outer, C, inner), as all arrays here contiguous
    tuple shape,               # (outer, C, inner)
    object target=None,        # IN   int64 (outer, inner), class indices
    object out=None,           # OUT  as the logits, gradient or softmax; may be them
    object losses=None,        # OUT  (outer, inner), of the compute type
    object weight=None,        # IN   double (C,)
    object factor=None,        # IN   double (outer, inner), multiplies each loss
    object p32=None,           # IN   (outer, C, inner), float probabilities of SOFT
    object p64=None,           # IN   the same in double
    object hess=None,          # OUT  as `out`, second derivatives of cross-entropy or FOCAL; the
                               #      losses are not to be had with those of class indices
    object numbers=None,       # OUT  double (outer, inner) of LOGSUMEXP
    tuple scores=None,         # OUT  arrays of SCORE, None what is not asked for (see SCORES)
    int64_t ignore_index=-1,
    double scale=1,            # IN   upstream gradient, one for all samples
    bint mean=False,           # IN   whether to divide by the sum of the weights
    double smoothing=0,
    double z_loss=0,
    double gamma=0,            # IN   of the focal loss
    double temperature=1,
    double softcap=0,          # IN   0: none
    int threads=1,
    double curve=1,            # IN   multiplies second derivatives, but those of SOFT
    double floor=-INFINITY,    # IN   least of them; not of SOFT
    bint narrowed=False,       # IN   whether `out` and `hess` are float arrays for double logits;
                               #      with class indices, temperature and softcap as they are here
    Py_ssize_t top_k=0,        # IN   of SCORE: likeliest classes of each sample
    bint wide=False,           # IN   of SCORE: whether all is computed in double and given so
):
    """Return (status, its position, sum of the losses, sum of the weights)."""
    cdef Job job
    cdef Status status
    cdef Sum total
    cdef double weights
    cdef Py_ssize_t outer, elements, nbytes, written_bytes
    cdef const void *x
    cdef void *to
    cdef void *each
    outer, job.classes, job.inner = shape
    job.kind = kind
    job.samples = outer * job.inner
    elements = job.samples * job.classes
    if job.samples == 0:
        return FINE, 0, 0.0, 0.0
    nbytes = elements * size_of(type)
    written_bytes = nbytes // 2 if narrowed else nbytes
    x = address(logits, nbytes)
    to = address(out, written_bytes)
    each = address(losses, job.samples * (8 if type == FLOAT64 else 4))
    job.x, job.type = x, type
    job.target = <const int64_t *>address(target, job.samples * 8)
    job.weight = <const double *>address(weight, job.classes * 8)
    job.factor = <const double *>address(factor, job.samples * 8)
    job.p32 = <const float *>address(p32, elements * 4)
    job.p64 = <const double *>address(p64, elements * 8)
    job.second = address(hess, written_bytes)
    job.narrow = narrowed
    job.curve = curve
    job.floor = floor
    job.number = <double *>address(numbers, job.samples * 8)
    job.top_k = 0
    job.place = 0
    job.wide = wide or type == FLOAT64
    # Second derivatives of halves are, too: that takes no code of its own.
    job.precise = type != FLOAT64 and (wide or (type != FLOAT32 and makes_second(&job)))
    if kind == SCORE:
        nbytes = job.samples * (8 if job.wide else 4)
        job.log_prob = address(scores[0], nbytes)
        job.predicted_log_prob = address(scores[1], nbytes)
        job.margin = address(scores[2], nbytes)
        job.entropy = address(scores[3], nbytes)
        job.logsumexp = address(scores[4], nbytes)
        job.brier = address(scores[5], nbytes)
        job.variance = address(scores[6], nbytes)
        job.rank = <int64_t *>address(scores[7], job.samples * 8)
        job.predicted = <int64_t *>address(scores[8], job.samples * 8)
        job.top_classes = <int64_t *>address(scores[9], job.samples * top_k * 8)
        job.top_log_probs = address(scores[10], nbytes * top_k)
        if job.top_classes != NULL and job.top_log_probs != NULL:
            job.top_k = top_k
    job.ignore_index = ignore_index
    job.scale = scale
    job.keep = 1 - smoothing
    job.spread = smoothing / job.classes if job.classes > 0 else 0
    job.z_loss = z_loss
    job.gamma = gamma
    job.temperature = temperature
    job.softcap = softcap
    with nogil:
        if type == FLOAT32:
            status = run(
                &job, <const float *>x, <float *>to, each, mean, threads, &total, &weights
            )
        elif type == FLOAT64:
            status = run(
                &job, <const double *>x, <double *>to, each, mean, threads, &total, &weights
            )
        elif type == FLOAT16:
            status = run(
                &job, <const float16 *>x, <float16 *>to, each, mean, threads, &total, &weights
            )
        else:
            status = run(
                &job, <const bfloat16 *>x, <bfloat16 *>to, each, mean, threads, &total, &weights
            )
    return status.what, status.where, value_of(total), weights


# ---- e) small calls --------------------------------------------------------------------------

import numpy as np

cdef object ndarray = np.ndarray
cdef object empty = np.empty
cdef object float32 = np.dtype(np.float32)
cdef object float64 = np.dtype(np.float64)
cdef object int64 = np.dtype(np.int64)
cdef object single = np.float32


cdef inline bint is_number(object value, double wanted):
    return type(value) is float and <double>value == wanted


def usual(
    int kind, object x, object target, object out, object reduction, object ignore_index,
    bint gradient, object smoothing, object z_loss, object gamma, object temperature,
    Py_ssize_t most,           # elements of a call on one thread
):
    """Return (loss, gradient, its two sums) of a small, usual call, None for any other.

    A call of a few samples would take longer to check in Python than to compute. What is not
    taken here, whatever is wrong with it, is checked and told there.
    """
    cdef Job job
    cdef Status status
    cdef Sum total
    cdef double weights, loss
    cdef Lying logits, indices, grad
    cdef bint double_too
    cdef bint mean
    if type(reduction) is not str:
        return None
    mean = reduction == "mean"
    if not (
        (mean or reduction == "sum")
        and type(ignore_index) is int
        and is_number(smoothing, 0) and is_number(z_loss, 0) and is_number(temperature, 1)
        and type(gamma) is float
    ):
        return None
    double_too = type(x) is ndarray and x.dtype is float64
    dtype = float64 if double_too else float32
    if not lies(&logits, x, ndarray, dtype, False) or logits.ndim != 2:
        return None
    if not 0 < logits.shape[0] * logits.shape[1] < most:
        return None
    if not lies(&indices, target, ndarray, int64, False) or indices.ndim != 1:
        return None
    if indices.shape[0] != logits.shape[0]:
        return None
    grad.start = NULL
    if gradient:
        if out is None:
            out = empty((logits.shape[0], logits.shape[1]), dtype)
        if not lies(&grad, out, ndarray, dtype, True) or not alike(&grad, &logits):
            return None
    memset(&job, 0, sizeof(job))
    try:
        job.ignore_index = ignore_index
    except OverflowError:
        return None
    job.kind = kind
    job.samples = logits.shape[0]
    job.classes = logits.shape[1]
    job.inner = 1
    job.x, job.type = logits.start, FLOAT64 if double_too else FLOAT32
    job.target = <const int64_t *>indices.start
    job.scale = 1
    job.keep = 1
    job.gamma = gamma
    job.temperature = 1
    with nogil:
        if double_too:
            status = run(
                &job, <const double *>logits.start, <double *>grad.start, NULL, mean, 1, &total,
                &weights,
            )
        else:
            status = run(
                &job, <const float *>logits.start, <float *>grad.start, NULL, mean, 1, &total,
                &weights,
            )
    if status.what != FINE:
        return None
    # From here on there is no way back: `out` may be x.
    loss = value_of(total)
    sums = (loss, weights)
    if mean:
        loss = loss / weights if weights != 0 else NAN
    if not double_too:
        loss = <float>loss
    return (float64.type if double_too else single)(loss), out if gradient else None, sums
