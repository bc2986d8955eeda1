"""Affine maps of the last axis."""

import jax.numpy as jnp
from flax import nnx

from bpresearch.chainrule.registry import rule


@rule(nnx.Linear)
class LinearRule:
    """y = x W + b.      W_bar = x^T y_bar,   b_bar = sum(y_bar),   x_bar = y_bar W^T

    x: (..., in), W: (in, out), b: (out,). Sums run over all axes before the last. The products are taken
    in the layer's computation dtype and the results returned in the dtype of what they belong to.
    """

    def forward(layer, x):
        return layer(x), x

    def backward(layer, x, y_bar):
        kernel = layer.kernel[...]
        x_cast, kernel_cast = layer.promote_dtype((x, kernel), dtype=layer.dtype)
        y_bar = y_bar.astype(x_cast.dtype)
        rows = y_bar.reshape(-1, y_bar.shape[-1])
        kernel_bar = jnp.matmul(x_cast.reshape(-1, x.shape[-1]).T, rows, precision=layer.precision)
        grads = {"kernel": kernel_bar.astype(kernel.dtype)}
        if layer.bias is not None:
            grads["bias"] = jnp.sum(rows, axis=0).astype(layer.bias[...].dtype)
        return grads, jnp.matmul(y_bar, kernel_cast.T, precision=layer.precision).astype(x.dtype)
