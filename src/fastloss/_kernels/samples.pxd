# Samples of a loss over classes: what a call says of them, and how they are dealt out.
#
# A sample is one (outer, inner) position of logits of shape (outer, C, inner), numbered
# o * inner + i. Samples are dealt out to threads as items of a size that depends on the shape
# alone. An item sums its own losses, and the items' sums are added in order, so that the number
# of threads changes no bit.

from libc.stdint cimport int64_t

from .operands cimport BFLOAT16, FLOAT16, FLOAT32
from .storage cimport bfloat16, float16, overlap, value_at
from .sums cimport LANES, Sum, Tally, clear, count, folded, value_of
from .vecmath cimport INFINITY, Temper
from .workspace cimport FINE, OVERLAPS, WRONG_INDEX, Status

cdef enum:
    ITEM = 65536         # elements that one item of work holds, about
    MAX_ITEMS = 4096

# What to compute. An ending (element_endings.pxd) makes it of a sample's sums.
cdef enum:
    CROSS_ENTROPY = 0    # of class indices
    SOFT = 1             # cross-entropy with a target for each class: smoothing or probabilities
    FOCAL = 2
    NLL = 3              # of log-probabilities, which needs no sums
    LOGSUMEXP = 4
    SOFTMAX = 5
    LOG_SOFTMAX = 6
    SCORE = 7

cdef struct Job:
    int kind
    Py_ssize_t samples
    Py_ssize_t classes
    Py_ssize_t inner
    const void *x            # the logits
    int type                 # of them, FLOAT32, FLOAT64, FLOAT16 or BFLOAT16
    const int64_t *target    # class indices, or NULL
    const double *weight     # by class, or NULL
    const double *factor     # by sample, or NULL
    int64_t ignore_index
    double scale             # of the gradient: upstream gradient over the mean's denominator
    # Of SOFT: a class's target is weight * unit * (keep * p + spread), p its probability or 1 at
    # an index; losses and gradients are taken by 1 / unit.
    const float *p32         # probabilities, or NULL
    const double *p64
    double keep              # 1 - smoothing
    double spread            # smoothing / C
    double unit              # a power of two that brings the largest class weight near 1
    # Options.
    double z_loss
    double gamma             # of FOCAL
    double temperature
    double softcap           # 0: none
    Temper temper            # the temperature where floats do with it, else 1 (see `tempered`)
    double *number           # OUT, of LOGSUMEXP, by sample
    # OUT, of SCORE, by sample; NULL what is not asked for. Numbers are float, or double if `wide`.
    void *log_prob
    void *predicted_log_prob
    void *margin
    void *entropy
    void *logsumexp
    void *brier
    void *variance           # of the logits, under the softmax
    int64_t *rank
    int64_t *predicted
    int64_t *top_classes     # top_k for each sample, the likeliest first
    void *top_log_probs
    bint wide
    bint precise             # whether all is computed in double
    Py_ssize_t top_k         # 0: none
    Py_ssize_t place         # in these arrays, of the first sample
    void *second             # OUT, second derivatives, as the gradient lies, or NULL
    double curve             # multiplies them, but those of SOFT
    double floor             # least of them where there is a gradient, -inf: none; not of SOFT
    bint narrow              # whether both are floats though the logits are doubles: new arrays
    bint streaming           # what is written is larger than the caches
    double heaviest          # largest class weight, times the gradient's scale if that is above 1
    bint heavy               # whether some sample's factor is huge


cdef inline bint has_indices(const Job *job) noexcept nogil:
    """Whether the class that is left out of a sample's sum is its target, not its largest."""
    return job.kind == CROSS_ENTROPY or job.kind == FOCAL


cdef inline double factor_of(const Job *job, Py_ssize_t sample, Py_ssize_t t) noexcept nogil:
    """What the sample's loss is multiplied by: class weight and sample factor."""
    cdef double w = 1.0 if job.weight == NULL else job.weight[t]
    return w if job.factor == NULL else w * job.factor[sample]


cdef inline Py_ssize_t class_of(const Job *job, Py_ssize_t sample) noexcept nogil:
    """The sample's class, or -1 where it is ignored (or was changed to nonsense meanwhile)."""
    cdef int64_t t = job.target[sample]
    return <Py_ssize_t>t if t != job.ignore_index and 0 <= t < job.classes else -1


cdef inline double weighted(double factor, double loss) noexcept nogil:
    """factor * loss; a weight of 0 takes an infinite loss out, too, of either sign."""
    cdef bint infinite = (loss == INFINITY) | (loss == -INFINITY)
    return 0.0 if (factor == 0) & infinite else factor * loss


