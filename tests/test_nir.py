"""NIR: graphs mean what their equations say under forward Euler, and round trips keep every spike.

The oracle is a simulation of the graph's own parameters, step by step in NumPy. Norse and snnTorch read and write too.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_tools import Command, arguments, assert_refused
from torch import nn

import fastsnn
from fastsnn import IF, LI, LIF, PLIF, CuBaLIF, LinearLIF, Recurrent, Spiking, TimeDistributed
from fastsnn.networks import SpatialSpiking
from fastsnn.nir import Scale, Threshold

nir = pytest.importorskip("nir", reason="needs the extra nir")

T, B, K, N = 30, 5, 12, 9
DT = 1e-4
NEURONS = {
    "if": IF(),
    "if-rest": IF(v_reset=-0.25),
    "lif": LIF(tau=3.0),
    "lif-rest": LIF(tau=2.7, v_reset=-0.25, v_threshold=0.8),
    "lif-whole": LIF(tau=5.0, decay_input=False),
    "cuba": CuBaLIF(syn_decay=0.7, mem_decay=0.85, v_reset=0.0),
    "li": LI(tau=7.0),
    "li-whole": LI(tau=7.0, decay_input=False),
    "threshold": Threshold(0.3),
}


def simulated(node: Any, current: np.ndarray, dt: float = DT) -> np.ndarray:
    """The equations of a node under forward Euler, in float64: [T, B, ...] -> [T, B, ...]."""
    if isinstance(node, nir.Threshold):
        return (current > node.threshold).astype(float)
    v = np.zeros_like(current[0]) + getattr(node, "v_reset", 0.0)
    i = np.zeros_like(v)
    outputs = []
    for x in current:
        if isinstance(node, nir.IF):
            v = v + dt * node.r * x
        elif isinstance(node, nir.CubaLIF):
            i = i + dt / node.tau_syn * (node.w_in * x - i)
            v = v + dt / node.tau_mem * (node.v_leak - v + node.r * i)
        else:
            v = v + dt / node.tau * (node.v_leak - v + node.r * x)
        if isinstance(node, nir.LI):
            outputs.append(v)
            continue
        s = v > node.v_threshold
        v = np.where(s, node.v_reset, v)
        outputs.append(s.astype(float))
    return np.stack(outputs)


def currents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(T, B, *shape, generator=torch.Generator().manual_seed(seed)) + 0.4


def through_a_file(graph: Any, tmp_path: Path) -> Any:
    nir.write(tmp_path / "model.nir", graph)
    return nir.read(tmp_path / "model.nir")


@pytest.mark.parametrize("name", NEURONS)
def test_a_neuron_means_its_equation(name: str, tmp_path: Path) -> None:
    layer, x = Spiking(NEURONS[name], backend="torch"), currents(N)
    graph = through_a_file(fastsnn.to_nir(layer, (N,)), tmp_path)
    (node,) = (node for node in graph.nodes.values() if not isinstance(node, (nir.Input, nir.Output)))
    expected = torch.from_numpy(simulated(node, x.double().numpy())).float()
    output = layer(x)
    if NEURONS[name].spikes:
        assert 0.02 < output.mean() < 0.9
        assert torch.equal(output, expected)
    else:
        torch.testing.assert_close(output, expected)
    back = fastsnn.from_nir(graph, backend="torch")
    assert torch.equal(back(x), output)
    (again,) = back
    assert again.neuron == NEURONS[name]


def test_a_potential_at_the_threshold_fires_on_both_sides(tmp_path: Path) -> None:
    layer = Spiking(IF(v_threshold=1.0), backend="torch")
    graph = through_a_file(fastsnn.to_nir(layer, (1,), dt=1.0), tmp_path)
    x = torch.ones(3, 1, 1)
    assert layer(x).all()
    assert simulated(graph.nodes["layer"], x.numpy(), 1.0).all()
    graph.nodes["layer"].v_threshold = np.ones(1)  # NIR: above 1
    assert fastsnn.from_nir(graph)(x).flatten().tolist() == [0, 1, 0]


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    torch.manual_seed(1)
    neuron = LIF(tau=2.0, v_threshold=0.3)
    cuba = CuBaLIF(v_reset=0.0, v_threshold=1.0)
    convolution = nn.Conv2d(2, 4, 3, padding=1, stride=2)
    return {
        "linear": (nn.Sequential(LinearLIF(K, N, neuron=neuron), LinearLIF(N, 4, False, neuron)), (K,)),
        "read-out": (nn.Sequential(LinearLIF(K, N, neuron=neuron), nn.Dropout(), nn.Linear(N, 3), Spiking(LI())), (K,)),
        "recurrent": (nn.Sequential(Recurrent(K, N, neuron), Recurrent(N, 4, cuba, diagonal=True)), (K,)),
        "learnt": (
            nn.Sequential(
                LinearLIF(K, N, neuron=neuron, learn=("tau", "v_threshold"), size=(N,)),
                LinearLIF(N, 4, neuron=neuron),
            ),
            (K,),
        ),
        "convolution": (
            nn.Sequential(
                TimeDistributed(convolution), SpatialSpiking(neuron), TimeDistributed(nn.AvgPool2d(2)),
                TimeDistributed(nn.Conv2d(4, 4, 3, padding="same", bias=False)), SpatialSpiking(IF(0.2)),
                TimeDistributed(nn.AvgPool2d(2, 1, 1, divisor_override=1)), nn.Flatten(2),
                LinearLIF(4 * 3 * 3, 3, neuron=neuron),
            ),
            (2, 8, 8),
        ),
        "scale": (nn.Sequential(Scale(torch.tensor(0.7)), Spiking(LIF(v_threshold=0.3))), (K,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["linear", "read-out", "recurrent", "learnt", "convolution", "scale"])
@pytest.mark.parametrize("dt", [DT, 0.003])
def test_a_round_trip_keeps_every_spike(name: str, dt: float, tmp_path: Path) -> None:
    net, shape = networks()[name]
    if name == "learnt":
        with torch.no_grad():
            net[0].tau.copy_(torch.linspace(1.3, 6, N))
            net[0].v_threshold.copy_(torch.linspace(0.2, 0.5, N))
    x = currents(*shape)
    output = net.eval()(x)
    back = fastsnn.from_nir(through_a_file(fastsnn.to_nir(net, shape, dt=dt), tmp_path)).eval()
    assert output.std() > 0.01
    again = fastsnn.from_nir(fastsnn.to_nir(back, shape, dt=dt)).eval()
    for found in (back(x), again(x)):
        if name == "read-out":  # of potentials, whose linear layer sums in another order
            torch.testing.assert_close(found, output)
        else:
            assert torch.equal(found, output)


def test_a_plif_is_written_as_the_lif_that_it_became(tmp_path: Path) -> None:
    layer = Spiking(PLIF(tau=3.0))
    with torch.no_grad():
        layer.w.fill_(0.5)
    node = fastsnn.to_nir(layer, (N,)).nodes["layer"]
    np.testing.assert_allclose(node.tau, DT / torch.tensor(0.5).sigmoid().item(), rtol=1e-6)


def graph_of(*nodes: Any) -> Any:
    return nir.NIRGraph.from_list(*nodes)


ONE = np.ones(N)


@pytest.mark.parametrize(
    "node",
    [
        nir.LIF(tau=ONE * 5e-4, r=ONE * 2.5, v_leak=0 * ONE, v_threshold=ONE * 0.7),
        nir.LIF(tau=np.linspace(2e-4, 9e-4, N), r=ONE, v_leak=0 * ONE, v_threshold=np.linspace(0.1, 0.5, N)),
        nir.CubaLIF(tau_syn=ONE * 4e-4, tau_mem=ONE * 6e-4, r=ONE * 3, v_leak=0 * ONE, v_threshold=ONE, w_in=ONE * 2),
        nir.IF(r=ONE * 7000, v_threshold=ONE),
    ],
    ids=["r", "per neuron", "cuba", "if"],
)
def test_parameters_of_others_mean_their_equation(node: Any) -> None:
    x = currents(N)
    output = fastsnn.from_nir(graph_of(node))(x)
    assert 0.02 < output.mean() < 0.9
    assert torch.equal(output, torch.from_numpy(simulated(node, x.double().numpy())).float())


@pytest.mark.parametrize("nested", [False, True])
def test_a_recurrent_graph_means_its_equation(nested: bool) -> None:
    rng = np.random.default_rng(0)
    forward, back = rng.normal(size=(N, K)), rng.normal(size=(N, N)) * 0.5
    neuron = nir.CubaLIF(tau_syn=ONE * 4e-4, tau_mem=ONE * 6e-4, r=ONE * 3, v_leak=0 * ONE, v_threshold=ONE)
    parts = {"in": nir.Input([N]), "n": neuron, "w": nir.Affine(back, ONE * 0.1), "out": nir.Output([N])}
    edges = [("in", "n"), ("n", "w"), ("w", "n"), ("n", "out")]
    first = {"input": nir.Input([K]), "fc": nir.Linear(forward)}
    if nested:
        nodes = {**first, "rnn": nir.NIRGraph(parts, edges), "output": nir.Output([N])}
        graph = nir.NIRGraph(nodes, [("input", "fc"), ("fc", "rnn"), ("rnn", "output")])
    else:
        nodes = {**first, "n": neuron, "w": parts["w"], "output": nir.Output([N])}
        graph = nir.NIRGraph(nodes, [("input", "fc"), ("fc", "n"), ("n", "w"), ("w", "n"), ("n", "output")])
    x = currents(K)
    v, i, s = (np.zeros((B, N)) for _ in range(3))
    expected = []
    for row in x.double().numpy():
        i = i + DT / 4e-4 * (row @ forward.T + s @ back.T + 0.1 - i)
        v = v + DT / 6e-4 * (3 * i - v)
        s = (v > 1).astype(float)
        v = v * (1 - s)
        expected.append(s)
    output = fastsnn.from_nir(graph)(x)
    assert 0.02 < output.mean() < 0.9
    assert torch.equal(output, torch.from_numpy(np.stack(expected)).float())


def module(net: nn.Module, shape: tuple[int, ...] | None = (K,)) -> Callable[[], Any]:
    return lambda: fastsnn.to_nir(net, shape)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (module(nn.Sequential(LinearLIF(K, N, neuron=LIF(v_reset=None)))), "layer_0 resets by subtraction"),
        (module(nn.Sequential(LinearLIF(K, N), LinearLIF(N, N, neuron=CuBaLIF()))), "layer_1 resets by subtraction"),
        (module(nn.Sequential(LinearLIF(K, N, neuron=fastsnn.AdLIF()))), "layer_0 has the neuron AdLIF"),
        (module(nn.Sequential(TimeDistributed(nn.BatchNorm1d(K)))), "layer_0 is BatchNorm1d"),
        (module(nn.Sequential(TimeDistributed(nn.MaxPool2d(2))), (1, 4, 4)), "layer_0 is MaxPool2d"),
        (module(nn.Sequential(Spiking(CuBaLIF(mem_decay=1.0, v_reset=0.0)))), "layer_0 has mem_decay 1"),
        (module(nn.Sequential(Spiking(CuBaLIF(v_reset=0.5)))), "layer_0 has v_reset 0.5"),
        (module(nn.Sequential(Spiking(LIF(v_threshold=torch.inf)))), "layer_0 has v_threshold inf"),
        (module(nn.Sequential(Spiking(LIF())), None), "shape is None"),
        (module(nn.Sequential(LinearLIF(K, N)), (3, 4)), "layer_0 is given [3, 4]; allowed: [12]"),
        (module(nn.Sequential(nn.Flatten(1), LinearLIF(K, N))), "layer_0 is Flatten(start_dim=1"),
        (module(nn.Sequential(TimeDistributed(nn.Conv2d(4, 4, 3, groups=2))), (4, 8, 8)), "layer_0 has 2 groups"),
        (lambda: fastsnn.to_nir(LinearLIF(K, N), dt=0), "dt is 0"),
    ],
)
def test_what_nir_cannot_express_is_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match="allow") as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


LIF_NODE = {"tau": ONE, "r": ONE, "v_threshold": ONE}


def branched() -> Any:
    nodes = {"input": nir.Input([N]), "a": nir.Linear(np.eye(N)), "b": nir.Linear(np.eye(N)), "output": nir.Output([N])}
    return nir.NIRGraph(nodes, [("input", "a"), ("input", "b"), ("a", "output"), ("b", "output")])


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (graph_of(nir.Delay(ONE)), "node 'delay' (Delay)"),
        (graph_of(nir.I(ONE)), "node 'i' (I)"),
        (graph_of(nir.LIF(v_leak=ONE * 0.5, **LIF_NODE)), "node 'lif' (LIF) has v_leak 0.5; allowed: v_reset, 0"),
        (graph_of(nir.LIF(v_leak=0 * ONE, **LIF_NODE | {"tau": ONE * 5e-5})), "node 'lif' (LIF): tau is 0.5"),
        (graph_of(nir.IF(ONE * 1e4, ONE, np.linspace(-1, 0, N))), "v_reset"),
        (branched(), "node 'input' (Input) is connected to a, b"),
    ],
)
def test_what_fastsnn_does_not_have_is_refused_by_name(graph: Any, said: str) -> None:
    with pytest.raises(ValueError, match="allow") as caught:
        fastsnn.from_nir(graph)
    assert said in str(caught.value)


def test_an_exported_run_computes_what_the_run_does(tmp_path: Path, command: Command, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("train", *arguments(epochs=1, hidden=8, name="run"), "--recurrent")[0] == 0
    code, printed, stderr = command("export", "runs/run", "model.nir", "--dt", "0.001")
    assert (code, stderr) == (0, "")
    assert "model.nir" in printed
    x = currents(64)
    assert torch.equal(fastsnn.from_nir("model.nir")(x), fastsnn.load("runs/run")(x))
    assert nir.read("model.nir").nodes["layer_1"].tau[0] == pytest.approx(0.002)
    assert_refused(command("export", "runs/run", "model.txt"), 2, "model.txt", ".nir")
    assert_refused(command("export", "runs/run", "nowhere/model.nir"), 2, "nowhere")
    assert_refused(command("export", "runs/none", "model.nir"), 1, "runs/none")


# Both still read and write through functions that nirtorch renamed.
RENAMED = pytest.mark.filterwarnings("ignore:nirtorch:DeprecationWarning")


@RENAMED
def test_snntorch_reads_and_writes_it() -> None:
    snntorch = pytest.importorskip("snntorch")
    from snntorch.export_nir import export_to_nir
    from snntorch.import_nir import import_from_nir

    torch.manual_seed(0)
    decay, x = 0.75, currents(K)
    leaky = snntorch.Leaky(
        beta=torch.full((N,), decay),
        threshold=torch.full((N,), 1.0),
        reset_mechanism="zero",
        init_hidden=True,
        reset_delay=False,
    )
    theirs = nn.Sequential(nn.Linear(K, N), leaky)
    mine = fastsnn.from_nir(export_to_nir(theirs, x[0], ignore_dims=[0]))
    leaky.reset_mem()
    expected = torch.stack([theirs(row) for row in x]).detach()
    assert 0.02 < expected.mean() < 0.9
    assert torch.equal(mine(x), expected)

    read = import_from_nir(fastsnn.to_nir(mine))
    state: Any = None
    found = []
    for row in x:
        spikes, state = read(row, state)
        found.append(spikes)
    assert torch.equal(torch.stack(found).detach(), expected)


@RENAMED
def test_norse_reads_it() -> None:
    norse = pytest.importorskip("norse.torch")
    torch.manual_seed(0)
    mine, x = LinearLIF(K, N, neuron=LIF(tau=3.0, v_threshold=0.4)), currents(K)
    read, state, found = norse.from_nir(fastsnn.to_nir(mine, dt=1e-3), dt=1e-3), None, []
    for row in x:
        spikes, state = read(row, state)
        found.append(spikes)
    expected = mine(x)
    assert 0.02 < expected.mean() < 0.9
    assert torch.equal(torch.stack(found).detach(), expected.detach())
