"""Blocks of random models: a few lines each, of the kind that stands between layers in users' code.

A block is made for inputs of shape (batch, time, width). What is random in it, numbers and choices, is drawn
when it is made; it gives its parameters and layers by name, and the function of them and the input.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

LARGEST = 6
"""No dimension is larger."""

Generator: TypeAlias = np.random.Generator
Parts: TypeAlias = dict[str, Any]
Apply: TypeAlias = Callable[[Any, jax.Array], jax.Array]
Made: TypeAlias = tuple[Parts, Apply]


class Block(nnx.Module):
    """Parameters and layers by name, and what is done with them: `apply(self, h)`."""

    def __init__(self, apply: Apply, parts: Parts):
        self.apply = apply
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, h: jax.Array) -> jax.Array:
        return self.apply(self, h)


def size(rng: Generator) -> int:
    """A dimension."""
    return int(rng.integers(1, LARGEST + 1))


def numbers(rng: Generator, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers for a parameter; their scale is drawn, too."""
    scale = 10 ** rng.uniform(-1.5, 0.5) / np.sqrt(shape[-2] if len(shape) > 1 else 1)
    return jnp.asarray(np.asarray(scale * rng.normal(size=shape), np.float32))


def weights(rng: Generator, *shape: int) -> nnx.Param:
    """A raw parameter."""
    return nnx.Param(numbers(rng, shape))


def linear(rng: Generator, width: int, out: int) -> nnx.Linear:
    """A layer of Flax with drawn parameters."""
    init = initializer(rng)
    return nnx.Linear(width, out, kernel_init=init, bias_init=init, rngs=nnx.Rngs(0))


def initializer(rng: Generator) -> Callable[..., jax.Array]:
    """Draws a layer's parameters from NumPy's generator, and compiles nothing for it."""
    return lambda key, shape, *_: numbers(rng, shape)


# Glue between layers.


def residual(rng: Generator, b: int, t: int, w: int) -> Made:
    """A branch of a layer and an activation, added."""
    activation = [jax.nn.gelu, jnp.tanh, jax.nn.silu, jax.nn.softplus, jax.nn.relu][rng.integers(5)]
    return {"layer": linear(rng, w, w)}, lambda p, h: h + activation(p.layer(h))


def prenorm(rng: Generator, b: int, t: int, w: int) -> Made:
    """A residual branch behind a normalization of Flax."""
    norm = [nnx.LayerNorm, nnx.RMSNorm][rng.integers(2)](w, rngs=nnx.Rngs(0))
    parts = {"norm": norm, "grow": linear(rng, w, 2 * w), "shrink": linear(rng, 2 * w, w)}
    return parts, lambda p, h: h + p.shrink(jax.nn.gelu(p.grow(p.norm(h))))


def concatenated(rng: Generator, b: int, t: int, w: int) -> Made:
    """The input beside what a layer makes of it, as far as there is room."""
    layer = linear(rng, w, size(rng))
    return {"layer": layer}, lambda p, h: jnp.concatenate([jnp.sin(p.layer(h)), h], -1)[..., :LARGEST]


def gated(rng: Generator, b: int, t: int, w: int) -> Made:
    """A gated linear unit."""
    v = size(rng)
    parts = {"value": linear(rng, w, v), "gate": linear(rng, w, v)}
    return parts, lambda p, h: p.value(h) * jax.nn.sigmoid(p.gate(h))


def sliced(rng: Generator, b: int, t: int, w: int) -> Made:
    """Part of the sequence, backwards, and rolled."""
    start, shift = int(rng.integers(t)), int(rng.integers(-2, 3))
    return {}, lambda p, h: jnp.roll(h[:, start:][:, ::-1], shift, axis=-1)


def padded(rng: Generator, b: int, t: int, w: int) -> Made:
    """One step more in front, and a difference of neighbours."""
    return (
        {"first": weights(rng, w)},
        lambda p, h: (
            h
            - jnp.concatenate(
                [jnp.broadcast_to(p.first[...], (h.shape[0], 1, h.shape[2])), h[:, :-1]], axis=1
            )
        ),
    )


