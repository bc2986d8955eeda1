"""The sharpness that an optimizer meets: of the Hessian in the coordinates that the optimizer stretches."""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, PyTree

from bpresearch.diagnostics.batch import hessian_product, random_like_weights
from bpresearch.functional import Params
from bpresearch.theory.spectra import spectrum
from bpresearch.train import Measured, Moment

LANCZOS_STEPS = 20


def preconditioned_sharpness(moment: Moment) -> dict[str, Measured]:
    """`preconditioned_sharpness`, the largest eigenvalue of P^-1 H, and `sharpness_over_edge`.

    Where the optimizer's step is -rate P^-1 m, with m the gradient or an average of gradients, training is
    stable up to a largest eigenvalue of P^-1 H, its edge: 2 / rate for gradient descent, which settles there
    (Cohen et al. 2021, 2022). `sharpness_over_edge` is 1 at the edge. H is of the mini-batch loss, P of the
    next step, by 20 steps of Lanczos from a random vector. By optimizer:

        sgd, momentum, nesterov               P = 1
        rmsprop, rmsprop_momentum, adagrad    P = sqrt(v + eps)
        adam, adamw, nadam, nadamw, amsgrad   P = (1 - b1^t) (sqrt(v / (1 - b2^t) + eps_root) + eps)

    and edges (2 + 2 beta) / rate with momentum beta, over 1 + 2 beta with Nesterov's; Adam's rate is
    lr (1 - b1), its beta b1. NaN for other optimizers, and where weights have several (muP). Weight decay and
    clipping are not in it.
    """
    optimizer = optimizer_of(moment)
    if optimizer is None:
        nothing = Measured(jnp.full((), jnp.nan, jnp.float32))
        return {"preconditioned_sharpness": nothing, "sharpness_over_edge": nothing}
    product = hessian_product(moment)
    root = jax.tree.map(lambda p: 1 / jnp.sqrt(p), optimizer.preconditioner)

    def stretched(v: Params) -> Params:
        return optax.tree.mul(root, product(optax.tree.mul(root, v)))

    start = random_like_weights(moment, jax.random.normal)
    sharpness = spectrum(stretched, start, LANCZOS_STEPS).largest(1)[0]
    return {
        "preconditioned_sharpness": Measured(sharpness),
        "sharpness_over_edge": Measured(sharpness / optimizer.edge),
    }


class Preconditioned(NamedTuple):
    """An optimizer as gradient descent in stretched coordinates: the diagonal of P, and its edge."""

    preconditioner: Params
    edge: Float[Array, ""]


def edge_of_stability(rate: ArrayLike, beta: ArrayLike = 0.0, nesterov: bool = False) -> PyTree:
    """The curvature above which w <- w - rate m, m <- beta m + g, diverges: (2 + 2 beta) / rate.

    With Nesterov's step g + beta m, it is that over 1 + 2 beta (Cohen et al. 2021, appendix B).

    >>> edge_of_stability(0.1), edge_of_stability(0.1, 0.5), edge_of_stability(0.1, 0.5, nesterov=True)
    (20.0, 30.0, 15.0)
    """
    return (2 + 2 * beta) / (rate * (1 + 2 * beta if nesterov else 1))


def optimizer_of(moment: Moment) -> Preconditioned | None:
    """What the run's optimizer does to the next gradient; None if that is not known."""
    optimizer, state = moment.training.optimizer, moment.next.optimizer_state
    parts = jax.tree.leaves(state, is_leaf=_has_groups)
    known = KNOWN.get(getattr(getattr(optimizer, "func", optimizer), "__name__", ""))
    if known is None or any(map(_has_groups, parts)):
        return None
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(optimizer).parameters.items()
        if parameter.default is not parameter.empty
    }
    return known(moment, {**defaults, **moment.hyperparameters})


def _has_groups(state: PyTree) -> bool:
    return isinstance(state, optax.transforms.PartitionState)


def _plain(moment: Moment, at: dict[str, PyTree], nesterov: bool = False) -> Preconditioned:
    edge = edge_of_stability(at["learning_rate"], at.get("momentum", 0.0), nesterov)
    return Preconditioned(jax.tree.map(jnp.ones_like, moment.run.params), edge)


def _nesterov(moment: Moment, at: dict[str, PyTree]) -> Preconditioned:
    return _plain(moment, at, nesterov=True)


def _root_mean_square(moment: Moment, at: dict[str, PyTree], second: str = "nu") -> Preconditioned:
    v = optax.tree.get(moment.next.optimizer_state, second)
    return _plain(moment, at)._replace(preconditioner=jax.tree.map(lambda v: jnp.sqrt(v + at["eps"]), v))


def _sum_of_squares(moment: Moment, at: dict[str, PyTree]) -> Preconditioned:
    return _root_mean_square(moment, at, "sum_of_squares")


def _adam(
    moment: Moment, at: dict[str, PyTree], second: str = "nu", nesterov: bool = False
) -> Preconditioned:
    state = moment.next.optimizer_state
    b1, b2, eps, eps_root = (at[name] for name in ("b1", "b2", "eps", "eps_root"))
    v = optax.tree.get(state, second)
    count = optax.tree.get(state, "count")
    of_mean, of_squares = 1 - b1**count, 1 if second == "nu_max" else 1 - b2**count
    p = jax.tree.map(lambda v: of_mean * (jnp.sqrt(v / of_squares + eps_root) + eps), v)
    return Preconditioned(p, edge_of_stability(at["learning_rate"] * (1 - b1), b1, nesterov))


def _nadam(moment: Moment, at: dict[str, PyTree]) -> Preconditioned:
    return _adam(moment, at, nesterov=True)


def _amsgrad(moment: Moment, at: dict[str, PyTree]) -> Preconditioned:
    return _adam(moment, at, "nu_max")


KNOWN: dict[str, Callable[[Moment, dict[str, PyTree]], Preconditioned]] = {
    "sgd": _plain,
    "momentum": _plain,
    "nesterov": _nesterov,
    "rmsprop": _root_mean_square,
    "rmsprop_momentum": _root_mean_square,
    "adagrad": _sum_of_squares,
    "adam": _adam,
    "adamw": _adam,
    "nadam": _nadam,
    "nadamw": _nadam,
    "amsgrad": _amsgrad,
}
