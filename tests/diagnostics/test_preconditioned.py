"""Preconditioned sharpness against dense matrices, and edges against the recursions that they are of."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bpresearch import diagnostics, models, optim
from bpresearch.diagnostics.preconditioned import KNOWN, edge_of_stability, optimizer_of
from tests.diagnostics.moments import RATE, dense_hessian, examples, moment, values

GIVEN = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.8}, "rmsprop_momentum": {"momentum": 0.9}}


def network(optimizer, **options):
    build = lambda rngs: models.mlp((3,), 2, widths=(4,), activation=jax.nn.tanh, rngs=rngs)  # noqa: E731
    return moment(*examples(20), build=build, optimizer=optimizer, **options)


def length_along(at):
    """What the optimizer has divided the gradient by, element by element, where it has no momentum."""
    gradient, update = (ravel_pytree(tree)[0] for tree in (at.next.gradient, at.next.update))
    return np.asarray(-RATE * gradient / update)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adagrad", "adam", "amsgrad"])
def test_the_preconditioner_is_what_the_step_divides_the_gradient_by(float64, name):
    """Seen from outside, in the first step of averages and in any step without them."""
    adaptive = name in ("adam", "amsgrad")
    at = network(optim.BY_NAME[name], steps=0 if adaptive else 3)
    found = optimizer_of(at)
    divided = length_along(at) * (0.1 if adaptive else 1)  # m is (1 - b1) g then, and P has 1 - b1
    np.testing.assert_allclose(ravel_pytree(found.preconditioner)[0], divided, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_the_sharpness_is_the_largest_eigenvalue_of_the_dense_matrix(float64, name):
    at = network(optim.BY_NAME[name], steps=5)
    p = np.asarray(ravel_pytree(optimizer_of(at).preconditioner)[0])
    eigenvalues = np.linalg.eigvals(dense_hessian(at) / p[:, None])
    found = values(diagnostics.preconditioned_sharpness, at)
    np.testing.assert_allclose(found["preconditioned_sharpness"], eigenvalues.real.max(), rtol=1e-6)
    edge = {"sgd": 2 / RATE, "adam": 38 / RATE, "rmsprop": 2 / RATE}[name]
    np.testing.assert_allclose(found["sharpness_over_edge"], eigenvalues.real.max() / edge, rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_the_edge_is_where_the_recursion_on_a_parabola_begins_to_grow(beta, nesterov):
    edge = edge_of_stability(RATE, beta, nesterov)

    def radius(h):
        forward = (1, beta) if nesterov else (0, 1)  # w <- w - rate (forward of g and m), m <- beta m + g
        step = RATE * (forward[0] + forward[1]) * h, RATE * forward[1] * beta
        return np.abs(np.linalg.eigvals([[1 - step[0], -step[1]], [h, beta]])).max()

    assert radius(0.999 * edge) < 1 < radius(1.001 * edge)


def test_adams_edge_is_that_of_its_own_optimizer_on_a_parabola(float64):
    """With P held fixed: gradients are so small that it is eps alone."""
    b1 = 0.9
    edge = float(edge_of_stability(RATE * (1 - b1), b1))
    optimizer = optim.adam(RATE, b1=b1, eps=1.0)
    for factor, grows in ((0.97, False), (1.03, True)):
        w = jnp.asarray(1e-120)

        def step(carry, _, curvature=factor * edge):
            w, state = carry
            update, state = optimizer.update(curvature * w, state)
            return (w + update, state), jnp.abs(w)

        sizes = jax.lax.scan(step, (w, optimizer.init(w)), None, 600)[1]
        assert bool(sizes[-100:].max() > sizes[100:200].max()) == grows


def test_what_is_not_known_is_nan(float64):
    by_group = functools.partial(
        optim.with_options(optim.adam, ["lr_multipliers"]), lr_multipliers="kernel:0.5"
    )
    assert optimizer_of(network(by_group)) is None
    found = values(diagnostics.preconditioned_sharpness, network(optim.lion))
    assert np.isnan(found["preconditioned_sharpness"]) and np.isnan(found["sharpness_over_edge"])


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_optimizer_that_is_known_exists_and_has_an_edge(float64, name):
    found = optimizer_of(network(optim.BY_NAME[name], **GIVEN.get(name, {})))
    assert (ravel_pytree(found.preconditioner)[0] > 0).all() and found.edge > 0
