"""The oracles that are exact to rounding, on a function whose derivative is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.oracles import adjoint, autodiff, complex_step, forward_mode
from bpresearch.verify.oracles.taylor import observed_order
from bpresearch.verify.verdict import decide

A, B = np.linspace(-1, 1, 6).reshape(2, 3), np.array([0.5, -2.0])


def outputs(point):
    return [jnp.sin(point[0]), jnp.exp(point[1])]


def backward(point, y_bar, factor=1.0):
    return [y_bar[0] * jnp.cos(point[0]), factor * y_bar[1] * jnp.exp(point[1])]


@pytest.mark.parametrize("oracle", [forward_mode, complex_step])
def test_estimate_in_every_coordinate(float64, question, estimated, oracle):
    made, _ = estimated(oracle, question(outputs, backward, [A, B]))
    for estimates, right in zip(made, (np.cos(A), np.exp(B)), strict=True):
        np.testing.assert_allclose(estimates.values, right.ravel(), rtol=1e-15)
        np.testing.assert_allclose(estimates.found, right.ravel(), rtol=1e-15)


@pytest.mark.parametrize("oracle", [autodiff, forward_mode, adjoint, complex_step])
@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (1 + 1e-6, False)])
def test_every_oracle_finds_the_smallest_fault_that_is_claimed(
    float64, question, estimated, oracle, factor, right
):
    asked = question(outputs, lambda point, y_bar: backward(point, y_bar, factor), [A, B])
    made, _ = estimated(oracle, asked)
    verdicts: dict[str, list] = {}
    for estimates in made:
        verdicts.setdefault(estimates.path, []).append(decide(estimates).row.passed)
    assert all(verdicts["arg0"]) and all(verdicts["arg1"]) is right


def test_complex_step_is_silent_at_a_kink_on_either_side(float64, question, estimated):
    absolute = lambda point: [jnp.abs(point[0]) + jnp.maximum(point[0], 2 * point[0])]  # noqa: E731
    asked = question(absolute, lambda point, y_bar: [y_bar[0]], [np.array([0.0, -1.0])])
    (estimates,), _ = estimated(complex_step, asked)
    assert np.isinf(estimates.uncertainty).any()


def test_the_adjoint_identity_draws_another_cotangent_for_each_direction(float64, question, estimated):
    """A wrong part that the first cotangent does not see is seen by others."""
    asked = question(
        lambda point: [jnp.sum(point[0]) * jnp.ones(2)],
        lambda point, u: [jnp.full((2, 3), jnp.sum(u[0]))],
        [A],
        every=0,
    )
    (estimates,), _ = estimated(adjoint, asked)
    assert len(np.unique(estimates.values)) > 2


def test_without_a_twin_nothing_independent_is_compared(question, estimated):
    made, notes = estimated(autodiff, question(outputs, backward, [A, B], twin=False))
    assert not made and "no custom rule inside" in notes[0]


@pytest.mark.parametrize(("slope", "order"), [(np.exp(1.0), 2), (1.01 * np.e, 1)])
def test_taylor_order(slope, order):
    steps = 4.0 ** -np.arange(2, 10)
    found = observed_order(np.exp(1 + steps), np.exp(1.0), steps, slope, np.e, 2.2e-16)
    assert found == pytest.approx(order, abs=0.05)


def test_taylor_of_a_linear_function_leaves_nothing():
    steps = 4.0 ** -np.arange(2, 10)
    assert observed_order(3 * steps, 0.0, steps, 3.0, 3.0, 2.2e-16) == np.inf


def test_taylor_under_much_rounding_sees_no_order():
    steps = 4.0 ** -np.arange(2, 10)
    assert np.isnan(observed_order(np.exp(1 + steps), np.e, steps, 1.01 * np.e, np.e, 2.2e-16, noise=1.0))
