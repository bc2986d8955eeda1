"""Several tuning studies of one comparison: their luck is in the interval."""

import numpy as np
import pytest
from scipy import stats

from bpresearch import statistics


@pytest.fixture
def studies(made_up):
    """Five studies; by how much the test accuracy of each optimizer is off in each is known."""
    found = []
    for sgd, momentum in zip((0.0, 0.04, -0.02, 0.01, 0.0), (0.0, 0.02, 0.0, 0.01, 0.04), strict=True):
        results = made_up(schedules=("constant",))
        shift = np.where(results.optimizer == "sgd", sgd, momentum)
        results["test_accuracy"] = results.test_accuracy + shift[:, None]
        found.append(results)
    return found


def test_an_optimizer_has_one_number_a_study(studies):
    momentum, sgd = statistics.over_studies(studies)
    assert (momentum.name, sgd.name) == ("momentum", "sgd")
    np.testing.assert_allclose(sgd.values, 0.51 + np.array([0, 0.04, -0.02, 0.01, 0]))
    assert sgd.median == pytest.approx(0.51) and momentum.median == pytest.approx(0.62)
    expected = stats.ttest_1samp(sgd.values, 0).confidence_interval()
    np.testing.assert_allclose(sgd.mean.bounds, expected)
    assert sgd.settings == ["sgd, constant, learning rate 0.1"] * 5
    figures = statistics.studies_figures(studies)
    assert figures["momentum.studies_median"] == pytest.approx(0.62)


def test_differences_are_within_a_study_and_tested_over_studies(studies):
    text = statistics.studies_verdict(studies)
    values = {one.name: one.values for one in statistics.over_studies(studies)}
    p = stats.ttest_rel(values["momentum"], values["sgd"]).pvalue
    assert p < 0.001 and "p < 0.001" in text
    assert text.startswith(
        "Over 5 independent tuning studies momentum has the best median, a test accuracy of"
    )
    assert "It is better than sgd (10.8 ± 2.8 points" in text and "over studies, level 5 %." in text


def test_two_studies_that_do_not_agree_tell_nothing_apart(studies):
    for number, results in enumerate(studies[:2]):
        shift = (0.3 if number else -0.15) * (results.optimizer == "sgd")
        results["test_accuracy"] = results.test_accuracy + shift
    assert "cannot be told apart from" in statistics.studies_verdict(studies[:2])
