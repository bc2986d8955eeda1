"""Quadratic costs c(w) = sum_i h_i w_i^2 / 2, on which gradient methods can be worked out by hand.

The eigenvalues h lie in [mu, L] and k = L / mu is the condition number. Near a minimum every smooth cost
is such a quadratic, in the coordinates of its Hessian's eigenvectors.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from bpresearch import optim


class Method(NamedTuple):
    """A gradient method at fixed settings, and the factor by which it shrinks the error at each step."""

    name: str
    optimizer: Callable[..., optax.GradientTransformation]
    learning_rate: float
    hyperparameters: dict[str, float]
    rate: float


def optimal_methods(smallest: float, largest: float) -> list[Method]:
    """Gradient descent, heavy ball and Nesterov at the settings that are best for spectra in [mu, L].

    * gradient descent: lr = 2 / (L + mu), rate (k - 1) / (k + 1);
    * heavy ball: lr = (2 / (sqrt L + sqrt mu))^2, beta = rate^2, rate (sqrt k - 1) / (sqrt k + 1)
      (Polyak 1964);
    * Nesterov with lr = 1 / L: beta = (sqrt k - 1) / (sqrt k + 1), rate 1 - 1 / sqrt k (Nesterov 2004);
    * Nesterov at its best: lr = 4 / (3 L + mu), beta = (sqrt(3k+1) - 2) / (sqrt(3k+1) + 2), rate
      1 - 2 / sqrt(3k+1) (Lessard, Recht and Packard 2016).
    """
    k, root = largest / smallest, math.sqrt(largest / smallest)
    heavy, wide = (root - 1) / (root + 1), math.sqrt(3 * k + 1)
    polyak = (2 / (math.sqrt(largest) + math.sqrt(smallest))) ** 2
    return [
        Method("gradient descent", optim.sgd, 2 / (largest + smallest), {}, (k - 1) / (k + 1)),
        Method("heavy ball", optim.momentum, polyak, {"momentum": heavy**2}, heavy),
        Method("Nesterov, 1/L", optim.nesterov, 1 / largest, {"momentum": heavy}, 1 - 1 / root),
        Method(
            "Nesterov, best",
            optim.nesterov,
            4 / (3 * largest + smallest),
            {"momentum": (wide - 2) / (wide + 2)},
            1 - 2 / wide,
        ),
    ]


@partial(jax.jit, static_argnums=(0, 4))
def log_norms(
    optimizer: Callable[..., optax.GradientTransformation],
    settings: dict[str, Float[Array, ""]],
    eigenvalues: Float[Array, " n"],
    start: Float[Array, " n"],
    steps: int,
) -> Float[Array, " steps"]:
    """log ||w|| after each step from `start`; the settings are the optimizer's arguments."""

    def step(state: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, optax.OptState], Array]:
        w, optimizer_state = state
        updates, optimizer_state = optimizer(**settings).update(eigenvalues * w, optimizer_state, w)
        w = optax.apply_updates(w, updates)
        return (w, optimizer_state), jnp.log(jnp.linalg.norm(w))

    return jax.lax.scan(step, (start, optimizer(**settings).init(start)), None, steps)[1]


