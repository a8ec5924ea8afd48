# Scratch memory of a call, and what a call reports.
#
# Scratch lies on the heap, never on a thread's stack, which may be as small as 64 KiB. It is taken
# once a call, one part for each thread that has work, before anything is written.

from libc.stdlib cimport free, malloc

cdef enum:
    LINE = 64            # bytes of a cache line

# What went wrong. A kernel returns it with a position, `where`; _arrays.py makes the exception.
cdef enum:
    FINE = 0
    NO_MEMORY = 1
    OVERLAPS = 2         # `out` shares memory with what is read
    WRONG_INDEX = 3      # a class index outside the classes; where: its sample
    WRONG_TARGET = 4     # a binary target other than 0, 1 and ignore_index; where: its element
    PROBS_OUTSIDE = 5    # a probability outside [0, 1]; where: its element
    TARGET_OUTSIDE = 6   # the same of a target

cdef struct Status:
    int what
    Py_ssize_t where

cdef struct Workspace:
    void *taken
    char *parts          # one after the other, each from a cache line's beginning
    Py_ssize_t part      # bytes of one


cdef inline Py_ssize_t lines(Py_ssize_t nbytes) noexcept nogil:
    """nbytes, rounded up to whole cache lines."""
    return (nbytes + LINE - 1) // LINE * LINE


cdef inline bint take(Workspace *space, Py_ssize_t nbytes, Py_ssize_t threads) noexcept nogil:
    """Take nbytes for each thread; False, with nothing taken, where there is no memory."""
    space.part = lines(nbytes)
    space.taken = malloc(space.part * threads + LINE)
    space.parts = <char *>((<Py_ssize_t>space.taken + LINE - 1) & -LINE)
    return space.taken != NULL


cdef inline char *part_of(const Workspace *space, Py_ssize_t thread) noexcept nogil:
    return space.parts + thread * space.part


cdef inline void give_back(Workspace *space) noexcept nogil:
    free(space.taken)
