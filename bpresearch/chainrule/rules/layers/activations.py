"""Activations that act on each element: y = f(x), x_bar = f'(x) y_bar.

One line declares a rule: the function, what `forward` keeps (the input x or the output y, whichever gives
f' more cheaply) and the derivative in terms of it. At a kink the derivative is the one that JAX's autodiff
gives, so that both engines agree everywhere; each is stated where it is declared. Some of JAX's functions
have two names: `hard_swish` is `hard_silu`, `swish` is `silu`.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import erfc

from bpresearch.chainrule.registry import Layer, rule


def elementwise(function: Layer, keep: str, derivative: Callable) -> None:
    """Declares the rule of an elementwise function; `keep` is "x" or "y", the argument of `derivative`."""

    @rule(function)
    class ElementwiseRule:
        def forward(layer, x, **options):
            y = function(x, **options)
            return y, x if keep == "x" else y

        def backward(layer, argument, y_bar, **options):
            return {}, y_bar * derivative(argument, **options)


def gelu_derivative(x, approximate=True):
    """d/dx of x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016).

    Exact: Phi(x) + x phi(x). The approximation replaces Phi(x) by (1 + tanh u) / 2 with
    u = sqrt(2 / pi) (x + 0.044715 x^3), whose derivative is (1 - tanh^2 u) u' / 2.
    """
    if approximate:
        tanh = jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
        return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh) * (1 + tanh) * slope
    density = jnp.exp(-0.5 * x**2) / math.sqrt(2 * math.pi)
    return 0.5 * erfc(-x / math.sqrt(2)) + x * density


def silu_derivative(x):
    """d/dx of x s, s = sigmoid(x):  s + x s (1 - s)  (Elfwing et al. 2018)."""
    s = nnx.sigmoid(x)
    return s * (1 + x * (1 - s))


def leaky_relu_derivative(x, negative_slope=0.01):
    """1 for x >= 0, else the negative slope."""
    return jnp.where(x >= 0, jnp.ones_like(x), jnp.full_like(x, negative_slope))


def elu_derivative(x, alpha=1.0):
    """1 for x > 0, else alpha e^x, so alpha at 0 (Clevert et al. 2016)."""
    return jnp.where(x > 0, 1, alpha * jnp.exp(jnp.minimum(x, 0)))


def celu_derivative(x, alpha=1.0):
    """1 for x > 0, else e^(x / alpha), so 1 at 0 (Barron 2017)."""
    return jnp.exp(jnp.minimum(x, 0) / alpha)


def selu_derivative(x):
    """lambda elu'(x), so lambda alpha at 0 (Klambauer et al. 2017)."""
    return SELU_LAMBDA * elu_derivative(x, SELU_ALPHA)


def soft_sign_derivative(x):
    """1 / (1 + |x|)^2, so 1 at 0 (Bergstra et al. 2009)."""
    shrink = 1 / (1 + jnp.abs(x))
    return shrink * shrink


def hard_sigmoid_derivative(x):
    """1 / 6 for -3 < x < 3, else 0, at the kinks too (Courbariaux et al. 2015)."""
    return ((x > -3) & (x < 3)).astype(x.dtype) / 6


def hard_silu_derivative(x):
    """d/dx of x h(x), h the hard sigmoid:  h + x h'  (Howard et al. 2019)."""
    return nnx.hard_sigmoid(x) + jnp.where((x > -3) & (x < 3), x / 6, 0)


SELU_ALPHA, SELU_LAMBDA = 1.6732632423543772, 1.0507009873554805

elementwise(nnx.identity, "x", jnp.ones_like)
elementwise(nnx.sigmoid, "y", lambda y: y * (1 - y))
elementwise(nnx.tanh, "y", lambda y: (1 - y) * (1 + y))
elementwise(nnx.relu, "y", lambda y: (y > 0).astype(y.dtype))  # 0 at the kink
elementwise(nnx.leaky_relu, "x", leaky_relu_derivative)
elementwise(nnx.relu6, "y", lambda y: ((y > 0) & (y < 6)).astype(y.dtype))  # 0 at both kinks
elementwise(nnx.elu, "x", elu_derivative)
elementwise(nnx.celu, "x", celu_derivative)
elementwise(nnx.selu, "x", selu_derivative)
elementwise(nnx.gelu, "x", gelu_derivative)
elementwise(nnx.silu, "x", silu_derivative)
elementwise(nnx.softplus, "x", nnx.sigmoid)
elementwise(nnx.log_sigmoid, "x", lambda x: nnx.sigmoid(-x))
elementwise(nnx.soft_sign, "x", soft_sign_derivative)
elementwise(nnx.hard_tanh, "x", lambda x: (jnp.abs(x) <= 1).astype(x.dtype))  # 1 at both kinks
elementwise(nnx.hard_sigmoid, "x", hard_sigmoid_derivative)
elementwise(nnx.hard_silu, "x", hard_silu_derivative)


@rule(nnx.PReLU)
class PReLURule:
    """y = x for x >= 0, else a x, with a learned slope a (He et al. 2015).

    a_bar = sum(y_bar x) over x < 0,   x_bar = y_bar for x >= 0, else a y_bar.

    The slope is cast to the dtype of x, or both to the layer's `dtype`.
    """

    def forward(layer, x):
        return layer(x), x

    def backward(layer, x, y_bar):
        slope = layer.negative_slope[...]
        x_cast, a = x, slope.astype(x.dtype)
        if layer.dtype is not None:
            x_cast, a = layer.promote_dtype((x, slope), dtype=layer.dtype)
        positive = x_cast >= 0
        slope_bar = jnp.sum(jnp.where(positive, 0, x_cast * y_bar))
        return {"negative_slope": slope_bar}, jnp.where(positive, y_bar, a * y_bar).astype(x.dtype)
