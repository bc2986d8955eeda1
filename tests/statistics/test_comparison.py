"""Comparisons under equal conditions: edges, budgets, strata, effective learning rates."""

import numpy as np
import pytest

from bpresearch import statistics


def test_an_edge_is_an_end_of_the_swept_range(made_up):
    best = statistics.best_settings(made_up(best=1.0))["sgd", "constant"]
    assert statistics.edges(made_up(best=1.0), best) == {"lr": "highest"}
    (warning, *_) = statistics.edge_warnings(made_up(best=1.0), [best])
    assert "sgd, constant" in warning and "lr 1 (highest)" in warning and "sweep further" in warning
    inside = made_up()
    assert statistics.edge_warnings(inside, list(statistics.best_settings(inside).values())) == []


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_one_value_is_no_range_and_zero_no_edge(made_up):
    one = made_up(rates=(0.1,))
    assert statistics.edges(one, statistics.best_settings(one)["momentum", "cosine"]) == {}
    zero = made_up(rates=(0.0, 0.1, 1.0))
    first = statistics.settings_of(zero)[0]
    assert first.values["lr"] == 0 and statistics.edges(zero, first) == {}


def test_any_hyper_parameter_may_lie_at_an_edge(made_up):
    results = made_up(optimizers=("momentum",), schedules=("cosine",), rates=(0.1,), seeds=3)
    results = results.assign_coords(momentum=("run", np.array([0.5, 0.9, 0.99])), seed=("run", [0, 0, 0]))
    best = statistics.best_settings(results)["momentum", "cosine"]
    assert statistics.edges(results, best) == {"momentum": "highest"}


def test_momentum_multiplies_the_learning_rate(made_up):
    rate = statistics.effective_learning_rate
    assert rate({"optimizer": "momentum", "lr": 0.1, "momentum": 0.9}) == pytest.approx(1.0)
    assert rate({"optimizer": "sgd", "lr": 0.1}) == 0.1
    assert np.isnan(rate({"optimizer": "adam", "lr": 0.1, "b1": 0.9}))


def test_scores_run_from_untrained_to_best(made_up):
    results = made_up()
    results.test_accuracy[:, 0] = 0.1
    scores = statistics.normalised_scores(results)
    assert [len(strata) for strata in scores.values()] == [2, 2]
    assert np.mean(scores["momentum"][0]) == pytest.approx(1)
    expected = (np.array([0.5, 0.51, 0.52]) - 0.1) / (0.61 - 0.1)
    np.testing.assert_allclose(scores["sgd"][1], expected)


def test_losses_are_scored_like_accuracies(made_up):
    results = made_up(accuracy=False)
    results.test_loss[:, 0] = 2.0
    scores = statistics.normalised_scores(results)
    assert np.mean(scores["momentum"][0]) == pytest.approx(1)
    assert np.mean(scores["sgd"][0]) < 1


def test_runs_that_diverged_score_zero(made_up):
    results = made_up(diverged=lambda optimizer, rate, seed: optimizer == "sgd" and seed == 0)
    results.test_accuracy[:, 0] = 0.1
    assert statistics.normalised_scores(results)["sgd"][0][0] == 0


def test_several_sweeps_add_their_strata(made_up):
    first, second = made_up(), made_up(optimizers=("sgd", "momentum", "nesterov"))
    scores = statistics.several([first, second])
    assert list(scores) == ["sgd", "momentum"] and [len(s) for s in scores.values()] == [4, 4]


def test_schedules_are_compared_over_optimizers(made_up):
    scores = statistics.normalised_scores(made_up(), by="schedule", stratum="optimizer")
    assert list(scores) == ["constant", "cosine"] and len(scores["cosine"]) == 2


def test_budget_curves_run_from_the_mean_to_the_best(made_up):
    curves = statistics.budget_curves(made_up())
    assert list(curves) == ["sgd", "momentum"]
    curve = curves["momentum"]
    assert curve.trials.tolist() == [1, 2, 3, 4, 5, 6]  # three rates, two schedules
    assert curve.mean[-1] == pytest.approx(0.61)
    rates = np.mean([0.6 - 0.1, 0.6, 0.6 - 0.1]) + 0.01
    assert curve.mean[0] == pytest.approx(rates)
    assert curve.half_width[0] == pytest.approx(
        statistics.mean_and_interval(np.array([0, 0.01, 0.02])).half_width
    )


def test_a_setting_that_diverged_is_worth_an_untrained_model(made_up):
    results = made_up(schedules=("constant",), diverged=lambda optimizer, rate, seed: rate == 1.0)
    results.test_accuracy[:, 0] = 0.1
    curve = statistics.budget_curves(results)["sgd"]
    assert curve.mean[0] == pytest.approx((0.1 + 0.41 + 0.51) / 3)
    assert curve.mean[-1] == pytest.approx(0.51)


def test_differences_are_paired_and_unpaired(made_up):
    first, (found,) = statistics.differences(made_up())
    assert first.values["optimizer"] == "momentum" and found.name.startswith("sgd")
    assert found.paired.mean == pytest.approx(0.1) and found.paired.half_width == pytest.approx(0, abs=1e-9)
    assert found.unpaired.half_width > 0.01
    assert found.improvement.estimate == 1.0


def test_other_seeds_cannot_be_paired(made_up):
    results = made_up()
    results["seed"] = ("run", results.seed.values + 10 * (results.optimizer.values == "sgd"))
    _, (found,) = statistics.differences(results)
    assert np.isnan(found.paired.half_width) and np.isfinite(found.unpaired.half_width)


def test_losing_to_a_special_case_means_too_little_tuning(made_up):
    better = made_up()
    assert statistics.budget_warnings(better) == []
    worse = made_up(optimizers=("momentum", "sgd"))  # here the second is the better one
    noise = np.random.default_rng(0).normal(0, 1e-3, worse.sizes["run"])
    worse["test_accuracy"] = worse.test_accuracy + noise[:, None]
    (warning,) = statistics.budget_warnings(worse)
    assert warning.startswith("momentum came out worse than sgd, which it contains")


def test_axes_are_what_differs(made_up):
    assert statistics.axes_of(made_up()) == ["optimizer", "schedule", "lr"]
    assert statistics.axes_of(made_up(optimizers=("sgd",), schedules=("cosine",), rates=(0.1,))) == []


def test_where_all_of_an_optimizers_runs_were_pruned_nothing_is_compared(made_up):
    results = made_up()
    pruned = (results.optimizer == "momentum") & (results.schedule == "cosine")
    for name in ("valid_accuracy", "test_accuracy"):
        results[name] = results[name].where(~pruned)
    results["pruned_at"] = ("run", np.where(pruned, 5, -1))
    scores = statistics.normalised_scores(results)
    assert [len(strata) for strata in scores.values()] == [1, 1]  # the constant schedule's
    best = statistics.best_settings(results)["momentum", "cosine"]
    assert not best.scored and statistics.edges(results, best) == {}
