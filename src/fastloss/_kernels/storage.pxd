# What lies in memory: the element types of arrays, and moving blocks of them.
#
# Kernels compute in `real` (float or double; see vecmath.pxd). Arrays hold `storage`: besides the
# two, float16 and bfloat16, which Cython has no types for: arrays of them arrive as the integer
# types that stand for them here, and are widened to float a block at a time.

from libc.stdint cimport int16_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .vecmath cimport bits32, float_of, real

ctypedef uint16_t float16
ctypedef int16_t bfloat16

ctypedef fused storage:
    float
    double
    float16
    bfloat16

cdef extern from "simd/stream.h" nogil:
    void prefetch "fastloss_prefetch"(const void *p) noexcept
    void prefetch_bytes "fastloss_prefetch_bytes"(const void *p, size_t n) noexcept
    void stream_bytes "fastloss_stream"(void *to, const void *source, size_t n) noexcept
    void put_lines "fastloss_put_lines"(
        char *to, const void *source, int lines, bint stream
    ) noexcept
    void stream_end "fastloss_stream_end"() noexcept

cdef extern from "simd/scale.h" nogil:
    const int PUT_SCALED "FASTLOSS_PUT_SCALED"
    void put_scaled "fastloss_put_scaled"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept
    void put_scaled_half "fastloss_put_scaled_half"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept
    void put_scaled_bfloat "fastloss_put_scaled_bfloat"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept

cdef extern from "simd/transpose.h" nogil:
    void turn4f "fastloss_turn4f"(
        float *to, Py_ssize_t to_stride, const float *source, Py_ssize_t stride
    ) noexcept
    void turn4d "fastloss_turn4d"(
        double *to, Py_ssize_t to_stride, const double *source, Py_ssize_t stride
    ) noexcept

cdef extern from "simd/halves.h" nogil:
    const int WIDEN_BFLOAT "FASTLOSS_WIDEN_BFLOAT"
    void widen_bfloat16 "fastloss_widen_bfloat16"(
        float *to, const int16_t *source
    ) noexcept
    const int F16C "FASTLOSS_F16C"
    void widen16 "fastloss_widen16"(float *to, const uint16_t *source) noexcept
    void narrow16 "fastloss_narrow16"(uint16_t *to, const float *source) noexcept


cdef inline bint overlap(
    const void *a, Py_ssize_t a_bytes, const void *b, Py_ssize_t b_bytes
) noexcept nogil:
    """Whether two stretches of memory share a byte; NULL shares none."""
    cdef const char *p = <const char *>a
    cdef const char *q = <const char *>b
    return p != NULL and q != NULL and p < q + b_bytes and q < p + a_bytes


cdef inline float widen_half(float16 h) noexcept nogil:
    """float16 to float: exponent and mantissa moved over, rebias by a multiplication (exact)."""
    cdef uint32_t magnitude = (<uint32_t>h & 0x7fffu) << 13
    cdef float value = float_of(magnitude) * <float>5.192296858534828e33
    value = float_of(magnitude | 0x7f800000u) if magnitude >= 0x0f800000u else value
    return float_of(bits32(value) | ((<uint32_t>h & 0x8000u) << 16))


cdef inline float16 narrow_half(float x) noexcept nogil:
    """float to float16, ties to even, overflow to infinity; a NaN stays one."""
    cdef uint32_t u = bits32(x)
    cdef uint32_t sign = (u >> 16) & 0x8000u
    u = u & 0x7fffffffu
    # Below 2**-14: adding 2**-1 puts the unit of a subnormal float16 at the last place.
    cdef uint32_t small = bits32(float_of(u) + <float>0.5) - 0x3f000000u
    cdef uint32_t normal = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13
    cdef uint32_t result = small if u < 0x38800000u else normal
    result = 0x7c00u if u >= 0x477ff000u else result
    result = 0x7e00u if u > 0x7f800000u else result
    return <float16>(result | sign)


