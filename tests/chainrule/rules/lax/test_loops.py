"""Loops: gradients through time, and what they keep for the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from bpresearch import chainrule
from bpresearch.chainrule import NoPrimitiveRuleError


@pytest.fixture
def xs():
    return jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)


@pytest.fixture
def w():
    return jnp.array([0.3, -1.2, 0.7])


@pytest.fixture
def loops(equations):
    """`loops(f, *args)`: for each scan of a program the shapes of its operands and of its results."""

    def loops(f, *args):
        found = [e for e in equations(jax.make_jaxpr(f)(*args).jaxpr) if e.primitive.name == "scan"]
        return [([v.aval.shape for v in e.invars], [v.aval.shape for v in e.outvars]) for e in found]

    return loops


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 2}])
def test_a_scan(options, xs, w, assert_program_right):
    def f(w, init, xs):
        def step(carry, x):
            carry = jnp.tanh(carry * w + x)
            return carry, (jnp.sum(carry * x), x)

        return lax.scan(step, init, xs, **options)

    assert_program_right(f, w, w + 1, xs)


def test_a_scan_in_a_scan(xs, w, assert_program_right):
    """The inner loop reads the outer carry, constants of both, and its own slices."""

    def f(w, xs):
        def outer(carry, x):
            def inner(c, t):
                c = jnp.sin(c * t) + w[0]
                return c, c * carry

            c, ys = lax.scan(inner, jnp.sum(carry), x)
            return carry * w + c, jnp.sum(ys, 0)

        return lax.scan(outer, w, xs)

    assert_program_right(f, w, xs)


def test_a_carry_that_becomes_dependent_late(w, assert_program_right):
    """Four carries in a row: the last depends on the input from the fourth step on."""

    def f(x):
        def step(carry, t):
            a, b, c, d = carry
            return (jnp.sin(x) * t, a * t, b**2, c + d), d * t

        return lax.scan(step, (jnp.zeros(3),) * 4, jnp.arange(1.0, 6.0))

    (x_bar,) = assert_program_right(f, w)
    assert np.all(x_bar != 0)


def test_integers_and_keys_are_carried(xs, assert_program_right):
    def f(xs, key):
        def step(carry, x):
            count, key, total = carry
            key, own = jax.random.split(key)
            kept = jnp.where(jax.random.bernoulli(own, 0.5, x.shape), x * count, 0.0)
            return (count + 1, key, total + jnp.sum(jnp.sin(kept))), count

        (count, _, total), counts = lax.scan(step, (jnp.array(1), key, 0.0), xs)
        return total, count, counts

    assert_program_right(lambda xs: f(xs, jax.random.key(3)), xs)


def test_no_slices_and_no_steps(w, assert_program_right):
    """Loops of no inputs, of one step, of none, and of none with an output."""

    def f(w):
        def step(c, _):
            return jnp.sin(c * w), c

        runs = [lax.scan(step, w, length=n) for n in (3, 1, 0)]
        return runs, lax.scan(lambda c, x: (c * x, c), 2.0, jnp.zeros(0))

    assert_program_right(f, w)


def test_a_loop_that_hands_values_on(xs, w, assert_program_right):
    """Carries that are swapped, outputs that are carries, slices or constants, and a literal."""

    def f(w, xs):
        def step(carry, x):
            a, b = carry
            return (b, a), (x, w, a, 1.0)

        return lax.scan(step, (w, 2 * w), xs)

    assert_program_right(f, w, xs)


def test_what_does_not_change_is_kept_once(xs, w, loops):
    """Products of constants are computed before the loop back; only what rules read is kept for each step."""

    def f(w, xs):
        def step(carry, x):
            scale = jnp.exp(w)  # the same in every step: its value is needed by two rules
            return carry + scale * x, ()  # the sum needs nothing, the product x and scale

        return jnp.sum(lax.scan(step, jnp.zeros(3), xs)[0])

    (_, forward), (backward, _) = loops(chainrule.grad(f, argnums=(0, 1)), w, xs)
    assert (4, 3) not in forward  # nothing is stacked: x is an operand, and scale is one array
    assert backward.count((4, 3)) == 1  # the slices x
    found = jax.jit(chainrule.grad(f, argnums=(0, 1)))(w, xs)
    np.testing.assert_allclose(found[0], np.exp(w) * np.sum(xs, 0), rtol=1e-14)


def test_only_what_rules_read_is_kept(xs, loops):
    """Of `tanh` the result, which is the output; of a sum nothing; of the sine the argument, a carry."""

    def f(xs):
        def step(carry, x):
            y = jnp.tanh(x)
            return jnp.sin(carry) + y + 1, y

        carry, ys = lax.scan(step, jnp.zeros(3), xs)
        return jnp.sum(carry) + jnp.sum(ys)

    (_, forward), _ = loops(chainrule.grad(f), xs)
    assert forward.count((4, 3)) == 2  # the output y, and one array for the sine


def test_constants_without_a_derivative_add_nothing_up(xs, w, loops):
    """The loop back carries the cotangents that were asked for, and no others."""

    def f(xs, w):
        def step(carry, x):
            return jnp.sin(carry * w) + x, ()

        return jnp.sum(lax.scan(step, jnp.zeros(3), xs)[0])

    _, (_, outs) = loops(chainrule.grad(f), xs, w)
    assert sorted(outs) == [(3,), (4, 3)]


def test_a_fori_loop(w, assert_program_right):
    """With a fixed number of steps it is a scan; an index into the array is an integer."""

    def f(w):
        return lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * w[i] + c, w)

    assert_program_right(f, w)


def test_a_fori_loop_with_an_array_as_its_bound(w):
    """Its value is known where the gradient is not compiled, and the loop is a scan, as for `jax.grad`."""

    def f(w, lengths):
        return jnp.sum(lax.fori_loop(0, jnp.max(lengths), lambda i, c: jnp.sin(c) * w + c, w))

    lengths = jnp.array([1, 3])
    found = chainrule.grad(f)(w, lengths)
    np.testing.assert_allclose(found, jax.grad(f)(w, lengths), rtol=1e-13)
    with pytest.raises(NoPrimitiveRuleError, match=r"while at .*test_loops\.py:\d+.* as a Python int"):
        jax.jit(chainrule.grad(f))(w, lengths)


def test_tangents_go_along_a_while_loop(w):
    def f(w):
        def step(carry):
            c, t, n = carry
            return jnp.sin(c) * w, t + jnp.sum(c), n + 1

        return lax.while_loop(lambda carry: (carry[1] < 2.0) & (carry[2] < 9), step, (w, 0.5, 0))

    w, w_dot = jnp.abs(w), jnp.array([1.0, 2.0, -0.5])
    found, expected = (engine.jvp(f, (w,), (w_dot,)) for engine in (chainrule, jax))
    for ours, right in zip(found[1][:2], expected[1][:2], strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-14)
    assert found[0][2] == expected[0][2] and found[1][2].dtype == jax.dtypes.float0


def test_tangents_go_along_a_while_loop_that_ends_at_different_steps_under_vmap():
    def f(x):
        return jax.vmap(lambda v: lax.while_loop(lambda c: c[0] < 10, grown, (v, 2 * v)))(x)

    def grown(carry):
        return 1.5 * carry[0], jnp.sin(carry[1])

    x = np.array([1.0, 2.0, 30.0])
    found, expected = chainrule.jvp(f, (x,), (x,)), jax.jvp(f, (x,), (x,))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-15), found, expected)


def test_a_while_loop_has_no_way_back_and_says_where_it_is():
    def f(x):
        return lax.while_loop(lambda c: c < 10.0, lambda c: 2 * c, x)

    with pytest.raises(NoPrimitiveRuleError, match=r"while at .*test_loops\.py:\d+.* has no backward pass"):
        chainrule.grad(f)(1.5)
    with pytest.raises(ValueError, match="Reverse-mode"):  # as JAX refuses
        jax.grad(f)(1.5)


def test_a_while_loop_on_which_no_derivative_depends(w):
    """It is run, not differentiated: a search for an integer, say."""

    def f(x):
        n = lax.while_loop(lambda n: n * 0.5 < lax.stop_gradient(jnp.max(x)), lambda n: n + 1, 0)
        return jnp.sum(x**2) * n

    np.testing.assert_allclose(chainrule.grad(f)(w), 2 * w * np.ceil(0.7 / 0.5), rtol=1e-14)


def test_second_order(xs, w):
    """Forward over reverse through a loop, against reverse over reverse by JAX."""

    def f(w):
        return jnp.sum(lax.scan(lambda c, x: (jnp.tanh(c * w + x), ()), w, xs)[0] ** 2)

    v = jnp.array([1.0, -2.0, 0.5])
    found = jax.jit(lambda w: chainrule.jvp(chainrule.grad(f), (w,), (v,))[1])(w)
    twice = jax.jit(chainrule.grad(lambda w: jnp.vdot(chainrule.grad(f)(w), v)))(w)
    expected = jax.jit(jax.grad(lambda w: jnp.vdot(jax.grad(f)(w), v)))(w)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(twice, expected, rtol=1e-12)


def test_layers_scanned_by_flax(random_model, xs, assert_model_right, equations):
    """`nnx.scan` over stacked layers, with dropout whose random stream is carried."""

    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def build(rngs):
        return nnx.Sequential(nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.tanh)

    layers = random_model(lambda: build(nnx.Rngs(0)))

    def loss(layers, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return layer(x)

        return jnp.sum(forward(layers, x) ** 2)

    _, after = assert_model_right(loss, layers, xs)
    assert after.layers[1].rngs.count[...].tolist() == [1, 1, 1]
    names = [e.primitive.name for e in equations(jax.make_jaxpr(chainrule.grad(loss))(layers, xs).jaxpr)]
    assert names.count("scan") == 2
