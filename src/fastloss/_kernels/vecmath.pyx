# The functions of vecmath.pxd over arrays, compiled at every level like the kernels themselves: the
# tests hold them to the errors that they state.


def over_array(str name, const real[::1] x, real[::1] out, real m=0):
    """out = the function of that name of x; the exponential of a row takes the row's maximum m.

    Returns the exponent that the exponential is relative to, K - SPARE; 0 for the others.
    """
    cdef Py_ssize_t i
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
    else:
        raise ValueError(f"no function {name!r}")
    return 0
