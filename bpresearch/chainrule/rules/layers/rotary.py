"""Rotary position embeddings (Su et al. 2021), which Flax has from 0.12.12 on."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import rule


class RoPERule:
    """y = (cos x_1 - sin x_2, sin x_1 + cos x_2), each pair turned by an angle that grows with the position.

    x_bar = (cos y_1_bar + sin y_2_bar, cos y_2_bar - sin y_1_bar), turned back: the transpose of a rotation
    is its inverse.

    x: (..., length, dim), x_1 and x_2 its halves. Positions are an option, without derivative.
    """

    def forward(layer, x, *, input_positions=None):
        # cos and sin of the angles are what the layer makes of the vectors (1, ..., 1, 0, ..., 0).
        turned = layer(jnp.zeros_like(x).at[..., : x.shape[-1] // 2].set(1), input_positions)
        return layer(x, input_positions), (turned, jnp.zeros((), x.dtype))

    def backward(layer, residuals, y_bar, *, input_positions=None):
        turned, like = residuals
        cos, sin = jnp.split(turned, 2, axis=-1)
        y_1_bar, y_2_bar = jnp.split(y_bar, 2, axis=-1)
        x_bar = [cos * y_1_bar + sin * y_2_bar, cos * y_2_bar - sin * y_1_bar]
        return {}, jnp.concatenate(x_bar, axis=-1).astype(like.dtype)


if hasattr(nnx, "RoPE"):
    rule(nnx.RoPE)(RoPERule)
