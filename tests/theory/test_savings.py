"""All ways to the gradient give the same; their costs grow as counted by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpresearch.theory import savings

RNG = np.random.default_rng(0)


def test_every_variant_gives_autodiffs_gradient(float64):
    given = savings.inputs(3, 2, 4, "float64")
    weights, x = given.weights, given.xs[0]
    right = jax.grad(savings.loss)(weights, x)
    found = {name: jnp.stack(variant(given)) for name, variant in savings.VARIANTS.items()}
    for name, gradient in {**found, "forward mode": savings.forward_mode(weights, x)}.items():
        np.testing.assert_allclose(gradient, right, rtol=1e-12, atol=1e-15, err_msg=name)


def test_operations_grow_linearly_with_stored_products_and_quadratically_without():
    depths, counts = [8, 24], {"products shared": [], "products afresh": [], "forward mode": []}
    for depth in depths:
        given = savings.inputs(depth, 8, 16)
        for name in ("products shared", "products afresh"):
            counts[name].append(savings.cost(savings.VARIANTS[name], given, calls=1).operations)
        once = savings.cost(savings.along, given.weights, given.xs[0], given.weights, calls=1)
        counts["forward mode"].append(once.operations * given.weights.size)
    for name, power in (("products shared", 1), ("products afresh", 2), ("forward mode", 2)):
        assert savings.exponent(depths, counts[name]) == pytest.approx(power, abs=0.1), name


def test_an_exponent_is_that_of_a_power():
    assert savings.exponent([2, 4, 8], [5 * n**1.5 for n in (2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.parametrize("name", ["softmax", "normalize", "sigmoid"])
def test_divisions_and_reciprocals_agree(name):
    x = jnp.asarray(RNG.normal(size=(3, 5)), "float32")
    written, *others = (getattr(savings, name)(x, how) for how in ("written", "reciprocal", "division"))
    for other in others:
        np.testing.assert_allclose(other, written, rtol=1e-5, atol=1e-6)


def test_the_compiler_divides_as_often_as_rows_have_divisors():
    x = jnp.ones((3, 5), "float32")
    counts = {
        (name, how): savings.elements_divided(partial(getattr(savings, name), how=how), x)
        for name in ("softmax", "normalize", "sigmoid")
        for how in ("division", "written", "reciprocal")
    }
    assert counts == {
        ("softmax", "division"): 15, ("softmax", "written"): 3, ("softmax", "reciprocal"): 3,
        ("normalize", "division"): 15, ("normalize", "written"): 0, ("normalize", "reciprocal"): 0,
        ("sigmoid", "division"): 15, ("sigmoid", "written"): 15, ("sigmoid", "reciprocal"): 0,
    }  # fmt: skip
