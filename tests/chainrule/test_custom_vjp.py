"""Rules plugged into `jax.grad`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import merge, split
from bpresearch.models import Residual, flatten

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class Counted(nnx.Module):
    """x times a parameter, plus a constant table's entry; counts its calls and knows the mean of x."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array([2.0, 3.0]))
        self.mean = nnx.BatchStat(jnp.zeros(2))
        self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, x, index, power=1, shift=None):
        self.calls[...] += 1
        self.mean[...] = jnp.mean(x, axis=0)
        return self.scale[...][None] * x**power * (index + 1)[:, None].astype(x.dtype) + shift


class WrongOnPurpose:
    """x_bar tripled: whoever sees it knows that the rule was asked."""

    def forward(layer, x, index, power=1, shift=None):
        return layer(x, index, power=power, shift=shift), (x, index)

    def backward(layer, residuals, y_bar, power=1, shift=None):
        x, index = residuals
        factor = y_bar * (index + 1)[:, None].astype(x.dtype)
        x_bar = 3 * factor * layer.scale[...][None] * power * x ** (power - 1)
        return {"scale": jnp.sum(factor * x**power, axis=0)}, (x_bar, None)


def test_a_layer_with_state_integers_and_options(normal):
    chainrule.rule(Counted)(WrongOnPurpose)
    plain, ours = Counted(), chainrule.as_custom_vjp(Counted())
    x, index, shift = normal(1, 4, 2), jnp.array([0, 2, 1, 1]), normal(2, 4, 2)
    call = {"power": 2, "shift": shift}
    np.testing.assert_allclose(ours(x, index, **call), plain(x, index, **call), rtol=1e-14)
    assert ours.layer.calls[...] == 1
    np.testing.assert_allclose(ours.layer.mean[...], np.mean(x, axis=0), rtol=1e-14)

    def loss(layer, params, x, shift):
        graphdef, _, state = split(layer)
        layer = merge(graphdef, params, state)
        return jnp.sum(jnp.sin(layer(x, index, power=2, shift=shift))), layer

    def gradients(layer, wrt):
        _, params, _ = split(layer)
        of = partial(loss, layer)
        return jax.jit(lambda p, x, s: jax.grad(lambda *a: of(*a)[0], wrt)(p, x, s))(params, x, shift)

    (p, x_bar), (our_p, our_x_bar) = gradients(plain, (0, 1)), gradients(ours, (0, 1))
    np.testing.assert_allclose(our_p["layer"]["scale"], p["scale"], rtol=1e-13)
    np.testing.assert_allclose(our_x_bar, 3 * x_bar, rtol=1e-13)
    # The rule knows nothing of an option's derivative: where one is asked for, the layer is opened.
    found, right = gradients(ours, (1, 2)), gradients(plain, (1, 2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), found, right)


def test_a_whole_model_and_its_loss(random_model, normal):
    """Under `vmap` over examples, `jit` and `grad`, inside other things that JAX differentiates."""

    def build():
        rngs = nnx.Rngs(0)
        branch = Residual(nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.tanh))
        return nnx.Sequential(nnx.Conv(1, 2, (3,), rngs=rngs), flatten, branch, nnx.Linear(4, 3, rngs=rngs))

    model, labels = random_model(build), jnp.array([0, 2, 1])
    x = normal(1, 3, 2, 1)
    wrapped = chainrule.as_custom_vjp(model)
    by_rule = chainrule.as_custom_vjp(cross_entropy)

    def gradient(model, loss_fn):
        graphdef, params, state = split(model)

        def loss(params, x, label):
            return loss_fn(jnp.tanh(merge(graphdef, params, state)(x[None])), label[None])[0]

        return jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0, 0)))(params, x, labels)

    params_bar, x_bar = gradient(model, cross_entropy)
    ours, our_x_bar = gradient(wrapped, by_rule)
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-15)
    jax.tree.map(close, ours["layer"], params_bar)
    close(our_x_bar, x_bar)


def test_inside_a_model(normal, random_model):
    """One layer of many by its rule, and the engine of autodiff around it."""

    def build(wrap):
        rngs = nnx.Rngs(0)
        return nnx.Sequential(wrap(nnx.Linear(3, 4, rngs=rngs)), wrap(nnx.tanh), nnx.Linear(4, 2, rngs=rngs))

    x, y = normal(1, 5, 3), normal(2, 5, 2)
    answers = []
    for wrap in (lambda layer: layer, chainrule.as_custom_vjp):
        loss, (grads, x_bar) = autodiff.value_and_grad(
            random_model(partial(build, wrap)), optax.squared_error, x, y, inputs=True
        )
        answers.append((loss, x_bar, jax.tree.leaves(grads)))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), *answers)


def test_options_of_functions(normal):
    x = normal(1, 5)
    ours = chainrule.as_custom_vjp(nnx.leaky_relu)
    bound = chainrule.as_custom_vjp(partial(nnx.leaky_relu, negative_slope=0.3))
    expected = jax.grad(lambda x: jnp.sum(nnx.leaky_relu(x, negative_slope=0.3)))(x)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(ours(x, negative_slope=0.3)))(x), expected)
    np.testing.assert_array_equal(jax.grad(lambda x: jnp.sum(bound(x)))(x), expected)


class Scaled(nnx.Module):
    """A module with a `__call__` of its own and no rule."""

    def __init__(self):
        self.scale = nnx.Param(jnp.array([2.0, 3.0]))

    def __call__(self, x):
        return jnp.cos(x * self.scale[...][None])


def test_a_layer_without_a_rule_is_traced(normal):
    def gradient(layer):
        graphdef, params = nnx.split(layer)
        return jax.jit(jax.grad(lambda p, x: jnp.sum(nnx.merge(graphdef, p)(x) ** 2), (0, 1)))(
            params, normal(1, 4, 2)
        )

    found, right = (jax.tree.leaves(gradient(each)) for each in (chainrule.as_custom_vjp(Scaled()), Scaled()))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-13), found, right)
