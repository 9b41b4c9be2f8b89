"""Products of a linear layer on spikes on the CPU: every way exact, for odd shapes, the same bits for any threads."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastsnn.kernels import contract, philox
from fastsnn.kernels.numba import jit, products, spike_products
from fastsnn.kernels.numba.bits import WIDE, wide_zero
from fastsnn.kernels.numba.spike_products import choice, kernels, layout, packing
from fastsnn.kernels.numba.threads import spread
from fastsnn.kernels.packed import PackedSpikes

SPARSE = ("tables", "lists")
STEPS = (1, 4, 31, 32, 33, 64, 65, 100)
SHAPES = [
    pytest.param(B, K, N, id=f"B={B},K={K},N={N}")
    for B, K, N in ((1, 1, 1), (3, 17, 15), (2, 784, 16), (65, 17, 17), (3, 130, 301))
]  # fmt: skip
DENSITIES = {"silent": 0.0, "rare": 0.03, "common": 0.3, "all": 1.0}


@pytest.fixture(params=SPARSE)
def way(request: pytest.FixtureRequest) -> spike_products.Way:
    return request.param


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Set how many workers a product has, whatever its size."""

    def use(count: int) -> None:
        monkeypatch.setattr(spike_products, "workers_for", lambda elements: count)
        monkeypatch.setattr(packing, "workers_for", lambda elements: count)

    return use


def spikes(T: int, B: int, K: int, density: float, seed: int = 0) -> Tensor:
    """Float spikes [T, B, K], a third of the inputs of each sample silent (but for density 1)."""
    generator = torch.Generator().manual_seed(seed + T + B + K)
    x = torch.rand(T, B, K, generator=generator) < density
    silent = torch.rand(B, K, generator=generator) < (1 / 3 if density < 1 else 0)
    return (x & ~silent).float()


def whole(*shape: int) -> Tensor:
    """Whole numbers, sums of which are exact in any order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def gradient_of(x: Tensor, grad: Tensor) -> Tensor:
    """The weight gradient in float64."""
    return grad.double().reshape(-1, grad.shape[-1]).T @ x.double().reshape(-1, x.shape[-1])


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
@pytest.mark.parametrize(("B", "K", "N"), SHAPES)
def test_whole_numbers_are_exact(B: int, K: int, N: int, density: float, way: spike_products.Way) -> None:
    for T in STEPS:
        x, weight, bias, grad = spikes(T, B, K, density), whole(N, K), whole(N), whole(T, B, N)
        packed = PackedSpikes(philox.pack(x), T)
        exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
        assert spike_products.currents(packed, weight, bias, way=way).double().equal(exact), T
        bias_grad = torch.empty(N)
        found = spike_products.weight_gradient(packed, grad, bias_out=bias_grad, way=way)
        assert found.double().equal(gradient_of(x, grad)), T
        assert bias_grad.equal(grad.sum((0, 1))), T


@pytest.mark.parametrize(("T", "B", "K", "N"), [(100, 8, 784, 80), (33, 20, 2500, 10), (4, 200, 1025, 33)], ids=str)
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_within_the_contract(T: int, B: int, K: int, N: int, density: float, way: spike_products.Way) -> None:
    x = spikes(T, B, K, density)
    generator = torch.Generator().manual_seed(0)
    weight, bias, grad = (torch.randn(shape, generator=generator) for shape in ((N, K), (N,), (T, B, N)))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    eager = torch.nn.functional.linear(x, weight, bias)
    eager_gradient = grad.reshape(-1, N).T @ x.reshape(-1, K)
    contract.require(
        contract.current_error(spike_products.currents(x, weight, bias, way=way), exact, eager),
        contract.gradient_error(
            "weight", spike_products.weight_gradient(x, grad, way=way), gradient_of(x, grad), eager_gradient
        ),
    )


@pytest.mark.parametrize(("T", "B", "K", "N"), [(100, 5, 200, 301), (70, 9, 130, 10), (5, 150, 70, 40)], ids=str)
def test_threads_change_no_bit(
    T: int, B: int, K: int, N: int, way: spike_products.Way, workers: Callable[[int], None]
) -> None:
    x = spikes(T, B, K, 0.2)
    weight, grad = torch.randn(N, K), torch.randn(T, B, N)
    workers(1)
    expected = spike_products.currents(x, weight, way=way), spike_products.weight_gradient(x, grad, way=way)
    for count in (2, 3, 7):
        workers(count)
        found = spike_products.currents(x, weight, way=way), spike_products.weight_gradient(x, grad, way=way)
        for name, actual, wanted in zip(("currents", "gradient"), found, expected, strict=True):
            contract.require(contract.same_bits(f"{name} of {count} workers", actual, wanted, promise="C6"))


def test_each_group_takes_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples, one with rare spikes: each has the bits that its way alone has."""
    T, K, N = 100, 300, 140
    x = torch.cat([spikes(T, 1, K, 0.02), spikes(T, 1, K, 0.6)], 1)
    weight = torch.randn(N, K)
    found = spike_products.currents(x, weight)
    for b, (used, other) in enumerate((("lists", "tables"), ("tables", "lists"))):
        assert found[:, b].equal(spike_products.currents(x, weight, way=used)[:, b])  # type: ignore[arg-type]
        assert not found[:, b].equal(spike_products.currents(x, weight, way=other)[:, b])  # type: ignore[arg-type]
    grad = whole(T, 2, N)
    assert spike_products.weight_gradient(x, grad).double().equal(gradient_of(x, grad))


