"""fastsnn.accelerate against the SpikingJelly networks that it converts."""

import copy
import pickle
import runpy
import sys

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

import fastsnn
from fastsnn.conversion import _Fused, _Stateful
from fastsnn.cupy_stack import SPIKINGJELLY_PIP

T, B, K, N = 12, 3, 20, 7


class Block(nn.Module):
    """A custom forward: the order of its layers can't be known, so only the neuron is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = layer.Linear(N, N)
        self.node = neuron.LIFNode(tau=3.0, v_reset=None, surrogate_function=surrogate.Sigmoid(alpha=3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.node(self.linear(x)) + x


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Linear(K, N),
        neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan()),
        nn.Sequential(nn.Linear(N, N, bias=False), neuron.LIFNode(tau=1.5, decay_input=False, detach_reset=True)),
        Block(),
        neuron.LIFNode(v_threshold=0.5, v_reset=-0.1, surrogate_function=surrogate.SoftSign()),
    )
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 + 0.8 * torch.randn(parameter.shape))  # most layers fire
    return net


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_outputs_and_gradients_are_the_original_networks(backend: str) -> None:
    original = network()
    converted, report = fastsnn.accelerate(copy.deepcopy(original), backend)
    assert [(row.name, row.outcome) for row in report] == [
        ("1", "fused"),
        ("2.1", "fused"),
        ("3.node", "replaced"),
        ("4", "replaced"),
    ]
    x = (torch.rand(T, B, K) < 0.4).float()
    upstream = torch.randn(T, B, N)
    gradients = []
    for net in (original, converted):
        functional.reset_net(net)
        out = net(x)
        out.backward(upstream)
        gradients.append([out.detach()] + [parameter.grad for parameter in net.parameters()])
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert 0.05 < gradients[0][0].mean() < 0.95
    for expected, found in zip(gradients[0][1:], gradients[1][1:], strict=True):
        assert torch.linalg.norm(expected) > 0
        assert torch.linalg.norm(expected - found) <= 1e-5 * torch.linalg.norm(expected)


def test_state_dict_keys_and_parameter_objects_stay() -> None:
    net = network()
    keys, parameters = list(net.state_dict()), [id(parameter) for parameter in net.parameters()]
    converted, _ = fastsnn.accelerate(net, "torch")
    assert list(converted.state_dict()) == keys
    assert [id(parameter) for parameter in converted.parameters()] == parameters
    converted.load_state_dict(network().state_dict())


def test_the_membrane_potential_carries_over_until_reset() -> None:
    original = network()
    converted, _ = fastsnn.accelerate(copy.deepcopy(original), "torch")
    x = (torch.rand(T, B, K) < 0.4).float()
    with torch.no_grad():
        whole = original(x)
        halves = torch.cat([converted(x[:5]), converted(x[5:])])
        assert torch.equal(whole, halves)
        functional.reset_net(converted)
        assert torch.equal(converted(x), whole)


def test_conversion_in_the_middle_of_a_sequence() -> None:
    """Potentials, and whether the network trains or evaluates, are those of the original."""
    original = network().eval()
    x = (torch.rand(T, B, K) < 0.4).float()
    with torch.no_grad():
        original(x[:5])
        converted, _ = fastsnn.accelerate(copy.deepcopy(original), "torch")
        assert torch.equal(converted(x[5:]), original(x[5:]))
    assert not any(module.training for module in converted.modules())


def test_neurons_in_several_places_are_kept() -> None:
    node, linear = neuron.LIFNode(step_mode="m"), nn.Linear(3, 3)
    net, report = fastsnn.accelerate(nn.Sequential(linear, node, linear, node), "torch")
    assert net[1] is net[3] is node
    assert [(row.name, row.reason) for row in report] == [
        (name, "it stands in 2 places, which share its membrane potential") for name in ("1", "3")
    ]


def test_a_linear_layer_in_several_places_stays_one() -> None:
    linear = nn.Linear(3, 3)
    net = nn.Sequential(linear, neuron.LIFNode(step_mode="m"), linear, neuron.LIFNode(step_mode="m"))
    x = torch.rand(T, B, 3)
    with torch.no_grad():
        linear.weight.copy_(torch.rand(3, 3))
        expected = net(x)
        functional.reset_net(net)
        net, report = fastsnn.accelerate(net, "torch")
        assert torch.equal(net(x), expected)
    assert [(row.name, row.outcome) for row in report] == [("1", "fused"), ("3", "fused")]
    assert net[0].weight is net[2].weight is linear.weight


def test_a_forward_of_its_own_is_not_fused_into() -> None:
    class Skipping(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](x)

    net, (row,) = fastsnn.accelerate(Skipping(nn.Linear(3, 3), neuron.LIFNode(step_mode="m")), "torch")
    assert row.outcome == "replaced"
    assert net(torch.ones(4, 1, 3)).shape == (4, 1, 3)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (neuron.IFNode(step_mode="m"), "IFNode"),
        (neuron.LIFNode(), "step mode"),
        (neuron.LIFNode(step_mode="m", store_v_seq=True), "v_seq"),
        (neuron.LIFNode(step_mode="m", surrogate_function=surrogate.LeakyKReLU()), "LeakyKReLU"),
        (neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan(spiking=False)), "spik"),
    ],
)
def test_what_is_kept_says_why(node: nn.Module, reason: str) -> None:
    net, report = fastsnn.accelerate(nn.Sequential(nn.Linear(2, 2), node))
    assert net[1] is node
    (row,) = report
    assert row.outcome == "kept"
    assert reason in str(row)


def test_a_lone_neuron_is_replaced() -> None:
    net, (row,) = fastsnn.accelerate(neuron.LIFNode(step_mode="m"), "torch")
    assert isinstance(net, _Stateful)
    assert row.outcome == "replaced"
    assert net(torch.ones(4, 2)).shape == (4, 2)


def test_a_linear_layer_with_hooks_is_not_fused() -> None:
    linear = nn.Linear(3, 3)
    linear.register_forward_hook(lambda *_: None)
    net, (row,) = fastsnn.accelerate(nn.Sequential(linear, neuron.LIFNode(step_mode="m")))
    assert row.outcome == "replaced"
    assert net[0] is linear


def test_converted_networks_copy_and_pickle() -> None:
    converted, _ = fastsnn.accelerate(network(), "torch")
    x = (torch.rand(T, B, K) < 0.4).float()
    with torch.no_grad():
        out = converted(x)
        functional.reset_net(converted)
        for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert isinstance(twin[0], _Fused)
            assert torch.equal(twin(x), out)


def test_a_spikingjelly_without_activation_based(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 0.0.0.0.12: the line names the release and what to run."""
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based.base", None)
    monkeypatch.setattr("fastsnn.cupy_stack.installed", lambda name: {name: "0.0.0.0.12"})
    with pytest.raises(ImportError) as refused:
        runpy.run_path(fastsnn.conversion.__file__)
    assert "here is 0.0.0.0.12" in str(refused.value)
    assert str(refused.value).endswith(SPIKINGJELLY_PIP)


@pytest.mark.parametrize("fused", [True, False])
def test_dtypes_are_those_of_the_original_network(fused: bool) -> None:
    """Spikes are fp32 under autocast, and in the network's own dtype else."""
    make = layer.Linear if fused else lambda *sizes: nn.Sequential(layer.Linear(*sizes))
    original = nn.Sequential(make(8, 6), neuron.LIFNode(surrogate_function=surrogate.ATan()))
    functional.set_step_mode(original, "m")
    x = (torch.rand(10, 4, 8) < 0.5).float()
    for dtype, autocast in ((torch.float32, True), (torch.float32, False), (torch.bfloat16, False)):
        network = copy.deepcopy(original).to(dtype)
        accelerated, _ = fastsnn.accelerate(copy.deepcopy(network))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert accelerated(x.to(dtype)).dtype == network(x.to(dtype)).dtype
