"""Optimizers that scale each weight's step by its own gradients: AdaGrad, RMSprop, Adam and relatives.

Optax's, as functions of their hyper-parameters. In the formulas m is the mean of the gradients and v that
of their squares, both with bias correction where the source has it; operations are elementwise.
"""

import optax
from jaxtyping import ArrayLike
from optax import contrib

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
    "muon",
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


def adagrad(
    learning_rate: ArrayLike, initial_accumulator_value: ArrayLike = 0.1, eps: ArrayLike = 1e-7
) -> optax.GradientTransformation:
    """v <- v + g^2,  w <- w - lr g / sqrt(v + eps) (Duchi et al. 2011)."""
    return optax.adagrad(learning_rate, initial_accumulator_value, eps)


def adadelta(
    learning_rate: ArrayLike, rho: ArrayLike = 0.9, eps: ArrayLike = 1e-6, weight_decay: ArrayLike = 0.0
) -> optax.GradientTransformation:
    """d = g sqrt(mean(d^2) + eps) / sqrt(mean(g^2) + eps),  w <- w - lr (d + wd w) (Zeiler 2012)."""
    return optax.adadelta(learning_rate, rho, eps, weight_decay)


def rmsprop(
    learning_rate: ArrayLike, decay: ArrayLike = 0.9, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """v <- decay v + (1 - decay) g^2,  w <- w - lr g / sqrt(v + eps) (Tieleman and Hinton 2012)."""
    return optax.rmsprop(learning_rate, decay, eps)


def rmsprop_momentum(
    learning_rate: ArrayLike, momentum: ArrayLike, decay: ArrayLike = 0.9, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """v <- decay v + (1 - decay) g^2,  m <- beta m + lr g / sqrt(v + eps),  w <- w - m."""
    return optax.rmsprop(learning_rate, decay, eps, momentum=momentum)


def adam(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,  w <- w - lr m / (sqrt(v + eps_root) + eps).

    (Kingma and Ba 2015.)
    """
    return optax.adam(learning_rate, b1, b2, eps, eps_root)


def adamw(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 1e-4,
) -> optax.GradientTransformation:
    """Adam, and w <- w - lr wd w beside it (Loshchilov and Hutter 2019)."""
    return optax.adamw(learning_rate, b1, b2, eps, eps_root, weight_decay=weight_decay)


def nadam(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """Adam with Nesterov's momentum: b1 m + (1 - b1) g in place of m (Dozat 2016)."""
    return optax.nadam(learning_rate, b1, b2, eps, eps_root)


def nadamw(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 1e-4,
) -> optax.GradientTransformation:
    """NAdam, and w <- w - lr wd w beside it (Dozat 2016; Loshchilov and Hutter 2019)."""
    return optax.nadamw(learning_rate, b1, b2, eps, eps_root, weight_decay=weight_decay)


def adamax(
    learning_rate: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-8
) -> optax.GradientTransformation:
    """Adam with the largest gradient for the mean: v <- max(b2 v, |g| + eps),  w <- w - lr m / v.

    (Kingma and Ba 2015.)
    """
    return optax.adamax(learning_rate, b1, b2, eps)


def adamaxw(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 1e-4,
) -> optax.GradientTransformation:
    """Adamax, and w <- w - lr wd w beside it."""
    return optax.adamaxw(learning_rate, b1, b2, eps, weight_decay)


def amsgrad(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """Adam with the largest v so far (Reddi et al. 2018)."""
    return optax.amsgrad(learning_rate, b1, b2, eps, eps_root)


def adabelief(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
) -> optax.GradientTransformation:
    """Adam with v the mean of (g - m)^2 (Zhuang et al. 2020)."""
    return optax.adabelief(learning_rate, b1, b2, eps, eps_root)


def yogi(
    learning_rate: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-3
) -> optax.GradientTransformation:
    """Adam with v <- v - (1 - b2) sign(v - g^2) g^2 (Zaheer et al. 2018)."""
    return optax.yogi(learning_rate, b1, b2, eps)


def radam(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    threshold: ArrayLike = 5.0,
) -> optax.GradientTransformation:
    """Adam whose step is rectified while few gradients make v uncertain (Liu et al. 2020)."""
    return optax.radam(learning_rate, b1, b2, eps, eps_root, threshold)


def adan(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.98,
    b2: ArrayLike = 0.92,
    b3: ArrayLike = 0.99,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """Adam with a mean, b2, of the change of the gradient as Nesterov's momentum (Xie et al. 2022)."""
    return optax.adan(learning_rate, b1, b2, b3, eps, eps_root, weight_decay)


def optimistic_adam(
    learning_rate: ArrayLike,
    alpha: ArrayLike = 1.0,
    beta: ArrayLike = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """With NAdam's step d: w <- w - lr ((alpha + beta) d_t - beta d_{t-1}) (Daskalakis et al. 2018)."""
    return optax.optimistic_adam_v2(
        learning_rate, alpha=alpha, beta=beta, b1=b1, b2=b2, eps=eps, eps_root=eps_root
    )


def novograd(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.25,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """v the mean of |g|^2 by layer,  m <- b1 m + g / (sqrt(v) + eps) + wd w,  w <- w - lr m.

    (Ginsburg et al. 2019.)
    """
    return optax.novograd(learning_rate, b1, b2, eps, eps_root, weight_decay)


def lamb(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-6,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """Each layer: d = m / (sqrt(v) + eps) + wd w,  w <- w - lr d |w| / |d| (You et al. 2020)."""
    return optax.lamb(learning_rate, b1, b2, eps, eps_root, weight_decay)


def lion(
    learning_rate: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.99, weight_decay: ArrayLike = 1e-3
) -> optax.GradientTransformation:
    """w <- w - lr (sign(b1 m + (1 - b1) g) + wd w),  m <- b2 m + (1 - b2) g (Chen et al. 2023)."""
    return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay)


def adafactor(
    learning_rate: ArrayLike,
    decay_rate: ArrayLike = 0.8,
    clipping_threshold: ArrayLike = 1.0,
    eps: ArrayLike = 1e-30,
) -> optax.GradientTransformation:
    """w <- w - lr rms(w) clip(g / sqrt(v)), with v of large matrices as a product of row and column.

    Matrices with both sides of at least 128 are factored; v's decay is 1 - t^-decay_rate (Shazeer and
    Stern 2018).
    """
    return optax.adafactor(
        learning_rate, decay_rate=decay_rate, clipping_threshold=clipping_threshold, eps=eps
    )


def adafactor_momentum(
    learning_rate: ArrayLike,
    momentum: ArrayLike,
    decay_rate: ArrayLike = 0.8,
    clipping_threshold: ArrayLike = 1.0,
    eps: ArrayLike = 1e-30,
) -> optax.GradientTransformation:
    """Adafactor's step averaged: m <- beta m + (1 - beta) step,  w <- w - m."""
    return optax.adafactor(
        learning_rate,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        eps=eps,
    )


def sm3(learning_rate: ArrayLike, momentum: ArrayLike = 0.9) -> optax.GradientTransformation:
    """AdaGrad with sums of squares shared by rows and columns, and momentum (Anil et al. 2019)."""
    return optax.sm3(learning_rate, momentum)


def acprop(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    eps: ArrayLike = 1e-16,
    eps_root: ArrayLike = 1e-16,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """w <- w - lr (g_t / (sqrt(v_{t-1}) + eps) + wd w), v the mean of (g - m)^2 (Zhuang et al. 2021)."""
    return contrib.acprop(learning_rate, b1, b2, eps, eps_root, weight_decay)


def adopt(
    learning_rate: ArrayLike, b1: ArrayLike = 0.9, b2: ArrayLike = 0.9999, eps: ArrayLike = 1e-6
) -> optax.GradientTransformation:
    """m <- b1 m + (1 - b1) g_t / max(sqrt(v_{t-1}), eps),  w <- w - lr m, clipped (Taniguchi et al. 2024)."""
    return contrib.adopt(learning_rate, b1, b2, eps)


def ademamix(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.999,
    b3: ArrayLike = 0.9999,
    alpha: ArrayLike = 5.0,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """AdamW with m + alpha n for m, n a slow mean of the gradients, b3 (Pagliardini et al. 2024)."""
    return contrib.ademamix(learning_rate, b1, b2, b3, alpha, eps, eps_root, weight_decay=weight_decay)


def simplified_ademamix(
    learning_rate: ArrayLike,
    b1: ArrayLike = 0.99,
    b2: ArrayLike = 0.95,
    alpha: ArrayLike = 0.0,
    eps: ArrayLike = 1e-8,
    eps_root: ArrayLike = 0.0,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformation:
    """n <- b1 n + g,  w <- w - lr ((n + alpha g) / (sqrt(v) + eps) + wd w) (Morwani et al. 2025)."""
    return contrib.simplified_ademamix(learning_rate, b1, b2, alpha, eps, eps_root, weight_decay)


def madgrad(
    learning_rate: ArrayLike, momentum: ArrayLike = 0.9, weight_decay: ArrayLike = 0.0, eps: ArrayLike = 1e-6
) -> optax.GradientTransformation:
    """Dual averaging: z = w_0 - sum(l g) / (cbrt(sum(l g^2)) + eps),  w <- beta w + (1 - beta) z, with
    l = lr sqrt(t + 1) (Defazio and Jelassi 2021)."""
    return contrib.madgrad(learning_rate, momentum, weight_decay, eps)


def muon(
    learning_rate: ArrayLike,
    beta: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    weight_decay: ArrayLike = 0.0,
    adam_b1: ArrayLike = 0.9,
    adam_b2: ArrayLike = 0.999,
) -> optax.GradientTransformation:
    """Matrices: w <- w - lr (U V^T + wd w) for the momentum U S V^T, by Newton and Schulz; the rest: AdamW.

    (Jordan et al. 2024.)
    """
    return contrib.muon(
        learning_rate, beta=beta, eps=eps, weight_decay=weight_decay, adam_b1=adam_b1, adam_b2=adam_b2
    )
