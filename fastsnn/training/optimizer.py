"""Any optimizer of torch.optim, by name and with its own arguments."""

import inspect
from collections.abc import Callable, Iterable

import torch
from torch import nn

from fastsnn.config import FitConfig
from fastsnn.kernels.suggestion import did_you_mean
from fastsnn.option_values import Value, assignment

_UNFIT = ("optimizer", "lbfgs", "sparseadam")
"""The base class, one that calls the network itself, and one for sparse gradients."""
_OWN_OPTIONS = {"lr": "--lr", "momentum": "--momentum", "weight_decay": "--weight-decay"}


def make_optimizer(config: FitConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names.

    Raises ValueError for a name that torch.optim does not have, an argument that the optimizer does not have, or a
    value that it refuses.
    """
    kind = _kinds().get(config.optimizer.lower())
    if kind is None:
        hint = did_you_mean(config.optimizer, _kinds())
        raise ValueError(f"optimizer is {config.optimizer!r}{hint}; allowed: {', '.join(sorted(_kinds()))}")
    accepted = inspect.signature(kind).parameters
    options: dict[str, Value] = {"lr": config.lr}
    if config.optimizer.lower() == "sgd":
        options["momentum"] = config.momentum
    if config.weight_decay is not None:
        if "weight_decay" not in accepted:
            raise ValueError(f"weight_decay is {config.weight_decay}; allowed: none, for {config.optimizer} has none")
        options["weight_decay"] = config.weight_decay
    for text in config.optimizer_args:
        name, value = assignment(text)
        if name in _OWN_OPTIONS and (name != "momentum" or config.optimizer.lower() == "sgd"):
            raise ValueError(f"optimizer_args has {text!r}; allowed: the option {_OWN_OPTIONS[name]} instead")
        if name not in accepted or name == "params":
            allowed = ", ".join(key for key in accepted if key not in ("params", *_OWN_OPTIONS))
            hint = did_you_mean(name, accepted)
            raise ValueError(f"optimizer_args has {text!r}{hint}; allowed with {config.optimizer}: {allowed}")
        if isinstance(value, str):
            raise ValueError(f"optimizer_args has {text!r}; allowed: numbers, true, false or none")
        options[name] = value
    try:
        return kind(parameters, **options)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"optimizer {config.optimizer} refuses {_shown(options)}: {reason}") from error


def check_optimizer(config: FitConfig) -> None:
    """Raise what :func:`make_optimizer` would."""
    make_optimizer(config, [nn.Parameter(torch.zeros(1))])


def _kinds() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """Name in lower case -> class."""
    found: dict[str, Callable[..., torch.optim.Optimizer]] = {}
    for name, kind in vars(torch.optim).items():
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name.lower() not in _UNFIT:
            found[name.lower()] = kind
    return found


def _shown(options: dict[str, Value]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
