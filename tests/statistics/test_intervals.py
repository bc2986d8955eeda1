"""Intervals against scipy's and against simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bpresearch.statistics import (
    difference,
    holm,
    mean_and_interval,
    paired_difference,
    prediction,
    unpaired_difference,
)


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


def test_the_unpaired_interval_is_welchs():
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, 6), random.normal(0, 3, 4)
    found = unpaired_difference(first, second)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(found.bounds, (expected.low, expected.high))


def test_pairing_removes_what_a_seed_does_to_both():
    seeds = np.random.default_rng(1).normal(0, 10, 5)
    first, second = seeds + np.array([1.0, 1.1, 0.9, 1.0, 1.05]), seeds
    paired, unpaired = paired_difference(first, second), unpaired_difference(first, second)
    assert paired.mean == pytest.approx(unpaired.mean)
    assert paired.half_width < 0.2 < 5 < unpaired.half_width
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    np.testing.assert_allclose(paired.bounds, (expected.low, expected.high))


def test_differences_leave_out_runs_that_diverged():
    found = unpaired_difference(np.array([1.0, np.nan, 3.0]), np.array([1.0, 1.0]))
    assert found.mean == 1 and found.seeds == 2
    assert np.isnan(unpaired_difference(np.array([np.nan]), np.array([1.0])).mean)
    assert np.isnan(unpaired_difference(np.array([2.0]), np.array([1.0, 2.0])).half_width)
    assert paired_difference(np.array([1.0, np.nan, 3.0]), np.array([0.0, 0.0, 0.0])).seeds == 2


def test_one_more_run_lies_in_the_prediction_as_often_as_it_says():
    runs = np.random.default_rng(0).normal(3, 2, size=(4000, 6))
    found = [prediction(row[:5], 0.9).bounds for row in runs]
    inside = [low <= row[5] <= high for row, (low, high) in zip(runs, found, strict=True)]
    assert abs(np.mean(inside) - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 4000)


def test_p_values_are_scipys_and_below_5_per_cent_where_the_interval_leaves_zero_out():
    random = np.random.default_rng(1)
    for shift in (0.0, 0.6, 1.5):
        first, second = random.normal(shift, 1, 8), random.normal(0, 2, 6)
        welch = stats.ttest_ind(first, second, equal_var=False)
        found = unpaired_difference(first, second)
        assert found.p == pytest.approx(welch.pvalue) and (found.p < 0.05) == (np.prod(found.bounds) > 0)
        np.testing.assert_allclose(found.bounds, welch.confidence_interval())
        paired = stats.ttest_rel(first[:6], second)
        assert paired_difference(first[:6], second).p == pytest.approx(paired.pvalue)


def test_what_both_have_of_seeds_is_paired():
    first, second = np.array([1.0, 5.0, 3.0]), np.array([2.0, 1.0, 9.0])
    found = difference(first, second, np.array([7, 8, 9]), np.array([9, 7, 4]))
    assert found == paired_difference(np.array([1.0, 3.0]), np.array([1.0, 2.0]))
    apart = difference(first, second, np.array([7, 8, 9]), np.array([7, 2, 4]))
    assert apart == unpaired_difference(first, second)


def test_holm_rejects_step_by_step():
    """By the procedure as it is told: from the smallest p on, until one exceeds 0.05 / (those left)."""
    random = np.random.default_rng(2)
    for _ in range(50):
        p = random.uniform(0, 0.06, 5)
        rejected = np.zeros(5, bool)
        for place, number in enumerate(np.argsort(p)):
            if p[number] >= 0.05 / (5 - place):
                break
            rejected[number] = True
        np.testing.assert_array_equal(holm(p) < 0.05, rejected)
    np.testing.assert_array_equal(holm(np.array([np.nan, 0.02, 0.9])), [np.nan, 0.04, 0.9])
