"""Readouts, losses and bounds of firing rates: against loops over samples, with lengths and labels per step."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastsnn.config import FitConfig
from fastsnn.kernels.reference import rate_loss
from fastsnn.training.firing_rates import rate_penalty
from fastsnn.training.readouts import LOSSES, READOUTS, Objective, objective_for

T, B, N = 7, 5, 3
LENGTHS = torch.tensor([7, 1, 4, 6, 3])


def output(seed: int = 0) -> torch.Tensor:
    return torch.randn(T, B, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


LABELS = torch.tensor([0, 2, 1, 1, 0])
EXPECTED = {
    "rate": lambda v: v.mean(0),
    "mean": lambda v: v.mean(0),
    "steps": lambda v: v.mean(0),
    "max": lambda v: v.max(0).values,
    "last": lambda v: v[-1],
}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
@pytest.mark.parametrize("readout", READOUTS)
def test_scores_are_those_of_each_sample_alone(readout: str, lengths: torch.Tensor | None) -> None:
    v = output()
    found = Objective(readout, "ce").scores(v, lengths)
    for b in range(B):
        own = v[: T if lengths is None else int(lengths[b]), b]
        torch.testing.assert_close(found[b], EXPECTED[readout](own))
    found.square().sum().backward()
    assert v.grad is not None
    if lengths is not None:
        outside = torch.arange(T)[:, None] >= lengths
        assert v.grad[outside].abs().max() == 0, "a step past the length has a gradient"


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_rates_is_the_references_to_the_last_bit(loss: str) -> None:
    spikes = (torch.rand(T, B, N, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    expected, correct = rate_loss(spikes, LABELS, loss)
    found = Objective("rate", loss)(spikes, LABELS)
    assert torch.equal(found.loss, expected)
    assert (int(found.correct), int(found.counted)) == (int(correct), B)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all steps", "lengths"])
@pytest.mark.parametrize("loss", LOSSES)
def test_labels_per_step(loss: str, lengths: torch.Tensor | None) -> None:
    labels = torch.randint(-1, N, (T, B), generator=torch.Generator().manual_seed(2))
    v, losses, correct = output(), [], 0
    for b in range(B):
        for t in range(T if lengths is None else int(lengths[b])):
            label = labels[t, b]
            if label < 0:
                continue
            one_hot = F.one_hot(label, N).double()
            losses.append(F.cross_entropy(v[t, b], label) if loss == "ce" else F.mse_loss(v[t, b], one_hot))
            correct += int(v[t, b].argmax() == label)
    found = Objective("steps", loss)(v, labels, lengths)
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())
    assert (int(found.correct), int(found.counted)) == (correct, len(losses))
    found.loss.backward()
    assert v.grad is not None
    assert v.grad[labels < 0].abs().max() == 0


def test_a_batch_without_any_label_has_a_loss_of_zero() -> None:
    v = output()
    found = Objective("steps", "ce")(v, torch.full((T, B), -1))
    found.loss.backward()
    assert (found.loss.item(), found.counted.item()) == (0, 0)
    assert v.grad is not None
    assert v.grad.abs().max() == 0


def test_one_label_at_every_step() -> None:
    """With readout steps a label per sample counts at each of its steps; the answer is that of the mean."""
    v = output()
    found = Objective("steps", "ce")(v, LABELS, LENGTHS)
    losses = [F.cross_entropy(v[t, b], LABELS[b]) for b in range(B) for t in range(int(LENGTHS[b]))]
    torch.testing.assert_close(found.loss, torch.stack(losses).mean())
    means = torch.stack([v[: int(LENGTHS[b]), b].mean(0) for b in range(B)])
    assert int(found.correct) == int((means.argmax(-1) == LABELS).sum())
    assert int(found.counted) == B


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, 2, 3, 0]), r"labels go from 0 to 3; allowed: 0 to 2"),
        (torch.tensor([0, -1, 2, 0, 0]), r"labels go from -1 to 2; allowed: 0 to 2"),
        (torch.full((T, B), -2), r"labels go from -2 to -2; allowed: -1 to 2"),
        (torch.zeros(4, dtype=torch.int64), r"labels have shape \[4\]; allowed: \[5\] or \[7, 5\]"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Objective("steps" if labels.dim() == 2 else "rate")(output(), labels)


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        (("auto", "auto", False), ("rate", "mse")),
        (("auto", "auto", True), ("steps", "ce")),
        (("max", "auto", False), ("max", "ce")),
        (("last", "mse", False), ("last", "mse")),
    ],
)
def test_what_auto_chooses(options: Any, chosen: tuple[str, str]) -> None:
    objective = objective_for(*options)
    assert (objective.readout, objective.loss) == chosen


def test_a_readout_that_labels_per_step_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"readout is 'rate'; allowed: steps \(or auto\)"):
        objective_for("rate", "auto", True)
    for options, said in ((("best", "ce"), "readout is 'best'"), (("rate", "mae"), "loss is 'mae'; allowed: mse, ce")):
        with pytest.raises(ValueError, match=said):
            Objective(*options)


def test_rate_penalty() -> None:
    """Neurons at rates 0, 0.5 and 1 in a layer, and a layer of two that keep to the bounds."""
    layer = torch.tensor([[[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]]).repeat(4, 1, 1).requires_grad_()
    within = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    config = FitConfig(rate_lower=0.2, rate_upper=0.6, rate_penalty=3.0)
    found = rate_penalty([layer, within], config)
    assert found is not None
    assert found.item() == pytest.approx(3 * (0.2**2 + 0.4**2) / 3)
    found.backward()
    assert layer.grad is not None
    assert [int(value) for value in layer.grad.sign().flatten(0, 1)[0]] == [-1, 0, 1]
    assert rate_penalty([layer], FitConfig()) is None
    assert rate_penalty([], config) is None