def test_a_silent_input_is_not_read(way: spike_products.Way) -> None:
    x = spikes(40, 3, 20, 0.3)
    x[..., 7] = 0
    weight, clean = torch.randn(5, 20), torch.zeros(5)
    expected = spike_products.currents(x, weight, way=way)
    weight[:, 7] = torch.nan
    assert spike_products.currents(x, weight, way=way).equal(expected)
    gradient = spike_products.weight_gradient(x, torch.randn(40, 3, 5), way=way)
    assert gradient[:, 7].equal(clean)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("T", [33, 31])
def test_bits_past_the_last_step_are_ignored(T: int, way: spike_products.Way) -> None:
    x, weight, grad = spikes(T, 5, 70, 0.3), whole(20, 70), whole(T, 5, 20)
    words = philox.pack(x)
    words[-1] |= ~((1 << T % 32) - 1)
    packed = PackedSpikes(words, T)
    assert spike_products.currents(packed, weight, way=way).equal(spike_products.currents(x, weight, way=way))
    found = spike_products.weight_gradient(packed, grad, way=way)
    assert found.equal(spike_products.weight_gradient(x, grad, way=way))


@pytest.mark.parametrize("dtype", packing.INTEGERS, ids=str)
@pytest.mark.parametrize("T", [1, 32, 100])
def test_packing_is_that_of_philox(dtype: torch.dtype, T: int, workers: Callable[[int], None]) -> None:
    x = spikes(T, 3, 701, 0.3)
    for count in (1, 2):
        workers(count)
        words = spike_products.pack(x.to(dtype))
        assert words is not None
        assert words.equal(philox.pack(x))
    strided = x.to(dtype).repeat(1, 2, 1)[:, ::2]
    assert spike_products.pack(strided).equal(philox.pack(strided != 0))  # type: ignore[union-attr]


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, torch.nan, torch.inf, 1e-40])
@pytest.mark.parametrize("place", [(0, 0, 0), (99, 2, 700), (50, 1, 3)])
def test_what_is_not_spikes_goes_the_dense_way(
    value: float, place: tuple[int, int, int], workers: Callable[[int], None]
) -> None:
    x, weight, grad = spikes(100, 3, 701, 0.3), torch.randn(20, 701), torch.randn(100, 3, 20)
    x[place] = value
    for count in (1, 2):
        workers(count)
        assert spike_products.pack(x) is None
    expected = products.linear(x, weight)
    assert spike_products.currents(x, weight).allclose(expected, rtol=0, atol=0, equal_nan=True)
    dense = spike_products.weight_gradient(x, grad, way="dense")
    assert spike_products.weight_gradient(x, grad).allclose(dense, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="x holds more than 0 and 1, and way is 'lists'"):
        spike_products.currents(x, weight, way="lists")


