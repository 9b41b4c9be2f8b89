"""Each neuron against the code or the equations of its source: spikes equal, gradients as C4 asks.

The oracles run in float64 where their package can, step by step, with a surrogate of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from neuron_cases import device_of, leaves
from torch import Tensor

import fastsnn
from fastsnn import ALIF, IF, LI, LIF, PLIF, AdLIF, CuBaLIF, Neuron, SEAdLIF
from fastsnn.kernels import contract
from fastsnn.kernels.neurons import NEURONS

T, SHAPE = 40, (7, 9)
Parameters = Mapping[str, Tensor]
Oracle = Callable[[Tensor, Neuron, Parameters], Tensor]


def spikingjelly(current: Tensor, neuron: Neuron, parameters: Parameters) -> Tensor:
    """``IFNode``, ``LIFNode`` and ``ParametricLIFNode``, whose w is one number."""
    from spikingjelly.activation_based import neuron as nodes
    from spikingjelly.activation_based import surrogate

    assert isinstance(neuron, IF | LIF)
    options = {"v_threshold": neuron.v_threshold, "v_reset": neuron.v_reset, "detach_reset": neuron.detach_reset}
    options |= {"surrogate_function": surrogate.ATan(), "step_mode": "m"}
    if isinstance(neuron, IF):
        return nodes.IFNode(**options)(current)
    options |= {"decay_input": neuron.decay_input}
    if not isinstance(neuron, PLIF):
        return nodes.LIFNode(tau=neuron.tau, **options)(current)
    node = nodes.ParametricLIFNode(init_tau=neuron.tau, **options)
    del node.w
    node.w = parameters["w"]
    return node(current)


def snntorch(current: Tensor, neuron: Neuron, parameters: Parameters) -> Tensor:
    """``Synaptic`` that resets at once."""
    import snntorch as package

    assert isinstance(neuron, CuBaLIF)
    mechanism = "subtract" if neuron.v_reset is None else "zero"
    grad = package.surrogate.atan(alpha=2.0)
    node = package.Synaptic(
        parameters.get("syn_decay", neuron.syn_decay), parameters.get("mem_decay", neuron.mem_decay),
        reset_delay=False, reset_mechanism=mechanism, spike_grad=grad,
    )  # fmt: skip
    syn, mem = (torch.zeros_like(current[0]) for _ in range(2))
    outputs = []
    for x in current:
        spikes, syn, mem = node(x, syn, mem)
        outputs.append(spikes)
    return torch.stack(outputs)


def norse(current: Tensor, neuron: Neuron, parameters: Parameters) -> Tensor:
    """``lif_box``, whose surrogate takes alpha for 1, and ``li`` whose synaptic current lasts for one step."""
    from norse.torch.functional import leaky_integrator, lif_box

    del parameters
    assert isinstance(neuron, LIF | LI)
    rate, zeros, outputs = torch.tensor(1000 / neuron.tau).to(current), torch.zeros_like(current[0]), []
    if isinstance(neuron, LI):
        state = leaky_integrator.LIState(zeros, zeros)
        p = leaky_integrator.LIParameters(tau_mem_inv=rate, tau_syn_inv=torch.tensor(1000.0).to(current))
        for x in current:
            output, state = leaky_integrator.li_feed_forward_step(x, state, p)
            outputs.append(output)
        return torch.stack(outputs)
    box = lif_box.LIFBoxFeedForwardState(zeros)
    q = lif_box.LIFBoxParameters(tau_mem_inv=rate, alpha=torch.tensor(neuron.alpha))
    for x in current:
        output, box = lif_box.lif_box_feed_forward_step(x, box, q)
        outputs.append(output)
    return torch.stack(outputs)


class Atan(torch.autograd.Function):
    """A spike with the derivative 1 / (1 + (pi x)^2)."""

    @staticmethod
    def forward(ctx, distance):
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance.dtype)

    @staticmethod
    def backward(ctx, grad):
        (distance,) = ctx.saved_tensors
        return grad / (1 + (torch.pi * distance) ** 2)


def papers(current: Tensor, neuron: Neuron, parameters: Parameters) -> Tensor:
    """The adaptive neurons as their papers write them."""
    p = {name: torch.tensor(value, dtype=current.dtype) for name, value in neuron.parameters().items()} | parameters
    u, w, s = (torch.zeros_like(current[0]) for _ in range(3))
    outputs = []
    if isinstance(neuron, ALIF):
        # Yin et al. 2021: the threshold of a step is that of the spikes before it.
        alpha, rho = torch.exp(-1 / p["tau"]), torch.exp(-1 / p["tau_adp"])
        for x in current:
            w = rho * w + (1 - rho) * s
            threshold = p["v_threshold"] + p["beta"] * w
            u = alpha * u + (1 - alpha) * x - threshold * s
            s = Atan.apply(u - threshold)
            outputs.append(s)
        return torch.stack(outputs)
    alpha, beta = torch.exp(-1 / p["tau"]), torch.exp(-1 / p["tau_w"])
    for x in current:
        if isinstance(neuron, SEAdLIF):
            # Baronig et al. 2024: the adaptation follows the potential of the same step.
            u_hat = alpha * u + (1 - alpha) * (x - w)
            s = Atan.apply(u_hat - p["v_threshold"])
            u = u_hat * (1 - s)
            w = beta * w + (1 - beta) * (p["a"] * u + p["b"] * s)
        else:
            # Bittar & Garner 2022: u and s on the right are those of the step before.
            w = beta * w + p["a"] * u + p["b"] * s
            u = alpha * (u - s) + (1 - alpha) * (x - w)
            s = Atan.apply(u - p["v_threshold"])
        outputs.append(s)
    return torch.stack(outputs)


CASES: dict[str, tuple[Neuron, Oracle, tuple[str, ...]]] = {
    "if": (IF(), spikingjelly, ()),
    "if-soft": (IF(v_reset=None), spikingjelly, ()),
    "lif": (LIF(tau=3.0), spikingjelly, ()),
    "lif-norse": (LIF(tau=3.0, surrogate="fast_sigmoid", alpha=1.0), norse, ()),
    "li-norse": (LI(tau=5.0), norse, ()),
    "plif": (PLIF(tau=3.0), spikingjelly, ("w",)),
    "plif-soft": (PLIF(tau=3.0, v_reset=None, decay_input=False), spikingjelly, ("w",)),
    "plif-rest": (PLIF(tau=3.0, v_reset=-0.25, detach_reset=True), spikingjelly, ("w",)),
    "cuba": (CuBaLIF(), snntorch, ("syn_decay", "mem_decay")),
    "cuba-hard": (CuBaLIF(v_reset=0.0), snntorch, ("syn_decay", "mem_decay")),
    "adlif": (AdLIF(tau=5.0, tau_w=30.0), papers, ("tau", "tau_w", "a", "b")),
    "se-adlif": (SEAdLIF(tau=5.0, tau_w=30.0), papers, ("tau", "tau_w", "a", "b")),
    "alif": (ALIF(tau=5.0, tau_adp=40.0, v_threshold=0.5), papers, ("tau", "tau_adp")),
}
FACTOR = {"cuba": 0.15, "cuba-hard": 0.15, "adlif": 4.0, "se-adlif": 4.0, "alif": 2.0}
"""Of the currents, so that a part of the neurons fires."""


def test_every_neuron_has_a_case() -> None:
    assert {type(neuron) for neuron, *_ in CASES.values()} == set(NEURONS.values())


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
@pytest.mark.parametrize("name", CASES)
def test_same_as_the_source(name: str, backend: str) -> None:
    neuron, oracle, learnt = CASES[name]
    generator = torch.Generator().manual_seed(11)
    current = (torch.randn(T, *SHAPE, generator=generator) + 0.6) * FACTOR.get(name, 1.0)
    values = [torch.tensor(neuron.parameters()[parameter]) for parameter in learnt]
    exact, eager = (leaves(*(t.to(dtype) for t in (current, *values))) for dtype in (torch.float64, torch.float32))
    expected, rounded = (oracle(x, neuron, dict(zip(learnt, p, strict=True))) for x, *p in (exact, eager))
    mine = leaves(*(tensor.to(device_of(backend)) for tensor in (current, *values)))
    output, _ = fastsnn.scan(mine[0], neuron, parameters=dict(zip(learnt, mine[1:], strict=True)), backend=backend)
    if neuron.spikes:
        assert 0.03 < output.mean() < 0.6
        contract.require(contract.same_bits("spikes", output, expected.float()))
    else:
        contract.require(contract.gradient_error("potentials", output.detach(), expected.detach()))
    grad = torch.randn(output.shape, generator=generator)
    wanted, theirs, found = (
        torch.autograd.grad(out, inputs, grad.to(out))
        for out, inputs in ((expected, exact), (rounded, eager), (output, mine))
    )
    names = ("current", *learnt)
    contract.require(*(contract.gradient_error(*row) for row in zip(names, found, wanted, theirs, strict=True)))


def test_a_read_out_is_a_lif_that_never_fires() -> None:
    current = torch.randn(T, *SHAPE)
    _, state = fastsnn.scan(current, LIF(tau=5.0, v_threshold=float("inf")))
    potential, _ = fastsnn.scan(current, LI(tau=5.0))
    assert torch.equal(state["v"], potential[-1])
    assert replace(LIF(tau=5.0), v_threshold=float("inf")).spikes is False
