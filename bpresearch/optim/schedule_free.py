"""Schedule-free optimizers: a mean of the points in place of a schedule (Defazio et al. 2024).

Optax's, as functions of their hyper-parameters. The gradient is taken at y, the weights that are trained;
`evaluation.evaluation_params` gives x, the weights to evaluate at.
"""

from optax import contrib

from bpresearch.optim.optimizers import given_to

__all__ = ["schedule_free_adamw", "schedule_free_sgd"]


@given_to(contrib.schedule_free_sgd)
def schedule_free_sgd(learning_rate, b1=0.9, weight_decay=0.0, weight_lr_power=2.0):
    """z <- z - lr (g(y) + wd y),  x <- (1 - c) x + c z,  y = b1 x + (1 - b1) z (Defazio et al. 2024).

    c is lr^p / sum(lr^p), lr the largest so far and p `weight_lr_power`.

    >>> optimizer, w = bp.optim.schedule_free_sgd(0.1), jnp.array(1.0)
    >>> update, state = optimizer.update(w, optimizer.init(w), w)
    >>> round(float(bp.optim.evaluation_params(state, w + update)), 3)
    0.9
    """


@given_to(contrib.schedule_free_adamw)
def schedule_free_adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, weight_lr_power=2.0):
    """`schedule_free_sgd` with g / (sqrt(v) + eps) for g, v Adam's mean of g^2 (Defazio et al. 2024)."""
