"""Averages of weights: exponential, over the tail, and schedule-free, as one recursion with three numbers.

    gradient g at (1 - b) w + b a,    w <- w - lr_t g,    a <- (1 - c_t) a + c_t w,    and a is what is used.

b = 0 and c = 1 is SGD, with any schedule in lr_t; b = 0 and c = 1 - decay its exponential average (EMA);
c_t = 1 / k at the k-th step of the tail its tail average (Polyak and Juditsky 1992); b = 0.9 and c_t = 1 / t
schedule-free SGD (Defazio et al. 2024, arXiv 2405.15682). On a quadratic with noisy gradients, h w + sqrt(v)
times a normal number along an eigenvector (the noisy quadratic model, Zhang et al. 2019), (w, a) is linear in
itself and the noise, so that E[w^2], E[w a] and E[a^2] follow exactly.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float


class Average(NamedTuple):
    """How weights are averaged.

    Attributes:
        name: in tables.
        weights: steps -> c_t at each step.
        interpolation: b, how far from w to a the gradient is taken.
    """

    name: str
    weights: Callable[[int], np.ndarray]
    interpolation: float = 0.0


def last() -> Average:
    """None: the last iterate."""
    return Average("last", np.ones)


def exponential(decay: float = 0.99) -> Average:
    """EMA: a <- decay a + (1 - decay) w, from the initial weights, which keep the share decay^t.

    The optimizers' own average (`optim.averaged`, `ema:0.99`) divides by 1 - decay^t instead, so that the
    initial weights have no share; after many steps both are the same.
    """
    return Average("EMA", lambda steps: np.full(steps, 1 - decay))


def tail(part: float = 0.5) -> Average:
    """The mean over the last part of the steps."""

    def weights(steps: int) -> np.ndarray:
        count = max(1, round(part * steps))
        return 1 / np.maximum(np.arange(steps) - (steps - count) + 1, 1)

    return Average("tail", weights)


def schedule_free(interpolation: float = 0.9) -> Average:
    """The mean of all w, with the gradients taken near it."""
    return Average("schedule-free", lambda steps: 1 / np.arange(1, steps + 1), interpolation)


def expected_squares(
    eigenvalues: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"], start: float,
    rates: Float[np.ndarray, " steps"], average: Average,
) -> Float[np.ndarray, " n"]:  # fmt: skip
    """E[a^2] after the last step, along each eigenvector, exactly.

    >>> float(expected_squares(np.ones(1), np.zeros(1), 1.0, np.full(3, 0.5), last())[0])  # (1 / 2)^6
    0.015625

    Args:
        eigenvalues: h.
        variance: v of the gradient's noise.
        start: w and a before the first step.
        rates: learning rate at each step.
        average: how a is made.
    """
    h, v, b = eigenvalues, variance, average.interpolation
    ww = wa = aa = np.full(len(h), start**2)
    for rate, c in zip(rates, average.weights(len(rates)), strict=True):
        p, q, noise = 1 - rate * h * (1 - b), -rate * h * b, rate**2 * v  # w' = p w + q a + noise
        r, s = c * p, 1 - c + c * q  # a' = r w + s a + c noise
        ww, wa, aa = (
            p**2 * ww + 2 * p * q * wa + q**2 * aa + noise,
            p * r * ww + (p * s + q * r) * wa + q * s * aa + c * noise,
            r**2 * ww + 2 * r * s * wa + s**2 * aa + c**2 * noise,
        )
    return aa


def settled_square(h: float, variance: float, rate: float) -> float:
    """E[w^2] of SGD in the long run: lr v / (h (2 - lr h))."""
    return rate * variance / (h * (2 - rate * h))


def settled_ema(h: float, variance: float, rate: float, decay: float) -> float:
    """E[a^2] of its exponential average: times (1 - d) (1 + d r) / ((1 + d) (1 - d r)), with r = 1 - lr h."""
    r = 1 - rate * h
    shrunk = (1 - decay) * (1 + decay * r) / ((1 + decay) * (1 - decay * r))
    return settled_square(h, variance, rate) * shrunk


def settled_mean(h: float, variance: float, rate: float, count: int) -> float:
    """E[a^2] of the mean of k iterates: times [(1 + r) / (1 - r) - 2 r (1 - r^k) / (k (1 - r)^2)] / k."""
    r, k = 1 - rate * h, count
    shrunk = ((1 + r) / (1 - r) - 2 * r * (1 - r**k) / (k * (1 - r) ** 2)) / k
    return settled_square(h, variance, rate) * shrunk


def descend(
    slope: Callable[[Array, Array], Array], start: Array, rates: ArrayLike, average: Average, key: Array
) -> Array:
    """The recursion itself: a after the last step.

    Args:
        slope: (weights, key) -> a noisy gradient.
        start: w and a before the first step.
        rates: learning rate at each step.
        average: how a is made.
        key: of the noise.
    """
    b = average.interpolation

    def step(
        state: tuple[Array, Array], inputs: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], None]:
        (w, a), (rate, c, key) = state, inputs
        w = w - rate * slope((1 - b) * w + b * a, key)
        return (w, (1 - c) * a + c * w), None

    rates = jnp.asarray(rates, start.dtype)
    weights = jnp.asarray(average.weights(len(rates)), start.dtype)
    inputs = (rates, weights, jax.random.split(key, len(rates)))
    return jax.lax.scan(step, (start, start), inputs)[0][1]
