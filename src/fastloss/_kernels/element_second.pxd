# Gradient and second derivative of the binary cross-entropy, of which the loss is not wanted.
#
# One exponential e = exp(-|x|) does for both: sigmoid(-|x|) = e / (1 + e), and p (1 - p), with p
# the sigmoid of x, is e / (1 + e)**2, where nothing is subtracted.

from .element_endings cimport BLOCK, Desk, minus_abs
from .vecmath cimport exp_negative, real


cdef inline void bce_second(
    const real *x, const real *t, const double *positive, real *grad, real *hess, Py_ssize_t n
) noexcept nogil:
    """(1 - t) p - t P (1 - p) and (t P + 1 - t) p (1 - p).

    positive: the weights P, or NULL for 1; in double alone.
    """
    cdef Py_ssize_t i
    cdef real e, s, p, q, small, large, tp
    for i in range(n):
        e = exp_negative(minus_abs(x[i]))
        s = <real>1 + e
        large = <real>1 / s
        small = e / s if real is float else e * large
        p = small if x[i] < 0 else large
        q = large if x[i] < 0 else small
        e = e / (s * s) if real is float else small * large
        tp = t[i]
        if positive != NULL:
            # A target of 0 leaves an infinite weight out.
            tp = <real>0 if tp == 0 else tp * <real>positive[i]
            e = (tp + (<real>1 - t[i])) * e
        grad[i] = (<real>1 - t[i]) * p - tp * q
        hess[i] = e


cdef inline void raise_to(
    const real *grad, real *hess, Py_ssize_t n, double floor
) noexcept nogil:
    """No second derivative below the floor, but where there is no gradient either."""
    cdef Py_ssize_t i
    cdef real least = <real>floor
    for i in range(n):
        hess[i] = (
            least if (hess[i] < least) & ((hess[i] != 0) | (grad[i] != 0)) else hess[i]
        )
