"""A training run in one frozen dataclass: it owns every default; the command line and config.yaml are made from it."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from cyclopts import Group, Parameter

from fastsnn.kernels.suggestion import did_you_mean
from fastsnn.option_values import (
    Assignments,
    Integer,
    OptionalInteger,
    Options,
    Sizes,
    check_assignments,
    check_range,
    from_yaml,
)
from fastsnn.table_names import names_in

if TYPE_CHECKING:
    from fastsnn.kernels.neurons import Neuron

PLACE = ("name", "out", "overwrite")
"""Options that say where a run is put. They are not recorded in it: its config.yaml may serve to start another."""

DEFAULT_T = 100
"""Time steps of data that have none."""

MOST = 2**31 - 1
"""The largest count that an option takes."""

OptionsT = TypeVar("OptionsT", bound=Options)
ClassT = TypeVar("ClassT", bound=type)

RUN = Parameter(group=Group("Run", sort_key=6))
"""The heading in `fastsnn train --help` of options that say where and what a run is."""
MACHINE = Parameter(group=Group("Machine", sort_key=5))


def _names(text: str, module: str, table: str) -> Parameter:
    """Help of an option whose value is the name of a row of a table."""
    return Parameter(help=text.format(", ".join(names_in(module, table))))


def headed(heading: Parameter) -> Callable[[ClassT], ClassT]:
    """Put the options of a class under a heading of `fastsnn train --help`, but for those that name their own."""

    def mark(options: ClassT) -> ClassT:
        for name, hint in options.__annotations__.items():
            kind, own = (hint.__origin__, hint.__metadata__) if hasattr(hint, "__metadata__") else (hint, ())
            options.__annotations__[name] = Annotated[(kind, heading, *own)]
        return options

    return mark


@dataclass(frozen=True)
@headed(Parameter(group=Group("Data", sort_key=1)))
class DataOptions(Options):
    """What is learnt from."""

    dataset: Annotated[
        str,
        _names(
            "Data set: {}, or the path of a .npz file; auto is MNIST, or digits (no network "
            "needed) if MNIST can't be had.",
            "sources.registry",
            "_OPENERS",
        ),
    ] = "auto"
    dataset_args: Assignments = ()
    """Options of the data set, as in binning=count (docs/data.md); may be given several times."""
    encoder: Literal["none", "poisson", "latency", "direct"] = "none"
    """What makes time steps of samples without any: random spikes, one spike, or the value as a current; none: the
    data's own, which is poisson for images."""
    data_dir: Path | None = None
    """Folder of the data sets; default $FASTSNN_DATA, else ~/.cache/fastsnn."""
    train_samples: OptionalInteger = None
    """Train on the first N samples only."""
    test_samples: OptionalInteger = None
    """Test on the first N samples only."""

    def _check(self) -> None:
        super()._check()
        check_range("train_samples", self.train_samples, 1, MOST)
        check_range("test_samples", self.test_samples, 1, MOST)
        check_assignments("dataset_args", self.dataset_args)


@dataclass(frozen=True)
@headed(Parameter(group=Group("Neuron", sort_key=3)))
class NeuronOptions(Options):
    """Which neuron every layer has."""

    neuron: Annotated[
        str,
        _names(
            "Neuron of every layer: {}, or a class of one's own as file.py:Class, with fields if "
            'need be, as in "adlif(tau=20, a=0.2)"; the other options here are fields that many neurons have.',
            "kernels.neurons",
            "NEURONS",
        ),
    ] = "lif"
    learn_per: Literal["layer", "neuron"] = "layer"
    """Parameters that a neuron learns: one for a layer, or one for each neuron of a linear layer."""
    tau: float = 2.0
    """Membrane time constant in time steps, more than 1."""
    v_threshold: float = 1.0
    """Membrane potential at which a neuron fires."""
    v_reset: float | None = 0.0
    """Potential after a spike; none subtracts the threshold instead (soft reset)."""
    decay_input: bool = True
    """Divide the input current by tau as well."""
    detach_reset: bool = False
    """Keep the gradient out of the reset."""
    surrogate: Annotated[
        str, _names("Surrogate derivative of the spike: {}.", "kernels.neurons.surrogates", "SURROGATES")
    ] = "atan"
    alpha: float | None = None
    """Sharpness of the surrogate; default the surrogate's own (2 for atan)."""


