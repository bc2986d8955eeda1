"""How much the gradient of a mini-batch varies around that of all examples."""

import jax
import numpy as np
from jaxtyping import Float, PyTree


def in_rows(gradients: PyTree) -> Float[np.ndarray, "examples parameters"]:
    """Gradients of examples, as `chainrule.per_example_gradients` gives them, each in one row of float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


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
