# Samples of a loss over classes: what is known of them, how they are dealt out and summed.
#
# A sample is one (outer, inner) position of logits of shape (outer, C, inner), numbered
# o * inner + i. Samples are dealt out to threads as items of a size that depends on the shape
# alone. An item sums its own losses, and the items' sums are added in order, so that the number
# of threads changes no bit.

from libc.stdint cimport int64_t

from .blocks cimport LANES, Sum, Tally, clear, count, folded, value_of
from .storage cimport overlap
from .vecmath cimport INFINITY

cdef enum:
    ITEM = 65536         # elements that one item of work holds, about
    MAX_ITEMS = 4096

cdef struct Job:
    Py_ssize_t samples
    Py_ssize_t classes
    Py_ssize_t inner
    const int64_t *target
    const double *weight     # by class, or NULL
    const double *factor     # by sample, or NULL
    int64_t ignore_index
    double scale             # of the gradient: upstream gradient over the mean's denominator
    bint streaming

cdef inline double factor_of(const Job *job, Py_ssize_t sample, Py_ssize_t t) noexcept nogil:
    """What the sample's loss is multiplied by: class weight and sample factor."""
    cdef double w = 1.0 if job.weight == NULL else job.weight[t]
    return w if job.factor == NULL else w * job.factor[sample]


cdef inline Py_ssize_t class_of(const Job *job, Py_ssize_t sample) noexcept nogil:
    """The sample's class, or -1 where it is ignored (or was changed to nonsense meanwhile)."""
    cdef int64_t t = job.target[sample]
    return <Py_ssize_t>t if t != job.ignore_index and 0 <= t < job.classes else -1


cdef inline double weighted(double factor, double loss) noexcept nogil:
    """factor * loss; a weight of 0 takes an infinite loss out, too."""
    return 0.0 if (factor == 0) & (loss == INFINITY) else factor * loss


cdef inline Py_ssize_t offset_of(const Job *job, Py_ssize_t sample, Py_ssize_t c) noexcept nogil:
    """Where class c of a sample lies."""
    return (sample // job.inner * job.classes + c) * job.inner + sample % job.inner


cdef inline Py_ssize_t item_size(const Job *job) noexcept nogil:
    """Samples of one item of work, by shape alone."""
    cdef Py_ssize_t size = max(ITEM // max(job.classes, 1), 1)
    size = max(size, (job.samples + MAX_ITEMS - 1) // MAX_ITEMS)
    return (size + LANES - 1) // LANES * LANES if job.classes * LANES <= ITEM else size


cdef struct Check:
    Py_ssize_t bad           # position of the first bad target, or -1
    double weights


cdef inline Check check(const Job *job) noexcept nogil:
    """Look for indices outside the classes and sum the weights of the samples not ignored."""
    cdef Check result
    cdef Tally tally
    cdef double value[64]
    cdef Py_ssize_t i, n, first
    cdef int64_t t, kept = 0, bad = 0, known
    clear(&tally)
    for i in range(job.samples):
        t = job.target[i]
        known = t != job.ignore_index
        kept += known
        bad |= known & (t < 0 or t >= job.classes)
    result.bad = -1
    result.weights = <double>kept
    if bad:
        for i in range(job.samples):
            t = job.target[i]
            if t != job.ignore_index and not 0 <= t < job.classes:
                result.bad = i
                return result
    if job.weight != NULL or job.factor != NULL:
        for first in range(0, job.samples, 64):
            n = min(job.samples - first, <Py_ssize_t>LANES)
            for i in range(n):
                t = class_of(job, first + i)
                value[i] = factor_of(job, first + i, t) if t >= 0 else 0.0
            count(&tally, &value[0], n)
        result.weights = value_of(folded(&tally))
    return result


cdef enum:
    # What a kernel returns for the position of a bad target, where `out` must not be written.
    OVERLAP = -2


cdef inline bint out_overlaps(
    const void *grad, const void *logits, Py_ssize_t nbytes, const Job *job
) noexcept nogil:
    """Whether the gradient shares memory with what is read; the logits as a whole are allowed."""
    if grad == NULL:
        return False
    return (
        (grad != logits and overlap(grad, nbytes, logits, nbytes))
        or overlap(grad, nbytes, job.target, job.samples * 8)
        or overlap(grad, nbytes, job.weight, job.classes * 8)
        or overlap(grad, nbytes, job.factor, job.samples * 8)
    )
