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

/* How many of `number` threads, the caller among them, the system lets this process have: GNU's
 * runtime ends the process where it gets fewer than it asks for. A limit on processes or on memory
 * is met here instead, by threads that do nothing and have stacks of the usual size, of which there
 * is one to spare.
 */
#if defined(_WIN32)
static inline int fastloss_startable(int number) {
    return number;
}
#else
#include <pthread.h>

static inline void *fastloss_wait(void *gate) {
    pthread_mutex_lock((pthread_mutex_t *)gate);
    pthread_mutex_unlock((pthread_mutex_t *)gate);
    return 0;
}

static inline int fastloss_startable(int number) {
    enum { MOST = 1024 };
    pthread_t threads[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int asked = number < MOST ? number : MOST, started = 0, i;
    pthread_mutex_lock(&gate);
    while (started < asked && pthread_create(&threads[started], 0, fastloss_wait, &gate) == 0) {
        started++;
    }
    pthread_mutex_unlock(&gate);
    for (i = 0; i < started; i++) {
        pthread_join(threads[i], 0);
    }
    pthread_mutex_destroy(&gate);
    return started == asked ? number : started > 1 ? started : 1;
}
#endif

#else

#define FASTLOSS_OPENMP 0

static inline int fastloss_startable(int number) {
    (void)number;
    return 1;
}

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
