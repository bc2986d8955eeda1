"""Optimizers that scale each weight's step by its own gradients: AdaGrad, RMSprop, Adam and relatives.

Optax's, as functions of their hyper-parameters. In the formulas m is the mean of the gradients and v that
of their squares, both with bias correction where the source has it; operations are elementwise.
"""

import optax
from optax import contrib

from bpresearch.optim.optimizers import given_to

__all__ = [
    "acprop",
    "adabelief",
    "adadelta",
    "adafactor",
    "adafactor_momentum",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "ademamix",
    "adopt",
    "amsgrad",
    "lamb",
    "lion",
    "madgrad",
    "nadam",
    "nadamw",
    "novograd",
    "optimistic_adam",
    "radam",
    "rmsprop",
    "rmsprop_momentum",
    "simplified_ademamix",
    "sm3",
    "yogi",
]


@given_to(optax.adagrad)
def adagrad(learning_rate, initial_accumulator_value=0.1, eps=1e-7):
    """v <- v + g^2,  w <- w - lr g / sqrt(v + eps) (Duchi et al. 2011).

    >>> optimizer, g = bp.optim.adagrad(0.1, initial_accumulator_value=0.0), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update.round(3))
    [-0.1  0.1]
    """


@given_to(optax.adadelta)
def adadelta(learning_rate, rho=0.9, eps=1e-6, weight_decay=0.0):
    """d = g sqrt(mean(d^2) + eps) / sqrt(mean(g^2) + eps),  w <- w - lr (d + wd w) (Zeiler 2012)."""


@given_to(optax.rmsprop)
def rmsprop(learning_rate, decay=0.9, eps=1e-8):
    """v <- decay v + (1 - decay) g^2,  w <- w - lr g / sqrt(v + eps) (Tieleman and Hinton 2012).

    >>> optimizer, g = bp.optim.rmsprop(0.1), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update.round(3))
    [-0.316  0.316]
    """


@given_to(optax.rmsprop)
def rmsprop_momentum(learning_rate, momentum, decay=0.9, eps=1e-8):
    """v <- decay v + (1 - decay) g^2,  m <- beta m + lr g / sqrt(v + eps),  w <- w - m."""


@given_to(optax.adam)
def adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  w <- w - lr m / (sqrt(v + eps_root) + eps).

    (Kingma and Ba 2015.)

    >>> optimizer, g = bp.optim.adam(0.1), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(g))
    >>> print(update.round(3))  # the first step is lr for every weight
    [-0.1  0.1]
    """


@given_to(optax.adamw)
def adamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4):
    """Adam, and w <- w - lr wd w beside it (Loshchilov and Hutter 2019).

    >>> optimizer, w, g = bp.optim.adamw(0.1, weight_decay=0.5), jnp.array([2.0]), jnp.array([1.0])
    >>> update, _ = optimizer.update(g, optimizer.init(w), w)
    >>> print(update.round(3))  # lr, and lr times half of w
    [-0.2]
    """


@given_to(optax.nadam)
def nadam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Adam with Nesterov's momentum: b1 m + (1 - b1) g in place of m (Dozat 2016)."""


@given_to(optax.nadamw)
def nadamw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, weight_decay=1e-4):
    """NAdam, and w <- w - lr wd w beside it (Dozat 2016; Loshchilov and Hutter 2019)."""


@given_to(optax.adamax)
def adamax(learning_rate, b1=0.9, b2=0.999, eps=1e-8):
    """Adam with the largest gradient for the mean: v <- max(b2 v, |g| + eps),  w <- w - lr m / v.

    (Kingma and Ba 2015.)
    """


@given_to(optax.adamaxw)
def adamaxw(learning_rate, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4):
    """Adamax, and w <- w - lr wd w beside it."""


