"""A neuron made ready for a compiled kernel: straight-line programs of its step and of its gradient.

:func:`compile_neuron` records the step, differentiates it unless the neuron brings a gradient of its own, and hoists
what is made of parameters alone into *constants*, which a kernel takes as numbers or, if they are learnt, as tensors:

    forward   x, states, constants                        ->  output, new states, kept
    backward  kept, grad_output, grad_states, constants   ->  grad_x, grad_states of before the step, grad_learnt

``kept`` is the least that backward needs of a forward step. ``kernels/triton/program.py`` and
``kernels/numba/program.py`` turn a program into device code.
"""

import hashlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import torch
from torch import Tensor

from fastsnn.kernels.neurons.differentiate import gradient, narrowest_cut, reachable
from fastsnn.kernels.neurons.language import CONDITIONS, TORCH, Graph, StepError, Value
from fastsnn.kernels.neurons.neuron import Neuron, neuron_of


@dataclass(frozen=True)
class Instruction:
    """One operation. ``args`` are earlier instructions; ``data`` is a number, or the place of an input or constant."""

    op: str
    args: tuple[int, ...] = ()
    data: float | int = 0


@dataclass(frozen=True)
class Program:
    """Straight-line code in single assignment; ``outputs`` are instructions."""

    instructions: tuple[Instruction, ...]
    outputs: tuple[int, ...]
    inputs: int
    states: int
    scalars: int
    """Constants that are numbers."""
    rows: int
    """Constants that learn, and so may differ from neuron to neuron."""

    @cached_property
    def digest(self) -> str:
        """Names the program: the same code has the same digest in every process."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class CompiledNeuron:
    """The programs of a neuron, certain of whose parameters are tensors that learn."""

    neuron: Neuron
    learnt: tuple[str, ...]
    """Parameters that are tensors."""
    forward: Program
    backward: Program
    states: int
    kept: int
    """Numbers that a step keeps for backward."""
    forward_constants: tuple[Value, ...]
    backward_constants: tuple[Value, ...]
    learnt_constants: tuple[int, ...]
    """Which of the forward constants are made of learnt parameters; backward gives their gradients, in this order."""

    def learnt_values(self, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """The learnt constants, from the learnt parameters: gradients flow back through torch's own operators."""
        nodes = [self.forward_constants[place] for place in self.learnt_constants]
        return _evaluate(nodes, self.neuron, parameters)

    def constants(
        self, parameters: Mapping[str, Tensor], backward: bool = False
    ) -> tuple[tuple[float, ...], list[Tensor]]:
        """What a kernel is given: its scalars, in double precision, and its rows, which may still be broadcast."""
        scalars, nodes = self._backward_parts if backward else self._forward_parts
        return scalars, _evaluate(nodes, self.neuron, parameters) if nodes else []

    @cached_property
    def _forward_parts(self) -> tuple[tuple[float, ...], list[Value]]:
        return self._parts(self.forward_constants)

    @cached_property
    def _backward_parts(self) -> tuple[tuple[float, ...], list[Value]]:
        return self._parts(self.backward_constants)

    def _parts(self, constants: tuple[Value, ...]) -> tuple[tuple[float, ...], list[Value]]:
        """The values of the constants that are numbers, which are the same at every call, and the others."""
        rows = [node for node in constants if _uses(node, self.learnt)]
        scalars = [node for node in constants if not _uses(node, self.learnt)]
        return tuple(value.item() for value in _evaluate(scalars, self.neuron, {})), rows


def compiled(key: str, learnt: tuple[str, ...] = ()) -> CompiledNeuron:
    """:func:`compile_neuron` of the neuron that a key names."""
    return compile_neuron(neuron_of(key), learnt)


@lru_cache(maxsize=4096)
def compile_neuron(neuron: Neuron, learnt: tuple[str, ...] = ()) -> CompiledNeuron:
    """Record and differentiate a neuron's step. Raises StepError for what the small language can't say."""
    graph = Graph()
    numbers = neuron.parameters()
    bound = neuron.with_values({name: graph.parameter(name) for name in numbers})
    x, *states = places = [graph.input(name) for name in ("x", *neuron.states)]
    step = _recorded(neuron, "step", bound.step(x, *states), graph, 1 + len(states))
    known = {name: value for name, value in numbers.items() if name not in learnt}
    step = _without_exact_divisions(step, graph, neuron, known)
    constants = _hoisted(step)
    learnt_constants = [value for value in constants if _uses(value, learnt)]
    upstream = [graph.input(f"grad {name}") for name in ("output", *neuron.states)]
    if neuron.has_gradient and not learnt:
        grads = _recorded(neuron, "gradient", bound.gradient(x, *states, *upstream), graph, 1 + len(states))
        grads = _without_exact_divisions(grads, graph, neuron, known)
    else:
        grads = gradient(step, upstream, [*places, *learnt_constants])
    candidates = [value for value in reachable(step) if not value.uniform and value.op not in CONDITIONS]
    kept = narrowest_cut(grads, upstream, candidates)
    return CompiledNeuron(
        neuron,
        learnt,
        forward=_assembled([*step, *kept], places, constants, learnt, len(states)),
        backward=_assembled(grads, [*kept, *upstream], _hoisted(grads, kept), learnt, len(states)),
        states=len(states),
        kept=len(kept),
        forward_constants=tuple(constants),
        backward_constants=tuple(_hoisted(grads, kept)),
        learnt_constants=tuple(i for i, value in enumerate(constants) if _uses(value, learnt)),
    )


