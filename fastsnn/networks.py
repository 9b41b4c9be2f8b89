"""Networks from a line of text: ``800,400``, ``32c3-p2-64c3-p2-800`` or ``file.py:function``; and the layers they need.

Time comes first everywhere: [T, B, C, H, W] or [T, B, K]. Tests: ``tests/test_networks.py``.
"""

import importlib.util
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn.config import NetworkOptions
from fastsnn.initial_weights import random_spikes, scale_weights
from fastsnn.kernels.neurons import LI
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.network_notation import BatchNorm, Convolution, Linear, Pooling, parse_network
from fastsnn.nn import LinearLIF, Recurrent, Spiking


def is_spiking(module: nn.Module) -> bool:
    """Whether its output is spikes [T, B, ...], whose firing rates are watched."""
    return isinstance(module, (Spiking, LinearLIF, Recurrent)) and module.neuron.spikes


class Layers(nn.Sequential):
    """``nn.Sequential`` over time: spikes or currents [T, B, *shape] -> [T, B, classes].

    ``flat`` flattens what a sample has at one time step first, for linear layers; ``description`` says in a few words
    what the network is.
    """

    def __init__(self, *modules: nn.Module, flat: bool = False, description: str = "") -> None:
        super().__init__(*modules)
        self.flat, self.description = flat, description

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        if isinstance(x, PackedSpikes) and not isinstance(self[0], (LinearLIF, Recurrent, TimeDistributed)):
            x = x.unpack()
        output: Tensor = super().forward(flattened(x) if self.flat else x)
        return output


