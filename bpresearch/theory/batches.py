"""Steps and examples to a target against batch size: the critical batch (McCandlish et al. 2018).

A step of the best length along a gradient averaged over B examples lowers the loss by

    dL_max / (1 + B_noise / B),        B_noise = tr(H S) / (G.H G),

with G the true gradient, H the Hessian and S the covariance of one example's gradient. If B_noise changes
little, the steps and the examples E = B S to a target lie on a hyperbola,

    S = S_min (1 + B_crit / B),   (S / S_min - 1) (E / E_min - 1) = 1,   B_crit = E_min / S_min:

below B_crit twice the batch saves half of the steps, above it nothing. B_noise is estimated without H, by
tr(S) / |G|^2.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Hyperbola(NamedTuple):
    """S = S_min (1 + B_crit / B)."""

    fewest_steps: float
    critical_batch: float

    def steps(self, batch: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Steps to the target at these batch sizes."""
        return self.fewest_steps * (1 + self.critical_batch / batch)


def fit(batch: Float[np.ndarray, " n"], steps: Float[np.ndarray, " n"]) -> Hyperbola:
    """The hyperbola through measured steps, with the least squares of relative errors.

    >>> exact = Hyperbola(100.0, 32.0)
    >>> sizes = np.array([4.0, 16.0, 64.0, 256.0])
    >>> [round(number, 6) for number in fit(sizes, exact.steps(sizes))]
    [100.0, 32.0]

    Raises:
        ValueError: fewer than two batch sizes.
    """
    if len(batch) < 2:
        raise ValueError(f"{len(batch)} batch sizes: a hyperbola takes at least two")
    columns = np.stack([1 / steps, 1 / (batch * steps)], axis=1)  # S_min / S + E_min / (B S) = 1
    fewest, examples = np.linalg.lstsq(columns, np.ones(len(batch)), rcond=None)[0]
    return Hyperbola(float(fewest), float(examples / fewest))


def best_decrease(
    gradient: Float[np.ndarray, " n"], eigenvalues: Float[np.ndarray, " n"],
    variance: Float[np.ndarray, " n"], batch: float,
) -> float:  # fmt: skip
    """The expected decrease of the best step, dL_max / (1 + B_noise / B), in the Hessian's eigenvectors.

    Args:
        gradient: G.
        eigenvalues: of H.
        variance: of one example's gradient along each eigenvector.
        batch: B.
    """
    square, curved = np.sum(gradient**2), np.sum(eigenvalues * gradient**2)
    noise = np.sum(eigenvalues * variance) / curved
    return float(square**2 / (2 * curved) / (1 + noise / batch))


def steps_to(
    target: float, eigenvalues: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"], batch: float,
    rates: Float[np.ndarray, " m"],
) -> float:  # fmt: skip
    """The fewest steps of SGD from w = 1 to an expected loss, over constant learning rates; exact.

    Of the noisy quadratic model, E[w^2] after t steps is r^(2t) + (1 - r^(2t)) lr v / (B h (2 - lr h)) with
    r = 1 - lr h (Zhang et al. 2019). A rate counts only where no eigenvector's limit is above its start: at
    larger ones, where some grow while others shrink, the loss need not fall all the way.

    Returns:
        The number of steps, between whole numbers; infinite where no rate gets there.
    """
    h, rate = eigenvalues[None], rates[:, None]
    shrink = (1 - rate * h) ** 2
    settled = rate * variance / (batch * h * (2 - rate * h))

    def loss(steps: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        left = shrink ** steps[:, None]
        return np.sum(h * (left + (1 - left) * settled), axis=1) / 2

    low, high = np.zeros(len(rates)), np.full(len(rates), 1e7)
    reached = (loss(high) <= target) & (settled <= 1).all(axis=1)
    for _ in range(60):  # every term falls with the steps towards its limit
        middle = (low + high) / 2
        there = loss(middle) <= target
        low, high = np.where(there, low, middle), np.where(there, middle, high)
    return float(np.min(np.where(reached, high, np.inf)))
