"""``fastsnn train --sweep tau=1.5,2,4 T=20,100``: every combination of the values, each an ordinary run."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from fastsnn.config import PLACE, Config, options_from
from fastsnn.errors import Interrupted
from fastsnn.kernels.suggestion import did_you_mean
from fastsnn.monitor import Monitor
from fastsnn.records import RUNS

_LISTS = ("hidden", "dataset_args", "optimizer_args")
"""Options whose values have commas in them: semicolons divide these."""


def plan(config: Config, sweep: Sequence[str]) -> tuple[Path, list[Config]]:
    """The folder of a sweep and its runs, all of which are checked here.

    Args:
        config: what the runs share; its ``out`` or ``name`` names the folder of the sweep.
        sweep: texts NAME=VALUE,VALUE,...: the values of an option.

    Raises:
        ValueError, TypeError: a text, an option or a value that is not allowed.
    """
    values = _values(sweep)
    folder = config.out or RUNS / (config.name or f"sweep-{time.strftime('%Y%m%d-%H%M%S')}")
    runs: dict[Path, Config] = {}
    for combination in product(*values.values()):
        given = dict(zip(values, combination, strict=True))
        changes = {name: _parsed(name, text) for name, text in given.items()}
        path = folder / re.sub(r"[^\w.=,+-]", "_", ",".join(f"{name}={text}" for name, text in given.items()))
        if path in runs:
            raise ValueError(f"sweep has the combination {path.name} twice; allowed: each value once")
        shared = {name: value for name, value in config.to_dict().items() if name not in PLACE}
        runs[path] = replace(options_from(Config, shared | changes, "sweep"), out=path, overwrite=config.overwrite)
    return folder, list(runs.values())


def _values(sweep: Sequence[str]) -> dict[str, list[str]]:
    """Option -> the texts of its values."""
    known = [name for name in Config.__dataclass_fields__ if name not in PLACE]
    found: dict[str, list[str]] = {}
    for assignment in sweep:
        option, equals, text = assignment.partition("=")
        name = option.strip().lstrip("-").replace("-", "_")
        if name not in known:
            raise ValueError(f"sweep has the option {option!r}{did_you_mean(name, known)}; allowed: {', '.join(known)}")
        divider = ";" if name in _LISTS else ","
        parts = [part.strip() for part in text.split(divider)]
        if not equals or not all(parts):
            raise ValueError(f"sweep is {assignment!r}; allowed: NAME=VALUE,VALUE, as in tau=1.5,2,4")
        if name in found:
            raise ValueError(f"sweep has {name} twice; allowed: all its values in one, as in {name}=...")
        found[name] = parts
    return found


def _parsed(name: str, text: str) -> Any:
    if name == "hidden":
        return [yaml.safe_load(part) for part in text.split(",")]
    return text if name in (*_LISTS, "neuron", "net", "network", "dataset") else yaml.safe_load(text)


def train_all(
    folder: Path,
    runs: Sequence[Config],
    watch: Callable[[], AbstractContextManager[Monitor]],
    say: Callable[[str], None],
) -> None:
    """Train the runs one after the other; go on with one that an earlier call began, unless ``overwrite`` is set."""
    import fastsnn

    for number, config in enumerate(runs, 1):
        assert config.out is not None
        say(f"run {number} of {len(runs)}: {config.out.name}")
        begun = not config.overwrite and (config.out / "config.yaml").is_file()
        try:
            with watch() as monitor:
                fastsnn.train(config, resume=config.out if begun else None, monitor=monitor)
        except Interrupted as stopped:
            text = f"stopped in run {number} of {len(runs)} and saved; the same line with --out {folder} goes on"
            raise Interrupted(text, stopped.signal_number) from stopped