def _recorded(neuron: Neuron, method: str, result: object, graph: Graph, count: int) -> list[Value]:
    """What a step or a gradient returned, as nodes."""
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    code = inspect.unwrap(getattr(type(neuron), method)).__code__
    where = f"{code.co_filename}, line {code.co_firstlineno}: {type(neuron).__name__}.{method}"
    if len(results) != count:
        names = ", ".join(("output" if method == "step" else "x", *neuron.states))
        found = f"{len(results)} value{'s' * (len(results) != 1)}"
        raise StepError(f"{where} returns {found}; allowed: {count} ({names})")
    nodes = []
    for value in results:
        if not isinstance(value, (Value, int, float)) or isinstance(value, bool):
            raise StepError(f"{where} returns {type(value).__name__}; allowed: values of the step, and numbers")
        if isinstance(value, Value) and value.op in CONDITIONS:
            raise StepError(f"{where} returns a condition; allowed: where(condition, 1.0, 0.0)")
        nodes.append(value if isinstance(value, Value) else graph.number(value))
    return nodes


def _without_exact_divisions(
    values: list[Value], graph: Graph, neuron: Neuron, known: Mapping[str, float]
) -> list[Value]:
    """Divisions by a power of two as products with its reciprocal: the same bits for a fraction of the work."""
    replaced: dict[int, Value] = {}
    for value in reachable(values):
        args = [replaced[arg.index] for arg in value.args]
        new = graph.node(value.op, *args, data=value.data) if args else value
        if value.op == "div" and not value.uniform and args[1].uniform and not _uses(args[1], None, known):
            (divisor,) = _evaluate([args[1]], neuron, {})
            if abs(math.frexp(divisor.item())[0]) == 0.5:
                new = args[0] * (1 / args[1])
        replaced[value.index] = new
    return [replaced[value.index] for value in values]


def _uses(value: Value, names: Iterable[str] | None, known: Mapping[str, float] | None = None) -> bool:
    """Whether an expression uses a parameter of ``names`` (or, for None, one that isn't among the known)."""
    leaves = {str(node.data) for node in reachable([value]) if node.op == "parameter"}
    return bool(leaves - set(known or ())) if names is None else bool(leaves & set(names))


def _hoisted(outputs: Sequence[Value], stop: Sequence[Value] = ()) -> list[Value]:
    """The expressions of parameters alone that other operations, or the outputs, use."""
    given = {value.index for value in stop}
    found: dict[int, Value] = {}
    seen: set[int] = set()
    stack = list(outputs)
    while stack:
        value = stack.pop()
        if value.uniform:
            if value.op != "number":
                found[value.index] = value
        elif value.index not in seen and value.index not in given:
            seen.add(value.index)
            stack.extend(value.args)
    return [found[index] for index in sorted(found)]


def _assembled(
    outputs: Sequence[Value], inputs: Sequence[Value], constants: Sequence[Value], learnt: Sequence[str], states: int
) -> Program:
    """The instructions from inputs and constants to the outputs."""
    code: list[Instruction] = []
    place: dict[int, int] = {}

    def emit(value: Value, instruction: Instruction) -> None:
        place[value.index] = len(code)
        code.append(instruction)

    for i, value in enumerate(inputs):
        emit(value, Instruction("input", (), i))
    rows = [value for value in constants if _uses(value, learnt)]
    scalars = [value for value in constants if not _uses(value, learnt)]
    for kind, values in (("scalar", scalars), ("row", rows)):
        for i, value in enumerate(values):
            emit(value, Instruction(kind, (), i))

    def visit(value: Value) -> None:
        if value.index in place:
            return
        for arg in value.args:
            visit(arg)
        if value.op == "number":
            emit(value, Instruction("number", (), cast(float, value.data)))
        elif value.op == "spike":  # its sharpness concerns backward alone
            emit(value, Instruction("spike", (place[value.args[0].index],)))
        elif value.op == "detach":
            place[value.index] = place[value.args[0].index]
        else:
            emit(value, Instruction(value.op, tuple(place[arg.index] for arg in value.args)))

    for value in outputs:
        visit(value)

    done = tuple(place[value.index] for value in outputs)
    return Program(tuple(code), done, len(inputs), states, len(scalars), len(rows))


def _evaluate(nodes: Sequence[Value], neuron: Neuron, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """Expressions of parameters: in double precision, or in a learnt parameter's own."""
    memo: dict[int, Tensor] = {}
    for node in reachable(nodes):
        if node.op == "number":
            memo[node.index] = torch.tensor(cast(float, node.data), dtype=torch.float64)
        elif node.op == "parameter":
            name = str(node.data)
            given = parameters.get(name)
            value = torch.tensor(neuron.parameters()[name], dtype=torch.float64) if given is None else given
            memo[node.index] = value
        else:
            memo[node.index] = TORCH[node.op](*(memo[arg.index] for arg in node.args))
    return [memo[node.index] for node in nodes]
