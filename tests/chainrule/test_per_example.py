"""Gradients of single examples: against JAX's `vmap` of `grad`, and the Jacobian of the batch's losses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule
from bpresearch.functional import merge, split
from bpresearch.models import Residual, flatten, patch_convolution
from bpresearch.models.attention import CausalAttention, dot_product_attention
from bpresearch.models.combinators import Masked, Unembed
from bpresearch.verify.precision import UNOPTIMIZED

pytestmark = pytest.mark.usefixtures("float64")

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def assert_right(model, loss_fn, x, y, tolerance=1e-11):
    graphdef, params, state = split(model)
    gradient = autodiff.gradient(graphdef, loss_fn)

    def of_one(x, y):
        one = jax.tree.map(lambda part: part[None], (x, y))
        (loss, _), grads = gradient(params, state, one)
        return loss, grads

    loss, expected = jax.jit(jax.vmap(of_one), compiler_options=UNOPTIMIZED)(x, y)
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


def test_arrays_of_other_lengths_are_no_batch(normal):
    with pytest.raises(
        ValueError, match=r"the first axis of each array is the batch, not of \(4, 3\), \(2,\)"
    ):
        chainrule.per_example_gradients(
            nnx.Linear(3, 2, rngs=nnx.Rngs(0)), cross_entropy, normal(1, 4, 3), np.arange(2)
        )


def assert_rows(model, loss, batch):
    """The gradients are the rows of the Jacobian of `loss(model, batch)`."""
    graphdef, params, state = split(model)

    def losses(params):
        return loss(merge(graphdef, params, state), batch)

    values, rows = jax.jit(lambda p: (losses(p), jax.jacrev(losses)(p)), compiler_options=UNOPTIMIZED)(params)
    given = jax.jit(
        lambda p: chainrule.per_example_gradients(loss)(merge(graphdef, p, state), batch),
        compiler_options=UNOPTIMIZED,
    )
    found, grads = given(params)
    np.testing.assert_allclose(found, values, rtol=1e-12)
    grads = nnx.to_pure_dict(grads)
    assert jax.tree.structure(grads) == jax.tree.structure(rows)
    for (path, right), ours in zip(jax.tree.leaves_with_path(rows), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-9, atol=1e-12, err_msg=jax.tree_util.keystr(path))


class OwnCall(nnx.Module):
    """A user's own model: stacked layers in a scan, dropout in and beside them, a mask, an option."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=2)
        @nnx.vmap(axis_size=2)
        def stacked(rngs):
            return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.3, rngs=rngs), nnx.tanh)

        self.embed, self.stack = nnx.Embed(5, 4, rngs=rngs), stacked(rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, dropout_rate=0.4, decode=False, rngs=rngs)
        self.norm, self.out = nnx.LayerNorm(4, rngs=rngs), nnx.Linear(4, 5, rngs=rngs)
        self.drop = nnx.Dropout(0.5, broadcast_dims=(1,), rngs=rngs)

    def __call__(self, tokens, *, mask):
        h = nnx.scan(lambda h, layer: (layer(h), None))(self.embed(tokens), self.stack)[0]
        h = h + self.attention(self.norm(h), mask=mask, deterministic=False)
        return jax.vmap(self.out)(self.drop(h))


def test_a_model_of_ones_own_with_dropout(random_model):
    """Every example has its own row of each mask."""
    tokens = jnp.array([[0, 3, 1], [2, 2, 4], [1, 0, 3]])
    mask = np.broadcast_to(np.tril(np.ones((3, 3), bool)), (3, 1, 3, 3))

    def loss(model, batch):
        tokens, mask = batch
        return jnp.mean(cross_entropy(model(tokens, mask=mask), jnp.flip(tokens, 1)), 1)

    assert_rows(random_model(lambda: OwnCall(nnx.Rngs(0))), loss, (tokens, mask))


class Tracked(nnx.Module):
    """Variables that mix the examples, which no output does; a kernel for each row of the batch."""

    def __init__(self, rngs):
        self.each = nnx.LinearGeneral(3, 4, axis=-1, batch_axis={0: 4}, rngs=rngs)
        self.mean = nnx.Variable(jnp.zeros(4))
        self.norm = nnx.BatchNorm(4, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        h = self.norm(self.each(x))
        self.mean[...] = jnp.mean(h, 0)
        return h


def test_variables_may_mix_the_examples(random_model, normal):
    def loss(model, x):
        return jnp.sum(nnx.tanh(model(x)), -1)

    model = random_model(lambda: Tracked(nnx.Rngs(0)))
    model.norm.var[...] = jnp.ones(4)
    assert_rows(model, loss, normal(1, 4, 3))


def test_rules_of_ones_own_are_kept(random_model, normal):
    """Their passes are those of the batch: this one divides by the number of examples, and adds to x_bar."""

    class Scale(nnx.Module):
        def __init__(self, rngs):
            self.scale = nnx.Param(jnp.ones(3))

        def __call__(self, x):
            return x * self.scale[...][None] / len(x)

    @chainrule.rule(Scale)
    class ScaleRule:
        def forward(layer, x):
            return layer(x), (x / len(x)).reshape(-1)

        def backward(layer, x, y_bar):
            scale_bar = 5 * jnp.sum(x.reshape(y_bar.shape) * y_bar, 0)
            return {"scale": scale_bar}, y_bar * layer.scale[...][None] / len(y_bar)

    model = random_model(lambda: nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), Scale(nnx.Rngs(0))))
    x, y = normal(1, 4, 2), normal(2, 4, 3)
    losses, grads = chainrule.per_example_gradients(model, optax.squared_error, x, y)
    loss, expected = chainrule.value_and_grad(model, optax.squared_error, x, y)
    np.testing.assert_allclose(jnp.mean(losses), loss, rtol=1e-13)
    jax.tree.map(lambda g, e: np.testing.assert_allclose(jnp.mean(g, 0), e, rtol=1e-12), grads, expected)

    class Mixing(ScaleRule):
        def backward(layer, x, y_bar):
            grads, x_bar = ScaleRule.backward(layer, x, y_bar)
            return grads, x_bar / jnp.max(jnp.abs(x_bar))

    chainrule.rule(Scale)(Mixing)
    with pytest.raises(ValueError, match=r"reduce_max at .* mixes the examples"):
        chainrule.per_example_gradients(model, optax.squared_error, x, y)


def test_a_planted_fault_reaches_them(random_model, normal):
    model, x, y = random_model(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0))), normal(1, 4, 3), normal(2, 4, 2)

    class Doubled:
        def __init__(self, rule):
            self.forward, self.rule = rule.forward, rule

        def backward(self, *args, **options):
            grads, x_bar = self.rule.backward(*args, **options)
            return jax.tree.map(lambda g: 2 * g, grads), x_bar

    _, right = chainrule.per_example_gradients(model, optax.l2_loss, x, y)
    with chainrule.replacing(lambda e, rule: Doubled(rule) if e.name == "Linear" else rule):
        _, wrong = chainrule.per_example_gradients(model, optax.l2_loss, x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-13), wrong, right)
