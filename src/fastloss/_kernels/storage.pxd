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

cdef extern from *:
    """
    #if defined(__SSE2__)
    #include <immintrin.h>
    #endif
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>

    #if defined(__GNUC__)
    #define fastloss_prefetch(p) __builtin_prefetch((p), 0, 3)
    #define fastloss_effect() __asm__ volatile("")
    #else
    #define fastloss_prefetch(p) ((void)(p))
    #define fastloss_effect() ((void)0)
    #endif

    /* n bytes. GCC leaves out calls of what has no effect, and fetching has none in its eyes. */
    static inline void fastloss_prefetch_bytes(const void *p, size_t n) {
        size_t i;
        for (i = 0; i < n; i += 64) fastloss_prefetch((const char *)p + i);
        fastloss_effect();
    }

    /* Copy past the caches: lines that are written whole need not be read first. */
    static inline void fastloss_stream(void *to, const void *from, size_t n) {
    #if defined(__SSE2__)
        char *d = (char *)to;
        const char *s = (const char *)from;
        size_t head = (size_t)(-(uintptr_t)d & 63);
        size_t i;
        if (n < 256) { memcpy(d, s, n); return; }
        memcpy(d, s, head);
        d += head; s += head; n -= head;
        for (i = 0; i + 64 <= n; i += 64) {
    #if defined(__AVX512F__)
            _mm512_stream_si512((__m512i *)(d + i), _mm512_loadu_si512((const void *)(s + i)));
    #else
            __m128i a = _mm_loadu_si128((const __m128i *)(s + i));
            __m128i b = _mm_loadu_si128((const __m128i *)(s + i + 16));
            __m128i c = _mm_loadu_si128((const __m128i *)(s + i + 32));
            __m128i e = _mm_loadu_si128((const __m128i *)(s + i + 48));
            _mm_stream_si128((__m128i *)(d + i), a);
            _mm_stream_si128((__m128i *)(d + i + 16), b);
            _mm_stream_si128((__m128i *)(d + i + 32), c);
            _mm_stream_si128((__m128i *)(d + i + 48), e);
    #endif
        }
        memcpy(d + i, s + i, n - i);
    #else
        memcpy(to, from, n);
    #endif
    }

    /* `lines` whole cache lines, a constant where it is inlined: past the caches if `stream`. */
    static inline void fastloss_put_lines(char *to, const void *from, int lines, int stream) {
    #if defined(__SSE2__)
        const char *s = (const char *)from;
        int i;
        if (stream)
    #if defined(__AVX512F__)
            for (i = 0; i < 64 * lines; i += 64)
                _mm512_stream_si512((__m512i *)(to + i), _mm512_loadu_si512((const void *)(s + i)));
    #else
            for (i = 0; i < 64 * lines; i += 16)
                _mm_stream_si128((__m128i *)(to + i), _mm_loadu_si128((const __m128i *)(s + i)));
    #endif
        else
    #else
        (void)stream;
    #endif
            memcpy(to, from, 64 * (size_t)lines);
    }

    /* Lines of 64 elements: to[:64] = e[:64] * (by + low). */
    #if defined(__AVX512BW__)
    #define FASTLOSS_PUT_SCALED 1
    static inline void fastloss_put(char *to, __m512i line, int stream) {
        if (stream)
            _mm512_stream_si512((__m512i *)to, line);
        else
            _mm512_store_si512((void *)to, line);
    }
    static inline __m512 fastloss_scaled16(const float *e, float by, float low) {
        __m512 v = _mm512_loadu_ps(e);
        return _mm512_fmadd_ps(v, _mm512_set1_ps(by), _mm512_mul_ps(v, _mm512_set1_ps(low)));
    }
    static inline void fastloss_put_scaled(char *to, const float *e, float by, float low,
                                           int stream) {
        int i;
        for (i = 0; i < 64; i += 16)
            fastloss_put(to + 4 * i, _mm512_castps_si512(fastloss_scaled16(e + i, by, low)),
                         stream);
    }
    static inline void fastloss_put_scaled_half(char *to, const float *e, float by, float low,
                                                int stream) {
        int i;
        for (i = 0; i < 64; i += 32) {
            __m256i a = _mm512_cvtps_ph(fastloss_scaled16(e + i, by, low), 0);
            __m256i b = _mm512_cvtps_ph(fastloss_scaled16(e + i + 16, by, low), 0);
            fastloss_put(to + 2 * i, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1), stream);
        }
    }
    /* No product may be a NaN with bits in its lower half: it would be rounded to a number. */
    static inline void fastloss_put_scaled_bfloat(char *to, const float *e, float by, float low,
                                                  int stream) {
        __m512i one = _mm512_set1_epi16(1), half = _mm512_set1_epi16((short)0x8000);
        const __m512i even = _mm512_set_epi16(
            62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
            30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        const __m512i odd = _mm512_or_si512(even, one);
        int i;
    #if defined(__GNUC__)
        /* Constants that are kept in registers, and not made anew each time. */
        __asm__("" : "+v"(one), "+v"(half));
    #endif
        for (i = 0; i < 64; i += 32) {
            __m512i a = _mm512_castps_si512(fastloss_scaled16(e + i, by, low));
            __m512i b = _mm512_castps_si512(fastloss_scaled16(e + i + 16, by, low));
            __m512i upper = _mm512_permutex2var_epi16(a, odd, b);
            __m512i lower = _mm512_permutex2var_epi16(a, even, b);
            /* Up if beyond one half of the last place, and at one half if that place is odd. */
            __m512i beyond = _mm512_ternarylogic_epi32(lower, upper, one, 0xf8); /* l | (u & 1) */
            __mmask32 up = _mm512_cmpgt_epu16_mask(beyond, half);
            fastloss_put(to + 2 * i, _mm512_mask_add_epi16(upper, up, upper, one), stream);
        }
    }
    #else
    #define FASTLOSS_PUT_SCALED 0
    static inline void fastloss_put_scaled(char *to, const float *e, float by, float low,
                                           int stream) {
        (void)to; (void)e; (void)by; (void)low; (void)stream;
    }
    #define fastloss_put_scaled_half fastloss_put_scaled
    #define fastloss_put_scaled_bfloat fastloss_put_scaled
    #endif

    /* Order streamed lines before whatever tells another thread that they are there. */
    static inline void fastloss_stream_end(void) {
    #if defined(__SSE2__)
        _mm_sfence();
    #endif
    }

    /* A block of 4 x 4: to[j * to_stride + i] = from[i * from_stride + j]. */
    #if defined(__SSE2__)
    static inline void fastloss_turn4f(float *to, ptrdiff_t to_stride,
                                       const float *from, ptrdiff_t from_stride) {
        __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride);
        __m128 c = _mm_loadu_ps(from + 2 * from_stride), d = _mm_loadu_ps(from + 3 * from_stride);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(to, a);
        _mm_storeu_ps(to + to_stride, b);
        _mm_storeu_ps(to + 2 * to_stride, c);
        _mm_storeu_ps(to + 3 * to_stride, d);
    }
    static inline void fastloss_turn4d(double *to, ptrdiff_t to_stride,
                                       const double *from, ptrdiff_t from_stride) {
        int i, j;
        for (i = 0; i < 4; i += 2)
            for (j = 0; j < 4; j += 2) {
                __m128d a = _mm_loadu_pd(from + i * from_stride + j);
                __m128d b = _mm_loadu_pd(from + (i + 1) * from_stride + j);
                _mm_storeu_pd(to + j * to_stride + i, _mm_unpacklo_pd(a, b));
                _mm_storeu_pd(to + (j + 1) * to_stride + i, _mm_unpackhi_pd(a, b));
            }
    }
    #else
    static inline void fastloss_turn4f(float *to, ptrdiff_t to_stride,
                                       const float *from, ptrdiff_t from_stride) {
        int i, j;
        for (i = 0; i < 4; i++)
            for (j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
    }
    static inline void fastloss_turn4d(double *to, ptrdiff_t to_stride,
                                       const double *from, ptrdiff_t from_stride) {
        int i, j;
        for (i = 0; i < 4; i++)
            for (j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
    }
    #endif

    /* Sixteen bfloat16 to float: by itself the compiler reads 32 and takes them apart. */
    #if defined(__AVX512F__)
    #define FASTLOSS_WIDEN_BFLOAT 1
    static inline void fastloss_widen_bfloat16(float *d, const int16_t *s) {
        __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)s));
        _mm512_storeu_si512(d, _mm512_slli_epi32(x, 16));
    }
    #else
    #define FASTLOSS_WIDEN_BFLOAT 0
    static inline void fastloss_widen_bfloat16(float *d, const int16_t *s) { (void)d; (void)s; }
    #endif

    /* Sixteen float16 to float and back with the processor's own conversion. */
    #if defined(__AVX512F__)
    #define FASTLOSS_F16C 16
    static inline void fastloss_widen16(float *d, const uint16_t *s) {
        _mm512_storeu_ps(d, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)s)));
    }
    static inline void fastloss_narrow16(uint16_t *d, const float *s) {
        _mm256_storeu_si256((__m256i *)d, _mm512_cvtps_ph(_mm512_loadu_ps(s), 0));
    }
    #elif defined(__F16C__)
    #define FASTLOSS_F16C 16
    static inline void fastloss_widen16(float *d, const uint16_t *s) {
        _mm256_storeu_ps(d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)s)));
        _mm256_storeu_ps(d + 8, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(s + 8))));
    }
    static inline void fastloss_narrow16(uint16_t *d, const float *s) {
        _mm_storeu_si128((__m128i *)d, _mm256_cvtps_ph(_mm256_loadu_ps(s), 0));
        _mm_storeu_si128((__m128i *)(d + 8), _mm256_cvtps_ph(_mm256_loadu_ps(s + 8), 0));
    }
    #else
    #define FASTLOSS_F16C 0
    static inline void fastloss_widen16(float *d, const uint16_t *s) { (void)d; (void)s; }
    static inline void fastloss_narrow16(uint16_t *d, const float *s) { (void)d; (void)s; }
    #endif
    """
    void prefetch "fastloss_prefetch"(const void *p) noexcept nogil
    void prefetch_bytes "fastloss_prefetch_bytes"(const void *p, size_t n) noexcept nogil
    void stream_bytes "fastloss_stream"(void *to, const void *source, size_t n) noexcept nogil
    void put_lines "fastloss_put_lines"(
        char *to, const void *source, int lines, bint stream
    ) noexcept nogil
    const int PUT_SCALED "FASTLOSS_PUT_SCALED"
    void put_scaled "fastloss_put_scaled"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept nogil
    void put_scaled_half "fastloss_put_scaled_half"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept nogil
    void put_scaled_bfloat "fastloss_put_scaled_bfloat"(
        char *to, const float *e, float by, float low, bint stream
    ) noexcept nogil
    void stream_end "fastloss_stream_end"() noexcept nogil
    void turn4f "fastloss_turn4f"(
        float *to, Py_ssize_t to_stride, const float *source, Py_ssize_t stride
    ) noexcept nogil
    void turn4d "fastloss_turn4d"(
        double *to, Py_ssize_t to_stride, const double *source, Py_ssize_t stride
    ) noexcept nogil
    const int WIDEN_BFLOAT "FASTLOSS_WIDEN_BFLOAT"
    void widen_bfloat16 "fastloss_widen_bfloat16"(
        float *to, const int16_t *source
    ) noexcept nogil
    const int F16C "FASTLOSS_F16C"
    void widen16 "fastloss_widen16"(float *to, const uint16_t *source) noexcept nogil
    void narrow16 "fastloss_narrow16"(uint16_t *to, const float *source) noexcept nogil


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
