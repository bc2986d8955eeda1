"""Activations by name."""

import functools
from collections.abc import Callable

import jax
from flax import nnx

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": nnx.identity,
    "sigmoid": nnx.sigmoid,
    "tanh": nnx.tanh,
    "relu": nnx.relu,
    "leaky_relu": nnx.leaky_relu,
    "elu": nnx.elu,
    "gelu": functools.partial(nnx.gelu, approximate=False),
    "gelu_tanh": functools.partial(nnx.gelu, approximate=True),
    "silu": nnx.silu,
    "softplus": nnx.softplus,
    "celu": nnx.celu,
    "selu": nnx.selu,
    "relu6": nnx.relu6,
    "hard_sigmoid": nnx.hard_sigmoid,
    "hard_silu": nnx.hard_silu,
    "hard_tanh": nnx.hard_tanh,
    "log_sigmoid": nnx.log_sigmoid,
    "soft_sign": nnx.soft_sign,
}
