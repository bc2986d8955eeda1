"""Which settings are best, and what is said about them."""

import numpy as np
import pytest
import xarray as xr

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
    of_sgd = "sgd, constant, learning rate 0.1 (10.0 ± 0.0 points, p < 0.001)"  # seeds are paired
    assert f"It is better than {of_sgd}. Student's t test within seeds, level 5 %." in text


def test_a_difference_within_its_interval_may_be_chance(made_up):
    results = made_up()
    noise = np.random.default_rng(0).normal(0, 0.3, results.sizes["run"])
    results["test_accuracy"] = results.test_accuracy + noise[:, None]
    text = statistics.verdict(results)
    assert "It cannot be told apart from sgd, constant" in text and "better" not in text


def test_the_best_by_validation_may_be_worse_on_the_test_part(made_up):
    results = made_up(schedules=("constant",))
    momentum = results.optimizer == "momentum"
    results["test_accuracy"] = results.test_accuracy - 0.15 * momentum
    text = statistics.verdict(results)
    assert text.startswith("Best: momentum") and "better" not in text
    assert "It is worse on the test part than sgd, constant, learning rate 0.1 (5.0 ± 0.0 points" in text
    results["test_accuracy"] = results.test_accuracy.where(~momentum, results.test_accuracy.values + 0.05)
    text = statistics.verdict(results.round(2))
    assert "cannot be told apart from sgd, constant, learning rate 0.1 (exactly as good)" in text


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


@pytest.fixture
def confirmed(made_up):
    """Tuning runs, and ten fresh runs of each best setting, in which SGD does better than momentum."""
    tuned, fresh = made_up(schedules=("constant",)), made_up(schedules=("constant",), rates=(0.1,), seeds=10)
    fresh = fresh.assign_coords(seed=fresh.seed + 100, run=fresh.run + 100)
    sgd = fresh.optimizer == "sgd"
    fresh["test_accuracy"] = fresh.test_accuracy + 0.3 * sgd
    fresh["test_accuracy"][:, -1] += np.random.default_rng(0).normal(0, 0.01, 20)
    parts = [tuned.assign(fresh=("run", np.zeros(18, bool))), fresh.assign(fresh=("run", np.ones(20, bool)))]
    return xr.concat(parts, "run", data_vars="minimal", coords="minimal", compat="override", join="override")


def test_chosen_by_tuning_runs_and_reported_by_fresh_ones(confirmed):
    best = statistics.best_settings(confirmed)
    assert {s.values["lr"] for s in best.values()} == {0.1} and all(s.fresh for s in best.values())
    assert all(len(s.tuning) == 3 and s.seeds.tolist() == list(range(100, 110)) for s in best.values())
    np.testing.assert_allclose(best["momentum", "constant"].chosen_by, [0.6, 0.61, 0.62])
    first, second = statistics.ranking(confirmed)  # by what the fresh runs reach
    assert (first.values["optimizer"], second.values["optimizer"]) == ("sgd", "momentum")
    text = statistics.verdict(confirmed)
    assert text.startswith("Best: sgd, constant, learning rate 0.1 with a test accuracy of 84.")
    how = "tuned over 3 settings by valid accuracy on 3 seeds; all numbers are of 10 fresh seeds of its best"
    assert how in text and "It is better than momentum 0.9, constant" in text
    figures = statistics.figures(confirmed)
    assert figures["sgd.constant.test_accuracy"] == pytest.approx(first.test.mean())
    assert (figures["sgd.constant.seeds"], figures["sgd.constant.fresh"]) == (10, 1)


def test_without_fresh_runs_the_verdict_says_that_its_means_are_too_good(made_up):
    text = statistics.verdict(made_up())
    assert "is reported by the runs it was tuned on: means are too good" in text
    text = statistics.verdict(made_up(rates=(0.1,), schedules=("cosine",)))  # nothing was chosen
    assert "too good" not in text and "Each optimizer has one setting, trained with 3 seeds." in text


def test_many_comparisons_are_corrected_and_it_is_said(made_up):
    results = made_up(optimizers=("sgd", "momentum", "nesterov"))
    results["test_accuracy"] = results.test_accuracy + np.random.default_rng(0).normal(
        0, 0.02, (results.sizes["run"], 1)
    )
    pairs = statistics.pairs(results)
    assert len(pairs) == 3 and all(pair.p >= pair.gap.p for pair in pairs)
    np.testing.assert_allclose(
        [pair.p for pair in pairs], statistics.holm(np.array([p.gap.p for p in pairs]))
    )
    assert "with Holm's correction for 3 comparisons" in statistics.verdict(results)


def test_unequal_budgets_are_told(made_up):
    results = made_up()
    some = ~((results.optimizer == "sgd") & (results.lr > 0.05)).values
    text = statistics.verdict(results.isel(run=np.flatnonzero(some)))
    assert "tuned over 2 (sgd) and 6 (momentum) settings" in text


def test_the_protocol_is_a_paragraph_that_tells_all(confirmed):
    text = statistics.protocol(confirmed)
    for words in (
        "We compared sgd and momentum for mlp on toy, 40 steps of batch size 10.",
        "tuned over 3 settings (lr 0.01, 0.1 and 1) by the final accuracy on examples held out from training",
        "the mean over 3 seeds", "trained again with 10 fresh seeds", "Student's 95 % interval",
        "two-sided: Student's t test within seeds, level 5 %.",
    ):  # fmt: skip
        assert words in text, (words, text)
    assert "are also those that are reported" in statistics.protocol(statistics.tuning(confirmed))
    drawn = statistics.tuning(confirmed)
    drawn["lr"] = ("run", np.geomspace(0.001, 1, 18))
    assert "(lr 0.001 to 1)" in statistics.protocol(drawn)


def test_budget_curves_are_of_the_tuning_runs(confirmed):
    found = statistics.budget_curves(confirmed)["sgd"]
    np.testing.assert_allclose(found.mean, statistics.budget_curves(statistics.tuning(confirmed))["sgd"].mean)
