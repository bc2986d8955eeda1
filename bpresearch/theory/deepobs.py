"""The problem `quadratic_deep` of DeepOBS (Schneider, Balles and Hennig 2019), number for number.

c(w) = mean over x of (w - x)^T H (w - x) / 2 in 100 dimensions, where the x are drawn once from
N(0, 0.6^2): 1000 for training and 1000 for testing. Of the eigenvalues of H, 90 lie in (0, 1) and 10 in
(30, 60), as in deep networks. Batches have 128 points, and what is left of the data is dropped, in testing
too: 896 points count. Every w starts at 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

DIMENSIONS, POINTS, BATCH, EPOCHS = 100, 1000, 128, 100
STEPS_IN_AN_EPOCH = POINTS // BATCH


class QuadraticDeep(NamedTuple):
    """The problem: its eigenvalues, its Hessian, and both parts of the data."""

    eigenvalues: Float[np.ndarray, "100"]
    hessian: Float[np.ndarray, "100 100"]
    train: Float[np.ndarray, "1000 100"]
    test: Float[np.ndarray, "896 100"]


def quadratic_deep() -> QuadraticDeep:
    """The problem, from the seeds that DeepOBS has: 42 for the Hessian and for training, 43 for testing."""
    random = np.random.RandomState(42)
    eigenvalues = np.concatenate([random.uniform(0, 1, 90), random.uniform(30, 60, 10)])
    rotation = haar_rotation(DIMENSIONS, random)
    train, test = (np.random.RandomState(s).normal(0, 0.6, (POINTS, DIMENSIONS)) for s in (42, 43))
    hessian = rotation.T @ np.diag(eigenvalues) @ rotation
    return QuadraticDeep(eigenvalues, hessian, train, test[: STEPS_IN_AN_EPOCH * BATCH])


def haar_rotation(dimensions: int, random: np.random.RandomState) -> Float[np.ndarray, "n n"]:
    """A rotation drawn uniformly, by the subgroup algorithm (Diaconis and Shahshahani 1987).

    A rotation of the plane by 2 pi u; then, for each further dimension, the rotation found so far, which
    keeps the new first axis, followed by the reflection that takes this axis to a random direction.
    """
    angle = 2 * np.pi * random.uniform()
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for size in range(3, dimensions + 1):
        direction = random.normal(size=size)
        direction /= np.linalg.norm(direction)
        mirror = np.eye(size)[0] - direction
        mirror /= np.linalg.norm(mirror)
        wider = np.eye(size)
        wider[1:, 1:] = rotation
        rotation = wider - 2 * np.outer(mirror, mirror @ wider)
    return -rotation


def loss_on_test(problem: QuadraticDeep, w: Float[Array, "100"]) -> Float[Array, ""]:
    """Mean of (w - x)^T H (w - x) / 2 over the test points, from their mean m and covariance C.

    It is (w - m)^T H (w - m) / 2 + tr(H C) / 2.
    """
    difference = w - problem.test.mean(axis=0)
    spread = float(np.sum(problem.hessian * np.cov(problem.test.T, bias=True)))
    return (difference @ problem.hessian @ difference + spread) / 2


def repeated_batches(seed: int, epochs: int = EPOCHS) -> Int[np.ndarray, "steps 128"]:
    """Which points each step takes: one shuffle's seven batches, the same in every epoch.

    DeepOBS's published runs repeat their batches so; their shuffle is not known.
    """
    order = np.random.RandomState(seed).permutation(POINTS)[: STEPS_IN_AN_EPOCH * BATCH]
    return np.tile(order.reshape(-1, BATCH), (epochs, 1))


def train(
    problem: QuadraticDeep,
    optimizer: optax.GradientTransformation,
    batches: Int[np.ndarray, "seeds steps 128"],
) -> Float[np.ndarray, "seeds epochs"]:
    """Test loss before the first epoch and after each, for several orders of the data; in float64."""

    def step(state: tuple[Array, optax.OptState], mean: Array):
        w, optimizer_state = state
        gradient = jnp.asarray(problem.hessian) @ (w - mean)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, w)
        return (optax.apply_updates(w, updates), optimizer_state), None

    def run(means: Float[Array, "steps 100"]) -> Float[Array, " epochs"]:
        def epoch(state, means):
            state, _ = jax.lax.scan(step, state, means)
            return state, loss_on_test(problem, state[0])

        start = jnp.ones(DIMENSIONS)
        each = means.reshape(-1, STEPS_IN_AN_EPOCH, DIMENSIONS)
        losses = jax.lax.scan(epoch, (start, optimizer.init(start)), each)[1]
        return jnp.concatenate([loss_on_test(problem, start)[None], losses])

    with jax.enable_x64(True):
        # The gradient needs a batch's mean alone.
        means = np.stack([[problem.train[batch].mean(axis=0) for batch in order] for order in batches])
        return np.asarray(jax.jit(jax.vmap(run))(means))


def growth(problem: QuadraticDeep, learning_rate: float) -> tuple[float, float]:
    """The factor by which SGD makes the loss grow at each step in the long run: measured, and in theory.

    The latter is that of the largest eigenvalue, (lr lambda_max - 1)^2.
    """
    (loss,) = train(problem, optax.sgd(learning_rate), repeated_batches(0, epochs=150)[None])
    measured = (loss[-1] / loss[-11]) ** (1 / (10 * STEPS_IN_AN_EPOCH))
    return float(measured), float((learning_rate * problem.eigenvalues.max() - 1) ** 2)


class Published(NamedTuple):
    """An optimizer at the settings that DeepOBS's authors ran, and the final test losses they published."""

    name: str
    optimizer: optax.GradientTransformation
    losses: tuple[str, ...]


PUBLISHED = (
    Published("SGD 10^-1.8", optax.sgd(10**-1.8), ("87.5", "87.2")),
    Published("momentum 0.99, 10^-2.6", optax.sgd(10**-2.6, momentum=0.99), ("87.03",)),
    Published("Adam 10^-1.4", optax.adam(10**-1.4), ("87.07",)),
    Published("SGD 10^-3", optax.sgd(1e-3), ("95.85",)),
)
INITIAL_LOSS = "353.4468"
DIVERGING_RATE, DIVERGING_FACTOR = 10**-1.4, "1.24"
"""Published too: the test loss before the first step; and SGD's growth of the loss above 2 / lambda_max."""


def half_a_digit(published: str) -> float:
    """How far a number may be from a published one that was rounded: half a unit of its last digit.

    >>> half_a_digit("87.5"), half_a_digit("353.4468")
    (0.05, 5e-05)
    """
    return float(f"5e-{len(published.partition('.')[2]) + 1}")
