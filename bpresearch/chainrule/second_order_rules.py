"""R of the layers, by families: linear maps, activations, pooling, normalization, attention and losses.

R{.} of a product is R{a} b + a R{b}; each rule below is that, applied to the lines of the first-order rule.
"""

import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bpresearch.chainrule.activations import SELU_ALPHA, SELU_LAMBDA
from bpresearch.chainrule.attention import attend
from bpresearch.chainrule.broadcast import along
from bpresearch.chainrule.losses import onehot
from bpresearch.chainrule.pooling import Windows
from bpresearch.chainrule.second_order import composite, second_order_rule
from bpresearch.models.attention import CausalAttention, by_head, from_heads
from bpresearch.models.combinators import LearnedPositions, Parallel, Residual, Unembed, add, concatenate
from bpresearch.models.shapes import add_channel, average, flatten, last, positions, steps, swap

second_order_rule(Residual, Parallel, nnx.MultiHeadAttention, CausalAttention)(composite)


@second_order_rule(nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose, Unembed)
class AffineSecondOrder:
    """y = A(x, W) + b, linear in x and in W.      y_dot = A(x_dot, W) + A(x, W_dot) + b_dot

    The cotangents are bilinear too: R{x_bar} = x_bar(W_dot, y_bar) + x_bar(W, y_bar_dot), R{W_bar} likewise
    with x, and R{b_bar} = b_bar(y_bar_dot).
    """

    def forward_dot(layer, tangent, residuals, inputs, inputs_dot, **options):
        (x,), (x_dot,) = inputs, inputs_dot
        linear = nnx.clone(layer)
        if getattr(linear, "bias", None) is not None:
            linear.bias[...] = jnp.zeros_like(linear.bias[...])
        y_dot = tangent.rule.forward(linear, x_dot, **options)[0]
        y_dot = y_dot + tangent.rule.forward(tangent.layer_dot, x, **options)[0]
        return y_dot, tangent.rule.forward(tangent.layer_dot, x_dot, **options)[1]

    def backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options):
        grads, x_bar_dot = tangent.rule.backward(layer, residuals, y_bar_dot, **options)
        more, more_dot = tangent.rule.backward(tangent.layer_dot, residuals_dot, y_bar, **options)
        if "bias" in more:
            more["bias"] = jnp.zeros_like(more["bias"])
        return jax.tree.map(jnp.add, grads, more), x_bar_dot + more_dot


@second_order_rule(nnx.Embed)
class EmbedSecondOrder:
    """y = E[x].      y_dot = E_dot[x],   R{E_bar} = E_bar(y_bar_dot)"""

    def forward_dot(layer, tangent, residuals, inputs, inputs_dot):
        return tangent.layer_dot(*inputs), None

    def backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot):
        return tangent.rule.backward(layer, residuals, y_bar_dot)


RESHAPES = flatten, add_channel, average, last, positions, steps, swap


@second_order_rule(nnx.identity, nnx.avg_pool, add, concatenate, *RESHAPES)
class LinearSecondOrder:
    """y = A x, without parameters.      y_dot = A x_dot,   R{x_bar} = A^T y_bar_dot"""

    def forward_dot(function, tangent, residuals, inputs, inputs_dot, **options):
        return function(*inputs_dot, **options), None

    def backward_dot(function, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options):
        return tangent.rule.backward(function, residuals, y_bar_dot, **options)


@second_order_rule(LearnedPositions)
class LearnedPositionsSecondOrder:
    """y = x + P.      y_dot = x_dot + P_dot; both cotangents are copies of y_bar, and R's of y_bar_dot"""

    def forward_dot(layer, tangent, residuals, inputs, inputs_dot):
        return tangent.layer_dot(*inputs_dot), None

    def backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot):
        return tangent.rule.backward(layer, residuals, y_bar_dot)


@second_order_rule(nnx.Dropout)
class DropoutSecondOrder:
    """y = m x / (1 - rate) with the m that was drawn, a diagonal map.      R as for every linear map"""

    def forward_dot(layer, tangent, residuals, inputs, inputs_dot, **options):
        return tangent.rule.backward(layer, residuals, *inputs_dot, **options)[1], None

    def backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options):
        return tangent.rule.backward(layer, residuals, y_bar_dot, **options)


