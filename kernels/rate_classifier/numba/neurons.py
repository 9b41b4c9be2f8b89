"""The neurons of one sample, compiled apart from the kernel that trains and called by it through a pointer.

So the kernel, whose compilation takes seconds, serves every neuron of one state. Membrane means the memory [T, columns]
that holds currents, then what a step keeps for backward, then the gradient of the currents.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numba import carray, types

from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.numba import address_of, jit
from fastsnn.kernels.numba.bits import LANES
from fastsnn.kernels.numba.program import step, step_back

FLOATS = types.CPointer(types.float32)
SIGNATURE = types.void(FLOATS, types.int64, types.int64, FLOATS, FLOATS, FLOATS, types.int64)
"""membrane [T * columns], T, columns, state or its gradient [columns], spikes or their gradient [columns], scalars."""


class NativeFunction(types.WrapperAddressProtocol):
    """A compiled function as a value that kernels take: whichever it is, the kernel is the same."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher, self._address = dispatcher, address_of(dispatcher, SIGNATURE)

    def __wrapper_address__(self) -> int:
        return self._address

    def signature(self) -> Any:
        return SIGNATURE


@lru_cache
def sample_functions(neuron: Neuron) -> tuple[NativeFunction, NativeFunction]:
    """Forward and backward through the T steps of one sample."""
    compiled = compile_neuron(neuron)
    return NativeFunction(_forward(compiled.forward)), NativeFunction(_backward(compiled.backward))


def scalars(neuron: Neuron) -> tuple[Any, Any]:
    """The scalars of both, float32."""
    compiled = compile_neuron(neuron)
    return tuple(np.array(compiled.constants({}, backward)[0] or (0.0,), np.float32) for backward in (False, True))  # type: ignore[return-value]


def _forward(program: Any) -> Callable[..., None]:
    @jit(pointer=True)
    def forward(membrane_ptr, T, columns, state_ptr, counts_ptr, scalars_ptr, count):
        """Currents become what is kept; the state starts as it is given; counts of spikes are added up."""
        membrane = carray(membrane_ptr, (1, T * columns))
        kept, state = carray(membrane_ptr, (1, 1, T * columns)), carray(state_ptr, (1, columns))
        counts, constants = carray(counts_ptr, (columns,)), carray(scalars_ptr, (count,))
        spikes, rows = np.empty((1, columns), np.float32), np.empty((0, columns), np.float32)
        for column in range(0, columns, LANES):
            block, fired = counts[column : column + LANES], spikes[0, column : column + LANES]
            for t in range(T):
                here = t * columns + column
                places = (here, column, column, here, column)
                step(program, membrane, state, spikes, kept, constants, rows, places, None)
                for i in range(LANES):
                    block[i] += fired[i]

    return forward  # type: ignore[no-any-return]


def _backward(program: Any) -> Callable[..., None]:
    @jit(pointer=True)
    def backward(membrane_ptr, T, columns, grad_state_ptr, grad_spike_ptr, scalars_ptr, count):
        """What was kept becomes the gradient of the currents, from that of every spike of a neuron."""
        membrane, kept = carray(membrane_ptr, (1, T * columns)), carray(membrane_ptr, (1, 1, T * columns))
        grad_state, grad_spike = carray(grad_state_ptr, (1, columns)), carray(grad_spike_ptr, (1, columns))
        constants, rows = carray(scalars_ptr, (count,)), np.empty((0, columns), np.float32)
        for column in range(0, columns, LANES):
            for t in range(T - 1, -1, -1):
                here = t * columns + column
                places = (here, column, column, here, column)
                step_back(program, kept, grad_spike, grad_state, membrane, rows, constants, rows, places, None)

    return backward  # type: ignore[no-any-return]
