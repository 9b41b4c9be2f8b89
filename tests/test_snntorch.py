"""fastsnn.from_snntorch against snnTorch's own loops over time: the same spikes, potentials and gradients."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastsnn

snn = pytest.importorskip("snntorch", reason="needs snnTorch")
surrogate = pytest.importorskip("snntorch.surrogate")
utils = pytest.importorskip("snntorch.utils")

T, B, N = 25, 4, 17
KINDS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.85},
    "Synaptic": {"alpha": 0.6, "beta": 0.8},
    "Lapicque": {"beta": 0.8, "R": 2.0},
    "RLeaky": {"beta": 0.85, "linear_features": N},
    "RSynaptic": {"alpha": 0.6, "beta": 0.8, "linear_features": N},
}


def current(scale: float = 1.0) -> Tensor:
    """Multiples of 1/8, so that sums with what comes back are exact."""
    generator = torch.Generator().manual_seed(2)
    return scale * torch.randint(-4, 12, (T, B, N), generator=generator) / 8


def make(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    node: nn.Module = getattr(snn, kind)(**KINDS[kind] | options)
    with torch.no_grad():
        for parameter in getattr(node, "recurrent", nn.Identity()).parameters():
            parameter.copy_((torch.randn(parameter.shape) * 3).round() / 8)
    return node


def loop(node: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and potentials of snnTorch's own steps."""
    spikes, potentials = [], []
    states = tuple(node.reset_mem()) if "R" in type(node).__name__[:1] or hasattr(node, "syn") else (node.reset_mem(),)
    for step in x:
        spike, *states = node(step, *states)
        if type(node).__name__.startswith("R"):
            states = [spike, *states]
        spikes.append(spike)
        potentials.append(states[-1])
    return torch.stack(spikes), torch.stack(potentials)


def compare(node: nn.Module, x: Tensor, backend: str = "auto") -> None:
    fast = fastsnn.from_snntorch(node, backend)
    node.output = fast.output = True
    outputs, grads = [], []
    upstream = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(3))
    for run in (lambda leaf: loop(node, leaf), fast):
        leaf = x.clone().requires_grad_()
        node.zero_grad()
        spikes, potentials = run(leaf)
        (spikes * upstream[0] + potentials * upstream[1]).sum().backward()
        outputs.append((spikes.detach(), potentials.detach()))
        grads.append([leaf.grad, *(parameter.grad for parameter in node.parameters())])
    (expected, mem), (found, found_mem) = outputs
    assert 0.02 < expected.mean() < 0.98
    assert torch.equal(found, expected)
    torch.testing.assert_close(found_mem, mem, rtol=1e-5, atol=1e-5)
    for wanted, grad in zip(grads[0], grads[1], strict=True):
        assert torch.linalg.norm(grad - wanted) <= 1e-4 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_reset(kind: str, reset: str, reset_delay: bool) -> None:
    backend = "numba" if reset == "subtract" and reset_delay else "torch"  # each step is compiled anew
    if kind == "Lapicque":
        if not reset_delay:
            return  # it has no such option
        compare(make(kind, reset_mechanism=reset), current(), backend)
    elif kind == "RSynaptic" and not reset_delay:
        with pytest.raises(ValueError, match="reset_delay is False"):
            fastsnn.from_snntorch(make(kind, reset_mechanism=reset, reset_delay=False))
    else:
        node = make(kind, reset_mechanism=reset, reset_delay=reset_delay)
        compare(node, current(0.5 if "Syn" in kind else 1.0), backend)


@pytest.mark.parametrize("kind", ["Leaky", "Synaptic"])
def test_learnt_parameters_for_each_neuron(kind: str) -> None:
    vector = torch.linspace(0.3, 0.9, N)
    options = {"beta": vector.clone(), "threshold": vector + 0.5, "learn_beta": True, "learn_threshold": True}
    if kind == "Synaptic":
        options |= {"alpha": vector.flip(0), "learn_alpha": True}
    compare(make(kind, **options), current())


@pytest.mark.parametrize("chosen", [surrogate.atan(3.0), surrogate.sigmoid(10), surrogate.fast_sigmoid(15)])
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_surrogates_keep_their_slope(chosen: Any, backend: str) -> None:
    compare(make("Leaky", spike_grad=chosen), current(), backend)


