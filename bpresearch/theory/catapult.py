"""Learning rates between 2 and 4 over the curvature at the start: the catapult (Lewkowycz et al. 2020).

A linear network f = v.u / sqrt(n) of n hidden units on the one example x = 1, y = 0 with the loss f^2 / 2 has
the curvature (of its tangent kernel) c = (|u|^2 + |v|^2) / n, and gradient descent moves both by

    f <- f (1 - lr c + lr^2 f^2 / n),        c <- c + lr f^2 / n (lr c - 4).

With lr c below 2 the loss falls. Between 2 and 4 it grows until f^2 is as large as n, which lowers c until
lr c is below 2: there the loss falls, at a flatter place. Above 4 c grows too, and all diverges.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Path(NamedTuple):
    """What gradient descent does: output and curvature before each step and after the last."""

    output: np.ndarray
    curvature: np.ndarray

    @property
    def loss(self) -> np.ndarray:
        """f^2 / 2; infinite where it has diverged beyond all numbers."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.output**2 / 2


def initial(width: int, seed: int = 0) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The weights u and v before training: standard normal, so that c is about 2."""
    u, v = np.random.default_rng(seed).normal(size=(2, width))
    return u, v


def descend(u: Float[np.ndarray, " n"], v: Float[np.ndarray, " n"], rate: float, steps: int) -> Path:
    """Gradient descent on the weights themselves, by `jax.grad` in float64.

    Args:
        u, v: the weights to start from.
        rate: learning rate.
        steps: number of updates.
    """
    width = len(u)

    def output(weights: tuple[Array, Array]) -> Array:
        return jnp.vdot(*weights) / jnp.sqrt(width)

    def step(weights: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        slopes = jax.grad(lambda w: output(w) ** 2 / 2)(weights)
        moved = jax.tree.map(lambda w, g: w - rate * g, weights, slopes)
        u, v = weights
        return moved, (output(weights), (jnp.vdot(u, u) + jnp.vdot(v, v)) / width)

    with jax.enable_x64(True):
        start = jnp.asarray(u, jnp.float64), jnp.asarray(v, jnp.float64)
        _, (outputs, curvatures) = jax.jit(lambda w: jax.lax.scan(step, w, None, steps + 1))(start)
    return Path(np.asarray(outputs), np.asarray(curvatures))


def predicted(output: float, curvature: float, rate: float, width: int, steps: int) -> Path:
    """The same by the two closed equations, from output and curvature alone.

    >>> falls = predicted(1.0, 1.0, rate=1.0, width=100, steps=50)
    >>> bool(falls.loss[-1] < 1e-3 * falls.loss[0])
    True
    """
    path = [(np.float64(output), np.float64(curvature))]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            f, c = path[-1]
            push = rate * f**2 / width
            path.append((f * (1 - rate * c + rate * push), c + push * (rate * c - 4)))
    outputs, curvatures = np.array(path).T
    return Path(outputs, curvatures)
