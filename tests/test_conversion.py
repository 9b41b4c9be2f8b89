"""fastsnn.accelerate against the SpikingJelly networks that it converts."""

import copy
import pickle
import runpy
import sys
import time

import pytest
import torch
from spikingjelly.activation_based import functional, layer, monitor, neuron, surrogate
from torch import nn

import fastsnn
from fastsnn.cupy_stack import SPIKINGJELLY_PIP

T, B, K, N = 12, 3, 20, 7


class Block(nn.Module):
    """A forward of its own, which torch.fx can trace."""

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
    assert [str(row) for row in report] == [
        "1: fused (with 0)",
        "2.1: fused (with 2.0)",
        "3.node: fused (with 3.linear)",
        "4: replaced",
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


def test_a_neuron_in_several_places_shares_its_potential() -> None:
    node, linear = neuron.LIFNode(step_mode="m"), nn.Linear(3, 3)
    net = nn.Sequential(linear, node, linear, node)
    x = 3 * torch.rand(T, B, 3)
    expected = net(x)
    functional.reset_net(net)
    net, _ = fastsnn.accelerate(net, "torch")
    assert net[1] is net[3] is node
    assert torch.equal(net(x), expected)


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


def made(base: type, **members: object) -> type:
    """A user's subclass of the same name."""
    return type(base.__name__, (base,), members)


OWN_LIF = made(neuron.LIFNode, neuronal_charge=lambda self, x: setattr(self, "v", self.v * 0.25 + x))
OWN_ATAN = made(surrogate.ATan, forward=lambda self, x: surrogate.Sigmoid.spiking_function(x, 4.0))
OWN_LINEAR = made(nn.Linear, forward=lambda self, x: nn.functional.linear(x, self.weight.abs(), self.bias))


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (neuron.QIFNode(step_mode="m"), "it is a QIFNode; allowed: LIFNode, IFNode, ParametricLIFNode"),
        (OWN_LIF(step_mode="m"), "it is a LIFNode with methods of its own"),
        (neuron.LIFNode(step_mode="m", store_v_seq=True), "it stores v_seq"),
        (neuron.LIFNode(step_mode="m", surrogate_function=surrogate.LeakyKReLU()), "its surrogate is LeakyKReLU"),
        (neuron.LIFNode(step_mode="m", surrogate_function=OWN_ATAN()), "its surrogate is ATan; allowed"),
        (neuron.LIFNode(step_mode="m", surrogate_function=surrogate.ATan(spiking=False)), "does not spike"),
    ],
)
def test_what_is_kept_says_why(node: nn.Module, reason: str) -> None:
    cls = type(node)
    net, report = fastsnn.accelerate(nn.Sequential(nn.Linear(2, 2), node))
    assert net[1] is node
    assert type(node) is cls
    assert type(net[0]) is nn.Linear
    (row,) = report
    assert row.outcome == "kept"
    assert reason in str(row)


def test_a_lone_neuron_is_replaced() -> None:
    node = neuron.LIFNode(step_mode="m")
    net, (row,) = fastsnn.accelerate(node, "torch")
    assert net is node
    assert row.outcome == "replaced"
    assert net(torch.ones(4, 2)).shape == (4, 2)


def test_a_linear_layer_of_ones_own_is_not_fused() -> None:
    net, (row,) = fastsnn.accelerate(nn.Sequential(OWN_LINEAR(3, 3), neuron.LIFNode(step_mode="m")))
    assert row.outcome == "replaced"
    assert type(net[0]) is OWN_LINEAR


def test_an_unknown_backend_is_refused_before_anything_changes() -> None:
    net = network()
    classes = [type(module) for module in net.modules()]
    with pytest.raises(ValueError, match=r"backend is 'cuda'; allowed: auto, torch"):
        fastsnn.accelerate(net, "cuda")
    assert [type(module) for module in net.modules()] == classes


def pair(**options: object) -> nn.Sequential:
    """A linear layer and a neuron, in multi-step mode."""
    torch.manual_seed(3)
    net = nn.Sequential(layer.Linear(8, 6), neuron.LIFNode(surrogate_function=surrogate.ATan(), **options))
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5 + 0.2)
    return net


