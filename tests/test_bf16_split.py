"""Products of fp32 accuracy from bf16 parts: the split is lossless, the product as good as torch's own (C2)."""

import pytest
import torch
from neuron_cases import DEVICE, needs_bf16_products
from torch import Tensor

from fastsnn.kernels import contract
from fastsnn.kernels.triton import INTERPRETED, bf16_split, tl
from fastsnn.kernels.triton.linear_forward import choose_tile

SHAPES = [(1, 1, 1), (3, 5, 2), (130, 67, 131), (7, 129, 300)]
"""M, N and K: one, odd, over one tile in each direction."""


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right by the kernel, in memory that held NaN."""
    rows = left.shape[-2]
    out = torch.full((rows, right.shape[1]), torch.nan, device=DEVICE) if out is None else out
    bf16_split.matmul(left.to(DEVICE), bf16_split.split(right.to(DEVICE)), out)
    return out.cpu()


def check(actual: Tensor, left: Tensor, right: Tensor) -> None:
    exact = left.double() @ right.double()
    contract.require(contract.current_error(actual, exact, left.float() @ right))


def test_split_is_lossless() -> None:
    """For every magnitude from 2^-110 up, whatever the 24 bits of the mantissa."""
    lowest = -103 if INTERPRETED else -110  # the interpreter gets the subnormal numbers of bf16 wrong
    exponents = torch.arange(lowest, 127).double()[:, None]
    mantissas = torch.randint(2**23, 2**24, (len(exponents), 97), generator=torch.Generator().manual_seed(1))
    x = (mantissas * (exponents - 23).exp2()).float()
    x[::2] = -x[::2]
    parts = bf16_split.split(x.to(DEVICE)).cpu()
    assert parts.dtype == torch.bfloat16
    assert parts.shape == (3, len(x), 112)  # rows of 16 elements, so that each is aligned
    assert torch.equal(parts.double().sum(0)[:, :97].float(), x)
    assert not parts[:, :, 97:].any()


def test_split_of_columns_of_a_wider_matrix() -> None:
    x = random(5, 300).to(DEVICE)
    assert torch.equal(bf16_split.split(x[:, 128:]), bf16_split.split(x[:, 128:].contiguous()))


@needs_bf16_products
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape: tuple[int, int, int]) -> None:
    M, N, K = shape
    left, right = random(M, K), random(K, N)
    check(product(left, right), left, right)


@needs_bf16_products
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float32])
def test_spikes_select_weights(dtype: torch.dtype) -> None:
    """0 and 1 of any dtype; and of fp32 both where all are exact in bf16 and where one number is not."""
    spikes, right = (random(131, 70) > 0.5).to(dtype), random(70, 67)
    check(product(spikes, right), spikes, right)
    if dtype == torch.float32:
        spikes[77, 33] = 1 + 2.0**-20
        check(product(spikes, right), spikes, right)
        alone = torch.zeros(131, 70)
        alone[77, 33] = 1 + 2.0**-20
        assert product(alone, torch.ones(70, 67))[77].unique().tolist() == [1 + 2.0**-20]


@needs_bf16_products
def test_left_operand_in_parts() -> None:
    left, right = random(35, 70), random(70, 67)
    parts = bf16_split.split(left.to(DEVICE))[:, :, :70]
    check(product(parts, right), left, right)


@needs_bf16_products
def test_left_operand_in_parts_keeps_them_all_for_a_half_precision_result() -> None:
    """Each part is worth its products, whatever dtype their sum is then rounded to."""
    left, right = 1 + 2.0**-9 * torch.arange(1, 17).float()[None], torch.ones(16, 8)
    out = torch.full((1, 8), torch.nan, dtype=torch.bfloat16, device=DEVICE)
    parts = bf16_split.split((left - 1).to(DEVICE))
    parts[0, :, :16] += 1  # high parts of 1 and low ones that add up: rounded to bf16, 16 and not 16.27
    found = product(parts[:, :, :16], right, out)
    assert torch.equal(found.float(), (left @ right).bfloat16().float())


@needs_bf16_products
def test_transposed_operands() -> None:
    """As of dW = (rows.T @ gradient).T: neither operand is copied."""
    rows, grad = random(50, 33), random(50, 21)
    out = torch.full((21, 33), torch.nan, device=DEVICE)
    product(rows.T, grad, out.T)
    check(out.T.cpu(), rows.T, grad)


@needs_bf16_products
@pytest.mark.parametrize("transposed", [False, True])
def test_programs_share_a_long_inner_dimension(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few tiles on many multiprocessors: parts, added up in order. The last is shorter."""
    monkeypatch.setattr(bf16_split, "multiprocessors", lambda device: 2)
    left, right = (random(9, 600) > 0.5).to(torch.uint8), random(600, 7)
    out = torch.full((7, 9), torch.nan, device=DEVICE).T if transposed else torch.full((9, 7), torch.nan, device=DEVICE)
    assert out.is_contiguous() != transposed
    first = product(left, right, out).clone()
    check(first, left, right)
    if not transposed:
        contract.require(contract.same_bits("product", product(left, right, out), first, "C6"))


@needs_bf16_products
def test_sums_that_any_order_gives_are_exact() -> None:
    generator = torch.Generator().manual_seed(2)
    left = torch.randint(-8, 9, (40, 70), generator=generator) / 8
    right = torch.randint(-8, 9, (70, 30), generator=generator) / 8 * (1 + 2.0**-12)
    contract.require(contract.same_bits("product", product(left, right), left @ right))


def test_products_below_sm_80_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_split, "capability", lambda device: 61)
    parts = torch.empty(3, 4, 16, dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=r"sm_61; products of bf16 parts need sm_80 or newer") as caught:
        bf16_split.matmul(torch.empty(2, 4, device=DEVICE), parts, torch.empty(2, 16, device=DEVICE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sm", [61, 75, 80, 86, 90, 100, 120])
def test_arithmetic_of_each_gpu(sm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bf16 below sm_80; three parts of fp32 weights from there on, one product of half precision."""
    monkeypatch.setattr(bf16_split, "capability", lambda device: sm)
    fp32, half = (bf16_split.arithmetic(DEVICE, dtype) for dtype in (torch.float32, torch.float16))
    if sm < 80:
        assert fp32 == half == {"PARTS": 1, "ROUNDED": tl.float32, "OPERAND": tl.float32}
    else:
        assert (fp32["PARTS"], fp32["ROUNDED"]) == (3, tl.bfloat16)
        assert (half["PARTS"], half["ROUNDED"]) == (1, tl.float16)
    for left in (torch.float32, torch.float16, torch.bfloat16, torch.uint8, None):
        exact = bf16_split.tile_options(DEVICE, left, fp32)["LEFT_EXACT"]
        assert exact == (sm < 80 or left in (torch.uint8, torch.bfloat16))
        assert bf16_split.tile_options(DEVICE, left, half)["LEFT_EXACT"]


@pytest.mark.parametrize("T", [1, 2, 5, 16, 17, 100, 128, 1000])
@pytest.mark.parametrize("B", [1, 64, 2**24, 2**25])
def test_rows_of_a_tile_count_in_32_bits(B: int, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_split, "multiprocessors", lambda device: 132)
    for N in (1, 10, 1000):
        steps, block = choose_tile(T, B, N, 128, DEVICE)
        assert bf16_split.ROWS % steps == 0
        assert steps * B < 2**31
        assert steps >= T or steps % 32 == 0  # chunks of time begin at a word of packed spikes
        assert block in (16, 32, 64, 128)