def test_negative_zero_is_no_spike() -> None:
    packed = spike_products.pack(torch.tensor([[-0.0, 1.0, 0.0]]))
    assert packed is not None
    assert packed.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("way", choice.WAYS)
def test_empty_operands_and_any_axes(way: spike_products.Way) -> None:
    weight, bias = whole(5, 7), whole(5)
    x = spikes(40, 6, 7, 0.4)
    expected = spike_products.currents(x, weight, bias, way="dense")
    assert spike_products.currents(x.reshape(40, 2, 3, 7), weight, bias, way=way).equal(expected.reshape(40, 2, 3, 5))
    assert spike_products.currents(x[:, 0], weight, bias, way=way).equal(expected[:, 0])
    assert spike_products.currents(x[:, :0], weight, bias, way=way).shape == (40, 0, 5)
    assert spike_products.currents(x[:0], weight, bias, way=way).shape == (0, 6, 5)
    assert spike_products.currents(x[..., :0], weight[:, :0], bias, way=way).equal(bias.expand(40, 6, 5))
    assert spike_products.currents(x, weight[:0], bias[:0], way=way).shape == (40, 6, 0)
    grad = whole(40, 6, 5)
    assert spike_products.weight_gradient(x[:, :0], grad[:, :0], way=way).equal(torch.zeros(5, 7))
    assert spike_products.weight_gradient(x[:0], grad[:0], way=way).equal(torch.zeros(5, 7))
    assert spike_products.weight_gradient(x[..., :0], grad, way=way).shape == (5, 0)
    assert (
        spike_products.weight_gradient(x.reshape(40, 2, 3, 7), grad.reshape(40, 2, 3, 5), way=way)
        .double()
        .equal(gradient_of(x, grad))
    )


@pytest.mark.parametrize("way", choice.WAYS)
def test_writes_to_out_and_nowhere_else(way: spike_products.Way) -> None:
    T, B, K, N = 50, 3, 70, 45
    x, weight, grad = spikes(T, B, K, 0.3), whole(N, K), whole(T, B, N)
    for name, shape in (("currents", (T, B, N)), ("gradient", (N, K))):
        memory = torch.full((torch.Size(shape).numel() + 256,), -77.5)
        out = memory[128:-128].view(shape)
        if name == "currents":
            assert spike_products.currents(x, weight, out=out, way=way) is out
        else:
            assert spike_products.weight_gradient(x, grad, out=out, way=way) is out
        assert (out != -77.5).all()
        assert (memory[:128] == -77.5).all()
        assert (memory[-128:] == -77.5).all()


def test_any_strides_and_dtypes_of_weight_and_grad(way: spike_products.Way) -> None:
    x, weight, grad = spikes(40, 3, 20, 0.3), whole(6, 20), whole(40, 3, 6)
    expected = spike_products.currents(x, weight, way=way), spike_products.weight_gradient(x, grad, way=way)
    for variant in (lambda t: t.mT.contiguous().mT, lambda t: t.repeat_interleave(2, -1)[..., ::2], Tensor.half):
        assert spike_products.currents(x, variant(weight), way=way).equal(expected[0])
        assert spike_products.weight_gradient(x, variant(grad), way=way).equal(expected[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(5, 8)}, r"weight has shape \[5, 8\]; allowed beside the other operands: \[5, 7\]"),
        ({"bias": torch.zeros(4)}, r"bias has shape \[4\]"),
        ({"out": torch.zeros(3, 2, 4)}, r"out has shape \[3, 2, 4\]"),
        ({"out": torch.zeros(3, 5, 2).mT}, "out is strided of dtype float32; allowed: contiguous float32"),
        ({"out": torch.zeros(3, 2, 5, dtype=torch.float64)}, "out is contiguous of dtype float64"),
        ({"x": torch.zeros(3)}, r"x has shape \[3\] for T = 3"),
        ({"x": PackedSpikes(torch.zeros(2, 2, 7, dtype=torch.int32), 3)}, r"x has shape \[2, 2, 7\] for T = 3"),
        ({"way": "fast"}, "way is 'fast'; allowed: auto, tables, lists, dense"),
    ],
)
def test_errors_name_what_was_given(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(3, 2, 7), "weight": torch.zeros(5, 7), "bias": torch.zeros(5)} | change
    with pytest.raises(ValueError, match=message):
        spike_products.currents(**arguments)