@given_to(optax.amsgrad)
def amsgrad(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """Adam with the largest v so far (Reddi et al. 2018)."""


@given_to(optax.adabelief)
def adabelief(learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16):
    """Adam with v the mean of (g - m)^2 (Zhuang et al. 2020)."""


@given_to(optax.yogi)
def yogi(learning_rate, b1=0.9, b2=0.999, eps=1e-3):
    """Adam with v <- v - (1 - b2) sign(v - g^2) g^2 (Zaheer et al. 2018)."""


@given_to(optax.radam)
def radam(learning_rate, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0, threshold=5.0):
    """Adam whose step is rectified while few gradients make v uncertain (Liu et al. 2020)."""


@given_to(optax.adan)
def adan(learning_rate, b1=0.98, b2=0.92, b3=0.99, eps=1e-8, eps_root=1e-8, weight_decay=0.0):
    """Adam with a mean, b2, of the change of the gradient as Nesterov's momentum (Xie et al. 2022)."""


@given_to(optax.optimistic_adam_v2)
def optimistic_adam(learning_rate, alpha=1.0, beta=1.0, b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0):
    """With NAdam's step d: w <- w - lr ((alpha + beta) d_t - beta d_{t-1}) (Daskalakis et al. 2018)."""


@given_to(optax.novograd)
def novograd(learning_rate, b1=0.9, b2=0.25, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    """v the mean of |g|^2 by layer,  m <- b1 m + g / (sqrt(v) + eps) + wd w,  w <- w - lr m.

    (Ginsburg et al. 2019.)
    """


@given_to(optax.lamb)
def lamb(learning_rate, b1=0.9, b2=0.999, eps=1e-6, eps_root=0.0, weight_decay=0.0):
    """Each layer: d = m / (sqrt(v) + eps) + wd w,  w <- w - lr d |w| / |d| (You et al. 2020).

    >>> optimizer, w, g = bp.optim.lamb(0.1), jnp.array([3.0, 4.0]), jnp.array([1.0, 1.0])
    >>> update, _ = optimizer.update(g, optimizer.init(w), w)
    >>> print(jnp.linalg.norm(update).round(3))  # lr times the norm of the weights
    0.5
    """


@given_to(optax.lion)
def lion(learning_rate, b1=0.9, b2=0.99, weight_decay=1e-3):
    """w <- w - lr (sign(b1 m + (1 - b1) g) + wd w),  m <- b2 m + (1 - b2) g (Chen et al. 2023).

    >>> optimizer, w, g = bp.optim.lion(0.1), jnp.ones(2), jnp.array([3.0, -4.0])
    >>> update, _ = optimizer.update(g, optimizer.init(w), w)
    >>> print(update)
    [-0.1001  0.0999]
    """


@given_to(optax.adafactor)
def adafactor(learning_rate, decay_rate=0.8, clipping_threshold=1.0, eps=1e-30):
    """w <- w - lr rms(w) clip(g / sqrt(v)), with v of large matrices as a product of row and column.

    Matrices with both sides of at least 128 are factored; v's decay is 1 - t^-decay_rate (Shazeer and
    Stern 2018).
    """


@given_to(optax.adafactor)
def adafactor_momentum(learning_rate, momentum, decay_rate=0.8, clipping_threshold=1.0, eps=1e-30):
    """Adafactor's step averaged: m <- beta m + (1 - beta) step,  w <- w - m."""


@given_to(optax.sm3)
def sm3(learning_rate, momentum=0.9):
    """AdaGrad with sums of squares shared by rows and columns, and momentum (Anil et al. 2019)."""


@given_to(contrib.acprop)
def acprop(learning_rate, b1=0.9, b2=0.999, eps=1e-16, eps_root=1e-16, weight_decay=0.0):
    """w <- w - lr (g_t / (sqrt(v_{t-1}) + eps) + wd w), v the mean of (g - m)^2 (Zhuang et al. 2021)."""


@given_to(contrib.adopt)
def adopt(learning_rate, b1=0.9, b2=0.9999, eps=1e-6):
    """m <- b1 m + (1 - b1) g_t / max(sqrt(v_{t-1}), eps),  w <- w - lr m, clipped (Taniguchi et al. 2024)."""


@given_to(contrib.ademamix)
def ademamix(learning_rate, b1=0.9, b2=0.999, b3=0.9999, alpha=5.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    """AdamW with m + alpha n for m, n a slow mean of the gradients, b3 (Pagliardini et al. 2024)."""


@given_to(contrib.simplified_ademamix)
def simplified_ademamix(learning_rate, b1=0.99, b2=0.95, alpha=0.0, eps=1e-8, eps_root=0.0, weight_decay=0.0):
    """n <- b1 n + g,  w <- w - lr ((n + alpha g) / (sqrt(v) + eps) + wd w) (Morwani et al. 2025)."""


@given_to(contrib.madgrad)
def madgrad(learning_rate, momentum=0.9, weight_decay=0.0, eps=1e-6):
    """Dual averaging: z = w_0 - sum(l g) / (cbrt(sum(l g^2)) + eps),  w <- beta w + (1 - beta) z, with
    l = lr sqrt(t + 1) (Defazio and Jelassi 2021)."""
