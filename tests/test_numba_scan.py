"""What is Numba's alone in scans and linear layers: threads, what the kernels keep, refusals, graphs.

The contract: ``test_scan.py`` and ``test_linear.py``.
"""

import numba
import numpy as np
import pytest
import torch
from neuron_cases import OPCHECK, case, gradients, kept_potentials, leaves, linear_case
from torch import Tensor

from fastsnn import LIF
from fastsnn.kernels import contract
from fastsnn.kernels.linear import linear, linear_op
from fastsnn.kernels.neurons.program import compile_neuron
from fastsnn.kernels.numba import jit
from fastsnn.kernels.numba import scan as numba_scan
from fastsnn.kernels.numba.scan_kernels import BLOCK, forward_block
from fastsnn.kernels.scan import scan
from fastsnn.kernels.segments import NOTHING, STEPS


@jit(entry=True)
def keep(program, current, state, kept, scalars, rows):  # type: ignore[no-untyped-def]
    """The forward pass as backward makes it again."""
    forward_block(program, current, state, None, kept, scalars, rows, 0, current.shape[1])


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.3])
def test_backward_makes_the_potentials_again(v_reset: float | None, decay_input: bool) -> None:
    """Bit for bit, for neurons of whole vectors and for those that remain."""
    current, v, *_ = case(13, 53)
    neuron = LIF(v_reset=v_reset, decay_input=decay_input)
    prepared = compile_neuron(neuron)
    kept = np.full((prepared.kept, 13, BLOCK), np.nan, np.float32)
    state = numba_scan.initial_state(prepared, v[None], v.shape)
    constants = numba_scan.constants(prepared, {}, v.shape)
    keep(prepared.forward, current.numpy(), state.numpy(), kept, *constants)
    found = torch.from_numpy(kept[0, :, :53].copy())
    contract.require(contract.same_bits("kept", found, kept_potentials(neuron, current, v)))


@pytest.mark.parametrize("n", [501, 4 * BLOCK + 5])
def test_the_number_of_threads_changes_nothing(n: int) -> None:
    """Few neurons, of which one thread takes all, and blocks that are cut in other places."""
    current, v, *upstream = case(23, 3, n)
    results = []
    threads = numba.get_num_threads()
    try:
        for count in (threads, 1):
            numba.set_num_threads(count)
            inputs = leaves(current, v[None])
            spikes, final = scan(inputs[0], LIF(), inputs[1], {}, "numba")
            results.append((spikes, final, *gradients((spikes, final[0]), inputs, *upstream)))
    finally:
        numba.set_num_threads(threads)
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))


@OPCHECK
def test_the_operator_of_linear_passes_opcheck() -> None:
    x, weight, bias, v, *_ = linear_case(4, 2, 5, 3)
    soft, hard = LIF(v_reset=None).key, LIF().key
    rest = ([], [], 4, False, STEPS, "auto")
    torch.library.opcheck(linear_op, (*leaves(x, weight, bias), None, None, *rest, soft, "", "numba"))
    torch.library.opcheck(linear_op, (x, *leaves(weight), None, v[None], None, *rest, hard, "", "numba"))
    silent = (*rest[:-2], NOTHING, "auto")
    torch.library.opcheck(linear_op, (x, weight, bias, v[None], None, *silent, soft, "", "numba"))


def test_a_compiled_graph_holds_both_operators() -> None:
    x, weight, bias, v, *upstream = linear_case(19, 3, 41, 7)
    neuron = LIF()

    def network(x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        spikes, _ = scan(x * 2, neuron, None, {}, "numba")
        output, final = linear(spikes, weight, bias, neuron, state, {}, "numba")
        return output, final[0]  # type: ignore[return-value]

    results = []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        inputs = leaves(x, weight, bias, v[None])
        outputs = run(*inputs)
        results.append((*outputs, *gradients(outputs, inputs, *upstream)))
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))
