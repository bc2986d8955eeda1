"""Structured state-space model in convolution mode, after s4-nnx.

Source: binoygeorge97/s4-nnx, src/s4_nnx/s4.py (kernel_dplr, causal_convolution, S4LayerEnsemble,
SequenceBlockNNX, StackedModelRegression). Glue: complex numbers made of real Params, Cauchy kernel by vmap,
complex division, exp, rfft, irfft, ifft, pad, clip, .real, nnx.split / nnx.merge inside __call__ under
jax.vmap over channels, gelu, sigmoid gate, residual; outer jax.vmap over the batch (a vmapped method).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def cauchy(v, omega, poles):
    return jax.vmap(lambda w: (v / (w - poles)).sum())(omega)


def response(poles, p, b, c, step, length):
    omega = jnp.exp((-2j * jnp.pi) * (jnp.arange(length) / length))
    g, scale = (2.0 / step) * ((1.0 - omega) / (1.0 + omega)), 2.0 / (1.0 + omega)
    k00, k01 = cauchy(c.conj() * b, g, poles), cauchy(c.conj() * p, g, poles)
    k10, k11 = cauchy(p.conj() * b, g, poles), cauchy(p.conj() * p, g, poles)
    return jnp.fft.ifft(scale * (k00 - k01 * (1.0 / (1.0 + k11)) * k10), length).reshape(length).real


def causal(u, kernel):
    n = u.shape[0]
    return jnp.fft.irfft(jnp.fft.rfft(jnp.pad(u, (0, n))) * jnp.fft.rfft(jnp.pad(kernel, (0, n))))[:n]


class Channels(nnx.Module):
    def __init__(self, width, n, length, rngs):
        self.length = length
        draw = nnx.initializers.normal(0.5)
        self.re = nnx.Param(-0.5 * jnp.ones((width, n)))
        self.im = nnx.Param(jnp.tile(jnp.pi * jnp.arange(n, dtype=jnp.float32), (width, 1)))
        self.p = nnx.Param(draw(rngs.params(), (width, n)))
        self.b = nnx.Param(draw(rngs.params(), (width, n)))
        self.c = nnx.Param(draw(rngs.params(), (width, n, 2)))
        self.d = nnx.Param(jnp.ones((width, 1)))
        self.log_step = nnx.Param(jnp.full((width, 1), -2.0))

    def __call__(self, u):
        step = jnp.clip(jnp.exp(self.log_step[...]), 0.001, 1.0)
        poles = jnp.clip(self.re[...], None, -1e-4) + 1j * self.im[...]
        c = self.c[..., 0] + 1j * self.c[..., 1]
        return causal(u, response(poles, self.p[...], self.b[...], c, step, self.length)) + self.d[...] * u


class Block(nnx.Module):
    def __init__(self, width, n, length, rngs):
        self.seq = Channels(width, n, length, rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.gate = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        graph, parameters = nnx.split(self.seq)

        def one(values, channel):
            return nnx.merge(graph, values)(channel)

        h = nnx.gelu(jax.vmap(one, in_axes=(0, 1), out_axes=1)(parameters, self.norm(x)))
        return x + self.out(h) * jax.nn.sigmoid(self.gate(h))


class S4Regression(nnx.Module):
    def __init__(self, before, after, width, n, length, depth, rngs):
        self.encoder = nnx.Linear(before, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, n, length, rngs) for _ in range(depth)])
        self.decoder = nnx.Linear(width, after, rngs=rngs)

    def single(self, x):
        x = self.encoder(x)
        for block in self.blocks:
            x = block(x)
        return self.decoder(x)

    def __call__(self, x):
        return jax.vmap(self.single)(x)


def loss_fn(predicted, y):
    return jnp.mean((predicted - y) ** 2)


def make():
    data = np.random.default_rng(0)
    x = data.normal(size=(3, 8, 2)).astype("float32")
    y = np.cumsum(x, axis=1)[..., :1]
    return S4Regression(2, 1, 4, 3, 8, 2, nnx.Rngs(0)), loss_fn, x, y