def reshaped(rng: Generator, b: int, t: int, w: int) -> Made:
    """Time and width as one axis, through one product."""
    s, v = size(rng), size(rng)
    return {"kernel": weights(rng, t * w, s * v)}, lambda p, h: jnp.tanh(
        h.reshape(h.shape[0], -1) @ p.kernel
    ).reshape(h.shape[0], s, v)


def shared(rng: Generator, b: int, t: int, w: int) -> Made:
    """One layer called twice, and its kernel transposed besides."""
    return {"layer": linear(rng, w, w)}, lambda p, h: p.layer(jnp.tanh(p.layer(h))) + h @ p.layer.kernel.T


def gathered(rng: Generator, b: int, t: int, w: int) -> Made:
    """Steps looked up by number, some more than once."""
    indices = rng.integers(0, t, size(rng))
    return {}, lambda p, h: h[:, indices] + h.mean(1, keepdims=True)


def scattered(rng: Generator, b: int, t: int, w: int) -> Made:
    """Steps summed by segment, a graph network's aggregation."""
    segments, s = jnp.asarray(rng.integers(0, t, t)), t
    return {}, lambda p, h: jax.vmap(lambda x: jax.ops.segment_sum(x, segments, s))(h) + 0.3 * h


# Formulas with raw parameters.


def projected(rng: Generator, b: int, t: int, w: int) -> Made:
    """einsum with a raw parameter."""
    return {"kernel": weights(rng, w, size(rng))}, lambda p, h: jnp.einsum("btw,wv->btv", h, p.kernel[...])


def bilinear(rng: Generator, b: int, t: int, w: int) -> Made:
    """einsum of a parameter and twice the input."""
    return {"form": weights(rng, w, w, size(rng))}, lambda p, h: jnp.einsum(
        "btw,btu,wuv->btv", jnp.tanh(h), h, p.form[...]
    )


def mixed_over_time(rng: Generator, b: int, t: int, w: int) -> Made:
    """Steps mixed by a matrix with normalized rows."""
    return {"mixing": weights(rng, t, t)}, lambda p, h: jnp.einsum(
        "ts,bsw->btw", jax.nn.softmax(p.mixing[...], -1), h
    )


def scaled(rng: Generator, b: int, t: int, w: int) -> Made:
    """A learned temperature, positive by exp, and a shift."""
    return {
        "log_scale": weights(rng),
        "shift": weights(rng, w),
    }, lambda p, h: h * jnp.exp(p.log_scale[...]) + p.shift[...]


def experts(rng: Generator, b: int, t: int, w: int) -> Made:
    """A soft mixture of experts."""
    n, v = size(rng), size(rng)
    parts = {"gate": linear(rng, w, n), "kernel": weights(rng, n, w, v)}
    return parts, lambda p, h: jnp.einsum(
        "btn,btw,nwv->btv", jax.nn.softmax(p.gate(h), axis=-1), h, p.kernel[...]
    )


# Attention and normalization by hand.


def attention(rng: Generator, b: int, t: int, w: int) -> Made:
    """Attention with a mask, its softmax written out."""
    d, causal = size(rng), bool(rng.integers(2))
    lowest = [-1e9, -jnp.inf][rng.integers(2)]

    def apply(p, h):
        query, key, value = (jnp.einsum("btw,wd->btd", h, m[...]) for m in (p.query, p.key, p.value))
        scores = jnp.einsum("btd,bsd->bts", query, key) / np.sqrt(d)
        if causal:
            scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, lowest)
        weight = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
        return jnp.einsum("bts,bsd->btd", weight / weight.sum(-1, keepdims=True), value)

    return {name: weights(rng, w, d) for name in ("query", "key", "value")}, apply


def kernel_attention(rng: Generator, b: int, t: int, w: int) -> Made:
    """Steps weighted by how near they are to each other."""

    def apply(p, h):
        distance = jnp.sum((h[:, :, None] - h[:, None]) ** 2, -1)
        return jnp.einsum("bts,bsw->btw", jax.nn.softmax(-jax.nn.softplus(p.width[...]) * distance), h)

    return {"width": weights(rng)}, apply


def root_mean_square(rng: Generator, b: int, t: int, w: int) -> Made:
    """RMS normalization by hand."""
    epsilon = float(10 ** rng.uniform(-6, -2))
    return {
        "scale": weights(rng, w)
    }, lambda p, h: h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + epsilon) * (1 + p.scale[...])


