"""What a report is made from: the results of one or several workdirs, as tables of runs and settings."""

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float, PyTree

from bpresearch.report.style import channels_by
from bpresearch.statistics import (
    Metric,
    Target,
    axes_of,
    best_settings,
    chosen_by,
    effective_learning_rate,
    mean_and_interval,
    metric_of,
    settings_of,
    tuning,
)

BINS = 60
COARSE = 15
"""Values of an axis up to which each has a row or column of its own in a heat map."""


@dataclass(frozen=True)
class Sweep:
    """The results of one workdir.

    Attributes:
        name: how it is called in pictures and tables.
        results: its finished runs.
        unfinished: how many of its runs are yet to be done.
        provenance: where the results come from, as `config.json` holds it.
        check: the gradient check of its model, as `gradient_check.json` holds it; empty if there is none.
        seconds: what a step of the best settings takes, by optimizer and schedule: the median over rounds,
            the fastest and the slowest, as `seconds_per_step.json` holds it; empty if it was not measured.
    """

    name: str
    results: xr.Dataset
    unfinished: int = 0
    provenance: dict[str, object] = field(default_factory=dict)
    check: dict[str, object] = field(default_factory=dict)
    seconds: dict[tuple[str, str], Sequence[float]] = field(default_factory=dict)


def read(workdir: str | Path, results: xr.Dataset, name: str = "") -> Sweep:
    """The sweep that a workdir holds, with what lies beside its results: provenance, gradient check, cost.

    Args:
        workdir: the folder.
        results: all of its results, as `sweep.read` gives them.
        name: how the sweep is called; default: as the folder.

    Raises:
        ValueError: what lies beside the results cannot be read, or none of the runs has finished.
    """
    workdir = Path(workdir).expanduser()
    names = ("config.json", "gradient_check.json", "seconds_per_step.json")
    config, check, times = (_json(workdir / file) for file in names)
    seconds = {(first, second): time for first, row in times.items() for second, time in row.items()}
    finished = results.finished.values
    if not finished.any():
        raise ValueError(f"--workdir={workdir}: none of its {len(finished)} runs has finished yet")
    results = results.isel(run=np.flatnonzero(finished))
    unfinished = int((~finished).sum())
    return Sweep(name or workdir.resolve().name, results, unfinished, config, check, seconds)


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, empty where there is none."""
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


class Sweeps:
    """The sweeps of a report and the tables that its pictures are drawn from.

    Attributes:
        by: what is compared, "optimizer" or "schedule"; it has the colours.
        stratum: the other one; it has the panels.
        target: what training shall reach; None if nothing was set.
    """

    def __init__(self, sweeps: Sequence[Sweep], by: str = "optimizer", target: Target | None = None):
        self.target = target
        self.by, self.stratum = by, {"optimizer": "schedule", "schedule": "optimizer"}[by]
        names = [sweep.name for sweep in sweeps]
        if len(set(names)) < len(names):
            raise ValueError(f"two sweeps are called alike: {', '.join(names)}")
        self.sweeps = list(sweeps)

    def __iter__(self):
        return iter(self.sweeps)

    def __len__(self) -> int:
        return len(self.sweeps)

    @cached_property
    def metric(self) -> Metric:
        """The test metric; without a unit where the sweeps have several."""
        metrics = list(dict.fromkeys(metric_of(sweep.results) for sweep in self))
        return (
            metrics[0] if len(metrics) == 1 else metrics[0]._replace(title="final test metric", percent=False)
        )

    @property
    def one_metric(self) -> bool:
        """Whether all sweeps have the same test metric."""
        return len({metric_of(sweep.results) for sweep in self}) == 1

    def scaled(self, values: PyTree) -> PyTree:
        """A metric's values as pictures show them: accuracies in per cent."""
        return 100 * np.asarray(values) if self.metric.percent else values

    def interval(self, low: float, high: float) -> dict[str, float]:
        """The ends of an interval of the metric as pictures show them, an accuracy's within 0 and 100 %."""
        ends = np.clip([low, high], 0, 100) if self.metric.percent else (low, high)
        return {"low": float(ends[0]), "high": float(ends[1])}

    def panel(self, sweep: Sweep | str, *names: str) -> str:
        """The title of a panel: the sweep's name, where there are several, and what else it shows."""
        name = sweep if isinstance(sweep, str) else sweep.name
        return " · ".join([*([name] if len(self) > 1 else []), *names])

    @cached_property
    def names(self) -> list[str]:
        """Of what is compared, in the order of the sweeps."""
        return list(dict.fromkeys(str(name) for sweep in self for name in sweep.results[self.by].values))

    def channels(self, frame: pd.DataFrame) -> dict[str, Any]:
        """The channels that tell apart what is compared, each alike in every picture."""
        return channels_by(frame, self.by, self.names)

    @cached_property
    def axes(self) -> list[str]:
        """What differs between the settings of any sweep, as columns of the tables."""
        columns = [column(name) for sweep in self for name in axes_of(sweep.results)]
        return list(dict.fromkeys(columns))

    @cached_property
    def runs(self) -> pd.DataFrame:
        """A row for each run: what it was, and the metric it ended with (NaN if it diverged)."""
        frames, first_run, first_setting = [], 0, 0
        for sweep in self:
            results, settings = sweep.results, settings_of(sweep.results)
            count = results.sizes["run"]
            frame = pd.DataFrame({"run": np.arange(first_run, first_run + count)})
            of = np.zeros(count, int)
            for number, setting in enumerate(settings):
                of[setting.every_run] = first_setting + number
            frame["setting"] = of
            frame["sweep"] = sweep.name
            for name in results.coords:
                if results[name].dims == ("run",) and name != "run":
                    values = results[name].values
                    text = values.dtype.kind not in "biuf"
                    frame[column(str(name))] = [str(v) for v in values] if text else values
            frame["panel"] = [self.panel(sweep, name) for name in frame[self.stratum]]
            frame["diverged_at"] = results.diverged_at.values
            final = {}
            for title, metric in (("valid", chosen_by(results)), ("value", metric_of(results))):
                last = results[metric.variable].values[:, -1].astype(np.float64)
                final[title] = np.where(frame.diverged_at < 0, self.scaled(last), np.nan)
            frames.append(frame.assign(**final))
            first_run, first_setting = first_run + count, first_setting + len(settings)
        return pd.concat(frames, ignore_index=True)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """A row for each setting, of its tuning runs: the mean of the test metric over seeds, its interval,
        and who diverged."""
        rows: list[dict[str, object]] = []
        for sweep in self:
            for setting in settings_of(tuning(sweep.results)):
                interval = mean_and_interval(setting.test)
                low, high = (float(self.scaled(end)) for end in interval.bounds)
                values = {column(name): value for name, value in setting.values.items()}
                rows.append(
                    {
                        "setting": len(rows),
                        "sweep": sweep.name,
                        "panel": self.panel(sweep, str(setting.values[self.stratum])),
                        **values,
                        "value": float(self.scaled(interval.mean)),
                        **self.interval(low, high),
                        "choosing": float(self.scaled(mean_and_interval(setting.chosen_by).mean)),
                        "effective_lr": effective_learning_rate(setting.values),
                        "diverged": f"{setting.diverged} of {len(setting.runs)}",
                        "share_diverged": setting.diverged / len(setting.runs),
                    }
                )
        return pd.DataFrame(rows)

    @cached_property
    def lost(self) -> tuple[int, int]:
        """How many runs diverged, and how many were pruned; these have no result."""
        settings = [setting for sweep in self for setting in settings_of(sweep.results)]
        return sum(setting.diverged for setting in settings), sum(setting.pruned for setting in settings)

    @property
    def left_out(self) -> str:
        """The same in words, to end a subtitle with; empty where every run came to its end."""
        words = [f"{n:,} {word}" for n, word in zip(self.lost, ("diverged", "pruned"), strict=True) if n]
        return f"; left out: {' and '.join(words)} runs" if words else ""

    @property
    def seeds(self) -> str:
        """How many seeds the mean of a best setting is over, in words."""
        best = [setting for sweep in self for setting in best_settings(sweep.results).values()]
        fresh = "fresh " if all(setting.fresh for setting in best) else ""
        return _over({len(setting.seeds) for setting in best}, fresh)

    @property
    def tuning_seeds(self) -> str:
        """How many seeds the mean of any setting that was tuned over is over, in words."""
        some_fresh = any("fresh" in sweep.results for sweep in self)
        counts = {len(np.unique(tuning(sweep.results).seed)) for sweep in self}
        return _over(counts, "tuning " if some_fresh else "")


