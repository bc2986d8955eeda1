"""A small part of `scripts/check_statistics.py`: what is said of comparisons whose truth is known."""

import math

import numpy as np
import pytest

from bpresearch.statistics import resampling, simulation
from bpresearch.statistics.simulation import Truth

COUNT = 300


@pytest.mark.parametrize("truth", [Truth(settings=(12, 3)), Truth(difference=1.0)])
def test_the_mean_of_fresh_runs_is_right_and_a_plain_test_finds_no_more(truth):
    found = simulation.outcome(np.random.default_rng(1), truth, COUNT)
    assert abs(found.error) < 0.05 and 0.5 < found.error_untold < 1
    assert found.claimed == found.claimed_plainly
    assert 0.01 < found.claimed < 0.09 if truth.difference == 0 else found.claimed > 0.5
    assert min(found.covered, found.mean_covered) > 0.91


def test_intervals_are_offered_where_they_cover(monkeypatch):
    monkeypatch.setattr(resampling, "RESAMPLES", 400)
    for seeds in (3, 5):
        found = simulation.covered(np.random.default_rng(2), seeds, COUNT)
        assert math.isnan(found["interquartile_mean"]) == (seeds == 3)
        offered = [value for value in found.values() if not math.isnan(value)]
        assert len(offered) >= 6 and min(offered) > 0.9


def test_fresh_runs_are_of_the_setting_that_is_the_best_by_tuning():
    results = simulation.results_of(np.random.default_rng(3), Truth(settings=(4, 2), fresh=5))
    assert results.sizes["run"] == 6 * 3 + 2 * 5
    for optimizer in (0, 1):
        mine = results.isel(run=np.flatnonzero(results.optimizer == optimizer))
        fresh = mine.fresh.values
        means = mine.isel(run=np.flatnonzero(~fresh)).test_loss[:, -1].groupby("lr").mean()
        (rate,) = set(mine.lr.values[fresh].tolist())
        assert rate == means.lr.values[means.values.argmin()]
