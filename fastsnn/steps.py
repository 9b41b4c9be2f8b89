"""The training step layer by layer, under autograd: any network, loss and optimizer, on any backend.

Same interface as the fused whole-step classes of ``fastsnn.kernels``: ``prepare``, ``train``, ``evaluate``, ``sync``.
"""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastsnn.distributed import Group
from fastsnn.encoding import poisson_encode
from fastsnn.kernels.reference import rate_loss

Data = tuple[Tensor, Tensor]
TRAINING, EVALUATION = 0, 1
"""Streams of random numbers."""

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class AutogradStep:
    """Encode, forward, loss, backward and optimizer, one batch after the other."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        T: int,
        seed: int,
        loss: str,
        amp: str = "off",
        scaler: torch.amp.GradScaler | None = None,
        group: Group | None = None,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.T, self.seed, self.loss = T, seed, loss
        self.half, self.scaler = _HALF.get(amp), scaler
        self.group = group or Group()

    def prepare(self, images: Tensor, labels: Tensor) -> Data:
        return images, labels

    def train(self, data: Data, order: Tensor, epoch: int, batch_size: int) -> tuple[Tensor, Tensor]:
        """Train on samples ``order`` int64 [S]; returns each step's mean loss fp32 and number of correct answers."""
        assert self.optimizer is not None
        self.network.train()
        results = []
        for ids in order.split(batch_size):
            self.optimizer.zero_grad(set_to_none=True)
            loss, correct = self._forward(data, ids, epoch, TRAINING)
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            loss = loss.detach()
            self.group.sum_step(self.network, loss, correct)
            if self.scaler is None:
                self.optimizer.step()
            else:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            results.append((loss, correct))
        return _stacked(results)

    @torch.no_grad()
    def evaluate(self, data: Data, batch_size: int) -> tuple[Tensor, Tensor]:
        """Forward only, over all samples in order, on the evaluation stream; returns what :meth:`train` does."""
        self.network.eval()
        ids = torch.arange(len(data[0]), device=data[0].device)
        results = _stacked([self._forward(data, part, 0, EVALUATION) for part in ids.split(batch_size)])
        self.group.sum_(*results)
        return results

    def sync(self) -> None:
        """The tensors of network and optimizer are always current here."""

    def _forward(self, data: Data, batch: Tensor, epoch: int, stream: int) -> tuple[Tensor, Tensor]:
        """This process's contribution to the batch's mean loss, and its number of correct answers."""
        images, labels = data
        ids = self.group.shard(batch)
        if not len(ids):
            # A tail smaller than the group: the gradients must still be there to be summed.
            zero = sum(
                (parameter.sum() * 0 for parameter in self.network.parameters()), torch.zeros((), device=ids.device)
            )
            return zero, torch.zeros((), dtype=torch.int64, device=ids.device)
        x = poisson_encode(images[ids], self.T, self.seed, epoch, stream, ids)
        autocast: Any = torch.autocast(x.device.type, self.half) if self.half else nullcontext()
        with autocast:
            spikes = self.network(x)
        loss, correct = rate_loss(spikes.float(), labels[ids], self.loss)
        return loss * (len(ids) / len(batch)), correct


def _stacked(results: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    losses, correct = zip(*results, strict=True)
    return torch.stack(losses).float(), torch.stack(correct)
