# The functions of vecmath.pxd over arrays, compiled at every level like the kernels themselves: the
# tests hold them to the errors that they state.

from .buffers cimport address
from .operands cimport FLOAT64, size_of
from .tempers cimport temper_of

#: Entries of the table of `exp_by_table`; 0 where there is none.
EXP_LANES = EXP_TABLE


cdef void by_table(
    const real *x, real *out, Py_ssize_t n, real magic, real low
) noexcept nogil:
    """Where a level has no table, and in double, `exp_scaled`."""
    cdef float given[64]
    cdef float made[64]
    cdef float magics[64]
    cdef float lows[64]
    cdef Py_ssize_t first, i
    cdef Temper temper = temper_of(1, <float>0)
    for first in range(0, n, 64):
        for i in range(64):
            magics[i] = table_magic(<float>magic)
            lows[i] = <float>low
            given[i] = <float>x[min(first + i, n - 1)]
        if EXP_TABLE:
            exp_by_table(&made[0], &given[0], &magics[0], &lows[0], &temper)
        for i in range(first, min(first + 64, n)):
            if real is float and EXP_TABLE:
                out[i] = made[i - first]
            else:
                out[i] = exp_scaled(x[i], magic, low)


cdef int compute(str name, const real *x, real *out, Py_ssize_t n, real m) except -1000000:
    """`over_array` of a type."""
    cdef Py_ssize_t i
    cdef Pair pair
    cdef Pair32 pair32
    cdef real k = exponent_of(m), magic = exp_magic(k), low = exp_low(k)
    if name == "exp_scaled":
        for i in range(n):
            out[i] = exp_scaled(x[i], magic, low)
        return <int>k - <int>spare_bits(m)
    if name == "exp_by_table":
        by_table(x, out, n, magic, low)
        return <int>k - <int>spare_bits(m)
    if name == "exp_negative":
        for i in range(n):
            out[i] = exp_negative(x[i])
    elif name == "log_normal":
        for i in range(n):
            out[i] = log_normal(x[i])
    elif name == "log_positive":
        for i in range(n):
            out[i] = log_positive(x[i])
    elif name == "log1p":
        for i in range(n):
            out[i] = log1p(x[i])
    elif name == "log1p_positive":
        # double alone
        for i in range(n):
            out[i] = <real>log1p_positive(x[i])
    elif name == "log1p_wide":
        # double alone
        for i in range(n):
            out[i] = <real>log1p_wide(x[i])
    elif name == "log1p_unit":
        for i in range(n):
            out[i] = log1p_unit(x[i])
    elif name == "exp_pair32":
        # float alone; all its digits are in the double
        for i in range(n):
            pair32 = exp_pair32(<float>x[i])
            out[i] = <real>(<double>pair32.high + <double>pair32.low)
    elif name == "exp_pair" or name == "exp_pair_low":
        # double alone, one part of two
        for i in range(n):
            pair = exp_pair(x[i])
            out[i] = <real>(pair.high if name == "exp_pair" else pair.low)
    elif name == "log_pair" or name == "log_pair_low":
        for i in range(n):
            pair = log_pair(Pair(x[i], 0))
            out[i] = <real>(pair.high if name == "log_pair" else pair.low)
    else:
        raise ValueError(f"no function {name!r}")
    return 0


def over_array(
    str name,
    int type,                  # FLOAT32 or FLOAT64
    object x,                  # IN   contiguous
    object out,                # OUT  of the same type
    Py_ssize_t n,              # elements of each
    double m=0,
):
    """out = the function of that name of x; the exponential of a row takes the row's maximum m.

    Returns the exponent that the exponential is relative to, K - SPARE; 0 for the others.
    """
    cdef const void *source = address(x, n * size_of(type))
    cdef void *to = address(out, n * size_of(type))
    if type == FLOAT64:
        return compute(name, <const double *>source, <double *>to, n, m)
    return compute(name, <const float *>source, <float *>to, n, <float>m)
