"""Gradients of single examples against `vmap` of `grad`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import split
from bpresearch.models import Residual, flatten, patch_convolution
from bpresearch.models.attention import CausalAttention, dot_product_attention
from bpresearch.models.combinators import Masked, Unembed

pytestmark = pytest.mark.usefixtures("float64")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels
QUICKLY = {"xla_backend_optimization_level": 0}


def assert_right(model, loss_fn, x, y, tolerance=1e-11):
    graphdef, params, state = split(model)
    gradient = autodiff.gradient(graphdef, loss_fn)

    def of_one(x, y):
        one = jax.tree.map(lambda part: part[None], (x, y))
        (loss, _), grads = gradient(params, state, one)
        return loss, grads

    loss, expected = jax.jit(jax.vmap(of_one), compiler_options=QUICKLY)(x, y)
    losses, found = chainrule.per_example_gradients(model, loss_fn, x, y)
    np.testing.assert_allclose(losses, loss, rtol=1e-12)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, right), ours in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        error, size = np.max(np.abs(ours - right)), np.max(np.abs(right))
        assert error <= tolerance * size + 1e-15, f"{jax.tree_util.keystr(path)}: {error:.3g} of {size:.3g}"


@pytest.mark.parametrize("convolve", [jax.lax.conv_general_dilated, patch_convolution])
def test_convolutional_network(convolve, random_model, normal):
    def build():
        rngs = nnx.Rngs(0)
        pool = partial(nnx.max_pool, window_shape=(2,), strides=(2,))
        conv = nnx.Conv(2, 4, (3,), conv_general_dilated=convolve, rngs=rngs)
        branch = Residual(nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.tanh))
        norm = nnx.GroupNorm(4, num_groups=2, rngs=rngs)
        return nnx.Sequential(conv, norm, nnx.relu, pool, flatten, branch, nnx.Linear(8, 3, rngs=rngs))

    assert_right(random_model(build), cross_entropy, normal(1, 3, 4, 2), jnp.array([0, 2, 1]))


def test_transformer(random_model):
    def build():
        rngs = nnx.Rngs(0)
        embed = nnx.Embed(5, 4, rngs=rngs)
        attention = CausalAttention(2, 4, 4, 4, attention_fn=dot_product_attention, decode=False, rngs=rngs)
        norm = nnx.LayerNorm(4, rngs=rngs)
        return nnx.Sequential(embed, Residual(nnx.Sequential(norm, attention)), Unembed(embed))

    tokens, targets = jnp.array([[0, 3, 1], [2, 2, 4]]), jnp.array([[3, 1, 4], [2, 4, 0]])
    assert_right(random_model(build), cross_entropy, tokens, targets)


def test_recurrent_network(random_model, normal):
    """The batch is not the first axis of what a recurrence keeps."""
    model = random_model(lambda: nnx.RNN(nnx.GRUCell(2, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)))
    assert_right(model, optax.squared_error, normal(1, 3, 4, 2), normal(2, 3, 4, 3))


def test_their_mean_is_the_gradient_of_the_batch(random_model, normal):
    model = random_model(lambda: nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.sigmoid))
    x, y = normal(1, 5, 3), normal(2, 5, 2)
    losses, grads = chainrule.per_example_gradients(model, optax.l2_loss, x, y)
    loss, expected = chainrule.value_and_grad(model, optax.l2_loss, x, y)
    np.testing.assert_allclose(jnp.mean(losses), loss, rtol=1e-13)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(jnp.mean(g, 0), e, rtol=1e-12), grads, expected)


def test_batch_norm_mixes_examples(random_model, normal):
    x, y = normal(1, 4, 3), normal(2, 4, 3)
    norm = nnx.BatchNorm(3, use_running_average=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    message = r"nnx\.BatchNorm at layers\.0 mixes the examples.*use_running_average=True"
    with pytest.raises(ValueError, match=message):
        chainrule.per_example_gradients(nnx.Sequential(norm), optax.l2_loss, x, y)
    with pytest.raises(ValueError, match=r"nnx\.BatchNorm at norm mixes the examples"):
        chainrule.per_example_gradients(Masked(norm), optax.l2_loss, (x, x > 0), y)
    norm.use_running_average = True
    assert_right(nnx.Sequential(norm), optax.l2_loss, x, y)


def test_a_loss_of_the_whole_batch_is_refused(normal):
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    labels = jnp.array([0, 0, 1, 1])
    with pytest.raises(ValueError, match="ntxent gives no value for each example"):
        chainrule.per_example_gradients(model, optax.losses.ntxent, normal(1, 4, 3), labels)


def test_a_residual_that_mixes_the_examples_is_refused(normal):
    def folded(x):
        return 2 * x

    @chainrule.rule(folded)
    class FoldedRule:
        def forward(layer, x):
            return 2 * x, x.reshape(-1)

        def backward(layer, residuals, y_bar):
            return {}, 2 * y_bar

    with pytest.raises(ValueError, match=r"residual of shape \(12,\) that mixes the 4 examples"):
        chainrule.per_example_gradients(
            nnx.Sequential(folded), optax.l2_loss, normal(1, 4, 3), normal(2, 4, 3)
        )
