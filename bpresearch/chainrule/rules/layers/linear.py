"""Affine maps: of the last axis, of any axes, and by an index formula."""

import math

import jax.numpy as jnp
import numpy as np
import opt_einsum  # type: ignore[import-untyped]
from flax import nnx
from jax import lax

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
        grads = {"kernel": sum_over_rows(x_cast, y_bar, layer.precision).astype(kernel.dtype)}
        if layer.bias is not None:
            grads["bias"] = jnp.sum(y_bar, axis=range(y_bar.ndim - 1)).astype(layer.bias[...].dtype)
        return grads, jnp.matmul(y_bar, kernel_cast.T, precision=layer.precision).astype(x.dtype)


def sum_over_rows(x, y, precision=None):
    """x^T y, the sum of outer products over all axes before the last: (..., in), (..., out) -> (in, out)."""
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    # As one contraction: a transpose written out would be copied on the CPU.
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())), precision=precision)


@rule(nnx.LinearGeneral)
class LinearGeneralRule:
    """y[n, r, o] = sum_i x[n, r, i] W[n, i, o] + b[n, o]

    W_bar[n] = x[n]^T y_bar[n],   b_bar[n] = sum_r y_bar[n, r],   x_bar[n] = y_bar[n] W[n]^T

    i stands for the axes of x that are summed over (`axis`), o for the axes that come in their place, n for
    those along which each index has weights of its own (`batch_axis`), and r for the rest.
    """

    def forward(layer, x):
        return layer(x), x

    def backward(layer, x, y_bar):
        kernel = layer.kernel[...]
        x_cast, kernel_cast = layer.promote_dtype((x, kernel), dtype=layer.dtype)
        summed = sorted(axis % x.ndim for axis in layer.axis)
        free = [axis for axis in range(x.ndim) if axis not in summed]
        batch, out = len(layer.batch_axis), math.prod(layer.out_features)
        order, size = (*free, *summed), math.prod(layer.in_features)

        moved = jnp.transpose(x_cast, order)
        blocks = moved.reshape(*x.shape[:batch], -1, size)
        y_bar = y_bar.astype(x_cast.dtype).reshape(*x.shape[:batch], -1, out)
        weights = kernel_cast.reshape(*x.shape[:batch], size, out)
        kernel_bar = jnp.matmul(jnp.matrix_transpose(blocks), y_bar, precision=layer.precision)
        x_bar = jnp.matmul(y_bar, jnp.matrix_transpose(weights), precision=layer.precision)
        grads = {"kernel": kernel_bar.reshape(kernel.shape)}
        if layer.bias is not None:
            grads["bias"] = jnp.sum(y_bar, axis=-2).reshape(layer.bias.shape)
        return grads, jnp.transpose(x_bar.reshape(moved.shape), np.argsort(order)).astype(x.dtype)


@rule(nnx.Einsum)
class EinsumRule:
    """y = einsum("x's indices, W's indices -> y's indices", x, W) + b.

    x_bar and W_bar are the einsums that exchange y_bar with what they are the cotangents of,

        x_bar = einsum("y's, W's -> x's", y_bar, W),   W_bar = einsum("y's, x's -> W's", y_bar, x)

    and b_bar is the sum of y_bar over the indices of y that are not W's. An index that one factor alone has,
    and y has not, is summed over: its cotangent is the same all along it. Of an index that a factor has twice
    only the diagonal is used, and an axis of length one is used for all of the other factor's.
    """

    def forward(layer, x, *, einsum_str=None):
        return layer(x, einsum_str), x

    def backward(layer, x, y_bar, einsum_str=None):
        formula = (layer.einsum_str if einsum_str is None else einsum_str).replace(" ", "")
        kernel = layer.kernel[...]
        x_cast, kernel_cast = layer.promote_dtype((x, kernel), dtype=layer.dtype)
        of_factors, of_y, _ = opt_einsum.parser.parse_einsum_input((formula, x_cast, kernel_cast))
        of_x, of_kernel = of_factors.split(",")
        y_bar = y_bar.astype(x_cast.dtype)
        kernel_bar = _factor_bar((y_bar, of_y), (x_cast, of_x), kernel.shape, of_kernel, layer.precision)
        grads = {"kernel": kernel_bar}
        if layer.bias is not None:
            others = [axis for axis, index in enumerate(of_y) if index not in of_kernel]
            grads["bias"] = jnp.sum(y_bar, others).reshape(layer.bias.shape)
        x_bar = _factor_bar((y_bar, of_y), (kernel_cast, of_kernel), x.shape, of_x, layer.precision)
        return grads, x_bar.astype(x.dtype)


def _factor_bar(output, other, shape, indices, precision):
    """The cotangent of the factor of an einsum that has this shape and these indices.

    `output` and `other` are the result's cotangent and the other factor, each with its indices.
    """
    (y_bar, of_y), (other, of_other) = output, other
    size = dict(zip(indices, shape, strict=True))
    others = dict(zip(of_other, other.shape, strict=True)) | dict(zip(of_y, y_bar.shape, strict=True))
    matched = [index for index in size if others.get(index) == size[index]]
    bar = jnp.einsum(f"{of_y},{of_other}->{''.join(matched)}", y_bar, other, precision=precision)
    bar = jnp.expand_dims(bar, [axis for axis, index in enumerate(size) if index not in matched])
    bar = jnp.broadcast_to(bar, tuple(size.values()))
    if len(size) == len(indices):
        return bar
    places = jnp.meshgrid(*map(jnp.arange, size.values()), indexing="ij", sparse=True)
    at = dict(zip(size, places, strict=True))
    return jnp.zeros(shape, bar.dtype).at[tuple(at[index] for index in indices)].set(bar)
