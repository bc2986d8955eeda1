"""Regression losses of Optax: functions of the error, and of the angle between two vectors.

Outputs and targets have the same shape, any; targets that are left out are zeros.
"""

import jax.numpy as jnp
import optax

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.broadcast import along, cotangent


def of_error(function, derivative):
    """Declares the rule of l = f(e), e = o - t:      o_bar = f'(e) l_bar = -t_bar."""

    @rule(function)
    class OfErrorRule:
        def forward(loss, outputs, targets=None, /, **options):
            if "targets" in options:
                raise DoesNotApply("targets are an option, which has no derivative")
            return loss(outputs, targets, **options), (outputs, targets)

        def backward(loss, residuals, values_bar, **options):
            outputs, targets = residuals
            error = outputs if targets is None else outputs - targets
            outputs_bar = derivative(error, **options) * values_bar
            if targets is None:
                return {}, outputs_bar
            return {}, (cotangent(outputs_bar, outputs), cotangent(-outputs_bar, targets))


def huber_derivative(error, delta=1.0):
    """d/de of e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2): e clipped  (Huber 1964)."""
    return jnp.clip(error, -delta, delta)


of_error(optax.losses.squared_error, lambda e: 2 * e)  # its mean is the mean squared error
of_error(optax.losses.l2_loss, lambda e: e)  # e^2 / 2
of_error(optax.losses.huber_loss, huber_derivative)
of_error(optax.losses.log_cosh, jnp.tanh)  # log cosh e, smooth at 0 and |e| - log 2 far from it


@rule(optax.losses.cosine_similarity)
class CosineSimilarityRule:
    """l = sum(u v),   u = o / |o|,   v = t / |t|.      o_bar = (v - l u) l_bar / |o|,   t_bar likewise

    o and t: (..., dim) or with dim along `axis`; sums run over `where`, and the cotangents are 0 outside.
    With `epsilon`, |o| is sqrt(max(sum(o^2), epsilon)). Below that it is constant, and o_bar = v l_bar / |o|;
    exactly at it, half of l u is subtracted, as in autodiff.
    """

    def forward(loss, outputs, targets, /, **options):
        return loss(outputs, targets, **options), (outputs, targets)

    def backward(loss, residuals, values_bar, **options):
        return {}, cosine_backward(*residuals, values_bar, **options)


@rule(optax.losses.cosine_distance)
class CosineDistanceRule:
    """l = 1 - the cosine similarity.      Its cotangents with the opposite sign"""

    def forward(loss, outputs, targets, /, **options):
        return loss(outputs, targets, **options), (outputs, targets)

    def backward(loss, residuals, values_bar, **options):
        return {}, cosine_backward(*residuals, -values_bar, **options)


def cosine_backward(outputs, targets, values_bar, epsilon=0.0, axis=-1, where=None):
    """The cotangents of both vectors from that of their cosine."""
    u, u_norm, u_share = unit(outputs, epsilon, axis, where)
    v, v_norm, v_share = unit(targets, epsilon, axis, where)
    cosine = jnp.sum(u * v, axis, where=where, keepdims=True)
    bar = along(values_bar, axis, cosine.ndim)
    outputs_bar = (v - u_share * cosine * u) * bar / u_norm
    targets_bar = (u - v_share * cosine * v) * bar / v_norm
    if where is not None:
        outputs_bar, targets_bar = jnp.where(where, outputs_bar, 0), jnp.where(where, targets_bar, 0)
    return cotangent(outputs_bar, outputs), cotangent(targets_bar, targets)


def unit(x, epsilon, axis, where=None):
    """x / n with n = sqrt(max(s, epsilon)), s = sum(x^2); n; and how much of n's derivative comes from s."""
    square = jnp.sum(jnp.square(x), axis, where=where, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(square, epsilon))
    share = (1 + jnp.sign(square - epsilon)) / 2
    return x / norm, norm, share
