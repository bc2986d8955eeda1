"""The critical batch: the best step against simulation, steps on a quadratic against the recursion."""

import numpy as np
import pytest

from bpresearch.theory import averages, batches

H, V = np.array([1.0, 0.2]), np.array([3.0, 2.0])


def test_the_best_step_decreases_the_loss_as_much_as_simulated_ones():
    random, g = np.random.default_rng(0), np.array([0.7, -0.4])
    noisy = g + np.sqrt(V / 5) * random.normal(size=(100_000, 2))
    rates = np.linspace(0.01, 1, 100)
    decreases = rates * np.mean(noisy @ g) - rates**2 / 2 * np.mean(noisy**2 @ H)
    assert batches.best_decrease(g, H, V, 5.0) == pytest.approx(decreases.max(), rel=0.02)


def test_steps_are_those_of_the_recursion():
    rate, target, batch = 0.1, 0.3, 8.0
    steps = batches.steps_to(target, H, V, batch, np.array([rate]))

    def loss(count):
        squares = averages.expected_squares(H, V / batch, 1.0, np.full(count, rate), averages.last())
        return float(H @ squares) / 2

    assert loss(int(np.floor(steps))) >= target >= loss(int(np.ceil(steps)))
    assert batches.steps_to(target, H, V, batch, np.array([0.05, rate, 0.2])) <= steps
    assert batches.steps_to(1e-6, H, V, batch, np.array([rate])) == np.inf


def test_a_rate_at_which_some_direction_grows_does_not_count():
    h, v = np.array([1.0, 0.2]), np.array([3.0, 0.1])
    # The first direction's limit is 0.9 / 0.5 = 1.8, above its start of 1.
    assert batches.steps_to(0.6, h, v, 5.0, np.array([1.5])) == np.inf
    assert np.isfinite(batches.steps_to(0.6, h, v, 5.0, np.array([1.0])))


def test_small_batches_cost_steps_and_large_ones_examples():
    sizes, h = np.array([1.0, 4, 16, 64, 256, 1024]), 1 / np.arange(1.0, 51)
    rates = np.geomspace(1e-4, 1.9, 200)
    steps = np.array([batches.steps_to(0.3, h, 5 * h, size, rates) for size in sizes])
    found = batches.fit(sizes, steps)
    assert steps[0] / steps[1] == pytest.approx(4, rel=0.1) and steps[-2] / steps[-1] < 2
    np.testing.assert_allclose(found.steps(sizes), steps, rtol=0.25)


def test_a_hyperbola_takes_two_points():
    with pytest.raises(ValueError, match="at least two"):
        batches.fit(np.ones(1), np.ones(1))
