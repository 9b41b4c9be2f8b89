"""Which device a run computes on: the one that was named, or the first GPU that works."""

import os

import torch

from fastsnn import backends, notices
from fastsnn.config import is_device
from fastsnn.environment import nvidia_devices
from fastsnn.errors import DeviceUnavailable


def find(name: str, backend: str = "auto", index: int = 0) -> torch.device:
    """The device ``name``: auto, cpu, cuda or cuda:N. A GPU that ``auto`` passes over is named in a notice.

    ``auto`` is GPU ``index`` if ``backend`` is faster there than on the CPU.

    Raises:
        ValueError: it is no name of a device.
        DeviceUnavailable: this machine doesn't have it, or torch can't use it.
    """
    if name == "auto":
        device = backends.choose_device(backend, index)
        if device.type == "cpu" and (reason := _passed_over(backend, index)):
            notices.say_once(f"not on the GPU: {reason}")
        return device
    if not is_device(name):
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, cuda, cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (reason := backends.cuda_refusal(device.index or 0)):
        raise DeviceUnavailable(
            f"device is {name}, but {reason}; allowed here: {', '.join(_usable())}; see `fastsnn doctor`"
        )
    return device


def _usable() -> list[str]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["auto", "cpu", *(f"cuda:{index}" for index in range(count) if not backends.cuda_refusal(index))]


def _passed_over(backend: str, index: int) -> str | None:
    """Why there is a GPU and it isn't used; None if there is none, or it is hidden on purpose."""
    if torch.cuda.is_available():
        return backends.gpu_refusal(backend, index)
    if nvidia_devices() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return "this machine has one, but torch finds no CUDA GPU; `fastsnn doctor` says why"
    return None
