"""Whether something watches a module, so that it can't be computed together with another one."""

from torch import nn
from torch.nn.modules import module as torch_module

KINDS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of any kind, or all modules have."""
    return any(getattr(module, f"_{kind}") or getattr(torch_module, f"_global_{kind}") for kind in KINDS)
