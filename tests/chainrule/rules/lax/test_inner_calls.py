"""Calls: `jit`, `remat` with its policies, derivatives that users wrote."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.scipy.special import xlogy

from bpresearch import chainrule
from bpresearch.chainrule import NoPrimitiveRuleError


@pytest.fixture
def x():
    return jnp.linspace(-1.0, 1.5, 12).reshape(4, 3)


def test_jit_inside(x, assert_program_right):
    """Calls in calls, one of them used twice, with static arguments and a result that is an argument."""

    @partial(jax.jit, static_argnums=1)
    def power(x, n):
        return x**n

    @jax.jit
    def f(x):
        y = jax.jit(jnp.tanh)(x)
        return power(y, 3) * power(x, 3), x

    assert_program_right(lambda x: (f(x), f(2 * x)), x)


def test_calls_that_jax_does_not_differentiate_backward(x):
    """Those with a name, and those with a rule for `vmap`: what they call has a derivative."""

    @jax.custom_batching.custom_vmap
    def sine(x):
        return jnp.sin(x) * x

    sine.def_vmap(lambda size, batched, x: (jnp.sin(x) * x, True))
    named = lax.composite(lambda x: jnp.sin(x) * x, name="test.sine")
    for function in (sine, jax.vmap(sine), named):
        found = chainrule.grad(lambda x, f=function: jnp.sum(f(x)))(x)
        np.testing.assert_allclose(found, jnp.cos(x) * x + jnp.sin(x), rtol=1e-6)


POLICIES = {
    "nothing": None,
    "everything": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("hidden"),
}


def deep(policy):
    """Four blocks under `jax.checkpoint`, with a call and a name in each."""

    @partial(jax.checkpoint, policy=policy)
    def block(x, w):
        for _ in range(3):
            x = checkpoint_name(jax.jit(jnp.tanh)(x @ w), "hidden")
            x = jnp.sin(jnp.cos(x) * 2)
        return x

    def f(w, x):
        return jnp.sum(lax.scan(lambda x, _: (block(x, w), ()), x, length=4)[0])

    return f


@pytest.mark.parametrize("name", POLICIES)
def test_remat_under_a_policy(name, x, assert_program_right):
    assert_program_right(deep(POLICIES[name]), jnp.eye(3) + 0.1, x)


def test_what_a_policy_saves():
    """What is saved is not computed again, and what is not saved needs no memory.

    Of the values in a block, `dots` saves the 3 products and `names` the 3 of tanh; without a policy only the
    blocks' inputs are there.
    """

    def compiled(name):
        f = jax.jit(chainrule.grad(deep(POLICIES[name])))
        return f.lower(jnp.eye(32), jnp.ones((512, 32))).compile()

    def held(name):
        return programs[name].memory_analysis().temp_size_in_bytes

    programs = {name: compiled(name) for name in POLICIES}
    tanhs = {name: program.as_text().count(" tanh(") for name, program in programs.items()}
    assert tanhs["everything"] == 3 and tanhs["nothing"] == tanhs["dots"] == 6
    assert held("nothing") < 0.6 * held("dots") and max(held("dots"), held("names")) < 0.6 * held(
        "everything"
    )


def test_remat_of_a_layer(random_model, normal, assert_model_right):
    """`nnx.remat` around a layer; its dropout draws the same mask again."""

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.dropout = nnx.Linear(3, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        @nnx.remat
        def __call__(self, x):
            return jnp.tanh(self.dropout(self.linear(x)))

    model, x = random_model(lambda: Block(nnx.Rngs(0))), normal(1, 4, 3)

    def loss(model, x):
        return jnp.sum(model(x) ** 2)

    _, after = assert_model_right(loss, model, x)
    assert after.dropout.rngs.count[...] == 1


def test_jit_and_vmap_of_flax(random_model, normal, assert_model_right):
    """`nnx.jit` around a model, and `nnx.vmap` over stacked ones."""

    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def build(rngs):
        return nnx.Sequential(nnx.Linear(3, 3, use_bias=False, rngs=rngs), nnx.BatchNorm(3, rngs=rngs))

    model, x = random_model(lambda: build(nnx.Rngs(0))), normal(1, 4, 3)

    @nnx.jit
    def forward(model, x):
        return nnx.vmap(lambda m, x: m(x), in_axes=(0, None))(model, x)

    def loss(model, x):
        return jnp.sum(forward(model, x) ** 3)

    _, after = assert_model_right(loss, model, x, tolerance=1e-11)
    assert np.any(after.layers[1].mean[...])


class TestCustomVJP:
    """A backward pass by a user is that user's, whatever it computes."""

    def test_it_is_used_as_it_stands(self, x):
        """This one is wrong on purpose: the gradient is what its author says."""

        @jax.custom_vjp
        def f(x):
            return jnp.sin(x)

        f.defvjp(lambda x: (jnp.sin(x), ()), lambda _, y_bar: (10 * y_bar,))
        np.testing.assert_array_equal(chainrule.grad(lambda x: jnp.sum(f(x)))(x), np.full((4, 3), 10.0))

    def test_arguments_of_every_kind(self, x, assert_program_right):
        """A tree, an integer array, an argument that is not differentiated, residuals that are arguments."""

        @partial(jax.custom_vjp, nondiff_argnums=(0,))
        def f(power, tree, index):
            return tree["a"] ** power * tree["b"][index]

        def forward(power, tree, index):
            return f(power, tree, index), (tree, index)

        def backward(power, kept, y_bar):
            tree, index = kept
            a_bar = y_bar * power * tree["a"] ** (power - 1) * tree["b"][index]
            b_bar = jnp.zeros_like(tree["b"]).at[index].add(jnp.sum(y_bar * tree["a"] ** power))
            return {"a": a_bar, "b": 2 * b_bar}, None

        f.defvjp(forward, backward)

        def whole(a, b, index):
            return f(3, {"a": jnp.sin(a), "b": b}, index) * 2

        assert_program_right(whole, x, jnp.array([1.0, 2.0]), jnp.array(1), tangents=False)

    def test_symbolic_zeros(self, x):
        """The author is told which arguments are differentiated, and which cotangents are zero."""
        told = []

        @jax.custom_vjp
        def f(a, b):
            return a * b, a + b

        def forward(a, b):
            told.append((a.perturbed, b.perturbed))
            return f(a.value, b.value), (a.value, b.value)

        def backward(kept, bars):
            a, b = kept
            first, _ = bars
            return first * b, first * a

        f.defvjp(forward, backward, symbolic_zeros=True)

        def loss(a):
            return jnp.sum(f(a, 2.0 * jnp.ones_like(a))[0])

        np.testing.assert_array_equal(chainrule.grad(loss)(x), np.full((4, 3), 2.0))
        assert told == [(True, False)]

    def test_a_closure_over_what_is_traced(self, x, assert_program_right):
        """The function closes over a constant array; the loop and the call around it are traced by us."""
        scale = jnp.arange(1.0, 4.0).reshape(1, 3)

        @jax.custom_vjp
        def f(x):
            return x * scale

        f.defvjp(lambda x: (x * scale, None), lambda _, y_bar: (y_bar * scale * 3,))

        def whole(x):
            return lax.scan(lambda c, _: (jnp.sin(jax.jit(f)(c)), ()), x, length=3)[0]

        assert_program_right(whole, x, tangents=False)

    def test_under_vmap(self, x, assert_program_right):
        @jax.custom_vjp
        def f(x):
            return jnp.sum(x**2)

        f.defvjp(lambda x: (f(x), x), lambda x, y_bar: (-y_bar * x,))
        assert_program_right(lambda x: jax.vmap(f)(x), x, tangents=False)

    def test_it_has_no_tangent(self, x):
        f = jax.custom_vjp(lambda x: jnp.sin(x))
        f.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (y_bar * jnp.cos(x),))
        with pytest.raises(NoPrimitiveRuleError, match=r"custom_vjp at .*test_inner_calls\.py"):
            chainrule.jvp(lambda x: f(x), (x,), (x,))
        with pytest.raises(TypeError):  # as JAX refuses
            jax.jvp(f, (x,), (x,))


