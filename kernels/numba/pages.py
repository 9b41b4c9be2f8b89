"""Large pages for large new tensors: the kernel fills one of 2 MB much faster than 512 of 4 kB."""

import ctypes
import sys

from torch import Tensor

LARGE = 1 << 22
"""Bytes from which it is worth a system call: NumPy asks for its own arrays from there on."""
PAGE = 1 << 12
MADV_HUGEPAGE = 14

_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def use_large_pages(*tensors: Tensor | None) -> None:
    """Ask Linux for large pages where the tensors' memory is new. It is advice: nothing depends on the answer."""
    for tensor in tensors:
        if _madvise is None or tensor is None or tensor.nbytes < LARGE:
            continue
        first, last = -(-tensor.data_ptr() // PAGE) * PAGE, (tensor.data_ptr() + tensor.nbytes) // PAGE * PAGE
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_HUGEPAGE)
