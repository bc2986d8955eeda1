"""Functions that move, select or average, and the modules that put layers together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bpresearch import models


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 3, 4), (1, 1, 1)])
def test_flatten_is_row_major(shape):
    x = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(models.flatten(jnp.asarray(x)), x.reshape(shape[0], -1))


def test_where_values_go():
    x = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(models.steps(jnp.asarray(x)), x.reshape(2, 3, 4))
    np.testing.assert_array_equal(models.steps(jnp.asarray(x[:, :, 0, 0])), x[:, :, 0, :1])
    np.testing.assert_array_equal(models.positions(jnp.asarray(x)), x.reshape(2, 6, 2))
    np.testing.assert_array_equal(models.swap(jnp.asarray(x)), x.transpose(0, 1, 3, 2))
    np.testing.assert_array_equal(models.last(jnp.asarray(x)), x[:, 2])
    np.testing.assert_allclose(models.average(jnp.asarray(x)), x.mean((1, 2)))


def test_parallel_branches():
    x = jnp.arange(6.0).reshape(2, 3)
    both = models.Parallel(nnx.relu, jnp.negative)
    np.testing.assert_array_equal(both(x), np.concatenate([x, -x], axis=-1))
    np.testing.assert_array_equal(models.Parallel(nnx.relu, jnp.negative, merge=models.add)(x), 0 * x)


def test_a_stack_of_layers_is_its_layers_one_after_another():
    stack = models.LayerStack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(0)
    layers = [nnx.Linear(3, 3, rngs=rngs) for _ in range(4)]
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(stack(x), nnx.Sequential(*layers)(x), rtol=1e-5)
    assert stack.layer.kernel.shape == (4, 3, 3)


def test_a_stack_keeps_the_state_of_each_layer():
    """Running averages differ from layer to layer, and every layer drops elements of its own."""

    def build(rngs):
        return nnx.Sequential(
            nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        )

    stack = models.LayerStack(build, 3, rngs=nnx.Rngs(0))
    rngs = nnx.Rngs(0)
    alone = nnx.Sequential(*(build(rngs) for _ in range(3)))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    np.testing.assert_allclose(stack(x), alone(x), rtol=1e-4, atol=1e-5)
    means = [np.asarray(layer.layers[1].mean[...]) for layer in alone.layers]
    np.testing.assert_allclose(stack.layer.layers[1].mean[...], means, rtol=1e-4, atol=1e-6)


def test_a_stack_of_no_layers_is_refused():
    with pytest.raises(ValueError, match="depth 0"):
        models.LayerStack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 0, rngs=nnx.Rngs(0))
