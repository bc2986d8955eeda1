"""Losses of Optax that compare the items of a list, or of a batch, with each other."""

import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.registry import DoesNotApply, rule
from bpresearch.chainrule.rules.broadcast import cotangent, no_derivative
from bpresearch.chainrule.rules.losses.regression import unit


@rule(optax.losses.ranking_softmax_loss)
class RankingSoftmaxLossRule:
    """l = -sum_i w_i t_i log p_i,   p = softmax(z), for each list (Cao et al. 2007).

    z_bar = (p sum(w t) - w t) l_bar,   t_bar = -w log p l_bar

    z and t: (..., items); `weights` w. Sums and the softmax run over `where`, and the cotangents are 0
    outside. `reduce_fn` makes one number of the lists with an item in `where`: their mean (0 if there is
    none) or sum; with None each list keeps its own. With another function the loss is opened.
    """

    def forward(loss, logits, targets, /, **options):
        reduce_fn = options.get("reduce_fn", jnp.mean)
        if reduce_fn not in (jnp.mean, jnp.sum, None):
            raise DoesNotApply("the lists are reduced by another function")
        return loss(logits, targets, **options), (logits, targets)

    def backward(loss, residuals, values_bar, where=None, weights=None, reduce_fn=jnp.mean):
        logits, targets = residuals
        t = targets.astype(logits.dtype) if weights is None else targets.astype(logits.dtype) * weights
        inside = True if where is None else where
        t = jnp.where(inside, t, 0)
        total = jnp.sum(t, axis=-1, keepdims=True)
        p = nnx.softmax(logits, where=where)
        log_p = jnp.where(inside, nnx.log_softmax(logits, where=where), 0)
        bar = reduced_bar(values_bar, logits.shape[:-1], where, reduce_fn)[..., None]
        logits_bar = jnp.where(inside, p * total - t, 0) * bar
        targets_bar = -log_p * bar if weights is None else -log_p * weights * bar
        return {}, (cotangent(logits_bar, logits), cotangent(targets_bar, targets))


def reduced_bar(values_bar, shape, where, reduce_fn):
    """The cotangent of each list's loss from that of what `reduce_fn` made of them."""
    valid = jnp.ones(shape, bool) if where is None else jnp.any(where, axis=-1)
    count = jnp.maximum(jnp.sum(valid), 1).astype(values_bar.dtype) if reduce_fn is jnp.mean else 1
    return jnp.where(valid, values_bar / count, 0)


@rule(optax.losses.ntxent)
class NTXentRule:
    """l = -mean over the positive pairs (i, j) of log q_ij,   u_i = x_i / |x_i|,   c_ij = u_i . u_j / tau

        q_ij = e^(c_ij) / (e^(c_ij) + N_i),   N_i = sum of e^(c_ik) over k with another label than i

    (Chen et al. 2020). With M positive pairs, of a positive pair and of a negative one (i, k):

        c_ij_bar = -(1 - q_ij) l_bar / M,   c_ik_bar = e^(c_ik) sum_j 1 / (e^(c_ij) + N_i) l_bar / M
        u_i_bar = sum_j (c_ij_bar + c_ji_bar) u_j / tau,   x_i_bar = (u_i_bar - (u_i_bar . u_i) u_i) / |x_i|

    x: (batch, dim), labels: (batch,); one number for the batch. |x| is at least the root of the dtype's eps,
    below which it counts as constant. Without a positive pair l is NaN and x_bar zero, as autodiff has it.
    """

    def forward(loss, embeddings, labels, /, **options):
        if embeddings.ndim != 2:
            raise DoesNotApply(f"embeddings are (batch, dim), not {embeddings.shape}")
        return loss(embeddings, labels, **options), (embeddings, labels)

    def backward(loss, residuals, value_bar, temperature=0.07):
        x, labels = residuals
        u, norm, share = unit(x, jnp.finfo(x.dtype).eps, -1)
        c = jnp.matmul(u, u.T) / temperature
        same = labels[:, None] == labels[None, :]
        positive = same & ~jnp.eye(len(labels), dtype=bool)
        powers = jnp.exp(c - jnp.max(jnp.where(~same | positive, c, -jnp.inf), axis=1, keepdims=True))
        negatives = jnp.sum(jnp.where(same, 0, powers), axis=1, keepdims=True)
        inverse = jnp.where(positive, 1 / (powers + negatives), 0)
        of_negatives = powers * jnp.sum(inverse, axis=1, keepdims=True)
        pairs = jnp.maximum(jnp.sum(positive), 1)
        c_bar = jnp.where(same, -negatives * inverse, of_negatives) * (value_bar / pairs)
        u_bar = jnp.matmul(c_bar + c_bar.T, u) / temperature
        x_bar = (u_bar - share * jnp.sum(u_bar * u, axis=-1, keepdims=True) * u) / norm
        return {}, (x_bar.astype(x.dtype), no_derivative(labels))
