"""The correctness gate: no time is reported for an implementation that does not compute what the reference computes.

Errors and their bounds are those of ``kernels/contract.py``: spikes under C3, gradients and the step of the weights
under C4. A single layer's spikes are replayed in float64. A network's hidden spikes stay inside it, so its gate uses
inputs for which no membrane comes near the threshold: then every correct implementation makes the same spikes.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastsnn
from bench.cases import LEARNING_RATE, NEURON, Case, inputs
from bench.works import Layers, Outputs
from fastsnn.kernels import contract, philox, reference
from fastsnn.kernels.contract import Measurement, Trajectory
from fastsnn.kernels.neurons import LIF

_MOST_ELEMENTS = 1 << 23
_MOST_FLOPS = 1e11
_TRIES = 200
_BLACK_SPIKES = 4.0
"""Spikes of pixels of 0, in all: where a library fires at ``rand <= pixel``, one draw in 2^24 is one."""


def build(case: Case, images: Tensor, labels: Tensor) -> "Gate":
    """The gate of ``case``, on ``images`` uint8 [D, P] and ``labels`` [D] where it takes any."""
    return {"scan": LayerGate, "linear": LayerGate, "encoding": EncodingGate}.get(case.subject, NetworkGate)(
        case, images, labels
    )


class Gate:
    """``inputs`` go to each implementation's ``outputs``, which :meth:`failures` judges."""

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        raise NotImplementedError

    inputs: dict[str, Tensor]

    def measure(self, outputs: Outputs) -> list[Measurement]:
        raise NotImplementedError

    def failure(self, outputs: Outputs) -> str | None:
        """What is wrong with an implementation's outputs, in one line; None where nothing is."""
        wrong = [str(measurement) for measurement in self.measure(outputs) if not measurement.ok]
        return "; ".join(wrong) or None


