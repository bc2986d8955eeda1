"""The variance of mini-batch gradients, against every batch there is and against autodiff."""

import itertools

import numpy as np
import optax
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from bpresearch import autodiff, chainrule, models
from bpresearch.theory import minibatch

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(6, 3)) * np.array([1.0, 2.0, 0.1])


@pytest.mark.parametrize(("replacement", "size"), [(True, 1), (True, 3), (False, 2), (False, 5), (False, 6)])
def test_the_formula_is_the_mean_over_all_batches(replacement, size):
    every = (
        itertools.product(range(6), repeat=size) if replacement else itertools.combinations(range(6), size)
    )
    means = np.stack([GRADIENTS[list(batch)].mean(axis=0) for batch in every])
    by_enumeration = ((means - GRADIENTS.mean(axis=0)) ** 2).sum(axis=1).mean()
    formula = minibatch.expected_variance(GRADIENTS, size, replacement=replacement)
    assert formula == pytest.approx(by_enumeration, rel=1e-12, abs=1e-25)
    measured = minibatch.measured_variance(GRADIENTS, size, replacement=replacement, draws=4000)
    assert measured == pytest.approx(formula, rel=0.1, abs=1e-25)


def test_the_slope_against_the_batch_size_is_minus_one():
    gradients = RNG.normal(size=(300, 20))
    sizes = np.array([1, 4, 16, 64])
    found = [minibatch.measured_variance(gradients, int(s), replacement=True, draws=1000) for s in sizes]
    assert np.polyfit(np.log(sizes), np.log(found), 1)[0] == pytest.approx(-1, abs=0.05)


def test_gradients_in_rows_are_those_of_the_batch_on_average():
    model = models.mlp((4,), 3, widths=(2,), activation=nnx.tanh, rngs=nnx.Rngs(0))
    loss = optax.losses.softmax_cross_entropy_with_integer_labels
    x, y = RNG.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1], np.int32)
    found = minibatch.in_rows(chainrule.per_example_gradients(model, loss, x, y)[1])
    _, whole = autodiff.value_and_grad(model, loss, x, y)
    np.testing.assert_allclose(found.mean(axis=0), ravel_pytree(whole)[0], atol=1e-6)
    assert found.shape == (5, 4 * 2 + 2 + 2 * 3 + 3) and found.std(axis=0).all()
