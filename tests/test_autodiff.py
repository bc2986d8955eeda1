"""The autodiff engine."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bpresearch as bp
from bpresearch.functional import split

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


@pytest.fixture
def model():
    return nnx.Linear(3, 2, rngs=nnx.Rngs(0))


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(5, 2))
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def test_linear_regression_in_closed_form(model, batch):
    loss, (grads, x_bar) = bp.autodiff.value_and_grad(model, optax.squared_error, *batch, inputs=True)
    w, b, x, y = (np.asarray(array, np.float64) for array in (model.kernel[...], model.bias[...], *batch))
    residual = x @ w + b - y
    np.testing.assert_allclose(loss, np.mean(residual**2), rtol=1e-5)
    np.testing.assert_allclose(grads["kernel"], 2 / y.size * x.T @ residual, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads["bias"], 2 / y.size * residual.sum(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(x_bar, 2 / y.size * residual @ w.T, rtol=1e-4, atol=1e-6)


def test_without_inputs_the_gradients_alone(model, batch):
    loss, grads = bp.autodiff.value_and_grad(model, optax.squared_error, *batch)
    assert loss.shape == () and type(grads) is dict and grads.keys() == {"kernel", "bias"}


def test_any_function_of_outputs_and_targets_is_a_loss(model, batch):
    """Unlike the other engine, this one needs no rule; what the loss gives is averaged."""
    _, each = bp.autodiff.value_and_grad(model, lambda o, t: jnp.abs(o - t) ** 3, *batch)
    _, whole = bp.autodiff.value_and_grad(model, lambda o, t: jnp.mean(jnp.abs(o - t) ** 3), *batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), each, whole)


def test_several_inputs():
    class Product(nnx.Module):
        def __call__(self, a, b):
            return a * b

    a, b, y = jnp.array([2.0, 3.0]), jnp.array([5.0, 7.0]), jnp.zeros(2)
    found = bp.autodiff.value_and_grad(Product(), optax.l2_loss, (a, b), y, inputs=True)
    loss, (grads, (a_bar, b_bar)) = found
    assert loss == (10**2 + 21**2) / 4 and grads == {}
    np.testing.assert_allclose(a_bar, [10 * 5 / 2, 21 * 7 / 2])
    np.testing.assert_allclose(b_bar, [10 * 2 / 2, 21 * 3 / 2])


def test_integer_inputs_have_no_cotangent():
    model = nnx.Embed(4, 2, rngs=nnx.Rngs(0))
    x, y = jnp.array([1, 3, 1]), jnp.zeros((3, 2))
    _, (grads, x_bar) = bp.autodiff.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    assert x_bar.dtype == jax.dtypes.float0
    used = np.abs(grads["embedding"]).sum(1) > 0
    assert used.tolist() == [False, True, False, True]


class Noisy(nnx.Module):
    """Statistics and random numbers: what a gradient must not lose, and not leave in the model."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.dropout(self.norm(x)))


def test_the_model_is_not_changed(batch):
    model = Noisy()
    first = bp.autodiff.value_and_grad(model, optax.squared_error, *batch)
    second = bp.autodiff.value_and_grad(model, optax.squared_error, *batch)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not np.any(model.norm.mean[...]) and model.dropout.rngs.count[...] == 0


def test_the_pure_function_returns_what_the_model_became(batch):
    graphdef, params, state = split(Noisy())
    gradient = jax.jit(bp.autodiff.gradient(graphdef, optax.squared_error))
    (loss, after), grads = gradient(params, state, batch)
    x = np.asarray(batch[0])
    np.testing.assert_allclose(after["norm"]["mean"], 0.1 * x.mean(0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(after["norm"]["var"], 0.9 + 0.1 * x.var(0), rtol=1e-4)
    assert after["dropout"]["rngs"]["count"] == 1
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    # The next step drops other units.
    (next_loss, _), _ = gradient(params, after, batch)
    assert next_loss != loss


def test_dropout_of_the_value_is_dropout_of_the_gradient(batch):
    """A unit that is dropped for an example has no part in that example's gradient."""
    model = nnx.Sequential(nnx.Dropout(0.5, rngs=nnx.Rngs(3)))
    x = jnp.ones((6, 8))
    _, (_, x_bar) = bp.autodiff.value_and_grad(model, optax.squared_error, x, jnp.zeros_like(x), inputs=True)
    assert set(np.unique(np.asarray(x_bar) * x.size)) == {0.0, 8.0}  # 2 * 2 * 2: kept, or zero


def test_under_vmap_and_grad_of_a_gradient(model, batch):
    """A pure function like any other: its own derivative gives the Hessian of least squares."""
    graphdef, params, state = split(model)
    gradient = bp.autodiff.gradient(graphdef, optax.squared_error)
    hessian = jax.jacfwd(lambda p: gradient(p, state, batch)[1])(params)["bias"]["bias"]
    np.testing.assert_allclose(hessian, np.eye(2), rtol=1e-5, atol=1e-6)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    (losses, _), _ = jax.vmap(gradient, (0, None, None))(many, state, batch)
    assert losses.shape == (2,) and losses[0] != losses[1]


def test_labels(batch):
    """Softmax minus one-hot, through a layer of weights one."""
    model = nnx.Linear(2, 2, kernel_init=lambda *_: jnp.eye(2), use_bias=False, rngs=nnx.Rngs(0))
    _, (_, x_bar) = bp.autodiff.value_and_grad(
        model, cross_entropy, jnp.zeros((1, 2)), jnp.array([1]), inputs=True
    )
    np.testing.assert_allclose(x_bar, [[0.5, -0.5]], rtol=1e-6)
