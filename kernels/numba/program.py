"""A neuron's programs as Numba code: one step of a neuron, or of 16 side by side, emitted as LLVM instructions.

A kernel takes a :class:`~fastsnn.kernels.neurons.program.Program` as an argument. Its Numba type holds the program, so
that each kernel is compiled, and kept on disk, once for each program. :func:`step` and :func:`step_back` are the
intrinsics. They work on memory: arrays of float32 whose first axis counts states, kept numbers or constants, and an
``offset``, in elements, into each row.
"""

from collections.abc import Callable
from functools import partial

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

from fastsnn.kernels.neurons.program import Program
from fastsnn.kernels.numba.bits import LANES

FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
INT = ir.IntType(64)


class ProgramType(types.Type):
    """Numba's type of one certain program."""

    def __init__(self, program: Program) -> None:
        super().__init__(name=f"Program({program.digest})")
        self.program = program


@typeof_impl.register(Program)
def _typeof(program, context):
    return ProgramType(program)


@register_model(ProgramType)
class _ProgramModel(models.OpaqueModel):
    """A program has no value at run time: its type says all."""


@unbox(ProgramType)
def _unbox(typ, obj, context):
    return NativeValue(context.context.get_dummy_value())


@lower_constant(ProgramType)
def _constant(context, builder, typ, value):
    return context.get_dummy_value()


@intrinsic
def step(typingctx, program, current, state, output, kept, scalars, rows, places, lanes):
    """One step of the neurons at ``places``: the current and the states in, the output, new states and kept out.

    current [1, ...], state [S, n], output [1, ...] or None, kept [K, ...] or None, scalars [C], rows [R, n]: float32.
    places: offsets of current, state, output, kept and rows, a tuple of five. lanes: None for 16 neurons, else one.
    """

    def codegen(context, builder, signature, args):
        memory = _Memory(context, builder, signature, args, places=7, vector=signature.args[8] == types.none)
        code: Program = signature.args[0].program
        inputs = [memory.load(1, 0, 0), *(memory.load(2, 1, s) for s in range(code.states))]
        results = _emit(builder, code, inputs, memory, 5, 6, 4)
        if signature.args[3] != types.none:
            memory.store(results[0], 3, 2, 0)
        for s in range(code.states):
            memory.store(results[1 + s], 2, 1, s)
        if signature.args[4] != types.none:
            for k, value in enumerate(results[1 + code.states :]):
                memory.store(value, 4, 3, k)
        return context.get_dummy_value()

    return types.void(program, current, state, output, kept, scalars, rows, places, lanes), codegen


@intrinsic
def step_back(typingctx, program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, places, lanes):
    """The gradient of a step: of the output and, in place, of the states; to the current's, and added to grad_rows.

    kept [K, ...], grad_output [1, ...], grad_state [S, n], grad_current [1, ...], grad_rows [L, n], scalars, rows.
    places: offsets of kept, grad_output, grad_state (and grad_rows), grad_current and rows, a tuple of five.
    """

    def codegen(context, builder, signature, args):
        memory = _Memory(context, builder, signature, args, places=8, vector=signature.args[9] == types.none)
        code: Program = signature.args[0].program
        inputs = [memory.load(1, 0, k) for k in range(code.inputs - 1 - code.states)]
        inputs += [memory.load(2, 1, 0), *(memory.load(3, 2, s) for s in range(code.states))]
        results = _emit(builder, code, inputs, memory, 6, 7, 4)
        memory.store(results[0], 4, 3, 0)
        for s in range(code.states):
            memory.store(results[1 + s], 3, 2, s)
        for i, value in enumerate(results[1 + code.states :]):
            memory.store(builder.fadd(memory.load(5, 2, i), value), 5, 2, i)
        return context.get_dummy_value()

    signature = types.void(
        program, kept, grad_output, grad_state, grad_current, grad_rows, scalars, rows, places, lanes
    )
    return signature, codegen


class _Memory:
    """Loads and stores of one neuron, or of 16, in the arrays that an intrinsic was given."""

    def __init__(self, context, builder, signature, args, places, vector):
        self.context, self.builder, self.signature, self.args = context, builder, signature, args
        self.places = cgutils.unpack_tuple(builder, args[places])
        self.type = VECTOR if vector else FLOAT

    def _pointer(self, argument, offset, row):
        array = self.context.make_array(self.signature.args[argument])(self.context, self.builder, self.args[argument])
        data = self.builder.bitcast(array.data, FLOAT.as_pointer())
        if row:
            stride = cgutils.unpack_tuple(self.builder, array.strides)[0]
            offset = self.builder.add(offset, self.builder.mul(self.builder.sdiv(stride, INT(4)), INT(row)))
        return self.builder.gep(data, [offset])

    def load(self, argument, place, row):
        pointer = self._pointer(argument, self.places[place], row)
        return self.builder.load(self.builder.bitcast(pointer, self.type.as_pointer()), align=4)

    def store(self, value, argument, place, row):
        pointer = self._pointer(argument, self.places[place], row)
        self.builder.store(value, self.builder.bitcast(pointer, self.type.as_pointer()), align=4)

    def scalar(self, argument, i):
        """A constant of the whole call: the same at every step, which lets LLVM load it once."""
        loaded = self.builder.load(self._pointer(argument, INT(i), 0), align=4)
        loaded.set_metadata("invariant.load", self.builder.module.add_metadata([]))
        return splat(self.builder, loaded) if self.type == VECTOR else loaded


