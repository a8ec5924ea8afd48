"""Arrays between two pages that may not be touched: an access out of bounds ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

_libc = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE


def guarded(a: np.ndarray, at_end: bool = True) -> np.ndarray:
    """A copy of an array that ends where a page without access begins, or begins behind one."""
    pages = max(-(-a.nbytes // _PAGE), 1)
    room = mmap.mmap(-1, (pages + 2) * _PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for page in (address, address + (pages + 1) * _PAGE):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    start = _PAGE + (pages * _PAGE - a.nbytes if at_end else 0)
    b = np.frombuffer(room, np.uint8, a.nbytes, start).view(a.dtype).reshape(a.shape)
    b[...] = a
    return b
