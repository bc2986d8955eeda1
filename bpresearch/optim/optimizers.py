"""Optimizers: Optax's, as functions of their hyper-parameters.

The hyper-parameters may be traced, so one compiled program serves all their values. The formulas write
g for the gradient, w for the weights and lr for the learning rate. This file has gradient descent and its
relatives; `adaptive` those that scale each weight's step, `parameter_free` those that find their own step.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import ArrayLike

Optimizer = Callable[..., optax.GradientTransformation]

__all__ = [
    "fromage",
    "lars",
    "momentum",
    "nesterov",
    "noisy_sgd",
    "optimistic_gradient_descent",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
]


def given_to(function: Optimizer) -> Callable[[Callable[..., None]], Optimizer]:
    """Makes a function without a body an optimizer: its arguments go, by name, to one of Optax's functions.

    The signature has the hyper-parameters and their defaults, the docstring formula and source.
    """

    def decorate(described: Callable[..., None]) -> Optimizer:
        signature = inspect.signature(described)

        @functools.wraps(described)
        def optimizer(*arguments: Any, **named: Any) -> optax.GradientTransformation:
            bound = signature.bind(*arguments, **named)
            bound.apply_defaults()
            return function(**bound.arguments)

        return optimizer

    return decorate


@given_to(optax.sgd)
def sgd(learning_rate):
    """Stochastic gradient descent: w <- w - lr g.

    >>> optimizer, g = bp.optim.sgd(0.1), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update)
    [-0.3  0.4]
    """


@given_to(optax.sgd)
def momentum(learning_rate, momentum):
    """Heavy ball: m <- beta m + g,  w <- w - lr m (Polyak 1964).

    >>> optimizer, g = bp.optim.momentum(0.1, momentum=0.9), jnp.array(1.0)
    >>> first, state = optimizer.update(g, optimizer.init(g))
    >>> second, _ = optimizer.update(g, state)
    >>> print(first, second)
    -0.1 -0.19
    """


@given_to(functools.partial(optax.sgd, nesterov=True))
def nesterov(learning_rate, momentum):
    """Nesterov: m <- beta m + g,  w <- w - lr (g + beta m) (Nesterov 1983; Sutskever et al. 2013).

    >>> optimizer, g = bp.optim.nesterov(0.1, momentum=0.9), jnp.array(1.0)
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update)
    -0.19
    """


@given_to(optax.sign_sgd)
def sign_sgd(learning_rate):
    """w <- w - lr sign(g) (Bernstein et al. 2018).

    >>> optimizer, g = bp.optim.sign_sgd(0.1), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update)
    [-0.1  0.1]
    """


@given_to(optax.signum)
def signum(learning_rate, beta=0.9):
    """m <- beta m + (1 - beta) g,  w <- w - lr sign(m) (Bernstein et al. 2018).

    >>> optimizer, g = bp.optim.signum(0.1), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update)
    [-0.1  0.1]
    """


def noisy_sgd(
    learning_rate: ArrayLike, eta: ArrayLike = 0.01, gamma: ArrayLike = 0.55, seed: ArrayLike = 0
) -> optax.GradientTransformation:
    """w <- w - lr (g + n_t), n_t normal with variance eta / t^gamma (Neelakantan et al. 2015).

    In a sweep `seed` is the run's own.
    """
    return optax.noisy_sgd(learning_rate, eta, gamma, key=jax.random.key(jnp.asarray(seed, jnp.uint32)))


@given_to(optax.optimistic_gradient_descent)
def optimistic_gradient_descent(learning_rate, alpha=1.0, beta=1.0):
    """w <- w - lr ((alpha + beta) g_t - beta g_{t-1}) (Mokhtari et al. 2020)."""


@given_to(optax.fromage)
def fromage(learning_rate, min_norm=1e-6):
    """Each layer: w <- (w - lr g |w| / |g|) / sqrt(1 + lr^2), norms at least min_norm.

    (Bernstein et al. 2020.)
    """


@given_to(optax.lars)
def lars(learning_rate, momentum=0.9, weight_decay=0.0, trust_coefficient=0.001, eps=0.0):
    """Each layer: u = g + wd w,  m <- beta m + lr c |w| / (|u| + eps) u,  w <- w - m (You et al. 2017).

    c is the trust coefficient; where a norm is 0, u goes into m unscaled.
    """


def rprop(
    learning_rate: ArrayLike,
    eta_minus: ArrayLike = 0.5,
    eta_plus: ArrayLike = 1.2,
    min_step_size: ArrayLike = 1e-6,
    max_step_size: ArrayLike = 50.0,
) -> optax.GradientTransformation:
    """w <- w - lr s sign(g); each weight's s grows by eta_plus while its gradient keeps its sign and shrinks
    by eta_minus when it changes (Riedmiller and Braun 1993).

    s starts at 1, so the first step is lr; the limits of s are multiples of lr too, so that a schedule of
    the learning rate scales all steps.
    """
    steps = optax.scale_by_rprop(1.0, eta_minus, eta_plus, min_step_size, max_step_size)
    return optax.chain(steps, optax.scale_by_learning_rate(learning_rate))


def hyperparameters(optimizer: Optimizer, *, required: bool = False) -> tuple[str, ...]:
    """An optimizer's hyper-parameters beside the learning rate; with `required`, those without default.

    >>> bp.optim.hyperparameters(bp.optim.adam)
    ('b1', 'b2', 'eps', 'eps_root')
    """
    return tuple(
        name
        for name, parameter in inspect.signature(optimizer).parameters.items()
        if name != "learning_rate" and not (required and parameter.default is not parameter.empty)
    )


@functools.cache
def clipped(optimizer: Optimizer) -> Optimizer:
    """The optimizer after g <- g min(1, clip_norm / |g|), |g| over all weights (Pascanu et al. 2013).

    It takes `clip_norm` as well; infinity clips nothing.

    >>> bp.optim.hyperparameters(bp.optim.clipped(bp.optim.momentum))
    ('momentum', 'clip_norm')
    """

    def after_clipping(learning_rate: ArrayLike, clip_norm: ArrayLike, **others: Any):
        return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer(learning_rate, **others))

    return taking({"clip_norm": inspect.Parameter.empty}, optimizer, after_clipping)


@functools.cache
def decayed(optimizer: Optimizer) -> Optimizer:
    """The optimizer on the loss plus weight_decay |w|^2 / 2: g <- g + weight_decay w.

    It takes `weight_decay` as well. An optimizer that has a `weight_decay` of its own, as `adamw` has
    (Loshchilov and Hutter 2019), is returned as it is.
    """
    if "weight_decay" in hyperparameters(optimizer):
        return optimizer

    def after_decay(learning_rate: ArrayLike, weight_decay: ArrayLike, **others: Any):
        return optax.chain(optax.add_decayed_weights(weight_decay), optimizer(learning_rate, **others))

    return taking({"weight_decay": inspect.Parameter.empty}, optimizer, after_decay)


@functools.cache
def decoupled(optimizer: Optimizer) -> Optimizer:
    """The optimizer with a weight decay that no learning rate scales: w <- w + step - weight_decay w.

    It takes one more hyper-parameter, `decoupled_decay`; where that is False, it is the optimizer as it is.
    Otherwise `weight_decay` is the fraction of the weights that each update takes away, and the
    optimizer's own decay, which is lr weight_decay w in Optax as in PyTorch, is set to 0. A schedule of its
    own, `weight_decay_schedule`, makes it that of Loshchilov and Hutter (2019), whose decay follows the
    schedule's multiple of the learning rate and not its peak.

    >>> adamw = bp.optim.decoupled(bp.optim.adamw)(0.0, weight_decay=0.1, decoupled_decay=True)
    >>> updates, _ = adamw.update(jnp.ones(1), adamw.init(jnp.ones(1)), jnp.ones(1))
    >>> round(float(updates[0]), 6)
    -0.1

    Raises:
        ValueError: no weight decay is given, or the optimizer is schedule-free: it decays the point it steps
            from, not its weights.
    """
    own = decayed(optimizer)

    def beside(learning_rate: ArrayLike, *, decoupled_decay: bool = False, **others: Any):
        if not decoupled_decay:
            return own(learning_rate, **others)
        if optimizer.__name__.startswith("schedule_free"):
            raise ValueError(f"decoupled_decay: {optimizer.__name__} decays with its learning rate")
        if "weight_decay" not in others:
            raise ValueError(
                "decoupled_decay needs a weight_decay: the part of the weights taken away each step"
            )
        decay, without = others.pop("weight_decay"), {"weight_decay": 0.0} if own is optimizer else {}
        return optax.chain(optimizer(learning_rate, **others, **without), optax.add_decayed_weights(-decay))

    return taking({"decoupled_decay": False}, own, beside)


def taking(names: dict[str, Any], optimizer: Optimizer, function: Optimizer) -> Optimizer:
    """`function` under the optimizer's name, with more hyper-parameters in its signature.

    Args:
        names: of the hyper-parameters, with their defaults; `inspect.Parameter.empty` is none.
        optimizer: the one that `function` makes use of.
        function: `(learning_rate, **hyperparameters) -> optax.GradientTransformation`.
    """
    functools.update_wrapper(function, optimizer)
    signature = inspect.signature(optimizer)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in names.items()
    ]
    changed = signature.replace(parameters=[*signature.parameters.values(), *added])
    function.__signature__ = changed  # type: ignore[attr-defined]
    return function
