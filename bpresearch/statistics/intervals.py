"""Means over seeds, and how far to trust them."""

from typing import NamedTuple

import numpy as np
import scipy  # which loads scipy.stats, a second, when it is first used
from jaxtyping import Float, Int


class Interval(NamedTuple):
    """A mean and the half width of its confidence interval, NaN where there is none.

    `p` is the probability of a mean at least as far from zero, either way, if it were zero: below 0.05 just
    where the 95 % interval does not hold zero. NaN where there is no interval.
    """

    mean: float
    half_width: float
    seeds: int
    p: float = np.nan

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of the interval."""
        return self.mean - self.half_width, self.mean + self.half_width


def mean_and_interval(values: Float[np.ndarray, " seeds"], level: float = 0.95) -> Interval:
    """The mean and Student's interval for it: mean +- t s / sqrt(n), with n - 1 degrees of freedom.

    Args:
        values: one value for each seed; NaN, from runs that diverged, is left out and not counted.
        level: probability that the interval covers the mean, for normal values (Student 1908).
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    count = len(values)
    if count == 0:
        return Interval(np.nan, np.nan, 0)
    if count == 1:
        return Interval(float(values[0]), np.nan, 1)
    error = np.std(values, ddof=1) / np.sqrt(count)
    return _student(float(np.mean(values)), float(error), count - 1, count, level)


def _student(mean: float, error: float, freedom: float | int, seeds: int, level: float) -> Interval:
    """Student's interval of a mean with this standard error."""
    if error == 0:
        return Interval(mean, 0.0, seeds, float(mean == 0))
    half = scipy.stats.t.ppf((1 + level) / 2, freedom) * error
    return Interval(mean, float(half), seeds, float(2 * scipy.stats.t.sf(abs(mean) / error, freedom)))


def prediction(values: Float[np.ndarray, " seeds"], level: float = 0.95) -> Interval:
    """The mean, and the interval that one more run falls into: mean +- t s sqrt(1 + 1 / n).

    >>> runs = np.array([1.0, 2.0, 3.0])
    >>> round(prediction(runs).half_width / mean_and_interval(runs).half_width, 6)  # sqrt(n + 1)
    2.0

    Args:
        values: one value for each seed; NaN is left out and not counted.
        level: probability that the interval covers one more value, if all are normal and alike.
    """
    interval = mean_and_interval(values, level)
    return interval._replace(half_width=interval.half_width * float(np.sqrt(interval.seeds + 1)))


def paired_difference(
    first: Float[np.ndarray, " seeds"], second: Float[np.ndarray, " seeds"], level: float = 0.95
) -> Interval:
    """Mean of first - second with Student's interval for the differences within each seed.

    What a seed does to both (its initial weights, the order of its data) cancels.
    """
    return mean_and_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), level)


def unpaired_difference(
    first: Float[np.ndarray, " _"], second: Float[np.ndarray, " _"], level: float = 0.95
) -> Interval:
    """Mean of first minus mean of second, with Welch's interval (1947), which takes all runs as independent.

    NaN is left out; the half width is NaN where one of them has fewer than two runs.
    """
    samples = [np.asarray(values, np.float64)[np.isfinite(values)] for values in (first, second)]
    fewest = min(len(values) for values in samples)
    if fewest == 0:
        return Interval(np.nan, np.nan, 0)
    difference = float(samples[0].mean() - samples[1].mean())
    if fewest == 1:
        return Interval(difference, np.nan, 1)
    errors = np.array([values.var(ddof=1) / len(values) for values in samples])
    counts = np.array([len(values) for values in samples])
    total = float(errors.sum())
    freedom = total**2 / float((errors**2 / (counts - 1)).sum()) if total else np.nan
    return _student(difference, total**0.5, freedom, fewest, level)


def difference(
    first: Float[np.ndarray, " _"],
    second: Float[np.ndarray, " _"],
    seeds: Int[np.ndarray, " _"],
    others: Int[np.ndarray, " _"],
    level: float = 0.95,
) -> Interval:
    """`paired_difference` over the seeds that both have; with fewer than two, `unpaired_difference`.

    Args:
        first, second: a value for each run.
        seeds, others: the seeds of the first's runs, and of the second's.
        level: probability that the interval covers the difference.
    """
    _, mine, theirs = np.intersect1d(seeds, others, return_indices=True)
    paired = paired_difference(first[mine], second[theirs], level)
    return paired if paired.seeds >= 2 else unpaired_difference(first, second, level)


def holm(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values corrected for how many there are (Holm 1979): those below 0.05 are, with a probability of
    95 %, all of differences that are there.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none is less than one before it. NaN,
    of what cannot be tested, stays and is not counted.

    >>> holm(np.array([0.01, 0.04, 0.03]))
    array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p, np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return corrected
