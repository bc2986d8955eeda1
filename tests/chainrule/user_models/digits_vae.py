"""Variational autoencoder, after the JAX AI Stack's digits VAE.

Source: jax-ml/jax-ai-stack, docs/source/digits_vae.md (Encoder, Decoder, VAE).
Glue: jnp.exp of a layer's output, a key from self.rngs.noise(), jax.random.normal, product and sum
(reparametrization), several outputs, loss of the user's own: binary cross-entropy plus KL (log, squares,
means).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx


class Recognise(nnx.Module):
    def __init__(self, size, hidden, latent, rngs):
        self.rngs = rngs
        self.body = nnx.Linear(size, hidden, rngs=rngs)
        self.centre = nnx.Linear(hidden, latent, rngs=rngs)
        self.spread = nnx.Linear(hidden, latent, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.relu(self.body(x))
        mu, sigma = self.centre(h), jnp.exp(self.spread(h))
        return mu + sigma * jax.random.normal(self.rngs.noise(), mu.shape, mu.dtype), mu, sigma


class Generate(nnx.Module):
    def __init__(self, latent, hidden, size, rngs):
        self.body = nnx.Linear(latent, hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, size, rngs=rngs)

    def __call__(self, z):
        return self.out(jax.nn.relu(self.body(z)))


class DigitVAE(nnx.Module):
    def __init__(self, size, hidden, latent, rngs):
        self.recognise = Recognise(size, hidden, latent, rngs)
        self.generate = Generate(latent, hidden, size, rngs)

    def __call__(self, x):
        z, mu, sigma = self.recognise(x)
        return self.generate(z), mu, sigma


def loss_fn(logits, mu, sigma, x):
    kl = jnp.mean(jnp.mean(-jnp.log(sigma**2) - 1.0 + sigma**2 + mu**2, axis=-1))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, x)) + 0.1 * kl


def make():
    data = np.random.default_rng(0)
    x = (data.random((5, 16)) > 0.5).astype("float32")
    return DigitVAE(16, 12, 3, nnx.Rngs(0, noise=1)), loss_fn, x, x
