"""How much the gradient of a mini-batch varies around that of all examples."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from bpresearch import autodiff
from bpresearch.functional import split


def per_example_gradients(
    model: nnx.Module, loss_fn: Callable[..., Array], x: Any, y: Any
) -> Float[np.ndarray, "examples parameters"]:
    """The gradient of each example's loss, all parameters in one row."""
    graphdef, params, state = split(model)
    gradient = autodiff.gradient(graphdef, loss_fn)

    @jax.jit
    def every(params: Any, x: Array, y: Array) -> Array:
        def one(x: Array, y: Array) -> Array:
            return ravel_pytree(gradient(params, state, (x[None], y[None]))[1])[0]

        return jax.lax.map(lambda example: one(*example), (x, y), batch_size=100)

    return np.asarray(every(params, x, y), np.float64)


def expected_variance(
    gradients: Float[np.ndarray, "examples parameters"], batch_size: int, *, replacement: bool
) -> float:
    """E||g_B - g||^2 over all batches of a size: sigma^2 / B, summed over parameters.

    sigma^2 is the mean of ||g_i - g||^2. Without replacement it is less by the finite-population factor
    (N - B) / (N - 1), which is zero for the batch of all examples.
    """
    count = len(gradients)
    variance = float(np.sum(np.var(gradients, axis=0))) / batch_size
    return variance if replacement else variance * (count - batch_size) / (count - 1)


def measured_variance(
    gradients: Float[np.ndarray, "examples parameters"],
    batch_size: int,
    *,
    replacement: bool,
    draws: int,
    seed: int = 0,
) -> float:
    """The mean of ||g_B - g||^2 over randomly drawn batches."""
    rng, count = np.random.default_rng([seed, batch_size, replacement]), len(gradients)
    drawn = [rng.choice(count, batch_size, replace=replacement) for _ in range(draws)]
    shares = np.stack([np.bincount(chosen, minlength=count) for chosen in drawn]) / batch_size
    # The deviations' own mean is zero, so a batch's mean deviation is that of its gradient.
    return float(np.mean(np.sum((shares @ (gradients - gradients.mean(axis=0))) ** 2, axis=1)))
