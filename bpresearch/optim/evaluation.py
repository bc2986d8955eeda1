"""The weights to evaluate at, where they are not those that are trained: averages, schedule-free methods."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from optax import contrib

from bpresearch.optim.groups import path_of
from bpresearch.optim.optimizers import Optimizer, taking


class AverageState(NamedTuple):
    """The state of an averaged optimizer."""

    inner: optax.OptState
    mean: optax.Params
    """The average of the weights so far, in float32 at least; at first the weights themselves."""
    number: Int[Array, ""]
    """Of updates so far."""


def evaluation_params(optimizer_state: optax.OptState, params: optax.Params) -> optax.Params:
    """The weights at which a run is to be evaluated.

    Those of an average, if the state holds one (see `averaged`); of a schedule-free optimizer x, the mean of
    the points z that it has come through, x = (y - (1 - b1) z) / b1, where y are the weights trained
    (Defazio et al. 2024); otherwise, and where neither has a part in a weight, the weights themselves. Such
    states are looked for anywhere in the optimizer's.

    >>> optimizer = bp.optim.averaged(bp.optim.sgd)(1.0, average="tail:1.0", steps=2)
    >>> weights = jnp.array(0.0)
    >>> state = optimizer.init(weights)
    >>> for gradient in (-1.0, -2.0):
    ...     update, state = optimizer.update(jnp.array(gradient), state, weights)
    ...     weights = weights + update
    >>> float(weights), float(evaluation_params(state, weights))
    (3.0, 2.0)

    Args:
        optimizer_state: as the optimizer's `update` gives it, or `init`.
        params: the weights that are trained, after that update.
    """
    kinds = (AverageState, contrib.ScheduleFreeState)
    holders = jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, kinds))
    trained = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    chosen: dict[str, Array] = {}
    for state in holders:
        if isinstance(state, AverageState):
            chosen |= {path_of(path): mean for path, mean in jax.tree.leaves_with_path(state.mean)}
        elif isinstance(state, contrib.ScheduleFreeState):
            chosen |= {
                path_of(path): (trained[path_of(path)] - (1 - state.b1) * z) / state.b1
                for path, z in jax.tree.leaves_with_path(state.z)
            }

    def at(path: jax.tree_util.KeyPath, weight: PyTree) -> PyTree:
        name = path_of(path)
        return chosen[name].astype(weight.dtype) if name in chosen else weight

    return jax.tree.map_with_path(at, params)


@functools.cache
def averaged(optimizer: Optimizer) -> Optimizer:
    """The optimizer beside an average of its weights, at which `evaluation_params` evaluates.

    It takes two more hyper-parameters. `average`, text: `ema:0.99` is m <- 0.99 m + 0.01 w, divided by
    1 - 0.99^t as Adam's means are (Polyak and Juditsky 1992 in exponential form); `tail:0.5` is the mean of
    w over the last half of the steps (Jain et al. 2018), before which it is w; empty is none. And
    `steps`, the number of updates of the whole training, for `tail`. What is averaged is what the optimizer
    itself would be evaluated at. Training itself goes on as without.

    Raises:
        ValueError: `average` is not of this form, or `tail` lacks `steps`.
    """

    def beside(learning_rate: ArrayLike, *, average: str = "", steps: ArrayLike | None = None, **others: Any):
        inner = optax.with_extra_args_support(optimizer(learning_rate, **others))
        if not average:
            return inner
        kind, amount = parsed(average)
        if kind == "tail" and steps is None:
            raise ValueError(f"average={average} needs steps, the number of updates of the whole training")
        last = 0 if steps is None else steps

        def init(params: optax.Params) -> AverageState:
            mean = jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, jnp.float32)), params)
            return AverageState(inner.init(params), mean, jnp.int32(0))

        def update(updates: optax.Updates, state: AverageState, params: PyTree = None, **extra: Any):
            updates, inner_state = inner.update(updates, state.inner, params, **extra)
            weights = evaluation_params(inner_state, optax.apply_updates(params, updates))
            count = state.number + 1
            share = ema_share(amount, count) if kind == "ema" else tail_share(amount, count, last)
            mean = jax.tree.map(lambda m, w: m + share.astype(m.dtype) * (w - m), state.mean, weights)
            return updates, AverageState(inner_state, mean, count)

        return optax.GradientTransformationExtraArgs(init, update)

    return taking({"average": "", "steps": None}, optimizer, beside)


def parsed(average: str) -> tuple[str, float]:
    """The kind of an average and its number.

    >>> parsed("ema:0.99")
    ('ema', 0.99)

    Raises:
        ValueError: it is neither `ema:DECAY`, 0 <= DECAY < 1, nor `tail:FRACTION`, 0 < FRACTION <= 1.
    """
    kind, _, number = average.partition(":")
    try:
        amount = float(number)
    except ValueError:
        amount = -1.0
    if not ((kind == "ema" and 0 <= amount < 1) or (kind == "tail" and 0 < amount <= 1)):
        raise ValueError(
            f"average={average}: takes ema:DECAY with a decay below 1, such as ema:0.99, or tail:FRACTION, "
            "such as tail:0.5 for the last half of the steps"
        )
    return kind, amount


def ema_share(decay: float, count: Int[Array, ""]) -> Float[Array, ""]:
    """The latest weights' part in an exponential mean of `count`: (1 - decay) / (1 - decay^count)."""
    # 1 - decay^count would cancel in float32 while it is small.
    return (1 - decay) / -jnp.expm1(count * (math.log(decay) if decay else -math.inf))


def tail_share(fraction: float, count: Int[Array, ""], steps: ArrayLike) -> Float[Array, ""]:
    """The latest weights' part in the mean over the last `fraction` of `steps`; 1 before these begin."""
    begin = jnp.asarray(steps) - jnp.maximum(jnp.round(fraction * jnp.asarray(steps)), 1).astype(jnp.int32)
    return 1 / jnp.maximum(count - begin, 1).astype(jnp.float32)
