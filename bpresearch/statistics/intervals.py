"""Means over seeds, and how far to trust them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Interval(NamedTuple):
    """A mean and the half width of its confidence interval, NaN where there is none."""

    mean: float
    half_width: float
    seeds: int

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
    quantile = stats.t.ppf((1 + level) / 2, count - 1)
    error = np.std(values, ddof=1) / np.sqrt(count)
    return Interval(float(np.mean(values)), float(quantile * error), count)


def prediction(values: Float[np.ndarray, " seeds"], level: float = 0.95) -> Interval:
    """The mean, and the interval that one more run falls into: mean +- t s sqrt(1 + 1 / n).

    >>> runs = np.array([1.0, 2.0, 3.0])
    >>> round(prediction(runs).half_width / mean_and_interval(runs).half_width, 6)  # sqrt(n + 1)
    2.0

    Args:
        values: one value for each seed; NaN is left out and not counted.
        level: probability that the interval covers one more value, if all are normal and alike.
    """
    found = mean_and_interval(values, level)
    return found._replace(half_width=found.half_width * float(np.sqrt(found.seeds + 1)))


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
    found = [np.asarray(values, np.float64)[np.isfinite(values)] for values in (first, second)]
    fewest = min(len(values) for values in found)
    if fewest == 0:
        return Interval(np.nan, np.nan, 0)
    difference = float(found[0].mean() - found[1].mean())
    if fewest == 1:
        return Interval(difference, np.nan, 1)
    errors = np.array([values.var(ddof=1) / len(values) for values in found])
    if errors.sum() == 0:
        return Interval(difference, 0.0, fewest)
    counts = np.array([len(values) for values in found])
    freedom = errors.sum() ** 2 / (errors**2 / (counts - 1)).sum()
    half = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(errors.sum())
    return Interval(difference, float(half), fewest)
