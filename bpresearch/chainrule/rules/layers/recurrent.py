"""Recurrent cells: one step (carry, x) -> (carry', y) of a recurrence.

The linear layers of a cell answer with `LinearRule`, its activations with their own rules; where one of these
has none, the cell is opened. Along a sequence a cell runs in a loop, whose rule is back-propagation through
time (Werbos 1990).
"""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.inner import Inner
from bpresearch.chainrule.rules.layers.linear import LinearRule


@rule(nnx.SimpleCell)
class SimpleCellRule:
    """h' = f(a),   a = W_i x + b + W_h h (+ h with `residual`),   y = h'  (Elman 1990).

    a_bar = f'(a) (h'_bar + y_bar),   x_bar = W_i^T a_bar,   h_bar = W_h^T a_bar (+ a_bar)

    x: (*batch, in), h and y: (*batch, hidden).
    """

    def forward(cell, h, x):
        a = cell.dense_i(x) + cell.dense_h(h)
        a = a + h if cell.residual else a
        y, of_f = Inner(cell.activation_fn)(a)
        return (y, y), (h, x, of_f)

    def backward(cell, residuals, outputs_bar):
        h, x, of_f = residuals
        h_bar, y_bar = outputs_bar
        a_bar = Inner(cell.activation_fn).back(of_f, h_bar + y_bar)
        of_i, x_bar = LinearRule.backward(cell.dense_i, x, a_bar)
        of_h, h_bar = LinearRule.backward(cell.dense_h, h, a_bar)
        h_bar = h_bar + a_bar.astype(h.dtype) if cell.residual else h_bar
        return {"dense_i": of_i, "dense_h": of_h}, (h_bar, x_bar)


@rule(nnx.GRUCell)
class GRUCellRule:
    """h' = (1 - z) n + z h,   y = h',   with the gates (Cho et al. 2014, in cuDNN's variant)

        r = s(u_r + v_r),   z = s(u_z + v_z),   n = f(a),   a = u_n + r v_n,

    where u = W_i x + b and v = W_h h have three parts each, s is `gate_fn` and f `activation_fn`. With
    h'_bar for the sum of both outputs' cotangents:

        n_bar = (1 - z) h'_bar,   a_bar = f' n_bar
        z_bar = (h - n) h'_bar,   r_bar = v_n a_bar
        u_bar = (s' r_bar, s' z_bar, a_bar),   v_bar = (s' r_bar, s' z_bar, r a_bar)
        x_bar = W_i^T u_bar,   h_bar = W_h^T v_bar + z h'_bar

    x: (*batch, in), h and y: (*batch, hidden), u and v: (*batch, 3 hidden).
    """

    def forward(cell, h, x):
        s, f = Inner(cell.gate_fn), Inner(cell.activation_fn)
        u_r, u_z, u_n = jnp.split(cell.dense_i(x), 3, axis=-1)
        v_r, v_z, v_n = jnp.split(cell.dense_h(h), 3, axis=-1)
        r, of_r = s(u_r + v_r)
        z, of_z = s(u_z + v_z)
        n, of_n = f(u_n + r * v_n)
        y = (1.0 - z) * n + z * h
        return (y, y), (h, x, v_n, r, z, n, of_r, of_z, of_n)

    def backward(cell, residuals, outputs_bar):
        h, x, v_n, r, z, n, of_r, of_z, of_n = residuals
        s, f = Inner(cell.gate_fn), Inner(cell.activation_fn)
        h_bar, y_bar = outputs_bar
        y_bar = h_bar + y_bar
        a_bar = f.back(of_n, ((1.0 - z) * y_bar).astype(n.dtype))
        z_bar = s.back(of_z, ((h - n) * y_bar).astype(z.dtype))
        r_bar = s.back(of_r, v_n * a_bar)
        of_i, x_bar = LinearRule.backward(cell.dense_i, x, jnp.concatenate([r_bar, z_bar, a_bar], -1))
        of_h, h_bar = LinearRule.backward(cell.dense_h, h, jnp.concatenate([r_bar, z_bar, r * a_bar], -1))
        return {"dense_i": of_i, "dense_h": of_h}, (h_bar + (z * y_bar).astype(h.dtype), x_bar)


