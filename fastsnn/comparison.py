"""Runs side by side: which options differ, and the accuracy of each setting as mean and deviation over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fastsnn.errors import RunFolderError
from fastsnn.records import Record, find_runs, read_record

NOT_COMPARED = ("seed", "threads", "data_dir", "environment")
"""Recorded options that make no other setting."""


@dataclass(frozen=True)
class Setting:
    """Runs that differ in their seed alone."""

    values: dict[str, Any]
    """The options in which the settings differ."""
    runs: list[Record]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies of its runs, 0 to 1."""
        return [run.test_accuracy for run in self.runs if run.test_accuracy is not None]

    @property
    def mean(self) -> float | None:
        return mean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None for one seed."""
        return stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={text(value)}" for name, value in self.values.items()) or self.runs[0].path.name

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "options": self.values,
            "runs": [str(run.path) for run in self.runs],
            "seeds": [run.options.get("seed") for run in self.runs],
            "test_accuracies": self.accuracies,
            "mean": self.mean,
            "deviation": self.deviation,
        }


def text(value: Any) -> str:
    """A value of an option as the command line spells it."""
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def runs_of(paths: Sequence[Path]) -> list[Record]:
    """The runs that ``paths`` name: run folders, or folders of them. Raises RunFolderError for any other."""
    found: dict[Path, Record] = {}
    for path in paths:
        inside = [] if (path / "config.yaml").is_file() else find_runs(path)
        for record in inside or [read_record(path)]:
            found[record.path] = record
    return list(found.values())


def settings_of(runs: Sequence[Record]) -> list[Setting]:
    """The runs by setting, ordered by the options in which they differ."""
    if not runs:
        raise RunFolderError("there are no runs to compare; give run folders, or a folder of them")
    names = dict.fromkeys(name for run in runs for name in run.options if name not in NOT_COMPARED)
    different = [name for name in names if len({repr(run.options.get(name)) for run in runs}) > 1]
    settings: dict[str, Setting] = {}
    for run in runs:
        values = {name: run.options.get(name) for name in different}
        settings.setdefault(repr(values), Setting(values, [])).runs.append(run)
    for setting in settings.values():
        setting.runs.sort(key=lambda run: run.options.get("seed", 0))
    return sorted(settings.values(), key=_order)


def _order(setting: Setting) -> list[tuple[bool, float, str]]:
    """Numbers by size, before text."""
    return [
        (not is_number(value), float(value) if is_number(value) else 0.0, text(value))
        for value in setting.values.values()
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def draw(settings: Sequence[Setting], file: Path) -> None:
    """One chart: accuracy over the option with the most values, a line for each value of a second one; else bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    drawn = [setting for setting in settings if setting.mean is not None]
    names = list(settings[0].values)
    counts = {name: len({repr(setting.values[name]) for setting in drawn}) for name in names}
    numeric = [name for name in names if all(is_number(setting.values[name]) for setting in drawn)]
    if drawn and numeric and len(names) <= 2:
        along = max(numeric, key=lambda name: counts[name])
        other = next((name for name in names if name != along), None)
        lines: dict[str, list[Setting]] = {}
        for setting in drawn:
            lines.setdefault(f"{other}={text(setting.values[other])}" if other else "", []).append(setting)
        for label, points in lines.items():
            points = sorted(points, key=lambda setting: float(setting.values[along]))
            x, y, error = ([p.values[along] for p in points], *_percent(points))
            axes.errorbar(x, y, error, marker="o", capsize=3, label=label)
        axes.set(xlabel=along, ylabel="test accuracy (%)")
        if other:
            axes.legend()
    else:
        y, error = _percent(drawn)
        axes.barh([setting.name for setting in drawn], y, xerr=error, capsize=3)
        axes.invert_yaxis()
        axes.set(xlabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    if any(setting.deviation is not None for setting in drawn):
        axes.set_title("mean and standard deviation over seeds", fontsize="medium")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def _percent(settings: Sequence[Setting]) -> tuple[list[float], list[float]]:
    """Means and deviations in percent."""
    return [100 * (s.mean or 0.0) for s in settings], [100 * (s.deviation or 0.0) for s in settings]
