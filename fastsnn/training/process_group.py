"""Data-parallel training: the processes that ``torchrun`` starts share each batch and sum their gradients."""

import os
from collections import deque
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn

from fastsnn.errors import FastSNNError

LAG = 2
"""Steps that a GPU may be behind when a stop signal is looked at: the host never waits for the step it has launched."""


class ProcessGroup:
    """The processes of one run. A process of its own is a group of one, and every method leaves things as they are.

    A step makes one all-reduce, of its gradients, loss, counts and stop signals in one buffer, and no host waits in it.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.signal = 0
        """This process's own stop signal, which the next step tells the others."""
        self._signals: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._buffers: dict[tuple[torch.device, int], Tensor] = {}

    @classmethod
    def from_environment(cls) -> "ProcessGroup":
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
        if self.size == 1 or distributed.is_initialized():
            return
        if device.type == "cuda":
            # What names no device, as pinned memory, would open a context on the first GPU in every process.
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=10))

    def leave(self) -> None:
        """Leave, however a run ends.

        A gloo thread that is still there when Python ends aborts the process if it drops the last reference to a
        tensor: it asks for the GIL, which ends a thread from then on, and C++ calls that a crash.
        """
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def shard(self, ids: Tensor) -> Tensor:
        """This process's part of a batch; parts differ by one sample at most and may be empty."""
        return ids.tensor_split(self.size)[self.rank]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in the same order in every run; sums are made in fp32."""
        if self.size > 1 and tensors:
            _scatter(self._all_reduce(tensors), tensors)

    def sum_step(self, network: nn.Module, *totals: Tensor) -> None:
        """:meth:`sum_` of a step's gradients and ``totals``; tells the others of :attr:`signal`, too."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        signals = torch.zeros(self.size, device=totals[0].device)
        signals[self.rank].fill_(self.signal)
        flat = self._all_reduce((*gradients, *totals, signals))
        _scatter(flat, (*gradients, *totals))
        self._signals.append(_fetched(flat[-self.size :].max()))

    def agreed_signal(self) -> int:
        """The highest stop signal of the processes, the same in all of them: as it was before the last step.

        On GPUs it is that of :data:`LAG` steps before, for which no process has to wait.
        """
        if self.size == 1:
            return self.signal
        if len(self._signals) <= (LAG if self._signals and self._signals[0][1] else 0):
            return 0
        value, copied = self._signals.popleft()
        if copied is not None:
            copied.synchronize()
        return int(value)

    def _all_reduce(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors' numbers in a row, summed over the processes; valid until the next call."""
        parts = [tensor.detach().reshape(-1).float() for tensor in tensors]
        count, device = sum(part.numel() for part in parts), parts[0].device
        # Kept until the group is left: a thread of gloo that were the last to hold a tensor would need Python's lock to
        # free it, and the process group's destructor waits for that thread with the lock held.
        flat = self._buffers.get((device, count))
        if flat is None:
            flat = self._buffers[device, count] = torch.empty(count, device=device)
        torch.cat(parts, out=flat)
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:120]
            raise FastSNNError(
                f"another process of this run has ended ({reason}); the last checkpoint is kept: go on with --resume"
            ) from error
        return flat


def _scatter(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the first numbers of ``flat`` over the tensors."""
    sizes = [tensor.numel() for tensor in tensors]
    parts = [part.view_as(tensor) for part, tensor in zip(flat[: sum(sizes)].split(sizes), tensors, strict=True)]
    with torch.no_grad():
        torch._foreach_copy_(list(tensors), parts)


def _fetched(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """``value`` on its way to the host, and what happens when it has arrived there."""
    if not value.is_cuda:
        return value, None
    host = torch.empty((), pin_memory=True).copy_(value, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(value.device))
    return host, copied
