"""Dropout."""

import jax
import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import DoesNotApply, rule


@rule(nnx.Dropout)
class DropoutRule:
    """y = m x / (1 - rate).      x_bar = m y_bar / (1 - rate)      (Srivastava et al. 2014)

    Each m is 0 with probability `rate`, else 1: the mask that the layer itself draws, with one key from its
    random stream, whose counter moves on. Along `broadcast_dims` all elements share one m. Nothing is
    dropped, and no key drawn, when the layer is deterministic or its rate 0; with rate 1 everything is
    dropped, and no key drawn either.
    """

    def forward(layer, x, *, deterministic=None, rngs=None):
        if passes(layer, deterministic):
            return x, None
        if layer.rate == 1:
            return jnp.zeros_like(x), None
        shared = {axis % x.ndim for axis in layer.broadcast_dims}
        shape = [1 if axis in shared else n for axis, n in enumerate(x.shape)]
        sharding = {"out_sharding": jax.typeof(x).sharding}
        m = jax.random.bernoulli(drawn_key(layer, rngs), 1 - layer.rate, shape, **sharding)
        return jnp.where(m, x / (1 - layer.rate), 0), m

    def backward(layer, m, y_bar, *, deterministic=None, rngs=None):
        if passes(layer, deterministic):
            return {}, y_bar
        if layer.rate == 1:
            return {}, jnp.zeros_like(y_bar)
        return {}, jnp.where(m, y_bar / (1 - layer.rate), 0)


def passes(layer, deterministic):
    """Whether nothing is dropped."""
    if deterministic is None:
        deterministic = layer.deterministic
    if deterministic is None and layer.rate > 0:
        raise DoesNotApply("deterministic is not given")
    return layer.rate == 0 or deterministic


def drawn_key(layer, rngs):
    """The key that the layer draws its mask with, from what the call or the constructor was given."""
    rngs = layer.rngs if rngs is None else rngs
    if rngs is None:
        raise DoesNotApply("no rngs are given")
    if isinstance(rngs, nnx.Rngs):
        return rngs[layer.rng_collection]()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs
