"""All ways to the gradient give the same; their costs grow as counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.analysis import savings

RNG = np.random.default_rng(0)


def inputs(depth, width, batch, dtype):
    weights = jnp.asarray(RNG.normal(size=(depth, width, width)) / np.sqrt(width), dtype)
    x = jnp.asarray(RNG.normal(size=(batch, width)), dtype)
    values = savings.forward(weights, x)
    return weights, x, values, jnp.stack([2 * values[-1] / values[-1].size] * depth)


def test_every_variant_gives_autodiffs_gradient(float64):
    weights, x, values, bars = inputs(3, 2, 4, "float64")
    right = jax.grad(savings.loss)(weights, x)
    xs = jnp.stack([x] * 3)
    for found in (
        savings.stored_values(weights, xs),
        savings.recomputed_values(weights, xs),
        savings.stored_products(weights, values, bars),
        savings.fresh_products(weights, values, bars),
        savings.forward_mode(weights, x),
    ):
        np.testing.assert_allclose(jnp.stack(list(found)), right, rtol=1e-12, atol=1e-15)


def test_operations_grow_linearly_with_stored_products_and_quadratically_without():
    depths, counts = [8, 24], {"stored_products": [], "fresh_products": []}
    for depth in depths:
        weights, _, values, bars = inputs(depth, 8, 16, "float32")
        for name, found in counts.items():
            found.append(savings.cost(getattr(savings, name), weights, values, bars, calls=1).operations)
    assert savings.exponent(depths, counts["stored_products"]) == pytest.approx(1, abs=0.1)
    assert savings.exponent(depths, counts["fresh_products"]) == pytest.approx(2, abs=0.1)


def test_an_exponent_is_that_of_a_power():
    assert savings.exponent([2, 4, 8], [5 * n**1.5 for n in (2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["softmax", "normalize", "sigmoid"])
def test_divisions_and_reciprocals_agree(name):
    x = jnp.asarray(RNG.normal(size=(3, 5)), "float32")
    written, *others = (getattr(savings, name)(x, how) for how in ("written", "reciprocal", "division"))
    for other in others:
        np.testing.assert_allclose(other, written, rtol=1e-5, atol=1e-6)


def test_divided_elements_are_counted():
    x = jnp.ones((3, 5), "float32")
    assert savings.elements_divided(partial(savings.softmax, how="division"), x) == 15
    assert savings.elements_divided(partial(savings.sigmoid, how="reciprocal"), x) == 0
