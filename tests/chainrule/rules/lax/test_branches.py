"""Branches: the derivative of the one that is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bpresearch import chainrule
from bpresearch.chainrule.notes import collecting, note


@pytest.fixture
def w():
    return jnp.array([0.3, -1.2, 0.7])


def test_a_condition_both_ways(w, assert_program_right):
    """Branches that keep different values, hand operands on, return constants, and close over arrays."""

    def either(x, w):
        def first(x):
            return jnp.sin(x) * w, x, jnp.ones(3)

        def second(x):
            return jnp.tanh(jnp.tanh(x)), x * 2, x

        return lax.cond(jnp.sum(x) > 0, first, second, x)

    assert_program_right(lambda x, w: (either(x, w), either(-x, w)), w, w + 1)


def test_a_switch_at_each_index(w, assert_program_right):
    """An index beyond the last branch is the last branch."""
    branches = [jnp.sin, lambda x: x * jnp.sum(x**2), lambda x: jnp.zeros(3)]

    def f(x):
        return [lax.switch(index, branches, x) for index in jnp.array([0, 1, 2, 7])]

    assert_program_right(f, w)


def test_a_branch_with_keys_and_integers(w, assert_program_right):
    """A mask is drawn in one branch: its key and the integers are no obstacle."""

    def f(x, key):
        def dropped(x, key):
            key, own = jax.random.split(key)
            return jnp.sin(x) * jax.random.bernoulli(own, 0.5, x.shape), key, jnp.argmax(x)

        def kept(x, key):
            return x**2, key, 0

        y, key, index = lax.cond(x[0] > 0, dropped, kept, x, key)
        return y * jax.random.uniform(key, dtype=y.dtype), index

    assert_program_right(lambda x: (f(x, jax.random.key(1)), f(-x, jax.random.key(1))), w)


def test_a_branch_in_a_loop_and_a_loop_in_a_branch(w, assert_program_right):
    def f(x):
        def step(c, i):
            def loop(c):
                return lax.scan(lambda c, t: (jnp.sin(c) * t, jnp.sum(c)), c, x)

            return lax.cond(i % 2 == 0, loop, lambda c: (c * x, c), c)

        return lax.scan(step, x + 1, jnp.arange(4))

    assert_program_right(f, w)


def test_under_vmap_both_branches_are_run(w, assert_program_right):
    """The other branch has the derivative of a square root at a negative number; none of it shows."""

    def f(xs):
        return jax.vmap(lambda x: lax.cond(x > 0, jnp.sqrt, lambda x: x**2, x))(xs)

    (x_bar,) = assert_program_right(f, w)
    assert np.isfinite(x_bar).all()


def test_second_order(w):
    def f(x):
        return lax.cond(x[0] > 0, lambda x: jnp.sum(jnp.sin(x)), lambda x: jnp.sum(x), x)

    bend = chainrule.grad(lambda x: jnp.sum(chainrule.grad(f)(x)))(w)
    np.testing.assert_allclose(bend, -np.sin(w), rtol=1e-14)
    _, along = chainrule.jvp(chainrule.grad(f), (w,), (jnp.ones(3),))
    np.testing.assert_allclose(along, -np.sin(w), rtol=1e-14)


def test_layers_in_branches(random_model, normal, assert_model_right):
    """`nnx.cond`: each branch has a layer of its own; that which is not taken has gradient zero."""

    class Either(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)

        def __call__(self, x):
            return nnx.cond(jnp.sum(x) > 0, lambda m, x: m.a(x), lambda m, x: jnp.tanh(m.b(x)), self, x)

    model, x = random_model(lambda: Either(nnx.Rngs(0))), normal(1, 4, 3)

    def loss(model, x):
        return jnp.sum(model(x) ** 2)

    for sign in (1, -1):
        grads, _ = assert_model_right(loss, model, sign * jnp.abs(x))
        idle = grads["b" if sign == 1 else "a"]
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(idle))


def test_notes_come_out_of_branches(w):
    """What a watch notes in the branch that is taken; of the other one nothing."""

    def watch(e, bars, answer):
        if e.name in ("sin", "tanh"):
            note(e.name, jnp.max(jnp.abs(answer[0])), answer[0])
        return answer

    def f(x):
        return jnp.sum(lax.cond(x[0] > 0, jnp.sin, jnp.tanh, x))

    with chainrule.watching(watch), collecting() as notes:
        chainrule.grad(f)(w)
    np.testing.assert_allclose(notes["sin"][1], np.cos(w), rtol=1e-14)
    assert notes["tanh"][0] < 0
