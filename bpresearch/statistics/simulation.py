"""Comparisons made up from a known truth, by which the statistics are checked."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from bpresearch.statistics.intervals import mean_and_interval, paired_difference, unpaired_difference
from bpresearch.statistics.resampling import (
    interquartile_mean_interval,
    over_tasks,
    performance_profile,
    probability_of_improvement_interval,
)
from bpresearch.statistics.settings import best_settings, tuning
from bpresearch.statistics.verdict import pairs

TASKS = 3


class Truth(NamedTuple):
    """Two optimizers, all of whose settings are equally good, in standard deviations of a run.

    Attributes:
        settings: how many each is tuned over.
        seeds: with which each setting is tuned.
        fresh: seeds with which the best of each is trained again.
        difference: by how much the first optimizer is better.
        shared: part of a run's variance that its seed gives to every setting alike.
    """

    settings: tuple[int, int] = (10, 10)
    seeds: int = 3
    fresh: int = 10
    difference: float = 0.0
    shared: float = 0.3


class Outcome(NamedTuple):
    """What came of simulated comparisons.

    Attributes:
        error: mean of what is reported of an optimizer less the truth, in standard deviations of a run.
        error_untold: the same if it were reported by the runs that it was tuned on.
        claimed: fraction in which a difference was claimed.
        claimed_plainly: fraction in which SciPy's paired t test of the same fresh runs finds one.
        covered: fraction in which the interval of the difference holds the true one.
        mean_covered: fraction in which the interval of an optimizer's mean holds the true one.
    """

    error: float
    error_untold: float
    claimed: float
    claimed_plainly: float
    covered: float
    mean_covered: float


def results_of(random: np.random.Generator, truth: Truth) -> xr.Dataset:
    """The results of a simulated sweep: tuning runs, and fresh runs of the setting that is best by them."""
    optimizer = np.repeat([0, 1], truth.settings)
    rate = np.concatenate([np.arange(count) for count in truth.settings])
    tuned = _runs(random, truth, optimizer, rate, np.arange(truth.seeds), fresh=False)
    best = best_settings(tuned, ("optimizer",)).values()
    chosen = np.array([setting.values["lr"] for setting in best])
    again = _runs(random, truth, np.array([0, 1]), chosen, 100 + np.arange(truth.fresh), fresh=True)
    names = ("optimizer", "lr", "seed", "fresh", "valid_loss", "test_loss", "diverged_at")
    joined = {name: np.concatenate([tuned[name].values, again[name].values]) for name in names}
    return _dataset(joined)


def _runs(
    random: np.random.Generator,
    truth: Truth,
    optimizer: np.ndarray,
    rate: np.ndarray,
    seeds: np.ndarray,
    fresh: bool,
) -> xr.Dataset:
    own = random.normal(size=(len(optimizer), len(seeds))) * np.sqrt(1 - truth.shared)
    loss = own + random.normal(size=len(seeds)) * np.sqrt(truth.shared)
    loss = (loss - truth.difference * (optimizer == 0)[:, None]).reshape(-1, 1)
    columns = {
        name: np.repeat(values, len(seeds)) for name, values in (("optimizer", optimizer), ("lr", rate))
    }
    count = len(loss)
    marks = {"fresh": np.full(count, fresh), "diverged_at": np.full(count, -1)}
    seed = np.tile(seeds, len(optimizer))
    return _dataset(columns | marks | {"seed": seed, "valid_loss": loss, "test_loss": loss})


def _dataset(columns: dict[str, np.ndarray]) -> xr.Dataset:
    axes = ("optimizer", "lr", "seed")
    variables = {
        name: (("run", "eval_step")[: values.ndim], values)
        for name, values in columns.items()
        if name not in axes
    }
    return xr.Dataset(variables, {name: ("run", columns[name]) for name in axes})


def outcome(random: np.random.Generator, truth: Truth, comparisons: int) -> Outcome:
    """What the package says of so many simulated sweeps."""
    rows = []
    for _ in range(comparisons):
        results = results_of(random, truth)
        (pair,) = pairs(results)
        first, second = sorted((pair.first, pair.second), key=lambda setting: setting.values["optimizer"])
        true = np.array([-truth.difference, 0.0])
        gap = truth.difference if pair.first is first else -truth.difference
        untold = [s.chosen_by.mean() for s in best_settings(tuning(results), ("optimizer",)).values()]
        means = [mean_and_interval(setting.test) for setting in (first, second)]
        rows.append(
            (
                np.mean(true - [mean.mean for mean in means]),
                np.mean(true - untold),
                pair.claimed,
                stats.ttest_rel(first.test, second.test).pvalue < 0.05,
                abs(pair.gap.mean - gap) <= pair.gap.half_width,
                np.mean([abs(m.mean - t) <= m.half_width for m, t in zip(means, true, strict=True)]),
            )
        )
    return Outcome(*(float(value) for value in np.mean(rows, axis=0)))


def covered(random: np.random.Generator, seeds: int, samples: int) -> dict[str, float]:
    """How often each interval holds the truth, of normal runs with so many seeds; NaN if it is not offered.

    Those over tasks are of TASKS tasks of different means and noise.
    """
    places, noise = 0.3 * np.arange(TASKS), 1 + 0.2 * np.arange(TASKS)
    far = np.concatenate([random.normal(m, s, 400_000) for m, s in zip(places, noise, strict=True)])
    middle = float(stats.trim_mean(far, 0.25))
    chance = float(np.mean(stats.norm.cdf(1 / (np.sqrt(2) * noise))))
    above = float(np.mean(stats.norm.sf(0.5, places, noise)))

    def tasks(shift: float = 0.0) -> list[np.ndarray]:
        return [random.normal(m + shift, s, seeds) for m, s in zip(places, noise, strict=True)]

    def profile() -> tuple[float, float]:
        _, low, high = performance_profile(tasks(), np.array([0.5]))
        return float(low[0]), float(high[0])

    def by_task() -> list[np.ndarray]:
        return [random.normal(random.normal(), 1, seeds) for _ in range(TASKS)]

    normal = random.normal
    intervals: dict[str, tuple[float, Callable[[], tuple[float, float]]]] = {
        "mean": (0.0, lambda: mean_and_interval(normal(size=seeds)).bounds),
        "paired": (0.0, lambda: paired_difference(normal(size=seeds), normal(size=seeds)).bounds),
        "unpaired": (0.0, lambda: unpaired_difference(normal(size=seeds), normal(0, 2, seeds)).bounds),
        "over_tasks": (0.0, lambda: over_tasks(by_task()).bounds),
        "interquartile_mean": (middle, lambda: interquartile_mean_interval(tasks())[1:]),
        "improvement": (chance, lambda: probability_of_improvement_interval(tasks(1.0), tasks())[1:]),
        "profile": (above, profile),
    }
    coverage = {}
    for name, (truth, interval) in intervals.items():
        ends = np.array([interval() for _ in range(samples)])
        inside = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
        coverage[name] = float(np.nan if np.isnan(ends).any() else inside.mean())
    return coverage
