"""Attention (Vaswani et al. 2017).

`nnx.MultiHeadAttention` is a composite: linear layers make queries, keys and values of its inputs, which
may be normalised; dot-product attention mixes them; and a linear layer puts the heads together. Each part
answers with its own rule, and that of dot-product attention is the derivative proper.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from

from bpresearch.chainrule.broadcast import cotangent, no_derivative
from bpresearch.chainrule.engine import backward, forward, location, own_rule
from bpresearch.chainrule.registry import rule
from bpresearch.models.attention import (
    CausalAttention,
    MaskedAttention,
    allowed_weights,
    attention_logits,
    by_head,
    dot_product_attention,
    from_heads,
    kept_weights,
    weighted_sum,
)


@rule(nnx.dot_product_attention, dot_product_attention)
class DotProductAttentionRule:
    """y = P v,   P = softmax(A) along each row,   A = q k^T / sqrt(d) + bias      (for each head)

    v_bar = P^T y_bar,   P_bar = y_bar v^T
    A_bar = P * (P_bar - sum(P * P_bar))           the Jacobian of softmax is diag(p) - p p^T;
                                                   with P = E / S:  E * (P_bar / S - sum(E * P_bar) / S^2)
    q_bar = A_bar k / sqrt(d),   k_bar = A_bar^T q / sqrt(d),   bias_bar = A_bar

    q: (*batch, length, heads, d), k: (*batch, keys, kv_heads, d), v: (*batch, keys, kv_heads, e),
    y: (*batch, length, heads, e); P and A: (*batch, heads, length, keys). Where heads share keys and values
    (Ainslie et al. 2023), the cotangents of these add up; where the bias is broadcast, its cotangent is the
    sum. A_bar is 0 where the mask forbids attention. Dropout multiplies P by a constant M: then
    v_bar = (M P)^T y_bar and P_bar = M * (y_bar v^T). A mask has no derivative.

    Flax's function, unless it has a dropout rate, rounds A and the softmax to float32 whatever the inputs
    are. In float64 it is a step function, then, and its rule does as autodiff does: the derivative of the
    smooth function, with the softmax's part in float32, in the order of operations of autodiff.
    """

    def forward(function, *inputs, **options):
        of = _Attention(function, inputs, options)
        logits = of.logits().astype(of.softmax_dtype)
        powers = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        total = jnp.sum(powers, axis=-1, keepdims=True)
        weights = powers / total
        kept = of.draw(weights.shape)
        y = weighted_sum(of.dropped(weights, kept).astype(of.value.dtype), of.value, of.precision)
        of_softmax = (powers, total) if of.rounds else weights
        return y, (inputs, of_softmax, kept)

    def backward(function, residuals, y_bar, **options):
        inputs, of_softmax, kept = residuals
        of = _Attention(function, inputs, options)
        query, key, value, wide = of.query, of.key, of.value, of.wide
        matmul = partial(jnp.matmul, precision=of.precision)
        transpose = jnp.matrix_transpose
        powers, total = of_softmax if of.rounds else (of_softmax, None)
        length, keys = powers.shape[-2:]

        y_bar = by_head(y_bar.astype(value.dtype), value.shape[-2])
        v = by_head(value, value.shape[-2])
        weights = powers if total is None else powers / total
        mixed = of.dropped(weights, kept).astype(value.dtype)
        v_bar = matmul(_laid_out(transpose(mixed.reshape(*y_bar.shape[:-1], keys))), y_bar)
        weights_bar = matmul(y_bar, transpose(v), preferred_element_type=wide).reshape(powers.shape)
        weights_bar = of.dropped(weights_bar, kept).astype(powers.dtype)

        if total is None:
            mean_bar = jnp.sum(weights * weights_bar, axis=-1, keepdims=True)
            logits_bar = weights * (weights_bar - mean_bar)
        else:  # the same, in autodiff's order of operations: see above
            mean_bar = jnp.sum(weights_bar * total**-2 * powers, axis=-1, keepdims=True)
            logits_bar = (weights_bar / total - mean_bar) * powers
        logits_bar = of.allow(logits_bar.astype(wide))

        q, k = by_head(query, key.shape[-2]), by_head(key, key.shape[-2])
        # The scale belongs to the products, which are smaller, but autodiff rounds after it.
        early, late = (of.scale(wide), 1) if of.rounds else (1, of.scale(wide))
        rows_bar = (logits_bar * early).astype(key.dtype).reshape(*q.shape[:-1], keys)
        q_bar = matmul(rows_bar, k, preferred_element_type=wide) * late
        k_bar = matmul(_laid_out(transpose(rows_bar)), q, preferred_element_type=wide) * late
        bars = [
            from_heads(bar, steps).astype(x.dtype)
            for bar, steps, x in zip((q_bar, k_bar, v_bar), (length, keys, keys), inputs, strict=False)
        ]
        if len(inputs) > 3:
            bars.append(cotangent(logits_bar, inputs[3]))
        return {}, (*bars, *(no_derivative(x) for x in inputs[4:]))


class _Attention:
    """One call of dot-product attention: its arguments by name, and how it computes."""

    NAMES = ("query", "key", "value", "bias", "mask", "broadcast_dropout", "dropout_rng")

    def __init__(self, function, inputs, options):
        function = function.func if isinstance(function, partial) else function
        given = {**options, **dict(zip(self.NAMES, inputs, strict=False))}
        if given.get("module") is not None:
            raise ValueError(f"attention at {location()}: no chain-rule derivative with sow_weights=True")
        promote = given.get("promote_dtype", nnx.nn.dtypes.promote_dtype)
        arrays = given["query"], given["key"], given["value"]
        self.query, self.key, self.value = promote(arrays, dtype=given.get("dtype"))
        self.bias, self.mask = given.get("bias"), given.get("mask")
        self.is_causal = given.get("is_causal", False)
        self.rate = given.get("dropout_rate", 0.0)
        self.random = self.rate > 0 and not given.get("deterministic", False)
        self.broadcast, self.rng = given.get("broadcast_dropout", True), given.get("dropout_rng")
        fused = function is nnx.dot_product_attention and self.rate == 0
        self.wide = jnp.promote_types(self.query.dtype, jnp.float32)
        self.softmax_dtype = jnp.dtype(jnp.float32 if fused else self.wide)
        self.rounds = self.softmax_dtype != self.wide
        self.precision = None if fused else given.get("precision")

    def scale(self, dtype):
        return jnp.asarray(1 / math.sqrt(self.query.shape[-1]), dtype)

    def logits(self):
        return attention_logits(self.query, self.key, self.bias, self.mask, self.is_causal, self.precision)

    def allow(self, logits_bar):
        # Without a mask of its own every row attends to something, and the others' weights are 0.
        if self.mask is None:
            return logits_bar
        return jnp.where(allowed_weights(self.mask, self.is_causal, logits_bar), logits_bar, 0)

    def draw(self, shape):
        return kept_weights(self.rng, self.rate, shape, self.broadcast) if self.random else None

    def dropped(self, weights, kept):
        return weights if kept is None else jnp.where(kept, weights * (1 / (1 - self.rate)), 0)


def _laid_out(x):
    """x itself. On the CPU, a product whose factor is transposed in passing takes up to twice as long."""
    return jax.lax.optimization_barrier(x)


def attend(query, key, value, mask, dropout_rng, *, attention_fn, **options):
    """An attention function as `nnx.MultiHeadAttention` calls it, with all arrays among the inputs."""
    return attention_fn(query, key, value, mask=mask, dropout_rng=dropout_rng, **options)


@rule(attend)
class AttendRule:
    """The rule of `attention_fn` with mask and dropout_rng as options, which have no cotangents."""

    def forward(function, query, key, value, mask, dropout_rng, *, attention_fn, **options):
        of_function, bound = own_rule(attention_fn)
        options = {**bound, **options, "mask": mask, "dropout_rng": dropout_rng}
        y, residuals = of_function.forward(attention_fn, query, key, value, **options)
        return y, (mask, dropout_rng, residuals)

    def backward(function, residuals, y_bar, *, attention_fn, **options):
        mask, dropout_rng, residuals = residuals
        of_function, bound = own_rule(attention_fn)
        options = {**bound, **options, "mask": mask, "dropout_rng": dropout_rng}
        _, bars = of_function.backward(attention_fn, residuals, y_bar, **options)
        return {}, (*bars, no_derivative(mask), None)


@rule(nnx.MultiHeadAttention)
class MultiHeadAttentionRule:
    """y = out(attention(query(x_q), key(x_k), value(x_v))).      Each part's x_bar, by its own rule

    One input is x_q = x_k = x_v (self-attention), and its cotangent the sum of three; of two inputs the
    second is x_k = x_v. With `normalize_qk`, queries and keys pass through `query_ln` and `key_ln`. The
    call's options are those of `nnx.MultiHeadAttention`.

    x: (*batch, length, in), y: (*batch, length, out).

    Raises:
        ValueError: in decode mode, and with `sow_weights`.
    """

    def forward(layer, *inputs, mask=None, rngs=None, **options):
        static = _static_options(layer, **options)
        x_q, x_k, x_v = _three_inputs(inputs)
        residuals = {}
        query, residuals["query"] = forward(layer.query, x_q, name=("query",))
        key, residuals["key"] = forward(layer.key, x_k, name=("key",))
        value, residuals["value"] = forward(layer.value, x_v, name=("value",))
        if layer.normalize_qk:
            query, residuals["query_ln"] = forward(layer.query_ln, query, name=("query_ln",))
            key, residuals["key_ln"] = forward(layer.key_ln, key, name=("key_ln",))
        dropout_rng = None
        if layer.dropout_rate > 0 and not static["deterministic"]:
            dropout_rng = _dropout_key(layer, rngs)
        mix = partial(attend, attention_fn=layer.attention_fn, **static)
        inner = query, key, value, mask, dropout_rng
        mixed, residuals["attention_fn"] = forward(mix, *inner, name=("attention_fn",))
        y, residuals["out"] = forward(layer.out, mixed, name=("out",))
        return y, (tuple(None for _ in inputs), residuals)

    def backward(layer, residuals, y_bar, mask=None, rngs=None, **options):
        inputs, residuals = residuals
        mix = partial(attend, attention_fn=layer.attention_fn, **_static_options(layer, **options))
        grads = {}

        def back(name, y_bar):
            grads[name], x_bar = backward(getattr(layer, name), residuals[name], y_bar, name=(name,))
            return x_bar

        mixed_bar = back("out", y_bar)
        _, bars = backward(mix, residuals["attention_fn"], mixed_bar, name=("attention_fn",))
        query_bar, key_bar, value_bar, *_ = bars
        if layer.normalize_qk:
            query_bar, key_bar = back("query_ln", query_bar), back("key_ln", key_bar)
        q_bar, k_bar, v_bar = back("query", query_bar), back("key", key_bar), back("value", value_bar)
        if len(inputs) == 1:
            return grads, q_bar + k_bar + v_bar
        return grads, (q_bar, k_bar + v_bar) if len(inputs) == 2 else (q_bar, k_bar, v_bar)


@rule(CausalAttention)
class CausalAttentionRule:
    """`MultiHeadAttentionRule` of one input, with `is_causal=True`."""

    def forward(layer, x):
        return MultiHeadAttentionRule.forward(layer, x, is_causal=True)

    def backward(layer, residuals, y_bar):
        return MultiHeadAttentionRule.backward(layer, residuals, y_bar, is_causal=True)


@rule(MaskedAttention)
class MaskedAttentionRule:
    """`MultiHeadAttentionRule` of all inputs but the last, which is the mask and has no cotangent."""

    def forward(layer, *inputs):
        *inputs, mask = inputs
        y, residuals = MultiHeadAttentionRule.forward(layer, *inputs, mask=mask)
        return y, (mask, residuals)

    def backward(layer, residuals, y_bar):
        mask, residuals = residuals
        grads, bars = MultiHeadAttentionRule.backward(layer, residuals, y_bar)
        bars = bars if isinstance(bars, tuple) else (bars,)
        return grads, (*bars, no_derivative(mask))


def _static_options(
    layer, deterministic=None, sow_weights=False, decode=None, is_causal=False,
    out_sharding=None, qkv_sharding=None,
):  # fmt: skip
    """The options of the attention function that are not arrays, from those of layer and call."""
    if layer.decode if decode is None else decode:
        raise ValueError(
            f"nnx.MultiHeadAttention at {location()}: decode mode is for generation and has no chain-rule "
            "derivative; call it with decode=False"
        )
    if sow_weights:
        raise ValueError(
            f"nnx.MultiHeadAttention at {location()}: no chain-rule derivative with sow_weights=True"
        )
    if layer.dropout_rate > 0:
        asked = "deterministic=True or False is needed, in the call or in the constructor"
        error = f"nnx.MultiHeadAttention at {location()}: {asked}"
        deterministic = first_from(deterministic, layer.deterministic, error_msg=error)
    else:
        deterministic = True
    return {
        "deterministic": deterministic,
        "dropout_rate": layer.dropout_rate,
        "broadcast_dropout": layer.broadcast_dropout,
        "dtype": layer.dtype,
        "precision": layer.precision,
        "module": None,
        "is_causal": is_causal,
    }


def _three_inputs(inputs):
    x_q, x_k, x_v = (*inputs, None, None)[:3]
    if x_k is None and x_v is not None:
        raise ValueError(f"nnx.MultiHeadAttention at {location()}: inputs_v is given without inputs_k")
    x_k = x_q if x_k is None else x_k
    return x_q, x_k, x_k if x_v is None else x_v


def _dropout_key(layer, rngs):
    rngs = layer.rngs if rngs is None else rngs
    if rngs is None:
        raise ValueError(
            f"nnx.MultiHeadAttention at {location()}: dropout needs rngs, which keep_rngs=False left out"
        )
    return (rngs.dropout if isinstance(rngs, nnx.Rngs) else rngs)()
