/* Lines of exponentials on their way to memory: scaled, rounded to the array's type, stored.
 *
 * Only AVX-512 has a form of its own. Elsewhere FASTLOSS_PUT_SCALED is 0 and none of it is called.
 */

#ifndef FASTLOSS_SIMD_SCALE_H
#define FASTLOSS_SIMD_SCALE_H

#if defined(__SSE2__)
#include <immintrin.h>
#endif

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
static inline void fastloss_put_scaled(char *to, const float *e, float by, float low, int stream) {
    int i;
    for (i = 0; i < 64; i += 16)
        fastloss_put(to + 4 * i, _mm512_castps_si512(fastloss_scaled16(e + i, by, low)), stream);
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
    const __m512i even =
        _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26,
                         24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
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
static inline void fastloss_put_scaled(char *to, const float *e, float by, float low, int stream) {
    (void)to;
    (void)e;
    (void)by;
    (void)low;
    (void)stream;
}
#define fastloss_put_scaled_half fastloss_put_scaled
#define fastloss_put_scaled_bfloat fastloss_put_scaled
#endif

#endif
