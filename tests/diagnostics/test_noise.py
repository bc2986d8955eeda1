"""The noise of gradients against plain numpy and against its true covariance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch import diagnostics
from tests.diagnostics.moments import by_hand, dense_hessian, examples, moment, values


@pytest.mark.parametrize(("batch", "part"), [(2, 1), (3, 1), (8, 2), (40, 4)])
def test_the_noise_of_a_batch_is_how_far_a_part_of_it_is_from_the_whole(float64, batch, part):
    at = moment(*examples(batch))
    g, first = (
        np.concatenate([g.ravel() for g in by_hand(at._replace(batch=jnp.arange(size))).values()])
        for size in (batch, part)
    )
    trace = ((first - g) ** 2).sum() / (1 / part - 1 / batch)
    square = max(g @ g - trace / batch, 0)
    found = values(diagnostics.gradient_noise, at)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found["noise_scale"], trace / square, rtol=1e-9)
    np.testing.assert_allclose(found["signal_to_noise"], square / (trace / batch), rtol=1e-9)


def test_a_single_example_tells_nothing_of_the_noise(float64):
    found = values(diagnostics.gradient_noise, moment(*examples(1)))
    assert np.isnan(found["noise_scale"]) and np.isnan(found["signal_to_noise"])


@pytest.mark.parametrize("size", [1, 2, 6])
def test_the_noise_estimates_are_right_on_average(size):
    generator = np.random.default_rng(0)
    truth, spread = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    batches = jnp.asarray(generator.normal(truth, spread, (8000, 12, 3)), jnp.float32)

    def estimate(examples):
        of_part, of_batch = {"w": examples[:size].mean(0)}, {"w": examples.mean(0)}
        return diagnostics.noise_estimates(of_part, of_batch, size, 12)

    trace, square = (np.asarray(found, np.float64) for found in jax.vmap(estimate)(batches))
    for found, expected in ((trace, (spread**2).sum()), (square, truth @ truth)):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))


def test_the_same_in_the_metric_of_a_hessian():
    truth, spread = np.array([1.0, -2.0, 0.5]), np.array([0.5, 2.0, 1.0])
    curvature = np.array([3.0, 0.5, 1.0], np.float32)
    batches = jnp.asarray(np.random.default_rng(1).normal(truth, spread, (8000, 12, 3)), jnp.float32)

    def estimate(examples):
        of_part, of_batch = {"w": examples[:2].mean(0)}, {"w": examples.mean(0)}
        return diagnostics.noise_estimates(of_part, of_batch, 2, 12, lambda v: {"w": curvature * v["w"]})

    trace, square = (np.asarray(found, np.float64) for found in jax.vmap(estimate)(batches))
    for found, expected in ((trace, curvature @ spread**2), (square, curvature @ truth**2)):
        assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(len(found))


def test_the_critical_batch_weighs_noise_and_gradient_by_the_dense_hessian(float64):
    at = moment(*examples(40))
    g, first = (
        np.concatenate([g.ravel() for g in by_hand(at._replace(batch=jnp.arange(size))).values()])
        for size in (40, 4)
    )
    hessian = dense_hessian(at)
    trace = (first - g) @ hessian @ (first - g) / (1 / 4 - 1 / 40)
    found = values(diagnostics.critical_batch, at)["critical_batch"]
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(found, trace / max(g @ hessian @ g - trace / 40, 0), rtol=1e-9)
    assert np.isnan(values(diagnostics.critical_batch, moment(*examples(1)))["critical_batch"])
