# Gradients on their way to memory.
#
# A gradient larger than the caches is written past them, and such stores take about as long as the
# exponentials. So that both go on at once, the gradients of some rows wait as exponentials in a
# scratch block, the drain, and are scaled and written a little at a time between the exponentials
# of the next rows.

from libc.string cimport memcpy

from .storage cimport (
    HALF_LINES, float16, narrow, storage, stream_lines, stream_scaled, stream_scaled_half,
)
from .vecmath cimport mul_add, real

cdef struct Drain:
    const void *e            # exponentials of rows side by side, of the compute type
    char *to                 # gradient of element `at`, the beginning of a cache line
    Py_ssize_t at            # next element
    Py_ssize_t stop          # number of elements
    Py_ssize_t classes       # elements of a row, at least 64
    Py_ssize_t row           # row of the next element
    Py_ssize_t row_stop      # element at which it ends
    double by[64]            # exponential to gradient, by row
    double by_low[64]        # what `by` lost by rounding to the compute type


cdef inline void scaled(
    storage *to, const real *e, Py_ssize_t n, double by, double by_low
) noexcept nogil:
    """to[:n] = e[:n] * (by + by_low), rounded once or twice; `to` and e do not overlap."""
    cdef real stage[256]
    cdef storage narrowed[256]
    cdef Py_ssize_t i, j, m
    cdef real f = <real>by, g = <real>by_low
    # Up to a cache line's beginning first: stores across lines cost twice as much.
    m = min(n, ((-<Py_ssize_t>to) & 63) // <Py_ssize_t>sizeof(storage))
    i = 0
    while i < n:
        if (storage is float and real is float) or (storage is double and real is double):
            for j in range(i, i + m):
                to[j] = <storage>mul_add(e[j], f, e[j] * g)
            i += m
            m = n - i
        else:
            m = min(n - i, <Py_ssize_t>256)
            for j in range(m):
                stage[j] = mul_add(e[i + j], f, e[i + j] * g)
            narrow(&narrowed[0], &stage[0], m)
            memcpy(to + i, &narrowed[0], m * sizeof(storage))
            i += m


cdef inline void write_64(char *to, const real *values, storage unused) noexcept nogil:
    cdef storage narrowed[64]
    if (storage is float and real is float) or (storage is double and real is double):
        stream_lines(to, values, sizeof(storage))
    else:
        narrow(&narrowed[0], values, 64)
        stream_lines(to, &narrowed[0], sizeof(storage))


cdef inline void drain_some(Drain *drain, storage *unused, real unused_too) noexcept nogil:
    """Write 64 elements, if as many are left; calls nothing, so that loops keep their registers."""
    cdef real stage[64]
    cdef const real *e = <const real *>drain.e + drain.at
    cdef real f, g, f_next, g_next
    cdef Py_ssize_t i
    cdef int lane, within
    if drain.stop - drain.at < 64:
        return
    f = <real>drain.by[drain.row]
    g = <real>drain.by_low[drain.row]
    if drain.row_stop - drain.at >= 64:
        if storage is float and real is float:
            stream_scaled(drain.to, e, f, g)
        elif storage is float16 and HALF_LINES:
            stream_scaled_half(drain.to, <const float *>e, <float>f, <float>g)
        else:
            for i in range(64):
                stage[i] = mul_add(e[i], f, e[i] * g)
            write_64(drain.to, &stage[0], <storage>0)
        if drain.row_stop - drain.at == 64:
            drain.row += 1
            drain.row_stop += drain.classes
    else:
        within = <int>(drain.row_stop - drain.at)
        drain.row += 1
        drain.row_stop += drain.classes
        f_next = <real>drain.by[drain.row]
        g_next = <real>drain.by_low[drain.row]
        for lane in range(64):
            stage[lane] = mul_add(
                e[lane], f if lane < within else f_next,
                e[lane] * (g if lane < within else g_next),
            )
        write_64(drain.to, &stage[0], <storage>0)
    drain.at += 64
    drain.to += 64 * sizeof(storage)


cdef inline void drain_to(
    Drain *drain, storage *unused, real unused_too, Py_ssize_t stop
) noexcept nogil:
    """Write elements up to `stop`, not past the caches."""
    cdef Py_ssize_t m
    while drain.at < stop:
        m = min(stop, drain.row_stop) - drain.at
        scaled(
            <storage *>drain.to, <const real *>drain.e + drain.at, m, drain.by[drain.row],
            drain.by_low[drain.row],
        )
        drain.at += m
        drain.to += m * sizeof(storage)
        if drain.at == drain.row_stop:
            drain.row += 1
            drain.row_stop += drain.classes


cdef inline void drain_rest(Drain *drain, storage *unused, real unused_too) noexcept nogil:
    while drain.stop - drain.at >= 64:
        drain_some(drain, unused, unused_too)
    drain_to(drain, unused, unused_too, drain.stop)


cdef inline void drain_begin(
    Drain *drain, storage *to, const real *e, Py_ssize_t rows, Py_ssize_t classes
) noexcept nogil:
    """Take over `rows` rows, whose factors are in `by` and `by_low`, from a drain that is empty."""
    cdef Py_ssize_t head = ((-<Py_ssize_t>to) & 63) // <Py_ssize_t>sizeof(storage)
    drain.e = e
    drain.to = <char *>to
    drain.at = 0
    drain.stop = rows * classes
    drain.classes = classes
    drain.row = 0
    drain.row_stop = classes
    # Lines are written whole, from the first one that begins in the gradient.
    drain_to(drain, to, <real>0, min(head, drain.stop))
