"""Optimizers that find their own step: by the loss, along a line, or from the distance travelled.

Optax's, as functions of their hyper-parameters. Their learning rate is a limit or a factor, usually 1; so a
schedule acts on them as on any other. Some want the loss or the function itself at each update, which
training gives to all.
"""

import optax
from jaxtyping import ArrayLike
from optax import contrib

from bpresearch.optim.optimizers import given_to

__all__ = [
    "backtracking",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "lbfgs",
    "momo",
    "momo_adam",
    "polyak_sgd",
    "prodigy",
]


def polyak_sgd(
    learning_rate: ArrayLike, f_min: ArrayLike = 0.0, eps: ArrayLike = 0.0
) -> optax.GradientTransformation:
    """w <- w - min((loss - f_min) / (|g|^2 + eps), lr) g (Polyak 1987; Loizou et al. 2021).

    >>> optimizer, w = bp.optim.polyak_sgd(1.0), jnp.array(3.0)
    >>> update, _ = optimizer.update(2 * w, optimizer.init(w), w, value=w**2)  # of w^2, whose minimum is 0
    >>> print(update)
    -1.5
    """
    return optax.polyak_sgd(learning_rate, f_min=f_min, eps=eps)


def backtracking(
    learning_rate: ArrayLike,
    slope_rtol: ArrayLike = 1e-4,
    decrease_factor: ArrayLike = 0.8,
    increase_factor: ArrayLike = 1.5,
) -> optax.GradientTransformation:
    """w <- w - s g with loss(w - s g) <= loss(w) - slope_rtol s |g|^2 (Armijo 1966).

    s starts at increase_factor times the last one, at most lr, and shrinks by decrease_factor up to 30
    times. The loss is that of the step's mini-batch (Vaswani et al. 2019).

    >>> optimizer, w, f = bp.optim.backtracking(4.0), jnp.array(3.0), lambda w: w**2
    >>> given = {"value": f(w), "grad": 2 * w, "value_fn": f}
    >>> update, _ = optimizer.update(2 * w, optimizer.init(w), w, **given)
    >>> print(f(w + update) < f(w))
    True
    """
    search = optax.scale_by_backtracking_linesearch(
        30, slope_rtol, decrease_factor, increase_factor, max_learning_rate=learning_rate
    )
    return optax.chain(optax.sgd(1.0), search)


@given_to(optax.lbfgs)
def lbfgs(learning_rate):
    """Limited-memory BFGS from the last 10 steps, along a line until the strong Wolfe conditions hold.

    lr scales the direction in which the line search starts. Curvature comes from the gradients of
    mini-batches, so it is for large ones (Liu and Nocedal 1989).
    """


@given_to(contrib.momo)
def momo(learning_rate, beta=0.9, lower_bound=0.0, weight_decay=0.0):
    """Momentum whose step, at most lr, minimises a model of the loss that has a lower bound.

    (Schaipp et al. 2023.)
    """


@given_to(contrib.momo_adam)
def momo_adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, lower_bound=0.0, weight_decay=0.0):
    """MoMo with Adam's scale of each weight (Schaipp et al. 2023)."""


@given_to(contrib.dog)
def dog(learning_rate, eps=1e-8, weight_decay=0.0):
    """w <- w - lr max_i |w_i - w_0| / sqrt(sum |g_i|^2 + eps) g (Ivgi et al. 2023)."""


@given_to(contrib.dowg)
def dowg(learning_rate, eps=1e-4, weight_decay=0.0):
    """DoG with the gradients weighted by the squared distance (Khaled et al. 2023)."""


def dadapt_adamw(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    estim_lr0: ArrayLike = 1e-6,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """AdamW with lr times an estimate, from below, of the distance to the solution.

    (Defazio and Mishchenko 2023.)
    """
    return contrib.dadapt_adamw(learning_rate, (b1, b2), eps, estim_lr0, weight_decay)


def prodigy(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    estim_lr0: ArrayLike = 1e-6,
    estim_lr_coef: ArrayLike = 1.0,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """D-Adaptation with a faster estimate of the distance (Mishchenko and Defazio 2024)."""
    return contrib.prodigy(
        learning_rate,
        (b1, b2),
        eps=eps,
        estim_lr0=estim_lr0,
        estim_lr_coef=estim_lr_coef,
        weight_decay=weight_decay,
    )


@given_to(contrib.cocob)
def cocob(learning_rate, alpha=100.0, eps=1e-8, weight_decay=0.0):
    """Each weight bets on its gradients' signs as on a coin (Orabona and Tommasi 2017)."""
