"""The facts of this machine that ``fastsnn doctor`` judges, all read here.

Nothing is concluded in this module, and nothing else reads the machine: tests of :mod:`fastsnn.doctor` make up an
:class:`Environment` instead. A fact that can't be read is None or empty, never an error.
"""

import importlib
import importlib.metadata
import platform
import re
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fastsnn import backends
from fastsnn.cupy_stack import CUPY_PACKAGES, CupyStack, cuda_headers, finds_nvrtc, installed
from fastsnn.kernels.triton import AVAILABLE, toolchain_refusal
from fastsnn.legacy import clock_driven_files
from fastsnn.sources import images as data

PACKAGES = ("torch", "torchvision", "triton", "numba", "numpy", "spikingjelly", *CUPY_PACKAGES)


@dataclass(frozen=True)
class GPU:
    """An NVIDIA GPU; capability is (6, 1) for sm_61, memory is in bytes."""

    name: str
    capability: tuple[int, int] | None
    memory: int | None


@dataclass(frozen=True)
class Environment:
    """What is installed on a machine, what is in it, and which backends ran a kernel on it."""

    python: str
    system: str
    """Operating system and processor, as in "Linux x86_64"."""
    packages: Mapping[str, str]
    """Installed distribution, of those that matter here -> version."""
    torch_cuda: str | None
    """CUDA that torch was built for, as in "12.6"; None for a CPU build."""
    torch_architectures: tuple[str, ...]
    """GPU architectures that torch has code for, as in "sm_60" (binary) or "compute_90" (compiled by the driver)."""
    torch_gpus: tuple[GPU, ...]
    """GPUs that torch sees."""
    torch_triton: str | None
    """Version of Triton that torch was built with."""
    torchvision_error: str | None
    """What importing torchvision raised."""
    triton_toolchain: str | None
    """What Triton lacks to build the C code that launches its kernels on a GPU, and how to install it."""
    driver: str | None
    driver_gpus: tuple[GPU, ...]
    """GPUs that NVIDIA's driver sees."""
    nvidia_devices: int
    """NVIDIA display devices on the PCI bus, whether a driver sees them or not (Linux)."""
    nvrtc: bool
    headers: Path | None
    """Folder of cuda_fp16.h, where CuPy finds it."""
    data_folder: Path
    mnist: bool
    """Whether the data folder holds MNIST."""
    disk_free: int
    """Bytes free where runs are written."""
    memory: int | None
    memory_available: int | None
    """Bytes of main memory, and of it free for use (Linux)."""
    old_layout: tuple[Path, ...]
    """Scripts and notebooks of the working folder and below that import spikingjelly.clock_driven."""
    backends: Mapping[str, tuple[str, str | None]]
    """Backend -> the device that it was tried on, and why it did not run a tiny kernel there; None where it did."""

    @property
    def gpu(self) -> GPU | None:
        """The GPU that training would use, if torch could."""
        return next(iter((*self.torch_gpus, *self.driver_gpus)), None)

    @property
    def stack(self) -> CupyStack:
        """What the cupy backend stands on, were torch to see the GPU."""
        capability = self.gpu.capability if self.gpu else None
        return CupyStack(self.packages, self.torch_cuda, capability, self.nvrtc, self.headers is not None)


def read_environment() -> Environment:
    """Read this machine; runs a tiny kernel on each backend, which takes some seconds."""
    with warnings.catch_warnings():
        # torch and torchvision warn of what is reported here as a fact: an old driver, a GPU without code for it.
        warnings.simplefilter("ignore")
        driver, driver_gpus = _driver()
        memory, memory_available = _memory()
        data_folder = data.default_folder()
        return Environment(
            python=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            packages=installed(*PACKAGES),
            torch_cuda=torch.version.cuda,
            torch_architectures=_torch_architectures(),
            torch_gpus=_torch_gpus(),
            torch_triton=_torch_triton(),
            torchvision_error=_torchvision_error(),
            triton_toolchain=toolchain_refusal() if AVAILABLE else None,
            driver=driver,
            driver_gpus=driver_gpus,
            nvidia_devices=nvidia_devices(),
            nvrtc=finds_nvrtc(),
            headers=cuda_headers(),
            data_folder=data_folder,
            mnist=data.is_present("mnist", data_folder),
            disk_free=shutil.disk_usage(Path.cwd()).free,
            memory=memory,
            memory_available=memory_available,
            old_layout=clock_driven_files(Path.cwd()),
            backends={name: _try_backend(name) for name in backends.names()},
        )


def _try_backend(name: str) -> tuple[str, str | None]:
    on_gpu = name != "numba" and torch.cuda.is_available()
    device = torch.device("cuda:0" if on_gpu else "cpu")
    return str(device), backends.refusal(name, device)


def _torch_architectures() -> tuple[str, ...]:
    # torch.cuda.get_arch_list() of older versions is empty where torch sees no GPU.
    read = getattr(torch._C, "_cuda_getArchFlags", lambda: None)
    return tuple((read() or "").split())


def _torch_gpus() -> tuple[GPU, ...]:
    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(GPU(gpu.name, (gpu.major, gpu.minor), gpu.total_memory) for gpu in found)


def _torch_triton() -> str | None:
    for requirement in importlib.metadata.requires("torch") or ():
        if pinned := re.match(r"triton[=~]=([\d.]+)", requirement):
            return pinned[1]
    return None


def _torchvision_error() -> str | None:
    if "torchvision" not in installed("torchvision"):
        return None
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # each is how a wrong build has failed
        return str(error).splitlines()[0]
    return None


def _driver() -> tuple[str | None, tuple[GPU, ...]]:
    """Version of NVIDIA's driver and the GPUs that it sees, from nvidia-smi."""
    query = ["--query-gpu=driver_version,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, ()
    rows = [[field.strip() for field in line.split(",")] for line in run.stdout.splitlines() if line.strip()]
    gpus = [GPU(name, _capability(capability), _mebibytes(memory)) for _, name, memory, capability in rows]
    return (rows[0][0] if rows else None), tuple(gpus)


def _capability(text: str) -> tuple[int, int] | None:
    numbers = re.fullmatch(r"(\d+)\.(\d+)", text)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdecimal() else None


def nvidia_devices(bus: Path = Path("/sys/bus/pci/devices")) -> int:
    """NVIDIA display devices on the PCI bus, whether a driver sees them or not (Linux)."""
    count = 0
    for device in bus.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        count += vendor == "0x10de" and kind.startswith("0x03")
    return count


def _memory(source: Path = Path("/proc/meminfo")) -> tuple[int | None, int | None]:
    try:
        kibibytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", source.read_text(), re.MULTILINE))
    except OSError:
        return None, None
    total, available = (kibibytes.get(name) for name in ("MemTotal", "MemAvailable"))
    return (int(total) * 1024 if total else None), (int(available) * 1024 if available else None)
