"""The whole training step on the CPU against the reference under autograd: C1, C4 and what is refused."""

from typing import Any

import numba
import pytest
import torch
from cpu_rate_step_cases import (
    CLASSES,
    DEFAULTS,
    PIXELS,
    SAMPLES,
    by_reference,
    dataset,
    encoded,
    fused,
    parameters,
    require_same,
    train_reference,
)
from neuron_cases import OPTIONS, kept_potentials
from torch import Tensor
from torch.nn import functional as F

from fastsnn import LIF, PLIF
from fastsnn.kernels import contract, reference
from fastsnn.kernels.neurons import SURROGATES
from fastsnn.kernels.rate_classifier.numba import step as rate_step
from fastsnn.kernels.rate_classifier.numba.kernels import workspaces
from fastsnn.kernels.rate_classifier.numba.step import EVALUATION, TRAINING, RateStep


def gradient_keeper(trained: list[Tensor]) -> torch.optim.SGD:
    """An optimizer whose momentum_buffer is the gradient after the first step."""
    return torch.optim.SGD(trained, lr=0.01, momentum=0.9)


def exact_gradients(
    trained: list[Tensor], ids: Tensor, data: tuple[Tensor, Tensor], dtype: torch.dtype, *, T: int, loss: str,
    epoch: int, batch_size: int, neuron: LIF,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of one step in ``dtype``, with the reference's spikes."""
    images, labels = data
    x = encoded(images, ids, T, epoch, TRAINING)
    spikes = by_reference(x, trained, neuron)
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in trained]
    replayed = contract.replay(F.linear(x.to(dtype), *leaves), neuron, None, spikes)[0]
    return torch.autograd.grad(reference.rate_loss(replayed, labels[ids], loss)[0], leaves)


def require_step(
    neuron: LIF, pixels: int = PIXELS, classes: int = CLASSES, has_bias: bool = True, **changes: Any
) -> None:
    """One step: loss, correct answers and the gradients of weight and bias."""
    setting = DEFAULTS | changes
    data, trained = dataset(pixels, classes), parameters(pixels, classes, has_bias)
    ids = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))[: setting["batch_size"]]
    optimizer = gradient_keeper(trained)
    step = fused(trained, optimizer, T=setting["T"], loss=setting["loss"], neuron=neuron)
    exact, eager = (
        exact_gradients(trained, ids, data, d, **setting, neuron=neuron) for d in (torch.float64, torch.float32)
    )
    copies = [tensor.detach().clone().requires_grad_() for tensor in trained]
    expected = train_reference(copies, gradient_keeper(copies), ids, data, **setting, neuron=neuron)

    losses, correct = step.train(step.prepare(*data), ids, setting["epoch"], setting["batch_size"])
    step.sync()
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=0)
    assert torch.equal(correct, expected[1])
    assert min(grad.norm() for grad in exact) > 0
    actual = [optimizer.state[tensor]["momentum_buffer"] for tensor in trained]
    names = ("weight", "bias")
    contract.require(*(contract.gradient_error(*row) for row in zip(names, actual, exact, eager)))  # noqa: B905