@second_order_rule(nnx.max_pool, nnx.min_pool)
class ExtremePoolSecondOrder:
    """y is the x that won its window.      y_dot is its x_dot; the derivative stays that of a selection"""

    def forward_dot(
        function, tangent, residuals, inputs, inputs_dot, window_shape, strides=None, padding="VALID"
    ):
        x, (x_dot,) = residuals, inputs_dot
        windows = Windows(x, window_shape, strides, padding)
        outside = jnp.inf if function_of(function) is nnx.min_pool else -jnp.inf
        pairs = zip(windows.winners(x, outside), windows.seen(x_dot), strict=True)
        y_dot = sum(jnp.where(won, part, 0) for won, part in pairs)
        return y_dot.reshape(*x.shape[: -len(window_shape) - 1], *y_dot.shape[1:]), None

    def backward_dot(function, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options):
        return tangent.rule.backward(function, residuals, y_bar_dot, **options)


def function_of(layer):
    """The function under the options bound to it."""
    return getattr(layer, "func", layer)


def curved(function, second_derivative):
    """Declares the second-order rule of y = f(x), elementwise, from f'' of what the rule keeps (x or y).

    y_dot = f'(x) x_dot,   R{x_bar} = f'(x) y_bar_dot + f''(x) x_dot y_bar
    """

    @second_order_rule(function)
    class CurvedSecondOrder:
        def forward_dot(layer, tangent, kept, inputs, inputs_dot, **options):
            (x_dot,) = inputs_dot
            return tangent.rule.backward(layer, kept, x_dot, **options)[1], x_dot

        def backward_dot(layer, tangent, kept, x_dot, y_bar, y_bar_dot, **options):
            _, x_bar_dot = tangent.rule.backward(layer, kept, y_bar_dot, **options)
            return {}, x_bar_dot + second_derivative(kept, **options) * x_dot * y_bar


def gelu_second(x, approximate=True):
    """Exact: (2 - x^2) phi(x). With the tanh of u: (1 - tanh^2 u) (u' - x tanh(u) u'^2 + x u'' / 2)."""
    if approximate:
        root = math.sqrt(2 / math.pi)
        tanh = jnp.tanh(root * (x + 0.044715 * x**3))
        slope, bend = root * (1 + 3 * 0.044715 * x**2), root * 6 * 0.044715 * x
        return (1 - tanh) * (1 + tanh) * (slope - x * tanh * slope**2 + x * bend / 2)
    return (2 - x**2) * jnp.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)


def silu_second(x):
    """s (1 - s) (2 + x (1 - 2 s)), s = sigmoid(x)"""
    s = nnx.sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def logistic_second(x):
    """Of softplus: s (1 - s), s = sigmoid(x); of log_sigmoid the negative"""
    s = nnx.sigmoid(x)
    return s * (1 - s)


def elu_second(x, alpha=1.0):
    """0 for x > 0, else alpha e^x"""
    return jnp.where(x > 0, 0, alpha * jnp.exp(jnp.minimum(x, 0)))


def celu_second(x, alpha=1.0):
    """0 for x > 0, else e^(x / alpha) / alpha"""
    return jnp.where(x > 0, 0, jnp.exp(jnp.minimum(x, 0) / alpha) / alpha)


def nothing(kept, **options):
    """Straight on both sides of its kinks."""
    return jnp.zeros_like(kept)


curved(nnx.sigmoid, lambda y: y * (1 - y) * (1 - 2 * y))
curved(nnx.tanh, lambda y: -2 * y * (1 - y) * (1 + y))
curved(nnx.elu, elu_second)
curved(nnx.celu, celu_second)
curved(nnx.selu, lambda x: SELU_LAMBDA * elu_second(x, SELU_ALPHA))
curved(nnx.gelu, gelu_second)
curved(nnx.silu, silu_second)
curved(nnx.softplus, logistic_second)
curved(nnx.log_sigmoid, lambda x: -logistic_second(x))
curved(nnx.soft_sign, lambda x: -2 * jnp.sign(x) / (1 + jnp.abs(x)) ** 3)
curved(nnx.hard_silu, lambda x: ((x > -3) & (x < 3)).astype(x.dtype) / 3)
for piecewise_linear in (nnx.relu, nnx.relu6, nnx.leaky_relu, nnx.hard_tanh, nnx.hard_sigmoid):
    curved(piecewise_linear, nothing)


