# fastloss for Cython: losses of one row at a time, for loops of your own.
#
#     from fastloss.cython cimport cross_entropy_row
#
# Functions of plain C types that need no GIL, raise nothing and take no memory. Those without a
# type in their name are for both float and double and are what to call from Cython. The others are
# in the module's table of C functions, by which Numba and C find them. All run on the instruction
# set that fastloss.show_config() names.
#
# x is a row of logits, `classes` numbers side by side. What is written may be x itself, or else
# must not overlap what is read. Results are as right as those of the functions over arrays; sums
# and losses are doubles for both types. Nothing is checked but class indices.

ctypedef fused real:
    float
    double

cdef double logsumexp_row_float32(const float *x, Py_ssize_t classes) noexcept nogil
cdef double logsumexp_row_float64(const double *x, Py_ssize_t classes) noexcept nogil
cdef void softmax_row_float32(const float *x, Py_ssize_t classes, float *out) noexcept nogil
cdef void softmax_row_float64(const double *x, Py_ssize_t classes, double *out) noexcept nogil
cdef double cross_entropy_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil
cdef double cross_entropy_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil
cdef double cross_entropy_grad_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target, double scale, float *grad
) noexcept nogil
cdef double cross_entropy_grad_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target, double scale, double *grad
) noexcept nogil
cdef double bce_with_logits_block_float32(
    const float *x, const float *target, Py_ssize_t n, double scale, float *losses, float *grad
) noexcept nogil
cdef double bce_with_logits_block_float64(
    const double *x, const double *target, Py_ssize_t n, double scale, double *losses, double *grad
) noexcept nogil


cdef inline double logsumexp_row(const real *x, Py_ssize_t classes) noexcept nogil:
    """log(sum(exp(x))): NaN where one is NaN, -inf of no class."""
    if real is float:
        return logsumexp_row_float32(x, classes)
    else:
        return logsumexp_row_float64(x, classes)


cdef inline void softmax_row(const real *x, Py_ssize_t classes, real *out) noexcept nogil:
    """out[:classes] = exp(x) / sum(exp(x))."""
    if real is float:
        softmax_row_float32(x, classes, out)
    else:
        softmax_row_float64(x, classes, out)


cdef inline double cross_entropy_row(
    const real *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil:
    """logsumexp(x) - x[target]: NaN for a target outside the classes."""
    if real is float:
        return cross_entropy_row_float32(x, classes, target)
    else:
        return cross_entropy_row_float64(x, classes, target)


cdef inline double cross_entropy_grad_row(
    const real *x, Py_ssize_t classes, Py_ssize_t target, double scale, real *grad
) noexcept nogil:
    """`cross_entropy_row`, and grad[:classes] = scale * its gradient; the loss is not scaled.

    For a target outside the classes both are NaN.
    """
    if real is float:
        return cross_entropy_grad_row_float32(x, classes, target, scale, grad)
    else:
        return cross_entropy_grad_row_float64(x, classes, target, scale, grad)


cdef inline double bce_with_logits_block(
    const real *x, const real *target, Py_ssize_t n, double scale, real *losses, real *grad
) noexcept nogil:
    """Sum of the binary cross-entropies of n logits x and targets in [0, 1].

    losses[:n] = each of them, grad[:n] = scale * their gradients; either may be NULL.
    """
    if real is float:
        return bce_with_logits_block_float32(x, target, n, scale, losses, grad)
    else:
        return bce_with_logits_block_float64(x, target, n, scale, losses, grad)
