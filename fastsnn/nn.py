"""Layers of neurons as ``nn.Module``s, over whichever backend is asked for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn.arguments import checked_neuron
from fastsnn.functional import linear, recurrent, scan
from fastsnn.kernels.neurons import Neuron
from fastsnn.kernels.packed import PackedSpikes


class Spiking(nn.Module):
    """A layer of neurons over given currents: [T, B, ...] -> [T, B, ...]. See :func:`fastsnn.scan`.

    Every call starts at rest.

    Args:
        neuron: the neuron; default ``fastsnn.LIF()``.
        learn: names of its parameters that learn; default those that the neuron itself names (tau of ``PLIF``).
        size: shape of each learnt parameter: () for one for the layer, (N,) for one per neuron, (C, 1, 1) for one per
            channel.
        backend: ``auto``, ``torch``, ``cupy``, ``triton``, ``numba``, or one that was registered.
        recompute: ``auto``, ``on`` or ``off``: whether backward computes again what it needs of each time step.

    Raises TypeError or ValueError for a neuron or a name that isn't one.
    """

    def __init__(
        self,
        neuron: Neuron | None = None,
        learn: Sequence[str] | None = None,
        size: Sequence[int] = (),
        backend: str = "auto",
        recompute: str = "auto",
    ) -> None:
        super().__init__()
        self.neuron, self.backend, self.recompute = checked_neuron(neuron), backend, recompute
        self.learns = add_learnt_parameters(self, self.neuron, learn, size)

    def forward(self, current: Tensor) -> Tensor:
        learnt = {name: getattr(self, name) for name in self.learns}
        return scan(current, self.neuron, parameters=learnt, backend=self.backend, recompute=self.recompute)[0]

    def extra_repr(self) -> str:
        return f"{self.neuron}, backend={self.backend!r}{_recompute(self)}"


class LinearLIF(nn.Linear):
    """``nn.Linear`` followed by neurons, fused: [T, B, K] -> spikes [T, B, N]. See :func:`fastsnn.linear`.

    Weights, their initial values and the keys of ``state_dict`` are nn.Linear's, so the weights of a pair of
    SpikingJelly's ``layer.Linear`` and ``neuron.LIFNode`` load as they are. Every call starts at rest. A layer with
    ``packed`` hands packed spikes to the next one, as the first of
    ``nn.Sequential(LinearLIF(784, 1000, packed=True), LinearLIF(1000, 10))``. ``learn``, ``size`` and
    ``recompute`` are those of :class:`Spiking`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        neuron: Neuron | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        packed: bool = False,
        path: str = "auto",
        learn: Sequence[str] | None = None,
        size: Sequence[int] = (),
        recompute: str = "auto",
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.neuron, self.backend = checked_neuron(neuron), backend
        self.packed, self.path, self.recompute = packed, path, recompute
        self.learns = add_learnt_parameters(self, self.neuron, learn, size, self.weight)

    def forward(self, x: Tensor | PackedSpikes) -> Any:
        output, _ = linear(
            x,
            self.weight,
            self.bias,
            self.neuron,
            parameters={name: getattr(self, name) for name in self.learns},
            backend=self.backend,
            packed=self.packed,
            path=self.path,
            recompute=self.recompute,
        )
        return output

    def extra_repr(self) -> str:
        packed, path = ", packed=True" * self.packed, f", path={self.path!r}" * (self.path != "auto")
        return f"{super().extra_repr()}, {self.neuron}, backend={self.backend!r}{packed}{path}{_recompute(self)}"


class Recurrent(nn.Module):
    """A linear layer and neurons whose outputs come back one step later, fused: [T, B, K] -> [T, B, N].

    See :func:`fastsnn.recurrent`. Every call starts at rest.

    Args:
        in_features, out_features: K and N.
        neuron, learn, size, backend, recompute: see :class:`Spiking`.
        bias: whether the current has a bias.
        diagonal: each neuron comes back to itself alone: N recurrent weights instead of N * N.
        packed: hand packed spikes to the next layer.

    ``weight`` [N, K] and ``bias`` start as nn.Linear's, ``recurrent_weight`` [N, N] as an orthogonal matrix (its
    diagonal [N] uniform in -1 to 1).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        neuron: Neuron | None = None,
        bias: bool = True,
        diagonal: bool = False,
        backend: str = "auto",
        packed: bool = False,
        learn: Sequence[str] | None = None,
        size: Sequence[int] = (),
        recompute: str = "auto",
    ) -> None:
        super().__init__()
        linear_layer = nn.Linear(in_features, out_features, bias)
        self.weight, self.bias = linear_layer.weight, linear_layer.bias
        back = torch.empty(out_features) if diagonal else torch.empty(out_features, out_features)
        self.recurrent_weight = nn.Parameter(nn.init.uniform_(back, -1, 1) if diagonal else nn.init.orthogonal_(back))
        self.neuron, self.backend, self.packed = checked_neuron(neuron), backend, packed
        self.recompute = recompute
        self.learns = add_learnt_parameters(self, self.neuron, learn, size)

    def forward(self, x: Tensor | PackedSpikes) -> Any:
        output, _ = recurrent(
            x,
            self.weight,
            self.recurrent_weight,
            self.bias,
            self.neuron,
            parameters={name: getattr(self, name) for name in self.learns},
            backend=self.backend,
            packed=self.packed,
            recompute=self.recompute,
        )
        return output

    def extra_repr(self) -> str:
        N, K = self.weight.shape
        diagonal, recompute = ", diagonal=True" * (self.recurrent_weight.dim() == 1), _recompute(self)
        return f"{K}, {N}, {self.neuron}, bias={self.bias is not None}{diagonal}, backend={self.backend!r}{recompute}"


def _recompute(layer: Any) -> str:
    return f", recompute={layer.recompute!r}" * (layer.recompute != "auto")


@torch.no_grad()
def keep_in_bounds(network: nn.Module) -> None:
    """Move learnt parameters of neurons that left their neuron's ``bounds`` back to them, in place.

    A time constant below 0 or an adaptation that excites itself makes potentials grow without end. ``fastsnn.fit`` and
    ``fastsnn train`` do this after each step of the optimizer; call it there in a training loop of your own.
    """
    for module in network.modules():
        if isinstance(module, Spiking | LinearLIF | Recurrent):
            for name in set(module.learns) & module.neuron.bounds.keys():
                getattr(module, name).clamp_(*module.neuron.bounds[name])


def add_learnt_parameters(
    module: nn.Module,
    neuron: Neuron,
    learn: Sequence[str] | None,
    size: Sequence[int],
    weight: Tensor | None = None,
) -> tuple[str, ...]:
    """Give a layer the parameters of its neurons that learn, under their own names; returns the names.

    They lie where its ``weight`` does. Half precision is not for them.
    """
    double = weight is not None and weight.dtype == torch.float64
    dtype, device = torch.float64 if double else torch.float32, None if weight is None else weight.device
    values = neuron.parameters()
    names = tuple(neuron.learns if learn is None else learn)
    for name in names:
        if name not in neuron.learnable():
            raise ValueError(f"learn has {name!r}; {type(neuron).__name__} allows: {', '.join(neuron.learnable())}")
        if hasattr(module, name):
            raise ValueError(
                f"learn has {name!r}, which {type(module).__name__} has too; give the parameter another name"
            )
        module.register_parameter(name, nn.Parameter(torch.full(tuple(size), values[name], dtype=dtype, device=device)))
    return names
