# What single.pyx offers to C: see fastloss/cython.pxd, which says what each function does.

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
