"""Recurrent cells: one step (carry, x) -> (carry', y) of a recurrence.

Every cell of Flax has the same form. Linear layers take the input x and the hidden state h, apart from
each other, and what follows acts on each element:

    u = inputs(x),   v = hidden(h),   (carry', y) = gates(carry, u, v).

So a rule here is the derivative of `gates` alone; the linear layers and the activations answer with their
own rules. Kept apart like this, a cell can be run along a sequence with only h's products inside the loop
(see recurrence.py).
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.engine import backward, forward
from bpresearch.chainrule.registry import rule


def cell_rule(cell_type: type, inputs: tuple[str, ...], hidden: tuple[str, ...]) -> Callable:
    """Class decorator: from the rule of a cell's gates to the rule of the cell.

    `inputs` and `hidden` name the linear layers that take x and h; `gates` gets their outputs as tuples.
    The class defines `hidden_state(carry) -> h`, `gates(cell, carry, u, v) -> (carry', y), residuals` and
    `gates_backward(cell, residuals, (carry'_bar, y_bar)) -> direct, v_bar, rest`, where `direct` is the part
    of the carry's cotangent that does not pass through v. Then `u_bar(v_bar, rest)` gives the cotangents
    of u, and `carry_bar(direct, h_bar)` puts both parts of the carry's together.
    """

    def complete(class_):
        def cell_forward(cell, carry, x):
            u, of_inputs = project(cell, inputs, x)
            v, of_hidden = project(cell, hidden, class_.hidden_state(carry))
            outputs, of_gates = class_.gates(cell, carry, u, v)
            return outputs, (of_inputs, of_hidden, of_gates)

        def cell_backward(cell, residuals, outputs_bar):
            of_inputs, of_hidden, of_gates = residuals
            direct, v_bar, rest = class_.gates_backward(cell, of_gates, outputs_bar)
            u_bar = class_.u_bar(v_bar, rest)
            input_grads, x_bar = project_backward(cell, inputs, of_inputs, u_bar)
            hidden_grads, h_bar = project_backward(cell, hidden, of_hidden, v_bar)
            return {**input_grads, **hidden_grads}, (class_.carry_bar(direct, h_bar), x_bar)

        class_.inputs, class_.hidden = inputs, hidden
        class_.forward, class_.backward = cell_forward, cell_backward
        return rule(cell_type)(class_)

    return complete


def project(cell, names, x):
    """The outputs of several layers for one x, and their residuals."""
    pairs = [forward(getattr(cell, name), x, name=(name,)) for name in names]
    outputs, residuals = zip(*pairs, strict=True)
    return outputs, residuals


def project_backward(cell, names, residuals, outputs_bar):
    """The layers' gradients by name, and x_bar: the sum of theirs."""
    grads, x_bar = {}, None
    for name, kept, bar in zip(names, residuals, outputs_bar, strict=True):
        grads[name], part = backward(getattr(cell, name), kept, bar, name=(name,))
        x_bar = part if x_bar is None else x_bar + part
    return grads, x_bar


def _gate(cell, a):
    return forward(cell.gate_fn, a, name=("gate_fn",))


def _activation(cell, a):
    return forward(cell.activation_fn, a, name=("activation_fn",))


def _gate_bar(cell, residuals, y_bar):
    return backward(cell.gate_fn, residuals, y_bar, name=("gate_fn",))[1]


def _activation_bar(cell, residuals, y_bar):
    return backward(cell.activation_fn, residuals, y_bar, name=("activation_fn",))[1]


@cell_rule(nnx.SimpleCell, inputs=("dense_i",), hidden=("dense_h",))
class SimpleCellRule:
    """h' = f(a),   a = W_i x + b + W_h h (+ h with `residual`),   y = h'  (Elman 1990).

    a_bar = f'(a) (h'_bar + y_bar),   u_bar = v_bar = a_bar,   h_bar = W_h^T a_bar (+ a_bar)

    x: (*batch, in), h and y: (*batch, hidden).
    """

    def hidden_state(h):
        return h

    def gates(cell, h, u, v):
        a = u[0] + v[0]
        a = a + h if cell.residual else a
        y, of_f = _activation(cell, a)
        return (y, y), of_f

    def gates_backward(cell, of_f, outputs_bar):
        carry_bar, y_bar = outputs_bar
        a_bar = _activation_bar(cell, of_f, carry_bar + y_bar)
        return a_bar if cell.residual else None, (a_bar,), None

    def u_bar(v_bar, rest):
        return v_bar

    def carry_bar(direct, h_bar):
        return h_bar if direct is None else direct.astype(h_bar.dtype) + h_bar


