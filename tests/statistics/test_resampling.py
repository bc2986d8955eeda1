"""Bootstrap intervals against simulation, estimates against scipy and by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bpresearch.statistics import (
    expected_best,
    interquartile_mean,
    interquartile_mean_interval,
    over_tasks,
    performance_profile,
    probability_of_improvement,
    probability_of_improvement_interval,
    resampling,
)

SCORES = st.lists(st.floats(-10, 10), min_size=1, max_size=6)


@pytest.fixture
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 400)


def tasks(random, shift=0.0, count=6, seeds=8):
    """Scores of several tasks that differ in difficulty and noise."""
    return [random.normal(0.3 * k + shift, 1 + 0.2 * k, seeds) for k in range(count)]


def test_intervals_cover_the_truth_as_often_as_they_say(fewer_resamples):
    random, threshold = np.random.default_rng(0), 0.5
    above = np.mean([stats.norm.sf(threshold, 0.3 * k, 1 + 0.2 * k) for k in range(6)])
    mean = interquartile_mean(tasks(random, seeds=200_000))
    chance = np.mean([stats.norm.cdf(0.4 / (np.sqrt(2) * (1 + 0.2 * k))) for k in range(6)])
    covered = np.zeros((600, 3), bool)
    for number in range(600):
        ours, others = tasks(random, 0.4), tasks(random)
        low, high = interquartile_mean_interval(others, seed=number)[1:]
        covered[number, 0] = low <= mean <= high
        low, high = probability_of_improvement_interval(ours, others)[1:]
        covered[number, 1] = low <= chance <= high
        (low,), (high,) = performance_profile(others, np.array([threshold]))[1:]
        covered[number, 2] = low <= above <= high
    assert (np.abs(covered.mean(axis=0) - 0.95) < 0.02).all(), covered.mean(axis=0)


@given(SCORES, SCORES)
def test_the_probability_of_improvement_is_mann_and_whitneys(x, y):
    x, y = np.array(x), np.array(y)
    found = probability_of_improvement([x], [y])
    assert found == pytest.approx(stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    assert found + probability_of_improvement([y], [x]) == pytest.approx(1)


def test_the_interquartile_mean_leaves_out_a_quarter_on_both_sides():
    assert interquartile_mean([np.array([1.0, -1000]), np.array([2.0, 1000])]) == 1.5
    assert interquartile_mean([np.arange(8.0)]) == np.mean([2, 3, 4, 5])


def test_resampling_stays_within_tasks(fewer_resamples):
    constant = [np.full(5, 1.0), np.full(5, 5.0)]
    found = interquartile_mean_interval(constant)
    assert found == (3.0, 3.0, 3.0)


def test_where_an_interval_would_cover_too_little_there_is_none():
    found = interquartile_mean_interval([np.ones(4), np.zeros(6)])
    assert found.estimate == pytest.approx(1 / 3) and np.isnan(found.low) and np.isnan(found.high)
    found = probability_of_improvement_interval([np.ones(4)], [np.zeros(6)])
    assert found.estimate == 1 and np.isnan(found.low) and np.isnan(found.high)


@given(st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9)), min_size=2, max_size=4), st.integers(0, 99))
def test_the_interval_of_the_probability_of_improvement_is_where_newcombes_equation_holds(counts, seed):
    random = np.random.default_rng(seed)
    x, y = ([random.normal(size=count) + shift for count in column]
            for column, shift in zip(zip(*counts, strict=True), (1.0, 0.0), strict=True))  # fmt: skip
    found = probability_of_improvement_interval(x, y)
    at = np.linspace(0, 1, 20_001)
    variance = np.zeros_like(at)
    for m, n in counts:  # Hanley and McNeil's Q1 and Q2, as they wrote it
        first, second = at / (2 - at), 2 * at**2 / (1 + at)
        half = (m + n) / 2 - 1  # with the mean for both counts, as Newcombe has it
        variance += (at * (1 - at) + half * (first - at**2) + half * (second - at**2)) / (m * n)
    inside = at[np.abs(at - found.estimate) <= 1.959964 * np.sqrt(variance) / len(counts)]
    np.testing.assert_allclose([found.low, found.high], [inside[0], inside[-1]], atol=2e-4)
    assert 0 <= found.low < found.high <= 1


def test_a_profiles_interval_is_wilsons():
    scores = [np.array([0.1, 0.2, 0.6, 0.9])] * 3
    share, low, high = performance_profile(scores, np.array([0.5]))
    wilson = stats.binomtest(6, 12).proportion_ci(method="wilson")
    np.testing.assert_allclose([*share, *low, *high], [0.5, *wilson])


def test_over_tasks_pairs_of_a_task_are_one_number():
    per_task = [np.array([0.0, 2.0]), np.array([2.0, 2.0, 2.0]), np.array([6.0])]
    found = over_tasks(per_task)
    expected = stats.ttest_1samp([1.0, 2.0, 6.0], 0)
    assert (found.mean, found.seeds) == (3.0, 3) and found.p == pytest.approx(expected.pvalue)
    np.testing.assert_allclose(found.bounds, expected.confidence_interval())


def test_a_profile_is_the_share_of_runs_above():
    scores = [np.array([0.1, 0.9]), np.array([0.5, 0.5, 0.5, 0.6])]
    share, low, high = performance_profile(scores, np.array([0.0, 0.5, 0.9]))
    np.testing.assert_allclose(share, [1, (0.5 + 0.25) / 2, 0])
    assert (low <= share).all() and (share <= high).all()


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 5)), min_size=1, max_size=7))
def test_the_expected_best_is_the_mean_over_all_subsets(trials):
    # Distinct by what they are chosen by: of equal ones, either may be taken.
    trials = [(choose + 0.01 * place, value) for place, (choose, value) in enumerate(trials)]
    by, values = np.array(trials).T
    found = expected_best(by, values)
    for n in range(1, len(trials) + 1):
        best = [max(chosen)[1] for chosen in itertools.combinations(trials, n)]
        assert found[n - 1] == pytest.approx(np.mean(best), abs=1e-9)


def test_many_trials_keep_their_weights():
    values = np.random.default_rng(0).normal(size=3000)
    found = expected_best(values, values)
    assert found[0] == pytest.approx(values.mean()) and found[-1] == values.max()
    assert (np.diff(found) >= -1e-12).all()
