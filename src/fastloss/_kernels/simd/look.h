/* One look at a row of floats: the largest without one of them, and how many are `value` or more;
 * and which of 64 floats are larger than another. Compilers keep the counts of such a loop in
 * memory, and make no mask of comparisons. FASTLOSS_LOOK tells whether this is there; without it
 * scores.pxi has the loops. */

#ifndef FASTLOSS_SIMD_LOOK_H
#define FASTLOSS_SIMD_LOOK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif
#if defined(__AVX512DQ__)
#include <immintrin.h>
#define FASTLOSS_LOOK 1
typedef struct {
    __m512 most[2];
    __m512i count[2];
} fastloss_seen;
static inline void fastloss_look_step(fastloss_seen *s, const float *x, __m512 value,
                                      unsigned mask) {
    int i;
    for (i = 0; i < 2; i++) {
        __mmask16 m = (__mmask16)(mask >> 16 * i);
        /* The second operand where the first is NaN. */
        __m512 v = _mm512_loadu_ps(x + 16 * i);
        s->most[i] = _mm512_mask_max_ps(s->most[i], m, v, s->most[i]);
        m = _mm512_mask_cmp_ps_mask(m, v, value, _CMP_GE_OQ);
        s->count[i] = _mm512_mask_sub_epi32(s->count[i], m, s->count[i], _mm512_set1_epi32(-1));
    }
}
static inline unsigned fastloss_look_mask(int first, ptrdiff_t skip) {
    unsigned mask = ~0u << first;
    return skip >= 0 && skip < 32 ? mask & ~(1u << skip) : mask;
}
#define FASTLOSS_LOOK_ALL ~0u
static inline float fastloss_look_end(const fastloss_seen *s, ptrdiff_t *count) {
    *count = _mm512_reduce_add_epi32(_mm512_add_epi32(s->count[0], s->count[1]));
    return _mm512_reduce_max_ps(_mm512_max_ps(s->most[0], s->most[1]));
}
static inline void fastloss_look_begin(fastloss_seen *s) {
    int i;
    for (i = 0; i < 2; i++) {
        s->most[i] = _mm512_set1_ps(-INFINITY);
        s->count[i] = _mm512_setzero_si512();
    }
}
static inline uint64_t fastloss_larger(const float *x, float least) {
    const __m512 v = _mm512_set1_ps(least);
    uint64_t mask = 0;
    int i;
    for (i = 0; i < 4; i++)
        mask |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16 * i), v, _CMP_GT_OQ) << 16 * i;
    return mask;
}
#define FASTLOSS_LOOK_VALUE(v) _mm512_set1_ps(v)
#define FASTLOSS_LOOK_VECTOR __m512
#define FASTLOSS_LOOK_SOME(s, x, value, first, skip)                                               \
    fastloss_look_step(s, x, value, fastloss_look_mask(first, skip))