@dataclass(frozen=True)
@headed(Parameter(group=Group("Network", sort_key=2)))
class NetworkOptions(NeuronOptions):
    """Which layers there are, and which neuron they have."""

    hidden: Sizes = ()
    """Sizes of hidden linear layers, as in 800,400."""
    net: str | None = None
    """Hidden layers in the notation of papers, as in 32c3-p2-64c3-bn-p2-800: convolution of 32 channels and 3 x 3,
    pooling (p or mp: maximum, ap: average), bn: batch norm of the layer before, linear layer of 800 neurons."""
    network: str | None = None
    """A network of one's own, file.py:function: called with the shape of a sample at one time step and the number of
    classes, it returns an nn.Module from [T, B, *shape] to [T, B, classes]."""
    bias: bool = False
    """Give the linear layers and convolutions a bias."""
    recurrent: bool = False
    """Feed the spikes of each hidden layer back to it, one step later."""
    backend: Annotated[Literal["auto", "torch", "cupy", "triton", "numba"], MACHINE] = "auto"
    """Implementation; auto is the fastest that runs here."""
    recompute: Annotated[Literal["auto", "on", "off"], MACHINE] = "auto"
    """on: backward computes again what it needs of each time step, in less memory and more time; off: that is kept;
    auto: on for layers that would keep more than a 32nd of the memory. The weights come out the same."""

    def _check(self) -> None:
        super()._check()
        for size in self.hidden:
            check_range("hidden", size, 1, MOST)
        if len(self.hidden) > 1000:
            raise ValueError(f"hidden has {len(self.hidden)} sizes; allowed: 1000 at most")
        given = [name for name in ("hidden", "net", "network") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]} are both given; allowed: one of hidden, net and network")
        if self.recurrent and not self.hidden:
            raise ValueError("recurrent is true, and there are no hidden layers; allowed: with --hidden, as in 128,128")
        _ = self.layer_neuron()

    def layer_neuron(self) -> "Neuron":
        """The neuron of every layer: what ``neuron`` names, with the options that differ from their defaults."""
        from fastsnn.neuron_spec import parse_neuron  # imports torch, which takes seconds

        neuron = parse_neuron(self.neuron)
        defaults = {field.name: field.default for field in fields(self)}
        known = {field.name for field in fields(neuron)}
        changes = {name: getattr(self, name) for name in _OF_A_NEURON if getattr(self, name) != defaults[name]}
        for name, value in changes.items():
            if name not in known:
                kind = type(neuron).__name__
                raise ValueError(f"{name} is {value}, which {kind} has not; {kind} has: {', '.join(sorted(known))}")
        return replace(neuron, **changes)


_OF_A_NEURON = ("tau", "v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha")
"""Options that are fields of many neurons; what else a neuron has is named with it, as in plif(w=0.5)."""


