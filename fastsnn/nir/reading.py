"""A NIR graph as a network: :func:`from_nir`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastsnn.kernels.neurons import IF, LI, LIF, CuBaLIF, Neuron
from fastsnn.networks import SpatialSpiking, TimeDistributed
from fastsnn.nir.layers import Scale, Threshold, check_dt, import_nir
from fastsnn.nn import LinearLIF, Recurrent, Spiking

Edges = set[tuple[str, str]]


def from_nir(graph: Any, *, dt: float | None = None, backend: str = "auto") -> nn.Sequential:
    """The network that a NIR graph describes: [T, B, ...] -> [T, B, ...]; what can't be expressed is refused by name.

    The discretisation is that of ``fastsnn.nir``: forward Euler with ``dt``, so tau in time steps is tau / dt. A
    parameter that differs between neurons becomes one that learns. Where r or w_in isn't what fastsnn's neurons have, a
    :class:`~fastsnn.nir.Scale` stands before them. The threshold is read as the next larger fp32 number, at which
    fastsnn fires; surrogates are the default.

    Args:
        graph: a ``nir.NIRGraph``, or the file of one.
        dt: seconds of a time step; default the one that the graph names (``metadata["dt"]``), or 1e-4. Graphs whose
            neurons are in time steps (Sinabs writes IF so) have dt = 1.
        backend: of every layer of neurons.

    Raises:
        ImportError: the package nir is missing.
        TypeError, ValueError: the graph is none, or a node of it is not among Affine, Linear, Conv2d, SumPool2d,
            AvgPool2d, Flatten, Scale, IF, LIF, CubaLIF, LI, Threshold in a chain with recurrent connections of neurons
            to themselves; or its neurons leak to another potential than they reset to.
    """
    import_nir()
    import nir

    if isinstance(graph, (str, Path)):
        graph = nir.read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph is {type(graph).__name__}; allowed: a nir.NIRGraph, or the file of one")
    dt = check_dt(graph.metadata.get("dt", 1e-4) if dt is None else dt if not isinstance(dt, np.generic) else dt.item())
    nodes, edges = _flat(graph)
    return nn.Sequential(*_Reader(nodes, edges, dt, backend).modules())


def _flat(graph: Any, prefix: str = "") -> tuple[dict[str, Any], Edges]:
    """Nodes and edges without subgraphs, which become part of the graph; their inputs and outputs stay as nodes."""
    import nir

    nodes: dict[str, Any] = {}
    edges: Edges = set()
    first, last = {}, {}
    for name, node in graph.nodes.items():
        full = f"{prefix}{name}"
        first[name] = last[name] = full
        if not isinstance(node, nir.NIRGraph):
            nodes[full] = node
            continue
        inner, inner_edges = _flat(node, f"{full}.")
        ends = [[key for key, part in inner.items() if type(part) is kind and key.count(".") == full.count(".") + 1]
                for kind in (nir.Input, nir.Output)]  # fmt: skip
        if [len(end) for end in ends] != [1, 1]:
            raise ValueError(
                f"node {full!r} (NIRGraph) has {len(ends[0])} inputs and {len(ends[1])} outputs; allowed: 1"
            )
        first[name], last[name] = ends[0][0], ends[1][0]
        nodes |= inner
        edges |= inner_edges
    return nodes, edges | {(last[a], first[b]) for a, b in graph.edges}


class _Reader:
    """Follows a flat graph from its input to its output."""

    def __init__(self, nodes: dict[str, Any], edges: Edges, dt: float, backend: str) -> None:
        self.nodes, self.dt, self.backend = nodes, dt, backend
        self.after = {name: sorted(b for a, b in edges if a == name) for name in nodes}
        self.before = {name: sorted(a for a, b in edges if b == name) for name in nodes}
        self.layers: list[nn.Module] = []

    def modules(self) -> list[nn.Module]:
        starts = [name for name in self.nodes if not self.before[name]]
        if len(starts) != 1:
            raise ValueError(f"the graph begins at {', '.join(starts) or 'no node'}; allowed: one input")
        name, came_from, seen = starts[0], "", set()
        while name:
            seen.add(name)
            back = self._back(name)
            following = [other for other in self.after[name] if other != back]
            preceding = [other for other in self.before[name] if other not in (back, came_from)]
            if len(following) > 1 or preceding or any(other in seen for other in following):
                joined = ", ".join([*preceding, *following])
                raise ValueError(
                    f"{self._called(name)} is connected to {joined}; allowed: a chain, with connections of neurons to "
                    "themselves by one Affine or Linear"
                )
            if back:
                seen.add(back)
            self._add(name, back)
            name, came_from = (following or [""])[0], name
        if rest := [other for other in self.nodes if other not in seen]:
            raise ValueError(f"{self._called(rest[0])} is not between input and output; allowed: a chain of nodes")
        return self.layers

    def _called(self, name: str) -> str:
        return f"node {name!r} ({type(self.nodes[name]).__name__})"

    def _back(self, name: str) -> str:
        """The node that leads from a node's output to its input again, or ''."""
        import nir

        for other in self.after[name]:
            linear = isinstance(self.nodes[other], (nir.Affine, nir.Linear))
            if linear and self.after[other] == [name] and self.before[other] == [name]:
                return other
        return ""

    def _add(self, name: str, back: str) -> None:
        import nir

        node = self.nodes[name]
        if isinstance(node, (nir.IF, nir.LIF, nir.CubaLIF, nir.LI, nir.Threshold)):
            self._add_neurons(name, node, back)
            return
        if back:
            raise ValueError(f"{self._called(name)} is connected to itself; allowed: neurons")
        if isinstance(node, (nir.Input, nir.Output)):
            return
        if isinstance(node, (nir.Affine, nir.Linear)):
            self.layers.append(self._linear(name, node))
        elif isinstance(node, nir.Conv2d):
            self.layers.append(TimeDistributed(_convolution(node)))
        elif isinstance(node, (nir.SumPool2d, nir.AvgPool2d)):
            kernel, stride, padding = (_pair(value) for value in (node.kernel_size, node.stride, node.padding))
            divisor = 1 if isinstance(node, nir.SumPool2d) else None
            self.layers.append(TimeDistributed(nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)))
        elif isinstance(node, nir.Flatten):
            start, end = int(node.start_dim), int(node.end_dim)
            self.layers.append(nn.Flatten(start + 2 if start >= 0 else start, end + 2 if end >= 0 else end))
        elif isinstance(node, nir.Scale):
            self.layers.append(Scale(_tensor(node.scale)))
        else:
            allowed = "Affine, Linear, Conv2d, SumPool2d, AvgPool2d, Flatten, Scale, IF, LIF, CubaLIF, LI, Threshold"
            raise ValueError(f"{self._called(name)} has no counterpart in fastsnn; allowed: {allowed}")

    def _linear(self, name: str, node: Any) -> nn.Linear:
        if node.weight.ndim != 2:
            raise ValueError(f"{self._called(name)} has a weight of shape {list(node.weight.shape)}; allowed: [N, K]")
        bias = getattr(node, "bias", None)
        outputs, inputs = node.weight.shape
        layer = nn.Linear(inputs, outputs, bias is not None)
        layer.weight.data = _tensor(node.weight)
        if bias is not None:
            layer.bias.data = _tensor(bias)
        return layer

    def _add_neurons(self, name: str, node: Any, back: str) -> None:
        """Neurons, together with the linear layer before and what leads back, if there are such."""
        kind, options, values, scale = self._neuron(name, node)
        mixed = {field: array for field, array in values.items() if np.unique(array).size > 1}
        try:
            neuron = kind(**options, **{field: float(array.flat[0]) for field, array in values.items()})  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{self._called(name)}: {error}") from error
        if refused := mixed.keys() - (set(neuron.learnable()) - {"v_reset"}):
            raise ValueError(
                f"{self._called(name)} has {refused.pop()} that differs between neurons; allowed: one value"
            )
        size = next(iter(values.values())).shape
        scaled = not np.all(scale == 1)
        given: dict[str, Any] = {"learn": tuple(mixed), "size": size, "backend": self.backend}
        before = self.layers[-1] if self.layers else None
        layer: Any
        if back:
            if type(before) is not nn.Linear:
                raise ValueError(
                    f"{self._called(name)} is recurrent without an Affine or Linear before it; allowed: one"
                )
            layer = self._recurrent(neuron, before, self._linear(back, self.nodes[back]), scale, given)
            self.layers[-1] = layer
        elif type(before) is nn.Linear and not scaled:
            layer = LinearLIF(before.in_features, before.out_features, before.bias is not None, neuron, **given)
            layer.weight, layer.bias = before.weight, before.bias
            self.layers[-1] = layer
        else:
            if scaled:
                self.layers.append(Scale(_tensor(scale)))
            layer = (SpatialSpiking if len(size) == 3 and not mixed else Spiking)(neuron, **given)
            self.layers.append(layer)
        for field, array in mixed.items():
            getattr(layer, field).data = _tensor(array)

    def _recurrent(
        self, neuron: Neuron, before: nn.Linear, back: nn.Linear, scale: np.ndarray, given: dict[str, Any]
    ) -> Recurrent:
        bias = before.bias if back.bias is None else back.bias if before.bias is None else before.bias + back.bias
        layer = Recurrent(before.in_features, before.out_features, neuron, bias is not None, **given)
        rows = _tensor(np.broadcast_to(scale, before.out_features).copy())
        layer.weight.data = before.weight.detach() * rows[:, None]
        layer.recurrent_weight.data = back.weight.detach() * rows[:, None]
        if bias is not None:
            layer.bias.data = bias.detach() * rows
        return layer

    def _neuron(self, name: str, node: Any) -> tuple[type[Neuron], dict[str, Any], dict[str, np.ndarray], np.ndarray]:
        """The class, its options, its parameters as arrays, and what the input is multiplied with first."""
        import nir

        dt = self.dt
        if isinstance(node, nir.Threshold):
            return Threshold, {}, {"v_threshold": _above(node.threshold)}, np.ones(())
        if isinstance(node, nir.IF):
            return (
                IF,
                {},
                {"v_threshold": _above(node.v_threshold), "v_reset": _double(node.v_reset)},
                _tidy(node.r * dt, _digits(node.r)),
            )
        leak = _double(node.v_leak)
        rest = np.zeros_like(leak) if isinstance(node, nir.LI) else _double(node.v_reset)
        if not np.array_equal(leak, rest) or (isinstance(node, nir.CubaLIF) and rest.any()):
            wanted = "0" if isinstance(node, (nir.LI, nir.CubaLIF)) else f"v_reset, {rest.flat[0]:g}"
            raise ValueError(f"{self._called(name)} has v_leak {leak.flat[0]:g}; allowed: {wanted}, where it rests")
        if isinstance(node, nir.CubaLIF):
            synapse, membrane = (dt / _double(tau) for tau in (node.tau_syn, node.tau_mem))
            digits = _digits(node.tau_syn, node.tau_mem, node.r, node.w_in)
            decays = {"syn_decay": _tidy(1 - synapse, digits), "mem_decay": _tidy(1 - membrane, digits)}
            values = {**decays, "v_threshold": _above(node.v_threshold), "v_reset": rest}
            return CuBaLIF, {}, values, _tidy(_double(node.w_in) * synapse * _double(node.r) * membrane, digits)
        digits = _digits(node.tau, node.r)
        tau, r = _tidy(_double(node.tau) / dt, digits), _double(node.r)
        direct = np.array_equal(_tidy(r, digits), tau)  # dt / tau * r = 1: the input is not divided by tau
        options = {"decay_input": not direct}
        scale = np.ones(()) if direct else r
        if isinstance(node, nir.LI):
            return LI, options, {"tau": tau}, scale
        return LIF, options, {"tau": tau, "v_threshold": _above(node.v_threshold), "v_reset": rest}, scale


