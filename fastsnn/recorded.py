"""The options that a run folder was started with."""

from pathlib import Path

from fastsnn.config import Config, FitConfig, OptionsT, options_from
from fastsnn.errors import RunFolderError
from fastsnn.options import read_yaml


def recorded_options(run: Path, kind: type[OptionsT]) -> OptionsT:
    """The options that a run folder was started with; raises RunFolderError if they can't be read or are of the other
    kind of run.
    """
    path = run / "config.yaml"
    values = read_yaml(path)
    given = values.pop("given", None)
    if given is not None and kind is Config:
        raise RunFolderError(
            f"{run} was trained by fastsnn.fit on a network and data that the folder does not hold: give them to "
            f"fastsnn.fit(network, source, resume={str(run)!r})"
        )
    if given is None and kind is FitConfig:
        raise RunFolderError(f"{run} was started by `fastsnn train`: go on with fastsnn.train(resume={str(run)!r})")
    try:
        return options_from(kind, values, str(path))
    except (ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged, or of another fastsnn: {error}") from error


def recorded_config(run: Path) -> Config:
    """The options that `fastsnn train` started a run folder with."""
    return recorded_options(run, Config)
