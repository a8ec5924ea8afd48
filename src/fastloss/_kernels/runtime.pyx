# What the kernels need to know of the machine: instruction sets and the OpenMP runtime.
#
# Compiled for the baseline alone, since it is imported before a level is chosen.

cdef extern from *:
    """
    #if defined(_OPENMP)
    #include <omp.h>
    #define FASTLOSS_OPENMP _OPENMP
    static int fastloss_max_threads(void) { return omp_get_max_threads(); }
    static void fastloss_set_threads(int n) { omp_set_num_threads(n); }
    static int fastloss_processors(void) { return omp_get_num_procs(); }
    /* GNU's runtime needs it before a fork, and has it since GCC 9; LLVM's handles forks itself. */
    #if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 9
    static int fastloss_pause(void) { return omp_pause_resource_all(omp_pause_hard); }
    #else
    static int fastloss_pause(void) { return -1; }
    #endif
    #else
    #define FASTLOSS_OPENMP 0
    static int fastloss_max_threads(void) { return 1; }
    static void fastloss_set_threads(int n) { (void)n; }
    static int fastloss_processors(void) { return 1; }
    static int fastloss_pause(void) { return -1; }
    #endif

    #if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    static int fastloss_level(void) {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
              && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
            return 1;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl")))
            return 3;
        return 4;
    }
    #else
    static int fastloss_level(void) { return 0; }
    #endif

    #if defined(__clang__)
    #define FASTLOSS_COMPILER "clang " __clang_version__
    #elif defined(__GNUC__)
    #define FASTLOSS_COMPILER "gcc " __VERSION__
    #elif defined(_MSC_VER)
    #define FASTLOSS_COMPILER "MSVC"
    #else
    #define FASTLOSS_COMPILER "unknown"
    #endif
    """
    const int FASTLOSS_OPENMP
    const char *FASTLOSS_COMPILER
    int fastloss_max_threads() nogil
    void fastloss_set_threads(int) nogil
    int fastloss_processors() nogil
    int fastloss_pause() nogil
    int fastloss_level() nogil


def openmp_version():
    """Date of the OpenMP specification built against (such as 201511), 0 without OpenMP."""
    return FASTLOSS_OPENMP


def compiler():
    """Name and version of the C compiler."""
    return FASTLOSS_COMPILER.decode()


def openmp_threads():
    """Threads that OpenMP would give a parallel region of the calling thread."""
    return fastloss_max_threads()


def set_openmp_threads(int n):
    """Set what `openmp_threads` returns, for the calling thread."""
    fastloss_set_threads(n)


def processors():
    """Processors that the process may run on now (its affinity)."""
    return fastloss_processors()


def release_threads():
    """End the calling thread's OpenMP threads; the next parallel region starts new ones.

    Returns whether the runtime did so.
    """
    return fastloss_pause() == 0


def x86_64_level():
    """Highest x86-64 micro-architecture level that processor and system support; 0 elsewhere."""
    return fastloss_level()
