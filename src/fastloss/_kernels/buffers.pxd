# Where the arrays of a call lie.
#
# Typed memoryviews would cost a small call more than all of its arithmetic.

from cpython.buffer cimport (
    PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)

cdef enum:
    DIMENSIONS = 4           # of arrays of small calls

# Shape of an array of at most that many dimensions, and where it lies.
cdef struct Lying:
    void *start
    int ndim
    Py_ssize_t shape[DIMENSIONS]


cdef inline void *address(object array, Py_ssize_t nbytes) except? NULL:
    """Where an array of so many bytes lies, NULL for None; the caller keeps it alive."""
    cdef Py_buffer view
    cdef void *start
    cdef Py_ssize_t found
    if array is None:
        return NULL
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    start, found = view.buf, view.len
    PyBuffer_Release(&view)
    if found != nbytes:
        raise ValueError(f"an array of {found} bytes where the kernel needs {nbytes}")
    return start


cdef inline bint lies(
    Lying *found, object array, object ndarray, object dtype, bint writable
) except -1:
    """Whether this is an ndarray of that type, aligned and contiguous, and where it lies."""
    cdef Py_buffer view
    cdef bint fits
    cdef int k
    if type(array) is not ndarray or array.dtype is not dtype:
        return False
    try:
        PyObject_GetBuffer(array, &view, PyBUF_ND | (PyBUF_WRITABLE if writable else PyBUF_SIMPLE))
    except (ValueError, BufferError):  # not contiguous, or read-only
        return False
    fits = view.ndim <= DIMENSIONS and <size_t>view.buf % <size_t>view.itemsize == 0
    if fits:
        found.start = view.buf
        found.ndim = view.ndim
        for k in range(view.ndim):
            found.shape[k] = view.shape[k]
    PyBuffer_Release(&view)
    return fits


cdef inline bint alike(const Lying *one, const Lying *other) noexcept:
    """Whether two arrays have the same shape."""
    cdef int k
    if one.ndim != other.ndim:
        return False
    for k in range(one.ndim):
        if one.shape[k] != other.shape[k]:
            return False
    return True
