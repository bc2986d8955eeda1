"""The two engines share nothing: no rule asks JAX for a derivative, and neither uses the other's traces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.interpreters import ad

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def without_jax(monkeypatch):
    """`without_jax()`: from here on, every derivative and transpose that JAX knows raises."""

    def asked(name):
        def refuse(*args, **kwargs):
            raise AssertionError(f"JAX was asked for the derivative of {name}")

        return refuse

    def forbid():
        for registry in (
            "primitive_jvps",
            "primitive_transposes",
            "fancy_transposes",
            "primitive_linearizations",
        ):
            for primitive in list(getattr(ad, registry, ())):
                monkeypatch.setitem(getattr(ad, registry), primitive, asked(primitive))

    return forbid


class Everything(nnx.Module):
    """Layers with rules and without, statistics, dropout, loops, branches, formulas of its own."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(1, 3, decode=False, rngs=rngs)
        self.cell = nnx.RNN(nnx.GRUCell(3, 3, rngs=rngs))
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.table = nnx.Param(jnp.ones((5, 3)))
        self.activation = nnx.gelu

    def __call__(self, x, index):
        x = self.activation(self.norm(self.conv(x)))
        x = self.dropout(self.attention(x)) + jnp.expand_dims(self.table[...][index], 1)
        x = nnx.remat(lambda cell, x: cell(x))(self.cell, x)
        return jnp.max(x, 1)


def loss_of_everything(model, x, index):
    return jnp.mean(nnx.logsumexp(model(x, index), axis=-1) ** 2)


def function(a, xs):
    """Loops, branches, `remat`, `custom_jvp`, and primitives of several families."""

    def step(carry, x):
        carry = jax.nn.relu(carry @ a) + jax.nn.softplus(x)
        return lax.cond(jnp.sum(x) > 0, jnp.sin, lambda c: c**2, carry), jnp.cumsum(carry)

    carry, ys = lax.scan(jax.checkpoint(step), xs[0], xs)
    root = jnp.linalg.cholesky(a @ a.T + jnp.eye(3))
    spectrum = jnp.abs(jnp.fft.rfft(ys)) + 0.1
    solved = jax.scipy.linalg.solve_triangular(
        root, carry, lower=True
    )  # `solve` is traced with JAX's transposes
    return jnp.sum(jnp.sort(root.ravel())[2:] ** 2) + jnp.prod(spectrum[0]) + jnp.sum(solved) + jnp.max(ys)


def test_a_model_while_no_derivative_of_jax_answers(random_model, normal, without_jax):
    model, x, index = (
        random_model(lambda: Everything(nnx.Rngs(0))),
        normal(1, 4, 6, 2),
        jnp.array([0, 3, 3, 1]),
    )
    graphdef, state = nnx.split(model)

    def by(engine):
        return jax.jit(
            lambda state: engine.value_and_grad(loss_of_everything)(
                nnx.merge(graphdef, state, copy=True), x, index
            ),
            compiler_options={"xla_backend_optimization_level": 0},
        )(state)

    expected = by(nnx)
    without_jax()
    found = by(chainrule)
    with pytest.raises(AssertionError, match="JAX was asked"):
        by(nnx)
    for ours, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-10, atol=1e-13)


def test_a_function_while_no_derivative_of_jax_answers(normal, without_jax):
    """Backward, forward, and forward over backward."""
    a, xs = normal(1, 3, 3), normal(2, 4, 3)

    def by(engine):
        def answers(a, xs):
            _, slope = engine.jvp(function, (a, xs), (xs[:3], xs))
            bend = engine.jvp(engine.grad(function), (a, xs), (xs[:3], xs))[1]
            return engine.grad(function)(a, xs), slope, bend

        return jax.jit(answers, compiler_options={"xla_backend_optimization_level": 0})(a, xs)

    expected = by(jax)
    without_jax()
    found = by(chainrule)
    with pytest.raises(AssertionError, match="JAX was asked"):
        by(jax)
    for ours, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-9)


class TestTraces:
    """JAX keeps what it traced inside `jax.jit`. Each engine has its own."""

    @pytest.fixture
    def model(self, random_model):
        """A model with a call that is compiled by itself, and is one object for both engines."""
        layer = random_model(lambda: nnx.Linear(3, 3, rngs=nnx.Rngs(0)))
        graphdef, _ = nnx.split(layer)
        compiled = jax.jit(lambda state, x: nnx.relu(nnx.merge(graphdef, state)(x)))

        class Compiled(nnx.Module):
            def __init__(self):
                self.layer = layer

            def __call__(self, x):
                return compiled(nnx.state(self.layer), x)

        return Compiled()

    @staticmethod
    def loss(model, x):
        return jnp.sum(model(x) ** 2)

    @pytest.fixture
    def faulty(self):
        """A fault of a factor of two in the rule of linear layers."""

        def replace(e, rule):
            if e.name != "Linear":
                return rule

            class Doubled:
                forward = rule.forward

                def backward(layer, residuals, y_bar):
                    grads, x_bar = rule.backward(layer, residuals, y_bar)
                    return jax.tree.map(lambda bar: 2 * bar, grads), x_bar

            return Doubled

        return lambda: chainrule.replacing(replace)

    def jaxpr_of_jax(self, model, x):
        graphdef, state = nnx.split(model)
        return str(jax.make_jaxpr(jax.grad(lambda s: self.loss(nnx.merge(graphdef, s, copy=True), x)))(state))

    @pytest.mark.parametrize("first", ["chainrule", "jax"])
    def test_of_a_function_that_both_differentiate(self, first, model, normal, faulty):
        """Whoever comes first: JAX sees no layer, and we see one, whose faulty rule doubles the gradient."""
        x = normal(1, 4, 3)
        expected = nnx.grad(self.loss)(model, x)["layer"]["kernel"][...] if first == "jax" else None
        with faulty():
            found = chainrule.grad(self.loss)(model, x)["layer"]["kernel"][...]
        assert "layer[" not in self.jaxpr_of_jax(model, x)
        right = nnx.grad(self.loss)(model, x)["layer"]["kernel"][...]
        np.testing.assert_allclose(found, 2 * right, rtol=1e-13)
        if expected is not None:
            np.testing.assert_array_equal(right, expected)

    def test_of_a_function_that_runs_afterwards(self, model, normal):
        """Evaluated after us, the compiled function is the layer's own code."""
        x = normal(1, 4, 3)
        chainrule.grad(self.loss)(model, x)
        assert "layer[" not in str(jax.make_jaxpr(lambda x: model(x))(x))

    def test_of_rules_that_are_registered_later(self, normal):
        """A trace in which a layer was opened is not used once it has a rule."""

        class Scale(nnx.Module):
            def __init__(self):
                self.scale = nnx.Param(jnp.ones((1, 3)))

            def __call__(self, x):
                return x * self.scale[...]

        graphdef, state = nnx.split(Scale())
        compiled, x = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x)), normal(1, 4, 3)

        def slope():
            return chainrule.grad(lambda x: jnp.sum(compiled(state, x)))(x)

        np.testing.assert_array_equal(slope(), np.ones((4, 3)))

        @chainrule.rule(Scale)
        class ScaleRule:
            def forward(layer, x):
                return layer(x), x

            def backward(layer, x, y_bar):
                return {"scale": jnp.sum(x * y_bar, 0, keepdims=True)}, 7 * y_bar

        np.testing.assert_array_equal(slope(), np.full((4, 3), 7.0))
