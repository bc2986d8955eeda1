"""Connectionist temporal classification (Graves et al. 2006), by the forward-backward algorithm.

The loss is l = -log P(labels), the sum over all alignments of the labels with the frames. An alignment walks
through two kinds of states: phi_n, a blank after n labels, and emit_n, the n-th label. With a for the
logarithms of the probabilities of all beginnings of alignments and z_t the logits of frame t, one frame
makes (Optax's form, e = log_epsilon standing for log 0, r_n = 1 where label n + 1 repeats label n)

    phi'_n  = logaddexp(phi_n, emit_n + e r_n)                     a label ends without a blank
    emit^n  = logaddexp(phi'_(n-1), emit_n) + log p_t(label_n)      p_t = softmax(z_t)
    phi^n   = logaddexp(phi'_n, emit_n + e (1 - r_n)) + log p_t(blank)

and l = -logaddexp(phi_N, emit_N) after the last. Padded frames change nothing.

Going back, the cotangent of each a is minus the posterior probability gamma of being in that state then,
given the labels. As logaddexp(a, b) has derivatives e^(a - logaddexp) and e^(b - logaddexp), a state hands
its posterior on to the states before it in proportion to what they contributed: the backward pass of the
forward-backward algorithm, in posteriors, which neither overflow nor vanish. The cotangent of log p_t(k) is
minus the posterior of emitting k in frame t, so that

    z_t_bar(k) = (p_t(k) sum(gamma_t) - gamma_t(k)) l_bar,

where sum(gamma_t) is 1, or 0 in padded frames.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.broadcast import no_derivative


@rule(optax.losses.ctc_loss)
class CTCLossRule:
    """l = -log P(labels).      z_t_bar = (p_t - gamma_t) l_bar: see the derivation at the top of this file

    z: (batch, frames, classes), paddings: (batch, frames), labels and their paddings: (batch, labels); of the
    loss's four arguments the first is the model's output and the others are three targets. Paddings are
    indicators, 0 or 1, and have no derivative.
    """

    def forward(loss, logits, paddings, labels, label_paddings, /, **options):
        inputs = logits, paddings, labels, label_paddings
        values, phi, emit = optax.losses.ctc_loss_with_forward_probs(*inputs, **options)
        return values, (inputs, phi, emit)

    def backward(loss, residuals, values_bar, **options):
        inputs, phi, emit = residuals
        logits_bar = ctc_backward(inputs, phi, emit, values_bar, None, None, **options)
        return {}, (logits_bar, *(no_derivative(x) for x in inputs[1:]))


@rule(optax.losses.ctc_loss_with_forward_probs)
class CTCLossWithForwardProbsRule:
    """The CTC loss and, as further outputs, all phi and emit.      Their cotangents join the posteriors"""

    def forward(loss, logits, paddings, labels, label_paddings, /, **options):
        inputs = logits, paddings, labels, label_paddings
        outputs = loss(*inputs, **options)
        return outputs, (inputs, *outputs[1:])

    def backward(loss, residuals, outputs_bar, **options):
        inputs, phi, emit = residuals
        logits_bar = ctc_backward(inputs, phi, emit, *outputs_bar, **options)
        return {}, (logits_bar, *(no_derivative(x) for x in inputs[1:]))


class _Frame(NamedTuple):
    """One frame: logarithms of the probabilities of each label and the blank, and whether it is padding."""

    emit: jax.Array  # (batch, labels)
    phi: jax.Array  # (batch, 1)
    pad: jax.Array  # (batch, 1)


def ctc_backward(inputs, phi, emit, values_bar, phi_bar, emit_bar, blank_id=0, log_epsilon=-1e5):
    """The logits' cotangent; `phi` and `emit` are the forward probabilities, (frames, batch, states)."""
    logits, paddings, labels, label_paddings = inputs
    dtype = phi.dtype
    onehot = nnx.one_hot(labels, logits.shape[-1], dtype=dtype)
    log_p = nnx.log_softmax(logits).astype(dtype)
    frames = _Frame(
        jnp.einsum("btk,bnk->tbn", log_p, onehot),
        log_p[:, :, blank_id].T[..., None],
        paddings.T[..., None].astype(dtype),
    )
    repeats = jnp.pad((labels[:, :-1] == labels[:, 1:]).astype(dtype), ((0, 0), (0, 1)))
    step, step_backward = _steps(log_epsilon * repeats, log_epsilon * (1 - repeats))

    # Before frame t are the probabilities after frame t - 1; before the first, no label has begun.
    start = jnp.full(phi.shape[1:], log_epsilon, dtype).at[:, 0].set(0)
    before = (
        jnp.concatenate([start[None], phi[:-1]]),
        jnp.concatenate([jnp.full((1, *emit.shape[1:]), log_epsilon, dtype), emit[:-1]]),
    )

    # The end: l = -phi^N after a last step from emit to phi, N being the number of labels.
    count = labels.shape[1] - jnp.sum(label_paddings, axis=1).astype(jnp.int32)
    phi_last, emit_last = step((before[0][-1], before[1][-1]), jax.tree.map(lambda x: x[-1], frames))
    end_bar = -nnx.one_hot(count, phi.shape[-1], dtype=dtype) * values_bar[:, None].astype(dtype)
    if phi_bar is not None:
        end_bar = end_bar + phi_bar[-1]
    last_bar = _share_phi(phi_last, emit_last, end_bar)
    no_bar = jnp.zeros_like(phi), jnp.zeros_like(emit)
    if phi_bar is not None:
        no_bar = phi_bar.at[-1].set(0), emit_bar

    def frame_backward(states_bar, frame):
        states, frame, more_bar = frame
        states_bar = jax.tree.map(jnp.add, states_bar, more_bar)
        return step_backward(states, frame, states_bar)

    _, (emits_bar, blanks_bar) = jax.lax.scan(
        frame_backward, last_bar, (before, frames, no_bar), reverse=True
    )
    log_p_bar = jnp.einsum("tbn,bnk->btk", emits_bar, onehot)
    log_p_bar = log_p_bar.at[:, :, blank_id].add(blanks_bar.T)
    total = jnp.sum(log_p_bar, axis=-1, keepdims=True)
    return (log_p_bar - jnp.exp(log_p) * total).astype(logits.dtype)


