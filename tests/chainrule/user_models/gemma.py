"""Decoder with local and global attention, soft caps, RoPE and sown activations, after the Flax Gemma
example.

Source: google/flax, examples/gemma/modules.py, layers.py, positional_embeddings.py, transformer.py.
Glue: nnx.Einsum, an RMSNorm of its own on a raw Param, RoPE (split, sin, cos, concatenate), reshapes to
groups, einsum attention, tanh soft cap, jnp.where with a sliding-window mask (triu, tril), softmax, GeGLU
product, sow, embedding scaled by sqrt(width) and tied to the output, python loop over nnx.List, tuple
outputs of a submodule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class ScaledRMS(nnx.Module):
    def __init__(self, size, rngs):
        self.scale = nnx.Param(nnx.initializers.normal(0.1)(rngs.params(), (size,)))

    def __call__(self, x):
        x = jnp.asarray(x)
        ms = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(ms + 1e-6) * (1.0 + jnp.asarray(self.scale, x.dtype))


def rotate(x, where, base):
    size = x.shape[-1]
    period = base ** (2 * jnp.arange(0, size // 2) / size)
    angle = (where[..., None] / period[None, None, :])[..., None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


class GroupedAttention(nnx.Module):
    def __init__(self, heads, shared, width, size, local, rngs):
        self.heads, self.shared, self.size, self.local = heads, shared, size, local
        self.to_q = nnx.Einsum("BTD,NDH->BTNH", (heads, width, size), rngs=rngs)
        self.to_kv = nnx.Einsum("BSD,CKDH->CBSKH", (2, shared, width, size), rngs=rngs)
        self.q_norm = ScaledRMS(size, rngs)
        self.k_norm = ScaledRMS(size, rngs)
        self.back = nnx.Einsum("BTNH,NHD->BTD", (heads, size, width), rngs=rngs)

    def __call__(self, x, where, mask):
        q = self.q_norm(self.to_q(x))
        k, v = self.to_kv(x)
        k = self.k_norm(k)
        base = 10_000 if self.local else 1_000_000
        q = rotate(q, where, base) * self.size**-0.5
        k = rotate(k, where, base)
        b, t, _, h = q.shape
        grouped = q.reshape((b, t, self.shared, self.heads // self.shared, h))
        logits = jnp.einsum("BTKGH,BSKH->BTKGS", grouped, k).reshape((b, t, self.heads, -1))
        logits = jnp.tanh(logits / 5.0) * 5.0
        if self.local:
            ones = jnp.ones(mask.shape, mask.dtype)
            mask = jnp.triu(ones, -2) * jnp.tril(ones, 2) * mask
        logits = jnp.where(jnp.expand_dims(mask, -2), logits, -2.3819763e38)
        self.sow(nnx.Intermediate, "logits", logits)
        p = jax.nn.softmax(logits, axis=-1).astype(k.dtype)
        p = p.reshape((b, t, self.shared, self.heads // self.shared, -1))
        out = jnp.einsum("BTKGS,BSKH->BTKGH", p, v).reshape((b, t, self.heads, h))
        return None, self.back(out)


class Gated(nnx.Module):
    def __init__(self, width, hidden, rngs):
        self.gate = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.gelu(self.gate(x)) * self.value(x))


class DecoderBlock(nnx.Module):
    def __init__(self, width, hidden, local, rngs):
        self.norm_a = ScaledRMS(width, rngs)
        self.attention = GroupedAttention(4, 2, width, 4, local, rngs)
        self.norm_b = ScaledRMS(width, rngs)
        self.norm_c = ScaledRMS(width, rngs)
        self.mlp = Gated(width, hidden, rngs)

    def __call__(self, x, where, mask):
        cache, mixed = self.attention(self.norm_a(x), where, mask)
        x = x + self.norm_b(mixed)
        return cache, x + self.mlp(self.norm_c(x))


class MiniGemma(nnx.Module):
    def __init__(self, vocabulary, width, hidden, rngs):
        self.width = width
        self.table = nnx.Param(nnx.initializers.normal(0.3)(rngs.params(), (vocabulary, width)))
        self.layers = nnx.List([DecoderBlock(width, hidden, local, rngs) for local in (True, False)])
        self.norm = ScaledRMS(width, rngs)

    def __call__(self, tokens, where, mask):
        x = self.table[...][tokens] * jnp.sqrt(self.width).astype(self.table.dtype)
        for layer in self.layers:
            _, x = layer(x, where, mask)
        logits = jnp.dot(self.norm(x), self.table[...].T)
        return jnp.tanh(logits / 30.0) * 30.0


def make():
    data = np.random.default_rng(0)
    tokens = data.integers(0, 13, (2, 6))
    where = np.broadcast_to(np.arange(6), (2, 6))
    mask = np.broadcast_to(np.tril(np.ones((6, 6), bool)), (2, 6, 6))
    model = MiniGemma(13, 8, 12, nnx.Rngs(0))
    return (
        model,
        optax.softmax_cross_entropy_with_integer_labels,
        (tokens, where, mask),
        data.integers(0, 13, (2, 6)),
    )