@second_order_rule(nnx.LayerNorm)
class LayerNormSecondOrder:
    """y = g x_hat + b,   x_hat = (x - mean) r; m(.) is the mean over the normalized axes.

    x_hat_dot = r (x_dot - m(x_dot) - x_hat q),   q = m(x_hat x_dot),   r_dot = -r^2 q
    y_dot = g_dot x_hat + g x_hat_dot + b_dot
    With u = g y_bar,   u_dot = g_dot y_bar + g y_bar_dot   and   x_bar = r (u - m(u) - x_hat m(x_hat u)):
    R{x_bar} = -r q x_bar + r (u_dot - m(u_dot) - x_hat_dot m(x_hat u) - x_hat m(x_hat_dot u + x_hat u_dot))
    R{g_bar} = sum(y_bar_dot x_hat + y_bar x_hat_dot),   R{b_bar} = sum(y_bar_dot)
    """

    def forward_dot(layer, tangent, residuals, inputs, inputs_dot, mask=None):
        if mask is not None:
            raise ValueError("nnx.LayerNorm: no second-order rule with a mask")
        x, mean, r, _ = residuals
        (x_dot,) = inputs_dot
        x_hat = (x - mean) * r
        q = mean_over(layer, x_hat * x_dot)
        x_hat_dot = r * (x_dot - mean_over(layer, x_dot) - x_hat * q)
        g, g_dot, b_dot = factors(layer, tangent, x)
        return g_dot * x_hat + g * x_hat_dot + b_dot, (x_hat_dot, q)

    def backward_dot(layer, tangent, residuals, residuals_dot, y_bar, y_bar_dot, mask=None):
        x, mean, r, _ = residuals
        x_hat_dot, q = residuals_dot
        x_hat, (g, g_dot, _) = (x - mean) * r, factors(layer, tangent, x)
        u, u_dot = g * y_bar, g_dot * y_bar + g * y_bar_dot
        along_x = mean_over(layer, x_hat * u)
        x_bar = r * (u - mean_over(layer, u) - x_hat * along_x)
        turned = x_hat_dot * along_x + x_hat * mean_over(layer, x_hat_dot * u + x_hat * u_dot)
        x_bar_dot = r * (u_dot - mean_over(layer, u_dot) - turned) - r * q * x_bar
        features = {axis % x.ndim for axis in as_axes(layer.feature_axes)}
        others = tuple(axis for axis in range(x.ndim) if axis not in features)
        grads = {}
        if layer.scale is not None:
            scale_bar = jnp.sum(y_bar_dot * x_hat + y_bar * x_hat_dot, others)
            grads["scale"] = scale_bar.reshape(layer.scale.shape)
        if layer.bias is not None:
            grads["bias"] = jnp.sum(y_bar_dot, others).reshape(layer.bias.shape)
        return grads, x_bar_dot


def as_axes(axes):
    return (axes,) if isinstance(axes, int) else tuple(axes)


def mean_over(layer, values):
    return jnp.mean(values, as_axes(layer.reduction_axes), keepdims=True)


def factors(layer, tangent, x):
    """Scale, its R and the bias's R, shaped to meet x; what the layer lacks is constant."""
    features = {axis % x.ndim for axis in as_axes(layer.feature_axes)}
    shape = tuple(n if axis in features else 1 for axis, n in enumerate(x.shape))
    scale, scale_dot, bias_dot = layer.scale, tangent.layer_dot.scale, tangent.layer_dot.bias
    return (
        1 if scale is None else scale[...].reshape(shape),
        0 if scale is None else scale_dot[...].reshape(shape),
        0 if bias_dot is None else bias_dot[...].reshape(shape),
    )


@second_order_rule(optax.losses.softmax_cross_entropy_with_integer_labels)
class CrossEntropySecondOrder:
    """l = log(sum e^z) - z_label,   p = softmax(z).      l_dot = sum((p - onehot) z_dot)

    R{z_bar} = (p - onehot) l_bar_dot + p (z_dot - sum(p z_dot)) l_bar: the Hessian is diag(p) - p p^T.
    """

    def forward_dot(loss, tangent, residuals, inputs, inputs_dot, axis=-1):
        (p, labels), z_dot = residuals, inputs_dot[0]
        return jnp.sum((p - onehot(labels, p, axis)) * z_dot, axis), z_dot

    def backward_dot(loss, tangent, residuals, z_dot, l_bar, l_bar_dot, axis=-1):
        p, labels = residuals
        p_dot = p * (z_dot - jnp.sum(p * z_dot, axis, keepdims=True))
        bar, bar_dot = along(l_bar, axis, p.ndim), along(l_bar_dot, axis, p.ndim)
        return {}, ((p - onehot(labels, p, axis)) * bar_dot + p_dot * bar, None)


def squared(function, factor):
    """Declares the second-order rule of l = c e^2, e = o - t:

    l_dot = 2 c e e_dot,   R{o_bar} = 2 c (e_dot l_bar + e l_bar_dot) = -R{t_bar}
    """

    @second_order_rule(function)
    class SquaredSecondOrder:
        def forward_dot(loss, tangent, residuals, inputs, inputs_dot):
            e, e_dot = errors(residuals, inputs_dot)
            return 2 * factor * e * e_dot, e_dot

        def backward_dot(loss, tangent, residuals, e_dot, l_bar, l_bar_dot):
            e, _ = errors(residuals, (e_dot, None))
            o_bar_dot = 2 * factor * (e_dot * l_bar + e * l_bar_dot)
            return {}, (o_bar_dot, -o_bar_dot)


