"""A training run in one frozen dataclass: it owns every default; the command line and config.yaml are made from it."""

import re
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token

from fastsnn.errors import RunFolderError
from fastsnn.options import read_yaml

if TYPE_CHECKING:
    from fastsnn.kernels.neurons import LIF

PLACE = ("name", "out", "overwrite")
"""Options that say where a run is put. They are not recorded in it: its config.yaml may serve to start another."""


Tokens = list[Token] | tuple[Token, ...]


def _integer(type_: Any, tokens: Tokens) -> int:
    # Cyclopts would round 1.5 to 2.
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value} is not an integer") from None


def _sizes(type_: Any, tokens: Tokens) -> tuple[int, ...]:
    """800,400 -> (800, 400)."""
    text = ",".join(token.value for token in tokens)
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"{text} is not a list of integers such as 800,400") from None


Integer = Annotated[int, Parameter(converter=_integer)]
OptionalInteger = Annotated[int | None, Parameter(converter=_integer)]


@dataclass(frozen=True)
class Config:
    """A training run; the defaults are the reference job (784 -> 10 LIF neurons on MNIST, T=100, batch 64, Adam).

    Raises ValueError or TypeError that names the field, its value and what is allowed.
    """

    dataset: Literal["auto", "mnist", "fashion-mnist", "digits"] = "auto"
    """Data set; auto is MNIST, or digits (no network needed) where MNIST can't be had."""
    data_dir: Path | None = None
    """Folder of the data sets; default $FASTSNN_DATA, else ~/.cache/fastsnn."""
    train_samples: OptionalInteger = None
    """Train on the first N samples only."""
    test_samples: OptionalInteger = None
    """Test on the first N samples only."""
    hidden: Annotated[tuple[int, ...], Parameter(converter=_sizes, n_tokens=1, negative=(), accepts_keys=False)] = ()
    """Sizes of hidden linear+LIF layers, as in 800,400."""
    bias: bool = False
    """Give the linear layers a bias."""
    T: Annotated[Integer, Parameter(name=("--T", "-T"))] = 100
    """Time steps per image."""
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
    surrogate: str = "atan"
    """Surrogate derivative of the spike: atan, sigmoid, erf, piecewise_quadratic, soft_sign or rectangle."""
    alpha: float | None = None
    """Sharpness of the surrogate; default the surrogate's own (2 for atan)."""
    loss: Literal["mse", "ce"] = "mse"
    """Mean squared error to the one-hot label, or cross-entropy, of the mean firing rate."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer."""
    lr: float = 1e-3
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd; adam ignores it."""
    epochs: Integer = 20
    """Passes over the training set."""
    batch_size: Annotated[Integer, Parameter(alias="-b")] = 64
    """Images per step."""
    seed: Integer = 0
    """Seed of the initial weights, the order of the samples and the spikes."""
    backend: Literal["auto", "torch", "cupy", "triton", "numba"] = "auto"
    """Implementation; auto is the fastest that runs here."""
    step: Literal["auto", "fused", "autograd"] = "auto"
    """fused: the whole training step in fused kernels (one layer); autograd: layer by layer; auto: fused if it can."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: OptionalInteger = None
    """CPU threads; default as many as there are cores."""
    amp: Literal["off", "fp16", "bf16"] = "off"
    """Automatic mixed precision of the linear layers, on CUDA."""
    deterministic: bool = False
    """Also make torch refuse what might vary from run to run on CUDA; the CPU and the fused steps never do."""
    name: str | None = None
    """Name of the run folder under runs/; default made of data set, backend and time."""
    out: Path | None = None
    """The run folder itself, instead of runs/NAME."""
    overwrite: bool = False
    """Replace what an earlier run left in the folder."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _checked(name, hint, getattr(self, name)))
        for name, least in _AT_LEAST.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and value < least:
                    raise ValueError(f"{name} is {value}; allowed: {least} or more")
                if value is not None and value > _AT_MOST and name != "seed":
                    raise ValueError(f"{name} is {value}; allowed: {least} to {_AT_MOST}")
        if len(self.hidden) > 1000:
            raise ValueError(f"hidden has {len(self.hidden)} sizes; allowed: 1000 at most")
        if self.seed > 2**64 - 1:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to 2**64 - 1")
        if not 0 < self.lr <= 1e37:
            # Adam's first step size, lr / (1 - beta1), must be a float32.
            raise ValueError(f"lr is {self.lr}; allowed: more than 0, up to 1e37")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}; allowed: 0 or more and less than 1")
        if not is_device(self.device):
            raise ValueError(f"device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")
        if self.name is not None and (not self.name.strip(".") or "/" in self.name or "\\" in self.name):
            raise ValueError(f"name is {self.name!r}; allowed: a folder name (use --out for a path)")
        _ = self.neuron

    @property
    def neuron(self) -> "LIF":
        """The neuron of every layer."""
        from fastsnn.kernels.neurons import LIF  # imports torch, which takes seconds

        names = ("tau", "v_threshold", "v_reset", "decay_input", "detach_reset", "surrogate", "alpha")
        return LIF(**{name: getattr(self, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, that YAML and checkpoints can hold."""
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        return plain | {"hidden": list(self.hidden)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str) -> "Config":
        """The inverse of :meth:`to_dict`; raises ValueError that names ``source`` for a key that is no option."""
        known = {field.name for field in fields(cls)}
        if unknown := [key for key in values if key not in known]:
            raise ValueError(f"{source} has the unknown option {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        return cls(**{name: _from_yaml(name, value) for name, value in values.items()})


_AT_LEAST = {
    "train_samples": 1,
    "test_samples": 1,
    "hidden": 1,
    "T": 1,
    "epochs": 1,
    "batch_size": 1,
    "seed": 0,
    "threads": 1,
}


_AT_MOST = 2**31 - 1


_KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    bool: (bool, "true or false"),
    str: (str, "text"),
    Path: (str | Path, "a path"),  # type: ignore[dict-item]
}
"""Type of a field -> what it may be given, and how that is called."""


def _checked(name: str, hint: Any, value: Any) -> Any:
    """``value`` as the type that the field's ``hint`` names; raises ValueError or TypeError otherwise."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        return tuple(_checked(name, int, item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    kind, *optional = get_args(hint) or (hint,)
    if value is None and optional:
        return None
    accepted, called = _KINDS[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} is {value!r}; allowed: {called}{' or none' if optional else ''}")
    return kind(value)


def _from_yaml(name: str, value: Any) -> Any:
    """What is meant by words that YAML 1.1 reads otherwise: 1e-3 (text to it), off (false), none (text)."""
    if name == "amp" and value is False:
        return "off"
    if name in ("lr", "momentum", "tau", "v_threshold", "v_reset", "alpha") and isinstance(value, str):
        if value.lower() == "none":
            return None
        try:
            return float(value)
        except ValueError:
            return value
    return value


def is_device(name: str) -> bool:
    """Whether it is auto, cpu, cuda or cuda:N; torch counts up to 127."""
    number = re.fullmatch(r"cuda:(0|[1-9][0-9]{0,2})", name)
    return name in ("auto", "cpu", "cuda") or (number is not None and int(number[1]) <= 127)


def recorded_config(run: Path) -> Config:
    """The options that a run folder was started with; raises RunFolderError where they can't be read."""
    path = run / "config.yaml"
    try:
        return Config.from_dict(read_yaml(path), str(path))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged, or of another fastsnn: {error}") from error
