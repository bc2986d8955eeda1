"""Intervals against scipy's and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bpresearch.analysis import mean_and_interval


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=20), st.floats(0.5, 0.99))
def test_the_interval_is_students(values, level):
    found = mean_and_interval(np.array(values), level)
    if np.std(values) < 1e-9:
        return
    low, high = stats.t.interval(level, len(values) - 1, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(found.bounds, (low, high), rtol=1e-9, atol=1e-9)


def test_it_covers_the_mean_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(3, 2, (2000, 4))
    covered = [low <= 3 <= high for low, high in (mean_and_interval(s).bounds for s in samples)]
    assert 0.935 < np.mean(covered) < 0.965


@pytest.mark.parametrize(
    ("values", "mean", "seeds"), [([], np.nan, 0), ([2.0], 2.0, 1), ([np.nan, 5], 5.0, 1)]
)
def test_fewer_than_two_values_have_no_interval(values, mean, seeds):
    found = mean_and_interval(np.array(values))
    np.testing.assert_equal(found.mean, mean)
    assert np.isnan(found.half_width) and found.seeds == seeds
