# Where the arrays of a call lie.
#
# Typed memoryviews would cost a small call more than all of its arithmetic.

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer


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
