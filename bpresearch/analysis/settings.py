"""The settings of a sweep: each a combination of hyper-parameters, with one run for every seed."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bpresearch.analysis.statistics import Interval, mean_and_interval


class Metric(NamedTuple):
    """A number that a run ends with: its variable, how it is called, and which way is better."""

    variable: str
    title: str
    higher_is_better: bool
    percent: bool

    def format(self, interval: Interval) -> str:
        """`66.1 +- 0.8` (per cent for accuracies), without the interval where there is none."""
        factor, digits = (100, 1) if self.percent else (1, 3)
        half = "" if math.isnan(interval.half_width) else f" ± {factor * interval.half_width:.{digits}f}"
        return f"{factor * interval.mean:.{digits}f}{half}"


METRICS = (
    Metric("accuracy", "accuracy (%)", True, True),
    Metric("loss", "loss", False, False),
)


def metric_of(results: xr.Dataset, part: str = "test") -> Metric:
    """The metric of the part "valid" or "test": its accuracy where there is one, else its loss."""
    metric = next(metric for metric in METRICS if f"{part}_{metric.variable}" in results)
    return metric._replace(variable=f"{part}_{metric.variable}", title=f"{part} {metric.title}")


def chosen_by(results: xr.Dataset) -> Metric:
    """The metric that settings are chosen by: of the validation part, or of the test part without one."""
    return metric_of(results, "valid" if "valid_loss" in results else "test")


@dataclass(frozen=True)
class Setting:
    """One combination of hyper-parameters.

    Attributes:
        values: each hyper-parameter's value, without those the optimizer does not take.
        runs: indices of its runs.
        seeds: their seeds.
        chosen_by: final value of the metric that settings are chosen by, a run each; NaN if it diverged or
            was pruned.
        test: final value of the test metric, a run each; NaN likewise.
        pruned: number of its runs that a pruner ended early.
    """

    values: dict[str, Any]
    runs: np.ndarray
    seeds: np.ndarray
    chosen_by: np.ndarray
    test: np.ndarray
    pruned: int = 0

    @property
    def diverged(self) -> int:
        """Number of runs that diverged."""
        return int(np.isnan(self.test).sum()) - self.pruned


def settings_of(results: xr.Dataset) -> list[Setting]:
    """Every setting of a sweep, in the order of the runs."""
    axes = [str(name) for name in results.coords if results[name].dims == ("run",)]
    axes = [name for name in axes if name not in ("run", "seed")]
    order = [name for name in ("model", "dataset", "loss", "optimizer", "schedule", "lr") if name in axes]
    axes = order + [name for name in axes if name not in order]
    columns = {name: results[name].values.tolist() for name in axes}
    groups: dict[tuple[Any, ...], list[int]] = {}
    for run in range(results.sizes["run"]):
        groups.setdefault(tuple(repr(columns[name][run]) for name in axes), []).append(run)
    choosing, test = chosen_by(results), metric_of(results)
    final = {
        metric: np.where(results.diverged_at < 0, results[metric.variable].isel(eval_step=-1), np.nan)
        for metric in (choosing, test)
    }
    return [
        Setting(
            {
                name: columns[name][runs[0]]
                for name in axes
                if columns[name][runs[0]] == columns[name][runs[0]]
            },
            np.array(runs),
            results.seed.values[runs],
            final[choosing][runs],
            final[test][runs],
            int((results.pruned_at.values[runs] >= 0).sum()) if "pruned_at" in results else 0,
        )
        for runs in groups.values()
    ]


def better(results: xr.Dataset, setting: Setting) -> tuple[bool, float]:
    """What settings are ranked by, the largest first.

    A setting with a run that diverged or was pruned comes after all without; then the mean over seeds of the
    final validation metric (test, if nothing was held out) decides.
    """
    metric = chosen_by(results)
    mean = mean_and_interval(setting.chosen_by).mean
    return setting.diverged + setting.pruned == 0, -math.inf if math.isnan(
        mean
    ) else mean if metric.higher_is_better else -mean


def best_settings(results: xr.Dataset) -> dict[tuple[str, str], Setting]:
    """For each optimizer and schedule its best setting, in the order of the runs."""
    groups: dict[tuple[str, str], list[Setting]] = {}
    for setting in settings_of(results):
        groups.setdefault((setting.values["optimizer"], setting.values["schedule"]), []).append(setting)
    return {key: max(group, key=lambda s: better(results, s)) for key, group in groups.items()}


def verdict(results: xr.Dataset) -> str:
    """In a sentence or two: which optimizer and schedule came out best, by how much, and how surely.

    The runner-up is the best setting of another optimizer. Where both have the same seeds, the interval is
    that of the difference within each seed.
    """
    ranked = sorted(best_settings(results).values(), key=lambda s: better(results, s), reverse=True)
    metric = metric_of(results)
    first = ranked[0]
    if first.diverged and np.isnan(first.test).all():
        return "Every run diverged: the learning rates are too large."
    score = mean_and_interval(first.test)
    text = f"Best: {describe(first)} with {metric.format(score)} {metric.title}."
    others = [
        s for s in ranked if s.values["optimizer"] != first.values["optimizer"] and not np.isnan(s.test).all()
    ]
    if not others:
        return text
    second = others[0]
    paired = first.seeds.tolist() == second.seeds.tolist()
    difference = first.test - second.test if paired else None
    if difference is None or np.isfinite(difference).sum() < 2:
        runner_up = f"{describe(second)} with {metric.format(mean_and_interval(second.test))}"
        return f"{text} Next: {runner_up}; more seeds would tell how sure the difference is."
    gap = mean_and_interval(difference if metric.higher_is_better else -difference)
    sure = (
        "more than chance explains (95 %)"
        if gap.mean > gap.half_width
        else "which may be chance: the 95 % interval holds zero"
    )
    unit = "points" if metric.percent else "in loss"
    return f"{text} That is {metric.format(gap)} {unit} better than {describe(second)}, {sure}."


def figures(results: xr.Dataset) -> dict[str, float]:
    """The best settings as one flat object: `sgd.cosine.test_accuracy` and so on.

    For each optimizer and schedule: its best learning rate, the mean of the test metric over seeds, the
    half width of its 95 % interval, and the share of all its runs that diverged.
    """
    metric = metric_of(results)
    flat: dict[str, float] = {}
    for (optimizer, schedule), setting in best_settings(results).items():
        runs = (results.optimizer == optimizer) & (results.schedule == schedule)
        interval = mean_and_interval(setting.test)
        name = f"{optimizer}.{schedule}"
        flat[f"{name}.lr"] = setting.values["lr"]
        flat[f"{name}.{metric.variable}"] = interval.mean
        flat[f"{name}.{metric.variable}_half_width"] = interval.half_width
        flat[f"{name}.diverged"] = float((results.diverged_at[runs] >= 0).mean())
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def describe(setting: Setting) -> str:
    """`momentum 0.9, cosine, learning rate 0.1`."""
    values = setting.values
    momentum = f" {values['momentum']:g}" if "momentum" in values else ""
    return f"{values['optimizer']}{momentum}, {values['schedule']}, learning rate {values['lr']:g}"
