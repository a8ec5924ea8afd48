/* Exponentials of floats by a table that lies in one register, and their sums.
 *
 *   e**x = 2**(k / N) * e**r, k the integer nearest to N x / ln 2: the lowest bits of k choose one
 * of N powers of two, the others are the exponent. With |r| <= ln 2 / (2 N) few terms of a series
 * do.
 *
 * N is 8 with AVX2, and the polynomial of degree 4; with AVX-512 16 and 3. Elsewhere
 * FASTLOSS_EXP_TABLE is 0 and none of this is called: without permutations by a variable the
 * polynomial of vecmath.pxd is faster.
 *
 * Arguments are those of exp_capped in vecmath.pxd; `over` are a temperature's constants, or NULL
 * for one of 1. An entry of the table is the bits of
 * 2**(j / N), less the exponent of 1 and less j where k's lowest bits come to lie when k is shifted
 * to make the exponent: the sum of both is the power.
 */

#ifndef FASTLOSS_SIMD_EXP_H
#define FASTLOSS_SIMD_EXP_H

#include <stddef.h>

#include "lanes.h"

/* What exponentials of x / T are made with (see tempers.pxd), in double and for the table. */
typedef struct {
    double temperature;
    double inverse;
    double log2e;   /* log2(e) / T */
    double ln2[3];  /* T ln 2: of the first parts, multiples up to 2**11 (12) are exact */
    float table[4]; /* N log2(e) / T, T ln 2 / N in two parts with their signs changed, 1 / T */
} fastloss_temper;

#if defined(__AVX512DQ__)

#define FASTLOSS_EXP_TABLE 16
typedef __m512 fastloss_v;
#define fastloss_load _mm512_loadu_ps
#define fastloss_store _mm512_storeu_ps
#define fastloss_all _mm512_set1_ps
static inline __m512 fastloss_exp(__m512 x, __m512 magic, __m512 low, __m512 high,
                                  const float *over) {
    const __m512i table =
        _mm512_set_epi32(-187011, -343865, -471841, -572163, -646004, -694486, -718684, -719629,
                         -698305, -655657, -592590, -509968, -408621, -289342, -152893, 0);
    __m512 k, p, r, square;
    __m512i power;
    x = _mm512_max_ps(low, _mm512_min_ps(high, x)); /* the second where one is a NaN */
    k = _mm512_fmadd_ps(x, _mm512_set1_ps(over ? over[0] : 16 * 1.4426950408889634f), magic);
    p = _mm512_sub_ps(k, magic);
    r = _mm512_fmadd_ps(p, _mm512_set1_ps(over ? over[1] : -0.693147182464599609375f / 16), x);
    r = _mm512_fmadd_ps(p, _mm512_set1_ps(over ? over[2] : 1.90465429995776e-09f / 16), r);
    if (over) r = _mm512_mul_ps(r, _mm512_set1_ps(over[3]));
    square = _mm512_mul_ps(r, r);
    p = _mm512_fmadd_ps(r, _mm512_set1_ps(0.16666847467422485f),
                        _mm512_set1_ps(0.5000163316726685f));
    p = _mm512_fmadd_ps(p, square, r);
    power = _mm512_add_epi32(_mm512_permutexvar_epi32(_mm512_castps_si512(k), table),
                             _mm512_slli_epi32(_mm512_castps_si512(k), 19));
    return _mm512_fmadd_ps(p, _mm512_castsi512_ps(power), _mm512_castsi512_ps(power));
}

#elif defined(__AVX2__) && defined(__FMA__)

