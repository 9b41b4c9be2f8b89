"""Twelve networks in the manner of public ones, before and after ``accelerate``: the same output and gradients."""

import copy

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

import fastsnn
from bench.public_networks import NETWORKS, build

KEPT = {"mixed": 2}
"""Network -> spiking layers that are kept."""


def outcome(net: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = x.clone().requires_grad_()
    output = net(x)
    generator = torch.Generator().manual_seed(1)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    functional.reset_net(net)
    assert x.grad is not None
    return output.detach(), [x.grad, *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_output_and_gradients(name: str) -> None:
    original, x = build(name)
    fast, report = fastsnn.accelerate(copy.deepcopy(original))
    assert sum(row.outcome == "kept" for row in report) == KEPT.get(name, 0)
    assert any(row.outcome != "kept" for row in report)
    assert list(fast.state_dict()) == list(original.state_dict())
    (expected, grads), (found, actual) = outcome(original, x), outcome(fast, x)
    assert torch.equal(found, expected)
    assert expected.abs().mean() > 0.01
    for wanted, grad in zip(grads, actual, strict=True):
        assert torch.linalg.norm(grad - wanted) <= 1e-5 * torch.linalg.norm(wanted)
    assert any(torch.linalg.norm(grad) > 0 for grad in grads[1:])
