"""Steps to a target that was set before."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from bpresearch import statistics
from bpresearch.statistics import Target


@pytest.fixture
def rising(made_up):
    """Accuracies that rise to 0.6 at a step that is known: 40 for SGD, 20, 30 and 40 for momentum's seeds."""
    results = made_up(schedules=("constant",), rates=(0.1, 1.0)).drop_dims("eval_step")
    steps = np.arange(0, 60, 10)
    momentum = results.optimizer.values == "momentum"
    reached = np.where(momentum, 20 + 10 * results.seed.values, 40)
    accuracy = np.where(steps >= reached[:, None], 0.6, 0.1) + 0.001 * results.seed.values[:, None]
    accuracy -= 0.05 * (results.lr.values == 1.0)[:, None]
    variables = {f"{part}_{kind}": (("run", "eval_step"), accuracy if kind == "accuracy" else 1 - accuracy)
                 for part in ("valid", "test") for kind in ("loss", "accuracy")}  # fmt: skip
    return results.merge(xr.Dataset(variables, {"eval_step": steps}))


def test_each_run_has_its_first_evaluation_at_the_target(rising):
    found = statistics.steps_to_target(rising, Target("accuracy", 0.5))
    assert {name: of.steps.tolist() for name, of in found.items()} == {
        "momentum": [20, 30, 40],
        "sgd": [40, 40, 40],
    }
    assert all(of.setting.values["lr"] == 0.1 for of in found.values())
    assert (found["momentum"].median, found["momentum"].reached) == (30, 3)
    assert found["sgd"].held == 40 and found["momentum"].held == 40  # at 30, one is at 0.1


def test_losses_fall_to_their_target(rising):
    found = statistics.steps_to_target(rising, Target("loss", 0.45))
    assert found["momentum"].steps.tolist() == [20, 30, 40]


def test_a_run_that_never_gets_there_is_the_slowest(rising):
    never = statistics.steps_to_target(rising, Target("accuracy", 0.9))["sgd"]
    assert np.isinf(never.steps).all() and np.isinf([never.median, never.held]).all() and not never.reached
    two = statistics.steps_to_target(rising, Target("accuracy", 0.6005))["momentum"]  # not the first seed
    assert two.steps.tolist() == [np.inf, 30, 40] and two.median == 40
    figures = statistics.target_figures(rising, Target("accuracy", 0.6005))
    assert figures["momentum.reached_target"] == pytest.approx(2 / 3)
    assert figures["momentum.steps_to_target"] == 40 and "momentum.steps_held" not in figures


def test_the_mean_is_there_from_the_step_on_at_which_a_one_sided_test_holds_to_the_end(rising):
    random = np.random.default_rng(0)
    noisy = rising.copy(deep=True)
    noisy["valid_accuracy"] = noisy.valid_accuracy + random.normal(0, 0.05, noisy.valid_accuracy.shape)
    for level in (0.01, 0.05, 0.2):
        for value in (0.3, 0.5, 0.55):
            found = statistics.steps_to_target(noisy, Target("accuracy", value, level))["sgd"]
            values = noisy.valid_accuracy.values[found.setting.runs]
            p = stats.ttest_1samp(values, value, axis=0, alternative="greater").pvalue
            expected = np.inf
            for step, holds in zip(noisy.eval_step.values[::-1], (p < level)[::-1], strict=True):
                if not holds:
                    break
                expected = step
            assert found.held == expected


def test_a_metric_that_is_not_measured_is_refused_by_name(rising):
    with pytest.raises(ValueError, match="target=f1: evaluations measure loss, accuracy"):
        statistics.steps_to_target(rising, Target("f1", 0.5))


def test_the_sentence_tells_who_gets_there(rising):
    text = statistics.reaching(rising, Target("accuracy", 0.6005))
    assert text == (
        "Target, a valid accuracy of 60.05 % (one-sided t test at 5 %): sgd: 2 of 3 runs, median 40 "
        "steps; momentum: 2 of 3 runs, median 40 steps."
    )


def test_profiles_are_shares_of_tasks():
    times = {"a": np.array([10.0, 20.0, np.inf]), "b": np.array([20.0, 10.0, np.inf])}
    found = statistics.time_profile(times, np.array([1.0, 1.99, 2.0]))
    np.testing.assert_allclose(found["a"], [1 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(found["b"], found["a"])
