/* Blocks of 4 x 4 numbers, transposed. */

#ifndef FASTLOSS_SIMD_TRANSPOSE_H
#define FASTLOSS_SIMD_TRANSPOSE_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <stddef.h>

/* A block of 4 x 4: to[j * to_stride + i] = from[i * from_stride + j]. */
#if defined(__SSE2__)
static inline void fastloss_turn4f(float *to, ptrdiff_t to_stride, const float *from,
                                   ptrdiff_t from_stride) {
    __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride);
    __m128 c = _mm_loadu_ps(from + 2 * from_stride), d = _mm_loadu_ps(from + 3 * from_stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(to, a);
    _mm_storeu_ps(to + to_stride, b);
    _mm_storeu_ps(to + 2 * to_stride, c);
    _mm_storeu_ps(to + 3 * to_stride, d);
}
static inline void fastloss_turn4d(double *to, ptrdiff_t to_stride, const double *from,
                                   ptrdiff_t from_stride) {
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
static inline void fastloss_turn4f(float *to, ptrdiff_t to_stride, const float *from,
                                   ptrdiff_t from_stride) {
    int i, j;
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
}
static inline void fastloss_turn4d(double *to, ptrdiff_t to_stride, const double *from,
                                   ptrdiff_t from_stride) {
    int i, j;
    for (i = 0; i < 4; i++)
        for (j = 0; j < 4; j++) to[j * to_stride + i] = from[i * from_stride + j];
}
#endif

#endif
