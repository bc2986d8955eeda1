"""Losses of Optax that ask for a margin and are zero beyond it.

Most have kinks. There each derivative is the one that autodiff gives: of max(0, a) at a = 0 half of a's, of
the largest among several scores in equal parts theirs.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.broadcast import along, cotangent, no_derivative


def step(a):
    """The derivative of max(0, a): 1 for a > 0, 1/2 at the kink, else 0."""
    return (1 + jnp.sign(a)) / 2


def of_product(function, margin):
    """Declares the rule of l = max(0, margin - o t):   o_bar = -t s l_bar,   t_bar = -o s l_bar.

    s is 1 where l > 0, 1/2 at the kink and 0 beyond it; o and t have any shape, t is -1 or 1.
    """

    @rule(function)
    class OfProductRule:
        def forward(loss, outputs, targets, /):
            return loss(outputs, targets), (outputs, targets)

        def backward(loss, residuals, values_bar):
            outputs, targets = residuals
            bar = -step(margin - outputs * targets) * values_bar
            return {}, (cotangent(targets * bar, outputs), cotangent(outputs * bar, targets))


of_product(optax.losses.hinge_loss, margin=1)
of_product(optax.losses.perceptron_loss, margin=0)


def of_largest(function, margin):
    """Declares the rule of l = max_j (z_j + margin [j is not the label]) - z_label.

    z_bar = (w - onehot(label)) l_bar,   w_j = 1 for the largest, 1 / n for each of n equal ones, else 0.

    z: (..., classes), labels: (...) integers, which have no cotangent.
    """

    @rule(function)
    class OfLargestRule:
        def forward(loss, scores, labels, /):
            return loss(scores, labels), (scores, labels)

        def backward(loss, residuals, values_bar):
            scores, labels = residuals
            onehot = nnx.one_hot(labels, scores.shape[-1])
            with_margin = scores + margin * (1.0 - onehot)
            largest = with_margin == jnp.max(with_margin, axis=-1, keepdims=True)
            share = largest / jnp.sum(largest, axis=-1, keepdims=True)
            scores_bar = (share.astype(onehot.dtype) - onehot) * values_bar[..., None]
            return {}, (cotangent(scores_bar, scores), no_derivative(labels))


of_largest(optax.losses.multiclass_hinge_loss, margin=1)
of_largest(optax.losses.multiclass_perceptron_loss, margin=0)


@rule(optax.losses.sparsemax_loss)
class SparsemaxLossRule:
    """l = f(m),   m = -z for the label 1, z for 0;   f(m) = (m + 1)^2 / 4 between -1 and 1,

    0 below and m above (Blondel et al. 2020).      z_bar = (-1 or 1) f'(m) l_bar

    f'(m) = (m + 1) / 2 clipped to [0, 1], continuous. z and labels: any shape; labels have no derivative.
    """

    def forward(loss, logits, labels, /):
        return loss(logits, labels), (logits, labels)

    def backward(loss, residuals, values_bar):
        logits, labels = residuals
        sign = jnp.where(labels, jnp.ones_like(logits) * -1, 1)
        logits_bar = sign * jnp.clip((sign * logits + 1) / 2, 0, 1) * values_bar
        return {}, (cotangent(logits_bar, logits), no_derivative(labels))


@rule(optax.losses.multiclass_sparsemax_loss)
class MulticlassSparsemaxLossRule:
    """l = max_p (p . z + (1 - p . p) / 2) - z_label over the simplex (Martins and Astudillo 2016).

    z_bar = (p - onehot(label)) l_bar

    The maximum is at p = sparsemax(z), the point of the simplex nearest to z, and by Danskin's theorem its
    derivative is that with p held fixed. z: (batch, classes), labels: (batch,) integers.
    """

    def forward(loss, scores, labels, /):
        if (scores.ndim, labels.ndim) != (2, 1):  # Optax takes some others, and sums over what it should not
            raise DoesNotApply(f"scores are (batch, classes) and labels (batch,), not {scores.shape}")
        return loss(scores, labels), (jax.vmap(optax.projections.projection_simplex)(scores), labels)

    def backward(loss, residuals, values_bar):
        p, labels = residuals
        onehot = nnx.one_hot(labels, p.shape[-1], dtype=p.dtype)
        return {}, ((p - onehot) * values_bar[..., None], None)


@rule(optax.losses.triplet_margin_loss)
class TripletMarginLossRule:
    """l = max(0, d(a, p) - d(a, n) + margin),   d(a, b) = (sum((a - b)^k) + eps)^(1 / k)

    With s the derivative of max(0, .) and g(a, b) = (a - b)^(k - 1) (sum((a - b)^k) + eps)^(1 / k - 1):
    p_bar = -g(a, p) s l_bar,   n_bar = g(a, n) s l_bar,   a_bar = -(p_bar + n_bar)

    a, p and n (anchors, positives, negatives): (..., dim) or with dim along `axis`; k is `norm_degree`
    (Balntas et al. 2016). Three outputs of a model, or one output and two targets.
    """

    def forward(loss, anchors, positives, negatives, /, **options):
        return loss(anchors, positives, negatives, **options), (anchors, positives, negatives)

    def backward(loss, residuals, values_bar, axis=-1, norm_degree=2, margin=1.0, eps=1e-6):
        anchors, positives, negatives = residuals

        def distance(others):
            difference = anchors - others
            inner = jnp.sum(jnp.power(difference, norm_degree), axis, keepdims=True) + eps
            slope = jnp.power(difference, norm_degree - 1) * jnp.power(inner, 1 / norm_degree - 1)
            return jnp.power(inner, 1 / norm_degree), slope

        near, near_slope = distance(positives)
        far, far_slope = distance(negatives)
        bar = step(near - far + margin) * along(values_bar, axis, near.ndim)
        positives_bar, negatives_bar = -near_slope * bar, far_slope * bar
        anchors_bar = -(positives_bar + negatives_bar)
        return {}, (
            cotangent(anchors_bar, anchors),
            cotangent(positives_bar, positives),
            cotangent(negatives_bar, negatives),
        )