def standardized(rng: Generator, b: int, t: int, w: int) -> Made:
    """Mean and variance taken away over one axis, by hand."""
    axis, epsilon = int(rng.integers(3)), float(10 ** rng.uniform(-5, -2))

    def apply(p, h):
        centred = h - h.mean(axis, keepdims=True)
        return centred / jnp.sqrt(h.var(axis, keepdims=True) + epsilon) * p.scale[...]

    return {"scale": weights(rng, w)}, apply


def unit_length(rng: Generator, b: int, t: int, w: int) -> Made:
    """Rows of length one, or less."""
    return {}, lambda p, h: h / jnp.sqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-3)


def log_softmax(rng: Generator, b: int, t: int, w: int) -> Made:
    """Log-probabilities by hand."""
    return {}, lambda p, h: 0.3 * (h - jax.scipy.special.logsumexp(h, axis=-1, keepdims=True))


def weight_normalized(rng: Generator, b: int, t: int, w: int) -> Made:
    """A kernel whose columns have a learned length."""
    v = size(rng)
    return {
        "kernel": weights(rng, w, v),
        "length": weights(rng, v),
    }, lambda p, h: h @ (p.length[...] * p.kernel[...] / (jnp.linalg.norm(p.kernel[...], axis=0) + 1e-6))


# Functions of each element, with branches or without.


def curved(rng: Generator, b: int, t: int, w: int) -> Made:
    """Smooth functions that keep numbers in range."""
    functions = [
        jnp.arctan,
        lambda h: h / (1 + jnp.abs(h)),
        lambda h: jnp.log1p(h**2),
        lambda h: jnp.cos(2 * h),
    ]
    functions += [lambda h: jnp.sqrt(1 + h**2), lambda h: jnp.sign(h) * jnp.log1p(jnp.abs(h)), jnp.arcsinh]
    functions += [
        lambda h: jnp.exp(-(h**2)),
        lambda h: jnp.power(1 + h**2, 0.3),
        lambda h: h * jax.nn.sigmoid(h),
    ]
    function = functions[rng.integers(len(functions))]
    return {}, lambda p, h: function(h)


def branched(rng: Generator, b: int, t: int, w: int) -> Made:
    """Another formula for each sign, its argument guarded inside."""
    return {}, lambda p, h: jnp.where(
        h > 0, jnp.sqrt(jnp.where(h > 0, h, 1.0)), jnp.expm1(jnp.minimum(h, 0.0))
    )


def clipped(rng: Generator, b: int, t: int, w: int) -> Made:
    """Clipping at learned or fixed bounds, leaking a little."""
    bound = float(rng.uniform(0.5, 3))
    return {"slope": weights(rng)}, lambda p, h: jnp.clip(h, -bound, 1.7 * bound) + 0.1 * p.slope[...] * h


def largest(rng: Generator, b: int, t: int, w: int) -> Made:
    """The larger of the input and a layer's result, beside the largest of all steps."""
    parts = {"layer": linear(rng, w, w)}
    return parts, lambda p, h: jnp.maximum(h, p.layer(h)) - 0.5 * h.max(1, keepdims=True)


def ordered(rng: Generator, b: int, t: int, w: int) -> Made:
    """Sorted along the width, and summed up along time."""
    return {}, lambda p, h: jnp.cumsum(jnp.sort(h, -1), 1) / t


# Control flow, transformations, precision.


def recurrent(rng: Generator, b: int, t: int, w: int) -> Made:
    """A recurrent network as a scan over time."""
    d, reverse = size(rng), bool(rng.integers(2))

    def apply(p, h):
        def step(carry, x):
            carry = jnp.tanh(x @ p.inward + carry @ p.across)
            return carry, carry

        start = jnp.zeros((h.shape[0], d), h.dtype)
        return lax.scan(step, start, h.swapaxes(0, 1), reverse=reverse)[1].swapaxes(0, 1)

    return {"inward": weights(rng, w, d), "across": weights(rng, d, d)}, apply