def _convolution(node: Any) -> nn.Conv2d:
    out_channels, in_channels, *kernel = node.weight.shape
    padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
    stride, dilation, groups = _pair(node.stride), _pair(node.dilation), int(node.groups)
    layer = nn.Conv2d(in_channels * groups, out_channels, tuple(kernel), stride, padding, dilation, groups)
    layer.weight.data = _tensor(node.weight)
    assert layer.bias is not None
    layer.bias.data = _tensor(node.bias)
    return layer


def _pair(value: Any) -> tuple[int, int]:
    height, width = np.broadcast_to(np.asarray(value), 2).tolist()
    return int(height), int(width)


def _double(value: Any) -> np.ndarray:
    return np.asarray(value, dtype=np.float64)


def _tidy(value: Any, digits: int = 15) -> np.ndarray:
    """Values rounded to some digits: 3 steps times dt, divided by dt, is 3 again."""
    array = _double(value)
    return np.array([float(f"{number:.{digits}g}") for number in array.flat]).reshape(array.shape)


def _digits(*values: Any) -> int:
    """Significant digits of what is computed from arrays: snnTorch writes fp32."""
    return 6 if any(np.asarray(value).dtype == np.float32 for value in values) else 15


def _above(threshold: Any) -> np.ndarray:
    """The thresholds that a fp32 potential is at or above exactly where it is above these."""
    above = np.nextafter(np.asarray(threshold, dtype=np.float32), np.float32(np.inf))
    return np.array([float(str(value)) for value in above.flat]).reshape(above.shape)  # 0.8, not 0.800000011920929


def _tensor(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))
