"""Importances against variances in closed form."""

import numpy as np
import pytest

from bpresearch import statistics

SCHEDULES = ("a", "b", "c", "d", "e", "f")
RATES = tuple(10.0 ** np.arange(-5, 1))


def scored(made_up, score):
    """Results of six schedules and six rates; the score is a function of their places."""
    results = made_up(optimizers=("sgd",), schedules=SCHEDULES, rates=RATES, seeds=1)
    schedule = np.array([SCHEDULES.index(name) for name in results.schedule.values])
    rate = np.round(np.log10(results.lr.values)) + 5
    values = results.valid_accuracy.values.copy()
    values[:, -1] = score(schedule, rate)
    return results.assign(valid_accuracy=(("run", "eval_step"), values))


def test_of_a_sum_each_part_explains_its_own_variance(made_up):
    """Of 2 x + y with x and y alike, 4/5 and 1/5."""
    found = statistics.importance(scored(made_up, lambda x, y: 2 * x + y))["sgd"]
    assert list(found) == ["schedule", "lr"]
    np.testing.assert_allclose(list(found.values()), [0.8, 0.2])


def test_what_lies_in_interactions_is_nobodys(made_up):
    found = statistics.importance(scored(made_up, lambda x, y: (x - 2.5) * (y - 2.5)))["sgd"]
    np.testing.assert_allclose(list(found.values()), 0, atol=1e-12)


def test_drawn_settings_are_explained_by_a_forest(made_up):
    pytest.importorskip("optuna")
    generator = np.random.default_rng(0)
    results = made_up(optimizers=("sgd",), schedules=("a",), rates=tuple(range(1, 61)), seeds=1)
    x, y = generator.random((2, 60))
    values = results.valid_accuracy.values.copy()
    values[:, -1] = 2 * x + y
    results = results.assign_coords(lr=("run", 10.0 ** (2 * x)), momentum=("run", y))
    results = results.assign(valid_accuracy=(("run", "eval_step"), values))
    found = statistics.importance(results)["sgd"]
    assert found["lr"] == pytest.approx(0.8, abs=0.12) and found["momentum"] == pytest.approx(0.2, abs=0.12)
    assert statistics.importance(results.isel(run=range(15))) == {}


def test_diverged_settings_count_as_the_worst_and_small_sweeps_have_none(made_up):
    results = scored(made_up, lambda x, y: x + 0 * y)
    results["diverged_at"] = ("run", np.where(results.lr.values > 0.5, 3, -1))  # the last rate: counts as 0
    found = statistics.importance(results)["sgd"]
    means = np.array([2.5] * 5 + [0.0])
    every = np.concatenate([np.tile(np.arange(6.0), 5), np.zeros(6)])
    assert found["lr"] == pytest.approx(np.var(means) / np.var(every))
    assert statistics.importance(made_up(schedules=("a",))) == {}
    assert statistics.importance(scored(made_up, lambda x, y: 0 * x + 1)) == {}
