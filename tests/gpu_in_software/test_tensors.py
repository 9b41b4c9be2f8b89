"""Tensors on the pretended card: where they are, what they share, and what is counted."""

import copy
import pickle
import struct

import pytest
import torch

from tests.gpu_in_software.driver import flatten, memory_of, raw_bits
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.tensors import CardTensor, move, to_card, to_host, unwritten


def test_results_stay_on_the_card() -> None:
    x = to_card(torch.arange(6.0).view(2, 3))
    for result in (x + 1, x.T @ x, x[0], x.view(-1), x.sum(), torch.zeros_like(x), x > 2, torch.stack([x, x])):
        assert isinstance(result, CardTensor)
        assert result.is_cuda
        assert result.device == torch.device("cuda", 0)
    assert to_host(x.T @ x).tolist() == [[9, 12, 15], [12, 17, 22], [15, 22, 29]]
    assert x.sum().item() == 15
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        x.numpy()


def test_mixing_devices_is_an_error() -> None:
    x = to_card(torch.ones(3))
    assert to_host(x * torch.tensor(2.0)).tolist() == [2, 2, 2]
    with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
        x + torch.ones(3)
    x.copy_(torch.full((3,), 5.0))
    assert x.tolist() == [5, 5, 5]


def test_gradients_come_back_to_where_the_leaf_is() -> None:
    host = torch.ones(3, requires_grad=True)
    card = to_card(torch.full((3,), 2.0)).requires_grad_()
    to_host((to_card(host) * card).sum()).backward()
    assert type(host.grad) is torch.Tensor
    assert isinstance(card.grad, CardTensor)
    assert (host.grad.tolist(), card.grad.tolist()) == ([2, 2, 2], [1, 1, 1])


def test_views_and_changes_in_place_share_memory() -> None:
    x = to_card(torch.zeros(4, 4))
    x[1].fill_(3.0)
    x.T.add_(1)
    assert x.sum().item() == 28
    assert x[1].data_ptr() == x.data_ptr() + 16


@pytest.mark.parametrize("parameter", [False, True])
def test_copies_and_pickles(parameter: bool) -> None:
    x = to_card(torch.ones(3)).requires_grad_()
    if parameter:
        x = torch.nn.Parameter(x)
    for other in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert isinstance(other, CardTensor)
        assert isinstance(other, torch.nn.Parameter) == parameter
        assert other.requires_grad
        assert other.data_ptr() != x.data_ptr()
        assert other.tolist() == [1, 1, 1]


def test_forms_of_to() -> None:
    x = torch.ones(3)
    for arguments in (("cuda",), ("cuda:0", torch.float64), (0,), (to_card(x),)):
        assert isinstance(move(x, *arguments), CardTensor)
    assert move(x, "cuda", torch.float64).dtype == torch.float64
    assert type(move(to_card(x), "cpu")) is torch.Tensor
    assert type(move(to_card(x), x)) is torch.Tensor
    assert move(to_card(x), device=None, dtype=torch.float16, non_blocking=True).dtype == torch.float16
    assert move(x, None, None, True) is x


def test_new_memory_is_poison() -> None:
    x = unwritten(torch.empty(8))
    assert to_host(x).isnan().all()
    (region,) = memory_of([("x", x[2:6])]).regions
    assert (region.low, region.high) == (8, 24)
    assert region.defined is not None
    assert not region.defined.any()
    x[2:].fill_(0.0)
    (region,) = memory_of([("x", x)]).regions
    assert region.defined is not None
    assert region.defined.tolist() == [False] * 8 + [True] * 24
    to_card(torch.zeros(8)).copy_(x)
    assert not region.defined[0]


def test_operations_and_waits_are_counted() -> None:
    x = to_card(torch.ones(3))
    before, waits = LOG.operations.total(), LOG.synchronizations.total()
    y = (x + 1).view(3, 1).mul_(2)
    assert LOG.operations.total() == before + 2
    y.sum().item()
    to_host(y)
    assert LOG.synchronizations.total() == waits + 2


def test_arguments_of_a_kernel() -> None:
    assert raw_bits("x", "fp32", 1.5) == struct.unpack("<I", struct.pack("<f", 1.5))[0]
    assert raw_bits("x", "i32", -1) == 2**32 - 1
    assert raw_bits("x", "i1", True) == 1
    assert raw_bits("x", "*fp32", None) == 0
    with pytest.raises(ValueError, match="Pointer argument x cannot be accessed from Triton"):
        raw_bits("x", "*fp32", torch.ones(1))
    with pytest.raises(NotImplementedError, match="argument x of type nvTmaDesc"):
        raw_bits("x", "nvTmaDesc", None)
    assert list(flatten(("i32", ("fp32", "constexpr")), (1, (2.0, 3)))) == [("i32", 1), ("fp32", 2.0), ("constexpr", 3)]


def test_a_wait_can_be_forbidden() -> None:
    x = CardTensor(torch.ones(3))
    LOG.set_sync_debug_mode("error")
    try:
        x + 1
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
            x.sum().item()
    finally:
        LOG.set_sync_debug_mode("default")
    assert x.sum().item() == 3
