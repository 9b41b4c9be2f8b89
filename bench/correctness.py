"""Equal mathematics: no time is reported for an implementation that does not compute what the reference computes.

A few samples go through fastsnn's torch backend in float64. They are drawn until no membrane of any layer comes near
its threshold, so that every correct implementation makes the same spikes, in whatever order it adds. Then outputs,
gradients and the weights after a step of Adam have the bounds of ``kernels/contract.py``.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastsnn
from bench import cases, tasks
from bench.cases import Case
from bench.fastsnn_tasks import Fastsnn
from bench.tasks import Outputs
from fastsnn.kernels import contract, philox
from fastsnn.kernels.contract import Measurement
from fastsnn.networks import is_spiking

_CLEAR = 1e-5
"""How near to the threshold no membrane comes, in thresholds: far more than rounding in fp32 makes."""
_TRIES = 300
_BLACK_SPIKES = 4.0
"""Spikes of pixels of 0, in all: where a library fires at ``rand <= pixel``, one draw in 2^24 is one."""


def build(case: Case, images: Tensor, labels: Tensor) -> "NetworkCheck | EncodingCheck":
    """The check of ``case``, on ``images`` uint8 [D, P] and ``labels`` [D] if it takes any."""
    return (EncodingCheck if case.task == "encoding" else NetworkCheck)(case, images, labels)


class NetworkCheck:
    """``inputs`` go to each implementation's ``outputs``, which :meth:`failure` judges."""

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        self.case = case = case.smaller()
        self.peer = Fastsnn("fastsnn-torch", torch.device("cpu"))
        for attempt in range(_TRIES):
            x = cases.inputs(case, images, labels, seed=attempt)
            if case.encodes:
                x |= {name: (3 if name == "weight0" else 8) * x[name] for name in x if name.startswith("weight")}
                x |= {"x": fastsnn.poisson_encode(x["images"], case.T, epoch=attempt), "epoch": torch.tensor(attempt)}
            if self._clear_of_threshold(x):
                break
        else:
            raise RuntimeError(f"no inputs of {_TRIES} make every layer of {case.name} fire, clear of the threshold")
        self.inputs = x
        self.exact, self.eager = (self._reference(x, dtype).outputs(x) for dtype in (torch.float64, torch.float32))

    def failure(self, outputs: Outputs) -> str | None:
        """What is wrong with an implementation's outputs, in one line; None if nothing is."""
        wrong = [str(measurement) for measurement in self.measure(outputs) if not measurement.ok]
        return "; ".join(wrong) or None

    def measure(self, outputs: Outputs) -> list[Measurement]:
        found = [self._output(outputs)]
        for name, exact in self.exact.items():
            if name.startswith("gradient of "):
                what = name.removeprefix("gradient of ")
                found.append(contract.gradient_error(what, outputs.get(name), exact, self.eager[name]))
            elif name.startswith("trained"):
                found.append(self._step(f"weight{name.removeprefix('trained')}", name, outputs))
        return found

    def _step(self, weight: str, trained: str, outputs: Outputs) -> Measurement:
        """Of Adam, which makes a whole step of any gradient: where it is nearly 0, rounding decides on its sign."""
        gradient, start = self.exact[f"gradient of {weight}"].abs(), self.inputs[weight].double()
        decided = gradient > 1e-3 * gradient.max()
        step, exact, eager = ((o[trained].double() - start)[decided] for o in (outputs, self.exact, self.eager))
        bound = max(contract.C4_FLOOR, 2 * contract.relative_error(eager, exact))
        return Measurement("C4", f"step of {weight}", contract.relative_error(step, exact), bound)

    def _output(self, outputs: Outputs) -> Measurement:
        expected = self.exact["output"]
        if "sample_losses" in outputs:
            # One spike more or less changes a sample's loss by at least 1 / (T^2 N).
            target = F.one_hot(self.inputs["labels"], self.case.sizes[-1])
            losses = (expected.mean(0) - target).square().mean(1)
            bound = 0.25 / self.case.T**2 / self.case.sizes[-1]
            return contract.close("losses of the samples", outputs["sample_losses"], losses, bound, "C1")
        if not self.case.readout:
            return contract.same_bits("spikes", outputs["output"].double(), expected)
        bound = max(contract.C4_FLOOR, 2 * contract.relative_error(self.eager["output"], expected))
        return Measurement("C4", "potentials", contract.relative_error(outputs["output"], expected), bound)

    def _reference(self, x: dict[str, Tensor], dtype: torch.dtype) -> "_Reference":
        return _Reference(self.peer, self.case, {n: t.to(dtype) if t.is_floating_point() else t for n, t in x.items()})

    def _clear_of_threshold(self, x: dict[str, Tensor]) -> bool:
        """Whether thresholds a little higher or lower leave every layer's spikes the same; the layers must fire."""
        runs = []
        for factor in (1.0, 1 + _CLEAR, 1 - _CLEAR):
            network = self._reference(x, torch.float64).network
            seen: list[Tensor] = []
            for module in network.modules():
                if is_spiking(module):
                    threshold = module.neuron.v_threshold * factor  # type: ignore[union-attr, operator]
                    module.neuron = replace(module.neuron, v_threshold=threshold)  # type: ignore[type-var]
                    module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
            with torch.no_grad():
                network(x["x"].double())
            runs.append(seen)
        return all(layer.any() for layer in runs[0]) and all(
            torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True)
        )


class _Reference(tasks.TorchTask):
    """fastsnn's torch backend in the dtype of its inputs."""

    def __init__(self, peer: Fastsnn, case: Case, x: dict[str, Tensor]) -> None:
        self.dtype = x["x"].dtype
        super().__init__(peer, case, {name: tensor for name, tensor in x.items() if name != "images"}, peer.device)

    def start(self, case: Case, x: dict[str, Tensor]) -> tuple[nn.Module, Any]:
        network, optimizer = super().start(case, x)
        network.to(self.dtype)  # the optimizer keeps the same parameters
        tasks.load(network, x)
        return network, optimizer

    def outputs(self, x: dict[str, Tensor]) -> Outputs:
        x = {name: tensor.to(self.dtype) if tensor.is_floating_point() else tensor for name, tensor in x.items()}
        return super().outputs(x)


class EncodingCheck:
    """Poisson spikes: 0 or 1, always of a pixel of 255, as many as the intensities say; fastsnn's are its reference's.

    Sums over a sample, over a time step and over everything may be six standard deviations off.
    """

    def __init__(self, case: Case, images: Tensor, labels: Tensor) -> None:
        self.case, self.inputs = case, cases.inputs(case, images, labels)

    failure = NetworkCheck.failure

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