def splat(builder, value):
    """A number in all lanes."""
    vector = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), value, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, ir.Constant(VECTOR, ir.Undefined), mask)


def _emit(builder, code, inputs, memory, scalars, rows, row_place):
    """The program's instructions; returns its outputs."""
    typ = memory.type
    values, conditions = [], {}
    for i, instruction in enumerate(code.instructions):
        args = [values[arg] for arg in instruction.args]
        match instruction.op:
            case "input":
                value = inputs[instruction.data]
            case "scalar":
                value = memory.scalar(scalars, instruction.data)
            case "row":
                value = memory.load(rows, row_place, instruction.data)
            case "number":
                value = constant(typ, instruction.data)
            case "spike":
                # a - b >= 0 as a >= b: the same for numbers.
                distance = code.instructions[instruction.args[0]]
                pair = [values[arg] for arg in distance.args] if distance.op == "sub" else [args[0], constant(typ, 0.0)]
                conditions[i] = builder.fcmp_ordered(">=", *pair)
                value = builder.select(conditions[i], constant(typ, 1.0), constant(typ, 0.0))
            case "select" if instruction.args[0] in conditions:
                value = builder.select(conditions[instruction.args[0]], args[1], args[2])
            case op:
                value = OPERATIONS[op](builder, *args)
        values.append(value)
    return [values[output] for output in code.outputs]


def constant(typ, number):
    """A number in the type that is computed with."""
    return ir.Constant(typ, [number] * LANES if typ == VECTOR else number)


def _select(builder, spike, on, off):
    kept = builder.fsub(constant(spike.type, 1.0), spike)
    return builder.fadd(builder.fmul(kept, off), builder.fmul(spike, on))


def _compared(sign):
    return lambda builder, a, b: builder.fcmp_ordered(sign, a, b)


def _chosen(sign):
    return lambda builder, a, b: builder.select(builder.fcmp_ordered(sign, a, b), a, b)


def _library(name):
    def call(builder, x):
        suffix = f"v{LANES}f32" if x.type == VECTOR else "f32"
        function_type = ir.FunctionType(x.type, [x.type])
        return builder.call(cgutils.get_or_insert_function(builder.module, function_type, f"llvm.{name}.{suffix}"), [x])

    return call


def _exp(builder, x):
    """e^x within 2 ulp: 2^n e^r with r = x - n ln 2, the latter by a polynomial (Cephes' expf)."""
    number = partial(constant, x.type)
    ints = ir.VectorType(ir.IntType(32), LANES) if x.type == VECTOR else ir.IntType(32)
    x = _chosen("<")(builder, x, number(88.72283))
    x = _chosen(">")(builder, x, number(-103.97208))
    n = _library("floor")(builder, builder.fadd(builder.fmul(x, number(1.44269504)), number(0.5)))
    r = builder.fsub(builder.fsub(x, builder.fmul(n, number(0.693359375))), builder.fmul(n, number(-2.12194440e-4)))
    y = number(1.9875691500e-4)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        y = builder.fadd(builder.fmul(y, r), number(coefficient))
    y = builder.fadd(builder.fadd(builder.fmul(builder.fmul(y, r), r), r), number(1.0))
    # 2^n in two factors, since 2^128 and what is below 2^-126 are no float32 of their own.
    whole = builder.fptosi(n, ints)
    one = ir.Constant(ints, [1] * LANES if x.type == VECTOR else 1)
    half = builder.ashr(whole, one)
    for part in (half, builder.sub(whole, half)):
        shift = ir.Constant(ints, [23] * LANES if x.type == VECTOR else 23)
        bias = ir.Constant(ints, [127] * LANES if x.type == VECTOR else 127)
        y = builder.fmul(y, builder.bitcast(builder.shl(builder.add(part, bias), shift), x.type))
    return y


def _sigmoid(builder, x):
    one = constant(x.type, 1.0)
    return builder.fdiv(one, builder.fadd(one, _exp(builder, _negated(builder, x))))


def _negated(builder, x):
    return builder.fneg(x) if hasattr(builder, "fneg") else builder.fsub(constant(x.type, -0.0), x)


OPERATIONS: dict[str, Callable] = {
    "neg": _negated,
    "where": lambda builder, condition, a, b: builder.select(condition, a, b),
    "select": _select,
    "minimum": _chosen("<"),
    "maximum": _chosen(">"),
    "absolute": _library("fabs"),
    "exp": _exp,
    "sqrt": _library("sqrt"),
    "sigmoid": _sigmoid,
    "reciprocal": lambda builder, x: builder.fdiv(constant(x.type, 1.0), x),
}
for _op, _name in (("add", "fadd"), ("sub", "fsub"), ("mul", "fmul"), ("div", "fdiv")):
    OPERATIONS[_op] = lambda builder, a, b, name=_name: getattr(builder, name)(a, b)
for _op, _sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")):
    OPERATIONS[_op] = _compared(_sign)