cdef inline float widen_bfloat(bfloat16 h) noexcept nogil:
    """bfloat16 to float: the upper half of one."""
    return float_of(<uint32_t><uint16_t>h << 16)


cdef inline bfloat16 narrow_bfloat(float x) noexcept nogil:
    """float to bfloat16, ties to even; a NaN stays one."""
    cdef uint32_t u = bits32(x)
    cdef uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16
    rounded = 0x7fc0u if (u & 0x7fffffffu) > 0x7f800000u else rounded
    return <bfloat16><uint16_t>rounded


cdef inline real value_at(const storage *x, Py_ssize_t i, real unused) noexcept nogil:
    """x[i] as a `real`."""
    if storage is float16:
        return widen_half(x[i])
    elif storage is bfloat16:
        return widen_bfloat(x[i])
    else:
        return <real>x[i]


cdef inline void load(
    real *to, const storage *x, Py_ssize_t n, real shift
) noexcept nogil:
    """to[:n] = x[:n] - shift; `to` overlaps nothing."""
    cdef Py_ssize_t i = 0
    if storage is float16:
        if real is float:
            while F16C and i + 16 <= n:
                widen16(to + i, x + i)
                i += 16
        while i < n:
            to[i] = widen_half(x[i])
            i += 1
    elif storage is bfloat16:
        if real is float:
            while WIDEN_BFLOAT and i + 16 <= n:
                widen_bfloat16(to + i, x + i)
                i += 16
        while i < n:
            to[i] = widen_bfloat(x[i])
            i += 1
    else:
        for i in range(n):
            to[i] = <real>x[i]
    if shift != 0:
        for i in range(n):
            to[i] = to[i] - shift


cdef inline void narrow(storage *to, const real *x, Py_ssize_t n) noexcept nogil:
    """to[:n] = x[:n], rounded once; float and double are in place already (see `emit`)."""
    cdef Py_ssize_t i = 0
    if storage is float16:
        if real is float:
            while F16C and i + 16 <= n:
                narrow16(to + i, x + i)
                i += 16
        while i < n:
            to[i] = narrow_half(<float>x[i])
            i += 1
    elif storage is bfloat16:
        for i in range(n):
            to[i] = narrow_bfloat(<float>x[i])
    else:
        for i in range(n):
            to[i] = <storage>x[i]


cdef inline void emit(
    storage *to, const real *x, Py_ssize_t n, bint streaming
) noexcept nogil:
    """Write x[:n] to the result, past the caches if `streaming`."""
    cdef storage stage[256]
    cdef Py_ssize_t i, m
    if (storage is float and real is float) or (storage is double and real is double):
        if streaming:
            stream_bytes(to, x, n * sizeof(storage))
        else:
            memcpy(to, x, n * sizeof(storage))
    else:
        i = 0
        while i < n:
            m = min(n - i, 256)
            narrow(&stage[0], x + i, m)
            memcpy(to + i, &stage[0], m * sizeof(storage))
            i += m


cdef inline void transpose(
    real *to, Py_ssize_t to_stride, const real *x, Py_ssize_t stride, Py_ssize_t rows,
    Py_ssize_t columns
) noexcept nogil:
    """to[j * to_stride + i] = x[i * stride + j]; the two do not overlap."""
    cdef Py_ssize_t i, j
    if rows < 4 or columns < 4:
        for i in range(rows):
            for j in range(columns):
                to[j * to_stride + i] = x[i * stride + j]
        return
    i = 0
    while i < rows:
        # The last blocks reach back: an element may be moved twice.
        i = min(i, rows - 4)
        j = 0
        while j < columns:
            j = min(j, columns - 4)
            if real is float:
                turn4f(to + j * to_stride + i, to_stride, x + i * stride + j, stride)
            else:
                turn4d(to + j * to_stride + i, to_stride, x + i * stride + j, stride)
            j += 4
        i += 4


# Part of a finished gradient on its way past the caches. Such stores take as long as the
# computation: they are done beside it, a little at a time.
cdef struct Waiting:
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
    if waiting.left > 0:
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