class TestClosures:
    """Functions with a derivative of their own that close over values of a program."""

    @staticmethod
    def closing(kind, w, v):
        """x -> w v sin(x), whose derivative keeps arguments, values closed over, and one of its own."""
        if kind == "jvp":
            f = jax.custom_jvp(lambda x: jnp.sin(x) * w * v)
            f.defjvp(lambda xs, dots: (f(xs[0]), dots[0] * v * jnp.cos(xs[0]) * w))
        else:
            f = jax.custom_vjp(lambda x: jnp.sin(x) * w * v)
            f.defvjp(
                lambda x: (v * jnp.sin(x) * w, (x, w, jnp.cos(x))),
                lambda kept, y_bar: (y_bar * v * kept[2] * kept[1] + 0 * kept[0],),
            )
        return f

    @pytest.mark.parametrize("kind", ["vjp", "jvp"])
    def test_over_values_of_a_program_outside(self, kind, x):
        """The gradient is inside of `jit` and of `vmap`, and what the function closes over is theirs."""

        def slopes(w, v, x):
            return chainrule.grad(lambda x: jnp.sum(self.closing(kind, w, v)(x)))(x)

        found = jax.jit(jax.vmap(slopes, (0, None, 0)))(jnp.arange(4.0), jnp.array(3.0), x)
        np.testing.assert_allclose(found, np.arange(4.0)[:, None] * 3 * np.cos(x), rtol=1e-14)

    @pytest.mark.parametrize("kind", ["vjp", "jvp"])
    def test_over_what_does_not_depend_on_what_is_differentiated(self, kind, x):
        """Other arguments, and what is computed of them, are values that the function may hold."""

        def loss(x, v):
            w = jnp.exp(v) + jax.nn.relu(v)
            return jnp.sum(self.closing(kind, w, v)(x) ** 2)

        for f in (lambda f: f, jax.jit):
            found = f(chainrule.grad(loss))(x, 0.5)
            np.testing.assert_allclose(found, jax.grad(loss)(x, 0.5), rtol=1e-14)

    @pytest.mark.parametrize("kind", ["vjp", "jvp"])
    def test_over_what_is_differentiated(self, kind):
        """It is refused with its place, as JAX refuses it: the author says nothing of that derivative."""

        def loss(w):
            return self.closing(kind, jnp.sin(w), w)(1.0)

        with pytest.raises(
            NoPrimitiveRuleError, match=rf"custom_{kind}_call at .*test_inner_calls\.py:\d+.* closes over"
        ):
            chainrule.grad(loss)(2.0)


