"""The kernels for the CPU, in Numba: ``philox`` (spikes), and the operations ``scan``, ``linear`` and ``recurrent``.

Functions are compiled when they are first called, for this machine's instruction set, and their machine code is kept on
disk (``cache.py``) beside the source or in the user's cache folder; where neither can be written each process compiles
anew.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
from numba.core import event

from fastsnn.kernels.numba.cache import DiskCache

if numba.config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set; allowed: 0 or unset, as fastsnn's CPU kernels exist compiled only")


def jit(
    function: Callable[..., Any] | None = None, *, entry: bool = False, inline: str = "never", pointer: bool = False
) -> Any:
    """``numba.njit`` without the GIL, cached on disk where possible. Only an ``entry`` can be called from Python.

    ``pointer`` is for :func:`address_of`.
    """
    if function is None:
        return lambda f: jit(f, entry=entry, inline=inline, pointer=pointer)
    kernel = numba.njit(
        inline=inline,
        nogil=True,
        error_model="numpy",
        no_cpython_wrapper=not entry,
        no_cfunc_wrapper=not pointer,
    )(function)
    kernel._cache = DiskCache(function)
    return kernel


def address_of(dispatcher: Any, signature: Any) -> int:
    """Where the machine code of a ``pointer`` function for ``signature`` is, as a C function without the GIL."""
    dispatcher.compile(signature)
    compiled = dispatcher.overloads[signature.args]
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


@contextmanager
def before_compiling(announce: Callable[[], None]) -> Iterator[None]:
    """Call ``announce`` once, before the first function that this block compiles (and finds in no cache)."""

    class Listener(event.Listener):
        announced = False

        def on_start(self, event: event.Event) -> None:
            if not self.announced:
                self.announced = True
                announce()

        def on_end(self, event: event.Event) -> None:
            pass

    with event.install_listener("numba:compile", Listener()):
        yield
