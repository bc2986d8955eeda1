"""Programs with mutable references: differentiated as the programs of values that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpresearch import chainrule
from bpresearch.chainrule import NoPrimitiveRuleError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def x(float64):
    return jnp.array([0.3, -0.4, 0.5])


def elements(x):
    """Reads and writes whole, by numbers, slices, steps and arrays of indices, also added and swapped."""
    rows = jax.new_ref(jnp.stack([x, 2 * x, x**2, jnp.sin(x)]))
    i, some = jnp.argmax(x), jnp.array([0, 1])
    read = [rows[0, 1:3], rows[i], rows[some, :], rows[:, some], rows[::2], rows[i, some]]
    rows[-1] = 2 * read[1]
    jax.ref.addupdate(rows, (0,), x)
    read += [jax.ref.swap(rows, (i,), x**3), rows[...]]
    rows[some, :] = jnp.stack([x, x]) * 3
    rows[:, some] += 1.0
    return sum(jnp.sum(jnp.sin(y)) for y in read) + jnp.sum(jax.freeze(rows) ** 2)


def loops(x):
    """A reference that a loop writes to, one of each step's own, and one that was zero before."""
    total, path = jax.new_ref(jnp.zeros(())), jax.new_ref(x)

    def step(carry, i):
        own = jax.new_ref(carry)
        own[0] = jnp.sin(own[1]) * path[i]
        path[i] = own[0] * x[2]
        total[...] += jnp.sum(own[...])
        return own[...] * total[...], None

    carry, _ = lax.scan(step, x, jnp.arange(3))
    return total[...] + jnp.sum(carry * path[...])


def calls_and_branches(x):
    """References handed to a compiled function and changed in one branch of two."""
    kept = jax.new_ref(x)

    @jax.jit
    def scale(kept, y):
        kept[...] = kept[...] * y

    scale(kept, x)
    lax.cond(x[0] > 0, lambda: kept.__setitem__(0, x[1]), lambda: None)
    return jnp.sum(jnp.exp(kept[...]))


@pytest.mark.parametrize("f", [elements, loops, calls_and_branches])
def test_as_jax(f, x):
    @jax.jit
    def ours_and_jax(x):
        ours = chainrule.grad(f)(x), chainrule.jvp(f, (x,), (x,))[1], chainrule.hvp(f, (x,), x)
        gradient, of_gradient = jax.jvp(jax.grad(f), (x,), (x,))
        return ours, (gradient, gradient @ x, of_gradient)

    ours, expected = ours_and_jax(x)
    for found, right in zip(ours, expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-12)


def test_inside_of_remat(x):
    """JAX refuses a reference that is made there."""

    @jax.checkpoint
    def f(x):
        y = jax.new_ref(jnp.zeros(3))
        y[...] = jnp.sin(x)
        y[...] *= x
        return jnp.sum(y[...])

    np.testing.assert_allclose(chainrule.grad(f)(x), np.cos(x) * x + np.sin(x), rtol=1e-14)


def test_a_reference_from_outside_may_be_read_only(x):
    outside = jax.new_ref(jnp.array(2.0))

    def writes(x):
        outside[...] = jnp.sum(x)
        return jnp.sum(x)

    np.testing.assert_array_equal(chainrule.grad(lambda x: jnp.sum(x * outside[...]))(x), 2.0)
    with pytest.raises(NoPrimitiveRuleError, match=r"swap at .*test_references\.py:\d+.*writes.* outside"):
        chainrule.grad(writes)(x)


def test_a_loop_without_a_fixed_length_says_where_it_is(x):
    def f(x, n):
        y = jax.new_ref(x)
        lax.fori_loop(0, n, lambda i, _: y.__setitem__(i, 2 * y[i]), None)
        return jnp.sum(y[...])

    with pytest.raises(NoPrimitiveRuleError, match=r"while at .*test_references\.py:\d+.*mutable reference"):
        jax.jit(chainrule.grad(f))(x, 2)
