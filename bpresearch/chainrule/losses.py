"""Losses of Optax: rules with two inputs, the model's outputs and the targets.

A loss gives one value per example (or per element); the engine averages them.
"""

import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.registry import rule


@rule(optax.losses.softmax_cross_entropy_with_integer_labels)
class SoftmaxCrossEntropyWithIntegerLabelsRule:
    """l = log(sum_j e^(z_j)) - z_label.      z_bar = (softmax(z) - onehot(label)) l_bar

    z: (..., classes) or with the classes along `axis`, labels: (...) integers, which have no cotangent.
    """

    def forward(loss, logits, labels, axis=-1):
        return loss(logits, labels, axis=axis), (nnx.softmax(logits, axis), labels)

    def backward(loss, residuals, values_bar, axis=-1):
        probabilities, labels = residuals
        classes = probabilities.shape[axis]
        onehot = nnx.one_hot(labels, classes, dtype=probabilities.dtype, axis=axis)
        return {}, ((probabilities - onehot) * jnp.expand_dims(values_bar, axis), None)


@rule(optax.losses.squared_error)
class SquaredErrorRule:
    """l = (o - t)^2.      o_bar = 2 (o - t) l_bar = -t_bar.   Its mean is the mean squared error."""

    def forward(loss, outputs, targets):
        return loss(outputs, targets), (outputs, targets)

    def backward(loss, residuals, values_bar):
        outputs, targets = residuals
        outputs_bar = 2 * (outputs - targets) * values_bar
        return {}, (outputs_bar.astype(outputs.dtype), -outputs_bar.astype(targets.dtype))


@rule(optax.losses.l2_loss)
class L2LossRule:
    """l = (o - t)^2 / 2.      o_bar = (o - t) l_bar = -t_bar"""

    def forward(loss, outputs, targets):
        return loss(outputs, targets), (outputs, targets)

    def backward(loss, residuals, values_bar):
        outputs, targets = residuals
        outputs_bar = (outputs - targets) * values_bar
        return {}, (outputs_bar.astype(outputs.dtype), -outputs_bar.astype(targets.dtype))
