"""A variational autoencoder on digits (Kingma and Welling 2014), with optimizer and schedule of its own."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits


def data():
    x = load_digits().data.astype("float32") / 16
    return {"train": x[:1400], "test": x[1400:]}


class model(nnx.Module):
    def __init__(self, *, rngs, width=64, latent=8):
        self.encode = nnx.Sequential(nnx.Linear(64, width, rngs=rngs), nnx.relu)
        self.mean, self.log_std = (nnx.Linear(width, latent, rngs=rngs) for _ in range(2))
        self.decode = nnx.Sequential(
            nnx.Linear(latent, width, rngs=rngs), nnx.relu, nnx.Linear(width, 64, rngs=rngs)
        )


def loss(model, batch, rngs):
    h = model.encode(batch)
    mean, log_std = model.mean(h), model.log_std(h)
    z = mean + jnp.exp(log_std) * jax.random.normal(rngs(), mean.shape)
    nll = jnp.sum(optax.sigmoid_binary_cross_entropy(model.decode(z), batch), axis=-1)
    kl = jnp.sum((mean**2 + jnp.exp(2 * log_std) - 1) / 2 - log_std, axis=-1)
    return nll + kl, {"nll": nll, "kl": kl}


def optimizer(learning_rate=3e-3, b1=0.9, clip=1.0):
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate, b1=b1))


def schedule(steps, hold=0.5):
    return lambda t: jnp.clip((steps - t) / (steps * (1 - hold)), 0, 1)