#define FASTLOSS_EXP_TABLE 8
typedef __m256 fastloss_v;
#define fastloss_load _mm256_loadu_ps
#define fastloss_store _mm256_storeu_ps
#define fastloss_all _mm256_set1_ps
static inline __m256 fastloss_exp(__m256 x, __m256 magic, __m256 low, __m256 high,
                                  const float *over) {
    const __m256i table =
        _mm256_set_epi32(-343865, -572163, -694486, -719629, -655657, -509968, -289342, 0);
    __m256 k, p, r, square;
    __m256i power;
    x = _mm256_max_ps(low, _mm256_min_ps(high, x)); /* the second where one is a NaN */
    k = _mm256_fmadd_ps(x, _mm256_set1_ps(over ? over[0] : 8 * 1.4426950408889634f), magic);
    p = _mm256_sub_ps(k, magic);
    r = _mm256_fmadd_ps(p, _mm256_set1_ps(over ? over[1] : -0.693147182464599609375f / 8), x);
    r = _mm256_fmadd_ps(p, _mm256_set1_ps(over ? over[2] : 1.90465429995776e-09f / 8), r);
    if (over) r = _mm256_mul_ps(r, _mm256_set1_ps(over[3]));
    square = _mm256_mul_ps(r, r);
    p = _mm256_fmadd_ps(r, _mm256_set1_ps(0.04166823625564575f),
                        _mm256_set1_ps(0.16668038070201874f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, square, r);
    power = _mm256_add_epi32(_mm256_permutevar8x32_epi32(table, _mm256_castps_si256(k)),
                             _mm256_slli_epi32(_mm256_castps_si256(k), 20));
    return _mm256_fmadd_ps(p, _mm256_castsi256_ps(power), _mm256_castsi256_ps(power));
}

#else
#define FASTLOSS_EXP_TABLE 0
#endif

#if FASTLOSS_EXP_TABLE

/* The `magic` of a table with k in units of 1 / N. */
static inline float fastloss_exp_magic(float magic) {
    return 12582912.0f + FASTLOSS_EXP_TABLE * (magic - 12582912.0f);
}
/* to[:64] = the exponentials of x[:64] / T, which may be `to`; with `keep` alone. Those from
 * `first` on but x[skip], -1 for none, are added to `sum`. */
static inline void fastloss_exp_add64(fastloss_lanes *sum, float *to, const float *x, int first,
                                      int skip, float magic, float low, float high,
                                      const fastloss_temper *t, int keep) {
    const fastloss_v m = fastloss_all(fastloss_exp_magic(magic));
    const fastloss_v l = fastloss_all(low), h = fastloss_all(high);
    fastloss_v v[64 / FASTLOSS_EXP_TABLE];
    int i;
    if (t->temperature == 1)
        for (i = 0; i < 64 / FASTLOSS_EXP_TABLE; i++)
            v[i] = fastloss_exp(fastloss_load(x + i * FASTLOSS_EXP_TABLE), m, l, h, NULL);
    else
        for (i = 0; i < 64 / FASTLOSS_EXP_TABLE; i++)
            v[i] = fastloss_exp(fastloss_load(x + i * FASTLOSS_EXP_TABLE), m, l, h, t->table);
    if (keep)
        for (i = 0; i < 64 / FASTLOSS_EXP_TABLE; i++)
            fastloss_store(to + i * FASTLOSS_EXP_TABLE, v[i]);
    fastloss_lanes_addv(sum, v, first, skip);
}
/* to[:64] = the exponentials of x[:64] / T, which may be `to`, each with a magic and low of its
 * own; magic from fastloss_exp_magic. None of x is above the largest that `magic` is for. */
static inline void fastloss_exp64(float *to, const float *x, const float *magic, const float *low,
                                  const fastloss_temper *t) {
    int i;
    if (t->temperature == 1)
        for (i = 0; i < 64; i += FASTLOSS_EXP_TABLE) {
            fastloss_v v = fastloss_load(x + i), m = fastloss_load(magic + i);
            fastloss_store(to + i, fastloss_exp(v, m, fastloss_load(low + i), v, NULL));
        }
    else
        for (i = 0; i < 64; i += FASTLOSS_EXP_TABLE) {
            fastloss_v v = fastloss_load(x + i), m = fastloss_load(magic + i);
            fastloss_store(to + i, fastloss_exp(v, m, fastloss_load(low + i), v, t->table));
        }
}

#else

static inline float fastloss_exp_magic(float magic) {
    return magic;
}
static inline void fastloss_exp_add64(fastloss_lanes *sum, float *to, const float *x, int first,
                                      int skip, float magic, float low, float high,
                                      const fastloss_temper *t, int keep) {
    (void)sum, (void)to, (void)x, (void)first, (void)skip, (void)magic, (void)low, (void)high;
    (void)t, (void)keep;
}
static inline void fastloss_exp64(float *to, const float *x, const float *magic, const float *low,
                                  const fastloss_temper *t) {
    (void)to, (void)x, (void)magic, (void)low, (void)t;
}

#endif

#endif