@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_membrane_potentials(options: dict[str, Any], tau: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """C1: what is kept, spikes and the last v of one sample, read from the workspace of the only worker."""
    made = []
    monkeypatch.setattr(numba, "get_num_threads", lambda: 1)
    monkeypatch.setattr(rate_step, "workspaces", lambda *sizes: made.append(workspaces(*sizes)) or made[0])
    (images, labels), T = dataset(), 65
    scale = 1 if options["decay_input"] else 0.25  # as many spikes from weights that are dyadic too
    trained = [scale * tensor.detach() for tensor in parameters()]
    neuron = LIF(tau=tau, **options)
    step = fused(trained, None, T=T, loss="mse", neuron=neuron)
    step.evaluate(step.prepare(images[3:4], labels[3:4]), 1)
    kept = torch.from_numpy(made[0].membrane).reshape(T, -1)[:, :CLASSES]
    x = encoded(images[3:4], torch.arange(1), T, 0, EVALUATION)
    current = F.linear(x, *trained)
    spikes, (v,) = reference.scan(current, neuron)
    assert 0.05 < spikes.mean() < 0.95
    threshold = 0.0 if neuron.v_reset is None or neuron.detach_reset else 1.0  # of what is kept
    contract.require(
        contract.same_bits("kept", kept, kept_potentials(neuron, current)[:, 0]),
        contract.same_bits("spikes", (kept >= threshold).float(), spikes[:, 0]),
        contract.same_bits("v", torch.from_numpy(made[0].rows)[0, 1, :CLASSES], v[0]),
    )


@pytest.mark.parametrize("tau", [2.0, 3.0])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(options: dict[str, Any], tau: float) -> None:
    require_step(LIF(tau=tau, **options))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_every_surrogate_and_loss(surrogate: str, loss: str) -> None:
    require_step(LIF(surrogate=surrogate, v_threshold=0.8), loss=loss)


@pytest.mark.parametrize("T", [1, 31, 32, 33, 64, 65, 100, 128, 129, 300])
def test_every_length(T: int) -> None:
    require_step(LIF(), T=T)


@pytest.mark.parametrize("batch_size", [1, 2, 15, 17, 33, 64])
def test_every_batch_size(batch_size: int) -> None:
    """Batches that fill some, all or none of the 16 groups, evenly or not."""
    require_step(LIF(), batch_size=batch_size)


@pytest.mark.parametrize(("pixels", "classes"), [(64, 16), (65, 17), (130, 40), (63, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_every_shape(pixels: int, classes: int, has_bias: bool) -> None:
    require_step(LIF(), pixels, classes, has_bias)


@pytest.mark.parametrize("batch_size", [16, 70, 100])
def test_evaluation(batch_size: int) -> None:
    """All samples in order, on their own stream; nothing is trained."""
    (images, labels), trained = dataset(), parameters()
    before = [tensor.detach().clone() for tensor in trained]
    step = fused(trained, None, T=33, loss="ce", neuron=LIF())
    losses, correct = step.evaluate(step.prepare(images, labels), batch_size)
    step.sync()
    expected = []
    for ids in torch.arange(SAMPLES).split(batch_size):
        spikes = by_reference(encoded(images, ids, 33, 0, EVALUATION), trained, LIF())
        expected.append(reference.rate_loss(spikes, labels[ids], "ce"))
    torch.testing.assert_close(losses, torch.stack([value for value, _ in expected]), rtol=1e-5, atol=0)
    assert torch.equal(correct, torch.stack([right for _, right in expected]))
    assert all(torch.equal(*pair) for pair in zip(trained, before, strict=True))
    with pytest.raises(ValueError, match="optimizer is None"):
        step.train(step.prepare(images, labels), torch.arange(3), 0, 3)


def test_ties_go_to_the_lowest_class() -> None:
    weight = torch.zeros(CLASSES, PIXELS)
    step = RateStep(weight, None, None, T=5, seed=0, loss="mse", neuron=LIF())
    images, labels = dataset()
    _, correct = step.evaluate(step.prepare(images, labels), SAMPLES)
    assert correct.tolist() == [int((labels == 0).sum())]


def test_changes_by_others_are_noticed() -> None:
    data, trained = dataset(), parameters()
    step = fused(trained, None, T=33, loss="mse", neuron=LIF())
    prepared = step.prepare(*data)
    before = step.evaluate(prepared, SAMPLES)[0]
    with torch.no_grad():
        trained[0].mul_(2)
    after = step.evaluate(prepared, SAMPLES)[0]
    fresh = fused(trained, None, T=33, loss="mse", neuron=LIF()).evaluate(prepared, SAMPLES)[0]
    assert not torch.equal(after, before)
    assert torch.equal(after, fresh)


def test_the_learning_rate_is_read_at_each_call() -> None:
    data, trained = dataset(), parameters()
    optimizer = torch.optim.SGD(trained, lr=0.0)
    step = fused(trained, optimizer, T=33, loss="mse", neuron=LIF())
    before = trained[0].detach().clone()
    for lr in (0.0, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        step.train(step.prepare(*data), torch.arange(16), 0, 16)
        step.sync()
        assert torch.equal(trained[0], before) == (lr == 0)


def test_images_of_several_axes_and_no_samples() -> None:
    (images, labels), trained = dataset(96), parameters(96)
    step = fused(trained, torch.optim.Adam(trained), T=5, loss="mse", neuron=LIF())
    flat, folded = (step.prepare(x, labels) for x in (images, images.reshape(SAMPLES, 2, 6, 8)))
    require_same(list(step.evaluate(folded, 9)), list(step.evaluate(flat, 9)))
    for losses, correct in (
        step.train(flat, torch.zeros(0, dtype=torch.int64), 0, 8),
        step.evaluate(step.prepare(images[:0], labels[:0]), 8),
    ):
        assert (losses.shape, correct.shape) == ((0,), (0,))


SUPPORTED: dict[str, Any] = {"T": 100, "classes": 10, "pixels": 784, "loss": "mse", "optimizer": None, "neuron": LIF()}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"T": 4097}, "T is 4097; the fused step has 1 to 4096"),
        ({"T": 4000, "classes": 1000}, "T is 4000; the fused step has 1 to 1040 with 1000 classes"),
        ({"classes": 1025}, "classes is 1025; the fused step has 1 to 1024"),
        ({"pixels": 1 << 20}, "pixels is 1048576; the fused step has 1 to 262144 with 10 classes"),
        ({"optimizer": torch.optim.RMSprop(parameters())}, "optimizer is RMSprop"),
        ({"optimizer": torch.optim.AdamW(parameters())}, "optimizer is AdamW"),
        ({"optimizer": torch.optim.Adam(parameters(), weight_decay=0.1)}, "weight_decay is 0.1"),
        ({"neuron": PLIF()}, "neuron is PLIF, which learns w"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_has_no_fused_step(change: dict[str, Any], reason: str) -> None:
    assert rate_step.refusal(**SUPPORTED) is None
    found = rate_step.refusal(**(SUPPORTED | change))
    assert found is not None
    assert found.find(reason) >= 0, found


def test_refusals() -> None:
    (images, labels), (weight, bias) = dataset(), parameters()
    with pytest.raises(ValueError, match="weight is on meta; allowed: the CPU"):
        RateStep(weight.to("meta"), None, None, T=5, seed=0, loss="mse", neuron=LIF())
    with pytest.raises(TypeError, match="weight has dtype float64; backend numba allows: float32"):
        RateStep(weight.double(), None, None, T=5, seed=0, loss="mse", neuron=LIF())
    with pytest.raises(ValueError, match="loss is 'hinge'"):
        RateStep(weight, bias, None, T=5, seed=0, loss="hinge", neuron=LIF())
    step = RateStep(weight, bias, torch.optim.Adam([weight, bias]), T=5, seed=0, loss="mse", neuron=LIF())
    for bad_images, bad_labels, error, message in (
        (images.float(), labels, TypeError, "images has dtype float32"),
        (images, labels.int(), TypeError, "labels has dtype int32"),
        (images[:, :-1], labels, ValueError, "images have 96 pixels and weight 97"),
        (images, labels[:-1], ValueError, r"labels has shape \[69\]"),
        (images, labels + 1, ValueError, "labels go from 1 to 5; allowed: 0 to 4"),
    ):
        with pytest.raises(error, match=message):
            step.prepare(bad_images, bad_labels)
    data = step.prepare(images, labels)
    with pytest.raises(ValueError, match="order holds samples 0 to 70; allowed: 0 to 69"):
        step.train(data, torch.arange(71), 0, 8)
    with pytest.raises(ValueError, match="batch_size is 0"):
        step.train(data, torch.arange(8), 0, 0)
