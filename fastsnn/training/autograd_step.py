"""The training step layer by layer, under autograd: any network, source, loss and optimizer, on any backend."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from fastsnn.config import DEFAULT_T, FitConfig
from fastsnn.kernels.packed import PackedSpikes
from fastsnn.networks import accepted_input
from fastsnn.nn import keep_in_bounds
from fastsnn.sources import Batch, Source, StoredSource, batches
from fastsnn.training.firing_rates import SpikeRecorder, rate_penalty
from fastsnn.training.process_group import ProcessGroup
from fastsnn.training.readouts import Objective, Outcome
from fastsnn.training.step import StepResults, stacked

_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


class AutogradStep:
    """Batch, forward, loss, backward and optimizer, one batch after the other; a :class:`Step`.

    Args:
        network: from x [T, B, *shape] to the output [T, B, classes].
        source: the data, on the network's device.
        optimizer: over the network's parameters; None if nothing is trained.
        config: seed, amp, clip_grad_norm and the bounds of firing rates.
        objective: readout and loss.
        T: time steps per sample; default the source's own, else ``config.T``, else 100.
        scaler: of gradients, with amp fp16.
        group: the processes that share each batch.
    """

    name = "autograd"

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        optimizer: torch.optim.Optimizer | None,
        config: FitConfig,
        objective: Objective | None = None,
        scaler: torch.amp.GradScaler | None = None,
        group: ProcessGroup | None = None,
        T: int | None = None,
    ) -> None:
        self.network, self.source, self.optimizer, self.config = network, source, optimizer, config
        self.T = T or time_steps(source, config.T)
        # Of data in the host's memory the next batch is copied meanwhile.
        on_host = isinstance(source, StoredSource) and source.on_host("train")
        self.batches_per_call = 16 if on_host else 1
        self.objective = objective or Objective()
        self.scaler, self.group = scaler, group or ProcessGroup()
        self._stateful = [module for module in network.modules() if callable(getattr(module, "reset", None))]
        self._half = _HALF.get(config.amp)
        self._bounded = config.rate_lower is not None or config.rate_upper is not None

    def train(self, ids: Tensor, epoch: int, batch_size: int, learning_rates: Sequence[float]) -> StepResults:
        """Train on the samples ``ids`` int64 [S] of the training set; ``learning_rates`` has one entry per batch."""
        assert self.optimizer is not None
        self.network.train()
        results = []
        parts = ids.split(batch_size)
        shards = [self.group.shard(part) for part in parts]
        feed = self._batches("train", shards, epoch)
        for part, own, rate in zip(parts, shards, learning_rates, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.zero_grad(set_to_none=True)
            batch = next(feed) if len(own) else None
            outcome, penalty = self._training_outcome(batch, len(own) / len(part))
            totals = outcome.loss.detach(), outcome.correct, outcome.counted
            self._backward(outcome.loss if penalty is None else outcome.loss + penalty, totals)
            results.append(totals)
        return stacked(results)

    @torch.no_grad()
    def evaluate(self, split: str, ids: Tensor, batch_size: int) -> StepResults:
        """Forward only, over the samples ``ids`` int64 [S] of ``split``."""
        self.network.eval()
        results = []
        parts = ids.split(batch_size)
        shards = [self.group.shard(part) for part in parts]
        feed = self._batches(split, shards, 0)
        for part, own in zip(parts, shards, strict=True):
            outcome = self._outcome(next(feed), len(own) / len(part)) if len(own) else self._nothing()
            results.append((outcome.loss.detach(), outcome.correct, outcome.counted))
        found = stacked(results)
        self.group.sum_(*found)
        return found

    @torch.no_grad()
    def forward(self, split: str, ids: Tensor, batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch of the samples ``ids`` int64 [S] of ``split``, and the network's output for it, [T, B, N]."""
        self.network.eval()
        for batch in self._batches(split, ids.split(batch_size), 0):
            yield batch, self._forward(batch)

    def outputs(self, split: str, ids: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Scores of the classes fp32 [S, N] and the mean firing rate of each layer, [layers], over those samples."""
        scores, rates, sizes = [], [], []
        with SpikeRecorder(self.network) as recorder:
            for batch, output in self.forward(split, ids, batch_size):
                scores.append(self.objective.scores(output, batch.lengths))
                rates.append(recorder.rates(batch.lengths))
                sizes.append(len(scores[-1]))
                recorder.spikes.clear()
        weights = torch.tensor(sizes, dtype=torch.float32) / sum(sizes)
        return torch.cat(scores), (torch.stack(rates) * weights.to(rates[0].device)[:, None]).sum(0)

    def sync(self) -> None:
        """The tensors of network and optimizer are always current here."""

    def _batches(self, split: str, parts: Sequence[Tensor], epoch: int) -> Iterator[Batch]:
        """The batch of each part that isn't empty."""
        ids = [part for part in parts if len(part)]
        return batches(self.source, split, ids, self.T, seed=self.config.seed, epoch=epoch)

    def _training_outcome(self, batch: Batch | None, share: float) -> tuple[Outcome, Tensor | None]:
        """This process's contribution to the batch's mean loss, and to its penalty."""
        if batch is None:
            return self._nothing(), None
        if not self._bounded:
            return self._outcome(batch, share), None
        with SpikeRecorder(self.network) as recorder:
            outcome = self._outcome(batch, share)
        hidden = recorder.spikes[:-1] if self.objective.readout == "rate" else recorder.spikes
        penalty = rate_penalty(hidden, self.config)
        return outcome, None if penalty is None else penalty * share

    def _nothing(self) -> Outcome:
        """The outcome of no sample: the tail of an epoch may be smaller than the group of processes.

        The gradients must still be there to be summed.
        """
        parameters = list(self.network.parameters())
        device = parameters[0].device if parameters else torch.device("cpu")
        zero = sum((parameter.sum() * 0 for parameter in parameters), torch.zeros((), device=device))
        none = torch.zeros((), dtype=torch.int64, device=device)
        if self.source.per_step:
            self.group.sum_(none.float())  # the others wait for it in _outcome
        return Outcome(zero, none, none.clone())

    def _forward(self, batch: Batch) -> Tensor:
        for module in self._stateful:
            module.reset()  # type: ignore[operator]
        autocast: AbstractContextManager[object] = nullcontext()
        if self._half is not None:
            autocast = torch.autocast(batch.y.device.type, self._half)
        with autocast:
            output = self.network(accepted_input(self.network, batch.x))
        return (output.unpack() if isinstance(output, PackedSpikes) else output).float()

    def _outcome(self, batch: Batch, share: float) -> Outcome:
        """Loss and answers of this process's part of a batch, weighted so that the processes' losses add up."""
        outcome = self.objective(self._forward(batch), batch.y, batch.lengths)
        if batch.y.dim() == 2 and self.group.size > 1:
            total = outcome.counted.float()
            self.group.sum_(total)
            return outcome._replace(loss=outcome.loss * (outcome.counted / total.clamp(min=1)))
        return outcome._replace(loss=outcome.loss * share)

    def _backward(self, loss: Tensor, totals: tuple[Tensor, ...]) -> None:
        assert self.optimizer is not None
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        self.group.sum_step(self.network, *totals)
        if self.config.clip_grad_norm is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        keep_in_bounds(self.network)


def time_steps(source: Source, T: int | None) -> int:
    """The number of time steps to train with; raises ValueError for one that the data don't have."""
    if source.T is None:
        return T or DEFAULT_T
    if T is not None and T != source.T:
        raise ValueError(f"T is {T}; allowed: {source.T}, the time steps of {source.name}")
    return source.T
