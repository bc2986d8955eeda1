"""Functions that make one number of many."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import rule
from bpresearch.chainrule.rules.broadcast import along, cotangent, spread


@rule(nnx.logsumexp)
class LogSumExpRule:
    """y = log |sum(b e^x)| along the axis.      x_bar = s b e^(x - y) y_bar,   softmax(x) y_bar for b = 1

    s is the sign of the sum, and with `return_sign` a second output, without derivative. All options are
    those of the function; where `where` is False, x_bar is 0, and so it is where the sum is empty.
    """

    def forward(function, x, *, axis=None, b=None, keepdims=False, return_sign=False, where=None):
        options = {"axis": axis, "b": b, "keepdims": keepdims, "where": where}
        y, sign = nnx.logsumexp(x, return_sign=True, **options)
        return (y, sign) if return_sign else nnx.logsumexp(x, **options), (x, y, sign)

    def backward(
        function, residuals, y_bar, axis=None, b=None, keepdims=False, return_sign=False, where=None
    ):
        x, y, sign = residuals
        y_bar = y_bar[0] if return_sign else y_bar
        if not keepdims:
            y, sign = along(y, axis, x.ndim), along(sign, axis, x.ndim)
            bar = spread(y_bar, axis, where, x.ndim)
        else:
            bar = y_bar if where is None else jnp.where(where, y_bar, 0)
        powers = jnp.exp(x - jnp.where(jnp.isfinite(y), y, 0)) * sign
        return {}, cotangent((powers if b is None else b * powers) * bar, x)
