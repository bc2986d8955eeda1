"""Spectra against the eigenvalues of dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from bpresearch import diagnostics, models
from bpresearch.diagnostics import curvature
from bpresearch.functional import TrainingLoss, merge
from tests.diagnostics.moments import dense_hessian, examples, moment, values


def test_hessian_products_are_those_of_the_dense_hessian_of_a_network(float64):
    build = lambda rngs: models.mlp((3,), 2, widths=(4,), activation=jax.nn.tanh, rngs=rngs)  # noqa: E731
    at = moment(*examples(), build=build)
    flat, unravel = ravel_pytree(at.run.params)
    v = np.random.default_rng(0).normal(size=flat.shape)
    found, _ = ravel_pytree(diagnostics.hessian_product(at)(unravel(jnp.asarray(v))))
    np.testing.assert_allclose(found, dense_hessian(at) @ v, rtol=1e-9, atol=1e-12)


def test_the_trace_is_exact_where_the_hessian_is_diagonal_and_right_on_average(float64):
    x = np.concatenate([np.eye(3), -np.eye(3)]) * np.array([1.0, 2.0, 3.0])  # orthogonal, with mean zero
    at = moment(x, np.zeros((6, 1)))
    hessian = dense_hessian(at)
    np.testing.assert_allclose(hessian, np.diag(np.diag(hessian)), atol=1e-12)
    np.testing.assert_allclose(
        values(diagnostics.hessian_trace, at)["hessian_trace"], np.trace(hessian), rtol=1e-12
    )
    at = moment(*examples())
    one = lambda step: diagnostics.hessian_trace(at._replace(steps=step))["hessian_trace"].values  # noqa: E731
    found = np.asarray(jax.lax.map(one, jnp.arange(400)))
    assert found.std() > 0
    assert abs(found.mean() - np.trace(dense_hessian(at))) < 4 * found.std() / 20


def network(loss=optax.losses.l2_loss, count=8):
    build = lambda rngs: models.mlp((3,), 2, widths=(4,), activation=jax.nn.tanh, rngs=rngs)  # noqa: E731
    x, y = examples(count)
    return moment(x, jax.nn.softmax(3 * y), build=build, loss=loss)


def dense(product, at):
    """The matrix whose products these are."""
    flat, unravel = ravel_pytree(at.run.params)
    rows = jax.jit(jax.vmap(lambda one: ravel_pytree(product(unravel(one)))[0]))(jnp.eye(flat.size))
    return np.asarray(rows).T


def test_the_largest_and_the_smallest_eigenvalue_are_those_of_the_dense_hessian(float64):
    at = network()
    expected = np.linalg.eigvalsh(dense_hessian(at))
    assert expected[0] < -1e-3  # a network is not convex
    found = values(diagnostics.hessian_spectrum, at)  # of 26 weights, by 26 steps
    np.testing.assert_allclose(found["hessian_eigenvalues"], expected[:-6:-1], rtol=1e-6)
    np.testing.assert_allclose(found["hessian_smallest_eigenvalue"], expected[0], rtol=1e-6)


def test_the_gauss_newton_matrix_is_that_of_dense_jacobians(float64):
    for loss in (optax.losses.l2_loss, optax.losses.softmax_cross_entropy):
        at = network(loss)
        flat, unravel = ravel_pytree(at.run.params)
        x, y = at.data

        def outputs(w, at=at, unravel=unravel, x=x):
            return merge(at.training.graphdef, unravel(w), at.run.state)(x).ravel()

        def mean_loss(z, loss=loss, y=y):
            return jnp.mean(loss(z.reshape(y.shape), y))

        jacobian = np.asarray(jax.jacobian(outputs)(flat))
        curved = np.asarray(jax.hessian(mean_loss)(outputs(flat)))
        expected = jacobian.T @ curved @ jacobian
        np.testing.assert_allclose(dense(diagnostics.gauss_newton_product(at), at), expected, atol=1e-12)
        found = values(diagnostics.gauss_newton_spectrum, at)["gauss_newton_eigenvalues"]
        np.testing.assert_allclose(found, np.linalg.eigvalsh(expected)[:-6:-1], rtol=1e-6)


def test_where_the_outputs_are_linear_hessian_and_gauss_newton_matrix_are_one(float64):
    at = moment(*examples())
    found = values(diagnostics.gauss_newton_spectrum, at)["gauss_newton_eigenvalues"]
    np.testing.assert_allclose(found, values(diagnostics.hessian_spectrum, at)["hessian_eigenvalues"])
    assert np.isnan(found[4]) and np.isfinite(found[:4]).all()  # four different eigenvalues, each twice


def test_a_loss_of_model_and_batch_has_no_outputs_that_are_known(float64):
    loss = TrainingLoss(lambda model, batch: optax.losses.l2_loss(model(batch[0]), batch[1]).mean(axis=1))
    at = moment(*examples(), loss=loss)
    found = values(diagnostics.gauss_newton_spectrum, at)
    assert all(np.isnan(value).all() for value in found.values())


def test_the_density_is_the_share_of_the_dense_hessians_eigenvalues(float64):
    """On average over random vectors: each sees a share with a deviation of sqrt(2 p (1 - p) / n)."""
    at = network(count=20)
    eigenvalues = np.linalg.eigvalsh(dense_hessian(at))
    ends = np.array(curvature.EIGENVALUES)
    sizes = np.array([0.0, *curvature.SIZES])
    lower = np.sign(eigenvalues) * sizes[np.searchsorted(sizes, np.abs(eigenvalues), side="right") - 1]
    expected = np.array([np.isclose(lower, end, rtol=1e-2).mean() for end in ends])
    assert (expected > 0).sum() >= 4
    one = lambda step: diagnostics.hessian_spectrum(at._replace(steps=step))["hessian_density"].values  # noqa: E731
    found = np.asarray(jax.lax.map(one, jnp.arange(100)))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    deviation = np.sqrt(2 * expected * (1 - expected) / (len(eigenvalues) + 2))
    np.testing.assert_allclose(found.std(axis=0), deviation, atol=0.04)
    assert (np.abs(found.mean(axis=0) - expected) < 4.5 * deviation / np.sqrt(100) + 1e-9).all()