cdef inline double huge() noexcept nogil:
    """Factors from which on exponentials that a float has lost count in a float's loss.

    A class whose exponential is 2**-164 of the largest, or less, may be lost.
    """
    return 1e10


cdef inline bint is_heavy(const Job *job, Py_ssize_t sample) noexcept nogil:
    """Whether a sample's factor is as large as that."""
    cdef double factor = 1.0 if job.factor == NULL else job.factor[sample]
    return not -huge() < factor * job.heaviest < huge()


cdef inline bint any_heavy(const Job *job) noexcept nogil:
    cdef Py_ssize_t i
    cdef int heavy = 0
    if job.factor == NULL:
        return is_heavy(job, 0)
    for i in range(job.samples):
        heavy |= not -huge() < job.factor[i] * job.heaviest < huge()
    return heavy != 0


cdef inline Py_ssize_t offset_of(const Job *job, Py_ssize_t sample, Py_ssize_t c) noexcept nogil:
    """Where class c of a sample lies."""
    return (sample // job.inner * job.classes + c) * job.inner + sample % job.inner


cdef inline double logit_at(const Job *job, Py_ssize_t i) noexcept nogil:
    """Element i of the logits: for the few that are looked at outside the loops."""
    if job.type == FLOAT32:
        return (<const float *>job.x)[i]
    elif job.type == FLOAT16:
        return value_at(<const float16 *>job.x, i, <double>0)
    elif job.type == BFLOAT16:
        return value_at(<const bfloat16 *>job.x, i, <double>0)
    return (<const double *>job.x)[i]


cdef inline Py_ssize_t item_size(const Job *job) noexcept nogil:
    """Samples of one item of work, by shape and kind alone."""
    # What NLL reads of a sample takes about as long as 16 classes.
    cdef Py_ssize_t classes = 16 if job.kind == NLL else max(job.classes, <Py_ssize_t>1)
    cdef Py_ssize_t size = max(ITEM // classes, <Py_ssize_t>1)
    size = max(size, (job.samples + MAX_ITEMS - 1) // MAX_ITEMS)
    return (size + LANES - 1) // LANES * LANES if classes * LANES <= ITEM else size


cdef inline Status check(const Job *job, double *weights) noexcept nogil:
    """Look for indices outside the classes; `weights`: sum over the samples not ignored."""
    cdef Tally tally
    cdef double value[LANES]
    cdef Py_ssize_t i, n, t, first = 0
    cdef int64_t index, kept = 0, bad = 0, known
    if job.target != NULL:
        for i in range(job.samples):
            index = job.target[i]
            known = index != job.ignore_index
            kept += known
            bad |= known & ((index < 0) | (index >= job.classes))
        if bad:
            for i in range(job.samples):
                index = job.target[i]
                if index != job.ignore_index and not 0 <= index < job.classes:
                    return Status(WRONG_INDEX, i)
    else:
        kept = job.samples
    weights[0] = <double>kept
    if (job.target != NULL and job.weight != NULL) or job.factor != NULL:
        clear(&tally)
        while first < job.samples:
            n = min(job.samples - first, <Py_ssize_t>LANES)
            for i in range(n):
                if job.target == NULL:
                    value[i] = job.factor[first + i]
                else:
                    t = class_of(job, first + i)
                    value[i] = factor_of(job, first + i, t) if t >= 0 else 0.0
            count(&tally, &value[0], n)
            first += n
        weights[0] = value_of(folded(&tally))
    return Status(FINE, 0)


cdef inline bint out_overlaps(
    const void *out, const void *logits, Py_ssize_t nbytes, const Job *job
) noexcept nogil:
    """Whether what is written shares memory with what is read; all of the logits is allowed."""
    cdef Py_ssize_t elements = job.samples * job.classes
    if out == NULL or job.narrow:
        return False
    return (
        (out != logits and overlap(out, nbytes, logits, nbytes))
        or overlap(job.second, nbytes, out, nbytes)
        or (job.second != logits and overlap(job.second, nbytes, logits, nbytes))
        or overlap(job.second, nbytes, job.target, job.samples * 8)
        or overlap(job.second, nbytes, job.weight, job.classes * 8)
        or overlap(job.second, nbytes, job.factor, job.samples * 8)
        or overlap(job.second, nbytes, job.p32, elements * 4)
        or overlap(job.second, nbytes, job.p64, elements * 8)
        or overlap(out, nbytes, job.target, job.samples * 8)
        or overlap(out, nbytes, job.weight, job.classes * 8)
        or overlap(out, nbytes, job.factor, job.samples * 8)
        or overlap(out, nbytes, job.p32, elements * 4)
        or overlap(out, nbytes, job.p64, elements * 8)
    )
