"""Rotary position embeddings (Su et al. 2021), which Flax has from 0.12.12 on."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.attention import DotProductAttentionRule
from bpresearch.chainrule.broadcast import no_derivative
from bpresearch.chainrule.registry import rule


def rotation(rope, x, positions):
    """cos and sin of the angles: what the layer makes of the vectors (1, ..., 1, 0, ..., 0)."""
    half = x.shape[-1] // 2
    cos_sin = rope(jnp.zeros_like(x).at[..., :half].set(1), positions)
    return cos_sin[..., :half], cos_sin[..., half:]


def turned_back(y_bar, rotation, dtype):
    """(cos y_1 + sin y_2, cos y_2 - sin y_1)"""
    cos, sin = rotation
    first, second = jnp.split(y_bar, 2, axis=-1)
    return jnp.concatenate([cos * first + sin * second, cos * second - sin * first], axis=-1).astype(dtype)


class RoPERule:
    """y = (cos x_1 - sin x_2, sin x_1 + cos x_2), each pair turned by an angle that grows with the position.

    x_bar = (cos y_1_bar + sin y_2_bar, cos y_2_bar - sin y_1_bar), turned back: the transpose of a rotation
    is its inverse.

    x: (..., length, dim), x_1 and x_2 its halves. Positions have no derivative here.
    """

    def forward(layer, x, *positions, input_positions=None):
        given = positions[0] if positions else input_positions
        return layer(x, given), (rotation(layer, x, given), jnp.zeros((), x.dtype), positions)

    def backward(layer, residuals, y_bar, input_positions=None):
        turn, like, positions = residuals
        x_bar = turned_back(y_bar, turn, like.dtype)
        return {}, (x_bar, no_derivative(positions[0])) if positions else x_bar


class DotProductAttentionWithRoPERule:
    """Dot-product attention of turned queries and keys.      Its cotangents of these, turned back

    q: (*batch, length, heads, d) and so on, as in `DotProductAttentionRule`; every head is turned alike.
    """

    def forward(function, query, key, value, *rest, rope, input_positions=None, **options):
        turns = [by_head(rotation, rope, x, input_positions) for x in (query, key)]
        turned = [by_head(lambda *a: rope(*a[1:]), rope, x, input_positions) for x in (query, key)]
        y, residuals = DotProductAttentionRule.forward(
            nnx.dot_product_attention, *turned, value, *rest, **options
        )
        return y, (turns, (jnp.zeros((), query.dtype), jnp.zeros((), key.dtype)), residuals)

    def backward(function, residuals, y_bar, rope, input_positions=None, **options):
        turns, likes, residuals = residuals
        _, (*turned_bar, value_bar) = DotProductAttentionRule.backward(
            nnx.dot_product_attention, residuals, y_bar, **options
        )
        back = [
            turned_back(*parts) for parts in zip(turned_bar, turns, (x.dtype for x in likes), strict=True)
        ]
        return {}, (*back, value_bar)


def by_head(function, rope, x, positions):
    """`function(rope, x, positions)` with the axis of the heads before that of the length."""
    positions = None if positions is None else jnp.moveaxis(positions, -1, -2)
    answer = function(rope, jnp.moveaxis(x, -2, -3), positions)
    if isinstance(answer, tuple):
        return tuple(jnp.moveaxis(part, -3, -2) for part in answer)
    return jnp.moveaxis(answer, -3, -2)


if hasattr(nnx, "RoPE"):
    rule(nnx.RoPE)(RoPERule)
    rule(nnx.dot_product_attention_with_rope)(DotProductAttentionWithRoPERule)
