/* Whether the processor multiplies and adds in one step, rounding once.
 *
 * On x86 clang says so by __FMA__ alone. */

#ifndef FASTLOSS_SIMD_FMA_H
#define FASTLOSS_SIMD_FMA_H

#include <math.h>

#if (defined(__FP_FAST_FMAF) && defined(__FP_FAST_FMA)) || defined(__FMA__) ||                     \
    (defined(__aarch64__) && defined(__ARM_FEATURE_FMA))
#define FASTLOSS_FMA 1
#else
#define FASTLOSS_FMA 0
#endif

#endif