def deep(rng: Generator, b: int, t: int, w: int) -> Made:
    """A scan over layers, their parameters stacked, each computed again on the way back."""
    layers = size(rng)

    @jax.checkpoint
    def step(h, layer):
        kernel, bias = layer
        return h + jnp.tanh(h @ kernel + bias), None

    parts = {"kernel": weights(rng, layers, w, w), "bias": weights(rng, layers, w)}
    return parts, lambda p, h: lax.scan(step, h, (p.kernel[...], p.bias[...]))[0]


def of_flax(rng: Generator, b: int, t: int, w: int) -> Made:
    """A recurrent layer of Flax."""
    kind, init = [nnx.GRUCell, nnx.SimpleCell][rng.integers(2)], initializer(rng)
    cell = kind(w, size(rng), kernel_init=init, recurrent_kernel_init=init, bias_init=init, rngs=nnx.Rngs(0))
    return {"rnn": nnx.RNN(cell)}, lambda p, h: p.rnn(h)


def state_space(rng: Generator, b: int, t: int, w: int) -> Made:
    """A linear recurrence as an associative scan."""

    def join(earlier, other):
        return earlier[0] * other[0], other[0] * earlier[1] + other[1]

    return {"decay": weights(rng, w)}, lambda p, h: lax.associative_scan(
        join, (jnp.broadcast_to(jax.nn.sigmoid(p.decay[...]), h.shape), h), axis=1
    )[1]


def conditional(rng: Generator, b: int, t: int, w: int) -> Made:
    """One of two branches, by the data."""
    bound = float(rng.normal())
    return {"layer": linear(rng, w, w)}, lambda p, h: lax.cond(
        h.mean() > bound, lambda h: jnp.sin(p.layer(h)), lambda h: 0.5 * h, h
    )


def iterated(rng: Generator, b: int, t: int, w: int) -> Made:
    """A few steps of a fixed-point iteration."""
    return {"kernel": weights(rng, w, w)}, lambda p, h: lax.fori_loop(
        0, 3, lambda i, z: jnp.tanh(h + 0.5 * z @ p.kernel[...]), jnp.zeros_like(h)
    )


def one_by_one(rng: Generator, b: int, t: int, w: int) -> Made:
    """Written for one example, mapped over the batch, and compiled."""
    v = size(rng)

    @jax.jit
    def of_example(kernel, x):
        return jnp.outer(x.mean(-1), jnp.tanh(x.sum(0) @ kernel)) / x.shape[0]

    return {"kernel": weights(rng, w, v)}, lambda p, h: jax.vmap(of_example, (None, 0))(p.kernel[...], h)


def half_precision(rng: Generator, b: int, t: int, w: int) -> Made:
    """A product in a shorter format, inside of what is longer."""
    dtype = [jnp.bfloat16, jnp.float32][rng.integers(2)]
    return {"kernel": weights(rng, w, size(rng))}, lambda p, h: (
        h.astype(dtype) @ p.kernel[...].astype(dtype)
    ).astype(h.dtype)


def filtered(rng: Generator, b: int, t: int, w: int) -> Made:
    """A filter over time in the frequency domain."""
    return {"filter": weights(rng, t // 2 + 1, w)}, lambda p, h: jnp.fft.irfft(
        jnp.fft.rfft(h, axis=1) * p.filter[...], n=h.shape[1], axis=1
    )


def solved(rng: Generator, b: int, t: int, w: int) -> Made:
    """The solution of a well-conditioned linear system, ridge regression's."""

    def apply(p, h):
        kernel = jnp.tanh(p.kernel[...])
        return jnp.linalg.solve(kernel @ kernel.T + jnp.eye(w, dtype=h.dtype), h.swapaxes(1, 2)).swapaxes(
            1, 2
        )

    return {"kernel": weights(rng, w, w)}, apply


BLOCKS: tuple[Callable[[Generator, int, int, int], Made], ...] = (
    residual, prenorm, concatenated, gated, sliced, padded, reshaped, shared, gathered, scattered, projected,
    bilinear, mixed_over_time, scaled, experts, attention, kernel_attention, root_mean_square, standardized,
    unit_length, log_softmax, weight_normalized, curved, branched, clipped, largest, ordered, recurrent, deep,
    of_flax, state_space, conditional, iterated, one_by_one, half_precision, filtered, solved,
)  # fmt: skip
"""All of them."""
