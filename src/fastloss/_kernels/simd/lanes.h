/* Sums of floats in double, lane by lane; the few steps across a vector that compilers make badly
 * of loops. */

#ifndef FASTLOSS_SIMD_LANES_H
#define FASTLOSS_SIMD_LANES_H

#include <stdint.h>
#include <string.h>
#if defined(__AVX512DQ__)
#include <immintrin.h>
typedef struct {
    __m512d a, b;
} fastloss_lanes;
static inline void fastloss_lanes_clear(fastloss_lanes *s) {
    s->a = s->b = _mm512_setzero_pd();
}
static inline void fastloss_lanes_add64(fastloss_lanes *s, const float *a, int first, int skip) {
    __m512 v[4];
    int i;
    for (i = 0; i < 4; i++) v[i] = _mm512_loadu_ps(a + 16 * i);
    if (first != 0 || skip >= 0) {
        /* Not by masked loads, which wait for the stores before them. */
        uint64_t mask = ~(uint64_t)0 << first;
        if (skip >= 0) mask &= ~((uint64_t)1 << skip);
        for (i = 0; i < 4; i++) v[i] = _mm512_maskz_mov_ps((__mmask16)(mask >> 16 * i), v[i]);
    }
    v[0] = _mm512_add_ps(v[0], v[1]);
    v[2] = _mm512_add_ps(v[2], v[3]);
    for (i = 0; i < 4; i += 2) {
        s->a = _mm512_add_pd(s->a, _mm512_cvtps_pd(_mm512_castps512_ps256(v[i])));
        s->b = _mm512_add_pd(s->b, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v[i], 1)));
    }
}
static inline void fastloss_lanes_add(fastloss_lanes *s, const float *a, int n) {
    for (; n > 0; n -= 32, a += 32) {
        uint32_t mask = n < 32 ? ((uint32_t)1 << n) - 1 : ~(uint32_t)0;
        __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps((__mmask16)mask, a),
                                 _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), a + 16));
        s->a = _mm512_add_pd(s->a, _mm512_cvtps_pd(_mm512_castps512_ps256(v)));
        s->b = _mm512_add_pd(s->b, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)));
    }
}
static inline double fastloss_lanes_fold(const fastloss_lanes *s) {
    return _mm512_reduce_add_pd(_mm512_add_pd(s->a, s->b));
}
static inline void fastloss_lanes_store(const fastloss_lanes *s, double *to) {
    _mm512_storeu_pd(to, _mm512_add_pd(s->a, s->b));
}
/* What `fold` makes of each of eight stored ones, all at once. */
static inline void fastloss_lanes_fold8(const double *from, double *to) {
    const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    __m512d v[8], r;
    int i;
    for (i = 0; i < 8; i++) v[i] = _mm512_loadu_pd(from + 8 * i);
    for (i = 0; i < 4; i++)
        v[i] = _mm512_add_pd(_mm512_shuffle_f64x2(v[2 * i], v[2 * i + 1], 0x44),
                             _mm512_shuffle_f64x2(v[2 * i], v[2 * i + 1], 0xee));
    for (i = 0; i < 2; i++)
        v[i] = _mm512_add_pd(_mm512_shuffle_f64x2(v[2 * i], v[2 * i + 1], 0x88),
                             _mm512_shuffle_f64x2(v[2 * i], v[2 * i + 1], 0xdd));
    r = _mm512_add_pd(_mm512_unpacklo_pd(v[0], v[1]), _mm512_unpackhi_pd(v[0], v[1]));
    _mm512_storeu_pd(to, _mm512_permutexvar_pd(order, r));
}
static inline float fastloss_max16(const float *a) {
    return _mm512_reduce_max_ps(_mm512_loadu_ps(a));
}
#else
typedef struct {
    double a[16];
} fastloss_lanes;
static inline void fastloss_lanes_clear(fastloss_lanes *s) {
    int j;
    for (j = 0; j < 16; j++) s->a[j] = 0;
}
static inline void fastloss_lanes_add64(fastloss_lanes *s, const float *a, int first, int skip) {
    float kept[64];
    int j;
    if (first > 0 || skip >= 0) {
        for (j = 0; j < 64; j++) kept[j] = ((j >= first) & (j != skip)) ? a[j] : 0;
        a = kept;
    }
    for (j = 0; j < 16; j++) s->a[j] += (double)(a[j] + a[j + 16]) + (a[j + 32] + a[j + 48]);
}
static inline void fastloss_lanes_add(fastloss_lanes *s, const float *a, int n) {
    float kept[64];
    int j;
    for (j = 0; j < 64; j++) kept[j] = 0;
    memcpy(kept, a, (size_t)n * sizeof(float));
    fastloss_lanes_add64(s, kept, 0, -1);
}
static inline void fastloss_lanes_store(const fastloss_lanes *s, double *to) {
    int j;
    for (j = 0; j < 8; j++) to[j] = s->a[j] + s->a[j + 8];
}
static inline double fastloss_folded(const double *a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
static inline double fastloss_lanes_fold(const fastloss_lanes *s) {
    double a[8];
    fastloss_lanes_store(s, a);
    return fastloss_folded(a);
}
static inline void fastloss_lanes_fold8(const double *from, double *to) {
    int i;
    for (i = 0; i < 8; i++) to[i] = fastloss_folded(from + 8 * i);
}
static inline float fastloss_max16(const float *a) {
    float m[8];
    int j;
    for (j = 0; j < 8; j++) m[j] = a[j] > a[j + 8] ? a[j] : a[j + 8];
    for (j = 0; j < 4; j++) m[j] = m[j] > m[j + 4] ? m[j] : m[j + 4];
    m[0] = m[0] > m[2] ? m[0] : m[2];
    m[1] = m[1] > m[3] ? m[1] : m[3];
    return m[0] > m[1] ? m[0] : m[1];
}
#endif

#endif
