"""Losses of one row at a time, for Cython, Numba and C: see ``cython.pxd`` beside this module.

Python finds nothing to call here.  ``from fastloss.cython cimport cross_entropy_row`` brings a
function into a Cython module, and
``numba.extending.get_cython_function_address("fastloss.cython", "cross_entropy_row_float64")`` into
Numba.
"""

# Compiled for the baseline alone. What is called are the functions of the kernels' module `single`,
# in the instruction set that was chosen when fastloss was imported.

from cpython.pycapsule cimport PyCapsule_GetName, PyCapsule_GetPointer

from fastloss import _kernels

ctypedef double (*Logsumexp32)(const float *, Py_ssize_t) noexcept nogil
ctypedef double (*Logsumexp64)(const double *, Py_ssize_t) noexcept nogil
ctypedef void (*Softmax32)(const float *, Py_ssize_t, float *) noexcept nogil
ctypedef void (*Softmax64)(const double *, Py_ssize_t, double *) noexcept nogil
ctypedef double (*Loss32)(const float *, Py_ssize_t, Py_ssize_t) noexcept nogil
ctypedef double (*Loss64)(const double *, Py_ssize_t, Py_ssize_t) noexcept nogil
ctypedef double (*Grad32)(
    const float *, Py_ssize_t, Py_ssize_t, double, float *
) noexcept nogil
ctypedef double (*Grad64)(
    const double *, Py_ssize_t, Py_ssize_t, double, double *
) noexcept nogil
ctypedef double (*Bce32)(
    const float *, const float *, Py_ssize_t, double, float *, float *
) noexcept nogil
ctypedef double (*Bce64)(
    const double *, const double *, Py_ssize_t, double, double *, double *
) noexcept nogil


cdef void *address_of(str name) except NULL:
    """Where the function of that name of the chosen level begins."""
    capsule = _kernels.single.__pyx_capi__[name]
    return PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))


cdef Logsumexp32 logsumexp32 = <Logsumexp32>address_of("logsumexp_row_float32")
cdef Logsumexp64 logsumexp64 = <Logsumexp64>address_of("logsumexp_row_float64")
cdef Softmax32 softmax32 = <Softmax32>address_of("softmax_row_float32")
cdef Softmax64 softmax64 = <Softmax64>address_of("softmax_row_float64")
cdef Loss32 loss32 = <Loss32>address_of("cross_entropy_row_float32")
cdef Loss64 loss64 = <Loss64>address_of("cross_entropy_row_float64")
cdef Grad32 grad32 = <Grad32>address_of("cross_entropy_grad_row_float32")
cdef Grad64 grad64 = <Grad64>address_of("cross_entropy_grad_row_float64")
cdef Bce32 bce32 = <Bce32>address_of("bce_with_logits_block_float32")
cdef Bce64 bce64 = <Bce64>address_of("bce_with_logits_block_float64")


cdef double logsumexp_row_float32(const float *x, Py_ssize_t classes) noexcept nogil:
    return logsumexp32(x, classes)


cdef double logsumexp_row_float64(const double *x, Py_ssize_t classes) noexcept nogil:
    return logsumexp64(x, classes)


cdef void softmax_row_float32(const float *x, Py_ssize_t classes, float *out) noexcept nogil:
    softmax32(x, classes, out)


cdef void softmax_row_float64(const double *x, Py_ssize_t classes, double *out) noexcept nogil:
    softmax64(x, classes, out)


cdef double cross_entropy_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil:
    return loss32(x, classes, target)


cdef double cross_entropy_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target
) noexcept nogil:
    return loss64(x, classes, target)


cdef double cross_entropy_grad_row_float32(
    const float *x, Py_ssize_t classes, Py_ssize_t target, double scale, float *grad
) noexcept nogil:
    return grad32(x, classes, target, scale, grad)


cdef double cross_entropy_grad_row_float64(
    const double *x, Py_ssize_t classes, Py_ssize_t target, double scale, double *grad
) noexcept nogil:
    return grad64(x, classes, target, scale, grad)


cdef double bce_with_logits_block_float32(
    const float *x, const float *target, Py_ssize_t n, double scale, float *losses, float *grad
) noexcept nogil:
    return bce32(x, target, n, scale, losses, grad)


cdef double bce_with_logits_block_float64(
    const double *x, const double *target, Py_ssize_t n, double scale, double *losses, double *grad
) noexcept nogil:
    return bce64(x, target, n, scale, losses, grad)
