"""How many steps training takes to a target that was set before it began."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Bool, Float

from bpresearch.statistics.intervals import mean_and_interval
from bpresearch.statistics.settings import Metric, Setting, chosen_by, ranking

Seconds = Mapping[tuple[str, str], float]
"""What a step of the best setting takes, by optimizer and schedule."""


class Target(NamedTuple):
    """What training shall reach: a value of a metric, of the part that settings are chosen by.

    Attributes:
        metric: its name without the part, such as "accuracy".
        value: what it shall reach.
        level: of the one-sided test that its mean over seeds is better than that.
    """

    metric: str
    value: float
    level: float = 0.05

    def of(self, results: xr.Dataset) -> Metric:
        """The metric in these results.

        Raises:
            ValueError: they do not hold it.
        """
        choosing = chosen_by(results)
        part = choosing.variable.partition("_")[0]
        variable = f"{part}_{self.metric}"
        if variable == choosing.variable:
            return choosing
        if variable not in results:
            names = [str(n).removeprefix(f"{part}_") for n in results if str(n).startswith(f"{part}_")]
            raise ValueError(f"target={self.metric}: evaluations measure {', '.join(names)}")
        percent = self.metric == "accuracy"
        title = f"{part} {self.metric}{' (%)' if percent else ''}"
        return Metric(variable, title, self.metric != "loss", percent)


class ToTarget(NamedTuple):
    """How soon a setting reaches a target, in steps; infinite where it never does.

    Attributes:
        setting: the best setting of its optimizer.
        steps: of each run that the setting is reported by, the first evaluation at which it is there.
        held: the fewest steps from which on the one-sided test of the mean over seeds holds.
    """

    setting: Setting
    steps: Float[np.ndarray, " seeds"]
    held: float

    @property
    def reached(self) -> int:
        """How many of the runs get there."""
        return int(np.isfinite(self.steps).sum())

    @property
    def median(self) -> float:
        """The median over all runs, those that never get there being the slowest."""
        middle = np.sort(self.steps)[[(len(self.steps) - 1) // 2, len(self.steps) // 2]]
        return float(middle.mean())

    def seconds(self, per_step: Seconds) -> float:
        """The median in seconds of training, NaN where a step of the setting was not timed."""
        key = str(self.setting.values["optimizer"]), str(self.setting.values["schedule"])
        return self.median * per_step.get(key, np.nan)


def steps_to_target(results: xr.Dataset, target: Target, by: str = "optimizer") -> dict[str, ToTarget]:
    """For each value of `by` how soon its best setting reaches the target, in the order of the ranking.

    The test that the mean of n runs is better than the target is Student's, one-sided. It is made at the
    last evaluation and, as long as it holds, at the one before: in such a fixed order, many tests need no
    correction. A run that diverged is at no target from there on.

    Raises:
        ValueError: the results do not hold the target's metric.
    """
    metric = target.of(results)
    sign = 1 if metric.higher_is_better else -1
    steps = results.eval_step.values.astype(np.float64)
    arrivals = {}
    for setting in ranking(results, by):
        gained = sign * (results[metric.variable].values[setting.runs].astype(np.float64) - target.value)
        there = gained >= 0
        first = np.where(there.any(axis=1), steps[there.argmax(axis=1)], np.inf)
        holds = np.array([_better(values, target.level) for values in gained.T])
        arrivals[str(setting.values[by])] = ToTarget(setting, first, _held(steps, holds))
    return arrivals


def _better(gained: Float[np.ndarray, " seeds"], level: float) -> bool:
    """Whether the mean is above zero by a one-sided test."""
    if len(gained) < 2 or np.isnan(gained).any():
        return False
    interval = mean_and_interval(gained)
    return interval.mean > 0 and interval.p / 2 < level


def _held(steps: Float[np.ndarray, " evaluations"], holds: Bool[np.ndarray, " evaluations"]) -> float:
    failed = np.flatnonzero(~holds)
    first = failed[-1] + 1 if len(failed) else 0
    return float(steps[first]) if first < len(steps) else np.inf


def reached_by(steps: Float[np.ndarray, " runs"], at: Float[np.ndarray, " places"]) -> np.ndarray:
    """The share of runs that have reached a target after so many steps."""
    return (steps[:, None] <= at).mean(axis=0)


def time_profile(
    times: Mapping[str, Float[np.ndarray, " tasks"]], ratios: Float[np.ndarray, " ratios"]
) -> dict[str, Float[np.ndarray, " ratios"]]:
    """The share of tasks in which each takes at most so many times what the fastest takes.

    (Dolan and Moré 2002.) A task in which none gets there counts for none.

    >>> times = {"sgd": np.array([100.0, 300.0]), "adam": np.array([200.0, np.inf])}
    >>> {name: share.tolist() for name, share in time_profile(times, np.array([1.0, 2.0])).items()}
    {'sgd': [1.0, 1.0], 'adam': [0.0, 0.5]}

    Args:
        times: steps to the target by task, such as the median over runs; infinite where it is not reached.
        ratios: at least 1.
    """
    fastest = np.min(list(times.values()), axis=0)
    profiles = {}
    for name, taken in times.items():
        solved = np.isfinite(taken)
        ratio = np.where(solved, taken / np.where(solved & (fastest > 0), fastest, 1), np.inf)
        profiles[name] = reached_by(ratio, ratios)
    return profiles


def target_figures(
    results: xr.Dataset,
    target: Target,
    by: str = "optimizer",
    seconds: Seconds = MappingProxyType({}),
) -> dict[str, float]:
    """Flat numbers: `sgd.steps_to_target` (the median), `sgd.steps_held` and `sgd.reached_target`, a share;
    and `sgd.seconds_to_target` with the `seconds` of a step.

    Steps and seconds are left out where the target is not reached.
    """
    flat: dict[str, float] = {}
    for name, arrival in steps_to_target(results, target, by).items():
        numbers = {"steps_to_target": arrival.median, "steps_held": arrival.held}
        numbers["seconds_to_target"] = arrival.seconds(seconds)
        flat |= {f"{name}.{key}": value for key, value in numbers.items() if np.isfinite(value)}
        flat[f"{name}.reached_target"] = arrival.reached / len(arrival.steps)
    return flat


def reaching(
    results: xr.Dataset,
    target: Target,
    by: str = "optimizer",
    seconds: Seconds = MappingProxyType({}),
) -> str:
    """Who reaches the target, and how soon, in a sentence."""
    metric = target.of(results)
    value = f"{100 * target.value:g} %" if metric.percent else f"{target.value:g}"
    parts = []
    for name, arrival in steps_to_target(results, target, by).items():
        count = f"{arrival.reached} of {len(arrival.steps)} runs"
        median = f", median {arrival.median:.0f} steps" if np.isfinite(arrival.median) else ""
        time = arrival.seconds(seconds)
        median += f" or {time:.3g} s" if np.isfinite(time) else ""
        held = f", the mean from step {arrival.held:.0f} on" if np.isfinite(arrival.held) else ""
        parts.append(f"{name}: {count}{median}{held}")
    tested = f"one-sided t test at {100 * target.level:g} %"
    return f"Target, a {metric.name} of {value} ({tested}): {'; '.join(parts)}."
