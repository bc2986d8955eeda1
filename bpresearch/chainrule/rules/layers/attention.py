"""Dot-product attention (Vaswani et al. 2017): the mixing of values inside `nnx.MultiHeadAttention`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jaxtyping import PyTree

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.models.attention import (
    allowed_weights,
    attention_logits,
    by_head,
    dot_product_attention,
    from_heads,
    kept_weights,
    weighted_sum,
)


@rule(dot_product_attention)
class DotProductAttentionRule:
    """y = P v,   P = softmax(A) along each row,   A = q k^T / sqrt(d) + bias      (for each head)

    v_bar = P^T y_bar,   P_bar = y_bar v^T
    A_bar = P * (P_bar - sum(P * P_bar))           the Jacobian of softmax is diag(p) - p p^T
    q_bar = A_bar k / sqrt(d),   k_bar = A_bar^T q / sqrt(d)

    q: (*batch, length, heads, d), k: (*batch, keys, kv_heads, d), v: (*batch, keys, kv_heads, e),
    y: (*batch, length, heads, e); P and A: (*batch, heads, length, keys). Where heads share keys and values
    (Ainslie et al. 2023), the cotangents of these add up. A_bar is 0 where the mask forbids attention.
    Dropout multiplies P by a constant M: then v_bar = (M P)^T y_bar and P_bar = M * (y_bar v^T). A bias and a
    mask are options, without derivative.
    """

    def forward(function, query, key, value, /, **options):
        call = AttentionCall(**options)
        q, k, v = call.promote_dtype((query, key, value), dtype=call.dtype)
        logits = attention_logits(q, k, call.bias, call.mask, call.is_causal, call.precision)
        logits = logits.astype(jnp.float32) if call.rounds(q) else logits
        powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        total = jnp.sum(powers, axis=-1, keepdims=True)
        weights = powers / total
        dropout_mask = call.draw(weights.shape)
        y = weighted_sum(call.drop(weights, dropout_mask).astype(v.dtype), v, call.precision)
        return y, (query, key, value, (powers, total) if call.rounds(q) else weights, dropout_mask)

    def backward(function, residuals, y_bar, **options):
        query, key, value, of_softmax, dropout_mask = residuals
        call = AttentionCall(**options)
        q, k, v = call.promote_dtype((query, key, value), dtype=call.dtype)
        wide = jnp.promote_types(q.dtype, jnp.float32)
        matmul = partial(jnp.matmul, precision=call.precision)
        length, keys = q.shape[-3], k.shape[-3]
        y_bar, q, k, v = (by_head(x, k.shape[-2]) for x in (y_bar.astype(v.dtype), q, k, v))
        weights = of_softmax[0] / of_softmax[1] if call.rounds(q) else of_softmax
        rows = call.drop(weights, dropout_mask).astype(v.dtype).reshape(*y_bar.shape[:-1], keys)
        v_bar = matmul(transposed(rows), y_bar)
        weights_bar = matmul(y_bar, jnp.matrix_transpose(v), preferred_element_type=wide)
        weights_bar = call.drop(weights_bar.reshape(weights.shape), dropout_mask).astype(weights.dtype)
        logits_bar = call.allow(softmax_back(of_softmax, weights_bar).astype(wide))
        # The scale belongs to the products, which are smaller, but autodiff rounds after it.
        scale = jnp.asarray(1 / math.sqrt(q.shape[-1]), wide)
        early, late = (scale, 1) if call.rounds(q) else (1, scale)
        rows_bar = (logits_bar * early).astype(k.dtype).reshape(rows.shape)
        q_bar = matmul(rows_bar, k, preferred_element_type=wide) * late
        k_bar = matmul(transposed(rows_bar), q, preferred_element_type=wide) * late
        return {}, (
            from_heads(q_bar, length).astype(query.dtype),
            from_heads(k_bar, keys).astype(key.dtype),
            from_heads(v_bar, keys).astype(value.dtype),
        )


@rule(nnx.dot_product_attention)
class FlaxDotProductAttentionRule:
    """As `DotProductAttentionRule`; in float64, A_bar = E * (P_bar / S - sum(E * P_bar) / S^2),   P = E / S

    Without a dropout rate Flax's function rounds A and the softmax to float32 whatever the inputs are, and
    takes no `precision`. In float64 it is a step function, then, and its rule does as autodiff does: the
    derivative of the smooth function, with the softmax's part in float32, in autodiff's order of operations.
    """

    def forward(function, query, key, value, /, **options):
        return DotProductAttentionRule.forward(function, query, key, value, **as_fused(**options))

    def backward(function, residuals, y_bar, **options):
        return DotProductAttentionRule.backward(function, residuals, y_bar, **as_fused(**options))


def as_fused(dropout_rate=0.0, **options):
    """The options, with what Flax's function does without a dropout rate."""
    if dropout_rate == 0:
        options = {**options, "precision": None, "in_float32": True}
    return {**options, "dropout_rate": dropout_rate}


@dataclass(frozen=True)
class AttentionCall:
    """The options of one call, and whether it rounds logits and softmax to float32."""

    bias: PyTree = None
    mask: PyTree = None
    broadcast_dropout: bool | None = True
    dropout_rng: PyTree = None
    dropout_rate: float | int = 0.0
    deterministic: bool | None = False
    dtype: Any = None
    precision: Any = None
    promote_dtype: Callable[..., PyTree] = promote_dtype
    is_causal: bool = False
    module: nnx.Module | None = None
    in_float32: bool = False

    def __post_init__(self):
        if self.module is not None:
            raise DoesNotApply("the weights are sown")
        if self.dropout_rate > 0 and not self.deterministic and self.dropout_rng is None:
            raise DoesNotApply("no dropout_rng is given")

    def rounds(self, query):
        """Whether rounding to float32 changes anything."""
        return self.in_float32 and query.dtype == jnp.float64

    def allow(self, logits_bar):
        # Without a mask of its own every row attends to something, and the others' weights are 0.
        if self.mask is None:
            return logits_bar
        return jnp.where(allowed_weights(self.mask, self.is_causal, logits_bar), logits_bar, 0)

    def draw(self, shape):
        """Which weights dropout keeps; None if it is not at work."""
        if self.dropout_rate == 0 or self.deterministic:
            return None
        return kept_weights(self.dropout_rng, self.dropout_rate, shape, self.broadcast_dropout)

    def drop(self, weights, kept):
        return weights if kept is None else jnp.where(kept, weights * (1 / (1 - self.dropout_rate)), 0)


def softmax_back(residuals, weights_bar):
    """A_bar from P_bar and P, or E and S."""
    if isinstance(residuals, tuple):
        powers, total = residuals
        mean_bar = jnp.sum(weights_bar * total**-2 * powers, axis=-1, keepdims=True)
        return powers * (weights_bar / total - mean_bar)
    mean_bar = jnp.sum(residuals * weights_bar, axis=-1, keepdims=True)
    return residuals * (weights_bar - mean_bar)


def transposed(x):
    """x^T laid out as such: on a CPU, a product that transposes in passing takes up to twice as long."""
    return jax.lax.optimization_barrier(jnp.matrix_transpose(x))
