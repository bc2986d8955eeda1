"""Comparisons over several tasks: interquartile mean, probability of improvement, stratified bootstrap.

As Agarwal et al. 2021 ("Deep reinforcement learning at the edge of the statistical precipice") define
them. A task is a stratum: a data set, or one value of whatever else is compared under equal conditions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

Scores = Sequence[Float[np.ndarray, " _"]]
"""For each task, the scores of its runs; the larger the better."""

RESAMPLES = 2000


class Range(NamedTuple):
    """An estimate between the ends of its confidence interval."""

    estimate: float
    low: float
    high: float


def interquartile_mean(scores: Scores) -> float:
    """The mean of the middle half of all runs of all tasks: fewer outliers than the mean, less noise than
    the median.
    """
    return float(stats.trim_mean(np.concatenate(scores), 0.25))


def probability_of_improvement(scores: Scores, others: Scores) -> float:
    """P(X > Y) + P(X = Y) / 2 for a run X and a run Y of the other on the same task, the mean over tasks.

    (Mann and Whitney's U over the number of pairs.)
    """
    chances = [_wins(x, y).mean() for x, y in zip(scores, others, strict=True)]
    return float(np.mean(chances))


def _wins(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])


def interquartile_mean_interval(scores: Scores, level: float = 0.95, seed: int = 0) -> Range:
    """The interquartile mean with its stratified bootstrap interval."""
    drawn = _resampled(scores, np.random.default_rng(seed))
    low, high = _bounds(stats.trim_mean(np.concatenate(drawn, 1), 0.25, axis=1), scores, level)
    return Range(interquartile_mean(scores), float(low), float(high))


def probability_of_improvement_interval(
    scores: Scores, others: Scores, level: float = 0.95, seed: int = 0
) -> Range:
    """The probability of improvement with its stratified bootstrap interval."""
    random = np.random.default_rng(seed)
    drawn = zip(_resampled(scores, random), _resampled(others, random), strict=True)
    chances = np.mean([_wins(x, y).mean(axis=(1, 2)) for x, y in drawn], axis=0)
    low, high = _bounds(chances, [*scores, *others], level)
    return Range(probability_of_improvement(scores, others), float(low), float(high))


def _resampled(scores: Scores, random: np.random.Generator) -> list[Float[np.ndarray, "resamples _"]]:
    """Bootstrap resamples: the runs of each task drawn with replacement from those of that task."""
    return [x[random.integers(0, len(x), (RESAMPLES, len(x)))] for x in scores]


def _bounds(
    resampled: Float[np.ndarray, "resamples *estimates"], scores: Scores, level: float
) -> Float[np.ndarray, "2 *estimates"]:
    """The ends of the expanded percentile interval (Hesterberg 2015): its percentiles are those of the
    normal distribution at sqrt(n / (n - 1)) t, with n runs a task and Student's t of as many degrees of
    freedom as the runs of all tasks have.

    The plain percentile interval of few seeds is too short: resampling shrinks the variance by (n - 1) / n.
    NaN where every task has one run only.
    """
    counts = np.array([len(x) for x in scores])
    freedom = int((counts - 1).sum())
    if freedom == 0:
        return np.full((2, *resampled.shape[1:]), np.nan)
    widened = np.sqrt(counts.sum() / freedom) * stats.t.ppf((1 + level) / 2, freedom)
    tail = 100 * stats.norm.sf(widened)
    return np.percentile(resampled, [tail, 100 - tail], axis=0)


def performance_profile(
    scores: Scores, thresholds: Float[np.ndarray, " thresholds"], level: float = 0.95, seed: int = 0
) -> Float[np.ndarray, "3 thresholds"]:
    """The fraction of runs with a score above each threshold (the mean over tasks), and its interval's ends.

    (The run-score distribution; Dolan and Moré 2002 for the idea.)
    """

    def above(drawn: Sequence[np.ndarray]) -> np.ndarray:
        return np.mean([(x[..., None] > thresholds).mean(axis=-2) for x in drawn], axis=0)

    resampled = above(_resampled(scores, np.random.default_rng(seed)))
    return np.stack([above(scores), *_bounds(resampled, scores, level)])


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
