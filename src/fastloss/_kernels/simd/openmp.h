/* The OpenMP runtime: how many threads there are, and how they end before a fork.
 *
 * Nothing here sets a number in the runtime: other libraries of the process share it. A kernel
 * names its number of threads with each parallel region.
 *
 * Without OpenMP every function answers for a single thread.
 */

#ifndef FASTLOSS_OPENMP_H
#define FASTLOSS_OPENMP_H

#if defined(_OPENMP)

#include <omp.h>

#define FASTLOSS_OPENMP _OPENMP /* date of the specification */

static inline int fastloss_openmp_threads(void) {
    return omp_get_max_threads();
}

static inline int fastloss_processors(void) {
    return omp_get_num_procs();
}

/* End the calling thread's idle OpenMP threads; the next parallel region starts new ones. Returns
 * whether the runtime took the request.
 *
 * GNU's runtime needs it before a fork, and has it since GCC 9; LLVM's handles forks itself. A soft
 * pause ends GNU's threads as a hard one does. It is the kind that keeps what others have set, also
 * where another runtime stands in for GNU's: a hard pause takes LLVM's back to its start.
 */
static inline int fastloss_end_threads(void) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
    return omp_pause_resource_all(omp_pause_soft) == 0;
#else
    return 0;
#endif
}

#else

#define FASTLOSS_OPENMP 0

static inline int fastloss_openmp_threads(void) {
    return 1;
}
static inline int fastloss_processors(void) {
    return 1;
}
static inline int fastloss_end_threads(void) {
    return 0;
}

#endif

#endif