@cell_rule(nnx.GRUCell, inputs=("dense_i",), hidden=("dense_h",))
class GRUCellRule:
    """h' = (1 - z) n + z h,   y = h',   with the gates (Cho et al. 2014, in cuDNN's variant)

        r = s(u_r + v_r),   z = s(u_z + v_z),   n = f(a),   a = u_n + r v_n,

    where u = W_i x + b and v = W_h h have three parts each, s is `gate_fn` and f `activation_fn`. With
    h'_bar for the sum of both outputs' cotangents:

        n_bar = (1 - z) h'_bar,   a_bar = f'(a) n_bar
        z_bar = (h - n) h'_bar,   r_bar = v_n a_bar
        u_bar = (s' r_bar, s' z_bar, a_bar),   v_bar = (s' r_bar, s' z_bar, r a_bar)
        h_bar = z h'_bar + W_h^T v_bar

    x: (*batch, in), h and y: (*batch, hidden), u and v: (*batch, 3 hidden).
    """

    def hidden_state(h):
        return h

    def gates(cell, h, u, v):
        u_r, u_z, u_n = jnp.split(u[0], 3, axis=-1)
        v_r, v_z, v_n = jnp.split(v[0], 3, axis=-1)
        r, of_r = _gate(cell, u_r + v_r)
        z, of_z = _gate(cell, u_z + v_z)
        n, of_n = _activation(cell, u_n + r * v_n)
        y = (1.0 - z) * n + z * h
        return (y, y), (h, v_n, r, z, n, of_r, of_z, of_n)

    def gates_backward(cell, residuals, outputs_bar):
        h, v_n, r, z, n, of_r, of_z, of_n = residuals
        carry_bar, y_bar = outputs_bar
        y_bar = carry_bar + y_bar
        a_bar = _activation_bar(cell, of_n, ((1.0 - z) * y_bar).astype(n.dtype))
        z_bar = _gate_bar(cell, of_z, ((h - n) * y_bar).astype(z.dtype))
        r_bar = _gate_bar(cell, of_r, v_n * a_bar)
        v_bar = jnp.concatenate([r_bar, z_bar, r * a_bar], axis=-1)
        return (z * y_bar).astype(h.dtype), (v_bar,), a_bar

    def u_bar(v_bar, a_bar):
        gates = v_bar[0][..., : -a_bar.shape[-1]]
        return (jnp.concatenate([gates, a_bar], axis=-1),)

    def carry_bar(direct, h_bar):
        return direct + h_bar


def lstm_gates(cell, c, a):
    """The four gates of an LSTM from their arguments a = (a_i, a_f, a_g, a_o), the new carry and y."""
    (i, of_i), (f, of_f) = _gate(cell, a[0]), _gate(cell, a[1])
    (g, of_g), (o, of_o) = _activation(cell, a[2]), _gate(cell, a[3])
    new_c = f * c + i * g
    t, of_t = _activation(cell, new_c)
    y = o * t
    return ((new_c, y), y), (c, i, f, g, o, t, of_i, of_f, of_g, of_o, of_t)


def lstm_gates_backward(cell, residuals, outputs_bar):
    """c_bar and the four a_bar."""
    c, i, f, g, o, t, of_i, of_f, of_g, of_o, of_t = residuals
    (c_bar, h_bar), y_bar = outputs_bar
    y_bar = h_bar + y_bar
    c_bar = c_bar + _activation_bar(cell, of_t, (o * y_bar).astype(t.dtype))
    a_bar = (
        _gate_bar(cell, of_i, (g * c_bar).astype(i.dtype)),
        _gate_bar(cell, of_f, (c * c_bar).astype(f.dtype)),
        _activation_bar(cell, of_g, (i * c_bar).astype(g.dtype)),
        _gate_bar(cell, of_o, (t * y_bar).astype(o.dtype)),
    )
    return (f * c_bar).astype(c.dtype), a_bar


@cell_rule(nnx.LSTMCell, inputs=("ii", "if_", "ig", "io"), hidden=("hi", "hf", "hg", "ho"))
class LSTMCellRule:
    """c' = f c + i g,   h' = o tanh(c'),   y = h'   (Hochreiter and Schmidhuber 1997; Gers et al. 2000)

        i = s(a_i),   f = s(a_f),   g = tanh(a_g),   o = s(a_o),   a_k = W_ik x + W_hk h + b_k,

    s being `gate_fn` and tanh `activation_fn`. With h'_bar for the sum of the cotangents of h' and y:

        c'_bar += tanh'(c') o h'_bar            the cell's memory, which reaches the step before as
        c_bar = f c'_bar                        a product with f alone: the constant error carousel
        a_i_bar = s' g c'_bar,   a_f_bar = s' c c'_bar,   a_g_bar = tanh' i c'_bar,
        a_o_bar = s' tanh(c') h'_bar
        u_bar = v_bar = a_bar,   h_bar = sum_k W_hk^T a_k_bar

    x: (*batch, in), c, h and y: (*batch, hidden); the carry is (c, h).
    """

    def hidden_state(carry):
        return carry[1]

    def gates(cell, carry, u, v):
        return lstm_gates(cell, carry[0], [u_k + v_k for u_k, v_k in zip(u, v, strict=True)])

    def gates_backward(cell, residuals, outputs_bar):
        c_bar, a_bar = lstm_gates_backward(cell, residuals, outputs_bar)
        return c_bar, a_bar, None

    def u_bar(v_bar, rest):
        return v_bar

    def carry_bar(direct, h_bar):
        return direct, h_bar


@cell_rule(nnx.OptimizedLSTMCell, inputs=("dense_i",), hidden=("dense_h",))
class OptimizedLSTMCellRule:
    """The LSTM of `LSTMCellRule` with the four matrices of x side by side in one, and those of h."""

    def hidden_state(carry):
        return carry[1]

    def gates(cell, carry, u, v):
        return lstm_gates(cell, carry[0], jnp.split(u[0] + v[0], 4, axis=-1))

    def gates_backward(cell, residuals, outputs_bar):
        c_bar, a_bar = lstm_gates_backward(cell, residuals, outputs_bar)
        a_bar = (jnp.concatenate(a_bar, axis=-1),)
        return c_bar, a_bar, None

    def u_bar(v_bar, rest):
        return v_bar

    def carry_bar(direct, h_bar):
        return direct, h_bar
