"""Dropout."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.module import first_from

from bpresearch.chainrule.engine import location
from bpresearch.chainrule.registry import rule


@rule(nnx.Dropout)
class DropoutRule:
    """y = m x / (1 - rate).      x_bar = m y_bar / (1 - rate)      (Srivastava et al. 2014)

    Each m is 0 with probability `rate`, else 1: the mask that the layer itself draws, with one key from its
    random stream, whose counter moves on. Along `broadcast_dims` all elements share one m. Nothing is
    dropped, and no key drawn, when the layer is deterministic or its rate 0; with rate 1 everything is
    dropped, and no key drawn either.
    """

    def forward(layer, x, deterministic=None, rngs=None):
        if _passes(layer, deterministic):
            return x, None
        if layer.rate == 1:
            return jnp.zeros_like(x), None
        shape = [1 if axis in _shared(layer, x) else n for axis, n in enumerate(x.shape)]
        sharding = {"out_sharding": jax.typeof(x).sharding}
        mask = jax.random.bernoulli(_key(layer, rngs), 1 - layer.rate, shape, **sharding)
        return jnp.where(mask, x / (1 - layer.rate), 0), mask

    def backward(layer, mask, y_bar, deterministic=None, rngs=None):
        if _passes(layer, deterministic):
            return {}, y_bar
        if layer.rate == 1:
            return {}, jnp.zeros_like(y_bar)
        return {}, jnp.where(mask, y_bar / (1 - layer.rate), 0)


def _passes(layer, deterministic):
    error = (
        f"nnx.Dropout at {location()}: deterministic=True or False is needed, in the call or the constructor"
    )
    return layer.rate == 0 or first_from(deterministic, layer.deterministic, error_msg=error)


def _shared(layer, x):
    return {axis % x.ndim for axis in layer.broadcast_dims}


def _key(layer, rngs):
    rngs = layer.rngs if rngs is None else rngs
    if rngs is None:
        raise ValueError(f"nnx.Dropout at {location()}: no rngs, neither in the call nor in the constructor")
    if isinstance(rngs, nnx.Rngs):
        return rngs[layer.rng_collection]()
    return rngs() if isinstance(rngs, nnx.RngStream) else rngs
