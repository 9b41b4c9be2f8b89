"""torch.onnx.export writes a network in ONNX's own operators, whatever its backend; the outputs are the network's."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fastsnn
from fastsnn import ALIF, LI, CuBaLIF, LinearLIF, Recurrent, Spiking, TimeDistributed
from fastsnn.networks import SpatialSpiking

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")

# What the exporters say of themselves, by release.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)

T, B = 6, 3


def network(backend: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(
        TimeDistributed(nn.Conv2d(1, 3, 3)),
        SpatialSpiking(fastsnn.LIF(v_threshold=0.2), backend=backend),
        nn.Flatten(2),
        LinearLIF(3 * 4 * 4, 8, neuron=fastsnn.IF(0.5), backend=backend, learn=("v_threshold",), size=(8,)),
        Recurrent(8, 7, CuBaLIF(v_threshold=0.2), backend=backend),
        LinearLIF(7, 6, neuron=ALIF(), backend=backend),
    )
    return net.eval(), torch.rand(T, B, 1, 6, 6)


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("backend", ["auto", "numba", "triton", "torch"])
def test_onnx_computes_the_same_spikes(backend: str, dynamo: bool, tmp_path: Path) -> None:
    if dynamo:
        pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from onnx.reference import ReferenceEvaluator

    net, x = network(backend)
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(net, (x,), file, dynamo=dynamo)
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    (found,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x.numpy()})
    expected, _ = network("torch")
    output = expected(x).detach()
    assert 0.05 < output.mean() < 0.95
    assert torch.equal(torch.from_numpy(found), output)


def test_a_read_out_is_exported_too(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    net, x = nn.Sequential(nn.Linear(5, 4), Spiking(LI(tau=4.0), backend="numba")).eval(), torch.rand(T, B, 5)
    torch.onnx.export(net, (x,), str(tmp_path / "model.onnx"), dynamo=True)
    (found,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x).detach())
