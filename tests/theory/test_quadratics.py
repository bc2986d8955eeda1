"""Rates, edges and noise of gradient methods on quadratics, measured against closed forms."""

import numpy as np
import pytest

from bpresearch import optim
from bpresearch.theory import quadratics


@pytest.mark.parametrize("condition", [10.0, 300.0])
def test_measured_rates_are_the_closed_forms(condition):
    spectrum = np.geomspace(1.0, condition, 6)
    for method in quadratics.optimal_methods(1.0, condition):
        found = quadratics.measured_rate(method, spectrum)
        # One per cent of the logarithm: of the number of steps that a given accuracy takes.
        assert np.log(found) == pytest.approx(np.log(method.rate), rel=0.01), method.name


def test_no_other_setting_beats_the_optimal_one():
    spectrum = np.geomspace(1.0, 30.0, 6)
    for method in quadratics.optimal_methods(1.0, 30.0):
        if method.name == "Nesterov, 1/L":
            continue  # the best at this learning rate, not of all
        for factor in (0.97, 1.03):
            other = method._replace(learning_rate=method.learning_rate * factor)
            assert quadratics.measured_rate(other, spectrum) > method.rate, method.name


@pytest.mark.parametrize("optimizer", [optim.sgd, optim.momentum, optim.nesterov])
@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_edge_of_stability_by_bisection(optimizer, momentum):
    found = quadratics.edge_by_bisection(optimizer, np.geomspace(0.1, 7.0, 4), momentum, steps=1000)
    assert found == pytest.approx(quadratics.edge(optimizer, 7.0, momentum), rel=0.01)


def test_noisy_quadratic_model_against_simulation():
    spectrum, noise = np.array([0.1, 1.0]), np.array([0.5, 2.0])
    sgd = quadratics.Noisy(spectrum, noise, 0.4, 8, start=np.array([1.0, 3.0]), steps=30)
    simulated = quadratics.simulated_squares(sgd, runs=100_000)
    np.testing.assert_allclose(simulated, quadratics.expected_squares(sgd), rtol=0.02)
    settled = quadratics.expected_squares(sgd._replace(steps=5000))[-1]
    np.testing.assert_allclose(settled, 0.4 * noise / (8 * spectrum * (2 - 0.4 * spectrum)), rtol=1e-9)
