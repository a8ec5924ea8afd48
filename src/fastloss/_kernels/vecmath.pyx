# The functions of vecmath.pxd over arrays, compiled at every level like the kernels themselves: the
# tests hold them to the errors that they state.


def over_array(str name, const real[::1] x, real[::1] out, real m=0):
    """out = the function of that name of x; the exponential of a row takes the row's maximum m.

    Returns the exponent that the exponential is relative to, K - SPARE; 0 for the others.
    """
    cdef Py_ssize_t i
    cdef Pair pair
    cdef Pair32 pair32
    cdef real k = exponent_of(m), magic = exp_magic(k), low = exp_low(k)
    if name == "exp_scaled":
        for i in range(x.shape[0]):
            out[i] = exp_scaled(x[i], magic, low)
        return int(k) - int(spare_bits(m))
    if name == "exp_negative":
        for i in range(x.shape[0]):
            out[i] = exp_negative(x[i])
    elif name == "log_normal":
        for i in range(x.shape[0]):
            out[i] = log_normal(x[i])
    elif name == "log_positive":
        for i in range(x.shape[0]):
            out[i] = log_positive(x[i])
    elif name == "log1p":
        for i in range(x.shape[0]):
            out[i] = log1p(x[i])
    elif name == "log1p_positive":
        # double alone
        for i in range(x.shape[0]):
            out[i] = <real>log1p_positive(x[i])
    elif name == "log1p_unit":
        for i in range(x.shape[0]):
            out[i] = log1p_unit(x[i])
    elif name == "exp_pair32":
        # float alone; all its digits are in the double
        for i in range(x.shape[0]):
            pair32 = exp_pair32(<float>x[i])
            out[i] = <real>(<double>pair32.high + <double>pair32.low)
    elif name == "exp_pair" or name == "exp_pair_low":
        # double alone, one part of two
        for i in range(x.shape[0]):
            pair = exp_pair(x[i])
            out[i] = <real>(pair.high if name == "exp_pair" else pair.low)
    elif name == "log_pair" or name == "log_pair_low":
        for i in range(x.shape[0]):
            pair = log_pair(Pair(x[i], 0))
            out[i] = <real>(pair.high if name == "log_pair" else pair.low)
    else:
        raise ValueError(f"no function {name!r}")
    return 0
