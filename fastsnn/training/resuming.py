"""What of a run may change when it goes on, and what may not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastsnn.config import PLACE, FitConfig
from fastsnn.errors import RunFolderError

CHANGEABLE_ON_RESUME = ("epochs", "lr", "data_dir", *PLACE)
LEFT_OPEN = {
    "dataset": "auto",
    "T": None,
    "device": "auto",
    "backend": "auto",
    "step": "auto",
    "readout": "auto",
    "loss": "auto",
    "threads": None,
}
"""Options whose value here means, on resume, the one that was chosen when the run began."""


def check_place(path: Path, changes: FitConfig) -> None:
    """Raise ValueError for an option that would put a run elsewhere, which resuming it doesn't do."""
    for option, value, own in (("name", changes.name, path.name), ("out", changes.out, path)):
        if value is not None and Path(value).absolute() != Path(own).absolute():
            raise ValueError(f"{option} is {value}, but a run goes on in its own folder {path}: leave it out")
    if changes.overwrite:
        raise ValueError(f"overwrite is true, but the run in {path} is to go on; allowed: --overwrite or --resume")


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """Options whose paths hold wherever the run is resumed from."""
    paths = [name for name in ("data_dir", "network") if options.get(name) is not None]
    if (
        any(sign in options.get("dataset", "") for sign in ("/", "\\", ".np"))
        or Path(options.get("dataset", "")).is_file()
    ):
        paths.append("dataset")
    return options | {name: str(Path(options[name]).expanduser().absolute()) for name in paths}


def changed(config: FitConfig, changes: FitConfig) -> FitConfig:
    """``changes`` on top of a run's own options; raises ValueError for one that would change its results."""
    before, after = absolute(config.to_dict()), changes.to_dict()
    if type(changes) is not type(config):
        raise TypeError(f"config is a {type(changes).__name__}; allowed: a {type(config).__name__}, as the run's own")
    kept = {name: before[name] for name, value in LEFT_OPEN.items() if name in after and after[name] == value}
    after = absolute(after)
    for name, value in (after | kept).items():
        if value != before[name] and name not in CHANGEABLE_ON_RESUME:
            raise ValueError(
                f"{name} is {value!r}, but this run was started with {before[name]!r}; --resume can change "
                f"{', '.join(CHANGEABLE_ON_RESUME)} only"
            )
    return replace(changes, **kept)


def check_same_run(path: Path, config: FitConfig, state: dict[str, Any]) -> None:
    """Raise RunFolderError where a checkpoint was copied from another run, or config.yaml was edited."""
    recorded = state.get("config")
    if not isinstance(recorded, dict) or not {"model", "optimizer", "progress", "history"} <= state.keys():
        raise RunFolderError(f"{path} is not a checkpoint of a run")
    for name, value in config.to_dict().items():
        # A run that does not depend on the number of threads may go on with fewer.
        if recorded.get(name, value) != value and name not in (*CHANGEABLE_ON_RESUME, "threads"):
            raise RunFolderError(
                f"{path} is of another run than config.yaml beside it: {name} is {recorded[name]!r} "
                f"in the one and {value!r} in the other"
            )
