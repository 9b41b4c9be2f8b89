"""Data-parallel training: the processes that ``torchrun`` starts share each batch and sum their gradients."""

import os
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from fastsnn.errors import FastSNNError


class Group:
    """The processes of one run. A process of its own is a group of one, and every method leaves things as they are."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._buffers: dict[int, Tensor] = {}

    @classmethod
    def from_environment(cls) -> "Group":
        """The group that torchrun describes, else a group of one."""
        numbers = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
        return cls(*numbers)

    @property
    def leader(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the other processes: over NCCL on GPUs, gloo on CPUs."""
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))

    def leave(self) -> None:
        """Leave, however a run ends.

        A thread of gloo that is still there when Python ends aborts the process if it is the last to hold a tensor: it
        asks for Python's lock, which ends a thread from then on, and C++ calls that a crash.
        """
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def shard(self, ids: Tensor) -> Tensor:
        """This process's part of a batch; parts differ by one sample at most and may be empty."""
        return ids.tensor_split(self.size)[self.rank]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in the same order in every run."""
        if self.size == 1:
            return
        parts = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        # Kept until the group is left: a thread of gloo that were the last to hold a tensor would need Python's lock to
        # free it, and the process group's destructor waits for that thread with the lock held.
        flat = self._buffers.setdefault(parts.numel(), parts).copy_(parts)
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise FastSNNError(
                f"another process of this run has ended ({reason}); the last checkpoint is kept: go on with --resume"
            ) from error
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    def sum_gradients(self, network: nn.Module) -> None:
        if self.size > 1:
            self.sum_(*(parameter.grad for parameter in network.parameters() if parameter.grad is not None))

    def highest(self, value: int, device: torch.device) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        values = torch.zeros(self.size, device=device)
        values[self.rank] = value
        self.sum_(values)
        return int(values.max())
