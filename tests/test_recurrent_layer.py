"""Recurrent layers as torch sees them, beside SpikingJelly's and snnTorch's, and what bad input gets."""

from typing import Any

import pytest
import torch
from neuron_cases import DEVICE, OPCHECK, device_of, gradients, leaves
from test_recurrent import layer
from torch import Tensor, nn

import fastsnn
from fastsnn import LI, LIF, backends, verify
from fastsnn.kernels import contract
from fastsnn.kernels.recurrent import recurrent_op
from fastsnn.kernels.segments import NOTHING, STEPS

FUSED = pytest.mark.parametrize("backend", ["triton", "numba"])


@OPCHECK
@FUSED
def test_the_operator_passes_opcheck(backend: str) -> None:
    device = device_of(backend)
    values = {name: value.to(device) for name, value in layer(4, 2, 5, 3, LIF()).items()}
    x, weight, bias, back, v, output = values.values()
    rest = ([], [], 4, False, STEPS, LIF().key, "", backend)
    torch.library.opcheck(recurrent_op, (*leaves(x, weight, bias, back, v[None], output), None, *rest))
    torch.library.opcheck(recurrent_op, (x, weight, None, *leaves(back.diagonal()), None, None, None, *rest))
    silent = ([], [], 4, False, NOTHING, LIF().key, "", backend)
    torch.library.opcheck(recurrent_op, (x > 0, weight, bias, back, None, None, None, *silent))


@FUSED
def test_a_compiled_network(backend: str) -> None:
    """One graph, whose layers hand each other packed spikes, and the same results; the same under autocast."""
    torch.manual_seed(0)
    network = nn.Sequential(
        fastsnn.Recurrent(5, 18, backend=backend, packed=True), fastsnn.Recurrent(18, 3, diagonal=True, backend=backend)
    ).to(device_of(backend))
    for parameter in network.parameters():
        parameter.data *= 3
    x = (torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.5).float().to(device_of(backend))
    grad, results = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(2)).to(x.device), []
    for run in (network, torch.compile(network, backend="aot_eager", fullgraph=True)):
        output = run(x)
        results.append((output, *gradients((output,), list(network.parameters()), grad)))
    assert results[0][0].any()
    contract.require(*(contract.same_bits(str(i), *pair) for i, pair in enumerate(zip(*results, strict=True))))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        assert network(x).dtype == torch.bfloat16


def spikingjelly_layer(x: Tensor, weight: Tensor, back: Tensor, bias: Tensor, options: dict) -> Tensor:
    """``LinearRecurrentContainer(LIFNode)``, whose one Linear holds [W V]."""
    from spikingjelly.activation_based import layer as layers
    from spikingjelly.activation_based import neuron as neurons
    from spikingjelly.activation_based import surrogate

    (N, K), lif = weight.shape, neurons.LIFNode(surrogate_function=surrogate.ATan(), step_mode="s", **options)
    container = layers.LinearRecurrentContainer(lif, K, N, step_mode="m")
    return torch.func.functional_call(container, {"rc.weight": torch.cat([weight, back], 1), "rc.bias": bias}, (x,))


def snntorch_layer(x: Tensor, weight: Tensor, back: Tensor, bias: Tensor) -> Tensor:
    """``RLeaky`` that subtracts its threshold at once, as a LIF neuron of soft reset does."""
    import snntorch
    from snntorch import surrogate

    leaky = snntorch.RLeaky(0.75, linear_features=len(weight), reset_delay=False, spike_grad=surrogate.atan(alpha=2.0))
    spikes, mem = leaky.reset_mem()
    outputs, given = [], {"recurrent.weight": back, "recurrent.bias": bias}
    for current in nn.functional.linear(x, weight):
        spikes, mem = torch.func.functional_call(leaky, given, (current, spikes, mem))
        outputs.append(spikes)
    return torch.stack(outputs)


@FUSED
@pytest.mark.parametrize("library", ["spikingjelly", "spikingjelly-soft", "snntorch"])
def test_other_libraries_compute_the_same(library: str, backend: str) -> None:
    """Exact currents, so that spikes are equal; gradients by C4."""
    options = {"v_reset": None, "detach_reset": True} if library == "spikingjelly-soft" else {}
    neuron = LIF(**options) if library != "snntorch" else LIF(tau=4.0, v_reset=None, decay_input=False)
    values = layer(12, 5, 11, 20, LIF(), dyadic=True)
    if library == "snntorch":
        # RLeaky fires above the threshold only, and resets once more if a potential reaches it twice: here none does.
        values |= {name: values[name] / 8 for name in ("weight", "recurrent_weight")}
        values["bias"] = values["bias"] / 4 + 1 / 1024
    given = [values[name] for name in ("x", "weight", "recurrent_weight", "bias")]
    inputs = leaves(*given)
    theirs = snntorch_layer(*inputs) if library == "snntorch" else spikingjelly_layer(*inputs, options)
    grad = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(3))
    expected = gradients((theirs,), inputs, grad)
    mine = leaves(*(value.to(device_of(backend)) for value in given))
    output, _ = fastsnn.recurrent(*mine, neuron, backend=backend)
    assert 0.05 < theirs.mean() < 0.95
    contract.require(contract.same_bits("output", output, theirs))
    actual = gradients((output,), mine, grad.to(output.device))
    names = ("x", "weight", "recurrent_weight", "bias")
    contract.require(
        *(contract.gradient_error(n, a, e.double(), e) for n, a, e in zip(names, actual, expected, strict=True))
    )


