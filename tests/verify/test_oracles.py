"""The oracles alone, on a function whose derivative is known: what they estimate, and how sure they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.verify.adjoint import adjoint_identity
from bpresearch.verify.complex_step import complex_step
from bpresearch.verify.directions import choose_directions
from bpresearch.verify.forward_mode import forward_mode
from bpresearch.verify.taylor import observed_order

A, B = np.linspace(-1, 1, 6).reshape(2, 3), np.array([0.5, -2.0])
GRADIENT = [np.cos(A), np.array([np.exp(0.5), np.exp(-2.0)])]


def value(point):
    return jnp.sum(jnp.sin(point[0])) + jnp.sum(jnp.exp(point[1]))


def outputs(point):
    return [jnp.sin(point[0]), jnp.exp(point[1])]


def backward(point, y_bar):
    return [y_bar[0] * jnp.cos(point[0]), y_bar[1] * jnp.exp(point[1])]


@pytest.mark.parametrize("oracle", [forward_mode, complex_step])
def test_estimate_in_every_coordinate(float64, oracle):
    point, gradient = [jnp.asarray(A), jnp.asarray(B)], [jnp.asarray(g) for g in GRADIENT]
    answer = oracle(value, point, gradient, choose_directions([6, 2]))
    right = np.concatenate([g.ravel() for g in GRADIENT])
    np.testing.assert_allclose(answer["estimate"], right, rtol=1e-15)
    np.testing.assert_allclose(answer["predicted"], right, rtol=1e-15)
    assert (answer["uncertainty"] <= 1e-14).all()


def test_complex_step_of_a_function_that_is_not_analytic_is_of_no_use(float64):
    absolute = lambda point: jnp.sum(jnp.abs(point[0]))  # noqa: E731
    answer = complex_step(absolute, [jnp.asarray(B)], [jnp.sign(jnp.asarray(B))], choose_directions([2]))
    assert np.isinf(answer["uncertainty"]).all()


@pytest.mark.parametrize(("factor", "agrees"), [(1.0, True), (1.001, False)])
def test_adjoint_identity(float64, factor, agrees):
    def scaled(point, y_bar):
        first, second = backward(point, y_bar)
        return [first, factor * second]

    point = [jnp.asarray(A), jnp.asarray(B)]
    directions = choose_directions([6, 2])
    answer = adjoint_identity(outputs, scaled, point, directions)
    apart = np.abs(answer["estimate"] - answer["predicted"])
    assert (apart[directions.of(0)] <= 10 * answer["uncertainty"][directions.of(0)]).all()
    assert (apart[directions.of(1)] <= 10 * answer["uncertainty"][directions.of(1)]).all() == agrees


@pytest.mark.parametrize(("slope", "order", "passed"), [(np.exp(1.0), 2, True), (1.01 * np.e, 1, False)])
def test_taylor_order(slope, order, passed):
    steps = 4.0 ** -np.arange(2, 10)
    found, verdict = observed_order(np.exp(1 + steps), np.exp(1.0), steps, slope, np.e, 2.2e-16)
    assert found == pytest.approx(order, abs=0.05)
    assert verdict is passed


def test_taylor_of_a_linear_function_leaves_nothing():
    steps = 4.0 ** -np.arange(2, 10)
    assert observed_order(3 * steps, 0.0, steps, 3.0, 3.0, 2.2e-16) == (np.inf, True)


def test_adjoint_identity_draws_another_cotangent_for_each_direction(float64):
    """A wrong part that the first cotangent does not see is seen by others."""
    point = [jnp.asarray(A)]
    answer = adjoint_identity(
        lambda p: [jnp.sum(p[0]) * jnp.ones(2)], lambda p, u: [jnp.full((2, 3), jnp.sum(u[0]))], point,
        choose_directions([6], every_coordinate_up_to=0),
    )  # fmt: skip
    assert len(np.unique(np.asarray(answer["estimate"]))) > 2
    assert jax.config.jax_enable_x64
