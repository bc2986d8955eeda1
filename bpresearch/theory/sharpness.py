"""The largest curvature of a loss, and where full-batch training takes it: the edge of stability.

(Cohen et al. 2021.)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from bpresearch.theory import descent


class Trajectory(NamedTuple):
    """A training with the whole data set as its batch.

    Attributes:
        steps: numbers of the steps after which the sharpness was measured.
        loss: before each step.
        sharpness: the largest eigenvalue of the Hessian after each of `steps`.
    """

    steps: np.ndarray
    loss: np.ndarray
    sharpness: np.ndarray

    @property
    def settled(self) -> float:
        """The median sharpness over the last quarter of the measurements."""
        return float(np.median(self.sharpness[-max(1, len(self.sharpness) // 4) :]))


def power_iteration(product: Callable[[PyTree], PyTree], v: PyTree, iterations: int) -> tuple[Array, PyTree]:
    """The largest eigenvalue in magnitude of a symmetric operator, and its vector.

    So many steps of the power method, v <- H v / |H v|, then Rayleigh's quotient v.H v of what they lead to;
    the vector is one step further.

    Args:
        product: v -> H v.
        v: an array or a tree of arrays of length one.
        iterations: number of steps.
    """
    v = jax.lax.fori_loop(0, iterations, lambda _, v: of_length_one(product(v)), v)
    image = product(v)
    return optax.tree.vdot(v, image), of_length_one(image)


def of_length_one(tree: PyTree) -> PyTree:
    """The tree's arrays, taken as one vector, over its length."""
    length = jnp.maximum(optax.tree.norm(tree), jnp.finfo(jnp.float32).tiny)
    return jax.tree.map(lambda leaf: (leaf / length).astype(leaf.dtype), tree)


def full_batch(
    model: nnx.Module,
    loss_fn: Callable[..., Array],
    x: PyTree,
    y: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    every: int,
    iterations: int = 20,
    preconditioner: Callable[[PyTree], Array] | None = None,
) -> Trajectory:
    """Trains on the whole data set and measures the sharpness every so many steps.

    By power iteration with Hessian-vector products, each measurement going on from the eigenvector before it.
    With a preconditioner P the sharpness is that of P^(-1/2) H P^(-1/2), which has P^-1 H's eigenvalues.

    Args:
        model: the model.
        loss_fn: `(outputs, targets) -> values`; the loss is their mean.
        x, y: all examples.
        optimizer: of Optax.
        steps: number of updates, a multiple of `every`.
        every: updates between two measurements.
        iterations: power iterations for a measurement.
        preconditioner: the optimizer's state -> the diagonal of P, in a row as the weights are.
    """
    weights, slope = _on_all(model, loss_fn, x, y)

    def step(carry: tuple[Array, PyTree], _: None) -> tuple[tuple[Array, PyTree], Array]:
        w, optimizer_state = carry
        g, loss = slope(w)
        updates, optimizer_state = optimizer.update(g, optimizer_state, w)
        return (optax.apply_updates(w, updates), optimizer_state), loss

    def stretch(carry: PyTree, _: None) -> tuple[PyTree, tuple[Array, Array]]:
        w, optimizer_state, vector = carry
        (w, optimizer_state), losses = jax.lax.scan(step, (w, optimizer_state), None, every)
        root = 1.0 if preconditioner is None else preconditioner(optimizer_state) ** -0.5
        value, vector = power_iteration(
            lambda v: root * jax.jvp(slope, (w,), (root * v,), has_aux=True)[1], vector, iterations
        )
        return (w, optimizer_state, vector), (losses, value)

    first = jax.random.normal(jax.random.key(0), weights.shape, weights.dtype)
    carry = (weights, optimizer.init(weights), of_length_one(first))
    run = jax.jit(lambda carry: jax.lax.scan(stretch, carry, None, steps // every)[1])
    losses, values = run(carry)
    return Trajectory(np.arange(every, steps + 1, every), np.ravel(losses), np.asarray(values))


def adam_preconditioner(state: PyTree, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Array:
    """P of Adam, whose step is -lr P^-1 m with m an average of gradients that starts at zero.

    P = (1 - b1^t) (sqrt(nu / (1 - b2^t)) + eps): both bias corrections are in it (Cohen et al. 2022).

    Args:
        state: of `optax.adam`, after at least one step.
        b1, b2, eps: its own.
    """
    adam = optax.tree.get(state, "ScaleByAdamState")
    return (1 - b1**adam.count) * (jnp.sqrt(adam.nu / (1 - b2**adam.count)) + eps)


def adaptive_edge(rate: float, b1: float = 0.9) -> float:
    """Preconditioned sharpness above which Adam's step is unstable: (2 + 2 b1) / ((1 - b1) lr).

    Of v <- b1 v + (1 - b1) g, w <- w - lr P^-1 v with P held fixed (Cohen et al. 2022); 38 / lr at 0.9.

    >>> round(adaptive_edge(1.0), 9)
    38.0
    """
    return (2 + 2 * b1) / ((1 - b1) * rate)


def decrease(
    model: nnx.Module,
    loss_fn: Callable[..., Array],
    x: PyTree,
    y: PyTree,
    learning_rates: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], float]:
    """What one step of gradient descent does to the loss, for several learning rates.

    Returns:
        The decrease that the slope predicts, lr ||g||^2; the decrease observed; and the curvature along the
        gradient, g^T H g / ||g||^2, with which observed / predicted = 1 - lr curvature / 2 + O(lr^2), exact
        on a quadratic.
    """
    w, slope = _on_all(model, loss_fn, x, y)

    @jax.jit
    def measure(w: Array, rates: Array) -> tuple[Array, Array, Array]:
        g, loss = slope(w)
        curved = jax.jvp(slope, (w,), (g,), has_aux=True)[1]
        after = jax.vmap(lambda rate: slope(w - rate * g)[1])(rates)
        return rates * jnp.vdot(g, g), loss - after, jnp.vdot(g, curved) / jnp.vdot(g, g)

    predicted, observed, curvature = measure(w, jnp.asarray(learning_rates, w.dtype))
    return np.asarray(predicted), np.asarray(observed), float(curvature)


def _on_all(
    model: nnx.Module, loss_fn: Callable[..., Array], x: PyTree, y: PyTree
) -> tuple[Float[Array, " n"], Callable[[Array], tuple[Array, Array]]]:
    """The model's weights in one row, and their slope on all examples at once."""
    landscape, batch = descent.landscape(model, loss_fn), jax.tree.map(jnp.asarray, (x, y))
    return landscape.start, lambda w: landscape.slope(w, batch)
