# What the kernels need to know of the machine: instruction sets and the OpenMP runtime.
#
# Compiled for the baseline alone, since it is imported before a level is chosen.

from libc.stdint cimport uint32_t

cdef extern from "simd/openmp.h" nogil:
    const int FASTLOSS_OPENMP
    int fastloss_openmp_threads()
    int fastloss_processors()
    bint fastloss_end_threads()
    int fastloss_startable(int)

cdef extern from "simd/cpu.h" nogil:
    const bint FASTLOSS_X86_64
    const char *FASTLOSS_COMPILER

    ctypedef struct fastloss_cpu:
        uint32_t leaf1_ecx
        uint32_t leaf7_ebx
        uint32_t ext1_ecx
        uint32_t xcr0

    fastloss_cpu fastloss_read_cpu()
    int fastloss_x86_64_level_of(fastloss_cpu)


def openmp_version():
    """Date of the OpenMP specification built against (such as 201511), 0 without OpenMP."""
    return FASTLOSS_OPENMP


def compiler():
    """Name and version of the C compiler."""
    return FASTLOSS_COMPILER.decode()


def openmp_threads():
    """Threads that OpenMP would give a parallel region of the calling thread."""
    return fastloss_openmp_threads()


def processors():
    """Processors that the process may run on now (its affinity)."""
    return fastloss_processors()


def release_threads():
    """End the calling thread's OpenMP threads; the next parallel region starts new ones.

    Returns whether the runtime did so.
    """
    return fastloss_end_threads()


def startable(int number):
    """How many of `number` threads, the calling one among them, can be started now.

    At least 1, which needs none.
    """
    cdef int found
    with nogil:
        found = fastloss_startable(number)
    return found


def cpu_registers():
    """What `x86_64_level_of` takes, of this processor; zeros where it is no x86-64."""
    return fastloss_read_cpu()


def x86_64_level_of(
    uint32_t leaf1_ecx, uint32_t leaf7_ebx, uint32_t ext1_ecx, uint32_t xcr0
):
    """Highest x86-64 micro-architecture level, 1 to 4, of which a processor has every feature.

    The arguments are registers after CPUID of leaf 1, of leaf 7 and of leaf 0x80000001, and the
    lower half of XCR0.
    """
    return fastloss_x86_64_level_of(fastloss_cpu(leaf1_ecx, leaf7_ebx, ext1_ecx, xcr0))


def x86_64_level():
    """Highest x86-64 micro-architecture level that processor and system support; 0 elsewhere."""
    return fastloss_x86_64_level_of(fastloss_read_cpu()) if FASTLOSS_X86_64 else 0
