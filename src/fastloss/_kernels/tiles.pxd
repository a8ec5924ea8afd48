# Tiles: LANES samples whose logits lie class-major, class c of lane i at xs[c * width + i].
#
# Samples of one outer position lie side by side in memory, so that turning them is copying; it is
# done all the same, since class planes a power of two apart share the sets of a cache.

from .blocks cimport LANES
from .storage cimport emit, load, storage, transpose
from .vecmath cimport INFINITY, NAN, exp_limit, exponent_of, real


cdef inline void turn(
    real *to, const storage *x, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width
) noexcept nogil:
    """Classes from_class to from_class + m of n samples, class-major.

    Where a last tile is not full, its other lanes hold 0. stage: scratch of SCRATCH elements.
    """
    cdef Py_ssize_t lane, c, i, run, base
    if n % LANES != 0:
        for c in range(m):
            for lane in range(n, (n + LANES - 1) // LANES * LANES):
                to[c * width + lane] = 0
    if inner == 1:
        # All classes are held: rows of more classes are not turned.
        if (storage is float and real is float) or (storage is double and real is double):
            transpose(to, width, x + first * m, m, n, m)
        else:
            load(stage, x + first * m, n * m, <real>0)
            transpose(to, width, stage, m, n, m)
    else:
        lane = 0
        while lane < n:
            # Samples of one outer position lie side by side.
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * classes + from_class) * inner + i
            for c in range(m):
                load(to + c * width + lane, x + base + c * inner, run, <real>0)
            lane += run


cdef inline void turn_back(
    storage *grad, const real *g, real *stage, Py_ssize_t classes, Py_ssize_t inner,
    Py_ssize_t first, Py_ssize_t n, Py_ssize_t from_class, Py_ssize_t m, Py_ssize_t width,
    bint streaming
) noexcept nogil:
    """Write a class-major block to where its samples lie; stage: scratch of SCRATCH elements."""
    cdef Py_ssize_t lane, c, i, run, base
    if inner == 1:
        transpose(stage, m, g, width, m, n)
        emit(grad + first * m, stage, n * m, streaming)
    else:
        lane = 0
        while lane < n:
            i = (first + lane) % inner
            run = min(n - lane, inner - i)
            base = ((first + lane) // inner * classes + from_class) * inner + i
            for c in range(m):
                emit(
                    grad + base + c * inner, g + c * width + lane, run,
                    streaming and run >= 256,
                )
            lane += run


cdef inline void shift_tile(
    real *xs, Py_ssize_t m, Py_ssize_t width, const real *shift
) noexcept nogil:
    cdef Py_ssize_t c, lane
    for c in range(m):
        for lane in range(64):
            xs[c * width + lane] = xs[c * width + lane] - shift[lane]


cdef inline void tile_max(
    const real *xs, Py_ssize_t m, Py_ssize_t width, real *top
) noexcept nogil:
    """top[lane] = max(top[lane], xs[..., lane]) over m classes; NaNs are passed over."""
    cdef real best[64]
    cdef real x
    cdef Py_ssize_t c, lane
    for lane in range(64):
        best[lane] = top[lane]
    for c in range(m):
        for lane in range(64):
            x = xs[c * width + lane]
            best[lane] = x if x > best[lane] else best[lane]
    for lane in range(64):
        top[lane] = best[lane]


cdef inline bint fix_range(real *top, real *shift) noexcept nogil:
    """Turn maxima into exponents; those out of range become shifts. Returns whether there are."""
    cdef Py_ssize_t lane
    cdef bint shifted = False
    for lane in range(64):
        shifted |= not ((top[lane] <= exp_limit(top[0])) & (top[lane] >= -exp_limit(top[0])))
    if shifted:
        for lane in range(64):
            shift[lane] = 0
            if not -exp_limit(top[0]) <= top[lane] <= exp_limit(top[0]):
                shift[lane] = (
                    top[lane] if -<real>INFINITY < top[lane] < <real>INFINITY else <real>NAN
                )
                top[lane] = 0
    for lane in range(64):
        top[lane] = exponent_of(top[lane])
    return shifted
