"""The settings of a sweep: each a combination of hyper-parameters, with one run for every seed."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bpresearch.statistics.intervals import Interval, mean_and_interval


class Metric(NamedTuple):
    """A number that a run ends with: its variable, how it is called, and which way is better."""

    variable: str
    title: str
    higher_is_better: bool
    percent: bool

    @property
    def name(self) -> str:
        """The title without its unit."""
        return self.title.removesuffix(" (%)")

    def format(self, interval: Interval, *, difference: bool = False) -> str:
        """`66.1 +- 0.8` (per cent for accuracies), without the interval where there is none; `-` for NaN.

        An accuracy's interval ends at 0 and 100: `99.5 (98.1 to 100.0)`; that of a difference does not.
        """
        if math.isnan(interval.mean):
            return "-"
        factor, digits = (100, 1) if self.percent else (1, 3)
        low, high = interval.bounds
        if self.percent and not difference and (low < 0 or high > 1):
            return f"{100 * interval.mean:.1f} ({100 * max(low, 0):.1f} to {100 * min(high, 1):.1f})"
        half = "" if math.isnan(interval.half_width) else f" ± {factor * interval.half_width:.{digits}f}"
        return f"{factor * interval.mean:.{digits}f}{half}"

    def phrase(self, interval: Interval) -> str:
        """`a test accuracy of 66.1 +- 0.8 %`."""
        return f"a {self.name} of {self.format(interval)}{' %' if self.percent else ''}"


def metric_of(results: xr.Dataset, part: str = "test") -> Metric:
    """The metric of the part "valid" or "test" that settings are chosen by: what the results' attributes
    `chosen_by` and `higher_is_better` say, without them the accuracy where there is one, else the loss."""
    name = str(results.attrs.get("chosen_by", "")).partition("_")[2]  # after valid or test
    told = f"{part}_{name}" in results
    if not told:
        name = "accuracy" if f"{part}_accuracy" in results else "loss"
    percent = name == "accuracy"
    higher = bool(results.attrs["higher_is_better"]) if told else percent
    return Metric(f"{part}_{name}", f"{part} {name}{' (%)' if percent else ''}", higher, percent)


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
        chosen_by: final value of the metric that settings are chosen by, a run each; NaN if it diverged
            or was stopped early.
        test: final value of the test metric, a run each; NaN likewise.
        diverged: number of runs that diverged.
        pruned: number of runs that were ended early because others were ahead.
    """

    values: dict[str, Any]
    runs: np.ndarray
    seeds: np.ndarray
    chosen_by: np.ndarray
    test: np.ndarray
    diverged: int
    pruned: int

    @property
    def complete(self) -> bool:
        """Whether every run came to its end."""
        return not np.isnan(self.test).any()

    @property
    def scored(self) -> bool:
        """Whether any run came to its end."""
        return not np.isnan(self.test).all()


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
    pruned = results["pruned_at"].values if "pruned_at" in results else np.full(results.sizes["run"], -1)
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
            int((results.diverged_at.values[runs] >= 0).sum()),
            int((pruned[runs] >= 0).sum()),
        )
        for runs in groups.values()
    ]


def better(results: xr.Dataset, setting: Setting) -> tuple[bool, float]:
    """What settings are ranked by, the largest first.

    A setting with a run that diverged or was stopped early comes after all without; then the mean over
    seeds of the final validation metric (test, if nothing was held out) decides.
    """
    metric = chosen_by(results)
    mean = mean_and_interval(setting.chosen_by).mean
    return setting.complete, -math.inf if math.isnan(mean) else mean if metric.higher_is_better else -mean


def best_settings(
    results: xr.Dataset, by: tuple[str, ...] = ("optimizer", "schedule")
) -> dict[tuple[str, ...], Setting]:
    """For each optimizer and schedule, or what `by` names, the best setting, in the order of the runs."""
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings_of(results):
        groups.setdefault(tuple(str(setting.values[name]) for name in by), []).append(setting)
    return {key: max(group, key=lambda s: better(results, s)) for key, group in groups.items()}


def ranking(results: xr.Dataset, by: str = "optimizer") -> list[Setting]:
    """The best setting of each optimizer, or of each value of `by`; the best of them first."""
    best = best_settings(results, (by,)).values()
    return sorted(best, key=lambda setting: better(results, setting), reverse=True)


def verdict(results: xr.Dataset, by: str = "optimizer") -> str:
    """In a sentence or two: which optimizer and schedule came out best, by how much, and how surely.

    The runner-up is the best setting of another optimizer (or schedule, as `by` says). Where both have the
    same seeds, the interval is that of the difference within each seed. Settings are ranked by the validation
    part, so that the runner-up may be ahead on the test part; then that is said.
    """
    metric = metric_of(results)
    first, *others = ranking(results, by)
    if not first.scored:
        return "Every run diverged: the learning rates are too large."
    text = f"Best: {describe(first)} with {metric.phrase(mean_and_interval(first.test))}."
    others = [setting for setting in others if setting.scored]
    if not others:
        return text
    second = others[0]
    paired = first.seeds.tolist() == second.seeds.tolist()
    difference = first.test - second.test if paired else None
    if difference is None or np.isfinite(difference).sum() < 2:
        runner_up = f"{describe(second)} with {metric.phrase(mean_and_interval(second.test))}"
        return f"{text} Next: {runner_up}; more seeds would tell how sure the difference is."
    gap = mean_and_interval(difference if metric.higher_is_better else -difference)
    sure = (
        "more than chance explains (95 %)"
        if abs(gap.mean) > gap.half_width
        else "which may be chance: the 95 % interval holds zero"
    )
    unit = "points" if metric.percent else "in loss"
    if gap.mean == gap.half_width == 0:
        return f"{text} {describe(second)} does exactly as well."
    size = metric.format(gap._replace(mean=abs(gap.mean)), difference=True)
    if gap.mean < 0:
        return f"{text} On the test part that is {size} {unit} worse than {describe(second)}, {sure}."
    return f"{text} That is {size} {unit} better than {describe(second)}, {sure}."


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
        flat[f"{name}.lr"] = setting.values.get("lr", math.nan)
        flat[f"{name}.{metric.variable}"] = interval.mean
        flat[f"{name}.{metric.variable}_half_width"] = interval.half_width
        flat[f"{name}.diverged"] = float((results.diverged_at[runs] >= 0).mean())
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def describe(setting: Setting) -> str:
    """`momentum 0.9, cosine, learning rate 0.1`."""
    values = setting.values
    momentum = f" {values['momentum']:.3g}" if "momentum" in values else ""
    rate = f", learning rate {values['lr']:.3g}" if "lr" in values else ""
    return f"{values['optimizer']}{momentum}, {values['schedule']}{rate}"
