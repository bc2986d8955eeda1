"""Optimizers: Optax's, as functions of their hyper-parameters.

The hyper-parameters may be traced, so one compiled program serves all their values.
"""

import inspect
from collections.abc import Callable

import optax
from jaxtyping import ArrayLike

Optimizer = Callable[..., optax.GradientTransformation]


def sgd(learning_rate: ArrayLike) -> optax.GradientTransformation:
    """Stochastic gradient descent: w <- w - lr g."""
    return optax.sgd(learning_rate)


def momentum(learning_rate: ArrayLike, momentum: ArrayLike) -> optax.GradientTransformation:
    """Heavy ball: m <- beta m + g,  w <- w - lr m (Polyak 1964)."""
    return optax.sgd(learning_rate, momentum=momentum)


def nesterov(learning_rate: ArrayLike, momentum: ArrayLike) -> optax.GradientTransformation:
    """Nesterov: m <- beta m + g,  w <- w - lr (g + beta m) (Nesterov 1983; Sutskever et al. 2013)."""
    return optax.sgd(learning_rate, momentum=momentum, nesterov=True)


def hyperparameters(optimizer: Optimizer, *, required: bool = False) -> tuple[str, ...]:
    """An optimizer's hyper-parameters beside the learning rate; with `required`, those without default."""
    return tuple(
        name
        for name, parameter in inspect.signature(optimizer).parameters.items()
        if name != "learning_rate" and not (required and parameter.default is not parameter.empty)
    )