@dataclass(frozen=True)
@headed(Parameter(group=Group("Training", sort_key=4)))
class FitConfig(Options):
    """How :func:`fastsnn.fit` trains a network: time steps, loss, optimizer, schedule, device and run folder."""

    T: Annotated[OptionalInteger, Parameter(name=("--T", "-T"))] = None
    """Time steps per sample; default 100, or those that the data have."""
    readout: Literal["auto", "rate", "max", "last", "mean", "steps"] = "auto"
    """What a class is read from: rate of the output spikes, or the membrane potential of non-spiking output neurons:
    max or mean over time, last step, or each step by itself; auto: rate, or steps if the data have a label per step."""
    loss: Literal["auto", "mse", "ce"] = "auto"
    """Mean squared error to the one-hot label, or cross-entropy; auto: mse for rates, ce for membrane potentials."""
    rate_lower: float | None = None
    """Firing rate in spikes per step below which a hidden neuron is penalized; default no penalty."""
    rate_upper: float | None = None
    """Firing rate in spikes per step above which a hidden neuron is penalized; default no penalty."""
    rate_penalty: float = 1.0
    """Weight of both penalties, which are mean squares over the neurons of a layer, in the loss."""
    optimizer: str = "adam"
    """Optimizer: the name of any in torch.optim, as in adam, adamw, sgd, rmsprop."""
    optimizer_args: Assignments = ()
    """Arguments of the optimizer, as in betas=0.9,0.99; may be given several times."""
    lr: float = 1e-3
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; others ignore it."""
    weight_decay: float | None = None
    """Weight decay; default the optimizer's own (0, but 0.01 for adamw)."""
    clip_grad_norm: float | None = None
    """Scale the gradient down to this norm if it is longer; default never."""
    lr_schedule: Literal["none", "cosine", "step"] = "none"
    """Learning rate over the epochs: constant, half a cosine down to 0, or steps."""
    lr_step_epochs: Integer = 10
    """With schedule step: epochs between two steps."""
    lr_step_factor: float = 0.1
    """With schedule step: what each step multiplies the learning rate by."""
    warmup_epochs: float = 0.0
    """Raise the learning rate linearly over so many epochs first, which may be a fraction."""
    epochs: Integer = 20
    """Passes over the training set."""
    batch_size: Annotated[Integer, Parameter(alias="-b")] = 64
    """Samples per step."""
    validation: float = 0.0
    """Part of the training set, as in 0.1, that is held out to choose best.pt; the test set is then used once, at the
    end. Data with a validation set of their own use that."""
    seed: Integer = 0
    """Seed of the initial weights, the order of the samples, the validation split and the spikes."""
    step: Annotated[Literal["auto", "fused", "autograd"], MACHINE] = "auto"
    """fused: the whole training step in fused kernels (one layer); autograd: layer by layer; auto: fused if it can."""
    device: Annotated[str, MACHINE] = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: Annotated[OptionalInteger, MACHINE] = None
    """CPU threads; default as many as there are cores. The fused step takes one alone while that is faster."""
    amp: Annotated[Literal["off", "fp16", "bf16"], MACHINE] = "off"
    """Automatic mixed precision of the linear layers and convolutions, on CUDA."""
    deterministic: Annotated[bool, MACHINE] = False
    """Also make torch refuse what might vary from run to run on CUDA; the CPU and the fused steps never do."""
    name: Annotated[str | None, RUN] = None
    """Name of the run folder under runs/; default made of data set and time."""
    out: Annotated[Path | None, RUN] = None
    """The run folder itself, instead of runs/NAME."""
    overwrite: Annotated[bool, RUN] = False
    """Replace what an earlier run left in the folder."""

    def _check(self) -> None:
        super()._check()
        for name in ("T", "lr_step_epochs", "epochs", "batch_size", "threads"):
            check_range(name, getattr(self, name), 1, MOST)
        check_range("seed", self.seed, 0)
        if self.seed > 2**64 - 1:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to 2**64 - 1")
        # Adam's first step size, lr / (1 - beta1), must be a float32.
        check_range("lr", self.lr, 0, 1e37, above=True)
        check_range("momentum", self.momentum, 0, 1, below=True)
        check_range("weight_decay", self.weight_decay, 0)
        check_range("clip_grad_norm", self.clip_grad_norm, 0, above=True)
        check_range("lr_step_factor", self.lr_step_factor, 0, above=True)
        check_range("warmup_epochs", self.warmup_epochs, 0, 1e9)
        check_range("validation", self.validation, 0, 1, below=True)
        check_range("rate_lower", self.rate_lower, 0, 1)
        check_range("rate_upper", self.rate_upper, self.rate_lower or 0, 1)
        check_range("rate_penalty", self.rate_penalty, 0, 1e37)
        check_assignments("optimizer_args", self.optimizer_args)
        if not is_device(self.device):
            raise ValueError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")
        if self.name is not None and (not self.name.strip(".") or "/" in self.name or "\\" in self.name):
            raise ValueError(f"name is {self.name!r}; allowed: a folder name (use --out for a path)")


@dataclass(frozen=True)
class Config(FitConfig, NetworkOptions, DataOptions):
    """A run of ``fastsnn train``; the defaults are the reference job (784 -> 10 LIF neurons on MNIST, T=100, batch 64,
    Adam).

    Raises ValueError or TypeError that names the field, its value and what is allowed.
    """

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "Config":
        """The inverse of ``to_dict``; raises ValueError that names ``source`` for a key that is no option."""
        return options_from(cls, values, source)


def options_from(kind: type[OptionsT], values: dict[str, Any], source: str) -> OptionsT:
    """Options from plain values; raises ValueError that names ``source`` for a key that is no option."""
    known = {field.name for field in fields(kind)}
    if unknown := [key for key in values if key not in known]:
        hint = did_you_mean(str(unknown[0]), known)
        raise ValueError(f"{source} has the unknown option {unknown[0]!r}{hint}; allowed: {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    return kind(**{name: from_yaml(name, hints[name], value) for name, value in values.items()})


def is_device(name: str) -> bool:
    """Whether it is auto, cpu, cuda or cuda:N; torch counts up to 127."""
    number = re.fullmatch(r"cuda:(0|[1-9][0-9]{0,2})", name)
    return name in ("auto", "cpu", "cuda") or (number is not None and int(number[1]) <= 127)