class LayerGate(Gate):
    """One layer, judged by its own spikes: each is replayed in float64, and so are the gradients."""

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        self.case = case
        small = case.with_batch(_affordable_batch(case))
        self.inputs = inputs(small, images, labels)
        self.replayed: list[tuple[Tensor, Trajectory, dict[str, Tensor], dict[str, Tensor]]] = []

    def measure(self, outputs: Outputs) -> list[Measurement]:
        spikes = outputs["spikes"]
        path, exact, eager = self._replay(spikes)
        found = [contract.spikes_at_threshold(spikes, path.distance, path.bound)]
        if self.case.backward:
            found += [contract.gradient_error(name, outputs.get(name), exact[name], eager[name]) for name in exact]
        return found

    def _replay(self, spikes: Tensor) -> tuple[Trajectory, dict[str, Tensor], dict[str, Tensor]]:
        """What the spikes do in float64, and the gradients in float64 and in fp32; most peers share one."""
        for recorded, path, exact, eager in self.replayed:
            if torch.equal(recorded, spikes):
                return path, exact, eager
        current, magnitude = self.inputs.get("current"), None
        if current is None:
            x, weight = self.inputs["x"], self.inputs["weight0"]
            current, magnitude = F.linear(x.double(), weight.double()), contract.product_magnitude(x, weight, None)
        path = contract.trajectory(current, LIF(**NEURON), None, spikes, magnitude=magnitude)
        exact, eager = (self._gradients(spikes, dtype) for dtype in (torch.float64, torch.float32))
        self.replayed.append((spikes, path, exact, eager))
        return path, exact, eager

    def _gradients(self, spikes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        if not self.case.backward:
            return {}
        linear = self.case.subject == "linear"
        name = "weight0" if linear else "current"
        variable = self.inputs[name].to(dtype, copy=True).requires_grad_()
        current = F.linear(self.inputs["x"].to(dtype), variable) if linear else variable
        fired, _ = contract.replay(current, LIF(**NEURON), None, spikes)
        fired.backward(torch.ones_like(fired) if linear else self.inputs["grad"].to(dtype))
        assert variable.grad is not None
        return {name: variable.grad}


class NetworkGate(Gate):
    """One training step of a network on given spikes, from weights that make its neurons fire."""

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        # A deeper network has so many membranes that only few samples at a time are clear of the threshold.
        case = case.with_batch(case.B if len(case.sizes) == 2 else 2)
        x = inputs(case, images, labels, seed=1)
        x |= {name: 3 * x[name] for name in x if name.startswith("weight")}
        self.layers = len(case.sizes) - 1
        for epoch in range(_TRIES):
            x["spikes"] = fastsnn.poisson_encode(x["images"], case.T, epoch=epoch)
            if _clear_of_threshold(x, self.layers):
                break
        else:
            raise RuntimeError(f"no spikes of {_TRIES} keep every membrane of {case.name} off the threshold")
        self.case, self.inputs = case, x | {"epoch": torch.tensor(epoch)}
        self.exact, self.eager = (_train(x, self.layers, dtype) for dtype in (torch.float64, torch.float32))

    def measure(self, outputs: Outputs) -> list[Measurement]:
        found = [self._spikes(outputs)]
        for i in range(self.layers):
            name, start = f"weight{i}", self.inputs[f"weight{i}"].double()
            found.append(contract.gradient_error(name, outputs.get(name), self.exact[name], self.eager[name]))
            step, exact, eager = (o[f"trained{i}"].double() - start for o in (outputs, self.exact, self.eager))
            bound = max(contract.C4_FLOOR, 2 * contract.relative_error(eager, exact))
            found.append(Measurement("C4", f"step of {name}", contract.relative_error(step, exact), bound))
        return found

    def _spikes(self, outputs: Outputs) -> Measurement:
        expected = self.exact["spikes"]
        if "spikes" in outputs:
            return contract.same_bits("spikes", outputs["spikes"].double(), expected)
        # One spike more or less changes a sample's loss by at least 1 / (T^2 N).
        target = F.one_hot(self.inputs["labels"], self.case.sizes[-1])
        losses = (expected.mean(0) - target).square().mean(1)
        bound = 0.25 / self.case.T**2 / self.case.sizes[-1]
        return contract.close("losses of the samples", outputs["sample_losses"], losses, bound, "C1")


class EncodingGate(Gate):
    """Poisson spikes: 0 or 1, always of a pixel of 255, and as many as the intensities say. Ours are the reference's.

    Sums over a sample, over a time step and over everything may be six standard deviations off.
    """

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        self.case, self.inputs = case, inputs(case, images, labels)

    def measure(self, outputs: Outputs) -> list[Measurement]:
        spikes, p = outputs["encoded"].double(), self.inputs["images"].double() / 255
        if spikes.shape != (self.case.T, *p.shape):
            return [Measurement("encoding", "shape", math.inf, 0.0, str(list(spikes.shape)))]
        wrong = ((spikes != 0) & (spikes != 1)) | (spikes < 1) & (p == 1)
        never = (spikes > 0) & (p == 0)
        found = [
            Measurement("encoding", "impossible spikes", float(wrong.sum()), 0.0),
            Measurement("encoding", "spikes of black pixels", float(never.sum()), _BLACK_SPIKES),
        ]
        if "philox" in outputs:
            found.append(contract.same_bits("encoded spikes", outputs["philox"], self._reference(), "C5"))
        variance = (p * (1 - p)).expand_as(spikes)
        for what, axes in (("of a sample", (0, 2)), ("of a time step", (1, 2)), ("in all", (0, 1, 2))):
            deviation = variance.sum(axes).sqrt()
            error = (spikes - p).sum(axes).abs() / deviation.clamp(min=1)
            found.append(Measurement("encoding", f"spikes {what}, in standard deviations", float(error.max()), 6.0))
        return found

    def _reference(self) -> Tensor:
        """The spikes of ``poisson_encode`` with seed 0, from the reference of the random numbers."""
        levels = self.inputs["images"].to(torch.int64)
        thresholds = torch.where(levels == 255, philox.ALWAYS, 257 * levels)
        words = philox.poisson_words(thresholds, self.case.T, 0, 0, 0, torch.arange(len(levels)))
        return philox.unpack(words, self.case.T)


def _affordable_batch(case: Case) -> int:
    """As many samples of the case as float64 on the CPU is patient enough for."""
    elements, flops = case.T * case.sizes[-1], 4.0 * case.T * math.prod(case.sizes) if len(case.sizes) > 1 else 0.0
    return max(1, min(case.B, _MOST_ELEMENTS // elements, int(_MOST_FLOPS / flops) if flops else case.B))


def _clear_of_threshold(x: dict[str, Tensor], layers: int) -> bool:
    """Whether every membrane is farther from the threshold than rounding can carry it, in every layer."""
    spikes = x["spikes"].double()
    for i in range(layers):
        weight = x[f"weight{i}"].double()
        magnitude = contract.product_magnitude(spikes, weight, None)
        current = F.linear(spikes, weight)
        spikes, _ = reference.scan(current, LIF(**NEURON))
        path = contract.trajectory(current, LIF(**NEURON), None, spikes, magnitude=magnitude)
        if (path.distance.abs() <= path.bound).any():
            return False
    return True


def _train(x: dict[str, Tensor], layers: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """The reference's spikes, gradients and trained weights after one step of Adam."""
    network: nn.Module = Layers([x[f"weight{i}"].to(dtype) for i in range(layers)], _reference_lif)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    spikes = network(x["spikes"].to(dtype))
    F.mse_loss(spikes.mean(0), F.one_hot(x["labels"], spikes.shape[-1]).to(dtype)).backward()
    optimizer.step()
    found: dict[str, Any] = {"spikes": spikes.detach()}
    for i, parameter in enumerate(network.parameters()):
        assert parameter.grad is not None
        found |= {f"weight{i}": parameter.grad.double(), f"trained{i}": parameter.detach().double()}
    return found


def _reference_lif(current: Tensor) -> Tensor:
    return reference.scan(current, LIF(**NEURON))[0]
