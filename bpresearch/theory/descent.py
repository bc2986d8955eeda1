"""What the experiments' trainings share: a loss as a function of weights in one row, and times to a loss."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from bpresearch import autodiff
from bpresearch.functional import merge, split


class Landscape(NamedTuple):
    """A loss above the space of a model's weights.

    Attributes:
        start: the model's own weights, in one row.
        slope: (weights, batch) -> the gradient, a row as long, and the loss.
        model: weights -> the model with them.
    """

    start: Float[Array, " n"]
    slope: Callable[[Array, PyTree], tuple[Array, Array]]
    model: Callable[[Array], nnx.Module]


def landscape(model: nnx.Module, loss_fn: Callable[..., Array]) -> Landscape:
    """A model's mean loss as a function of its weights in one row.

    >>> line = landscape(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), optax.squared_error)
    >>> gradient, loss = line.slope(jnp.array([0.5, 2.0]), (jnp.ones((1, 1)), jnp.ones((1, 1))))
    >>> gradient.tolist(), float(loss)  # bias and kernel: 2 (0.5 + 2 - 1), and 1.5^2
    ([3.0, 3.0], 2.25)

    Args:
        model: whose variables other than its weights stay as they are.
        loss_fn: `(outputs, targets) -> values`; the loss is their mean.
    """
    graphdef, params, state = split(model)
    start, unravel = ravel_pytree(params)
    gradient = autodiff.gradient(graphdef, loss_fn)

    def slope(w: Array, batch: PyTree) -> tuple[Array, Array]:
        (loss, _), grads = gradient(unravel(w), state, batch)
        return ravel_pytree(grads)[0], loss

    return Landscape(start, slope, lambda w: merge(graphdef, unravel(w), state))


def time_to(
    target: float, losses: Float[np.ndarray, "records runs"], times: Float[np.ndarray, " records"]
) -> Float[np.ndarray, " runs"]:
    """When each run's loss first is at most the target, by a line between records; NaN if it never is.

    >>> time_to(0.5, np.array([[1.0, 1.0], [0.0, 0.9]]), np.array([0.0, 10.0]))
    array([ 5., nan])
    """
    reached = losses <= target
    after = np.maximum(np.argmax(reached, axis=0), 1)
    column = np.arange(losses.shape[1])
    high, low = losses[after - 1, column], losses[after, column]
    part = (high - target) / np.where(high > low, high - low, 1)
    crossed = times[after - 1] + np.clip(part, 0, 1) * (times[after] - times[after - 1])
    return np.where(reached.any(axis=0), crossed, np.nan)


def lowest(rates: Float[np.ndarray, " n"], losses: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The learning rate of the lowest loss, and that loss, between the rates that were tried.

    It is the lowest point of a parabola, in the logarithms, through the best rate and its neighbours. Where
    the best rate is the first or the last, or has a neighbour that diverged, it is that rate itself.

    >>> rate, loss = lowest(np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, 2.0]))
    >>> round(rate, 6), round(loss, 6)
    (1.0, 1.0)

    Args:
        rates: from the lowest to the highest, positive.
        losses: with each of them, positive; NaN where it diverged.
    """
    x, y = np.log(rates), np.log(np.where(np.isfinite(losses), losses, np.inf))
    k = int(np.argmin(y))
    if k in (0, len(y) - 1) or not np.isfinite(y[k - 1 : k + 2]).all():
        return float(rates[k]), float(losses[k])
    curved, sloped, level = np.polyfit(x[k - 1 : k + 2], y[k - 1 : k + 2], 2)
    best = -sloped / (2 * curved)
    return float(np.exp(best)), float(np.exp(np.polyval((curved, sloped, level), best)))
