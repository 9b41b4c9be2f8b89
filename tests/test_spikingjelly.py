"""The cupy backend without a GPU: SpikingJelly's CUDA source, run on the CPU and compiled for a 10-series GPU; guards.

What needs CuPy (its NVRTC compiles without a GPU) is skipped where CuPy is not installed.
"""

import ctypes
import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from neuron_cases import OPTIONS, case, require_gradients, require_spikes
from torch import Tensor

from fastsnn import LIF, PLIF, backends, spikingjelly
from fastsnn.cupy_stack import CUPY_PIP, cuda_headers
from fastsnn.errors import BackendUnavailable
from fastsnn.kernels.neurons import SURROGATES, Neuron

needs_cupy = pytest.mark.skipif(
    importlib.util.find_spec("cupy") is None, reason="needs CuPy, of the package cupy-cuda12x or cupy-cuda13x"
)


class OnCPU:
    """CUDA sources compiled as C++ and run one thread after the other: all they need of CUDA is a thread's index."""

    HEADER = """
        #pragma once
        #include <math.h>
        #define __global__
        struct Index { int x; };
        static Index blockIdx{0}, blockDim{1};
        extern "C" { Index threadIdx; }
    """

    def __init__(self, folder: Path, kernels: list[Any]) -> None:
        # Kernels of different options share a name, so each source gets one of its own.
        self.names = {source: f"kernel_{i}" for i, source in enumerate({kernel.full_codes for kernel in kernels})}
        renamed = [re.sub(r"(?<=void )\w+", name, source) for source, name in self.names.items()]
        (folder / "cuda_fp16.h").write_text(self.HEADER)
        (folder / "kernels.cpp").write_text("".join(renamed))
        command = ["g++", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-I.", "kernels.cpp", "-o", "kernels.so"]
        subprocess.run(command, check=True, cwd=folder)
        self.library = ctypes.CDLL(str(folder / "kernels.so"))

    def launch(self, kernel: Any, threads: int, **arguments: Any) -> None:
        kernel.check_keys(arguments)
        function = getattr(self.library, self.names[kernel.full_codes])
        index = ctypes.c_int.in_dll(self.library, "threadIdx")
        # Every argument is a pointer or a reference, in the order of the names.
        pointers = [_address(value) for _, value in sorted(arguments.items())]
        for i in range(threads):
            index.value = i
            function(*pointers)


def _address(value: Tensor | int | float) -> Any:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.byref(ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value))


def kernels(dtype: torch.dtype, neuron: LIF, backend: str = "cupy") -> tuple[Any, Any]:
    """The forward and the backward kernel that the backend launches for these neurons."""
    node = spikingjelly.lif_node(dtype, neuron, backend=backend)
    return node.forward_kernel, node.backward_kernel.kernel


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> OnCPU:
    if shutil.which("g++") is None:
        pytest.skip("needs the C++ compiler g++")
    neurons = [
        LIF(surrogate=name, **param.values[0]) for name, param in itertools.product(spikingjelly.SURROGATES, OPTIONS)
    ]
    every = [kernel for neuron in neurons for kernel in kernels(torch.float32, neuron, "torch")]
    return OnCPU(tmp_path_factory.mktemp("cuda"), every)


