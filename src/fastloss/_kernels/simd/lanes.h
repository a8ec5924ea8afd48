/* Sums of floats in double, lane by lane: four vectors are added before they are widened. And the
 * largest of a vector, which compilers make badly of a loop. */

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
/* 64 numbers from `first` on, but for number `skip`; -1: none. */
static inline void fastloss_lanes_addv(fastloss_lanes *s, __m512 *v, int first, int skip) {
    int i;
    if (first != 0 || skip >= 0) {
        uint64_t mask = ~(uint64_t)0 << first;
        if (skip >= 0) mask &= ~((uint64_t)1 << skip);
        for (i = 0; i < 4; i++) v[i] = _mm512_maskz_mov_ps((__mmask16)(mask >> 16 * i), v[i]);
    }
    v[0] = _mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3]));
    s->a = _mm512_add_pd(s->a, _mm512_cvtps_pd(_mm512_castps512_ps256(v[0])));
    s->b = _mm512_add_pd(s->b, _mm512_cvtps_pd(_mm512_extractf32x8_ps(v[0], 1)));
}
static inline void fastloss_lanes_add64(fastloss_lanes *s, const float *a, int first, int skip) {
    __m512 v[4];
    int i;
    /* Masks come later: a masked load waits for the stores before it. */
    for (i = 0; i < 4; i++) v[i] = _mm512_loadu_ps(a + 16 * i);
    fastloss_lanes_addv(s, v, first, skip);
}
static inline double fastloss_lanes_fold(const fastloss_lanes *s) {
    return _mm512_reduce_add_pd(_mm512_add_pd(s->a, s->b));
}
static inline float fastloss_max16(const float *a) {
    return _mm512_reduce_max_ps(_mm512_loadu_ps(a));
}
#else
#if defined(__AVX2__)
#include <immintrin.h>
typedef struct {
    __m256d a, b, c, d;
} fastloss_lanes;
static inline void fastloss_lanes_clear(fastloss_lanes *s) {
    s->a = s->b = s->c = s->d = _mm256_setzero_pd();
}
static inline void fastloss_lanes_addv(fastloss_lanes *s, __m256 *v, int first, int skip) {
    int i;
    if (first != 0 || skip >= 0) {
        const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        for (i = 0; i < 8; i++) {
            __m256i at = _mm256_cmpgt_epi32(_mm256_set1_epi32(first - 8 * i), lane);
            at = _mm256_or_si256(at, _mm256_cmpeq_epi32(_mm256_set1_epi32(skip - 8 * i), lane));
            v[i] = _mm256_andnot_ps(_mm256_castsi256_ps(at), v[i]);
        }
    }
    v[0] = _mm256_add_ps(_mm256_add_ps(v[0], v[2]), _mm256_add_ps(v[4], v[6]));
    v[1] = _mm256_add_ps(_mm256_add_ps(v[1], v[3]), _mm256_add_ps(v[5], v[7]));
    s->a = _mm256_add_pd(s->a, _mm256_cvtps_pd(_mm256_castps256_ps128(v[0])));
    s->b = _mm256_add_pd(s->b, _mm256_cvtps_pd(_mm256_extractf128_ps(v[0], 1)));
    s->c = _mm256_add_pd(s->c, _mm256_cvtps_pd(_mm256_castps256_ps128(v[1])));
    s->d = _mm256_add_pd(s->d, _mm256_cvtps_pd(_mm256_extractf128_ps(v[1], 1)));
}
static inline void fastloss_lanes_add64(fastloss_lanes *s, const float *a, int first, int skip) {
    __m256 v[8];
    int i;
    for (i = 0; i < 8; i++) v[i] = _mm256_loadu_ps(a + 8 * i);
    fastloss_lanes_addv(s, v, first, skip);
}
static inline double fastloss_lanes_fold(const fastloss_lanes *s) {
    __m256d v = _mm256_add_pd(_mm256_add_pd(s->a, s->c), _mm256_add_pd(s->b, s->d));
    __m128d w = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
    return _mm_cvtsd_f64(w) + _mm_cvtsd_f64(_mm_unpackhi_pd(w, w));
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
        memcpy(kept, a, sizeof kept);
        if (first > 0)
            for (j = 0; j < 64; j++) kept[j] = j >= first ? a[j] : 0;
        if (skip >= 0) kept[skip] = 0;
        a = kept;
    }
    for (j = 0; j < 16; j++) s->a[j] += (a[j] + a[j + 16]) + (a[j + 32] + a[j + 48]);
}
static inline double fastloss_lanes_fold(const fastloss_lanes *s) {
    double a[8];
    int j;
    for (j = 0; j < 8; j++) a[j] = s->a[j] + s->a[j + 8];
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}
#endif
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
