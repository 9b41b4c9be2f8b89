"""The cupy backend on a GPU: the numerical contract, streams, evaluation, fp16, and its time beside torch's."""

from typing import Any

import pytest
import torch
from neuron_cases import OPTIONS, case, gradients, leaves, require_gradients, require_spikes
from torch import Tensor

from fastsnn import LIF, backends, spikingjelly
from fastsnn.kernels import reference

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compiled", ["-fmad=false", "-use_fast_math"])
@pytest.mark.parametrize("tau", [2.0, 3.7])
@pytest.mark.parametrize("surrogate", spikingjelly.SURROGATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_under_the_contract(
    options: dict[str, Any], surrogate: str, tau: float, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1 where it is promised, C3, C4; -use_fast_math is SpikingJelly's default."""
    monkeypatch.setattr("spikingjelly.configure.cuda_compiler_options", (compiled,))
    neuron = LIF(tau=tau, surrogate=surrogate, **options)
    inputs = case(20, 67)
    current, v_init, *upstream = (tensor.cuda() for tensor in inputs)
    sources = leaves(current, v_init)
    spikes, v = spikingjelly.lif(sources[0], neuron, sources[1])
    actual = tuple(gradient.cpu() for gradient in gradients((spikes, v), sources, *upstream))
    spikes, v = spikes.detach().cpu(), v.detach().cpu()
    bit_equal = neuron.decay_input and tau == 2 and compiled == "-fmad=false"
    require_spikes(spikes, v, *inputs[:2], neuron, bit_equal=bit_equal)
    require_gradients(actual, spikes, *inputs, neuron=neuron)


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 2, 3, 5), (3,), (6, 0, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    """Multiples of 1/4 at tau = 2 are exact, so the compiler's options don't matter."""
    current = torch.randint(-2, 12, shape, generator=torch.Generator().manual_seed(0)) / 4
    leaf = current.cuda().requires_grad_()
    spikes, v = spikingjelly.lif(leaf, LIF())
    assert (spikes.shape, v.shape) == (current.shape, current.shape[1:])
    expected, (expected_v,) = reference.scan(current, LIF())
    assert torch.equal(v.detach().cpu(), expected_v)
    assert torch.equal(spikes.detach().cpu(), expected)
    (spikes.sum() + v.sum()).backward()
    assert leaf.grad is not None
    assert leaf.grad.shape == current.shape


def test_linear_takes_spikes_of_any_type() -> None:
    """Weights that are multiples of 1/8: every rounding is exact, so are the spikes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(12, 3, 20, generator=generator) < 0.4
    weight, bias = torch.randint(-8, 16, (7, 20), generator=generator) / 8, torch.arange(-3, 4) / 8
    expected, (expected_v,) = reference.linear(x.float(), weight, bias, LIF())
    for dtype in (torch.bool, torch.uint8, torch.float32):
        given = x.to("cuda", dtype), weight.cuda(), bias.cuda()
        spikes, state = backends.load("cupy").linear(*given, LIF(), None, {}, False, "auto")
        assert isinstance(spikes, Tensor)
        assert torch.equal(spikes.cpu(), expected)
        assert torch.equal(state[0].cpu(), expected_v)


@pytest.mark.parametrize("N", [8, 7])
def test_fp16(N: int) -> None:
    """Also an odd number of neurons, which SpikingJelly pads; dyadic currents are exact in fp16 too."""
    current = torch.randint(-2, 12, (3, N), generator=torch.Generator().manual_seed(2)) / 4
    expected, (expected_v,) = reference.scan(current, LIF(), (torch.full((N,), 0.5),))
    leaf = current.to("cuda", torch.float16).requires_grad_()
    spikes, v = spikingjelly.lif(leaf, LIF(), torch.full((N,), 0.5, device="cuda"))
    assert (spikes.dtype, v.dtype) == (torch.float16, torch.float32)
    assert torch.equal(spikes.detach().cpu().float(), expected)
    assert torch.equal(v.detach().cpu(), expected_v)
    spikes.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_evaluation_runs_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = []
    kernel = spikingjelly.library().kernels.LIFNodeFPTTKernel
    original = kernel.__call__
    monkeypatch.setattr(kernel, "__call__", lambda *args: (launches.append(1), original(*args))[1])
    current = case(20, 67)[0].cuda()
    trained, _ = spikingjelly.lif(current.clone().requires_grad_(), LIF())
    with torch.no_grad():
        evaluated, _ = spikingjelly.lif(current, LIF())
    assert torch.equal(trained, evaluated)
    assert len(launches) == 2


def test_runs_on_the_current_stream() -> None:
    """Forward and backward wait for what torch queued before them on a side stream, and later work waits for them."""
    current, v_init, *upstream = (tensor.cuda() for tensor in case(20, 4096))
    sources = leaves(current, v_init)
    outputs = spikingjelly.lif(sources[0], LIF(), sources[1])
    expected = (*outputs, *gradients(outputs, sources, *upstream))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    for _ in range(3):
        with torch.cuda.stream(side):
            late = torch.full_like(current, 100.0)
            torch.cuda._sleep(20_000_000)
            late.copy_(current)
            sources = (late.requires_grad_(), *leaves(v_init))
            outputs = spikingjelly.lif(sources[0], LIF(), sources[1])
            torch.cuda._sleep(20_000_000)
            grads = gradients(outputs, sources, *upstream)
            copies = [tensor.detach().clone() for tensor in (*outputs, *grads)]
        side.synchronize()
        for copy, value in zip(copies, expected, strict=True):
            assert torch.equal(copy, value)


def test_torch_compile_breaks_the_graph_around_it() -> None:
    def network(x: Tensor) -> Tensor:
        return spikingjelly.lif(x * 2, LIF())[0] * 3

    x = case(5, 16)[0].cuda()
    assert torch.equal(torch.compile(network, backend="aot_eager")(x), network(x))


def test_time_beside_torch(record_property: Any) -> None:
    """Forward and backward of 100 steps of 2^18 neurons: the fused scan must beat a launch per operation."""
    leaf = (torch.rand(100, 2**18, device="cuda") * 3).requires_grad_()
    milliseconds = {}
    for name in ("torch", "cupy"):
        operator = backends.load(name).scan
        times = []
        for _ in range(6):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            operator(leaf, LIF(), None, {})[0].sum().backward()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        milliseconds[name] = sorted(times[1:])[2]
        record_property(f"{name}_ms", milliseconds[name])
    assert milliseconds["cupy"] < milliseconds["torch"], milliseconds
