"""The gradient of a step: reverse-mode differentiation of its expression graph.

It yields another expression of the small language, so the gradient runs wherever the step does. What backward needs of
the forward step is cut as narrowly as the graph allows (:func:`narrowest_cut`): LIF keeps one number a step.
"""

from collections.abc import Iterable

from fastsnn.kernels.neurons.language import Value, arithmetic, reciprocal, select, where
from fastsnn.kernels.neurons.surrogates import SURROGATES


def gradient(outputs: Iterable[Value], upstream: Iterable[Value], inputs: Iterable[Value]) -> list[Value]:
    """Gradients of ``inputs`` (nodes of the same graph), given those of ``outputs``."""
    inputs = list(inputs)
    graph = inputs[0].graph
    adjoint: dict[int, Value] = {}
    stop = {value.index for value in inputs}

    def add(value: Value, grad: Value | None) -> None:
        if grad is not None and (not value.uniform or value.index in stop):
            known = adjoint.get(value.index)
            adjoint[value.index] = grad if known is None else known + grad

    for output, given in zip(outputs, upstream, strict=True):
        add(output, given)
    for value in reversed(graph.nodes[: max(adjoint, default=-1) + 1]):
        if value.index in adjoint and value.index not in stop:
            for arg, grad in zip(value.args, _rule(value, adjoint[value.index]), strict=True):
                add(arg, grad)
    return [adjoint.get(value.index, graph.number(0.0)) for value in inputs]


def _rule(value: Value, g: Value) -> tuple[Value | None, ...]:
    """Gradients of a node's operands, given its own."""
    a, b, c = (*value.args, None, None, None)[:3]
    match value.op:
        case "add":
            return g, g
        case "sub":
            return g, -g
        case "neg":
            return (-g,)
        case "mul" if a is not None and b is not None:
            return g * b, g * a
        case "div" if a is not None and b is not None:
            share = g * (1 / b if b.uniform else reciprocal_of_any(b))
            return share, -(share * value)
        case "where" if a is not None:
            return None, where(a, g, 0.0), where(a, 0.0, g)
        case "select" if a is not None and b is not None and c is not None:
            return (b - c) * g, select(a, g, 0.0), select(a, 0.0, g)
        case "spike" if a is not None and b is not None:
            return g * SURROGATES[str(value.data)].derivative(a, b), None
        case "minimum" if a is not None and b is not None:
            return where(a < b, g, where(a > b, 0.0, 0.5 * g)), where(a < b, 0.0, where(a > b, g, 0.5 * g))
        case "maximum" if a is not None and b is not None:
            return where(a > b, g, where(a < b, 0.0, 0.5 * g)), where(a > b, 0.0, where(a < b, g, 0.5 * g))
        case "absolute" if a is not None:
            return (where(a > 0.0, g, where(a < 0.0, -g, 0.0)),)
        case "exp":
            return (g * value,)
        case "sqrt":
            return (0.5 * g * reciprocal(value),)
        case "sigmoid":
            return (g * value * (1 - value),)
        case "reciprocal":
            return (-(g * value * value),)
    return (None,) * len(value.args)  # detach and conditions


def reciprocal_of_any(x: Value) -> Value:
    """1 / x of either sign."""
    return arithmetic("div", 1.0, x)


def reachable(outputs: Iterable[Value]) -> list[Value]:
    """The nodes that the outputs are made of, in the order of computation."""
    found: dict[int, Value] = {}
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value.index not in found:
            found[value.index] = value
            stack.extend(value.args)
    return [found[index] for index in sorted(found)]


def narrowest_cut(outputs: list[Value], upstream: list[Value], candidates: Iterable[Value]) -> list[Value]:
    """The fewest of ``candidates`` from which, with ``upstream`` and parameters, all of ``outputs`` can be computed.

    A smallest vertex cut, by augmenting paths, between what the step started from and what the gradient uses of it; of
    several the one that leaves backward the least to compute.
    """
    nodes = reachable(outputs)
    late: set[int] = {value.index for value in upstream}
    for value in nodes:
        if any(arg.index in late for arg in value.args):
            late.add(value.index)
    early = {value.index: value for value in nodes if value.index not in late and not value.uniform}
    users: dict[int, list[int]] = {index: [] for index in early}
    for value in early.values():
        for arg in value.args:
            if arg.index in early:
                users[arg.index].append(value.index)
    targets = {arg.index for value in nodes if value.index in late for arg in value.args if arg.index in early}
    targets |= {value.index for value in outputs if value.index in early}
    allowed = {value.index for value in candidates}
    cut = _vertex_cut(early, users, targets, allowed)
    return [early[index] for index in sorted(cut)]


def _vertex_cut(early: dict[int, Value], users: dict[int, list[int]], targets: set[int], allowed: set[int]) -> set[int]:
    """Every node is split into an entry and an exit, with an edge of capacity 1 (none, if it can't be kept) between."""
    flow: dict[tuple[tuple[int, bool], tuple[int, bool]], int] = {}
    residual: dict[tuple[int, bool], set[tuple[int, bool]]] = {}
    capacity: dict[tuple[tuple[int, bool], tuple[int, bool]], float] = {}

    def edge(a: tuple[int, bool], b: tuple[int, bool], room: float) -> None:
        capacity[a, b] = room
        residual.setdefault(a, set()).add(b)
        residual.setdefault(b, set()).add(a)

    source, sink = (-1, False), (-2, False)
    for index, value in early.items():
        edge((index, False), (index, True), 1 if index in allowed else float("inf"))
        if value.op == "input":
            edge(source, (index, False), float("inf"))
        for user in users[index]:
            edge((index, True), (user, False), float("inf"))
        if index in targets:
            edge((index, True), sink, float("inf"))

    def left(a: tuple[int, bool], b: tuple[int, bool]) -> float:
        return capacity.get((a, b), 0) - flow.get((a, b), 0) + flow.get((b, a), 0)

    while True:
        previous = {source: source}
        queue = [source]
        while queue and sink not in previous:
            here = queue.pop()
            for there in sorted(residual.get(here, ())):
                if there not in previous and left(here, there) > 0:
                    previous[there] = here
                    queue.append(there)
        if sink not in previous:
            break
        here = sink
        while here != source:
            before = previous[here]
            undone = min(flow.get((here, before), 0), 1)
            if undone:
                flow[here, before] -= undone
            else:
                flow[before, here] = flow.get((before, here), 0) + 1
            here = before
    # The cut nearest to the sink: nodes whose exit can still reach it, but whose entry can't.
    reaches = {sink}
    queue = [sink]
    while queue:
        here = queue.pop()
        for there in residual.get(here, ()):
            if there not in reaches and left(there, here) > 0:
                reaches.add(there)
                queue.append(there)
    return {index for index in early if (index, True) in reaches and (index, False) not in reaches}
