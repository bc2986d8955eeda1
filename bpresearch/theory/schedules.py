"""What convex optimization says of a learning-rate schedule, before anything is trained.

For a convex function whose subgradients are no longer than G, started at a distance D from a minimum, the
last iterate of (stochastic) subgradient descent with rates gamma eta_1, ..., gamma eta_T is above the minimum
by at most (Defazio et al. 2023, Theorem 10; Schaipp et al. 2025, Theorem 1, arXiv 2501.18965)

    D^2 / (2 gamma S_1)  +  gamma G^2 / 2 [ Q_1 / S_1 + sum over k < T of  eta_k / S_{k+1}  Q_k / S_k ]

with the sums of what is left, S_k = eta_k + ... + eta_T and Q_k = eta_k^2 + ... + eta_T^2. It is a / gamma +
b gamma: the best gamma is sqrt(a / b), and the bound there 2 sqrt(a b).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float


class Bound(NamedTuple):
    """The bound a / gamma + b gamma of a schedule with peak gamma.

    Attributes:
        distance: a, of the way that is to go.
        noise: b, of the subgradients' length.
    """

    distance: float
    noise: float

    def at(self, rate: float) -> float:
        """The bound at a peak rate."""
        return self.distance / rate + self.noise * rate

    @property
    def rate(self) -> float:
        """The peak rate at which it is least."""
        return math.sqrt(self.distance / self.noise)

    @property
    def least(self) -> float:
        """The bound at that rate."""
        return 2 * math.sqrt(self.distance * self.noise)


def bound(eta: Float[np.ndarray, " steps"], distance: float = 1.0, length: float = 1.0) -> Bound:
    """The bound of a schedule.

    >>> constant = bound(np.ones(400))
    >>> round(constant.least * 400**0.5, 2)
    2.75

    Args:
        eta: multiple of the peak at each step; all above zero.
        distance: D, between the start and a minimum.
        length: G, of the longest subgradient.

    Raises:
        ValueError: a step has no length.
    """
    eta = np.asarray(eta, np.float64)
    if not (eta > 0).all():
        raise ValueError(
            f"step {int(np.argmin(eta > 0))} of the schedule is {eta.min():g}: take steps above 0"
        )
    left, squares = (np.cumsum(values[::-1])[::-1] for values in (eta, eta**2))
    last_iterate = np.sum(eta[:-1] / left[1:] * squares[:-1] / left[:-1])
    noise = length**2 / 2 * (squares[0] / left[0] + last_iterate)
    return Bound(distance**2 / (2 * float(left[0])), float(noise))


def stable_decay(steps: int, *, decay: float = 0.2) -> optax.Schedule:
    """1, then linear to 0 over the last `decay` of the steps, each of them above 0."""
    return _cooled(steps, decay, lambda part: 1 - part)


def stable_sqrt(steps: int, *, decay: float = 0.2) -> optax.Schedule:
    """1, then 1 - sqrt(part of the decay that is over) (Hägele et al. 2024)."""
    return _cooled(steps, decay, lambda part: 1 - jnp.sqrt(part))


def _cooled(steps: int, decay: float, shape) -> optax.Schedule:
    falling = max(1, round(decay * steps))
    start = steps - falling
    return lambda t: shape(jnp.maximum(t - start + 1, 0) / (falling + 1))


class AbsoluteErrors(NamedTuple):
    """E |a.x - b| over unit vectors a, with b = a.minimum + noise, Laplace-distributed: convex, not smooth.

    Its subgradients have length 1, and the minimum is known: E |r + noise| = |r| + s exp(-|r| / s).

    Attributes:
        dimension: of x.
        scale: s of the noise.
        runs: trained side by side.
    """

    dimension: int = 10
    scale: float = 0.5
    runs: int = 200

    def final_excess(self, rates: Float[np.ndarray, " steps"], seed: int = 0) -> float:
        """How far above the minimum SGD's last iterate is, started at distance 1; mean over runs.

        Args:
            rates: learning rate of each step.
            seed: of starts and examples.
        """
        random = np.random.default_rng(seed)

        def units(count: int) -> np.ndarray:
            directions = random.normal(size=(count, self.dimension))
            return directions / np.linalg.norm(directions, axis=1, keepdims=True)

        x = units(self.runs)  # the minimum is at 0
        for rate in rates:
            a, noise = units(self.runs), random.laplace(scale=self.scale, size=self.runs)
            x = x - rate * np.sign(np.sum(a * x, axis=1) - noise)[:, None] * a
        r = np.abs(units(2000) @ x.T)
        return float(np.mean(r + self.scale * np.exp(-r / self.scale) - self.scale))
