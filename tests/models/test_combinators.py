"""How layers are put together."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpresearch.functional import split
from bpresearch.models import Masked, Residual, Unembed, add_channel


def test_add_channel_keeps_the_order():
    x = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(add_channel(jnp.asarray(x)), x[:, :, None])


def test_a_residual_adds_its_branch():
    x = np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32)
    np.testing.assert_allclose(Residual(nnx.tanh)(jnp.asarray(x)), x + np.tanh(x), rtol=1e-6)


def test_a_residual_owns_its_branch():
    _, params, _ = split(Residual(nnx.Linear(3, 3, rngs=nnx.Rngs(0))))
    assert set(params["branch"]) == {"kernel", "bias"}


def test_unembedding_compares_with_every_row_of_the_table():
    embed = nnx.Embed(7, 3, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(Unembed(embed)(x), embed.attend(x))
    assert Unembed(embed)(x).shape == (2, 7)


def test_a_masked_norm_leaves_the_masked_elements_out_of_its_statistics():
    norm = nnx.LayerNorm(4, epsilon=0.0, rngs=nnx.Rngs(0))
    x, mask = jnp.array([[1.0, 3.0, 50.0, -50.0]]), jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(Masked(norm)(x, mask), [[-1, 1, 48, -52]], rtol=1e-6)
