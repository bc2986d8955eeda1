"""Cross entropies of Optax: rules with two inputs, the model's outputs and the targets.

A loss gives one value per example (or per element); the engine averages them. Its options, such as `axis`
and `where`, have no derivative.
"""

import math

import jax.numpy as jnp
import optax
from flax import nnx
from jax.scipy.special import logsumexp

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.broadcast import along, cotangent, spread


def mask(where, ndim, axis):
    """A mask of whole examples gets the axis of the classes, as in Optax."""
    return where if where is None or where.ndim == ndim else along(where, axis, ndim)


@rule(optax.losses.softmax_cross_entropy_with_integer_labels)
class SoftmaxCrossEntropyWithIntegerLabelsRule:
    """l = log(sum_j e^(z_j)) - z_label.      z_bar = (softmax(z) - onehot(label)) l_bar

    z: (..., classes) or with the classes along `axis`, labels: (...) integers, which have no cotangent.
    Of several axes a label counts the elements in row-major order. The sum runs over `where`; an example
    without any class in it has l = 0.
    """

    def forward(loss, logits, labels, /, *, axis=-1, where=None):
        values = loss(logits, labels, axis=axis, where=where)
        return values, (nnx.softmax(logits, axis, where=mask(where, logits.ndim, axis)), labels)

    def backward(loss, residuals, values_bar, axis=-1, where=None):
        probabilities, labels = residuals
        bar = along(values_bar, axis, probabilities.ndim)
        if where is not None:
            where = mask(where, probabilities.ndim, axis)
            bar = jnp.where(jnp.any(where, axis, keepdims=True), bar, 0)
        return {}, ((probabilities - onehot(labels, probabilities, axis)) * bar, None)


