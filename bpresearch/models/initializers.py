"""Initial weights by name."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[..., jax.Array]

INITIALIZATIONS = ("lecun", "he", "glorot", "torch")


def uniform_fan_in(fan_in: int) -> Initializer:
    """U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): PyTorch's default for the kernels and biases of its layers."""
    bound = 1 / math.sqrt(fan_in)

    def initialize(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, **_) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return initialize


def initializers(name: str, fan_in: int) -> dict[str, Initializer]:
    """The `kernel_init` and `bias_init` of a layer with `fan_in` inputs per output.

    * `lecun`: normal with variance 1 / fan_in, zero bias; Flax's default (LeCun et al. 1998).
    * `he`: normal with variance 2 / fan_in, zero bias; for ReLU (He et al. 2015).
    * `glorot`: uniform with variance 2 / (fan_in + fan_out), zero bias (Glorot and Bengio 2010).
    * `torch`: kernels and biases uniform within 1 / sqrt(fan_in), PyTorch's default.
    """
    match name:
        case "lecun":
            return {"kernel_init": nnx.initializers.lecun_normal()}
        case "he":
            return {"kernel_init": nnx.initializers.he_normal()}
        case "glorot":
            return {"kernel_init": nnx.initializers.glorot_uniform()}
        case "torch":
            uniform = uniform_fan_in(fan_in)
            return {"kernel_init": uniform, "bias_init": uniform}
    raise ValueError(f"initialisation {name!r} is not one of lecun, he, glorot, torch")
