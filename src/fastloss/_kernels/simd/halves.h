/* float16 and bfloat16 to float and back, sixteen at a time, where the processor helps.
 *
 * Elsewhere the constants are 0 and none of it is called. */

#ifndef FASTLOSS_SIMD_HALVES_H
#define FASTLOSS_SIMD_HALVES_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <stdint.h>

/* Sixteen bfloat16 to float: by itself the compiler reads 32 and takes them apart. */
#if defined(__AVX512F__)
#define FASTLOSS_WIDEN_BFLOAT 1
static inline void fastloss_widen_bfloat16(float *d, const int16_t *s) {
    __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)s));
    _mm512_storeu_si512(d, _mm512_slli_epi32(x, 16));
}
#else
#define FASTLOSS_WIDEN_BFLOAT 0
static inline void fastloss_widen_bfloat16(float *d, const int16_t *s) {
    (void)d;
    (void)s;
}
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
static inline void fastloss_widen16(float *d, const uint16_t *s) {
    (void)d;
    (void)s;
}
static inline void fastloss_narrow16(uint16_t *d, const float *s) {
    (void)d;
    (void)s;
}
#endif

#endif