def flattened(x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
    """[T, B, ...] -> [T, B, K]."""
    if isinstance(x, Tensor):
        return x.flatten(2)
    return x._replace(words=x.words.flatten(2), carrier=None if x.carrier is None else x.carrier.flatten(2))


class TimeDistributed(nn.Module):
    """Any torch layer over all time steps at once: [T, B, ...] -> [T, B, ...] by way of [T * B, ...].

    A convolution is computed channels last, which is faster on CPUs and GPUs; the shapes stay channels first.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if any(isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)) for part in module.modules()):
            module = module.to(memory_format=torch.channels_last)
        self.module = module

    def forward(self, x: Tensor | PackedSpikes) -> Tensor:
        if isinstance(x, PackedSpikes):
            x = x.unpack()
        T, B = x.shape[:2]
        y: Tensor = self.module(x.flatten(0, 1))
        return y.unflatten(0, (T, B))


class SpatialSpiking(Spiking):
    """Neurons behind a convolution: [T, B, C, H, W] -> spikes [T, B, C, H, W], without a copy of either.

    Convolutions give and take channels last; seen that way, the currents lie in memory one after the other.
    """

    def forward(self, current: Tensor) -> Tensor:
        return super().forward(current.movedim(2, -1)).movedim(-1, 2)


def network_of(
    config: NetworkOptions,
    shape: Sequence[int],
    classes: int,
    backend: str,
    *,
    seed: int = 0,
    spiking_output: bool = True,
    inputs: Tensor | PackedSpikes | None = None,
) -> nn.Module:
    """The network that ``config`` describes, with initial weights drawn on the CPU from the seed.

    Args:
        config: hidden, net or network, and the neuron.
        shape: of a sample at one time step; (C, H, W) for convolutions.
        classes: output neurons.
        backend: of every layer of neurons.
        seed: of the initial weights; torch's own generator is left as it was.
        spiking_output: False for output neurons whose membrane potential is read.
        inputs: x [T, B, *shape] of some samples, by which the weights are scaled if there are hidden layers; default
            random spikes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.network is not None:
            return network_from_file(config.network, tuple(shape), classes)
        builder = _Builder(config, backend, tuple(shape))
        parts = parse_network(config.net, "net") if config.net else [Linear(size) for size in config.hidden]
        builder.add(parts)
        builder.output(classes, spiking_output)
        network = Layers(
            *builder.modules,
            flat=not builder.spatial,
            description=description_of(config, shape, classes, spiking_output),
        )
    if parts:
        x = random_spikes(shape) if inputs is None else inputs
        scale_weights(network, x if builder.spatial else flattened(x))
    return network


def description_of(config: NetworkOptions, shape: Sequence[int], classes: int, spiking_output: bool) -> str:
    """64 -> 100 -> 10 LIF neurons; or the network in the notation of papers."""
    kind = type(config.layer_neuron()).__name__
    neurons = f"{kind} neurons" if spiking_output else f"{kind} neurons, the last ones leaky integrators"
    neurons = f"recurrent {neurons}" if config.recurrent else neurons
    if config.net:
        return f"{' x '.join(map(str, shape))} -> {config.net}-{classes}, {neurons}"
    return " -> ".join(map(str, [math.prod(shape), *config.hidden, classes])) + f" {neurons}"


def accepted_input(network: nn.Module, x: Tensor | PackedSpikes) -> Tensor | PackedSpikes:
    """``x``, unpacked unless ``network`` takes packed spikes."""
    if isinstance(x, PackedSpikes) and not isinstance(network, (Layers, LinearLIF, Recurrent, TimeDistributed)):
        return x.unpack()
    return x


class _Builder:
    """Collects the modules of a network, with the shape of what the last one gives."""

    def __init__(self, config: NetworkOptions, backend: str, shape: tuple[int, ...]) -> None:
        self.neuron, self.bias, self.recurrent = config.layer_neuron(), config.bias, config.recurrent
        self.shape, self.per_neuron = shape, config.learn_per == "neuron"
        self.runs: dict[str, Any] = {"backend": backend, "recompute": config.recompute}
        self.modules: list[nn.Module] = []
        self.spatial = False

    def add(self, parts: Sequence[Linear | Convolution | Pooling | BatchNorm]) -> None:
        following = [*parts, None][1:]
        for part, after in zip(parts, following, strict=True):
            normed = isinstance(after, BatchNorm)
            if isinstance(part, Convolution):
                self._convolution(part, normed)
            elif isinstance(part, Pooling):
                self._pooling(part)
            elif isinstance(part, Linear):
                self._linear(part.size, normed, self.recurrent)

    def output(self, classes: int, spiking: bool) -> None:
        if spiking:
            self._linear(classes, normed=False)
            return
        self._flatten()
        self.modules.append(nn.Linear(self.shape[0], classes, self.bias))
        tau = getattr(self.neuron, "tau", LI.tau)
        self.modules.append(Spiking(LI(tau, getattr(self.neuron, "decay_input", True)), **self.runs))

    def _convolution(self, part: Convolution, normed: bool) -> None:
        if len(self.shape) != 3:
            raise ValueError(
                f"net has the convolution {part} of data of shape {list(self.shape)}; allowed: linear layers, for a "
                "convolution needs [channels, height, width]"
            )
        self.spatial = True
        channels, height, width = self.shape
        convolution = nn.Conv2d(
            channels, part.channels, part.kernel, part.stride, padding=part.kernel // 2, bias=self.bias
        )
        self.modules.append(TimeDistributed(convolution))
        if normed:
            self.modules.append(TimeDistributed(nn.BatchNorm2d(part.channels)))
        self.modules.append(SpatialSpiking(self.neuron, **self.runs))
        sizes = [(size + 2 * (part.kernel // 2) - part.kernel) // part.stride + 1 for size in (height, width)]
        self._resize(part, part.channels, *sizes)

    def _pooling(self, part: Pooling) -> None:
        if not self.spatial:
            raise ValueError(f"net has the pooling {part} before any convolution; allowed: after one, as in 32c3-p2")
        pool = nn.AvgPool2d(part.size) if part.average else nn.MaxPool2d(part.size)
        self.modules.append(TimeDistributed(pool))
        channels, height, width = self.shape
        self._resize(part, channels, height // part.size, width // part.size)

    def _resize(self, part: Convolution | Pooling, channels: int, height: int, width: int) -> None:
        if min(height, width) < 1:
            raise ValueError(f"net has {part} of a picture of {self.shape[1]} x {self.shape[2]}; allowed: smaller ones")
        self.shape = (channels, height, width)

    def _linear(self, size: int, normed: bool, recurrent: bool = False) -> None:
        self._flatten()
        inputs, learnt = self.shape[0], (size,) if self.per_neuron else ()
        if normed:
            self.modules.append(nn.Linear(inputs, size, self.bias))
            self.modules.append(TimeDistributed(nn.BatchNorm1d(size)))
            self.modules.append(Spiking(self.neuron, size=learnt, **self.runs))
        elif recurrent:
            self.modules.append(Recurrent(inputs, size, self.neuron, self.bias, size=learnt, **self.runs))
        else:
            self.modules.append(LinearLIF(inputs, size, self.bias, self.neuron, size=learnt, **self.runs))
        self.shape = (size,)

    def _flatten(self) -> None:
        if self.spatial and len(self.shape) > 1:
            self.modules.append(nn.Flatten(2))
        self.shape = (math.prod(self.shape),)


def network_from_file(text: str, shape: tuple[int, ...], classes: int) -> nn.Module:
    """What the function of ``file.py:function`` makes of (shape, classes); ValueError says what is wrong with it."""
    path, _, function = text.rpartition(":")
    if not path or not function:
        raise ValueError(f"network is {text!r}; allowed: file.py:function")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"network is {text!r}, but there is no file {path}; allowed: file.py:function")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"network is {text!r}, but {path} is no Python file; allowed: file.py:function")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))  # it may import what lies beside it
    try:
        spec.loader.exec_module(module)
        make = getattr(module, function, None)
        if not callable(make):
            raise ValueError(f"network is {text!r}, but {path} has no function {function}")
        network = make(shape, classes)
    except ValueError:
        raise
    except Exception as error:  # whatever a user's code raises
        reason = " ".join(str(error).split())
        raise ValueError(f"network is {text!r}, which raised {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(str(file.parent))
    if not isinstance(network, nn.Module):
        raise ValueError(f"network is {text!r}, which returned a {type(network).__name__}; allowed: an nn.Module")
    return network