@pytest.mark.parametrize("backend", ["torch", "triton", "numba"])
def test_nan_weights_reach_the_output(backend: str) -> None:
    """A neuron's own in the first step, and then by what comes back all."""
    values = layer(3, 2, 5, 6, LI())
    values["recurrent_weight"][2, 3] = torch.nan
    given = [values[name].to(device_of(backend)) for name in ("x", "weight", "recurrent_weight", "bias")]
    output, _ = fastsnn.recurrent(*given, LI(), backend=backend)
    assert output[0, :, 2].isnan().all()
    assert not output[0, :, :2].isnan().any()
    assert output[1].isnan().all()


def test_bad_input() -> None:
    values = layer(4, 2, 5, 6, LIF())
    x, weight, bias, back, v, output = values.values()

    def refused(message: str, error: type[Exception] = ValueError, **changed: object) -> None:
        given = {"x": x, "weight": weight, "recurrent_weight": back, "bias": bias} | changed
        with pytest.raises(error, match=message):
            fastsnn.recurrent(**given)  # type: ignore[arg-type]

    refused(r"weight has shape \[6, 4\]; allowed: \[N, 5\] for x \[4, 2, 5\]", weight=weight[:, 1:])
    refused(
        r"recurrent_weight has shape \[6, 5\]; allowed: \[6, 6\] or \[6\] for weight \[6, 5\]",
        recurrent_weight=back[:, 1:],
    )
    refused("recurrent_weight has shape", recurrent_weight=back[:5, :5])
    refused("recurrent_weight has dtype float64", TypeError, recurrent_weight=back.double())
    refused(r"state 'v' has shape \[3, 6\]; allowed: \[2, 6\]", state={"v": torch.zeros(3, 6), "output": output})
    refused(r"state 'output' has shape \[1, 6\]; allowed: \[2, 6\]", state={"v": v, "output": output[:1]})
    refused("state lacks 'output'; allowed: all of v, output", state={"v": v})
    refused("packed is True, but LI gives potentials", neuron=LI(), packed=True)


def test_triton_declines_large_layers() -> None:
    """By name with what to do; ``auto`` passes it over. A diagonal has no limit."""
    x, weight, back = torch.zeros(1, 1, 1), torch.zeros(1025, 1), torch.zeros(1025, 1025)
    message = "a recurrent layer of 1025 neurons; its kernels take at most 1024; allowed here: torch"
    with pytest.raises(ValueError, match=message):
        fastsnn.recurrent(x.to(DEVICE), weight.to(DEVICE), back.to(DEVICE), backend="triton")
    triton = backends.load("triton")
    assert triton.neuron_refusal(LIF(), torch.float32, False, "recurrent", 1024) is None
    assert (
        triton.neuron_refusal(LIF(), torch.float64, False, "recurrent", 5)
        == "its kernels compute in fp32, not in float64"
    )
    output, _ = fastsnn.recurrent(x.to(DEVICE), weight.to(DEVICE), back[0].to(DEVICE), backend="triton")
    assert not output.any()


def test_auto_passes_over_triton_for_large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "refusal", lambda name, device: None)
    chosen, passed_over = backends.choose(torch.device("cuda"), operation="recurrent", size=2000)
    assert chosen == "torch"
    assert passed_over[0] == "not triton, a recurrent layer of 2000 neurons; its kernels take at most 1024"
    assert backends.choose(torch.device("cuda"), operation="recurrent", size=1000)[0] == "triton"


@pytest.mark.parametrize("fault", ["transposed", "forgetful", "detached"])
def test_verify_finds_broken_kernels(fault: str) -> None:
    """V transposed, no first output, or a gradient that does not go back through what comes back."""

    class Broken(backends.NumbaBackend):
        def recurrent(self, x: Any, weight: Any, back: Tensor, bias: Any, neuron: Any, state: Any, initial: Any,
                      *rest: Any) -> Any:  # fmt: skip
            if fault == "transposed":
                back = back.mT
            initial = None if fault == "forgetful" else initial
            output, last = super().recurrent(x, weight, back, bias, neuron, state, initial, *rest)
            if fault == "detached":
                first = torch.zeros_like(output[:1]) if initial is None else initial[None]
                current = nn.functional.linear(x, weight, bias)
                current = current + torch.cat([first, output[:-1]]).detach() @ back.T
                return super().scan(current, neuron, state, *rest[:1])
            return output, last

    target = verify.Target(Broken(), torch.device("cpu"), "cpu")
    (row,) = verify.check(target, [verify.CASES[name] for name in ("recurrent-exact", "recurrent-random")])
    assert {failure.case for failure in row.failures} == {"recurrent-exact", "recurrent-random"}
    assert ("gradient of" if fault == "detached" else "spikes") in row.failures[1].message