class TestCustomJVP:
    """A tangent rule by a user, also on the way back: it is linear in the tangents."""

    def test_safe_norm_at_zero(self):
        @jax.custom_jvp
        def norm(x):
            return jnp.sqrt(jnp.sum(x**2))

        @norm.defjvp
        def _(primals, dots):
            (x,), (x_dot,) = primals, dots
            y = norm(x)
            return y, jnp.vdot(x, x_dot) / jnp.where(y == 0, 1.0, y)

        np.testing.assert_array_equal(chainrule.grad(norm)(jnp.zeros(3)), np.zeros(3))
        np.testing.assert_allclose(chainrule.grad(norm)(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-15)

    def test_functions_of_jax_at_their_kinks(self, assert_program_right):
        """relu at 0, xlogy at (0, 0), logaddexp of infinities, sinc at 0, logsumexp with -inf."""
        zero = jnp.zeros(())

        def f(a, b, c):
            return (
                jax.nn.relu(a), xlogy(a, b + 1), xlogy(a, c), jnp.logaddexp(b, b), jnp.sinc(a),
                jax.nn.relu6(c), jax.nn.logsumexp(jnp.stack([a, -jnp.inf])), jax.nn.silu(a),
            )  # fmt: skip

        assert_program_right(f, zero, jnp.array(-jnp.inf), jnp.array(6.0))

    def test_arguments_of_every_kind(self, x, assert_program_right):
        """An integer argument and one that is not differentiated; two results, one of them an integer."""

        @partial(jax.custom_jvp, nondiff_argnums=(0,))
        def f(power, a, index):
            return a[index] ** power, jnp.argmax(a)

        @f.defjvp
        def _(power, primals, dots):
            (a, index), (a_dot, _) = primals, dots
            y, place = f(power, a, index)
            zero = np.zeros((), jax.dtypes.float0)
            return (y, place), (5 * power * a[index] ** (power - 1) * a_dot[index], zero)

        assert_program_right(lambda x, i: f(3, jnp.sin(x[0]), i), x, jnp.array(2))

    def test_symbolic_zeros(self, x):
        """The author is told which tangents are zero, and may say that a result's is."""
        told = []

        @jax.custom_jvp
        def f(a, b):
            return a * b, jnp.sign(a)

        def tangent(primals, dots):
            (a, b), (a_dot, _) = primals, dots
            told.append([type(dot).__name__ for dot in dots])
            zero = jax.custom_derivatives.zero_from_primal(a, symbolic_zeros=True)
            return f(a, b), (a_dot * b, zero)

        f.defjvp(tangent, symbolic_zeros=True)

        def loss(a):
            y, sign = f(a, 3.0 * jnp.ones_like(a))
            return jnp.sum(y * sign)

        np.testing.assert_array_equal(chainrule.grad(loss)(x), 3 * np.sign(x))
        assert told and all(kinds[1] == "SymbolicZero" != kinds[0] for kinds in told)
        _, along = chainrule.jvp(loss, (x,), (jnp.ones_like(x),))
        np.testing.assert_allclose(along, np.sum(3 * np.sign(x)), rtol=1e-15)

    def test_in_a_loop_and_under_vmap(self, x, assert_program_right):
        def f(x):
            step = jax.vmap(lambda c: jax.nn.relu(c) + jax.nn.gelu(jnp.sin(c)))
            return lax.scan(lambda c, _: (step(c), ()), x, length=3)[0]

        assert_program_right(f, x)

    def test_second_order(self, x):
        """Through the author's rule once more."""
        found = chainrule.grad(lambda x: jnp.sum(chainrule.grad(lambda x: jnp.sum(jax.nn.softplus(x)))(x)))(x)
        sigmoid = 1 / (1 + np.exp(-np.asarray(x)))
        np.testing.assert_allclose(found, sigmoid * (1 - sigmoid), rtol=1e-12)
