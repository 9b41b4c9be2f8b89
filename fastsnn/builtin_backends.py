"""The four backends that fastsnn comes with; ``backends.py`` registers and chooses them."""

import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

from fastsnn.backend_protocol import Parameters
from fastsnn.kernels import linear as linear_operation
from fastsnn.kernels import recurrent as recurrent_operation
from fastsnn.kernels import reference
from fastsnn.kernels import scan as scan_operation
from fastsnn.kernels.neurons import LIF, Neuron
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.kernels.triton import toolchain_refusal


class ScanBackend:
    """What the two backends that have a scan, but no product of their own, have in common: torch's product."""

    paths: tuple[str, ...] = ("auto",)

    def scan(
        self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def linear(
        self, x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None, neuron: Neuron, state: Tensor | None,
        parameters: Parameters, packed: bool, path: str,
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        dense = x.unpack() if isinstance(x, PackedSpikes) else x
        current = torch.nn.functional.linear(dense.to(weight.dtype), weight, bias)
        output, last = self.scan(current, neuron, state, parameters)
        return PackedSpikes.pack(output) if packed else output, last

    def rate_classifier(self) -> ModuleType | None:
        return None


class TorchBackend(ScanBackend):
    """The reference equations, under torch's autograd."""

    name = "torch"

    def refusal(self, device: torch.device) -> str | None:
        return None

    def neuron_refusal(
        self, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int = 0
    ) -> str | None:
        return None

    def scan(
        self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        # States stay in fp32 whatever the current's precision, as in the fused kernels.
        half = current.dtype in (torch.float16, torch.bfloat16)
        states = None if state is None else tuple(state)
        output, last = reference.scan(current.float() if half else current, neuron, states, parameters)
        return output.to(current.dtype), torch.stack(last)

    def recurrent(
        self, x: Tensor | PackedSpikes, weight: Tensor, recurrent_weight: Tensor, bias: Tensor | None, neuron: Neuron,
        state: Tensor | None, initial: Tensor | None, parameters: Parameters, packed: bool,
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        dense = x.unpack() if isinstance(x, PackedSpikes) else x
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        states, b = None if state is None else tuple(state), None if bias is None else bias.to(wide)
        operands = dense.to(wide), weight.to(wide), recurrent_weight.to(wide)
        output, last = reference.recurrent(*operands, b, neuron, states, initial, parameters)
        return PackedSpikes.pack(output) if packed else output.to(weight.dtype), torch.stack(last)


class CompiledBackend:
    """What the two backends with kernels of fastsnn's own have in common: the operators of torch."""

    name: str
    paths: tuple[str, ...] = ("auto",)
    recomputes = True

    def neuron_refusal(
        self, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int = 0
    ) -> str | None:
        if dtype == torch.float64:
            return "its kernels compute in fp32, not in float64"
        return None

    def scan(
        self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Parameters, recompute: str = "auto"
    ) -> tuple[Tensor, Tensor]:
        return scan_operation.scan(current, neuron, state, parameters, self.name, recompute)

    def linear(
        self, x: Tensor | PackedSpikes, weight: Tensor, bias: Tensor | None, neuron: Neuron, state: Tensor | None,
        parameters: Parameters, packed: bool, path: str, recompute: str = "auto",
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        return linear_operation.linear(x, weight, bias, neuron, state, parameters, self.name, packed, path, recompute)

    def recurrent(
        self, x: Tensor | PackedSpikes, weight: Tensor, recurrent_weight: Tensor, bias: Tensor | None, neuron: Neuron,
        state: Tensor | None, initial: Tensor | None, parameters: Parameters, packed: bool, recompute: str = "auto",
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        return recurrent_operation.recurrent(
            x, weight, recurrent_weight, bias, neuron, state, initial, parameters, self.name, packed, recompute
        )


class NumbaBackend(CompiledBackend):
    """Numba's kernels, on the CPU."""

    name = "numba"

    def refusal(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else "it computes on the CPU; use --device cpu, or the triton backend"

    def rate_classifier(self) -> ModuleType | None:
        from fastsnn.kernels.rate_classifier.numba import step

        return step


class TritonBackend(CompiledBackend):
    """Triton's kernels, on a GPU (or in its interpreter, which is slow)."""

    name = "triton"
    paths: tuple[str, ...] = ("auto", "fused", "library")

    def refusal(self, device: torch.device) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; on Linux: pip install triton"
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            interpreter = "set TRITON_INTERPRET=1 for Triton's interpreter, which is very slow"
            return f"it needs a CUDA GPU; use --backend numba, or {interpreter}"
        return toolchain_refusal() if device.type == "cuda" else None

    def neuron_refusal(
        self, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int = 0
    ) -> str | None:
        from fastsnn.kernels.triton.recurrent import MAX_NEURONS, too_many

        if size > MAX_NEURONS:
            return too_many(size)
        return super().neuron_refusal(neuron, dtype, learns, operation, size)

    def rate_classifier(self) -> ModuleType | None:
        from fastsnn.kernels.rate_classifier.triton import step

        return step


class CupyBackend(ScanBackend):
    """SpikingJelly's own CUDA kernels."""

    name = "cupy"

    def refusal(self, device: torch.device) -> str | None:
        from fastsnn import spikingjelly

        return spikingjelly.refusal(device)

    def neuron_refusal(
        self, neuron: Neuron, dtype: torch.dtype, learns: bool, operation: str, size: int = 0
    ) -> str | None:
        from fastsnn import spikingjelly

        if operation == "recurrent":
            return "SpikingJelly has no kernel for a recurrent layer"
        return spikingjelly.neuron_refusal(neuron, dtype, learns)

    def scan(
        self, current: Tensor, neuron: Neuron, state: Tensor | None, parameters: Parameters
    ) -> tuple[Tensor, Tensor]:
        from fastsnn import spikingjelly

        assert isinstance(neuron, LIF)
        spikes, v = spikingjelly.lif(current, neuron, None if state is None else state[0])
        return spikes, v[None]

    def recurrent(
        self, x: Tensor | PackedSpikes, weight: Tensor, recurrent_weight: Tensor, bias: Tensor | None, neuron: Neuron,
        state: Tensor | None, initial: Tensor | None, parameters: Parameters, packed: bool,
    ) -> tuple[Tensor | PackedSpikes, Tensor]:  # fmt: skip
        raise ValueError("backend cupy cannot compute this: SpikingJelly has no kernel for a recurrent layer")
