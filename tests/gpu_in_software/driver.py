"""The pretended card's driver for Triton: its launcher specialises and compiles as on a card, and what it launches is
executed by the machine. ptxas isn't asked: it takes most of a compilation's time, and its code is not run.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from tests.gpu_in_software import ptx
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.machine import Machine
from tests.gpu_in_software.memory import GlobalMemory, Region
from tests.gpu_in_software.report import Report
from tests.gpu_in_software.targets import Target, check_launch
from tests.gpu_in_software.tensors import CardTensor, extent
from tests.gpu_in_software.translate import Program

CACHE = Path.home() / ".cache" / "fastsnn" / "ptx"
"""Where Triton keeps what it compiled without ptxas, apart from what it compiled for real."""
FLOATS = {"fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d"}


@functools.cache
def program(text: str, name: str | None = None) -> Program:
    """A kernel ready to run; each is translated once."""
    return Program(ptx.parse(text, name))


def launch(
    text: str, name: str | None, target: Target, grid: tuple[int, int, int], threads: int, shared: int,
    parameters: list[int], memory: GlobalMemory,
) -> Report:  # fmt: skip
    """Run a kernel of PTX and raise GpuError for what the machine finds."""
    kernel = program(LOG.rewrite(text, name) if LOG.rewrite else text, name)
    check_launch(kernel.kernel.name, kernel.kernel.sm, target, grid, threads, max(shared, kernel.kernel.static_shared))
    if kernel.kernel.threads not in (None, threads):
        raise ValueError(f"kernel {kernel.kernel.name} is for {kernel.kernel.threads} threads a block, not {threads}")
    parameters = parameters + [0] * (len(kernel.kernel.parameters) - len(parameters))
    machine = Machine(kernel, grid, threads, parameters, memory, shared=shared, **LOG.options)
    try:
        report = machine.run()
    finally:
        LOG.add(machine.report)
    report.check()
    return report


def memory_of(tensors: list[tuple[str, Tensor]]) -> GlobalMemory:
    """The memory that the named tensors, on the pretended card or the CPU, give access to."""
    regions: dict[int, Region] = {}
    for name, tensor in tensors:
        host = tensor.host if isinstance(tensor, CardTensor) else tensor
        storage = host.untyped_storage()
        if not host.numel() or not storage.nbytes():
            continue
        address = storage.data_ptr()
        if address % 16:
            raise ValueError(f"{name}'s storage is at {address:#x}; allowed: multiples of 16")
        span = extent(host)
        low, high = span.start, span.stop
        if known := regions.get(address):
            # Within one storage all between the views counts as given.
            known.low, known.high = min(known.low, low), max(known.high, high)
        else:
            data = np.ctypeslib.as_array((ctypes.c_uint8 * storage.nbytes()).from_address(address))
            defined = tensor.defined.bytes_ if isinstance(tensor, CardTensor) and tensor.defined else None
            regions[address] = Region(name, address, data, low, high, defined)
    return GlobalMemory(list(regions.values()))


class Launcher:
    """Triton's launcher of one compiled kernel."""

    def __init__(self, src: Any, metadata: Any, target: Target) -> None:
        self.signature, self.metadata, self.target = dict(src.signature), metadata, target
        for name in ("global_scratch_size", "profile_scratch_size"):
            if getattr(metadata, name, 0):
                raise NotImplementedError(f"kernel {metadata.name} wants {name}, which the pretended card has not")

    def __call__(self, x: int, y: int, z: int, stream: int, function: str, *rest: Any) -> None:
        values = rest[4:]  # after two kinds of metadata and two hooks
        parameters: list[int] = []
        tensors: list[tuple[str, Tensor]] = []
        for (name, kind), value in zip(self.signature.items(), values, strict=True):
            for each, leaf in flatten(kind, value):
                if each != "constexpr":
                    parameters.append(raw_bits(str(name), each, leaf))
                    if isinstance(leaf, Tensor):
                        tensors.append((str(name), leaf))
        if 0 in (x, y, z):
            return  # as cuLaunchKernel isn't called by Triton for an empty grid
        threads, shared = 32 * self.metadata.num_warps, self.metadata.shared
        arguments = function, None, self.target, (x, y, z), threads, shared, parameters
        LOG.work(lambda: launch(*arguments, memory_of(tensors)))


def flatten(kind: Any, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a tuple argument."""
    if isinstance(kind, tuple):
        for each, part in zip(kind, value, strict=True):
            yield from flatten(each, part)
    else:
        yield kind, value


def raw_bits(name: str, kind: str, value: Any) -> int:
    """An argument as the bits that the kernel gets."""
    if kind.startswith("*"):
        if isinstance(value, Tensor) and not isinstance(value, CardTensor) and value.numel():
            raise ValueError(f"Pointer argument {name} cannot be accessed from Triton (cpu tensor?)")
        return 0 if value is None else value.data_ptr()
    if kind in FLOATS:
        return int.from_bytes(struct.pack(FLOATS[kind], float(value)), "little")
    if kind == "bf16":
        return int.from_bytes(struct.pack("<f", float(value)), "little") >> 16
    if kind[0] in "iu" and kind[1:].isdigit():
        return int(value) & (1 << max(int(kind[1:]), 8)) - 1
    raise NotImplementedError(f"argument {name} of type {kind}, which the pretended card doesn't know")


class Utils:
    """What Triton asks the CUDA driver."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": self.target.block_shared,
            "max_num_regs": 65536,
            "multiprocessor_count": self.target.multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[Any, ...]:
        """The "binary" is PTX. Triton 3.3 takes four values, 3.8 also the most threads of a block."""
        import triton

        loaded = ("module", kernel.decode(), 32, 0)
        return loaded if triton.__version__.startswith("3.3.") else (*loaded, 1024)

    def unload_module(self, module: str) -> None:
        pass


class Driver:
    def __init__(self, target: Target) -> None:
        self.target, self.utils = target, Utils(target)
        self.launcher_cls = functools.partial(Launcher, target=target)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.target.sm, 32)

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.target.sm, 10)

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def is_active(self) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def install(target: Target) -> None:
    """Make the pretended card Triton's. Must come before a kernel is defined, for which TRITON_INTERPRET is read."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET=1 is set; interpreted kernels are not compiled, so unset it")
    os.environ["TRITON_CACHE_DIR"] = str(CACHE)
    from triton.backends import backends
    from triton.runtime import driver

    compiler = backends["nvidia"].compiler
    mock.patch.object(compiler, "make_cubin", lambda self, src, *rest: src.encode()).start()
    driver.set_active(Driver(target))
