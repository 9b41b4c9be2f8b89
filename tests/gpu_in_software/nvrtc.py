"""Stands in for the part of CuPy with which SpikingJelly launches: NVRTC compiles, the machine executes.

SpikingJelly hands on addresses; here it hands on the tensors themselves, so that their bounds are known.
"""

import functools
import importlib
import importlib.util
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.gpu_in_software import tensors
from tests.gpu_in_software.driver import launch, memory_of, program
from tests.gpu_in_software.log import LOG
from tests.gpu_in_software.targets import Target


class CardArray:
    """A ``cupy.ndarray``."""

    def __init__(self, values: Any, dtype: Any = None) -> None:
        self.values = np.asarray(values, dtype)
        LOG.operations["cupy.asarray"] += 1
        self.memory = tensors.CardTensor(torch.from_numpy(np.array(self.values, ndmin=1)))
        self.dtype, self.shape, self.ndim = self.values.dtype, self.values.shape, self.values.ndim
        self.size, self.device = self.values.size, SimpleNamespace(id=0)

    def reshape(self, *shape: Any) -> "CardArray":
        return CardArray(self.values.reshape(*shape))


class RawKernel:
    """A ``cupy.RawKernel``, launched as ``kernel(grid, block, arguments)``."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **_: Any) -> None:
        self.code, self.name, self.options = code, name, tuple(options)

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...], **_: Any) -> None:
        memories = [each.memory if isinstance(each, CardArray) else each for each in arguments]
        for each in memories:
            if not isinstance(each, tensors.CardTensor):
                raise TypeError(f"kernel {self.name} got a {type(each).__name__} that isn't on the card")
        text = compile_cuda(self.code, self.options, TARGET[0].sm)
        names = [name for name, _ in program(text, self.name).kernel.parameters]
        memory = memory_of(list(zip(names, memories, strict=True)))
        addresses = [each.data_ptr() for each in memories]
        x, y, z = (*grid, 1, 1)[:3]
        threads = int(np.prod(block))
        launch(text, self.name, TARGET[0], (int(x), int(y), int(z)), threads, 0, addresses, memory)


TARGET: list[Target] = []
"""The card that CuPy's launches run on."""


@functools.cache
def compile_cuda(code: str, options: tuple[str, ...], sm: int) -> str:
    """PTX of CUDA C++ from NVRTC for compute_``sm``."""
    nvrtc = importlib.import_module("cupy.cuda").nvrtc
    headers = importlib.import_module("fastsnn.cupy_stack").cuda_headers()
    made = nvrtc.createProgram(code, "kernel.cu", (), ())
    flags = [f"--gpu-architecture=compute_{sm}", *([f"-I{headers}"] if headers else []), *options]
    try:
        nvrtc.compileProgram(made, flags)
    except nvrtc.NVRTCError as error:
        raise ValueError(f"NVRTC for compute_{sm}: {nvrtc.getProgramLog(made)}") from error
    text = nvrtc.getPTX(made)
    nvrtc.destroyProgram(made)
    return text if isinstance(text, str) else text.decode()


def install(target: Target) -> None:
    """Let CuPy, where it is installed, launch on the pretended card."""
    if importlib.util.find_spec("cupy") is None:
        return
    cupy = importlib.import_module("cupy")
    TARGET[:] = [target]
    patches: dict[str, Any] = {
        "ndarray": CardArray,
        "asarray": CardArray,
        "ascontiguousarray": lambda array: array,
        "reshape": lambda array, shape: array.reshape(shape),
        "RawKernel": RawKernel,
    }
    for name, value in patches.items():
        mock.patch.object(cupy, name, value).start()
    stream = SimpleNamespace(from_external=lambda _: nullcontext())
    mock.patch.object(cupy.cuda, "Stream", stream).start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age
        base = importlib.import_module("spikingjelly.activation_based.auto_cuda.base")
    mock.patch.object(base.CKernel, "get_ptrs", lambda self, arguments: tuple(arguments.values())).start()
