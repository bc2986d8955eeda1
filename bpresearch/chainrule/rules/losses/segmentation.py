"""Dice losses of Optax: how much two segmentations overlap."""

import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.broadcast import along, cotangent

CLASS_WEIGHT_FLOOR = 1e-7  # added to squared frequencies by Optax


@rule(optax.losses.dice_loss)
class DiceLossRule:
    """l_c = 1 - N / D,   N = I + s,   D = I + alpha (P - I) + beta (T - I) + s   for each class c

    I = sum(p t),   P = sum(p),   T = sum(t)   over the pixels; p is the softmax of the outputs z over the
    classes, the sigmoid if there is one class, or z itself (Milletari et al. 2016; Salehi et al. 2017).

        N_bar = -l_c_bar / D,   D_bar = l_c_bar N / D^2
        I_bar = N_bar + (1 - alpha - beta) D_bar,   P_bar = alpha D_bar,   T_bar = beta D_bar
        p_bar = t I_bar + P_bar,   t_bar = p I_bar + T_bar
        z_bar = p (p_bar - sum(p p_bar))   of the softmax,   p (1 - p) p_bar   of the sigmoid

    z and t: (batch, *pixels, classes), or without the last axis for one class; one loss per example, or per
    example and class with `reduction="none"`. All options are Optax's.
    """

    def forward(loss, outputs, targets, /, **options):
        return loss(outputs, targets, **options), (outputs, targets)

    def backward(loss, residuals, values_bar, **options):
        outputs, targets = residuals
        z, t = with_classes(outputs, targets)
        z_bar, t_bar = dice_backward(z, t, values_bar, **options)
        return {}, (
            cotangent(z_bar.reshape(outputs.shape), outputs),
            cotangent(t_bar.reshape(targets.shape), targets),
        )


def with_classes(outputs, targets):
    """Outputs and targets, the one that lacks the axis of the classes with it."""
    outputs = outputs[..., None] if outputs.ndim == targets.ndim - 1 else outputs
    return outputs, targets[..., None] if targets.ndim == outputs.ndim - 1 else targets


def overlap(z, t, smooth, alpha, beta, apply_softmax, axis):
    """Probabilities p, numerator N and denominator D of each class."""
    p = z
    if apply_softmax:
        p = nnx.sigmoid(z) if z.shape[-1] == 1 else nnx.softmax(z, axis=-1)
    intersection, of_p, of_t = jnp.sum(p * t, axis), jnp.sum(p, axis), jnp.sum(t, axis)
    wrong = alpha * (of_p - intersection) + beta * (of_t - intersection)
    return p, intersection + smooth, intersection + wrong + smooth


def dice_backward(
    z,
    t,
    values_bar,
    class_weights=None,
    smooth=1.0,
    alpha=0.5,
    beta=0.5,
    apply_softmax=True,
    reduction="mean",
    ignore_background=False,
    axis=None,
):
    """z_bar and t_bar, with the class weights held fixed."""
    axis = tuple(range(1, z.ndim - 1)) if axis is None else axis
    p, numerator, denominator = overlap(z, t, smooth, alpha, beta, apply_softmax, axis)
    without_background = ignore_background and z.shape[-1] > 1
    classes = numerator.shape[-1] - without_background
    if reduction != "none":
        share = values_bar[..., None] / (classes if reduction == "mean" else 1)
        values_bar = jnp.broadcast_to(share, (*share.shape[:-1], classes))
    if without_background:
        values_bar = jnp.pad(values_bar, [(0, 0)] * (values_bar.ndim - 1) + [(1, 0)])
    bar = values_bar if class_weights is None else values_bar * class_weights

    numerator_bar, denominator_bar = -bar / denominator, bar * numerator / denominator**2
    intersection_bar = along(numerator_bar + (1 - alpha - beta) * denominator_bar, axis, z.ndim)
    p_bar = t * intersection_bar + along(alpha * denominator_bar, axis, z.ndim)
    t_bar = p * intersection_bar + along(beta * denominator_bar, axis, z.ndim)
    if not apply_softmax:
        return p_bar, t_bar
    if z.shape[-1] == 1:
        return p * (1 - p) * p_bar, t_bar
    return p * (p_bar - jnp.sum(p * p_bar, axis=-1, keepdims=True)), t_bar


@rule(optax.losses.binary_dice_loss)
class BinaryDiceLossRule:
    """The Dice loss of one class.      Its derivative, too, with the axis of the class added if need be"""

    def forward(loss, outputs, targets, /, **options):
        return loss(outputs, targets, **options), (outputs, targets)

    def backward(loss, residuals, values_bar, smooth=1.0, apply_sigmoid=True):
        outputs, targets = residuals
        z, t = outputs, targets
        if z.ndim == t.ndim and z.shape[-1] != 1:
            z, t = z[..., None], t[..., None]
        z, t = with_classes(z, t)
        z_bar, t_bar = dice_backward(z, t, values_bar, smooth=smooth, apply_softmax=apply_sigmoid)
        return {}, (
            cotangent(z_bar.reshape(outputs.shape), outputs),
            cotangent(t_bar.reshape(targets.shape), targets),
        )


@rule(optax.losses.multiclass_generalized_dice_loss)
class MulticlassGeneralizedDiceLossRule:
    """l = mean(w_c l_c),   w = classes v / sum(v),   v = 1 / (f^2 + 1e-7),   f = sum(t)   (Sudre et al. 2017)

    z_bar is the Dice loss's with weights w; t_bar has besides, through the weights and the frequencies f:

        w_bar = sum over examples of l_c l_bar / size,   v_bar = (w_bar classes - sum(w_bar w)) / sum(v)
        f_bar = -2 f v^2 v_bar

    z and t: (batch, *pixels, classes); one number for the batch.
    """

    def forward(loss, outputs, targets, /, **options):
        return loss(outputs, targets, **options), (outputs, targets)

    def backward(loss, residuals, value_bar, smooth=1.0, apply_softmax=True, ignore_background=False):
        z, t = residuals
        classes = z.shape[-1]
        frequencies = jnp.sum(t, axis=tuple(range(t.ndim - 1)))
        v = 1 / (frequencies**2 + CLASS_WEIGHT_FLOOR)
        total = jnp.sum(v)
        axis = tuple(range(1, z.ndim - 1))
        _, numerator, denominator = overlap(z, t, smooth, 0.5, 0.5, apply_softmax, axis)
        losses = (1 - numerator / denominator).reshape(-1, classes)
        first = int(ignore_background and classes > 1)
        bar = value_bar / (losses.shape[0] * (classes - first))

        weights = jnp.reshape(classes * v / total, (1,) * (numerator.ndim - 1) + (classes,))
        options = dict(smooth=smooth, apply_softmax=apply_softmax, ignore_background=ignore_background)
        bars = jnp.full((*numerator.shape[:-1], classes - first), bar)
        z_bar, t_bar = dice_backward(
            z, t, bars, class_weights=weights, reduction="none", axis=axis, **options
        )
        weights_bar = (jnp.sum(losses, axis=0) * bar).at[:first].set(0)
        v_bar = (weights_bar * classes - jnp.sum(weights_bar * weights.reshape(-1))) / total
        t_bar = t_bar + jnp.reshape(-2 * frequencies * v**2 * v_bar, (1,) * (t.ndim - 1) + (classes,))
        return {}, (cotangent(z_bar, z), cotangent(t_bar, t))