def taken(T: int, N: int, density: float, forward: bool, K: int = 784) -> str:
    """The way that a sample takes."""
    x, shape = spikes(T, 1, K, density), layout.shape_of(T, 1, K, N)
    share, words = choice.list_share("auto", shape, packed=False), spike_products.pack(x)
    if share is None:
        return "dense"
    product = kernels.product(shape, share, 1, words, np.empty((N, K), np.float32) if forward else None)
    product.spikes.counts[:, 0] = int(x.any(0).sum()), int(x.sum())
    return "lists" if kernels.use_lists.py_func(product, 0) else "tables"


@pytest.mark.parametrize("forward", [True, False])
def test_shape_and_density_decide(forward: bool) -> None:
    """Few rows: dense. Lists for rare spikes, up to a higher density the more neurons there are."""
    assert taken(4, 800, 0.01, forward) == "dense"
    assert choice.list_share("auto", layout.shape_of(4, 1, 784, 800), packed=True) is not None
    assert [taken(100, 800, density, forward) for density in (0.01, 0.05, 0.2, 1.0)] == ["lists"] * 2 + ["tables"] * 2
    assert [taken(500, 10, density, forward) for density in (0.0005, 0.05)] == ["lists", "tables"]


def test_groups_of_short_samples_fill_their_words() -> None:
    for T, B in ((1, 200), (4, 40), (30, 5), (32, 1), (33, 4)):
        shape = layout.shape_of(T, B, 9, 9)
        found = []
        for group in range(shape.groups):
            rows = np.empty(shape.rows, np.int64)
            layout.offsets_of.py_func(shape, group, rows)
            found += [int(row) for row in rows if row >= 0]
        assert sorted(found) == list(range(T * B)), (T, B)


@jit(entry=True)
def fire(worker: int, workers: int, product: kernels.Product, out: Any) -> None:
    """Neurons without leak that fire at 1 and start again from 0, run over each block of currents while it is there."""
    shape = product.shape
    if not kernels.prepare(worker, workers, product, wide_zero()):
        return
    panels = (shape.N + WIDE - 1) // WIDE
    for item in range(panels * shape.groups * worker // workers, panels * shape.groups * (worker + 1) // workers):
        panel, group = item // shape.groups, item % shape.groups
        block = product.blocks[worker, 0]
        kernels.block_currents(product, worker, group, panel, block, wide_zero())
        first = group * shape.samples
        for b in range(first, min(first + shape.samples, shape.B)):
            start = layout.first_row(shape, b - first)
            for n in range(panel * WIDE, min((panel + 1) * WIDE, shape.N)):
                v = np.float32(0)
                for t in range(shape.T):
                    v += block[(start + t) * WIDE + n - panel * WIDE]
                    out[t, b, n] = v >= 1
                    if v >= 1:
                        v = np.float32(0)


@pytest.mark.parametrize(("T", "B"), [(100, 3), (33, 2), (32, 3), (5, 70)])
def test_another_kernel_runs_on_the_currents_of_a_block(T: int, B: int, way: spike_products.Way) -> None:
    K, N = 70, 45
    x, weight, bias = spikes(T, B, K, 0.3), torch.randn(N, K) / 4, torch.rand(N)
    shape, words = layout.shape_of(T, B, K, N), spike_products.pack(x)
    assert words is not None
    share = choice.list_share(way, shape, packed=True)
    product = kernels.product(shape, share, 2, words.numpy(), weight.numpy(), bias.numpy())
    found = torch.zeros(T, B, N, dtype=torch.bool)
    spread(fire, 2, product, found.numpy(), arrived=product.arrived)
    v, expected = torch.zeros(B, N), []
    for current in spike_products.currents(x, weight, bias, way=way):
        v = v + current
        expected.append(v >= 1)
        v = torch.where(v >= 1, 0.0, v)
    assert found.equal(torch.stack(expected))
    assert 0.02 < found.float().mean() < 0.9
