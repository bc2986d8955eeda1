"""What a comparison says, in sentences that may stand in a paper."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr

from bpresearch.statistics.intervals import Interval, difference, holm, mean_and_interval
from bpresearch.statistics.settings import (
    Metric,
    Setting,
    apart,
    axes_of,
    chosen,
    chosen_by,
    describe,
    grouped,
    metric_of,
    ranking,
    tuning,
)

LEVEL = 0.05
"""Probability of claiming any difference where there is none."""


MOST_VALUES = 8
"""Numbers of an axis that the protocol lists."""


class Pair(NamedTuple):
    """Two tuned optimizers (or schedules), the one that is ahead first.

    Attributes:
        first, second: their best settings.
        gap: how much better the first is on the test metric, paired by seed where both have the same.
        p: two-sided p-value of no difference, corrected for the number of pairs (Holm 1979).
    """

    first: Setting
    second: Setting
    gap: Interval
    p: float

    @property
    def claimed(self) -> bool:
        """Whether the first can be told apart from the second."""
        return self.p < LEVEL


def pairs(results: xr.Dataset, by: str = "optimizer") -> list[Pair]:
    """Every two of the best settings of the values of `by`, the best first."""
    sign = 1 if metric_of(results).higher_is_better else -1
    ahead = list(itertools.combinations([s for s in ranking(results, by) if s.scored], 2))
    gaps = [difference(sign * a.test, sign * b.test, a.seeds, b.seeds) for a, b in ahead]
    corrected = holm(np.array([gap.p for gap in gaps]))
    return [Pair(*two, gap, float(p)) for two, gap, p in zip(ahead, gaps, corrected, strict=True)]


def verdict(results: xr.Dataset, by: str = "optimizer") -> str:
    """Which came out best, how it was tuned, and from which others it can be told apart.

    Where settings were chosen and fresh runs of the chosen are there, all numbers are of the fresh runs;
    where there are none, the verdict says so.
    """
    metric, (first, *others) = metric_of(results), ranking(results, by)
    if not first.scored:
        return "Every run diverged: the learning rates are too large."
    sentences = [f"Best: {describe(first)} with {metric.phrase(mean_and_interval(first.test))}."]
    lost = int(np.isnan(first.test).sum())
    if lost:
        sentences.append(f"{lost} of its {len(first.test)} runs did not come to their end.")
    sentences.append(_tuned(results, by))
    every = pairs(results, by)
    tests = [pair for pair in every if pair.first.values == first.values]
    if any(setting.scored for setting in others) and all(math.isnan(pair.p) for pair in tests):
        second = tests[0].second
        runner_up = f"{describe(second)} with {metric.phrase(mean_and_interval(second.test))}"
        sentences.append(f"Next: {runner_up}; more seeds would tell how sure the difference is.")
    elif tests:
        sentences += [_told_apart(metric, tests), _tested(every)]
    return " ".join(sentences)


def _tuned(results: xr.Dataset, by: str) -> str:
    """How settings were chosen, and by which runs they are reported."""
    first = ranking(results, by)[0]
    count = f"{len(first.seeds)} {'fresh ' if first.fresh else ''}seed{'s' * (len(first.seeds) != 1)}"
    if not chosen(results, by):
        return f"Each {by} has one setting, trained with {count}."
    how = f"tuned over {_budgets(results, by)} by {chosen_by(results).name} on {_tuning_seeds(results)}"
    if apart(results, by):
        return f"Each {by} was {how}; all numbers are of {count} of its best setting."
    return (
        f"Each {by} was {how}, and is reported by the runs it was tuned on: means are too good, and p-values "
        "too small, until its best setting is trained again with fresh seeds (--confirm_seeds)."
    )


def _budgets(results: xr.Dataset, by: str) -> str:
    """`30 settings`, or `5 (sgd) and 30 (adam) settings`."""
    counts = {name: len(group) for (name,), group in grouped(tuning(results), (by,)).items()}
    if len(set(counts.values())) == 1:
        number = next(iter(counts.values()))
        return f"{number} setting{'s' * (number != 1)}"
    return f"{listed([f'{count} ({name})' for name, count in counts.items()])} settings"


def _tuning_seeds(results: xr.Dataset) -> str:
    count = len(np.unique(tuning(results).seed))
    return f"{count} seed{'s' * (count != 1)}"


def _told_apart(metric: Metric, tests: Sequence[Pair]) -> str:
    """Against which others the first is better, worse (by the test part), or neither."""
    better: list[str] = []
    worse: list[str] = []
    alike: list[str] = []
    unit = "points" if metric.percent else f"in {metric.name}"
    for pair in tests:
        name = describe(pair.second)
        gap = pair.gap
        if gap.mean == gap.half_width == 0:
            alike.append(f"{name} (exactly as good)")
            continue
        size = metric.format(gap._replace(mean=abs(gap.mean)), difference=True)
        group = (better if gap.mean > 0 else worse) if pair.claimed else alike
        ahead = ", which is ahead" if gap.mean < 0 and not pair.claimed else ""
        group.append(f"{name} ({size} {unit}{ahead}, {p_value(pair.p)})")
    parts = [
        f"{words} {listed(names)}"
        for words, names in (
            ("is better than", better),
            ("is worse on the test part than", worse),
            ("cannot be told apart from", alike),
        )
        if names
    ]
    return f"It {'; it '.join(parts)}."


def _tested(every: Sequence[Pair]) -> str:
    """The tests that the claims rest on."""
    every = [pair for pair in every if math.isfinite(pair.p)]
    paired = all(len(np.intersect1d(pair.first.seeds, pair.second.seeds)) >= 2 for pair in every)
    kind = "Student's t test within seeds" if paired else "Welch's t test"
    if len(every) == 1:
        return f"{kind}, level 5 %."
    return f"{kind}, level 5 % with Holm's correction for {len(every)} comparisons."


def p_value(p: float) -> str:
    """`p = 0.03`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def protocol(results: xr.Dataset, by: str = "optimizer") -> str:
    """How the comparison was made, as a paragraph to copy into a paper."""
    metric, choosing, best = metric_of(results), chosen_by(results), ranking(results, by)
    tuned = tuning(results)
    task = f"{listed(_words(tuned, 'model'))} on {listed(_words(tuned, 'dataset'))}"
    batch = listed([f"{size:g}" for size in np.unique(tuned.batch_size)])
    text = f"We compared {listed(_words(tuned, by))} for {task}"
    text += f", {int(tuned.step[-1]):,} steps of batch size {batch}."
    if chosen(results, by):
        part = "examples held out from training" if choosing != metric else "the test examples"
        axes = [f"{name} {listed(_words(tuned, name))}" for name in axes_of(tuned) if name != by]
        text += (
            f" Each {by} was tuned over {_budgets(results, by)} ({'; '.join(axes)}) by the final "
            f"{choosing.variable.partition('_')[2]} on {part}, the mean over {_tuning_seeds(results)}."
        )
    seeds = best[0].seeds
    if best[0].fresh:
        text += (
            f" The best setting of each was trained again with {len(seeds)} fresh seeds, the same for all."
        )
    elif chosen(results, by):
        text += " The runs that settings were chosen by are also those that are reported."
    text += (
        f" A seed sets initial weights and the order of the data. We report the mean {metric.name} of "
        f"{len(seeds)} runs with Student's 95 % interval."
    )
    tests = [pair for pair in pairs(results, by) if math.isfinite(pair.p)]
    if tests:
        text += f" Differences were tested two-sided: {_tested(tests)}"
    lost = sum(int(np.isnan(setting.test).sum()) for setting in best)
    if lost:
        text += (
            f" {lost} of {sum(len(s.test) for s in best)} runs did not come to their end and are left out."
        )
    return text


def _words(results: xr.Dataset, name: str) -> list[str]:
    """The values of an axis; of many numbers, as of a search, the range."""
    values = list(dict.fromkeys(v for v in results[name].values.tolist() if v == v and v != ""))
    if len(values) > MOST_VALUES and all(isinstance(v, int | float) for v in values):
        return [f"{min(values):.3g} to {max(values):.3g}"]
    return [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
