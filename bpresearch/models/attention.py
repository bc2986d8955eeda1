"""Attention layers with one input, and dot-product attention that keeps the precision of its inputs."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Shaped


class CausalAttention(nnx.MultiHeadAttention):
    """Self-attention of every position over itself and the positions before it (Vaswani et al. 2017).

    Takes the arguments of `nnx.MultiHeadAttention`, and one input of shape (*batch, length, features).

    >>> attend = bp.models.CausalAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    >>> x = jnp.ones((1, 3, 4))
    >>> changed = attend(x.at[:, 2].set(0.0)) - attend(x)  # the last position changes no other
    >>> print(jnp.abs(changed[0, :2]).max())
    0.0
    """

    def __call__(self, x: Float[Array, "*batch length features"]) -> Float[Array, "*batch length out"]:
        return super().__call__(x, is_causal=True)


class MaskedAttention(nnx.MultiHeadAttention):
    """Attention whose last input is the mask, after the one, two or three of `nnx.MultiHeadAttention`.

    The mask, of shape (*batch, heads or 1, length, length of the keys), is true where attention is allowed.

    >>> attend = bp.models.MaskedAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    >>> attend(jnp.ones((1, 3, 4)), jnp.ones((1, 1, 3, 3), bool)).shape
    (1, 3, 4)
    """

    def __call__(self, *inputs: Shaped[Array, "..."]) -> Float[Array, "..."]:
        *attended, mask = inputs
        return super().__call__(*attended, mask=mask)


def dot_product_attention(
    query: Float[Array, "*batch length heads depth"],
    key: Float[Array, "*batch keys kv_heads depth"],
    value: Float[Array, "*batch keys kv_heads depth_out"],
    bias: Float[Array, "..."] | None = None,
    mask: Shaped[Array, "..."] | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Shaped[Array, "..."] | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: jnp.dtype | type | None = None,
    precision: object = None,
    module: nnx.Module | None = None,
    promote_dtype=nnx.nn.dtypes.promote_dtype,
    is_causal: bool = False,
) -> Float[Array, "*batch length heads depth_out"]:
    """softmax(q k^T / sqrt(depth) + bias) v, the softmax in float32 or, for float64 inputs, in float64.

    For the `attention_fn` of `nnx.MultiHeadAttention`. Takes what `nnx.dot_product_attention` takes, and
    does the same but for one thing: that one rounds the logits to float32 whatever the inputs are, so a
    model that contains it is not a smooth function in float64 and cannot be verified to more than single
    precision.

    Args:
        query, key, value: `heads` is a multiple of `kv_heads`; each key head serves a group of queries.
        bias: is added to the logits, (*batch, heads, length, keys) or broadcastable to it.
        mask: true where attention is allowed, of a shape like the bias. A row without any is uniform.
        broadcast_dropout: drop the same weights in all examples and heads.
        dropout_rng: the key for dropout.
        dropout_rate: the probability of dropping a weight.
        deterministic: no dropout.
        dtype: what to compute in; by default the inputs' common dtype.
        precision: of the matrix products, see `jax.lax.Precision`.
        module: must be None (no attention weights are recorded).
        promote_dtype: brings the inputs to the computation's dtype.
        is_causal: no query attends to keys after its own position.

    Raises:
        ValueError: a `module` is given.

    >>> q, k, v = jnp.zeros((3, 1, 2, 1, 4)).at[2, 0, 1].set(1.0)  # equal logits: each position sees the mean
    >>> print(bp.models.dot_product_attention(q, k, v)[0, :, 0, 0])
    [0.5 0.5]
    """
    if module is not None:
        raise ValueError("dot_product_attention: attention weights cannot be sown; leave sow_weights False")
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    logits = attention_logits(query, key, bias, mask, is_causal, precision)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    if dropout_rate > 0 and not deterministic:
        dropout_mask = kept_weights(dropout_rng, dropout_rate, weights.shape, broadcast_dropout)
        weights = jnp.where(dropout_mask, weights * (1 / (1 - dropout_rate)), 0)
    return weighted_sum(weights, value, precision)


def attention_logits(query, key, bias, mask, is_causal, precision=None):
    """q k^T / sqrt(depth) + bias in float32 at least, hugely negative where attention is not allowed.

    (*batch, heads, length, keys)
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    rows, keys = by_head(query, key.shape[-2]), by_head(key, key.shape[-2])
    logits = jnp.matmul(rows, jnp.matrix_transpose(keys), precision=precision, preferred_element_type=wide)
    logits = logits.reshape(*query.shape[:-3], -1, query.shape[-3], key.shape[-3])
    logits = logits * jnp.asarray(1 / math.sqrt(query.shape[-1]), wide)
    if bias is not None:
        logits = (logits + aligned(bias, logits)).astype(wide)
    allowed = allowed_weights(mask, is_causal, logits)
    return logits if allowed is None else jnp.where(allowed, logits, -0.7 * jnp.finfo("float32").max)


def by_head(x, kv_heads):
    """(*batch, length, heads, d) as (*batch, kv_heads, group * length, d): what meets each key head.

    Heads that share a key and a value are a group, and one matrix product serves all of it.
    """
    *batch, length, heads, depth = x.shape
    x = jnp.moveaxis(x, -3, -2)
    return x.reshape(*batch, kv_heads, heads // kv_heads * length, depth)


def from_heads(x, length):
    """The inverse of `by_head`."""
    *batch, kv_heads, rows, depth = x.shape
    x = x.reshape(*batch, kv_heads * rows // length, length, depth)
    return jnp.moveaxis(x, -2, -3)


def aligned(array, logits):
    """A mask or bias with as many axes as the logits."""
    return array.reshape((1,) * (logits.ndim - array.ndim) + array.shape)


def allowed_weights(mask, is_causal, logits):
    """The mask and the causal one together, broadcastable to the logits; None if neither is there."""
    allowed = None if mask is None else aligned(mask, logits).astype(bool)
    if is_causal:
        causal = aligned(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits)
        allowed = causal if allowed is None else allowed & causal
    return allowed


def kept_weights(key, rate, shape, broadcast):
    """Which weights dropout keeps, as `nnx.dot_product_attention` draws them."""
    shape = (1,) * (len(shape) - 2) + tuple(shape[-2:]) if broadcast else shape
    return jax.random.bernoulli(key, 1.0 - rate, shape)


def weighted_sum(weights, value, precision=None):
    """P v for each head: (*batch, length, heads, depth_out) of weights (*batch, heads, length, keys)."""
    *batch, _, length, keys = weights.shape
    rows = weights.reshape(*batch, value.shape[-2], -1, keys)
    y = jnp.matmul(rows, by_head(value, value.shape[-2]), precision=precision)
    return from_heads(y, length)