@pytest.mark.parametrize("tau", [2.0, 3.7])
@pytest.mark.parametrize("surrogate", spikingjelly.SURROGATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_generated_source_computes_the_equations(
    options: dict[str, Any], surrogate: str, tau: float, on_cpu: OnCPU
) -> None:
    neuron = LIF(tau=tau, surrogate=surrogate, **options)
    forward, backward = kernels(torch.float32, neuron, "torch")
    current, v_init, grad_spikes, grad_v = inputs = case(20, 67)
    T, N = current.shape
    common = {"numel": T * N, "N": N, "v_th": 1.0, "decay": 1 / tau}
    if neuron.v_reset is not None:
        common["v_reset"] = neuron.v_reset

    spikes, h, v_seq = torch.zeros(T, N), torch.zeros(T, N), torch.cat([v_init[None], torch.zeros(T, N)])
    on_cpu.launch(forward, N, x_seq=current, v_v_seq=v_seq, h_seq=h, spike_seq=spikes, **common)
    require_spikes(spikes, v_seq[-1], current, v_init, neuron, bit_equal=neuron.decay_input and tau == 2)

    grad_current, grad_v_init = torch.zeros(T, N), torch.zeros(N)
    upstream = {"grad_spike_seq": grad_spikes, "grad_v_seq": torch.cat([torch.zeros(T - 1, N), grad_v[None]])}
    results = {"grad_x_seq": grad_current, "grad_v_init": grad_v_init}
    on_cpu.launch(backward, N, h_seq=h, **upstream, **results, **common)
    require_gradients((grad_current, grad_v_init), spikes, *inputs, neuron=neuron)


def compile_with_nvrtc(source: str, *options: str) -> str:
    """PTX for compute capability 6.1, by the compiler that CuPy calls; raises NVRTCError with the log in its notes."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options, "-arch=compute_61", "--std=c++17"))
        return str(nvrtc.getPTX(program))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(nvrtc.getProgramLog(program)) from error
    finally:
        nvrtc.destroyProgram(program)


@needs_cupy
@pytest.mark.parametrize("dtype", spikingjelly.DTYPES)
@pytest.mark.parametrize("surrogate", spikingjelly.SURROGATES)
@pytest.mark.parametrize("options", OPTIONS)
def test_source_compiles_for_a_10_series_gpu(options: dict[str, Any], surrogate: str, dtype: torch.dtype) -> None:
    from spikingjelly import configure

    headers = cuda_headers()
    assert headers is not None, CUPY_PIP[12]
    for kernel in kernels(dtype, LIF(surrogate=surrogate, **options)):
        ptx = compile_with_nvrtc(kernel.full_codes, f"-I{headers}", *configure.cuda_compiler_options)
        assert f".entry {kernel.kernel_name}(" in ptx
        assert ".target sm_61" in ptx


@needs_cupy
def test_fmad_false_leaves_no_contracted_product() -> None:
    source = kernels(torch.float32, LIF())[0].full_codes
    assert "fma.rn" in compile_with_nvrtc(source, f"-I{cuda_headers()}")
    assert "fma.rn" not in compile_with_nvrtc(source, f"-I{cuda_headers()}", "-fmad=false")


@needs_cupy
def test_no_source_compiles_without_cuda_headers() -> None:
    """So a missing header has to be found out before training starts."""
    with pytest.raises(RuntimeError, match=re.escape("cuda_fp16.h")):
        compile_with_nvrtc(kernels(torch.float32, LIF())[0].full_codes)


@needs_cupy
def test_lif_node_launches_the_kernels_that_it_was_given() -> None:
    """LIFNode replaces a kernel whose attributes aren't its own, and runs none outside of training mode."""
    node = spikingjelly.lif_node(torch.float16, LIF(tau=3, v_reset=None, decay_input=False))
    assert (node.backend, node.step_mode, node.training, node.tau) == ("cupy", "m", True, 3.0)
    common = {"hard_reset": False, "dtype": "half2", "decay_input": False}
    assert node.forward_kernel.check_attributes(**common)
    own = common | {"surrogate_function": node.surrogate_function.cuda_codes, "detach_reset": False}
    assert node.backward_kernel.check_attributes(**own)
    for changed in ({"detach_reset": True}, {"dtype": "float"}, {"surrogate_function": len}):
        assert not node.backward_kernel.check_attributes(**own | changed)


def test_integers_become_floats() -> None:
    neuron = LIF(tau=2, v_threshold=1, v_reset=0, surrogate="sigmoid", alpha=4)
    node = spikingjelly.lif_node(torch.float32, neuron, backend="torch")
    assert [type(value) for value in (node.tau, node.v_threshold, node.v_reset)] == [float] * 3
    assert "expf(- (4.0f) * over_th)" in node.backward_kernel.kernel.full_codes


@pytest.fixture
def _without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend around LIFNode's own equations in torch, which compute without CuPy and a GPU."""

    @contextmanager
    def stream(device: torch.device) -> Iterator[None]:
        yield

    make = spikingjelly.lif_node
    monkeypatch.setattr(spikingjelly, "lif_node", lambda dtype, neuron: make(dtype, neuron, backend="torch"))
    monkeypatch.setattr(spikingjelly, "_require", lambda: None)
    monkeypatch.setattr(spikingjelly, "_torch_stream", stream)
    monkeypatch.setattr(spikingjelly, "_nodes", spikingjelly._Nodes())


@pytest.mark.usefixtures("_without_cupy")
def test_nodes_are_made_once_and_keep_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    make = spikingjelly.lif_node
    monkeypatch.setattr(spikingjelly, "lif_node", lambda dtype, neuron: made.append(dtype) or make(dtype, neuron))
    current, v_init, *_ = case(20, 67)
    first, v = spikingjelly._run(current, None, LIF())
    assert v.abs().sum() > 0
    spikes, _ = spikingjelly._run(current, v_init, LIF())
    assert not torch.equal(spikes, first)
    assert torch.equal(spikingjelly._run(current, None, LIF())[0], first)
    # Another number of samples, after a call that failed.
    with pytest.raises(RuntimeError):
        spikingjelly._run(current, v_init[:3], LIF())
    assert torch.equal(spikingjelly._run(current[:, :5], None, LIF())[0], first[:, :5])
    assert len(made) == 1
    spikingjelly._run(current, None, LIF(tau=3.0))
    spikingjelly._run(current.half(), None, LIF())
    assert made == [torch.float32, torch.float32, torch.float16]


@pytest.mark.usefixtures("_without_cupy")
def test_threads_share_no_node() -> None:
    device, neuron = torch.device("cpu"), LIF()
    own = spikingjelly._nodes.take(device, torch.float32, neuron)
    assert spikingjelly._nodes.take(device, torch.float32, neuron) is own
    with ThreadPoolExecutor(1) as other:
        assert other.submit(spikingjelly._nodes.take, device, torch.float32, neuron).result() is not own


def test_a_kernel_writes_its_source_once() -> None:
    node = spikingjelly.lif_node(torch.float32, LIF(), backend="torch")
    for kernel in (node.forward_kernel, node.backward_kernel.kernel):
        assert kernel.full_codes is kernel.full_codes
        assert type(kernel).__name__ in kernel.kernel_name
        assert kernel.full_codes == type(kernel).__base__.full_codes.fget(kernel)


def test_backward_is_launched_on_torchs_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """autograd calls it in another thread, where a stream that forward made CuPy's current one is not."""
    events: list[Any] = []

    @contextmanager
    def stream(device: torch.device) -> Iterator[None]:
        events.append(device)
        yield
        events.append("left")

    monkeypatch.setattr(spikingjelly, "_torch_stream", stream)
    launcher = spikingjelly.lif_node(torch.float32, LIF(), backend="torch").backward_kernel
    launcher.kernel = lambda *arguments: events.append("launched")
    launcher((1,), (1,), {"h_seq": torch.zeros(1, device="meta")})
    assert events == [torch.device("meta"), "launched", "left"]


@needs_cupy
def test_without_the_shim_every_launch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """SpikingJelly compares the dtype of each integer argument with np.int; the array is CuPy's own, on no device."""
    import cupy
    import numpy

    memory = cupy.cuda.UnownedMemory(8, 8, None, device_id=0)
    count = cupy.ndarray((), dtype=numpy.int64, memptr=cupy.cuda.MemoryPointer(memory, 0))
    kernel = kernels(torch.float32, LIF())[0]
    kernel.check_ctypes({"numel": count})
    assert not hasattr(numpy, "int")
    monkeypatch.setattr(spikingjelly.library().kernels.base, "np", numpy)
    with pytest.raises(AttributeError, match=r"numpy.*'int'"):
        kernel.check_ctypes({"numel": count})


def test_importing_the_module_imports_neither_library() -> None:
    code = "import sys, fastsnn.spikingjelly as s; s.refusal(); print({'spikingjelly', 'cupy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("surrogate", sorted(set(SURROGATES) - set(spikingjelly.SURROGATES)))
def test_surrogates_without_cuda_code_are_refused(surrogate: str) -> None:
    message = f"cannot compute this: SpikingJelly has no CUDA code for the surrogate '{surrogate}', only for atan, sigm"
    with pytest.raises(ValueError, match=message):
        spikingjelly.lif(torch.zeros(2, 3), LIF(surrogate=surrogate))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    message = f"its kernels compute in float32, float16, not in {str(dtype)[6:]}"
    with pytest.raises(ValueError, match=message):
        backends.load("cupy").linear(
            torch.zeros(2, 3, 4).bool(), torch.zeros(5, 4, dtype=dtype), None, LIF(), None, {}, False, "auto"
        )


@pytest.mark.parametrize(
    ("neuron", "learns", "message"),
    [
        (PLIF(), False, "LIF neurons that spike, not PLIF"),
        (LIF(v_threshold=float("inf")), False, "LIF neurons that spike"),
        (LIF(), True, "whose parameters are numbers"),
    ],
)
def test_other_neurons_are_declined(neuron: Neuron, learns: bool, message: str) -> None:
    assert message in str(spikingjelly.neuron_refusal(neuron, torch.float32, learns))
    assert spikingjelly.neuron_refusal(LIF(), torch.float32, False) is None


def test_more_than_an_int_can_count_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"current has shape \[65535, 32768\]; .*\(T \+ 1\) \* neurons up to 2147483647"
    ):
        spikingjelly.lif(torch.empty(2**16 - 1, 2**15, device="meta"), LIF())


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(ValueError, match="current is on cpu; the cupy backend allows: a CUDA GPU"):
        spikingjelly.lif(torch.zeros(2, 3), LIF())


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_machine_without_a_gpu_gets_one_line() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        backends.resolve("cupy", torch.device("cpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("backend cupy cannot run on cpu: ")
    assert any(line in message for line in CUPY_PIP.values())
