# Gradients on their way to memory.
#
# Writing a gradient to memory takes about as long as the exponentials. So that both go on at once,
# the gradients of some rows wait as exponentials in a scratch block, the drain, and are scaled and
# written a little at a time between the exponentials of the next rows, which take their places in
# the block: a second one would not fit into the cache. What is larger than the caches is written
# past them.

from libc.string cimport memcpy

from .storage cimport (
    PUT_SCALED, bfloat16, float16, narrow, put_lines, put_scaled, put_scaled_bfloat,
    put_scaled_half, storage,
)
from .sums cimport LANES
from .vecmath cimport mul_add, real

cdef enum:
    STAGE = 256              # elements that are rounded at a time

cdef struct Drain:
    const void *e            # exponentials of rows side by side, of the compute type
    char *to                 # gradient of element `at`, the beginning of a cache line
    Py_ssize_t at            # next element
    Py_ssize_t stop          # a multiple of LANES elements further on
    Py_ssize_t classes       # elements of a row, at least 32
    Py_ssize_t row           # row of the next element
    Py_ssize_t row_stop      # element at which it ends
    bint streaming           # whether to write past the caches
    # Exponential to gradient, by row, and what that lost by rounding to the compute type: which of
    # the two pairs is used is told by that type.
    float by32[LANES]
    float low32[LANES]
    double by64[LANES]
    double low64[LANES]


cdef inline void drain_start(Drain *drain, bint streaming) noexcept nogil:
    """Empty."""
    drain.at = drain.stop = 0
    drain.streaming = streaming


cdef inline void drain_set(Drain *drain, Py_ssize_t row, real by, real low) noexcept nogil:
    """The factor of a row, in two parts."""
    if real is float:
        drain.by32[row] = by
        drain.low32[row] = low
    else:
        drain.by64[row] = by
        drain.low64[row] = low


cdef inline real drain_by(const Drain *drain, Py_ssize_t row, real unused) noexcept nogil:
    return drain.by32[row] if real is float else drain.by64[row]


cdef inline real drain_low(const Drain *drain, Py_ssize_t row, real unused) noexcept nogil:
    return drain.low32[row] if real is float else drain.low64[row]


cdef void scaled(
    storage *to, const real *e, Py_ssize_t n, real by, real low
) noexcept nogil:
    """to[:n] = e[:n] * (by + low), rounded once or twice; `to` and e do not overlap."""
    cdef real stage[STAGE]
    cdef storage narrowed[STAGE]
    cdef Py_ssize_t i, j, m
    # Up to a cache line's beginning first: stores across lines cost twice as much.
    m = min(n, ((-<Py_ssize_t>to) & 63) // <Py_ssize_t>sizeof(storage))
    i = 0
    while i < n:
        if (storage is float and real is float) or (storage is double and real is double):
            for j in range(i, i + m):
                to[j] = <storage>mul_add(e[j], by, e[j] * low)
            i += m
            m = n - i
        else:
            m = min(n - i, <Py_ssize_t>STAGE)
            for j in range(m):
                stage[j] = mul_add(e[i + j], by, e[i + j] * low)
            narrow(&narrowed[0], &stage[0], m)
            memcpy(to + i, &narrowed[0], m * sizeof(storage))
            i += m


cdef inline void write_64(
    char *to, const real *values, storage unused, bint streaming
) noexcept nogil:
    cdef storage narrowed[LANES]
    if (storage is float and real is float) or (storage is double and real is double):
        put_lines(to, values, sizeof(storage), streaming)
    else:
        narrow(&narrowed[0], values, LANES)
        put_lines(to, &narrowed[0], sizeof(storage), streaming)


cdef inline void drain_some(Drain *drain, storage *unused, real unused_too) noexcept nogil:
    """Write LANES elements, if any are left; calls nothing, so that loops keep their registers."""
    # What is written might, to the compiler, be the drain itself: all is read before.
    cdef Py_ssize_t at = drain.at, row = drain.row, classes = drain.classes
    cdef Py_ssize_t left = drain.row_stop - at
    cdef const real *e = <const real *>drain.e + at
    cdef char *to = drain.to
    cdef bint streaming = drain.streaming
    cdef real f, g, f_next, g_next, f_last, g_last
    cdef real stage[LANES]
    cdef Py_ssize_t i
    cdef int lane, first, second
    if at >= drain.stop:
        return
    f = drain_by(drain, row, unused_too)
    g = drain_low(drain, row, unused_too)
    drain.at = at + LANES
    drain.to = to + LANES * sizeof(storage)
    while drain.row_stop <= at + LANES:
        drain.row += 1
        drain.row_stop += classes
    if left >= LANES:
        if storage is float and real is float and PUT_SCALED:
            put_scaled(to, <const float *>e, <float>f, <float>g, streaming)
        elif storage is float16 and PUT_SCALED:
            put_scaled_half(to, <const float *>e, <float>f, <float>g, streaming)
        elif storage is bfloat16 and PUT_SCALED:
            put_scaled_bfloat(to, <const float *>e, <float>f, <float>g, streaming)
        else:
            for i in range(LANES):
                stage[i] = mul_add(e[i], f, e[i] * g)
            write_64(to, &stage[0], <storage>0, streaming)
    else:
        # The ends of one row or two: LANES elements lie in three rows at most.
        first = <int>left
        f_next = drain_by(drain, row + 1, unused_too)
        g_next = drain_low(drain, row + 1, unused_too)
        if left + classes >= LANES:
            for lane in range(LANES):
                stage[lane] = mul_add(
                    e[lane], f if lane < first else f_next,
                    e[lane] * (g if lane < first else g_next),
                )
        else:
            second = <int>(left + classes)
            f_last = drain_by(drain, row + 2, unused_too)
            g_last = drain_low(drain, row + 2, unused_too)
            for lane in range(LANES):
                stage[lane] = mul_add(
                    e[lane], f if lane < first else f_next if lane < second else f_last,
                    e[lane] * (g if lane < first else g_next if lane < second else g_last),
                )
        write_64(to, &stage[0], <storage>0, streaming)


cdef void drain_until(
    Drain *drain, Py_ssize_t stop, storage *unused, real unused_too
) noexcept nogil:
    """Write all elements before `stop`, and some more."""
    while drain.at < min(stop, drain.stop):
        drain_some(drain, unused, unused_too)


cdef inline void drain_rest(Drain *drain, storage *unused, real unused_too) noexcept nogil:
    drain_until(drain, drain.stop, unused, unused_too)


cdef void drain_begin(
    Drain *drain, storage *to, const real *e, Py_ssize_t rows, Py_ssize_t classes
) noexcept nogil:
    """Take over `rows` rows, whose factors are set, from a drain that is empty."""
    cdef Py_ssize_t n = rows * classes
    cdef Py_ssize_t head = min(n, ((-<Py_ssize_t>to) & 63) // <Py_ssize_t>sizeof(storage))
    cdef Py_ssize_t stop = n - (n - head) % LANES, at = stop, row, m
    # Lines are written whole. What comes before the first and after the last is written at once.
    scaled(to, e, head, drain_by(drain, 0, e[0]), drain_low(drain, 0, e[0]))
    while at < n:
        row = at // classes
        m = (row + 1) * classes - at
        scaled(to + at, e + at, m, drain_by(drain, row, e[0]), drain_low(drain, row, e[0]))
        at += m
    drain.e = e
    drain.to = <char *>(to + head)
    drain.at = head
    drain.stop = stop
    drain.classes = classes
    drain.row = 0
    drain.row_stop = classes