#elif defined(__AVX2__)
#include <immintrin.h>
#define FASTLOSS_LOOK 1
typedef struct {
    __m256 most[4];
    __m256i count[4];
} fastloss_seen;
#define FASTLOSS_LOOK_ALL 0
static inline void fastloss_look_step(fastloss_seen *s, const float *x, __m256 value, int unused) {
    int i;
    (void)unused;
    for (i = 0; i < 4; i++) {
        __m256 v = _mm256_loadu_ps(x + 8 * i);
        __m256i more = _mm256_castps_si256(_mm256_cmp_ps(v, value, _CMP_GE_OQ));
        /* The second operand where the first is NaN. */
        s->most[i] = _mm256_max_ps(v, s->most[i]);
        s->count[i] = _mm256_sub_epi32(s->count[i], more);
    }
}
static inline void fastloss_look_some(fastloss_seen *s, const float *x, __m256 value, int first,
                                      ptrdiff_t skip) {
    const __m256i ahead = _mm256_set1_epi32(first - 1);
    const __m256i left_out = _mm256_set1_epi32(skip >= 0 && skip < 32 ? (int)skip : -1);
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    int i;
    for (i = 0; i < 4; i++) {
        __m256i kept = _mm256_andnot_si256(_mm256_cmpeq_epi32(lane, left_out),
                                           _mm256_cmpgt_epi32(lane, ahead));
        __m256 v = _mm256_loadu_ps(x + 8 * i);
        __m256i more = _mm256_castps_si256(_mm256_cmp_ps(v, value, _CMP_GE_OQ));
        v = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), v, _mm256_castsi256_ps(kept));
        s->most[i] = _mm256_max_ps(v, s->most[i]);
        s->count[i] = _mm256_sub_epi32(s->count[i], _mm256_and_si256(more, kept));
        lane = _mm256_add_epi32(lane, _mm256_set1_epi32(8));
    }
}
static inline float fastloss_look_end(const fastloss_seen *s, ptrdiff_t *count) {
    __m256 m =
        _mm256_max_ps(_mm256_max_ps(s->most[0], s->most[1]), _mm256_max_ps(s->most[2], s->most[3]));
    __m256i c = _mm256_add_epi32(_mm256_add_epi32(s->count[0], s->count[1]),
                                 _mm256_add_epi32(s->count[2], s->count[3]));
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    __m128i k = _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    k = _mm_add_epi32(k, _mm_shuffle_epi32(k, 0x4e));
    h = _mm_max_ss(h, _mm_shuffle_ps(h, h, 1));
    k = _mm_add_epi32(k, _mm_shuffle_epi32(k, 0xb1));
    *count = _mm_cvtsi128_si32(k);
    return _mm_cvtss_f32(h);
}
static inline void fastloss_look_begin(fastloss_seen *s) {
    int i;
    for (i = 0; i < 4; i++) {
        s->most[i] = _mm256_set1_ps(-INFINITY);
        s->count[i] = _mm256_setzero_si256();
    }
}
static inline uint64_t fastloss_larger(const float *x, float least) {
    const __m256 v = _mm256_set1_ps(least);
    uint64_t mask = 0;
    int i;
    for (i = 0; i < 8; i++) {
        __m256 more = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * i), v, _CMP_GT_OQ);
        mask |= (uint64_t)(unsigned)_mm256_movemask_ps(more) << 8 * i;
    }
    return mask;
}
#define FASTLOSS_LOOK_VALUE(v) _mm256_set1_ps(v)
#define FASTLOSS_LOOK_VECTOR __m256
#define FASTLOSS_LOOK_SOME fastloss_look_some
#else
#define FASTLOSS_LOOK 0
#endif

#if FASTLOSS_LOOK
/* Of x[:n], n >= 32, without x[own]; an `own` outside leaves out none. NaNs are passed over. */
static inline float fastloss_look(const float *x, ptrdiff_t n, ptrdiff_t own, float least,
                                  ptrdiff_t *count) {
    const FASTLOSS_LOOK_VECTOR value = FASTLOSS_LOOK_VALUE(least);
    const ptrdiff_t whole = n / 32;
    /* Its block comes last: a branch where it turns up would be mispredicted. */
    const ptrdiff_t held = own >= 0 && own < 32 * whole ? own / 32 : 0;
    fastloss_seen s;
    ptrdiff_t i;
    fastloss_look_begin(&s);
    for (i = 0; i < whole - 1; i++)
        fastloss_look_step(&s, x + 32 * (i + (i >= held)), value, FASTLOSS_LOOK_ALL);
    FASTLOSS_LOOK_SOME(&s, x + 32 * held, value, 0, own - 32 * held);
    /* The rest overlaps what has been looked at. */
    if (32 * whole < n)
        FASTLOSS_LOOK_SOME(&s, x + n - 32, value, (int)(32 * (whole + 1) - n), own - (n - 32));
    return fastloss_look_end(&s, count);
}
#else
static inline float fastloss_look(const float *x, ptrdiff_t n, ptrdiff_t own, float least,
                                  ptrdiff_t *count) {
    (void)n, (void)own, (void)least;
    *count = 0;
    return x[0];
}
static inline uint64_t fastloss_larger(const float *x, float least) {
    return x[0] > least;
}
#endif

/* Position of the lowest bit that is set; there is one. */
static inline int fastloss_lowest(uint64_t mask) {
#if defined(__GNUC__) || defined(__clang__)
    return __builtin_ctzll(mask);
#elif defined(_MSC_VER) && defined(_WIN64)
    unsigned long at;
    _BitScanForward64(&at, mask);
    return (int)at;
#else
    int at = 0;
    while (!(mask >> at & 1)) at++;
    return at;
#endif
}

#endif
