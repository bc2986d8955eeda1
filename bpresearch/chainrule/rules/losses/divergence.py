"""Kullback-Leibler divergences of Optax: sums of a function of log-predictions and targets.

Predictions q are given by their logarithms z = log q; z and t are (..., dim), or with dim along `axis`.
Sums run over `where`, and outside of it the cotangents are 0.
"""

import jax.numpy as jnp
import optax

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.broadcast import cotangent, spread


def sum_of(*functions, by_predictions, by_targets):
    """Declares the rule of l = sum f(z, t) along `axis`, from f's derivatives by z and by t.

    z_bar = f_z(z, t) l_bar,   t_bar = f_t(z, t) l_bar
    """

    @rule(*functions)
    class SumRule:
        def forward(loss, predictions, targets, /, **options):
            return loss(predictions, targets, **options), (predictions, targets)

        def backward(loss, residuals, values_bar, axis=-1, where=None):
            z, t = residuals
            bar = spread(values_bar, axis, where, max(z.ndim, t.ndim))
            return {}, (cotangent(by_predictions(z, t) * bar, z), cotangent(by_targets(z, t) * bar, t))


def log(t):
    """log t, and 0 for t = 0, where t log t is 0."""
    return jnp.where(t == 0, 0, jnp.log(jnp.where(t == 0, 1, t)))


# t (log t - z). For t = 0 the derivative of t log t is infinite; by_targets leaves it out.
sum_of(
    optax.losses.kl_divergence,
    by_predictions=lambda z, t: -t,
    by_targets=lambda z, t: log(t) - z + jnp.where(t == 0, 0, 1),
)

# e^u (u - z), the same by the logarithms u of the targets.
sum_of(
    optax.losses.kl_divergence_with_log_targets,
    by_predictions=lambda z, u: -jnp.exp(u),
    by_targets=lambda z, u: jnp.exp(u) * (u - z + 1),
)

# t (log t - z) + e^z - t, of which Optax has two names, one deprecated.
sum_of(
    optax.losses.generalized_kl_divergence,
    optax.losses.convex_kl_divergence,
    by_predictions=lambda z, t: jnp.exp(z) - t,
    by_targets=lambda z, t: log(t) - z - jnp.where(t == 0, 1, 0),
)