def spikes(*shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def both(net: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network and its accelerated copy."""
    return net, fastsnn.accelerate(copy.deepcopy(net))[0]


def test_attributes_are_live() -> None:
    """A threshold that is set later, an infinite one, a learnt one, reset values, and v after a call."""
    original, fast = both(pair())
    x = spikes(10, 4, 8)
    for change in (
        lambda node: setattr(node, "v_threshold", 2.0),
        lambda node: setattr(node, "tau", 3.5),
        lambda node: setattr(node, "v_reset", None),
        lambda node: setattr(node, "surrogate_function", surrogate.Sigmoid(alpha=2.0)),
        lambda node: node.set_reset_value("v", 0.5),
    ):
        for net in (original, fast):
            change(net[1])
            functional.reset_net(net)
        assert torch.equal(fast(x), original(x))
        torch.testing.assert_close(fast[-1].v, original[-1].v)


def test_a_learnt_threshold_gets_its_gradient() -> None:
    original, fast = both(pair())
    for net in (original, fast):
        del net[1].v_threshold
        net[1].v_threshold = nn.Parameter(torch.tensor(0.8))
        net(spikes(10, 4, 8)).sum().backward()
    torch.testing.assert_close(fast[1].v_threshold.grad, original[1].v_threshold.grad)
    torch.testing.assert_close(fast[0].weight.grad, original[0].weight.grad)


def test_an_infinite_threshold_reads_the_membrane_potential() -> None:
    original, fast = both(pair(v_threshold=float("inf")))
    x = spikes(10, 4, 8)
    original(x), fast(x)
    torch.testing.assert_close(fast[1].v, original[1].v)


def test_single_steps_afterwards() -> None:
    original, fast = both(pair())
    x = spikes(10, 4, 8)
    functional.set_step_mode(fast, "s")
    assert torch.equal(torch.stack([fast(step) for step in x]), original(x))


def test_truncated_backpropagation_as_users_write_it() -> None:
    original, fast = both(pair())
    x = spikes(10, 4, 8)
    grads = []
    for net in (original, fast):
        for half in x.split(5):
            net(half).sum().backward()
            for module in net.modules():
                if isinstance(module, neuron.BaseNode):
                    module.v.detach_()
        grads.append(net[0].weight.grad)
        functional.detach_net(net)
    torch.testing.assert_close(*grads)


def test_monitors_and_hooks_see_what_they_saw() -> None:
    original, fast = both(pair())
    x = spikes(10, 4, 8)
    records = []
    for net in (original, fast):
        watching = (monitor.OutputMonitor(net, neuron.LIFNode), monitor.GradOutputMonitor(net, neuron.LIFNode))
        inputs = monitor.InputMonitor(net, neuron.LIFNode)
        net(x).sum().backward()
        records.append([*watching[0].records, *watching[1].records, *inputs.records])
    assert len(records[0]) == len(records[1]) > 2
    for expected, found in zip(*records, strict=True):
        torch.testing.assert_close(found, expected)


def test_an_output_that_goes_elsewhere_too() -> None:
    """The product is computed when something other than the neuron asks for it."""

    class Wired(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.leave = pair(), False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            current = self.net[0](x)
            return current * 2 if self.leave else self.net[1](current) + current

    original, fast = both(Wired())
    x = spikes(10, 4, 8)
    torch.testing.assert_close(fast(x), original(x))
    original.leave = fast.leave = True
    torch.testing.assert_close(fast(x), original(x))


@pytest.mark.parametrize("shape", [(10, 8), (10, 4, 8), (10, 2, 3, 8)])
def test_any_number_of_axes(shape: tuple[int, ...]) -> None:
    original, fast = both(pair())
    for _ in range(2):  # the potential carries over
        assert torch.equal(fast(spikes(*shape)), original(spikes(*shape)))


def test_another_batch_size_names_reset_net() -> None:
    _, fast = both(pair())
    fast(spikes(10, 4, 8))
    with pytest.raises(ValueError, match=r"call functional\.reset_net"):
        fast(spikes(10, 3, 8))


def test_double_precision() -> None:
    original, fast = both(pair().double())
    x = spikes(10, 4, 8).double()
    assert torch.equal(fast(x), original(x))


def test_what_is_set_later_and_the_kernels_lack_runs_in_the_original_loop(caplog: pytest.LogCaptureFixture) -> None:
    original, fast = both(pair())
    for net in (original, fast):
        net[1].store_v_seq = True
        net(spikes(10, 4, 8))
    torch.testing.assert_close(fast[1].v_seq, original[1].v_seq)
    assert "it stores v_seq" in caplog.text


def test_the_original_loop_of_a_fused_pair_while_it_evaluates() -> None:
    """SpikingJelly's loops are compiled by torch.jit there, and take nothing but plain tensors."""
    original, fast = both(pair().eval())
    x = spikes(10, 4, 8)
    with torch.no_grad():
        for net in (original, fast):
            net[1].store_v_seq = True
        torch.testing.assert_close(fast(x), original(x))
        torch.testing.assert_close(fast[1].v_seq, original[1].v_seq)


def container(inner: bool) -> nn.Module:
    torch.manual_seed(1)
    node = neuron.LIFNode(surrogate_function=surrogate.ATan())
    sub = nn.Sequential(nn.Linear(8, 6), node) if inner else node
    net = layer.LinearRecurrentContainer(sub, 8, 6 if inner else 8, step_mode="m")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return net


@pytest.mark.parametrize("inner", [True, False])
def test_recurrent_containers(inner: bool) -> None:
    original, fast = both(container(inner))
    (row,) = fastsnn.accelerate(container(inner))[1]
    assert row.outcome == "fused"
    x = spikes(20, 4, 8)
    for part in x.split(12):  # the potential and the output carry over
        found, expected = fast(part), original(part)
        assert torch.equal(found, expected)
        assert 0.05 < found.mean() < 0.95
    upstream = torch.randn(found.shape)
    grads = []
    for net in (original, fast):
        functional.reset_net(net)
        net(x[:8]).mul(upstream).sum().backward()
        grads.append([parameter.grad for parameter in net.parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_a_watched_neuron_in_a_recurrent_container_is_seen_at_each_step(caplog: pytest.LogCaptureFixture) -> None:
    original, fast = both(container(inner=True))
    seen = []
    for net in (original, fast):
        outputs = monitor.OutputMonitor(net, neuron.LIFNode)
        net(spikes(20, 4, 8))
        seen.append(outputs.records)
    assert len(seen[0]) == 20
    torch.testing.assert_close(seen[1], seen[0])
    assert "has hooks" in caplog.text


def test_a_recurrent_container_in_double_precision_carries_its_potential() -> None:
    original, fast = both(container(inner=True).double())
    for part in spikes(20, 4, 8).double().split(12):
        assert torch.equal(fast(part), original(part))


@pytest.mark.parametrize("cls", [neuron.IFNode, neuron.ParametricLIFNode])
@pytest.mark.parametrize("v_reset", [0.0, None, -0.2])
def test_other_neurons(cls: type, v_reset: float | None) -> None:
    net = nn.Sequential(nn.Linear(8, 6), cls(v_reset=v_reset, surrogate_function=surrogate.ATan(), step_mode="m"))
    original, fast = both(net)
    x, grads = 3 * torch.rand(10, 4, 8), []
    for one in (original, fast):
        one(x).square().sum().backward()
        grads.append([parameter.grad for parameter in one.parameters()])
    functional.reset_net([original, fast][0]), functional.reset_net(fast)
    assert torch.equal(fast(x), original(x))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-6)


def test_converting_twice_changes_nothing() -> None:
    fast, first = fastsnn.accelerate(network())
    again, second = fastsnn.accelerate(fast)
    assert again is fast
    assert [str(row) for row in first] == [str(row) for row in second]


def test_fifty_layers_are_converted_at_once() -> None:
    layers = [part for _ in range(50) for part in (layer.Linear(8, 8), neuron.LIFNode(step_mode="m"))]
    started = time.process_time()
    fastsnn.accelerate(nn.Sequential(*layers))
    assert time.process_time() - started < 0.1


def test_converted_networks_copy_and_pickle() -> None:
    converted, _ = fastsnn.accelerate(network(), "torch")
    x = (torch.rand(T, B, K) < 0.4).float()
    with torch.no_grad():
        out = converted(x)
        functional.reset_net(converted)
        for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
            assert isinstance(twin[1], neuron.LIFNode)
            assert "accelerated_by" in repr(twin)
            assert torch.equal(twin(x), out)


def test_a_spikingjelly_without_activation_based(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 0.0.0.0.12: the line names the release and what to run."""
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based", None)
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
