"""Sharpness and the decrease of the loss, against models whose Hessian is known."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import data, models, optim
from bpresearch.theory import quadratics, sharpness

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 3)).astype(np.float32), RNG.normal(size=(20, 2)).astype(np.float32)
# A linear model with squared error is a quadratic with Hessian 2 X^T X / (examples outputs), bias included.
WITH_BIAS = np.concatenate([X, np.ones((20, 1))], axis=1)
EIGENVALUES = np.linalg.eigvalsh(WITH_BIAS.T @ WITH_BIAS) * 2 / Y.size
SQUARED = optax.losses.squared_error


@pytest.fixture
def linear():
    return models.linear((3,), 2, rngs=nnx.Rngs(0))


def test_the_sharpness_of_a_quadratic_is_its_largest_eigenvalue(linear):
    optimizer = optim.momentum(0.1, 0.5)
    found = sharpness.full_batch(linear, SQUARED, X, Y, optimizer, steps=20, every=10, iterations=60)
    np.testing.assert_allclose(found.sharpness, EIGENVALUES[-1], rtol=1e-4)
    assert found.steps.tolist() == [10, 20] and found.loss.shape == (20,)
    assert found.loss[-1] < found.loss[0]
    assert found.settled == pytest.approx(EIGENVALUES[-1], rel=1e-4)


def test_a_step_on_a_quadratic_does_what_slope_and_curvature_say(linear):
    rates = np.array([0.01, 0.1, 1.0])
    predicted, observed, curvature = sharpness.decrease(linear, SQUARED, X, Y, rates)
    assert EIGENVALUES[0] <= curvature <= EIGENVALUES[-1]
    np.testing.assert_allclose(observed / predicted, 1 - rates * curvature / 2, atol=1e-3)


def test_a_small_network_settles_at_the_edge_and_below_it_elsewhere():
    digits = data.load("digits")
    x, y = digits.x[:60].reshape(60, -1), np.eye(10, dtype=np.float32)[digits.y[:60]]
    model = models.mlp((64,), 10, widths=(16, 16), activation=nnx.tanh, rngs=nnx.Rngs(1))
    for optimizer, momentum, threshold, low, high in (
        (optim.sgd, {}, 4.0, 0.97, 1.03),
        (optim.momentum, {"momentum": 0.9}, 6.0, 0.1, 0.5),
    ):
        rate = quadratics.edge(optimizer, threshold, 0.9)
        setting = optimizer(rate, **momentum)
        found = sharpness.full_batch(model, SQUARED, x, y, setting, steps=2500, every=50)
        assert low < found.settled / threshold < high, optimizer.__name__


def test_a_preconditioner_stretches_the_curvature(linear):
    optimizer = optim.sgd(0.1)
    found = sharpness.full_batch(
        linear, SQUARED, X, Y, optimizer, steps=1, every=1, iterations=60,
        preconditioner=lambda state: jnp.full(8, 4.0),
    )  # fmt: skip
    assert found.sharpness[0] == pytest.approx(EIGENVALUES[-1] / 4, rel=1e-4)


def test_adams_preconditioner_makes_its_first_step():
    g, adam = jnp.array([0.5, -2.0, 1e-3]), optax.adam(0.1)
    updates, state = adam.update(g, adam.init(g))
    first_average = (1 - 0.9) * g
    np.testing.assert_allclose(
        updates, -0.1 * first_average / sharpness.adam_preconditioner(state), rtol=1e-5
    )


def test_a_small_network_settles_at_adams_edge():
    digits = data.load("digits")
    x, y = digits.x[:60].reshape(60, -1), np.eye(10, dtype=np.float32)[digits.y[:60]]
    model = models.mlp((64,), 10, widths=(16, 16), activation=nnx.tanh, rngs=nnx.Rngs(1))
    found = sharpness.full_batch(
        model, SQUARED, x, y, optax.adam(0.01, b1=0.5), steps=600, every=20,
        preconditioner=lambda state: sharpness.adam_preconditioner(state, 0.5),
    )  # fmt: skip
    assert found.settled / sharpness.adaptive_edge(0.01, 0.5) == pytest.approx(1, abs=0.08)