def _add_phi(phi, emit):
    """phi_n = logaddexp(phi_n, emit_n) for n >= 1; no label leads to phi_0."""
    return jnp.concatenate([phi[:, :1], jnp.logaddexp(phi[:, 1:], emit)], axis=-1)


def _share_phi(phi, emit, bar):
    """The cotangents of phi and emit from that of `_add_phi`, in proportion to what each contributed."""
    of_emit = nnx.sigmoid(emit - phi[:, 1:]) * bar[:, 1:]
    of_phi = nnx.sigmoid(phi[:, 1:] - emit) * bar[:, 1:]
    return jnp.concatenate([bar[:, :1], of_phi], axis=-1), of_emit


def _steps(without_blank, with_blank):
    """One frame of the recursion, and its backward; the arguments are e r and e (1 - r)."""

    def new_states(states, frame):
        phi, emit = states
        ended = _add_phi(phi, emit + without_blank)
        new_emit = jnp.logaddexp(ended[:, :-1], emit) + frame.emit
        return ended, (_add_phi(ended, emit + with_blank) + frame.phi, new_emit)

    def step(states, frame):
        _, new = new_states(states, frame)
        return jax.tree.map(lambda old, new: jnp.where(frame.pad > 0, old, new), states, new)

    def step_backward(states, frame, states_bar):
        phi, emit = states
        ended, _ = new_states(states, frame)
        phi_bar, emit_bar = (jnp.where(frame.pad > 0, 0, bar) for bar in states_bar)
        ended_bar, of_emit = _share_phi(ended, emit + with_blank, phi_bar)
        from_blank = nnx.sigmoid(ended[:, :-1] - emit) * emit_bar
        from_itself = nnx.sigmoid(emit - ended[:, :-1]) * emit_bar
        ended_bar = ended_bar.at[:, :-1].add(from_blank)
        old_phi_bar, of_ended = _share_phi(phi, emit + without_blank, ended_bar)
        old = old_phi_bar, of_emit + from_itself + of_ended
        old_bar = jax.tree.map(lambda bar, old: jnp.where(frame.pad > 0, bar, old), states_bar, old)
        return old_bar, (emit_bar, jnp.sum(phi_bar, axis=-1))

    return step, step_backward