def test_a_potential_at_the_threshold_does_not_fire() -> None:
    node = make("Leaky", beta=0.5)
    x = torch.tensor([1.0, 1.0, 1.125]).reshape(3, 1, 1)
    spikes = fastsnn.from_snntorch(node)(x)
    assert torch.equal(spikes, loop(node, x)[0])
    assert spikes.flatten().tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", ["Leaky", "RLeaky", "RSynaptic"])
def test_one_to_one_and_networks(kind: str) -> None:
    """A Sequential with hidden states; a linear layer goes with the neurons behind it."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"init_hidden": True}
    back = {"all_to_all": False, "V": 0.5, "linear_features": None} if kind != "Leaky" else {}
    last = snn.Leaky(beta=0.8, init_hidden=True, output=True)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(N, N), make(kind, **options, **back), nn.Sequential(nn.Linear(N, 5), last)
    )
    with torch.no_grad():
        for layer in (net[1], net[3][0]):
            layer.weight.copy_((torch.randn(layer.weight.shape) * 4).round() / 8)
            layer.bias.copy_((torch.randn(layer.bias.shape) * 4).round() / 8)
    x = (current() > 0.5).float()
    utils.reset(net)
    stacked = [net(step) for step in x]
    spikes, potentials = (torch.stack(part) for part in zip(*stacked, strict=True))
    fast = fastsnn.from_snntorch(net)
    assert list(fast.state_dict()) == list(net.state_dict())
    found, found_potentials = fast(x)
    assert 0.02 < spikes.mean() < 0.98
    assert torch.equal(found, spikes)
    torch.testing.assert_close(found_potentials, potentials)
    fast.load_state_dict(net.state_dict())


@pytest.mark.filterwarnings("ignore:Inhibition is an unstable feature:UserWarning")
@pytest.mark.parametrize(
    ("node", "said"),
    [
        (lambda: make("Leaky", inhibition=True), "inhibition is True"),
        (lambda: make("Leaky", graded_spikes_factor=2.0), "graded_spikes_factor is not 1"),
        (lambda: make("Leaky", spike_grad=surrogate.triangular()), "spike_grad is triangular; allowed: surrogate.atan"),
        (lambda: snn.Alpha(alpha=0.9, beta=0.8), "it is a Alpha; allowed: snnTorch's own Leaky"),
        (lambda: type("Leaky", (snn.Leaky,), {})(beta=0.9), "it is a Leaky; allowed: snnTorch's own"),
        (lambda: nn.Linear(2, 2), "net is a Linear; allowed: a neuron of snnTorch"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(node: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fastsnn.from_snntorch(node())


def test_numbers_that_change_later_are_read() -> None:
    fast = fastsnn.from_snntorch(make("Leaky"), "torch")
    other = make("Leaky", beta=0.3, threshold=1.5)
    fast.load_state_dict(other.state_dict())
    expected, _ = loop(other, current())
    assert torch.equal(fast(current()), expected)
    other.beta.fill_(0.6)  # type: ignore[operator, union-attr]
    fast.beta.fill_(0.6)  # type: ignore[operator, union-attr]
    assert torch.equal(fast(current()), loop(other, current())[0])


def test_hooks_of_a_layer_and_its_neuron_are_called() -> None:
    fast = fastsnn.from_snntorch(nn.Sequential(nn.Linear(N, 5), snn.Leaky(0.9, init_hidden=True)), "torch")
    seen: list[Any] = []
    fast[0].register_forward_pre_hook(lambda *_: seen.append("linear"))
    fast[1].register_forward_hook(lambda *_: seen.append("neuron"))
    fast(current())
    assert seen == ["linear", "neuron"]


def test_batch_normalization_takes_the_statistics_of_each_step() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(N, 6), nn.BatchNorm1d(6), snn.Leaky(0.9, init_hidden=True))
    fast = fastsnn.from_snntorch(copy.deepcopy(net), "torch")
    for training in (True, False):
        net.train(training), fast.train(training)
        utils.reset(net)
        expected = torch.stack([net(step) for step in current(3.0)])
        assert 0.02 < expected.mean() < 0.98
        assert torch.equal(fast(current(3.0)), expected)
    torch.testing.assert_close(fast[1].running_var, net[1].running_var)