def _over(counts: set[int], kind: str) -> str:
    if counts == {1}:
        return f"one {kind}seed, so no band"
    return f"mean and 95 % band over {' or '.join(map(str, sorted(counts)))} {kind}seeds"


def column(name: str) -> str:
    """A coordinate's name as a column that Vega-Lite reads as a field and nothing else."""
    name = re.sub(r"[^\w ]", "_", name)
    return name if name not in ("run", "setting", "sweep", "panel", "value", "low", "high") else f"{name}_"


def binned(
    values: Float[np.ndarray, "runs steps"], steps: Float[np.ndarray, " steps"] | np.ndarray, bins: int = BINS
) -> tuple[np.ndarray, Float[np.ndarray, "runs bins"]]:
    """The mean of each run over at most `bins` stretches of its steps, and the stretches' mean steps."""
    ends = np.unique(np.linspace(0, values.shape[1], bins + 1).astype(int))
    pairs = list(itertools.pairwise(ends))
    centres = np.array([np.mean(steps[begin:end]) for begin, end in pairs])
    return centres, np.stack([values[:, begin:end].mean(axis=1) for begin, end in pairs], axis=1)


def coarse(values: pd.Series) -> pd.Series:
    """A column with at most about COARSE values: numbers of a finer axis are rounded to a common grid.

    The grid is even in the logarithm where all are positive and span a decade, else in the number.
    """
    numbers = values.dropna()
    if values.dtype.kind not in "if" or numbers.nunique() <= COARSE:
        return values
    logarithmic = numbers.min() > 0 and numbers.max() / numbers.min() >= 10
    scale = np.log10(values) if logarithmic else values
    edges = np.linspace(scale.min(), scale.max(), COARSE - 2)
    width = edges[1] - edges[0]
    rounded = scale.min() + width * np.round((scale - scale.min()) / width)
    back = 10**rounded if logarithmic else rounded
    return back.map(lambda v: float(f"{v:.2g}"), na_action="ignore")
