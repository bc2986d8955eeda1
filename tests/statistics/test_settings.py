"""Which settings are best, and what is said about them."""

import numpy as np
import pytest

from bpresearch import statistics
from bpresearch.sweep.choosing import Choice


def test_the_best_learning_rate_is_found_for_every_optimizer_and_schedule(made_up):
    best = statistics.best_settings(made_up())
    assert list(best) == [(o, s) for o in ("sgd", "momentum") for s in ("constant", "cosine")]
    assert {setting.values["lr"] for setting in best.values()} == {0.1}
    assert "momentum" not in best["sgd", "cosine"].values
    np.testing.assert_allclose(best["momentum", "cosine"].test, [0.6, 0.61, 0.62])


def test_settings_are_chosen_by_validation_and_judged_by_test(made_up):
    results = made_up()
    results["test_accuracy"] = 1 - results.valid_accuracy  # the worse on validation, the better on test
    best = statistics.best_settings(results)["sgd", "constant"]
    assert best.values["lr"] == 0.1
    np.testing.assert_allclose(best.test, [0.5, 0.49, 0.48])
    assert statistics.chosen_by(results).variable == "valid_accuracy"
    assert statistics.chosen_by(made_up(valid=False)).variable == "test_accuracy"


def test_only_the_accuracy_is_shown_in_per_cent(made_up):
    for name, shown in (("accuracy", "61.2 %"), ("test_accuracy", "0.6123")):
        results = made_up().rename({f"{p}_accuracy": f"{p}_{name}" for p in ("valid", "test")})
        results.attrs = {"chosen_by": f"valid_{name}", "higher_is_better": True}
        assert Choice(f"valid_{name}", True).format(0.61234) == shown
        metric = statistics.metric_of(results)
        assert (metric.variable, metric.percent) == (f"test_{name}", name == "accuracy")


def test_losses_are_better_when_lower(made_up):
    results = made_up(accuracy=False)
    assert statistics.metric_of(results).variable == "test_loss"
    assert {s.values["lr"] for s in statistics.best_settings(results).values()} == {0.1}


def test_a_setting_with_a_diverged_run_comes_after_all_without(made_up):
    results = made_up(diverged=lambda optimizer, rate, seed: rate == 0.1 and seed == 0)
    best = statistics.best_settings(results)["sgd", "constant"]
    assert best.values["lr"] in (0.01, 1.0)
    settings = statistics.settings_of(results)
    assert [s.diverged for s in settings if s.values["lr"] == 0.1] == [1] * 4


def test_a_clear_difference_is_called_so(made_up):
    text = statistics.verdict(made_up())
    assert text.startswith(
        "Best: momentum 0.9, constant, learning rate 0.1 with a test accuracy of 61.0 ± 2.5 %"
    )
    assert "10.0 ± 0.0 points better than sgd, constant" in text  # seeds are paired
    assert "more than chance explains" in text


def test_a_difference_within_its_interval_may_be_chance(made_up):
    results = made_up()
    noise = np.random.default_rng(0).normal(0, 0.3, results.sizes["run"])
    results["test_accuracy"] = results.test_accuracy + noise[:, None]
    assert "may be chance" in statistics.verdict(results)


def test_the_best_by_validation_may_be_worse_on_the_test_part(made_up):
    results = made_up(schedules=("constant",))
    momentum = results.optimizer == "momentum"
    results["test_accuracy"] = results.test_accuracy - 0.15 * momentum
    text = statistics.verdict(results)
    assert text.startswith("Best: momentum") and "better" not in text
    assert "On the test part that is 5.0 ± 0.0 points worse than sgd" in text and "more than chance" in text
    results["test_accuracy"] = results.test_accuracy.where(~momentum, results.test_accuracy.values + 0.05)
    assert "sgd, constant, learning rate 0.1 does" in statistics.verdict(results.round(2))


def test_one_seed_claims_no_interval(made_up):
    text = statistics.verdict(made_up(seeds=1))
    assert "±" not in text and "more seeds would tell" in text


def test_one_optimizer_is_compared_with_nobody(made_up):
    assert "better than" not in statistics.verdict(made_up(optimizers=("sgd",)))


def test_when_every_run_diverged_it_says_so(made_up):
    assert "Every run diverged" in statistics.verdict(made_up(diverged=lambda *run: True))


def test_figures_are_flat_and_finite(made_up):
    figures = statistics.figures(made_up(diverged=lambda o, rate, s: rate == 1.0))
    assert figures["momentum.cosine.lr"] == 0.1
    assert figures["momentum.cosine.test_accuracy"] == pytest.approx(0.61)
    assert figures["sgd.constant.diverged"] == pytest.approx(1 / 3)
    assert all(np.isfinite(value) for value in figures.values())


def test_a_pruned_run_did_not_diverge_and_its_setting_comes_last(made_up):
    results = made_up(seeds=2)
    pruned = (results.optimizer == "momentum") & (results.lr == 0.1)
    for name in ("valid_accuracy", "test_accuracy", "valid_loss", "test_loss"):
        results[name] = results[name].where(~pruned)
    results["pruned_at"] = ("run", np.where(pruned, 5, -1))
    found = statistics.settings_of(results)
    (one,) = [s for s in found if s.values["optimizer"] == "momentum" and s.values["lr"] == 0.1][:1]
    assert (one.complete, one.diverged) == (False, 0)
    best = statistics.best_settings(results)[("momentum", "constant")]
    assert best.values["lr"] != 0.1 and best.complete
    assert {s.pruned for s in found if s.values["lr"] == 0.1} == {0, 2}


def test_an_accuracys_interval_stays_within_0_and_100_and_a_differences_does_not():
    accuracy = statistics.Metric("test_accuracy", "test accuracy (%)", True, True)
    near = statistics.Interval(0.995, 0.0123, 3)
    assert accuracy.format(near) == "99.5 (98.3 to 100.0)"
    assert accuracy.format(near, difference=True) == "99.5 ± 1.2"
    assert accuracy.format(statistics.Interval(0.01, 0.02, 3)) == "1.0 (0.0 to 3.0)"
    assert accuracy.format(statistics.Interval(0.9, 0.02, 3)) == "90.0 ± 2.0"
    loss = statistics.Metric("test_loss", "test loss", False, False)
    assert loss.format(statistics.Interval(1.5, 2.0, 3)) == "1.500 ± 2.000"
