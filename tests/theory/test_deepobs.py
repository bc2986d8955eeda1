"""DeepOBS's quadratic_deep: published numbers, and a Haar rotation is a rotation."""

import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.theory import deepobs


@pytest.fixture(scope="module")
def problem():
    return deepobs.quadratic_deep()


def test_the_loss_before_the_first_step_is_the_published_one(float64, problem):
    start = np.ones(100)
    difference = start - problem.test
    by_definition = np.einsum("ni,ij,nj->n", difference, problem.hessian, difference).mean() / 2
    assert f"{by_definition:.4f}" == deepobs.INITIAL_LOSS == "353.4468"
    assert float(deepobs.loss_on_test(problem, jnp.asarray(start))) == pytest.approx(by_definition, rel=1e-12)


def test_the_hessian_has_the_spectrum_that_was_drawn(problem):
    assert np.sum(problem.eigenvalues < 1) == 90
    assert np.all((problem.eigenvalues[90:] > 30) & (problem.eigenvalues[90:] < 60))
    found = np.linalg.eigvalsh(problem.hessian)
    np.testing.assert_allclose(found, np.sort(problem.eigenvalues), rtol=1e-9, atol=1e-12)


def test_haar_rotations_are_rotations_of_mean_zero():
    random = np.random.RandomState(0)
    drawn = np.stack([deepobs.haar_rotation(3, random) for _ in range(4000)])
    np.testing.assert_allclose(drawn @ drawn.transpose(0, 2, 1), np.tile(np.eye(3), (4000, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(drawn), 1)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=5 / np.sqrt(3 * 4000))
    np.testing.assert_allclose((drawn**2).mean(axis=0), 1 / 3, atol=5 * 0.3 / np.sqrt(4000))


def test_the_published_losses_come_out_and_sgd_diverges_as_lambda_max_says(problem):
    batches = np.stack([deepobs.repeated_batches(seed) for seed in range(8)])
    for name, optimizer, published in deepobs.PUBLISHED:
        if "Adam" in name:
            continue  # the experiment has it; it compiles longest
        final = deepobs.train(problem, optimizer, batches)[:, -1]
        for loss in published:
            bound = 3 * final.std(ddof=1) + deepobs.half_a_digit(loss)
            assert abs(final.mean() - float(loss)) < bound, name
    measured, theory = deepobs.growth(problem, deepobs.DIVERGING_RATE)
    assert measured == pytest.approx(theory, rel=2e-3)
    assert f"{measured:.2f}" == f"{theory:.2f}" == deepobs.DIVERGING_FACTOR == "1.24"


def test_every_epoch_has_the_same_seven_batches():
    order = deepobs.repeated_batches(3, epochs=2)
    assert order.shape == (14, 128)
    np.testing.assert_array_equal(order[:7], order[7:])
    assert len(np.unique(order[:7])) == 896
