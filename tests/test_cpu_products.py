"""Matrix products on the CPU: as exact as torch's own, the same bits for any number of threads, in fp32 everywhere."""

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastsnn.kernels import contract
from fastsnn.kernels.numba import products

SHAPES = [(1, 1, 1), (7, 61, 13), (64, 784, 10), (129, 1024, 33), (65, 1025, 31), (512, 4096, 64), (2, 2500, 257)]


@pytest.fixture(params=[True, False], ids=["onednn", "torch"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Each library in turn, and torch's number of threads as it was."""
    if request.param and not products.ONEDNN:
        pytest.skip("needs oneDNN in torch, which builds for x86 have")
    monkeypatch.setattr(products, "ONEDNN", request.param)
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)


def operands(M: int, K: int, N: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(M + K + N)
    return tuple(torch.randn(shape, generator=generator) for shape in ((M, K), (N, K), (N,)))  # type: ignore[return-value]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_exact_as_torch(shape: tuple[int, int, int], library: bool) -> None:
    x, weight, bias = operands(*shape)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    eager = torch.nn.functional.linear(x, weight, bias)
    contract.require(contract.current_error(products.linear(x, weight, bias), exact, eager))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_strides_and_axes(shape: tuple[int, int, int], library: bool) -> None:
    x, weight, _ = operands(*shape)
    expected = products.linear(x, weight)
    found = {
        "transposed": products.linear(x.T.contiguous().T, weight.T.contiguous().T),
        "with gaps": products.linear(x.repeat(1, 2)[:, : shape[1]], weight.repeat(1, 2)[:, : shape[1]]),
        "of three axes": products.linear(x[:, None], weight)[:, 0],
    }
    contract.require(*(contract.gradient_error(name, out, expected, expected) for name, out in found.items()))


def test_a_bias_with_gaps(library: bool) -> None:
    x, weight, bias = operands(7, 61, 13)
    gaps = torch.stack([bias, -bias], 1)[:, 0]
    contract.require(contract.same_bits("currents", products.linear(x, weight, gaps), products.linear(x, weight, bias)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_whole_numbers_are_exact(shape: tuple[int, int, int], library: bool) -> None:
    x, weight, bias = ((4 * tensor).round() for tensor in operands(*shape))
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert products.linear(x, weight, bias).equal(exact.float())


def test_autocast_and_empty_operands(library: bool) -> None:
    x, weight, bias = operands(7, 61, 13)
    expected = products.linear(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight, bias).equal(expected)
    assert products.linear(x[:0], weight, bias).shape == (0, 13)
    assert products.linear(x, weight[:0], bias[:0]).shape == (7, 0)
    assert products.linear(x[:, :0], weight[:, :0], bias).equal(bias.expand(7, 13))


def test_forward_products_do_not_depend_on_the_number_of_threads() -> None:
    if not products.ONEDNN:
        pytest.skip("needs oneDNN in torch, which builds for x86 have")
    threads = torch.get_num_threads()
    try:
        for M, K, N in ((7, 2048, 257), (513, 1000, 10), (1600, 784, 32)):
            x, weight, bias = operands(M, K, N)
            results = []
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(products.linear(x, weight, bias))
            assert results[0].equal(results[1])
    finally:
        torch.set_num_threads(threads)


def test_no_layout_is_slow(library: bool) -> None:
    """oneDNN has reference code for what it has no other: a thousand times slower."""
    x, weight, _ = operands(256, 1024, 256)
    layouts = [(x, weight), (x[:, ::2], weight[:, ::2]), (x.T[:256], weight.T[:256]), (x, weight.T.contiguous().T)]
    seconds = [min(_seconds(left, right) for _ in range(3)) for left, right in layouts]
    assert max(seconds) < 50 * seconds[0]


def _seconds(x: Tensor, weight: Tensor) -> float:
    started = time.perf_counter()
    products.linear(x, weight)
    return time.perf_counter() - started
