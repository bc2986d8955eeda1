"""Sums over the steps of a loop on the way back: products that are added up are one product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def products(equations):
    """`products(f, *args)`: shapes of the matrix products in the last loop of a gradient, and after it."""

    def products(f, *args):
        eqns = jax.make_jaxpr(f)(*args).jaxpr.eqns
        last = max(i for i, e in enumerate(eqns) if e.primitive.name == "scan")
        parts = equations(eqns[last].params["jaxpr"]), eqns[last + 1 :]
        return [
            [e.outvars[0].aval.shape for e in part if e.primitive.name == "dot_general"] for part in parts
        ]

    return products


def recurrence(w, u, b, xs, **options):
    """h <- tanh(x W + h U + b)"""

    def step(h, x):
        h = jnp.tanh(x @ w + h @ u + b)
        return h, jnp.sum(h, 0)

    h, sums = lax.scan(step, jnp.zeros((xs.shape[1], u.shape[0])), xs, **options)
    return jnp.sum(h**2) + jnp.sum(jnp.sin(sums))


def weights(normal, inputs=5, hidden=6, batch=4, steps=3):
    w, u, b = normal(1, inputs, hidden), normal(2, hidden, hidden), normal(3, 1, hidden)
    return w, u, b, normal(4, steps, batch, inputs)


def assert_right(f, *args):
    wrt = tuple(range(len(args)))
    found = jax.jit(chainrule.grad(f, argnums=wrt))(*args)
    expected = jax.jit(jax.grad(f, wrt))(*args)
    for ours, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 3}])
def test_the_weights_of_a_recurrence(options, normal, products):
    """In the loop remains the product of the carry's cotangent; each weight's is one product behind it."""

    def f(w, u, b, xs):
        return recurrence(w, u, b, xs, **options)

    args = weights(normal)
    inside, later = products(chainrule.grad(f, argnums=(0, 1, 2)), *args)
    assert inside == [(4, 6)] and sorted(later) == [(5, 6), (6, 6)]
    assert_right(f, *args)


def test_factors_much_larger_than_their_product_are_not_kept(normal, products):
    """A large batch and a small weight: the sum is taken step by step."""
    args = weights(normal, inputs=2, hidden=2, batch=40)
    inside, later = products(chainrule.grad(recurrence, argnums=(0, 1)), *args)
    assert sorted(inside) == [(2, 2), (2, 2), (40, 2)] and later == []
    assert_right(recurrence, *args)


def test_a_weight_that_is_used_transposed_and_reshaped(normal, products):
    """What happens to the product before it is added up happens once, after the sum."""

    def f(w, xs):
        def step(h, x):
            return jnp.tanh(h @ w.reshape(6, 6).T + x), ()

        return jnp.sum(lax.scan(step, jnp.zeros((4, 6)), xs)[0])

    w, xs = normal(1, 4, 9), normal(2, 3, 4, 6)
    inside, later = products(chainrule.grad(f), w, xs)
    assert inside == [(4, 6)] and later == [(6, 6)]
    assert_right(f, w, xs)


def test_a_weight_that_is_used_twice_in_a_step(normal):
    """The sum of two products is no product; it is right all the same."""

    def f(w, xs):
        return jnp.sum(lax.scan(lambda h, x: (jnp.sin(h @ w) @ w + x, ()), jnp.zeros((4, 3)), xs)[0] ** 2)

    assert_right(f, normal(1, 3, 3), normal(2, 3, 4, 3))


def test_factors_that_do_not_change_from_step_to_step(normal):
    """A product with a constant: the sum over the steps counts it as often as it is used."""

    def f(w, a):
        return jnp.sum(lax.scan(lambda h, _: (h * 0.5 + a @ w, ()), jnp.zeros((4, 3)), length=5)[0] ** 2)

    assert_right(f, normal(1, 3, 3), normal(2, 4, 3))


def test_under_vmap(normal, products):
    """Many recurrences at once have products with an axis in common; it stays in common."""
    w, u, b, xs = weights(normal)
    many = jnp.stack([u, -u])

    def f(many, w):
        return jnp.sum(jax.vmap(lambda u: recurrence(w, u, b, xs))(many))

    inside, later = products(chainrule.grad(f), many, w)
    assert len(inside) == 1 and len(later) == 1
    assert_right(f, many, w)
