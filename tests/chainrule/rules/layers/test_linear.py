"""The rule of `nnx.Linear`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from bpresearch import chainrule

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


@pytest.fixture
def linear(random_model):
    def linear(inputs, outputs, param_dtype=jnp.float64, **options):
        def build():
            return nnx.Linear(inputs, outputs, param_dtype=param_dtype, rngs=nnx.Rngs(0), **options)

        return random_model(build, dtype=None)

    return linear


def test_linear_regression_has_the_gradient_of_the_normal_equations(linear, normal):
    x, y = np.asarray(normal(2, 7, 3)), np.asarray(normal(3, 7, 1))
    model = linear(3, 1)
    loss, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    w, b = np.asarray(model.kernel[...]), np.asarray(model.bias[...])
    residual = x @ w + b - y
    np.testing.assert_allclose(loss, np.mean(residual**2), rtol=1e-14)
    np.testing.assert_allclose(grads["kernel"], 2 / 7 * x.T @ residual, rtol=1e-13)
    np.testing.assert_allclose(grads["bias"], 2 / 7 * residual.sum(0), rtol=1e-13)
    np.testing.assert_allclose(x_bar, 2 / 7 * residual @ w.T, rtol=1e-13)


def test_the_gradient_vanishes_at_the_least_squares_solution(linear, normal):
    x, y = np.asarray(normal(2, 20, 4)), np.asarray(normal(3, 20, 2))
    model = linear(4, 2, use_bias=False)
    model.kernel[...] = jnp.asarray(np.linalg.lstsq(x, y, rcond=None)[0])
    _, grads = chainrule.value_and_grad(model, optax.squared_error, x, y)
    np.testing.assert_allclose(grads["kernel"], 0, atol=1e-15)


@settings(max_examples=20)
@given(
    batch=st.lists(st.integers(1, 3), max_size=3),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    use_bias=st.booleans(),
)
def test_any_shape(batch, inputs, outputs, use_bias, gradient_by_rules, linear, normal):
    model = linear(inputs, outputs, use_bias=use_bias)
    x, y = normal(2, *batch, inputs), normal(3, *batch, outputs)
    loss, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    kernel, x, y = np.asarray(model.kernel[...]), np.asarray(x), np.asarray(y)
    difference = x @ kernel + (np.asarray(model.bias[...]) if use_bias else 0) - y
    rows = 2 / y.size * difference.reshape(-1, outputs)
    expected = {"kernel": x.reshape(-1, inputs).T @ rows, "bias": rows.sum(0)}
    assert set(grads) == ({"kernel", "bias"} if use_bias else {"kernel"})
    for name, found in grads.items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(x_bar, (rows @ kernel.T).reshape(x.shape), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(loss, np.mean(difference**2), rtol=1e-13)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 3)])
def test_as_autodiff(batch, assert_engines_agree, linear, normal):
    x, y = normal(2, *batch, 4), normal(3, *batch, 2)
    assert assert_engines_agree(linear(4, 2), optax.squared_error, x, y) <= 1e-14


def test_finite_differences(assert_matches_finite_differences, linear, normal):
    assert_matches_finite_differences(
        linear(3, 2), optax.squared_error, normal(2, 2, 4, 3), normal(3, 2, 4, 2)
    )


def test_torch(linear, normal):
    torch = pytest.importorskip("torch")
    model, x, y = linear(4, 3), normal(2, 2, 5, 4), normal(3, 2, 5, 3)
    twin = torch.nn.Linear(4, 3, dtype=torch.float64)
    with torch.no_grad():
        twin.weight.copy_(torch.tensor(np.asarray(model.kernel[...]).T))
        twin.bias.copy_(torch.tensor(np.asarray(model.bias[...])))
    inputs = torch.tensor(np.asarray(x), requires_grad=True)
    torch.nn.functional.mse_loss(twin(inputs), torch.tensor(np.asarray(y))).backward()
    _, (grads, x_bar) = chainrule.value_and_grad(model, optax.squared_error, x, y, inputs=True)
    np.testing.assert_allclose(grads["kernel"], twin.weight.grad.numpy().T, rtol=1e-10)
    np.testing.assert_allclose(grads["bias"], twin.bias.grad.numpy(), rtol=1e-10)
    np.testing.assert_allclose(x_bar, inputs.grad.numpy(), rtol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1, 64])
def test_rounding(dtype, size, assert_sound_in, linear, normal):
    x, y = normal(2, 16, size), normal(3, 16, 3)
    assert_sound_in(dtype, linear(size, 3), optax.squared_error, x, y)


@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32])
def test_mixed_precision(x_dtype, param_dtype, dtype, assert_sound_in, linear, normal):
    """Cotangents have the dtypes of what they belong to, and lose no more than autodiff's do."""
    model = linear(6, 5, dtype=dtype, param_dtype=param_dtype)
    with jax.numpy_dtype_promotion("standard"):
        x = normal(2, 16, 6, dtype=x_dtype)
        y = normal(3, 16, 5, dtype=model(x).dtype)
        assert_sound_in(None, model, optax.squared_error, x, y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_preferred_element_type(dtype, assert_sound_in, linear, normal):
    """Products may be accumulated in, and come out in, a wider type than the factors."""
    options = {"dtype": dtype, "preferred_element_type": jnp.float32}
    model = linear(6, 5, param_dtype=jnp.float32, use_bias=False, **options)
    x, y = normal(2, 16, 6, dtype=jnp.float32), normal(3, 16, 5, dtype=jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(None, model, optax.squared_error, x, y)


def test_integer_inputs_have_no_cotangent(assert_engines_agree, linear, normal):
    model, x = linear(3, 2), jnp.arange(12).reshape(4, 3)
    with jax.numpy_dtype_promotion("standard"):
        assert assert_engines_agree(model, optax.squared_error, x, normal(3, 4, 2)) <= 1e-14
