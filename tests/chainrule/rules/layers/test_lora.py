"""The rules of `nnx.LoRA` and `nnx.LoRALinear`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

pytestmark = pytest.mark.usefixtures("float64", "strict_promotion")


def standalone(rngs):
    return nnx.LoRA(4, 2, 3, rngs=rngs)


def wrapped(rngs):
    return nnx.LoRA(4, 2, 3, base_module=nnx.Linear(4, 3, rngs=rngs), rngs=rngs)


def around_an_activation(rngs):
    return nnx.LoRA(4, 2, 4, base_module=nnx.Sequential(nnx.tanh), rngs=rngs)


def linear(rngs):
    return nnx.LoRALinear(4, 3, lora_rank=2, rngs=rngs)


def linear_without_bias(rngs):
    return nnx.LoRALinear(4, 3, lora_rank=2, use_bias=False, rngs=rngs)


def not_parameters(rngs):
    return nnx.LoRALinear(4, 3, lora_rank=2, lora_param_type=nnx.BatchStat, rngs=rngs)


def in_a_model(rngs):
    return nnx.Sequential(linear(rngs), nnx.tanh, nnx.LoRA(3, 1, 3, rngs=rngs))


ALL = [standalone, wrapped, around_an_activation, linear, linear_without_bias, not_parameters, in_a_model]


@pytest.mark.parametrize("build", ALL)
def test_as_autodiff(build, random_model, normal, assert_engines_agree):
    model, x = random_model(lambda: build(nnx.Rngs(0))), normal(1, 2, 5, 4)
    y = normal(2, *jax.eval_shape(lambda x: model(x), x).shape)
    assert assert_engines_agree(model, optax.squared_error, x, y) <= 1e-13


@pytest.mark.parametrize("build", [wrapped, linear])
def test_finite_differences(build, random_model, normal, assert_matches_finite_differences):
    model = random_model(lambda: build(nnx.Rngs(0)))
    assert_matches_finite_differences(model, optax.squared_error, normal(1, 5, 4), normal(2, 5, 3))


def test_the_product_of_two_thin_matrices(random_model, normal, gradient_by_rules):
    """LoRALinear is a linear layer of kernel W + A B: W_bar is that layer's, and A_bar and B_bar follow."""
    model, x, y = random_model(lambda: linear(nnx.Rngs(0))), normal(1, 5, 4), normal(2, 5, 3)
    _, grads, x_bar = gradient_by_rules(model, optax.squared_error, x, y)
    a, b = np.asarray(model.lora.lora_a[...]), np.asarray(model.lora.lora_b[...])
    whole = np.asarray(model.kernel[...]) + a @ b
    y_bar = 2 / 15 * (np.asarray(x) @ whole + np.asarray(model.bias[...]) - np.asarray(y))
    whole_bar = np.asarray(x).T @ y_bar
    np.testing.assert_allclose(grads["kernel"], whole_bar, rtol=1e-12)
    np.testing.assert_allclose(grads["lora"]["lora_a"], whole_bar @ b.T, rtol=1e-12)
    np.testing.assert_allclose(grads["lora"]["lora_b"], a.T @ whole_bar, rtol=1e-12)
    np.testing.assert_allclose(x_bar, y_bar @ whole.T, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "options"), [
    (jnp.float32, {}),
    (jnp.bfloat16, {}),
    (None, {"dtype": jnp.bfloat16, "lora_dtype": jnp.bfloat16}),
    (None, {"lora_dtype": jnp.float32, "dtype": jnp.float32, "param_dtype": jnp.bfloat16}),
])  # fmt: skip
def test_rounding(dtype, options, random_model, normal, assert_sound_in):
    model = random_model(lambda: nnx.LoRALinear(4, 3, lora_rank=2, **options, rngs=nnx.Rngs(0)), dtype=None)
    x, y = normal(1, 8, 4, dtype=jnp.float32), normal(2, 8, 3, dtype=options.get("dtype", jnp.float32))
    with jax.numpy_dtype_promotion("standard"):
        assert_sound_in(dtype, model, optax.squared_error, x, y)