def gates(cell, c, a):
    """The new carry and y of an LSTM from its old memory and the gates' arguments (a_i, a_f, a_g, a_o)."""
    s, tanh = Inner(cell.gate_fn), Inner(cell.activation_fn)
    (i, of_i), (f, of_f), (g, of_g), (o, of_o) = s(a[0]), s(a[1]), tanh(a[2]), s(a[3])
    new_c = f * c + i * g
    t, of_t = tanh(new_c)
    y = o * t
    return ((new_c, y), y), (c, i, f, g, o, t, of_i, of_f, of_g, of_o, of_t)


def gates_backward(cell, residuals, outputs_bar):
    """c_bar, and the cotangents of (a_i, a_f, a_g, a_o)."""
    c, i, f, g, o, t, of_i, of_f, of_g, of_o, of_t = residuals
    s, tanh = Inner(cell.gate_fn), Inner(cell.activation_fn)
    (c_bar, h_bar), y_bar = outputs_bar
    y_bar = h_bar + y_bar
    c_bar = c_bar + tanh.back(of_t, (o * y_bar).astype(t.dtype))
    a_bar = (
        s.back(of_i, (g * c_bar).astype(i.dtype)),
        s.back(of_f, (c * c_bar).astype(f.dtype)),
        tanh.back(of_g, (i * c_bar).astype(g.dtype)),
        s.back(of_o, (t * y_bar).astype(o.dtype)),
    )
    return (f * c_bar).astype(c.dtype), a_bar


@rule(nnx.LSTMCell)
class LSTMCellRule:
    """c' = f c + i g,   h' = o tanh(c'),   y = h'   (Hochreiter and Schmidhuber 1997; Gers et al. 2000)

        i = s(a_i),   f = s(a_f),   g = tanh(a_g),   o = s(a_o),   a_k = W_ik x + W_hk h + b_k,

    s being `gate_fn` and tanh `activation_fn`. With h'_bar for the sum of the cotangents of h' and y:

        c'_bar += tanh'(c') o h'_bar            the cell's memory, which reaches the step before as
        c_bar = f c'_bar                        a product with f alone: the constant error carousel
        a_i_bar = s' g c'_bar,   a_f_bar = s' c c'_bar,   a_g_bar = tanh' i c'_bar,
        a_o_bar = s' tanh(c') h'_bar
        x_bar = sum_k W_ik^T a_k_bar,   h_bar = sum_k W_hk^T a_k_bar

    x: (*batch, in), c, h and y: (*batch, hidden); the carry is (c, h).
    """

    OF_X, OF_H = ("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")

    def forward(cell, carry, x):
        c, h = carry
        names = zip(LSTMCellRule.OF_X, LSTMCellRule.OF_H, strict=True)
        outputs, of_gates = gates(cell, c, [getattr(cell, i)(x) + getattr(cell, j)(h) for i, j in names])
        return outputs, (x, h, of_gates)

    def backward(cell, residuals, outputs_bar):
        x, h, of_gates = residuals
        c_bar, a_bar = gates_backward(cell, of_gates, outputs_bar)
        grads, x_bars, h_bars = {}, [], []
        for i, j, bar in zip(LSTMCellRule.OF_X, LSTMCellRule.OF_H, a_bar, strict=True):
            grads[i], x_bar = LinearRule.backward(getattr(cell, i), x, bar)
            grads[j], h_bar = LinearRule.backward(getattr(cell, j), h, bar)
            x_bars.append(x_bar)
            h_bars.append(h_bar)
        return grads, ((c_bar, sum(h_bars[1:], h_bars[0])), sum(x_bars[1:], x_bars[0]))


@rule(nnx.OptimizedLSTMCell)
class OptimizedLSTMCellRule:
    """The LSTM of `LSTMCellRule` with the four matrices of x side by side in one, and those of h.

    x_bar = W_i^T a_bar,   h_bar = W_h^T a_bar,   a_bar = (a_i_bar, a_f_bar, a_g_bar, a_o_bar)
    """

    def forward(cell, carry, x):
        c, h = carry
        outputs, of_gates = gates(cell, c, jnp.split(cell.dense_i(x) + cell.dense_h(h), 4, axis=-1))
        return outputs, (x, h, of_gates)

    def backward(cell, residuals, outputs_bar):
        x, h, of_gates = residuals
        c_bar, a_bar = gates_backward(cell, of_gates, outputs_bar)
        a_bar = jnp.concatenate(a_bar, axis=-1)
        of_i, x_bar = LinearRule.backward(cell.dense_i, x, a_bar)
        of_h, h_bar = LinearRule.backward(cell.dense_h, h, a_bar)
        return {"dense_i": of_i, "dense_h": of_h}, ((c_bar, h_bar), x_bar)
