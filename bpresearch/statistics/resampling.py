"""Comparisons over several tasks: interquartile mean, probability of improvement, stratified bootstrap.

As Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice") define
them. A task is a stratum: a data set, or one value of whatever else is compared under equal conditions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float

from bpresearch.statistics.intervals import Interval, mean_and_interval

Scores = Sequence[Float[np.ndarray, " _"]]
"""For each task, the scores of its runs; the larger the better."""

RESAMPLES = 2000
FEWEST = 5
"""Runs of each task from which on the bootstrap is offered, and of all tasks, Newcombe's interval: with fewer
they cover the truth in less than 93 % of samples (`scripts/check_statistics.py`)."""


class Range(NamedTuple):
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all runs of all tasks: fewer outliers than the mean, less noise than
    the median.
    """
    return float(scipy.stats.trim_mean(np.concatenate(scores), 0.25))


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run X and a run Y of the other on the same task, the mean over tasks.

    (Mann and Whitney's U over the number of pairs.)
    """
    chances = [_wins(x, y).mean() for x, y in zip(scores, others, strict=True)]
    return float(np.mean(chances))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])


def interquartile_mean_interval(scores: Scores, level: float = 0.95, seed: int = 0) -> Range:
    """The interquartile mean with its stratified bootstrap interval; NaN with less than 5 runs of a task."""
    drawn = _resampled(scores, np.random.default_rng(seed))
    ends = _bounds(scipy.stats.trim_mean(np.concatenate(drawn, 1), 0.25, axis=1), scores, level)
    return Range(interquartile_mean(scores), *ends)


def probability_of_improvement_interval(scores: Scores, others: Scores, level: float = 0.95) -> Range:
    """The probability of improvement with Newcombe's interval (2006, method 5); NaN with less than 5 runs.

    The interval holds every probability t from which the estimate is at most z standard errors away, those
    that t has: with m and n runs, N = (m + n) / 2, and the variance of Hanley and McNeil (1982)

        V(t) = t (1 - t) / (m n) (1 + (N - 1) ((1 - t) / (2 - t) + t / (1 + t))),

    and of the mean over K tasks the sum of their variances by K^2. So it stays within 0 and 1, and has a
    length where every run of one beats every run of the other.
    """
    estimate = probability_of_improvement(scores, others)
    counts = [(len(x), len(y)) for x, y in zip(scores, others, strict=True)]
    if min(sum(m for m, _ in counts), sum(n for _, n in counts)) < FEWEST:
        return Range(estimate, np.nan, np.nan)
    z = scipy.stats.norm.ppf((1 + level) / 2)

    def beyond(t: float) -> float:
        inner = (1 - t) / (2 - t) + t / (1 + t)
        variances = [t * (1 - t) / (m * n) * (1 + ((m + n) / 2 - 1) * inner) for m, n in counts]
        return abs(t - estimate) - float(z * np.sqrt(sum(variances)) / len(counts))

    inside = float(np.clip(estimate, 1e-9, 1 - 1e-9))  # at 0 and 1 the equation holds, too
    low = 0.0 if estimate == 0 else scipy.optimize.brentq(beyond, 0, inside)
    high = 1.0 if estimate == 1 else scipy.optimize.brentq(beyond, inside, 1)
    return Range(estimate, low, high)


def _resampled(scores: Scores, random: np.random.Generator) -> list[Float[np.ndarray, "resamples _"]]:
    """Bootstrap resamples: the runs of each task drawn with replacement from those of that task."""
    return [x[random.integers(0, len(x), (RESAMPLES, len(x)))] for x in scores]


def _bounds(resampled: Float[np.ndarray, " resamples"], scores: Scores, level: float) -> tuple[float, float]:
    """The ends of the expanded percentile interval (Hesterberg 2015): its percentiles are those of the
    normal distribution at sqrt(n / (n - 1)) t, with n runs a task and Student's t of as many degrees of
    freedom as the runs of all tasks have.

    The plain percentile interval of few seeds is too short: resampling shrinks the variance by (n - 1) / n.
    """
    counts = np.array([len(x) for x in scores])
    if counts.min() < FEWEST:
        return np.nan, np.nan
    freedom = int((counts - 1).sum())
    widened = np.sqrt(counts.sum() / freedom) * scipy.stats.t.ppf((1 + level) / 2, freedom)
    tail = 100 * scipy.stats.norm.sf(widened)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return float(low), float(high)


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, " thresholds"], level: float = 0.95
) -> Float[np.ndarray, "3 thresholds"]:
    """The fraction of runs with a score above each threshold (the mean over tasks), and its interval's ends.

    (The run-score distribution; Dolan and Moré 2002 for the idea.) The interval is Wilson's (1927), of as
    many runs as have the variance of the mean over K tasks with n_k runs: K^2 / sum(1 / n_k).
    """
    above = np.mean([(x[:, None] > thresholds).mean(axis=0) for x in scores], axis=0)
    runs = len(scores) ** 2 / sum(1 / len(x) for x in scores)
    z2 = scipy.stats.norm.ppf((1 + level) / 2) ** 2
    centre = (above + z2 / (2 * runs)) / (1 + z2 / runs)
    half = np.sqrt(z2 * (above * (1 - above) / runs + z2 / (4 * runs**2))) / (1 + z2 / runs)
    return np.stack([above, centre - half, centre + half])


def over_tasks(differences: Scores, level: float = 0.95) -> Interval:
    """The mean over tasks of the difference of pairs, with Student's interval over the tasks' means.

    Pairs stay pairs, runs of one task (or of one study of it) are one number, and tasks are what varies: the
    interval is of tasks like these, not of these alone. A hierarchical bootstrap (tasks, then runs) would say
    the same with many tasks; with few, or where tasks agree, it covers 99 % and more in place of 95.

    Args:
        differences: for each task, first minus second, one value for each pair of runs, or their means.
        level: probability that the interval covers the mean, if tasks' means are normal.
    """
    return mean_and_interval(np.array([np.mean(pairs) for pairs in differences]), level)


def expected_best(
    chosen_by: Float[np.ndarray, " trials"], value: Float[np.ndarray, " trials"]
) -> Float[np.ndarray, " trials"]:
    """Expected value of the trial with the largest `chosen_by` among n, for n = 1 to all N of them.

    The n are drawn without replacement, so the i-th smallest is the largest of them with probability
    C(i - 1, n - 1) / C(N, n), exactly. (Dodge et al. 2019 draw with replacement, which is biased: Tang et
    al. 2020.)

    >>> expected_best(np.array([0.0, 1.0, 2.0]), np.array([0.0, 10.0, 20.0])).round(2)
    array([10.  , 16.67, 20.  ])

    Args:
        chosen_by: what the best trial is chosen by, as the metric of the validation part.
        value: what it then reaches, as the metric of the test part.
    """
    total = len(value)
    ordered = value[np.argsort(chosen_by, kind="stable")]
    best = np.empty(total)
    for n in range(1, total + 1):
        # weight of rank N is n / N; from rank i + 1 down to i it shrinks by (i - n + 1) / i
        ranks = np.arange(total - 1, 0, -1)
        ratios = np.clip((ranks - n + 1) / ranks, 0, None)
        weights = n / total * np.concatenate([[1.0], np.cumprod(ratios)])
        best[n - 1] = weights @ ordered[::-1]
    return best