def measured_rate(method: Method, eigenvalues: Float[np.ndarray, " n"]) -> float:
    """The factor by which the error shrinks at each step, in the long run; in float64.

    At optimal settings of a method with momentum two roots of its recurrence coincide, so that errors
    shrink as t rate^t: log ||w|| = a + t log rate + b log t is fitted to the last three quarters of as many
    steps as shrink the error by e^-100.
    """
    steps = math.ceil(100 / -math.log(method.rate))
    settings = _settings(method.learning_rate, method.hyperparameters)
    with jax.enable_x64(True):
        logs = np.asarray(
            log_norms(method.optimizer, settings, jnp.asarray(eigenvalues), jnp.ones(len(eigenvalues)), steps)
        )
    t = np.arange(1, steps + 1)[steps // 4 :]
    columns = np.stack([np.ones(len(t)), t / steps, np.log(t / steps)], axis=1)
    slope = np.linalg.lstsq(columns, logs[steps // 4 :])[0][1] / steps
    return float(np.exp(slope))


def edge(optimizer: Callable[..., optax.GradientTransformation], largest: float, momentum: float) -> float:
    """The learning rate above which a method diverges on a quadratic with largest eigenvalue L.

    Gradient descent: 2 / L;  heavy ball: 2 (1 + beta) / L;  Nesterov: 2 (1 + beta) / ((1 + 2 beta) L).
    """
    factor = {
        optim.sgd: 2,
        optim.momentum: 2 * (1 + momentum),
        optim.nesterov: 2 * (1 + momentum) / (1 + 2 * momentum),
    }[optimizer]
    return factor / largest


def edge_by_bisection(
    optimizer: Callable[..., optax.GradientTransformation],
    eigenvalues: Float[np.ndarray, " n"],
    momentum: float,
    *,
    steps: int = 2000,
    halvings: int = 20,
) -> float:
    """The learning rate between those at which the error shrinks and those at which it grows, measured."""
    hyper = {"momentum": momentum} if "momentum" in optim.hyperparameters(optimizer) else {}
    low, high = 0.0, 10 / float(np.max(eigenvalues))
    with jax.enable_x64(True):
        spectrum, start = jnp.asarray(eigenvalues), jnp.ones(len(eigenvalues))
        for _ in range(halvings):
            middle = (low + high) / 2
            logs = np.asarray(log_norms(optimizer, _settings(middle, hyper), spectrum, start, steps))
            quarter = steps // 4
            grows = not np.isfinite(logs).all() or logs[-quarter:].max() > logs[quarter : 2 * quarter].max()
            low, high = (low, middle) if grows else (middle, high)
    return (low + high) / 2


def _settings(learning_rate: float, hyperparameters: dict[str, float]) -> dict[str, np.float64]:
    return {n: np.float64(v) for n, v in {"learning_rate": learning_rate, **hyperparameters}.items()}


class Noisy(NamedTuple):
    """SGD on a quadratic whose gradients are noisy: the noisy quadratic model (Zhang et al. 2019).

    Attributes:
        eigenvalues: h.
        noise: c, the variance of one example's gradient along each eigenvector.
        learning_rate: lr.
        batch_size: B.
        start: w before the first step.
        steps: number of steps.
    """

    eigenvalues: Float[np.ndarray, " n"]
    noise: Float[np.ndarray, " n"]
    learning_rate: float
    batch_size: int
    start: Float[np.ndarray, " n"]
    steps: int


def expected_squares(sgd: Noisy) -> Float[np.ndarray, "steps n"]:
    """E[w^2] after each step: E[w^2] <- (1 - lr h)^2 E[w^2] + lr^2 c / B."""
    square, squares = sgd.start**2, []
    shrink, add = (1 - sgd.learning_rate * sgd.eigenvalues) ** 2, sgd.learning_rate**2 * sgd.noise
    for _ in range(sgd.steps):
        square = shrink * square + add / sgd.batch_size
        squares.append(square)
    return np.stack(squares)


def simulated_squares(sgd: Noisy, *, runs: int, seed: int = 0) -> Float[np.ndarray, "steps n"]:
    """The mean of w^2 after each step over many runs of SGD with normal gradient noise."""
    slope, deviation = sgd.eigenvalues[None], np.sqrt(sgd.noise / sgd.batch_size)[None]
    optimizer = optim.sgd(sgd.learning_rate)

    def step(w: Array, key: Array) -> tuple[Array, Array]:
        xi = jax.random.normal(key, w.shape, w.dtype)
        updates, _ = optimizer.update(slope * w + deviation * xi, optimizer.init(w), w)
        w = optax.apply_updates(w, updates)
        return w, jnp.mean(w**2, axis=0)

    with jax.enable_x64(True):
        first = jnp.broadcast_to(jnp.asarray(sgd.start), (runs, len(sgd.start)))
        keys = jax.random.split(jax.random.key(seed), sgd.steps)
        return np.asarray(jax.jit(partial(jax.lax.scan, step))(first, keys)[1])