def errors(values, dots):
    """o - t and its R; targets that are left out are zeros."""
    difference = values[0] if values[1] is None else values[0] - values[1]
    return difference, dots[0] if dots[1] is None else dots[0] - dots[1]


squared(optax.losses.squared_error, 1)
squared(optax.losses.l2_loss, 0.5)


@second_order_rule(attend)
class AttendSecondOrder:
    """y = P v,   P = softmax(A),   A = q k^T / sqrt(d).

    A_dot = (q_dot k^T + q k_dot^T) / sqrt(d),   P_dot = P * (A_dot - sum(P * A_dot))
    y_dot = P_dot v + P v_dot
    With P_bar = y_bar v^T,   s = sum(P * P_bar)   and   A_bar = P * (P_bar - s):
    R{P_bar} = y_bar_dot v^T + y_bar v_dot^T,   s_dot = sum(P_dot * P_bar + P * R{P_bar})
    R{A_bar} = P_dot * (P_bar - s) + P * (R{P_bar} - s_dot)
    R{v_bar} = P_dot^T y_bar + P^T y_bar_dot
    R{q_bar} = (R{A_bar} k + A_bar k_dot) / sqrt(d),   R{k_bar} = (R{A_bar}^T q + A_bar^T q_dot) / sqrt(d)

    Without dropout; where the mask forbids attention P is 0 and so are all of these. Of Flax's own function
    P is rounded to float32, and so are the products.
    """

    def forward_dot(function, tangent, residuals, inputs, inputs_dot, **options):
        if options.get("dropout_rate", 0) > 0 and not options.get("deterministic"):
            raise ValueError("attention: no second-order rule with dropout; make the layer deterministic")
        q, k, v = _heads(inputs)
        q_dot, k_dot, v_dot = _heads(inputs_dot)
        p = _weights(residuals, q, k)
        a_dot = (q_dot @ jnp.matrix_transpose(k) + q @ jnp.matrix_transpose(k_dot)) / math.sqrt(q.shape[-1])
        p_dot = p * (a_dot - jnp.sum(p * a_dot, axis=-1, keepdims=True))
        return from_heads(p_dot @ v + p @ v_dot, inputs[0].shape[-3]), (inputs_dot[:3], p_dot)

    def backward_dot(function, tangent, residuals, residuals_dot, y_bar, y_bar_dot, **options):
        (inputs, *_), (inputs_dot, p_dot) = residuals[2], residuals_dot
        (q, k, v), (q_dot, k_dot, v_dot) = _heads(inputs), _heads(inputs_dot)
        transpose, root = jnp.matrix_transpose, math.sqrt(q.shape[-1])
        p = _weights(residuals, q, k)
        y_bar, y_bar_dot = by_head(y_bar, v.shape[-3]), by_head(y_bar_dot, v.shape[-3])
        p_bar = y_bar @ transpose(v)
        p_bar_dot = y_bar_dot @ transpose(v) + y_bar @ transpose(v_dot)
        s = jnp.sum(p * p_bar, axis=-1, keepdims=True)
        s_dot = jnp.sum(p_dot * p_bar + p * p_bar_dot, axis=-1, keepdims=True)
        a_bar, a_bar_dot = p * (p_bar - s), p_dot * (p_bar - s) + p * (p_bar_dot - s_dot)
        bars_dot = (
            (a_bar_dot @ k + a_bar @ k_dot) / root,
            (transpose(a_bar_dot) @ q + transpose(a_bar) @ q_dot) / root,
            transpose(p_dot) @ y_bar + transpose(p) @ y_bar_dot,
        )
        steps = (inputs[0].shape[-3], inputs[1].shape[-3], inputs[1].shape[-3])
        return {}, (*(from_heads(bar, n) for bar, n in zip(bars_dot, steps, strict=True)), None, None)


def _heads(inputs):
    """q, k and v by the heads of the keys: (*batch, kv_heads, rows, depth)."""
    q, k, v = inputs[:3]
    return by_head(q, k.shape[-2]), by_head(k, k.shape[-2]), by_head(v, v.shape[-2])


def _weights(residuals, q, k):
    """P of the first pass, as the products by head want it."""
    _, _, (_, of_softmax, _) = residuals
    p = of_softmax[0] / of_softmax[1] if isinstance(of_softmax, tuple) else of_softmax
    return p.reshape(*q.shape[:-1], k.shape[-2]).astype(q.dtype)
