"""The settings of a sweep: each a combination of hyper-parameters, with one run for every seed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from bpresearch.statistics.intervals import Interval, mean_and_interval

STRUCTURE = ("model", "dataset", "loss", "optimizer", "schedule")


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


def generalisation_gap(results: xr.Dataset) -> xr.DataArray | None:
    """How much worse each run is, at each evaluation, on the test part than on examples it was trained on.

    In the metric that settings are chosen by: of an accuracy, that of training minus that of the test part;
    of a loss the other way round. Both are evaluations (no dropout), of as many training examples as are
    held out. None where the results lack those of training.
    """
    test, training = metric_of(results), metric_of(results, "train_eval")
    if training.variable not in results or test.variable.partition("_")[2] not in training.variable:
        return None
    sign = 1 if test.higher_is_better else -1
    return sign * (results[training.variable] - results[test.variable])


@dataclass(frozen=True)
class Setting:
    """One combination of hyper-parameters.

    It is chosen by its tuning runs, and reported by the fresh runs of it where there are any: those with
    other seeds, which chose nothing. Without them the tuning runs are reported.

    Attributes:
        values: each hyper-parameter's value, without those the optimizer does not take.
        tuning: indices of its tuning runs.
        chosen_by: final value of the metric that settings are chosen by, a tuning run each; NaN if it
            diverged or was stopped early.
        runs: indices of the runs that it is reported by.
        seeds: their seeds.
        test: their final values of the test metric; NaN likewise.
        fresh: whether these are fresh runs.
        diverged: number of runs, tuning and fresh, that diverged.
        pruned: number of runs that were ended early because others were ahead.
    """

    values: dict[str, Any]
    tuning: np.ndarray
    chosen_by: np.ndarray
    runs: np.ndarray
    seeds: np.ndarray
    test: np.ndarray
    fresh: bool
    diverged: int
    pruned: int

    @property
    def every_run(self) -> np.ndarray:
        """Indices of its tuning runs, and of its fresh runs after them."""
        return np.concatenate([self.tuning, self.runs]) if self.fresh else self.tuning

    @property
    def complete(self) -> bool:
        """Whether every tuning run came to its end."""
        return not np.isnan(self.chosen_by).any()

    @property
    def scored(self) -> bool:
        """Whether any run that it is reported by came to its end."""
        return not np.isnan(self.test).all()


def tuning(results: xr.Dataset) -> xr.Dataset:
    """The tuning runs of results that hold fresh runs too (variable `fresh`); else all."""
    return results.isel(run=np.flatnonzero(~results["fresh"].values)) if "fresh" in results else results


def axes_of(results: xr.Dataset) -> list[str]:
    """The names of what differs between the settings of a sweep, optimizer and schedule first."""
    names = [str(name) for name in results.coords if results[name].dims == ("run",)]
    order = [name for name in (*STRUCTURE, "lr") if name in names]
    order += [name for name in names if name not in (*order, "run", "seed")]
    return [name for name in order if len({repr(v) for v in results[name].values.tolist()} - {"nan"}) > 1]


def settings_of(results: xr.Dataset) -> list[Setting]:
    """Every setting of a sweep, in the order of the runs."""
    axes = [str(name) for name in results.coords if results[name].dims == ("run",)]
    axes = [name for name in axes if name not in ("run", "seed")]
    order = [name for name in ("model", "dataset", "loss", "optimizer", "schedule", "lr") if name in axes]
    axes = order + [name for name in axes if name not in order]
    columns = {name: results[name].values.tolist() for name in axes}
    groups: dict[tuple[str, ...], list[int]] = {}
    for run in range(results.sizes["run"]):
        groups.setdefault(tuple(repr(columns[name][run]) for name in axes), []).append(run)
    diverged, seeds = results.diverged_at.values >= 0, results.seed.values
    choosing, test = (
        np.where(diverged, np.nan, results[metric.variable].isel(eval_step=-1).values)
        for metric in (chosen_by(results), metric_of(results))
    )
    pruned = results["pruned_at"].values >= 0 if "pruned_at" in results else np.zeros_like(diverged)
    fresh = results["fresh"].values if "fresh" in results else np.zeros_like(diverged)
    settings = []
    for group in groups.values():
        every = np.array(group)
        tuned, again = every[~fresh[every]], every[fresh[every]]
        runs = again if len(again) else tuned
        values = {name: columns[name][every[0]] for name in axes}
        settings.append(
            Setting(
                {name: value for name, value in values.items() if value == value},
                tuned,
                choosing[tuned],
                runs,
                seeds[runs],
                test[runs],
                bool(len(again)),
                int(diverged[every].sum()),
                int(pruned[every].sum()),
            )
        )
    return settings


def better(results: xr.Dataset, setting: Setting) -> tuple[bool, float]:
    """What settings are chosen by, the largest first.

    A setting with a tuning run that diverged or was stopped early comes after all without; then the mean
    over seeds of the final validation metric (test, if nothing was held out) decides.
    """
    return setting.complete, _order(chosen_by(results), setting.chosen_by)


def reached(results: xr.Dataset, setting: Setting) -> tuple[bool, float]:
    """The same of the runs that it is reported by and the test metric; chosen settings are ranked by it."""
    return not np.isnan(setting.test).any(), _order(metric_of(results), setting.test)


def _order(metric: Metric, values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return -math.inf
    return float(finite.mean()) if metric.higher_is_better else -float(finite.mean())


def best_settings(
    results: xr.Dataset, by: tuple[str, ...] = ("optimizer", "schedule")
) -> dict[tuple[str, ...], Setting]:
    """For each optimizer and schedule, or what `by` names, the best setting, in the order of the runs."""
    groups = grouped(results, by)
    return {key: max(group, key=lambda s: better(results, s)) for key, group in groups.items()}


def grouped(results: xr.Dataset, by: tuple[str, ...]) -> dict[tuple[str, ...], list[Setting]]:
    """The settings with each combination of values of what `by` names, in the order of the runs."""
    groups: dict[tuple[str, ...], list[Setting]] = {}
    for setting in settings_of(results):
        groups.setdefault(tuple(str(setting.values[name]) for name in by), []).append(setting)
    return groups


def chosen(results: xr.Dataset, by: str = "optimizer") -> bool:
    """Whether anything was chosen: a value of `by` has several settings."""
    return any(len(group) > 1 for group in grouped(results, (by,)).values())


def apart(results: xr.Dataset, by: str = "optimizer") -> bool:
    """Whether the runs that are reported chose nothing: they are fresh, or there was nothing to choose."""
    return _apart(results, grouped(results, (by,)).values())


def _apart(results: xr.Dataset, groups: Iterable[list[Setting]]) -> bool:
    return all(len(g) == 1 or max(g, key=lambda s: better(results, s)).fresh for g in groups)


def ranking(results: xr.Dataset, by: str = "optimizer") -> list[Setting]:
    """The best setting of each optimizer, or of each value of `by`; the best of them first.

    The best by what it reaches where the runs that are reported chose nothing, else by what it was chosen by.
    """
    groups = list(grouped(results, (by,)).values())
    order = reached if _apart(results, groups) else better
    best = [max(group, key=lambda setting: better(results, setting)) for group in groups]
    return sorted(best, key=lambda setting: order(results, setting), reverse=True)


def figures(results: xr.Dataset) -> dict[str, float]:
    """The best settings as one flat object: `sgd.cosine.test_accuracy` and so on.

    For each optimizer and schedule: its best learning rate, the mean of the test metric over seeds, the
    half width of its 95 % interval, the number of seeds, 1 if they are fresh, and the share of all its runs
    that diverged.
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
        flat[f"{name}.seeds"] = len(setting.seeds)
        flat[f"{name}.fresh"] = float(setting.fresh)
        flat[f"{name}.diverged"] = float((results.diverged_at[runs] >= 0).mean())
    return {name: value for name, value in flat.items() if math.isfinite(value)}


def describe(setting: Setting) -> str:
    """`momentum 0.9, cosine, learning rate 0.1`."""
    values = setting.values
    momentum = f" {values['momentum']:.3g}" if "momentum" in values else ""
    rate = f", learning rate {values['lr']:.3g}" if "lr" in values else ""
    return f"{values['optimizer']}{momentum}, {values['schedule']}{rate}"