def onehot(labels, like, axis):
    """One at each label along one or more axes of an array of the shape and dtype of `like`.

    Negative labels count from the end, as indices do.
    """
    axes = tuple(a % like.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
    sizes = [like.shape[a] for a in axes]
    classes = math.prod(sizes)
    flat = nnx.one_hot(jnp.where(labels < 0, labels + classes, labels), classes, dtype=like.dtype)
    last = tuple(range(labels.ndim, like.ndim))
    return jnp.moveaxis(flat.reshape(*labels.shape, *sizes), last, axes)


@rule(optax.losses.softmax_cross_entropy, optax.losses.safe_softmax_cross_entropy)
class SoftmaxCrossEntropyRule:
    """l = -sum_j t_j log p_j,   p = softmax(z).      z_bar = (p sum(t) - t) l_bar,   t_bar = -log p l_bar

    z and t: (..., classes) or with the classes along `axis`; t may be a distribution (smoothed labels) or
    not. Sums run over `where`, and outside of it both cotangents are 0. The `safe` loss is the same with
    0 log 0 = 0.
    """

    def forward(loss, logits, targets, /, **options):
        values = loss(logits, targets, **options)
        axis, where = options.get("axis", -1), options.get("where")
        probabilities = nnx.softmax(logits, axis, where=mask(where, logits.ndim, axis))
        return values, (probabilities, logits, targets)

    def backward(loss, residuals, values_bar, axis=-1, where=None):
        probabilities, logits, targets = residuals
        where = mask(where, logits.ndim, axis)
        bar = spread(values_bar, axis, where, logits.ndim)
        total = jnp.sum(targets, axis, where=where, keepdims=True)
        logits_bar = (probabilities * total - targets) * bar
        return {}, (
            cotangent(logits_bar, logits),
            cotangent(-log_softmax(logits, axis, where) * bar, targets),
        )


def log_softmax(logits, axis, where):
    """log p inside `where` and 0 outside, where no formula uses it."""
    logs = nnx.log_softmax(logits, axis, where=where)
    return logs if where is None else jnp.where(where, logs, 0)


@rule(optax.losses.poly_loss_cross_entropy)
class PolyLossCrossEntropyRule:
    """l = -sum_j t_j log p_j + epsilon sum_j t_j (1 - p_j)   (Leng et al. 2022), p = softmax(z).

    z_bar = (p sum(t) - t - epsilon p (t - sum(t p))) l_bar,   t_bar = (epsilon (1 - p) - log p) l_bar

    Shapes, `axis` and `where` are those of the softmax cross entropy.
    """

    def forward(loss, logits, targets, /, **options):
        axis, where = options.get("axis", -1), options.get("where")
        return loss(logits, targets, **options), (nnx.softmax(logits, axis, where=where), logits, targets)

    def backward(loss, residuals, values_bar, epsilon=2.0, axis=-1, where=None):
        p, logits, targets = residuals
        bar = spread(values_bar, axis, where, logits.ndim)
        total = jnp.sum(targets, axis, where=where, keepdims=True)
        mean = jnp.sum(targets * p, axis, where=where, keepdims=True)
        logits_bar = (p * total - targets - epsilon * p * (targets - mean)) * bar
        targets_bar = (epsilon * (1 - p) - log_softmax(logits, axis, where)) * bar
        return {}, (cotangent(logits_bar, logits), cotangent(targets_bar, targets))


@rule(optax.losses.sigmoid_binary_cross_entropy)
class SigmoidBinaryCrossEntropyRule:
    """l = -t log s(z) - (1 - t) log s(-z),   s the sigmoid.      z_bar = (s(z) - t) l_bar,   t_bar = -z l_bar

    z: any shape, t: broadcast with it, in [0, 1]. As s(z) - t = (1 - t) s(z) - t s(-z), nothing cancels
    where the answer is certain and right.
    """

    def forward(loss, logits, targets, /):
        return loss(logits, targets), (logits, targets)

    def backward(loss, residuals, values_bar):
        logits, targets = residuals
        t = jnp.astype(targets, logits.dtype)
        logits_bar = ((1 - t) * nnx.sigmoid(logits) - t * nnx.sigmoid(-logits)) * values_bar
        return {}, (cotangent(logits_bar, logits), cotangent(-logits * values_bar, targets))


@rule(optax.losses.sigmoid_focal_loss)
class SigmoidFocalLossRule:
    """l = a m^gamma c   (Lin et al. 2017), where with p = s(z), s the sigmoid,

        c = -t log p - (1 - t) log(1 - p)      the cross entropy,
        m = (1 - t) p + t (1 - p)              the probability of the wrong answer,
        a = alpha t + (1 - alpha) (1 - t)      or 1 without alpha.

    c_z = (1 - t) p - t (1 - p),   m_z = (1 - 2t) p (1 - p);   c_t = -z,   m_t = 1 - 2p,   a_t = 2 alpha - 1
    z_bar = a (m^gamma c_z + gamma m^(gamma - 1) m_z c) l_bar
    t_bar = (a (m^gamma c_t + gamma m^(gamma - 1) m_t c) + a_t m^gamma c) l_bar

    Powers and products of small probabilities are taken in logarithms. Shapes are those of the binary
    cross entropy.
    """

    def forward(loss, logits, targets, /, **options):
        return loss(logits, targets, **options), (logits, targets)

    def backward(loss, residuals, values_bar, alpha=None, gamma=2.0):
        z, targets = residuals
        t = jnp.astype(targets, z.dtype)
        log_p, log_q = nnx.log_sigmoid(z), nnx.log_sigmoid(-z)
        pair = jnp.stack(jnp.broadcast_arrays(log_p, log_q, 1 - t, t), axis=-1)
        log_m = logsumexp(pair[..., :2], axis=-1, b=pair[..., 2:])
        c = -t * log_p - (1 - t) * log_q
        c_z = (1 - t) * jnp.exp(log_p) - t * jnp.exp(log_q)
        power, less = jnp.exp(gamma * log_m), (gamma - 1) * log_m
        power_z = gamma * (1 - 2 * t) * jnp.exp(less + log_p + log_q)
        power_t = gamma * (jnp.exp(less + log_q) - jnp.exp(less + log_p))
        a, a_t = (1, 0) if alpha is None else (alpha * t + (1 - alpha) * (1 - t), 2 * alpha - 1)
        z_bar = a * (power * c_z + power_z * c) * values_bar
        t_bar = (a * (power_t * c - power * z) + a_t * power * c) * values_bar
        return {}, (cotangent(z_bar, z), cotangent(t_bar, targets))


@rule(optax.losses.smooth_labels)
class SmoothLabelsRule:
    """y = (1 - alpha) t + alpha / classes   (Szegedy et al. 2016).      t_bar = (1 - alpha) y_bar

    t: (..., classes) or with the classes along `axis`. Not a loss but a step before one.
    """

    def forward(function, labels, /, **options):
        return function(labels, **options), ()

    def backward(function, residuals, y_bar, alpha, axis=-1, where=None):
        return {}, (1 - alpha) * y_bar
