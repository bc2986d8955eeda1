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
