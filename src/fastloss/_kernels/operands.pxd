# Operands: arrays that go with the elements of another one, read where they lie.
#
# An operand has any element type. It is widened to the compute type a block at a time. One that is
# broadcast is never blown up: element i of the result uses its element (i / div) % mod.

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from .storage cimport bfloat16, float16, load, storage
from .vecmath cimport NAN, real

# Element types, by the code that Python passes along with the array.
cdef enum:
    FLOAT32 = 0
    FLOAT64 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    INT8 = 4
    UINT8 = 5
    INT16 = 6
    UINT16 = 7
    INT32 = 8
    UINT32 = 9
    INT64 = 10
    UINT64 = 11

cdef struct Operand:
    const uint8_t *data      # NULL: not given
    int type
    Py_ssize_t div
    Py_ssize_t mod
    Py_ssize_t nbytes


cdef inline int size_of(int type) noexcept nogil:
    """Bytes of an element of the floating-point types."""
    return 8 if type == FLOAT64 else 4 if type == FLOAT32 else 2


cdef inline bint floats(const Operand *source) noexcept nogil:
    """Whether every number of its type is one of the float numbers."""
    return source.type != FLOAT64 and source.type < INT32


cdef inline void widen(
    real *to, const Operand *source, Py_ssize_t first, Py_ssize_t n
) noexcept nogil:
    """to[:n] = elements first to first + n; NaN for a float64 that is none of the float numbers."""
    cdef Py_ssize_t i
    cdef real a
    cdef double b
    if source.type == FLOAT32:
        for i in range(n):
            to[i] = <real>(<const float *>source.data)[first + i]
    elif source.type == FLOAT64:
        for i in range(n):
            b = (<const double *>source.data)[first + i]
            a = <real>b
            if real is float:
                to[i] = a if a == b else <float>NAN
            else:
                to[i] = a
    elif source.type == FLOAT16:
        load(to, <const float16 *>source.data + first, n, <real>0)
    elif source.type == BFLOAT16:
        load(to, <const bfloat16 *>source.data + first, n, <real>0)
    elif source.type == INT8:
        for i in range(n):
            to[i] = (<const int8_t *>source.data)[first + i]
    elif source.type == UINT8:
        for i in range(n):
            to[i] = (<const uint8_t *>source.data)[first + i]
    elif source.type == INT16:
        for i in range(n):
            to[i] = (<const int16_t *>source.data)[first + i]
    elif source.type == UINT16:
        for i in range(n):
            to[i] = (<const uint16_t *>source.data)[first + i]
    elif source.type == INT32:
        for i in range(n):
            to[i] = <real>(<const int32_t *>source.data)[first + i]
    elif source.type == UINT32:
        for i in range(n):
            to[i] = <real>(<const uint32_t *>source.data)[first + i]
    elif source.type == INT64:
        for i in range(n):
            to[i] = <real>(<const int64_t *>source.data)[first + i]
    else:
        for i in range(n):
            to[i] = <real>(<const uint64_t *>source.data)[first + i]
