"""The models of images, signals and texts: sizes, what goes in and out, and both engines."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from bpresearch import autodiff, chainrule, models
from bpresearch.functional import split
from bpresearch.verify.casting import cast_model

IMAGE, SIGNAL, VECTOR, TOKENS = (8, 8, 1), (10, 1), (6,), (7,)
CROSS_ENTROPY = optax.losses.softmax_cross_entropy_with_integer_labels


def count(build, shape, outputs):
    model = nnx.eval_shape(lambda: build(shape, outputs, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_sizes():
    """Numbers of parameters, counted layer by layer from the papers."""
    convolutions = 6 * 25 + 6 + 16 * 6 * 25 + 16
    dense = 2 * 2 * 16 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10
    assert count(models.lenet, IMAGE, 10) == convolutions + dense
    # 16 and 32 channels: a first convolution, 3 blocks of two, a shortcut; each with scale and bias.
    kernels = 9 * 16 + 2 * 9 * 16 * 16 + 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32
    normalizations = 2 * (3 * 16 + 3 * 32)
    assert count(partial(models.resnet, channels=(16, 32)), IMAGE, 10) == kernels + normalizations + 330
    # GPT-2's 12 d^2 + 13 d per block, the embedding (once), the positions and the last normalization.
    block = 12 * 8**2 + 13 * 8
    for scan_layers in (False, True):
        build = partial(models.transformer, width=8, heads=2, depth=3, scan_layers=scan_layers)
        assert count(build, TOKENS, 5) == 3 * block + 5 * 8 + 7 * 8 + 2 * 8
    build = partial(models.vit, width=8, heads=2, depth=1)
    assert count(build, IMAGE, 3) == (4 * 8 + 8) + 16 * 8 + block + 2 * 8 + (8 * 3 + 3)
    # Per gate W_i, W_h and one bias, in two directions, then 10 steps of both.
    assert count(models.bidirectional_gru, SIGNAL, 10) == 2 * 3 * (6 + 36 + 6) + 10 * 12 * 10 + 10
    assert count(partial(models.lstm, width=5), SIGNAL, 3) == 4 * (5 + 25 + 5) + 5 * 3 + 3
    build = partial(models.autoencoder, widths=(7, 2))
    assert count(build, VECTOR, 6) == (6 * 7 + 7) + (7 * 2 + 2) + (2 * 7 + 7) + (7 * 6 + 6)


SMALL = {
    "lenet": (models.lenet, IMAGE),
    "lenet of a signal": (partial(models.lenet, pooling="max"), SIGNAL),
    "resnet": (partial(models.resnet, channels=(2, 3)), IMAGE),
    "resnet of a signal": (partial(models.resnet, channels=(2,), depth=2), SIGNAL),
    "transformer": (partial(models.transformer, width=4, heads=2, depth=1), TOKENS),
    "scanned transformer": (partial(models.transformer, width=4, heads=2, scan_layers=True), TOKENS),
    "vit": (partial(models.vit, width=4, heads=2, depth=1, patch_size=4), IMAGE),
    "vit of a vector": (partial(models.vit, width=4, heads=1, depth=1, scan_layers=True), VECTOR),
    "mixer": (partial(models.mixer, width=4, depth=1, patch_size=4), IMAGE),
    "gru": (partial(models.gru, width=3, depth=2), IMAGE),
    "lstm": (partial(models.lstm, width=3, initialization="torch"), SIGNAL),
    "bidirectional gru": (partial(models.bidirectional_gru, width=2, initialization="torch"), VECTOR),
    "autoencoder": (partial(models.autoencoder, widths=(5, 3)), VECTOR),
}


@pytest.mark.parametrize("name", SMALL)
def test_engines_agree(name, float64):
    build, shape = SMALL[name]
    outputs = 6 if name == "autoencoder" else 5
    model = cast_model(build(shape, outputs, rngs=nnx.Rngs(0)), jnp.float64)
    rng = np.random.default_rng(0)
    x, y, loss_fn = rng.normal(size=(4, *shape)), rng.integers(0, 5, 4), CROSS_ENTROPY
    if shape == TOKENS:
        x, y = rng.integers(0, 5, (4, 7)), rng.integers(0, 5, (4, 7))
    elif name == "autoencoder":
        y, loss_fn = x, optax.losses.squared_error
    graphdef, params, state = split(model)
    quickly = {"xla_backend_optimization_level": 0}
    (loss, new_state), grads = jax.jit(autodiff.gradient(graphdef, loss_fn), compiler_options=quickly)(
        params, state, (x, y)
    )
    (our_loss, our_state), our_grads = jax.jit(
        chainrule.gradient(graphdef, loss_fn), compiler_options=quickly
    )(params, state, (x, y))
    np.testing.assert_allclose(our_loss, loss, rtol=1e-12)
    assert jax.tree.structure((our_grads, our_state)) == jax.tree.structure((grads, new_state))
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    for found, expected in zip(*map(jax.tree.leaves, (our_grads, grads)), strict=True):
        size = max(np.abs(expected).max(), 1e-4 * largest)  # attention's key biases have no derivative
        assert np.abs(found - expected).max() <= 1e-11 * size
    for found, expected in zip(*map(jax.tree.leaves, (our_state, new_state)), strict=True):
        if jnp.issubdtype(expected.dtype, jnp.floating):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
        elif not jnp.issubdtype(expected.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(found, expected)


def test_a_language_model_does_not_see_the_future():
    model = models.transformer(TOKENS, 5, width=4, heads=2, depth=1, rngs=nnx.Rngs(0))
    x = jnp.array([[0, 1, 2, 3, 4, 0, 1]])
    changed = x.at[0, 4].set(2)
    same = np.isclose(model(x), model(changed), rtol=1e-6).all(axis=(0, 2))
    np.testing.assert_array_equal(same, [True] * 4 + [False] * 3)


def test_shorter_texts_have_the_same_logits():
    model = models.transformer(TOKENS, 5, width=4, heads=2, depth=1, rngs=nnx.Rngs(0))
    x = jnp.array([[0, 1, 2, 3, 4, 0, 1]])
    np.testing.assert_allclose(model(x[:, :3]), model(x)[:, :3], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("build", "shape", "message"),
    [
        (partial(models.transformer, width=6, heads=4), TOKENS, "width 6 is not a multiple of heads 4"),
        (models.transformer, IMAGE, "sequences of tokens"),
        (partial(models.vit, patch_size=9), IMAGE, "patch_size 9 does not fit"),
        (partial(models.mixer, patch_size=0), SIGNAL, "patch_size 0 does not fit"),
        (partial(models.resnet, channels=()), IMAGE, "channels"),
        (partial(models.gru, depth=0), SIGNAL, "depth 0"),
        (partial(models.autoencoder, widths=()), VECTOR, "widths"),
    ],
)
def test_bad_options_are_one_line(build, shape, message):
    with pytest.raises(ValueError, match=message) as error:
        build(shape, 5, rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)
