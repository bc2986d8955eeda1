"""Muon: the momentum of each matrix, with its singular values made equal; Adam for everything else."""

from collections.abc import Iterable

import optax
from jaxtyping import ArrayLike
from optax import contrib

from bpresearch.optim.groups import partitioned, selected

__all__ = ["muon"]


def muon(
    learning_rate: ArrayLike,
    beta: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    adam_b1: ArrayLike = 0.9,
    adam_b2: ArrayLike = 0.999,
    adam_lr_multiplier: ArrayLike = 1.0,
    adam_for: str = "",
) -> optax.GradientTransformation:
    """Matrices: w <- w - lr s (U V^T + wd w) for the momentum U S V^T, by Newton and Schulz; the rest: NAdam.

    s is sqrt(max(1, outputs / inputs)) for U V^T and 1 for wd w (Jordan et al. 2024). `contrib.muon` of
    Optax.

    >>> optimizer = muon(0.02, adam_lr_multiplier=0.15, adam_for="embedding,head")

    Args:
        learning_rate: of the matrices.
        beta: of the momentum, Nesterov's.
        eps: added where a norm or a root is divided by.
        weight_decay: of the matrices.
        adam_b1, adam_b2: Adam's.
        adam_lr_multiplier: Adam's learning rate as a multiple of that of the matrices, so that a schedule
            acts on both; Jordan et al. take 0.003 beside 0.02.
        adam_for: patterns (see `groups`) of matrices that Adam trains all the same, as the first and the
            last layer should be.

    Raises:
        ValueError: a pattern of `adam_for` matches no parameter.
    """

    adam_learning_rate = learning_rate * adam_lr_multiplier
    by_shape = contrib.muon(
        learning_rate,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        adam_learning_rate=adam_learning_rate,
    )
    if not adam_for:
        return by_shape
    adam = optax.nadam(adam_learning_rate, adam_b1, adam_b2, eps)

    def left_to_adam(paths: Iterable[str]) -> dict[str, bool]:
        left = selected(adam_for, paths, "adam_for")
        return {path: path in left for path in paths}

    return partitioned(left_to_adam, lambda left: adam if left else by_shape)
