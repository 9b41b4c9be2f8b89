"""Small kernels in PTX for the machine's own tests."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.gpu_in_software import ptx
from tests.gpu_in_software.driver import memory_of
from tests.gpu_in_software.machine import Machine
from tests.gpu_in_software.report import Report
from tests.gpu_in_software.translate import Program

HEAD = """
.version 8.4
.target sm_{sm}
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry snippet({parameters})
.reqntid {threads}, 1, 1
{{
.reg .pred %p<20>; .reg .b16 %rs<40>; .reg .b32 %r<200>; .reg .f32 %f<200>; .reg .b64 %rd<40>; .reg .f64 %fd<9>;
mov.u32 %r199, %tid.x; mov.u32 %r198, %ctaid.x; mov.u32 %r197, %ntid.x;
mad.lo.s32 %r196, %r198, %r197, %r199;
"""
"""%r199 is the thread, %r198 the block, %r196 the thread of the launch; %rd30 + n the address of tensor n."""


def kernel(body: str, tensors: int, threads: int = 32, sm: int = 90) -> Program:
    """The kernel with ``body`` over ``tensors`` pointers."""
    parameters = ", ".join(f".param .u64 p{n}" for n in range(tensors))
    loads = "".join(f"ld.param.u64 %rd{30 + n}, [p{n}];\n" for n in range(tensors))
    return Program(ptx.parse(HEAD.format(sm=sm, parameters=parameters, threads=threads) + loads + body + "\nret;\n}\n"))


def run(
    body: str, *tensors: torch.Tensor, threads: int = 32, blocks: int = 1, shared: int = 0, **options: Any
) -> Report:
    """Execute ``body`` over the tensors' memory, in place."""
    made = kernel(body, len(tensors), threads)
    memory = memory_of([(f"tensor {n}", tensor) for n, tensor in enumerate(tensors)])
    addresses = [tensor.data_ptr() for tensor in tensors]
    return Machine(made, (blocks, 1, 1), threads, addresses, memory, shared=shared, **options).run()


def evaluate(statements: str, *inputs: Any, result: str = "%r0", kind: str = "u32") -> NDArray[Any]:
    """What ``statements`` make of the inputs, a value for each of 32 lanes.

    Input n, of 4 or 8 bytes, is in %r<10 + n> and %f<10 + n>, or in %rd<10 + n>; the result is a register.
    """
    tensors, body = [], ""
    for n, values in enumerate(inputs):
        array = np.resize(np.atleast_1d(values), 32)
        wide = array.itemsize == 8
        tensors.append(torch.from_numpy(array.view(np.int64 if wide else np.int32).copy()))
        step = f"mul.wide.u32 %rd9, %r199, {array.itemsize}; add.s64 %rd8, %rd{30 + n}, %rd9;\n"
        load = (
            f"ld.global.b64 %rd{10 + n}, [%rd8];"
            if wide
            else f"ld.global.b32 %r{10 + n}, [%rd8]; mov.b32 %f{10 + n}, %r{10 + n};"
        )
        body += step + load + "\n"
    bits = {"u32": 32, "f32": 32, "u64": 64}[kind]
    out = torch.zeros(32, dtype=torch.int64 if bits == 64 else torch.int32)
    tensors.append(out)
    address = f"mul.wide.u32 %rd9, %r199, {bits // 8}; add.s64 %rd8, %rd{29 + len(tensors)}, %rd9;\n"
    run(f"{body}{statements}\n{address}st.global.b{bits} [%rd8], {result};", *tensors).check()
    return out.numpy().view({"u32": np.uint32, "f32": np.float32, "u64": np.uint64}[kind])
